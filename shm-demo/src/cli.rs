//! The command line, and the help that teaches it.

use crate::bench::cli::{BENCH, BENCH_MORE, BenchArgs, BenchMemberArgs, BenchSoloArgs};
use crate::course::MAX_WORKERS;
use crate::daemon::cli::{CLIENT, CLIENT_MORE, ClientArgs, DAEMON, DAEMON_MORE, DaemonArgs};
use crate::pool::cli::{POOL, POOL_MORE, PoolArgs};
use crate::queue::cli::{QUEUE, QUEUE_MORE, QueueArgs};
use crate::state::cli::{STATE, STATE_MORE, StateArgs};
use crate::storm::{self, Restart};
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

  shm-demo storm --timeouts --stops --plot storm.svg
      30 seconds of signals, timeouts, cancellations, stops and kills: shows that
      nobody sleeps on and nobody is served out of turn.

  shm-demo state set colour green; shm-demo state get colour
      Keys and values that processes share; `state bench --kills 200` kills them.

  shm-demo pool --size 5 --clients 20
      Few connections, many processes; what the killed had comes back.

  shm-demo queue --producers 3 --consumers 3 --kills 100
      No item is lost and none comes twice, whoever is killed.

  shm-demo daemon --path /dev/shm/locks &
  shm-demo client --path /dev/shm/locks LOCK backup -- rsync -a /home /backup
      Locks for shell scripts, in the same queues as those of programs.

  shm-demo bench uncontended handover
      What locks cost, beside those of others.

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

[default: /dev/shm/heirlock-COMMAND-PID]

There must be nothing at that path: two runs are never mixed, and nothing is
overwritten. (A run that was itself killed with SIGKILL leaves its segment
behind; remove it.)";

const STORM: &str = "\
Starts worker processes (this program again) of four threads each, that acquire
three locks in every way to wait asleep: plainly, cancellable, interruptible, and with
--timeouts for a limited time. First they are left alone for 4 seconds; then comes the
storm: ordinary and real-time signals, cancellations by the parent and by signal
handlers, with --stops SIGSTOP and SIGCONT, and SIGKILL with a new worker in place of
each that is killed. Who owns a lock increments counters, so that a kill leaves
them torn, and its heir repairs them.

Two things must not happen. Nobody may sleep on: a watchdog, which takes part in
nothing, looks ten times a second for a thread that has been asleep for 2 seconds
while the lock that it waits for is free, or belongs to a dead thread, or to itself;
if there is one the segment is shown and the run ends. And nobody may be served out
of turn: each owner writes down who waits as it leaves, the next one marks those who
stood before it, and whoever is served in a wait in which it was marked says so. At
the end no count may be lost.

With --deadlock-checks the owners of a lock take another one now and then, always a
later one, and meanwhile the parent looks for deadlocks, of which there can be none:
if one is reported, the run ends.";

const STORM_MORE: &str = "\
What is reported (with --json under these names, in one object on the last line):
  outcome               held, failed, interrupted; or error, with the field error alone
  failures              what did not hold, in words
  path                  where the segment was
  restart               which handlers were installed with SA_RESTART: never, always, mixed
  workers               processes at a time
  threads               threads at a time, in all of them
  seconds               how long the storm was
  signals_sent          signals that the kernel took, not counting stops and kills
  signals_per_second    how many that are; a warning says so if it is much less than
  signals_per_second_asked   --signals-per-second
  handlers_run          how often a handler ran. Fewer than were sent: ordinary signals
                        that come together are one, and those of the killed are gone
  eintr_observed        how many sleeps in a wait for a lock ended with EINTR, as the
                        library counts them
  acquisitions          how often a lock was acquired
  handovers             how many of these by a thread that had to queue: it slept for
                        the lock, or the owner before had seen it in the queue
  timeouts              waits that ended because their time was over
  cancellations         waits that ended because their token was cancelled
  interrupted           waits that ended because a handler ran, and were to
  kills                 how often a running worker was killed with SIGKILL by this program
  kills_from_outside    workers that somebody else killed with SIGKILL
  stops                 how often a worker was stopped for a few milliseconds
  inherited             how often a worker got a lock from a dead owner, and was told
  repaired              how often the dead owner had left the data torn
  order_inversions      how often somebody was served out of turn; must be 0
  order_checked         acquisitions before which the queue was known and not empty
  lost_wakeups          waiters found asleep with nothing left to wait for; must be 0
  deadlock_checks       how often it was looked for deadlocks, with --deadlock-checks
  deadlocks             how many were reported; must be 0
  nested                how often the owner of a lock went for another one, too
  longest_wait_us       the longest time after which a lock was acquired, in microseconds
  locks                 for each lock its offset in the segment, and how long it was
                        waited for, in the calm and in the storm: acquisitions, p50_us,
                        p99_us, p999_us (to 3%), max_us

All but order_inversions, order_checked, lost_wakeups, deadlock_checks and deadlocks,
which are of the calm as well, are of the storm alone. What a worker did
just before it was killed may be missing from what it counts.

--plot draws, for the calm and for the storm, which share of the acquisitions waited
longer than a time: a thick line for all locks, a thin one for each.

Examples:
  shm-demo storm
  shm-demo storm --no-restart --seconds 300 --json | tail -n 1
  shm-demo storm --timeouts --stops --kills-per-second 20 --plot storm.svg";

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
  the offset of the lock from the start of the segment, its name, if it has been given
  one, its policy, its owner, and those who wait. `inherited` is an owner that took over from a dead one. `queue edited by
  row N` names a thread that is taking somebody out of the queue.
  A lock that is held and for which nobody waits leaves no trace by which it could
  be found: name it with --lock.

What is shown of each deadlock, if there is one: who is in it, for which lock each
waits and how long it has, and who holds that lock. Deadlocks that pass through other
segments, too, are not found, and a wait that may end by itself is not part of one.

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
    /// Measure locks beside their peers
    #[command(long_about = BENCH, after_long_help = BENCH_MORE)]
    Bench(BenchArgs),
    /// One of the processes that `bench` starts
    #[command(hide = true)]
    BenchMember(BenchMemberArgs),
    /// Another one
    #[command(hide = true)]
    BenchSolo(BenchSoloArgs),
    /// Ask a daemon for locks, or get them without one
    #[command(long_about = CLIENT, after_long_help = CLIENT_MORE)]
    Client(ClientArgs),
    /// Count in many processes, kill them, and show that nothing is lost
    #[command(long_about = COUNTER, after_long_help = COUNTER_MORE)]
    Counter(CounterArgs),
    /// Serve locks at a Unix socket
    #[command(long_about = DAEMON, after_long_help = DAEMON_MORE)]
    Daemon(DaemonArgs),
    /// Show who takes part in a segment, who owns its locks, and who waits
    #[command(long_about = INSPECT, after_long_help = INSPECT_MORE)]
    Inspect(InspectArgs),
    /// Share a few connections among many processes, and get back those of the killed
    #[command(long_about = POOL, after_long_help = POOL_MORE)]
    Pool(PoolArgs),
    /// One of the processes that `pool` starts
    #[command(hide = true)]
    PoolClient(WorkerArgs),
    /// Push and pop in many processes, kill them, and lose no item
    #[command(long_about = QUEUE, after_long_help = QUEUE_MORE)]
    Queue(QueueArgs),
    /// One of the processes that `queue` starts
    #[command(hide = true)]
    QueueMember(WorkerArgs),
    /// Share keys and values, and lose none when somebody is killed
    #[command(long_about = STATE, after_long_help = STATE_MORE)]
    State(StateArgs),
    /// One of the processes that `state bench` starts
    #[command(hide = true)]
    StateWorker(WorkerArgs),
    /// Signals, timeouts, cancellations, stops and kills, and nobody sleeps on
    #[command(long_about = STORM, after_long_help = STORM_MORE)]
    Storm(StormArgs),
    /// One of the processes that `storm` starts
    #[command(hide = true)]
    StormWorker(StormWorkerArgs),
    /// One of the processes that `counter` starts
    #[command(hide = true)]
    Worker(WorkerArgs),
}

/// What the commands have in common that kill those who do the work.
#[derive(Args)]
pub(crate) struct TrialArgs {
    /// Where to create the segment; removed at the end
    #[arg(long, value_name = "PATH", long_help = PATH)]
    pub(crate) path: Option<PathBuf>,

    /// How many times a running process is killed
    #[arg(long, value_name = "N", default_value_t = 40,
          value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) kills: u32,

    /// Print one JSON object as the last line, instead of the summary
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct CounterArgs {
    /// How many worker processes run at a time
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(1..=MAX_WORKERS as i64))]
    pub(crate) workers: u32,

    /// How many increments all workers together make
    #[arg(long, value_name = "N", default_value_t = 200_000,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000_000))]
    pub(crate) increments: u64,

    #[command(flatten)]
    pub(crate) trial: TrialArgs,
}

#[derive(Args)]
pub(crate) struct StormArgs {
    /// How long the storm is, after 4 seconds of calm
    #[arg(long, value_name = "N", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) seconds: u32,

    /// How many worker processes run at a time
    #[arg(long, value_name = "N", default_value_t = 6,
          value_parser = clap::value_parser!(u32).range(1..=storm::MAX_WORKERS as i64))]
    pub(crate) workers: u32,

    /// How many signals are sent, as far as the machine can
    #[arg(long, value_name = "N", default_value_t = 20_000,
          value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) signals_per_second: u32,

    /// Install every handler without SA_RESTART
    #[arg(long, conflicts_with_all = ["always_restart", "mixed"])]
    no_restart: bool,

    /// Install every handler with SA_RESTART
    #[arg(long = "restart", id = "always_restart", conflicts_with = "mixed")]
    always_restart: bool,

    /// Install every other kind of handler with SA_RESTART; this is the default
    #[arg(long)]
    mixed: bool,

    /// How many workers are killed
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) kills_per_second: u32,

    /// Wait for a limited time, too
    #[arg(long)]
    pub(crate) timeouts: bool,

    /// Stop workers for a few milliseconds, too
    #[arg(long)]
    pub(crate) stops: bool,

    /// Look for deadlocks all the time, and have threads hold two locks
    #[arg(long)]
    pub(crate) deadlock_checks: bool,

    /// Fail if it was looked for deadlocks fewer times
    #[arg(long, value_name = "N", default_value_t = 1, requires = "deadlock_checks")]
    pub(crate) floor_deadlock_checks: u64,

    /// Print one JSON object as the last line, instead of the summary
    #[arg(long)]
    pub(crate) json: bool,

    /// Draw how long the waits were, with and without the storm
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,

    /// Fail if fewer sleeps in a wait were ended by EINTR
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) floor_eintr: u64,

    /// Where to create the segment; removed at the end
    #[arg(long, value_name = "PATH", long_help = PATH)]
    pub(crate) path: Option<PathBuf>,
}

impl StormArgs {
    pub(crate) fn restart(&self) -> Restart {
        match (self.no_restart, self.always_restart) {
            (true, _) => Restart::Never,
            (_, true) => Restart::Always,
            _ => Restart::Mixed,
        }
    }
}

#[derive(Args)]
pub(crate) struct StormWorkerArgs {
    #[command(flatten)]
    pub(crate) worker: WorkerArgs,
    /// Which handlers have SA_RESTART
    pub(crate) restart: Restart,
    #[arg(long)]
    pub(crate) timeouts: bool,
    /// Whether to hold two locks at times
    #[arg(long)]
    pub(crate) nested: bool,
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

/// What `Crew` tells each process that it starts.
#[derive(Args)]
pub(crate) struct WorkerArgs {
    /// The file of the segment
    pub(crate) path: PathBuf,
    /// Which of the workers this is, from 0 on
    pub(crate) slot: usize,
    /// The process that started it
    pub(crate) parent: u32,
}
