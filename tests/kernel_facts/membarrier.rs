//! The fence that one process executes for all.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::atomic::{Ordering::SeqCst, compiler_fence};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rustix::io::Errno;
use rustix::mm::MapFlags;
use rustix::thread::{MembarrierCommand, membarrier};

use crate::support::*;

/// How often the two processes pass each other.
const ROUNDS: u32 = 20_000;

/// How often it is tried to see what happens without the fence.
const TRIES: u32 = 50;

/// Why there is nothing to look at here.
pub(crate) fn membarrier_missing() -> Option<String> {
    match membarrier(MembarrierCommand::RegisterGlobalExpedited) {
        Ok(()) => None,
        Err(error) => Some(format!("membarrier is refused: {error}")),
    }
}

/// Registering and calling ask for no privilege, and registering twice is fine.
pub(crate) fn takes_no_privilege() -> Verdict {
    use MembarrierCommand::{GlobalExpedited, RegisterGlobalExpedited};
    for command in [RegisterGlobalExpedited, RegisterGlobalExpedited, GlobalExpedited] {
        let called: Result<(), Errno> = membarrier(command);
        ensure!(called.is_ok(), "{command:?}: {called:?}");
    }
    Ok(libtest_mimic::Completion::Completed)
}

/// "Store mine, then look at yours" between two processes, of which one orders the
/// two with nothing but the other one's call. Without the call both miss.
pub(crate) fn fences_other_processes() -> Verdict {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let cpus: Vec<usize> =
        (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)).collect();
    let [first, second, ..] = cpus[..] else {
        return skip("with one processor nothing is executed in another order");
    };
    let (mut unfenced, mut tries) = (0, 0);
    while unfenced == 0 && tries < TRIES {
        unfenced = both_miss(first, second, false)?;
        tries += 1;
    }
    if unfenced == 0 {
        return skip(format!(
            "{TRIES} x {ROUNDS} rounds without a fence showed no reordering here"
        ));
    }
    let fenced = both_miss(first, second, true)?;
    ensure!(fenced == 0, "both missed in {fenced} of {ROUNDS} rounds ({unfenced} unfenced)");
    Ok(libtest_mimic::Completion::Completed)
}

/// In how many rounds neither of two processes, on these processors, saw what the
/// other one had stored.
fn both_miss(theirs: usize, mine: usize, fenced: bool) -> Result<u32, libtest_mimic::Failed> {
    let memory = map(page_size(), MapFlags::SHARED, None);
    // Each on a cache line of its own.
    let word = |number: usize| word_at(memory + 128 * number);
    let (start, x, y, seen, done) = (word(0), word(1), word(2), word(3), word(4));
    let child = Child::spawn(move || {
        membarrier(MembarrierCommand::RegisterGlobalExpedited).expect("register");
        assert!(run_on(theirs), "cannot run on processor {theirs}");
        for round in 1..=ROUNDS {
            wait_for(start, round);
            x.store(round, Relaxed);
            compiler_fence(SeqCst);
            seen.store(y.load(Relaxed), Relaxed);
            done.store(round, Release);
        }
    })?;
    let before = sched_getaffinity(Pid::from_raw(0))?;
    ensure!(run_on(mine), "cannot run on processor {mine}");
    let mut missed = 0;
    for round in 1..=ROUNDS {
        start.store(round, Release);
        y.store(round, Relaxed);
        compiler_fence(SeqCst);
        if fenced {
            membarrier(MembarrierCommand::GlobalExpedited)?;
        }
        let other = x.load(Relaxed);
        wait_for(done, round);
        missed += u32::from(other != round && seen.load(Relaxed) != round);
    }
    sched_setaffinity(Pid::from_raw(0), &before)?;
    child.succeed()?;
    Ok(missed)
}

fn wait_for(word: &AtomicU32, round: u32) {
    while word.load(Acquire) != round {
        spin_loop();
    }
}

fn run_on(cpu: usize) -> bool {
    let mut set = CpuSet::new();
    set.set(cpu).is_ok() && sched_setaffinity(Pid::from_raw(0), &set).is_ok()
}
