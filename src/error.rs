//! Why a lock was not acquired: an enum for each call, and one for all. And why one was
//! not given a name.

use crate::deadlock::Cycle;
use crate::lock::acquisition::NotBegun;
use crate::lock::raw::Failed;
use crate::memory::error::Corrupted;
use crate::memory::names::NAME_LEN;
use crate::participant::attach::AttachError;
use core::fmt;
use std::error::Error;
use std::io;

/// Why the calling thread cannot wait for the lock, or the condition variable, at
/// all. The calls that return no error panic with this.
#[derive(Debug)]
#[non_exhaustive]
pub enum Unusable {
    /// The thread holds the lock already, or has an acquisition of it under way that it does
    /// not sleep for: it would wait for itself for ever.
    WouldDeadlock,
    /// Others wait for the condition variable to return to another mutex. All that
    /// wait for one at a time use the same mutex.
    OtherMutex,
    /// The condition variable lies in another segment than the mutex, or in none.
    OtherSegment,
    /// The thread and others wait for each other for ever, and of these it was chosen to
    /// give up, so that the others proceed when it drops the locks that it holds. Only
    /// if that was asked for; see [`deadlock`](crate::deadlock).
    Deadlock(Cycle),
    /// The thread could not join the segment.
    Attach(AttachError),
    /// One can wait for any of a number of locks, but not for any of so many, or of none.
    NumberOfLocks {
        /// How many they were.
        found: usize,
        /// How many they may be.
        max: usize,
    },
    /// The kernel does not take what waits for the lock without a thread; see
    /// [`uring`](crate::uring).
    Refused(io::Error),
    /// The segment holds what no participant can have written.
    Corrupted {
        /// What that was.
        what: &'static str,
    },
}

/// Why [`Mutex::lock_interruptible`](crate::Mutex::lock_interruptible) did not
/// acquire the lock.
#[derive(Debug)]
#[non_exhaustive]
pub enum Interrupted {
    /// A signal handler ran in the thread while it slept.
    Signal,
    /// The thread cannot wait for the lock.
    Unusable(Unusable),
}

/// Why [`Mutex::lock_cancellable`](crate::Mutex::lock_cancellable) did not
/// acquire the lock.
#[derive(Debug)]
#[non_exhaustive]
pub enum Cancelled {
    /// The token was cancelled.
    Token,
    /// The thread cannot wait for the lock.
    Unusable(Unusable),
}

/// Why a lock was not acquired, whatever the call. The errors of the single
/// calls convert into it.
///
/// # Examples
///
/// ```
/// use heirlock::{CancelToken, LockError, Mutex};
/// static STOP: CancelToken = CancelToken::new();
///
/// fn add(total: &Mutex<u64>, n: u64) -> Result<(), LockError> {
///     *total.lock_cancellable(&STOP)? += n;
///     *total.lock_interruptible()? += n;
///     Ok(())
/// }
/// let total = Mutex::new(0);
/// add(&total, 2)?;
/// STOP.canceller().cancel();
/// let error = add(&total, 2).unwrap_err();
/// assert!(matches!(error, LockError::Cancelled));
/// assert!(error.to_string().starts_with("the wait was cancelled"));
/// # Ok::<(), LockError>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum LockError {
    /// The time was over.
    TimedOut,
    /// The token was cancelled.
    Cancelled,
    /// A signal handler ran in the thread while it slept.
    Interrupted,
    /// The thread cannot wait for the lock.
    Unusable(Unusable),
}

impl From<Unusable> for LockError {
    fn from(unusable: Unusable) -> Self {
        Self::Unusable(unusable)
    }
}

impl From<Interrupted> for LockError {
    fn from(error: Interrupted) -> Self {
        match error {
            Interrupted::Signal => Self::Interrupted,
            Interrupted::Unusable(unusable) => unusable.into(),
        }
    }
}

impl From<Cancelled> for LockError {
    fn from(error: Cancelled) -> Self {
        match error {
            Cancelled::Token => Self::Cancelled,
            Cancelled::Unusable(unusable) => unusable.into(),
        }
    }
}

impl From<Corrupted> for Unusable {
    fn from(corrupted: Corrupted) -> Self {
        Self::Corrupted { what: corrupted.0 }
    }
}

impl From<AttachError> for Unusable {
    fn from(error: AttachError) -> Self {
        Self::Attach(error)
    }
}

impl From<NotBegun> for LockError {
    fn from(error: NotBegun) -> Self {
        match error {
            NotBegun::Attach(error) => Self::Unusable(error.into()),
            NotBegun::Failed(failed) => failed.into(),
        }
    }
}

impl From<Failed> for LockError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::TimedOut => Self::TimedOut,
            Failed::Cancelled => Self::Cancelled,
            Failed::Interrupted => Self::Interrupted,
            Failed::OwnedByCaller => Self::Unusable(Unusable::WouldDeadlock),
            Failed::Deadlock(cycle) => Self::Unusable(Unusable::Deadlock((*cycle).into())),
            Failed::Corrupted(corrupted) => Self::Unusable(corrupted.into()),
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldDeadlock => f.write_str(
                "this thread holds the lock already, or waits for it in a ring, and would wait \
                 for itself for ever; drop the guard, or the acquisition, that it has first",
            ),
            Self::OtherMutex => f.write_str(
                "others wait for this condition variable with another mutex; \
                 use one mutex for each condition variable",
            ),
            Self::OtherSegment => f.write_str(
                "the condition variable and the mutex are not in the same segment; \
                 put them side by side",
            ),
            Self::Deadlock(cycle) => write!(
                f,
                "this thread was chosen to end a deadlock, and its place in the queue is given \
                 up; drop the locks that it holds before it tries again: {cycle}"
            ),
            Self::Attach(error) => error.fmt(f),
            Self::NumberOfLocks { found, max } => {
                write!(f, "cannot wait for any of {found} locks: pass from 1 to {max}")
            }
            Self::Refused(error) => write!(
                f,
                "the kernel does not wait for locks in this way ({error}); use futures, which \
                 do without io_uring, or lock in a thread"
            ),
            Self::Corrupted { what } => Corrupted(what).fmt(f),
        }
    }
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str(
                "the wait did not end in time, and its place in the queue is given up; \
                 wait longer, or look who holds the lock with `heirlock::owner`",
            ),
            Self::Cancelled => f.write_str(
                "the wait was cancelled, and its place in the queue is given up; \
                 waits with the same token fail until `CancelToken::reset`",
            ),
            Self::Interrupted => f.write_str(
                "a signal handler ran while the thread waited, and its place in the queue is \
                 given up; see to the signal and call again",
            ),
            Self::Unusable(unusable) => unusable.fmt(f),
        }
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal => LockError::Interrupted.fmt(f),
            Self::Unusable(unusable) => unusable.fmt(f),
        }
    }
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token => LockError::Cancelled.fmt(f),
            Self::Unusable(unusable) => unusable.fmt(f),
        }
    }
}

impl Error for Unusable {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Attach(error) => error.source(),
            Self::Refused(error) => Some(error),
            _ => None,
        }
    }
}

impl Error for LockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unusable(unusable) => unusable.source(),
            _ => None,
        }
    }
}

impl Error for Interrupted {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unusable(unusable) => unusable.source(),
            Self::Signal => None,
        }
    }
}

impl Error for Cancelled {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unusable(unusable) => unusable.source(),
            Self::Token => None,
        }
    }
}

/// Why [`Segment::set_name`](crate::Segment::set_name) did not give a name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameError {
    /// It is too long.
    TooLong {
        /// How long it is, in bytes.
        found: usize,
        /// How long a name can be.
        max: usize,
    },
    /// It is empty, or has control characters in it.
    NotPrintable,
    /// What is to be named is not in the segment's value.
    Elsewhere,
    /// It has another name already, which stays; or somebody is giving it one, or was
    /// killed while doing so.
    Another {
        /// What it is called, as far as that is known.
        name: Option<String>,
    },
    /// The segment has room for 62 names, and all of it is taken.
    Full,
}

impl NameError {
    /// Whether `name` can be a name.
    pub(crate) fn check(name: &str) -> Result<(), Self> {
        if name.len() > NAME_LEN {
            return Err(Self::TooLong { found: name.len(), max: NAME_LEN });
        }
        let printable = !name.is_empty() && !name.contains(char::is_control);
        if printable { Ok(()) } else { Err(Self::NotPrintable) }
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { found, max } => {
                write!(f, "the name has {found} bytes, and {max} are the most; choose another")
            }
            Self::NotPrintable => {
                f.write_str("the name is empty, or has control characters; choose another")
            }
            Self::Elsewhere => f.write_str(
                "what is to be named is not in the segment's value; pass a reference into it",
            ),
            Self::Another { name: Some(name) } => {
                write!(f, "it is called {name:?} already, and names stay")
            }
            Self::Another { name: None } => f.write_str(
                "somebody is giving it another name, or was killed while doing so; every \
                 process must give it the same",
            ),
            Self::Full => f.write_str("the segment's 62 names are all given; name fewer locks"),
        }
    }
}

impl Error for NameError {}
