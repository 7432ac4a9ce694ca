//! Whether those who waited for a lock are served before those who came later.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use crate::course::{Course, MAX_WORKERS};
use heirlock::{Mutex, Participant, Segment, is_alive};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed},
};
use zerocopy::FromBytes;

/// How often the workers in each place have been served. All bytes zero is the
/// beginning.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Served([AtomicU64; MAX_WORKERS]);

/// A worker that was seen waiting.
pub(crate) struct Waiting {
    participant: u64,
    slot: usize,
    /// How often it had been served before it was seen.
    served: u64,
}

/// Whether the participant that `bits` stand for is alive. Bits that stand for
/// none count as alive, which shows up as an inversion: nobody writes such.
pub(crate) fn alive<T>(segment: &Segment<T>, bits: u64) -> bool {
    Participant::from_bits(bits).is_none_or(|participant| is_alive(segment, participant))
}

impl Served {
    /// Who waits for `lock` now, and so must be served before anybody who comes later.
    pub(crate) fn waiting<T>(&self, lock: &Mutex<T>, course: &Course) -> Vec<Waiting> {
        // Counted first: whoever is served and waits again meanwhile shows a
        // higher number later, and is not taken for one that is passed over.
        let served: Vec<u64> =
            self.0[..course.workers()].iter().map(|served| served.load(Acquire)).collect();
        let waiting = |participant: Participant| {
            let slot = course.place_of(participant)?;
            Some(Waiting { participant: participant.to_bits(), slot, served: served[slot] })
        };
        heirlock::queue(lock).into_iter().flatten().filter_map(waiting).collect()
    }

    /// Whether somebody of `before` still waits. The caller owns the lock.
    pub(crate) fn is_passed_over(&self, before: &[Waiting], alive: impl Fn(u64) -> bool) -> bool {
        before.iter().any(|waiting| {
            self.0[waiting.slot].load(Relaxed) == waiting.served && alive(waiting.participant)
        })
    }

    /// To be called by each owner, in place `slot`, before it releases.
    pub(crate) fn count(&self, slot: usize) {
        self.0[slot].fetch_add(1, Relaxed);
    }
}
