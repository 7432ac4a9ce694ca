//! Sleeping, and the three ways to end another thread's sleep.
//! The only caller of futex waits.

use super::cancel::Ticket;
use super::word::{Code, WaitState};
use crate::memory::error::Corrupted;
use crate::participant::attach::Attachment;
use crate::participant::life::{consult_witness, died};
use crate::participant::table::{Row, Table};
use crate::sys::atomic::Ordering::{Relaxed, Release, SeqCst};
use crate::sys::clock::Deadline;
use crate::sys::fault::{self, Fault, active};
use crate::sys::futex::{self, Expect, MAX_WORDS, Woken};
use crate::sys::membarrier;
use std::time::Duration;

/// How often a sleeper looks for what the kernel does not tell.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How often a sleeper looks if it could not make the owner see it.
const UNFENCED: Duration = Duration::from_millis(1);

/// How often a sleeper looks whether the rest of a process is gone, a part of which is.
const DYING: Duration = Duration::from_millis(1);

/// How often a sleeper looks if a wake may be lost.
const LOSSY: Duration = Duration::from_millis(10);

const NO_ROW: Corrupted = Corrupted("a waiter's row is out of range");

/// Whom a waiter watches: a participant's row, and its life word as it was when
/// the participant was found alive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watched {
    pub(super) index: u32,
    pub(super) life: u32,
    /// Whether it is an owner that may release without a fence: who sleeps has
    /// to see to it that it is seen.
    pub(super) hasty: bool,
    /// Whether a wake may be lost if its sender is killed before it sends it.
    pub(super) lossy: bool,
}

impl Watched {
    /// Has the owner see that somebody waits, unless it is `seen` already. Whether it may
    /// have released just before: then the waiter looks again.
    pub(super) fn is_seen(&mut self, me: &Attachment, seen: &mut bool) -> bool {
        if self.hasty && !*seen {
            *seen = fence_owners(me);
            if !*seen {
                me.demand_fences();
            } else if !active(Fault::NoLookAfterBarrier) {
                return true;
            }
        }
        self.hasty &= !*seen;
        false
    }

    /// Its life word, with the value at which it lives.
    pub(super) fn life<'m>(&self, table: Table<'m>) -> Result<Expect<'m>, Corrupted> {
        let word = table.life(self.index).ok_or(Corrupted("a watched row is out of range"))?;
        Ok((word, self.life))
    }

    /// For how long a sleeper may go without a look.
    pub(super) fn heartbeat(watched: Option<&Self>) -> Duration {
        let usual = fault::heartbeat(HEARTBEAT);
        match watched {
            Some(Watched { life, .. }) if died(*life) => usual.min(DYING),
            Some(Watched { hasty: true, .. }) => usual.min(UNFENCED),
            Some(Watched { lossy: true, .. }) => usual.min(fault::lossy(LOSSY)),
            _ => usual,
        }
    }
}

/// How a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slept {
    /// Somebody woke it, most probably.
    Look,
    /// Nobody did: it looks all the same, every now and then.
    Heartbeat,
    TimedOut,
    Interrupted,
}

/// What may end a wait before its turn comes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits<'a> {
    pub(crate) deadline: Option<Deadline>,
    pub(crate) cancelled: Option<Ticket<'a>>,
    /// Whether a signal handler ends it.
    pub(crate) interruptible: bool,
    /// Whether it ends if it is a part of a deadlock.
    pub(crate) detect: Detect,
    /// When the waiter looks for a deadlock next; the wait sets it.
    pub(crate) check_at: Option<Deadline>,
}

/// Whether a waiter looks for a deadlock, and when.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Detect {
    /// As this process wants it in the segment.
    #[default]
    AsSegment,
    /// When it has waited for this long, and each time this has passed again.
    After(Duration),
    Never,
}

impl Limits<'_> {
    /// Whether something may end the wait that no other waiter need do.
    pub(super) fn end_it(&self) -> bool {
        self.deadline.is_some() || self.cancelled.is_some() || self.interruptible
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.is_some_and(Ticket::is_cancelled)
    }

    pub(super) fn are_over(&self) -> bool {
        self.deadline.is_some_and(Deadline::passed)
    }

    /// No time at all.
    pub(super) fn over() -> Self {
        Self { deadline: Some(Deadline::now()), ..Self::default() }
    }
}

/// Has a sleeping waiter look: its turn comes soon, so that it had better be awake.
pub(super) fn rouse(me: &Attachment, index: u32) -> Result<(), Corrupted> {
    let row = me.table().row(index).ok_or(NO_ROW)?;
    match WaitState::from_bits(row.state.load(SeqCst)).code() {
        Some(Code::Parked) => nudge(me, index),
        _ => Ok(()),
    }
}

/// From `now` on, sleeps until `own` changes and somebody wakes it, or the watched
/// thread dies (if there is one), or one of the limits is reached. May end early.
///
/// While it sleeps the kernel knows whom it watches: if this thread is killed
/// after it was the one to be told of a death, the next one is told.
pub(super) fn sleep(
    me: &Attachment,
    now: Deadline,
    own: Expect,
    watched: Option<Watched>,
    limits: Limits,
) -> Result<Slept, Corrupted> {
    let table = me.table();
    let Limits { deadline, cancelled, interruptible, check_at, .. } = limits;
    let life = watched.map(|watched| watched.life(table)).transpose()?;
    let heartbeat = now.plus(Watched::heartbeat(watched.as_ref()));
    let first = [deadline, heartbeat, check_at].into_iter().flatten().min();
    let until = first.ok_or(Corrupted("the clock has run out"))?;
    let token = cancelled.filter(|_| !active(Fault::LostCancel)).map(Ticket::word);
    let (mut words, mut len) = ([own; MAX_WORDS], 1);
    for word in [life, token].into_iter().flatten() {
        words[len] = word;
        len += 1;
    }
    let words = &words[..len];
    let slept = loop {
        // In every round, because a robust pthread mutex that is used in a
        // signal handler clears it.
        if !active(Fault::NoRelay) && !active(Fault::NoPending) {
            me.publish_watch(life);
        }
        me.counters().sleeps.add_one();
        match futex::wait(words, until, interruptible && !active(Fault::Deaf)) {
            Ok(Woken::Look) => break Ok(Slept::Look),
            // EINTR: the place in the queue is kept, the deadline stands.
            Ok(Woken::Signal) => {
                me.counters().interruptions.add_one();
                if interruptible {
                    break Ok(Slept::Interrupted);
                }
            }
            Ok(Woken::Poll) => {}
            Ok(Woken::TimedOut) if deadline == Some(until) => break Ok(Slept::TimedOut),
            Ok(Woken::TimedOut) => {
                if let Some(Watched { index, life, .. }) = watched {
                    consult_witness(me.mapping(), index, life);
                }
                break Ok(Slept::Heartbeat);
            }
            Err(rustix::io::Errno::FAULT) => break Err(Corrupted("its file was truncated")),
            // No memory in the kernel for the moment, or something that it was
            // not known to say: look, and try again.
            Err(_) => {
                std::thread::sleep(Duration::from_millis(1));
                break Ok(Slept::Look);
            }
        }
    };
    if let (Some(Watched { index, .. }), Some((word, life))) = (watched, life)
        && word.load(SeqCst) != life
    {
        // Before the kernel forgets that we watch.
        table.relay(index);
    }
    me.publish_watch(None);
    slept
}

/// Sleeps as a waiter in a queue, unless there is something to look at.
pub(super) fn park(
    me: &Attachment,
    waiting: WaitState,
    watched: Option<Watched>,
    limits: Limits,
) -> Result<Slept, Corrupted> {
    let slept = if fall_silent(me.row(), waiting) {
        let now = Deadline::now();
        fall_asleep(me.row(), now);
        sleep(me, now, silent(me.row(), waiting), watched, limits)
    } else {
        Ok(Slept::Look)
    };
    rearm(me.row(), waiting);
    slept
}

/// Says that the row's user is not about to look: whoever changes something owes it a
/// wake. `false` if there is something to look at.
pub(super) fn fall_silent(row: &Row, waiting: WaitState) -> bool {
    let parked = waiting.with(Code::Parked).bits();
    row.state.compare_exchange(waiting.bits(), parked, SeqCst, SeqCst).is_ok()
}

/// What the row's state is as long as there is nothing to look at.
pub(super) fn silent(row: &Row, waiting: WaitState) -> Expect<'_> {
    (&row.state, waiting.with(Code::Parked).bits())
}

/// Notes since when the row's thread sleeps in its wait, if it has not slept in it
/// before. Nothing that the lock does depends on it, so loom is not to know.
fn fall_asleep(row: &Row, now: Deadline) {
    // Release: whoever looks for deadlocks and sees it sees which wait it is of. It is
    // the thread's own, so Relaxed will do to look at it.
    if !cfg!(heirlock_loom) && row.asleep.load(Relaxed) == 0 {
        row.asleep.store(now.as_nanos(), Release);
    }
}

/// A thread that is asleep sleeps for another reason from now on.
pub(super) fn sleep_anew(row: &Row) {
    if !cfg!(heirlock_loom) && row.asleep.load(Relaxed) != 0 {
        row.asleep.store(Deadline::now().as_nanos(), Release);
    }
}

/// What may end the wait that the row's thread is about to begin: not for loom either.
pub(super) fn set_terms(row: &Row, terms: u32) {
    if !cfg!(heirlock_loom) {
        // Relaxed: the doorway publishes it.
        row.terms.store(terms, Relaxed);
    }
}

/// Says that the row's thread is no longer in a wait. Before it does anything else to
/// a lock: see `cycle`.
pub(super) fn wake_up(row: &Row) {
    if !cfg!(heirlock_loom) {
        row.asleep.store(0, Release);
    }
}

/// From Parked or Nudged back to Waiting: the waiter looks again now, and what
/// changes from here on changes the state. Granted stays.
pub(super) fn rearm(row: &Row, waiting: WaitState) {
    let granted = waiting.with(Code::Granted).bits();
    let again = |now| (now != granted).then_some(waiting.bits());
    let _ = row.state.update(again);
}

/// Has every owner that has not released yet see that somebody waits, be it that
/// it releases without a fence. `false` where that cannot be had.
pub(super) fn fence_owners(me: &Attachment) -> bool {
    me.counters().barriers.add_one();
    active(Fault::NoBarrier) || membarrier::heavy()
}

/// Has the waiter in row `index` look again. A nudge that meets a later wait of
/// the row, or none, does no harm.
pub(super) fn nudge(me: &Attachment, index: u32) -> Result<(), Corrupted> {
    let row = me.table().row(index).ok_or(NO_ROW)?;
    if active(Fault::NoNudge) {
        return Ok(());
    }
    // Also if it is nudged already: whoever reads this sees what there is to see.
    let (Ok(was) | Err(was)) = row.state.update(|bits| {
        let state = WaitState::from_bits(bits);
        matches!(state.code(), Some(Code::Waiting | Code::Parked | Code::Nudged))
            .then_some(state.with(Code::Nudged).bits())
    });
    if may_sleep(was) {
        wake(me, Some(index));
    }
    Ok(())
}

/// The same, but for a waiter that was nudged already: whoever did that wakes
/// it, or has been killed before it could, and then the waiter looks in a while.
pub(super) fn nudge_unless_nudged(me: &Attachment, index: u32) -> Result<(), Corrupted> {
    let row = me.table().row(index).ok_or(NO_ROW)?;
    match WaitState::from_bits(row.state.load(SeqCst)).code() {
        Some(Code::Nudged) => Ok(()),
        _ => nudge(me, index),
    }
}

/// Whether a waiter whose state was `was` may be asleep. If it was nudged
/// already, whoever did that may have been killed before it could wake.
fn may_sleep(was: u32) -> bool {
    matches!(WaitState::from_bits(was).code(), Some(Code::Parked | Code::Nudged))
}

/// Tells the waiter in row `index` that it was served, if it is still in the
/// wait `asked`: a late word must not reach a later wait. Whether it may be
/// asleep, and has to be woken.
pub(super) fn tell_granted(row: &Row, asked: WaitState) -> bool {
    let granted = row.state.update(|bits| {
        let state = WaitState::from_bits(bits);
        (state.same_round(asked) && state.code() != Some(Code::Granted))
            .then_some(state.with(Code::Granted).bits())
    });
    granted.is_ok_and(may_sleep) && !active(Fault::NoWake)
}

/// Wakes the waiter in this row, if there is one to be woken.
pub(super) fn wake(me: &Attachment, asleep: Option<u32>) {
    if let Some(row) = asleep.and_then(|index| me.table().row(index)) {
        me.counters().wakes.add_one();
        futex::wake_all(&row.state);
    }
}
