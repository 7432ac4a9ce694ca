//! What `shm-demo counter` has to say at the end.

use crate::outcome::{Account, Outcome};
use serde::Serialize;
use std::time::Duration;

/// The result of a run; `shm-demo counter --help` says what the fields mean.
#[derive(Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
    pub(crate) workers: u32,
    pub(crate) increments_expected: u64,
    pub(crate) increments_counted: u64,
    pub(crate) inherited: u64,
    pub(crate) repaired: u64,
    pub(crate) order_inversions: u64,
    pub(crate) order_checked: u64,
    pub(crate) order_unchecked: u64,
    pub(crate) acquisitions: u64,
    pub(crate) longest_wait_us: u64,
}

impl Account for Report {
    const HELD: &'static str = "everything: no increment lost or doubled, every tear repaired by an heir, \
                    the lock free at the end";

    fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    fn lines(&self) -> [(&'static str, String); 4] {
        [
            (
                "increments",
                format!(
                    "{} of {}, by {} processes in {:.1} s",
                    self.increments_counted,
                    self.increments_expected,
                    self.workers,
                    self.outcome.seconds
                ),
            ),
            (
                "kills",
                format!(
                    "{}; {} hit the owner of the lock, of which {} left torn data",
                    self.outcome.kills(),
                    self.inherited,
                    self.repaired
                ),
            ),
            (
                "order",
                format!(
                    "{} inversions in {} hand-overs to a waiter; {} more could not be checked",
                    self.order_inversions, self.order_checked, self.order_unchecked
                ),
            ),
            (
                "acquisitions",
                format!(
                    "{}; the longest wait was {:?}",
                    self.acquisitions,
                    Duration::from_micros(self.longest_wait_us)
                ),
            ),
        ]
    }
}
