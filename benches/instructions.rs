//! How many instructions a lock costs. That does not depend on the machine, nor on
//! who else uses it, so `ci/instructions` can set ceilings.
//!
//! * A lock and unlock that nobody else wants, under callgrind: the difference
//!   between one run of so many and one of twice as many, less what the loop takes
//!   without a lock.
//! * A hand-over from one thread to the next, which sleeps: the threads of a child
//!   process run one at a time, as this process has them do, instruction by
//!   instruction (`ptrace`). (callgrind knows no `futex_waitv` in the versions that
//!   are about, so that it would count the fallback.) What the kernel executes is
//!   not counted.
//!
//! `cargo bench --bench instructions -- PAIR HAND_OVER` fails if heirlock takes more
//! instructions than that.
#![allow(unsafe_code)]
#![allow(clippy::disallowed_types, reason = "a number of the benchmark's own")]

use heirlock::{Mutex, Segment};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::hint::black_box;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

#[path = "support/pthread.rs"]
mod pthread;

use pthread::{Pthread, Sharing};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Heirlock,
    Std,
    ParkingLot,
    PthreadShared,
    PthreadRobust,
    /// No lock at all: what of the count is the loop's.
    Nothing,
}

const PEERS: [(Peer, &str); 6] = [
    (Peer::Heirlock, "heirlock, in a segment"),
    (Peer::Std, "std"),
    (Peer::ParkingLot, "parking_lot"),
    (Peer::PthreadShared, "pthread process-shared"),
    (Peer::PthreadRobust, "pthread robust"),
    (Peer::Nothing, "no lock"),
];

impl Peer {
    fn named(name: &str) -> Self {
        let found = PEERS.into_iter().find(|(_, known)| *known == name);
        found.expect("the name of a peer").0
    }

    /// Locks and unlocks `pairs` times, and increments the value in between if the
    /// `work` is "increment".
    fn pairs(self, work: &str, pairs: u64) {
        let increment = work == "increment";
        match self {
            Self::Heirlock => {
                let fenced = rustix::thread::membarrier(
                    rustix::thread::MembarrierCommand::RegisterGlobalExpedited,
                );
                fenced.expect("membarrier, without which another path would be counted");
                let segment: Segment<Mutex<u64>> = Segment::anonymous().expect("segment");
                let lock: &Mutex<u64> = &segment;
                drop(lock.lock()); // Joins.
                match increment {
                    true => counted(pairs, || *black_box(lock).lock() += 1),
                    false => counted(pairs, || drop(black_box(lock).lock())),
                }
            }
            Self::Std => {
                let lock = &std::sync::Mutex::new(0u64);
                match increment {
                    true => {
                        counted(pairs, || *black_box(lock).lock().expect("not poisoned") += 1);
                    }
                    false => counted(pairs, || drop(black_box(lock).lock())),
                }
            }
            Self::ParkingLot => {
                let lock = &parking_lot::Mutex::new(0u64);
                match increment {
                    true => counted(pairs, || *black_box(lock).lock() += 1),
                    false => counted(pairs, || drop(black_box(lock).lock())),
                }
            }
            Self::PthreadShared => pthread_pairs(Sharing::Plain, increment, pairs),
            Self::PthreadRobust => pthread_pairs(Sharing::Robust, increment, pairs),
            Self::Nothing => {
                let value = &AtomicU64::new(0);
                let add = |value: &AtomicU64| value.store(value.load(Relaxed) + 1, Relaxed);
                match increment {
                    true => counted(pairs, || add(black_box(value))),
                    false => counted(pairs, || {
                        black_box(value);
                    }),
                }
            }
        }
    }

    /// Plays the threads of a hand-over; never returns.
    fn threads(self, threads: usize) {
        match self {
            Self::Heirlock => {
                let segment: Segment<Mutex<u64>> = Segment::anonymous().expect("segment");
                let lock: &Mutex<u64> = &segment;
                play(threads, || {
                    let _guard = black_box(lock).lock();
                    stop();
                });
            }
            Self::Std => {
                let lock = &std::sync::Mutex::new(0u64);
                play(threads, || {
                    let _guard = black_box(lock).lock().expect("not poisoned");
                    stop();
                });
            }
            Self::ParkingLot => {
                let lock = &parking_lot::Mutex::new(0u64);
                play(threads, || {
                    let _guard = black_box(lock).lock();
                    stop();
                });
            }
            Self::PthreadShared => {
                let lock = &Pthread::anonymous(Sharing::Plain);
                play(threads, || black_box(lock).locked(|_| stop()));
            }
            Self::PthreadRobust => {
                let lock = &Pthread::anonymous(Sharing::Robust);
                play(threads, || black_box(lock).locked(|_| stop()));
            }
            Self::Nothing => {}
        }
    }
}

fn pthread_pairs(sharing: Sharing, increment: bool, pairs: u64) {
    let lock = &Pthread::anonymous(sharing);
    match increment {
        true => counted(pairs, || black_box(lock).locked(|value| *value += 1)),
        false => counted(pairs, || black_box(lock).locked(|_| ())),
    }
}

/// What callgrind collects.
#[inline(never)]
fn counted(pairs: u64, pair: impl Fn()) {
    for _ in 0..pairs {
        pair();
    }
}

/// Stops for whoever traces this thread.
#[inline(always)]
fn stop() {
    // SAFETY: the instruction changes nothing but this thread's state in the
    // kernel, which the tracer, that `play` has, sees and then has it go on.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("int3");
    }
}

/// Threads that stop before their first turn, and in each when they have the lock
/// and when they do not have it any more.
fn play(threads: usize, turn: impl Fn() + Sync) {
    ptrace::traceme().expect("traceme");
    stop();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                stop();
                loop {
                    turn();
                    stop();
                }
            });
        }
    });
}

/// How often the uncontended pair is run, and as often again.
const PAIRS: u64 = 1000;

/// The instructions of a pair and of the loop around it.
fn count_pair(name: &str, work: &str) -> u64 {
    let [once, twice] = [PAIRS, 2 * PAIRS].map(|pairs| {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
        command.arg("--toggle-collect=instructions::counted*").arg(own_path());
        command.args(["pairs", name, work, &pairs.to_string()]);
        let output = command.output().expect("valgrind");
        let log = String::from_utf8_lossy(&output.stderr);
        let collected = log.lines().find_map(|line| line.split_once("Collected : "));
        assert!(output.status.success() && collected.is_some(), "valgrind: {log}");
        collected.and_then(|(_, count)| count.trim().parse::<u64>().ok()).expect("a number")
    });
    assert!(once >= PAIRS, "callgrind did not see the function that it was to count");
    (twice - once).div_ceil(PAIRS)
}

fn own_path() -> std::path::PathBuf {
    std::env::current_exe().expect("the own path")
}

/// The instructions of a hand-over, each from the least to the most that was seen.
#[derive(Default)]
struct HandOver {
    /// From asking for the lock until asleep.
    until_asleep: Range,
    /// The owner's whole unlock.
    unlock: Range,
    /// From waking up until having the lock.
    woken: Range,
}

#[derive(Default)]
struct Range(Option<(u64, u64)>);

impl Range {
    fn add(&mut self, count: u64) {
        let (least, most) = self.0.unwrap_or((count, count));
        self.0 = Some((least.min(count), most.max(count)));
    }

    fn most(&self) -> u64 {
        self.0.expect("counted").1
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some((least, most)) if least == most => write!(f, "{least}"),
            Some((least, most)) => write!(f, "{least} to {most}"),
            None => write!(f, "?"),
        }
    }
}

/// A thread of the child.
#[derive(Clone, Copy)]
struct Thread(Pid);

/// How a thread's run ended.
#[derive(PartialEq, Eq)]
enum Ran {
    /// At its next [`stop`].
    Stopped,
    Asleep,
}

impl Thread {
    /// Has it execute one instruction after the other until it stops or sleeps;
    /// how many it executed to the end.
    fn run(self) -> (Ran, u64) {
        let mut count = 0;
        loop {
            ptrace::step(self.0, None).expect("step");
            if !self.finishes_step() {
                return (Ran::Asleep, count);
            }
            if self.is_at_stop() {
                return (Ran::Stopped, count);
            }
            count += 1;
        }
    }

    /// Waits until the instruction is executed; `false` if it is a futex call that
    /// sleeps.
    fn finishes_step(self) -> bool {
        let start = Instant::now();
        loop {
            match self.wait(WaitPidFlag::WNOHANG) {
                WaitStatus::StillAlive => {}
                WaitStatus::Stopped(_, Signal::SIGTRAP) => return true,
                other => panic!("a signal from elsewhere got in the way: {other:?}"),
            }
            // The number alone would still be there when the call is over.
            let read = |what| std::fs::read_to_string(format!("/proc/{}/{what}", self.0));
            let status = read("status").expect("whether it sleeps");
            let call = read("syscall").expect("what it executes in the kernel");
            let number = call.split(' ').next().and_then(|number| number.parse().ok());
            let in_futex = matches!(number, Some(libc::SYS_futex | libc::SYS_futex_waitv));
            if in_futex && status.contains("State:\tS") {
                return false;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "an instruction does not end");
        }
    }

    fn wait(self, flags: WaitPidFlag) -> WaitStatus {
        waitpid(self.0, Some(flags | WaitPidFlag::__WALL)).expect("waitpid")
    }

    /// Whether it was a breakpoint that stopped it, and not a step.
    fn is_at_stop(self) -> bool {
        const SI_KERNEL: i32 = 0x80;
        ptrace::getsiginfo(self.0).expect("getsiginfo").si_code == SI_KERNEL
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        // Each thread that is traced, and the process when they are gone.
        while waitpid(None, Some(WaitPidFlag::__WALL)).is_ok() {}
    }
}

/// Counts the hand-overs of a lock that `waiters` sleep for: each thread in its turn
/// releases it when all others sleep, and asks for it again when the next one has it.
fn count_hand_over(name: &str, waiters: usize) -> HandOver {
    let mut command = Command::new(own_path());
    command.args(["threads", name, &(waiters + 1).to_string()]);
    let child = Killed(command.stdin(Stdio::null()).spawn().expect("spawn"));
    let main = Thread(Pid::from_raw(child.0.id().cast_signed()));
    main.wait(WaitPidFlag::empty());
    let options = Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACECLONE;
    ptrace::setoptions(main.0, options).expect("setoptions");
    ptrace::cont(main.0, None).expect("continue");

    let mut threads = std::collections::VecDeque::new();
    while threads.len() <= waiters {
        match waitpid(None, Some(WaitPidFlag::__WALL)).expect("waitpid") {
            WaitStatus::Stopped(thread, Signal::SIGTRAP) => threads.push_back(Thread(thread)),
            // A new thread, and who made it.
            WaitStatus::Stopped(thread, Signal::SIGSTOP)
            | WaitStatus::PtraceEvent(thread, _, _) => {
                ptrace::cont(thread, None).expect("continue");
            }
            other => panic!("a child that is traced: {other:?}"),
        }
    }

    for (place, thread) in threads.iter().enumerate() {
        let (ran, _) = thread.run();
        assert!((ran == Ran::Stopped) == (place == 0), "one has the lock and the others sleep");
    }
    let mut count = HandOver::default();
    let rounds = threads.len() * 3;
    for round in 0..rounds {
        // In the first third all is done for the first time by somebody.
        let warm = round >= threads.len();
        let owner = threads.pop_front().expect("the owner");
        // Since it fell asleep it may have looked around.
        let next = threads[0];
        while next.wait(WaitPidFlag::WNOHANG) != WaitStatus::StillAlive {
            assert!(next.run().0 == Ran::Asleep, "it waits");
        }
        let (ran, unlock) = owner.run();
        assert!(ran == Ran::Stopped, "unlocking does not sleep");
        assert!(next.wait(WaitPidFlag::empty()) != WaitStatus::StillAlive);
        let (ran, woken) = next.run();
        assert!(ran == Ran::Stopped, "the next one has the lock");
        let (ran, until_asleep) = owner.run();
        assert!(ran == Ran::Asleep, "the next one has the lock");
        threads.push_back(owner);
        if warm {
            count.unlock.add(unlock);
            count.woken.add(woken);
            count.until_asleep.add(until_asleep);
        }
    }
    count
}

/// Prints both tables; whether heirlock stays below the ceilings.
fn count_all(pair_ceiling: u64, hand_over_ceiling: u64) -> bool {
    let mut fine = true;
    const WORKS: [&str; 2] = ["nothing", "increment"];
    let alone = WORKS.map(|work| count_pair("no lock", work));
    println!(
        "| lock and unlock, nobody else | instructions | around `*value += 1` |\n|---|---|---|"
    );
    for (peer, name) in PEERS.into_iter().filter(|(peer, _)| *peer != Peer::Nothing) {
        let [pair, around] = [0, 1].map(|i| count_pair(name, WORKS[i]) - alone[i]);
        println!("| {name} | {pair} | {around} |");
        fine &= peer != Peer::Heirlock || pair <= pair_ceiling;
    }
    println!("(of the loop, and not counted: {} and {})", alone[0], alone[1]);
    if cfg!(not(target_arch = "x86_64")) {
        println!("no hand-overs: the breakpoints are x86-64's");
        return fine;
    }
    println!(
        "\n| hand-over | waiters | unlock | from waking up to having the lock | sum | \
         from asking to sleeping |\n|---|---|---|---|---|---|"
    );
    for (peer, name) in PEERS.into_iter().filter(|(peer, _)| *peer != Peer::Nothing) {
        for waiters in [1, 2, 16] {
            let HandOver { until_asleep, unlock, woken } = count_hand_over(name, waiters);
            let sum = unlock.most() + woken.most();
            println!("| {name} | {waiters} | {unlock} | {woken} | {sum} | {until_asleep} |");
            fine &= peer != Peer::Heirlock || waiters > 2 || sum <= hand_over_ceiling;
        }
    }
    fine
}

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().expect("a number");
    match arguments[..] {
        ["pairs", peer, work, pairs] => Peer::named(peer).pairs(work, number(pairs)),
        ["threads", peer, threads] => Peer::named(peer).threads(number(threads) as usize),
        [] => assert!(count_all(u64::MAX, u64::MAX)),
        [pair, hand_over] => {
            if !count_all(number(pair), number(hand_over)) {
                println!(
                    "heirlock: more than {pair} instructions a pair, or {hand_over} a hand-over"
                );
                return ExitCode::FAILURE;
            }
        }
        _ => panic!("usage: instructions [PAIR HAND_OVER]"),
    }
    ExitCode::SUCCESS
}
