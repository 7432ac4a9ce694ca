//! What the storm's processes share: the locks, the data behind them, and the
//! books in which everybody writes what befell it.
#![allow(clippy::disallowed_types, reason = "the test's own books")]

use heirlock::{Mutex, MutexGuard, Participant, Policy, Segment, is_alive};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use zerocopy::{FromBytes, FromZeros};

pub(crate) const LOCKS: usize = 3;
/// The lock that may be taken past those who wait; the others are first in, first
/// out.
pub(crate) const THROUGHPUT: usize = 1;
pub(crate) const WORKERS: usize = 10;
pub(crate) const THREADS: usize = 2;
pub(crate) const CAPACITY: u32 = 48;
/// How many threads back the books go.
const SOULS: usize = 1 << 18;
const QUEUE: usize = CAPACITY as usize;

#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Ground {
    pub(crate) locks: [Mutex<Protected>; LOCKS],
    /// Acquisitions, by lock.
    pub(crate) progress: [AtomicU64; LOCKS],
    /// By row: the wait that its thread is in, if it is in one; see [`Wait`].
    waits: [AtomicU64; CAPACITY as usize + 1],
    pub(crate) workers: [Worker; WORKERS],
    pub(crate) tally: Tally,
    pub(crate) stop: AtomicU64,
    /// What the counters were when all was over.
    pub(crate) audit: [AtomicU64; LOCKS],
    complaint: Complaint,
    last_serial: AtomicU64,
    souls: [Soul; SOULS],
}

/// A place for a process; its successor gets it when it dies.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Worker {
    /// By thread: the serial number of its soul, 0 for none.
    pub(crate) souls: [AtomicU64; THREADS],
    /// By thread: what it has finished.
    pub(crate) finished: [AtomicU64; THREADS],
}

/// One thread from attach to death or detach.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Soul {
    serial: AtomicU64,
    participant: AtomicU64,
    /// What it is doing with each lock, a byte each; the last byte is set
    /// while it attaches.
    phases: AtomicU64,
    /// The locks (a bit each) of which an heir was told that this one died.
    told: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Away = 0,
    /// Inside `lock` or one of its kin.
    Locking = 1,
    /// Out of it, but has not put its name into the record yet.
    Entered = 2,
    /// From about when its name is in the record.
    Holding = 3,
    /// From before its name leaves the record to after `unlock`.
    Unlocking = 4,
}

#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Tally {
    pub(crate) acquired: AtomicU64,
    pub(crate) inherited: AtomicU64,
    pub(crate) repaired: AtomicU64,
    pub(crate) given_up: AtomicU64,
    pub(crate) counted: AtomicU64,
    /// By lock.
    pub(crate) order_checks: [AtomicU64; LOCKS],
    pub(crate) longest_wait: AtomicU64,
}

/// The first thing that somebody found wrong.
#[derive(FromBytes)]
#[repr(C)]
struct Complaint {
    /// 0 none, 1 somebody writes one, 2 it is there.
    state: AtomicU64,
    len: AtomicU64,
    text: [AtomicU64; 64],
}

/// What a lock protects. All of it is read and written under the lock only; it
/// is made of atomics so that the compiler keeps the order of the writes, on
/// which the repair relies.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Protected {
    /// The serial number of the owner, from just after it came to just before
    /// it goes.
    record: AtomicU64,
    /// Two copies of the counter, and each place's share of it.
    counter: AtomicU64,
    copy: AtomicU64,
    shares: [AtomicU64; WORKERS],
    /// What the three are about to be, while `active` is 1.
    journal: Journal,
    /// Who waited when the last owner left, the first in line first.
    queue_len: AtomicU64,
    queue: [Queued; QUEUE],
}

#[derive(FromBytes)]
#[repr(C)]
struct Journal {
    active: AtomicU64,
    worker: AtomicU64,
    counter: AtomicU64,
    share: AtomicU64,
}

#[derive(FromBytes)]
#[repr(C)]
struct Queued {
    participant: AtomicU64,
    wait: AtomicU64,
}

/// A wait: until when, and one of how many, so that a thread's next wait
/// differs. `deadline` is in microseconds of the monotonic clock.
///
/// ```text
/// 63        48 47        0
/// +-----------+-----------+
/// |   count   | deadline  |
/// +-----------+-----------+
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
struct Wait(u64);

const FOR_EVER: u64 = (1 << 48) - 1;
const UNKNOWN: u64 = 0;

impl Wait {
    fn next(self, deadline: u64) -> Self {
        Self(((self.0 >> 48) + 1) << 48 | deadline.min(FOR_EVER))
    }

    /// Whether its thread may have left the queue without the lock by now.
    fn may_be_over(self) -> bool {
        self.0 & FOR_EVER != FOR_EVER && self.0 & FOR_EVER <= micros()
    }
}

/// The monotonic clock, in microseconds.
pub(crate) fn micros() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// How to ask for a lock.
#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    Wait,
    WaitFor(Duration),
    Try,
}

impl Ground {
    /// Zeroes are all there is to it but for the policy of one lock.
    pub(crate) fn init(&mut self) {
        let protected = Protected::new_zeroed();
        self.locks[THROUGHPUT] = Mutex::with_policy(protected, Policy::Throughput);
    }

    pub(crate) fn soul(&self, serial: u64) -> &Soul {
        &self.souls[serial as usize % SOULS]
    }

    /// The soul, if the books have not begun anew over it.
    pub(crate) fn known_soul(&self, serial: u64) -> Option<&Soul> {
        let soul = self.soul(serial);
        (serial != 0 && soul.serial.load(SeqCst) == serial).then_some(soul)
    }

    /// What somebody found wrong.
    pub(crate) fn complaint(&self) -> Option<String> {
        if self.complaint.state.load(SeqCst) != 2 {
            return None;
        }
        let words = self.complaint.text.iter().flat_map(|word| word.load(SeqCst).to_le_bytes());
        let bytes: Vec<u8> = words.take(self.complaint.len.load(SeqCst) as usize).collect();
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes down the first thing that is wrong, and ends the process.
    fn complain(&self, text: &str) -> ! {
        let Complaint { state, len, text: words } = &self.complaint;
        if state.compare_exchange(0, 1, SeqCst, SeqCst).is_ok() {
            for (word, part) in words.iter().zip(text.as_bytes().chunks(8)) {
                let mut bytes = [0; 8];
                bytes[..part.len()].copy_from_slice(part);
                word.store(u64::from_le_bytes(bytes), SeqCst);
            }
            len.store(text.len().min(8 * words.len()) as u64, SeqCst);
            state.store(2, SeqCst);
        }
        eprintln!("{text}");
        std::process::exit(1)
    }
}

impl Soul {
    pub(crate) fn participant(&self) -> Option<Participant> {
        Participant::from_bits(self.participant.load(SeqCst))
    }

    pub(crate) fn is_attaching(&self) -> bool {
        self.phases.load(SeqCst).to_le_bytes()[7] != 0
    }

    pub(crate) fn phase(&self, lock: usize) -> Phase {
        match self.phases.load(SeqCst).to_le_bytes()[lock] {
            0 => Phase::Away,
            1 => Phase::Locking,
            2 => Phase::Entered,
            3 => Phase::Holding,
            _ => Phase::Unlocking,
        }
    }

    /// Of which locks an heir was told that this one had died.
    pub(crate) fn was_told_of(&self, lock: usize) -> bool {
        self.told.load(SeqCst) & 1 << lock != 0
    }

    fn set_byte(&self, at: usize, value: u8) {
        // Only its own thread writes it.
        let mut bytes = self.phases.load(SeqCst).to_le_bytes();
        bytes[at] = value;
        self.phases.store(u64::from_le_bytes(bytes), SeqCst);
    }
}

/// A thread on the ground, attached.
pub(crate) struct Visitor<'g> {
    pub(crate) ground: &'g Segment<Ground>,
    soul: &'g Soul,
    serial: u64,
    worker: usize,
    me: Participant,
}

/// A lock held.
pub(crate) struct Held<'v, 'g> {
    visitor: &'v Visitor<'g>,
    lock: usize,
    guard: MutexGuard<'g, Protected>,
}

impl<'g> Visitor<'g> {
    /// Attaches the calling thread, which must not be attached yet.
    pub(crate) fn attach(ground: &'g Segment<Ground>, worker: usize, thread: usize) -> Self {
        let serial = ground.last_serial.fetch_add(1, SeqCst) + 1;
        let soul = ground.soul(serial);
        soul.serial.store(0, SeqCst);
        soul.participant.store(0, SeqCst);
        soul.told.store(0, SeqCst);
        soul.phases.store(0, SeqCst);
        soul.serial.store(serial, SeqCst);
        // By its name an heir will know it.
        std::fs::write("/proc/thread-self/comm", format!("soul {serial}")).expect("a name");
        soul.set_byte(7, 1);
        ground.workers[worker].souls[thread].store(serial, SeqCst);
        let me = match ground.attach() {
            Ok(me) => me,
            Err(error) => ground.complain(&format!("attach: {error}")),
        };
        soul.participant.store(me.to_bits(), SeqCst);
        soul.set_byte(7, 0);
        Self { ground, soul, serial, worker, me }
    }

    /// Asks for a lock, and checks all there is to check if it comes.
    pub(crate) fn enter(&self, lock: usize, how: How) -> Option<Held<'_, 'g>> {
        let ground: &'g Ground = self.ground;
        let start = micros();
        let deadline = match how {
            How::Wait => FOR_EVER,
            How::WaitFor(timeout) => start + timeout.as_micros() as u64,
            How::Try => start,
        };
        let wait = &ground.waits[self.me.row() as usize];
        wait.store(Wait(wait.load(SeqCst)).next(deadline).0, SeqCst);
        self.soul.set_byte(lock, Phase::Locking as u8);
        let mutex = &ground.locks[lock];
        let guard = match how {
            How::Wait => Some(mutex.lock()),
            How::WaitFor(timeout) => mutex.try_lock_for(timeout),
            How::Try => mutex.try_lock(),
        };
        let Some(guard) = guard else {
            self.soul.set_byte(lock, Phase::Away as u8);
            ground.tally.given_up.fetch_add(1, SeqCst);
            return None;
        };
        self.soul.set_byte(lock, Phase::Entered as u8);
        ground.progress[lock].fetch_add(1, SeqCst);
        ground.tally.acquired.fetch_add(1, SeqCst);
        ground.tally.longest_wait.fetch_max(micros() - start, SeqCst);
        let held = Held { visitor: self, lock, guard };
        held.check_telling();
        held.check_order();
        held.repair();
        held.guard.record.store(self.serial, SeqCst);
        self.soul.set_byte(lock, Phase::Holding as u8);
        Some(held)
    }

    fn is_alive(&self, participant: Participant) -> bool {
        is_alive(self.ground, participant)
    }
}

impl Held<'_, '_> {
    fn complain(&self, what: &str) -> ! {
        let Visitor { ground, serial, me, .. } = self.visitor;
        ground.complain(&format!("lock {}, thread {serial} ({me}): {what}", self.lock))
    }

    /// Whether the heir, and only the heir, was told of a death.
    ///
    /// A living owner takes its name out of the record before it unlocks. So a
    /// name in the record is that of an owner that died, and this one must
    /// have been told; and if there is no name, who is named as dead must have
    /// died between owning and the record.
    fn check_telling(&self) {
        let ground = self.visitor.ground;
        let record = self.guard.record.load(SeqCst);
        let Some(dead) = MutexGuard::inherited(&self.guard) else {
            if record != 0 {
                let owner = ground.known_soul(record).and_then(Soul::participant);
                if owner.is_some_and(|owner| self.visitor.is_alive(owner)) {
                    self.complain(&format!("thread {record} owns it too, and lives"));
                }
                self.complain(&format!("thread {record} died as its owner, which was not told"));
            }
            return;
        };
        ground.tally.inherited.fetch_add(1, SeqCst);
        let name = dead.thread_name();
        let Some(named) = name.strip_prefix("soul ").and_then(|serial| serial.parse().ok()) else {
            self.complain(&format!("told of the death of {dead}, who never was here"));
        };
        let Some(soul) = ground.known_soul(named) else { return };
        if soul.participant().is_some_and(|named| self.visitor.is_alive(named)) {
            self.complain(&format!("told of the death of thread {named}, which lives"));
        }
        let phase = soul.phase(self.lock);
        if record != named {
            let unnamed = match record {
                // It died with its name not yet, or no longer, there.
                0 => matches!(phase, Phase::Locking | Phase::Entered | Phase::Unlocking),
                // It was the heir of the one on record, and died before it
                // had taken note.
                _ => matches!(phase, Phase::Locking | Phase::Entered),
            };
            if !unnamed {
                self.complain(&format!(
                    "told of the death of thread {named} ({phase:?}), but thread {record} is on record"
                ));
            }
        }
        let bit = 1 << self.lock;
        if soul.told.fetch_or(bit, SeqCst) & bit != 0 {
            self.complain(&format!("told of the death of thread {named} a second time"));
        }
        if record != named
            && let Some(soul) = ground.known_soul(record)
        {
            soul.told.fetch_or(bit, SeqCst);
        }
    }

    /// Whether everybody who stood before this thread in the queue, as the last
    /// owner saw it, has died or given up. A lock that may be taken past them is
    /// first in, first out among those who stood there.
    fn check_order(&self) {
        let Protected { queue_len, queue, .. } = &*self.guard;
        let mut len = queue_len.load(SeqCst) as usize;
        if self.lock == THROUGHPUT && !queue[..len].iter().any(|entry| self.is_own(entry)) {
            len = 0;
        }
        for (place, entry) in queue[..len].iter().enumerate() {
            let wait = Wait(entry.wait.load(SeqCst));
            let Some(ahead) = Participant::from_bits(entry.participant.load(SeqCst)) else {
                continue;
            };
            if ahead == self.visitor.me {
                break;
            }
            // In this order: it may be about to give up, or to die.
            if self.visitor.is_alive(ahead) && wait.0 != UNKNOWN && !wait.may_be_over() {
                self.complain(&format!("inversion: {ahead} waited at place {place} before"));
            }
        }
        if len > 0 {
            self.visitor.ground.tally.order_checks[self.lock].fetch_add(1, SeqCst);
        }
        queue_len.store(0, SeqCst);
    }

    /// Whether it is of this thread, in the wait that it has just ended.
    fn is_own(&self, entry: &Queued) -> bool {
        let Visitor { ground, me, .. } = self.visitor;
        entry.participant.load(SeqCst) == me.to_bits()
            && entry.wait.load(SeqCst) == ground.waits[me.row() as usize].load(SeqCst)
    }

    /// Finishes what a dead owner had begun.
    fn repair(&self) {
        let Protected { counter, copy, shares, journal, .. } = &*self.guard;
        if journal.active.load(SeqCst) != 0 {
            self.redo();
            self.visitor.ground.tally.repaired.fetch_add(1, SeqCst);
        }
        let total: u64 = shares.iter().map(|share| share.load(SeqCst)).sum();
        let (counter, copy) = (counter.load(SeqCst), copy.load(SeqCst));
        if counter != copy || counter != total {
            self.complain(&format!("torn: {counter}, {copy} and {total} differ"));
        }
    }

    fn redo(&self) {
        let Protected { counter, copy, shares, journal, .. } = &*self.guard;
        counter.store(journal.counter.load(SeqCst), SeqCst);
        let share = &shares[journal.worker.load(SeqCst) as usize];
        share.store(journal.share.load(SeqCst), SeqCst);
        copy.store(journal.counter.load(SeqCst), SeqCst);
        journal.active.store(0, SeqCst);
    }

    /// Counts one up; torn if it is killed in the middle.
    pub(crate) fn count(&self, linger: impl Fn()) {
        let Protected { counter, copy, shares, journal, .. } = &*self.guard;
        let worker = self.visitor.worker;
        journal.worker.store(worker as u64, SeqCst);
        journal.counter.store(counter.load(SeqCst) + 1, SeqCst);
        journal.share.store(shares[worker].load(SeqCst) + 1, SeqCst);
        journal.active.store(1, SeqCst);
        counter.store(journal.counter.load(SeqCst), SeqCst);
        linger();
        shares[worker].store(journal.share.load(SeqCst), SeqCst);
        linger();
        copy.store(journal.counter.load(SeqCst), SeqCst);
        journal.active.store(0, SeqCst);
        self.visitor.ground.tally.counted.fetch_add(1, SeqCst);
    }

    pub(crate) fn counter(&self) -> u64 {
        self.guard.counter.load(SeqCst)
    }

    /// Writes down who waits, for the next owner.
    fn record_queue(&self) {
        let ground = self.visitor.ground;
        // Who is in the same wait before and after the look was in that wait
        // when it was seen in the queue.
        let waits = || ground.waits.iter().map(|wait| wait.load(SeqCst)).collect::<Vec<_>>();
        let before = waits();
        let Some(queue) = heirlock::queue(&ground.locks[self.lock]) else { return };
        let mut len = 0;
        for (entry, waiter) in self.guard.queue.iter().zip(queue) {
            let row = waiter.row() as usize;
            let same = before[row] == ground.waits[row].load(SeqCst);
            entry.participant.store(waiter.to_bits(), SeqCst);
            entry.wait.store(if same { before[row] } else { UNKNOWN }, SeqCst);
            len += 1;
        }
        self.guard.queue_len.store(len, SeqCst);
    }

    pub(crate) fn leave(self) {
        let (visitor, lock) = (self.visitor, self.lock);
        self.record_queue();
        visitor.soul.set_byte(lock, Phase::Unlocking as u8);
        let record = self.guard.record.swap(0, SeqCst);
        if record != visitor.serial {
            self.complain(&format!("thread {record} came in while it was held"));
        }
        drop(self.guard);
        visitor.soul.set_byte(lock, Phase::Away as u8);
    }
}
