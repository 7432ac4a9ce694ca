//! Demonstrations of heirlock: `counter` has processes share a lock and kills
//! them while they do; `storm` has them share several, under signals, timeouts,
//! cancellations, stops and kills; `inspect` shows what is in a segment, also
//! when everything in it is stuck; `bench` measures locks beside their peers.
//!
//! `state` (keys and values), `pool` (of connections) and `queue` are there to be
//! read as well: each of them is killed in the middle of everything, and shows what an
//! heir has to do so that nothing is lost. `daemon` serves locks at a socket, and `client`
//! asks it for them.

mod bench;
mod cli;
mod counter;
mod course;
mod crew;
mod daemon;
mod inspect;
mod ledger;
mod order;
mod outcome;
mod pool;
mod queue;
mod report;
mod segment_file;
mod served;
mod settle;
mod shared;
mod signals;
mod state;
mod storm;
mod trial;
mod worker;

use clap::Parser;
use cli::{Cli, Command};
use serde::Serialize;
use std::error::Error;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

/// What anything here returns; the text is for people.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let (json, result) = match Cli::parse().command {
        Command::Bench(args) => (args.json, bench::run(&args)),
        Command::BenchMember(args) => (false, bench::join(&args).map(|()| ExitCode::SUCCESS)),
        Command::BenchSolo(args) => (false, bench::play(&args).map(|()| ExitCode::SUCCESS)),
        Command::Client(args) => (false, daemon::client::run(&args)),
        Command::Counter(args) => (args.trial.json, counter::run(&args)),
        Command::Daemon(args) => (false, daemon::run(&args)),
        Command::Inspect(args) => (args.json, inspect::run(&args)),
        Command::Pool(args) => (args.trial.json, pool::run(&args)),
        Command::PoolClient(args) => (false, pool::work(&args).map(|()| ExitCode::SUCCESS)),
        Command::Queue(args) => (args.trial.json, queue::run(&args)),
        Command::QueueMember(args) => (false, queue::join(&args).map(|()| ExitCode::SUCCESS)),
        Command::State(args) => (args.json(), state::run(&args)),
        Command::StateWorker(args) => (false, state::work(&args).map(|()| ExitCode::SUCCESS)),
        Command::Storm(args) => (args.json, storm::run(&args)),
        Command::StormWorker(args) => (false, storm::work(&args).map(|()| ExitCode::SUCCESS)),
        Command::Worker(args) => (false, worker::run(&args).map(|()| ExitCode::SUCCESS)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("shm-demo: {error}");
        if json {
            // Whoever parses the last line gets an object in every case.
            let _ = print_json(&Failed { outcome: "error", error: error.to_string() });
        }
        ExitCode::FAILURE
    })
}

/// The JSON of a run that did not get as far as a result.
#[derive(Serialize)]
struct Failed {
    outcome: &'static str,
    error: String,
}

/// An error with the path that it is about, which not every error names.
fn about_path(path: &Path, error: &dyn Error) -> String {
    let name = path.display().to_string();
    let text = error.to_string();
    if text.contains(&name) { text } else { format!("{name}: {text}") }
}

/// Prints to a standard output that may have been closed (`| head`), which is
/// no failure.
fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints one object on a line of its own.
fn print_json(object: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string(object)?))
}
