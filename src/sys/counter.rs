//! Counting for people. Apart from the atomics, because loom is not to know: no
//! step of the algorithm depends on a count.
#![allow(clippy::disallowed_types, reason = "not one of the algorithm's words")]

use core::sync::atomic::{AtomicU64, Ordering};
use zerocopy::FromBytes;

/// How often its one writer did something. Others may read it.
#[derive(FromBytes, Debug)]
#[repr(transparent)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// One more. By one thread at a time.
    pub(crate) fn add_one(&self) {
        // Relaxed, and not one step: nobody else writes.
        self.0.store(self.get().wrapping_add(1), Ordering::Relaxed);
    }

    /// From the start again.
    pub(crate) fn reset(&self) {
        // Release: who finds this 0, and then has an acquire fence, sees what
        // its writer did before.
        self.0.store(0, Ordering::Release);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
