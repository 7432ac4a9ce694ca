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
    NoDeathCheck,
    /// Nobody nudges a waiter.
    NoNudge,
    /// A hand-over does not wake the sleeping waiter.
    NoWake,
    /// The fast path does not look at the queue: newcomers barge past it.
    Barging,
    /// A sleeper does not publish `list_op_pending`.
    NoPending,
    /// A releaser that found a waiter too late does not nudge it.
    NoNudgeOnRelease,
    /// A thread that gives up does not nudge its successor.
    NoNudgeOnGiveUp,
    /// The fast path does not look whether somebody queued meanwhile.
    NoSettle,
    /// Who hands over leaves the new owner in the queue.
    NoUnlinkInGrant,
    /// The guard of a dead editor is waited for.
    NoGuardTakeover,
    /// An editor does not wake those who wait for the guard.
    NoGuardWake,
    /// The guard is a row's, not a thread's.
    GuardOfRow,
    /// A row is re-used while its dead user is still in a queue.
    NoReclaim,
    /// A row is re-used under the generation of its dead user.
    SameGeneration,
    /// An heir is not told.
    NotTold,
    /// The next owner is told once more though the heir released.
    ToldAgain,
    /// The head takes a living owner for a dead one.
    Usurping,
    /// Last in, first out.
    Lifo,
    /// A sleeper does not have the kernel look at its token.
    LostCancel,
    /// An interruptible wait sleeps like any other.
    Deaf,
    /// Cancelling does not wake.
    NoCancelWake,
    /// A sleeper that polls does not look at its other words.
    NoPoll,
    /// Unlocking releases the data, but its look at the queue may come before
    /// its store to the owner. (For loom: processors seldom show it.)
    WeakUnlock,
    /// Who hands a lock over that can be taken past a queue does not have the
    /// waiter look first.
    NoNudgeBeforeGrant,
    /// Nobody has ever waited for too long to be passed by.
    EndlessPatience,
    /// A waiter does not have the owners fence before it sleeps.
    NoBarrier,
    /// A waiter had the owners fence, and does not look again.
    NoLookAfterBarrier,
    /// A waiter that is moved to its mutex's queue is not woken to look there.
    NoNudgeOnNotify,
    /// A waiter for a condition variable that was woken does not wait for who edits
    /// its queue.
    NoLookAtGuard,
    /// What a dead notifier began is not finished.
    NoRepair,
    /// The notification of a dead waiter is lost.
    NoPassingOn,
    /// A wait for a condition variable releases the mutex before it queues.
    LateToQueue,
    /// A cycle of waiters is believed at first sight.
    NoSecondLook,
    /// Every waiter of a deadlock that looks for one gives up.
    AllVictims,
    /// A wait that ends by itself can be a part of a deadlock.
    TimedCounts,
    /// Unparking does not wake.
    NoUnparkWake,
    /// Unparking gives the token to whoever has the row.
    UnparkOfRow,
    /// What a process holds is inherited when its keeper has died.
    LivesByItsKeeper,
    /// Who waits for any of several locks keeps all that it is given.
    KeepSecond,
    /// Who leaves a queue does not end the request that waits there on its behalf.
    NoStir,
    /// Who leaves a queue does not pass on the death of which it was told.
    ForgetsDeath,
    /// Who waits for several locks watches the first one's owner alone.
    WatchesOne,
    /// Who takes all of several locks does so in the order in which it names them.
    AsNamed,
}

#[cfg(all(heirlock_faults, not(heirlock_loom)))]
mod chosen {
    use super::Fault;
    use std::sync::OnceLock;
    use std::time::Duration;

    const NAMES: &[(&str, Fault)] = &[
        ("no_relay", Fault::NoRelay),
        ("no_death_check", Fault::NoDeathCheck),
        ("no_nudge", Fault::NoNudge),
        ("no_wake", Fault::NoWake),
        ("barging", Fault::Barging),
        ("no_pending", Fault::NoPending),
        ("no_nudge_on_release", Fault::NoNudgeOnRelease),
        ("no_nudge_on_give_up", Fault::NoNudgeOnGiveUp),
        ("no_settle", Fault::NoSettle),
        ("no_unlink_in_grant", Fault::NoUnlinkInGrant),
        ("no_guard_takeover", Fault::NoGuardTakeover),
        ("no_guard_wake", Fault::NoGuardWake),
        ("guard_of_row", Fault::GuardOfRow),
        ("no_reclaim", Fault::NoReclaim),
        ("same_generation", Fault::SameGeneration),
        ("not_told", Fault::NotTold),
        ("told_again", Fault::ToldAgain),
        ("usurping", Fault::Usurping),
        ("lifo", Fault::Lifo),
        ("lost_cancel", Fault::LostCancel),
        ("deaf", Fault::Deaf),
        ("no_cancel_wake", Fault::NoCancelWake),
        ("no_poll", Fault::NoPoll),
        ("weak_unlock", Fault::WeakUnlock),
        ("no_nudge_before_grant", Fault::NoNudgeBeforeGrant),
        ("endless_patience", Fault::EndlessPatience),
        ("no_barrier", Fault::NoBarrier),
        ("no_look_after_barrier", Fault::NoLookAfterBarrier),
        ("no_nudge_on_notify", Fault::NoNudgeOnNotify),
        ("no_look_at_guard", Fault::NoLookAtGuard),
        ("no_repair", Fault::NoRepair),
        ("no_passing_on", Fault::NoPassingOn),
        ("late_to_queue", Fault::LateToQueue),
        ("no_second_look", Fault::NoSecondLook),
        ("all_victims", Fault::AllVictims),
        ("timed_counts", Fault::TimedCounts),
        ("no_unpark_wake", Fault::NoUnparkWake),
        ("unpark_of_row", Fault::UnparkOfRow),
        ("lives_by_its_keeper", Fault::LivesByItsKeeper),
        ("keep_second", Fault::KeepSecond),
        ("no_stir", Fault::NoStir),
        ("forgets_death", Fault::ForgetsDeath),
        ("watches_one", Fault::WatchesOne),
        ("as_named", Fault::AsNamed),
    ];

    pub(crate) fn active(fault: Fault) -> bool {
        static CHOSEN: OnceLock<Option<Fault>> = OnceLock::new();
        let chosen = || match std::env::var("HEIRLOCK_FAULT").as_deref() {
            Err(_) | Ok("" | "none") => None,
            Ok(name) => {
                let known = NAMES.iter().find(|(known, _)| *known == name);
                Some(known.unwrap_or_else(|| panic!("HEIRLOCK_FAULT={name} names no fault")).1)
            }
        };
        *CHOSEN.get_or_init(chosen) == Some(fault)
    }

    pub(crate) fn heartbeat(usual: Duration) -> Duration {
        static CHOSEN: OnceLock<Option<Duration>> = OnceLock::new();
        CHOSEN.get_or_init(|| millis("HEIRLOCK_HEARTBEAT_MS")).unwrap_or(usual)
    }

    pub(crate) fn lossy(usual: Duration) -> Duration {
        static CHOSEN: OnceLock<Option<Duration>> = OnceLock::new();
        CHOSEN.get_or_init(|| millis("HEIRLOCK_LOSSY_MS")).unwrap_or(usual)
    }

    fn millis(name: &str) -> Option<Duration> {
        let millis = std::env::var(name).ok()?.parse();
        Some(Duration::from_millis(millis.unwrap_or_else(|_| panic!("{name}: a number"))))
    }
}

/// Under loom each test chooses for its own thread, on which its model runs.
#[cfg(heirlock_loom)]
mod chosen {
    use super::Fault;
    use std::cell::Cell;

    thread_local! {
        static CHOSEN: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    pub(crate) fn active(fault: Fault) -> bool {
        CHOSEN.get() == Some(fault)
    }

    pub(crate) fn choose(fault: Option<Fault>) {
        CHOSEN.set(fault);
    }
}

#[cfg(any(heirlock_faults, heirlock_loom))]
pub(crate) use chosen::active;
#[cfg(all(test, heirlock_loom))]
pub(crate) use chosen::choose;
#[cfg(all(heirlock_faults, not(heirlock_loom)))]
pub(crate) use chosen::{heartbeat, lossy};

/// Whether this build is broken in the way that `fault` names: never.
#[cfg(not(any(heirlock_faults, heirlock_loom)))]
#[inline(always)]
pub(crate) const fn active(_fault: Fault) -> bool {
    false
}

/// How often a sleeper looks. The heartbeat repairs, a little later, much of
/// what the faults break, so builds with faults obey `HEIRLOCK_HEARTBEAT_MS`.
#[cfg(not(all(heirlock_faults, not(heirlock_loom))))]
#[inline(always)]
pub(crate) const fn heartbeat(usual: std::time::Duration) -> std::time::Duration {
    usual
}

/// How often a sleeper looks that may be sent no wake. That is meant to repair
/// what a death breaks, with faults or without, so it has a variable of its own,
/// for the trials in which nothing but the wake may help: `HEIRLOCK_LOSSY_MS`.
#[cfg(not(all(heirlock_faults, not(heirlock_loom))))]
#[inline(always)]
pub(crate) const fn lossy(usual: std::time::Duration) -> std::time::Duration {
    usual
}
