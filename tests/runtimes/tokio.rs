//! Locks between the tasks of tokio's multi-thread runtime, waited for by the process's helper
//! and in a ring that the runtime watches.

use heirlock::future::LockAsync;
use heirlock::tokio::Driver;
use heirlock::uring::{Reactor, refused};
use heirlock::{Mutex, Segment, queue};
use std::io::Write;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinHandle, spawn_blocking};

/// How long anything may take that ought to take no time.
const HANG: Duration = Duration::from_secs(30);

type Lock = &'static Segment<Mutex<u64>>;

fn lock() -> Lock {
    Box::leak(Box::new(Segment::anonymous().expect("a segment")))
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(4).enable_all().build().expect("a runtime")
}

/// Where a test's futures wait: with the helper, or in a ring, if there may be one.
fn everywhere(test: fn(Option<Reactor>, Runtime)) {
    within(move || {
        println!("with the helper, {:?}:", heirlock::future::backend());
        test(None, runtime());
        match refused() {
            Some(error) => skipped("with a driver", error),
            None => {
                println!("with a driver:");
                let runtime = runtime();
                let driver = runtime.block_on(async { Driver::new() }).expect("a driver");
                test(Some(driver.reactor().clone()), runtime);
            }
        }
    });
}

/// Says so; not by a macro, whose output is shown of failed tests only.
fn skipped(what: &str, refused: std::io::Error) {
    let _ = writeln!(std::io::stderr(), "skipped {what}: no io_uring here: {refused}");
}

/// Ends a test that is stuck.
fn within(test: impl FnOnce() + Send + 'static) {
    let (done, watch) = mpsc::channel::<()>();
    let test = thread::spawn(move || {
        let _done = done;
        test();
    });
    if watch.recv_timeout(2 * HANG) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("still running after {:?}", 2 * HANG);
    }
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}

#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < HANG, "waited {HANG:?} in vain until {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

#[track_caller]
fn until_queued(lock: Lock, length: usize) {
    let mut seen = None;
    until(&format!("{length} wait"), || {
        seen = queue(lock).map(|all| all.len());
        seen == Some(length)
    });
}

fn acquire(lock: Lock, reactor: &Option<Reactor>) -> LockAsync<'static, u64> {
    match reactor {
        Some(reactor) => lock.lock_async().on(reactor),
        None => lock.lock_async(),
    }
}

/// Tasks that each add one when they have the lock.
fn adders(
    runtime: &Runtime,
    lock: Lock,
    reactor: &Option<Reactor>,
    tasks: usize,
) -> Vec<JoinHandle<()>> {
    let add = |_| {
        let reactor = reactor.clone();
        runtime.spawn(async move { *acquire(lock, &reactor).await += 1 })
    };
    (0..tasks).map(add).collect()
}

#[test]
fn fifty_tasks_add_up_across_awaits_and_workers() {
    everywhere(|reactor, runtime| {
        const TASKS: u64 = 50;
        const ROUNDS: u64 = 10;
        let lock = lock();
        let begin = Instant::now();
        let add = |_| {
            let reactor = reactor.clone();
            runtime.spawn(async move {
                let mut moved = 0;
                for _ in 0..ROUNDS {
                    let mut guard = acquire(lock, &reactor).await;
                    let (value, worker) = (*guard, thread::current().id());
                    // A thread that is no worker wakes this task: whichever worker is idle
                    // goes on with it.
                    spawn_blocking(thread::yield_now).await.expect("it ends");
                    moved += u64::from(thread::current().id() != worker);
                    *guard = value + 1;
                    drop(guard);
                }
                moved
            })
        };
        let tasks: Vec<_> = (0..TASKS).map(add).collect();
        let sum = async {
            let mut moved = 0;
            for task in tasks {
                moved += task.await.expect("it ends");
            }
            moved
        };
        let moved = runtime.block_on(sum);
        println!(
            "  {} acquisitions in {:?}; {moved} guards were dropped by another worker",
            TASKS * ROUNDS,
            begin.elapsed()
        );
        assert_eq!(*lock.lock(), TASKS * ROUNDS);
        assert!(moved >= 10, "{moved}");
        assert!(!lock.is_locked());
    });
}

#[test]
fn a_driver_that_is_dropped_leaves_nobody_waiting() {
    within(|| {
        if let Some(error) = refused() {
            return skipped("of a driver that is dropped", error);
        }
        const TASKS: usize = 20;
        let (lock, runtime) = (lock(), runtime());
        let driver = runtime.block_on(async { Driver::new() }).expect("a driver");
        let reactor = Some(driver.reactor().clone());
        let held = lock.lock();
        let tasks = adders(&runtime, lock, &reactor, TASKS);
        until_queued(lock, TASKS);
        let order = queue(lock);
        drop(driver);
        // They keep their places, and somebody waits for those who come now, too.
        assert_eq!(queue(lock), order);
        let late = adders(&runtime, lock, &reactor, 1);
        until_queued(lock, TASKS + 1);
        drop(held);
        runtime.block_on(async {
            for task in tasks.into_iter().chain(late) {
                task.await.expect("it ends");
            }
        });
        assert_eq!(*lock.lock(), TASKS as u64 + 1);
    });
}

#[test]
fn a_runtime_that_is_shut_down_leaves_its_places_to_others() {
    everywhere(|reactor, runtime| {
        const TASKS: usize = 20;
        let lock = lock();
        let held = lock.lock();
        let _tasks = adders(&runtime, lock, &reactor, TASKS);
        until_queued(lock, TASKS);
        let other = self::runtime();
        let others = adders(&other, lock, &None, 3);
        until_queued(lock, TASKS + 3);
        runtime.shutdown_background();
        until_queued(lock, 3);
        let behind = thread::spawn(move || lock.try_lock_for(HANG).map(|mut value| *value += 1));
        until_queued(lock, 4);
        drop(held);
        other.block_on(async {
            for task in others {
                task.await.expect("it ends");
            }
        });
        assert!(behind.join().expect("it waits").is_some(), "it waited for who is gone");
        assert_eq!(*lock.lock(), 4, "a task that was dropped has added");
    });
}

/// It had the lock in the middle of an `await`.
#[test]
fn a_runtime_that_is_shut_down_releases_what_its_tasks_hold() {
    everywhere(|reactor, runtime| {
        let lock = lock();
        runtime.spawn(async move {
            let _guard = acquire(lock, &reactor).await;
            std::future::pending::<()>().await;
        });
        until("the task has the lock", || lock.is_locked());
        let behind = thread::spawn(move || lock.try_lock_for(HANG).map(|mut value| *value += 1));
        until_queued(lock, 1);
        runtime.shutdown_background();
        assert!(behind.join().expect("it waits").is_some(), "it is locked for good");
        assert!(!lock.is_locked());
    });
}

#[test]
fn a_timeout_of_tokios_leaves_the_queue() {
    everywhere(|reactor, runtime| {
        let lock = lock();
        let held = lock.lock();
        runtime.block_on(async {
            for _ in 0..20 {
                let soon = Duration::from_millis(2);
                let late = tokio::time::timeout(soon, acquire(lock, &reactor)).await;
                assert!(late.is_err(), "a lock that is held was had");
                assert_eq!(queue(lock), Some(vec![]));
            }
        });
        let tasks = adders(&runtime, lock, &reactor, 1);
        until_queued(lock, 1);
        drop(held);
        runtime.block_on(async {
            for task in tasks {
                task.await.expect("it ends");
            }
            let guard = tokio::time::timeout(HANG, acquire(lock, &reactor)).await;
            assert_eq!(*guard.expect("it is free"), 1);
        });
        assert!(!lock.is_locked());
    });
}
