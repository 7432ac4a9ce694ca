//! The segment that the members of a run share with the parent, which measures.

use heirlock::{Mutex, Policy, Segment, SegmentError};
use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use zerocopy::FromBytes;

/// How many members a run can have.
pub(crate) const MAX_MEMBERS: usize = 32;

/// Which `Arena` this is: another number for every change of it.
const SCHEMA: u64 = 5;

/// More rows than members: for those that measure.
const SPARE_ROWS: u32 = 8;

/// On cache lines of its own (two, as processors fetch them in pairs).
#[derive(FromBytes)]
#[repr(C, align(128))]
pub(crate) struct Apart<T>(pub(crate) T);

/// Nanoseconds on the clock that all processes share.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What a run is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Gathering,
    Running,
    Over,
}

/// What is in the segment.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Arena {
    /// The lock that heirlock's members contend for, around who had it last.
    pub(crate) lock: Apart<Mutex<u64>>,
    /// What is passed on without a lock, or a count of who has come.
    pub(crate) token: Apart<AtomicU32>,
    phase: Apart<AtomicU32>,
    /// When the lock was released last, on the clock that all processes share.
    pub(crate) released: Apart<AtomicU64>,
    pub(crate) places: [Apart<Place>; MAX_MEMBERS],
}

/// What a member tells of itself. It alone writes it.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Place {
    /// Its participant, if it has joined the segment.
    pub(crate) participant: AtomicU64,
    /// How often it had the lock.
    pub(crate) acquisitions: AtomicU64,
    /// How often somebody else had had it before.
    pub(crate) handovers: AtomicU64,
    /// When it began to wait for the lock, on the clock that all processes share; 0
    /// while it does not.
    pub(crate) arrival: AtomicU64,
    /// How often it was seen to have the lock before somebody who had waited for long.
    pub(crate) bypasses: AtomicU64,
    /// Its longest wait, in nanoseconds.
    pub(crate) longest: AtomicU64,
    /// From a release to its acquisition, in nanoseconds: the median, at the end.
    pub(crate) one_way: AtomicU64,
    pid: AtomicU32,
    tid: AtomicU32,
}

impl Place {
    /// To be called when the member is ready.
    pub(crate) fn take(&self, pid: u32, tid: u32) {
        self.pid.store(pid, Relaxed);
        self.tid.store(tid, Release);
    }

    /// The process and thread, once they are ready.
    pub(crate) fn taken(&self) -> Option<(u32, u32)> {
        let tid = self.tid.load(Acquire);
        (tid != 0).then(|| (self.pid.load(Relaxed), tid))
    }
}

impl Arena {
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.0.load(Relaxed) {
            0 => Phase::Gathering,
            1 => Phase::Running,
            _ => Phase::Over,
        }
    }

    pub(crate) fn begin(&self, phase: Phase) {
        self.phase.0.store(phase as u32, Relaxed);
    }
}

/// A new segment for `members` threads, with a lock of that policy.
pub(crate) fn create(
    path: &Path,
    members: u32,
    policy: Policy,
) -> Result<Segment<Arena>, SegmentError> {
    Segment::options()
        .schema(SCHEMA)
        .capacity(members + SPARE_ROWS)
        .init(move |arena: &mut Arena| arena.lock.0 = Mutex::with_policy(0, policy))
        .create(path)
}

/// The segment that another process created.
pub(crate) fn open(path: &Path) -> Result<Segment<Arena>, SegmentError> {
    Segment::options().schema(SCHEMA).open(path)
}
