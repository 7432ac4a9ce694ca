//! Locks that live in shared memory and outlive the processes that use them.
//!
//! A [`Mutex`] in a [`Segment`] (a file in `/dev/shm`, or anywhere; a memfd) is
//! shared by every process that maps it:
//!
//! * **First in, first out.** Whoever queued first is served first, whatever
//!   happens to the others. The queue is in the segment.
//! * **Inherited from the dead.** `kill -9` any process at any instruction: the
//!   next in line gets the lock at once, is told so once
//!   ([`MutexGuard::inherited`]), and goes on. There is no poisoning and no
//!   state in which the lock stays unusable.
//! * **Nothing to set up per lock.** 16 bytes, all zero means unlocked,
//!   `const fn new`; works in a segment, in a `static`, on the heap.
//! * **No trust in the peers' memory.** No pointer is stored in shared memory,
//!   every index read from it is checked, every walk is bounded: garbage ends
//!   in an error or a panic with a message, never in a stray access or an
//!   endless loop.
//! * **Namespaces do not matter.** Two threads with the same TID in two PID
//!   namespaces are two participants.
//!
//! Beside locks there is [parking](thread), the primitive for whatever else threads of
//! several processes wait for. Programs with an event loop wait for locks as [`future`]s,
//! or in an io_uring of their own (the module `uring`), and whoever wants one of several locks [`select`]s.
//!
//! ```
//! use heirlock::{Mutex, Segment};
//! use zerocopy::FromBytes;
//!
//! #[derive(FromBytes)]
//! #[repr(C)]
//! struct Shared {
//!     counter: Mutex<u64>,
//! }
//!
//! # let path = format!("/dev/shm/heirlock-doc-{}", std::process::id());
//! // Any number of processes may do this; the first creates the segment.
//! let segment: Segment<Shared> = Segment::open_or_create(&path)?;
//!
//! let mut counter = segment.counter.lock();
//! if let Some(dead) = heirlock::MutexGuard::inherited(&counter) {
//!     println!("{dead} died with the lock: repair what it may have left torn");
//! }
//! *counter += 1;
//! # drop(counter);
//! # Segment::unlink(&path)?;
//! # Ok::<(), heirlock::SegmentError>(())
//! ```
//!
//! # Your own types
//!
//! What is in a segment derives [`zerocopy::FromBytes`], which makes certain that any
//! bytes are one, and is `#[repr(C)]`, so that all processes agree on where what lies.
//! Nothing is to be implemented by hand. Without a dependency on `zerocopy` of its own a
//! crate derives it by the one that is [re-exported](zerocopy) here:
//!
//! ```
//! use heirlock::{CancelToken, Mutex, Segment};
//!
//! #[derive(heirlock::zerocopy::FromBytes)]
//! #[zerocopy(crate = "heirlock::zerocopy")]
//! #[repr(C)]
//! struct Job {
//!     parameters: [f64; 4],
//!     /// Not a `bool`, an enum or an `Option`: another process may have written anything.
//!     state: u32,
//!     retries: u32,
//! }
//!
//! #[derive(heirlock::zerocopy::FromBytes)]
//! #[zerocopy(crate = "heirlock::zerocopy")]
//! #[repr(C)]
//! struct Shared {
//!     jobs: [Mutex<Job>; 16],
//!     stop: CancelToken,
//! }
//!
//! let segment: Segment<Shared> = Segment::anonymous()?;
//! segment.jobs[3].lock().state = 1;
//! # Ok::<(), heirlock::SegmentError>(())
//! ```
//!
//! # Features
//!
//! * `io-uring` (on by default): `uring`, and futures that wait in a ring. It needs Linux 6.7 when
//!   the program runs; where that is not to be had, or refused, futures do without.
//! * `tokio` (off by default): a ring that tokio watches.
//! * `lock_api` (off by default): `RawMutex` and `RawCondvar`, for `lock_api::Mutex` and
//!   `Condvar` of version 0.5.
//!
//! # What it does not do
//!
//! * The data is as the dead owner left it, perhaps torn. Repairing it is the
//!   heir's business; only types for which every bit pattern is valid
//!   ([`zerocopy::FromBytes`]) can live in a segment.
//! * Deadlocks are found, and ended, where that is asked for only; see [`deadlock`].
//! * A process that is stopped (`SIGSTOP`) while it holds a lock is alive: the
//!   others wait.
//! * Locks cannot be used in signal handlers (which may cancel waits, and
//!   [unpark](thread::Thread::unpark)).
//! * A child made by a raw `clone` or `vfork`, past `pthread_atfork`, must not
//!   use what it copied. It has copied the descriptor, too, by which others see that its
//!   parent is gone: what that held as a process, by the guards of futures and leaked
//!   ones, is not inherited before the child has ended, or called `exec` (as one of
//!   `posix_spawn` does at once).
//!
//! The kernel facts behind this, each with the test that checks it, are in
//! `kernel-notes.md`; the structure of the code is in `ARCHITECTURE.md`. The [`guide`]
//! has a chapter for each type, and for those who come from pthreads or parking_lot.

#![cfg(target_os = "linux")]
#![cfg_attr(heirlock_loom, allow(dead_code, reason = "the models use a part of the crate"))]

mod condvar;
pub mod deadlock;
mod error;
#[cfg(not(heirlock_loom))]
pub mod future;
mod inspect;
mod lock;
#[cfg(feature = "lock_api")]
mod lock_api;
mod lock_options;
mod memory;
mod mutex;
mod participant;
mod segment;
#[cfg(not(heirlock_loom))]
pub mod select;
mod sys;
pub mod thread;
#[cfg(all(feature = "tokio", not(heirlock_loom)))]
pub mod tokio;
#[cfg(all(feature = "io-uring", not(heirlock_loom)))]
pub mod uring;

#[doc = include_str!("signals.md")]
pub mod signals {}

/// Chapters: how to use what is here, and how to come here from elsewhere.
pub mod guide {
    #[doc = include_str!("guide/mutex.md")]
    pub mod mutex {}

    #[doc = include_str!("guide/condvar.md")]
    pub mod condvar {}

    #[cfg(not(heirlock_loom))]
    #[doc = include_str!("guide/asynchronous.md")]
    pub mod asynchronous {}

    #[doc = include_str!("guide/segment.md")]
    pub mod segment {}

    #[doc = include_str!("guide/from_pthread.md")]
    pub mod from_pthread {}

    #[doc = include_str!("guide/from_parking_lot.md")]
    pub mod from_parking_lot {}
}

#[cfg(feature = "lock_api")]
pub use self::lock_api::{RawCondvar, RawGuard, RawMutex};
pub use condvar::{Condvar, WaitTimeoutResult};
pub use error::{Cancelled, Interrupted, LockError, NameError, Unusable};
pub use inspect::{
    InspectError, LockView, ParticipantView, Snapshot, Statistics, WaitView, is_alive, owner,
    queue, statistics, waiters,
};
pub use lock::cancel::{CancelToken, Canceller};
pub use lock::word::Policy;
pub use lock_options::LockOptions;
pub use memory::error::SegmentError;
pub use mutex::{DeadOwner, MappedMutexGuard, Mutex, MutexGuard};
pub use participant::attach::AttachError;
pub use segment::{Options, Participant, Segment};
/// The crate whose derives make a type fit for a segment; see
/// [above](crate#your-own-types).
pub use zerocopy;
