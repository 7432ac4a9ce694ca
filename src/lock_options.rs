//! What may end a wait, as the users say it.

use crate::lock::cancel::CancelToken;
use crate::lock::wait::{Detect, Limits};
use crate::sys::clock::Deadline;
use std::time::{Duration, Instant};

/// What may end a wait before its turn comes; for [`Mutex::lock_with`], and for
/// [`park_with`](crate::thread::park_with).
///
/// # Examples
///
/// See [`Mutex::lock_with`].
///
/// [`Mutex::lock_with`]: crate::Mutex::lock_with
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "options do nothing until `lock_with` or `park_with` is called with them"]
pub struct LockOptions<'t> {
    time: Option<Time>,
    token: Option<&'t CancelToken>,
    interruptible: bool,
    detect: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
enum Time {
    For(Duration),
    Until(Instant),
}

impl<'t> LockOptions<'t> {
    /// Nothing ends the wait.
    pub const fn new() -> Self {
        Self { time: None, token: None, interruptible: false, detect: None }
    }

    /// It ends `timeout` after it began; see
    /// [`Mutex::try_lock_for`](crate::Mutex::try_lock_for). Replaces a deadline.
    pub const fn timeout(self, timeout: Duration) -> Self {
        Self { time: Some(Time::For(timeout)), ..self }
    }

    /// It ends at `deadline`; see
    /// [`Mutex::try_lock_until`](crate::Mutex::try_lock_until). Replaces a timeout.
    pub const fn deadline(self, deadline: Instant) -> Self {
        Self { time: Some(Time::Until(deadline)), ..self }
    }

    /// It ends when `token` is cancelled; see
    /// [`Mutex::lock_cancellable`](crate::Mutex::lock_cancellable).
    pub const fn cancel(self, token: &'t CancelToken) -> Self {
        Self { token: Some(token), ..self }
    }

    /// Whether it ends when a signal handler runs; see
    /// [`Mutex::lock_interruptible`](crate::Mutex::lock_interruptible).
    pub const fn interruptible(self, interruptible: bool) -> Self {
        Self { interruptible, ..self }
    }

    /// It ends if it has lasted for `after` and is a part of a deadlock, which it is
    /// chosen to end; from then on it looks each time `after` has passed again. In
    /// place of what the process wants in the segment
    /// ([`Segment::detect_deadlocks`](crate::Segment::detect_deadlocks)). A wait that
    /// may end by itself, by one of the other options, is never part of a deadlock, so
    /// with one of those it changes nothing; nor does it in a ring, for a future, or for
    /// [any of several locks](crate::select::lock_any_with). See
    /// [`deadlock`](crate::deadlock).
    pub const fn detect_deadlocks(self, after: Duration) -> Self {
        Self { detect: Some(after), ..self }
    }

    /// The same for a wait that begins now; `None` if it is cancelled already.
    pub(crate) fn limits(&self) -> Option<Limits<'t>> {
        let cancelled = match self.token {
            Some(token) => Some(token.ticket()?),
            None => None,
        };
        let time = self.time.map(|time| match time {
            Time::For(timeout) => timeout,
            Time::Until(deadline) => deadline.saturating_duration_since(Instant::now()),
        });
        let deadline = time.and_then(Deadline::after);
        let interruptible = self.interruptible;
        let detect = self.detect.map_or(Detect::AsSegment, Detect::After);
        Some(Limits { deadline, cancelled, interruptible, detect, ..Limits::default() })
    }
}
