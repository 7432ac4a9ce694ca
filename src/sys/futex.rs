//! Futex calls. Every word is shared (no `FUTEX_PRIVATE_FLAG`), even in memory
//! of one process: the kernel's death notice wakes shared keys only.

#![allow(unsafe_code)]

use super::atomic::{AtomicU32, Ordering};
use super::clock::Deadline;
use super::fault::{Fault, active};
use core::ptr;
use rustix::io::Errno;
use rustix::thread::futex;
use std::time::Duration;

/// Where `futex_waitv` is missing or of no use, a sleeper looks at all words but
/// the first this often. See "futex_waitv" in `kernel-notes.md`.
const POLL: Duration = Duration::from_millis(20);

/// On how many words a thread sleeps at most that waits in one queue.
pub(crate) const MAX_WORDS: usize = 3;

/// On how many words the kernel lets anybody sleep (`FUTEX_WAITV_MAX`).
pub(crate) const WAITV_MAX: usize = 128;

/// How often a wake is tried.
const TRIES: u32 = 8;

/// Why a wait ended. All but `TimedOut` mean "look at your words again".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// Woken, or one of the words had changed already.
    Look,
    /// A signal handler ran.
    Signal,
    /// The deadline passed.
    TimedOut,
    /// The poll of the fallback: nothing happened that the kernel knows of.
    Poll,
}

/// Whether the kernel has been found to refuse `futex_waitv` (`ENOSYS`, or
/// `EPERM` from a seccomp filter).
static NO_WAITV: AtomicU32 = AtomicU32::new(0);

/// A word and the value with which its waiter sleeps.
pub(crate) type Expect<'a> = (&'a AtomicU32, u32);

/// Sleeps while the words, of which there are one to [`WAITV_MAX`], have the
/// values given, until woken on one of them.
///
/// A signal handler that was installed without `SA_RESTART` ends the sleep
/// ([`Woken::Signal`]). One with it does so only if the sleep is
/// `interruptible`, and then the sleeper is woken on the first word alone: it
/// looks at the others every [`POLL`]. See "Signals" in `kernel-notes.md`.
///
/// # Errors
///
/// What the kernel says beyond the expected: `EFAULT` when the memory is gone
/// (a truncated file), `ENOMEM` when it has none.
pub(crate) fn wait(words: &[Expect], until: Deadline, interruptible: bool) -> Result<Woken, Errno> {
    // Relaxed: the flag only saves a system call that would fail.
    if !interruptible && NO_WAITV.load(Ordering::Relaxed) == 0 {
        let done = match words.len() {
            ..=MAX_WORDS => waitv::<MAX_WORDS>(words.iter().map(place), until),
            _ => wait_for_many(words, until),
        };
        match done {
            Err(Errno::NOSYS | Errno::PERM) => NO_WAITV.store(1, Ordering::Relaxed),
            done => return done,
        }
    }
    let [(own, value), others @ ..] = words else { return Ok(Woken::Look) };
    let poll = Deadline::after(POLL).filter(|_| !others.is_empty());
    let poll = poll.map_or(until, |poll| poll.min(until));
    // Relaxed: a hint that saves a poll; the caller re-reads it properly.
    let changed = |(word, value): &Expect| word.load(Ordering::Relaxed) != *value;
    if others.iter().any(changed) && !active(Fault::NoPoll) {
        return Ok(Woken::Look);
    }
    let flags = futex::Flags::empty();
    let any = core::num::NonZeroU32::MAX;
    let slept = futex::wait_bitset(own.word(), flags, *value, Some(&poll.timespec()), any);
    let timeout = if poll == until { Woken::TimedOut } else { Woken::Poll };
    outcome(slept.map(drop), timeout)
}

/// The same on `own` and on words elsewhere, of which the kernel alone reads: they may be
/// unmapped at any time. Where `futex_waitv` is missing it sleeps for [`POLL`] at most,
/// and they are for the caller to look at.
pub(crate) fn wait_beside(
    own: Expect,
    others: &[(usize, u32)],
    until: Deadline,
) -> Result<Woken, Errno> {
    // Relaxed: as above.
    if NO_WAITV.load(Ordering::Relaxed) == 0 {
        let own = (ptr::from_ref(own.0.word()).addr(), own.1);
        let words = core::iter::once(own).chain(others.iter().copied());
        match waitv::<WAITV_MAX>(words, until) {
            Err(Errno::NOSYS | Errno::PERM) => NO_WAITV.store(1, Ordering::Relaxed),
            done => return done,
        }
    }
    let poll = Deadline::after(POLL).filter(|_| !others.is_empty());
    wait(&[own], poll.map_or(until, |poll| poll.min(until)), false)
}

/// Whether one of the words has another value than the one given, or is no memory any more:
/// the kernel alone reads them, for a wait whose time is over.
pub(crate) fn has_changed(words: &[(usize, u32)]) -> bool {
    let now = Deadline::now();
    // Relaxed: as above.
    if NO_WAITV.load(Ordering::Relaxed) != 0 {
        return words.iter().any(|word| wait_apart(*word, now) != Ok(Woken::TimedOut));
    }
    let each = |words: &[_]| waitv::<WAITV_MAX>(words.iter().copied(), now);
    match words.chunks(WAITV_MAX).map(each).find(|slept| *slept != Ok(Woken::TimedOut)) {
        Some(Err(Errno::NOSYS | Errno::PERM)) => {
            NO_WAITV.store(1, Ordering::Relaxed);
            has_changed(words)
        }
        found => found.is_some(),
    }
}

/// Sleeps on one word elsewhere, as in [`wait_beside`].
fn wait_apart((word, value): (usize, u32), until: Deadline) -> Result<Woken, Errno> {
    let word: *const u32 = ptr::with_exposed_provenance(word);
    let (until, any) = (until.timespec(), u32::MAX);
    let unused: *const u32 = ptr::null();
    // `rustix` wants a reference, and there may be nothing.
    // SAFETY: the kernel looks whether `word` is memory; it reads the time, which is there,
    // in the layout of its own that `rustix` gives it on 64-bit machines.
    let slept = unsafe {
        let wait = libc::FUTEX_WAIT_BITSET;
        libc::syscall(libc::SYS_futex, word, wait, value, &raw const until, unused, any)
    };
    let slept = if slept == 0 { Ok(()) } else { Err(last_error()) };
    outcome(slept, Woken::TimedOut)
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// Where the word is, and its value.
fn place((word, value): &Expect) -> (usize, u32) {
    (ptr::from_ref(word.word()).addr(), *value)
}

/// Apart, for it takes three kilobytes of the stack.
#[cold]
#[inline(never)]
fn wait_for_many(words: &[Expect], until: Deadline) -> Result<Woken, Errno> {
    waitv::<WAITV_MAX>(words.iter().map(place), until)
}

/// `N` words at most.
fn waitv<const N: usize>(
    words: impl Iterator<Item = (usize, u32)>,
    until: Deadline,
) -> Result<Woken, Errno> {
    let mut waits = [const { futex::Wait::new() }; N];
    let mut len = 0;
    for (wait, (word, value)) in waits.iter_mut().zip(words) {
        wait.val = u64::from(value);
        wait.uaddr = futex::WaitPtr::new(ptr::with_exposed_provenance_mut(word));
        wait.flags = futex::WaitFlags::SIZE_U32;
        len += 1;
    }
    let clock = rustix::time::ClockId::Monotonic;
    let flags = futex::WaitvFlags::empty();
    let slept = futex::waitv(&waits[..len], flags, Some(&until.timespec()), clock);
    outcome(slept.map(drop), Woken::TimedOut)
}

fn outcome(slept: Result<(), Errno>, timeout: Woken) -> Result<Woken, Errno> {
    match slept {
        Ok(()) | Err(Errno::AGAIN) => Ok(Woken::Look),
        Err(Errno::INTR) => Ok(Woken::Signal),
        Err(Errno::TIMEDOUT) => Ok(timeout),
        Err(other) => Err(other),
    }
}

/// Wakes every sleeper on `word`. Async-signal-safe: one system call, made
/// without the C library, and so without its `errno`.
///
/// It cannot fail in a way that matters: the word is mapped, so the kernel finds
/// its key, or the file has been truncated and nobody can sleep there
/// (`EFAULT`). If it says anything else, such as that it has no memory for the
/// moment, it is asked again; should that go on, the sleepers' heartbeat makes
/// up for the wake.
pub(crate) fn wake_all(word: &AtomicU32) {
    for _ in 0..TRIES {
        match futex::wake(word.word(), futex::Flags::empty(), i32::MAX as u32) {
            Ok(_) | Err(Errno::FAULT) => return,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_a_word_has_changed_is_told_with_waitv_and_without() {
        let words: Vec<AtomicU32> = (0..300).map(AtomicU32::new).collect();
        let of = |word: &AtomicU32| {
            (ptr::from_ref(word).expose_provenance(), word.load(Ordering::Relaxed))
        };
        let mut seen: Vec<(usize, u32)> = words.iter().map(of).collect();
        assert!(!has_changed(&seen));
        assert_eq!(wait_apart(seen[0], Deadline::now()), Ok(Woken::TimedOut));
        for at in [0, 150, 299] {
            words[at].fetch_add(1, Ordering::Relaxed);
            assert!(has_changed(&seen));
            assert_eq!(wait_apart(seen[at], Deadline::now()), Ok(Woken::Look));
            seen[at].1 += 1;
        }
        assert!(!has_changed(&seen));
        // No memory.
        seen[200].0 = 64;
        assert!(has_changed(&seen));
        assert_eq!(wait_apart(seen[200], Deadline::now()), Err(Errno::FAULT));
    }
}
