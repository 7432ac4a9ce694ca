//! The lock between threads of one process. ThreadSanitizer sees these
//! (`ci/thread-sanitizer`): the protected data is accessed without atomics, so
//! a missing ordering in the lock is a data race here. A plain `main` runs them,
//! because the usual harness passes results through parts of the standard
//! library that the sanitizer misunderstands.

use heirlock::thread::{Thread, current, park};
use heirlock::{Mutex, MutexGuard, Participant, Segment};
use std::cell::UnsafeCell;
use std::thread;
use std::time::Duration;

#[path = "threads/condvar.rs"]
mod condvar;

const THREADS: u64 = 4;

fn main() {
    let tests: &[(&str, fn())] = &[
        ("a_static_mutex_loses_no_increment", a_static_mutex_loses_no_increment),
        ("a_mutex_in_a_segment_loses_no_increment", a_mutex_in_a_segment_loses_no_increment),
        (
            "every_kind_of_acquisition_excludes_every_other",
            every_kind_of_acquisition_excludes_every_other,
        ),
        (
            "what_was_done_before_an_unpark_is_seen_after_the_park",
            what_was_done_before_an_unpark_is_seen_after_the_park,
        ),
        (
            "threads_that_come_and_go_hand_on_what_they_forget",
            threads_that_come_and_go_hand_on_what_they_forget,
        ),
    ];
    let sanitizer = std::env::var_os("HEIRLOCK_THREAD_SANITIZER").is_some();
    let mut passed = 0;
    let tests = || tests.iter().chain(condvar::TESTS);
    for (name, test) in tests() {
        if sanitizer && name.contains("forget") {
            // An heir is ordered behind the dead by the kernel's mark in the
            // life word, an access that the sanitizer does not see.
            println!("test {name} ... skipped: the sanitizer does not see what the kernel writes");
            continue;
        }
        test(); // a failure panics, and so fails the run
        println!("test {name} ... ok");
        passed += 1;
    }
    println!("{passed} passed, 0 failed, {} skipped", tests().count() - passed);
}

/// Each thread runs `turn` as often as said.
fn hammer(rounds: u64, turn: impl Fn(u64) + Sync) {
    thread::scope(|scope| {
        let hammer = |me| {
            let turn = &turn;
            scope.spawn(move || (0..rounds).for_each(|_| turn(me)))
        };
        let threads: Vec<_> = (0..THREADS).map(hammer).collect();
        // One by one: the sanitizer sees a join, but not how a scope ends, which
        // is inside of the standard library.
        for thread in threads {
            thread.join().expect("no turn fails");
        }
    });
}

fn a_static_mutex_loses_no_increment() {
    static COUNTER: Mutex<u64> = Mutex::new(0);
    hammer(20_000, |_| *COUNTER.lock() += 1);
    assert_eq!(*COUNTER.lock(), THREADS * 20_000);
}

fn a_mutex_in_a_segment_loses_no_increment() {
    let segment: Segment<[Mutex<[u64; 4]>; 2]> = Segment::anonymous().expect("a memfd");
    hammer(10_000, |me| {
        segment[0].lock()[me as usize] += 1;
        segment[1].lock()[0] += 1;
    });
    assert_eq!(*segment[0].lock(), [10_000; 4]);
    assert_eq!(segment[1].lock()[0], THREADS * 10_000);
}

fn every_kind_of_acquisition_excludes_every_other() {
    let value = Mutex::new((0u64, 0u64));
    let acquired = Mutex::new(0u64);
    hammer(4_000, |me| {
        let guard = match me {
            0 => Some(value.lock()),
            1 => value.try_lock(),
            2 => value.try_lock_for(Duration::from_micros(20)),
            _ => value.try_lock_for(Duration::from_secs(30)),
        };
        let Some(mut guard) = guard else { return };
        assert_eq!(guard.0, guard.1);
        guard.0 += 1;
        guard.1 += 1;
        MutexGuard::bump(&mut guard);
        drop(guard);
        *acquired.lock() += 1;
    });
    let value = value.lock();
    assert_eq!(value.0, value.1);
    assert!(*acquired.lock() >= 2 * 4_000, "the two that wait always get it");
}

fn threads_that_come_and_go_hand_on_what_they_forget() {
    static LOCK: Mutex<u64> = Mutex::new(0);
    for round in 0..200 {
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let mut guard = LOCK.lock();
                    *guard += 1;
                    std::mem::forget(guard);
                });
            }
        });
        let guard = LOCK.lock();
        assert!(MutexGuard::inherited(&guard).is_some());
        assert_eq!(*guard, (round + 1) * THREADS);
    }
}

/// Two threads have the value in turn: nothing but the tokens orders their accesses.
#[allow(unsafe_code)]
fn what_was_done_before_an_unpark_is_seen_after_the_park() {
    struct InTurn(UnsafeCell<u64>);
    // SAFETY: the thread that has been unparked has it, until it unparks the other.
    unsafe impl Sync for InTurn {}
    impl InTurn {
        fn place(&self) -> *mut u64 {
            self.0.get()
        }
    }

    const ROUNDS: u64 = 10_000;
    let players: Segment<[Mutex<u64>; 2]> = Segment::anonymous().expect("a memfd");
    let value = InTurn(UnsafeCell::new(0));
    let play = &|side: usize| {
        let me = current(&players).expect("join").participant();
        *players[side].lock() = me.to_bits();
        let other = loop {
            if let Some(other) = Participant::from_bits(*players[1 - side].lock()) {
                break Thread::of(&players, other);
            }
            thread::yield_now();
        };
        for round in 0..ROUNDS {
            if side == 1 || round > 0 {
                park(&players);
            }
            // SAFETY: see above.
            unsafe { *value.place() += 1 };
            // The last one may find that the other has left.
            assert!(other.unpark() || round + 1 == ROUNDS);
        }
    };
    thread::scope(|scope| {
        for thread in [0, 1].map(|side| scope.spawn(move || play(side))) {
            thread.join().expect("no round fails");
        }
    });
    assert_eq!(value.0.into_inner(), 2 * ROUNDS);
}
