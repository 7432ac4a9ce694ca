//! What a process of a contended run does, and each of its threads.

use super::arena::{self, Arena, MAX_MEMBERS, Phase, Place};
use super::cli::BenchMemberArgs;
use super::peers::{Lock, Player};
use super::pin;
use super::pthread::Pthread;
use super::stage::busy;
use super::watch::Watch;
use crate::Result;
use crate::crew::enlist;
use heirlock::Segment;
use nix::unistd::gettid;
use rustix::thread::futex;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::thread::{self, sleep};
use std::time::Duration;

/// In one of how many acquisitions a member that watches looks for bypasses.
const SAMPLED: u64 = 16;

/// How often a member looks whether the run has begun.
const PAUSE: Duration = Duration::from_micros(100);

/// Where the pthread mutex is that belongs to the arena at `path`.
pub(crate) fn pthread_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-pthread");
    name.into()
}

pub(crate) fn run(args: &BenchMemberArgs) -> Result<()> {
    let _signals = enlist(args.worker.parent, "bench")?;
    let segment = arena::open(&args.worker.path)?;
    // A process with several members has the first of their places.
    let place = |thread: usize| args.worker.slot + thread;
    let member = |thread: usize| Member { args, segment: &segment, slot: place(thread) };
    match args.player {
        Player::Heirlock | Player::HeirlockThroughput => member(0).contend(&segment.lock.0, true),
        Player::Pthread | Player::PthreadRobust => {
            member(0).contend(&Pthread::open(&pthread_path(&args.worker.path)), false)
        }
        Player::Std => all(args, member, &std::sync::Mutex::new(0)),
        Player::ParkingLot => all(args, member, &parking_lot::Mutex::new(0)),
        Player::FairMutex => all(args, member, &parking_lot::FairMutex::new(0)),
        Player::PingPong => member(0).pass(false),
        Player::Switch => member(0).pass(true),
    }
}

/// All members, as threads of this process.
fn all<'a>(
    args: &BenchMemberArgs,
    member: impl Fn(usize) -> Member<'a>,
    lock: &impl Lock,
) -> Result<()> {
    thread::scope(|scope| {
        for thread in 0..args.threads {
            let member = member(thread);
            scope.spawn(move || member.contend(lock, false).expect("nothing can fail in a thread"));
        }
    });
    Ok(())
}

/// Of how many hand-overs a member remembers the time at most.
const MOST_SAMPLES: usize = 1 << 20;

/// The median; 0 of none.
fn median(samples: &mut [u64]) -> u64 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or(0)
}

struct Member<'a> {
    args: &'a BenchMemberArgs,
    segment: &'a Segment<Arena>,
    slot: usize,
}

impl Member<'_> {
    /// Takes its CPU and its place, and waits for the begin.
    fn gather(&self, joins: bool) -> Result<&Place> {
        pin::to_cpu(self.args.cpus[self.slot % self.args.cpus.len()]);
        let place = &self.segment.places[self.slot % MAX_MEMBERS].0;
        if joins {
            place.participant.store(self.segment.attach()?.to_bits(), Relaxed);
        }
        place.take(std::process::id(), gettid().as_raw() as u32);
        while self.segment.phase() == Phase::Gathering {
            sleep(PAUSE);
        }
        Ok(place)
    }

    /// Locks and unlocks until it is over.
    fn contend(&self, lock: &impl Lock, joins: bool) -> Result<()> {
        let place = self.gather(joins)?;
        if self.args.watch {
            self.watch(lock, place);
            return Ok(());
        }
        if self.args.timed {
            self.time(lock, place);
            return Ok(());
        }
        let me = self.slot as u64 + 1;
        let (mut acquisitions, mut handovers) = (0, 0);
        while self.segment.phase() == Phase::Running {
            handovers += lock.locked(|last| {
                busy(self.args.busy);
                u64::from(std::mem::replace(last, me) != me)
            });
            acquisitions += 1;
            place.acquisitions.store(acquisitions, Relaxed);
            place.handovers.store(handovers, Relaxed);
        }
        Ok(())
    }

    /// The same, and takes the time from each release to the acquisition by another.
    fn time(&self, lock: &impl Lock, place: &Place) {
        let me = self.slot as u64 + 1;
        let released = &self.segment.released.0;
        let mut samples = Vec::with_capacity(MOST_SAMPLES);
        while self.segment.phase() == Phase::Running {
            let sample = lock.locked(|last| {
                let passed = arena::now().saturating_sub(released.load(Relaxed));
                busy(self.args.busy);
                released.store(arena::now(), Relaxed);
                (std::mem::replace(last, me) != me).then_some(passed)
            });
            place.acquisitions.fetch_add(1, Relaxed);
            if let Some(passed) = sample {
                place.handovers.fetch_add(1, Relaxed);
                if samples.len() < MOST_SAMPLES {
                    samples.push(passed);
                }
            }
        }
        // Of the time taken, as much is the clock's as lies between two looks at it.
        let mut clock = [0; 1001].map(|_: u64| {
            let before = arena::now();
            arena::now() - before
        });
        let one_way = median(&mut samples).saturating_sub(median(&mut clock));
        place.one_way.store(one_way, Relaxed);
    }

    /// The same, and looks after those who wait.
    fn watch(&self, lock: &impl Lock, place: &Place) {
        let mut watch = Watch::default();
        let (mut acquisitions, mut bypasses, mut longest) = (0_u64, 0, 0);
        while self.segment.phase() == Phase::Running {
            let is_sampled = acquisitions.is_multiple_of(SAMPLED);
            let older = if is_sampled { watch.look(&self.segment.places) } else { None };
            let arrival = arena::now();
            place.arrival.store(arrival, Relaxed);
            lock.locked(|_| {
                place.arrival.store(0, Relaxed);
                longest = longest.max(arena::now() - arrival);
                bypasses += u64::from(older.is_some_and(|waiter| waiter.still_waits()));
                busy(self.args.busy);
            });
            acquisitions += 1;
            place.acquisitions.store(acquisitions, Relaxed);
            place.bypasses.store(bypasses, Relaxed);
            place.longest.store(longest, Relaxed);
        }
    }

    /// Passes a token to the other member, and waits until it is back.
    fn pass(&self, asleep: bool) -> Result<()> {
        let place = self.gather(false)?;
        let token = &self.segment.token.0;
        let mine = self.slot as u32 % 2;
        let mut passed = 0;
        loop {
            let mut now = token.load(Acquire);
            while now % 2 != mine {
                if self.segment.phase() == Phase::Over {
                    return Ok(());
                }
                if asleep {
                    // It may be woken in vain, or be too late: it looks again.
                    let _ = futex::wait(token, futex::Flags::empty(), now, None);
                } else {
                    std::hint::spin_loop();
                }
                now = token.load(Acquire);
            }
            if asleep {
                token.store(now.wrapping_add(1), SeqCst);
                let _ = futex::wake(token, futex::Flags::empty(), 1);
            } else {
                token.store(now.wrapping_add(1), Release);
            }
            passed += 1;
            place.handovers.store(passed, Relaxed);
            place.acquisitions.store(passed, Relaxed);
            if self.segment.phase() == Phase::Over {
                return Ok(());
            }
        }
    }
}
