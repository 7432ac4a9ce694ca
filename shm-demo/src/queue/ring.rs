//! The ring, and what it knows of those who push and pop: all under one lock, and such
//! that a kill at any instruction leaves nothing that the heir cannot carry out.

use crate::settle::settle;
use zerocopy::FromBytes;

/// How many items can fit into the ring.
pub(crate) const MAX_CAPACITY: usize = 1024;

/// How many producers there can be at a time.
pub(crate) const MAX_PRODUCERS: usize = 64;

/// How many consumers there can be at a time.
pub(crate) const MAX_CONSUMERS: usize = 64;

/// No item of the queue has this number.
const NONE: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes)]
#[repr(C)]
pub(crate) struct Item {
    producer: u64,
    /// The how-manyth of its producer it is, from 0 on.
    number: u64,
    checksum: u64,
}

/// All bytes zero is an empty ring.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Ring {
    pub(crate) capacity: u64,
    /// How many items have been pushed: to count one is to push it.
    pushed: u64,
    /// How many have been popped: to count one is to hand it over.
    popped: u64,
    /// One more than fit: so that a push that is not counted yet has not written over the
    /// item that was pushed last.
    items: [Item; MAX_CAPACITY + 1],
    handover: Handover,
    /// By producer, the number of its next item.
    next: [u64; MAX_PRODUCERS],
    /// By producer, the number of its item that must be popped next.
    due: [u64; MAX_PRODUCERS],
    consumers: [Consumer; MAX_CONSUMERS],
    pub(crate) counts: Counts,
}

/// The last item that was popped, and what follows from that. All of it can be carried
/// out any number of times.
#[derive(Clone, FromBytes)]
#[repr(C)]
struct Handover {
    /// The how-manyth item of the queue it is, [`NONE`] as long as this is not whole.
    index: u64,
    item: Item,
    consumer: u64,
    after: Consumer,
}

/// What a consumer has been given, over all processes that had its place.
#[derive(Clone, Copy, Debug, Default, FromBytes)]
#[repr(C)]
pub(crate) struct Consumer {
    /// How many items.
    pub(crate) taken: u64,
    /// The sum of what stands for each of them.
    digest: u64,
    /// The last one.
    pub(crate) in_hand: Item,
}

/// What happened. A kill can make one of these miss one event of the killed process.
#[derive(Clone, Default, FromBytes)]
#[repr(C)]
pub(crate) struct Counts {
    pub(crate) misplaced: u64,
    pub(crate) waits_for_room: u64,
    pub(crate) waits_for_items: u64,
    pub(crate) timeouts: u64,
    pub(crate) inherited: u64,
    pub(crate) repaired: u64,
}

impl Item {
    fn new(producer: u64, number: u64) -> Self {
        Self { producer, number, checksum: mix(producer, number) }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.checksum == mix(self.producer, self.number)
    }
}

/// A number that stands for an item, and for no other one.
fn mix(producer: u64, number: u64) -> u64 {
    let mut bits = (producer << 48) ^ number ^ 0x9e37_79b9_7f4a_7c15;
    for _ in 0..2 {
        bits = (bits ^ (bits >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    bits ^ (bits >> 29)
}

impl Ring {
    fn capacity(&self) -> u64 {
        self.capacity.clamp(1, MAX_CAPACITY as u64)
    }

    fn place(&self, index: u64) -> usize {
        (index % (self.capacity() + 1)) as usize
    }

    pub(crate) fn pushed(&self) -> u64 {
        self.pushed
    }

    pub(crate) fn popped(&self) -> u64 {
        self.popped
    }

    pub(crate) fn is_full(&self) -> bool {
        self.pushed.wrapping_sub(self.popped) >= self.capacity()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pushed == self.popped
    }

    pub(crate) fn consumer(&self, consumer: usize) -> Consumer {
        self.consumers[consumer]
    }

    /// Pushes the producer's next item; there must be room. `pace` is called between any
    /// two writes: to be slow enough for kills to find it.
    pub(crate) fn push(&mut self, producer: usize, pace: &dyn Fn()) {
        let place = self.place(self.pushed);
        self.items[place] = Item::new(producer as u64, self.next[producer]);
        settle(self);
        pace();
        // From here on the item is in the queue.
        self.pushed += 1;
        settle(self);
        pace();
        self.carry_out_push();
        settle(self);
        pace();
    }

    /// Hands the first item to the consumer; there must be one.
    pub(crate) fn pop(&mut self, consumer: usize, pace: &dyn Fn()) -> Consumer {
        let item = self.items[self.place(self.popped)];
        let is_due = self.due.get(item.producer as usize) == Some(&item.number);
        if !is_due {
            self.counts.misplaced += 1;
        }
        let before = self.consumers[consumer];
        let after = Consumer {
            taken: before.taken + 1,
            digest: before.digest.wrapping_add(mix(item.producer, item.number)),
            in_hand: item,
        };
        // What was handed over last is carried out; this is not handed over yet.
        self.handover.index = NONE;
        settle(self);
        self.handover = Handover { index: NONE, item, consumer: consumer as u64, after };
        settle(self);
        self.handover.index = self.popped;
        settle(self);
        pace();
        // From here on the consumer has it.
        self.popped += 1;
        settle(self);
        pace();
        self.carry_out_pop();
        settle(self);
        pace();
        after
    }

    /// What follows from the last item that was pushed. Whether there was anything to
    /// do.
    fn carry_out_push(&mut self) -> bool {
        let Some(last) = self.pushed.checked_sub(1) else { return false };
        // Nobody has written over it, see `items`.
        let item = self.items[self.place(last)];
        let Some(next) = self.next.get_mut(item.producer as usize) else { return false };
        let after = item.number.wrapping_add(1);
        std::mem::replace(next, after) != after
    }

    /// What follows from the last item that was popped.
    fn carry_out_pop(&mut self) -> bool {
        let Handover { index, item, consumer, after } = self.handover;
        if index == NONE || index.wrapping_add(1) != self.popped {
            return false;
        }
        let mut done = false;
        if let Some(due) = self.due.get_mut(item.producer as usize) {
            let next = item.number.wrapping_add(1);
            done |= std::mem::replace(due, next) != next;
        }
        if let Some(consumer) = self.consumers.get_mut(consumer as usize) {
            done |= std::mem::replace(consumer, after).taken != after.taken;
        }
        done
    }

    /// What an heir does first. If it is killed in here, its own heir does the same
    /// again.
    pub(crate) fn repair(&mut self) {
        let pushed = self.carry_out_push();
        let popped = self.carry_out_pop();
        settle(self);
        if pushed || popped {
            self.counts.repaired += 1;
        }
    }

    /// What is wrong with the ring, in words, when `items` items have been through it.
    pub(crate) fn audit(&self, items: u64) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut must = |holds: bool, what: String| {
            if !holds {
                wrong.push(what);
            }
        };
        let (pushed, popped) = (self.pushed, self.popped);
        must(pushed == items, format!("{pushed} items were pushed, not {items}"));
        must(popped == items, format!("{popped} items were popped, not {items}"));
        let misplaced = self.counts.misplaced;
        must(misplaced == 0, format!("{misplaced} items were not their producers' next"));
        let made: u64 = self.next.iter().sum();
        must(made == items, format!("the producers made {made} items, not {items}"));
        for (producer, (next, due)) in self.next.iter().zip(&self.due).enumerate() {
            must(next == due, format!("of producer {producer}'s {next} items {due} came out"));
        }
        let taken: u64 = self.consumers.iter().map(|consumer| consumer.taken).sum();
        must(taken == items, format!("the consumers were given {taken} items, not {items}"));
        // Counts that agree could be of other items.
        let add = |sum: u64, part: u64| sum.wrapping_add(part);
        let in_it = |(producer, next): (usize, &u64)| {
            // No more than were asked for, whatever is in the segment.
            (0..items.min(*next)).map(|number| mix(producer as u64, number)).fold(0, add)
        };
        let expected = self.next.iter().enumerate().map(in_it).fold(0, add);
        let digest = self.consumers.iter().map(|consumer| consumer.digest).fold(0, add);
        must(digest == expected, "the consumers were given other items than were made".into());
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::{Item, Ring};
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use zerocopy::FromZeros;

    fn ring(capacity: u64) -> Box<Ring> {
        let mut ring = Box::new(Ring::new_zeroed());
        ring.capacity = capacity;
        ring
    }

    /// Ten items of two producers, through two consumers.
    fn run() -> Box<Ring> {
        let mut ring = ring(3);
        for round in 0..10 {
            ring.push(round % 2, &|| ());
            ring.pop(round / 5, &|| ());
        }
        ring
    }

    #[test]
    fn is_a_queue() {
        let mut ring = ring(3);
        assert!(ring.is_empty() && !ring.is_full());
        for producer in [4, 7, 4] {
            ring.push(producer, &|| ());
        }
        assert!(ring.is_full() && !ring.is_empty());
        for (producer, number) in [(4, 0), (7, 0), (4, 1)] {
            let consumer = ring.pop(1, &|| ());
            assert_eq!(consumer.in_hand, Item::new(producer, number));
            assert!(consumer.in_hand.is_whole());
        }
        assert!(ring.is_empty());
        assert_eq!(ring.audit(3), [""; 0]);
        assert_eq!(run().audit(10), [""; 0]);
    }

    /// Kills each of many pushes and pops between any two of its writes, and has the
    /// dead one's successor go on.
    #[test]
    fn a_killed_push_or_pop_was_made_or_not() {
        for capacity in [1, 2, 5] {
            let mut ring = ring(capacity);
            let (mut killed, mut rng) = (0, fastrand::Rng::with_seed(capacity));
            while ring.popped() < 2000 {
                let steps = Cell::new(rng.u32(1..8));
                let pace = || {
                    steps.set(steps.get() - 1);
                    if steps.get() == 0 {
                        resume_unwind(Box::new("killed"));
                    }
                };
                let pushes = ring.is_empty() || !ring.is_full() && rng.bool();
                let pushes = pushes && ring.pushed() < 2000;
                let who = rng.usize(..3);
                let act = || {
                    if pushes {
                        ring.push(who, &pace);
                    } else {
                        ring.pop(who, &pace);
                    }
                };
                if catch_unwind(AssertUnwindSafe(act)).is_err() {
                    killed += 1;
                    ring.repair();
                    // An heir that was killed.
                    ring.repair();
                }
            }
            assert!(killed > 500, "{killed} kills");
            assert!(ring.counts.repaired > 100, "{} repairs", ring.counts.repaired);
            assert_eq!(ring.audit(2000), [""; 0]);
        }
    }

    #[track_caller]
    fn assert_fails(change: impl Fn(&mut Ring), what: &str) {
        let mut ring = run();
        change(&mut ring);
        let wrong = ring.audit(10);
        assert!(wrong.iter().any(|wrong| wrong.contains(what)), "{what}: {wrong:?}");
    }

    #[test]
    fn what_was_lost_or_doubled_fails() {
        assert_fails(|ring| ring.popped -= 1, "9 items were popped, not 10");
        assert_fails(|ring| ring.push(0, &|| ()), "11 items were pushed");
        assert_fails(|ring| ring.next[1] -= 1, "producers made 9 items");
        assert_fails(|ring| ring.due[0] += 1, "of producer 0's 5 items 6 came out");
        assert_fails(|ring| ring.consumers[0].taken += 1, "were given 11 items");
        // One item twice instead of another one.
        let swap = |ring: &mut Ring| {
            let digest = &mut ring.consumers[0].digest;
            *digest = digest.wrapping_sub(super::mix(0, 3)).wrapping_add(super::mix(1, 3));
        };
        assert_fails(swap, "other items than were made");
        // One that comes again, and one that is of nobody.
        let again = |ring: &mut Ring| {
            ring.next[0] -= 1;
            ring.push(0, &|| ());
            ring.pop(0, &|| ());
        };
        assert_fails(again, "1 items were not their producers' next");
        let garbage = |ring: &mut Ring| {
            ring.items.fill(Item { producer: u64::MAX, number: u64::MAX, checksum: 0 });
            ring.popped -= 1;
            assert!(!ring.pop(0, &|| ()).in_hand.is_whole());
        };
        assert_fails(garbage, "1 items were not their producers' next");
    }

    #[test]
    fn garbage_is_written_nowhere() {
        let mut ring = ring(u64::MAX);
        ring.items.fill(Item { producer: u64::MAX, number: u64::MAX, checksum: 0 });
        (ring.pushed, ring.popped) = (u64::MAX, u64::MAX);
        (ring.handover.consumer, ring.handover.index) = (u64::MAX, u64::MAX - 1);
        ring.repair();
        assert!(ring.audit(0).len() > 1);
    }
}
