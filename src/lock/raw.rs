//! The algorithm: lock, try, give up, unlock, recover.
//!
//! The model in `tests/model` has a step for each access to shared memory
//! here, under the names of these functions. Only of `asleep` and `terms` it knows
//! nothing: no step here depends on them (see `cycle`).

use super::condvar;
use super::cycle::{self, Cycle};
use super::queue::{self, Oldest, QueueGuard, Unlinked};
use super::spin;
use super::wait::{self, Detect, Limits, Slept, Watched};
use super::word::{CHECKS, Code, ENDS_BY_ITSELF, LockWords, Policy, WaitState};
use crate::memory::error::Corrupted;
use crate::memory::map::FileIdentity;
use crate::participant::attach::{AttachError, Attachment, Inheritance};
use crate::participant::id::Id;
use crate::participant::lease;
use crate::participant::life::Fate;
use crate::participant::table::Row;
use crate::sys::atomic::Ordering::{self, Relaxed, Release, SeqCst};
use crate::sys::clock::{self, Deadline};
use crate::sys::fault::{Fault, active};
use crate::sys::membarrier;
use std::time::Duration;
use zerocopy::FromBytes;

/// A lock without data: 16 bytes, of which all zero means unlocked.
#[derive(FromBytes, Debug)]
#[repr(transparent)]
pub(crate) struct RawMutex(LockWords);

/// Why a lock was not acquired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    TimedOut,
    Cancelled,
    /// A signal handler ran.
    Interrupted,
    /// The calling thread holds it.
    OwnedByCaller,
    /// The wait was a part of this, and was chosen to end.
    Deadlock(Box<Cycle>),
    Corrupted(Corrupted),
}

impl From<Corrupted> for Failed {
    fn from(corrupted: Corrupted) -> Self {
        Self::Corrupted(corrupted)
    }
}

/// The order of the store that hands a lock over. Release: the data. Not SeqCst, as
/// there is no look behind it that must not come before it; and whoever looks after
/// a later SeqCst store to `owner` sees that one, or what follows. loom would let
/// it see this one still (see `sys/simulated/atomic.rs`).
const HAND_OVER: Ordering = if cfg!(heirlock_loom) { SeqCst } else { Release };

/// How a fast path ended.
pub(crate) enum Fast {
    Done,
    /// Nothing has happened: go the slow way.
    Slow,
    /// Done, and then it turned out that somebody has queued meanwhile, who has
    /// to be told.
    Late,
}

/// What a waiter found when it looked.
enum Look {
    /// The lock is handed over, and the waiter out of the queue.
    Served,
    /// The lock is this thread's.
    Mine,
    Again,
    Watch(Watched),
}

impl RawMutex {
    pub(crate) const fn new(policy: Policy) -> Self {
        Self(LockWords::new(policy))
    }

    pub(crate) fn words(&self) -> &LockWords {
        &self.0
    }

    /// The owner, or nobody. Out of date as soon as it is known.
    pub(crate) fn owner(&self) -> Id {
        Id::from_bits(self.0.owner.load(Relaxed))
    }

    /// Whether nobody owns it. Out of date as soon as it is known.
    fn is_free(&self) -> bool {
        self.0.owner.load(Relaxed) == 0
    }

    /// Whether somebody waits, dead or alive.
    pub(crate) fn has_queue(&self) -> bool {
        self.0.tail.load(SeqCst) != 0
    }

    /// Waits its turn and takes the lock; gives up at the first of the limits.
    /// Whether it was acquired on the fast path, for [`Self::unlock_fast`].
    pub(crate) fn lock(&self, me: &Attachment, limits: Limits) -> Result<bool, Failed> {
        match self.lock_fast(me) {
            Fast::Done => return Ok(true),
            Fast::Slow => self.lock_slow(me, limits)?,
            Fast::Late => self.settle_barge(me)?,
        }
        Ok(false)
    }

    /// Takes the lock if nobody has it and nobody living waits for it, or the policy
    /// lets it pass by those who do. Whether it was acquired on the fast path.
    pub(crate) fn try_lock(&self, me: &Attachment) -> Result<bool, Failed> {
        match self.lock_fast(me) {
            Fast::Done => return Ok(true),
            Fast::Slow => self.try_lock_slow(me)?,
            Fast::Late => self.settle_barge(me)?,
        }
        Ok(false)
    }

    /// The doorway of the fast path is the look at the empty queue.
    #[inline(always)]
    pub(crate) fn lock_fast(&self, me: &Attachment) -> Fast {
        let LockWords { owner, tail, .. } = &self.0;
        if tail.load(SeqCst) != 0 && !active(Fault::Barging) {
            return Fast::Slow;
        }
        // Relaxed on failure: the slow path looks again.
        if owner.compare_exchange(0, me.owner_as().bits(), SeqCst, Relaxed).is_err() {
            return Fast::Slow;
        }
        me.count_acquired();
        if tail.load(SeqCst) != 0 && !active(Fault::NoSettle) { Fast::Late } else { Fast::Done }
    }

    /// Somebody queued between the look at the queue and the acquisition. It
    /// may watch the former owner: have it watch this one, lest this one's
    /// death be overlooked.
    #[cold]
    pub(crate) fn settle_barge(&self, me: &Attachment) -> Result<(), Corrupted> {
        self.editing(me, |guard| {
            if let Some(oldest) = guard.oldest()? {
                wait::nudge(me, oldest.index)?;
            }
            Ok(())
        })
    }

    #[cold]
    fn try_lock_slow(&self, me: &Attachment) -> Result<(), Failed> {
        let owner = Id::from_bits(self.0.owner.load(SeqCst));
        let owned = !owner.is_nobody() && me.table().fate(owner) != Fate::Dead;
        if owned {
            return Err(Failed::TimedOut);
        }
        if self.0.policy() == Policy::Throughput && self.barge(me)? {
            return Ok(());
        }
        if queue::has_living_waiter(&self.0, me.table()) {
            return Err(Failed::TimedOut);
        }
        // Free, or a dead thread's, and nobody waits but perhaps the dead:
        // take a place in the queue, and leave it if it is not the first.
        self.lock_slow(me, Limits::over())
    }

    #[cold]
    pub(crate) fn lock_slow(&self, me: &Attachment, limits: Limits) -> Result<(), Failed> {
        if me.is_broken() {
            return Err(Corrupted("the thread met that in an earlier operation").into());
        }
        let policy = self.0.policy();
        // Looks also where it does not spin: with one processor, that is.
        let comes_free = || self.is_free() || spin::spin(|| self.is_free());
        if policy == Policy::Throughput && comes_free() && self.barge(me)? {
            return Ok(());
        }
        // In this order: who is in the queue becomes the owner, and not the other way round.
        if !limits.end_it() && self.is_awaited_by_caller(me)? || self.is_owned_by_caller(me) {
            return Err(Failed::OwnedByCaller);
        }
        me.look_who_fences();
        let check = check_after(me, &limits);
        let ends = if limits.end_it() { ENDS_BY_ITSELF } else { 0 };
        let terms = ends | if check.is_some() { CHECKS } else { 0 };
        let waiting = self.enqueue(me, policy, terms)?;
        let result = self.wait_turn(me, waiting, policy, limits, check);
        wait::wake_up(me.row());
        if let Err(Failed::Corrupted(_)) = result {
            me.mark_broken();
        } else {
            // Release: whoever finds 0 here finds this row out of the queue.
            me.row().lock.store(0, Release);
        }
        if result.is_ok() {
            me.count_acquired();
        }
        result
    }

    /// Takes the lock past those who wait, if it is free and none of them has
    /// waited for too long.
    ///
    /// Whether one has is looked at when the lock is acquired already: so nobody
    /// had, at the moment when it was. If one has, the lock is his.
    ///
    /// Nobody is told to watch the new owner, as `settle_barge` does: that is put
    /// off until it is needed, when the lock is handed over (`hand_over`). Until
    /// then the head is told at each release.
    fn barge(&self, me: &Attachment) -> Result<bool, Corrupted> {
        let owner = me.id().as_fencing().bits();
        // Relaxed on failure: nothing is read from it.
        if self.0.owner.compare_exchange(0, owner, SeqCst, Relaxed).is_err() {
            return Ok(false);
        }
        if self.has_queue() && !queue::all_are_patient(&self.0, me.table()) {
            let older = self.editing(me, |guard| {
                let oldest = guard.oldest()?.filter(Oldest::has_waited_too_long);
                oldest.map(|oldest| self.hand_over(me, guard, oldest)).transpose()
            })?;
            if let Some(asleep) = older {
                wait::wake(me, asleep);
                return Ok(false);
            }
        }
        me.count_acquired();
        Ok(true)
    }

    /// Whether waiting would be waiting for oneself. A thread that has mapped
    /// the segment twice has two rows; so the row is not all that counts.
    pub(super) fn is_owned_by_caller(&self, me: &Attachment) -> bool {
        let owner = Id::from_bits(self.0.owner.load(SeqCst)).plain();
        if owner == me.id() {
            return true;
        }
        let Fate::Alive(life) = me.table().fate(owner) else { return false };
        me.looks_like_own_life(life) && {
            let (theirs, mine) = (me.identity(owner), me.identity(me.id()));
            (theirs.pid, theirs.start_time, theirs.pid_namespace)
                == (mine.pid, mine.start_time, mine.pid_namespace)
        }
    }

    /// Whether the calling thread stands in its queue already, in a row on lease: if it
    /// sleeps behind that it is not there to take the lock, or to pass it on.
    pub(crate) fn is_awaited_by_caller(&self, me: &Attachment) -> Result<bool, Corrupted> {
        if cfg!(heirlock_loom) || !self.has_queue() {
            return Ok(false);
        }
        let rows = lease::busy_with(me.mapping(), self.0.name_in(me.mapping()));
        if rows.is_empty() {
            return Ok(false);
        }
        // Who has forgotten an acquisition may have another lock by now at the same place.
        self.editing(me, |guard| {
            rows.iter().try_fold(false, |found, row| Ok(found || guard.contains(*row)?))
        })
    }

    /// The doorway: whoever is through it first is served first.
    fn enqueue(&self, me: &Attachment, policy: Policy, terms: u32) -> Result<WaitState, Corrupted> {
        let row = me.row();
        let index = me.id().index();
        // Relaxed, all of them: the doorway's CAS publishes them to whoever finds this
        // row through `tail`. (Who re-uses the row of a dead thread has seen its
        // death, which is behind all that it did.) Release for the lock: whoever
        // looks for deadlocks and sees it sees that the last wait is over.
        row.lock.store(self.0.name_in(me.mapping()), Release);
        wait::set_terms(row, terms);
        row.waiting_as.store(me.id().bits(), Relaxed);
        if policy == Policy::Throughput {
            row.since.store(clock::ticks(), Relaxed);
        }
        let waiting = WaitState::from_bits(row.state.load(Relaxed)).next_round();
        row.state.store(waiting.bits(), Relaxed);
        enter(&self.0, row, index, |_| Ok(())).inspect_err(|_| me.mark_broken())?;
        Ok(waiting)
    }

    /// Waits in the queue, in which the thread is, until the lock is its.
    pub(super) fn wait_turn(
        &self,
        me: &Attachment,
        waiting: WaitState,
        policy: Policy,
        mut limits: Limits,
        check: Option<Duration>,
    ) -> Result<(), Failed> {
        limits.check_at = check.and_then(Deadline::after);
        // Whether every owner that was there when this thread queued sees that.
        let mut seen = false;
        loop {
            let mut watched = match self.look(me, waiting)? {
                Look::Served => return Ok(()),
                Look::Mine => {
                    self.leave(me, waiting)?;
                    return Ok(());
                }
                Look::Again => continue,
                Look::Watch(watched) => watched,
            };
            if limits.is_cancelled() {
                return self.give_up(me, Failed::Cancelled);
            }
            if limits.are_over() {
                return self.give_up(me, Failed::TimedOut);
            }
            if let Some(period) = check.filter(|_| limits.check_at.is_some_and(Deadline::passed)) {
                if let Some(cycle) = cycle::as_victim(me) {
                    return self.give_up(me, Failed::Deadlock(cycle));
                }
                // One who does not look may close a circle later.
                limits.check_at = Deadline::after(period);
            }
            // Also behind another one: it may become the head, and be nudged, while it
            // sleeps like this.
            watched.lossy = policy == Policy::Throughput;
            if !seen && self.stays_awake(me, waiting, watched.lossy, limits) {
                wait::rearm(me.row(), waiting);
                continue;
            }
            if watched.is_seen(me, &mut seen) {
                continue;
            }
            match wait::park(me, waiting, Some(watched), limits) {
                Ok(Slept::Look | Slept::Heartbeat) => {}
                Ok(Slept::TimedOut) => return self.give_up(me, Failed::TimedOut),
                Ok(Slept::Interrupted) => return self.give_up(me, Failed::Interrupted),
                // Who cannot sleep here must not stand in the others' way.
                Err(corrupted) => return self.give_up(me, corrupted.into()),
            }
        }
    }

    /// Takes the lock, for somebody who does not sleep here, if that can be had at once.
    pub(super) fn take_at_once(&self, me: &Attachment) -> Result<bool, Corrupted> {
        match self.lock_fast(me) {
            Fast::Done => return Ok(true),
            Fast::Slow => {}
            Fast::Late => {
                self.settle_barge(me)?;
                return Ok(true);
            }
        }
        Ok(self.0.policy() == Policy::Throughput && self.is_free() && self.barge(me)?)
    }

    /// Queues, for somebody who does not sleep here, and has to call [`Self::advance`] then.
    pub(super) fn queue(&self, me: &Attachment) -> Result<WaitState, Corrupted> {
        me.look_who_fences();
        self.enqueue(me, self.0.policy(), ENDS_BY_ITSELF)
    }

    /// What a waiter that sleeps elsewhere does when it begins, and whenever it was woken:
    /// looks, and takes the lock if it is its turn (`None`). Or else it may sleep until
    /// its state changes, or whom it watches dies. `seen` is whether every owner that was
    /// there when it queued sees that.
    pub(super) fn advance(
        &self,
        me: &Attachment,
        waiting: WaitState,
        seen: &mut bool,
    ) -> Result<Option<Watched>, Corrupted> {
        wait::rearm(me.row(), waiting);
        loop {
            let mut watched = match self.look(me, waiting)? {
                Look::Served => return Ok(None),
                Look::Mine => {
                    self.leave(me, waiting)?;
                    return Ok(None);
                }
                Look::Again => continue,
                Look::Watch(watched) => watched,
            };
            watched.lossy = self.0.policy() == Policy::Throughput;
            if watched.is_seen(me, seen) {
                continue;
            }
            if wait::fall_silent(me.row(), waiting) {
                return Ok(Some(watched));
            }
            wait::rearm(me.row(), waiting);
        }
    }

    /// Ends a wait of the same kind: `came` is whether the lock is its.
    pub(super) fn end(&self, me: &Attachment, came: bool) {
        // Release: as in `lock_slow`.
        me.row().lock.store(0, Release);
        if came {
            me.count_acquired();
        }
    }

    /// Stays awake for a while if the turn comes soon. Whether there is something
    /// to look at; else it is time to sleep.
    fn stays_awake(
        &self,
        me: &Attachment,
        waiting: WaitState,
        barging: bool,
        limits: Limits,
    ) -> bool {
        // A handler that runs while this thread is awake goes unnoticed.
        if !spin::may_pay() || limits.interruptible {
            return false;
        }
        let soon = queue::is_soon(me, spin::WINDOW);
        spin::note_turn(soon);
        let Row { state, prev, .. } = me.row();
        let was_head = prev.load(SeqCst) == 0;
        let changed = || {
            state.load(SeqCst) != waiting.bits()
                || prev.load(SeqCst) == 0 && (!was_head || barging && self.is_free())
                || limits.is_cancelled()
                || limits.are_over()
        };
        soon && spin::stay_awake(was_head, changed)
    }

    /// Looks at what a waiter's turn depends on.
    fn look(&self, me: &Attachment, waiting: WaitState) -> Result<Look, Corrupted> {
        // The usual end of a wait, told without a look at the lock's words, on
        // which the former owner is still at work.
        if me.row().state.load(SeqCst) == waiting.with(Code::Granted).bits() {
            return Ok(Look::Served);
        }
        let owner = Id::from_bits(self.0.owner.load(SeqCst));
        if owner.plain() == me.id() {
            return Ok(Look::Mine);
        }
        match me.row().prev.load(SeqCst) {
            0 => self.look_as_head(me, owner),
            predecessor => self.look_behind(me, predecessor),
        }
    }

    fn look_as_head(&self, me: &Attachment, owner: Id) -> Result<Look, Corrupted> {
        let take = |heir: Id| {
            let (old, new) = (owner.bits(), heir.bits());
            self.0.owner.compare_exchange(old, new, SeqCst, SeqCst).is_ok()
        };
        if owner.bits() == 0 {
            let taken = take(me.id().as_fencing());
            return Ok(if taken { Look::Mine } else { Look::Again });
        }
        match me.table().fate(owner) {
            Fate::NoSuchRow => Err(Corrupted("a lock's owner has no row")),
            Fate::Alive(life) if !active(Fault::Usurping) => {
                let hasty = !owner.fences();
                Ok(Look::Watch(Watched { index: owner.index(), life, hasty, lossy: false }))
            }
            Fate::Alive(_) | Fate::Dead => {
                me.table().relay(owner.index());
                let taken = take(me.id().as_heir().as_fencing());
                if taken && !active(Fault::NotTold) {
                    me.inherit(self.address(), owner.plain());
                }
                if taken {
                    // It may have been on its way out of a wait for a condition variable.
                    queue::mourn(me, owner.index())?;
                }
                Ok(if taken { Look::Mine } else { Look::Again })
            }
        }
    }

    fn look_behind(&self, me: &Attachment, predecessor: u32) -> Result<Look, Corrupted> {
        let table = me.table();
        let life = table.life(predecessor).ok_or(Corrupted("a predecessor has no row"))?;
        let life = life.load(SeqCst);
        if table.is_dead(predecessor, life) {
            table.relay(predecessor);
            QueueGuard::take(&self.0, me)?.splice_predecessor_of(me.id().index())?;
            return Ok(Look::Again);
        }
        // The row may have got a new user, queued behind this thread, before
        // its life word was read: then it is no longer the predecessor.
        if me.row().prev.load(SeqCst) != predecessor {
            return Ok(Look::Again);
        }
        Ok(Look::Watch(Watched { index: predecessor, life, hasty: false, lossy: false }))
    }

    /// Out of the queue, as the owner, unless who granted saw to it.
    fn leave(&self, me: &Attachment, waiting: WaitState) -> Result<(), Corrupted> {
        if me.row().state.load(SeqCst) != waiting.with(Code::Granted).bits() {
            QueueGuard::take(&self.0, me)?.unlink(me.id().index())?;
        }
        Ok(())
    }

    /// Out of the queue without the lock, and says `why`, unless it came in the
    /// last moment. Grants are made under the guard, so under the guard it is
    /// certain.
    pub(super) fn give_up(&self, me: &Attachment, why: Failed) -> Result<(), Failed> {
        let guard = QueueGuard::take(&self.0, me)?;
        let owner = Id::from_bits(self.0.owner.load(SeqCst));
        let unlinked = guard.unlink(me.id().index())?;
        if owner.plain() == me.id() {
            return Ok(());
        }
        if let Unlinked::Before(successor) = unlinked
            && !active(Fault::NoNudgeOnGiveUp)
        {
            wait::nudge(me, successor)?;
        }
        Err(why)
    }

    /// Releases the lock. `Err` if the caller does not own it (any more).
    pub(crate) fn unlock(&self, me: &Attachment, hasty: bool) -> Result<(), Corrupted> {
        match self.unlock_fast(me, hasty) {
            Fast::Done => Ok(()),
            Fast::Slow => self.unlock_slow(me),
            Fast::Late => self.release_slow(me),
        }
    }

    /// Releases the lock, if the caller acquired it on the fast path: `hasty`.
    ///
    /// It does not look at `owner`: the load of a word on which this processor
    /// has just executed a compare-and-exchange takes as long as that.
    #[inline(always)]
    pub(crate) fn unlock_fast(&self, me: &Attachment, hasty: bool) -> Fast {
        let LockWords { owner, tail, .. } = &self.0;
        if !hasty || !me.is_hasty() || tail.load(SeqCst) != 0 {
            return Fast::Slow;
        }
        // Release: the data. Who queued too late to be seen before is seen now,
        // or sees the lock free: where the load behind it is executed first, by
        // the barrier of who queued (`wait_turn`), which comes in between, or
        // else before both or behind both.
        owner.store(0, Release);
        membarrier::light();
        me.count_released();
        if tail.load(SeqCst) != 0 { Fast::Late } else { Fast::Done }
    }

    /// Leaves the lock free.
    fn release(&self, me: &Attachment) -> Result<(), Corrupted> {
        // SeqCst with the load behind it pairs with `enqueue` and `look`: who
        // queued too late to be seen before is seen now, or sees the lock
        // free. It also releases the data, like any unlock.
        let order = if active(Fault::WeakUnlock) { Release } else { SeqCst };
        self.0.owner.store(0, order);
        me.count_released();
        if self.0.tail.load(SeqCst) != 0 {
            return self.release_slow(me);
        }
        Ok(())
    }

    #[cold]
    pub(crate) fn unlock_slow(&self, me: &Attachment) -> Result<(), Corrupted> {
        self.unlock_and_tell(me, false)
    }

    /// Releases the lock, of which its owner has not made use. `Err` as in `unlock`.
    pub(crate) fn unlock_untold(&self, me: &Attachment) -> Result<(), Corrupted> {
        self.unlock_and_tell(me, true)
    }

    /// Releases the lock. The next owner is told of the death that this one was told of, if
    /// it is `untold` or panics.
    fn unlock_and_tell(&self, me: &Attachment, untold: bool) -> Result<(), Corrupted> {
        if !me.is_of_this_process() {
            // A guard that fork copied into a child holds nothing.
            return Ok(());
        }
        let owner = self.owner();
        if owner.plain() != me.id() {
            return Err(Corrupted("a lock that this thread holds names another owner"));
        }
        if owner.inherited()
            && let Some(inheritance) = me.disinherit(self.address())
            && (untold
                || std::thread::panicking() && !inheritance.unwinding
                || active(Fault::ToldAgain))
        {
            // As if the dead one still had it: so the next one is told again.
            self.0.owner.store(inheritance.dead.bits(), SeqCst);
            me.count_released();
            return if self.has_queue() { self.release_slow(me) } else { Ok(()) };
        }
        if !self.has_queue() {
            return self.release(me);
        }
        me.count_released();
        match self.0.policy() {
            Policy::Fifo => self.grant_slow(me),
            Policy::Throughput => self.leave_free(me),
        }
    }

    /// Leaves the lock free, and has the head look, unless it is about to.
    fn leave_free(&self, me: &Attachment) -> Result<(), Corrupted> {
        if queue::head_oversleeps(&self.0, me.table()) {
            return self.grant_slow(me);
        }
        self.0.owner.store(0, SeqCst);
        match self.0.head.peek() {
            // Who it is is not known.
            0 => self.release_slow(me),
            // If it is not the head any more, somebody else became that when the
            // lock was free already, and looks.
            head => wait::nudge_unless_nudged(me, head.into()),
        }
    }

    /// From whom the lock, which the caller holds, was inherited.
    pub(crate) fn inheritance(&self, me: &Attachment) -> Option<Inheritance> {
        self.owner().inherited().then(|| me.inheritance(self.address()))?
    }

    pub(crate) fn address(&self) -> usize {
        core::ptr::from_ref(&self.0).addr()
    }

    /// Where it is, the same for all processes: which file, and where in it; in private
    /// memory the address.
    pub(crate) fn place(&self, me: &Attachment) -> Result<(FileIdentity, u64), AttachError> {
        let file = me.mapping().file_identity();
        let file = file.map_err(|source| AttachError::Io { step: "stat the file", source })?;
        Ok((file, self.0.name_in(me.mapping())))
    }

    /// Hands over to the oldest living waiter.
    #[cold]
    fn grant_slow(&self, me: &Attachment) -> Result<(), Corrupted> {
        let granted = self.editing(me, |guard| match guard.oldest()? {
            Some(oldest) => {
                let asleep = self.hand_over(me, guard, oldest)?;
                let soon = if spin::rouses() { guard.nth(spin::WINDOW)? } else { None };
                Ok(Some((asleep, soon)))
            }
            None => {
                self.0.owner.store(0, SeqCst);
                Ok(None)
            }
        })?;
        match granted {
            Some((asleep, soon)) => {
                wait::wake(me, asleep);
                soon.map_or(Ok(()), |soon| wait::rouse(me, soon))
            }
            None if self.has_queue() => self.release_slow(me),
            None => Ok(()),
        }
    }

    /// Makes the oldest waiter the owner: one store. Dying right behind it
    /// leaves an owner that watches this thread. Whom to wake.
    ///
    /// Where the lock can be taken past a waiter, that may watch a thread that
    /// owned the lock before: then it is told to look first, lest it sleep on as
    /// the owner.
    fn hand_over(
        &self,
        me: &Attachment,
        guard: &QueueGuard,
        oldest: Oldest,
    ) -> Result<Option<u32>, Corrupted> {
        let barging = guard.policy() == Policy::Throughput;
        if barging && !active(Fault::NoNudgeBeforeGrant) {
            wait::nudge(me, oldest.index)?;
        }
        self.0.owner.store(oldest.id.as_fencing().bits(), HAND_OVER);
        if !active(Fault::NoUnlinkInGrant) {
            guard.unlink(oldest.index)?;
        }
        guard.tell_granted(oldest)
    }

    /// The lock is free, and somebody queued who may not know: tell the oldest
    /// living waiter. Granting here would leave a waiter that watches this
    /// thread, out of the queue and not yet awake.
    #[cold]
    pub(crate) fn release_slow(&self, me: &Attachment) -> Result<(), Corrupted> {
        let oldest = self.editing(me, |guard| guard.oldest())?;
        match oldest {
            Some(oldest) if !active(Fault::NoNudgeOnRelease) => wait::nudge(me, oldest.index),
            _ => Ok(()),
        }
    }

    /// Edits the queue as somebody who is not in it. While it does, its row
    /// says where, for those who re-use the row if it dies.
    fn editing<R>(
        &self,
        me: &Attachment,
        edit: impl FnOnce(&QueueGuard) -> Result<R, Corrupted>,
    ) -> Result<R, Corrupted> {
        let lock = &me.row().lock;
        // Who waits for a condition variable has one there: that to which it returns.
        let before = lock.load(Relaxed);
        // Taking the guard publishes it. Release: the last wait, or edit, is over, and
        // then this one.
        lock.store(self.0.name_in(me.mapping()), Release);
        let result = edit(&QueueGuard::take(&self.0, me)?);
        lock.store(before, Release);
        result
    }
}

/// After how long in the queue a waiter looks whether it waits for ever, and how often
/// from then on; `None` if it does not look.
fn check_after(me: &Attachment, limits: &Limits) -> Option<Duration> {
    // No model is about that, and each look would be a step of it.
    if cfg!(heirlock_loom) || limits.end_it() {
        return None;
    }
    match limits.detect {
        Detect::Never => None,
        Detect::After(time) => Some(time),
        // Nobody asked this call, which may panic: not while the thread unwinds.
        Detect::AsSegment => me.mapping().detect_after().filter(|_| !std::thread::panicking()),
    }
}

/// Puts `row`, whose index that is, at the end of the queue of `words`; `before`
/// is told behind whom each time it tries.
pub(super) fn enter(
    words: &LockWords,
    row: &Row,
    index: u32,
    mut before: impl FnMut(u32) -> Result<(), Corrupted>,
) -> Result<(), Corrupted> {
    let mut tail = words.tail.load(SeqCst);
    loop {
        if tail == index {
            return Err(Corrupted("a thread is queued before it queues"));
        }
        before(tail)?;
        // Relaxed: published by the doorway.
        row.prev.store(tail, Relaxed);
        match words.tail.replace(tail, index) {
            Ok(()) => return Ok(()),
            Err(now) => tail = now,
        }
    }
}

/// Takes the dead former user of `me`'s row out of the queues of the condition
/// variable and the lock that its row names, where it may be a member, and may hold
/// the guard.
pub(crate) fn reclaim(me: &Attachment) -> Result<(), Corrupted> {
    let Row { lock, condvar, stage, edits, .. } = me.row();
    let named = |name| {
        LockWords::named(me.mapping(), name)
            .ok_or(Corrupted("a row names a lock that is not in the value"))
    };
    // Before this thread waits for the guard of the condition variable: whoever has
    // that now may wait for a lock's guard that is this row's still.
    for name in [lock.load(Relaxed), edits.load(Relaxed)] {
        if name != 0 {
            give_back(named(name)?, me)?;
        }
    }
    edits.store(0, Release);
    // In this order: from the one queue it may be moved to the other one.
    // Relaxed: the row is this thread's now. Release: it is out of the queue.
    match condvar.load(Relaxed) {
        0 => {}
        name => condvar::reclaim(named(name)?, me)?,
    }
    stage.store(0, Release);
    condvar.store(0, Release);
    match lock.load(Relaxed) {
        0 => {}
        name => reclaim_from(named(name)?, me)?,
    }
    lock.store(0, Release);
    Ok(())
}

/// Gives the guard back, if the dead former user of `me`'s row has it. It left nothing
/// that is to be repaired.
fn give_back(words: &LockWords, me: &Attachment) -> Result<(), Corrupted> {
    if words.guard_holder() == me.id().index() {
        QueueGuard::take(words, me)?;
    }
    Ok(())
}

fn reclaim_from(words: &LockWords, me: &Attachment) -> Result<(), Corrupted> {
    let guard = QueueGuard::take(words, me)?;
    match guard.unlink(me.id().index())? {
        Unlinked::Before(successor) => wait::nudge(me, successor)?,
        Unlinked::Last => {}
        Unlinked::NotThere => {
            if let Some(oldest) = guard.oldest()? {
                wait::nudge(me, oldest.index)?;
            }
        }
    }
    Ok(())
}
