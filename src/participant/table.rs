//! The participant table: bounds-checked access to rows in shared memory.
#![allow(unsafe_code)]

use super::id::Id;
use crate::memory::layout::{
    COUNTERS_OFFSET, IDENTITIES, IDENTITIES_OFFSET, IDENTITY_SIZE, Layout, ROW_SIZE,
};
use crate::memory::map::Mapping;
use crate::sys::atomic::{AtomicU16, AtomicU32, AtomicU64, Note, Ordering, fence};
use crate::sys::counter::Counter;
use zerocopy::FromBytes;

/// What a lock needs to know of a thread, on a cache line of its own.
///
/// | field | written by | meaning |
/// |---|---|---|
/// | `lock` | its thread | the lock whose slow path the thread is inside, 0 none: an offset in a segment, an address in private memory |
/// | `waiting_as` | its thread | the id under which it enqueued |
/// | `prev` | who enqueues it: its thread, or who notifies it; then whoever holds the lock's guard | the waiter in front, 0 none |
/// | `next` | whoever holds the lock's guard | the waiter behind, if that is known already; else 0 |
/// | `state` | its thread, and whoever nudges or grants | futex; see `lock::word::WaitState` |
/// | `since` | who enqueues it | when it enqueued, in `sys::clock::ticks`; for locks that can be taken past a queue |
/// | `stage` | its thread, and who notifies it | how far its wait for a condition variable has come |
/// | `condvar` | its thread | the condition variable that it waits for, named like `lock`; 0 none |
/// | `asleep` | its thread; who notifies it, if it sleeps | since when it sleeps in its present wait (for the lock, once it is notified), in nanoseconds on `CLOCK_MONOTONIC`; 0 if it has not slept yet, or is in none |
/// | `terms` | its thread | what may end its present wait, for who looks for deadlocks; see `lock::word` |
/// | `edits` | its thread | the lock to whose queue it moves another thread in a dead one's stead, named like `lock`; 0 none |
/// | `token` | whoever unparks its thread, and that | futex; which user of the row it is about, and whether that may return from `park`: see [`Row::without_token`] |
#[derive(FromBytes, Debug)]
#[repr(C, align(64))]
pub(crate) struct Row {
    pub(crate) lock: AtomicU64,
    pub(crate) waiting_as: AtomicU64,
    pub(crate) prev: Link,
    pub(crate) next: Note,
    pub(crate) state: AtomicU32,
    pub(crate) since: AtomicU32,
    pub(crate) stage: AtomicU32,
    pub(crate) condvar: AtomicU64,
    pub(crate) asleep: AtomicU64,
    pub(crate) terms: AtomicU32,
    pub(crate) token: AtomicU32,
    pub(crate) edits: AtomicU64,
}

/// The bit of a row's `token` that is set if its thread has one.
pub(crate) const TOKEN: u32 = 1;

impl Row {
    /// What `token` is for the participant `id` without one: the low 31 bits of the
    /// generation, lest an unpark that is meant for the dead reach the next user of
    /// the row. (It has looked whether `id` is alive, so to be taken in it would have
    /// to be late by 2^31 users.)
    pub(crate) const fn without_token(id: Id) -> u32 {
        (id.generation() as u32) << 1
    }

    /// Whether its user is, or was when it died, inside an operation on a lock or a
    /// condition variable.
    pub(crate) fn is_busy(&self) -> bool {
        self.lock.load(Ordering::Acquire) != 0 || self.condvar.load(Ordering::Acquire) != 0
    }
}

/// What the user of a row has been through, for people: apart from the row, which
/// others look at. Written by the row's thread.
#[derive(FromBytes, Debug)]
#[repr(C)]
pub(crate) struct Counters {
    /// How many futex waits it made.
    pub(crate) sleeps: Counter,
    /// How many of them a signal handler ended.
    pub(crate) interruptions: Counter,
    /// How many waiters it woke.
    pub(crate) wakes: Counter,
    /// How many times it had all others fence.
    pub(crate) barriers: Counter,
}

impl Counters {
    /// Where those of row `index` are.
    pub(crate) fn offset(layout: &Layout, index: u32) -> usize {
        layout.life_page(index) + COUNTERS_OFFSET
    }

    pub(super) fn reset(&self) {
        let Self { sleeps, interruptions, wakes, barriers } = self;
        [sleeps, interruptions, wakes, barriers].into_iter().for_each(Counter::reset);
    }
}

/// Which row comes next in some direction: its index, 0 for none.
#[derive(FromBytes, Debug)]
#[repr(transparent)]
pub(crate) struct Link(AtomicU16);

impl Link {
    /// To no row.
    pub(crate) const fn new() -> Self {
        Self(AtomicU16::new(0))
    }

    #[inline(always)]
    pub(crate) fn load(&self, order: Ordering) -> u32 {
        self.0.load(order).into()
    }

    /// `index` is a row's, or 0.
    pub(crate) fn store(&self, index: u32, order: Ordering) {
        self.0.store(index as u16, order);
    }

    /// Replaces `current` by `new` if it is the index there; `Err` with what is
    /// there if not.
    pub(crate) fn replace(&self, current: u32, new: u32) -> Result<(), u32> {
        let (current, new) = (current as u16, new as u16);
        let replaced = self.0.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst);
        replaced.map(drop).map_err(u32::from)
    }

    #[cfg(heirlock_loom)]
    pub(crate) fn touch(&self) {
        self.0.touch();
    }

    #[cfg(heirlock_loom)]
    pub(crate) fn latest(&self) -> u32 {
        self.0.latest().into()
    }
}

/// Who used a row, for people. Written before the row's life word, read at any
/// time: `generation` is 0 while the rest changes.
#[derive(FromBytes, Debug)]
#[repr(C)]
pub(crate) struct IdentityRecord {
    generation: AtomicU64,
    pid: AtomicU32,
    tid: AtomicU32,
    pid_namespace: AtomicU64,
    start_time: AtomicU64,
    name: [AtomicU64; 2],
    reserved: [u64; 2],
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Row>() == ROW_SIZE && align_of::<Row>() == ROW_SIZE);
    assert!(offset_of!(Row, lock) == 0 && offset_of!(Row, waiting_as) == 8);
    assert!(offset_of!(Row, prev) == 16 && offset_of!(Row, next) == 18);
    assert!(offset_of!(Row, state) == 20 && offset_of!(Row, since) == 24);
    assert!(offset_of!(Row, stage) == 28 && offset_of!(Row, condvar) == 32);
    assert!(offset_of!(Row, asleep) == 40 && offset_of!(Row, terms) == 48);
    assert!(offset_of!(Row, token) == 52 && offset_of!(Row, edits) == 56);
    assert!(size_of::<Counters>() == 32 && COUNTERS_OFFSET.is_multiple_of(64));
    assert!(size_of::<IdentityRecord>() == IDENTITY_SIZE);
    assert!(offset_of!(IdentityRecord, generation) == 0);
    assert!(offset_of!(IdentityRecord, pid) == 8 && offset_of!(IdentityRecord, tid) == 12);
    assert!(offset_of!(IdentityRecord, pid_namespace) == 16);
    assert!(offset_of!(IdentityRecord, start_time) == 24);
    assert!(offset_of!(IdentityRecord, name) == 32);
};

/// Who a participant is, as far as people are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) pid_namespace: u64,
    pub(crate) start_time: u64,
    pub(crate) name: [u8; 16],
}

impl IdentityRecord {
    /// Where the record of `id` is, whose index is a row's.
    pub(crate) fn offset(layout: &Layout, id: Id) -> usize {
        let slot = (id.generation() % IDENTITIES as u64) as usize;
        layout.life_page(id.index()) + IDENTITIES_OFFSET + slot * size_of::<Self>()
    }

    /// What it says of `id`, if it is about `id`.
    pub(crate) fn identity(&self, id: Id) -> Option<Identity> {
        // Acquire pairs with the Release in `write_identity`; the fence keeps
        // the second look behind the fields.
        if self.generation.load(Ordering::Acquire) != id.generation() {
            return None;
        }
        let mut name = [0; 16];
        for (part, word) in name.chunks_exact_mut(8).zip(&self.name) {
            part.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        let identity = Identity {
            pid: self.pid.load(Ordering::Relaxed),
            tid: self.tid.load(Ordering::Relaxed),
            pid_namespace: self.pid_namespace.load(Ordering::Relaxed),
            start_time: self.start_time.load(Ordering::Relaxed),
            name,
        };
        fence(Ordering::Acquire);
        (self.generation.load(Ordering::Relaxed) == id.generation()).then_some(identity)
    }
}

/// The rows of one mapping. An index from shared memory goes in; what comes
/// out is inside the mapping, or `None`.
#[derive(Clone, Copy)]
pub(crate) struct Table<'m>(&'m Mapping);

impl<'m> Table<'m> {
    pub(crate) fn new(mapping: &'m Mapping) -> Self {
        Self(mapping)
    }

    pub(super) fn mapping(self) -> &'m Mapping {
        self.0
    }

    /// The number of rows: no walk takes more steps.
    #[inline]
    pub(crate) fn capacity(self) -> u32 {
        self.0.layout().capacity
    }

    /// Whether the rows are in a segment, rather than in private memory.
    pub(super) fn is_shared(self) -> bool {
        self.0.is_shared()
    }

    pub(super) fn checked(self, index: u32) -> Option<u32> {
        (1..=self.capacity()).contains(&index).then_some(index)
    }

    /// Row `index`; `None` for 0 and for what is no row.
    #[inline]
    pub(crate) fn row(self, index: u32) -> Option<&'m Row> {
        let offset = self.0.layout().row(self.checked(index)?);
        // SAFETY: the index was checked against the capacity that the mapping
        // was made with, so the row is inside; rows are aligned to their size
        // from a page boundary on; any bytes are a `Row`, and all that changes
        // in one is atomic.
        Some(unsafe { &*self.0.base().add(offset).cast::<Row>() })
    }

    /// Which user of row `index` is the last; `None` for 0 and for what is no row.
    pub(crate) fn generation(self, index: u32) -> Option<&'m AtomicU64> {
        Some(&self.0.life(self.checked(index)?).generation)
    }

    /// The life word of row `index`; `None` for 0 and for what is no row.
    #[inline]
    pub(crate) fn life(self, index: u32) -> Option<&'m AtomicU32> {
        Some(self.0.life_word(self.checked(index)?))
    }

    /// The counters of row `index`; `None` for 0 and for what is no row.
    pub(crate) fn counters(self, index: u32) -> Option<&'m Counters> {
        let offset = Counters::offset(self.0.layout(), self.checked(index)?);
        // SAFETY: 32 bytes that end before the life word of the smallest page
        // (4096 - 32); otherwise as in `row`.
        Some(unsafe { &*self.0.base().add(offset).cast::<Counters>() })
    }

    fn record(self, index: u32, generation: u64) -> Option<&'m IdentityRecord> {
        let id = Id::new(self.checked(index)?, generation);
        let offset = IdentityRecord::offset(self.0.layout(), id);
        // SAFETY: 32 records of 64 bytes from byte 64 on end before the life
        // word of the smallest page (4096 - 24); otherwise as in `row`.
        Some(unsafe { &*self.0.base().add(offset).cast::<IdentityRecord>() })
    }

    /// Who `id` is or was; `None` if the row has been used too often since.
    pub(crate) fn identity(self, id: Id) -> Option<Identity> {
        self.record(id.index(), id.generation())?.identity(id)
    }

    /// Writes who `id` is. The caller has claimed the row.
    pub(crate) fn write_identity(self, id: Id, identity: &Identity) {
        let Some(record) = self.record(id.index(), id.generation()) else { return };
        record.generation.store(0, Ordering::Relaxed);
        // Readers that see a new field see the 0 before it.
        fence(Ordering::Release);
        record.pid.store(identity.pid, Ordering::Relaxed);
        record.tid.store(identity.tid, Ordering::Relaxed);
        record.pid_namespace.store(identity.pid_namespace, Ordering::Relaxed);
        record.start_time.store(identity.start_time, Ordering::Relaxed);
        for (part, word) in identity.name.chunks_exact(8).zip(&record.name) {
            let bytes = part.try_into().expect("chunks of 8");
            word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
        }
        record.generation.store(id.generation(), Ordering::Release);
    }
}
