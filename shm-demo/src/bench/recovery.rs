//! From the SIGKILL of an owner to its heir.

use super::arena::now;
use super::child::{Child, this_program};
use super::figures::{Item, Target, median};
use super::heir::{Heir, PEERS};
use super::heirs::{self, Locks};
use super::pin;
use super::stage::{STUCK, Stage};
use crate::Result;
use crate::segment_file::SegmentFile;
use heirlock::Segment;
use std::time::{Duration, Instant};

pub(crate) fn measure(stage: &Stage) -> Result<Item> {
    let mut item = Item::new(
        "recovery",
        "An owner is a process that is killed with SIGKILL, its heir another that sleeps in the \
         lock: the time from the one to the other. Then an owner of many locks, which a thread \
         for each inherits, or one thread all of them: the time until the last is had, for each \
         lock.",
    );
    one_lock(stage, &mut item)?;
    many_locks(stage, &mut item)?;
    Ok(item)
}

fn one_lock(stage: &Stage, item: &mut Item) -> Result<()> {
    let [owner_cpu, heir_cpu] = stage.two_cpus()?;
    let heirs = PEERS.map(|peer| Heir::start(peer, heir_cpu));
    let parent = std::process::id().to_string();
    let kills = stage.usually(20, 2);
    pin::to_cpu(heir_cpu);
    let rounds = stage.repeat(|| {
        let mut times = [const { Vec::new() }; 2];
        for _ in 0..kills {
            stage.go_on()?;
            for (times, heir) in times.iter_mut().zip(&heirs) {
                let mut victim = this_program();
                victim.args(["bench-solo", &parent, "victim"]);
                times.push(heir.recovery(victim, owner_cpu).as_secs_f64() * 1e6);
            }
        }
        Ok(times.map(median))
    });
    pin::to_cpus(&stage.cpus);
    let rounds = rounds?;
    let [ours, theirs] = [0, 1].map(|at| rounds.iter().map(|round| round[at]).collect::<Vec<_>>());
    item.figure("SIGKILL to the heir (µs)", "one lock", "heirlock", &ours);
    item.figure("SIGKILL to the heir (µs)", "one lock", "pthread robust", &theirs);
    item.ratio("one lock", "heirlock / pthread robust", (&ours, &theirs), Target::AtMost(1.1));
    Ok(())
}

fn many_locks(stage: &Stage, item: &mut Item) -> Result<()> {
    let counts: &[usize] = stage.usually(&[1, 10, 100, heirs::LOCKS], &[1, 10]);
    let kills = stage.usually(5, 1);
    let rounds = stage.repeat(|| {
        let several = |locks: usize, threads: usize| -> Result<f64> {
            let times = (0..kills).map(|_| inherit(stage, locks, threads));
            Ok(median(times.collect::<Result<_>>()?))
        };
        let of = |locks: &usize| Ok([several(*locks, *locks)?, several(*locks, 1)?]);
        counts.iter().map(of).collect::<Result<Vec<_>>>()
    })?;
    for (at, variant) in ["a thread for each", "one thread for all"].into_iter().enumerate() {
        let of = |case: usize| rounds.iter().map(|round| round[case][at]).collect::<Vec<f64>>();
        for (case, locks) in counts.iter().enumerate() {
            item.figure("for each lock (µs)", format!("{locks} locks"), variant, &of(case));
        }
        let few = counts.iter().position(|locks| *locks == 10).expect("it is among them");
        for (case, locks) in counts.iter().enumerate().skip(few + 1) {
            let what = format!("{variant}, to 10 locks");
            item.ratio(format!("{locks} locks"), what, (&of(case), &of(few)), Target::AtMost(2.0));
        }
    }
    Ok(())
}

/// Kills an owner of so many locks; microseconds until all are had, for each lock.
fn inherit(stage: &Stage, locks: usize, threads: usize) -> Result<f64> {
    let (file, segment) = SegmentFile::create(None, "bench", heirs::create)?;
    let path = file.0.to_str().expect("it has a plain name");
    let count = locks.to_string();
    let mut owner = Child::start(&["owner", path, &count])?;
    owner.line(stage)?;
    let mut heirs = Child::start(&["heirs", path, &count, &threads.to_string()])?;
    until_queued(stage, &segment, threads)?;
    let start = now() as f64;
    owner.kill()?;
    let had = heirs.numbers(stage)?[0];
    Ok((had - start) / 1e3 / locks as f64)
}

/// Waits until somebody sleeps for each of the first locks.
fn until_queued(stage: &Stage, segment: &Segment<Locks>, locks: usize) -> Result<()> {
    let start = Instant::now();
    for lock in &segment[..locks] {
        while heirlock::queue(lock).is_none_or(|queue| queue.is_empty()) {
            if start.elapsed() > STUCK {
                return Err("the heirs do not come".into());
            }
            stage.pause(Duration::from_micros(200))?;
        }
    }
    // From the queue into the sleep.
    stage.pause(Duration::from_millis(5))
}
