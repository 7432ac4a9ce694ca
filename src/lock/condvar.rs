//! The algorithm of the condition variable: wait, notify, give up, recover.
//!
//! A condition variable has the words of a lock and a queue like one, of waiters
//! that are linked by the same fields of their rows. To notify one is to move it
//! from this queue to that of its mutex, where it waits its turn like anybody else.
//! Nobody wakes up to compete for a mutex that he cannot have yet.
//!
//! # Who sleeps how
//!
//! A waiter sleeps on its own state and watches the one in front, here as there. So
//! who is moved right behind the one that was in front of it already watches whom it
//! has to, and sleeps on. Only who comes to stand behind another one (of many that
//! are notified at once: the first) has to wake up and look.
//!
//! # Who is killed when
//!
//! Everything here but the look at an empty queue is done under the queue's guard;
//! to queue, too. Whoever takes the guard over from a dead thread finishes what that
//! one began ([`RawCondvar::repair`]), before it does anything else. To have it
//! taken over, whoever moves a waiter wakes it *first*: a waiter that was woken gets
//! the guard before it sleeps again, and notices the death of who has it there.
//!
//! | killed | what follows |
//! |---|---|
//! | a notifier before its store to a waiter's `stage` | nobody was notified; the waiter that it woke takes the guard over, and sleeps again |
//! | a notifier behind it | that waiter takes the guard over and moves itself; if all were to be notified, all others too |
//! | a waiter, not notified | it is stepped over |
//! | a waiter that was notified alone, before it had the mutex | its notification passes to the next waiter: the head of the queue watches who was notified last, and who takes another out of the mutex's queue, or takes over its lock, has somebody in this one look; where that one is killed, too, the head looks by itself within a second |
//! | a waiter that has the mutex | the mutex is inherited |
//!
//! If both a notified waiter and who passes its notification on are killed, two
//! waiters may get it. If a notified waiter is killed when nobody waits, and it was not the
//! last to be notified, who waits later may get it. In no other case is a waiter woken
//! that nobody notified.
#![allow(unsafe_code)]

use super::queue::{Oldest, QueueGuard, Unlinked};
use super::raw::{Failed, RawMutex, enter};
use super::wait::{self, Detect, Limits, Slept, Watched};
use super::word::{Code, LockWords, Policy, Stage, WaitState};
use crate::memory::error::Corrupted;
use crate::participant::attach::Attachment;
use crate::participant::id::Id;
use crate::participant::life::Fate;
use crate::participant::table::{Row, Table};
use crate::sys::atomic::Ordering::{Relaxed, Release, SeqCst};
use crate::sys::clock;
use crate::sys::fault::{Fault, active};
use zerocopy::FromBytes;

const NO_ROW: Corrupted = Corrupted("a waiter for a condition variable has no row");
const NO_MUTEX: Corrupted = Corrupted("a waiter for a condition variable will return to no mutex");

const NOBODY_TELLS: Corrupted = Corrupted("all are to be notified, and nobody does it");

/// A condition variable: 16 bytes, of which all zero means that nobody waits.
///
/// | word | value | set by |
/// |---|---|---|
/// | `owner` | what is being told: see [`News`] | who holds the guard; a notified waiter, back to 0 |
/// | `tail`, `head`, `guard` | as a lock's, but who enqueues holds the guard, too | |
#[derive(FromBytes, Debug)]
#[repr(transparent)]
pub(crate) struct RawCondvar(LockWords);

/// The `owner` word of a condition variable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum News {
    Nothing,
    /// Everybody in the queue is to be notified.
    All,
    /// Who was notified last, alone, and has not returned since: the head watches it.
    Last(Id),
}

const ALL: u64 = u64::MAX;

impl News {
    const fn from_bits(bits: u64) -> Self {
        match bits {
            0 => Self::Nothing,
            ALL => Self::All,
            id => Self::Last(Id::from_bits(id)),
        }
    }

    const fn bits(self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::All => ALL,
            Self::Last(id) => id.bits(),
        }
    }
}

/// How a wait ended, with the mutex acquired again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Notified,
    TimedOut,
    Cancelled,
    Interrupted,
}

/// Why a wait failed.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Others wait to return to another mutex. The mutex is still the caller's.
    OtherMutex,
    /// The caller waits for the mutex itself, in a row on lease: it would be handed that,
    /// and sleep. The mutex is still the caller's.
    WouldDeadlock,
    /// The mutex is still the caller's.
    Corrupted(Corrupted),
    /// The mutex is not the caller's any more.
    Lost(Failed),
}

/// What a waiter found when it looked.
enum Look {
    Notified,
    Again,
    Watch(Option<Watched>),
}

impl RawCondvar {
    pub(crate) const fn new() -> Self {
        Self(LockWords::new(Policy::Fifo))
    }

    pub(crate) fn words(&self) -> &LockWords {
        &self.0
    }

    /// Whether somebody may wait.
    pub(crate) fn has_queue(&self) -> bool {
        self.0.tail.load(SeqCst) != 0
    }

    /// Releases `mutex`, which the caller acquired as `hasty` says, waits until it is
    /// notified or one of the limits is reached, and acquires the mutex again.
    /// How it ended, and whether the mutex was acquired on the fast path.
    pub(crate) fn wait(
        &self,
        me: &Attachment,
        mutex: &RawMutex,
        hasty: bool,
        limits: Limits,
    ) -> Result<(Outcome, bool), Refused> {
        if me.is_broken() {
            let what = "the thread met that in an earlier operation";
            return Err(Refused::Corrupted(Corrupted(what)));
        }
        if mutex.is_awaited_by_caller(me).map_err(Refused::Corrupted)? {
            return Err(Refused::WouldDeadlock);
        }
        let row = me.row();
        // Published by the guard's taking, and the doorway. Release, the first one, as in
        // `RawMutex::enqueue`.
        row.lock.store(mutex.words().name_in(me.mapping()), Release);
        row.condvar.store(self.0.name_in(me.mapping()), Relaxed);
        let waiting = self.begin(me, mutex, hasty).inspect_err(|refused| {
            if !matches!(refused, Refused::Lost(_)) {
                self.end(me);
            }
        })?;
        let lost = |failed| {
            wait::wake_up(row);
            me.mark_broken();
            Refused::Lost(failed)
        };
        let outcome =
            self.wait_for_news(me, waiting, limits).map_err(|corrupted| lost(corrupted.into()))?;
        let hasty = if outcome == Outcome::Notified {
            let policy = mutex.words().policy();
            mutex.wait_turn(me, waiting, policy, Limits::default(), None).map_err(lost)?;
            me.count_acquired();
            self.end(me);
            false
        } else {
            self.end(me);
            // Not as the victim of a deadlock: the caller has a guard.
            let limits = Limits { detect: Detect::Never, ..Limits::default() };
            mutex.lock(me, limits).map_err(Refused::Lost)?
        };
        Ok((outcome, hasty))
    }

    /// Queues, and then releases the mutex. Under the guard, so that nobody is
    /// notified who still owns it.
    fn begin(&self, me: &Attachment, mutex: &RawMutex, hasty: bool) -> Result<WaitState, Refused> {
        let row = me.row();
        let index = me.id().index();
        let guard = self.edit(me).map_err(Refused::Corrupted)?;
        if active(Fault::LateToQueue) {
            let _ = mutex.unlock(me, hasty);
        }
        match oldest(me, &guard).map_err(Refused::Corrupted)? {
            Some(oldest) if !self.returns_to(me, oldest.index, mutex) => {
                return Err(Refused::OtherMutex);
            }
            Some(_) => {}
            None => self.forget_the_dead(me),
        }
        row.waiting_as.store(me.id().bits(), Relaxed);
        // Once it is notified nothing ends its wait but the mutex.
        wait::set_terms(row, 0);
        let waiting = WaitState::from_bits(row.state.load(Relaxed)).next_round();
        row.state.store(waiting.bits(), Relaxed);
        Stage::Queued.set(row);
        let released = enter(&self.0, row, index, |_| Ok(())).and_then(|()| {
            if active(Fault::LateToQueue) {
                return Ok(());
            }
            mutex.unlock(me, hasty).inspect_err(|_| {
                // Whatever that was, nobody shall wait behind this thread.
                let _ = guard.unlink(index);
            })
        });
        released.map(|()| waiting).map_err(|corrupted| {
            me.mark_broken();
            Refused::Lost(corrupted.into())
        })
    }

    /// Whether the waiter in row `index` will return to `mutex`.
    fn returns_to(&self, me: &Attachment, index: u32, mutex: &RawMutex) -> bool {
        let name = mutex.words().name_in(me.mapping());
        me.table().row(index).is_some_and(|row| row.lock.load(Relaxed) == name)
    }

    /// Nobody waits: who was notified last, and died, did so when there was nobody to be
    /// notified in its stead.
    fn forget_the_dead(&self, me: &Attachment) {
        let last = News::from_bits(self.0.owner.load(SeqCst));
        if let News::Last(id) = last
            && let Some(row) = me.table().row(id.index())
            && waiter(row) == id
            && self.stage_of(me, row) == Stage::One
            && !is_alive(me.table(), row)
        {
            Stage::None.set(row);
            self.0.owner.store(0, SeqCst);
        }
    }

    /// Out of the queue, and not to be found in it any more.
    fn end(&self, me: &Attachment) {
        let row = me.row();
        wait::wake_up(row);
        Stage::None.set(row);
        // Nobody need watch this thread for its notification.
        let last = News::Last(me.id()).bits();
        let _ = self.0.owner.compare_exchange(last, 0, SeqCst, Relaxed);
        // Release, both: whoever finds 0 finds this row out of the queues.
        row.condvar.store(0, Release);
        row.lock.store(0, Release);
    }

    /// Waits until it is notified, and for certain in the queue of its mutex, or out
    /// of both queues.
    fn wait_for_news(
        &self,
        me: &Attachment,
        waiting: WaitState,
        limits: Limits,
    ) -> Result<Outcome, Corrupted> {
        loop {
            let watched = match self.look(me, waiting)? {
                Look::Notified => return Ok(Outcome::Notified),
                Look::Again => continue,
                Look::Watch(watched) => watched,
            };
            let ended = if limits.is_cancelled() {
                Outcome::Cancelled
            } else if limits.are_over() {
                Outcome::TimedOut
            } else {
                match wait::park(me, waiting, watched, limits) {
                    Ok(slept @ (Slept::Look | Slept::Heartbeat)) => {
                        // One who looks by itself is enough: the head.
                        let head = me.row().prev.load(SeqCst) == 0;
                        if !self.has_news(me, waiting, head || slept == Slept::Look)? {
                            continue;
                        }
                        Outcome::Notified
                    }
                    Ok(Slept::TimedOut) => Outcome::TimedOut,
                    Ok(Slept::Interrupted) => Outcome::Interrupted,
                    Err(corrupted) => {
                        self.give_up(me)?;
                        return Err(corrupted);
                    }
                }
            };
            let gave_up = ended != Outcome::Notified && self.give_up(me)?;
            return Ok(if gave_up { ended } else { Outcome::Notified });
        }
    }

    fn look(&self, me: &Attachment, waiting: WaitState) -> Result<Look, Corrupted> {
        let row = me.row();
        if Stage::of(row) != Stage::Queued {
            self.has_news(me, waiting, true)?;
            return Ok(Look::Notified);
        }
        let table = me.table();
        match row.prev.load(SeqCst) {
            0 => {
                let news = News::from_bits(self.0.owner.load(SeqCst));
                // Or else it was moved meanwhile, and nobody is in front of it there.
                if Stage::of(row) != Stage::Queued {
                    return Ok(Look::Again);
                }
                let id = match news {
                    News::Nothing => return Ok(Look::Watch(None)),
                    News::Last(id) => id,
                    // It is about to be moved behind another one, and is not told,
                    // because it would watch that one if it had been asleep.
                    News::All => {
                        let _guard = self.edit(me)?;
                        return match News::from_bits(self.0.owner.load(SeqCst)) {
                            News::All => Err(NOBODY_TELLS),
                            _ => Ok(Look::Again),
                        };
                    }
                };
                match table.fate(id) {
                    Fate::Alive(life) => {
                        let index = id.index();
                        Ok(Look::Watch(Some(Watched { index, life, hasty: false, lossy: false })))
                    }
                    Fate::Dead | Fate::NoSuchRow => {
                        table.relay(id.index());
                        self.has_news(me, waiting, true)?;
                        let _ = self.0.owner.compare_exchange(id.bits(), 0, SeqCst, Relaxed);
                        Ok(Look::Again)
                    }
                }
            }
            predecessor => {
                let life = table.life(predecessor).ok_or(Corrupted("a predecessor has no row"))?;
                let life = life.load(SeqCst);
                if table.is_dead(predecessor, life) {
                    table.relay(predecessor);
                    let guard = self.edit(me)?;
                    if Stage::of(row) == Stage::Queued {
                        guard.splice_predecessor_of(me.id().index())?;
                    }
                    return Ok(Look::Again);
                }
                if row.prev.load(SeqCst) != predecessor {
                    return Ok(Look::Again);
                }
                let index = predecessor;
                Ok(Look::Watch(Some(Watched { index, life, hasty: false, lossy: false })))
            }
        }
    }

    /// Whether it was notified, and then it is in the queue of its mutex, or was.
    ///
    /// A waiter that was woken comes here before it sleeps again, and gets the guard:
    /// so if it was woken to be notified, whoever does that has done it, or is dead,
    /// and then it is done here. With `of_others` what the dead have left is passed on.
    fn has_news(
        &self,
        me: &Attachment,
        waiting: WaitState,
        of_others: bool,
    ) -> Result<bool, Corrupted> {
        let row = me.row();
        if row.state.load(SeqCst) == waiting.with(Code::Granted).bits() {
            return Ok(true);
        }
        if !active(Fault::NoLookAtGuard) {
            let guard = self.edit(me)?;
            if Stage::of(row) == Stage::Queued && of_others {
                self.pass_on(me, &guard)?;
            }
        }
        Ok(Stage::of(row) != Stage::Queued)
    }

    /// Out of the queue; `false` if it was notified before.
    fn give_up(&self, me: &Attachment) -> Result<bool, Corrupted> {
        let guard = self.edit(me)?;
        if Stage::of(me.row()) != Stage::Queued {
            return Ok(false);
        }
        take_out(me, &guard, me.id().index())?;
        Stage::None.set(me.row());
        Ok(true)
    }

    /// Notifies the oldest living waiter, if there is one: whether there was.
    pub(crate) fn notify_one(&self, me: &Attachment) -> Result<bool, Corrupted> {
        let moved = self
            .notifying(me, |guard| self.transfer(me, guard, Stage::One, Neighbours::default()))?;
        Ok(moved.is_some())
    }

    /// Notifies all living waiters: how many there were.
    pub(crate) fn notify_all(&self, me: &Attachment) -> Result<usize, Corrupted> {
        self.notifying(me, |guard| {
            let Some(oldest) = oldest(me, guard)? else { return Ok(0) };
            // Who is to finish this if this thread cannot.
            self.rouse(me, oldest.index)?;
            self.0.owner.store(News::All.bits(), SeqCst);
            self.transfer_all(me, guard, oldest.index)
        })
    }

    /// Edits the queue as somebody who does not wait in it.
    fn notifying<R>(
        &self,
        me: &Attachment,
        edit: impl FnOnce(&QueueGuard) -> Result<R, Corrupted>,
    ) -> Result<R, Corrupted> {
        if me.is_broken() {
            return Err(Corrupted("the thread met that in an earlier operation"));
        }
        let condvar = &me.row().condvar;
        // Relaxed: taking the guard publishes it. Release: the edit is done.
        condvar.store(self.0.name_in(me.mapping()), Relaxed);
        let result = edit(&self.edit(me)?);
        condvar.store(0, Release);
        result
    }

    /// Has a waiter look that is about to be notified.
    fn rouse(&self, me: &Attachment, index: u32) -> Result<(), Corrupted> {
        if active(Fault::NoNudgeOnNotify) { Ok(()) } else { wait::nudge(me, index) }
    }

    /// Moves everybody to the queue of their mutex: how many that were. Row `awake`
    /// need not be woken.
    fn transfer_all(
        &self,
        me: &Attachment,
        guard: &QueueGuard,
        awake: u32,
    ) -> Result<usize, Corrupted> {
        let mut moved = 0;
        let mut neighbours = Neighbours { awake, in_front: 0 };
        while let Some(index) = self.transfer(me, guard, Stage::All, neighbours)? {
            moved += 1;
            neighbours.in_front = index;
        }
        self.0.owner.store(0, SeqCst);
        Ok(moved)
    }

    /// Moves the oldest living waiter to the queue of its mutex: its row.
    fn transfer(
        &self,
        me: &Attachment,
        guard: &QueueGuard,
        stage: Stage,
        neighbours: Neighbours,
    ) -> Result<Option<u32>, Corrupted> {
        let Some(oldest) = oldest(me, guard)? else { return Ok(None) };
        let index = oldest.index;
        let row = me.table().row(index).ok_or(NO_ROW)?;
        // SAFETY: it is in this queue, so inside its wait, which it cannot end before
        // it gets the guard, or the mutex that is referred to here.
        let mutex = unsafe { LockWords::of_waiter(me.mapping(), row.lock.load(Relaxed)) };
        let mutex = mutex.ok_or(NO_MUTEX)?;
        let mut awake = neighbours.awake == index;
        // How long a waiter sleeps depends on the policy.
        let may_sleep_on = mutex.policy() == Policy::Fifo;
        let mut rouse = |tail: u32| {
            // Whom it watches asleep it may go on to watch.
            if awake || tail == neighbours.in_front && tail != 0 && may_sleep_on {
                return Ok(());
            }
            awake = true;
            self.rouse(me, index)
        };
        rouse(mutex.tail.load(SeqCst))?;
        guard.transfer_head(index, || {
            stage.set(row);
            if stage == Stage::One {
                self.0.owner.store(News::Last(oldest.id).bits(), SeqCst);
            }
            admit(mutex, row, index, rouse)
        })?;
        Ok(Some(index))
    }

    /// Passes the notifications on that dead waiters have left.
    fn pass_on(&self, me: &Attachment, guard: &QueueGuard) -> Result<(), Corrupted> {
        if active(Fault::NoPassingOn) {
            return Ok(());
        }
        let table = me.table();
        for index in 1..=me.mapping().rows() {
            let row = table.row(index).ok_or(NO_ROW)?;
            if self.stage_of(me, row) == Stage::One && !is_alive(table, row) {
                self.transfer(me, guard, Stage::One, Neighbours::default())?;
                Stage::None.set(row);
            }
        }
        Ok(())
    }

    /// How far the wait of a row's user for this condition variable has come.
    fn stage_of(&self, me: &Attachment, row: &Row) -> Stage {
        let here = row.condvar.load(SeqCst) == self.0.name_in(me.mapping());
        if here { Stage::of(row) } else { Stage::None }
    }

    /// Takes the guard, and finishes what a dead one began who had it.
    fn edit<'a>(&'a self, me: &'a Attachment) -> Result<QueueGuard<'a>, Corrupted> {
        let guard = QueueGuard::take(&self.0, me)?;
        if guard.is_inherited() && !active(Fault::NoRepair) {
            self.repair(me, &guard)?;
        }
        Ok(guard)
    }

    /// The last editor was killed in the middle. What it can have begun: to move the
    /// head, which then is no member of this queue any more but still in front of
    /// one; and to notify all.
    fn repair(&self, me: &Attachment, guard: &QueueGuard) -> Result<(), Corrupted> {
        let is_member = |row: &Row| self.stage_of(me, row) == Stage::Queued;
        if let Some((index, behind)) = guard.former_head(is_member)? {
            self.finish_transfer(me, index)?;
            guard.begin_with(behind, index)?;
        }
        if News::from_bits(self.0.owner.load(SeqCst)) == News::All {
            self.transfer_all(me, guard, 0)?;
        }
        Ok(())
    }

    /// Row `index` was to be moved to the queue of its mutex: puts it there if it is
    /// not.
    fn finish_transfer(&self, me: &Attachment, index: u32) -> Result<(), Corrupted> {
        let row = me.table().row(index).ok_or(NO_ROW)?;
        let notified = |row| self.stage_of(me, row).is_notified();
        // A dead one is not needed there.
        if !notified(row) || !is_alive(me.table(), row) {
            return Ok(());
        }
        // SAFETY: in private memory an editor is only killed with all of the process
        // (or is missing in a forked child, where all those are dead who waited).
        let mutex = unsafe { LockWords::of_waiter(me.mapping(), row.lock.load(Relaxed)) };
        let mutex = mutex.ok_or(NO_MUTEX)?;
        // As `RawMutex::editing` does with `lock`, which stays here: it may be another one,
        // and this thread, or the dead one whose row it has, in that one's queue. Relaxed:
        // taking the guard publishes it. Release: the edit is done.
        let edits = &me.row().edits;
        edits.store(mutex.name_in(me.mapping()), Relaxed);
        let guard = QueueGuard::take(mutex, me)?;
        // It cannot act for itself before it has the guard of the condition variable,
        // which this thread has: if it was put there, it is still queued, or it owns
        // the mutex, or had it and has ended its wait before it released it. In this
        // order.
        let there = guard.contains(index)?
            || Id::from_bits(mutex.owner.load(SeqCst)).plain() == waiter(row)
            || !notified(row);
        if !there {
            self.rouse(me, index)?;
            admit(mutex, row, index, |_| Ok(()))?;
        }
        drop(guard);
        edits.store(0, Release);
        Ok(())
    }
}

/// What matters of where a waiter comes to stand.
#[derive(Clone, Copy, Default)]
struct Neighbours {
    /// The row of a waiter that was woken already; 0 for none.
    awake: u32,
    /// The row that was in front of it in this queue, until it was moved, too; 0 for
    /// none.
    in_front: u32,
}

/// Puts a waiter into the queue of its mutex.
fn admit(
    mutex: &LockWords,
    row: &Row,
    index: u32,
    before: impl FnMut(u32) -> Result<(), Corrupted>,
) -> Result<(), Corrupted> {
    if mutex.policy() == Policy::Throughput {
        // Relaxed: published by the doorway.
        row.since.store(clock::ticks(), Relaxed);
    }
    wait::sleep_anew(row);
    enter(mutex, row, index, before)
}

/// The oldest living waiter; the dead in front of it are taken out, also those whose
/// rows have new users, who have yet to clear up.
fn oldest(me: &Attachment, guard: &QueueGuard) -> Result<Option<Oldest>, Corrupted> {
    for _ in 0..=me.mapping().rows() {
        let oldest = guard.oldest()?;
        match oldest {
            Some(Oldest { index, id, .. }) if !matches!(me.table().fate(id), Fate::Alive(_)) => {
                take_out(me, guard, index)?;
            }
            _ => return Ok(oldest),
        }
    }
    Err(Corrupted("the dead in front of a queue are more than there are rows"))
}

/// Takes row `index` out of the queue, if it is there, and has who is behind it look.
fn take_out(me: &Attachment, guard: &QueueGuard, index: u32) -> Result<(), Corrupted> {
    match guard.unlink(index)? {
        Unlinked::Before(successor) => wait::nudge(me, successor),
        Unlinked::Last | Unlinked::NotThere => Ok(()),
    }
}

/// Under which id the user of a row waits, or waited last.
fn waiter(row: &Row) -> Id {
    Id::from_bits(row.waiting_as.load(SeqCst))
}

/// Whether who waits, or waited, by a row is alive: not who re-uses the row.
fn is_alive(table: Table, row: &Row) -> bool {
    matches!(table.fate(waiter(row)), Fate::Alive(_))
}

/// Takes the dead former user of `me`'s row out of the queue of a condition variable,
/// where it may be a member, and may hold the guard; its notification passes on.
pub(super) fn reclaim(words: &LockWords, me: &Attachment) -> Result<(), Corrupted> {
    // SAFETY: the one is a transparent wrapper of the other.
    let condvar = unsafe { &*core::ptr::from_ref(words).cast::<RawCondvar>() };
    let guard = condvar.edit(me)?;
    match Stage::of(me.row()) {
        Stage::Queued => take_out(me, &guard, me.id().index())?,
        Stage::One => {
            condvar.transfer(me, &guard, Stage::One, Neighbours::default())?;
        }
        Stage::None | Stage::All => {}
    }
    // While nobody else can find that there is something to be passed on.
    Stage::None.set(me.row());
    Ok(())
}

#[cfg(all(test, not(heirlock_loom)))]
#[path = "condvar_tests.rs"]
mod tests;
