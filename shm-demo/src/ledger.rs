//! What the lock protects: counters that a kill tears, the journal that mends
//! them, and the book of what happened.
//!
//! A killed process has made its writes up to some point, and none behind it.
//! So what counts here is the order of the writes, which [`settle`] keeps.

use crate::course::MAX_WORKERS;
use crate::order::{self, Order};
use crate::settle::settle;
use std::hint::spin_loop;
use std::time::Duration;
use zerocopy::FromBytes;

/// How many copies of the count there are. More of them are torn more often.
const COPIES: usize = 8;

/// How long an increment takes between two writes, in spins: so that it is the
/// greater part of what a worker does, and kills find it.
const SPINS: u32 = 32;

/// All bytes zero is the beginning.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Ledger {
    /// The count, many times over.
    counts: [u64; COPIES],
    /// How much of it the worker in each place has done. Each is written on
    /// behalf of one worker only, so it would be right even if the lock let
    /// two workers in, while the count would miss an update.
    tallies: [u64; MAX_WORKERS],
    journal: Journal,
    order: Order,
    /// Who is inside: 0 for nobody.
    inside: u64,
    pub(crate) book: Book,
}

/// What to put back if the owner dies.
#[derive(FromBytes)]
#[repr(C)]
struct Journal {
    /// Whether an increment is under way.
    armed: u64,
    slot: u64,
    count: u64,
    tally: u64,
}

/// What happened. A kill can make one of these miss one event of the killed
/// worker, but not become wrong in another way.
#[derive(Clone, Default, FromBytes)]
#[repr(C)]
pub(crate) struct Book {
    pub(crate) acquisitions: u64,
    pub(crate) inherited: u64,
    pub(crate) repaired: u64,
    pub(crate) order_inversions: u64,
    pub(crate) order_checked: u64,
    pub(crate) order_unchecked: u64,
    /// How often an owner found another one inside who was not known dead.
    pub(crate) overlaps: u64,
    /// How often an owner found the data torn without having been told.
    pub(crate) untold: u64,
    pub(crate) longest_wait_ns: u64,
}

/// How a worker came to own the ledger.
pub(crate) struct Entry<'a> {
    pub(crate) me: u64,
    /// Whether the lock said that the owner before died.
    pub(crate) inherited: bool,
    pub(crate) waited: Duration,
    /// Whether somebody still waits who did before this worker came.
    pub(crate) passed_over: bool,
    pub(crate) alive: &'a dyn Fn(u64) -> bool,
}

impl Ledger {
    /// The count, if its copies agree with each other and with what the workers
    /// have done.
    pub(crate) fn count(&self) -> Result<u64, String> {
        let (count, done) = (self.counts[0], self.tallies.iter().sum::<u64>());
        if self.counts != [count; COPIES] {
            return Err(format!("the copies of the count differ: {:?}", self.counts));
        }
        if count != done {
            return Err(format!("the count is {count}, but the workers have made {done}"));
        }
        Ok(count)
    }

    pub(crate) fn done(&self) -> u64 {
        self.counts[0]
    }

    /// The first thing that a new owner does.
    pub(crate) fn enter(&mut self, entry: &Entry) {
        self.book.acquisitions += 1;
        let waited = entry.waited.as_nanos() as u64;
        self.book.longest_wait_ns = self.book.longest_wait_ns.max(waited);
        let left_by_dead = entry.inherited && !(entry.alive)(self.inside);
        if self.inside != 0 && !left_by_dead {
            self.book.overlaps += 1;
        }
        self.inside = entry.me;
        if entry.inherited {
            self.book.inherited += 1;
        }
        settle(self);
        self.repair(entry.inherited);
        self.check_order(entry);
    }

    /// Undoes what a dead owner left half done.
    pub(crate) fn repair(&mut self, inherited: bool) {
        if self.journal.armed == 0 {
            return;
        }
        if !inherited {
            self.book.untold += 1;
        }
        // An heir that is killed in here leaves the journal armed, and its
        // own heir does the same again.
        self.counts = [self.journal.count; COPIES];
        if let Some(tally) = self.tallies.get_mut(self.journal.slot as usize) {
            *tally = self.journal.tally;
        }
        settle(self);
        self.journal.armed = 0;
        settle(self);
        self.book.repaired += 1;
        settle(self);
    }

    fn check_order(&mut self, entry: &Entry) {
        if entry.passed_over {
            self.book.order_inversions += 1;
        }
        match self.order.get() {
            None => self.book.order_unchecked += 1,
            Some([]) => {}
            Some(queue) => {
                if !order::may_be_served(queue, entry.me, entry.alive) {
                    self.book.order_inversions += 1;
                }
                self.book.order_checked += 1;
            }
        }
    }

    /// Adds one on behalf of the worker in place `slot`, in a way that a kill
    /// tears as often as possible.
    pub(crate) fn increment(&mut self, slot: usize) {
        self.increment_slowly(slot, || ());
    }

    /// The same with a pause in the middle.
    pub(crate) fn increment_slowly(&mut self, slot: usize, pause: impl Fn()) {
        self.journal.slot = slot as u64;
        self.journal.count = self.counts[0];
        self.journal.tally = self.tallies[slot];
        settle(self);
        self.journal.armed = 1;
        settle(self);
        for copy in 0..COPIES {
            // Another owner that got in here would be overwritten.
            let next = self.counts[copy] + 1;
            for _ in 0..SPINS {
                spin_loop();
            }
            self.counts[copy] = next;
            settle(self);
            if copy == COPIES / 2 {
                pause();
            }
        }
        self.tallies[slot] += 1;
        settle(self);
        self.journal.armed = 0;
        settle(self);
    }

    /// The last thing that an owner does: `queue` is who waits now.
    pub(crate) fn leave(&mut self, entry: &Entry, queue: Option<&[u64]>) {
        if let (Some(before), Some(now)) = (self.order.get(), queue)
            && !order::has_kept(before, now, entry.me, entry.alive)
        {
            self.book.order_inversions += 1;
        }
        self.order.set(queue);
        settle(self);
        self.inside = 0;
        settle(self);
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Ledger};
    use std::time::Duration;
    use zerocopy::FromZeros;

    fn entry(me: u64, inherited: bool) -> Entry<'static> {
        Entry { me, inherited, waited: Duration::ZERO, passed_over: false, alive: &|who| who < 10 }
    }

    #[test]
    fn counts_what_is_undisturbed() {
        let mut ledger = Ledger::new_zeroed();
        for me in [1, 2, 1] {
            ledger.enter(&entry(me, false));
            ledger.increment(me as usize);
            ledger.leave(&entry(me, false), Some(&[]));
        }
        assert_eq!(ledger.count(), Ok(3));
        assert_eq!(ledger.tallies[..3], [0, 2, 1]);
        assert_eq!((ledger.book.acquisitions, ledger.book.order_unchecked), (3, 1));
    }

    #[test]
    fn an_heir_undoes_what_is_torn() {
        let mut ledger = Ledger::new_zeroed();
        ledger.increment(0);
        // As 11 leaves it that dies in the middle of its increment.
        (ledger.inside, ledger.journal.armed) = (11, 1);
        (ledger.journal.count, ledger.journal.slot) = (1, 3);
        ledger.counts[..3].fill(2);
        assert!(ledger.count().is_err());
        ledger.enter(&entry(1, true));
        assert_eq!(ledger.count(), Ok(1));
        assert_eq!((ledger.book.inherited, ledger.book.repaired), (1, 1));
        assert_eq!((ledger.book.overlaps, ledger.book.untold), (0, 0));
    }

    #[test]
    fn notices_a_lock_that_does_not_work() {
        let mut ledger = Ledger::new_zeroed();
        // Two inside.
        ledger.enter(&entry(1, false));
        ledger.enter(&entry(2, false));
        assert_eq!(ledger.book.overlaps, 1);
        ledger.enter(&entry(3, true));
        assert_eq!(ledger.book.overlaps, 2);
        // A death that nobody told of.
        ledger.journal.armed = 1;
        ledger.enter(&entry(2, false));
        assert_eq!(ledger.book.untold, 1);
        // A lost update.
        ledger.increment(1);
        ledger.counts.fill(0);
        assert!(ledger.count().is_err());
        // One that is served before its turn, and one that jumps the queue.
        ledger.leave(&entry(2, false), Some(&[3, 4]));
        ledger.enter(&entry(4, false));
        assert_eq!(ledger.book.order_inversions, 1);
        ledger.leave(&entry(4, false), Some(&[5, 3]));
        assert_eq!(ledger.book.order_inversions, 2);
        ledger.enter(&Entry { passed_over: true, ..entry(5, false) });
        assert_eq!(ledger.book.order_inversions, 3);
    }
}
