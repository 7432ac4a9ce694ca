//! From the SIGKILL of an owner to its heir running.
//!
//! The owner is a process of its own, fresh each time. The heir is a thread of
//! this process that sleeps in the lock, as the kernel confirms, before the
//! owner is killed. Whichever peer is measured, the two take turns, so that
//! both see the same machine.
#![allow(clippy::disallowed_types, reason = "a flag of the benchmark's own")]

use criterion::{Criterion, SamplingMode};
use heirlock::{Mutex, MutexGuard, Segment};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid, pause};
use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

#[path = "support/pin.rs"]
mod pin;
#[path = "support/pthread.rs"]
mod pthread;

use pthread::{Pthread, Sharing};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Heirlock,
    PthreadRobust,
}

const PEERS: [Peer; 2] = [Peer::Heirlock, Peer::PthreadRobust];

impl Peer {
    fn name(self) -> &'static str {
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

/// The part that is killed: `--play owner PEER PATH CPU`.
fn owner(peer: &str, path: &Path, cpu: &str) {
    pin::to_cpu(cpu.parse().expect("a number"));
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
    fn spawn(peer: Peer, path: &Path, cpu: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("the own path"));
        command.args(["--play", "owner", peer.name()]).arg(path).arg(cpu.to_string());
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
fn until_asleep(pid: u32, tid: u32) {
    let path = format!("/proc/{pid}/task/{tid}/stat");
    let start = Instant::now();
    loop {
        let stat = std::fs::read_to_string(&path).expect("read");
        if stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" S")) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "a thread does not fall asleep");
        thread::sleep(Duration::from_micros(50));
    }
}

/// A thread that inherits whenever it is told to.
struct Heir {
    tell: Sender<()>,
    inherited: Receiver<Instant>,
    /// Its TID while it is inside `inherit`.
    waiting: Arc<AtomicI32>,
    path: PathBuf,
    peer: Peer,
}

impl Heir {
    fn start(peer: Peer, cpu: usize) -> Self {
        let path = peer.path();
        let lock = Lock::create(peer, &path);
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

    /// Kills an owner; how long it took until the heir had the lock.
    fn recovery(&self, owner_cpu: usize) -> Duration {
        let owner = Owner::spawn(self.peer, &self.path, owner_cpu);
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
        self.inherited.recv().expect("the heir inherits").duration_since(start)
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn recovery(criterion: &mut Criterion) {
    let cpus = pin::cpus();
    let (owner_cpu, heir_cpu) = (cpus[0], cpus[cpus.len() - 1]);
    pin::to_cpu(heir_cpu);
    let heirs = PEERS.map(|peer| Heir::start(peer, heir_cpu));
    let times = RefCell::new([Vec::new(), Vec::new()]);

    let mut group = criterion.benchmark_group("recovery");
    group.sampling_mode(SamplingMode::Flat).sample_size(50);
    for (measured, peer) in PEERS.iter().enumerate() {
        group.bench_function(peer.name(), |b| {
            b.iter_custom(|iterations| {
                let mut total = Duration::ZERO;
                for iteration in 0..iterations {
                    for turn in 0..2 {
                        let at = (turn + iteration as usize) % 2;
                        let time = heirs[at].recovery(owner_cpu);
                        times.borrow_mut()[at].push(time);
                        if at == measured {
                            total += time;
                        }
                    }
                }
                total
            });
        });
    }
    group.finish();

    let [heirlock, pthread] = &mut *times.borrow_mut();
    let (count, ours, theirs) = (heirlock.len(), median(heirlock), median(pthread));
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    println!("medians of {count} turns: heirlock {ours:?}, pthread_robust {theirs:?}: {ratio:.2}");
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, play, role, peer, path, cpu] = &args[..]
        && play == "--play"
        && role == "owner"
    {
        return owner(peer, path.as_ref(), cpu);
    }
    let mut criterion = Criterion::default().configure_from_args();
    recovery(&mut criterion);
    criterion.final_summary();
}
