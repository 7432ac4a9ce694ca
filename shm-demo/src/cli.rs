//! The command line, and the help that teaches it.

use crate::shared::MAX_WORKERS;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  shm-demo counter
      4 processes, 200,000 increments, 40 kills: shows that nothing is lost.

  shm-demo counter --workers 8 --kills 200 --json | tail -n 1
      The same, harder, for a script.

  shm-demo counter --path /dev/shm/demo --increments 100000000 &
  shm-demo inspect /dev/shm/demo
      Who holds the lock and who waits, while it runs.

Exit codes:
  0  everything held
  1  something did not hold, or could not be tried; standard error says what
  2  the command line makes no sense
  128 + N  ended by signal N, after cleaning up (Ctrl-C: 130)";

const COUNTER: &str = "\
Starts worker processes (this program again, not threads) that increment shared
counters under one lock, each time in a dozen separate writes, so that a kill
in the middle leaves the data torn. Meanwhile it kills workers with SIGKILL at
random moments, every other time aiming at the one that holds the lock, and
starts a new one for each. The heir of a dead owner is told of it by the lock
and undoes what it left half done, by a journal next to the counters. At the end
every copy of the count must be exact.

It also checks who is served: each owner writes down the queue that it finds in
the lock itself, and the next owner compares. Only who was first in that queue,
or came behind nobody but the dead, may have the lock next. And each worker
looks at the queue before it asks for the lock: whoever it sees there must have
been served, or be dead, when it gets it.";

const COUNTER_MORE: &str = "\
What is reported (with --json under these names, in one object on the last line):
  outcome               held, failed, interrupted; or error, with the field error alone
  failures              what did not hold, in words
  path                  where the segment was
  workers               processes at a time
  increments_expected   --increments: the total over all workers, not for each
  increments_counted    what the counters say; must be the same
  kills                 how often a running worker was killed with SIGKILL by this program
  kills_asked           --kills; must be the same
  kills_from_outside    workers that somebody else killed with SIGKILL (try it)
  inherited             how often a worker got the lock from a dead owner, and was told
  repaired              how often the dead owner had left the data torn
  order_inversions      how often somebody was served out of order; must be 0
  order_checked         hand-overs of which the queue was known and not empty
  order_unchecked       hand-overs of which it was not known: the owner died before it
                        could write the queue down, or the queue moved too fast
  acquisitions          how often a worker got the lock
  longest_wait_us       the longest time that a worker waited for it, in microseconds
  seconds               from the first worker's start to the last one's end

In a hand-over that is neither checked nor unchecked nobody waited. (Several workers
go on to take the lock, without counting, until one hand-over could be checked.)

The kills are spread over the work: the k-th comes when k of kills + 1 equal parts
are done, and nobody starts a part before the kills before it have been made. So
all of them hit running workers.

The run fails if there is no progress for 60 seconds; it then prints who holds
the lock and who waits. Exit codes: see `shm-demo --help`.

Examples:
  shm-demo counter
  shm-demo counter --workers 8 --kills 200
  shm-demo counter --workers 1 --kills 0 --increments 1000000
  shm-demo counter --json | tail -n 1

  shm-demo counter --path /dev/shm/demo --increments 100000000 --kills 0 &
  shm-demo inspect /dev/shm/demo    # pick the owner's PID
  kill -9 PID                       # be the killer yourself";

const PATH: &str = "\
Where to create the segment; removed at the end

[default: /dev/shm/heirlock-counter-PID]

There must be nothing at that path: two runs are never mixed, and nothing is
overwritten. (A run that was itself killed with SIGKILL leaves its segment
behind; remove it.)";

const INSPECT: &str = "\
Shows a segment of any program: its header, who takes part, and for each lock the
owner and the queue, in the order in which it will be served. Nothing is locked
and nothing is written: the file is opened read-only, so this works while
everything in the segment is stuck. The parts are read one after the other; of a
busy segment they may not fit together.";

const INSPECT_MORE: &str = "\
What is shown of each participant (a thread that takes part, or the last user of
a row whose thread is dead):
  ROW#GEN    its row, and the how-manyth user of the row it is
  STATE      alive or dead. (A death that the kernel did not mark is noticed by those
             who wait, within two seconds, and until then shows as alive.)
  PID, TID   its process and thread, as counted in its own PID namespace
  NAMESPACE  the inode of that namespace (compare `readlink /proc/PID/ns/pid`);
             marked * if it is not the namespace of this program
  STARTED    when its process started, in clock ticks since boot
             (field 22 of /proc/PID/stat)
  NAME       the name of the thread when it joined
  DOES       what it waits for

What is shown of each lock:
  the offset of the lock from the start of the segment, its owner, and those who
  wait. `inherited` is an owner that took over from a dead one. `queue edited by
  row N` names a thread that is taking somebody out of the queue.
  A lock that is held and for which nobody waits leaves no trace by which it could
  be found: name it with --lock.

Examples:
  shm-demo inspect /dev/shm/demo
  shm-demo inspect /dev/shm/demo --lock 12288 --lock 12312
  shm-demo inspect /dev/shm/demo --json | jq '.locks[].queue'";

/// Shows what heirlock does: locks in shared memory that outlive the processes
/// that hold them.
#[derive(Parser)]
#[command(name = "shm-demo", version, after_long_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Count in many processes, kill them, and show that nothing is lost
    #[command(long_about = COUNTER, after_long_help = COUNTER_MORE)]
    Counter(CounterArgs),
    /// Show who takes part in a segment, who owns its locks, and who waits
    #[command(long_about = INSPECT, after_long_help = INSPECT_MORE)]
    Inspect(InspectArgs),
    /// One of the processes that `counter` starts
    #[command(hide = true)]
    Worker(WorkerArgs),
}

#[derive(Args)]
pub(crate) struct CounterArgs {
    /// Where to create the segment; removed at the end
    #[arg(long, value_name = "PATH", long_help = PATH)]
    pub(crate) path: Option<PathBuf>,

    /// How many worker processes run at a time
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(1..=MAX_WORKERS as i64))]
    pub(crate) workers: u32,

    /// How many increments all workers together make
    #[arg(long, value_name = "N", default_value_t = 200_000,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000_000))]
    pub(crate) increments: u64,

    /// How many times a running worker is killed
    #[arg(long, value_name = "N", default_value_t = 40,
          value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) kills: u32,

    /// Print one JSON object as the last line, instead of the summary
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct InspectArgs {
    /// The file of the segment
    pub(crate) path: PathBuf,

    /// A lock to show, by its offset from the start of the segment, besides
    /// those that somebody waits for
    #[arg(long, value_name = "OFFSET")]
    pub(crate) lock: Vec<u64>,

    /// Print one JSON object, on one line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct WorkerArgs {
    /// The file of the segment
    pub(crate) path: PathBuf,
    /// Which of the workers this is, from 0 on
    pub(crate) slot: usize,
    /// The process that started it
    pub(crate) parent: u32,
}
