//! Waiting without a thread that sleeps, in one queue or in several: a state machine.
//!
//! Each wait has a row of its own, on lease, and stands in its queue like any other: who
//! hands over, gives up or dies there does not know the difference. What it waits for are
//! words, and who sleeps on them is for the caller: a ring, another thread, or this one.
//! It need not tell why it was woken. Whether the turn has come is in shared memory, so
//! nothing is lost with a wake, and none need come exactly once.
//!
//! One thing is otherwise: the kernel wakes one of those who watch a dead thread, and if
//! that is killed too before it looks, it has the next one woken, as the thread that
//! slept has asked for that (`Attachment::publish_watch`). A thread can do so for one
//! wait. So these waits do not, and where one of them has used up the wake, the next one
//! looks after its heartbeat. For the same reason they never go without.

use super::cancel::Ticket;
use super::raw::{Failed, RawMutex, reclaim};
use super::wait::{self, Limits, Watched};
use super::word::WaitState;
use crate::memory::error::Corrupted;
use crate::participant::attach::{AttachError, Reclaim};
use crate::participant::id::Id;
use crate::participant::lease::Lease;
use crate::participant::life::consult_witness;
use crate::sys::atomic::Ordering::SeqCst;
use crate::sys::clock::Deadline;
use crate::sys::fault::{Fault, active};
use crate::sys::futex::{self, Expect, WAITV_MAX, Woken};
use std::time::Duration;

/// In how many queues one can wait at once: two words for each are as many as the kernel
/// lets anybody sleep on.
pub(crate) const MAX_LOCKS: usize = WAITV_MAX / 2;

/// Where the rows for a wait come from.
pub(crate) type Lend = fn(usize, Reclaim) -> Result<Lease, AttachError>;

/// A wait for one of several locks, or for a single one. On drop it leaves the queues.
#[derive(Debug)]
pub(crate) struct Acquisition<'m> {
    limits: Limits<'m>,
    waits: Vec<Wait<'m>>,
    /// When it looks at the latest.
    until: Option<Deadline>,
    /// Whether somebody may sleep on its words.
    entrusted: bool,
    /// Whether every owner that was there when it queued sees that: see
    /// [`RawMutex::advance`]. It has queued everywhere before it looks, so one barrier is
    /// for all.
    seen: bool,
}

/// A wait in one queue.
#[derive(Debug)]
struct Wait<'m> {
    which: usize,
    raw: &'m RawMutex,
    lease: Lease,
    waiting: WaitState,
    watched: Option<Watched>,
}

/// A lock that was acquired: the how-manyth, and the row that owns it.
#[derive(Debug)]
pub(crate) struct Acquired {
    pub(crate) which: usize,
    pub(crate) lease: Lease,
}

/// Why an acquisition did not begin.
#[derive(Debug)]
pub(crate) enum NotBegun {
    Attach(AttachError),
    Failed(Failed),
}

impl From<Failed> for NotBegun {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl<'m> Acquisition<'m> {
    /// Queues for each of `locks`, of which there are at most [`MAX_LOCKS`], unless one of
    /// them can be had at once. Then, or when its turn has come already, that is acquired.
    ///
    /// If `asleep` the calling thread is about to sleep: not for locks that it holds, or
    /// waits for in another way.
    pub(crate) fn begin(
        locks: impl IntoIterator<Item = &'m RawMutex>,
        limits: Limits<'m>,
        lend: Lend,
        asleep: bool,
    ) -> Result<(Self, Option<Acquired>), NotBegun> {
        let waits = Vec::new();
        let mut this = Self { limits, waits, until: None, entrusted: false, seen: false };
        // Rows for all of them, before it stands in anybody's way: to make one may take time.
        let mut rows = Vec::new();
        for (which, raw) in locks.into_iter().enumerate() {
            let lease = lend(raw.address(), reclaim).map_err(NotBegun::Attach)?;
            // In this order: see `RawMutex::lock_slow`.
            let is_callers = asleep
                && (sound(&lease, raw.is_awaited_by_caller(&lease))?
                    || raw.is_owned_by_caller(&lease));
            if is_callers {
                continue;
            }
            if sound(&lease, raw.take_at_once(&lease))? {
                return Ok((this, Some(Acquired { which, lease })));
            }
            rows.push((which, raw, lease));
        }
        if rows.is_empty() {
            return Err(Failed::OwnedByCaller.into());
        }
        for (which, raw, lease) in rows {
            let waiting = sound(&lease, raw.queue(&lease))?;
            this.waits.push(Wait { which, raw, lease, waiting, watched: None });
        }
        let acquired = this.look()?;
        Ok((this, acquired))
    }

    /// Looks whether the turn has come, or the wait is over; to be called whenever one of
    /// the words may have changed, or the time is over. If not, there is nothing to do
    /// until then. Otherwise it is in no queue any more. (See also [`Self::returned`].)
    pub(crate) fn look(&mut self) -> Result<Option<Acquired>, Failed> {
        assert!(
            self.waits.iter().all(|wait| wait.lease.is_of_this_process()),
            "heirlock: this wait was copied by fork; the parent waits, not the child"
        );
        let now = Deadline::now();
        let slept_through = self.until.is_some_and(|until| until <= now);
        for at in 0..self.waits.len() {
            let wait = &mut self.waits[at];
            wait.pass_on(slept_through);
            let ended = match wait.raw.advance(&wait.lease, wait.waiting, &mut self.seen) {
                Ok(watched @ Some(_)) => {
                    wait.watched = watched;
                    continue;
                }
                ended => ended,
            };
            let wait = self.waits.swap_remove(at);
            // What becomes of the others its caller need not know.
            let _ = self.leave_all(false);
            sound(&wait.lease, ended)?;
            wait.raw.end(&wait.lease, true);
            if self.entrusted {
                wait.dismiss();
            }
            let Wait { which, lease, .. } = wait;
            return Ok(Some(Acquired { which, lease }));
        }
        if self.limits.is_cancelled() {
            return self.give_up(Failed::Cancelled);
        }
        if self.limits.deadline.is_some_and(|deadline| deadline <= now) {
            return self.give_up(Failed::TimedOut);
        }
        let heartbeats = self.waits.iter().map(|wait| Watched::heartbeat(wait.watched.as_ref()));
        let heartbeat = heartbeats.min().and_then(|time| now.plus(time));
        self.until = [self.limits.deadline, heartbeat].into_iter().flatten().min();
        Ok(None)
    }

    /// Says that nobody sleeps on its words any more.
    pub(crate) fn returned(&mut self) {
        self.entrusted = false;
    }

    /// Leaves all queues, unless a lock comes in the last moment: then with that.
    pub(crate) fn give_up(&mut self, why: Failed) -> Result<Option<Acquired>, Failed> {
        self.leave_all(true)?.map(Some).ok_or(why)
    }

    /// Leaves all queues. If it is to `keep` one, with the first lock that came
    /// nevertheless; the others pass on. `Err` if it could not leave one of them.
    fn leave_all(&mut self, keep: bool) -> Result<Option<Acquired>, Corrupted> {
        let (mut kept, mut left) = (None, Ok(()));
        for wait in self.waits.drain(..) {
            // A parent's copy.
            if !wait.lease.is_of_this_process() {
                continue;
            }
            let came = wait.leave(self.entrusted);
            let Wait { which, raw, lease, .. } = wait;
            match came {
                Ok(true) if keep && kept.is_none() => kept = Some(Acquired { which, lease }),
                Ok(true) => {
                    if active(Fault::KeepSecond) || raw.unlock(&lease, false).is_err() {
                        lease.mark_broken();
                    }
                }
                Ok(false) => {}
                Err(corrupted) => {
                    lease.mark_broken();
                    left = Err(corrupted);
                }
            }
        }
        if kept.is_none() { left.map(|()| None) } else { Ok(kept) }
    }

    /// The row in the first of the queues.
    #[cfg_attr(not(feature = "io-uring"), expect(dead_code, reason = "for those waits"))]
    pub(crate) fn first(&self) -> Option<Id> {
        self.waits.first().map(|wait| wait.lease.id())
    }

    /// What there is to sleep on, and until when. The kernel takes no more: if there is not
    /// enough room, a sleeper does not see some of the deaths before its heartbeat.
    pub(crate) fn words(&mut self) -> Result<(Vec<Expect<'_>>, Deadline), Corrupted> {
        let until = self.until.ok_or(Corrupted("the clock has run out"))?;
        self.entrusted = true;
        let token = self.limits.cancelled.filter(|_| !active(Fault::LostCancel));
        let mut words = Vec::with_capacity(2 * self.waits.len() + 1);
        words.extend(self.waits.iter().map(|wait| wait::silent(wait.lease.row(), wait.waiting)));
        words.extend(token.map(Ticket::word));
        let several = !active(Fault::WatchesOne);
        for wait in self.waits.iter().filter(|wait| several || wait.which == 0) {
            if let Some(watched) = &wait.watched {
                let life = watched.life(wait.lease.table())?;
                // Many locks may have one owner.
                if !words.iter().any(|(word, _)| core::ptr::eq(*word, life.0)) {
                    words.push(life);
                }
            }
        }
        words.truncate(WAITV_MAX);
        Ok((words, until))
    }

    /// Sleeps, as the calling thread, until there is something to look at.
    pub(crate) fn sleep(&mut self) -> Result<(), Failed> {
        let interruptible = self.limits.interruptible;
        let (words, until) = self.words()?;
        let woken = futex::wait(&words, until, interruptible && !active(Fault::Deaf));
        self.entrusted = false;
        let counters = self.waits.first().map(|wait| wait.lease.counters());
        counters.inspect(|counters| counters.sleeps.add_one());
        match woken {
            Ok(Woken::Signal) => {
                counters.inspect(|counters| counters.interruptions.add_one());
                if interruptible { Err(Failed::Interrupted) } else { Ok(()) }
            }
            Ok(_) => Ok(()),
            Err(rustix::io::Errno::FAULT) => Err(Corrupted("its file was truncated").into()),
            // No memory in the kernel for the moment.
            Err(_) => {
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            }
        }
    }
}

impl Drop for Acquisition<'_> {
    fn drop(&mut self) {
        // Where it could not leave, the row is marked.
        let _ = self.leave_all(false);
    }
}

/// Of an operation with `lease`: if it failed the row may be in the queue, or own the lock.
fn sound<R>(lease: &Lease, result: Result<R, Corrupted>) -> Result<R, Failed> {
    result.inspect_err(|_| lease.mark_broken()).map_err(Failed::from)
}

impl Wait<'_> {
    /// If whom it watched has died: has the others look, too. `slept_through` is whether
    /// nobody has woken it, so that it looks for what the kernel does not tell.
    fn pass_on(&self, slept_through: bool) {
        let Some(watched) = &self.watched else { return };
        let Ok((word, life)) = watched.life(self.lease.table()) else { return };
        if word.load(SeqCst) != life {
            self.lease.table().relay(watched.index);
        } else if slept_through {
            consult_witness(self.lease.mapping(), watched.index, life);
        }
    }

    /// Leaves the queue. Whether the lock came in the last moment.
    fn leave(&self, entrusted: bool) -> Result<bool, Corrupted> {
        let row = self.lease.row();
        // Whoever sleeps on it is woken, and not by others any more.
        wait::rearm(row, self.waiting);
        let came = match self.raw.give_up(&self.lease, Failed::TimedOut) {
            Err(Failed::Corrupted(corrupted)) => return Err(corrupted),
            ended => ended.is_ok(),
        };
        self.raw.end(&self.lease, came);
        if entrusted {
            self.dismiss();
        } else if !active(Fault::ForgetsDeath) {
            self.pass_on(false);
        }
        Ok(came)
    }

    /// Ends the sleep of whoever sleeps on its words.
    fn dismiss(&self) {
        if !active(Fault::NoStir) {
            futex::wake_all(&self.lease.row().state);
        }
        // Behind the wake of its own request. If that was told of a death, those who watch the
        // same dead have only this one to tell them.
        if !active(Fault::ForgetsDeath) {
            self.pass_on(false);
        }
    }
}
