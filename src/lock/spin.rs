//! Whether, and for how long, a waiter stays awake.
//!
//! To sleep and be woken on another processor takes tens of microseconds where
//! that processor has gone to sleep too, and a hand-over from one running thread to
//! another a fraction of one. So whoever is served soon stays awake for a while:
//! the head spins, and the few behind it give the processor to whoever needs it
//! in between. When that has not paid for some time (the owners hold the lock for
//! long, do not run, or the processors are busy otherwise) they go to sleep at
//! once, but for a try now and then.

use crate::sys::{clock, process};
use core::cell::Cell;

/// A waiter stays awake that has at most this many in front of it.
pub(super) const WINDOW: u32 = 8;

/// For how many ticks a thread spins at most.
const SPIN: u32 = 8;

/// For how many ticks a thread stays awake at most, once it no longer spins.
const AWAKE: u32 = 600;

/// After so many times in vain a thread goes to sleep at once...
const TRIES: u32 = 4;

/// ...and tries again after so many.
const ROUND: u32 = 64;

thread_local! {
    /// How many times in a row it was in vain to stay awake. Of a thread, not of a
    /// lock, which has no room for it; threads that meet at a lock see the same.
    static IN_VAIN: Cell<u32> = const { Cell::new(0) };

    /// Whether more than [`WINDOW`] others were in front when this thread waited last.
    static CROWDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether anything could happen while a thread spins: not if there is one
/// processor. Nor under loom, to which a spin is one look more at the same words.
pub(super) fn may_pay() -> bool {
    !cfg!(heirlock_loom) && process::has_several_cpus()
}

/// Takes note of whether a turn that this thread waits for comes soon.
pub(super) fn note_turn(soon: bool) {
    CROWDED.set(!soon);
}

/// Whether those who come into the window have to be roused, as far as this
/// thread knows.
pub(super) fn rouses() -> bool {
    CROWDED.get() && pays()
}

/// Whether staying awake has paid for this thread lately, or is to be tried.
fn pays() -> bool {
    may_pay() && IN_VAIN.get() % ROUND < TRIES
}

/// Waits awake for `found`, if that has paid lately: on the processor at first if
/// `at_once`, then whenever nobody else needs it. `false` if it takes too long.
pub(super) fn stay_awake(at_once: bool, found: impl Fn() -> bool) -> bool {
    let paid =
        pays() && (at_once && spin(&found) || look_for(AWAKE, found, std::thread::yield_now));
    IN_VAIN.set(if paid { 0 } else { IN_VAIN.get().wrapping_add(1) });
    paid
}

/// Spins until `found`, or for some microseconds.
pub(super) fn spin(found: impl Fn() -> bool) -> bool {
    // Without a pause, which takes as long as a hand-over.
    may_pay() && look_for(SPIN, found, || ())
}

/// Looks for `found` at least once, and for so many ticks.
fn look_for(ticks: u32, found: impl Fn() -> bool, between: impl Fn()) -> bool {
    if found() {
        return true;
    }
    let start = clock::ticks();
    while clock::ticks().wrapping_sub(start) < ticks {
        between();
        if found() {
            return true;
        }
    }
    false
}
