//! Any of many locks, and all of them.

use crate::kit::{Board, Got, Process, Puppet, Role, Test, board, until};
use heirlock::select::{
    MAX_LOCKS, lock_all, lock_all_with, lock_any, lock_any_async, lock_any_with,
};
use heirlock::{CancelToken, LockError, LockOptions, Mutex, MutexGuard, Segment, Unusable};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("the_first_of_sixty_four_that_comes_is_acquired", one_of_sixty_four),
    ("none_and_sixty_five_are_refused", numbers),
    ("what_came_second_passes_on_to_the_next", second_passes_on),
    ("who_waits_for_any_stands_in_each_queue", stands_in_each_queue),
    ("a_killed_owner_of_one_of_many_is_inherited_from", inherits),
    ("locks_of_two_segments_and_of_none_at_once", of_several_segments),
    ("what_a_thread_holds_it_does_not_wait_for", own_locks),
    ("a_wait_for_any_ends_with_its_time_its_token_or_a_signal", ends),
    ("two_processes_take_all_in_opposite_orders", opposite_orders),
    ("all_or_none", all_or_none),
];

pub(crate) const ROLES: &[Role] = &[("waits_for_any", waits_for_any), ("takes_all", takes_all)];

pub(crate) fn one_of_sixty_four() {
    let locks: Vec<Mutex<u64>> = (0..MAX_LOCKS).map(|_| Mutex::new(0)).collect();
    let all: Vec<&Mutex<u64>> = locks.iter().collect();
    for released in [0, 17, MAX_LOCKS - 1] {
        let mut held: Vec<_> = locks.iter().map(|lock| Some(lock.lock())).collect();
        thread::scope(|scope| {
            let any = [
                scope.spawn(|| lock_any(&all).0),
                scope.spawn(|| {
                    let any = lock_any_async(&all, &LockOptions::new());
                    pollster::block_on(any).expect("no limits").0
                }),
            ];
            let waits =
                |lock: &Mutex<u64>| heirlock::queue(lock).is_some_and(|queue| queue.len() == 2);
            until("both wait for all", || locks.iter().all(waits));
            held[released] = None;
            assert_eq!(any.map(|thread| thread.join().expect("join")), [released; 2]);
        });
        let empty = |lock: &Mutex<u64>| heirlock::queue(lock).is_some_and(|queue| queue.is_empty());
        assert!(locks.iter().all(empty), "somebody is left in a queue");
    }
}

fn numbers() {
    let locks: Vec<Mutex<u64>> = (0..MAX_LOCKS + 1).map(|_| Mutex::new(0)).collect();
    let all: Vec<&Mutex<u64>> = locks.iter().collect();
    for some in [&all[..0], &all[..]] {
        let error = lock_any_with(some, &LockOptions::new()).map(drop).expect_err("a wrong number");
        let message = error.to_string();
        assert!(message.contains(&format!("any of {} locks", some.len())), "{message}");
        let error = pollster::block_on(lock_any_async(some, &LockOptions::new())).map(drop);
        let Err(LockError::Unusable(Unusable::NumberOfLocks { found, max })) = error else {
            panic!("{error:?}")
        };
        assert_eq!((found, max), (some.len(), MAX_LOCKS));
    }
}

/// Waits for any of the first two locks, once told to, and says which it got.
fn waits_for_any(args: &[String]) {
    let segment: Segment<Board> = Segment::open(&args[0]).expect("open");
    let (which, guard) = lock_any(&[&segment.locks[0], &segment.locks[1]]);
    println!("{which} {:?}", MutexGuard::inherited(&guard).map(|dead| dead.pid()));
}

fn any(path: &std::path::Path) -> Process {
    let mut command = Process::command("waits_for_any", &[path.to_str().expect("a path")]);
    Process::from_command(command.stdout(Stdio::piped()))
}

fn queued(lock: &Mutex<u64>, number: usize) -> bool {
    heirlock::queue(lock).is_some_and(|queue| queue.len() == number)
}

fn second_passes_on() {
    for _ in 0..10 {
        let (path, segment) = board();
        let [first, second, ..] = &segment.locks;
        let held = (first.lock(), second.lock());
        let mut any = any(&path);
        until("it waits for both", || queued(first, 1) && queued(second, 1));
        let mut behind = [Puppet::spawn(&path), Puppet::spawn(&path)];
        behind[0].queue(&segment, 0);
        behind[1].queue(&segment, 1);
        // Both are handed to it before it looks.
        any.stop();
        let waiter = heirlock::queue(first).expect("it stands still")[0];
        drop(held);
        assert_eq!(heirlock::owner(first), Some(waiter));
        assert!(heirlock::owner(second).is_some_and(|owner| owner != waiter), "it has two rows");
        any.resume();
        assert_eq!(any.output().trim(), "0 None");
        // It ends, and with it the other one goes on.
        behind.iter_mut().for_each(|puppet| assert_eq!(puppet.got(), Got::Lock));
    }
}

fn stands_in_each_queue() {
    let (path, segment) = board();
    let [first, second, ..] = &segment.locks;
    let held = (first.lock(), second.lock());
    let mut front = Puppet::spawn(&path);
    front.queue(&segment, 1);
    let mut any = any(&path);
    until("it waits for both", || queued(first, 1) && queued(second, 2));
    let mut behind = Puppet::spawn(&path);
    behind.queue(&segment, 1);
    drop(held.1);
    assert_eq!(front.got(), Got::Lock);
    assert!(queued(second, 2), "nobody is passed by");
    front.unlock(1);
    assert_eq!(any.output().trim(), "1 None");
    assert_eq!(behind.got(), Got::Lock);
    assert!(queued(first, 0), "it has left the other queue");
}

fn inherits() {
    let (path, segment) = board();
    let held = segment.locks[0].lock();
    let mut owner = Puppet::spawn(&path);
    assert_eq!(owner.lock(1), Got::Lock);
    let mut any = any(&path);
    until("it waits for both", || queued(&segment.locks[1], 1));
    let pid = owner.pid();
    owner.kill();
    assert_eq!(any.output().trim(), format!("1 Some({pid})"));
    drop(held);
}

fn of_several_segments() {
    let ((_one, first), (_two, second)) = (board(), board());
    let private = Mutex::new(0);
    let locks = [&first.locks[3], &private, &second.locks[5]];
    for released in 0..3 {
        let mut held = locks.map(|lock| Some(lock.lock()));
        thread::scope(|scope| {
            let any = scope.spawn(|| lock_any(&locks).0);
            until("it waits for all", || locks.iter().all(|lock| queued(lock, 1)));
            held[released] = None;
            assert_eq!(any.join().expect("join"), released);
        });
    }
}

fn own_locks() {
    let [one, two] = [Mutex::new(1), Mutex::new(2)];
    let own = one.lock();
    let (which, guard) = lock_any(&[&one, &two]);
    assert_eq!((which, *guard), (1, 2));
    let error = lock_any_with(&[&one, &two], &LockOptions::new()).map(drop);
    assert!(matches!(error, Err(LockError::Unusable(Unusable::WouldDeadlock))), "{error:?}");
    drop((guard, own));
}

extern "C" fn nothing(_: i32) {}

fn ends() {
    static TOKEN: CancelToken = CancelToken::new();
    let [one, two] = [Mutex::new(1), Mutex::new(2)];
    let held = (one.lock(), two.lock());
    let any = |options: &LockOptions| lock_any_with(&[&one, &two], options).map(drop);
    let waits = || queued(&one, 1) && queued(&two, 1);
    thread::scope(|scope| {
        let soon = LockOptions::new().timeout(Duration::from_millis(5));
        let late = scope.spawn(move || any(&soon)).join().expect("join");
        assert!(matches!(late, Err(LockError::TimedOut)), "{late:?}");
        let waiter = scope.spawn(move || any(&LockOptions::new().cancel(&TOKEN)));
        until("it waits", waits);
        TOKEN.canceller().cancel();
        let cancelled = waiter.join().expect("join");
        assert!(matches!(cancelled, Err(LockError::Cancelled)), "{cancelled:?}");
        for flags in [SaFlags::empty(), SaFlags::SA_RESTART] {
            let action = SigAction::new(SigHandler::Handler(nothing), flags, SigSet::empty());
            interrupted(&action);
            let (tell, told) = mpsc::channel();
            let waiter = scope.spawn(move || {
                tell.send(nix::sys::pthread::pthread_self()).expect("tell");
                any(&LockOptions::new().interruptible(true))
            });
            let thread = told.recv().expect("be told");
            until("it waits", waits);
            // Until one comes while it sleeps.
            until("it was interrupted", || {
                let _ = nix::sys::pthread::pthread_kill(thread, Signal::SIGUSR1);
                waiter.is_finished()
            });
            let interrupted = waiter.join().expect("join");
            assert!(matches!(interrupted, Err(LockError::Interrupted)), "{interrupted:?}");
        }
    });
    assert!(queued(&one, 0) && queued(&two, 0));
    drop(held);
}

#[allow(unsafe_code)]
fn interrupted(action: &SigAction) {
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, action) }.expect("a handler");
}

const ROUNDS: u64 = 3000;

/// Takes locks of two segments, which it has mapped in the order given, and adds to all.
fn takes_all(args: &[String]) {
    let open = |at: usize| Segment::<Board>::open(&args[at]).expect("open");
    let (first, second) = (open(0), open(1));
    let locks =
        [&first.locks[2], &second.locks[1], &second.locks[4], &first.locks[7], &second.locks[0]];
    for _ in 0..ROUNDS {
        lock_all(&locks).into_iter().for_each(|mut guard| *guard += 1);
    }
}

fn opposite_orders() {
    let ((one, first), (two, second)) = (board(), board());
    let (one, two) = (one.to_str().expect("a path"), two.to_str().expect("a path"));
    let mut processes =
        [Process::spawn("takes_all", &[one, two]), Process::spawn("takes_all", &[two, one])];
    processes.iter_mut().for_each(|process| assert!(process.wait().success()));
    let sum: u64 =
        [&first, &second].iter().flat_map(|segment| &segment.locks).map(|lock| *lock.lock()).sum();
    assert_eq!(sum, 2 * 5 * ROUNDS);
}

fn all_or_none() {
    let locks = [Mutex::new(1), Mutex::new(2), Mutex::new(3)];
    let [one, two, three] = &locks;
    let held = two.lock();
    thread::scope(|scope| {
        scope.spawn(|| {
            let soon = LockOptions::new().timeout(Duration::from_millis(5));
            let late = lock_all_with(&[three, two, one], &soon).map(drop);
            assert!(matches!(late, Err(LockError::TimedOut)), "{late:?}");
            assert!(!one.is_locked() && !three.is_locked(), "it keeps some");
        });
    });
    drop(held);
    let guards = lock_all(&[three, one, two]);
    assert_eq!(guards.iter().map(|guard| **guard).collect::<Vec<_>>(), [3, 1, 2]);
    assert!(locks.iter().all(Mutex::is_locked));
    drop(guards);
    let twice = lock_all_with(&[one, two, one], &LockOptions::new()).map(drop);
    assert!(matches!(twice, Err(LockError::Unusable(Unusable::WouldDeadlock))), "{twice:?}");
}
