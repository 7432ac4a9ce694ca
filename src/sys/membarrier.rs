//! The store-load fence that one thread executes for all: `membarrier(2)` with
//! `MEMBARRIER_CMD_GLOBAL_EXPEDITED`, since Linux 4.16.

use super::atomic::{Ordering, compiler_fence};
use rustix::thread::{MembarrierCommand, membarrier};

/// Has this process's threads take part in [`heavy`] fences, for good.
/// `false` where the kernel, or a sandbox, refuses.
pub(crate) fn register() -> bool {
    membarrier(MembarrierCommand::RegisterGlobalExpedited).is_ok()
}

/// The rare half of a store-load fence: every thread of every process that has
/// [registered](register) executes a full fence while the call lasts. `false`
/// where it is refused; then nothing is fenced.
pub(crate) fn heavy() -> bool {
    membarrier(MembarrierCommand::GlobalExpedited).is_ok()
}

/// The frequent half: keeps what stands before it and what stands behind it
/// apart in the program; the processor is free to swap them until somebody
/// calls [`heavy`].
#[inline(always)]
pub(crate) fn light() {
    compiler_fence(Ordering::SeqCst);
}
