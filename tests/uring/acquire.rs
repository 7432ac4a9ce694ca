//! Acquisitions in a ring: how they begin, wait and end, in rings of every kind.

use crate::actor::{Actor, finish};
use crate::kit::{Got, Puppet, Test, board, until};
use crate::rings::{Loop, Over, PLAIN, require, with_each};
use heirlock::uring::{Progress, TIMEOUT};
use heirlock::{CancelToken, LockError, LockOptions, Mutex};
use io_uring::squeue::Flags;
use io_uring::types::CancelBuilder;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("a_free_lock_is_acquired_at_once_and_nothing_submitted", at_once),
    ("a_thread_hands_over_to_a_ring", from_a_thread),
    ("another_process_hands_over_to_a_ring", from_a_process),
    ("one_acquisition_hands_over_to_another_of_the_same_thread", from_itself),
    ("many_in_flight_for_one_lock_are_served_in_their_order", many_for_one),
    ("many_in_flight_for_many_locks_each_get_theirs", many_for_many),
    ("rings_of_two_processes_and_blocking_threads_stand_in_one_queue", mixed),
    ("a_wait_in_a_ring_ends_when_its_time_is_over", timed_out),
    ("a_timeout_in_a_ring_that_races_with_the_hand_over_loses_no_lock", timeout_race),
    ("a_token_ends_all_waits_in_a_ring_that_have_it", cancelled_by_token),
    ("a_token_that_is_cancelled_already_refuses_a_start", cancelled_before),
    ("cancel_leaves_the_queue_and_the_request_completes_by_itself", cancelled),
    ("cancelling_the_request_gives_up_the_place_in_the_queue", request_cancelled),
    ("wait_against_wake_against_cancel", wake_against_cancel),
    ("one_wake_ends_one_wait", one_wake),
    ("a_heartbeat_looks_and_keeps_the_place_in_the_queue", heartbeat),
    ("a_completion_that_comes_twice_or_late_does_no_harm", twice),
    ("bit_63_of_user_data_is_refused", reserved_bit),
];

fn at_once() {
    with_each(|kind| {
        let mutex = Mutex::new(1);
        let mut ring = Loop::new(kind);
        let id = ring.start(&mutex);
        assert!(ring.is_over(id));
        assert_eq!(ring.in_flight, 0);
        let mut guard = ring.end_of(id).guard();
        *guard += 1;
        assert!(mutex.is_locked());
        drop(guard);
        assert_eq!(*mutex.try_lock().expect("it is free"), 2);
        assert_eq!(heirlock::queue(&mutex), Some(vec![]));
    });
}

fn from_a_thread() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let (held, has_it) = mpsc::channel();
        let (release, may_release) = mpsc::channel();
        thread::scope(|scope| {
            let mutex = &mutex;
            scope.spawn(move || {
                for _ in 0..20 {
                    let mut guard = mutex.lock();
                    held.send(()).expect("tell");
                    may_release.recv().expect("be told");
                    *guard += 1;
                }
            });
            let mut ring = Loop::new(kind);
            for round in 1..=20 {
                has_it.recv().expect("be told");
                let id = ring.start(mutex);
                assert!(!ring.is_over(id), "{}", kind.name);
                release.send(()).expect("tell");
                assert_eq!(*ring.end_of(id).guard(), round);
                ring.until_quiet();
            }
        });
    });
}

fn from_a_process() {
    with_each(|kind| {
        let (path, segment) = board();
        let mut owner = Puppet::spawn(&path);
        let mut ring = Loop::new(kind);
        for _ in 0..10 {
            assert_eq!(owner.lock(0), Got::Lock);
            let id = ring.start(&segment.locks[0]);
            assert!(!ring.is_over(id));
            owner.unlock(0);
            let guard = ring.end_of(id).guard();
            assert_eq!(owner.try_lock(0), Got::Nothing);
            // And back.
            owner.queue(&segment, 0);
            drop(guard);
            assert_eq!(owner.got(), Got::Lock);
            owner.unlock(0);
        }
    });
}

fn from_itself() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        let first = ring.start(&mutex);
        let mut guard = ring.end_of(first).guard();
        for _ in 0..50 {
            let next = ring.start(&mutex);
            assert!(!ring.is_over(next), "the thread holds it");
            *guard += 1;
            drop(guard);
            guard = ring.end_of(next).guard();
        }
        assert_eq!(*guard, 50);
        drop(guard);
        ring.until_quiet();
        assert!(!mutex.is_locked());
    });
}

fn many_for_one() {
    const MANY: usize = 50;
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        let held = mutex.lock();
        let ids: Vec<u64> = (0..MANY).map(|_| ring.start(&mutex)).collect();
        let rows: Vec<_> = ids.iter().map(|id| ring.get(*id).participant().expect("one")).collect();
        assert_eq!(heirlock::queue(&mutex).as_ref(), Some(&rows));
        drop(held);
        for (nth, (id, row)) in ids.iter().zip(&rows).enumerate() {
            let (next, over) = ring.next();
            assert_eq!(next, *id, "{}", kind.name);
            let mut guard = over.guard();
            assert_eq!(heirlock::owner(&mutex), Some(*row));
            assert_eq!(*guard, nth as u64);
            *guard += 1;
        }
        assert_eq!(*mutex.lock(), MANY as u64);
        ring.until_quiet();
        assert_eq!(ring.count(), 0);
    });
}

fn many_for_many() {
    with_each(|kind| {
        let locks: [Mutex<u64>; 32] = std::array::from_fn(|at| Mutex::new(at as u64));
        let mut ring = Loop::new(kind);
        let mut held: Vec<_> = locks.iter().map(|lock| Some(lock.lock())).collect();
        let ids: Vec<u64> = locks.iter().map(|lock| ring.start(lock)).collect();
        // 13 is prime to 32: each once.
        for step in 0..locks.len() {
            let at = step * 13 % locks.len();
            held[at] = None;
            let (id, over) = ring.next();
            assert_eq!((id, *over.guard()), (ids[at], at as u64), "{}", kind.name);
        }
        ring.until_quiet();
        assert!(locks.iter().all(|lock| !lock.is_locked()));
    });
}

/// Who waits, in the order in which they come: the actors' and this process's rings,
/// blocking processes, and a blocking thread.
fn mixed() {
    with_each(|kind| {
        let (path, segment) = board();
        let lock = &segment.locks[0];
        let (mut first, mut second) = (Actor::spawn(&path, kind), Actor::spawn(&path, kind));
        let mut blocking = [Puppet::spawn(&path), Puppet::spawn(&path)];
        let mut ring = Loop::new(kind);
        for _ in 0..3 {
            let held = lock.lock();
            let mut order = Vec::new();
            order.push(first.begin("start 0 1"));
            blocking[0].queue(&segment, 0);
            order.push(blocking[0].participant);
            order.push(second.begin("start 0 1"));
            order.push(first.begin("start 0 2"));
            let own = ring.start(lock);
            order.push(ring.get(own).participant().expect("it waits"));
            blocking[1].queue(&segment, 0);
            order.push(blocking[1].participant);
            order.push(second.begin("start 0 2"));
            thread::scope(|scope| {
                let thread = scope.spawn(|| {
                    let guard = lock.lock();
                    let owner = heirlock::owner(lock);
                    drop(guard);
                    owner
                });
                until("a thread is in the queue", || {
                    heirlock::queue(lock).is_some_and(|queue| queue.len() == order.len() + 1)
                });
                let queue = heirlock::queue(lock).expect("it stands still");
                assert_eq!(queue[..order.len()], order, "{}", kind.name);
                let mut left = queue.clone();
                let mut next = || {
                    let owner = left.remove(0);
                    until("it is handed over", || heirlock::owner(lock) == Some(owner));
                    assert_eq!(heirlock::queue(lock).as_ref(), Some(&left));
                };
                drop(held);
                next();
                finish(&mut first, 1);
                next();
                assert_eq!(blocking[0].got(), Got::Lock);
                blocking[0].unlock(0);
                next();
                finish(&mut second, 1);
                next();
                finish(&mut first, 2);
                next();
                drop(ring.end_of(own).guard());
                next();
                assert_eq!(blocking[1].got(), Got::Lock);
                blocking[1].unlock(0);
                next();
                finish(&mut second, 2);
                assert_eq!(thread.join().expect("join"), Some(queue[7]));
            });
        }
        assert!(!lock.is_locked());
    });
}

fn timed_out() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        let held = mutex.lock();
        for options in [
            LockOptions::new().timeout(Duration::ZERO),
            LockOptions::new().deadline(Instant::now()),
        ] {
            let error = mutex.start_with(&options, 1).map(drop).expect_err("the time is over");
            assert!(matches!(error, LockError::TimedOut), "{error}");
        }
        let began = Instant::now();
        let time = Duration::from_millis(30);
        let id = ring.start_with(&mutex, &LockOptions::new().timeout(time));
        // One that waits for longer than a heartbeat, and one without end, behind it.
        let long = ring.start_with(&mutex, &LockOptions::new().timeout(40 * time));
        let patient = ring.start(&mutex);
        assert!(matches!(ring.end_of(id), Over::TimedOut));
        assert!(began.elapsed() >= time);
        let left = 2 - usize::from(ring.is_over(long));
        assert_eq!(heirlock::queue(&mutex).map(|queue| queue.len()), Some(left));
        assert!(matches!(ring.end_of(long), Over::TimedOut));
        assert!(began.elapsed() >= 40 * time);
        drop(held);
        drop(ring.end_of(patient).guard());
        // Where it is free no time is needed.
        let id = ring.start_with(&mutex, &LockOptions::new().timeout(Duration::ZERO));
        drop(ring.end_of(id).guard());
        ring.until_quiet();
    });
}

fn timeout_race() {
    const ROUNDS: u32 = 300;
    let mutex = Mutex::new(0);
    with_each(|kind| {
        let mut ring = Loop::new(kind);
        let (release, may_release) = mpsc::channel::<Duration>();
        let (held, has_it) = mpsc::channel();
        let mutex = &mutex;
        let outcomes = thread::scope(|scope| {
            scope.spawn(move || {
                while let Ok(pause) = may_release.recv() {
                    let guard = mutex.lock();
                    held.send(()).expect("tell");
                    thread::sleep(pause);
                    drop(guard);
                }
            });
            let mut outcomes = (0, 0);
            for round in 0..ROUNDS {
                // Before, behind, and about when the time is over.
                let pause = [1, 1000, 300, 350][round as usize % 4];
                let time = [1000, 1, 300, 300][round as usize % 4];
                release.send(Duration::from_micros(pause)).expect("tell");
                has_it.recv().expect("be told");
                let options = LockOptions::new().timeout(Duration::from_micros(time));
                // A slow machine may have the time be over already.
                let begun = match mutex.start_with(&options, round.into()) {
                    Ok(begun) => begun,
                    Err(LockError::TimedOut) => continue,
                    Err(error) => panic!("{error}"),
                };
                match ring.run(begun) {
                    Over::Acquired(_) => outcomes.0 += 1,
                    Over::TimedOut => outcomes.1 += 1,
                    Over::Cancelled => panic!("nobody cancels"),
                }
                // Whoever had it has released it, and nobody waits.
                until("it is free", || !mutex.is_locked());
                assert_eq!(heirlock::queue(mutex), Some(vec![]));
            }
            drop(release);
            outcomes
        });
        eprintln!("{}: {} came in time, {} were late", kind.name, outcomes.0, outcomes.1);
        assert!(outcomes.0 > 0 && outcomes.1 > 0, "{}: {outcomes:?}", kind.name);
        ring.until_quiet();
    });
}

fn cancelled_by_token() {
    with_each(|kind| {
        let (path, segment) = board();
        let mut other = Puppet::spawn(&path);
        let lock = &segment.locks[0];
        let mut ring = Loop::new(kind);
        let held = lock.lock();
        let [mine, theirs, ..] = &segment.tokens;
        let (with, without): (Vec<u64>, Vec<u64>) = (0..8)
            .map(|_| {
                let options = LockOptions::new();
                (
                    ring.start_with(lock, &options.cancel(mine)),
                    ring.start_with(lock, &options.cancel(theirs)),
                )
            })
            .unzip();
        // By another process; the others stay.
        assert_eq!(other.tell("cancel 0"), "ok");
        for _ in &with {
            let (id, over) = ring.next();
            assert!(with.contains(&id) && matches!(over, Over::Cancelled), "{}", kind.name);
        }
        assert_eq!(heirlock::queue(lock).map(|queue| queue.len()), Some(without.len()));
        assert_eq!(ring.count(), without.len());
        theirs.canceller().cancel();
        // A reset does not revive them.
        theirs.reset();
        for _ in &without {
            assert!(matches!(ring.next().1, Over::Cancelled), "{}", kind.name);
        }
        drop(held);
        ring.until_quiet();
        assert!(!lock.is_locked());
    });
}

fn cancelled_before() {
    require();
    let token = CancelToken::new();
    token.canceller().cancel();
    let mutex = Mutex::new(0);
    let error = mutex.start_with(&LockOptions::new().cancel(&token), 1).map(drop).expect_err("no");
    assert!(matches!(error, LockError::Cancelled), "{error}");
    assert!(!mutex.is_locked());
}

fn cancelled() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        let held = mutex.lock();
        // The head, one in the middle, and the tail.
        let ids: [u64; 5] = std::array::from_fn(|_| ring.start(&mutex));
        for at in [0, 2, 4] {
            assert!(matches!(ring.get(ids[at]).cancel(), Ok(Progress::Cancelled)));
            assert!(matches!(ring.get(ids[at]).cancel(), Ok(Progress::Cancelled)), "it is over");
            assert_eq!(ring.get(ids[at]).participant(), None);
        }
        let left = [ring.get(ids[1]).participant(), ring.get(ids[3]).participant()];
        assert_eq!(heirlock::queue(&mutex), Some(left.into_iter().flatten().collect()));
        // What is completed for one that is over is ignored.
        while ring.in_flight > 4 {
            ring.turn();
        }
        assert_eq!(ring.count(), 5);
        drop(held);
        for at in [1, 3] {
            drop(ring.end_of(ids[at]).guard());
        }
        // In the last moment: the lock came before it was told.
        let held = mutex.lock();
        let id = ring.start(&mutex);
        drop(held);
        let Ok(Progress::Acquired(guard)) = ring.get(id).cancel() else {
            panic!("it is the owner");
        };
        drop(guard);
        ring.until_quiet();
        assert!(!mutex.is_locked());
    });
}

fn request_cancelled() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        let held = mutex.lock();
        let ids: [u64; 4] = std::array::from_fn(|_| ring.start(&mutex));
        // By a call, and by a request; again if it had just ended, to look.
        while !ring.is_over(ids[3]) {
            ring.until_taken();
            let request = CancelBuilder::user_data(ids[3]);
            if let Err(error) = ring.ring.submitter().register_sync_cancel(None, request) {
                assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
            }
            ring.look();
        }
        while !ring.is_over(ids[1]) {
            ring.cancel_request(ids[1], Flags::empty());
            ring.turn();
        }
        for at in [3, 1] {
            assert!(matches!(ring.end_of(ids[at]), Over::Cancelled), "{}", kind.name);
        }
        assert_eq!(heirlock::queue(&mutex).map(|queue| queue.len()), Some(2));
        drop(held);
        for at in [0, 2] {
            drop(ring.end_of(ids[at]).guard());
        }
        // One that was granted, and whose wait may have been over before: it has the lock.
        let held = mutex.lock();
        let id = ring.start(&mutex);
        drop(held);
        ring.cancel_request(id, Flags::empty());
        drop(ring.end_of(id).guard());
        ring.until_quiet();
    });
}

/// As liburing's test of that name: each wait is woken and cancelled at about the same
/// time, and either may be executed by a thread of the kernel's. Who came first is the
/// later one the next time.
fn wake_against_cancel() {
    const ROUNDS: usize = 300;
    /// How often each has to come first, at the least.
    const FLOOR: u64 = 20;
    // Not asleep, which takes 50 microseconds at the least.
    let spin = |micros: i64| {
        let (start, time) = (Instant::now(), Duration::from_micros(micros.max(0) as u64));
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
    };
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        let (release, may_release) = mpsc::channel();
        let (held, has_it) = mpsc::channel();
        let (mut came, mut cancelled) = (0, 0);
        thread::scope(|scope| {
            let mutex = &mutex;
            scope.spawn(move || {
                loop {
                    let guard = mutex.lock();
                    held.send(()).expect("tell");
                    let Ok(pause) = may_release.recv() else { return };
                    spin(pause);
                    drop(guard);
                }
            });
            // By so many microseconds the release is later, or earlier if less than 0.
            let (mut lag, mut step) = (0i64, 0);
            for round in 0.. {
                if round >= ROUNDS && came >= FLOOR && cancelled >= FLOOR {
                    break;
                }
                has_it.recv().expect("be told");
                ring.flags = [Flags::ASYNC, Flags::empty(), Flags::empty()][round % 3];
                let (mut acquire, mut progress) = mutex.start(7).expect("start");
                let mut pushed = false;
                let over = loop {
                    match progress {
                        Progress::Again(entries) => {
                            ring.push(&entries);
                            ring.submit();
                            if !pushed {
                                pushed = true;
                                release.send(lag).expect("tell");
                                spin(-lag);
                                ring.cancel_request(7, [Flags::ASYNC, Flags::empty()][round % 2]);
                            }
                        }
                        Progress::Pending => {}
                        Progress::Acquired(guard) => break Over::Acquired(guard),
                        Progress::Cancelled => break Over::Cancelled,
                        Progress::TimedOut => panic!("it has no time"),
                    }
                    progress = ring.step(&mut acquire);
                };
                let by = if let Over::Acquired(mut guard) = over {
                    *guard += 1;
                    came += 1;
                    1
                } else {
                    cancelled += 1;
                    -1
                };
                // The more the longer it has been the same.
                step = if by * step > 0 { (2 * step).clamp(-500, 500) } else { by };
                lag += step;
                ring.until_quiet();
            }
            has_it.recv().expect("be told");
            drop(release);
        });
        eprintln!("{}: {came} came, {cancelled} were cancelled", kind.name);
        assert_eq!(*mutex.lock(), came);
    });
}

fn one_wake() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        let held = mutex.lock();
        let (first, second) = (ring.start(&mutex), ring.start(&mutex));
        ring.until_taken();
        drop(held);
        let guard = ring.end_of(first).guard();
        for _ in 0..10 {
            ring.look();
            assert!(!ring.is_over(second), "{}", kind.name);
        }
        // What ends by its timeout, the heartbeat, was not woken.
        assert!(ring.woken <= 1, "{}: both were woken", kind.name);
        drop(guard);
        drop(ring.end_of(second).guard());
        ring.until_quiet();
    });
}

fn heartbeat() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        let held = mutex.lock();
        let began = Instant::now();
        let ids = [ring.start(&mutex), ring.start(&mutex)];
        let row = |ring: &mut Loop, at: usize| ring.get(ids[at]).participant();
        let rows = [row(&mut ring, 0), row(&mut ring, 1)];
        // Nothing happens but that.
        while ring.looks < 4 {
            ring.turn();
        }
        assert!(began.elapsed() > Duration::from_millis(900), "{}", kind.name);
        assert_eq!([row(&mut ring, 0), row(&mut ring, 1)], rows);
        assert_eq!(heirlock::queue(&mutex), Some(rows.into_iter().flatten().collect()));
        drop(held);
        for id in ids {
            drop(ring.end_of(id).guard());
        }
        ring.until_quiet();
    });
}

fn twice() {
    require();
    let mutex = Mutex::new(0);
    let mut ring = Loop::new(PLAIN);
    let held = mutex.lock();
    let (mut acquire, progress) = mutex.start(3).expect("start");
    let Progress::Again(entries) = progress else { panic!("it is held") };
    ring.push(&entries);
    ring.submit();
    let row = acquire.participant();
    // Its heartbeat: once, and again when it waits anew.
    let mut seen = Vec::new();
    while seen.len() < 2 {
        ring.ring.submit_and_wait(1).expect("wait");
        seen.extend(ring.ring.completion());
    }
    ring.in_flight -= 2;
    let mut again = 0;
    for done in seen.iter().chain(&seen).chain(&seen) {
        match acquire.complete(done).expect("complete") {
            Progress::Again(entries) => {
                again += 1;
                ring.push(&entries);
            }
            Progress::Pending => {}
            other => panic!("it is held: {other:?}"),
        }
        assert_eq!(acquire.participant(), row, "it keeps its place");
    }
    assert!(again >= 1);
    ring.submit();
    drop(held);
    let guard = loop {
        if let Progress::Acquired(guard) = ring.step(&mut acquire) {
            break guard;
        }
    };
    for done in &seen {
        assert!(matches!(acquire.complete(done), Ok(Progress::Pending)), "it is over");
    }
    assert_eq!(heirlock::owner(&mutex), row);
    drop(guard);
    ring.until_quiet();
}

fn reserved_bit() {
    require();
    let mutex = Mutex::new(0);
    let message = crate::kit::panic_of(|| mutex.start(TIMEOUT | 1).map(drop));
    assert!(message.contains("bit 63"), "{message}");
    assert!(!mutex.is_locked());
}
