//! Futexes. The sleepers are plain data. What loom sees of a call is a look at
//! its word, which takes part in the word's modification order (see
//! `AtomicU32::latest`); the queue of sleepers is read and written with no
//! operation of loom's in between, so look and registration are one, as they
//! are under the kernel's bucket lock; and a wake, which looks too, is before or
//! after it, and loom tries both.

use super::atomic::AtomicU32;
use super::clock::Deadline;
use super::{machine, step, tid};
use core::ptr;
use rustix::io::Errno;

/// Why a wait ended; as in the real module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "no signals here, and no kernel without futex_waitv")]
pub(crate) enum Woken {
    /// Woken, or one of the words had changed already.
    Look,
    /// A signal handler ran.
    Signal,
    /// The deadline passed.
    TimedOut,
    /// The poll of the fallback.
    Poll,
}

/// On how many words a thread sleeps at most; as in the real module.
pub(crate) const MAX_WORDS: usize = 3;

/// As in the real module.
pub(crate) const WAITV_MAX: usize = 128;

/// A word and the value with which its waiter sleeps.
pub(crate) type Expect<'a> = (&'a AtomicU32, u32);

/// A thread in a futex call.
#[derive(Debug)]
pub(super) struct Sleeper {
    tid: u32,
    /// On which words it is queued; none once it was woken.
    words: Vec<usize>,
    thread: loom::thread::Thread,
}

/// Sleeps while the words have the values given, until woken on one of them. A
/// deadline that comes passes at once: as the words were right, that is one of
/// the things that may happen, and whatever happens later happens to a waiter
/// that is about to give up.
///
/// # Errors
///
/// None; the real one has some.
pub(crate) fn wait(
    words: &[Expect],
    until: Deadline,
    _interruptible: bool,
) -> Result<Woken, Errno> {
    if !step() {
        return Ok(Woken::Look);
    }
    let me = tid();
    // As futex_waitv: word by word, look and queue; off all queues if one
    // differs.
    for &(word, expected) in words {
        if word.latest() != expected {
            leave(me);
            return Ok(Woken::Look);
        }
        let address = ptr::from_ref(word).addr();
        let thread = loom::thread::current();
        machine(|machine| match machine.sleepers.iter_mut().find(|one| one.tid == me) {
            // Woken on the first word already: that is for good.
            Some(sleeper) if sleeper.words.is_empty() => {}
            Some(sleeper) => sleeper.words.push(address),
            None => machine.sleepers.push(Sleeper { tid: me, words: vec![address], thread }),
        });
    }
    if until.comes() {
        let woken = leave(me);
        return Ok(if woken { Woken::Look } else { Woken::TimedOut });
    }
    while machine(|machine| {
        machine.sleepers.iter().any(|one| one.tid == me && !one.words.is_empty())
    }) {
        loom::thread::park();
    }
    leave(me);
    Ok(Woken::Look)
}

/// For the helper, of which there is no model.
pub(crate) fn wait_beside(
    _own: Expect,
    _others: &[(usize, u32)],
    _until: Deadline,
) -> Result<Woken, Errno> {
    Err(Errno::NOSYS)
}

/// For the helper, too.
pub(crate) fn has_changed(_words: &[(usize, u32)]) -> bool {
    true
}

/// Off all queues; whether a wake came before.
fn leave(tid: u32) -> bool {
    machine(|machine| {
        let at = machine.sleepers.iter().position(|one| one.tid == tid);
        at.is_some_and(|at| machine.sleepers.remove(at).words.is_empty())
    })
}

/// Wakes every sleeper on `word`.
pub(crate) fn wake_all(word: &AtomicU32) {
    if step() {
        wake_at(ptr::from_ref(word).addr(), usize::MAX);
    }
}

/// Wakes up to `count` of those who sleep on the word at `address`, the first
/// come first.
pub(super) fn wake_at(address: usize, count: usize) {
    // For loom, which is to try this before and after each wait on the word.
    AtomicU32::latest_at(address);
    machine(|machine| {
        let asleep = machine.sleepers.iter_mut().filter(|one| one.words.contains(&address));
        for sleeper in asleep.take(count) {
            sleeper.words.clear();
            sleeper.thread.unpark();
        }
    });
}
