//! A clock that stands still: a deadline has passed from the start, or passes
//! while its waiter sleeps (see `futex::wait`).

use std::time::Duration;

/// A point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Deadline(Duration);

/// The present, always.
pub(crate) fn ticks() -> u32 {
    0
}

impl Deadline {
    /// The present, always.
    pub(crate) fn now() -> Self {
        Self(Duration::ZERO)
    }

    /// `duration` from now.
    pub(crate) fn after(duration: Duration) -> Option<Self> {
        Self::now().plus(duration)
    }

    /// `duration` later.
    pub(crate) fn plus(self, duration: Duration) -> Option<Self> {
        self.0.checked_add(duration).map(Self)
    }

    /// In nanoseconds since the clock began; never 0.
    pub(crate) fn as_nanos(self) -> u64 {
        (self.0.as_nanos() as u64).max(1)
    }

    /// Whether it is the present.
    pub(crate) fn passed(self) -> bool {
        self <= Self::now()
    }

    /// Whether a sleep until then ends by itself. The heartbeat's, of a second,
    /// does not: so a wake that the heartbeat would make up for is a deadlock.
    pub(super) fn comes(self) -> bool {
        self.0 < Duration::from_secs(1)
    }
}
