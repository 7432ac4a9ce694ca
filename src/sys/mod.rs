//! The kernel, one thin file per interface.
//!
//! Nothing above this module makes a system call or names `libc`, and nothing
//! in it knows what a lock, a participant or a segment is. The atomics facade
//! is here for the same reason: it is the one door to the machine.

#[cfg(not(heirlock_loom))]
pub(crate) mod atomic;
#[cfg(not(heirlock_loom))]
pub(crate) mod clock;
pub(crate) mod counter;
#[cfg(all(feature = "io-uring", not(heirlock_loom)))]
pub(crate) mod event;
pub(crate) mod fault;
#[cfg(not(heirlock_loom))]
pub(crate) mod futex;
#[cfg(not(heirlock_loom))]
pub(crate) mod membarrier;
pub(crate) mod ofd_lock;
pub(crate) mod process;
#[cfg(not(heirlock_loom))]
pub(crate) mod robust_list;
pub(crate) mod shm;
#[cfg(heirlock_loom)]
pub(crate) mod simulated;
#[cfg(all(feature = "io-uring", not(heirlock_loom)))]
pub(crate) mod uring;

#[cfg(heirlock_loom)]
pub(crate) use simulated::{atomic, clock, futex, membarrier, robust_list};
