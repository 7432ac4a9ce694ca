//! SIGKILL at every instruction.
//!
//! A victim does one operation between two markers; a tracer brings it to the
//! point after its `n`th instruction, for every `n`, and kills it there. System
//! calls are killed at entry, while asleep and at exit. What the others then
//! must find is in `world.rs`, and for condition variables in `condvar/ground.rs`.
//! For each distinct image of the segment that such a death leaves behind, whoever
//! recovers from it is killed as well, wherever that makes a difference, or with
//! `HEIRLOCK_LONG=1` at every instruction. Most operations on condition variables
//! are themselves killed wherever that makes a difference, unless it is the long run.
//!
//! Parking, where there is nothing to recover, has its own trials in `parking.rs`.
//!
//! An argument selects the operations whose names contain it; `--first` leaves
//! the recoveries alone. Their kills can be divided among runs: with
//! `HEIRLOCK_SHARD=1/10` one does every tenth, with `2/10` another one the next.
//!
//! With `--signals` nobody is killed: the victim gets a signal at each of these
//! points, and goes on. That is in `signals.rs` and `condvar/signals.rs`; `--at=N`
//! repeats point `N`.

#[path = "../kit/mod.rs"]
mod kit;

#[cfg(target_arch = "x86_64")]
mod actor;
#[cfg(target_arch = "x86_64")]
mod condvar;
#[cfg(target_arch = "x86_64")]
mod image;
#[cfg(target_arch = "x86_64")]
mod parking;
#[cfg(target_arch = "x86_64")]
mod run;
#[cfg(target_arch = "x86_64")]
mod scenario;
#[cfg(target_arch = "x86_64")]
mod trace;
#[cfg(target_arch = "x86_64")]
mod victim;
#[cfg(target_arch = "x86_64")]
mod waits;
#[cfg(target_arch = "x86_64")]
mod world;

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("skipped: the tracer knows the breakpoints and system calls of x86-64 alone");
}

#[cfg(target_arch = "x86_64")]
fn main() {
    if cfg!(debug_assertions) {
        println!("skipped: a debug build has ten times the instructions; add --release");
        println!("0 passed, 0 failed, 1 skipped");
        return;
    }
    start::everything();
}

#[cfg(target_arch = "x86_64")]
mod start {
    #![allow(unsafe_code)]

    use crate::run::{Effort, Run};
    use crate::trace::{fork_child, kill_and_reap};
    use heirlock::{Mutex, Segment};
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    use nix::unistd::{Pid, pause};
    use std::time::Duration;

    extern "C" fn ring(_: i32) {}

    pub(crate) fn everything() {
        stay_on_one_cpu();
        let action = SigAction::new(SigHandler::Handler(ring), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing; it is there to end a `waitpid`.
        unsafe { sigaction(Signal::SIGALRM, &action) }.expect("sigaction");
        warm_up();
        let effort = match std::env::var("HEIRLOCK_LONG").as_deref() {
            Ok("1") => Effort::Long,
            _ if std::env::args().any(|arg| arg == "--first") => Effort::First,
            _ => Effort::Usual,
        };
        let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
        let filter = filter.as_deref().unwrap_or("");
        let signals = std::env::args().any(|arg| arg == "--signals");
        let run = Run::new(effort);
        let well = if signals { run.signals(filter) } else { run.all(filter) };
        // Which has its kills and its signals in one.
        let well = (signals || crate::parking::all(filter)) && well;
        std::process::exit(i32::from(!well));
    }

    /// With one CPU nothing happens while somebody else runs; and a waiter that is
    /// stepped has no time left to spin. So every run takes the same way.
    fn stay_on_one_cpu() {
        let me = Pid::from_raw(0);
        let allowed = sched_getaffinity(me).expect("the allowed CPUs");
        let cpu = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        let mut one = CpuSet::new();
        one.set(cpu.expect("a CPU")).expect("a CPU's number");
        sched_setaffinity(me, &one).expect("stay on one CPU");
    }

    /// Everything that is found out once in a process (how many CPUs there
    /// are, which system calls work) is found out before the first fork.
    fn warm_up() {
        let segment: Segment<Mutex<u64>> = Segment::anonymous().expect("a segment");
        let owner = fork_child(|| {
            std::mem::forget(segment.lock());
            pause();
        });
        crate::kit::until("a child has the lock", || segment.is_locked());
        assert!(segment.try_lock_for(Duration::from_millis(1)).is_none());
        kill_and_reap(owner);
    }
}
