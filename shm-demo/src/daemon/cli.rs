//! The command lines of `shm-demo daemon` and `shm-demo client`.

use clap::Args;
use std::path::PathBuf;

pub(crate) const DAEMON: &str = "\
Serves locks at a Unix socket, to shell scripts and to programs that do not map the
segment. The locks are in the segment: those who do map it (`shm-demo client --direct`,
or any program with this library) stand in the same queues as those who come through the
socket, and are served in the same order.

Clients send lines, and get one line for each, in order:
  LOCK NAME                waits its turn and takes the lock
  WITH MILLISECONDS NAME   the same, for so long at most
  TRY NAME                 takes the lock if nobody holds it and nobody waits for it
  UNLOCK NAME              gives it back
  STATUS                   a line for each lock, and OK with how many
A NAME is 1 to 40 letters, digits, dots, dashes and underscores. A lock is there when it
is first asked for, and there can be 61 of them.

The replies:
  OK                 done
  OK INHERITED PID   the lock is had, and process PID, which had it before, did not
                     unlock it: it died or was disconnected, or the daemon died, which
                     held the lock for it. What the lock protects may be half done.
                     (0 is a process that cannot be seen from here)
  BUSY               TRY did not get it
  TIMEOUT            WITH did not get it in time
  ERR TEXT           what is wrong

A client that ends, is killed or closes its connection waits for nothing any more, and
what it held goes to the next in line. One that only ends what it sends (`nc -N`, socat)
gets all replies first. While a client waits for a lock, the lines that it sends are kept
and looked at afterwards.";

pub(crate) const DAEMON_MORE: &str = "\
What STATUS says of a lock:
  LOCK name=NAME state=STATE owner=WHO waiters=N queue=WHO,WHO
  STATE  free, held, or dead: the owner is, and whoever asks next inherits
  WHO    a process that has the segment mapped; with /PID behind it the daemon, and the
         client for which it holds the lock or waits. - if there is nobody

Programs that map the segment find a Segment<[Mutex<u64>; 62]> with the schema
0x4c4f434b5301. The first lock is the daemon's own, the others are the clients', by their
names. The u64 in a lock says who has it, and whoever takes one has to keep that up:
  lock    if bit 32 is set, the process in the low 32 bits had it before and did not
          unlock it. Then write 1 << 32 | PID, with one's own
  unlock  write 0 before; or else the next one is told INHERITED

Signals:
  SIGTERM, SIGINT  drain: no more clients, no more locks, and who waits gets ERR. It ends
                   when all that is held was unlocked, or --drain-seconds have passed, or
                   at the second signal
  SIGHUP           opens the --log anew, after it was renamed
  SIGUSR1          shows the segment in the log, as `shm-demo inspect` does
  SIGKILL          whoever waits directly inherits what the daemon held at once, clients
                   of the next daemon when they ask for it; the segment and the names of
                   the locks stay

Under systemd it says when it is ready (Type=notify), reloads and stops, and keeps the
watchdog informed (WatchdogSec=); shm-demo/heirlock-demo.service in the source is a unit
with a sandbox. Otherwise, while nobody wants anything, it does not run at all.

It takes io_uring and Linux 6.7 or newer.

Exit codes:
  0  ended by SIGTERM or SIGINT, after draining
  1  it could not begin, or not go on; standard error says why
  2  the command line makes no sense

Examples:
  shm-demo daemon --path /dev/shm/locks &
  shm-demo client --path /dev/shm/locks LOCK backup -- rsync -a /home /backup
  printf 'LOCK a\\nSTATUS\\nUNLOCK a\\n' | socat -t 60 - UNIX:/dev/shm/locks.sock
  shm-demo inspect /dev/shm/locks";

pub(crate) const CLIENT: &str = "\
Sends requests to a daemon and prints its replies; see `shm-demo daemon --help` for both.
The words of REQUEST are one request; without any, each line of standard input is one,
until its end. Locks are held until they are unlocked, or until then: what is still held
at the end is unlocked.

With -- COMMAND, behind a LOCK, WITH or TRY: runs the command while it holds the lock, if
it has got it, and unlocks it afterwards. Who had the lock before and did not unlock it is
in the environment variable HEIRLOCK_INHERITED (a PID), which is not there otherwise.
SIGTERM, SIGINT and SIGHUP are passed on to the command. If the client is killed, so is the
command (not what that has started in turn, nor one that runs as another user, like sudo).
If the connection to the daemon is lost, so is the lock: the command gets SIGTERM.

With --direct it does the same without a daemon: it maps the segment, and waits in the
queues itself. If it is killed, the next in line inherits at once.";

pub(crate) const CLIENT_MORE: &str = "\
Exit codes:
  0  the reply to every request began with OK
  1  one did not, or there is no daemon, or it is gone, or the command cannot be run
  2  the command line makes no sense
  of the command, if there is one and it was run (128 + N if signal N ended it)

Examples:
  shm-demo client STATUS
  shm-demo client WITH 5000 backup -- rsync -a /home /backup
  shm-demo client TRY nightly -- make report || echo \"somebody is at it\"
  shm-demo client --direct LOCK backup -- sleep 60
  printf 'LOCK a\\nLOCK b\\nSTATUS\\n' | shm-demo client";

const PATH: &str = "\
Where the segment is. It is created if there is none, and stays until it is removed
(`rm PATH`) or the machine is booted";

#[derive(Args)]
pub(crate) struct At {
    #[arg(long, value_name = "PATH", default_value = "/dev/shm/heirlock-daemon", help = PATH)]
    pub(crate) path: PathBuf,

    /// Where the daemon listens [default: PATH.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl At {
    pub(crate) fn socket(&self) -> PathBuf {
        let beside = || {
            let mut path = self.path.clone().into_os_string();
            path.push(".sock");
            path.into()
        };
        self.socket.clone().unwrap_or_else(beside)
    }
}

#[derive(Args)]
pub(crate) struct DaemonArgs {
    #[command(flatten)]
    pub(crate) at: At,

    /// Who may use the socket, and the segment if this creates it
    #[arg(long, value_name = "OCTAL", default_value = "600", value_parser = mode)]
    pub(crate) mode: u32,

    /// Where to say what happens, with the time; appended to [default: standard error]
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,

    /// How many clients there can be at a time
    #[arg(long, value_name = "N", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(1..=2048))]
    pub(crate) clients: u32,

    /// How long SIGTERM waits for those who hold locks
    #[arg(long, value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) drain_seconds: u32,

    /// Remove the segment at the end, unless others use it then
    #[arg(long)]
    pub(crate) remove: bool,
}

fn mode(word: &str) -> Result<u32, String> {
    match u32::from_str_radix(word, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("it is an octal number, 777 at most".into()),
    }
}

#[derive(Args)]
pub(crate) struct ClientArgs {
    #[command(flatten)]
    pub(crate) at: At,

    /// Do without a daemon
    #[arg(long)]
    pub(crate) direct: bool,

    /// A request, like LOCK NAME; without, those on standard input
    pub(crate) request: Vec<String>,

    /// What to run while the lock is held
    #[arg(last = true, requires = "request")]
    pub(crate) command: Vec<String>,
}
