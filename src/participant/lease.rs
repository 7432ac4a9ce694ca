//! Rows on lease: for those who wait in several queues at once, or without a thread.
//!
//! A thread has one row of its own in a segment, in which it waits asleep. Whoever waits
//! otherwise has another one for each wait, and for as long as it holds what it waited
//! for. Such a row is a thread's like its own, and dies with it; or it is the keeper's
//! (see `keeper`), and dies with the process: then whoever waits or holds may move to
//! another thread meanwhile.
//!
//! To join takes system calls, so some of the rows that are given back are kept.
#![allow(unsafe_code)]

use super::attach::{AttachError, Attachment, Home, Reclaim, attach};
use super::current::{Current, Entry, Place, expect_forks, leave_at_end, mapping_at, was_late};
use super::keeper;
use crate::memory::error::Corrupted;
use crate::memory::map::Mapping;
use crate::memory::registry;
use crate::sys::atomic::Ordering;
use core::cell::RefCell;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// How many rows a thread, or the process, keeps in each segment that nobody has on lease:
/// few, as they are missing elsewhere, unless it turns out that more are wanted again.
const KEPT: usize = 8;

/// How many may be lost to corruption in a segment, before it is not waited in any more: one
/// lock that is garbled is not the end of the others, and each attempt to have it costs one.
const LOST: usize = 8;

/// The most that are kept: as many as one wait can want.
const MOST_KEPT: usize = 64;

/// A row on lease, given back on drop. Its user has left the queue by then, and holds
/// nothing.
#[derive(Debug)]
pub(crate) struct Lease(Current);

impl Lease {
    /// One of the calling thread's, in the segment around `address`.
    pub(crate) fn of_thread(address: usize, reclaim: Reclaim) -> Result<Self, AttachError> {
        Self::from::<OfThread>(address, |mapping| {
            let attachment = attach(mapping, reclaim, false)?;
            leave_at_end();
            Ok(attachment)
        })
    }

    /// One of the process's.
    pub(crate) fn of_process(address: usize, reclaim: Reclaim) -> Result<Self, AttachError> {
        Self::from::<OfProcess>(address, |mapping| keeper::attach(Arc::clone(mapping), reclaim))
    }

    fn from<P: Owner>(
        address: usize,
        join: impl Fn(&Arc<Mapping>) -> Result<Box<Attachment>, AttachError>,
    ) -> Result<Self, AttachError> {
        if let Some(lease) = P::pool(|pool| pool.take(address)) {
            return Ok(lease);
        }
        prune();
        let (mapping, place) = mapping_at(address)?;
        if let Some(lease) = P::pool(|pool| pool.take_of(&mapping, &place))? {
            return Ok(lease);
        }
        expect_forks();
        let attachment = with_spares(&mapping, || join(&mapping))?;
        Ok(P::pool(|pool| pool.add(place, attachment, P::HOME)))
    }

    /// The row of a model's thread, which keeps it.
    #[cfg(heirlock_loom)]
    pub(crate) fn of_model(row: Option<NonNull<Attachment>>) -> Self {
        Self(Current::new(row.expect("the model's thread has one")))
    }

    /// The same for who gives it back himself, with [`give_back`].
    pub(crate) fn into_current(self) -> Current {
        ManuallyDrop::new(self).0
    }
}

impl Deref for Lease {
    type Target = Attachment;

    fn deref(&self) -> &Attachment {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        give_back(self.0);
    }
}

/// The rows on lease with which the calling thread is busy with the lock of this name in
/// `mapping`.
pub(crate) fn busy_with(mapping: &Arc<Mapping>, lock: u64) -> Vec<u32> {
    let row = |entry: &Entry| {
        let attachment = entry.attachment();
        // Relaxed: the row is the thread's own.
        let is_busy = Arc::ptr_eq(attachment.mapping(), mapping)
            && attachment.row().lock.load(Ordering::Relaxed) == lock;
        is_busy.then(|| attachment.id().index())
    };
    POOL.with(|pool| pool.borrow().all.iter().flatten().filter_map(row).collect())
}

/// Whether this is true of any row that the calling thread has, or may have, on lease.
pub(super) fn any_of_this_thread(is_true: impl Fn(&Entry) -> bool) -> bool {
    POOL.with(|pool| pool.borrow().all.iter().flatten().any(is_true))
}

/// Joins `mapping`: if it is full, with what is spare of its rows given up.
pub(super) fn with_spares<R>(
    mapping: &Arc<Mapping>,
    join: impl Fn() -> Result<R, AttachError>,
) -> Result<R, AttachError> {
    match join() {
        Err(AttachError::Full { .. }) if discard_spares(mapping) => join(),
        joined => joined,
    }
}

/// Leaves `mapping` with all rows that nobody has on lease; whether there were any.
fn discard_spares(mapping: &Arc<Mapping>) -> bool {
    let own = OfThread::pool(|pool| pool.give_up(mapping));
    let of_process = OfProcess::pool(|pool| pool.give_up(mapping));
    let (any, by_keeper) = (!own.is_empty() || !of_process.is_empty(), !of_process.is_empty());
    own.into_iter().chain(of_process).for_each(discard);
    if by_keeper {
        keeper::await_the_last();
    }
    any
}

/// Gives back what is on lease; of a thread's own row nothing happens.
pub(crate) fn give_back(current: Current) {
    // A parent's stays where it is.
    if current.home() == Home::Thread || !current.is_of_this_process() {
        return;
    }
    let gone = match current.home() {
        Home::Process => OfProcess::pool(|pool| pool.give_back(current)),
        _ => OfThread::pool(|pool| pool.give_back(current)),
    };
    match gone {
        Ok(gone) => gone.into_iter().for_each(discard),
        Err(Unknown) => was_late(current),
    }
}

/// Leaves the segment.
fn discard(entry: Entry) {
    if entry.attachment().home() == Home::Process && entry.attachment().is_of_this_process() {
        keeper::detach(entry.attachment);
    } else {
        // SAFETY: it was given back, so nothing else refers to it, and it holds nothing.
        unsafe { entry.discard() };
    }
}

/// All rows that a thread, or the process, has ever had on lease, and has still.
struct Pool {
    all: Vec<Option<Entry>>,
    /// Which of them nobody has.
    spare: Vec<u32>,
    /// Those with which somebody met corruption: of no more use, but they may be in a queue,
    /// and die with their thread.
    broken: Vec<u32>,
    /// Places in `all` that are empty.
    empty: Vec<u32>,
    /// How many it keeps.
    kept: usize,
    /// How many it did not keep, and has not missed yet.
    gone: usize,
}

// SAFETY: for the process's pool. Its attachments are used by one thread at a time: who
// has one on lease; the lock of the pool, which is held to take and to give back, is in
// between. (Of one that is on lease others look at the mapping alone, which is `Sync`.) The
// keeper alone, whose robust list they are on, joins and leaves with them. What a child of
// fork does with its copies it does when it has one thread.
unsafe impl Send for Pool {}

impl Pool {
    const fn new() -> Self {
        Self {
            all: Vec::new(),
            spare: Vec::new(),
            broken: Vec::new(),
            empty: Vec::new(),
            kept: KEPT,
            gone: 0,
        }
    }

    fn entry(&mut self, place: u32) -> Option<&mut Entry> {
        self.all.get_mut(place as usize)?.as_mut()
    }

    /// Lends one that nobody has and that fits. `change` is for it alone.
    fn lend(
        &mut self,
        fits: impl Fn(&Entry) -> bool,
        change: impl FnOnce(&mut Entry),
    ) -> Option<Lease> {
        let all = &self.all;
        // The last one given back first: it is in the cache.
        let at = self.spare.iter().rposition(|place| {
            let entry = all.get(*place as usize).and_then(Option::as_ref);
            entry.is_some_and(|entry| entry.attachment().is_of_this_process() && fits(entry))
        })?;
        let place = self.spare.swap_remove(at);
        let entry = self.entry(place)?;
        change(entry);
        Some(Lease(Current::new(entry.attachment)))
    }

    fn take(&mut self, address: usize) -> Option<Lease> {
        self.lend(|entry| entry.place.holds(address), |_| {})
    }

    /// The same by what is mapped there. `Err` if corruption was met there too often.
    fn take_of(
        &mut self,
        mapping: &Arc<Mapping>,
        place: &Place,
    ) -> Result<Option<Lease>, AttachError> {
        let is_there = |entry: &Entry| Arc::ptr_eq(entry.attachment().mapping(), mapping);
        let is_broken = |place: &&u32| self.all[**place as usize].as_ref().is_some_and(is_there);
        if self.broken.iter().filter(is_broken).count() >= LOST {
            let what = "waits without a thread met that in earlier operations";
            return Err(Corrupted(what).into());
        }
        Ok(self.lend(is_there, |entry| entry.place = place.clone()))
    }

    fn add(&mut self, place: Place, attachment: Box<Attachment>, home: Home) -> Lease {
        if self.gone > 0 {
            self.gone -= 1;
            self.kept = (self.kept + 1).min(MOST_KEPT);
        }
        let at = self.empty.pop().unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() as u32 - 1
        });
        attachment.let_out(home, at);
        let attachment = NonNull::from(Box::leak(attachment));
        self.all[at as usize] = Some(Entry { place, attachment });
        Lease(Current::new(attachment))
    }

    /// Takes back what is on lease; what is not kept is for the caller to discard.
    fn give_back(&mut self, current: Current) -> Result<Option<Entry>, Unknown> {
        let (place, attachment) = (current.place.get(), current.unmarked());
        let known = self.entry(place).filter(|entry| entry.attachment == attachment);
        let entry = known.ok_or(Unknown)?;
        if entry.attachment().is_broken() {
            self.broken.push(place);
            return Ok(None);
        }
        if !entry.is_stale() {
            if self.count_spares(current.mapping()) < self.kept {
                self.spare.push(place);
                return Ok(None);
            }
            self.gone += 1;
        }
        Ok(self.remove(place))
    }

    /// How many of `mapping` nobody has.
    fn count_spares(&self, mapping: &Arc<Mapping>) -> usize {
        let is_there = |place: &&u32| {
            let entry = self.all[**place as usize].as_ref();
            entry.is_some_and(|entry| Arc::ptr_eq(entry.attachment().mapping(), mapping))
        };
        self.spare.iter().filter(is_there).count()
    }

    fn remove(&mut self, place: u32) -> Option<Entry> {
        self.empty.push(place);
        self.all[place as usize].take()
    }

    /// Takes out what nobody has and nobody will want.
    fn stale(&mut self) -> Vec<Entry> {
        self.take_out(Entry::is_stale)
    }

    /// Takes out those of `mapping` which nobody has: others want them more.
    fn give_up(&mut self, mapping: &Arc<Mapping>) -> Vec<Entry> {
        (self.kept, self.gone) = (KEPT, 0);
        self.take_out(|entry| Arc::ptr_eq(entry.attachment().mapping(), mapping))
    }

    /// Takes out those which nobody has and of which this `is_true`.
    fn take_out(&mut self, is_true: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let mut gone = Vec::new();
        let mut at = 0;
        while let Some(place) = self.spare.get(at).copied() {
            if self.entry(place).is_some_and(|entry| is_true(entry)) {
                self.spare.swap_remove(at);
                gone.extend(self.remove(place));
            } else {
                at += 1;
            }
        }
        gone
    }

    fn disown(&self) {
        self.all.iter().flatten().for_each(|entry| entry.attachment().disown());
    }
}

thread_local! {
    /// Without a destructor, so that it works in the destructors of other thread-locals;
    /// `leave` empties it.
    static POOL: ManuallyDrop<RefCell<Pool>> =
        const { ManuallyDrop::new(RefCell::new(Pool::new())) };
}

/// Locked by who holds the registry's lock, so that `fork` never copies it locked.
static SHARED: Mutex<Pool> = Mutex::new(Pool::new());

/// The pool does not have it: its thread has left everything already, and ends.
struct Unknown;

/// Whose rows on lease are, and where they are kept.
trait Owner {
    const HOME: Home;

    fn pool<R>(look: impl FnOnce(&mut Pool) -> R) -> R;
}

/// The calling thread.
struct OfThread;

impl Owner for OfThread {
    const HOME: Home = Home::Lease;

    fn pool<R>(look: impl FnOnce(&mut Pool) -> R) -> R {
        POOL.with(|pool| look(&mut pool.borrow_mut()))
    }
}

/// The process, and so its keeper.
struct OfProcess;

impl Owner for OfProcess {
    const HOME: Home = Home::Process;

    fn pool<R>(look: impl FnOnce(&mut Pool) -> R) -> R {
        let _registry = registry::lock();
        look(&mut SHARED.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Drops what nobody has on lease, and nobody will want.
pub(super) fn prune() {
    let gone = OfThread::pool(Pool::stale);
    let of_process = OfProcess::pool(Pool::stale);
    gone.into_iter().chain(of_process).for_each(discard);
}

/// The calling thread's, which ends, and whether each is on lease.
pub(super) fn leave() -> impl Iterator<Item = (Entry, bool)> {
    let pool = POOL.with(|pool| pool.replace(Pool::new()));
    let spare = pool.spare;
    let all = pool.all.into_iter().enumerate();
    all.filter_map(move |(place, entry)| {
        let lent = !spare.contains(&(place as u32));
        entry.map(|entry| (entry, lent))
    })
}

/// In a forked child: all of them are the parent's. Async-signal-safe.
pub(super) fn disown_all() {
    // Borrowed, or locked, only if a signal handler forked in the middle.
    POOL.with(|pool| pool.try_borrow().iter().for_each(|pool| pool.disown()));
    SHARED.try_lock().iter().for_each(|pool| pool.disown());
}
