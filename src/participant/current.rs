//! Which row the calling thread has in the segment around an address.
#![allow(unsafe_code)]

use super::attach::{AttachError, Attachment, Home, Reclaim, attach, forget_process_identity};
use super::lease;
use crate::memory::map::Mapping;
use crate::memory::registry::{self, Found};
use crate::sys::atomic::{AtomicU32, Ordering};
use crate::sys::process;
use crate::sys::robust_list::RobustList;
use core::cell::{Cell, RefCell};
use core::mem::ManuallyDrop;
use core::num::NonZeroUsize;
use core::ops::{Deref, Range};
use core::ptr::NonNull;
use std::sync::Arc;

/// The calling thread's attachment to some segment. It stays on its thread.
///
/// It has room for one bit, so that a guard is two words and is returned in
/// registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Current(NonNull<Attachment>);

const MARK: usize = 1;
const _: () = assert!(align_of::<Attachment>() > MARK);

impl Current {
    pub(super) fn new(attachment: NonNull<Attachment>) -> Self {
        Self(attachment)
    }

    /// The same with the bit set, or not.
    #[inline(always)]
    pub(crate) fn marked(self, mark: bool) -> Self {
        let mark = if mark { MARK } else { 0 };
        Self(self.unmarked().map_addr(|address| address | mark))
    }

    /// The bit; false unless set.
    #[inline(always)]
    pub(crate) fn is_marked(self) -> bool {
        self.0.addr().get() & MARK != 0
    }

    /// What a guard has in its stead that has lost its lock. Everything that looks whether
    /// a guard is this process's finds that it is not.
    pub(crate) fn nowhere(self) -> Self {
        Self(NonNull::from(Box::leak(Attachment::nowhere(self.mapping()))))
    }

    /// Frees it, if it is such a one. Whether it was.
    ///
    /// # Safety
    ///
    /// The guard that had it is gone, and no copy of it is used any more.
    pub(crate) unsafe fn free_nowhere(self) -> bool {
        let nowhere = self.home() == Home::Nowhere;
        if nowhere {
            // SAFETY: `nowhere` leaked it from a box for that guard, which was the only
            // one to refer to it.
            drop(unsafe { Box::from_raw(self.unmarked().as_ptr()) });
        }
        nowhere
    }

    /// Whether both are the same attachment, whatever their bits.
    pub(crate) fn is_same(self, other: Self) -> bool {
        self.unmarked() == other.unmarked()
    }

    #[inline(always)]
    pub(super) fn unmarked(self) -> NonNull<Attachment> {
        let unmark = |address: NonZeroUsize| {
            // SAFETY: an attachment is aligned, so there are other bits.
            unsafe { NonZeroUsize::new_unchecked(address.get() & !MARK) }
        };
        self.0.map_addr(unmark)
    }
}

impl Deref for Current {
    type Target = Attachment;

    #[inline(always)]
    fn deref(&self) -> &Attachment {
        // SAFETY: an attachment is freed by its own thread alone: at the
        // thread's end, or in `prune`, and in both cases only if it holds no
        // lock. A `Current` lives in a guard, whose lock is held, or in an
        // operation on a lock that lies in the segment, which is therefore
        // open; `prune` leaves open segments alone. (For leases see there.) In a
        // forked child the parent's attachments are leaked. One of nowhere is the
        // guard's own, which frees it last.
        unsafe { self.unmarked().as_ref() }
    }
}

/// The answer to the last look-up.
#[derive(Clone, Copy)]
struct Hot {
    start: usize,
    len: usize,
    epoch: u32,
    /// Not a `NonNull`, for its niche costs a test in `LocalKey::with`.
    attachment: *mut Attachment,
}

/// No answer: it is for no address.
const COLD: Hot = Hot { start: 0, len: 0, epoch: 0, attachment: core::ptr::null_mut() };

/// Where a mapping is the one that belongs to an address.
#[derive(Clone)]
pub(super) struct Place {
    range: Range<usize>,
    /// In which epoch that was found; `None` if it holds for as long as there is an
    /// attachment, which keeps its mapping where it is.
    epoch: Option<u32>,
}

impl Place {
    pub(super) fn holds(&self, address: usize) -> bool {
        self.range.contains(&address) && self.epoch.is_none_or(|valid| valid == registry::epoch())
    }
}

/// An attachment and the addresses for which it is the answer.
pub(super) struct Entry {
    pub(super) place: Place,
    pub(super) attachment: NonNull<Attachment>,
}

impl Entry {
    pub(super) fn attachment(&self) -> &Attachment {
        // SAFETY: entries own their attachments.
        unsafe { self.attachment.as_ref() }
    }

    /// Whether it is no longer of use, and may go: unless it is lent.
    pub(super) fn is_stale(&self) -> bool {
        let attachment = self.attachment();
        !attachment.is_of_this_process()
            || attachment.mapping().is_shared()
                && !attachment.mapping().is_open()
                && attachment.holds_nothing()
                && !attachment.is_broken()
    }

    /// # Safety
    ///
    /// Nothing else refers to the attachment, which is not the process's and holds no
    /// lock; the entry is gone. (In a forked child a parent's may be referred to.)
    pub(super) unsafe fn discard(self) {
        // SAFETY: the entry owned it. A parent's is leaked, for copied guards.
        let attachment = unsafe { Box::from_raw(self.attachment.as_ptr()) };
        if attachment.is_of_this_process() {
            attachment.detach();
        } else {
            std::mem::forget(attachment);
        }
    }
}

thread_local! {
    static HOT: Cell<Hot> = const { Cell::new(COLD) };

    /// All attachments of the thread. Without a destructor, so that it works
    /// in the destructors of other thread-locals; `LEAVE` empties it.
    static ALL: ManuallyDrop<RefCell<Vec<Entry>>> =
        const { ManuallyDrop::new(RefCell::new(Vec::new())) };

    /// What the thread could not leave yet when it was to, and whether it is on lease.
    static LATE: ManuallyDrop<RefCell<Vec<(Entry, bool)>>> =
        const { ManuallyDrop::new(RefCell::new(Vec::new())) };

    static LEAVE: Leave = const { Leave };
}

/// Leaves every segment when the thread ends. Not yet what holds a lock, which a
/// thread-local that goes later may release, or leak; and one may attach anew.
struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        leave();
        if LATE.with(|late| !late.borrow().is_empty()) && !leave_for_good_later() {
            leave_for_good(core::ptr::null_mut());
        }
    }
}

/// Leaves every segment in which the thread holds nothing.
fn leave() {
    HOT.set(COLD);
    let entries = ALL.with(|all| all.take()).into_iter().map(|entry| (entry, false));
    for (entry, lent) in entries.chain(lease::leave()) {
        if lent || !entry.attachment().may_detach() {
            LATE.with(|late| late.borrow_mut().push((entry, lent)));
        } else {
            // SAFETY: all places that hand it out have just been emptied, and a `Current`
            // in a guard that outlives this keeps `held` above 0.
            unsafe { entry.discard() };
        }
    }
}

/// Takes back a row on lease that the thread could not leave yet: its user has come to an
/// end with it since.
pub(super) fn was_late(current: Current) {
    LATE.with(|late| {
        let mut late = late.borrow_mut();
        let known = late.iter_mut().find(|(entry, _)| entry.attachment == current.unmarked());
        if let Some((_, lent)) = known {
            *lent = false;
        }
    });
}

/// Has [`leave_for_good`] called; `false` if that cannot be had.
fn leave_for_good_later() -> bool {
    process::after_thread_locals(leave_for_good, NonNull::dangling().as_ptr())
}

/// How many rows on lease are left to the kernel. It marks 2048 of a thread's, the latest
/// ones, and the thread's own are among the first.
const LEFT_TO_KERNEL: usize = 1024;

/// Leaves every segment when the thread-locals are gone.
extern "C" fn leave_for_good(_: *mut core::ffi::c_void) {
    leave();
    let late = LATE.with(|late| late.take());
    let mut unseen = late.iter().filter(|(_, lent)| *lent).count().saturating_sub(LEFT_TO_KERNEL);
    for (entry, lent) in late {
        let seen = !lent || unseen == 0;
        unseen -= usize::from(!seen);
        // A child that a thread-local's destructor forked ends its thread, too.
        if entry.attachment().is_of_this_process() {
            // SAFETY: the entry owned it; it is not freed if it is lent, or holds
            // anything still.
            unsafe { Box::from_raw(entry.attachment.as_ptr()) }.leave_at_thread_end(lent, seen);
        }
    }
}

/// The calling thread's attachment to the segment around `address`, or to the
/// process-private one, if it is the one that was last asked for.
#[inline(always)]
pub(crate) fn current_hot(address: usize) -> Option<Current> {
    let hot = HOT.get();
    let hit = address.wrapping_sub(hot.start) < hot.len && hot.epoch == registry::epoch();
    // SAFETY: an answer for some address has an attachment.
    hit.then(|| Current::new(unsafe { NonNull::new_unchecked(hot.attachment) }))
}

/// The calling thread's attachment to the segment around `address`, or to the
/// process-private one; joins at the first need.
pub(crate) fn current(address: usize, reclaim: Reclaim) -> Result<Current, AttachError> {
    current_hot(address).map_or_else(|| look_up(address, reclaim), Ok)
}

#[cold]
fn look_up(address: usize, reclaim: Reclaim) -> Result<Current, AttachError> {
    prune();
    // Before it is found out what it is for: it may be out of date then, never wrong.
    let epoch = registry::epoch();
    let known = ALL.with(|all| {
        let all = all.borrow();
        let entry = all.iter().find(|entry| entry.place.holds(address))?;
        Some((entry.place.range.clone(), entry.attachment))
    });
    let (range, attachment) = match known {
        Some(known) => known,
        None => join(address, reclaim)?,
    };
    let (start, len) = (range.start, range.end - range.start);
    HOT.set(Hot { start, len, epoch, attachment: attachment.as_ptr() });
    Ok(Current::new(attachment))
}

/// The mapping to which `address` belongs, and where it is the one.
pub(super) fn mapping_at(address: usize) -> Result<(Arc<Mapping>, Place), AttachError> {
    let epoch = registry::epoch();
    let found = registry::lock().find(address, Mapping::private);
    let found = found.map_err(|source| AttachError::Io { step: "map private memory", source })?;
    Ok(match found {
        Found::Shared(mapping) => {
            let range = mapping.range();
            (mapping, Place { range, epoch: None })
        }
        Found::Private(mapping, gap) => (mapping, Place { range: gap, epoch: Some(epoch) }),
    })
}

fn join(
    address: usize,
    reclaim: Reclaim,
) -> Result<(Range<usize>, NonNull<Attachment>), AttachError> {
    let (mapping, place) = mapping_at(address)?;
    let range = place.range.clone();
    let attached = ALL.with(|all| {
        let mut all = all.borrow_mut();
        let same = |entry: &&mut Entry| Arc::ptr_eq(entry.attachment().mapping(), &mapping);
        let entry = all.iter_mut().find(same)?;
        entry.place = place.clone();
        Some(entry.attachment)
    });
    let attachment = match attached {
        Some(attachment) => attachment,
        None => {
            expect_forks();
            let attached = lease::with_spares(&mapping, || attach(&mapping, reclaim, false))?;
            let attachment = NonNull::from(Box::leak(attached));
            ALL.with(|all| all.borrow_mut().push(Entry { place, attachment }));
            leave_at_end();
            attachment
        }
    };
    Ok((range, attachment))
}

/// Whether row `index` of `mapping` is one of the calling thread's, its own or on lease.
pub(crate) fn is_of_this_thread(mapping: &Arc<Mapping>, index: u32) -> bool {
    let is = |entry: &Entry| {
        let attachment = entry.attachment();
        attachment.id().index() == index && Arc::ptr_eq(attachment.mapping(), mapping)
    };
    ALL.with(|all| all.borrow().iter().any(is)) || lease::any_of_this_thread(is)
}

/// Has a child that is forked from now on disown what it copies.
pub(super) fn expect_forks() {
    static FORK_HANDLER: AtomicU32 = AtomicU32::new(0);
    process::at_fork(&FORK_HANDLER, nothing, nothing, disown_parent);
}

/// Has the thread leave all segments when it ends.
pub(super) fn leave_at_end() {
    // Registers the destructor; fails where it has run.
    if LEAVE.try_with(|_| ()).is_err() {
        // If this fails, too, the row stays until the kernel marks it.
        leave_for_good_later();
    }
}

extern "C" fn nothing() {}

/// How many forks lie between the first process that asked and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Which process this is: it changes from parent to child.
pub(crate) fn generation_of_process() -> u32 {
    expect_forks();
    // Relaxed: it changes while the process has one thread.
    FORKS.load(Ordering::Relaxed)
}

/// In a forked child: what its one thread has copied is its parent's. Guards
/// find that out from the attachment, so it is not freed.
extern "C" fn disown_parent() {
    HOT.set(COLD);
    FORKS.fetch_add(1, Ordering::Relaxed);
    forget_process_identity();
    // glibc does not. A handler may have forked in the middle of a wait.
    if let Some(list) = RobustList::of_this_thread() {
        list.set_pending(None);
    }
    ALL.with(|all| {
        // Borrowed only if a signal handler forked in the middle of an attach.
        for entry in all.try_borrow().iter().flat_map(|all| all.iter()) {
            entry.attachment().disown();
        }
    });
    LATE.with(|late| {
        for (entry, _) in late.try_borrow().iter().flat_map(|late| late.iter()) {
            entry.attachment().disown();
        }
    });
    lease::disown_all();
}

/// Drops the attachments that are no longer of use: to segments that nobody in
/// the process has open, and, in a forked child, those of its parent.
pub(crate) fn prune() {
    let gone: Vec<Entry> = ALL.with(|all| {
        let mut all = all.borrow_mut();
        let stale = |entry: &mut Entry| entry.is_stale();
        if all.iter_mut().any(stale) { all.extract_if(.., stale).collect() } else { Vec::new() }
    });
    for entry in gone {
        HOT.set(COLD);
        // SAFETY: nothing else refers to it: it holds no lock, and its segment is
        // closed, or it is the parent's.
        unsafe { entry.discard() };
    }
    lease::prune();
}

/// The row of the calling thread in `mapping`, joining at the first need.
pub(crate) fn current_in(mapping: &Mapping, reclaim: Reclaim) -> Result<Current, AttachError> {
    current(mapping.value().addr(), reclaim)
}
