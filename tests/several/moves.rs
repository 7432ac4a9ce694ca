//! Futures, and guards of futures, of one process.

use crate::Task;
use crate::kit::{HANG, Test, until};
use heirlock::future::AsyncMutexGuard;
use heirlock::{CancelToken, LockError, LockOptions, Mutex, MutexGuard, Segment, owner, queue};
use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_guard_outlives_the_thread_that_acquired_it_and_may_be_dropped_elsewhere",
        a_guard_outlives_its_thread,
    ),
    ("a_future_that_is_dropped_leaves_the_queue", dropped_while_pending),
    ("a_lock_that_was_granted_to_a_dropped_future_passes_on", dropped_when_granted),
    ("a_future_ends_in_time", timed),
    ("a_token_ends_a_future", cancelled),
    ("a_thread_may_have_several_futures_of_one_lock", several_of_one_lock),
    ("300_futures_of_300_locks_have_one_helper", || three_hundred(300)),
    ("300_futures_of_one_lock_are_served_in_order", || three_hundred(1)),
];

fn a_guard_outlives_its_thread() {
    let lock: Segment<Mutex<u64>> = Segment::anonymous().expect("a segment");
    let held = lock.lock();
    let mut guard = thread::scope(|scope| {
        let acquires = scope.spawn(|| pollster::block_on(lock.lock_async()));
        until("it waits", || queue(&lock).is_some_and(|all| all.len() == 1));
        drop(held);
        acquires.join().expect("it acquires")
    });
    let me = owner(&*lock).expect("somebody holds it");
    assert!(heirlock::is_alive(&lock, me), "the owner ended with its thread");
    thread::scope(|scope| {
        let others = scope.spawn(|| {
            // Longer than a heartbeat: whoever were dead would be found out.
            let soon = Duration::from_millis(1200);
            lock.try_lock().is_none() && lock.try_lock_for(soon).is_none()
        });
        assert!(others.join().expect("it tries"), "a lock that is held was had");
        let behind = scope.spawn(|| lock.try_lock_for(HANG).map(|guard| (*guard, dead(&guard))));
        until("it waits", || queue(&lock).is_some_and(|all| all.len() == 1));
        *guard += 1;
        scope.spawn(move || drop(guard)).join().expect("it is dropped");
        let got = behind.join().expect("it waits");
        assert_eq!(got, Some((1, false)));
    });
    assert!(!lock.is_locked());
}

fn dead(guard: &MutexGuard<u64>) -> bool {
    MutexGuard::inherited(guard).is_some()
}

fn length(lock: &Mutex<u64>) -> usize {
    let mut length = None;
    until("the queue stands still", || {
        length = queue(lock).map(|all| all.len());
        length.is_some()
    });
    length.expect("it was waited for")
}

fn dropped_while_pending() {
    let lock = Mutex::new(0);
    let held = lock.lock();
    let mut tasks: Vec<_> = (0..5).map(|_| Task::waiting(lock.lock_async())).collect();
    let mut order = queue(&lock).expect("it stands still");
    assert_eq!(order.len(), 5);
    // The tail, one in the middle, and the head.
    for at in [4, 2, 0] {
        drop(tasks.remove(at));
        order.remove(at);
        assert_eq!(queue(&lock).as_ref(), Some(&order), "after the {at}th");
    }
    // One that was never polled was never there.
    drop(lock.lock_async());
    assert_eq!(length(&lock), 2);
    drop(held);
    for task in tasks {
        drop(task.finish());
    }
    assert!(!lock.is_locked());
}

fn dropped_when_granted() {
    let lock = Mutex::new(0);
    for round in 0..50 {
        let held = lock.lock();
        let granted = Task::waiting(lock.lock_async());
        let next = Task::waiting(lock.lock_async());
        let order = queue(&lock).expect("it stands still");
        drop(held);
        assert_eq!(owner(&lock), Some(order[0]), "it was handed over");
        drop(granted);
        assert_eq!(owner(&lock), Some(order[1]), "it passes on, in round {round}");
        let guard = next.finish();
        assert!(AsyncMutexGuard::inherited(&guard).is_none(), "nobody died");
    }
    assert!(!lock.is_locked());
}

fn timed() {
    let lock = Mutex::new(0);
    let held = lock.lock();
    let (start, timeout) = (Instant::now(), Duration::from_millis(60));
    let late = loop {
        let mut task = Task::new(lock.lock_async_with(&LockOptions::new().timeout(timeout)));
        match task.poll() {
            Poll::Pending => break task,
            // A slow machine had the time be over before it looked.
            Poll::Ready(Err(LockError::TimedOut)) => {}
            Poll::Ready(other) => panic!("it is held: {other:?}"),
        }
    };
    let behind = Task::waiting(lock.lock_async());
    assert!(matches!(late.finish(), Err(LockError::TimedOut)));
    assert!(start.elapsed() >= timeout);
    assert_eq!(length(&lock), 1);
    let none = LockOptions::new().timeout(Duration::ZERO);
    assert!(matches!(pollster::block_on(lock.lock_async_with(&none)), Err(LockError::TimedOut)));
    drop(held);
    drop(behind.finish());
    drop(pollster::block_on(lock.lock_async_with(&none)).expect("it is free"));
}

fn cancelled() {
    let lock = Mutex::new(0);
    let tokens = [CancelToken::new(), CancelToken::new()];
    let options = tokens.each_ref().map(|token| LockOptions::new().cancel(token));
    let held = lock.lock();
    let mut one = Task::waiting(lock.lock_async_with(&options[0]));
    let mut other = Task::waiting(lock.lock_async_with(&options[1]));
    let two = Task::waiting(lock.lock_async_with(&options[0]));
    // It has taken them on.
    until("the helper sleeps", || helpers().all(|helper| is_asleep(&helper)));
    tokens[0].canceller().cancel();
    let mut ended = None;
    until("the first has ended", || {
        ended = one.run();
        ended.is_some()
    });
    assert!(matches!(ended, Some(Err(LockError::Cancelled))));
    assert!(matches!(two.finish(), Err(LockError::Cancelled)));
    assert_eq!(length(&lock), 1);
    assert!(other.poll().is_pending());
    let begun = pollster::block_on(lock.lock_async_with(&options[0]));
    assert!(matches!(begun, Err(LockError::Cancelled)));
    tokens[0].reset();
    drop(held);
    drop(other.finish().expect("its token was not cancelled"));
}

fn several_of_one_lock() {
    let lock = Mutex::new(0);
    let held = lock.lock();
    let first = Task::waiting(lock.lock_async());
    let mut second = Task::waiting(lock.lock_async());
    drop(held);
    let guard = first.finish();
    assert!(second.poll().is_pending(), "both have the lock");
    // A third, by the thread that has the first in hand.
    let third = Task::waiting(lock.lock_async());
    assert_eq!(length(&lock), 2);
    drop(guard);
    drop(second.finish());
    drop(third.finish());
    assert!(!lock.is_locked());
}

/// As many futures, of that many locks, one helper and one thread that polls.
fn three_hundred(locks: usize) {
    const FUTURES: usize = 300;
    let options = Segment::<[Mutex<u64>; FUTURES]>::options().capacity(FUTURES as u32 + 8);
    let segment = options.anonymous().expect("a segment");
    let locks = &segment[..locks];
    let mut held: Vec<_> = locks.iter().map(|lock| Some(lock.lock())).collect();
    let mut tasks: Vec<_> = (0..FUTURES)
        .map(|number| Some(Task::waiting(locks[number % locks.len()].lock_async())))
        .collect();
    assert_eq!(locks.iter().map(length).sum::<usize>(), FUTURES);
    let begin = Instant::now();
    fastrand::shuffle(&mut held);
    let (mut done, mut order) = (0, Vec::new());
    let mut threads = 0;
    until("all have had their lock", || {
        // All at once, but one by one for the looks in between.
        drop(held.pop());
        for (number, task) in tasks.iter_mut().enumerate() {
            if let Some(mut guard) = task.as_mut().and_then(Task::run) {
                *guard += 1;
                order.push(number);
                drop(guard);
                *task = None;
                done += 1;
            }
        }
        threads = threads.max(helpers().count());
        done == FUTURES
    });
    println!("{FUTURES} futures of {} locks: in {:?}", locks.len(), begin.elapsed());
    assert_eq!(threads, 1, "one thread waits for all");
    assert!(locks.iter().all(|lock| *lock.lock() == (FUTURES / locks.len()) as u64));
    assert!(locks.len() > 1 || order.is_sorted(), "{order:?}");
}

/// The threads of this process that wait for futures.
fn helpers() -> impl Iterator<Item = PathBuf> {
    let threads = read_dir("/proc/self/task").expect("the threads");
    let waits = |thread: &PathBuf| {
        read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == "heirlock-wait")
    };
    threads.filter_map(|thread| Some(thread.ok()?.path())).filter(waits)
}

fn is_asleep(thread: &Path) -> bool {
    let stat = read_to_string(thread.join("stat")).expect("what it does");
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
}
