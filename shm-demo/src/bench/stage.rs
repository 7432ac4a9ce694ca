//! How figures are made: on which CPUs, how often, in which order, and which
//! repetitions count.

use super::cli::BenchArgs;
use super::pin;
use super::ticks::Ticks;
use crate::Result;
use crate::crew::Crew;
use crate::signals::Signals;
use serde::Serialize;
use std::cell::Cell;
use std::hint::black_box;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Without progress for this long the run has failed.
pub(crate) const STUCK: Duration = Duration::from_secs(30);

/// The share of the processors' time that the host may take from this machine
/// during a repetition that counts.
const STEAL: f64 = 0.02;

/// How many repetitions are made at most for each that is to count.
const TRIES: usize = 3;

/// How often the parent looks at those who run.
const PAUSE: Duration = Duration::from_micros(200);

/// What all items have in common.
pub(crate) struct Stage {
    pub(crate) quick: bool,
    pub(crate) repetitions: usize,
    /// The CPUs that may be used.
    pub(crate) cpus: Vec<usize>,
    pub(crate) signals: Signals,
    /// How long one turn of the busy loop takes.
    turn_ns: f64,
    disturbance: Cell<Disturbance>,
}

/// Who else used the processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Disturbance {
    /// Repetitions that were made again because the host took the time.
    pub(crate) discarded: u32,
    /// Repetitions that count although it did.
    pub(crate) disturbed: u32,
    /// The largest share of the processors' time in a repetition that went to other
    /// programs of this machine.
    pub(crate) others: f64,
}

impl Stage {
    pub(crate) fn new(args: &BenchArgs) -> Result<Self> {
        let signals = Signals::watch()?;
        let cpus = pin::cpus();
        Ok(Self {
            quick: args.quick,
            repetitions: if args.quick { 1 } else { args.repetitions as usize },
            cpus,
            signals,
            turn_ns: calibrate(),
            disturbance: Cell::default(),
        })
    }

    /// The first CPU and the last one, of which there must be two.
    pub(crate) fn two_cpus(&self) -> Result<[usize; 2]> {
        match self.cpus[..] {
            [first, .., last] => Ok([first, last]),
            _ => Err("this takes two CPUs".into()),
        }
    }

    /// How often the busy loop turns in a time.
    pub(crate) fn turns(&self, time: Duration) -> u64 {
        (time.as_nanos() as f64 / self.turn_ns) as u64
    }

    /// `usual`, or `quick` with `--quick`.
    pub(crate) fn usually<T>(&self, usual: T, quick: T) -> T {
        if self.quick { quick } else { usual }
    }

    /// Makes repetitions, in each of which `round` measures every variant once.
    /// One during which the host took much of the processors' time is discarded
    /// and made again; but not for ever: then those with the least of it count.
    pub(crate) fn repeat<R>(&self, mut round: impl FnMut() -> Result<R>) -> Result<Vec<R>> {
        let (mut clean, mut rest) = (Vec::new(), Vec::new());
        let mut disturbance = self.disturbance.take();
        for _ in 0..self.repetitions * TRIES {
            let before = Ticks::now();
            let result = round()?;
            let spent = Ticks::now().since(before);
            disturbance.others = disturbance.others.max(spent.share(spent.others()));
            let stolen = spent.share(spent.stolen);
            if stolen <= STEAL || self.quick {
                clean.push(result);
            } else {
                rest.push((stolen, result));
            }
            if clean.len() == self.repetitions {
                break;
            }
        }
        let missing = self.repetitions - clean.len();
        disturbance.disturbed += missing as u32;
        disturbance.discarded += (rest.len() - missing) as u32;
        self.disturbance.set(disturbance);
        rest.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        clean.extend(rest.into_iter().take(missing).map(|(_, result)| result));
        Ok(clean)
    }

    /// Who else used the processors since the last call.
    pub(crate) fn take_disturbance(&self) -> Disturbance {
        self.disturbance.take()
    }

    /// An error if a signal asked for the end.
    pub(crate) fn go_on(&self) -> Result<()> {
        match self.signals.caught() {
            Some((_, name)) => Err(format!("ended by {name}; cleaned up").into()),
            None => Ok(()),
        }
    }

    /// Sleeps.
    pub(crate) fn pause(&self, time: Duration) -> Result<()> {
        sleep(time);
        self.go_on()
    }

    /// Waits until `done`. An error if that takes too long, or if a member of the
    /// crew ends otherwise than well.
    pub(crate) fn until(
        &self,
        what: &str,
        crew: &mut Crew,
        done: impl Fn(&Crew) -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            while let Some((slot, status)) = crew.ended()? {
                if !status.success() {
                    return Err(format!("{what}: process {slot} ended with {status}").into());
                }
            }
            if done(crew) {
                return Ok(());
            }
            if start.elapsed() > STUCK {
                return Err(format!("{what}: no progress for {STUCK:?}").into());
            }
            self.pause(PAUSE)?;
        }
    }
}

/// Turns that often. It takes a time that does not depend on the machine's other
/// users, unless they take the CPU.
#[inline(never)]
pub(crate) fn busy(turns: u64) {
    for turn in 0..turns {
        black_box(turn);
    }
}

/// How many nanoseconds a turn of the busy loop takes: the best of many tries.
fn calibrate() -> f64 {
    const TURNS: u64 = 5000;
    let time = |_| {
        let start = Instant::now();
        busy(TURNS);
        start.elapsed().as_secs_f64() * 1e9 / TURNS as f64
    };
    (0..200).map(time).fold(f64::MAX, f64::min)
}
