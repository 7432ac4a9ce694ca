//! Futex calls. Every word is shared (no `FUTEX_PRIVATE_FLAG`), even in memory
//! of one process: the kernel's death notice wakes shared keys only.

use super::atomic::{AtomicU32, Ordering};
use super::clock::Deadline;
use core::ptr;
use rustix::io::Errno;
use rustix::thread::futex;
use std::time::Duration;

/// Where `futex_waitv` is missing, a sleeper looks at the second word this
/// often. See "futex_waitv" in `kernel-notes.md`.
const POLL: Duration = Duration::from_millis(20);

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

/// Sleeps while both words have the values given, until woken on either.
///
/// # Errors
///
/// What the kernel says beyond the expected: `EFAULT` when the memory is gone
/// (a truncated file), `ENOMEM` when it has none.
pub(crate) fn wait_pair(own: Expect, watched: Expect, until: Deadline) -> Result<Woken, Errno> {
    // Relaxed: the flag only saves a system call that would fail.
    if NO_WAITV.load(Ordering::Relaxed) == 0 {
        match waitv(own, watched, until) {
            Err(Errno::NOSYS | Errno::PERM) => NO_WAITV.store(1, Ordering::Relaxed),
            done => return done,
        }
    }
    let poll = Deadline::after(POLL).map_or(until, |poll| poll.min(until));
    // Relaxed: a hint that saves a poll; the caller re-reads it properly.
    if watched.0.load(Ordering::Relaxed) != watched.1 {
        return Ok(Woken::Look);
    }
    let flags = futex::Flags::empty();
    let any = core::num::NonZeroU32::MAX;
    let slept = futex::wait_bitset(own.0.word(), flags, own.1, Some(&poll.timespec()), any);
    let timeout = if poll == until { Woken::TimedOut } else { Woken::Poll };
    outcome(slept.map(drop), timeout)
}

fn waitv(own: Expect, watched: Expect, until: Deadline) -> Result<Woken, Errno> {
    let entry = |(word, value): Expect| {
        let mut wait = futex::Wait::new();
        wait.val = u64::from(value);
        wait.uaddr = futex::WaitPtr::new(ptr::from_ref(word.word()).cast_mut().cast());
        wait.flags = futex::WaitFlags::SIZE_U32;
        wait
    };
    let words = [entry(own), entry(watched)];
    let clock = rustix::time::ClockId::Monotonic;
    let flags = futex::WaitvFlags::empty();
    let slept = futex::waitv(&words, flags, Some(&until.timespec()), clock);
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

/// Wakes every sleeper on `word`. It cannot fail in a way that matters: the
/// word is mapped, so the kernel finds its key, or the file has been truncated
/// and nobody can sleep there.
pub(crate) fn wake_all(word: &AtomicU32) {
    let _ = futex::wake(word.word(), futex::Flags::empty(), i32::MAX as u32);
}
