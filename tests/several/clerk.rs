//! Clerks: processes that wait for any or all of many locks on command, asleep or by a
//! future, and the scene on which they do.

use crate::kit::sandbox::Refusal;
use crate::kit::{Process, Role, TempPath, until};
use heirlock::future::{AsyncMutexGuard, Backend, backend};
use heirlock::select::{MAX_LOCKS, lock_all_with, lock_any_async, lock_any_with};
use heirlock::{CancelToken, LockError, LockOptions, Mutex, MutexGuard, Participant, Segment};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use zerocopy::FromBytes;

pub(crate) const ROLES: &[Role] = &[("clerk", clerk)];

/// What clerks share.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Locks {
    pub(crate) locks: [Mutex<u64>; MAX_LOCKS + 1],
    pub(crate) token: CancelToken,
}

/// The locks, and the sandbox of the clerks.
pub(crate) struct Scene {
    path: TempPath,
    pub(crate) segment: Segment<Locks>,
    refusals: &'static [Refusal],
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::sandboxed(&[])
    }

    /// All these calls are refused to each clerk.
    pub(crate) fn sandboxed(refusals: &'static [Refusal]) -> Self {
        let path = TempPath::new();
        let segment = Segment::create(&path).expect("a segment");
        Self { path, segment, refusals }
    }

    pub(crate) fn lock(&self, number: usize) -> &Mutex<u64> {
        &self.segment.locks[number]
    }

    pub(crate) fn clerk(&self) -> Clerk {
        let path = self.path.to_str().expect("a printable path");
        let mut command = Process::command("clerk", &[path]);
        self.refusals.iter().for_each(|refusal| refusal.impose(&mut command));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::from_command(&mut command);
        let (stdin, stdout) = process.pipes();
        let mut clerk = Clerk { process, stdin, stdout: BufReader::new(stdout) };
        let backend = clerk.answer();
        let no_ring = !self.refusals.is_empty() || cfg!(not(feature = "io-uring"));
        assert!(!no_ring || backend == "Futex", "{backend}");
        clerk
    }

    pub(crate) fn queue(&self, number: usize) -> Vec<Participant> {
        let mut queue = None;
        until("a queue stands still", || {
            queue = heirlock::queue(self.lock(number));
            queue.is_some()
        });
        queue.expect("it was waited for")
    }

    pub(crate) fn until_queued(&self, number: usize, length: usize) {
        until(&format!("{length} wait for lock {number}"), || self.queue(number).len() == length);
    }
}

/// A process that does one thing at a time.
pub(crate) struct Clerk {
    pub(crate) process: Process,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Clerk {
    /// Begins something, without waiting for the answer.
    pub(crate) fn start(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").expect("command a clerk");
    }

    /// The answer to the oldest command that has none.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("read from a clerk");
        assert!(line.ends_with('\n'), "a clerk ended without an answer (after {line:?})");
        line.trim_end().to_owned()
    }

    #[track_caller]
    pub(crate) fn tell(&mut self, command: &str) -> String {
        self.start(command);
        self.answer()
    }

    /// Has it wait for a lock: it is the `place`th in the queue of each of `numbers`.
    pub(crate) fn queue(&mut self, scene: &Scene, command: &str, numbers: &[usize], place: usize) {
        let list: Vec<_> = numbers.iter().map(usize::to_string).collect();
        self.start(&format!("{command} {}", list.join(" ")));
        numbers.iter().for_each(|number| scene.until_queued(*number, place));
    }

    #[track_caller]
    pub(crate) fn unlock(&mut self) {
        assert_eq!(self.tell("unlock"), "ok");
    }

    /// What it says if it takes over from that process.
    pub(crate) fn inherits(number: usize, dead: &Self) -> String {
        format!("{number} inherited {}", dead.process.pid())
    }
}

static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_: i32) {
    HANDLED.fetch_add(1, SeqCst);
}

enum Held<'m> {
    ByThread(MutexGuard<'m, u64>),
    ByProcess(AsyncMutexGuard<'m, u64>),
}

impl Held<'_> {
    fn dead(&self) -> Option<u32> {
        let dead = match self {
            Self::ByThread(guard) => MutexGuard::inherited(guard),
            Self::ByProcess(guard) => AsyncMutexGuard::inherited(guard),
        };
        dead.map(|dead| dead.pid())
    }
}

fn clerk(args: &[String]) {
    let segment: Segment<Locks> = Segment::open(&args[0]).expect("the segment");
    println!("{}", name_of_backend());
    let mut held = Vec::new();
    for line in std::io::stdin().lines() {
        let line = line.expect("a command");
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match obey(&segment, &mut held, &words) {
            Ok(answer) => answer,
            Err(LockError::TimedOut) => "timed out".into(),
            Err(LockError::Cancelled) => "cancelled".into(),
            Err(LockError::Interrupted) => "interrupted".into(),
            Err(error) => error.to_string(),
        };
        println!("{answer}");
    }
}

/// How this process waits on behalf of futures.
pub(crate) fn name_of_backend() -> &'static str {
    match backend() {
        Backend::IoUring => "IoUring",
        _ => "Futex",
    }
}

/// `lock`, `future`, `any`, `any-async` or `all`, maybe with `/MILLISECONDS`, `/token` or
/// `/interruptible`, and which locks; or something else.
fn obey<'m>(
    segment: &'m Segment<Locks>,
    held: &mut Vec<Held<'m>>,
    words: &[&str],
) -> Result<String, LockError> {
    let locks = words[1..].iter().filter_map(|word| word.parse().ok());
    let locks: Vec<&Mutex<u64>> = locks.map(|lock: usize| &segment.locks[lock]).collect();
    let (what, limit) = words[0].split_once('/').unwrap_or((words[0], ""));
    let options = match limit {
        "" => LockOptions::new(),
        "token" => LockOptions::new().cancel(&segment.token),
        "interruptible" => LockOptions::new().interruptible(true),
        time => LockOptions::new().timeout(Duration::from_millis(time.parse().expect("a time"))),
    };
    let (which, guard) = match what {
        "lock" => (0, Held::ByThread(locks[0].lock_with(&options)?)),
        "future" => (0, Held::ByProcess(pollster::block_on(locks[0].lock_async_with(&options))?)),
        "any" => {
            let (which, guard) = lock_any_with(&locks, &options)?;
            (which, Held::ByThread(guard))
        }
        "any-async" => {
            let (which, guard) = pollster::block_on(lock_any_async(&locks, &options))?;
            (which, Held::ByProcess(guard))
        }
        "all" => {
            let guards = lock_all_with(&locks, &options)?;
            held.extend(guards.into_iter().map(Held::ByThread));
            return Ok("all".into());
        }
        "unlock" => {
            held.clear();
            return Ok("ok".into());
        }
        "handle" => {
            handle(words.get(1) == Some(&"restart"));
            return Ok("ok".into());
        }
        "handled" => return Ok(HANDLED.load(SeqCst).to_string()),
        _ => panic!("a clerk cannot do this: {words:?}"),
    };
    let how = guard.dead().map_or("locked".into(), |pid| format!("inherited {pid}"));
    held.push(guard);
    Ok(format!("{} {how}", words[1 + which]))
}

#[allow(unsafe_code)]
fn handle(restart: bool) {
    let flags = if restart { SaFlags::SA_RESTART } else { SaFlags::empty() };
    let action = SigAction::new(SigHandler::Handler(count_signal), flags, SigSet::empty());
    // SAFETY: the handler does nothing but one atomic addition.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("sigaction");
}
