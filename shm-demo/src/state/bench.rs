//! `shm-demo state bench`: workers that change a state and are killed while they do,
//! and whether anything was lost.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use super::State;
use super::acks::{Acks, MAX_WORKERS, Verdict, judge};
use super::cli::StateBenchArgs;
use super::table::{Counts, Table};
use crate::Result;
use crate::course::{Course, SPARE_ROWS};
use crate::outcome::{Account, End, Outcome};
use crate::trial::{self, Subject, Trial};
use heirlock::{MutexGuard, Options, Participant, Segment, SegmentError};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use zerocopy::FromBytes;

/// Which `Bench` this is: another number for every change of it.
const SCHEMA: u64 = 0x5354_4245_4e01;

/// A state, and what is known of it without looking.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Bench {
    pub(crate) state: State,
    pub(crate) course: Course,
    pub(crate) acks: [Acks; MAX_WORKERS],
    /// Whether heirs repair. Never changes.
    repairs: u64,
    pub(crate) wrong: AtomicU64,
    pub(crate) in_doubt_made: AtomicU64,
    pub(crate) in_doubt_not_made: AtomicU64,
}

impl Bench {
    /// The table as a worker gets it. Without repair the lock is as useful as one that
    /// does not tell of deaths.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        if self.repairs != 0 { self.state.table() } else { self.state.table.lock() }
    }

    fn table_within(&self, time: Duration) -> Option<MutexGuard<'_, Table>> {
        if self.repairs != 0 {
            self.state.table_within(time)
        } else {
            self.state.table.try_lock_for(time)
        }
    }
}

fn options() -> Options<'static, Bench> {
    Segment::options().schema(SCHEMA)
}

pub(crate) fn open(path: &Path) -> std::result::Result<Segment<Bench>, SegmentError> {
    options().open(path)
}

impl Subject for Segment<Bench> {
    fn course(&self) -> &Course {
        &self.course
    }

    fn owner(&self) -> Option<Participant> {
        heirlock::owner(&self.state.table)
    }

    fn locks(&self) -> Vec<u64> {
        self.offset_of(&self.state.table).into_iter().collect()
    }
}

pub(crate) fn run(args: &StateBenchArgs) -> Result<ExitCode> {
    let create = |path: &Path| {
        let lay_out = |bench: &mut Bench| {
            bench.course.lay_out(args.workers, args.operations);
            bench.repairs = u64::from(!args.without_repair);
        };
        options().capacity(args.workers + SPARE_ROWS).init(lay_out).create(path)
    };
    trial::run(&args.trial, "state", "state-worker", create, |bench, trial, end| {
        report(args, bench, trial, end)
    })
}

/// The result of a run; `shm-demo state bench --help` says what the fields mean.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    outcome: Outcome,
    workers: u32,
    operations_asked: u64,
    changes_acknowledged: u64,
    changes: u64,
    gets: u64,
    entries: u64,
    entries_expected: u64,
    in_doubt_made: u64,
    in_doubt_not_made: u64,
    inherited: u64,
    repaired: u64,
    wrong: u64,
}

/// What the table says, now that nobody is left who could hold the lock.
fn report(args: &StateBenchArgs, bench: &Bench, mut trial: Trial, end: &End) -> Report {
    let deaths = trial.deaths();
    let (mut changes, mut entries) = (0, 0);
    let (mut counts, mut verdict) = (Counts::default(), Verdict::default());
    if let Some(mut table) = trial.final_lock(|time| bench.table_within(time)) {
        counts = table.counts.clone();
        (changes, entries) = (table.changes(), table.entries());
        if let End::Done = end {
            verdict = judge(&mut table, &bench.acks[..args.workers as usize], deaths);
        }
    }
    let wrong = bench.wrong.load(Relaxed);
    trial.must(wrong == 0, format!("{wrong} times a value was not as it had to be"));
    let Counts { inherited, repaired, untold, .. } = counts;
    trial.must(untold == 0, format!("{untold} times an owner was not told of a dead one"));
    trial.must(repaired <= inherited, format!("{repaired} repairs by {inherited} heirs"));
    if let End::Done = end {
        trial.must(inherited <= deaths, format!("{inherited} heirs of {deaths} dead"));
        let (acknowledged, asked) = (verdict.changes_acknowledged, args.operations);
        trial.must(acknowledged >= asked, format!("{acknowledged} changes of {asked} were made"));
    }
    for failure in verdict.failures {
        trial.fail(failure);
    }
    Report {
        outcome: trial.outcome(end),
        workers: args.workers,
        operations_asked: args.operations,
        changes_acknowledged: verdict.changes_acknowledged,
        changes,
        gets: counts.gets,
        entries,
        entries_expected: verdict.entries_expected,
        in_doubt_made: bench.in_doubt_made.load(Relaxed),
        in_doubt_not_made: bench.in_doubt_not_made.load(Relaxed),
        inherited,
        repaired,
        wrong,
    }
}

impl Account for Report {
    const HELD: &'static str = "everything: no acknowledged change lost, no value torn, every change made \
                    wholly or not at all";

    fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    fn lines(&self) -> [(&'static str, String); 4] {
        [
            (
                "changes",
                format!(
                    "{} acknowledged, by {} processes in {:.1} s; {} values looked at, {} wrong",
                    self.changes_acknowledged,
                    self.workers,
                    self.outcome.seconds,
                    self.gets,
                    self.wrong
                ),
            ),
            (
                "kills",
                format!(
                    "{}; {} hit the owner of the lock, of which {} left a change half done",
                    self.outcome.kills(),
                    self.inherited,
                    self.repaired
                ),
            ),
            (
                "in doubt",
                format!(
                    "{} changes of the killed, of which {} were made and {} were not",
                    self.in_doubt_made + self.in_doubt_not_made,
                    self.in_doubt_made,
                    self.in_doubt_not_made
                ),
            ),
            ("entries", format!("{} of {}", self.entries, self.entries_expected)),
        ]
    }
}
