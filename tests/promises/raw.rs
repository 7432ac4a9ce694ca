//! The lock for `lock_api`, between processes.
#![allow(clippy::disallowed_types, reason = "the tests' own flag, in a segment")]
#![allow(unsafe_code)]

use crate::kit::{Process, Role, TempPath, Test, fork, until};
use heirlock::{RawMutex, Segment};
use lock_api::{RawMutex as _, RawMutexTimed};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;
use zerocopy::FromBytes;

pub(crate) const TESTS: &[Test] = &[
    ("the_heir_of_a_dead_owners_raw_lock_is_told_once", || heir("raw-owner")),
    ("a_forgotten_raw_lock_is_inherited_when_its_process_ends", || heir("raw-forgetter")),
    ("a_raw_guard_that_fork_has_copied_releases_nothing", || {
        assert!(Process::spawn("raw-fork", &[]).succeeds(), "see above");
    }),
];

pub(crate) const ROLES: &[Role] =
    &[("raw-owner", owner), ("raw-forgetter", forgetter), ("raw-fork", |_| copied())];

#[derive(FromBytes)]
#[repr(C)]
struct Shared {
    lock: RawMutex,
    /// Whether the other process has it.
    taken: AtomicU64,
}

fn open(args: &[String]) -> Segment<Shared> {
    set_pdeathsig(Signal::SIGKILL).expect("PR_SET_PDEATHSIG");
    Segment::open(&args[0]).expect("open")
}

fn stay() -> ! {
    loop {
        nix::unistd::pause();
    }
}

fn owner(args: &[String]) {
    let segment = open(args);
    let _guard = segment.lock.lock();
    segment.taken.store(1, Relaxed);
    stay();
}

/// By a thread that ends, and whose guard does not unlock when it is dropped.
fn forgetter(args: &[String]) {
    let segment = open(args);
    thread::scope(|scope| {
        let forget = || {
            let _guard = segment.lock.lock();
        };
        scope.spawn(forget).join().expect("join");
    });
    segment.taken.store(1, Relaxed);
    stay();
}

fn heir(role: &str) {
    let path = TempPath::new();
    let segment: Segment<Shared> = Segment::create(&path).expect("create");
    let mut other = Process::spawn(role, &[path.to_str().expect("a printable path")]);
    until("the other process has the lock", || segment.taken.load(Relaxed) == 1);
    assert!(segment.lock.try_lock().is_none());
    assert!(segment.lock.try_lock_for(Duration::from_millis(20)).is_none());
    assert!(segment.lock.inherited().is_none(), "it is another's");
    let pid = other.pid().as_raw() as u32;
    other.kill();
    let guard = segment.lock.lock();
    let dead = segment.lock.inherited().expect("it was told of no death");
    assert_eq!(dead.pid(), pid);
    let told_elsewhere = thread::scope(|scope| {
        scope.spawn(|| segment.lock.inherited().is_some()).join().expect("join")
    });
    assert!(!told_elsewhere, "a thread that does not hold the lock was told");
    // SAFETY: the guard is this acquisition's.
    unsafe { segment.lock.unlock(guard) };
    let guard = segment.lock.try_lock().expect("it is free");
    assert!(segment.lock.inherited().is_none(), "told again");
    // SAFETY: as above.
    unsafe { segment.lock.unlock(guard) };
}

fn copied() {
    let segment: Segment<Shared> = Segment::anonymous().expect("create");
    let guard = segment.lock.lock();
    fork(|| {
        // SAFETY: in the child there is no other one; it is used up at once.
        unsafe { segment.lock.unlock(std::ptr::read(&guard)) };
        assert!(segment.lock.is_locked() && segment.lock.try_lock().is_none());
    })
    .succeed();
    assert!(segment.lock.is_locked());
    // SAFETY: the guard is this acquisition's.
    unsafe { segment.lock.unlock(guard) };
    assert!(!segment.lock.is_locked());
}
