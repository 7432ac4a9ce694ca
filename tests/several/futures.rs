//! Futures of locks, whoever waits for them.

use crate::kit::{Got, Puppet, Test, board, until};
use heirlock::future::{AsyncMutexGuard, LockAsync};
use heirlock::{CancelToken, LockError, LockOptions, Mutex};
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("futures_stand_in_one_queue_with_threads_of_all_processes", one_queue),
    ("a_future_inherits_from_a_killed_owner_and_is_told_once", inherits),
    ("a_guard_outlives_the_thread_that_acquired_it", outlives),
    ("a_future_that_is_dropped_leaves_the_queue", dropped),
    ("a_future_that_is_dropped_when_it_was_served_passes_the_lock_on", served_and_dropped),
    ("a_future_ends_with_its_time_or_its_token", ends),
    ("three_hundred_futures_wait_at_a_time", many),
];

type Waiting<'m> = Pin<Box<LockAsync<'m, u64>>>;

fn poll<'m>(future: &mut Waiting<'m>) -> Option<AsyncMutexGuard<'m, u64>> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(guard) => Some(guard),
        Poll::Pending => None,
    }
}

/// A future that has taken its place in the queue.
fn waiting(lock: &Mutex<u64>) -> Waiting<'_> {
    let mut future = Box::pin(lock.lock_async());
    assert!(poll(&mut future).is_none(), "it is held");
    future
}

fn one_queue() {
    let (path, segment) = board();
    let lock = &segment.locks[0];
    let held = lock.lock();
    let mut puppets = [Puppet::spawn(&path), Puppet::spawn(&path)];
    puppets[0].queue(&segment, 0);
    let first = waiting(lock);
    puppets[1].queue(&segment, 0);
    let second = waiting(lock);
    assert_eq!(heirlock::queue(lock).map(|queue| queue.len()), Some(4));
    drop(held);
    assert_eq!(puppets[0].got(), Got::Lock);
    puppets[0].unlock(0);
    drop(pollster::block_on(first));
    assert_eq!(puppets[1].got(), Got::Lock);
    puppets[1].unlock(0);
    drop(pollster::block_on(second));
}

fn inherits() {
    let (path, segment) = board();
    let lock = &segment.locks[0];
    let mut owner = Puppet::spawn(&path);
    assert_eq!(owner.lock(0), Got::Lock);
    let (first, second) = (waiting(lock), waiting(lock));
    let pid = owner.pid();
    let heir = thread::scope(|scope| {
        let heir = scope.spawn(|| pollster::block_on(first));
        owner.kill();
        heir.join().expect("join")
    });
    assert_eq!(AsyncMutexGuard::inherited(&heir).map(|dead| dead.pid()), Some(pid));
    drop(heir);
    assert_eq!(AsyncMutexGuard::inherited(&pollster::block_on(second)), None);
}

fn outlives() {
    let (path, segment) = board();
    let lock = &segment.locks[0];
    let mut other = Puppet::spawn(&path);
    let guard = thread::scope(|scope| {
        let acquiring = scope.spawn(|| pollster::block_on(lock.lock_async()));
        acquiring.join().expect("join")
    });
    // The thread is gone, and its lock is not.
    assert_eq!(other.try_lock(0), Got::Nothing);
    other.queue(&segment, 0);
    thread::scope(|scope| {
        scope.spawn(move || drop(guard));
    });
    assert_eq!(other.got(), Got::Lock);
}

fn dropped() {
    let (path, segment) = board();
    let lock = &segment.locks[0];
    let held = lock.lock();
    let futures: Vec<_> = (0..3).map(|_| waiting(lock)).collect();
    let mut other = Puppet::spawn(&path);
    other.queue(&segment, 0);
    drop(futures);
    assert_eq!(heirlock::queue(lock).map(|queue| queue.len()), Some(1));
    drop(held);
    assert_eq!(other.got(), Got::Lock);
}

fn served_and_dropped() {
    let (path, segment) = board();
    let lock = &segment.locks[0];
    let held = lock.lock();
    let future = waiting(lock);
    let mut other = Puppet::spawn(&path);
    other.queue(&segment, 0);
    drop(held);
    drop(future);
    assert_eq!(other.got(), Got::Lock);
    other.unlock(0);
    assert!(lock.try_lock().is_some());
}

fn ends() {
    static TOKEN: CancelToken = CancelToken::new();
    let (_path, segment) = board();
    let lock = &segment.locks[0];
    let held = lock.lock();
    let soon = LockOptions::new().timeout(Duration::from_millis(5));
    let late = pollster::block_on(lock.lock_async_with(&soon));
    assert!(matches!(late, Err(LockError::TimedOut)), "{late:?}");
    thread::scope(|scope| {
        let options = LockOptions::new().cancel(&TOKEN);
        let waiter =
            scope.spawn(move || pollster::block_on(lock.lock_async_with(&options)).map(drop));
        until("it waits", || heirlock::queue(lock).is_some_and(|queue| queue.len() == 1));
        TOKEN.canceller().cancel();
        assert!(matches!(waiter.join().expect("join"), Err(LockError::Cancelled)));
    });
    let options = LockOptions::new().cancel(&TOKEN);
    let refused = pollster::block_on(lock.lock_async_with(&options));
    assert!(matches!(refused, Err(LockError::Cancelled)), "{refused:?}");
    assert_eq!(heirlock::queue(lock), Some(vec![]));
    drop(held);
}

/// More than the helper can sleep on without a ring.
fn many() {
    const FUTURES: usize = 300;
    const THREADS: usize = 6;
    let locks: Vec<Mutex<u64>> = (0..FUTURES).map(|_| Mutex::new(0)).collect();
    let held: Vec<_> = locks.iter().map(Mutex::lock).collect();
    let (sender, served) = mpsc::channel();
    thread::scope(|scope| {
        for part in locks.chunks(FUTURES / THREADS) {
            let sender = sender.clone();
            scope.spawn(move || {
                let mut futures: Vec<_> = part.iter().map(|lock| Some(waiting(lock))).collect();
                // An executor of the simplest kind.
                while futures.iter().any(Option::is_some) {
                    for future in &mut futures {
                        if let Some(mut guard) = future.as_mut().and_then(poll) {
                            *guard += 1;
                            *future = None;
                            sender.send(()).expect("send");
                        }
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            });
        }
        let queued =
            |lock: &Mutex<u64>| heirlock::queue(lock).is_some_and(|queue| !queue.is_empty());
        until("all wait", || locks.iter().all(queued));
        for (number, guard) in held.into_iter().enumerate() {
            drop(guard);
            // One after the other: the helper has to notice each.
            if number % 3 == 0 {
                served.recv().expect("served");
            }
        }
    });
    assert!(locks.iter().all(|lock| *lock.lock() == 1));
}
