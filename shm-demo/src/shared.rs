//! The segment that the processes of `counter` share.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use crate::course::{Course, MAX_WORKERS};
use crate::ledger::Ledger;
use heirlock::{Mutex, Options, Participant, Segment, SegmentError, is_alive};
use std::path::Path;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed},
};
use zerocopy::FromBytes;

/// Which `Shared` this is: another number for every change of it.
const SCHEMA: u64 = 1;

/// More rows than workers, since a dead worker's row is free again only when
/// its successor, or another one, has noticed.
const SPARE_ROWS: u32 = 8;

/// What is in the segment: a lock with what it protects, and what parent and
/// workers tell each other without it.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Shared {
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) course: Course,
    /// How often the workers in each place have been served.
    served: [AtomicU64; MAX_WORKERS],
}

/// A worker that was seen waiting.
pub(crate) struct Waiting {
    participant: u64,
    slot: usize,
    /// How often it had been served before it was seen.
    served: u64,
}

fn options() -> Options<'static, Shared> {
    Segment::options().schema(SCHEMA)
}

pub(crate) fn create(
    path: &Path,
    workers: u32,
    target: u64,
) -> Result<Segment<Shared>, SegmentError> {
    options()
        .capacity(workers + SPARE_ROWS)
        .init(move |shared: &mut Shared| shared.course.lay_out(workers, target))
        .create(path)
}

pub(crate) fn open(path: &Path) -> Result<Segment<Shared>, SegmentError> {
    options().open(path)
}

/// Whether the participant that `bits` stand for is alive. Bits that stand for
/// none count as alive, which shows up as an inversion: nobody writes such.
pub(crate) fn alive(segment: &Segment<Shared>, bits: u64) -> bool {
    Participant::from_bits(bits).is_none_or(|participant| is_alive(segment, participant))
}

impl Shared {
    /// Who waits now, and so must be served before anybody who comes later.
    pub(crate) fn waiting(&self) -> Vec<Waiting> {
        // Counted first: whoever is served and waits again meanwhile shows a
        // higher number later, and is not taken for one that is passed over.
        let served: Vec<u64> = self.served[..self.course.workers()]
            .iter()
            .map(|served| served.load(Acquire))
            .collect();
        let waiting = |participant: Participant| {
            let slot = self.course.place_of(participant)?;
            Some(Waiting { participant: participant.to_bits(), slot, served: served[slot] })
        };
        heirlock::queue(&self.ledger).into_iter().flatten().filter_map(waiting).collect()
    }

    /// Whether somebody of `before` still waits. The caller owns the lock.
    pub(crate) fn is_passed_over(&self, before: &[Waiting], alive: impl Fn(u64) -> bool) -> bool {
        before.iter().any(|waiting| {
            self.served[waiting.slot].load(Relaxed) == waiting.served && alive(waiting.participant)
        })
    }

    /// To be called by each owner, in place `slot`, before it releases.
    pub(crate) fn count_served(&self, slot: usize) {
        self.served[slot].fetch_add(1, Relaxed);
    }
}
