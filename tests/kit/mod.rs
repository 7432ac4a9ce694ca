//! What the process tests share: segments that are unlinked, children that are
//! killed and reaped, and a guard against hangs, also when a test fails. With
//! puppets and sandboxes.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::disallowed_types, reason = "a counter of the tests' own")]

use heirlock::Snapshot;
use libtest_mimic::{Arguments, Completion, Trial};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use std::collections::BTreeSet;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command};
use std::sync::Mutex as StdMutex;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

mod puppet;
pub(crate) mod sandbox;

#[allow(unused_imports, reason = "each test binary uses its part")]
pub(crate) use puppet::{Board, Got, Puppet, Stage, board, board_of, board_with, told};

/// How long anything may take that ought to take no time.
pub(crate) const HANG: Duration = Duration::from_secs(30);

/// The same where locks may be broken on purpose, or machines slow: `HEIRLOCK_HANG_SECONDS`
/// shortens, or lengthens, it.
pub(crate) fn hang() -> Duration {
    number_from_env("HEIRLOCK_HANG_SECONDS").map_or(HANG, Duration::from_secs)
}

pub(crate) fn number_from_env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// What a failed test and a hang guard have to clean up.
static CHILDREN: StdMutex<BTreeSet<i32>> = StdMutex::new(BTreeSet::new());
static PATHS: StdMutex<BTreeSet<PathBuf>> = StdMutex::new(BTreeSet::new());

/// A test, by name.
pub(crate) type Test = (&'static str, fn());

/// A part that this binary plays in a process of its own: `role(arguments)`.
pub(crate) type Role = (&'static str, fn(&[String]));

/// The `main` of a test binary. `guard` is how long each test may take; as [`HANG`], it is
/// shorter, or longer, with `HEIRLOCK_HANG_SECONDS`.
pub(crate) fn run(tests: &[&[Test]], roles: &[Role], guard: Duration) -> ! {
    let guard = guard.mul_f64(hang().div_duration_f64(HANG));
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("--play") {
        sandbox::enter();
        let name = args.next().expect("--play ROLE");
        let (_, role) = roles
            .iter()
            .chain(&[("puppet", puppet::puppet as fn(&[String])), ("probe", sandbox::probe)])
            .find(|(role, _)| *role == name)
            .unwrap_or_else(|| panic!("no role {name}"));
        role(&args.collect::<Vec<_>>());
        std::process::exit(0);
    }
    let trial =
        |(name, test): Test| Trial::ignorable_test(name, move || Ok(guarded(name, guard, test)));
    let trials = tests.iter().copied().flatten().copied().map(trial).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// The reason of a test that cannot run here.
struct Skipped(String);

/// Ends a test that cannot run here; it is reported as ignored.
pub(crate) fn skip(reason: impl Into<String>) -> ! {
    resume_unwind(Box::new(Skipped(reason.into())))
}

/// Runs `test`; if it takes longer than `guard`, shows every segment, kills
/// every child and ends the process.
fn guarded(name: &'static str, guard: Duration, test: fn()) -> Completion {
    let (done, watch) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        if watch.recv_timeout(guard) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{name}: still running after {guard:?}; this is what is there:");
            abandon();
        }
    });
    let result = catch_unwind(AssertUnwindSafe(test));
    drop(done);
    watchdog.join().expect("the watchdog does not panic");
    match result.map_err(|panic| panic.downcast::<Skipped>()) {
        Ok(()) => Completion::Completed,
        Err(Ok(skipped)) => {
            eprintln!("{name}: skipped: {}", skipped.0);
            Completion::ignored_with(skipped.0)
        }
        Err(Err(panic)) => resume_unwind(panic),
    }
}

fn abandon() -> ! {
    // From here on no other test begins with a segment.
    let paths = PATHS.lock().unwrap();
    for path in paths.iter() {
        match Snapshot::read(path, &[]) {
            Ok(snapshot) => eprintln!("{}: {snapshot}", path.display()),
            Err(error) => eprintln!("{}: {error}", path.display()),
        }
    }
    for pid in CHILDREN.lock().unwrap().iter() {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    for path in paths.iter() {
        let _ = std::fs::remove_file(path);
    }
    std::process::exit(101);
}

/// Polls `condition` until it holds; panics with `what` after [`hang`].
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let (start, hang) = (Instant::now(), hang());
    while !condition() {
        assert!(start.elapsed() < hang, "waited {hang:?} in vain until {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// Waits until the process sleeps in the system call of this number.
pub(crate) fn until_in_syscall(pid: Pid, number: i64) {
    let path = format!("/proc/{pid}/syscall");
    let number = number.to_string();
    until("a process sleeps in a certain system call", || {
        let syscall = std::fs::read_to_string(&path).unwrap_or_default();
        syscall.split(' ').next() == Some(&number)
    });
}

/// The message of the panic that `body` ends in.
#[track_caller]
pub(crate) fn panic_of<R>(body: impl FnOnce() -> R) -> String {
    let Err(panic) = catch_unwind(AssertUnwindSafe(body)) else { panic!("it did not panic") };
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => panic.downcast_ref::<&str>().expect("a message").to_string(),
    }
}

/// A path in `/dev/shm` that is unlinked when dropped.
pub(crate) struct TempPath(PathBuf);

impl TempPath {
    pub(crate) fn new() -> Self {
        let path = PathBuf::from(format!(
            "/dev/shm/heirlock-test-{}-{:08x}",
            std::process::id(),
            fastrand::u32(..)
        ));
        PATHS.lock().unwrap().insert(path.clone());
        Self(path)
    }
}

impl std::ops::Deref for TempPath {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for TempPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        PATHS.lock().unwrap().remove(&self.0);
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A process that plays a role of this binary; killed and reaped when dropped.
pub(crate) struct Process {
    child: Child,
    reaped: bool,
}

impl Process {
    pub(crate) fn spawn(role: &str, args: &[&str]) -> Self {
        Self::from_command(&mut Self::command(role, args))
    }

    /// The command that plays a role, to be changed before it is spawned.
    pub(crate) fn command(role: &str, args: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("the own path"));
        command.arg("--play").arg(role).args(args);
        command
    }

    pub(crate) fn from_command(command: &mut Command) -> Self {
        let child = command.spawn().expect("spawn");
        CHILDREN.lock().unwrap().insert(child.id() as i32);
        Self { child, reaped: false }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("signal a child");
    }

    /// SIGKILL, and waits until the process is gone: from here on the kernel
    /// has marked what it had to mark.
    pub(crate) fn kill(&mut self) {
        if !self.reaped {
            self.signal(Signal::SIGKILL);
            self.wait();
        }
    }

    /// SIGSTOP, and waits until it has stopped.
    pub(crate) fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        let status = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).expect("wait for a stop");
        assert!(matches!(status, WaitStatus::Stopped(..)), "expected a stop, got {status:?}");
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Waits for the end of the process.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        let status = self.child.wait().expect("wait for a child");
        self.is_reaped();
        status
    }

    /// From here on its number may be another's.
    fn is_reaped(&mut self) {
        self.reaped = true;
        CHILDREN.lock().unwrap().remove(&(self.child.id() as i32));
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        let ended = self.child.try_wait().expect("look at a child").is_some();
        if ended {
            self.is_reaped();
        }
        ended
    }

    /// What it prints until it ends.
    pub(crate) fn output(&mut self) -> String {
        let mut said = String::new();
        let mut stdout = self.child.stdout.take().expect("stdout");
        stdout.read_to_string(&mut said).expect("read from a child");
        self.wait();
        said
    }

    /// Whether the process exits with 0.
    pub(crate) fn succeeds(mut self) -> bool {
        self.wait().success()
    }

    /// Waits until the process runs another program than this one.
    pub(crate) fn until_replaced(&self) {
        let own = std::env::current_exe().expect("the own path");
        let exe = format!("/proc/{}/exe", self.pid());
        until("a process runs another program", || {
            std::fs::read_link(&exe).is_ok_and(|program| program != own)
        });
    }

    /// Sends `signal`, which the process handles, and waits until it has begun
    /// to: so that as many handlers run as signals are sent.
    pub(crate) fn interrupt(&self, signal: Signal) {
        self.signal(signal);
        let status = format!("/proc/{}/status", self.pid());
        let bit = 1u64 << (signal as i32 - 1);
        until("a signal is delivered", || {
            let status = std::fs::read_to_string(&status).expect("the status of a child");
            let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
            let pending = u64::from_str_radix(pending.expect("ShdPnd").trim(), 16);
            pending.expect("a signal set") & bit == 0
        });
    }

    pub(crate) fn pipes(&mut self) -> (ChildStdin, ChildStdout) {
        (self.child.stdin.take().expect("stdin"), self.child.stdout.take().expect("stdout"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A forked child of a role's process; killed and reaped when dropped.
pub(crate) struct Forked {
    pub(crate) pid: Pid,
    status: Option<WaitStatus>,
}

/// Runs `body` in a child that exits with 0, or with 101 if `body` panics.
/// It ends with the calling thread, and by itself if all else fails.
pub(crate) fn fork(body: impl FnOnce()) -> Forked {
    fork_orphan(|| {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("PR_SET_PDEATHSIG");
        body();
    })
}

/// As [`fork`], but the child may outlive its parent.
#[allow(unsafe_code)]
pub(crate) fn fork_orphan(body: impl FnOnce()) -> Forked {
    // SAFETY: the child has this thread alone, and goes on to run ordinary
    // code, which needs what other threads may have held at the fork. The
    // callers are roles: their processes have no other threads, or only such
    // as use this crate and atomics; the C library makes its own locks
    // (malloc's) usable in the child, this crate its own, which is tested.
    match unsafe { nix::unistd::fork() }.expect("fork") {
        ForkResult::Parent { child } => Forked { pid: child, status: None },
        ForkResult::Child => {
            nix::unistd::alarm::set(2 * HANG.as_secs() as u32);
            let code = if catch_unwind(AssertUnwindSafe(body)).is_ok() { 0 } else { 101 };
            // SAFETY: it ends the process, and runs nothing of the parent's.
            unsafe { libc::_exit(code) }
        }
    }
}

impl Forked {
    /// Waits for the end of the child.
    pub(crate) fn wait(&mut self) -> WaitStatus {
        let status = waitpid(self.pid, None).expect("wait for a forked child");
        *self.status.insert(status)
    }

    #[track_caller]
    pub(crate) fn succeed(mut self) {
        assert_eq!(self.wait(), WaitStatus::Exited(self.pid, 0));
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        let still_there = self.status.is_none() && {
            let status = waitpid(self.pid, Some(WaitPidFlag::WNOHANG)).expect("look at a child");
            if status != WaitStatus::StillAlive {
                self.status = Some(status);
            }
            status == WaitStatus::StillAlive
        };
        !still_there
    }

    /// SIGKILL, and waits until the child is gone.
    pub(crate) fn kill(&mut self) {
        if self.status.is_none() {
            kill(self.pid, Signal::SIGKILL).expect("kill a forked child");
            self.wait();
        }
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        if self.status.is_none() && kill(self.pid, Signal::SIGKILL).is_ok() {
            let _ = waitpid(self.pid, None);
        }
    }
}

/// Runs `spawn` where the process that it starts will be the first one of a new
/// PID namespace.
pub(crate) fn in_new_pid_namespace<R: Send>(spawn: impl FnOnce() -> R + Send) -> R {
    // Where a thread's children are to be is the thread's own affair; it cannot
    // start threads then, and this one has nothing else to do.
    let spawn = || unshare(CloneFlags::CLONE_NEWPID).map(|()| spawn());
    match thread::scope(|scope| scope.spawn(spawn).join()) {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => skip(format!("cannot make a PID namespace: {error}")),
        Err(panic) => resume_unwind(panic),
    }
}
