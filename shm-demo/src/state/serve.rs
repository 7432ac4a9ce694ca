//! `shm-demo state serve`: stays, finishes what dead processes left half done, and says
//! what happens.
#![allow(clippy::disallowed_types, reason = "what signal-hook wants")]

use super::cli::ServeArgs;
use super::table::CAPACITY;
use super::{State, open_or_create};
use crate::signals::Signals;
use crate::{Result, print, print_json};
use heirlock::{Segment, Snapshot};
use serde::Serialize;
use signal_hook::consts::SIGUSR1;
use signal_hook::flag;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often it looks for signals.
const TICK: Duration = Duration::from_millis(20);

/// How often it looks at the lock.
const ROUND: Duration = Duration::from_secs(1);

/// How long it waits for the lock: it must not be deaf to signals because somebody
/// is stopped with the lock.
const PATIENCE: Duration = Duration::from_millis(500);

pub(crate) fn run(args: &ServeArgs) -> Result<ExitCode> {
    let signals = Signals::watch()?;
    let asked = Arc::new(AtomicBool::new(false));
    flag::register(SIGUSR1, Arc::clone(&asked))?;
    let segment = open_or_create(&args.at.path)?;
    // There is no PID file that could be out of date: if the server dies, so does
    // its claim.
    let Some(mut served) = segment.server.try_lock() else {
        return Err(format!(
            "{}: it is served already, by process {}; end that one first",
            args.at.path.display(),
            server_pid(args, &segment)
        )
        .into());
    };
    *served += 1;
    let mut server = Server {
        args,
        segment: &segment,
        servers: *served,
        start: Instant::now(),
        last: None,
        busy: false,
    };
    server.say("started", None)?;
    let (mut said, mut looked) = (Instant::now(), Instant::now());
    let every = Duration::from_secs(args.every.into());
    let signal = loop {
        if let Some((_, name)) = signals.caught() {
            break name;
        }
        if asked.swap(false, Relaxed) || said.elapsed() >= every {
            server.say("serving", None)?;
            (said, looked) = (Instant::now(), Instant::now());
        } else if looked.elapsed() >= ROUND {
            // To lock it is to mend it.
            drop(segment.table_within(PATIENCE));
            looked = Instant::now();
        }
        sleep(TICK);
    };
    server.say("ended", Some(signal))?;
    if args.remove {
        Segment::unlink(&args.at.path)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn server_pid(args: &ServeArgs, segment: &Segment<State>) -> String {
    let pid = || {
        let offset = segment.offset_of(&segment.server)?;
        let snapshot = Snapshot::read(&args.at.path, &[offset]).ok()?;
        let owner = snapshot.lock(offset)?.owner?;
        Some(snapshot.participant(owner.row())?.pid)
    };
    pid().map_or("?".into(), |pid| pid.to_string())
}

struct Server<'a> {
    args: &'a ServeArgs,
    segment: &'a Segment<State>,
    servers: u64,
    start: Instant,
    /// When the last line was printed, and how many operations there were.
    last: Option<(Instant, u64)>,
    /// Whether the last line said that the lock cannot be had.
    busy: bool,
}

/// A line; `shm-demo state serve --help` says what the fields mean.
#[derive(Serialize)]
struct Line {
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<&'static str>,
    path: PathBuf,
    servers: u64,
    seconds: f64,
    operations: u64,
    operations_per_second: f64,
    gets: u64,
    sets: u64,
    removes: u64,
    entries: u64,
    capacity: usize,
    changes: u64,
    inherited: u64,
    repaired: u64,
}

impl Server<'_> {
    fn say(&mut self, outcome: &'static str, signal: Option<&'static str>) -> Result<()> {
        let Some(table) = self.segment.table_within(PATIENCE) else {
            if !self.busy {
                eprintln!(
                    "shm-demo: the lock cannot be had; `shm-demo inspect {}` shows who holds it",
                    self.args.at.path.display()
                );
            }
            self.busy = true;
            return Ok(());
        };
        self.busy = false;
        let counts = table.counts.clone();
        let (entries, changes) = (table.entries(), table.changes());
        drop(table);
        let operations = counts.gets + counts.sets + counts.removes;
        let now = Instant::now();
        let (then, before) = self.last.unwrap_or((now, operations));
        self.last = Some((now, operations));
        let seconds = (now - then).as_secs_f64().max(0.001);
        let line = Line {
            outcome,
            signal,
            path: self.args.at.path.clone(),
            servers: self.servers,
            seconds: (now - self.start).as_secs_f64(),
            operations,
            operations_per_second: operations.saturating_sub(before) as f64 / seconds,
            gets: counts.gets,
            sets: counts.sets,
            removes: counts.removes,
            entries,
            capacity: CAPACITY,
            changes,
            inherited: counts.inherited,
            repaired: counts.repaired,
        };
        if self.args.at.json {
            return print_json(&line);
        }
        let by = signal.map(|name| format!(" by {name}")).unwrap_or_default();
        print(&format!(
            "{outcome}{by}: {operations} operations ({:.0} per second), {entries} of {CAPACITY} \
             entries, {} recoveries, {} of them of a change half done\n",
            line.operations_per_second, line.inherited, line.repaired
        ))
    }
}
