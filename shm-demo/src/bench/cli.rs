//! The command line of `shm-demo bench`, and of the processes that it starts.

use super::{ItemName, Player};
use crate::cli::WorkerArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

pub(crate) const BENCH: &str = "\
Measures locks beside their peers and prints tables in Markdown.

Each item measures its variants in turn: A B C, A B C, and so on. A figure is the
median of these repetitions, a ratio that of the ratios within each. Processes and
threads are pinned to CPUs. A repetition during which the host took more than 2% of
the processors' time (the steal time in /proc/stat) is made again, up to twice.
Ratios have targets; one that is missed is marked, and is no failure.

Peers are std::sync::Mutex, parking_lot's Mutex and FairMutex (threads of one
process), and the process-shared pthread mutex, plain and robust.";

pub(crate) const BENCH_MORE: &str = "\
What --json prints, in one object on the last line:
  outcome               measured; or error, with the field error alone
  quick                 whether it was run with --quick
  machine               cpu (its model), cpus (how many may be used), kernel
  repetitions           how many count
  targets               how many targets there are, in all items
  targets_missed        how many of them were missed
  items                 for each item
    name, about         what it is
    figures             what was measured: table (what, and its unit), case (the row),
                        variant (the column), median, least, most, spread (most less
                        least, divided by the median)
    checks              what has a target: case, what, median, least, most, spread,
                        target (at_most or at_least), met
    notes               what could not be measured here, and why
    discarded           repetitions that were made again
    disturbed           repetitions that count although the host took the time
    others              the largest share of the processors' time in a repetition that
                        went to other programs of this machine: they make figures
                        worse, and are not held against a repetition

Exit code 0 means that everything was measured, whatever came out.

Examples:
  shm-demo bench
  shm-demo bench uncontended handover
  shm-demo bench --repetitions 21 --plot plots --json | tail -n 1";

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// What to measure [default: everything]
    #[arg(value_name = "ITEM")]
    pub(crate) items: Vec<ItemName>,

    /// How many repetitions count
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repetitions: u32,

    /// Run everything for a moment, once: whether it works. The figures mean nothing
    #[arg(long, conflicts_with = "repetitions")]
    pub(crate) quick: bool,

    /// Print one JSON object as the last line, instead of tables
    #[arg(long)]
    pub(crate) json: bool,

    /// Draw each table into this directory
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) plot: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct BenchMemberArgs {
    #[command(flatten)]
    pub(crate) worker: WorkerArgs,
    /// What they contend for
    pub(crate) player: Player,
    /// How many members are threads of this process
    pub(crate) threads: usize,
    /// How often the busy loop turns while the lock is held
    pub(crate) busy: u64,
    /// The CPUs that the members take in turn
    #[arg(value_delimiter = ',', num_args = 1)]
    pub(crate) cpus: Vec<usize>,
    /// Look for bypasses, and measure the waits
    #[arg(long)]
    pub(crate) watch: bool,
    /// Take the time from each release to the acquisition by another member
    #[arg(long)]
    pub(crate) timed: bool,
}

#[derive(Args)]
pub(crate) struct BenchSoloArgs {
    /// The process that started it
    pub(crate) parent: u32,
    #[command(subcommand)]
    pub(crate) part: Part,
}

/// What a process does that tells by its standard output what it found.
#[derive(Subcommand)]
pub(crate) enum Part {
    /// Has so many threads queue, and serves them
    Queue { waiters: usize, rounds: usize },
    /// The same, with a fair lock of one process
    FairQueue { waiters: usize, rounds: usize },
    /// Has so many threads queue, until their time is over
    GiveUp { waiters: usize, rounds: usize },
    /// Takes part in a segment with so many threads, until it is killed
    Tenants { path: PathBuf, rows: usize },
    /// Has new threads join a segment
    Attach { path: PathBuf, times: usize },
    /// Has new threads join a segment of their own
    AttachAlone { capacity: u32, times: usize },
    /// Locks one of many locks again and again, and all of them
    Many { turns: usize },
    /// Takes so many locks, and is killed
    Owner { path: PathBuf, locks: usize },
    /// Inherits them, each by a thread of its own, or all by one
    Heirs { path: PathBuf, locks: usize, threads: usize },
    /// Takes one lock, and is killed
    Victim { peer: String, path: PathBuf, cpu: usize },
}
