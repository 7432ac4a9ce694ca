//! What a lock and a wait look like in memory.
#![allow(unsafe_code)]

use crate::memory::layout::{LOCK_ALIGN, LOCK_SIZE};
use crate::memory::map::Mapping;
use crate::participant::id::Id;
use crate::participant::table::{Link, Row};
use crate::sys::atomic::{AtomicU32, AtomicU64, Note, Ordering};
use crate::sys::fault::{Fault, active};
use zerocopy::FromBytes;

/// A lock: 16 bytes, of which all zero means unlocked.
///
/// | word | value | set by | cleared by |
/// |---|---|---|---|
/// | `owner` | id of the owner, with INHERITED if it took over from a dead one; 0 free | the new owner itself, or the old one when it hands over | the owner |
/// | `tail` | row of the newest waiter, 0 no queue | who enqueues | who holds the guard |
/// | `head` | row of the oldest waiter, if that is known already; else 0 | who holds the guard | who holds the guard |
/// | `guard` | the thread that edits the queue, 0 none, and the lock's policy; see [`Editor`] | that thread; by CAS over a dead one's | that thread |
#[derive(FromBytes, Debug)]
#[repr(C)]
pub(crate) struct LockWords {
    pub(crate) owner: AtomicU64,
    pub(crate) tail: Link,
    pub(crate) head: Note,
    pub(crate) guard: AtomicU32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<LockWords>() == LOCK_SIZE && align_of::<LockWords>() == LOCK_ALIGN);
    assert!(offset_of!(LockWords, owner) == 0 && offset_of!(LockWords, tail) == 8);
    assert!(offset_of!(LockWords, head) == 10 && offset_of!(LockWords, guard) == 12);
};

impl LockWords {
    /// An unlocked lock.
    pub(crate) const fn new(policy: Policy) -> Self {
        let (owner, guard) = (AtomicU64::new(0), AtomicU32::new(policy.bits()));
        Self { owner, tail: Link::new(), head: Note::new(), guard }
    }

    /// What a row's `lock` field calls this lock.
    pub(super) fn name_in(&self, mapping: &Mapping) -> u64 {
        let address = core::ptr::from_ref(self).expose_provenance();
        let base = if mapping.is_shared() { mapping.base().addr() } else { 0 };
        (address - base) as u64
    }

    /// The mutex that a living waiter for a condition variable will return to, and
    /// that its row calls `name`.
    ///
    /// # Safety
    ///
    /// In private memory the waiter is inside its wait, and stays there for 'm.
    pub(super) unsafe fn of_waiter(mapping: &Mapping, name: u64) -> Option<&Self> {
        if mapping.is_shared() {
            return Self::named(mapping, name);
        }
        // SAFETY: nobody but this process writes names in private memory, with
        // `name_in`; and the waiter borrows its mutex for as long as it waits.
        unsafe { core::ptr::with_exposed_provenance::<Self>(name as usize).as_ref() }
    }

    /// The lock that a row of a segment calls `name`, if that can be one.
    /// Bounds and alignment are checked.
    pub(super) fn named(mapping: &Mapping, name: u64) -> Option<&Self> {
        if !mapping.is_shared() || !mapping.layout().holds_lock(name) {
            return None;
        }
        // SAFETY: the 16 bytes lie inside the value, aligned; they may belong
        // to something else than a lock if the segment is corrupted, but any
        // bytes are `LockWords`, and a lock's bytes are only accessed
        // atomically. (Bytes of the value that are not a lock's may be
        // accessed otherwise: a corrupted segment can give garbage, as its
        // value can anyway.)
        Some(unsafe { &*mapping.base().add(name as usize).cast::<Self>() })
    }

    /// Who gets the lock next. It never changes.
    pub(crate) fn policy(&self) -> Policy {
        Editor::from_bits(self.guard.load(Ordering::Relaxed)).policy()
    }

    /// The row of the thread that edits the queue, 0 for none.
    pub(crate) fn guard_holder(&self) -> u32 {
        Editor::from_bits(self.guard.load(Ordering::SeqCst)).row()
    }
}

/// Who gets a lock next when somebody waits for it.
///
/// It is part of the lock, from its making on, so all processes agree on it.
///
/// # Examples
///
/// ```
/// use heirlock::{Mutex, Policy};
/// static HITS: Mutex<u64> = Mutex::with_policy(0, Policy::Throughput);
/// *HITS.lock() += 1;
/// assert_eq!(HITS.policy(), Policy::Throughput);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Whoever began to wait first, always. The default, and what zeroed memory
    /// means.
    #[default]
    Fifo,
    /// Whoever comes at the right moment may take the lock past those who wait,
    /// unless one of them has waited for a millisecond: then the lock is handed
    /// to the one who has waited longest. Those who wait are first in, first
    /// out among themselves.
    ///
    /// A thread that releases the lock and wants it again at once need not wait
    /// until another one has been woken: under contention that multiplies how
    /// often the lock is acquired.
    ///
    /// On x86-64 the millisecond is a million ticks of the processor's time-stamp
    /// counter, and so less: at 2.6 GHz, 0.4 ms. Elsewhere it is on
    /// `CLOCK_MONOTONIC`; processes in time namespaces with other offsets take each
    /// other's waits for longer than they are, and hand over.
    Throughput,
}

impl Policy {
    const fn bits(self) -> u32 {
        match self {
            Self::Fifo => 0,
            Self::Throughput => THROUGHPUT,
        }
    }
}

/// A guard word: who edits the queue, and the lock's policy.
///
/// ```text
///    31       30       29          16 15    0
/// +------+------------+--------------+-------+
/// | SLEEP| THROUGHPUT | generation   |  row  |
/// +------+------------+--------------+-------+
/// ```
///
/// Row 0 is nobody; SLEEP is set if somebody sleeps on the word; THROUGHPUT is
/// the policy, which editors leave as it is. The 14 low bits of the generation tell
/// a dead editor from who re-uses its row, and with it its guard, to clear up:
/// whoever saw the former dead, and is about to replace it, must fail once the
/// latter edits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Editor(u32);

const SLEEP: u32 = 1 << 31;
const THROUGHPUT: u32 = 1 << 30;

impl Editor {
    pub(super) fn new(id: Id) -> Self {
        let generation = if active(Fault::GuardOfRow) { 0 } else { id.generation() as u32 };
        Self(generation << 16 & !(SLEEP | THROUGHPUT) | id.index())
    }

    pub(super) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(super) const fn bits(self) -> u32 {
        self.0
    }

    /// The row, 0 for nobody.
    pub(super) const fn row(self) -> u32 {
        self.0 & 0xffff
    }

    /// Whether somebody sleeps on the word.
    pub(super) const fn is_awaited(self) -> bool {
        self.0 & SLEEP != 0
    }

    /// The same, with somebody asleep on the word.
    pub(super) const fn awaited(self) -> Self {
        Self(self.0 | SLEEP)
    }

    /// This editor in the other's place, with the other's sleepers.
    pub(super) const fn in_place_of(self, other: Self) -> Self {
        Self(self.0 | other.0 & (SLEEP | THROUGHPUT))
    }

    /// Nobody, in this editor's place.
    pub(super) const fn gone(self) -> Self {
        Self(self.0 & THROUGHPUT)
    }

    /// The policy of the lock.
    pub(super) const fn policy(self) -> Policy {
        if self.0 & THROUGHPUT != 0 { Policy::Throughput } else { Policy::Fifo }
    }
}

/// A bit of a row's `terms`: the wait may end before its turn comes, by a deadline,
/// a token or a signal handler.
pub(crate) const ENDS_BY_ITSELF: u32 = 1;
/// The same: whoever waits looks for a deadlock, and gives up if it is chosen to.
pub(crate) const CHECKS: u32 = 2;

/// A row's `state`: which wait of the row it is about, and how that stands.
///
/// ```text
///  31           3 2    0
/// +--------------+------+
/// |    round     | code |
/// +--------------+------+
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WaitState(u32);

/// How a wait stands. Only `Granted` says something for certain: its waiter
/// owns the lock and is out of the queue. The others are hints to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Code {
    /// Awake, or about to look again. Set by the waiter.
    Waiting = 1,
    /// Asleep, or about to be: whoever changes it owes a wake. Set by the
    /// waiter.
    Parked = 2,
    /// There is something to look at. Set by whoever changed something.
    Nudged = 3,
    /// Served. Set by the former owner.
    Granted = 4,
}

impl WaitState {
    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// The code; `None` for a row that never waited, or garbage.
    pub(crate) const fn code(self) -> Option<Code> {
        match self.0 & 7 {
            1 => Some(Code::Waiting),
            2 => Some(Code::Parked),
            3 => Some(Code::Nudged),
            4 => Some(Code::Granted),
            _ => None,
        }
    }

    /// The same wait, standing otherwise.
    pub(crate) const fn with(self, code: Code) -> Self {
        Self(self.0 & !7 | code as u32)
    }

    /// The row's next wait.
    pub(crate) const fn next_round(self) -> Self {
        Self((self.0 & !7).wrapping_add(8)).with(Code::Waiting)
    }

    /// Whether both are about the same wait.
    pub(crate) const fn same_round(self, other: Self) -> bool {
        self.0 & !7 == other.0 & !7
    }
}

/// A row's `stage`: how far its wait for a condition variable has come. It counts
/// together with the row's `condvar`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Stage {
    /// In no queue of a condition variable.
    None = 0,
    /// In its queue. Set by the waiter, under the guard.
    Queued = 1,
    /// Notified, and nobody else was: in the mutex's queue, or about to be put
    /// there. Set under the guard. If the waiter dies the notification passes on.
    One = 2,
    /// Notified with everybody else; otherwise the same.
    All = 3,
}

impl Stage {
    pub(crate) fn of(row: &Row) -> Self {
        match row.stage.load(Ordering::SeqCst) {
            1 => Self::Queued,
            2 => Self::One,
            3 => Self::All,
            _ => Self::None,
        }
    }

    pub(crate) fn is_notified(self) -> bool {
        matches!(self, Self::One | Self::All)
    }

    pub(super) fn set(self, row: &Row) {
        row.stage.store(self as u32, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_editor_is_a_row_and_which_user_of_it() {
        for (row, generation) in [(1, 1), (0xffff, 0x3fff), (7, u64::MAX >> 20)] {
            let editor = Editor::new(Id::new(row, generation));
            assert_eq!(editor.row(), row);
            assert!(!editor.is_awaited() && editor.awaited().is_awaited());
            let next = Editor::new(Id::new(row, generation.wrapping_add(1)));
            assert_ne!(editor, next);
            assert_eq!(next.in_place_of(editor.awaited()), next.awaited());
            assert_eq!(next.in_place_of(editor), next);
            let patient = Editor(Policy::Throughput.bits());
            assert_eq!(next.in_place_of(patient).policy(), Policy::Throughput);
            assert_eq!(next.in_place_of(patient).gone(), patient);
            assert_eq!((next.policy(), next.gone().bits()), (Policy::Fifo, 0));
        }
        assert_eq!(Editor::from_bits(0).awaited().row(), 0);
    }

    #[test]
    fn rounds_and_codes_keep_apart() {
        let mut state = WaitState::from_bits(0);
        assert_eq!(state.code(), None);
        for _ in 0..3 {
            let next = state.next_round();
            assert_eq!(next.code(), Some(Code::Waiting));
            assert!(!next.same_round(state));
            for code in [Code::Waiting, Code::Parked, Code::Nudged, Code::Granted] {
                assert_eq!(next.with(code).code(), Some(code));
                assert!(next.with(code).same_round(next));
            }
            state = next;
        }
        let last = WaitState::from_bits(u32::MAX).next_round();
        assert_eq!(last.bits(), Code::Waiting as u32);
    }
}
