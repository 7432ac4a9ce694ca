//! Releases without a fence, as fast as they come, beside somebody who queues.
#![allow(clippy::disallowed_types, reason = "not a word of the crate's")]

use crate::kit::{Test, skip};
use crate::scene::Scene;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

pub(crate) const TESTS: &[Test] =
    &[("who_queues_behind_a_release_without_a_fence_is_seen", queues_behind)];

/// How often somebody queues. Only what is optimized is fast enough to show a fault:
/// `ci/broken-locks` builds it so.
const ROUNDS: u32 = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };

/// In how many of the rounds the other one had the lock: or else nothing was tried.
const MET: u64 = 1_000;

/// Waits that a signal may end do not stay awake: so there is nothing between the
/// doorway and the sleep in which the release could become visible by itself.
fn queues_behind() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("the affinity");
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let (Some(first), Some(second)) = (cpus.next(), cpus.next()) else {
        skip("with one processor nothing is executed in another order".to_owned());
    };
    let scene = Scene::new();
    let lock = &scene.segment.locks[0];
    let done = AtomicBool::new(false);
    let met = thread::scope(|scope| {
        scope.spawn(|| {
            run_on(first);
            while !done.load(Relaxed) {
                drop(lock.lock());
            }
        });
        run_on(second);
        let mut met = 0;
        for round in 0..ROUNDS {
            for _ in 0..round % 64 {
                spin_loop();
            }
            met += u64::from(lock.is_locked());
            drop(lock.lock_interruptible().expect("no signal comes"));
        }
        done.store(true, Relaxed);
        met
    });
    sched_setaffinity(Pid::from_raw(0), &allowed).expect("the affinity as it was");
    println!("{ROUNDS} rounds, in {met} of which the lock was held");
    assert!(met >= MET, "the lock was held in {met} rounds");
}

fn run_on(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU in range");
    sched_setaffinity(Pid::from_raw(0), &set).expect("pin a thread");
}
