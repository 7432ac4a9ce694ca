//! Guards whose lock could not be acquired again, because the thread had it by other means.

use crate::kit::{Board, Test, board, panic_of, until};
#[cfg(feature = "io-uring")]
use heirlock::uring::{AsyncAcquire, Progress};
use heirlock::{Mutex, MutexGuard, Segment, owner, queue};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
#[cfg(feature = "io-uring")]
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("a_guard_whose_lock_was_taken_while_it_was_unlocked_is_void", taken),
    ("a_panic_with_the_lock_taken_leaves_a_void_guard", taken_and_panicked),
    #[cfg(feature = "io-uring")]
    ("a_guard_whose_lock_was_bumped_to_its_own_thread_is_void", bumped),
    #[cfg(feature = "io-uring")]
    ("a_guard_on_lease_that_is_void_gives_its_row_back", on_lease),
    #[cfg(feature = "io-uring")]
    ("who_waits_for_the_lock_in_a_ring_does_not_let_go_of_it", refused),
    #[cfg(feature = "io-uring")]
    ("a_guard_that_waited_until_its_own_thread_had_the_lock_is_void", waited),
];

const MINE: &str = "holds the lock already";

/// That a guard says that it has no lock, and to drop it does nothing.
#[track_caller]
fn drop_void(lock: &Mutex<u64>, mut guard: MutexGuard<u64>) {
    let before = owner(lock);
    for message in [panic_of(|| *guard), panic_of(|| *guard += 1)] {
        assert!(message.contains("lost its lock"), "{message}");
    }
    assert!(MutexGuard::inherited(&guard).is_none());
    let again = panic_of(|| MutexGuard::unlocked(&mut guard, || ()));
    assert!(again.contains("lost its lock"), "{again}");
    drop(guard);
    assert_eq!(owner(lock), before);
}

/// That whoever has `slot` has the lock, and the next one has it then.
#[track_caller]
fn is_the_only_one(lock: &Mutex<u64>, mut slot: MutexGuard<u64>) {
    let before = *slot;
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let other = scope.spawn(move || {
            let mut guard = lock.lock();
            tell.send(()).expect("tell");
            released.recv().expect("be told");
            *guard += 1;
        });
        until("another thread waits", || queue(lock).is_some_and(|queue| queue.len() == 1));
        *slot += 1;
        drop(slot);
        told.recv().expect("be told");
        assert!(lock.try_lock().is_none(), "the other thread has lost it");
        release.send(()).expect("tell");
        other.join().expect("the other thread");
    });
    assert_eq!(*lock.lock(), before + 2);
}

/// That the thread has left the segment, for it holds nothing there.
#[track_caller]
fn leaves_nothing(path: &Path, segment: Segment<Board>) {
    static ANOTHER: Mutex<()> = Mutex::new(());
    drop(segment);
    // It leaves what it needs no more when it looks for something else.
    drop(ANOTHER.lock());
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the maps");
    assert!(!maps.contains(path.to_str().expect("a path")), "it is still mapped");
}

fn taken() {
    fn take(lock: &Mutex<u64>) {
        let mut guard = lock.lock();
        let mut slot = None;
        let message = panic_of(|| MutexGuard::unlocked(&mut guard, || slot = Some(lock.lock())));
        assert!(message.contains(MINE), "{message}");
        drop_void(lock, guard);
        is_the_only_one(lock, slot.expect("it was taken"));
    }
    static LOCK: Mutex<u64> = Mutex::new(0);
    take(&LOCK);
    let (path, segment) = board();
    take(&segment.locks[0]);
    leaves_nothing(&path, segment);
}

fn taken_and_panicked() {
    static LOCK: Mutex<u64> = Mutex::new(0);
    let mut guard = LOCK.lock();
    let mut slot = None;
    let message = panic_of(|| {
        MutexGuard::unlocked(&mut guard, || {
            slot = Some(LOCK.lock());
            panic!("on purpose")
        })
    });
    assert_eq!(message, "on purpose");
    drop_void(&LOCK, guard);
    is_the_only_one(&LOCK, slot.expect("it was taken"));
}

/// Waits in the queue, as something of the calling thread's beside what that does.
#[cfg(feature = "io-uring")]
fn queued(lock: &Mutex<u64>) -> AsyncAcquire<'_, u64> {
    lock.start(1).expect("it is started").0
}

#[cfg(feature = "io-uring")]
fn acquired<'m>(mut acquire: AsyncAcquire<'m, u64>) -> MutexGuard<'m, u64> {
    match acquire.look().expect("a look") {
        Progress::Acquired(guard) => guard,
        other => panic!("it was this thread's: {other:?}"),
    }
}

/// Through another mapping of the segment, which is not looked at before.
#[cfg(feature = "io-uring")]
fn bumped() {
    let (path, segment) = board();
    let again: Segment<Board> = Segment::open(&path).expect("open");
    let lock = &segment.locks[0];
    let mut guard = lock.lock();
    let acquire = queued(&again.locks[0]);
    let message = panic_of(|| MutexGuard::bump(&mut guard));
    assert!(message.contains(MINE), "{message}");
    let slot = acquired(acquire);
    drop_void(lock, guard);
    is_the_only_one(&again.locks[0], slot);
    drop(segment);
    leaves_nothing(&path, again);
}

#[cfg(feature = "io-uring")]
fn on_lease() {
    let (path, segment) = board();
    let lock = &segment.locks[0];
    let mut rows = Vec::new();
    for _ in 0..3 {
        let mut slot = None;
        let (_, progress) = lock.start(1).expect("it is started");
        let Progress::Acquired(mut guard) = progress else { panic!("it was free") };
        rows.push(owner(lock).expect("an owner").row());
        panic_of(|| MutexGuard::unlocked(&mut guard, || slot = Some(lock.lock())));
        drop_void(lock, guard);
        is_the_only_one(lock, slot.expect("it was taken"));
    }
    assert!(rows.iter().all(|row| *row == rows[0]), "each took another row: {rows:?}");
    leaves_nothing(&path, segment);
}

/// It would hand the lock to itself, and sleep.
#[cfg(feature = "io-uring")]
fn refused() {
    let (path, segment) = board();
    let (lock, condvar) = (&segment.locks[0], &segment.condvars[0]);
    let mut guard = lock.lock();
    let acquire = queued(lock);
    for message in [
        panic_of(|| condvar.wait_for(&mut guard, Duration::from_secs(60)).timed_out()),
        panic_of(|| condvar.wait(&mut guard)),
        panic_of(|| MutexGuard::bump(&mut guard)),
    ] {
        assert!(message.contains(MINE), "{message}");
    }
    *guard += 1;
    assert!(queue(lock).is_some_and(|queue| queue.len() == 1), "it has kept the lock");
    drop(guard);
    is_the_only_one(lock, acquired(acquire));
    leaves_nothing(&path, segment);
}

/// Through another mapping of the segment, which is not looked at before.
#[cfg(feature = "io-uring")]
fn waited() {
    let (path, segment) = board();
    let again: Segment<Board> = Segment::open(&path).expect("open");
    let (lock, condvar) = (&segment.locks[0], &segment.condvars[0]);
    let mut guard = lock.lock();
    let acquire = queued(&again.locks[0]);
    let wait = |guard: &mut _| condvar.wait_for(guard, Duration::from_millis(1)).timed_out();
    let message = panic_of(|| wait(&mut guard));
    assert!(message.contains(MINE), "{message}");
    let mut slot = acquired(acquire);
    let message = panic_of(|| wait(&mut guard));
    assert!(message.contains("lost its lock"), "{message}");
    drop_void(lock, guard);
    let condvar = &again.condvars[0];
    assert!(
        condvar.wait_for(&mut slot, Duration::from_millis(1)).timed_out(),
        "who has the lock can wait"
    );
    is_the_only_one(&again.locks[0], slot);
    drop(segment);
    leaves_nothing(&path, again);
}
