//! The command line of `shm-demo state`.

use super::acks::MAX_WORKERS;
use crate::cli::TrialArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

pub(crate) const STATE: &str = "\
Keys and values in a segment, for any number of processes: a table of fixed size
(1024 entries, keys of up to 64 bytes, values of up to 256), under one lock. Nobody has
to run for it: each command opens the segment, locks, does its work and ends.

Any of them can be killed at any instruction, also in the middle of a change. Changes
are written into a journal before they are made; whoever gets the lock from a dead owner
is told of it by the lock, and finishes what the dead one had begun. So a change is
made or not made, never half made, and `state bench --kills N` proves it.";

pub(crate) const STATE_MORE: &str = "\
Examples:
  shm-demo state set colour green
  shm-demo state get colour
  shm-demo state list --json | jq .entries
  shm-demo state remove colour
  shm-demo state serve --every 5 &
      Prints operations, entries and recoveries, until SIGTERM.
  shm-demo state bench --kills 200
      Shows that no acknowledged change is lost, whoever is killed.";

const PATH: &str = "\
Where the segment is. `set` and `serve` create it; it stays until it is removed
(`rm PATH`) or the machine is booted";

const SERVE: &str = "\
Stays, and prints what happens to the state: every few seconds, on SIGUSR1, and at its
end. It also looks at the lock once a second, so that what a dead process left half done
is finished even if nobody else comes. There can be one at a time; if it is killed, the
next one takes over. SIGTERM, SIGINT (Ctrl-C) or SIGHUP end it, with exit code 0.";

const SERVE_MORE: &str = "\
What a line says (with --json under these names, in one object for each line):
  outcome               started, serving, or ended
  signal                what ended it
  path                  where the segment is
  servers               how many have served it so far
  seconds               since this one began
  operations            gets, sets and removes so far
  operations_per_second since the line before
  gets, sets, removes   how many of each
  entries               keys that are there now
  capacity              keys that can be there
  changes               sets and removes that were made
  inherited             how often somebody got the lock from a dead owner, and was told
  repaired              how often the dead owner had left a change half done

Example:
  shm-demo state serve --path /dev/shm/settings --every 60 &
  kill -USR1 $!";

const BENCH: &str = "\
Starts worker processes (this program again) that set, get and remove keys, some of
their own and some that all of them set, and kills workers with SIGKILL while they do,
every other time aiming at the one that holds the lock. For each one that is killed
another one takes its place.

Each worker notes outside of the lock what it is going to do before it does it, and that
it is done afterwards. What was acknowledged must be there, to the byte; of the one
change that a killed worker had not acknowledged, its successor looks whether it was
made: wholly, or not at all.";

const BENCH_MORE: &str = "\
What is reported (with --json under these names, in one object on the last line):
  outcome               held, failed, interrupted; or error, with the field error alone
  failures              what did not hold, in words
  path                  where the segment was
  kills                 how often a running worker was killed with SIGKILL by this program
  kills_asked           --kills; must be the same
  kills_from_outside    workers that somebody else killed with SIGKILL
  seconds               from the first worker's start to the last one's end
  workers               processes at a time
  operations_asked      --operations
  changes_acknowledged  changes that workers acknowledged; at least as many
  changes               changes that the table counts
  gets                  how often a value was looked at, and compared
  entries               keys at the end
  entries_expected      keys that must be there at the end
  in_doubt_made         changes that a killed worker had not acknowledged, and that were made
  in_doubt_not_made     the same, and they were not
  inherited             how often a worker got the lock from a dead owner, and was told
  repaired              how often the dead owner had left a change half done
  wrong                 values that were not as they had to be; must be 0

Examples:
  shm-demo state bench
  shm-demo state bench --workers 8 --kills 500 --json | tail -n 1
  shm-demo state bench --kills 100 --without-repair
      Heirs leave things as they are: the check must fail.";

#[derive(Args)]
pub(crate) struct StateArgs {
    #[command(subcommand)]
    pub(crate) command: StateCommand,
}

#[derive(Subcommand)]
pub(crate) enum StateCommand {
    /// Set a key, to be found by any process
    Set {
        #[command(flatten)]
        at: Where,
        /// 1 to 64 bytes
        key: String,
        /// Up to 256 bytes
        value: String,
    },
    /// Print the value of a key; exit code 1 if there is none
    Get {
        #[command(flatten)]
        at: Where,
        key: String,
    },
    /// Remove a key; exit code 1 if there is none
    Remove {
        #[command(flatten)]
        at: Where,
        key: String,
    },
    /// Print all keys and their values, with a tab between
    List {
        #[command(flatten)]
        at: Where,
    },
    /// Stay, and print what happens
    #[command(long_about = SERVE, after_long_help = SERVE_MORE)]
    Serve(ServeArgs),
    /// Kill processes that use a state, and show that nothing is lost
    #[command(long_about = BENCH, after_long_help = BENCH_MORE)]
    Bench(StateBenchArgs),
}

#[derive(Args)]
pub(crate) struct Where {
    #[arg(long, value_name = "PATH", default_value = "/dev/shm/heirlock-state", help = PATH)]
    pub(crate) path: PathBuf,

    /// Print one JSON object, on one line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) at: Where,

    /// How many seconds there are between two lines
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) every: u32,

    /// Remove the segment at the end
    #[arg(long)]
    pub(crate) remove: bool,
}

#[derive(Args)]
pub(crate) struct StateBenchArgs {
    /// How many worker processes run at a time
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(1..=MAX_WORKERS as i64))]
    pub(crate) workers: u32,

    /// How many changes all workers together make, at least
    #[arg(long, value_name = "N", default_value_t = 50_000,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    pub(crate) operations: u64,

    #[command(flatten)]
    pub(crate) trial: TrialArgs,

    /// Have heirs repair nothing, to see the check fail
    #[arg(long)]
    pub(crate) without_repair: bool,
}

impl StateArgs {
    pub(crate) fn json(&self) -> bool {
        match &self.command {
            StateCommand::Set { at, .. }
            | StateCommand::Get { at, .. }
            | StateCommand::Remove { at, .. }
            | StateCommand::List { at } => at.json,
            StateCommand::Serve(args) => args.at.json,
            StateCommand::Bench(args) => args.trial.json,
        }
    }
}
