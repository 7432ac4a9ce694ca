//! Who is measured: heirlock, its peers, and the two bounds.

use super::pthread::Pthread;
use clap::ValueEnum;

/// What the members of a run contend for, or pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Player {
    /// `heirlock::Mutex` in a segment.
    Heirlock,
    /// One that prefers throughput to the order.
    HeirlockThroughput,
    /// `std::sync::Mutex`.
    Std,
    /// `parking_lot::Mutex`.
    ParkingLot,
    /// `parking_lot::FairMutex`.
    FairMutex,
    /// A process-shared pthread mutex.
    Pthread,
    /// One that is robust as well.
    PthreadRobust,
    /// No lock: a cache line that two members pass on, never asleep.
    PingPong,
    /// No lock: a token that two members on one CPU pass on, asleep in between.
    Switch,
}

impl Player {
    /// As it is called in the results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Heirlock => "heirlock",
            Self::HeirlockThroughput => "heirlock throughput",
            Self::Std => "std",
            Self::ParkingLot => "parking_lot",
            Self::FairMutex => "FairMutex",
            Self::Pthread => "pthread pshared",
            Self::PthreadRobust => "pthread robust",
            Self::PingPong => "cache line ping-pong",
            Self::Switch => "context switch",
        }
    }

    /// As it is called on a command line.
    pub(crate) fn argument(self) -> String {
        self.to_possible_value().expect("each has a name").get_name().into()
    }

    /// Whether its members are processes. Those of the locks that work in one
    /// process only are threads of one.
    pub(crate) fn is_of_processes(self) -> bool {
        !matches!(self, Self::Std | Self::ParkingLot | Self::FairMutex)
    }
}

/// A lock around a number.
pub(crate) trait Lock: Sync {
    /// Runs `f` while the lock is held.
    fn locked<R>(&self, f: impl FnOnce(&mut u64) -> R) -> R;
}

impl Lock for heirlock::Mutex<u64> {
    #[inline]
    fn locked<R>(&self, f: impl FnOnce(&mut u64) -> R) -> R {
        f(&mut self.lock())
    }
}

impl Lock for std::sync::Mutex<u64> {
    #[inline]
    fn locked<R>(&self, f: impl FnOnce(&mut u64) -> R) -> R {
        f(&mut self.lock().expect("not poisoned"))
    }
}

impl Lock for parking_lot::Mutex<u64> {
    #[inline]
    fn locked<R>(&self, f: impl FnOnce(&mut u64) -> R) -> R {
        f(&mut self.lock())
    }
}

impl Lock for parking_lot::FairMutex<u64> {
    #[inline]
    fn locked<R>(&self, f: impl FnOnce(&mut u64) -> R) -> R {
        f(&mut self.lock())
    }
}

impl Lock for Pthread {
    #[inline]
    fn locked<R>(&self, f: impl FnOnce(&mut u64) -> R) -> R {
        Pthread::locked(self, f)
    }
}
