//! Why a lock was not acquired: an enum for each call, and one for all.

use crate::lock::raw::Failed;
use crate::memory::error::Corrupted;
use crate::participant::attach::AttachError;
use core::fmt;
use std::error::Error;

/// Why the calling thread cannot wait for the lock, or the condition variable, at
/// all. The calls that return no error panic with this.
#[derive(Debug)]
#[non_exhaustive]
pub enum Unusable {
    /// The thread holds the lock already: it would wait for itself for ever.
    WouldDeadlock,
    /// Others wait for the condition variable to return to another mutex. All that
    /// wait for one at a time use the same mutex.
    OtherMutex,
    /// The condition variable lies in another segment than the mutex, or in none.
    OtherSegment,
    /// The thread could not join the segment.
    Attach(AttachError),
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

impl From<Failed> for LockError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::TimedOut => Self::TimedOut,
            Failed::Cancelled => Self::Cancelled,
            Failed::Interrupted => Self::Interrupted,
            Failed::OwnedByCaller => Self::Unusable(Unusable::WouldDeadlock),
            Failed::Corrupted(corrupted) => Self::Unusable(corrupted.into()),
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldDeadlock => f.write_str(
                "this thread holds the lock already and would wait for itself for ever; \
                 drop the guard that it has first",
            ),
            Self::OtherMutex => f.write_str(
                "others wait for this condition variable with another mutex; \
                 use one mutex for each condition variable",
            ),
            Self::OtherSegment => f.write_str(
                "the condition variable and the mutex are not in the same segment; \
                 put them side by side",
            ),
            Self::Attach(error) => error.fmt(f),
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
