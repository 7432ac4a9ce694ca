//! What each worker process of `storm` does: its threads lock, look, count and
//! unlock, in every way in which a thread can wait asleep, until they are killed or told to end.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use super::ground::{self, Ground, Guarded, LOCKS, Phase, Soul, THREADS};
use super::line::{Served, Waiter};
use super::signals;
use crate::Result;
use crate::cli::{StormWorkerArgs, WorkerArgs};
use crate::crew::{enlist, set_name};
use crate::ledger::Entry;
use fastrand::Rng;
use heirlock::{LockError, LockOptions, Mutex, MutexGuard, Participant, Segment, Statistics};
use nix::unistd::gettid;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// How often a worker looks whether it may begin.
const PAUSE: Duration = Duration::from_micros(100);

/// One in so many owners sleeps with the lock: so that there is more to wait for
/// than processors to run on, and signals find waiters asleep.
const LINGERS: u8 = 4;

/// One in so many owners takes another lock, where that is wanted.
const NESTS: u8 = 3;

/// The handlers need it for as long as the process lives.
static GROUND: OnceLock<Segment<Ground>> = OnceLock::new();

pub(crate) fn run(args: &StormWorkerArgs) -> Result<()> {
    let WorkerArgs { path, slot, parent } = &args.worker;
    let _signals = enlist(*parent, "storm")?;
    let segment = ground::open(path)?;
    let ground = GROUND.get_or_init(|| segment);
    if *slot >= ground::MAX_WORKERS {
        return Err(format!("there is no place {slot}").into());
    }
    // Nobody sends a signal before the threads have arrived.
    signals::install(ground, *slot, args.restart)?;
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let _together = Together;
                set_name(format!("storm-{slot}-{thread}")).expect("a name");
                let worker = Worker::arrive(ground, args, thread);
                worker.run();
            });
        }
    });
    Ok(())
}

/// If one thread panics, the others must not go on.
struct Together;

impl Drop for Together {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::exit(101);
        }
    }
}

/// How a wait ended without the lock.
#[derive(Clone, Copy)]
enum GaveUp {
    TimedOut,
    Cancelled,
    Interrupted,
}

struct Worker {
    ground: &'static Segment<Ground>,
    soul: &'static Soul,
    slot: usize,
    /// The number of the thread among all.
    tally: usize,
    me: Participant,
    timeouts: bool,
    nested: bool,
}

impl Worker {
    fn arrive(ground: &'static Segment<Ground>, args: &StormWorkerArgs, thread: usize) -> Self {
        let StormWorkerArgs { worker: WorkerArgs { slot, .. }, timeouts, nested, .. } = *args;
        let me = ground.attach().expect("attach");
        let soul = &ground.places[slot].threads[thread];
        soul.arrive(me, gettid().as_raw() as u64);
        Self { ground, soul, slot, tally: slot * THREADS + thread, me, timeouts, nested }
    }

    fn statistics(&self) -> Statistics {
        heirlock::statistics(self.ground, self.me).expect("the row is this thread's")
    }

    fn run(&self) {
        let mut rng = Rng::new();
        loop {
            match self.ground.phase() {
                Phase::Before => sleep(PAUSE),
                Phase::Over => return,
                Phase::Calm | Phase::Storm => self.visit(0, &mut rng),
            }
            self.soul.note(self.statistics());
        }
    }

    /// Acquires a lock, one of the first or later, or tries to, and releases it.
    fn visit(&self, first: usize, rng: &mut Rng) {
        let ground: &'static Ground = self.ground;
        let lock = rng.usize(first..LOCKS);
        let slept_before = self.statistics().sleeps;
        let row = self.me.row();
        let wait = ground.waits.begin(row);
        let start = Instant::now();
        let acquired = self.acquire(&ground.locks[lock], rng);
        let waited = start.elapsed();
        ground.waits.end(row, wait);

        let phase = ground.phase().index();
        let counts = &ground.counts[phase];
        let guard = match acquired {
            Ok(guard) => guard,
            Err(why) => {
                add(match why {
                    GaveUp::TimedOut => &counts.timeouts,
                    GaveUp::Cancelled => &counts.cancellations,
                    GaveUp::Interrupted => &counts.interrupted,
                });
                return;
            }
        };
        ground.progress[lock].fetch_add(1, Relaxed);
        let served = self.hold(guard, lock, wait, waited, rng);
        self.soul.done.fetch_add(1, Relaxed);
        ground.waited[phase][lock].add(waited);
        add(&counts.acquisitions);
        if served.queued || self.statistics().sleeps != slept_before {
            add(&counts.handovers);
        }
        if served.checked {
            add(&counts.order_checked);
        }
        if served.inverted {
            add(&counts.order_inversions);
        }
    }

    fn acquire<'l>(
        &self,
        mutex: &'l Mutex<Guarded>,
        rng: &mut Rng,
    ) -> std::result::Result<MutexGuard<'l, Guarded>, GaveUp> {
        let token = &self.ground.places[self.slot].token;
        let some_time = Duration::from_micros(rng.u64(20..2000));
        let options = LockOptions::new();
        let options = match rng.u32(..10) {
            0..5 => return Ok(mutex.lock()),
            5 if self.timeouts => return mutex.try_lock_for(some_time).ok_or(GaveUp::TimedOut),
            5 => options,
            6 => options.cancel(token),
            7 => options.interruptible(true),
            8 if self.timeouts => options.cancel(token).timeout(some_time),
            8 => options.cancel(token),
            _ if self.timeouts => {
                options.cancel(token).interruptible(true).deadline(Instant::now() + some_time)
            }
            _ => options.cancel(token).interruptible(true),
        };
        match mutex.lock_with(&options) {
            Ok(guard) => Ok(guard),
            Err(LockError::TimedOut) => Err(GaveUp::TimedOut),
            Err(LockError::Interrupted) => Err(GaveUp::Interrupted),
            Err(LockError::Cancelled) => {
                token.reset();
                Err(GaveUp::Cancelled)
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// What is done with a lock that is held.
    fn hold(
        &self,
        mut guard: MutexGuard<Guarded>,
        lock: usize,
        wait: u64,
        waited: Duration,
        rng: &mut Rng,
    ) -> Served {
        let served = guard.line.enter(self.me.row(), wait);
        let alive = |bits| {
            Participant::from_bits(bits)
                .is_none_or(|participant| heirlock::is_alive(self.ground, participant))
        };
        let entry = Entry {
            me: self.me.to_bits(),
            inherited: MutexGuard::inherited(&guard).is_some(),
            waited,
            passed_over: false,
            alive: &alive,
        };
        // With the lock. The order of the locks is always the same.
        if self.nested && lock + 1 < LOCKS && rng.u8(..NESTS) == 0 {
            add(&self.ground.counts[self.ground.phase().index()].nested);
            self.visit(lock + 1, rng);
        }
        guard.ledger.enter(&entry);
        let pause = if rng.u8(..LINGERS) == 0 { rng.u64(20..200) } else { 0 };
        guard.ledger.increment_slowly(self.tally, || {
            if pause > 0 {
                sleep(Duration::from_micros(pause));
            }
        });
        self.write_down_the_queue(&mut guard, lock);
        guard.ledger.leave(&entry, None);
        served
    }

    fn write_down_the_queue(&self, guard: &mut Guarded, lock: usize) {
        let rows = 1..=self.ground.capacity();
        // Who is in the same wait before and after the look was in that wait
        // when it was seen in the queue.
        let before: Vec<u64> = rows.map(|row| self.ground.waits.get(row)).collect();
        let queue = heirlock::queue(&self.ground.locks[lock]).unwrap_or_default();
        guard.line.leave(queue.into_iter().map(|waiter| {
            let row = waiter.row();
            let wait = self.ground.waits.get(row);
            Waiter::new(row, (before[row as usize - 1] == wait).then_some(wait))
        }));
    }
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Relaxed);
}
