//! Which row the calling thread has in the segment around an address.
#![allow(unsafe_code)]

use super::attach::{AttachError, Attachment, Reclaim, attach, forget_process_identity};
use crate::memory::map::Mapping;
use crate::memory::registry::{self, Found};
use crate::sys::atomic::AtomicU32;
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
    fn new(attachment: NonNull<Attachment>) -> Self {
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

    /// Whether both are the same attachment, whatever their bits.
    pub(crate) fn is_same(self, other: Self) -> bool {
        self.unmarked() == other.unmarked()
    }

    #[inline(always)]
    fn unmarked(self) -> NonNull<Attachment> {
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
        // open; `prune` leaves open segments alone. In a forked child the
        // parent's attachments are leaked.
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

/// An attachment and the addresses for which it is the answer.
struct Entry {
    range: Range<usize>,
    /// In which epoch that was found; `None` if it holds for as long as the
    /// attachment, which keeps its mapping where it is.
    epoch: Option<u32>,
    attachment: NonNull<Attachment>,
}

thread_local! {
    static HOT: Cell<Hot> = const { Cell::new(COLD) };

    /// All attachments of the thread. Without a destructor, so that it works
    /// in the destructors of other thread-locals; `LEAVE` empties it.
    static ALL: ManuallyDrop<RefCell<Vec<Entry>>> =
        const { ManuallyDrop::new(RefCell::new(Vec::new())) };

    static LEAVE: Leave = const { Leave };
}

/// Leaves every segment when the thread ends. What attaches later, in the
/// destructors of other thread-locals, stays until the kernel marks it.
struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        HOT.set(COLD);
        let entries = ALL.with(|all| all.take());
        let mut unmarked = Vec::new();
        for entry in entries {
            // SAFETY: the entries own their attachments, and both places that
            // hand them out have just been emptied; a `Current` in a guard
            // that outlives this keeps `held` above 0, and then the memory is
            // not freed.
            let attachment = unsafe { Box::from_raw(entry.attachment.as_ptr()) };
            if attachment.is_of_this_process() {
                unmarked.extend(attachment.leave_at_thread_end());
            } else {
                std::mem::forget(attachment);
            }
        }
        if !unmarked.is_empty() {
            // Not yet: a thread-local that goes later may hold a guard.
            let unmarked = Box::into_raw(Box::new(unmarked));
            if !process::after_thread_locals(mark_dead, unmarked.cast()) {
                // SAFETY: nobody else has taken it.
                unsafe { mark_dead(unmarked.cast()) };
            }
        }
    }
}

/// # Safety
///
/// `unmarked` is a `Box<Vec<NonNull<Attachment>>>`, which this takes, of leaked
/// attachments of the calling thread.
unsafe extern "C" fn mark_dead(unmarked: *mut core::ffi::c_void) {
    // SAFETY: by contract.
    let unmarked = unsafe { Box::from_raw(unmarked.cast::<Vec<NonNull<Attachment>>>()) };
    for attachment in *unmarked {
        // SAFETY: by contract.
        let attachment = unsafe { attachment.as_ref() };
        // A child that a thread-local's destructor forked ends its thread, too.
        if attachment.is_of_this_process() {
            attachment.mark_dead();
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
    let epoch = registry::epoch();
    let known = ALL.with(|all| {
        let all = all.borrow();
        let hit = |entry: &&Entry| {
            entry.range.contains(&address) && entry.epoch.is_none_or(|valid| valid == epoch)
        };
        all.iter().find(hit).map(|entry| (entry.range.clone(), entry.attachment))
    });
    let (range, attachment) = match known {
        Some(known) => known,
        None => join(address, epoch, reclaim)?,
    };
    let (start, len) = (range.start, range.end - range.start);
    HOT.set(Hot { start, len, epoch, attachment: attachment.as_ptr() });
    Ok(Current::new(attachment))
}

fn join(
    address: usize,
    epoch: u32,
    reclaim: Reclaim,
) -> Result<(Range<usize>, NonNull<Attachment>), AttachError> {
    let found = registry::lock().find(address, Mapping::private);
    let found = found.map_err(|source| AttachError::Io { step: "map private memory", source })?;
    let (mapping, range, epoch) = match found {
        Found::Shared(mapping) => {
            let range = mapping.range();
            (mapping, range, None)
        }
        Found::Private(mapping, gap) => (mapping, gap, Some(epoch)),
    };
    let attached = ALL.with(|all| {
        let mut all = all.borrow_mut();
        let entry = all.iter_mut().find(|entry| Arc::ptr_eq(mapping_of(entry), &mapping))?;
        entry.range = range.clone();
        entry.epoch = epoch;
        Some(entry.attachment)
    });
    let attachment = match attached {
        Some(attachment) => attachment,
        None => {
            static FORK_HANDLER: AtomicU32 = AtomicU32::new(0);
            process::at_fork(&FORK_HANDLER, nothing, nothing, disown_parent);
            let attachment = NonNull::from(Box::leak(attach(&mapping, reclaim)?));
            let entry = Entry { range: range.clone(), epoch, attachment };
            ALL.with(|all| all.borrow_mut().push(entry));
            // Registers the destructor; fails where it has run.
            let _ = LEAVE.try_with(|_| ());
            attachment
        }
    };
    Ok((range, attachment))
}

extern "C" fn nothing() {}

/// In a forked child: what its one thread has copied is its parent's. Guards
/// find that out from the attachment, so it is not freed.
extern "C" fn disown_parent() {
    HOT.set(COLD);
    forget_process_identity();
    // glibc does not. A handler may have forked in the middle of a wait.
    if let Some(list) = RobustList::of_this_thread() {
        list.set_pending(None);
    }
    ALL.with(|all| {
        // Borrowed only if a signal handler forked in the middle of an attach.
        for entry in all.try_borrow().iter().flat_map(|all| all.iter()) {
            // SAFETY: entries own their attachments.
            unsafe { entry.attachment.as_ref() }.disown();
        }
    });
}

fn mapping_of(entry: &Entry) -> &Arc<Mapping> {
    // SAFETY: entries own their attachments.
    unsafe { entry.attachment.as_ref() }.mapping()
}

/// Drops the attachments that are no longer of use: to segments that nobody in
/// the process has open, and, in a forked child, those of its parent.
pub(crate) fn prune() {
    let gone: Vec<Entry> = ALL.with(|all| {
        let stale = |entry: &mut Entry| {
            // SAFETY: entries own their attachments.
            let attachment = unsafe { entry.attachment.as_ref() };
            !attachment.is_of_this_process()
                || attachment.mapping().is_shared()
                    && !attachment.mapping().is_open()
                    && attachment.holds_nothing()
                    && !attachment.is_broken()
        };
        let mut all = all.borrow_mut();
        if all.iter_mut().any(stale) { all.extract_if(.., stale).collect() } else { Vec::new() }
    });
    for entry in gone {
        HOT.set(COLD);
        // SAFETY: the entry owned it, and is gone; nothing else refers to it:
        // it holds no lock, and its segment is closed, or it is the parent's,
        // and then it is leaked for the sake of copied guards.
        let attachment = unsafe { Box::from_raw(entry.attachment.as_ptr()) };
        if attachment.is_of_this_process() {
            attachment.detach();
        } else {
            std::mem::forget(attachment);
        }
    }
}

/// The row of the calling thread in `mapping`, joining at the first need.
pub(crate) fn current_in(mapping: &Mapping, reclaim: Reclaim) -> Result<Current, AttachError> {
    current(mapping.value().addr(), reclaim)
}
