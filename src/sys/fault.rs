//! Deliberate faults, for the builds that prove that the tests can see.
//!
//! Compiled with `--cfg heirlock_faults`, the crate reads the environment
//! variable `HEIRLOCK_FAULT` once and breaks itself in the way it names. In
//! every other build [`active`] is the constant `false` and costs nothing.

/// One way to be broken. The comments say what goes missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Fault {
    /// A waiter that saw a death does not wake the other watchers, and does
    /// not publish `list_op_pending` either.
    NoRelay = 1,
    /// A dead owner is taken for a live one.
    NoDeathCheck = 2,
    /// A releaser that found a waiter too late does not nudge it, nor does a
    /// thread that leaves the queue nudge its successor.
    NoNudge = 3,
    /// A hand-over does not wake the sleeping waiter.
    NoWake = 4,
    /// The fast path does not look at the queue: newcomers barge past it.
    Barging = 5,
}

#[cfg(heirlock_faults)]
mod chosen {
    use super::Fault;
    use std::sync::OnceLock;

    pub(crate) fn active(fault: Fault) -> bool {
        static CHOSEN: OnceLock<u32> = OnceLock::new();
        let chosen = *CHOSEN.get_or_init(|| match std::env::var("HEIRLOCK_FAULT").as_deref() {
            Err(_) | Ok("" | "none") => 0,
            Ok("no_relay") => Fault::NoRelay as u32,
            Ok("no_death_check") => Fault::NoDeathCheck as u32,
            Ok("no_nudge") => Fault::NoNudge as u32,
            Ok("no_wake") => Fault::NoWake as u32,
            Ok("barging") => Fault::Barging as u32,
            Ok(other) => panic!("HEIRLOCK_FAULT={other} names no fault"),
        });
        chosen == fault as u32
    }
}

#[cfg(heirlock_faults)]
pub(crate) use chosen::active;

/// Whether this build is broken in the way that `fault` names: never.
#[cfg(not(heirlock_faults))]
#[inline(always)]
pub(crate) const fn active(_fault: Fault) -> bool {
    false
}
