//! What `shm-demo counter` has to say at the end.

use crate::{Result, print, print_json};
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

/// The result of a run; `shm-demo counter --help` says what the fields mean.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signal: Option<&'static str>,
    pub(crate) failures: Vec<String>,
    pub(crate) path: PathBuf,
    pub(crate) workers: u32,
    pub(crate) increments_expected: u64,
    pub(crate) increments_counted: u64,
    pub(crate) kills: u32,
    pub(crate) kills_asked: u32,
    pub(crate) kills_from_outside: u64,
    pub(crate) inherited: u64,
    pub(crate) repaired: u64,
    pub(crate) order_inversions: u64,
    pub(crate) order_checked: u64,
    pub(crate) order_unchecked: u64,
    pub(crate) acquisitions: u64,
    pub(crate) longest_wait_us: u64,
    pub(crate) seconds: f64,
}

impl Report {
    /// Whether everything held, to the end.
    pub(crate) fn held(&self) -> bool {
        self.outcome == "held"
    }

    pub(crate) fn print(&self, json: bool) -> Result<()> {
        for failure in &self.failures {
            eprintln!("shm-demo: FAILED: {failure}");
        }
        if json { print_json(self) } else { print(&self.summary()) }
    }

    fn summary(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, what: String| {
            writeln!(text, "{name:<13} {what}").expect("a String takes anything");
        };
        line(
            "increments",
            format!(
                "{} of {}, by {} processes in {:.1} s",
                self.increments_counted, self.increments_expected, self.workers, self.seconds
            ),
        );
        let outside = match self.kills_from_outside {
            0 => String::new(),
            kills => format!(", and {kills} from outside"),
        };
        line(
            "kills",
            format!(
                "{} of {}{outside}; {} hit the owner of the lock, of which {} left torn data",
                self.kills, self.kills_asked, self.inherited, self.repaired
            ),
        );
        line(
            "order",
            format!(
                "{} inversions in {} hand-overs to a waiter; {} more could not be checked",
                self.order_inversions, self.order_checked, self.order_unchecked
            ),
        );
        line(
            "acquisitions",
            format!(
                "{}; the longest wait was {:?}",
                self.acquisitions,
                Duration::from_micros(self.longest_wait_us)
            ),
        );
        let outcome = match (self.outcome, self.signal) {
            ("held", _) => {
                "everything: no increment lost or doubled, every tear repaired by an heir, \
                 the lock free at the end"
            }
            (_, Some(signal)) => &format!("ended by {signal}, nothing is proved; cleaned up"),
            _ => "see the lines that say FAILED; cleaned up",
        };
        line(self.outcome, outcome.into());
        text
    }
}
