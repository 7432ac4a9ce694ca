//! Owners that die are inherited from, by one, once.

use crate::kit::{Board, Got, HANG, Puppet, Stage, Test, board_of, panic_of, until};
use heirlock::{AttachError, MutexGuard, Segment, Snapshot};
use std::thread;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("a_killed_owner_is_inherited_from_once_by_the_head", || inherited_once(&Stage::new())),
    ("an_heir_that_dies_is_inherited_from", || heir_dies(&Stage::new())),
    ("an_heir_that_panics_passes_the_notice_on", || heir_panics(&Stage::new())),
    ("a_lock_nobody_waits_for_is_inherited_by_the_next_who_comes", || later(&Stage::new())),
    ("try_lock_inherits_when_all_are_dead_but_not_past_the_living", || all_dead(&Stage::new())),
    ("who_is_killed_right_after_the_grant_is_inherited_from", || granted(&Stage::new())),
    ("all_locks_of_a_killed_owner_are_inherited", || eight_locks(&Stage::new())),
    ("a_thread_that_ends_with_a_forgotten_guard_is_inherited_from", || forgotten(&Stage::new())),
    ("a_leaked_guard_lasts_as_long_as_its_process", || leaked(&Stage::new())),
    ("a_first_thread_that_ends_alone_is_inherited_from", first_thread_ends),
    ("a_program_that_is_replaced_is_inherited_from", replaced),
    ("rows_of_the_dead_are_used_again", rows_reused),
    ("rows_are_left_at_the_end_of_a_thread_and_of_a_segment", rows_left),
    ("a_segment_full_of_living_threads_says_so", full),
];

/// What holds in every sandbox as well.
pub(crate) const CORE: &[fn(&Stage)] = &[
    inherited_once,
    heir_dies,
    heir_panics,
    later,
    all_dead,
    granted,
    eight_locks,
    forgotten,
    leaked,
];

/// What holds as well where a lock may be taken past those who wait.
pub(crate) const WAITING: &[fn(&Stage)] =
    &[inherited_once, heir_dies, heir_panics, later, all_dead, eight_locks, leaked];

fn namespace() -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino())
}

/// From the first thread of the process `pid`, in the namespace of this one.
#[track_caller]
fn assert_inherited(got: &Got, pid: u32) {
    let expected = Got::Inherited { pid, tid: pid, pid_namespace: namespace() };
    assert_eq!(*got, expected);
}

fn inherited_once(stage: &Stage) {
    let mut owner = stage.puppet();
    let mut waiters = stage.puppets(3);
    assert_eq!(owner.lock(0), Got::Lock);
    for waiter in &mut waiters {
        waiter.queue(&stage.segment, 0);
    }
    let pid = owner.pid();
    owner.kill();
    assert_inherited(&waiters[0].got(), pid);
    assert_eq!(stage.owner(0), Some(waiters[0].participant));
    waiters[0].unlock(0);
    for waiter in &mut waiters[1..] {
        assert_eq!(waiter.got(), Got::Lock);
        waiter.unlock(0);
    }
    assert_eq!(waiters[0].lock(0), Got::Lock);
    waiters[0].unlock(0);
}

fn heir_dies(stage: &Stage) {
    let mut dead = stage.puppet();
    assert_eq!(dead.lock(0), Got::Lock);
    let mut heirs = stage.puppets(3);
    for heir in &mut heirs {
        heir.queue(&stage.segment, 0);
    }
    for mut heir in heirs {
        let pid = dead.pid();
        dead.kill();
        assert_inherited(&heir.got(), pid);
        dead = heir;
    }
    dead.unlock(0);
    assert_eq!(dead.lock(0), Got::Lock);
}

fn heir_panics(stage: &Stage) {
    let mut owner = stage.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    let mut heirs = stage.puppets(3);
    for heir in &mut heirs[..2] {
        heir.queue(&stage.segment, 0);
    }
    let pid = owner.pid();
    owner.kill();
    // Before a queue, and with none: the next is told of the first death.
    assert_inherited(&heirs[0].got(), pid);
    assert_eq!(heirs[0].tell("panic 0"), "ok");
    assert_inherited(&heirs[1].got(), pid);
    assert_eq!(heirs[1].tell("panic 0"), "ok");
    assert_inherited(&heirs[2].lock(0), pid);
    heirs[2].unlock(0);
    // A release is the end of it; later panics do not bring it back.
    assert_eq!(heirs[0].lock(0), Got::Lock);
    assert_eq!(heirs[0].tell("panic 0"), "ok");
    assert_eq!(heirs[1].lock(0), Got::Lock);
}

fn later(stage: &Stage) {
    let mut owner = stage.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    assert_eq!(owner.tell("set 0 77"), "ok");
    let pid = owner.pid();
    owner.kill();
    assert!(stage.segment.locks[0].is_locked());
    let mut next = stage.puppet();
    assert_inherited(&next.lock(0), pid);
    assert_eq!(next.tell("get 0"), "77");
    next.unlock(0);
    assert_eq!(next.lock(0), Got::Lock);
}

/// `try_lock`, until a death has been noticed that the kernel does not mark.
fn try_until(stage: &Stage, puppet: &mut Puppet, lock: usize) -> Got {
    let mut got = puppet.try_lock(lock);
    if !stage.marks_deaths() && got == Got::Nothing {
        // It asks nobody: the others' heartbeat, or a wait of one's own, does.
        got = puppet.lock(lock);
    }
    got
}

fn all_dead(stage: &Stage) {
    let mut owner = stage.puppet();
    let mut waiters = stage.puppets(3);
    let mut stranger = stage.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    let pid = owner.pid();
    for waiter in &mut waiters {
        waiter.queue(&stage.segment, 0);
    }
    let last = waiters.pop().expect("there are three");
    waiters.into_iter().for_each(Puppet::kill);
    last.process.stop();
    owner.kill();
    // One waiter lives, and does not run: the lock is for it.
    assert_eq!(stranger.try_lock(0), Got::Nothing);
    last.kill();
    assert_inherited(&try_until(stage, &mut stranger, 0), pid);
    assert_eq!(heirlock::queue(&stage.segment.locks[0]), Some(vec![]));
    stranger.unlock(0);
    // The same with a living owner: the dead do not count as waiting.
    let mut owner = stage.puppet();
    let mut waiter = stage.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    waiter.queue(&stage.segment, 0);
    waiter.kill();
    assert_eq!(stranger.try_lock(0), Got::Nothing);
    owner.unlock(0);
    assert_ne!(try_until(stage, &mut stranger, 0), Got::Nothing);
    stranger.unlock(0);
}

fn granted(stage: &Stage) {
    let mut owner = stage.puppet();
    let mut victim = stage.puppet();
    let mut next = stage.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    victim.queue(&stage.segment, 0);
    next.queue(&stage.segment, 0);
    victim.process.stop();
    owner.unlock(0);
    assert_eq!(stage.owner(0), Some(victim.participant));
    let pid = victim.pid();
    victim.kill();
    assert_inherited(&next.got(), pid);
    next.unlock(0);
    assert_eq!(owner.lock(0), Got::Lock);
}

fn eight_locks(stage: &Stage) {
    let mut owner = stage.puppet();
    let mut other = stage.puppet();
    for lock in [6, 0, 3, 7, 2, 5, 1] {
        assert_eq!(owner.lock(lock), Got::Lock);
    }
    assert_eq!(other.lock(4), Got::Lock);
    // It waits for the eighth, with a waiter in front of a living one behind.
    owner.queue(&stage.segment, 4);
    let mut behind = stage.puppet();
    behind.queue(&stage.segment, 4);
    let pid = owner.pid();
    owner.kill();
    for lock in [0, 1, 2, 3, 5, 6, 7] {
        assert_inherited(&other.lock(lock), pid);
    }
    other.unlock(4);
    assert_eq!(behind.got(), Got::Lock);
    // And all eight at once.
    let pid = other.pid();
    behind.unlock(4);
    assert_eq!(other.lock(4), Got::Lock);
    other.kill();
    for lock in (0..8).rev() {
        assert_inherited(&behind.lock(lock), pid);
    }
}

fn forgotten(stage: &Stage) {
    let mut process = stage.puppet();
    let mut waiter = stage.puppet();
    for next_waits in [false, true] {
        if next_waits {
            assert_eq!(process.lock(0), Got::Lock);
            waiter.queue(&stage.segment, 0);
            process.start("unlock 0");
            assert_eq!(waiter.got(), Got::Lock);
            assert_eq!(process.answer(), "ok");
            process.start("forget 0");
            until("a thread waits", || {
                heirlock::queue(&stage.segment.locks[0]).is_some_and(|queue| queue.len() == 1)
            });
            waiter.start("unlock 0");
            waiter.start("lock 0");
        } else {
            process.start("forget 0");
        }
        let tid: u32 = process.answer().parse().expect("a TID");
        let pid = process.pid();
        assert_ne!(tid, pid);
        let got = if next_waits {
            assert_eq!(waiter.answer(), "ok");
            waiter.got()
        } else {
            waiter.lock(0)
        };
        assert_eq!(got, Got::Inherited { pid, tid, pid_namespace: namespace() });
        waiter.unlock(0);
    }
    assert_eq!(process.lock(0), Got::Lock);
}

fn leaked(stage: &Stage) {
    let mut process = stage.puppet();
    let mut other = stage.puppet();
    let tid: u32 = process.tell("leak 0").parse().expect("a TID");
    // The thread is gone, even on the second look of the heartbeat.
    assert_eq!(other.try_lock(0), Got::Nothing);
    assert_eq!(other.try_lock_for(0, Duration::from_millis(1500)), Got::Nothing);
    assert_eq!(process.try_lock(0), Got::Nothing);
    let pid = process.pid();
    other.queue(&stage.segment, 0);
    process.kill();
    let expected = Got::Inherited { pid, tid, pid_namespace: namespace() };
    assert_eq!(other.got(), expected);
}

fn first_thread_ends() {
    let stage = Stage::new();
    let mut process = stage.puppet();
    let mut waiter = stage.puppet();
    assert_eq!(process.lock(0), Got::Lock);
    assert_eq!(process.lock(1), Got::Lock);
    waiter.queue(&stage.segment, 0);
    let pid = process.pid();
    assert_eq!(process.tell("end-first-thread"), "ok");
    assert_inherited(&waiter.got(), pid);
    // The process lives, and inherits from its own first thread.
    assert!(!heirlock::is_alive(&stage.segment, process.participant));
    assert_inherited(&process.lock(1), pid);
    waiter.unlock(0);
    assert_eq!(process.lock(0), Got::Lock);
}

fn replaced() {
    // Who holds the lock, and who calls `execve`.
    for (hold, exec) in [
        // The first thread holds it and calls: marked.
        ("lock 0", "exec"),
        // The first thread holds it, another calls: it dies in passing, marked.
        ("lock 0", "exec-elsewhere"),
        // Another thread holds it, the first calls: the same.
        ("hold 0", "exec"),
        // Another thread holds it and calls: the second witness tells.
        ("try 1", "lock-and-exec 0"),
    ] {
        let stage = Stage::new();
        let mut process = stage.puppet();
        let mut waiter = stage.puppet();
        process.tell(hold);
        process.start(exec);
        until("the lock is taken", || stage.owner(0).is_some());
        waiter.start("lock 0");
        process.process.until_replaced();
        match waiter.got() {
            Got::Inherited { pid, .. } => assert_eq!(pid, process.pid(), "{hold}, {exec}"),
            got => panic!("{hold}, {exec}: {got:?}"),
        }
        waiter.unlock(0);
        // The process runs on, as another program, and holds nothing.
        assert_ne!(waiter.try_lock_for(1, HANG), Got::Nothing);
        assert_eq!(waiter.lock(0), Got::Lock);
    }
}

fn rows_reused() {
    const CAPACITY: u32 = 4;
    let (path, segment) = board_of(CAPACITY);
    let mut last: Option<u32> = None;
    for round in 0..6 * CAPACITY {
        // Killed as an owner, as a waiter, and with nothing.
        let mut owner = Puppet::spawn(&path);
        let mut waiter = Puppet::spawn(&path);
        let idle = Puppet::spawn(&path);
        for puppet in [&owner, &waiter, &idle] {
            assert!(puppet.participant.row() <= CAPACITY, "round {round}");
        }
        match last {
            Some(pid) => assert_inherited(&owner.lock(0), pid),
            None => assert_eq!(owner.lock(0), Got::Lock),
        }
        waiter.queue(&segment, 0);
        last = Some(owner.pid());
        waiter.kill();
        idle.kill();
        owner.kill();
    }
    let snapshot = Snapshot::read(&path, &[]).expect("a snapshot");
    assert!(snapshot.rows_used <= CAPACITY);
    assert!(snapshot.participants.iter().all(|view| !view.alive));
    let me = segment.attach().expect("attach");
    assert!(me.generation() > 1, "{me}");
    assert!(MutexGuard::inherited(&segment.locks[0].lock()).is_some());
}

fn living(path: &std::path::Path) -> usize {
    let snapshot = Snapshot::read(path, &[]).expect("a snapshot");
    snapshot.participants.iter().filter(|view| view.alive).count()
}

fn rows_left() {
    let (path, segment) = board_of(2);
    for _ in 0..10 {
        let segment = &segment;
        let thread = thread::scope(|scope| {
            scope.spawn(|| segment.attach().expect("attach")).join().expect("join")
        });
        assert!(!heirlock::is_alive(segment, thread));
        assert_eq!(living(&path), 0);
    }
    let snapshot = Snapshot::read(&path, &[]).expect("a snapshot");
    assert_eq!((snapshot.rows_used, snapshot.participants.len()), (1, 0));
    for _ in 0..10 {
        let handle: Segment<Board> = Segment::open(&path).expect("open");
        *handle.locks[0].lock() += 1;
        assert_eq!(living(&path), 1);
        drop(handle);
        assert_eq!(living(&path), 0);
    }
    let me = segment.attach().expect("attach");
    assert_eq!(living(&path), 1);
    assert!(heirlock::is_alive(&segment, me));
    drop(segment);
    assert_eq!(living(&path), 0);
}

fn full() {
    let (path, segment) = board_of(2);
    let mut first = Puppet::spawn(&path);
    let second = Puppet::spawn(&path);
    match segment.attach() {
        Err(AttachError::Full { capacity: 2 }) => {}
        other => panic!("{other:?}"),
    }
    let message = panic_of(|| segment.locks[0].lock());
    assert!(message.contains("all 2 rows of the segment belong to living threads"), "{message}");
    assert!(message.contains("Options::capacity"), "{message}");
    // Nothing came of it: those who are in go on, and one death makes room.
    assert_eq!(first.lock(0), Got::Lock);
    second.kill();
    let me = segment.attach().expect("there is room");
    assert!(segment.locks[0].try_lock().is_none());
    first.unlock(0);
    let guard = segment.locks[0].lock();
    assert_eq!(heirlock::owner(&segment.locks[0]), Some(me));
    drop(guard);
}
