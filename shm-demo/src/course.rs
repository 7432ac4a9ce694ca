//! What a parent and its workers tell each other without a lock: how far the work
//! is, how far it may go, and who is who.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use crate::Result;
use heirlock::Participant;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use zerocopy::FromBytes;

/// How many workers there can be at a time.
pub(crate) const MAX_WORKERS: usize = 256;

/// So many more rows than workers, since a dead one's row is free again only when its
/// successor, or another one, has noticed; and one for the parent.
pub(crate) const SPARE_ROWS: u32 = 8;

/// A part of a segment. All bytes zero is a course without workers.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Course {
    /// How much work has been done. What a lock protects knows best; this is for
    /// the parent, which must not queue for the lock to see it.
    progress: AtomicU64,
    /// How far the workers may go before the next kill has been made.
    limit: AtomicU64,
    target: AtomicU64,
    workers: AtomicU64,
    /// The participant that is, or last was, in each worker's place.
    participants: [AtomicU64; MAX_WORKERS],
}

impl Course {
    /// For the segment's creator.
    pub(crate) fn lay_out(&mut self, workers: u32, target: u64) {
        *self.workers.get_mut() = u64::from(workers);
        *self.target.get_mut() = target;
    }

    pub(crate) fn target(&self) -> u64 {
        self.target.load(Relaxed)
    }

    pub(crate) fn workers(&self) -> usize {
        MAX_WORKERS.min(self.workers.load(Relaxed) as usize)
    }

    pub(crate) fn progress(&self) -> u64 {
        self.progress.load(Relaxed)
    }

    pub(crate) fn set_progress(&self, done: u64) {
        self.progress.store(done, Relaxed);
    }

    /// For work that is counted without a lock. A worker that is killed before
    /// this has done a piece more than is counted, and one more will be done.
    pub(crate) fn advance(&self) {
        self.progress.fetch_add(1, Relaxed);
    }

    /// How far the workers may go now.
    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Relaxed).min(self.target())
    }

    pub(crate) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Relaxed);
    }

    /// Whether there is work that may be done now.
    pub(crate) fn may_go_on(&self) -> bool {
        self.progress() < self.limit()
    }

    /// Whether all work is done, and all kills are made: without the last of them
    /// the limit is below the target.
    pub(crate) fn is_complete(&self) -> bool {
        self.limit() >= self.target() && self.progress() >= self.target()
    }

    fn places(&self) -> &[AtomicU64] {
        &self.participants[..self.workers()]
    }

    /// For a worker, whose kind has `most` places.
    pub(crate) fn take_place(
        &self,
        slot: usize,
        participant: Participant,
        most: usize,
    ) -> Result<()> {
        let mut places = self.places().iter().take(most);
        let place = places.nth(slot).ok_or_else(|| format!("there is no place {slot}"))?;
        place.store(participant.to_bits(), Relaxed);
        Ok(())
    }

    /// Whether there has been a worker in each place.
    pub(crate) fn all_there(&self) -> bool {
        self.places().iter().all(|place| place.load(Relaxed) != 0)
    }

    pub(crate) fn place_of(&self, participant: Participant) -> Option<usize> {
        let participant = participant.to_bits();
        self.places().iter().position(|place| place.load(Relaxed) == participant)
    }
}
