//! An exhaustive model of the lock algorithm: every interleaving, every point
//! at which a thread can be killed, within stated bounds.
//!
//! Where to find what:
//!
//! * [`state`]: the segment, each thread's registers, the ghosts;
//! * [`pc`]: every step under the name of the crate's function that takes it;
//! * [`step`], [`wait`], [`release`], [`queue`]: what the steps do, to hold against
//!   `src/lock/` and `src/participant/attach.rs`;
//! * [`kernel`]: death, its late notice, wakes;
//! * [`model`]: who may do what, and which states count as one;
//! * [`symmetry`]: rows may be renumbered;
//! * [`properties`]: what must hold; [`trace`]: how a violation is shown;
//! * [`configs`]: the bounds explored, and how many states they hold;
//! * [`mutants`]: deliberate faults, and where the model finds them.
//!
//! # What is a step
//!
//! Every access to shared memory is a step of its own, with five exceptions,
//! each argued where it is made: a walk of the queue under the guard goes with
//! the load of `tail` that it begins with, and that with the step before; a
//! compare-and-swap that is repeated until it succeeds is the one that does;
//! reading the guard and its holder's life is one step; a barrier is one step;
//! hints are stored together with what they are about once no kill is left, and
//! a store each until then. A kill can come before every step. The
//! kernel's notice of a death is three later steps: mark, wake one, wake one for
//! `list_op_pending`. A new thread can take a dead row over from the mark on.
//! There is no heartbeat.
//!
//! # Memory
//!
//! Memory is sequentially consistent but for the one plain store that the lock
//! relies on, `owner = 0` of a hasty release. That store goes into the thread's
//! [`state::Buffer`] and leaves it, as a step of its own, at any time from then
//! on, the oldest first: until then the others see the old owner, and the
//! thread's later loads are executed ahead of the store (x86-TSO). The buffer is
//! empty before the thread's next compare-and-swap, SeqCst store or system call,
//! after a waiter's `membarrier`, and before the thread's death shows. The thread
//! reads its own store from the buffer, so `is_owned_by_caller` never finds it the
//! owner still; no step of the model needs that. An Arm-like machine too may
//! execute the acquiring load behind a releasing store before that store is seen:
//! the same reordering. All other words of the lock and of a waiter are accessed
//! SeqCst where others depend on it.
//!
//! # What is left out
//!
//! * That a release also hands on the data: loom looks at that.
//! * That stores of `attach` that only release, and those of the header's fences,
//!   may be seen late: here they are seen at once.
//! * Waiting for the guard is being blocked; that a guard waiter, parked on the
//!   holder's life, can swallow the kernel's single wake and die with it, is in.
//! * Detaching, spurious wakes other than a poll's, TIDs and generations that wrap.
//! * Livelock: a circle of steps that leads nowhere is not seen, a state that
//!   no step leaves is.
//! * The checker keeps a 64-bit fingerprint of each state. The chance that two
//!   of 10^8 states share one is below 0.03 %.
//!
//! # How to run it
//!
//! `cargo test --release --test model`. `HEIRLOCK_MODEL_FULL=1` adds the large
//! configurations, `HEIRLOCK_MODEL_TRACES=1` prints a short path to the failure
//! of each mutant. A build without optimisation ignores all but the small
//! configurations.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

mod configs;
mod explore;
mod kernel;
mod model;
mod mutants;
mod pc;
mod properties;
mod queue;
mod release;
mod state;
mod step;
mod symmetry;
mod trace;
mod wait;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let full = std::env::var_os("HEIRLOCK_MODEL_FULL").is_some_and(|value| value == "1");
    let optimised = !cfg!(debug_assertions);
    let holds = configs::ALL.iter().map(|bounds| {
        let runs = match bounds.size {
            configs::Size::Small => true,
            configs::Size::Medium => optimised,
            configs::Size::Full => optimised && full,
        };
        Trial::test(format!("holds: {}", bounds.name), || explore::holds(bounds))
            .with_ignored_flag(!runs)
    });
    let caught = mutants::CAUGHT.iter().map(|catch| {
        let runs = optimised || !catch.slow;
        Trial::test(format!("catches: {:?}", catch.mutant), || explore::catches(catch))
            .with_ignored_flag(!runs)
    });
    let trials = holds.chain(caught).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
