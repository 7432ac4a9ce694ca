//! Reactors of rings of each kind, forked, closed, and not driven.

use crate::Task;
use crate::kit::{self, Process, Role, Test};
use heirlock::uring::{self, Progress, Reactor};
use heirlock::{LockError, LockOptions, Mutex};
use io_uring::{IoUring, opcode, squeue};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::future::Future;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::AtomicU32;
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("a_reactor_turns_a_ring_of_any_kind", a_reactor_turns_a_ring_of_any_kind),
    ("a_future_may_be_polled_by_who_may_not_submit", a_future_may_be_polled_by_who_may_not_submit),
    ("a_ring_of_one_thread_that_another_one_turns_is_closed", turned_elsewhere),
    #[cfg(feature = "tokio")]
    ("a_ring_of_one_thread_is_none_for_a_runtime", none_for_a_runtime),
    ("a_thread_that_polled_may_end", a_thread_that_polled_may_end),
    ("a_future_may_move_to_another_ring", a_future_may_move_to_another_ring),
    #[cfg(feature = "tokio")]
    ("a_driver_that_is_dropped_lets_go_at_once", a_driver_that_is_dropped_lets_go_at_once),
    #[cfg(feature = "tokio")]
    ("more_may_be_over_than_there_is_room_for", more_may_be_over_than_there_is_room_for),
    (
        "the_helper_does_without_a_ring_that_was_closed",
        the_helper_does_without_a_ring_that_was_closed,
    ),
    ("a_request_outlives_its_acquisition", a_request_outlives_its_acquisition),
    ("scarce_descriptors_are_no_refusal", scarce_descriptors_are_no_refusal),
    ("a_child_takes_nothing_from_its_parents_ring", a_child_takes_nothing_from_its_parents_ring),
];

pub(crate) const ROLES: &[Role] = &[
    ("forks_a_reactor", forks_a_reactor),
    ("closes_all_descriptors", closes_all_descriptors),
    ("has_no_descriptors", has_no_descriptors),
];

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

fn ring_of_one_thread() -> IoUring {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun().build(8).expect("a ring")
}

/// What completes in it is for the thread that has submitted, which does not come by.
fn turned_elsewhere() {
    need_rings();
    let reactor = Reactor::new(ring_of_one_thread());
    let lock = lock();
    let held = lock.lock();
    let task = Task::waiting(lock.lock_async().on(&reactor));
    drop(held);
    let ready = thread::spawn(move || {
        drop(task.finish(|| {
            reactor.turn(|_| {});
        }));
    });
    ready.join().expect("it has the lock");
}

#[cfg(feature = "tokio")]
fn none_for_a_runtime() {
    need_rings();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let error = runtime.expect("a runtime").block_on(async {
        heirlock::tokio::Driver::with_ring(ring_of_one_thread(), |_| {}).map(drop)
    });
    assert_eq!(error.map_err(|error| error.raw_os_error()), Err(Some(libc::EINVAL)));
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
        let message = kit::panic_of(|| reactor.with_ring(|submitter, _| submitter.submit()));
        assert!(message.contains("copied by fork"), "{message}");
        drop(reactor.clone());
    })
    .succeed();
    drop(task.finish(|| {
        reactor.turn(|_| {});
    }));
}

/// Nobody turns the one in which it waited first.
fn a_future_may_move_to_another_ring() {
    need_rings();
    let reactors = [(); 2].map(|()| Reactor::new(IoUring::new(8).expect("a ring")));
    let lock = lock();
    let held = lock.lock();
    let mut future = lock.lock_async().on(&reactors[0]);
    let mut context = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut future).poll(&mut context).is_pending());
    let task = Task::waiting(future.on(&reactors[1]));
    drop(held);
    drop(task.finish(|| {
        reactors[1].turn(|_| {});
    }));
}

/// Its runtime does nothing any more, and is still there.
#[cfg(feature = "tokio")]
fn a_driver_that_is_dropped_lets_go_at_once() {
    need_rings();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.expect("a runtime");
    let driver = runtime.block_on(async { heirlock::tokio::Driver::new().expect("a driver") });
    let lock = lock();
    let held = lock.lock();
    let task = Task::waiting(lock.lock_async().on(driver.reactor()));
    drop(driver);
    drop(held);
    drop(task.finish(|| ()));
}

/// The ring has room for 512 completions, and each wait has two. The eventfd tells of those
/// for which there was none only if they are asked for.
#[cfg(feature = "tokio")]
fn more_may_be_over_than_there_is_room_for() {
    const WAITS: usize = 1500;
    need_rings();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.expect("a runtime");
    let locks: &[Mutex<u32>] = Box::leak((0..WAITS).map(|_| Mutex::new(0)).collect());
    let begin = std::time::Instant::now();
    runtime.block_on(async {
        let driver = heirlock::tokio::Driver::new().expect("a driver");
        let held: Vec<_> = locks.iter().map(Mutex::lock).collect();
        let waiting = locks.iter().map(|lock| {
            let reactor = driver.reactor().clone();
            tokio::spawn(async move { *lock.lock_async().on(&reactor).await += 1 })
        });
        let waiting: Vec<_> = waiting.collect();
        while locks.iter().any(|lock| heirlock::queue(lock).is_none_or(|queue| queue.len() != 1)) {
            tokio::task::yield_now().await;
        }
        // All in one go: nobody turns the ring meanwhile.
        drop(held);
        for task in waiting {
            task.await.expect("the task ends");
        }
    });
    println!("{WAITS} at once, in {:?}", begin.elapsed());
}

/// As daemons do: without a look at what was open.
fn the_helper_does_without_a_ring_that_was_closed() {
    need_rings();
    assert!(Process::spawn("closes_all_descriptors", &[]).succeeds());
}

fn closes_all_descriptors(_: &[String]) {
    let lock = lock();
    for round in 0..3 {
        let held = lock.lock();
        let task = Task::waiting(lock.lock_async());
        drop(held);
        drop(task.finish(|| ()));
        for fd in (3..256).filter(|_| round == 0) {
            let _ = nix::unistd::close(fd);
        }
    }
}

/// What is submitted late the kernel reads late: the program looked in between, or passed
/// what is not of this wait.
#[allow(unsafe_code)]
fn a_request_outlives_its_acquisition() {
    need_rings();
    let push = |ring: &mut IoUring, entries: &[squeue::Entry]| {
        // SAFETY: what entries of acquisitions point to stays for as long as is needed; the
        // other ones point to nothing.
        unsafe { ring.submission().push_multiple(entries) }.expect("there is room");
    };
    let next = |ring: &mut IoUring| {
        ring.submit_and_wait(1).expect("submit");
        ring.completion().next().expect("one was waited for")
    };
    for looks in [true, false] {
        let lock = lock();
        let held = lock.lock();
        let [mut ring, mut late] = [(); 2].map(|()| IoUring::new(8).expect("a ring"));
        let (mut acquire, first) = lock.start(1).expect("it waits");
        let Progress::Again(first) = first else { panic!("{first:?}") };
        let second = if looks {
            acquire.look().expect("it looks")
        } else {
            push(&mut ring, &[opcode::Nop::new().build().user_data(1)]);
            acquire.complete(&next(&mut ring)).expect("it looks")
        };
        let Progress::Again(second) = second else { panic!("{second:?}") };
        push(&mut ring, &first);
        push(&mut late, &second);
        ring.submit().expect("submit");
        drop(held);
        let acquired = acquire.complete(&next(&mut ring)).expect("it looks");
        assert!(matches!(acquired, Progress::Acquired(_)), "{acquired:?}");
        // If it was freed, here is what lies there now: waits that do not end.
        let word = Box::leak(Box::new(AtomicU32::new(0)));
        let wait = [0, std::ptr::from_ref(word).addr() as u64, 2];
        let found: Vec<_> = (0..64).map(|_| [wait; 4].to_vec()).collect();
        let done = next(&mut late);
        assert_eq!((done.user_data(), done.result()), (1, -libc::EINVAL), "looks: {looks}");
        drop(found);
    }
}

fn scarce_descriptors_are_no_refusal() {
    need_rings();
    assert!(Process::spawn("has_no_descriptors", &[]).succeeds());
}

fn has_no_descriptors(_: &[String]) {
    let limit = Resource::RLIMIT_NOFILE;
    let (soft, hard) = getrlimit(limit).expect("getrlimit");
    setrlimit(limit, 3, hard).expect("setrlimit");
    assert_eq!(uring::refused().and_then(|error| error.raw_os_error()), Some(libc::EMFILE));
    setrlimit(limit, soft, hard).expect("setrlimit");
    assert!(uring::refused().is_none());
}
