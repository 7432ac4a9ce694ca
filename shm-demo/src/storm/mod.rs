//! `shm-demo storm`: has processes share locks in the calm, then in a storm of
//! signals, timeouts, cancellations, stops and kills, and looks for waiters that
//! sleep on and for waiters that are served out of turn.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

mod deadlocks;
mod ground;
mod histogram;
mod line;
mod plot;
mod report;
mod signals;
mod verdict;
mod watchdog;
mod weather;
mod worker;

use crate::Result;
use crate::about_path;
use crate::cli::StormArgs;
use crate::crew::Crew;
use crate::outcome::End;
use crate::segment_file::SegmentFile;
use crate::signals::Signals;
use crate::trial::STUCK;
use clap::ValueEnum;
use deadlocks::Sceptic;
use ground::{Ground, LOCKS, Phase};
use heirlock::Segment;
use plot::Curve;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::sync::{Mutex, MutexGuard};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};
use watchdog::Watchdog;
use weather::Weather;

pub(crate) use ground::MAX_WORKERS;
pub(crate) use signals::Restart;
pub(crate) use worker::run as work;

/// How long the calm before the storm is: long enough for the watchdog.
const CALM: Duration = Duration::from_secs(4);

/// How long it tries to find out who owns a lock.
const AIMS: u32 = 100;

const SIGKILL: i32 = 9;

pub(crate) fn run(args: &StormArgs) -> Result<ExitCode> {
    let signals = Signals::watch()?;
    if let Some(plot) = &args.plot {
        // Rather than to find out at the end.
        std::fs::File::create(plot).map_err(|error| about_path(plot, &error))?;
    }
    // Dropped in the reverse order, also when this panics: first the workers
    // end, then the segment goes.
    let create = |path: &Path| ground::create(path, args.workers);
    let (file, segment) = SegmentFile::create(args.path.as_deref(), "storm", create)?;
    let restart = args.restart();
    let name = restart.to_possible_value().expect("each has a name");
    let mut more = vec![name.get_name()];
    if args.timeouts {
        more.push("--timeouts");
    }
    if args.deadlock_checks {
        more.push("--nested");
    }
    let crew = Mutex::new(Crew::new("storm-worker", &file.0, args.workers as usize, &more));
    let watchdog = Watchdog::new(&segment);
    let sceptic = Sceptic::new(&segment);
    let weather = Weather::new(&segment, &crew, args.workers as usize);
    let mut run = Run {
        args,
        ground: &segment,
        crew: &crew,
        watchdog: &watchdog,
        sceptic: &sceptic,
        weather: &weather,
        next_kill: None,
        kills: 0,
        kills_from_outside: 0,
        eintr_observed: 0,
        seconds: 0.0,
        failures: Vec::new(),
    };
    let end = thread::scope(|scope| {
        let _watch = watchdog.watch();
        scope.spawn(|| watchdog.run());
        let _checks = sceptic.checks();
        if args.deadlock_checks {
            scope.spawn(|| sceptic.run());
        }
        run.go_to_the_end(&signals)
    })?;
    run.crew().dismiss();
    let report = run.report(&end, &file.0)?;
    if let Some(path) = &args.plot {
        let curve = |name, phase: Phase| -> Result<Curve> {
            Ok(Curve { name, locks: histogram::histograms(&segment.waited[phase.index()])? })
        };
        plot::draw(path, &[curve("calm", Phase::Calm)?, curve("storm", Phase::Storm)?])?;
    }
    report.print(args.json)?;
    Ok(match end {
        End::Signal(number, _) => ExitCode::from(128 + number),
        _ if report.held() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

struct Run<'a> {
    args: &'a StormArgs,
    ground: &'a Segment<Ground>,
    crew: &'a Mutex<Crew>,
    watchdog: &'a Watchdog<'a>,
    sceptic: &'a Sceptic<'a>,
    weather: &'a Weather<'a>,
    /// When the next worker is killed, during the storm.
    next_kill: Option<Instant>,
    kills: u64,
    kills_from_outside: u64,
    /// Of the threads that are gone.
    eintr_observed: u64,
    /// How long the storm was.
    seconds: f64,
    failures: Vec<String>,
}

impl<'a> Run<'a> {
    fn crew(&self) -> MutexGuard<'a, Crew> {
        self.crew.lock().expect("nobody panics with the crew")
    }

    fn go_to_the_end(&mut self, signals: &Signals) -> Result<End> {
        let workers = self.args.workers as usize;
        for slot in 0..workers {
            self.crew().start(slot)?;
        }
        if let Some(end) = self.wait(signals, |run| run.ground.all_there(workers))? {
            return Ok(end);
        }
        self.ground.begin(Phase::Calm);
        let start = Instant::now();
        if let Some(end) = self.wait(signals, |_| start.elapsed() > CALM)? {
            return Ok(end);
        }
        self.ground.begin(Phase::Storm);
        if let Some(end) = self.storm(signals)? {
            return Ok(end);
        }
        self.ground.begin(Phase::Over);
        let end = self.wait(signals, |run| run.crew().running().is_empty())?;
        Ok(end.unwrap_or(End::Done))
    }

    fn storm(&mut self, signals: &Signals) -> Result<Option<End>> {
        let (args, weather) = (self.args, self.weather);
        let start = Instant::now();
        let length = Duration::from_secs(args.seconds.into());
        thread::scope(|scope| {
            let _front = weather.front();
            if args.signals_per_second > 0 {
                scope.spawn(|| weather.send_signals(args.signals_per_second));
            }
            if args.stops {
                scope.spawn(|| weather.stop_workers());
            }
            scope.spawn(|| weather.cancel_waits());
            self.plan_kill(start);
            let end = self.wait(signals, |_| start.elapsed() > length);
            self.next_kill = None;
            self.seconds = start.elapsed().as_secs_f64();
            end
        })
    }

    /// Looks after the workers until `done`; returns the end, if it comes before.
    fn wait(&mut self, signals: &Signals, done: impl Fn(&Self) -> bool) -> Result<Option<End>> {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            if let Some((number, name)) = signals.caught() {
                return Ok(Some(End::Signal(number, name)));
            }
            loop {
                let Some((slot, status)) = self.crew().ended()? else { break };
                if !self.explain(slot, status)? {
                    return Ok(Some(End::GivenUp));
                }
            }
            if self.watchdog.lost_wakeups() > 0 || self.sceptic.found() > 0 {
                return Ok(Some(End::GivenUp));
            }
            if done(self) {
                return Ok(None);
            }
            if let Some(next) = self.next_kill.filter(|next| Instant::now() >= *next) {
                self.kill_one()?;
                self.plan_kill(next);
            }
            let progress = self.ground.total_progress();
            if progress != last {
                (last, since) = (progress, Instant::now());
            } else if since.elapsed() > STUCK {
                if let Some(snapshot) = self.watchdog.snapshot() {
                    eprint!("{snapshot}");
                }
                self.failures.push(format!(
                    "no progress for {STUCK:?} (see above who holds the locks, and who waits)"
                ));
                return Ok(Some(End::GivenUp));
            }
            sleep(Duration::from_micros(fastrand::u64(300..1500)));
        }
    }

    /// Plans the kill after the one that was due at `last`.
    fn plan_kill(&mut self, last: Instant) {
        let rate = f64::from(self.args.kills_per_second);
        let pause = || Duration::from_secs_f64((0.5 + fastrand::f64()) / rate);
        self.next_kill = (rate > 0.0).then(|| last + pause());
    }

    /// Kills a worker, every other time one that owns a lock, if there is one to
    /// be found, and puts another in its place.
    fn kill_one(&mut self) -> Result<()> {
        let mut crew = self.crew();
        let running = crew.running();
        let owner = || {
            let lock = fastrand::usize(..LOCKS);
            self.ground.owners_place(lock).filter(|at| running.contains(at))
        };
        let aimed =
            if self.kills.is_multiple_of(2) { (0..AIMS).find_map(|_| owner()) } else { None };
        let slot = aimed.or_else(|| fastrand::choice(running.iter().copied()));
        let Some(slot) = slot else { return Ok(()) };
        match crew.kill(slot)? {
            Some(status) if status.signal() == Some(SIGKILL) => {
                self.kills += 1;
                self.count_the_dead(slot);
                crew.start(slot)?;
            }
            Some(status) => {
                self.failures.push(format!("worker {slot} ended before its time: {status}"));
            }
            None => {}
        }
        Ok(())
    }

    /// Adds what the threads of a worker noted that is gone, before anybody gets
    /// its place.
    fn count_the_dead(&mut self, slot: usize) {
        for soul in &self.ground.places[slot].threads {
            self.eintr_observed += soul.depart(self.ground);
        }
    }

    /// Whether the run can go on after a worker ended by itself.
    fn explain(&mut self, slot: usize, status: ExitStatus) -> Result<bool> {
        self.count_the_dead(slot);
        let over = self.ground.phase() == Phase::Over;
        if status.success() && over {
            return Ok(true);
        }
        if status.signal() == Some(SIGKILL) {
            self.kills_from_outside += 1;
            if !over {
                self.crew().start(slot)?;
            }
            return Ok(true);
        }
        self.failures.push(format!("worker {slot} ended before its time: {status}"));
        Ok(false)
    }
}
