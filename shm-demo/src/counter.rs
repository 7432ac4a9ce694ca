//! `shm-demo counter`: starts the workers, kills them, and looks at what is
//! left.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use crate::Result;
use crate::cli::CounterArgs;
use crate::crew::Crew;
use crate::ledger::Book;
use crate::report::Report;
use crate::segment_file::SegmentFile;
use crate::shared::{self, Shared};
use crate::signals::Signals;
use heirlock::{MutexGuard, Segment, Snapshot};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::sync::atomic::Ordering::Relaxed;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Without progress for this long the run has failed.
const STUCK: Duration = Duration::from_secs(60);

/// How long the parent waits for a lock that nobody can hold any more.
const FINAL_LOCK: Duration = Duration::from_secs(20);

/// How long it tries to find out who owns the lock.
const AIMS: u32 = 1000;

const SIGKILL: i32 = 9;

pub(crate) fn run(args: &CounterArgs) -> Result<ExitCode> {
    let signals = Signals::watch()?;
    // Dropped in the reverse order, also when this panics: first the workers
    // end, then the segment goes.
    let create = |path: &Path| shared::create(path, args.workers, args.increments);
    let (file, segment) = SegmentFile::create(args.path.as_deref(), "counter", create)?;
    let crew = Crew::new("worker", &file.0, args.workers, &[]);
    let start = Instant::now();
    let mut run = Run {
        args,
        shared: &segment,
        path: &file.0,
        crew,
        kills: 0,
        kills_from_outside: 0,
        failures: Vec::new(),
    };
    let end = run.go_to_the_end(&signals)?;
    run.crew.dismiss();
    let seconds = start.elapsed().as_secs_f64();
    let report = run.report(&end, seconds);
    report.print(args.json)?;
    Ok(match end {
        End::Signal(number, _) => ExitCode::from(128 + number),
        _ if report.held() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// How a run came to its end.
pub(crate) enum End {
    /// All workers have left.
    Done,
    /// It was no use to go on; the failures say why.
    GivenUp,
    /// A signal, by number and name.
    Signal(u8, &'static str),
}

struct Run<'a> {
    args: &'a CounterArgs,
    shared: &'a Segment<Shared>,
    path: &'a Path,
    crew: Crew,
    kills: u32,
    kills_from_outside: u64,
    failures: Vec<String>,
}

impl Run<'_> {
    fn go_to_the_end(&mut self, signals: &Signals) -> Result<End> {
        self.set_limit();
        for slot in 0..self.args.workers as usize {
            self.crew.start(slot)?;
        }
        let bar = progress_bar(self.args.increments);
        let (mut last, mut since) = (0, Instant::now());
        loop {
            if let Some((number, name)) = signals.caught() {
                return Ok(End::Signal(number, name));
            }
            while let Some((slot, status)) = self.crew.ended()? {
                if !self.explain(slot, status)? {
                    return Ok(End::GivenUp);
                }
            }
            if self.crew.running().is_empty() {
                bar.finish();
                return Ok(End::Done);
            }
            let progress = self.shared.progress.load(Relaxed);
            bar.set_position(progress);
            if self.kills < self.args.kills && progress >= self.part(self.kills + 1) {
                self.kill_one()?;
                since = Instant::now();
            }
            if progress != last {
                (last, since) = (progress, Instant::now());
            } else if since.elapsed() > STUCK {
                self.show_what_is_stuck();
                return Ok(End::GivenUp);
            }
            // A random time, so that kills hit at random moments.
            sleep(Duration::from_micros(fastrand::u64(100..800)));
        }
    }

    /// How many increments the first `parts` of the `kills + 1` parts have.
    fn part(&self, parts: u32) -> u64 {
        let all = u128::from(self.args.increments) * u128::from(parts);
        (all / (u128::from(self.args.kills) + 1)) as u64
    }

    /// The workers may be one part ahead of the kills, but never finish before
    /// the last one.
    fn set_limit(&self) {
        let limit = if self.kills == self.args.kills {
            self.args.increments
        } else {
            self.part(self.kills + 2).min(self.args.increments - 1)
        };
        self.shared.limit.store(limit, Relaxed);
    }

    fn kill_one(&mut self) -> Result<()> {
        let running = self.crew.running();
        let owner = || {
            // The owner changes a hundred thousand times a second, so this is
            // an attempt.
            (0..AIMS).find_map(|_| self.shared.owners_place().filter(|at| running.contains(at)))
        };
        let aimed = if self.kills.is_multiple_of(2) { owner() } else { None };
        let slot = aimed.or_else(|| fastrand::choice(running.iter().copied()));
        let Some(slot) = slot else { return Ok(()) };
        match self.crew.kill(slot)? {
            Some(status) if status.signal() == Some(SIGKILL) => {
                self.kills += 1;
                self.set_limit();
                self.crew.start(slot)?;
            }
            Some(status) => {
                self.failures.push(format!("worker {slot} ended before its time: {status}"));
            }
            None => {}
        }
        Ok(())
    }

    /// Whether the run can go on after a worker ended by itself.
    fn explain(&mut self, slot: usize, status: ExitStatus) -> Result<bool> {
        let complete = self.shared.progress.load(Relaxed) >= self.args.increments;
        if status.success() && complete {
            return Ok(true);
        }
        if status.signal() == Some(SIGKILL) {
            self.kills_from_outside += 1;
            self.crew.start(slot)?;
            return Ok(true);
        }
        self.failures.push(format!("worker {slot} ended before its time: {status}"));
        Ok(false)
    }

    fn show_what_is_stuck(&mut self) {
        let offset = self.shared.offset_of(&self.shared.ledger);
        match Snapshot::read(self.path, offset.as_slice()) {
            Ok(snapshot) => eprint!("{snapshot}"),
            Err(error) => eprintln!("shm-demo: {error}"),
        }
        self.failures.push(format!(
            "no progress for {STUCK:?} (see above who holds the lock, and who waits)"
        ));
    }

    /// What the ledger says, now that nobody is left who could hold the lock.
    fn report(mut self, end: &End, seconds: f64) -> Report {
        let mut counted = 0;
        let mut book = Book::default();
        match self.shared.ledger.try_lock_for(FINAL_LOCK) {
            Some(mut ledger) => {
                let inherited = MutexGuard::inherited(&ledger).is_some();
                ledger.repair(inherited);
                counted = ledger.done();
                if let Err(what) = ledger.count() {
                    self.failures.push(what);
                }
                book = ledger.book.clone();
            }
            None => self.failures.push(format!(
                "the lock could not be had for {FINAL_LOCK:?}, though nobody is left to hold it"
            )),
        }
        if let End::Done = end {
            self.check(counted, &book);
        }
        Report {
            outcome: match end {
                _ if !self.failures.is_empty() => "failed",
                End::Signal(..) => "interrupted",
                End::Done | End::GivenUp => "held",
            },
            signal: if let End::Signal(_, name) = end { Some(name) } else { None },
            failures: self.failures,
            path: self.path.to_path_buf(),
            workers: self.args.workers,
            increments_expected: self.args.increments,
            increments_counted: counted,
            kills: self.kills,
            kills_asked: self.args.kills,
            kills_from_outside: self.kills_from_outside,
            inherited: book.inherited,
            repaired: book.repaired,
            order_inversions: book.order_inversions,
            order_checked: book.order_checked,
            order_unchecked: book.order_unchecked,
            acquisitions: book.acquisitions,
            longest_wait_us: book.longest_wait_ns / 1000,
            seconds,
        }
    }

    /// Whether everything held in a run that came to its end.
    fn check(&mut self, counted: u64, book: &Book) {
        let CounterArgs { workers, increments, kills, .. } = *self.args;
        let deaths = u64::from(self.kills) + self.kills_from_outside;
        let mut must = |holds: bool, what: String| {
            if !holds {
                self.failures.push(what);
            }
        };
        must(counted == increments, format!("counted {counted} increments, not {increments}"));
        must(self.kills == kills, format!("made {} kills, not {kills}", self.kills));
        let Book { acquisitions, inherited, repaired, overlaps, untold, .. } = *book;
        must(overlaps == 0, format!("{overlaps} times two workers had the lock at once"));
        must(untold == 0, format!("{untold} times an owner was not told of a dead one"));
        must(inherited <= deaths, format!("{inherited} heirs of {deaths} dead"));
        must(repaired <= inherited, format!("{repaired} repairs by {inherited} heirs"));
        must(
            acquisitions >= counted,
            format!("{counted} increments in {acquisitions} acquisitions"),
        );
        let inversions = book.order_inversions;
        must(inversions == 0, format!("{inversions} times somebody was served out of order"));
        must(
            workers == 1 || book.order_checked > 0,
            "no hand-over could be checked for its order".into(),
        );
    }
}

fn progress_bar(increments: u64) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "{bar:40} {percent:>3}%  {human_pos} of {human_len}  eta {eta}";
    let style = ProgressStyle::with_template(style).expect("a template of known keys");
    ProgressBar::new(increments).with_style(style).with_finish(ProgressFinish::AndClear)
}
