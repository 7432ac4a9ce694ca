//! The lock: its words, its queue, its waits, and the algorithm on top.
//!
//! Knows no `T`, makes no system call but through `sys`.
//!
//! # Orderings
//!
//! Whoever waits publishes itself (in `tail`, or by its `state`) and then looks
//! at `owner` and `prev`; whoever releases or edits changes `owner` or `prev`
//! and then looks at `tail` and `state`. Each of the two must see the other if
//! it comes second, which acquire and release do not give. So every access to
//! these four words that is part of such a pair is `SeqCst`: all of them are in
//! one total order, which is also what the model of the algorithm assumes.
//!
//! One is not: the store by which an owner that nobody waited for releases the lock
//! ([`raw::RawMutex::unlock_fast`]). There the whole fence that `SeqCst` costs is left
//! to those who wait: a thread that is about to sleep as the head has every other
//! thread execute one (`membarrier`), and looks at `owner` once more. It need not if
//! the owner's id says that this owner fences itself (`FENCES`), as all do that came
//! through the queue, and all in a segment that somebody has joined who is refused
//! the call. The model has store buffers for this.
//!
//! `loom_tests` runs this code in every schedule of a few threads, on a machine
//! as weak as these orderings allow.

pub(crate) mod acquisition;
pub(crate) mod cancel;
pub(crate) mod condvar;
pub(crate) mod cycle;
#[cfg(all(test, heirlock_loom))]
mod loom_tests;
pub(crate) mod park;
pub(crate) mod queue;
pub(crate) mod raw;
mod spin;
pub(crate) mod wait;
pub(crate) mod word;
