//! Who is who: PID namespaces, forked children, and their deaths.
#![allow(clippy::disallowed_types, reason = "the tests' own flags")]

use crate::kit::sandbox::Refusal;
use crate::kit::{
    Forked, Got, Process, Puppet, Role, Test, board, board_of, fork, fork_orphan,
    in_new_pid_namespace, panic_of, until,
};
use heirlock::{Mutex, MutexGuard, Segment, Snapshot, is_alive, owner, queue};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use zerocopy::FromBytes;

pub(crate) const TESTS: &[Test] = &[
    ("equal_tids_in_two_pid_namespaces_are_two_participants", equal_tids),
    ("rows_of_the_dead_are_used_again_whatever_their_tids", rows_of_equal_tids),
    ("a_child_that_a_signal_handler_forks_in_a_wait_marks_nobody_dead", fork_in_a_wait),
    ("a_forked_child_is_a_new_participant_and_its_copied_guard_is_void", || play("fork-new")),
    ("a_copied_guard_releases_nothing_of_a_lock_that_is_free_by_then", || play("fork-free")),
    ("a_forked_child_and_its_children_are_three_participants", || play("fork-generations")),
    ("a_forked_childs_death_releases_nothing_of_its_parents", || play("fork-child-dies")),
    ("a_forked_child_inherits_from_its_dead_parent", || play("fork-parent-dies")),
    ("a_forked_child_inherits_from_its_dead_parent_without_get_robust_list", || {
        play_in("fork-parent-dies", Refusal::ROBUST_LIST)
    }),
    ("a_forked_child_inherits_static_mutexes_from_its_parents_threads", || play("fork-static")),
    ("a_process_of_many_threads_may_fork_at_any_time", || play("fork-threads")),
    ("a_forked_child_with_its_parents_pid_is_a_new_participant", || {
        let process = in_new_pid_namespace(|| Process::spawn("fork-equal-pid", &[]));
        assert!(process.succeeds(), "see above");
    }),
    ("a_child_forked_while_a_guard_is_unlocked_does_not_lock_as_its_parent", || {
        play("fork-unlocked")
    }),
];

pub(crate) const ROLES: &[Role] = &[
    ("fork-new", |_| child_is_new()),
    ("fork-free", |_| copied_and_free()),
    ("fork-generations", |_| generations()),
    ("fork-child-dies", |_| child_dies()),
    ("fork-parent-dies", |_| parent_dies()),
    ("fork-static", |_| statics()),
    ("fork-threads", |_| many_threads()),
    ("fork-equal-pid", |_| equal_pid()),
    ("fork-unlocked", |_| fork_unlocked()),
    ("recycled-tid", |_| crate::guard::recycled_tid()),
    ("late-guard", |_| crate::guard::late_guard()),
    ("many-segments", |_| crate::guard::many_segments()),
];

pub(crate) fn play(role: &str) {
    assert!(Process::spawn(role, &[]).succeeds(), "see above");
}

pub(crate) fn play_in(role: &str, refusal: Refusal) {
    refusal.require();
    let mut command = Process::command(role, &[]);
    refusal.impose(&mut command);
    assert!(Process::from_command(&mut command).succeeds(), "see above");
}

fn equal_tids() {
    let (path, segment) = board();
    let lock = &segment.locks[0];
    let mut ours = Puppet::spawn(&path);
    let mut first = Puppet::spawn_in_new_pid_namespace(&path);
    let mut second = Puppet::spawn_in_new_pid_namespace(&path);
    let mut third = Puppet::spawn_in_new_pid_namespace(&path);

    let snapshot = Snapshot::read(&path, &[]).expect("a snapshot");
    let view = |puppet: &Puppet| {
        let view = snapshot.participant(puppet.participant.row()).expect("it takes part");
        assert_eq!((view.participant, view.alive), (puppet.participant, true));
        (view.pid, view.tid, view.pid_namespace)
    };
    let namespaces = [&ours, &first, &second, &third].map(|puppet| view(puppet).2);
    for puppet in [&first, &second, &third] {
        assert_eq!((view(puppet).0, view(puppet).1), (1, 1));
    }
    // /proc may be another namespace's, and still tells which one is whose; if
    // it did not, the crate would report 0.
    if namespaces.contains(&0) {
        eprintln!("/proc does not tell the PID namespaces apart: {namespaces:?}");
    } else {
        for (at, namespace) in namespaces.iter().enumerate() {
            assert!(!namespaces[..at].contains(namespace), "{namespaces:?}");
        }
    }

    // They wait for each other, although they have the same TID.
    assert_eq!(ours.lock(0), Got::Lock);
    first.queue(&segment, 0);
    second.queue(&segment, 0);
    ours.unlock(0);
    assert_eq!(first.got(), Got::Lock);
    assert_eq!(first.try_lock_for(1, Duration::ZERO), Got::Lock);
    // The death of one that waits for another of the same TID is its own.
    let heartbeats = Duration::from_millis(1200);
    assert_eq!(ours.try_lock_for(0, heartbeats), Got::Nothing);
    second.kill();
    third.queue(&segment, 0);
    assert!(is_alive(&segment, first.participant));
    assert_eq!(owner(lock), Some(first.participant));
    assert_eq!(ours.try_lock_for(0, heartbeats), Got::Nothing);
    // And that of an owner is noticed.
    first.kill();
    let dead = Got::Inherited { pid: 1, tid: 1, pid_namespace: namespaces[1] };
    assert_eq!(third.got(), dead);
    assert!(is_alive(&segment, third.participant));
    assert_eq!(ours.lock(1), dead);
    third.kill();
    let dead = Got::Inherited { pid: 1, tid: 1, pid_namespace: namespaces[3] };
    assert_eq!(ours.lock(0), dead);
}

/// A container's program is process 1 in it, always. If a row were closed to
/// those who have its last user's TID, a program that is killed and restarted
/// again and again would use up all rows.
fn rows_of_equal_tids() {
    const CAPACITY: u32 = 4;
    let (path, segment) = board_of(CAPACITY);
    for round in 0..2 * CAPACITY {
        let mut puppet = Puppet::spawn_in_new_pid_namespace(&path);
        let got = puppet.lock(0);
        if round == 0 {
            assert_eq!(got, Got::Lock);
        } else {
            assert!(matches!(got, Got::Inherited { pid: 1, tid: 1, .. }), "{got:?}");
        }
        puppet.kill();
    }
    drop(segment);
}

/// A waiter has told the kernel which word it watches, and a forked child may
/// copy that. If the watched thread has the child's TID, in another PID
/// namespace, the kernel would mark it dead when the child ends.
fn fork_in_a_wait() {
    let (path, segment) = board();
    let mut owning = Puppet::spawn_in_new_pid_namespace(&path);
    let mut waiting = Puppet::spawn_in_new_pid_namespace(&path);
    assert_eq!(owning.tell("hold 0"), "2", "the second thread");
    let holder = owner(&segment.locks[0]).expect("it is held");
    waiting.tell("handle fork");
    waiting.queue(&segment, 0);
    until("it sleeps", || {
        let snapshot = Snapshot::read(&path, &[]).expect("a snapshot");
        let view = snapshot.participant(waiting.participant.row()).expect("it takes part");
        view.busy_with.as_ref().is_some_and(|wait| wait.state == "parked")
    });
    // The first child is process 2 there. The next signal is delivered when
    // the handler is through with the one before.
    for _ in 0..3 {
        waiting.process.interrupt(Signal::SIGUSR1);
    }
    assert!(is_alive(&segment, holder));
    let mut ours = Puppet::spawn(&path);
    assert_eq!(ours.try_lock_for(0, Duration::from_millis(100)), Got::Nothing);
    assert_eq!(owner(&segment.locks[0]), Some(holder));
    owning.kill();
    assert!(matches!(waiting.got(), Got::Inherited { pid: 1, tid: 2, .. }));
    assert!(waiting.tell("handled").parse::<u64>().expect("a number") >= 3);
}

/// What a role's processes share.
#[derive(FromBytes)]
#[repr(C)]
struct Scene {
    lock: Mutex<u64>,
    steps: [AtomicU64; 4],
}

fn scene() -> Segment<Scene> {
    Segment::anonymous().expect("anonymous")
}

fn until_queued(lock: &Mutex<u64>) {
    until("somebody waits", || queue(lock).is_some_and(|queue| queue.len() == 1));
}

fn child_is_new() {
    let scene = scene();
    let parent = scene.attach().expect("attach");
    let mut guard = Some(scene.lock.lock());
    let child = fork(|| {
        assert!(scene.lock.try_lock().is_none());
        assert!(scene.lock.try_lock_for(Duration::from_millis(20)).is_none());
        let me = scene.attach().expect("attach");
        assert_ne!(me, parent);
        // Nothing can be done with the copied guard, and nothing comes of it.
        let mut copied = guard.take().expect("it was copied");
        for message in [
            panic_of(|| *copied),
            panic_of(|| *copied += 1),
            panic_of(|| MutexGuard::unlocked(&mut copied, || ())),
            panic_of(|| MutexGuard::leak(copied)),
        ] {
            assert!(message.contains("copied by fork"), "{message}");
        }
        assert_eq!(owner(&scene.lock), Some(parent));
        scene.steps[0].store(1, SeqCst);
        let mut guard = scene.lock.lock();
        assert_eq!(scene.steps[1].load(SeqCst), 1, "it waited for its parent");
        assert_eq!(MutexGuard::inherited(&guard), None);
        assert_eq!(owner(&scene.lock), Some(me));
        *guard = 5;
    });
    until("the child is done with the guard", || scene.steps[0].load(SeqCst) == 1);
    until_queued(&scene.lock);
    assert_eq!(owner(&scene.lock), Some(parent));
    assert_eq!(guard.as_deref(), Some(&0));
    scene.steps[1].store(1, SeqCst);
    drop(guard);
    child.succeed();
    let guard = scene.lock.lock();
    assert_eq!((*guard, MutexGuard::inherited(&guard)), (5, None));
}

/// A child that drops its copy of a guard when nobody has the lock must not take
/// it for its own: it would write to it, and perhaps into a parent's locking.
fn copied_and_free() {
    const ROUNDS: u64 = 200;
    let scene = scene();
    let [released, dropped, ..] = &scene.steps;
    for round in 1..=ROUNDS {
        let mut guard = Some(scene.lock.lock());
        let child = fork(|| {
            let copied = guard.take();
            until("the lock is free", || released.load(SeqCst) == round);
            drop(copied);
            dropped.store(round, SeqCst);
            *scene.lock.lock() += 1;
        });
        drop(guard);
        released.store(round, SeqCst);
        // It stays free until the copy is dropped, or is busy meanwhile.
        if round % 2 == 0 {
            until("the copy is dropped", || dropped.load(SeqCst) == round);
        }
        for _ in 0..100 {
            *scene.lock.lock() += 1;
        }
        child.succeed();
    }
    assert_eq!(*scene.lock.lock(), 101 * ROUNDS);
}

/// Parent and child are each the first process of their namespace.
fn equal_pid() {
    assert_eq!(std::process::id(), 1);
    let scene = scene();
    let me = scene.attach().expect("attach");
    let guard = scene.lock.lock();
    let unshare = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID);
    unshare.expect("it worked for this process");
    let child = fork(|| {
        assert_eq!(std::process::id(), 1);
        assert_ne!(scene.attach().expect("attach"), me);
        // It does not take its parent for itself.
        assert_eq!(MutexGuard::inherited(&scene.lock.lock()), None);
        std::mem::forget(scene.lock.lock());
    });
    until_queued(&scene.lock);
    let snapshot = Snapshot::of(scene.as_fd(), &[]).expect("a snapshot");
    let [parent, child_view] = &snapshot.participants[..] else { panic!("{snapshot}") };
    assert_eq!((parent.pid, parent.tid, child_view.pid, child_view.tid), (1, 1, 1, 1));
    let namespaces = (parent.pid_namespace, child_view.pid_namespace);
    assert!(namespaces.0 != namespaces.1 || namespaces.0 == 0, "{snapshot}");
    drop(guard);
    child.succeed();
    let dead = MutexGuard::inherited(&scene.lock.lock()).expect("the child died");
    assert_eq!((dead.pid(), dead.pid_namespace()), (1, namespaces.1));
}

fn generations() {
    let scene = scene();
    let me = scene.attach().expect("attach");
    fork(|| {
        let child = scene.attach().expect("attach");
        let guard = scene.lock.lock();
        fork(|| {
            let grandchild = scene.attach().expect("attach");
            assert!(me != child && child != grandchild && grandchild != me);
            assert!(is_alive(&scene, me) && is_alive(&scene, child));
            assert!(scene.lock.try_lock().is_none());
        })
        .succeed();
        assert_eq!(owner(&scene.lock), Some(child));
        drop(guard);
        *scene.lock.lock() += 1;
    })
    .succeed();
    assert!(is_alive(&scene, me));
    let guard = scene.lock.lock();
    assert_eq!((*guard, MutexGuard::inherited(&guard)), (1, None));
}

fn child_dies() {
    let scene = scene();
    let me = scene.attach().expect("attach");
    let guard = scene.lock.lock();
    let stay = || loop {
        nix::unistd::pause();
    };
    let [joined, waits, idle] = [&scene.steps[0], &scene.steps[1], &scene.steps[2]];
    fork(|| {}).succeed();
    fork(|| {
        scene.attach().expect("attach");
    })
    .succeed();
    let mut children: [Forked; 3] = [
        fork(|| {
            scene.attach().expect("attach");
            joined.store(1, SeqCst);
            stay();
        }),
        fork(|| {
            waits.store(1, SeqCst);
            drop(scene.lock.lock());
        }),
        fork(|| {
            idle.store(1, SeqCst);
            stay();
        }),
    ];
    for step in [joined, waits, idle] {
        until("a child has come so far", || step.load(SeqCst) == 1);
    }
    until_queued(&scene.lock);
    for child in &mut children {
        child.kill();
        assert!(is_alive(&scene, me));
        assert_eq!(owner(&scene.lock), Some(me));
        fork(|| assert!(scene.lock.try_lock().is_none())).succeed();
    }
    drop(guard);
    fork(|| assert_eq!(MutexGuard::inherited(&scene.lock.lock()), None)).succeed();
}

fn parent_dies() {
    nix::sys::prctl::set_child_subreaper(true).expect("PR_SET_CHILD_SUBREAPER");
    let scene = scene();
    // The child waits for the lock when its parent dies, or comes later.
    for waits in [true, false] {
        scene.steps.iter().for_each(|step| step.store(0, SeqCst));
        let [parent_pid, child_pid, go, _] = &scene.steps;
        let mut parent = fork(|| {
            let _guard = scene.lock.lock();
            parent_pid.store(std::process::id().into(), SeqCst);
            let mut child = fork_orphan(|| {
                child_pid.store(std::process::id().into(), SeqCst);
                until("it may go", || waits || go.load(SeqCst) == 1);
                let guard = scene.lock.lock();
                let dead = MutexGuard::inherited(&guard).expect("the parent is dead");
                assert_eq!(u64::from(dead.pid()), parent_pid.load(SeqCst));
            });
            child.wait();
        });
        until("there is a child", || child_pid.load(SeqCst) != 0);
        if waits {
            until_queued(&scene.lock);
        }
        parent.kill();
        go.store(1, SeqCst);
        let child = Pid::from_raw(child_pid.load(SeqCst) as i32);
        assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
        assert_eq!(MutexGuard::inherited(&scene.lock.lock()), None);
    }
}

fn statics() {
    static OTHERS: Mutex<u64> = Mutex::new(0);
    static OWN: Mutex<u64> = Mutex::new(0);
    static FREE: Mutex<u64> = Mutex::new(0);
    let (tell, told) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let holder = thread::spawn(move || {
        let mut guard = OTHERS.lock();
        *guard = 1;
        tell.send(nix::unistd::gettid().as_raw() as u32).expect("tell");
        ended.recv().expect_err("nothing is sent");
        assert_eq!(*guard, 1, "what a child writes is its own");
    });
    let tid = told.recv().expect("be told");
    // And one that waits, which the child must not wait for either.
    let waiter = thread::spawn(|| *OTHERS.lock() += 1);
    until_queued(&OTHERS);
    let mut own = Some(OWN.lock());
    let parent = std::process::id();
    let child = fork(|| {
        drop(own.take());
        for (lock, tid) in [(&OTHERS, tid), (&OWN, parent)] {
            let mut guard = lock.try_lock().expect("its owner does not exist here");
            let dead = MutexGuard::inherited(&guard).expect("it is told so");
            assert_eq!((dead.pid(), dead.tid()), (parent, tid));
            *guard += 100;
            drop(guard);
            assert_eq!(MutexGuard::inherited(&lock.lock()), None);
        }
        assert_eq!(MutexGuard::inherited(&FREE.lock()), None);
        // All is well in the child from here on, for new threads too.
        let count = || (0..1000).for_each(|_| *OTHERS.lock() += 1);
        thread::scope(|scope| {
            scope.spawn(count);
            scope.spawn(count);
        });
        assert_eq!(*OTHERS.lock(), 2101);
    });
    child.succeed();
    assert!(OTHERS.try_lock().is_none(), "the parent's thread still holds it");
    drop(own);
    drop(end);
    holder.join().expect("join");
    waiter.join().expect("join");
    let guard = OTHERS.lock();
    assert_eq!((*guard, MutexGuard::inherited(&guard)), (2, None));
}

fn many_threads() {
    const CHILDREN: u64 = 40;
    const EACH: u64 = 50;
    static STATIC: Mutex<u64> = Mutex::new(0);
    let scene = scene();
    let count = &|| {
        *STATIC.lock() += 1;
        *scene.lock.lock() += 1;
    };
    let [stop, counted, ..] = &scene.steps;
    let ended = thread::scope(|scope| {
        for stays in [true, true, false] {
            scope.spawn(move || {
                while stop.load(SeqCst) == 0 {
                    let turn = || {
                        count();
                        counted.fetch_add(1, SeqCst);
                    };
                    // Or it joins, and leaves, each time.
                    if stays { turn() } else { thread::scope(|scope| drop(scope.spawn(turn))) }
                }
            });
        }
        let mut children: Vec<_> =
            (0..CHILDREN).map(|_| fork(|| (0..EACH).for_each(|_| count()))).collect();
        let ended: Vec<_> = children
            .iter_mut()
            .map(|child| (child.wait(), WaitStatus::Exited(child.pid, 0)))
            .collect();
        stop.store(1, SeqCst);
        ended
    });
    for (status, expected) in ended {
        assert_eq!(status, expected);
    }
    let counted = counted.load(SeqCst);
    assert_eq!((*STATIC.lock(), *scene.lock.lock()), (counted, counted + CHILDREN * EACH));
}

/// Forks, and both processes return.
#[allow(unsafe_code)]
fn fork_and_return() -> nix::unistd::ForkResult {
    // SAFETY: the process has one thread.
    unsafe { nix::unistd::fork() }.expect("fork")
}

/// The child comes back from the closure of `unlocked`, too. It must not take
/// the lock under the parent's name: the parent would not know that it has it.
fn fork_unlocked() {
    use nix::unistd::ForkResult;
    let scene = scene();
    let me = scene.attach().expect("attach");
    let mut guard = scene.lock.lock();
    let dropped = &scene.steps[1];
    let fork_and_wait = || {
        let forked = fork_and_return();
        if forked.is_parent() {
            until("the child has dropped its copy", || dropped.load(SeqCst) == 1);
            assert!(!scene.lock.is_locked());
        }
        forked
    };
    match MutexGuard::unlocked(&mut guard, fork_and_wait) {
        ForkResult::Child => {
            // What the guard is good for here: nothing.
            let message = panic_of(|| *guard);
            assert!(message.contains("copied by fork"), "{message}");
            drop(guard);
            dropped.store(1, SeqCst);
            until("the parent has it again", || owner(&scene.lock) == Some(me));
            scene.steps[0].store(1, SeqCst);
            *scene.lock.lock() += 1;
        }
        ForkResult::Parent { child } => {
            assert_eq!(owner(&scene.lock), Some(me));
            until("the child has seen that", || {
                scene.steps[0].load(SeqCst) == 1 && queue(&scene.lock).is_some_and(|q| q.len() == 1)
            });
            *guard += 1;
            drop(guard);
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            let guard = scene.lock.lock();
            assert_eq!((*guard, MutexGuard::inherited(&guard)), (2, None));
        }
    }
}
