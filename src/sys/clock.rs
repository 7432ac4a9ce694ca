//! Absolute deadlines on `CLOCK_MONOTONIC`, the clock of `futex_waitv`, and ticks for
//! what has to be cheap.
#![allow(unsafe_code)]

use rustix::time::{ClockId, Timespec, clock_gettime};
use std::time::Duration;

/// A point in time on `CLOCK_MONOTONIC`, which is one clock for every process
/// of the machine (short of time namespaces, which shift it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Deadline {
    secs: i64,
    nanos: i64,
}

/// The present in ticks of at most 1.024 microseconds, for differences far below the
/// quarter of an hour after which they start again. Cheaper than the clock, and not
/// shifted by a time namespace.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn ticks() -> u32 {
    // SAFETY: every x86-64 processor has the instruction. Where a process has
    // forbidden itself to use it (`PR_SET_TSC`) the C library's clock dies too.
    let counter = unsafe { core::arch::x86_64::_rdtsc() };
    // The counter runs at 1 GHz or more, whatever the processor does.
    (counter >> 10) as u32
}

/// The present in ticks of a microsecond, for differences far below the hour
/// after which they start again.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn ticks() -> u32 {
    let Deadline { secs, nanos } = Deadline::now();
    (secs as u32).wrapping_mul(1_000_000).wrapping_add((nanos / 1000) as u32)
}

impl Deadline {
    /// The present.
    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        Self { secs: now.tv_sec, nanos: now.tv_nsec as i64 }
    }

    /// `duration` from now; `None` where the sum does not fit, which is to say
    /// for ever.
    pub(crate) fn after(duration: Duration) -> Option<Self> {
        Self::now().plus(duration)
    }

    /// `duration` later; `None` where the sum does not fit.
    pub(crate) fn plus(self, duration: Duration) -> Option<Self> {
        let nanos = self.nanos + i64::from(duration.subsec_nanos());
        let secs = i64::try_from(duration.as_secs()).ok()?;
        let secs = self.secs.checked_add(secs)?.checked_add(nanos / 1_000_000_000)?;
        Some(Self { secs, nanos: nanos % 1_000_000_000 })
    }

    /// In nanoseconds since the clock began; never 0.
    pub(crate) fn as_nanos(self) -> u64 {
        ((self.secs as u64).wrapping_mul(1_000_000_000).wrapping_add(self.nanos as u64)).max(1)
    }

    /// Whether it lies in the past.
    pub(crate) fn passed(self) -> bool {
        self <= Self::now()
    }

    /// How long it is until then; nothing if it lies in the past.
    #[cfg(feature = "io-uring")]
    pub(crate) fn left(self) -> Duration {
        let now = Self::now();
        let nanos = (self.secs.saturating_sub(now.secs) as i128) * 1_000_000_000
            + i128::from(self.nanos - now.nanos);
        u64::try_from(nanos.max(0)).map_or(Duration::MAX, Duration::from_nanos)
    }

    pub(super) fn timespec(self) -> Timespec {
        Timespec { tv_sec: self.secs, tv_nsec: self.nanos as _ }
    }
}

#[cfg(test)]
mod tests {
    use super::Deadline;
    use std::time::Duration;

    #[test]
    fn an_overflowing_deadline_is_for_ever_and_a_zero_one_has_passed() {
        assert!(Deadline::after(Duration::MAX).is_none());
        assert!(Deadline::after(Duration::from_secs(u64::MAX / 2)).is_none());
        assert!(Deadline::after(Duration::ZERO).is_some_and(Deadline::passed));
        assert!(!Deadline::after(Duration::from_secs(3600)).is_some_and(Deadline::passed));
        let sum = Deadline::after(Duration::from_nanos(999_999_999)).unwrap();
        assert!((0..1_000_000_000).contains(&sum.nanos));
    }
}
