//! `shm-demo counter`: starts the workers, kills them, and looks at what is
//! left.

use crate::Result;
use crate::cli::CounterArgs;
use crate::course::Course;
use crate::ledger::Book;
use crate::outcome::End;
use crate::report::Report;
use crate::shared::{self, Shared};
use crate::trial::{self, Subject, Trial};
use heirlock::{MutexGuard, Participant, Segment};
use std::path::Path;
use std::process::ExitCode;

pub(crate) fn run(args: &CounterArgs) -> Result<ExitCode> {
    let create = |path: &Path| shared::create(path, args.workers, args.increments);
    trial::run(&args.trial, "counter", "worker", create, |shared, trial, end| {
        report(args, shared, trial, end)
    })
}

impl Subject for Segment<Shared> {
    fn course(&self) -> &Course {
        &self.course
    }

    fn owner(&self) -> Option<Participant> {
        heirlock::owner(&self.ledger)
    }

    fn locks(&self) -> Vec<u64> {
        self.offset_of(&self.ledger).into_iter().collect()
    }
}

/// What the ledger says, now that nobody is left who could hold the lock.
fn report(args: &CounterArgs, shared: &Shared, mut trial: Trial, end: &End) -> Report {
    let mut counted = 0;
    let mut book = Book::default();
    if let Some(mut ledger) = trial.final_lock(|time| shared.ledger.try_lock_for(time)) {
        let inherited = MutexGuard::inherited(&ledger).is_some();
        ledger.repair(inherited);
        counted = ledger.done();
        if let Err(what) = ledger.count() {
            trial.fail(what);
        }
        book = ledger.book.clone();
    }
    if let End::Done = end {
        check(args, &mut trial, counted, &book);
    }
    Report {
        workers: args.workers,
        increments_expected: args.increments,
        increments_counted: counted,
        inherited: book.inherited,
        repaired: book.repaired,
        order_inversions: book.order_inversions,
        order_checked: book.order_checked,
        order_unchecked: book.order_unchecked,
        acquisitions: book.acquisitions,
        longest_wait_us: book.longest_wait_ns / 1000,
        outcome: trial.outcome(end),
    }
}

/// Whether everything held in a run that came to its end.
fn check(args: &CounterArgs, trial: &mut Trial, counted: u64, book: &Book) {
    let CounterArgs { workers, increments, .. } = *args;
    let deaths = trial.deaths();
    trial.must(counted == increments, format!("counted {counted} increments, not {increments}"));
    let Book { acquisitions, inherited, repaired, overlaps, untold, .. } = *book;
    trial.must(overlaps == 0, format!("{overlaps} times two workers had the lock at once"));
    trial.must(untold == 0, format!("{untold} times an owner was not told of a dead one"));
    trial.must(inherited <= deaths, format!("{inherited} heirs of {deaths} dead"));
    trial.must(repaired <= inherited, format!("{repaired} repairs by {inherited} heirs"));
    trial.must(
        acquisitions >= counted,
        format!("{counted} increments in {acquisitions} acquisitions"),
    );
    let inversions = book.order_inversions;
    trial.must(inversions == 0, format!("{inversions} times somebody was served out of order"));
    trial.must(
        workers == 1 || book.order_checked > 0,
        "no hand-over could be checked for its order".into(),
    );
}
