//! Puppets: processes that lock and unlock on command, the board that they share,
//! and the stage on which they may be sandboxed.

use super::sandbox::Refusal;
use super::{Process, TempPath, in_new_pid_namespace, until};
use heirlock::thread::{ParkError, Thread, park_with};
use heirlock::{
    CancelToken, Condvar, DeadOwner, LockError, LockOptions, Mutex, MutexGuard, Participant,
    Policy, Segment,
};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use zerocopy::FromBytes;

/// What puppets share.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Board {
    pub(crate) locks: [Mutex<u64>; 8],
    pub(crate) tokens: [CancelToken; 4],
    pub(crate) condvars: [Condvar; 4],
}

/// A board for puppets.
pub(crate) fn board() -> (TempPath, Segment<Board>) {
    board_of(64)
}

/// A board for that many threads.
pub(crate) fn board_of(capacity: u32) -> (TempPath, Segment<Board>) {
    let path = TempPath::new();
    let segment = Segment::options().capacity(capacity).create(&path).expect("create");
    (path, segment)
}

/// A board for puppets, all of whose locks have this policy.
pub(crate) fn board_with(policy: Policy) -> (TempPath, Segment<Board>) {
    let path = TempPath::new();
    let init = |board: &mut Board| {
        board.locks = std::array::from_fn(|_| Mutex::with_policy(0, policy));
    };
    let segment = Segment::options().capacity(64).init(init).create(&path).expect("create");
    (path, segment)
}

/// A board, and the sandboxes of the puppets that play on it.
pub(crate) struct Stage {
    path: TempPath,
    pub(crate) segment: Segment<Board>,
    sandboxes: &'static [Option<Refusal>],
    puppets: Cell<usize>,
}

impl Stage {
    /// Without sandboxes.
    pub(crate) fn new() -> Self {
        Self::sandboxed(&[None])
    }

    /// The first puppet is in the first sandbox, and so on, and around.
    pub(crate) fn sandboxed(sandboxes: &'static [Option<Refusal>]) -> Self {
        sandboxes.iter().flatten().for_each(Refusal::require);
        let (path, segment) = board();
        Self { path, segment, sandboxes, puppets: Cell::new(0) }
    }

    /// With locks of this policy, and without sandboxes.
    pub(crate) fn with_policy(policy: Policy) -> Self {
        let (path, segment) = board_with(policy);
        Self { path, segment, sandboxes: &[None], puppets: Cell::new(0) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn puppet(&self) -> Puppet {
        let number = self.puppets.replace(self.puppets.get() + 1);
        let path = self.path.to_str().expect("a printable path");
        let mut command = Process::command("puppet", &[path]);
        if let Some(refusal) = &self.sandboxes[number % self.sandboxes.len()] {
            refusal.impose(&mut command);
        }
        Puppet::from_command(&mut command)
    }

    pub(crate) fn puppets(&self, count: usize) -> Vec<Puppet> {
        (0..count).map(|_| self.puppet()).collect()
    }

    /// Whether the kernel marks the death of each puppet at once.
    pub(crate) fn marks_deaths(&self) -> bool {
        !self.sandboxes.contains(&Some(Refusal::ROBUST_LIST))
    }

    pub(crate) fn owner(&self, lock: usize) -> Option<Participant> {
        heirlock::owner(&self.segment.locks[lock])
    }
}

/// How a puppet got a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    /// From a living owner, or free.
    Lock,
    /// From a dead one, of this PID and TID as its own namespace counts.
    Inherited { pid: u32, tid: u32, pid_namespace: u64 },
    /// Not at all: busy, or timed out.
    Nothing,
    /// Not at all: its token was cancelled.
    Cancelled,
    /// Not at all: a signal handler ran.
    Interrupted,
}

/// A process that locks and unlocks on command, one command at a time.
pub(crate) struct Puppet {
    pub(crate) process: Process,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Its main thread's participant.
    pub(crate) participant: Participant,
}

impl Puppet {
    pub(crate) fn spawn(path: &Path) -> Self {
        let path = path.to_str().expect("a printable path");
        Self::from_command(&mut Process::command("puppet", &[path]))
    }

    /// A puppet that is the first process of a new PID namespace.
    pub(crate) fn spawn_in_new_pid_namespace(path: &Path) -> Self {
        let path = path.to_str().expect("a printable path");
        let mut command = Process::command("puppet", &[path]);
        in_new_pid_namespace(|| Self::from_command(&mut command))
    }

    /// A puppet by a changed command (see [`Process::command`]).
    pub(crate) fn from_command(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::from_command(command);
        let (stdin, stdout) = process.pipes();
        let mut stdout = BufReader::new(stdout);
        let participant = parse_participant(&read_line(&mut stdout));
        Self { process, stdin, stdout, participant }
    }

    /// Gives a command without waiting for the answer.
    pub(crate) fn start(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").expect("command a puppet");
    }

    /// The answer to the oldest command that has none.
    pub(crate) fn answer(&mut self) -> String {
        read_line(&mut self.stdout)
    }

    /// Gives a command and waits for the answer.
    pub(crate) fn tell(&mut self, command: &str) -> String {
        self.start(command);
        self.answer()
    }

    pub(crate) fn lock(&mut self, lock: usize) -> Got {
        parse_got(&self.tell(&format!("lock {lock}")))
    }

    pub(crate) fn try_lock(&mut self, lock: usize) -> Got {
        parse_got(&self.tell(&format!("try {lock}")))
    }

    pub(crate) fn try_lock_for(&mut self, lock: usize, timeout: Duration) -> Got {
        parse_got(&self.tell(&format!("timed {lock} {}", timeout.as_micros())))
    }

    pub(crate) fn unlock(&mut self, lock: usize) {
        assert_eq!(self.tell(&format!("unlock {lock}")), "ok");
    }

    /// Starts to lock, and waits until it is seen in the queue.
    pub(crate) fn queue(&mut self, segment: &Segment<Board>, lock: usize) {
        self.start(&format!("lock {lock}"));
        self.until_queued(segment, lock);
    }

    pub(crate) fn until_queued(&self, segment: &Segment<Board>, lock: usize) {
        until("a puppet is in the queue", || {
            heirlock::queue(&segment.locks[lock])
                .is_some_and(|queue| queue.contains(&self.participant))
        });
    }

    /// Starts to wait for a condition variable with a lock that it holds, and waits
    /// until it is seen in the queue. `limit` is empty, `for MICROSECONDS`,
    /// `cancellable TOKEN` or `interruptible`.
    pub(crate) fn wait(
        &mut self,
        segment: &Segment<Board>,
        lock: usize,
        condvar: usize,
        limit: &str,
    ) {
        self.start(&format!("wait {lock} {condvar} {limit}"));
        until("a puppet waits for a condition variable", || {
            heirlock::waiters(&segment.condvars[condvar])
                .is_some_and(|queue| queue.contains(&self.participant))
        });
    }

    pub(crate) fn notify_one(&mut self, condvar: usize) -> bool {
        self.tell(&format!("notify-one {condvar}")) == "true"
    }

    pub(crate) fn notify_all(&mut self, condvar: usize) -> usize {
        self.tell(&format!("notify-all {condvar}")).parse().expect("a number")
    }

    /// The end of a lock, or a wait, that was started.
    pub(crate) fn got(&mut self) -> Got {
        parse_got(&self.answer())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid().as_raw() as u32
    }

    pub(crate) fn stop(&self) {
        self.process.stop();
    }

    pub(crate) fn resume(&self) {
        self.process.resume();
    }

    pub(crate) fn kill(mut self) {
        self.process.kill();
    }
}

fn read_line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).expect("read from a puppet");
    assert!(line.ends_with('\n'), "a puppet ended without an answer (after {line:?})");
    line.trim_end().to_owned()
}

fn parse_participant(line: &str) -> Participant {
    let bits = line.strip_prefix("participant ").and_then(|bits| bits.parse().ok());
    bits.and_then(Participant::from_bits).unwrap_or_else(|| panic!("no participant: {line}"))
}

fn parse_got(line: &str) -> Got {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["locked"] => Got::Lock,
        ["inherited", pid, tid, namespace] => Got::Inherited {
            pid: pid.parse().expect("a PID"),
            tid: tid.parse().expect("a TID"),
            pid_namespace: namespace.parse().expect("an inode"),
        },
        ["nothing"] => Got::Nothing,
        ["cancelled"] => Got::Cancelled,
        ["interrupted"] => Got::Interrupted,
        _ => panic!("a puppet answered {line:?}"),
    }
}

static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_: i32) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

/// What `cancel_at_signal` cancels.
static TOKEN: OnceLock<&'static CancelToken> = OnceLock::new();

extern "C" fn cancel_at_signal(_: i32) {
    if let Some(token) = TOKEN.get() {
        token.canceller().cancel();
    }
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

/// Whom `unpark_at_signal` unparks.
static PARKED: OnceLock<Thread<'static>> = OnceLock::new();

extern "C" fn unpark_at_signal(_: i32) {
    if let Some(parked) = PARKED.get() {
        parked.unpark();
    }
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

#[allow(unsafe_code)]
extern "C" fn fork_at_signal(_: i32) {
    // SAFETY: as of `install`: the process has one thread, which is inside a
    // wait, so neither holds the C library's locks nor this crate's.
    match unsafe { libc::fork() } {
        // SAFETY: it ends the child, which ran nothing else.
        0 => unsafe { libc::_exit(0) },
        child => {
            // SAFETY: no status is asked for.
            while unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) } == -1 {}
        }
    }
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

fn exec() -> ! {
    panic!("exec: {}", Command::new("sleep").arg("300").exec())
}

/// Ends the calling thread, of whose stack nothing is dropped.
#[allow(unsafe_code)]
fn end_thread() -> ! {
    // SAFETY: the thread is a process's first one, whose stack and thread-local
    // variables stay until the process ends; others may go on to refer to them.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("the thread has ended")
}

/// The part that [`Puppet`] commands.
pub(super) fn puppet(args: &[String]) {
    let segment: Segment<Board> = match args[0].strip_prefix("fd:") {
        None => Segment::open(&args[0]).expect("open"),
        Some(fd) => Segment::from_fd(open_inherited(fd)).expect("from_fd"),
    };
    let segment: &'static Segment<Board> = Box::leak(Box::new(segment));
    println!("participant {}", segment.attach().expect("attach").to_bits());
    serve(segment);
}

fn serve(segment: &'static Segment<Board>) {
    let mut guards: [Option<MutexGuard<'static, u64>>; 8] = Default::default();
    let mut line = String::new();
    loop {
        line.clear();
        if std::io::stdin().read_line(&mut line).expect("read a command") == 0 {
            return;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = obey(segment, &mut guards, &words);
        println!("{answer}");
    }
}

fn open_inherited(fd: &str) -> std::os::fd::OwnedFd {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{fd}"))
        .expect("an inherited descriptor")
        .into()
}

fn obey(
    segment: &'static Segment<Board>,
    guards: &mut [Option<MutexGuard<'static, u64>>; 8],
    words: &[&str],
) -> String {
    let number = |at: usize| words[at].parse::<u64>().expect("a number");
    let index = |at: usize| number(at) as usize;
    let thread =
        |at: usize| Thread::of(segment, Participant::from_bits(number(at)).expect("a participant"));
    let mut keep = |at: usize, guard: Option<MutexGuard<'static, u64>>| {
        let answer = describe(guard.as_ref());
        guards[at] = guard;
        answer
    };
    match words[0] {
        "lock" => keep(index(1), Some(segment.locks[index(1)].lock())),
        "try" => keep(index(1), segment.locks[index(1)].try_lock()),
        "timed" => {
            let timeout = Duration::from_micros(number(2));
            keep(index(1), segment.locks[index(1)].try_lock_for(timeout))
        }
        "cancellable" => {
            let options = LockOptions::new().cancel(&segment.tokens[index(2)]);
            match segment.locks[index(1)].lock_with(&options) {
                Ok(guard) => keep(index(1), Some(guard)),
                Err(error) => why(&error),
            }
        }
        "interruptible" => match segment.locks[index(1)].lock_interruptible() {
            Ok(guard) => keep(index(1), Some(guard)),
            Err(error) => why(&error.into()),
        },
        // Waits with a lock that is held: how it has the lock again, or why the wait
        // ended otherwise.
        "wait" => {
            let guard = guards[index(1)].as_mut().expect("it is held");
            let options = match words[3..] {
                [] => LockOptions::new(),
                ["for", _] => LockOptions::new().timeout(Duration::from_micros(number(4))),
                ["cancellable", _] => LockOptions::new().cancel(&segment.tokens[index(4)]),
                ["interruptible"] => LockOptions::new().interruptible(true),
                _ => panic!("a puppet cannot wait like this: {words:?}"),
            };
            match segment.condvars[index(2)].wait_with(guard, &options) {
                Ok(()) => describe(Some(guard)),
                Err(error) => why(&error),
            }
        }
        "notify-one" => segment.condvars[index(1)].notify_one().to_string(),
        "notify-all" => segment.condvars[index(1)].notify_all().to_string(),
        "cancel" => {
            segment.tokens[index(1)].canceller().cancel();
            "ok".into()
        }
        "park" => parked(segment, &LockOptions::new()),
        "park-for" => {
            let timeout = Duration::from_micros(number(1));
            parked(segment, &LockOptions::new().timeout(timeout))
        }
        "park-cancellable" => {
            parked(segment, &LockOptions::new().cancel(&segment.tokens[index(1)]))
        }
        "park-interruptible" => parked(segment, &LockOptions::new().interruptible(true)),
        "unpark" => thread(1).unpark().to_string(),
        "unpark-often" => {
            let alive = (0..number(2)).filter(|_| thread(1).unpark()).count();
            alive.to_string()
        }
        "unlock" => {
            drop(guards[index(1)].take().expect("it is held"));
            "ok".into()
        }
        // Releases by unwinding.
        "panic" => {
            let guard = guards[index(1)].take().expect("it is held");
            let panicked = catch_unwind(AssertUnwindSafe(move || {
                let _guard = guard;
                resume_unwind(Box::new("on purpose"));
            }));
            assert!(panicked.is_err());
            "ok".into()
        }
        // A thread that takes the lock and ends without releasing it.
        "forget" => {
            let lock = &segment.locks[index(1)];
            let thread = thread::spawn(move || {
                std::mem::forget(lock.lock());
                nix::unistd::gettid().as_raw()
            });
            thread.join().expect("join").to_string()
        }
        "inherited" => describe(guards[index(1)].as_ref()),
        "policy" => format!("{:?}", segment.locks[index(1)].policy()),
        "get" => guards[index(1)].as_ref().expect("it is held").to_string(),
        "set" => {
            **guards[index(1)].as_mut().expect("it is held") = number(2);
            "ok".into()
        }
        // A thread that takes the lock and stays.
        "hold" => {
            let lock = &segment.locks[index(1)];
            let (tell, told) = mpsc::channel();
            thread::spawn(move || {
                let _guard = lock.lock();
                tell.send(nix::unistd::gettid()).expect("tell");
                loop {
                    thread::park();
                }
            });
            told.recv().expect("be told").to_string()
        }
        // A thread that takes the lock for its process, and ends.
        "leak" => {
            let lock = &segment.locks[index(1)];
            let thread = thread::spawn(move || {
                MutexGuard::leak(lock.lock());
                nix::unistd::gettid().as_raw()
            });
            thread.join().expect("join").to_string()
        }
        // The first thread ends; another one obeys.
        "end-first-thread" => {
            thread::spawn(move || serve(segment));
            println!("ok");
            end_thread()
        }
        // Another program takes over, called by this thread, by another one, or
        // by one that has taken a lock.
        "exec" => exec(),
        "exec-elsewhere" => thread::spawn(exec).join().expect("join"),
        "lock-and-exec" => {
            let lock = &segment.locks[index(1)];
            let run = move || {
                let _guard = lock.lock();
                exec()
            };
            thread::spawn(run).join().expect("join")
        }
        // Signals from here on run a handler: "restart" with SA_RESTART, "fork"
        // one that forks, "cancel TOKEN" one that cancels, "unpark THREAD" one
        // that unparks.
        "handle" => {
            let (handler, flags) = match words.get(1) {
                Some(&"restart") => (count_signal as extern "C" fn(i32), SaFlags::SA_RESTART),
                Some(&"fork") => (fork_at_signal as _, SaFlags::SA_RESTART),
                Some(&"cancel") => {
                    TOKEN.get_or_init(|| &segment.tokens[index(2)]);
                    (cancel_at_signal as _, SaFlags::SA_RESTART)
                }
                Some(&"unpark") => {
                    PARKED.get_or_init(|| thread(2));
                    (unpark_at_signal as _, SaFlags::SA_RESTART)
                }
                _ => (count_signal as _, SaFlags::empty()),
            };
            let action = SigAction::new(SigHandler::Handler(handler), flags, SigSet::empty());
            install(Signal::SIGUSR1, &action);
            "ok".into()
        }
        "handled" => HANDLED.load(Ordering::Relaxed).to_string(),
        other => panic!("a puppet does not know {other:?}"),
    }
}

#[allow(unsafe_code)]
fn install(signal: Signal, action: &SigAction) {
    // SAFETY: the handlers access atomics (an initialized `OnceLock` is one),
    // cancel and unpark, which are async-signal-safe, and make system calls; `fork`'s
    // handlers are this crate's, which allow it (see the test).
    unsafe { sigaction(signal, action) }.expect("sigaction");
}

fn parked(segment: &Segment<Board>, options: &LockOptions) -> String {
    let how = match park_with(segment, options) {
        Ok(()) => "unparked",
        Err(ParkError::TimedOut) => "nothing",
        Err(ParkError::Cancelled) => "cancelled",
        Err(ParkError::Interrupted) => "interrupted",
        Err(error) => panic!("a puppet failed: {error}"),
    };
    how.into()
}

fn why(error: &LockError) -> String {
    match error {
        LockError::TimedOut => "nothing".into(),
        LockError::Cancelled => "cancelled".into(),
        LockError::Interrupted => "interrupted".into(),
        error => panic!("a puppet failed: {error}"),
    }
}

fn describe(guard: Option<&MutexGuard<'static, u64>>) -> String {
    match guard {
        None => "nothing".into(),
        Some(guard) => told(MutexGuard::inherited(guard)),
    }
}

/// How a lock was got, for [`Puppet::got`].
pub(crate) fn told(inherited: Option<DeadOwner>) -> String {
    match inherited {
        None => "locked".into(),
        Some(dead) => {
            format!("inherited {} {} {}", dead.pid(), dead.tid(), dead.pid_namespace())
        }
    }
}
