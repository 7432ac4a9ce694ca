//! Whether a deadlock is reported where there is none: the threads take two locks in
//! one order only.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use super::ground::Ground;
use heirlock::{Segment, deadlock};
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

pub(crate) struct Sceptic<'a> {
    ground: &'a Segment<Ground>,
    checks: AtomicU64,
    found: AtomicU64,
    over: AtomicBool,
}

/// Ends the checks when it is dropped.
pub(crate) struct Checks<'a>(&'a AtomicBool);

impl Drop for Checks<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

impl<'a> Sceptic<'a> {
    pub(crate) fn new(ground: &'a Segment<Ground>) -> Self {
        let (checks, found) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { ground, checks, found, over: AtomicBool::new(false) }
    }

    /// What ends the checks when it is dropped.
    pub(crate) fn checks(&self) -> Checks<'_> {
        Checks(&self.over)
    }

    /// How often it was looked.
    pub(crate) fn made(&self) -> u64 {
        self.checks.load(Relaxed)
    }

    /// How many deadlocks were reported.
    pub(crate) fn found(&self) -> u64 {
        self.found.load(SeqCst)
    }

    /// Looks until the checks are dropped, or a deadlock is reported.
    pub(crate) fn run(&self) {
        while !self.over.load(SeqCst) {
            let cycles = deadlock::check(self.ground);
            self.checks.fetch_add(1, Relaxed);
            for cycle in &cycles {
                eprintln!("shm-demo: {cycle}");
            }
            if !cycles.is_empty() {
                self.found.store(cycles.len() as u64, SeqCst);
                return;
            }
        }
    }
}
