//! The robust list: the kernel's promise to mark a word when a thread dies.
//!
//! glibc registers one list head per thread. Our nodes have the shape of its
//! robust mutexes' nodes, so that both can live on one list: a node is
//! `{prev, next}`, the list points at `next`, `prev` points at the neighbour's
//! `next`, and the futex word lies at `next + futex_offset`. See "Robust list"
//! in `kernel-notes.md`.
#![allow(unsafe_code)]

use super::atomic::{AtomicU32, Ordering, compiler_fence};
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

/// The distance from a node's `next` to its futex word that the layout of a
/// segment is built for: glibc's on 64-bit machines.
const FUTEX_OFFSET: isize = -32;

/// Bits of a life word that hold a thread ID (`FUTEX_TID_MASK`).
pub(crate) const TID_MASK: u32 = 0x3fff_ffff;
/// Asks the kernel for a wake when it marks the word (`FUTEX_WAITERS`).
pub(crate) const WAITERS: u32 = 0x8000_0000;
/// The kernel's mark (`FUTEX_OWNER_DIED`).
pub(crate) const OWNER_DIED: u32 = 0x4000_0000;
/// What the kernel leaves of a word whose thread died and that had `WAITERS`.
pub(crate) const DIED: u32 = OWNER_DIED | WAITERS;

/// How far before a page boundary a word lies whose node starts right at that
/// boundary: `next` is the node's second field.
pub(crate) const WORD_BEFORE_NODE: usize = (-FUTEX_OFFSET) as usize - size_of::<usize>();

/// What the kernel reads when the thread dies (`struct robust_list_head`).
#[repr(C)]
struct Head {
    next: usize,
    futex_offset: isize,
    pending: usize,
}

/// A node, in memory that no other process can write.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Node {
    prev: usize,
    next: usize,
}

impl Node {
    /// The address by which lists know the node.
    fn link(node: NonNull<Node>) -> usize {
        node.as_ptr().expose_provenance() + size_of::<usize>()
    }
}

/// The `prev` field that belongs to the `next` field at `link`.
fn prev_of(link: usize) -> *mut usize {
    // Bit 0 marks glibc's priority-inheriting mutexes, not an address.
    ptr::with_exposed_provenance_mut((link & !1) - size_of::<usize>())
}

/// The `next` field at `link`.
fn next_of(link: usize) -> *mut usize {
    ptr::with_exposed_provenance_mut(link & !1)
}

fn registered_head() -> Option<NonNull<Head>> {
    let mut head: *mut Head = ptr::null_mut();
    let mut len = 0usize;
    // SAFETY: pid 0 is the calling thread; both pointers are to locals of the
    // sizes that the kernel writes.
    let failed =
        unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
    NonNull::new(head).filter(|_| failed == 0 && len == size_of::<Head>())
}

/// Has a C library that registers a thread's list only when the thread first
/// uses a robust mutex do so.
#[cold]
fn register_head() {
    // SAFETY: the attributes and the mutex are initialised before they are
    // used, used by this thread alone, and destroyed before they go.
    unsafe {
        let mut attributes = core::mem::MaybeUninit::uninit();
        let mut mutex = core::mem::MaybeUninit::uninit();
        libc::pthread_mutexattr_init(attributes.as_mut_ptr());
        libc::pthread_mutexattr_setrobust(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST);
        libc::pthread_mutex_init(mutex.as_mut_ptr(), attributes.as_ptr());
        libc::pthread_mutex_lock(mutex.as_mut_ptr());
        libc::pthread_mutex_unlock(mutex.as_mut_ptr());
        libc::pthread_mutex_destroy(mutex.as_mut_ptr());
        libc::pthread_mutexattr_destroy(attributes.as_mut_ptr());
    }
}

/// The calling thread's robust list. It stays on its thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RobustList {
    head: NonNull<Head>,
    _not_send: PhantomData<*mut ()>,
}

impl RobustList {
    /// The list that the C library registered for the calling thread. `None`
    /// where the kernel refuses to tell, or where the C library's nodes have
    /// another shape than the one that segments are laid out for.
    pub(crate) fn of_this_thread() -> Option<Self> {
        if !cfg!(all(target_env = "gnu", target_pointer_width = "64")) {
            return None;
        }
        let head = registered_head().or_else(|| {
            register_head();
            registered_head()
        })?;
        // SAFETY: a registered head is `struct robust_list_head` (`len` says
        // so) and lives as long as its thread, the calling one.
        let offset = unsafe { (&raw const (*head.as_ptr()).futex_offset).read() };
        (offset == FUTEX_OFFSET).then_some(Self { head, _not_send: PhantomData })
    }

    fn head_link(&self) -> usize {
        self.head.as_ptr().expose_provenance()
    }

    /// Names the word that the kernel shall look at when this thread dies, on
    /// top of the linked ones; `None` for none. If the word's TID is this
    /// thread's the kernel marks it; if the word has no TID (it is marked
    /// already) the kernel wakes one of its waiters.
    ///
    /// Never name a word that holds this thread's TID *by coincidence* (a
    /// thread of another PID namespace): it would be declared dead with us.
    pub(crate) fn set_pending(&self, word: Option<&AtomicU32>) {
        let link =
            word.map_or(0, |word| ptr::from_ref(word).addr().wrapping_add_signed(-FUTEX_OFFSET));
        // The kernel reads the list on behalf of this very thread, so program
        // order is all the order there is to keep: the fences stop the
        // compiler, and no barrier is needed.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: the head is valid (see `of_this_thread`) and only its own
        // thread, this one, writes it; volatile, because the reader is the
        // kernel.
        unsafe { (&raw mut (*self.head.as_ptr()).pending).write_volatile(link) };
        compiler_fence(Ordering::SeqCst);
    }

    /// Puts `node` at the front of the list.
    ///
    /// # Safety
    ///
    /// `node` is writable, at `WORD_BEFORE_NODE` behind a mapped word, is on no
    /// list, and both stay mapped until [`Self::unlink`] or the thread's end.
    pub(crate) unsafe fn link(&self, node: NonNull<Node>) {
        let head = self.head_link();
        // SAFETY: by contract of this function for `node`. The neighbour is the
        // first node, whose owner (the C library or this module) keeps it
        // mapped while it is linked, or the head, before which glibc keeps a
        // `prev` field for exactly this write (`robust_prev` in its `struct
        // pthread`). Only this thread touches its list. Each store leaves the
        // chain of `next` complete, and the kernel follows nothing else.
        unsafe {
            let first = next_of(head).read_volatile();
            (&raw mut (*node.as_ptr()).prev).write_volatile(head);
            (&raw mut (*node.as_ptr()).next).write_volatile(first);
            prev_of(first).write_volatile(Node::link(node));
            compiler_fence(Ordering::SeqCst);
            next_of(head).write_volatile(Node::link(node));
            compiler_fence(Ordering::SeqCst);
        }
    }

    /// Takes `node` off the list.
    ///
    /// # Safety
    ///
    /// `node` is on this thread's list.
    pub(crate) unsafe fn unlink(&self, node: NonNull<Node>) {
        // SAFETY: the node is linked, so its neighbours are nodes or the head,
        // mapped and of this thread, as in `link`.
        unsafe {
            let prev = (&raw const (*node.as_ptr()).prev).read_volatile();
            let next = (&raw const (*node.as_ptr()).next).read_volatile();
            compiler_fence(Ordering::SeqCst);
            next_of(prev).write_volatile(next);
            prev_of(next).write_volatile(prev);
            compiler_fence(Ordering::SeqCst);
        }
    }
}
