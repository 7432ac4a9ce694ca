//! Processes that are killed, at random and on purpose, and what must hold
//! whoever dies wherever.
//!
//! * `directed`, `stepped`: for each way in which the lock could be broken
//!   (`ci/broken-locks` builds them) one death in just the place where it shows.
//! * `condition`: the same for the condition variable; `rings`: for those who wait in a
//!   ring, or for several locks.
//! * `storm`: thousands of deaths anywhere; `ring`: the same around condition
//!   variables; `waits`: the same among those who wait without a thread that sleeps.
//!
//! `HEIRLOCK_LONG=1` kills ten times as many, `HEIRLOCK_KILLS` as many as it
//! says; `HEIRLOCK_HANG_SECONDS` is how long nothing may happen.

#[path = "../kit/mod.rs"]
mod kit;

mod condition;
mod directed;
mod ground;
mod ring;
#[cfg(feature = "io-uring")]
mod rings;
mod scene;
mod stepped;
mod storm;
mod unfenced;
#[cfg(feature = "io-uring")]
mod waits;
mod worker;

use kit::{hang, number_from_env};
use std::time::Duration;

fn is_long() -> bool {
    std::env::var_os("HEIRLOCK_LONG").is_some_and(|value| value != "0")
}

fn main() {
    // The trials have watchdogs of their own, which say more.
    let guard = Duration::from_secs(if is_long() { 3600 } else { 600 });
    kit::run(
        &[
            directed::TESTS,
            stepped::TESTS,
            condition::TESTS,
            unfenced::TESTS,
            #[cfg(feature = "io-uring")]
            rings::TESTS,
            storm::TESTS,
            ring::TESTS,
            #[cfg(feature = "io-uring")]
            waits::TESTS,
        ],
        &[
            ("worker", worker::play),
            ("auditor", worker::audit),
            ("stepper", stepped::play),
            ("newcomer", stepped::attach),
            ("ringer", ring::play),
            #[cfg(feature = "io-uring")]
            ("swimmer", waits::play),
            ("notifier", condition::notify),
            ("waiter", condition::wait),
            ("hog", directed::hog),
            #[cfg(feature = "io-uring")]
            ("ringed", rings::play),
            ("releaser", unfenced::release),
            ("queuer", unfenced::queue),
        ],
        guard,
    )
}
