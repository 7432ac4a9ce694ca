//! Reactors of rings of each kind, forked, closed, and not driven.

use crate::Task;
use crate::kit::{self, Process, Role, Test};
use heirlock::uring::{self, Reactor};
use heirlock::{LockError, LockOptions, Mutex};
use io_uring::IoUring;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("a_reactor_turns_a_ring_of_any_kind", a_reactor_turns_a_ring_of_any_kind),
    ("a_future_may_be_polled_by_who_may_not_submit", a_future_may_be_polled_by_who_may_not_submit),
    ("a_thread_that_polled_may_end", a_thread_that_polled_may_end),
    ("a_child_takes_nothing_from_its_parents_ring", a_child_takes_nothing_from_its_parents_ring),
];

pub(crate) const ROLES: &[Role] = &[("forks_a_reactor", forks_a_reactor)];

fn need_rings() {
    if let Some(error) = uring::refused() {
        kit::skip(format!("no io_uring here: {error}"));
    }
}

fn lock() -> &'static Mutex<u32> {
    Box::leak(Box::new(Mutex::new(0)))
}

/// Turns the reactor if its descriptor says so.
fn turn_if_readable(reactor: &Reactor) {
    let mut ring = [PollFd::new(reactor.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ring, PollTimeout::from(20u8)).expect("poll") > 0 {
        reactor.turn(|other| panic!("who submitted {other:?}?"));
    }
}

fn a_reactor_turns_a_ring_of_any_kind() {
    need_rings();
    let mut deferred = IoUring::builder();
    deferred.setup_single_issuer().setup_defer_taskrun();
    let mut cooperative = IoUring::builder();
    cooperative.setup_coop_taskrun();
    let mut polled = IoUring::builder();
    polled.setup_sqpoll(10);
    for (kind, ring) in [
        ("deferred", deferred.build(8)),
        ("cooperative", cooperative.build(8)),
        ("polled", polled.build(8)),
        ("plain", IoUring::new(8)),
    ] {
        let reactor = Reactor::new(ring.expect(kind));
        let lock = lock();
        let held = lock.lock();
        let task = Task::waiting(lock.lock_async().on(&reactor));
        drop(held);
        drop(task.finish(|| turn_if_readable(&reactor)));
        println!("{kind}: done");
    }
}

/// The owner of the ring sleeps, as nothing is there that the kernel knows of.
fn a_future_may_be_polled_by_who_may_not_submit() {
    need_rings();
    let ring = IoUring::builder().setup_single_issuer().build(8).expect("a ring");
    let reactor = Reactor::new(ring);
    // The first one to submit may.
    reactor.turn(|_| {});
    let lock = lock();
    let held = lock.lock();
    let future = lock.lock_async().on(&reactor);
    let task = thread::spawn(|| Task::waiting(future)).join().expect("it is polled");
    drop(held);
    drop(task.finish(|| turn_if_readable(&reactor)));
}

/// With it the kernel cancels what it has submitted.
fn a_thread_that_polled_may_end() {
    need_rings();
    let reactor = Reactor::new(IoUring::new(8).expect("a ring"));
    let lock = lock();
    let held = lock.lock();
    let soon = LockOptions::new().timeout(Duration::from_millis(100));
    let (late, granted) =
        (lock.lock_async_with(&soon).on(&reactor), lock.lock_async().on(&reactor));
    let tasks = thread::spawn(|| (Task::waiting(late), Task::waiting(granted)));
    let (late, granted) = tasks.join().expect("they are polled");
    let late = late.finish(|| turn_if_readable(&reactor));
    assert!(matches!(late, Err(LockError::TimedOut)), "{late:?}");
    drop(held);
    drop(granted.finish(|| turn_if_readable(&reactor)));
}

fn a_child_takes_nothing_from_its_parents_ring() {
    need_rings();
    assert!(Process::spawn("forks_a_reactor", &[]).succeeds());
}

fn forks_a_reactor(_: &[String]) {
    let reactor = Reactor::new(IoUring::new(8).expect("a ring"));
    let lock = lock();
    let held = lock.lock();
    let task = Task::waiting(lock.lock_async().on(&reactor));
    drop(held);
    reactor.wait().expect("poll");
    kit::fork(|| {
        assert_eq!(reactor.turn(|_| {}), 0, "the child woke somebody");
        reactor.close();
        let message = kit::panic_of(|| reactor.with_ring(|ring| ring.submit()));
        assert!(message.contains("copied by fork"), "{message}");
        drop(reactor.clone());
    })
    .succeed();
    drop(task.finish(|| {
        reactor.turn(|_| {});
    }));
}
