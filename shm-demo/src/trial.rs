//! A crew that works until all is done, while its members are killed.

use crate::Result;
use crate::cli::TrialArgs;
use crate::course::Course;
use crate::crew::Crew;
use crate::outcome::{Account, End, Outcome};
use crate::segment_file::SegmentFile;
use crate::signals::Signals;
use heirlock::{Participant, Segment, SegmentError, Snapshot};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Without progress for this long a run has failed.
pub(crate) const STUCK: Duration = Duration::from_secs(60);

/// How long the parent waits for a lock that nobody can hold any more.
pub(crate) const FINAL_LOCK: Duration = Duration::from_secs(20);

/// How long it tries to find out who owns the lock.
const AIMS: u32 = 1000;

const SIGKILL: i32 = 9;

/// What the crew works on.
pub(crate) trait Subject {
    fn course(&self) -> &Course;

    /// Whom every other kill is aimed at: usually who owns the lock.
    fn owner(&self) -> Option<Participant>;

    /// The locks to show when nothing moves, by their offsets.
    fn locks(&self) -> Vec<u64>;

    /// Called when a worker is dead and reaped, before anybody gets its place.
    fn bury(&self) {}
}

/// Tries what `create` makes for `shm-demo DEMO`, with a crew that has the subcommand
/// `role`, and prints what `report` says of it when nobody is left.
pub(crate) fn run<T, A: Account>(
    args: &TrialArgs,
    demo: &str,
    role: &'static str,
    create: impl Fn(&Path) -> std::result::Result<Segment<T>, SegmentError>,
    report: impl FnOnce(&Segment<T>, Trial, &End) -> A,
) -> Result<ExitCode>
where
    Segment<T>: Subject,
{
    let signals = Signals::watch()?;
    // Dropped in the reverse order, also when this panics: first the workers
    // end, then the segment goes.
    let (file, segment) = SegmentFile::create(args.path.as_deref(), demo, create)?;
    let crew = Crew::new(role, &file.0, segment.course().workers(), &[]);
    let mut trial = Trial::new(&segment, &file.0, crew, args.kills);
    let end = trial.run(&signals)?;
    let report = report(&segment, trial, &end);
    report.print(args.json)?;
    Ok(report.outcome().exit_code())
}

pub(crate) struct Trial<'a> {
    subject: &'a dyn Subject,
    path: &'a Path,
    crew: Crew,
    kills: u32,
    kills_asked: u32,
    kills_from_outside: u64,
    failures: Vec<String>,
    start: Instant,
    seconds: f64,
}

impl<'a> Trial<'a> {
    /// A trial of what is in the segment at `path`, with a crew that has nobody
    /// so far.
    fn new(subject: &'a dyn Subject, path: &'a Path, crew: Crew, kills: u32) -> Self {
        Self {
            subject,
            path,
            crew,
            kills: 0,
            kills_asked: kills,
            kills_from_outside: 0,
            failures: Vec::new(),
            start: Instant::now(),
            seconds: 0.0,
        }
    }

    /// Runs it to its end, after which nobody is left.
    fn run(&mut self, signals: &Signals) -> Result<End> {
        self.start = Instant::now();
        let end = self.go_to_the_end(signals)?;
        self.crew.dismiss();
        self.seconds = self.start.elapsed().as_secs_f64();
        Ok(end)
    }

    fn go_to_the_end(&mut self, signals: &Signals) -> Result<End> {
        let course = self.subject.course();
        self.set_limit();
        for slot in 0..course.workers() {
            self.crew.start(slot)?;
        }
        let bar = progress_bar(course.target());
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
            let progress = course.progress();
            bar.set_position(progress);
            if self.kills < self.kills_asked && progress >= self.part(self.kills + 1) {
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

    /// How much work the first `parts` of the `kills + 1` parts have.
    fn part(&self, parts: u32) -> u64 {
        let all = u128::from(self.subject.course().target()) * u128::from(parts);
        (all / (u128::from(self.kills_asked) + 1)) as u64
    }

    /// The workers may be one part ahead of the kills, but never finish before
    /// the last one.
    fn set_limit(&self) {
        let target = self.subject.course().target();
        let limit = if self.kills == self.kills_asked {
            target
        } else {
            self.part(self.kills + 2).min(target - 1)
        };
        self.subject.course().set_limit(limit);
    }

    fn kill_one(&mut self) -> Result<()> {
        let running = self.crew.running();
        let place = || self.subject.course().place_of(self.subject.owner()?);
        // The owner changes a hundred thousand times a second, so this is an
        // attempt.
        let owner = || (0..AIMS).find_map(|_| place().filter(|at| running.contains(at)));
        let aimed = if self.kills.is_multiple_of(2) { owner() } else { None };
        let slot = aimed.or_else(|| fastrand::choice(running.iter().copied()));
        let Some(slot) = slot else { return Ok(()) };
        match self.crew.kill(slot)? {
            Some(status) if status.signal() == Some(SIGKILL) => {
                self.kills += 1;
                self.subject.bury();
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
        if status.success() && self.subject.course().is_complete() {
            return Ok(true);
        }
        if status.signal() == Some(SIGKILL) {
            self.kills_from_outside += 1;
            self.subject.bury();
            self.crew.start(slot)?;
            return Ok(true);
        }
        self.failures.push(format!("worker {slot} ended before its time: {status}"));
        Ok(false)
    }

    fn show_what_is_stuck(&mut self) {
        match Snapshot::read(self.path, &self.subject.locks()) {
            Ok(snapshot) => eprint!("{snapshot}"),
            Err(error) => eprintln!("shm-demo: {error}"),
        }
        self.failures.push(format!(
            "no progress for {STUCK:?} (see above who holds the lock, and who waits)"
        ));
    }

    /// How many workers have been killed.
    pub(crate) fn deaths(&self) -> u64 {
        u64::from(self.kills) + self.kills_from_outside
    }

    /// Takes note of what does not hold.
    pub(crate) fn fail(&mut self, what: String) {
        self.failures.push(what);
    }

    pub(crate) fn must(&mut self, holds: bool, what: String) {
        if !holds {
            self.fail(what);
        }
    }

    /// What `lock` gets in the time that it is told, when nobody is left to hold a lock.
    pub(crate) fn final_lock<G>(&mut self, lock: impl FnOnce(Duration) -> Option<G>) -> Option<G> {
        let guard = lock(FINAL_LOCK);
        if guard.is_none() {
            self.fail(format!(
                "the lock could not be had for {FINAL_LOCK:?}, though nobody is left to hold it"
            ));
        }
        guard
    }

    pub(crate) fn outcome(mut self, end: &End) -> Outcome {
        if let End::Done = end
            && self.kills != self.kills_asked
        {
            self.failures.push(format!("made {} kills, not {}", self.kills, self.kills_asked));
        }
        let (signal_number, signal) = match *end {
            End::Signal(number, name) => (number, Some(name)),
            End::Done | End::GivenUp => (0, None),
        };
        Outcome {
            outcome: match end {
                _ if !self.failures.is_empty() => "failed",
                End::Signal(..) => "interrupted",
                End::Done | End::GivenUp => "held",
            },
            signal,
            signal_number,
            failures: self.failures,
            path: self.path.to_path_buf(),
            kills: self.kills,
            kills_asked: self.kills_asked,
            kills_from_outside: self.kills_from_outside,
            seconds: self.seconds,
        }
    }
}

fn progress_bar(length: u64) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "{bar:40} {percent:>3}%  {human_pos} of {human_len}  eta {eta}";
    let style = ProgressStyle::with_template(style).expect("a template of known keys");
    ProgressBar::new(length).with_style(style).with_finish(ProgressFinish::AndClear)
}
