//! Whether a cost grows: with the queue, with the threads that take part, with the
//! locks.

use super::arena::{self, Arena};
use super::child::Child;
use super::figures::{Item, Target};
use super::solo::MANY;
use super::stage::Stage;
use crate::Result;
use crate::segment_file::SegmentFile;
use heirlock::{Policy, Segment};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// How much a cost may grow.
const FLAT: Target = Target::AtMost(1.5);

/// How many threads of one process take part at most: each has some mappings, of
/// which a process has 65,530.
const TENANTS: usize = 2500;

/// For how long new tenants may fail to come.
const MOVING_IN: Duration = Duration::from_secs(30);

pub(crate) fn measure(stage: &Stage) -> Result<Item> {
    let mut item = Item::new(
        "scale",
        "One lock with many waiters on one CPU, all asleep: the time from one owner to the next \
         while the queue is served, and the processor time of an unlock alone and of a waiter that \
         queues and gives up. (That of FairMutex shows what so many threads cost, whatever the \
         lock.) A segment in which many take part: the time in which a new thread joins. \
         Many locks in a segment: lock and unlock. None may grow.",
    );
    let waiters: &[usize] = stage.usually(&[2, 10, 100, 1000], &[2, 10]);
    let rows: &[usize] = stage.usually(&[10, 100, 1000, 10_000], &[10, 100]);
    queues(stage, &mut item, waiters)?;
    joining(stage, &mut item, rows)?;
    capacities(stage, &mut item)?;
    many_locks(stage, &mut item)?;
    Ok(item)
}

/// What a part finds that is played by a child.
fn ask(stage: &Stage, part: &[&str]) -> Result<Vec<f64>> {
    Child::start(part)?.numbers(stage)
}

/// Adds figures of a variant, and how much it grows from the first case on.
fn grows(
    item: &mut Item,
    table: &'static str,
    variant: &str,
    cases: &[String],
    samples: &[Vec<f64>],
) {
    for (case, these) in cases.iter().zip(samples) {
        item.figure(table, case, variant, these);
    }
    for (case, these) in cases.iter().zip(samples).skip(1) {
        let what = format!("{variant}, to {}", cases[0]);
        item.ratio(case, what, (these, &samples[0]), FLAT);
    }
}

fn queues(stage: &Stage, item: &mut Item, waiters: &[usize]) -> Result<()> {
    let rounds = stage.repeat(|| {
        let of = |waiters: &usize| {
            let (count, rounds) = (waiters.to_string(), (200 / waiters).max(2));
            let rounds = stage.usually(rounds, 2).to_string();
            let served = ask(stage, &["queue", &count, &rounds])?;
            let given_up = ask(stage, &["give-up", &count, &rounds])?;
            let fairly = ask(stage, &["fair-queue", &count, &rounds])?;
            Ok([served[0], served[1], given_up[0], fairly[0], fairly[1]])
        };
        waiters.iter().map(of).collect::<Result<Vec<_>>>()
    })?;
    let cases: Vec<String> = waiters.iter().map(|waiters| format!("{waiters} waiters")).collect();
    for (at, variant) in ["hand-over", "unlock alone", "giving up"].into_iter().enumerate() {
        let of = |case: usize| rounds.iter().map(|round| round[case][at]).collect();
        let samples: Vec<Vec<f64>> = (0..cases.len()).map(of).collect();
        grows(item, "one lock (ns)", variant, &cases, &samples);
    }
    // What it costs to have so many threads, whatever the lock.
    for (at, variant) in [(3, "FairMutex: hand-over"), (4, "FairMutex: unlock alone")] {
        for (case, name) in cases.iter().enumerate() {
            let samples: Vec<f64> = rounds.iter().map(|round| round[case][at]).collect();
            item.figure("one lock (ns)", name, variant, &samples);
        }
    }
    Ok(())
}

/// A segment in which others take part.
struct House {
    // Dropped in this order: first the processes end, then the file goes.
    tenants: Vec<Child>,
    path: PathBuf,
    _segment: Segment<Arena>,
    _file: SegmentFile,
}

impl House {
    fn with(stage: &Stage, rows: usize) -> Result<Self> {
        let create = |path: &Path| arena::create(path, rows as u32, Policy::Fifo);
        let (file, segment) = SegmentFile::create(None, "bench", create)?;
        let mut house =
            Self { tenants: Vec::new(), path: file.0.clone(), _segment: segment, _file: file };
        let (mut left, mut last) = (rows, (0, Instant::now()));
        while left > 0 {
            let some = left.min(TENANTS);
            let path = house.path.to_str().expect("it has a plain name");
            let child = Child::start(&["tenants", path, &some.to_string()])?;
            house.tenants.push(child);
            left -= some;
        }
        loop {
            let here = house._segment.token.0.load(Relaxed);
            if here as usize == rows {
                return Ok(house);
            }
            if here > last.0 {
                last = (here, Instant::now());
            } else if last.1.elapsed() > MOVING_IN {
                return Err(format!("{here} of {rows} threads joined, and no more").into());
            }
            stage.pause(Duration::from_millis(1))?;
        }
    }
}

fn joining(stage: &Stage, item: &mut Item, rows: &[usize]) -> Result<()> {
    let houses =
        rows.iter().map(|rows| House::with(stage, *rows)).collect::<Result<Vec<House>>>()?;
    let times = stage.usually("200", "5");
    let rounds = stage.repeat(|| {
        let of = |house: &House| {
            let path = house.path.to_str().expect("it has a plain name");
            Ok(ask(stage, &["attach", path, times])?[0])
        };
        houses.iter().map(of).collect::<Result<Vec<_>>>()
    })?;
    let cases: Vec<String> = rows.iter().map(|rows| format!("{rows} others")).collect();
    let of = |case: usize| rounds.iter().map(|round| round[case]).collect();
    let samples: Vec<Vec<f64>> = (0..cases.len()).map(of).collect();
    grows(item, "joining (ns)", "a new thread joins", &cases, &samples);
    Ok(())
}

fn capacities(stage: &Stage, item: &mut Item) -> Result<()> {
    let times = stage.usually("200", "5");
    let capacities = ["64", "60000"];
    let rounds = stage.repeat(|| {
        let of = |capacity: &&str| Ok(ask(stage, &["attach-alone", capacity, times])?[0]);
        capacities.iter().map(of).collect::<Result<Vec<_>>>()
    })?;
    let cases = capacities.map(|capacity| format!("capacity {capacity}"));
    let samples = [0, 1].map(|case| rounds.iter().map(|round| round[case]).collect());
    grows(item, "joining, nobody else there (ns)", "a new thread joins", &cases, &samples);
    Ok(())
}

fn many_locks(stage: &Stage, item: &mut Item) -> Result<()> {
    let turns = stage.usually("200", "3");
    let rounds = stage.repeat(|| ask(stage, &["many", turns]))?;
    let cases = ["1 lock".into(), format!("{MANY} locks, in turn")];
    let samples = [0, 1].map(|case| rounds.iter().map(|round| round[case]).collect());
    grows(item, "locks in a segment (ns)", "lock + unlock", &cases, &samples);
    Ok(())
}
