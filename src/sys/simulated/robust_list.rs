//! Robust lists, and what the kernel does with them when a thread dies: see
//! "Robust list" in `kernel-notes.md`.

use super::atomic::AtomicU32;
use super::{futex, machine, step, tid};
use core::ptr::{self, NonNull};

/// As in the real module.
pub(crate) const TID_MASK: u32 = 0x3fff_ffff;
/// As in the real module.
pub(crate) const WAITERS: u32 = 0x8000_0000;
/// As in the real module.
pub(crate) const OWNER_DIED: u32 = 0x4000_0000;
/// As in the real module.
pub(crate) const DIED: u32 = OWNER_DIED | WAITERS;
/// As in the real module.
pub(crate) const WORD_BEFORE_NODE: usize = 24;

/// A node. Only its address counts.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Node {
    links: [usize; 2],
}

/// The list of the simulated thread that uses it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RobustList;

fn word_of(node: NonNull<Node>) -> usize {
    node.as_ptr().addr() - WORD_BEFORE_NODE
}

impl RobustList {
    /// The calling thread's.
    pub(crate) fn of_this_thread() -> Option<Self> {
        Some(Self)
    }

    /// Names the word that the kernel shall look at when this thread dies.
    pub(crate) fn set_pending(&self, word: Option<&AtomicU32>) {
        if step() {
            let tid = tid() as usize;
            let address = word.map_or(0, |word| ptr::from_ref(word).addr());
            machine(|machine| machine.tasks[tid].pending = address);
        }
    }

    /// Puts `node` at the front of the list.
    #[allow(unsafe_code, reason = "the real function is unsafe; this one needs nothing")]
    pub(crate) unsafe fn link(&self, node: NonNull<Node>) {
        if step() {
            let tid = tid() as usize;
            machine(|machine| machine.tasks[tid].list.insert(0, word_of(node)));
        }
    }

    /// Takes `node` off the list.
    #[allow(unsafe_code, reason = "the real function is unsafe; this one needs nothing")]
    pub(crate) unsafe fn unlink(&self, node: NonNull<Node>) {
        if step() {
            let tid = tid() as usize;
            machine(|machine| machine.tasks[tid].list.retain(|word| *word != word_of(node)));
        }
    }
}

/// The kernel's part of a death (`exit_robust_list`): the words on the list, the
/// pending one last.
pub(super) fn exit(tid: u32) {
    let (list, pending) = machine(|machine| {
        let task = &mut machine.tasks[tid as usize];
        (core::mem::take(&mut task.list), core::mem::take(&mut task.pending))
    });
    for word in list {
        if word != pending {
            mark(tid, word, false);
        }
    }
    if pending != 0 {
        mark(tid, pending, true);
    }
}

/// `handle_futex_death`.
fn mark(tid: u32, address: usize, pending: bool) {
    let mut found = AtomicU32::latest_at(address);
    loop {
        let owner = found & TID_MASK;
        if owner == 0 && pending {
            futex::wake_at(address, 1);
        }
        if owner != tid {
            return;
        }
        match AtomicU32::mark_at(address, found, found & WAITERS | OWNER_DIED) {
            Ok(_) => break,
            Err(now) => found = now,
        }
    }
    if found & WAITERS != 0 {
        futex::wake_at(address, 1);
    }
}
