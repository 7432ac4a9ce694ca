//! What a process does that measures by itself: queues of one lock, joining, and many
//! locks in one segment.

use super::arena::{self, Phase};
use super::cli::{BenchSoloArgs, Part};
use super::figures::median;
use super::peers::Lock;
use super::{heir, heirs, pin};
use crate::Result;
use crate::crew::enlist;
use heirlock::{Mutex, Segment};
use rustix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Barrier, RwLock};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

/// More rows than waiters.
const SPARE_ROWS: usize = 100;

/// How many locks there are where there are many.
pub(crate) const MANY: usize = 10_000;

/// Of threads of which there are thousands.
const STACK: usize = 64 << 10;

pub(crate) fn run(args: &BenchSoloArgs) -> Result<()> {
    let _signals = enlist(args.parent, "bench")?;
    match &args.part {
        Part::Queue { waiters, rounds } => say(&our_queue(*waiters, *rounds)?),
        Part::FairQueue { waiters, rounds } => say(&fair_queue(*waiters, *rounds)?),
        Part::GiveUp { waiters, rounds } => say(&[give_up(*waiters, *rounds)?]),
        Part::Tenants { path, rows } => tenants(path, *rows),
        Part::Attach { path, times } => say(&[attach(&arena::open(path)?, *times)]),
        Part::AttachAlone { capacity, times } => {
            let segment: Segment<u64> = Segment::options().capacity(*capacity).anonymous()?;
            say(&[attach(&segment, *times)])
        }
        Part::Many { turns } => say(&many(*turns)?),
        Part::Owner { path, locks } => heirs::own(path, *locks),
        Part::Heirs { path, locks, threads } => heirs::inherit(path, *locks, *threads),
        Part::Victim { peer, path, cpu } => {
            heir::owner(peer, path, *cpu);
            Ok(())
        }
    }
}

/// Tells the parent.
pub(super) fn say(numbers: &[f64]) -> Result<()> {
    let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    Ok(writeln!(std::io::stdout(), "{}", numbers.join(" "))?)
}

/// A lock of which so many threads can wait.
fn crowded(waiters: usize) -> Result<Segment<Mutex<u64>>> {
    Ok(Segment::options().capacity((waiters + SPARE_ROWS) as u32).anonymous()?)
}

/// Starts threads, all on one CPU, and waits for their end. On several, waking one
/// would cost more or less with how many CPUs are idle, and not with the queue.
fn crowd<R: Send>(
    threads: usize,
    work: impl Fn(usize) -> R + Sync,
    meanwhile: impl FnOnce(),
) -> Result<Vec<R>> {
    pin::to_cpu(pin::cpus()[0]);
    thread::scope(|scope| {
        let mut crowd = Vec::new();
        for thread in 0..threads {
            let (work, start) = (&work, thread::Builder::new().stack_size(STACK));
            crowd.push(start.spawn_scoped(scope, move || work(thread))?);
        }
        meanwhile();
        Ok(crowd.into_iter().map(|one| one.join().expect("it does not panic")).collect())
    })
}

/// Waits until so many threads sleep in the queue of the lock.
fn until_queued(lock: &Mutex<u64>, waiters: usize) {
    while heirlock::queue(lock).is_none_or(|queue| queue.len() < waiters) {
        sleep(Duration::from_micros(500));
    }
    fall_asleep(waiters);
}

/// Waits for as long as it takes so many threads to fall asleep.
fn fall_asleep(waiters: usize) {
    sleep(Duration::from_millis(2) + Duration::from_micros(20) * waiters as u32);
}

/// The processor time that this thread has used, in nanoseconds.
fn used() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Serves a queue until it is empty: nanoseconds from one owner to the next, and the
/// processor time of the unlock alone while at least half of the queue is there.
/// `until_queued` waits until all have fallen asleep that have arrived.
fn queue(
    lock: &impl Lock,
    waiters: usize,
    rounds: usize,
    until_queued: impl Fn(),
) -> Result<[f64; 2]> {
    let barrier = Barrier::new(waiters + 1);
    let arrived = AtomicUsize::new(0);
    // When somebody had the lock, and how long the unlock took.
    let lock_and_unlock = |owner: &dyn Fn()| {
        let (had, before) = lock.locked(|_| {
            owner();
            (Instant::now(), used())
        });
        (had, used() - before)
    };
    let wait = |_| {
        let round = |_| {
            barrier.wait();
            arrived.fetch_add(1, Relaxed);
            let served = lock_and_unlock(&|| {});
            barrier.wait();
            served
        };
        (0..rounds).map(round).collect::<Vec<_>>()
    };
    let mut firsts = Vec::new();
    let served = crowd(waiters, wait, || {
        for _ in 0..rounds {
            arrived.store(0, Relaxed);
            firsts.push(lock_and_unlock(&|| {
                barrier.wait();
                while arrived.load(Relaxed) < waiters {
                    sleep(Duration::from_micros(500));
                }
                until_queued();
            }));
            barrier.wait();
        }
    })?;
    let (mut handovers, mut unlocks) = (Vec::new(), Vec::new());
    for (at, (start, first)) in firsts.into_iter().enumerate() {
        let mut round: Vec<(Instant, f64)> = served.iter().map(|one| one[at]).collect();
        round.sort_by_key(|(had, _)| *had);
        let last = round[waiters - 1].0;
        handovers.push(last.duration_since(start).as_secs_f64() * 1e9 / waiters as f64);
        let early = round[..waiters / 2].iter().map(|(_, took)| *took);
        unlocks.extend(early.chain([first]));
    }
    Ok([median(handovers), median(unlocks)])
}

/// The queue of heirlock's lock.
fn our_queue(waiters: usize, rounds: usize) -> Result<[f64; 2]> {
    let segment = crowded(waiters)?;
    let lock: &Mutex<u64> = &segment;
    queue(lock, waiters, rounds, || until_queued(lock, waiters))
}

/// That of a fair lock of one process.
fn fair_queue(waiters: usize, rounds: usize) -> Result<[f64; 2]> {
    queue(&parking_lot::FairMutex::new(0), waiters, rounds, || fall_asleep(waiters))
}

/// What it costs a waiter that is not the first to queue, to sleep until its time is
/// over, and to leave the queue: nanoseconds of its own processor time.
fn give_up(waiters: usize, rounds: usize) -> Result<f64> {
    const APART: Duration = Duration::from_micros(100);
    let segment = crowded(waiters)?;
    let lock: &Mutex<u64> = &segment;
    let barrier = Barrier::new(waiters + 1);
    let deadline = RwLock::new(Instant::now());
    let wait = |thread: usize| {
        segment.attach().expect("there is a row for each");
        let round = |_| {
            barrier.wait();
            // Each wakes by itself: to wake several at once costs less for each.
            let deadline = *deadline.read().expect("nobody panics with it") + APART * thread as u32;
            let before = used();
            let guard = lock.try_lock_until(deadline);
            let after = used();
            assert!(guard.is_none(), "the owner keeps it");
            barrier.wait();
            after - before
        };
        (0..rounds).map(round).collect::<Vec<_>>()
    };
    let times = crowd(waiters, wait, || {
        let guard = lock.lock();
        thread::scope(|scope| {
            // The first in the queue does more, whatever the queue's length.
            scope.spawn(|| drop(lock.lock()));
            until_queued(lock, 1);
            for _ in 0..rounds {
                let patience = Duration::from_millis(3) + APART * waiters as u32;
                *deadline.write().expect("nobody panics with it") = Instant::now() + patience;
                barrier.wait();
                barrier.wait();
            }
            drop(guard);
        });
    })?;
    Ok(median(times.concat()))
}

/// Takes rows of a segment, and keeps them.
fn tenants(path: &Path, rows: usize) -> Result<()> {
    let segment = arena::open(path)?;
    let live = |_| {
        segment.attach().expect("there is a row for each");
        segment.token.0.fetch_add(1, Relaxed);
        while segment.phase() != Phase::Over {
            thread::park();
        }
    };
    crowd(rows, live, || {}).map(drop)
}

/// Nanoseconds that it takes a new thread to join.
fn attach<T: Sync + FromBytes + 'static>(segment: &Segment<T>, times: usize) -> f64 {
    pin::to_cpu(pin::cpus()[0]);
    let join = || {
        let start = Instant::now();
        segment.attach().expect("there is a row for it");
        start.elapsed().as_secs_f64() * 1e9
    };
    let one = |_| thread::scope(|scope| scope.spawn(join).join().expect("it does not panic"));
    median((0..times).map(one).collect())
}

/// Nanoseconds for a lock and its unlock: of one lock alone in its segment, and of
/// one after the other of many.
fn many(turns: usize) -> Result<[f64; 2]> {
    pin::to_cpu(pin::cpus()[0]);
    let one: Segment<[Mutex<u64>; 1]> = Segment::anonymous()?;
    let all: Segment<[Mutex<u64>; MANY]> = Segment::anonymous()?;
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..turns {
        for (times, locks) in times.iter_mut().zip([&one[..], &all[..]]) {
            let start = Instant::now();
            for lock in locks.iter().cycle().take(MANY) {
                *black_box(lock).lock() += 1;
            }
            times.push(start.elapsed().as_secs_f64() * 1e9 / MANY as f64);
        }
    }
    Ok(times.map(median))
}
