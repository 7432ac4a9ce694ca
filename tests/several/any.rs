//! The first of several locks.

use crate::Task;
use crate::clerk::{Clerk, Scene};
use crate::kit::{HANG, Test, panic_of, skip, until};
use heirlock::select::{MAX_LOCKS, lock_any, lock_any_async, lock_any_with};
use heirlock::{LockError, LockOptions, Mutex, MutexGuard, Segment, Unusable};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("who_waits_for_any_keeps_its_place_in_each_queue", || in_order(&Scene::new(), "any")),
    ("a_future_of_any_keeps_its_place_in_each_queue", || in_order(&Scene::new(), "any-async")),
    ("one_may_wait_for_64_locks", || sixty_four(&Scene::new(), "any")),
    ("a_future_may_wait_for_64_locks", || sixty_four(&Scene::new(), "any-async")),
    ("no_lock_and_65_locks_are_an_error_that_says_so", none_and_too_many),
    ("what_came_second_passes_on_to_the_next", || two_at_once(&Scene::new(), "any")),
    ("what_came_second_to_a_future_passes_on_to_the_next", || {
        two_at_once(&Scene::new(), "any-async");
    }),
    ("what_comes_while_it_takes_another_passes_on", || another_meanwhile("any")),
    ("what_comes_while_a_future_takes_another_passes_on", || another_meanwhile("any-async")),
    ("a_wait_for_any_ends_in_time", || timed(&Scene::new(), "any")),
    ("a_future_of_any_ends_in_time", || timed(&Scene::new(), "any-async")),
    ("a_token_ends_a_wait_for_any", || cancelled(&Scene::new(), "any")),
    ("a_token_ends_a_future_of_any", || cancelled(&Scene::new(), "any-async")),
    ("a_signal_handler_ends_an_interruptible_wait_for_any", interrupted),
    ("no_signal_ends_a_future_of_any", || undisturbed(&Scene::new())),
    ("the_killed_owner_of_one_of_64_is_inherited_from", || one_dies(&Scene::new(), "any")),
    ("a_future_inherits_from_the_killed_owner_of_one_of_64", || {
        one_dies(&Scene::new(), "any-async");
    }),
    ("any_may_be_in_two_segments_and_in_none", in_several_segments),
    ("what_the_thread_holds_it_does_not_wait_for", holds_some),
    ("the_same_lock_twice_is_had_once", twice),
];

/// What holds in every sandbox as well: the second is the command.
pub(crate) const CORE: &[fn(&Scene, &str)] =
    &[in_order, sixty_four, two_at_once, timed, cancelled, one_dies];

fn in_order(scene: &Scene, any: &str) {
    let held = [0, 1, 2].map(|number| scene.lock(number).lock());
    let mut clerks = [(); 5].map(|()| scene.clerk());
    clerks[0].queue(scene, "lock", &[1], 1);
    clerks[1].start(&format!("{any} 0 1 2"));
    for (number, place) in [(0, 1), (1, 2), (2, 1)] {
        scene.until_queued(number, place);
    }
    clerks[2].queue(scene, "lock", &[1], 3);
    clerks[3].start(&format!("{any} 2 1"));
    for (number, place) in [(1, 4), (2, 2)] {
        scene.until_queued(number, place);
    }
    clerks[4].queue(scene, "lock", &[2], 3);
    let order = scene.queue(1);
    let [zero, one, two] = held;
    drop(one);
    for (at, clerk) in clerks[..4].iter_mut().enumerate() {
        assert_eq!(clerk.answer(), "1 locked");
        assert_eq!(heirlock::owner(scene.lock(1)), Some(order[at]));
        assert_eq!(scene.queue(1), order[at + 1..]);
        let elsewhere = [scene.queue(0).len(), scene.queue(2).len()];
        assert_eq!(elsewhere, [[1, 3], [0, 2], [0, 2], [0, 1]][at], "after {at}");
        clerk.unlock();
    }
    drop(two);
    assert_eq!(clerks[4].answer(), "2 locked");
    drop(zero);
    assert!(!scene.lock(0).is_locked() && !scene.lock(1).is_locked());
}

fn sixty_four(scene: &Scene, any: &str) {
    let all: Vec<usize> = (0..MAX_LOCKS).collect();
    let mut clerk = scene.clerk();
    for last in [MAX_LOCKS - 1, 0, 36] {
        let mut held: Vec<_> = all.iter().map(|number| scene.lock(*number).lock()).collect();
        clerk.queue(scene, any, &all, 1);
        drop(held.swap_remove(last));
        assert_eq!(clerk.answer(), format!("{last} locked"));
        assert!(all.iter().all(|number| scene.queue(*number).is_empty()), "it has left them");
        drop(held);
        assert!(all.iter().all(|number| scene.lock(*number).is_locked() == (*number == last)));
        clerk.unlock();
    }
}

fn none_and_too_many() {
    let locks: Vec<Mutex<u64>> = (0..=MAX_LOCKS as u64).map(Mutex::new).collect();
    let all: Vec<&Mutex<u64>> = locks.iter().collect();
    for some in [&all[..0], &all[..]] {
        let options = LockOptions::new();
        for error in [
            lock_any_with(some, &options).map(drop).unwrap_err(),
            pollster::block_on(lock_any_async(some, &options)).map(drop).unwrap_err(),
        ] {
            let LockError::Unusable(Unusable::NumberOfLocks { found, max: 64 }) = error else {
                panic!("{error:?}");
            };
            assert_eq!(found, some.len());
            let message = error.to_string();
            assert!(message.contains(&format!("any of {found} locks")), "{message}");
        }
        let message = panic_of(|| lock_any(some).0);
        assert!(message.contains(&format!("any of {} locks", some.len())), "{message}");
    }
    assert!(locks.iter().all(|lock| !lock.is_locked()));
    assert_eq!(lock_any(&all[..MAX_LOCKS]).0, 0);
}

/// The waiter cannot run while it is handed both: it keeps the first of the slice.
fn two_at_once(scene: &Scene, any: &str) {
    for round in 0..10 {
        let mut held = vec![scene.lock(0).lock(), scene.lock(1).lock()];
        let mut both = scene.clerk();
        both.queue(scene, any, &[0, 1], 1);
        let rows = [scene.queue(0)[0], scene.queue(1)[0]];
        let mut behind = [scene.clerk(), scene.clerk()];
        behind[0].queue(scene, "lock", &[0], 2);
        behind[1].queue(scene, "future", &[1], 2);
        let next = scene.queue(1)[1];
        both.process.stop();
        drop(held.remove(round % 2));
        drop(held);
        let owners = [0, 1].map(|number| heirlock::owner(scene.lock(number)));
        assert_eq!(owners, rows.map(Some), "it is handed both");
        both.process.resume();
        assert_eq!(both.answer(), "0 locked");
        until("the other one passes on", || heirlock::owner(scene.lock(1)) == Some(next));
        assert_eq!(behind[1].answer(), "1 locked");
        assert_eq!(heirlock::owner(scene.lock(0)), Some(rows[0]), "it keeps one");
        assert_eq!(scene.queue(0).len(), 1);
        both.unlock();
        assert_eq!(behind[0].answer(), "0 locked");
        behind.iter_mut().for_each(Clerk::unlock);
        assert!(!scene.lock(0).is_locked() && !scene.lock(1).is_locked());
    }
}

/// The last of three locks is handed to the waiter; and the second, when it has looked at
/// that and begun to leave the others: it is stepped to where it has left the first.
fn another_meanwhile(any: &str) {
    if !cfg!(target_arch = "x86_64") {
        skip("processes are stepped on x86-64 only");
    }
    let scene = &Scene::new();
    let [first, second, third] = [0, 1, 2].map(|number| scene.lock(number).lock());
    let [mut both, mut behind] = [(); 2].map(|()| scene.clerk());
    both.queue(scene, any, &[0, 1, 2], 1);
    behind.queue(scene, "lock", &[1], 2);
    let rows = scene.queue(1);
    let pid = both.process.pid();
    if let Err(error) = ptrace::attach(pid) {
        skip(format!("no ptrace: {error}"));
    }
    let stopped = || {
        let status = waitpid(pid, None).expect("wait for a stop");
        assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
    };
    stopped();
    drop(third);
    let mut steps = 0;
    while heirlock::queue(scene.lock(0)) != Some(vec![]) {
        ptrace::step(pid, None).expect("step");
        stopped();
        steps += 1;
        assert!(steps < 1_000_000, "it does not leave");
    }
    assert_eq!(scene.queue(1), rows, "it has not left it yet");
    drop(second);
    assert_eq!(heirlock::owner(scene.lock(1)), Some(rows[0]), "it is handed both");
    ptrace::detach(pid, None).expect("detach");
    assert_eq!(both.answer(), "2 locked");
    assert_eq!(behind.answer(), "1 locked", "it keeps both");
    println!("{any}: after {steps} instructions");
    both.unlock();
    behind.unlock();
    drop(first);
    assert!((0..3).all(|number| !scene.lock(number).is_locked()));
}

fn timed(scene: &Scene, any: &str) {
    let held = [0, 1, 2].map(|number| scene.lock(number).lock());
    let mut clerk = scene.clerk();
    let start = Instant::now();
    assert_eq!(clerk.tell(&format!("{any}/60 0 1 2")), "timed out");
    assert!(start.elapsed() >= Duration::from_millis(60));
    assert_eq!(clerk.tell(&format!("{any}/0 0 1 2")), "timed out");
    for number in 0..3 {
        assert_eq!(scene.queue(number), []);
    }
    drop(held);
    assert_eq!(clerk.tell(&format!("{any}/0 2 1")), "2 locked");
    clerk.unlock();
}

fn cancelled(scene: &Scene, any: &str) {
    let held = [0, 1].map(|number| scene.lock(number).lock());
    let (mut clerk, mut behind) = (scene.clerk(), scene.clerk());
    clerk.queue(scene, &format!("{any}/token"), &[0, 1], 1);
    behind.queue(scene, any, &[0, 1], 2);
    let others = [scene.queue(0)[1], scene.queue(1)[1]];
    scene.segment.token.canceller().cancel();
    assert_eq!(clerk.answer(), "cancelled");
    assert_eq!([scene.queue(0), scene.queue(1)], others.map(|other| vec![other]));
    // Also what it could have at once.
    assert_eq!(clerk.tell(&format!("{any}/token 2 3")), "cancelled");
    scene.segment.token.reset();
    drop(held);
    let answer = behind.answer();
    assert!(["0 locked", "1 locked"].contains(&&*answer), "{answer}");
    behind.unlock();
    assert_eq!(clerk.tell(&format!("{any}/token 2 3")), "2 locked");
    clerk.unlock();
}

fn interrupted() {
    let all: Vec<usize> = (0..8).collect();
    for handle in ["handle", "handle restart"] {
        let scene = &Scene::new();
        let _held: Vec<_> = all.iter().map(|number| scene.lock(*number).lock()).collect();
        let (mut clerk, mut behind) = (scene.clerk(), scene.clerk());
        clerk.tell(handle);
        clerk.queue(scene, "any/interruptible", &all, 1);
        behind.queue(scene, "any", &all, 2);
        let mut signals = 0;
        until("the wait is interrupted", || {
            clerk.process.interrupt(Signal::SIGUSR1);
            signals += 1;
            scene.queue(0).len() == 1
        });
        assert_eq!(clerk.answer(), "interrupted", "{handle}");
        assert!(all.iter().all(|number| scene.queue(*number).len() == 1), "it has left them");
        println!("{handle}: after {signals} signals");
    }
}

fn undisturbed(scene: &Scene) {
    let held = [0, 1].map(|number| scene.lock(number).lock());
    let mut clerk = scene.clerk();
    clerk.tell("handle");
    clerk.queue(scene, "any-async/interruptible", &[0, 1], 1);
    let place = [scene.queue(0), scene.queue(1)];
    for _ in 0..20 {
        clerk.process.interrupt(Signal::SIGUSR1);
    }
    assert_eq!([scene.queue(0), scene.queue(1)], place);
    let [zero, one] = held;
    drop(one);
    assert_eq!(clerk.answer(), "1 locked");
    let handled: u64 = clerk.tell("handled").parse().expect("a number");
    assert!(handled >= 20, "{handled}");
    drop(zero);
}

fn one_dies(scene: &Scene, any: &str) {
    const DEAD: usize = 36;
    let all: Vec<usize> = (0..MAX_LOCKS).collect();
    let mut owner = scene.clerk();
    assert_eq!(owner.tell(&format!("lock {DEAD}")), format!("{DEAD} locked"));
    let others = all.iter().filter(|number| **number != DEAD);
    let held: Vec<_> = others.map(|number| scene.lock(*number).lock()).collect();
    let mut clerk = scene.clerk();
    clerk.queue(scene, any, &all, 1);
    owner.process.kill();
    assert_eq!(clerk.answer(), Clerk::inherits(DEAD, &owner));
    assert!(all.iter().all(|number| scene.queue(*number).is_empty()), "it has left them");
    clerk.unlock();
    assert!(MutexGuard::inherited(&scene.lock(DEAD).lock()).is_none(), "it was told twice");
    drop(held);
}

fn in_several_segments() {
    let segments: [Segment<Mutex<u64>>; 2] = [(); 2].map(|()| Segment::anonymous().expect("one"));
    let private = Mutex::new(0);
    let locks: [&Mutex<u64>; 3] = [&segments[0], &private, &segments[1]];
    let mut got = BTreeSet::new();
    for asleep in [true, false] {
        for free in 0..3 {
            let mut held: Vec<_> = locks.iter().map(|lock| lock.lock()).collect();
            let waits = || {
                let options = LockOptions::new().timeout(HANG);
                let which = match asleep {
                    true => {
                        let (which, mut guard) = lock_any_with(&locks, &options)?;
                        *guard += 1;
                        which
                    }
                    false => {
                        let any = lock_any_async(&locks, &options);
                        let (which, mut guard) = pollster::block_on(any)?;
                        *guard += 1;
                        which
                    }
                };
                Ok::<_, LockError>(which)
            };
            thread::scope(|scope| {
                let waiter = scope.spawn(waits);
                until("it stands in all queues", || {
                    locks.iter().all(|lock| heirlock::queue(lock).is_some_and(|all| all.len() == 1))
                });
                drop(held.remove(free));
                let which = waiter.join().expect("it waits").expect("it was handed one");
                assert_eq!(which, free);
                got.insert(which);
            });
            assert!(locks.iter().all(|lock| heirlock::queue(lock) == Some(vec![])));
        }
    }
    assert_eq!(got.len(), 3);
    assert!(locks.iter().all(|lock| *lock.lock() == 2));
}

fn holds_some() {
    let locks = [(); 3].map(|()| Mutex::new(0));
    let [own, others, also] = locks.each_ref();
    // It waits for the second one only, whatever place that has.
    let (hold, held) = std::sync::mpsc::channel::<()>();
    thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        scope.spawn(move || {
            let guard = others.lock();
            tell.send(()).expect("tell");
            held.recv().expect("it is told to let go");
            drop(guard);
        });
        told.recv().expect("it holds the lock");
        let guards = (own.lock(), also.lock());
        let soon = LockOptions::new().timeout(Duration::from_millis(20));
        let late = lock_any_with(&[own, others, also], &soon);
        assert!(matches!(late, Err(LockError::TimedOut)), "{late:?}");
        scope.spawn(move || {
            until("it waits", || heirlock::queue(others).is_some_and(|all| all.len() == 1));
            assert_eq!(heirlock::queue(own), Some(vec![]));
            hold.send(()).expect("tell");
        });
        let (which, guard) = lock_any(&[own, others, also]);
        assert_eq!(which, 1);
        let all = lock_any_with(&[own, others, also], &LockOptions::new());
        assert!(matches!(all, Err(LockError::Unusable(Unusable::WouldDeadlock))), "{all:?}");
        assert!(panic_of(|| lock_any(&[own]).0).contains("this thread holds the lock"));
        // A future waits for what its thread holds.
        let any = lock_any_async(&[own, others, also], &LockOptions::new());
        let task = Task::waiting(any);
        drop(guards);
        let (which, kept) = task.finish().expect("it was handed one");
        assert!(which != 1, "{which}");
        drop((kept, guard));
    });
    assert!(locks.iter().all(|lock| !lock.is_locked()));
}

fn twice() {
    let lock = Mutex::new(0);
    assert_eq!(lock_any(&[&lock, &lock]).0, 0);
    let held = lock.lock();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| *lock_any(&[&lock, &lock]).1 += 1);
        until("it stands there twice", || heirlock::queue(&lock).is_some_and(|all| all.len() == 2));
        drop(held);
        waiter.join().expect("it has it");
    });
    assert_eq!(heirlock::queue(&lock), Some(vec![]));
    assert_eq!(*lock.lock(), 1);
}
