//! A lock that tasks want at the same time, in one process, on one CPU: what it takes from
//! one owner to the next, beside threads that do the same, and tokio's own mutex.
//!
//! [`TASKS`] tasks take the lock, let the others go on while they hold it, and release it,
//! over and over: so each time it is handed over to one that waits.

#![allow(unsafe_code)]

use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
use heirlock::{Mutex, MutexGuard, Segment, uring};
use io_uring::IoUring;
use std::future::Future;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

#[path = "support/pin.rs"]
mod pin;

/// How many want the lock at a time.
const TASKS: u64 = 4;

type Shared = &'static Mutex<u64>;

fn shared() -> Shared {
    let segment: &Segment<Mutex<u64>> = Box::leak(Box::new(Segment::anonymous().expect("memfd")));
    segment
}

/// How long `n` turns take, which tasks of `runtime` share.
fn tasks<F>(runtime: &Runtime, n: u64, turn: impl Fn() -> F + Clone + Send + 'static) -> Duration
where
    F: Future<Output = ()> + Send + 'static,
{
    let start = Instant::now();
    runtime.block_on(async {
        let each = n.div_ceil(TASKS);
        let task = || {
            let turn = turn.clone();
            tokio::spawn(async move {
                for _ in 0..each {
                    turn().await;
                }
            })
        };
        for task in (0..TASKS).map(|_| task()).collect::<Vec<_>>() {
            task.await.expect("a task");
        }
    });
    start.elapsed()
}

/// The same with a thread for each.
fn threads(lock: Shared, n: u64) -> Duration {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..TASKS {
            scope.spawn(|| {
                for _ in 0..n.div_ceil(TASKS) {
                    let mut guard = lock.lock();
                    std::thread::yield_now();
                    *guard += 1;
                }
            });
        }
    });
    start.elapsed()
}

/// The same with one thread and a ring.
fn ring(lock: Shared, n: u64) -> Duration {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    let mut ring = builder.build(64).expect("a ring");
    let start = Instant::now();
    let mut held: Option<(u64, MutexGuard<'_, u64>)> = None;
    let mut waits: Vec<_> = (0..TASKS).map(|_| None).collect();
    let mut ready: Vec<u64> = (0..TASKS).collect();
    // Each has a number of its own, as its timeout may come when the next one is under way.
    let mut turn = 0;
    let mut left = n;
    let push = |ring: &mut IoUring, entries: &[io_uring::squeue::Entry]| {
        // SAFETY: what they point to outlives their completion.
        while unsafe { ring.submission().push_multiple(entries) }.is_err() {
            ring.submit().expect("submit");
        }
    };
    while left > 0 {
        for which in ready.drain(..) {
            turn += TASKS;
            let (acquire, progress) = lock.start(turn + which).expect("start");
            match progress {
                uring::Progress::Acquired(guard) => held = Some((which, guard)),
                uring::Progress::Again(entries) => push(&mut ring, &entries),
                ended => panic!("{ended:?}"),
            }
            waits[which as usize] = Some(acquire);
        }
        // The others are in the queue, or on their way to it.
        if let Some((which, mut guard)) = held.take() {
            *guard += 1;
            left -= 1;
            ready.push(which);
            drop(guard);
        }
        ring.submit_and_wait(1).expect("wait");
        let done: Vec<_> = ring.completion().collect();
        for done in done {
            let which = uring::user_data(&done) % TASKS;
            let Some(acquire) = &mut waits[which as usize] else { continue };
            match acquire.complete(&done).expect("complete") {
                uring::Progress::Acquired(guard) => held = Some((which, guard)),
                uring::Progress::Again(entries) => push(&mut ring, &entries),
                _ => {}
            }
        }
    }
    start.elapsed()
}

fn contended(group: &mut BenchmarkGroup<'_, WallTime>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_io()
        .build()
        .expect("a runtime");
    let lock = shared();
    group.bench_function("heirlock_threads", |b| b.iter_custom(|n| threads(lock, n)));
    let tokios = Arc::new(tokio::sync::Mutex::new(0u64));
    group.bench_function("tokio_mutex", |b| {
        b.iter_custom(|n| {
            let tokios = Arc::clone(&tokios);
            tasks(&runtime, n, move || {
                let tokios = Arc::clone(&tokios);
                async move {
                    let mut guard = tokios.lock().await;
                    tokio::task::yield_now().await;
                    *guard += 1;
                }
            })
        });
    });
    group.bench_function("heirlock_helper", |b| {
        b.iter_custom(|n| {
            tasks(&runtime, n, move || async move {
                let mut guard = lock.lock_async().await;
                tokio::task::yield_now().await;
                *guard += 1;
            })
        });
    });
    if let Some(refused) = uring::refused() {
        println!("no io_uring here: {refused}");
        return;
    }
    let driver = runtime.block_on(async { heirlock::tokio::Driver::new() }).expect("a driver");
    group.bench_function("heirlock_tokio", |b| {
        b.iter_custom(|n| {
            let reactor = driver.reactor().clone();
            tasks(&runtime, n, move || {
                let reactor = reactor.clone();
                async move {
                    let mut guard = lock.lock_async().on(&reactor).await;
                    tokio::task::yield_now().await;
                    *guard += 1;
                }
            })
        });
    });
    group.bench_function("heirlock_ring", |b| b.iter_custom(|n| ring(lock, n)));
}

fn uncontended(group: &mut BenchmarkGroup<'_, WallTime>) {
    let lock = shared();
    group.bench_function("heirlock_lock", |b| b.iter(|| *black_box(lock).lock() += 1));
    group.bench_function("heirlock_start", |b| {
        b.iter(|| match black_box(lock).start(1) {
            Ok((_, uring::Progress::Acquired(mut guard))) => *guard += 1,
            other => panic!("{other:?}"),
        });
    });
    group.bench_function("heirlock_lock_async", |b| {
        b.iter(|| *pollster::block_on(black_box(lock).lock_async()) += 1);
    });
    let tokios = tokio::sync::Mutex::new(0u64);
    group.bench_function("tokio_mutex", |b| {
        b.iter(|| *pollster::block_on(black_box(&tokios).lock()) += 1);
    });
}

fn main() {
    pin::to_cpu(pin::cpus()[0]);
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("asynchronous");
    uncontended(&mut group);
    group.finish();
    let mut group = criterion.benchmark_group("asynchronous_contended");
    group.sample_size(20);
    contended(&mut group);
    group.finish();
    criterion.final_summary();
}
