//! Releases without a fence, as fast as they come, beside somebody who queues.

use crate::kit::{Board, Process, Test, skip};
use crate::scene::Scene;
use heirlock::Segment;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::hint::spin_loop;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] =
    &[("who_queues_behind_a_release_without_a_fence_is_seen", queues_behind)];

/// How many times somebody queues, so many times each; or fewer, if that takes too long.
/// Only what is optimized is fast enough to show a fault: `ci/broken-locks` builds it so.
const TURNS: u64 = if cfg!(debug_assertions) { 500 } else { 5000 };
const ROUNDS: u64 = 200;

/// Where other programs run on both processors, each round may have to wait for them.
const LONG: Duration = Duration::from_secs(15);

/// How many times at least.
const FLOOR: u64 = 2000;

/// In one of how many rounds at least the other one must have the lock: or else
/// nothing is tried.
const MET: u64 = 100;

fn queues_behind() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("the affinity");
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let (Some(first), Some(second)) = (cpus.next(), cpus.next()) else {
        skip("with one processor nothing is executed in another order");
    };
    let scene = Scene::new();
    let path = scene.path.to_str().expect("a printable path");
    let start = |role, cpu: usize| {
        let mut command = Process::command(role, &[path, &cpu.to_string()]);
        let process = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let process = Process::from_command(process);
        scene.watch(&process);
        process
    };
    let mut releaser = start("releaser", first);
    let mut queuer = start("queuer", second);
    let (_stdin, said) = queuer.pipes();
    let (mut rounds, mut met, mut ended) = (0, 0, false);
    for line in BufReader::new(said).lines() {
        scene.progress();
        let line = line.expect("read");
        ended = line == "end";
        if !ended {
            rounds += ROUNDS;
            met += line.parse::<u64>().expect("a number");
        }
    }
    scene.unwatch(&releaser);
    releaser.kill();
    assert!(ended, "somebody was not seen, after {rounds} rounds");
    println!("{rounds} rounds, in {met} of which the lock was held");
    assert!(rounds >= FLOOR, "{rounds} rounds");
    assert!(met * MET >= rounds, "the lock was held in {met} rounds of {rounds}");
}

/// Locks and unlocks until it is killed.
pub(crate) fn release(args: &[String]) {
    let segment = join(args);
    loop {
        drop(segment.locks[0].lock());
    }
}

/// Queues, in waits that a signal may end: these do not stay awake, so that there is
/// nothing between the doorway and the sleep in which the release could become
/// visible by itself.
pub(crate) fn queue(args: &[String]) {
    let segment = join(args);
    let lock = &segment.locks[0];
    let start = Instant::now();
    for turn in 0..TURNS {
        if start.elapsed() > LONG && turn * ROUNDS >= FLOOR {
            break;
        }
        let mut met = 0_u64;
        for round in 0..ROUNDS {
            for _ in 0..round % 64 {
                spin_loop();
            }
            met += u64::from(lock.is_locked());
            drop(lock.lock_interruptible().expect("no signal comes"));
        }
        println!("{met}");
    }
    println!("end");
}

fn join(args: &[String]) -> Segment<Board> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("prctl");
    let mut set = CpuSet::new();
    set.set(args[1].parse().expect("a number")).expect("a CPU in range");
    sched_setaffinity(Pid::from_raw(0), &set).expect("pin a process");
    Segment::open(&args[0]).expect("open")
}
