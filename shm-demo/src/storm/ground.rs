//! The segment that the processes of `storm` share.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use super::histogram::Waits;
use super::line::Line;
use crate::course;
use crate::ledger::Ledger;
use heirlock::{CancelToken, Mutex, Options, Participant, Segment, SegmentError, Statistics};
use std::path::Path;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use zerocopy::FromBytes;

/// How many locks there are.
pub(crate) const LOCKS: usize = 3;

/// How many threads a worker process has, all of which lock.
pub(crate) const THREADS: usize = 4;

/// How many worker processes there can be at a time.
pub(crate) const MAX_WORKERS: usize = 64;

const _: () = assert!(MAX_WORKERS * THREADS <= course::MAX_WORKERS);

/// More rows than threads, since a dead thread's row is free again only when
/// its successor, or another one, has noticed.
pub(crate) const SPARE_ROWS: usize = 16;

/// How many rows the table can have.
pub(crate) const ROWS: usize = 2 * MAX_WORKERS * THREADS + SPARE_ROWS;

/// Which `Ground` this is: another number for every change of it.
const SCHEMA: u64 = 0x5354_4f52_4d01;

/// What is going on; [`Ground::phase`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The workers gather.
    Before,
    /// They lock and unlock, and nothing disturbs them.
    Calm,
    /// The storm.
    Storm,
    /// They are to end.
    Over,
}

/// How many phases there are in which anything is counted.
pub(crate) const COUNTED: usize = 2;

impl Phase {
    /// Where to count what happens in this phase.
    pub(crate) fn index(self) -> usize {
        if self == Self::Calm { 0 } else { 1 }
    }
}

/// What is in the segment. All bytes zero is the beginning.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Ground {
    pub(crate) locks: [Mutex<Guarded>; LOCKS],
    /// How often each lock has been acquired.
    pub(crate) progress: [AtomicU64; LOCKS],
    /// How long those waited who acquired each lock, by phase.
    pub(crate) waited: [[Waits; LOCKS]; COUNTED],
    pub(crate) counts: [Counts; COUNTED],
    pub(crate) waits: WaitNumbers,
    pub(crate) places: [Place; MAX_WORKERS],
    phase: AtomicU64,
}

/// What a lock protects.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Guarded {
    pub(crate) ledger: Ledger,
    pub(crate) line: Line,
}

/// What the workers count without a lock. A kill can make one of these miss one
/// event of the killed worker.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Counts {
    pub(crate) acquisitions: AtomicU64,
    pub(crate) handovers: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    pub(crate) cancellations: AtomicU64,
    pub(crate) interrupted: AtomicU64,
    pub(crate) order_inversions: AtomicU64,
    pub(crate) order_checked: AtomicU64,
}

/// By row, the number of the wait that its thread is in: odd while it is inside
/// a call that acquires. No number comes twice.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct WaitNumbers([AtomicU64; ROWS + 1]);

impl WaitNumbers {
    /// 0 for what is no row.
    pub(crate) fn get(&self, row: u32) -> u64 {
        self.0.get(row as usize).map_or(0, |number| number.load(SeqCst))
    }

    /// The number of the wait that the row's thread begins now.
    pub(crate) fn begin(&self, row: u32) -> u64 {
        // The row's former thread may have died in a wait.
        let number = (self.get(row) + 1) | 1;
        self.0[row as usize].store(number, SeqCst);
        number
    }

    pub(crate) fn end(&self, row: u32, number: u64) {
        self.0[row as usize].store(number + 1, SeqCst);
    }
}

/// A place for a worker; its successor gets it when it is killed.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Place {
    /// What cancels the waits of the worker's threads.
    pub(crate) token: CancelToken,
    reserved: u32,
    /// How many handlers ran, over all workers that had the place.
    pub(crate) handlers: AtomicU64,
    /// How many of them for signals that queue.
    pub(crate) queued_handlers: AtomicU64,
    pub(crate) threads: [Soul; THREADS],
}

/// A thread of a worker.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Soul {
    /// Its thread ID, 0 as long as no signal may be sent to it.
    pub(crate) tid: AtomicU64,
    participant: AtomicU64,
    /// How many of its sleeps were interrupted, when it last looked.
    interruptions: AtomicU64,
    /// How often it has counted in a ledger, over all threads that were here.
    pub(crate) done: AtomicU64,
}

impl Soul {
    pub(crate) fn arrive(&self, me: Participant, tid: u64) {
        self.participant.store(me.to_bits(), Relaxed);
        self.tid.store(tid, SeqCst);
    }

    /// Takes note of how many of the thread's sleeps were interrupted so far.
    pub(crate) fn note(&self, statistics: Statistics) {
        self.interruptions.store(statistics.interruptions, Relaxed);
    }

    /// Whether the thread is inside a call that acquires.
    pub(crate) fn is_in_a_wait(&self, waits: &WaitNumbers) -> bool {
        Participant::from_bits(self.participant.load(Relaxed))
            .is_some_and(|me| waits.get(me.row()) % 2 == 1)
    }

    /// How many sleeps of the thread were interrupted, now that it is gone; and
    /// makes room for the next one.
    pub(crate) fn depart(&self, ground: &Segment<Ground>) -> u64 {
        self.tid.store(0, SeqCst);
        let noted = self.interruptions.swap(0, Relaxed);
        let participant = Participant::from_bits(self.participant.swap(0, Relaxed));
        // The row knows best, if it has had no other user since.
        let exact = participant.and_then(|gone| heirlock::statistics(ground, gone));
        exact.map_or(noted, |exact| exact.interruptions.max(noted))
    }
}

impl Ground {
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(SeqCst) {
            0 => Phase::Before,
            1 => Phase::Calm,
            2 => Phase::Storm,
            _ => Phase::Over,
        }
    }

    pub(crate) fn begin(&self, phase: Phase) {
        self.phase.store(phase as u64, SeqCst);
    }

    /// How often any lock was acquired.
    pub(crate) fn total_progress(&self) -> u64 {
        self.progress.iter().map(|progress| progress.load(Relaxed)).sum()
    }

    /// Whether the threads of the first `workers` workers have all arrived.
    pub(crate) fn all_there(&self, workers: usize) -> bool {
        let mut souls = self.places[..workers].iter().flat_map(|place| &place.threads);
        souls.all(|soul| soul.tid.load(SeqCst) != 0)
    }

    /// The place of the worker that owns lock `lock` now.
    pub(crate) fn owners_place(&self, lock: usize) -> Option<usize> {
        let owner = heirlock::owner(&self.locks[lock])?.to_bits();
        let owns = |soul: &Soul| soul.participant.load(Relaxed) == owner;
        self.places.iter().position(|place| place.threads.iter().any(owns))
    }
}

fn options() -> Options<'static, Ground> {
    Segment::options().schema(SCHEMA)
}

pub(crate) fn create(path: &Path, workers: u32) -> Result<Segment<Ground>, SegmentError> {
    let rows = 2 * workers * THREADS as u32 + SPARE_ROWS as u32;
    options().capacity(rows).create(path)
}

pub(crate) fn open(path: &Path) -> Result<Segment<Ground>, SegmentError> {
    options().open(path)
}
