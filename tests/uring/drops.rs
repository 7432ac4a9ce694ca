//! Acquisitions that are dropped or cancelled at every point, and rings that are full,
//! overflow, or go away.

use crate::kit::{Got, Puppet, Test, board, board_of, until};
use crate::rings::{Kind, Loop, Over, PLAIN, push, require, start_in_time, with_each};
use heirlock::uring::{AsyncAcquire, Entries, Progress};
use heirlock::{LockOptions, Mutex, Snapshot};
use io_uring::squeue::Flags;
use nix::errno::Errno;
use std::path::Path;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("dropped_before_it_is_submitted_it_disturbs_nobody", before_submission),
    ("dropped_in_flight_it_leaves_the_queue_and_completes_by_itself", in_flight),
    ("dropped_after_it_was_granted_it_passes_the_lock_on", granted),
    ("dropped_when_its_request_is_completed_it_passes_the_lock_on", completed),
    ("dropped_when_its_request_was_cancelled_it_leaves_the_timeout_behind", half_cancelled),
    ("dropped_with_two_waits_in_flight_both_complete_by_themselves", twice_in_flight),
    ("dropped_when_it_is_over_nothing_happens", over),
    ("a_hundred_thousand_cancellations_leave_no_row_behind", hundred_thousand),
    ("a_full_submission_queue_only_delays", full),
    ("an_overflow_of_completions_loses_nothing", overflow),
    ("a_ring_may_be_closed_with_acquisitions_in_flight", closed),
    ("a_segment_with_too_few_rows_says_so_and_recovers", too_few_rows),
];

/// Starts behind an owner, and submits nothing yet.
fn start<'m>(mutex: &'m Mutex<u64>, name: u64) -> (AsyncAcquire<'m, u64>, Entries) {
    match mutex.start(name).expect("start") {
        (acquire, Progress::Again(entries)) => (acquire, entries),
        (_, other) => panic!("it is held: {other:?}"),
    }
}

fn before_submission() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        let held = mutex.lock();
        let (first, of_first) = start(&mutex, 1 << 40);
        let second = ring.start(&mutex);
        let (third, of_third) = start(&mutex, 1 << 41);
        drop(first);
        // In one submission: one that is dropped, one that waits, one that is dropped.
        ring.push(&of_first);
        let (mut fourth, of_fourth) = start(&mutex, 1 << 42);
        ring.push(&of_fourth);
        drop(third);
        ring.push(&of_third);
        ring.submit();
        // Those two complete at once, each with its timeout. (The fourth may, too: it was
        // told that it has another one in front.)
        let dropped = |done: &&io_uring::cqueue::Entry| {
            [1 << 40, 1 << 41].contains(&heirlock::uring::user_data(done))
        };
        while ring.strangers.iter().filter(dropped).count() < 4 {
            ring.turn();
        }
        let strays: Vec<i32> =
            ring.stray_waits().filter(dropped).map(|done| done.result()).collect();
        // Refused: not even that its row's word has changed was looked at.
        assert_eq!(strays, [-(Errno::EINVAL as i32); 2], "{}", kind.name);
        assert_eq!(heirlock::queue(&mutex).map(|queue| queue.len()), Some(2));
        drop(held);
        drop(ring.end_of(second).guard());
        let Ok(Progress::Acquired(guard)) = fourth.cancel() else { panic!("it is its turn") };
        drop(guard);
        ring.until_quiet();
        assert!(!mutex.is_locked());
    });
}

fn in_flight() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut woken = 0;
        const ROUNDS: usize = 10;
        for round in 0..ROUNDS {
            let mut ring = Loop::new(kind);
            let held = mutex.lock();
            let ids: [u64; 3] = std::array::from_fn(|_| ring.start(&mutex));
            ring.until_taken();
            // Head, middle and tail in turn.
            drop(ring.take(ids[round % 3]));
            assert_eq!(heirlock::queue(&mutex).map(|queue| queue.len()), Some(2));
            while ring.strangers.len() < 2 {
                ring.turn();
            }
            woken += ring.stray_waits().filter(|done| done.result() >= 0).count();
            drop(held);
            let left = ids.iter().filter(|id| **id != ids[round % 3]);
            for id in left {
                drop(ring.end_of(*id).guard());
            }
            ring.until_quiet();
        }
        // Otherwise its own timeout, the heartbeat, would end it.
        assert!(woken >= ROUNDS / 2, "{}: {woken} of {ROUNDS} were woken", kind.name);
        assert!(!mutex.is_locked());
    });
}

fn granted() {
    with_each(|kind| {
        let (path, segment) = board();
        let lock = &segment.locks[0];
        let mut next = Puppet::spawn(&path);
        let mut ring = Loop::new(kind);
        for ahead in 1..4 {
            let held = lock.lock();
            let ids: Vec<u64> = (0..ahead).map(|_| ring.start(lock)).collect();
            let row = ring.get(ids[0]).participant();
            next.queue(&segment, 0);
            drop(held);
            assert_eq!(heirlock::owner(lock), row, "it is granted");
            ids.into_iter().for_each(|id| drop(ring.take(id)));
            assert_eq!(next.got(), Got::Lock);
            assert_eq!(heirlock::queue(lock), Some(vec![]));
            next.unlock(0);
            ring.until_quiet();
        }
        // With nobody behind it.
        let held = lock.lock();
        let id = ring.start(lock);
        drop(held);
        drop(ring.take(id));
        assert!(!lock.is_locked());
        assert!(lock.try_lock().is_some());
        ring.until_quiet();
    });
}

/// What has completed it, and its timeout, nobody has looked at.
fn completed() {
    with_each(|kind| {
        let (path, segment) = board();
        let lock = &segment.locks[0];
        let mut next = Puppet::spawn(&path);
        let mut ring = Loop::new(kind);
        for cancel in [false, true] {
            let held = lock.lock();
            let id = ring.start(lock);
            let row = ring.get(id).participant();
            next.queue(&segment, 0);
            ring.until_taken();
            drop(held);
            ring.until_completed(2);
            assert_eq!(heirlock::owner(lock), row, "{}: it is granted", kind.name);
            let mut acquire = ring.take(id);
            if cancel {
                let Ok(Progress::Acquired(guard)) = acquire.cancel() else { panic!("it came") };
                drop(guard);
            }
            drop(acquire);
            assert_eq!(next.got(), Got::Lock, "{}", kind.name);
            next.unlock(0);
            ring.until_quiet();
        }
        assert_eq!(ring.strangers.len(), 4, "{}", kind.name);
    });
}

/// Who cancelled it its timeout says, which nobody has looked at.
fn half_cancelled() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        for end in ["drop", "cancel", "look"] {
            let held = mutex.lock();
            let (id, behind) = (ring.start(&mutex), ring.start(&mutex));
            ring.until_taken();
            ring.cancel_request(id, Flags::empty());
            let mut done = Vec::new();
            let wait = loop {
                done.extend(ring.completed(1));
                if let Some(at) = done.iter().position(|done| done.user_data() == id) {
                    break done.remove(at);
                }
            };
            ring.complete(&wait);
            // It may have been the timeout, and then it would wait again.
            assert!(!ring.is_over(id), "{}", kind.name);
            assert_eq!(heirlock::queue(&mutex).map(|queue| queue.len()), Some(2));
            match end {
                "drop" => drop(ring.take(id)),
                "cancel" => assert!(matches!(ring.take(id).cancel(), Ok(Progress::Cancelled))),
                _ => {
                    // Another wait, which did not end as the first one did.
                    let Ok(Progress::Again(entries)) = ring.get(id).look() else { panic!("came") };
                    ring.push(&entries);
                }
            }
            for done in done {
                ring.complete(&done);
            }
            drop(held);
            if end == "look" {
                drop(ring.end_of(id).guard());
            }
            drop(ring.end_of(behind).guard());
            ring.until_quiet();
            assert_eq!(heirlock::queue(&mutex), Some(vec![]), "{}, {end}", kind.name);
        }
    });
}

/// It has looked before the first was completed.
fn twice_in_flight() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        for end in ["drop", "cancel", "grant"] {
            let mut ring = Loop::new(kind);
            let held = mutex.lock();
            let id = ring.start(&mutex);
            ring.until_taken();
            let row = ring.get(id).participant();
            let Ok(Progress::Again(entries)) = ring.get(id).look() else { panic!("it is held") };
            ring.push(&entries);
            ring.until_taken();
            assert_eq!((ring.get(id).participant(), ring.in_flight), (row, 4), "{}", kind.name);
            match end {
                "drop" => drop(ring.take(id)),
                "cancel" => assert!(matches!(ring.take(id).cancel(), Ok(Progress::Cancelled))),
                _ => {}
            }
            let waits = end == "grant";
            assert_eq!(heirlock::queue(&mutex).map(|queue| queue.len()), Some(waits.into()));
            drop(held);
            if waits {
                drop(ring.end_of(id).guard());
            }
            ring.until_quiet();
            assert!(waits || ring.strangers.len() == 4, "{}, {end}", kind.name);
        }
        assert!(!mutex.is_locked());
    });
}

fn over() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        let (acquire, progress) = mutex.start(1).expect("start");
        let Progress::Acquired(guard) = progress else { panic!("it is free") };
        assert_eq!(acquire.participant(), None);
        drop(acquire);
        assert!(mutex.is_locked(), "the guard holds it");
        let options = LockOptions::new().timeout(Duration::from_millis(1));
        let (mut late, progress) = start_in_time(&mutex, &options, 2);
        let Progress::Again(entries) = progress else { panic!("it is held") };
        ring.push(&entries);
        while !matches!(ring.step(&mut late), Progress::TimedOut) {}
        assert!(matches!(late.cancel(), Ok(Progress::Cancelled)));
        drop(late);
        ring.until_quiet();
        drop(guard);
        assert!(!mutex.is_locked());
        assert_eq!(heirlock::queue(&mutex), Some(vec![]));
    });
}

fn rows(path: &Path) -> (u32, usize) {
    let snapshot = Snapshot::read(path, &[]).expect("a snapshot");
    let alive = snapshot.participants.iter().filter(|view| view.alive).count();
    (snapshot.rows_used, alive)
}

fn hundred_thousand() {
    const CANCELS: usize = 100_000;
    const CAPACITY: u32 = 16;
    require();
    let (path, segment) = board_of(CAPACITY);
    let lock = &segment.locks[0];
    let mut ring = Loop::of(PLAIN.ring(256).expect("a ring"));
    let mut held = lock.lock();
    let (mut cancelled, mut submitted, mut dropped, mut came) = (0, 0, 0, 0);
    for round in 0.. {
        if cancelled >= CANCELS {
            break;
        }
        // A few in flight at a time; cancelled and dropped in an order that changes.
        let mut some: Vec<_> = (0..8).map(|at| start(lock, 8 * round + at)).collect();
        for (at, (_, entries)) in some.iter().enumerate() {
            if (cancelled + at) % 8 < 3 {
                ring.push(entries);
                submitted += 1;
            }
        }
        ring.submit();
        if round % 100 == 0 {
            // Granted before it was told.
            drop(held);
            came += 1;
            let (mut head, _) = some.remove(0);
            let Ok(Progress::Acquired(guard)) = head.cancel() else { panic!("it is its turn") };
            held = guard;
        }
        while !some.is_empty() {
            let (mut acquire, _) = some.swap_remove(cancelled % some.len());
            if cancelled % 5 == 0 {
                drop(acquire);
                dropped += 1;
            } else {
                assert!(matches!(acquire.cancel(), Ok(Progress::Cancelled)));
            }
            cancelled += 1;
        }
        ring.look();
        if cancelled % 10_000 < 8 {
            let (used, alive) = rows(&path);
            assert!(used <= CAPACITY && alive <= 12, "after {cancelled}: {used}, {alive} alive");
        }
    }
    eprintln!(
        "{cancelled} cancelled ({dropped} by a drop, {submitted} had been submitted), {came} came"
    );
    assert!(submitted > CANCELS / 4 && dropped > CANCELS / 10 && came > 90);
    assert_eq!(heirlock::queue(lock), Some(vec![]));
    // Each completes by itself.
    ring.until_quiet();
    let mut other = Puppet::spawn(&path);
    other.queue(&segment, 0);
    drop(held);
    assert_eq!(other.got(), Got::Lock);
    let id = ring.start(lock);
    other.unlock(0);
    drop(ring.end_of(id).guard());
    drop((other, ring));
    drop(segment);
    assert_eq!(rows(&path).1, 0, "the process has left with all of its rows");
}

fn full() {
    with_each(|kind| {
        let locks: [Mutex<u64>; 6] = std::array::from_fn(|_| Mutex::new(0));
        let held: Vec<_> = locks.iter().map(Mutex::lock).collect();
        let mut ring = kind.ring(4).expect("a ring");
        let mut waiting: Vec<_> =
            locks.iter().enumerate().map(|(at, lock)| start(lock, at as u64)).collect();
        // Two are as many as fit; the third is refused, both of its requests.
        let mut pushed = 0;
        for (_, entries) in &waiting {
            if !push(&mut ring, entries) {
                break;
            }
            pushed += 1;
        }
        // (The kernel's thread may have taken some out meanwhile.)
        assert!(pushed == 2 || kind.name == "SQPOLL" && pushed >= 2, "{}: {pushed}", kind.name);
        // Their turns come meanwhile: also of those of which nothing is submitted.
        drop(held);
        let mut ring = Loop::of(ring);
        ring.in_flight = 2 * pushed;
        for (_, entries) in &waiting[pushed..] {
            ring.push(entries);
        }
        ring.submit();
        while locks.iter().any(Mutex::is_locked) {
            for done in ring.completed(1) {
                ring.in_flight -= 1;
                let name = heirlock::uring::user_data(&done) as usize;
                match waiting[name].0.complete(&done).expect("go") {
                    Progress::Acquired(mut guard) => *guard += 1,
                    Progress::Again(entries) => ring.push(&entries),
                    _ => {}
                }
            }
        }
        assert!(locks.iter().all(|lock| *lock.lock() == 1), "{}", kind.name);
        drop(waiting);
        ring.until_quiet();
    });
}

fn overflow() {
    const MANY: usize = 40;
    with_each(|kind| {
        let locks: [Mutex<u64>; MANY] = std::array::from_fn(|_| Mutex::new(0));
        let held: Vec<_> = locks.iter().map(Mutex::lock).collect();
        // Room for 8 completions, of 80.
        let mut ring = Loop::of(kind.ring(4).expect("a ring"));
        let mut ids: Vec<u64> = locks.iter().map(|lock| ring.start(lock)).collect();
        assert_eq!(ring.in_flight, 2 * MANY);
        drop(held);
        for _ in 0..MANY {
            let (id, over) = ring.next();
            *over.guard() += 1;
            ids.retain(|left| *left != id);
        }
        assert!(ids.is_empty());
        assert!(locks.iter().all(|lock| *lock.lock() == 1), "{}", kind.name);
        ring.until_quiet();
    });
}

fn closed() {
    with_each(|kind| {
        let (path, segment) = board();
        let [first, second, ..] = &segment.locks;
        let mut other = Puppet::spawn(&path);
        let close = |kind: Kind| {
            let mut ring = Loop::new(kind);
            let ids = [first, second, first].map(|lock| ring.start(lock));
            let acquisitions = ids.map(|id| ring.take(id));
            drop(ring);
            acquisitions
        };
        let (held, also) = (first.lock(), second.lock());
        let [mut a, mut b, c] = close(kind);
        // They stay in their queues, and leave by a drop or a cancellation.
        assert_eq!(heirlock::queue(first).map(|queue| queue.len()), Some(2));
        assert!(matches!(a.cancel(), Ok(Progress::Cancelled)));
        assert_eq!(heirlock::queue(first).map(|queue| queue.len()), Some(1));
        drop(also);
        let Ok(Progress::Acquired(guard)) = b.cancel() else { panic!("it was granted") };
        drop((guard, c));
        assert_eq!(heirlock::queue(first), Some(vec![]));
        let also = second.lock();
        // Granted, and then dropped.
        let acquisitions = close(kind);
        other.queue(&segment, 0);
        drop((held, also));
        drop(acquisitions);
        assert_eq!(other.got(), Got::Lock);
        other.unlock(0);
        assert!(!first.is_locked() && !second.is_locked());
    });
}

fn too_few_rows() {
    require();
    let (_path, segment) = board_of(4);
    let lock = &segment.locks[0];
    let mut ring = Loop::new(PLAIN);
    let held = lock.lock();
    let ids: [u64; 3] = std::array::from_fn(|_| ring.start(lock));
    let error = lock.start(9).map(drop).expect_err("four rows are all");
    assert!(error.to_string().contains("all 4 rows"), "{error}");
    drop(ring.take(ids[1]));
    let again = ring.start(lock);
    drop(held);
    for id in [ids[0], ids[2], again] {
        match ring.end_of(id) {
            Over::Acquired(guard) => drop(guard),
            other => panic!("{other:?}"),
        }
    }
    until("it is free", || !lock.is_locked());
    ring.until_quiet();
}
