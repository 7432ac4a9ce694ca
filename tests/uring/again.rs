//! Several waits of one acquisition at a time, rings that take none, and other clocks.
#![allow(clippy::disallowed_types, reason = "a counter of the tests' own")]

use crate::kit::{self, Process, Role, Test, fork, until};
use crate::rings::{Loop, Over, PLAIN, push, require, with_each};
use heirlock::uring::{Entries, Progress, Reactor, TIMEOUT};
use heirlock::{LockError, LockOptions, Mutex, Unusable};
use io_uring::types::FutexWaitV;
use io_uring::{IoUring, opcode, register::Restriction, squeue};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("two_waits_of_one_acquisition_are_not_taken_for_a_cancellation", two_waits),
    ("a_wait_that_was_not_submitted_does_not_put_off_the_timeout", not_submitted),
    ("a_wait_without_a_timeout_gets_another_one", refused_timeout),
    ("a_wait_whose_words_are_gone_gives_up_its_place", fault),
    ("a_ring_that_takes_no_waits_is_an_error_that_says_so", unfit),
    ("futures_in_a_ring_that_takes_no_waits_go_to_the_helper", unfit_for_futures),
    ("what_a_ring_refuses_of_another_thread_does_not_stay_in_it", foreign_thread),
    ("a_request_that_is_refused_does_not_hold_up_the_others", short_submission),
    ("timeouts_are_kept_in_a_time_namespace", time_namespaces),
];

pub(crate) const ROLES: &[Role] = &[("in_time_namespace", in_time_namespace)];

fn again(progress: Progress<'_, u64>) -> Entries {
    match progress {
        Progress::Again(entries) => entries,
        other => panic!("it was to wait: {other:?}"),
    }
}

/// The kernel cancels by `user_data`: the timeout of the one may meet the other.
fn two_waits() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        let held = mutex.lock();
        let (mut acquire, first) = mutex.start(3).expect("start");
        ring.push(&again(first));
        ring.submit();
        let row = acquire.participant();
        ring.push(&again(acquire.look().expect("a look")));
        ring.submit();
        // A heartbeat of each, and the first of what they ask for.
        let mut completed = 0;
        while completed < 8 {
            match ring.step(&mut acquire) {
                Progress::Again(entries) => ring.push(&entries),
                Progress::Pending => {}
                ended => panic!("{}: nobody ended it: {ended:?}", kind.name),
            }
            completed += 1;
        }
        assert_eq!(acquire.participant(), row, "it keeps its place");
        drop(held);
        let guard = loop {
            match ring.step(&mut acquire) {
                Progress::Acquired(guard) => break guard,
                Progress::Again(entries) => ring.push(&entries),
                _ => {}
            }
        };
        drop(guard);
        ring.until_quiet();
    });
}

fn not_submitted() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        let held = mutex.lock();
        let options = LockOptions::new().timeout(Duration::from_millis(500));
        let (mut acquire, first) = mutex.start_with(&options, 3).expect("start");
        // There was no room for it, say.
        drop(again(first));
        let mut progress = acquire.look().expect("a look");
        loop {
            match progress {
                Progress::Again(entries) => ring.push(&entries),
                Progress::TimedOut => break,
                Progress::Pending => assert!(ring.in_flight > 0, "{}: it hangs", kind.name),
                ended => panic!("{}: {ended:?}", kind.name),
            }
            progress = ring.step(&mut acquire);
        }
        drop(held);
        ring.until_quiet();
    });
}

/// A request that the kernel refuses with `EINVAL`, and one with `EFAULT`.
fn refused_request(words: u32) -> squeue::Entry {
    let nowhere = std::ptr::without_provenance::<FutexWaitV>(8);
    opcode::FutexWaitV::new(nowhere, words).build()
}

/// So the kernel says when it takes a wait from the queue and its timeout later.
fn refused_timeout() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        let held = mutex.lock();
        let options = LockOptions::new().timeout(Duration::from_millis(200));
        let (mut acquire, first) = mutex.start_with(&options, 3).expect("start");
        ring.push_all(&[again(first).wait(), refused_request(0).user_data(3 | TIMEOUT)]);
        let entries = again(ring.step(&mut acquire));
        ring.push(&entries);
        loop {
            match ring.step(&mut acquire) {
                Progress::TimedOut => break,
                Progress::Again(entries) => ring.push(&entries),
                Progress::Pending => {}
                ended => panic!("{}: {ended:?}", kind.name),
            }
        }
        drop(held);
        ring.until_quiet();
    });
}

fn fault() {
    with_each(|kind| {
        let mutex = Mutex::new(0);
        let mut ring = Loop::new(kind);
        let held = mutex.lock();
        let (mut acquire, first) = mutex.start(3).expect("start");
        drop(again(first));
        ring.push_all(&[refused_request(1).user_data(3)]);
        ring.ring.submit_and_wait(1).expect("wait");
        let done = ring.ring.completion().next().expect("it is refused");
        assert_eq!(done.result(), -libc::EFAULT);
        let error = acquire.complete(&done).expect_err("its words are gone");
        assert!(matches!(error, Unusable::Corrupted { .. }), "{error}");
        assert_eq!(acquire.participant(), None);
        assert_eq!(heirlock::queue(&mutex), Some(vec![]));
        drop(held);
        assert!(!mutex.is_locked(), "{}: nobody was to be served", kind.name);
    });
}

/// For polled I/O, where nothing else is taken; and one that is restricted to other things.
fn unfit_rings() -> [(&'static str, IoUring, i32); 2] {
    let polled = IoUring::builder().setup_iopoll().build(8).expect("a ring for polled I/O");
    let restricted = IoUring::builder().setup_r_disabled().build(8).expect("a disabled ring");
    let mut allowed = [Restriction::sqe_op(opcode::Nop::CODE)];
    restricted.submitter().register_restrictions(&mut allowed).expect("restrict");
    restricted.submitter().register_enable_rings().expect("enable");
    [("polled", polled, libc::EINVAL), ("restricted", restricted, libc::EACCES)]
}

fn unfit() {
    require();
    for (kind, mut ring, refusal) in unfit_rings() {
        let mutex = Mutex::new(0);
        let held = mutex.lock();
        let (mut acquire, first) = mutex.start(3).expect("start");
        assert!(push(&mut ring, &again(first)[..1]));
        let error = loop {
            ring.submit_and_wait(1).expect("wait");
            let done = ring.completion().next().expect("it is refused");
            match acquire.complete(&done) {
                Ok(Progress::Pending) => {}
                Ok(progress) => panic!("{kind}: {progress:?}"),
                Err(error) => break error,
            }
        };
        let Unusable::Refused(error) = error else { panic!("{kind}: {error}") };
        assert_eq!(error.raw_os_error(), Some(refusal), "{kind}");
        assert_eq!(heirlock::queue(&mutex), Some(vec![]));
        drop(held);
    }
}

#[derive(Default)]
struct Counts(AtomicUsize);

impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn unfit_for_futures() {
    require();
    for (kind, ring, _) in unfit_rings() {
        let reactor = Reactor::new(ring);
        let mutex = Mutex::new(0);
        let held = mutex.lock();
        let woken = Arc::<Counts>::default();
        let waker = Waker::from(Arc::clone(&woken));
        let mut task = pin!(mutex.lock_async().on(&reactor));
        let mut poll = || task.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(poll().is_pending());
        let mut polls = 0;
        for _ in 0..1000 {
            reactor.turn(|_| {});
            if woken.0.swap(0, SeqCst) > 0 {
                polls += 1;
                assert!(poll().is_pending());
            }
        }
        // The refusal, and heartbeats of the helper's if this took that long.
        assert!(polls < 100, "{kind}: it is woken again and again, for nothing");
        drop(held);
        until("it has the lock", || {
            reactor.turn(|_| {});
            woken.0.swap(0, SeqCst) > 0 && poll().is_ready()
        });
    }
}

fn foreign_thread() {
    require();
    let ring = IoUring::builder().setup_single_issuer().build(8).expect("a ring");
    let reactor = Reactor::new(ring);
    reactor.with_ring(|_, queue| {
        let nop = [opcode::Nop::new().build()];
        // SAFETY: it refers to nothing.
        #[allow(unsafe_code)]
        unsafe { queue.push_multiple(&nop) }.expect("room");
    });
    let mut completed = 0;
    reactor.turn(|_| completed += 1);
    assert_eq!(completed, 1);
    let mutex = Mutex::new(0);
    let held = mutex.lock();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            // Each takes a place, and leaves it.
            for _ in 0..20 {
                let task = pin!(mutex.lock_async().on(&reactor));
                assert!(task.poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
        });
        waiting.join().expect("join");
    });
    assert_eq!(reactor.with_ring(|_, queue| queue.len()), 0);
    drop(held);
}

/// In the order of their pushing, though the kernel stops at the first.
fn short_submission() {
    require();
    let mut deferred = IoUring::builder();
    deferred.setup_single_issuer().setup_defer_taskrun();
    for ring in [IoUring::new(8), deferred.build(8)] {
        let reactor = Reactor::new(ring.expect("a ring"));
        let mut done = Vec::new();
        for round in 0..3 {
            let requests = [
                refused_request(0).user_data(2 * round),
                opcode::Nop::new().build().user_data(2 * round + 1),
            ];
            reactor.with_ring(|_, queue| {
                // SAFETY: the one is refused, the other refers to nothing.
                #[allow(unsafe_code)]
                unsafe { queue.push_multiple(&requests) }.expect("room");
            });
            while done.len() < 2 * (round as usize + 1) {
                // As a program does whose all is in the ring. It submits what was pushed.
                reactor.wait().expect("poll");
                reactor.turn(|entry| done.push((entry.user_data(), entry.result())));
            }
        }
        let expected: Vec<_> =
            (0..6).map(|name| (name, if name % 2 == 0 { -libc::EINVAL } else { 0 })).collect();
        assert_eq!(done, expected);
    }
}

fn time_namespaces() {
    require();
    for offset in ["-3", "86400"] {
        let mut child = Process::spawn("in_time_namespace", &[offset]);
        match child.wait().code() {
            Some(0) => {}
            Some(NO_NAMESPACE) => kit::skip("no time namespace is to be had here"),
            code => panic!("offset {offset}: {code:?}"),
        }
    }
}

const NO_NAMESPACE: i32 = 3;

/// `in_time_namespace SECONDS`: what a child waits for whose clock is so far ahead.
#[allow(unsafe_code)]
fn in_time_namespace(args: &[String]) {
    // SAFETY: it concerns the process's children alone.
    let made = unsafe { libc::unshare(libc::CLONE_NEWTIME) } == 0;
    let offset = format!("monotonic {} 0\n", args[0]);
    if !made || std::fs::write("/proc/self/timens_offsets", offset).is_err() {
        std::process::exit(NO_NAMESPACE);
    }
    fork(|| {
        let mutex = Mutex::new(0);
        let held = mutex.lock();
        let mut ring = Loop::new(PLAIN);
        let (time, start) = (Duration::from_millis(300), Instant::now());
        let options = LockOptions::new().timeout(time);
        let id = ring.start_with(&mutex, &options);
        assert!(matches!(ring.end_of(id), Over::TimedOut));
        // It began, and looked again when its time was over, or when a second was.
        assert!(ring.looks < 20, "it looked {} times", ring.looks);
        assert!(start.elapsed() >= time);
        let late = pollster::block_on(mutex.lock_async_with(&options));
        assert!(matches!(late, Err(LockError::TimedOut)), "{late:?}");
        drop(held);
        ring.until_quiet();
    })
    .succeed();
}
