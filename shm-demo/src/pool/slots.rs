//! Which connection is whose: what is in the segment, and the order in which it is
//! given out.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use crate::course::Course;
use crate::served::Served;
use crate::settle::pace;
use heirlock::{Condvar, Mutex, MutexGuard, Participant, Segment, is_alive};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

/// How many slots there can be.
pub(crate) const MAX_SIZE: usize = 32;

/// How many clients there can be at a time.
pub(crate) const MAX_CLIENTS: usize = 128;

/// How long who waits sleeps without a look at those who have the slots.
const LOOK: Duration = Duration::from_millis(100);

/// What is in the segment. All bytes zero is the beginning.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Pool {
    pub(crate) slots: Mutex<Slots>,
    /// Notified when a slot becomes free.
    pub(crate) freed: Condvar,
    /// Held by the one who is next; the others queue for it, in the order in which they
    /// came. If who is next is killed, the one behind it inherits its turn.
    pub(crate) turn: Mutex<u64>,
    pub(crate) course: Course,
    pub(crate) served: Served,
    /// The server's port. Never changes.
    pub(crate) port: u64,
    /// Whether slots are taken back from the dead. Never changes.
    pub(crate) repairs: u64,
    /// Who is using each connection, as it says itself, without a lock: if the pool is
    /// right, no client finds anybody there.
    pub(crate) in_use: [AtomicU64; MAX_SIZE],
    pub(crate) clients: [Client; MAX_CLIENTS],
    pub(crate) overlaps: AtomicU64,
    pub(crate) wrong: AtomicU64,
    pub(crate) order_inversions: AtomicU64,
    pub(crate) order_checked: AtomicU64,
    pub(crate) longest_wait_us: AtomicU64,
}

/// What a client has done, and whoever had its place before.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Client {
    /// How many requests it was going to make, noted before each.
    pub(crate) sent: AtomicU64,
    /// How many answers it has compared, noted after each.
    pub(crate) answered: AtomicU64,
}

#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Slots {
    pub(crate) size: u64,
    /// Who has each slot; 0 if it is free. To write that is to take it, or to give it
    /// back: one store, so there is nothing that a kill could leave half done.
    holders: [u64; MAX_SIZE],
    pub(crate) counts: Counts,
}

/// What happened. A kill can make one of these miss one event of the killed client.
#[derive(Clone, Default, FromBytes)]
#[repr(C)]
pub(crate) struct Counts {
    pub(crate) taken: u64,
    pub(crate) of_the_dead: u64,
    pub(crate) waits: u64,
    pub(crate) inherited: u64,
}

impl Slots {
    fn holders(&self) -> &[u64] {
        &self.holders[..MAX_SIZE.min(self.size as usize)]
    }

    pub(crate) fn free(&self) -> usize {
        self.holders().iter().filter(|holder| **holder == 0).count()
    }

    fn take(&mut self, me: Participant) -> Option<usize> {
        let slot = self.holders().iter().position(|holder| *holder == 0)?;
        self.holders[slot] = me.to_bits();
        self.counts.taken += 1;
        Some(slot)
    }
}

/// A way to the pool for one process.
pub(crate) struct Access<'a> {
    pub(crate) pool: &'a Segment<Pool>,
}

impl<'a> Access<'a> {
    /// Waits for a slot, on behalf of the client in `place`.
    pub(crate) fn acquire(&self, me: Participant, place: usize) -> usize {
        let pool: &'a Pool = self.pool;
        let before = pool.served.waiting(&pool.turn, &pool.course);
        let start = Instant::now();
        // One waits for a slot, the others for their turn: so a slot that becomes free
        // goes to the one who came first, and nobody who comes just then can take it.
        let turn = pool.turn.lock();
        let slot = self.wait_for_slot(me);
        pool.longest_wait_us.fetch_max(start.elapsed().as_micros() as u64, Relaxed);
        if !before.is_empty() {
            pool.order_checked.fetch_add(1, Relaxed);
        }
        let alive = |bits| crate::served::alive(self.pool, bits);
        if pool.served.is_passed_over(&before, alive) {
            pool.order_inversions.fetch_add(1, Relaxed);
        }
        pool.served.count(place);
        drop(turn);
        // Not part of the pool, but of the check of it.
        let nobody = pool.in_use[slot].compare_exchange(0, me.to_bits(), AcqRel, Acquire);
        if nobody.is_err() {
            pool.overlaps.fetch_add(1, Relaxed);
        }
        slot
    }

    fn wait_for_slot(&self, me: Participant) -> usize {
        let mut slots = self.lock();
        loop {
            pace();
            if let Some(slot) = slots.take(me) {
                pace();
                return slot;
            }
            // A client that is killed while it uses its slot does not own the lock, and
            // so nobody is told. Who needs the slot looks: now, and as long as it waits.
            if self.take_back_from_the_dead(&mut slots) == 0 {
                slots.counts.waits += 1;
                self.pool.freed.wait_for(&mut slots, LOOK);
                // The wait has acquired the lock anew, perhaps from a dead owner.
                self.see_to_the_dead(&mut slots);
            }
        }
    }

    /// Gives `slot` back, which is `me`'s.
    pub(crate) fn release(&self, me: Participant, slot: usize) {
        if self.pool.in_use[slot].compare_exchange(me.to_bits(), 0, AcqRel, Acquire).is_err() {
            self.pool.overlaps.fetch_add(1, Relaxed);
        }
        let mut slots = self.lock();
        slots.holders[slot] = 0;
        pace();
        // With the lock held: if this process is killed before it has notified, there is
        // an heir, and it does.
        self.pool.freed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'a, Slots> {
        let pool: &'a Pool = self.pool;
        let mut slots = pool.slots.lock();
        self.see_to_the_dead(&mut slots);
        slots
    }

    /// The same, if the lock can be had in time.
    pub(crate) fn lock_within(&self, time: Duration) -> Option<MutexGuard<'a, Slots>> {
        let pool: &'a Pool = self.pool;
        let mut slots = pool.slots.try_lock_for(time)?;
        self.see_to_the_dead(&mut slots);
        Some(slots)
    }

    /// To be called whenever the lock was acquired: by `lock`, and by a wait.
    fn see_to_the_dead(&self, slots: &mut MutexGuard<'_, Slots>) {
        if MutexGuard::inherited(slots).is_none() {
            return;
        }
        slots.counts.inherited += 1;
        self.take_back_from_the_dead(slots);
        // The dead owner may have given a slot back, and died before it notified: who
        // waits would sleep on.
        self.pool.freed.notify_all();
    }

    /// Makes free what dead clients had. How many slots that were.
    pub(crate) fn take_back_from_the_dead(&self, slots: &mut Slots) -> usize {
        if self.pool.repairs == 0 {
            return 0;
        }
        let is_dead = |bits: u64| {
            Participant::from_bits(bits).is_none_or(|holder| !is_alive(self.pool, holder))
        };
        let mut found = 0;
        for slot in 0..slots.holders().len() {
            let holder = slots.holders[slot];
            if holder != 0 && is_dead(holder) {
                // The word is not there if it died before it wrote it, or after it had
                // taken it back.
                let word = &self.pool.in_use[slot];
                let _ = word.compare_exchange(holder, 0, Release, Relaxed);
                slots.holders[slot] = 0;
                slots.counts.of_the_dead += 1;
                found += 1;
            }
        }
        found
    }
}
