//! What a state of the model holds: the segment, each thread's registers, and
//! the ghosts that only the properties read.
//!
//! Everything is a byte, so that a state is a small `Copy` value that hashes as
//! one slice.

use std::hash::{Hash, Hasher};

use zerocopy::{Immutable, IntoBytes};

use crate::pc::{Job, Pc};

/// Rows of the participant table. Row 0 of the arrays is index 1: index 0 of
/// the algorithm means "nobody".
pub(crate) const ROWS: usize = 4;

/// Locks in the segment.
pub(crate) const LOCKS: usize = 2;

/// `{ FENCES, generation, index }`; all zero is nobody. The flag `INHERITED` is
/// kept beside it, see [`Lock::inherited`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(transparent)]
pub(crate) struct Id(u8);

const FENCES: u8 = 1 << 7;

impl Id {
    /// Index 0.
    pub(crate) const NOBODY: Id = Id(0);

    /// The id of one incarnation of a row.
    pub(crate) fn new(index: u8, generation: u8) -> Id {
        Id(index | generation << 3)
    }

    /// The row, 1-based; 0 is nobody.
    pub(crate) fn index(self) -> u8 {
        self.0 & 7
    }

    /// Which thread of that row.
    pub(crate) fn generation(self) -> u8 {
        (self.0 & !FENCES) >> 3
    }

    /// Will the owner release with a fence?
    pub(crate) fn fences(self) -> bool {
        self.0 & FENCES != 0
    }

    /// The same participant as one who will release with a fence.
    pub(crate) fn as_fencing(self) -> Id {
        Id(self.0 | FENCES)
    }

    /// The participant alone, without the flag.
    pub(crate) fn plain(self) -> Id {
        Id(self.0 & !FENCES)
    }

    /// Nobody?
    pub(crate) fn is_nobody(self) -> bool {
        self.index() == 0
    }
}

/// The life word: [`NO_LIFE`], [`DIED`], or the TID of incarnation `g` of the
/// row as `2 + g` (a row never gets the TID it had before).
pub(crate) type Life = u8;

/// The row was never used.
pub(crate) const NO_LIFE: Life = 0;

/// `FUTEX_WAITERS | FUTEX_OWNER_DIED`.
pub(crate) const DIED: Life = 1;

/// The TID of incarnation `generation`.
pub(crate) fn tid(generation: u8) -> Life {
    2 + generation
}

/// The code in a waiter's state word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(u8)]
pub(crate) enum Code {
    /// Any leftover in a row that waits for nothing: nobody acts on it.
    #[default]
    Idle,
    /// Looking, not asleep.
    Waiting,
    /// About to sleep, or asleep.
    Parked,
    /// Told to look again.
    Nudged,
    /// Told that it owns the lock and is unlinked.
    Granted,
}

/// A row of the participant table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Row {
    /// Bumped by every thread that takes the row over.
    pub(crate) generation: u8,
    /// The life word.
    pub(crate) life: Life,
    /// The lock whose slow path the row is in, 1-based; 0 is none.
    pub(crate) lock: u8,
    /// The waiter in front, 0 for the head.
    pub(crate) prev: u8,
    /// Hint: the waiter behind, 0 if that is not known.
    pub(crate) next: u8,
    /// The id under which the row enqueued.
    pub(crate) waiting_as: Id,
    /// State word: its code.
    pub(crate) code: Code,
    /// State word: its round.
    pub(crate) round: u8,
}

/// A lock header, and one ghost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Lock {
    /// `owner` without its flag `INHERITED`.
    pub(crate) owner: Id,
    /// The flag `INHERITED` of `owner`.
    pub(crate) inherited: bool,
    /// The newest waiter.
    pub(crate) tail: u8,
    /// Hint: the oldest waiter, 0 if that is not known.
    pub(crate) head: u8,
    /// Who edits the queue: index *and generation* (see [`crate::release`]).
    pub(crate) guard: Id,
    /// Ghost: an owner died or an heir panicked, and no owner was told yet.
    pub(crate) debt: bool,
}

/// `wait_turn`'s `seen`: does every owner that was there when the waiter queued
/// see that? Once in a wait is enough: who acquires later finds the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(u8)]
pub(crate) enum Fenced {
    /// Not known: no barrier yet.
    #[default]
    No,
    /// Yes.
    Yes,
    /// The waiter cannot have a barrier, and looks again soon.
    Polls,
}

/// The stores `owner = 0` that a thread has executed and that others do not see
/// yet, the oldest first: at most one of each lock, for no lock can be acquired
/// before it is seen to be free.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(transparent)]
pub(crate) struct Buffer(u8);

impl Buffer {
    /// Nothing in it?
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The locks, 0-based, in the order of the stores.
    pub(crate) fn locks(self) -> impl Iterator<Item = usize> {
        [self.0 & 3, self.0 >> 2].into_iter().filter(|&lock| lock != 0).map(|n| usize::from(n) - 1)
    }

    /// One more store.
    pub(crate) fn push(&mut self, lock: usize) {
        debug_assert!(self.0 >> 2 == 0, "two locks, two stores");
        let entry = lock as u8 + 1;
        self.0 |= if self.is_empty() { entry } else { entry << 2 };
    }

    /// The oldest store leaves: the lock that is free from now on.
    fn pop(&mut self) -> Option<usize> {
        let oldest = self.locks().next();
        self.0 >>= 2;
        oldest
    }

    /// As a number, for [`crate::symmetry`].
    pub(crate) fn bits(self) -> u8 {
        self.0
    }
}

/// What the kernel has still to do for the last thread that died in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Nothing.
    #[default]
    Nothing,
    /// Mark the life word.
    Mark,
    /// Wake one sleeper of the life word.
    Wake,
    /// Look at `list_op_pending`: wake one sleeper of that life word.
    Pending,
}

/// A thread's registers and ghosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Thread {
    /// The step it takes next.
    pub(crate) pc: Pc,
    /// What it took the guard (or publishes its row) for.
    pub(crate) job: Job,
    /// Neither killed nor absent.
    pub(crate) alive: bool,
    /// Index into [`crate::model::PROGRAMS`].
    pub(crate) program: u8,
    /// Next operation of the program.
    pub(crate) op: u8,
    /// The lock operated on, 0-based.
    pub(crate) lock: u8,
    /// Register: an owner word or guard word as read.
    pub(crate) word: Id,
    /// Register: the row dealt with (old tail, predecessor, watched, head,
    /// target of a nudge, dead waiter).
    pub(crate) peer: u8,
    /// Register: the life word of `peer` as read.
    pub(crate) seen: Life,
    /// Register: `waiting_as` of `peer`.
    pub(crate) peer_id: Id,
    /// Register: the round of `peer`.
    pub(crate) peer_round: u8,
    /// Register: the waiter behind the one that is being taken out, 0 if that
    /// was found at the tail or was not looked for yet.
    pub(crate) behind: u8,
    /// `robust_head.list_op_pending`: whose life word it points to.
    pub(crate) pending: u8,
    /// The dead id that this heir took the lock from (one lock panics).
    pub(crate) heir_of: Id,
    /// The deadline has passed.
    pub(crate) expired: bool,
    /// Register: `wait_turn`'s `seen`.
    pub(crate) fenced: Fenced,
    /// `Attachment::hasty`, the other way round: releases with a fence always.
    pub(crate) fencing: bool,
    /// What the guards say: bit per lock that was acquired on the fast path.
    pub(crate) hasty: u8,
    /// The processor's store buffer.
    pub(crate) buffer: Buffer,
    /// Ghost: bit per lock between acquire and release.
    pub(crate) held: u8,
    /// Ghost: past the doorway, not yet an owner that knows it.
    pub(crate) waiting: bool,
    /// Ghost: bit per row that was through the doorway before this thread.
    pub(crate) ahead: u8,
    /// Kernel: what is left of the last death in this row.
    pub(crate) exit: Exit,
    /// Kernel: `list_op_pending` of the thread that died.
    pub(crate) exit_pending: u8,
}

/// A violation that a step itself notices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(u8)]
pub(crate) enum Fault {
    /// None so far.
    #[default]
    None,
    /// Acquired before somebody whose doorway came first.
    Overtaken,
    /// A death was not reported to the next owner.
    Untold,
    /// A death was reported that was none, or was reported already.
    ToldFalsely,
    /// Releases a lock that the owner word says is not its own.
    NotOwner,
    /// Gives up, is not the owner, and is not in the queue.
    NotLinked,
}

/// A state of the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct State {
    /// The participant table.
    pub(crate) rows: [Row; ROWS],
    /// The thread of each row.
    pub(crate) threads: [Thread; ROWS],
    /// The lock headers.
    pub(crate) locks: [Lock; LOCKS],
    /// Kills left.
    pub(crate) kills: u8,
    /// Re-uses of dead rows left.
    pub(crate) reuses: u8,
    /// Panics of heirs left.
    pub(crate) panics: u8,
    /// The segment's header: somebody has joined who cannot fence the others.
    pub(crate) fences: bool,
    /// What went wrong in the step that led here.
    pub(crate) fault: Fault,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write(self.as_bytes());
    }
}

/// Walks of the queue. All of them are bounded by the table's capacity, as they
/// are in the crate.
impl State {
    /// The row at a 1-based index.
    pub(crate) fn row(&self, index: u8) -> &Row {
        &self.rows[usize::from(index) - 1]
    }

    /// The row at a 1-based index.
    pub(crate) fn row_mut(&mut self, index: u8) -> &mut Row {
        &mut self.rows[usize::from(index) - 1]
    }

    /// The id of the thread in row `i` (0-based).
    pub(crate) fn id(&self, i: usize) -> Id {
        Id::new(i as u8 + 1, self.rows[i].generation)
    }

    /// The oldest store in the buffer of row `i` (0-based) becomes visible.
    pub(crate) fn drain(&mut self, i: usize) {
        if let Some(lock) = self.threads[i].buffer.pop() {
            self.free(lock);
        }
    }

    /// All stores in the buffer of row `i` (0-based) become visible.
    pub(crate) fn drain_all(&mut self, i: usize) {
        while !self.threads[i].buffer.is_empty() {
            self.drain(i);
        }
    }

    /// `owner = 0`, for all to see.
    pub(crate) fn free(&mut self, lock: usize) {
        self.locks[lock].owner = Id::NOBODY;
        self.locks[lock].inherited = false;
    }

    /// The queue of a lock, newest first; `None` if it runs in a circle.
    pub(crate) fn chain(&self, lock: usize) -> Option<Chain> {
        let mut chain = Chain::default();
        let mut at = self.locks[lock].tail;
        while at != 0 {
            if chain.len == ROWS {
                return None;
            }
            chain.rows[chain.len] = at;
            chain.len += 1;
            at = self.row(at).prev;
        }
        Some(chain)
    }

    /// Is the row in the queue?
    pub(crate) fn is_linked(&self, lock: usize, index: u8) -> bool {
        let chain = self.chain(lock).unwrap_or_default();
        chain.as_slice().contains(&index)
    }
}

/// The queue of a lock, newest first.
#[derive(Clone, Copy, Default)]
pub(crate) struct Chain {
    rows: [u8; ROWS],
    len: usize,
}

impl Chain {
    /// The waiters' 1-based indices.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.rows[..self.len]
    }
}
