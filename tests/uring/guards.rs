//! Guards of acquisitions in a ring are guards like any others.

use crate::kit::{Board, Got, Puppet, Test, board, board_with, until};
use crate::rings::{Loop, PLAIN, require, with_each};
use heirlock::{LockError, LockOptions, Mutex, MutexGuard, Policy, Segment, Unusable, select};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("unlocked_bump_and_map_work_with_a_guard_from_a_ring", guard),
    ("a_guard_from_a_ring_waits_for_a_condition_variable", condvar),
    ("a_guard_from_a_ring_can_be_leaked", leak),
    ("a_throughput_lock_serves_rings_too", throughput),
    ("who_waits_in_a_ring_does_not_sleep_behind_itself", own_acquisition),
    ("who_is_handed_a_lock_as_it_would_sleep_behind_itself_does_not", handed_meanwhile),
    ("who_sleeps_behind_itself_is_a_deadlock_of_one", circle_of_one),
    ("a_forgotten_acquisition_is_none_of_the_next_locks_at_its_place", forgotten),
];

/// One that was waited for, in the ring.
fn waited<'m>(ring: &mut Loop<'m>, mutex: &'m Mutex<u64>) -> MutexGuard<'m, u64> {
    let held = mutex.lock();
    let id = ring.start(mutex);
    assert!(!ring.is_over(id));
    drop(held);
    ring.end_of(id).guard()
}

fn guard() {
    with_each(|kind| {
        let (path, segment) = board();
        let lock = &segment.locks[0];
        let mut other = Puppet::spawn(&path);
        let mut ring = Loop::new(kind);
        for wait in [false, true] {
            let mut guard = if wait {
                waited(&mut ring, lock)
            } else {
                let id = ring.start(lock);
                ring.end_of(id).guard()
            };
            let owner = heirlock::owner(lock);
            assert_eq!(other.try_lock(0), Got::Nothing);
            MutexGuard::unlocked(&mut guard, || {
                assert_eq!(other.lock(0), Got::Lock);
                other.unlock(0);
            });
            *guard += 1;
            assert_eq!(heirlock::owner(lock), owner, "{}: in the same row", kind.name);
            // To who waits, who is behind no one.
            MutexGuard::bump(&mut guard);
            other.queue(&segment, 0);
            other.start("unlock 0");
            MutexGuard::bump(&mut guard);
            assert_eq!(other.got(), Got::Lock, "{}", kind.name);
            assert_eq!(other.answer(), "ok");
            // To another acquisition of the same thread: its turn is before.
            let next = ring.start(lock);
            MutexGuard::unlocked(&mut guard, || {
                *ring.end_of(next).guard() += 1;
            });
            let mut mapped = MutexGuard::map(guard, |value| value);
            *mapped += 1;
            assert_eq!(other.try_lock(0), Got::Nothing);
            drop(mapped);
            assert_eq!(other.try_lock(0), Got::Lock);
            other.unlock(0);
        }
        ring.until_quiet();
        assert_eq!(*lock.lock(), 6);
    });
}

fn condvar() {
    with_each(|kind| {
        let (path, segment) = board();
        let (lock, condvar) = (&segment.locks[0], &segment.condvars[0]);
        let mut other = Puppet::spawn(&path);
        let mut ring = Loop::new(kind);
        for round in 0..5 {
            let mut guard = waited(&mut ring, lock);
            thread::scope(|scope| {
                scope.spawn(|| {
                    until("it waits", || {
                        heirlock::waiters(condvar).is_some_and(|who| who.len() == 1)
                    });
                    // The lock is free meanwhile, and held when it is notified.
                    assert_eq!(other.lock(0), Got::Lock);
                    assert!(other.notify_one(0));
                    other.unlock(0);
                });
                condvar.wait(&mut guard);
            });
            assert_eq!(*guard, round, "{}", kind.name);
            *guard += 1;
            assert_eq!(other.try_lock(0), Got::Nothing, "{}", kind.name);
            // And it notifies one that waits.
            drop(guard);
            assert_eq!(other.lock(0), Got::Lock);
            other.wait(&segment, 0, 0, "");
            let id = ring.start(lock);
            let guard = ring.end_of(id).guard();
            assert!(condvar.notify_one());
            drop(guard);
            assert_eq!(other.got(), Got::Lock, "{}", kind.name);
            other.unlock(0);
        }
        ring.until_quiet();
    });
}

fn leak() {
    with_each(|kind| {
        let mutex: &'static Mutex<u64> = Box::leak(Box::new(Mutex::new(0)));
        let thread = thread::spawn(move || {
            let mut ring = Loop::new(kind);
            let value = MutexGuard::leak(waited(&mut ring, mutex));
            ring.until_quiet();
            *value += 1;
        });
        thread.join().expect("join");
        // Unlike a forgotten one it outlives its thread.
        assert!(mutex.try_lock().is_none(), "{}", kind.name);
        let mut ring = Loop::new(kind);
        let id = ring.start(mutex);
        ring.look();
        assert!(!ring.is_over(id), "{}", kind.name);
        drop(ring.take(id));
        ring.until_quiet();
    });
}

fn throughput() {
    const TURNS: u64 = 200;
    const AT_ONCE: u64 = 4;
    require();
    let (path, segment) = board_with(Policy::Throughput);
    let lock = &segment.locks[0];
    // In line: who waits in a ring is served as who sleeps.
    with_each(|kind| {
        let mut ring = Loop::new(kind);
        let held = lock.lock();
        let ids: [u64; 5] = std::array::from_fn(|_| ring.start(lock));
        drop(held);
        for id in ids {
            drop(ring.end_of(id).guard());
        }
        ring.until_quiet();
        assert!(!lock.is_locked() && heirlock::queue(lock) == Some(vec![]));
    });
    // While others take it as often as they can, and have it at least as often.
    let over = &segment.locks[1];
    let (came, barged) = thread::scope(|scope| {
        let barging = [(); 2].map(|()| {
            scope.spawn(move || {
                let mut times = 0;
                while *over.lock() == 0 {
                    for _ in 0..100 {
                        *lock.lock() += 1;
                        times += 1;
                    }
                }
                times
            })
        });
        let mut ring = Loop::new(PLAIN);
        let (mut came, mut barged) = (0, 0);
        for _ in 0..AT_ONCE {
            ring.start(lock);
        }
        while came < TURNS || barged < TURNS {
            let mut guard = ring.next().1.guard();
            *guard += 1;
            came += 1;
            barged = *guard - came;
            drop(guard);
            ring.start(lock);
        }
        *over.lock() = 1;
        for _ in 0..AT_ONCE {
            *ring.next().1.guard() += 1;
        }
        ring.until_quiet();
        let barged = barging.map(|thread| thread.join().expect("join"));
        (came + AT_ONCE, barged.iter().sum::<u64>())
    });
    eprintln!("{came} turns in a ring beside {barged} of threads");
    assert_eq!(*lock.lock(), came + barged);
    // Whoever dies there is inherited from by a ring.
    let mut owner = Puppet::spawn(&path);
    assert_eq!(owner.lock(0), Got::Lock);
    let mut ring = Loop::new(PLAIN);
    let id = ring.start(lock);
    owner.kill();
    assert!(MutexGuard::inherited(&ring.end_of(id).guard()).is_some());
}

/// It would sleep behind its own acquisition, which nobody else goes on with.
fn own_acquisition() {
    with_each(|kind| {
        let (path, segment) = board();
        let [lock, other, ..] = &segment.locks;
        let mut owner = Puppet::spawn(&path);
        assert_eq!(owner.lock(0), Got::Lock);
        let mut ring = Loop::new(kind);
        let id = ring.start(lock);
        let would_deadlock = |ended: Result<(), LockError>| {
            assert!(
                matches!(ended, Err(LockError::Unusable(Unusable::WouldDeadlock))),
                "{ended:?}"
            );
        };
        would_deadlock(lock.lock_with(&LockOptions::new()).map(drop));
        would_deadlock(select::lock_any_with(&[lock], &LockOptions::new()).map(drop));
        assert_eq!(select::lock_any(&[lock, other]).0, 1);
        // These end by themselves.
        assert!(lock.try_lock().is_none());
        let soon = LockOptions::new().timeout(Duration::from_millis(5));
        assert!(matches!(lock.lock_with(&soon), Err(LockError::TimedOut)));
        assert_eq!(heirlock::queue(lock).map(|queue| queue.len()), Some(1));
        owner.unlock(0);
        let guard = ring.end_of(id).guard();
        would_deadlock(lock.lock_with(&LockOptions::new()).map(drop));
        drop(guard);
        drop(lock.lock());
        let dropped = ring.start(lock);
        assert!(ring.is_over(dropped));
        drop(ring.end_of(dropped).guard());
        ring.until_quiet();
    });
}

/// Through another mapping it is not seen before; then the thread has the lock in one row
/// while it sleeps for it in another.
fn circle_of_one() {
    require();
    let (path, segment) = board();
    let again: Segment<Board> = Segment::open(&path).expect("open");
    let mut owner = Puppet::spawn(&path);
    assert_eq!(owner.lock(0), Got::Lock);
    let mut ring = Loop::new(PLAIN);
    let id = ring.start(&segment.locks[0]);
    let row = ring.get(id).participant();
    thread::scope(|scope| {
        scope.spawn(|| {
            until("it sleeps behind itself", || {
                heirlock::queue(&segment.locks[0]).is_some_and(|queue| queue.len() == 2)
            });
            owner.unlock(0);
        });
        let ended = again.locks[0].lock_checked().map(drop);
        let Err(Unusable::Deadlock(circle)) = ended else { panic!("{ended:?}") };
        assert!(circle.to_string().starts_with("a deadlock of 1 thread:"), "{circle}");
    });
    assert_eq!(heirlock::owner(&segment.locks[0]), row);
    drop(ring.end_of(id).guard());
    ring.until_quiet();
    assert!(!segment.locks[0].is_locked());
}

/// In private memory, where a lock is known by its place.
fn forgotten() {
    let mut mutex = Mutex::new(0);
    std::mem::forget(mutex.lock());
    std::mem::forget(mutex.start(1).expect("start"));
    mutex = Mutex::new(1);
    thread::scope(|scope| {
        let held = mutex.lock();
        scope.spawn(|| *mutex.lock() += 1);
        let waits = || heirlock::queue(&mutex).is_some_and(|queue| queue.len() == 1);
        until("another thread waits", waits);
        // For long enough that this thread has to queue, behind that one.
        scope.spawn(|| *mutex.lock() += 1);
        until("two wait", || heirlock::queue(&mutex).is_some_and(|queue| queue.len() == 2));
        drop(held);
        assert!(*mutex.lock() >= 2);
    });
    assert_eq!(*mutex.lock(), 3);
}

/// The lock comes while the thread looks whether it waits for it, or has it already.
fn handed_meanwhile() {
    /// In so many rounds it has to have come by then, and in as many not.
    const FLOOR: u32 = 1000;
    let mutex = Mutex::new(0);
    let (ready, may_begin) = mpsc::channel();
    let (begin, begun) = mpsc::channel();
    let (mut handed, mut not) = (0, 0);
    thread::scope(|scope| {
        let mutex = &mutex;
        scope.spawn(move || {
            loop {
                let held = mutex.lock();
                if ready.send(()).is_err() || begun.recv().is_err() {
                    return;
                }
                drop(held);
            }
        });
        let mut pause = 0u32;
        while handed < FLOOR || not < FLOOR {
            may_begin.recv().expect("be told");
            let (acquire, _) = mutex.start(1).expect("start");
            begin.send(()).expect("tell");
            // It looks about when the other one hands over.
            (0..pause).for_each(|_| std::hint::spin_loop());
            let ended = mutex.lock_with(&LockOptions::new()).map(drop);
            let would = matches!(ended, Err(LockError::Unusable(Unusable::WouldDeadlock)));
            assert!(would, "{ended:?}");
            let has_it = heirlock::owner(mutex) == acquire.participant();
            match has_it {
                true => (handed, pause) = (handed + 1, pause.saturating_sub(7)),
                false => (not, pause) = (not + 1, pause + 5),
            }
            drop(acquire);
        }
        drop((begin, may_begin));
    });
    eprintln!("handed over by then {handed} times, {not} times not");
}
