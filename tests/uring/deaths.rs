//! Deaths of owners and waiters in rings, and as futures; what threads leave behind that end,
//! and forks.

use crate::actor::{Actor, finish};
use crate::kit::{Got, Puppet, Test, board};
use crate::rings::{Loop, PLAIN, require, with_each};
use heirlock::{Mutex, MutexGuard, Participant};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("an_acquisition_inherits_from_a_killed_owner_and_is_told_once", owner_killed),
    ("what_an_acquisition_or_a_future_held_is_inherited", async_owner_killed),
    ("the_waits_of_a_killed_process_are_stepped_over", waiters_killed),
    ("a_wake_that_died_with_its_ring_is_made_up_for", wake_swallowed),
    ("a_forgotten_acquisition_dies_with_its_thread", forgotten_waiter),
    ("a_forgotten_acquisition_that_was_granted_is_inherited_from", forgotten_grant),
    ("a_forgotten_guard_dies_with_its_thread", forgotten_guard),
    ("a_forked_child_has_no_part_in_what_is_under_way", forked),
];

/// The PID and the TID of whom the lock was inherited from.
fn heritage(guard: &MutexGuard<'_, u64>) -> Option<(u32, u32)> {
    MutexGuard::inherited(guard).map(|dead| (dead.pid(), dead.tid()))
}

fn owner_killed() {
    with_each(|kind| {
        let (path, segment) = board();
        let lock = &segment.locks[0];
        let mut owner = Puppet::spawn(&path);
        let pid = owner.pid();
        assert_eq!(owner.lock(0), Got::Lock);
        let mut ring = Loop::new(kind);
        let (first, second) = (ring.start(lock), ring.start(lock));
        owner.kill();
        let guard = ring.end_of(first).guard();
        assert_eq!(heritage(&guard), Some((pid, pid)), "{}", kind.name);
        drop(guard);
        assert_eq!(heritage(&ring.end_of(second).guard()), None, "{}", kind.name);
        // One that was dead before: at once.
        let mut owner = Puppet::spawn(&path);
        let pid = owner.pid();
        assert_eq!(owner.lock(0), Got::Lock);
        owner.kill();
        let id = ring.start(lock);
        assert_eq!(heritage(&ring.end_of(id).guard()), Some((pid, pid)), "{}", kind.name);
        ring.until_quiet();
    });
}

fn async_owner_killed() {
    with_each(|kind| {
        let (path, segment) = board();
        let mut heir = Puppet::spawn(&path);
        // It had it at once, waited for it, and was granted it without having looked.
        for how in ["at once", "waited", "granted", "granted, async", "future"] {
            let waits = !matches!(how, "at once" | "future");
            let held = waits.then(|| segment.locks[0].lock());
            let mut owner = Actor::spawn(&path, kind);
            let pid = owner.pid();
            match how {
                "at once" => assert_eq!(owner.tell("start 0 1"), "locked"),
                "future" => assert_eq!(owner.tell("poll 0 1"), "locked"),
                "granted, async" => drop(owner.begin("start 0 1 async")),
                _ => drop(owner.begin("start 0 1")),
            }
            heir.queue(&segment, 0);
            drop(held);
            if how == "waited" {
                owner.start("finish 1");
                assert_eq!(owner.got(), Got::Lock);
            }
            owner.kill();
            let got = heir.got();
            let Got::Inherited { pid: dead, tid, .. } = got else {
                panic!("{}, {how}: {got:?}", kind.name);
            };
            assert_eq!(dead, pid, "{}, {how}", kind.name);
            // A future's row is that of a thread which the process has for it.
            assert_eq!(tid == pid, how != "future", "{}, {how}", kind.name);
            heir.unlock(0);
            assert_eq!(heir.lock(0), Got::Lock, "it is told once");
            heir.unlock(0);
        }
    });
}

fn waiters_killed() {
    with_each(|kind| {
        let (path, segment) = board();
        let lock = &segment.locks[0];
        let (mut ring, mut blocking) = (Loop::new(kind), Puppet::spawn(&path));
        let held = lock.lock();
        let mut dying = Actor::spawn(&path, kind);
        // First, twice; between others; and last.
        dying.begin("start 0 1");
        dying.begin("start 0 2 async");
        let first = ring.start(lock);
        dying.begin("start 0 3");
        blocking.queue(&segment, 0);
        dying.begin("poll 0 4");
        let second = ring.start(lock);
        dying.begin("start 0 5 async");
        dying.kill();
        drop(held);
        let guard = ring.end_of(first).guard();
        assert_eq!(heritage(&guard), None, "{}", kind.name);
        drop(guard);
        assert_eq!(blocking.got(), Got::Lock);
        blocking.unlock(0);
        drop(ring.end_of(second).guard());
        assert_eq!(blocking.lock(0), Got::Lock, "{}", kind.name);
        blocking.unlock(0);
        ring.until_quiet();
        assert_eq!(heirlock::queue(lock), Some(vec![]));
    });
}

/// Two wait for different locks of one owner. The kernel wakes one of them at its death:
/// a ring, whose process is stopped, and killed before it looks. The other one is not
/// woken, and looks after a second.
fn wake_swallowed() {
    const ROUNDS: u32 = 3;
    require();
    let mut swallowed = 0;
    for _ in 0..ROUNDS {
        let (path, segment) = board();
        let (mut owner, mut dying) = (Puppet::spawn(&path), Actor::spawn(&path, PLAIN));
        let pid = owner.pid();
        assert_eq!(owner.lock(0), Got::Lock);
        assert_eq!(owner.lock(1), Got::Lock);
        dying.begin("start 0 1");
        let mut ring = Loop::new(PLAIN);
        let id = ring.start(&segment.locks[1]);
        let began = Instant::now();
        dying.stop();
        owner.kill();
        dying.kill();
        assert_eq!(heritage(&ring.end_of(id).guard()), Some((pid, pid)));
        swallowed += u32::from(began.elapsed() >= Duration::from_millis(900));
        // The lock for which the killed one waited is the owner's still.
        let id = ring.start(&segment.locks[0]);
        assert_eq!(heritage(&ring.end_of(id).guard()), Some((pid, pid)));
        ring.until_quiet();
    }
    eprintln!("{swallowed} of {ROUNDS} wakes were swallowed");
    assert!(swallowed > 0, "the scene is not played");
}

/// A thread that forgets an acquisition, and lives until it is told to end.
struct Forgetful {
    row: Participant,
    tid: u32,
    end: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

fn tid() -> u32 {
    nix::unistd::gettid().as_raw() as u32
}

impl Forgetful {
    fn spawn(mutex: &'static Mutex<u64>) -> Self {
        let (tell, told) = mpsc::channel();
        let (end, may_end) = mpsc::channel();
        let thread = thread::spawn(move || {
            let (acquire, _) = mutex.start(1).expect("start");
            tell.send((acquire.participant().expect("it waits"), tid())).expect("tell");
            std::mem::forget(acquire);
            may_end.recv().expect("be told");
        });
        let (row, tid) = told.recv().expect("be told");
        Self { row, tid, end, thread }
    }

    fn end(self) {
        self.end.send(()).expect("tell");
        self.thread.join().expect("join");
    }
}

fn leaked() -> &'static Mutex<u64> {
    Box::leak(Box::new(Mutex::new(0)))
}

fn forgotten_waiter() {
    with_each(|kind| {
        let mutex = leaked();
        let mut ring = Loop::new(kind);
        let held = mutex.lock();
        let (first, second) = (Forgetful::spawn(mutex), Forgetful::spawn(mutex));
        let id = ring.start(mutex);
        first.end();
        second.end();
        assert!(!ring.is_over(id));
        drop(held);
        assert_eq!(heritage(&ring.end_of(id).guard()), None, "{}", kind.name);
        ring.until_quiet();
        assert!(!mutex.is_locked());
    });
}

fn forgotten_grant() {
    with_each(|kind| {
        let mutex = leaked();
        let mut ring = Loop::new(kind);
        let held = mutex.lock();
        let forgetful = Forgetful::spawn(mutex);
        let id = ring.start(mutex);
        drop(held);
        for _ in 0..10 {
            ring.look();
            assert_eq!(heirlock::owner(mutex), Some(forgetful.row), "{}", kind.name);
            assert!(!ring.is_over(id), "the thread lives");
        }
        let dead = (std::process::id(), forgetful.tid);
        forgetful.end();
        assert_eq!(heritage(&ring.end_of(id).guard()), Some(dead), "{}", kind.name);
        ring.until_quiet();
        assert!(!mutex.is_locked());
    });
}

fn forgotten_guard() {
    with_each(|kind| {
        let mutex = leaked();
        let mut ring = Loop::new(kind);
        let (end, may_end) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            let (_, progress) = mutex.start(1).expect("start");
            std::mem::forget(progress);
            tell.send(tid()).expect("tell");
            may_end.recv().expect("be told");
        });
        let dead = (std::process::id(), told.recv().expect("be told"));
        let (first, second) = (ring.start(mutex), ring.start(mutex));
        ring.look();
        assert!(!ring.is_over(first), "the thread lives");
        end.send(()).expect("tell");
        thread.join().expect("join");
        assert_eq!(heritage(&ring.end_of(first).guard()), Some(dead), "{}", kind.name);
        assert_eq!(heritage(&ring.end_of(second).guard()), None, "{}", kind.name);
        ring.until_quiet();
        assert!(!mutex.is_locked());
    });
}

fn forked() {
    with_each(|kind| {
        let (path, segment) = board();
        let mut parent = Actor::spawn(&path, kind);
        let elsewhere = segment.locks[2].lock();
        assert_eq!(parent.tell("start 0 1"), "locked");
        let waits = [parent.begin("start 0 2"), parent.begin("poll 0 3")];
        parent.begin("start 2 4");
        assert_eq!(parent.tell("fork 0 1"), "ok", "{}", kind.name);
        // What it has in flight goes on.
        assert_eq!(heirlock::queue(&segment.locks[0]), Some(waits.to_vec()));
        assert_eq!(parent.tell("release 1"), "ok");
        finish(&mut parent, 2);
        parent.start("await 3");
        assert_eq!(parent.got(), Got::Lock, "{}", kind.name);
        assert_eq!(parent.tell("release 3"), "ok");
        drop(elsewhere);
        finish(&mut parent, 4);
        assert_eq!(*segment.locks[1].lock(), 20, "what the child has counted");
        assert!(segment.locks.iter().all(|lock| !lock.is_locked()));
    });
}
