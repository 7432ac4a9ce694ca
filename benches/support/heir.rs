//! From the SIGKILL of an owner to its heir running.
//!
//! The owner is a process of its own, fresh each time. The heir is a thread of
//! this process that sleeps in the lock, as the kernel confirms, before the
//! owner is killed.
#![allow(clippy::disallowed_types, reason = "a flag of the benchmark's own")]

use super::pin;
use super::pthread::{Pthread, Sharing, Unlinked};
use heirlock::{Mutex, MutexGuard, Segment};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid, pause};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take that ought to take no time.
const HANG: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Heirlock,
    PthreadRobust,
}

pub(crate) const PEERS: [Peer; 2] = [Peer::Heirlock, Peer::PthreadRobust];

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Heirlock => "heirlock",
            Self::PthreadRobust => "pthread_robust",
        }
    }

    fn path(self) -> PathBuf {
        format!("/dev/shm/heirlock-bench-{}-{}", self.name(), std::process::id()).into()
    }
}

/// A lock at a path, to be taken over.
enum Lock {
    Heirlock(Segment<Mutex<u64>>),
    PthreadRobust(Pthread),
}

impl Lock {
    fn create(peer: Peer, path: &Path) -> Self {
        match peer {
            Peer::Heirlock => Self::Heirlock(Segment::create(path).expect("create")),
            Peer::PthreadRobust => Self::PthreadRobust(Pthread::create(path, Sharing::Robust)),
        }
    }

    /// Waits for the lock of an owner that dies; when it was had.
    fn inherit(&self) -> Instant {
        match self {
            Self::Heirlock(segment) => {
                let guard = segment.lock();
                let now = Instant::now();
                assert!(MutexGuard::inherited(&guard).is_some());
                now
            }
            Self::PthreadRobust(mutex) => {
                let dead = mutex.lock();
                let now = Instant::now();
                assert!(dead);
                mutex.recover();
                now
            }
        }
    }
}

/// The part that is killed: takes the lock at `path`, says so, and waits for it.
pub(crate) fn owner(peer: &str, path: &Path, cpu: usize) {
    pin::to_cpu(cpu);
    if peer == Peer::Heirlock.name() {
        let segment: Segment<Mutex<u64>> = Segment::open(path).expect("open");
        let _guard = segment.lock();
        own();
    } else {
        let mutex = Pthread::open(path);
        assert!(!mutex.lock());
        own();
    }
}

fn own() {
    println!("owned");
    loop {
        pause();
    }
}

struct Owner(Child);

impl Owner {
    /// Starts one by a command that plays [`owner`] and takes its arguments.
    fn spawn(mut command: Command, peer: Peer, path: &Path, cpu: usize) -> Self {
        command.arg(peer.name()).arg(path).arg(cpu.to_string());
        let mut owner = Self(command.stdout(Stdio::piped()).spawn().expect("spawn"));
        let mut line = String::new();
        let stdout = owner.0.stdout.take().expect("stdout");
        BufReader::new(stdout).read_line(&mut line).expect("read");
        assert_eq!(line, "owned\n");
        until_asleep(owner.0.id(), owner.0.id());
        owner
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a thread sleeps in the kernel.
pub(crate) fn until_asleep(pid: u32, tid: u32) {
    let path = format!("/proc/{pid}/task/{tid}/stat");
    let start = Instant::now();
    loop {
        let stat = std::fs::read_to_string(&path).expect("read");
        if stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" S")) {
            return;
        }
        assert!(start.elapsed() < HANG, "a thread does not fall asleep");
        thread::sleep(Duration::from_micros(50));
    }
}

/// A thread that inherits whenever it is told to.
pub(crate) struct Heir {
    tell: Sender<()>,
    inherited: Receiver<Instant>,
    /// Its TID while it is inside `inherit`.
    waiting: Arc<AtomicI32>,
    path: Unlinked,
    peer: Peer,
}

impl Heir {
    pub(crate) fn start(peer: Peer, cpu: usize) -> Self {
        let path = Unlinked(peer.path());
        let lock = Lock::create(peer, &path.0);
        let (tell, told) = channel::<()>();
        let (report, inherited) = channel();
        let waiting = Arc::new(AtomicI32::new(0));
        let flag = Arc::clone(&waiting);
        thread::spawn(move || {
            pin::to_cpu(cpu);
            let tid = gettid().as_raw();
            while told.recv().is_ok() {
                flag.store(tid, Ordering::SeqCst);
                let at = lock.inherit();
                flag.store(0, Ordering::SeqCst);
                report.send(at).expect("the killer waits");
            }
        });
        Self { tell, inherited, waiting, path, peer }
    }

    /// Has `command` play the owner, and kills it; how long it took until the heir
    /// had the lock.
    pub(crate) fn recovery(&self, command: Command, owner_cpu: usize) -> Duration {
        let owner = Owner::spawn(command, self.peer, &self.path.0, owner_cpu);
        self.tell.send(()).expect("the heir listens");
        let tid = loop {
            match self.waiting.load(Ordering::SeqCst) {
                0 => thread::yield_now(),
                tid => break tid,
            }
        };
        until_asleep(std::process::id(), tid as u32);
        let pid = Pid::from_raw(owner.0.id() as i32);
        let start = Instant::now();
        kill(pid, Signal::SIGKILL).expect("kill");
        self.inherited.recv_timeout(HANG).expect("the heir inherits").duration_since(start)
    }
}
