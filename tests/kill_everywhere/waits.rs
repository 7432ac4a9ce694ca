//! The part of a victim that waits in a ring, or for several locks at once, and the
//! circumstances in which it does.
#![allow(unsafe_code)]

use crate::kit::Board;
use crate::scenario::{BASE, Do, Leg, Op, Scenario, Waits, Wake, When, Who};
use crate::trace::{UNTIL, marker};
use crate::victim::{Outcome, live_on};
use heirlock::select::{lock_any, lock_any_with};
use heirlock::uring::{AsyncAcquire, Entries, Progress};
use heirlock::{LockError, LockOptions, Mutex, MutexGuard, Participant, Segment};
use io_uring::{IoUring, cqueue, opcode};
use std::hint::black_box;
use std::mem::forget;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// That of all requests here.
const NAME: u64 = 7;

type Begun<'m> = (AsyncAcquire<'m, u64>, Progress<'m, u64>);

fn start(lock: &Mutex<u64>) -> Begun<'_> {
    lock.start(NAME).expect("start")
}

/// Has so many rows on lease at hand, and what a thread has from its first wait in a ring on
/// (a destructor's place on a list, whose memory is had in another way each time).
fn lease(segment: &Segment<Board>, rows: usize) {
    static ELSEWHERE: Mutex<u64> = Mutex::new(0);
    let held = ELSEWHERE.lock();
    drop(start(&ELSEWHERE));
    drop(held);
    drop(segment.locks.iter().rev().take(rows).map(start).collect::<Vec<_>>());
}

fn push(ring: &mut IoUring, entries: &Entries) {
    // SAFETY: an entry has the layout of the kernel's, whose third word is an address: of
    // the time, as the second one is the timeout.
    let until = unsafe { core::ptr::from_ref(&entries[1]).cast::<u64>().add(2).read() };
    // For the tracer.
    UNTIL.store(until, Relaxed);
    // SAFETY: what they point to is kept for as long as the kernel may look at it.
    unsafe { ring.submission().push_multiple(entries) }.expect("there is room");
}

/// Waits until so much is completed, and what that is.
fn completed<const N: usize>(ring: &mut IoUring) -> [cqueue::Entry; N] {
    while ring.completion().len() < N {
        match ring.submit_and_wait(N) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EINTR) => {}
            done => drop(done.expect("wait in a ring")),
        }
    }
    std::array::from_fn(|_| ring.completion().next().expect("as many as there are"))
}

/// Takes the lock, asleep in a ring meanwhile. `queued` is told which row it is that
/// stands in the queue, if one does.
pub(crate) fn lock_in_ring<'m>(
    lock: &'m Mutex<u64>,
    ring: &mut IoUring,
    queued: impl FnOnce(Option<Participant>),
) -> MutexGuard<'m, u64> {
    let (mut acquire, mut progress) = start(lock);
    queued(acquire.participant());
    loop {
        match progress {
            Progress::Acquired(guard) => return guard,
            Progress::Again(entries) => push(ring, &entries),
            other => panic!("nothing was to end the wait: {other:?}"),
        }
        // The wait and its timeout, in whatever order.
        progress = complete(&mut acquire, &completed::<2>(ring));
    }
}

fn complete<'m>(acquire: &mut AsyncAcquire<'m, u64>, done: &[cqueue::Entry]) -> Progress<'m, u64> {
    let mut last = Progress::Pending;
    for one in done {
        match acquire.complete(one).expect("complete") {
            Progress::Pending => {}
            progress => last = progress,
        }
    }
    last
}

/// An acquisition that is under way in the ring.
fn under_way<'m>(
    lock: &'m Mutex<u64>,
    ring: &mut IoUring,
    options: &LockOptions<'m>,
) -> AsyncAcquire<'m, u64> {
    let (acquire, progress) = loop {
        match lock.start_with(options, NAME) {
            // A slow machine had the time be over before it looked.
            Err(LockError::TimedOut) => {}
            begun => break begun.expect("start"),
        }
    };
    let Progress::Again(entries) = progress else { panic!("it has to wait: {progress:?}") };
    push(ring, &entries);
    ring.submit().expect("submit");
    acquire
}

/// A completion that says nothing, as one that comes too early or twice: of that name.
fn of_nothing(ring: &mut IoUring) -> cqueue::Entry {
    // SAFETY: it refers to nothing.
    unsafe { ring.submission().push(&opcode::Nop::new().build().user_data(NAME)) }
        .expect("there is room");
    let [done] = completed(ring);
    done
}

/// As [`crate::victim::play`].
pub(crate) fn play(op: Waits, segment: &Segment<Board>) {
    let lock = &segment.locks[0];
    let mut ring = IoUring::new(8).expect("a ring");
    let rows = match op {
        Waits::StartAndJoin => 0,
        Waits::Any | Waits::AnyCancellable => 2,
        _ => 1,
    };
    lease(segment, rows);
    match op {
        Waits::Start | Waits::StartAndJoin => {
            marker();
            let (acquire, progress) = black_box(start(lock));
            marker();
            forget(acquire);
            end_with(Outcome::Nothing, progress);
        }
        Waits::Ring => {
            marker();
            let guard = black_box(lock_in_ring(lock, &mut ring, drop));
            marker();
            live_on(Outcome::Nothing, Some(guard));
        }
        Waits::Complete => {
            let mut acquire = under_way(lock, &mut ring, &LockOptions::new());
            let done = of_nothing(&mut ring);
            marker();
            let progress = black_box(complete(&mut acquire, &[done]));
            marker();
            forget(acquire);
            end_with(Outcome::Nothing, progress);
        }
        Waits::CompleteLate => {
            let soon = LockOptions::new().timeout(Duration::from_millis(1));
            let mut acquire = under_way(lock, &mut ring, &soon);
            let done: [_; 2] = completed(&mut ring);
            marker();
            let progress = black_box(complete(&mut acquire, &done));
            marker();
            end_with(Outcome::Nothing, progress);
        }
        Waits::Cancel => {
            let mut acquire = under_way(lock, &mut ring, &LockOptions::new());
            marker();
            let progress = black_box(acquire.cancel());
            marker();
            end_with(Outcome::Cancelled, progress.expect("cancel"));
        }
        Waits::Drop => {
            let acquire = under_way(lock, &mut ring, &LockOptions::new());
            marker();
            drop(black_box(acquire));
            marker();
            live_on(Outcome::Done, None);
        }
        Waits::Release => {
            let (_, progress) = start(lock);
            let Progress::Acquired(guard) = progress else { panic!("it is free: {progress:?}") };
            marker();
            drop(black_box(guard));
            marker();
            live_on(Outcome::Done, None);
        }
        Waits::Any => {
            let [first, second, ..] = &segment.locks;
            marker();
            let (_, guard) = black_box(lock_any(&[first, second]));
            marker();
            live_on(Outcome::Nothing, Some(guard));
        }
        Waits::AnyCancellable => {
            let [first, second, ..] = &segment.locks;
            let options = LockOptions::new().cancel(&segment.tokens[0]);
            marker();
            let any = black_box(lock_any_with(&[first, second], &options));
            marker();
            live_on(Outcome::Cancelled, any.ok().map(|(_, guard)| guard));
        }
    }
}

fn end_with(without: Outcome, progress: Progress<'_, u64>) {
    let guard = match progress {
        Progress::Acquired(guard) => Some(guard),
        _ => None,
    };
    live_on(without, guard);
}

const fn of(op: Waits) -> Scenario {
    Scenario { op: Op::Waits(op), owns: (false, false), ..BASE }
}

/// After which it owns the lock.
const fn takes(op: Waits) -> Scenario {
    Scenario { op: Op::Waits(op), ..BASE }
}

const RELEASE: Scenario = Scenario { op: Op::Waits(Waits::Release), owns: (true, false), ..BASE };

use Do::{Cancel, Die, Lock, LockOther, Queue, QueueInRing, QueueOther, Unlock, UnlockOther};
use Who::{A, D, M, O, W1, W2};

/// All of them.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "start: free", floor: 348, ..takes(Waits::Start) },
    Scenario {
        name: "start: free, somebody queues meanwhile",
        floor: 561,
        interject: Some((When::AfterOwner, &[Queue(W1)])),
        ..takes(Waits::Start)
    },
    Scenario {
        name: "start: free, somebody in a ring queues",
        floor: 561,
        interject: Some((When::AfterOwner, &[QueueInRing(A)])),
        ..takes(Waits::Start)
    },
    Scenario {
        name: "start: behind an owner",
        floor: 1504,
        before: &[Lock(O)],
        ..of(Waits::Start)
    },
    Scenario {
        name: "start: behind a waiter",
        floor: 1395,
        before: &[Lock(O), Queue(W1)],
        ..of(Waits::Start)
    },
    Scenario {
        name: "start: behind one in a ring",
        floor: 1395,
        before: &[Lock(O), QueueInRing(A)],
        ..of(Waits::Start)
    },
    Scenario {
        name: "start: behind a dead waiter",
        floor: 1504,
        before: &[Lock(O), Queue(M), Die(M)],
        ..of(Waits::Start)
    },
    Scenario {
        name: "start: a dead owner's",
        floor: 1184,
        before: &[Lock(D), Die(D)],
        ..takes(Waits::Start)
    },
    Scenario { name: "start: joins", floor: 10, sparse: true, ..takes(Waits::StartAndJoin) },
    Scenario {
        name: "start: joins with a dead waiter's row",
        floor: 16,
        before: &[Lock(O), Queue(W1), Queue(M), Die(M)],
        sparse: true,
        ..of(Waits::StartAndJoin)
    },
    Scenario {
        name: "ring: behind an owner, one behind",
        floor: 2442,
        before: &[Lock(O)],
        legs: &[Leg { entry: &[Queue(W1)], wake: Wake::By(&[Unlock(O)]) }],
        ..takes(Waits::Ring)
    },
    Scenario {
        name: "ring: takes over, two behind",
        floor: 3047,
        before: &[Lock(D)],
        legs: &[Leg { entry: &[Queue(W1), QueueInRing(A)], wake: Wake::By(&[Die(D)]) }],
        ..takes(Waits::Ring)
    },
    Scenario {
        name: "complete: nothing has happened",
        floor: 926,
        after: &[Queue(W1)],
        before: &[Lock(O)],
        ..of(Waits::Complete)
    },
    Scenario {
        name: "complete: granted",
        floor: 559,
        before: &[Lock(O)],
        after: &[Queue(W1), Unlock(O)],
        owns: (true, true),
        changes: 0,
        ..of(Waits::Complete)
    },
    Scenario {
        name: "complete: the owner died",
        floor: 1140,
        before: &[Lock(D)],
        after: &[Queue(W1), Die(D)],
        ..takes(Waits::Complete)
    },
    Scenario {
        name: "complete: the one in front died",
        floor: 1305,
        before: &[Lock(O), Queue(M)],
        after: &[Queue(W1), Die(M)],
        ..of(Waits::Complete)
    },
    Scenario {
        name: "complete: both died",
        floor: 1333,
        before: &[Lock(D), Queue(M)],
        after: &[Die(M), Die(D)],
        ..takes(Waits::Complete)
    },
    Scenario {
        name: "complete: the time is over",
        floor: 1137,
        before: &[Lock(O)],
        after: &[Queue(W1)],
        ..of(Waits::CompleteLate)
    },
    Scenario {
        name: "complete: the time is over, and granted",
        floor: 692,
        before: &[Lock(O)],
        after: &[Unlock(O)],
        owns: (true, true),
        changes: 0,
        ..of(Waits::CompleteLate)
    },
    Scenario { name: "cancel: alone", floor: 644, before: &[Lock(O)], ..of(Waits::Cancel) },
    Scenario {
        name: "cancel: granted",
        floor: 554,
        before: &[Lock(O)],
        after: &[QueueInRing(A), Unlock(O)],
        owns: (true, true),
        changes: 0,
        ..of(Waits::Cancel)
    },
    Scenario {
        name: "drop: at the head",
        floor: 785,
        before: &[Lock(O)],
        after: &[Queue(W1)],
        ..of(Waits::Drop)
    },
    Scenario {
        name: "drop: in front of one in a ring",
        floor: 785,
        before: &[Lock(O)],
        after: &[QueueInRing(A)],
        ..of(Waits::Drop)
    },
    Scenario {
        name: "drop: in the middle",
        floor: 795,
        before: &[Lock(O), Queue(W1)],
        after: &[Queue(W2)],
        ..of(Waits::Drop)
    },
    Scenario {
        name: "drop: at the tail",
        floor: 689,
        before: &[Lock(O), Queue(W1)],
        ..of(Waits::Drop)
    },
    Scenario {
        name: "drop: granted",
        floor: 720,
        before: &[Lock(O)],
        after: &[Unlock(O)],
        owns: (true, false),
        ..of(Waits::Drop)
    },
    Scenario {
        name: "drop: granted, two behind",
        floor: 983,
        before: &[Lock(O)],
        after: &[QueueInRing(A), Queue(W1), Unlock(O)],
        owns: (true, false),
        ..of(Waits::Drop)
    },
    Scenario {
        name: "drop: the owner died",
        floor: 683,
        before: &[Lock(D)],
        after: &[Die(D)],
        ..of(Waits::Drop)
    },
    Scenario { name: "release: nobody waits", floor: 111, ..RELEASE },
    Scenario {
        name: "release: somebody queues meanwhile",
        floor: 321,
        interject: Some((When::BeforeOwner, &[Queue(W1)])),
        ..RELEASE
    },
    Scenario { name: "release: hands over", floor: 430, after: &[Queue(W1), Queue(W2)], ..RELEASE },
    Scenario {
        name: "release: hands over to one in a ring",
        floor: 430,
        after: &[QueueInRing(A), Queue(W1)],
        ..RELEASE
    },
    Scenario {
        name: "release: an inherited lock",
        floor: 465,
        before: &[Lock(D), Die(D)],
        after: &[QueueInRing(A)],
        ..RELEASE
    },
    Scenario { name: "any: free", floor: 416, ..takes(Waits::Any) },
    Scenario { name: "any: the first is owned", floor: 1026, before: &[Lock(O)], ..of(Waits::Any) },
    Scenario {
        name: "any: the second is released",
        floor: 2744,
        before: &[Lock(O), LockOther(O)],
        legs: &[Leg { entry: &[Queue(W1), QueueOther(W2)], wake: Wake::By(&[UnlockOther(O)]) }],
        ..of(Waits::Any)
    },
    // What came second passes on.
    Scenario {
        name: "any: both are released",
        floor: 2760,
        before: &[Lock(O), LockOther(O)],
        legs: &[Leg { entry: &[Queue(W1), QueueOther(W2)], wake: Wake::By(&[Unlock(O)]) }],
        ..takes(Waits::Any)
    },
    Scenario {
        name: "any: the owner of both died",
        floor: 3163,
        before: &[Lock(D), LockOther(D)],
        legs: &[Leg { entry: &[Queue(W1), QueueOther(W2)], wake: Wake::By(&[Die(D)]) }],
        ..takes(Waits::Any)
    },
    Scenario {
        name: "any: cancelled",
        floor: 29,
        before: &[Lock(O), LockOther(O)],
        legs: &[Leg { entry: &[Queue(W1), QueueOther(W2)], wake: Wake::By(&[Cancel]) }],
        sparse: true,
        ..of(Waits::AnyCancellable)
    },
];
