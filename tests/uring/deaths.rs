//! Acquisitions in rings, and futures, among threads and processes that die.

use crate::actor::{Actor, finish};
use crate::kit::{self, Got, Puppet, Test, board, board_with};
use crate::rings::{Loop, PLAIN, require};
use heirlock::{Condvar, Mutex, MutexGuard, Policy};
use std::thread;
use std::time::Instant;

pub(crate) const TESTS: &[Test] = &[
    ("an_acquisition_inherits_from_a_killed_owner_and_is_told_once", inherits),
    ("what_an_acquisition_or_a_future_held_is_inherited", is_inherited_from),
    ("the_waits_of_a_killed_process_are_stepped_over", is_stepped_over),
    ("a_wake_that_died_with_its_ring_is_made_up_for", swallowed),
    ("a_forgotten_acquisition_dies_with_its_thread", forgotten_waiter),
    ("a_forgotten_guard_dies_with_its_thread", forgotten_guard),
    ("a_forked_child_has_no_part_in_what_is_under_way", forked),
    ("a_guard_from_a_ring_is_a_guard_like_any", like_any),
    ("a_throughput_lock_serves_rings_too", throughput),
];

fn inherits() {
    require();
    let (path, segment) = board();
    let lock = &segment.locks[0];
    let mut owner = Puppet::spawn(&path);
    assert_eq!(owner.lock(0), Got::Lock);
    let mut ring = Loop::new(PLAIN);
    let ids: [u64; 2] = std::array::from_fn(|_| ring.start(lock));
    let pid = owner.pid();
    owner.kill();
    let guard = ring.end_of(ids[0]).guard();
    let dead = MutexGuard::inherited(&guard).expect("it is told");
    assert_eq!(dead.pid(), pid);
    drop(guard);
    assert_eq!(MutexGuard::inherited(&ring.end_of(ids[1]).guard()), None);
}

fn is_inherited_from() {
    require();
    let (path, segment) = board();
    for acquire in ["start 0 1", "poll 0 1"] {
        let mut owner = Actor::spawn(&path, PLAIN);
        owner.start(acquire);
        assert_eq!(owner.got(), Got::Lock, "{acquire}");
        let mut heir = Puppet::spawn(&path);
        heir.queue(&segment, 0);
        let pid = owner.pid();
        owner.kill();
        let Got::Inherited { pid: told, .. } = heir.got() else { panic!("{acquire}: not told") };
        assert_eq!(told, pid);
        heir.unlock(0);
        assert_eq!(heir.lock(0), Got::Lock);
        heir.unlock(0);
    }
}

fn is_stepped_over() {
    require();
    let (path, segment) = board();
    let lock = &segment.locks[0];
    let held = lock.lock();
    let mut first = Puppet::spawn(&path);
    first.queue(&segment, 0);
    let mut dying = Actor::spawn(&path, PLAIN);
    dying.begin("start 0 1");
    dying.begin("poll 0 2");
    dying.begin("start 0 3");
    let mut last = Puppet::spawn(&path);
    last.queue(&segment, 0);
    dying.kill();
    drop(held);
    assert_eq!(first.got(), Got::Lock);
    first.unlock(0);
    assert_eq!(last.got(), Got::Lock);
    last.unlock(0);
    assert_eq!(heirlock::queue(lock), Some(vec![]));
}

/// Two heads watch one owner of two locks. The kernel wakes the one that came first, which
/// is a ring whose process is stopped, and killed then: nobody passes the wake on.
fn swallowed() {
    require();
    let (path, segment) = board();
    let mut owner = Puppet::spawn(&path);
    assert_eq!(owner.lock(0), Got::Lock);
    assert_eq!(owner.lock(1), Got::Lock);
    let mut ringing = Actor::spawn(&path, PLAIN);
    ringing.begin("start 0 1");
    let mut other = Puppet::spawn(&path);
    other.queue(&segment, 1);
    let pid = owner.pid();
    ringing.stop();
    owner.kill();
    let killed = Instant::now();
    ringing.kill();
    let Got::Inherited { pid: told, .. } = other.got() else { panic!("not told") };
    assert_eq!(told, pid);
    eprintln!("the other watcher went on after {:?}", killed.elapsed());
    assert!(segment.locks[0].try_lock().is_some(), "and nobody is in front here");
}

fn forgotten_waiter() {
    require();
    let (path, segment) = board();
    let held = segment.locks[0].lock();
    let mut forgetful = Actor::spawn(&path, PLAIN);
    forgetful.begin("forget-waiter 0");
    let mut next = Puppet::spawn(&path);
    next.queue(&segment, 0);
    drop(held);
    assert_eq!(next.got(), Got::Lock);
}

fn forgotten_guard() {
    require();
    let (path, _segment) = board();
    let mut forgetful = Actor::spawn(&path, PLAIN);
    let thread: u32 = forgetful.tell("forget-guard 0").parse().expect("a thread");
    let mut heir = Puppet::spawn(&path);
    let Got::Inherited { tid, .. } = heir.lock(0) else { panic!("not told") };
    assert_eq!(tid, thread);
}

fn forked() {
    require();
    let (path, segment) = board();
    let held = segment.locks[0].lock();
    let mut parent = Actor::spawn(&path, PLAIN);
    parent.begin("start 0 1");
    parent.begin("poll 0 2");
    parent.start("start 2 3");
    assert_eq!(parent.got(), Got::Lock);
    assert_eq!(parent.tell("fork 0 1"), "ok");
    assert!(segment.locks[2].is_locked(), "the parent holds it still");
    drop(held);
    finish(&mut parent, 1);
    parent.start("await 2");
    assert_eq!(parent.got(), Got::Lock);
    assert_eq!(parent.tell("release 2"), "ok");
    assert_eq!(parent.tell("release 3"), "ok");
    // What the child did, each time once in a ring and once as a future.
    assert_eq!(*segment.locks[1].lock(), 20);
}

fn like_any() {
    require();
    static MUTEX: Mutex<u64> = Mutex::new(0);
    static CHANGED: Condvar = Condvar::new();
    let mut ring = Loop::new(PLAIN);
    let held = MUTEX.lock();
    let (id, behind) = (ring.start(&MUTEX), ring.start(&MUTEX));
    drop(held);
    let mut guard = ring.end_of(id).guard();
    // The other one has it meanwhile.
    MutexGuard::unlocked(&mut guard, || *ring.end_of(behind).guard() += 1);
    assert_eq!(*guard, 1);
    let other = thread::spawn(|| {
        *MUTEX.lock() += 1;
        CHANGED.notify_one();
    });
    while *guard < 2 {
        CHANGED.wait(&mut guard);
    }
    other.join().expect("join");
    MutexGuard::bump(&mut guard);
    let mut part = MutexGuard::map(guard, |value| value);
    *part += 1;
    drop(part);
    assert_eq!(*MUTEX.lock(), 3);
    ring.until_quiet();
}

fn throughput() {
    require();
    const ROUNDS: u64 = 500;
    let (path, segment) = board_with(Policy::Throughput);
    let lock = &segment.locks[0];
    let mut other = Puppet::spawn(&path);
    let mut ring = Loop::new(PLAIN);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        *lock.lock() += 1;
                    }
                })
            })
            .collect();
        for _ in 0..ROUNDS {
            let ids = [ring.start(lock), ring.start(lock)];
            for _ in ids {
                *ring.next().1.guard() += 1;
            }
        }
        threads.into_iter().for_each(|thread| thread.join().expect("join"));
    });
    ring.until_quiet();
    assert_eq!(*lock.lock(), 4 * ROUNDS);
    // Whoever dies there is inherited from by a ring.
    assert_eq!(other.lock(0), Got::Lock);
    let id = ring.start(lock);
    other.kill();
    assert!(MutexGuard::inherited(&ring.end_of(id).guard()).is_some());
    kit::until("it is free", || !lock.is_locked());
}
