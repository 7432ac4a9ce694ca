//! The mutex and the condition variable for [`lock_api`], whose types wrap a lock
//! without data.
#![allow(unsafe_code)]

use crate::condvar::Condvar;
use crate::lock::condvar::Outcome;
use crate::lock::wait::Limits;
use crate::mutex::{DeadOwner, Mutex, MutexGuard};
use crate::participant::current::Current;
use crate::sys::clock::Deadline;
use core::fmt;
use core::mem::{self, ManuallyDrop};
use lock_api::{RawCondvarTimed, RawMutexFair, RawMutexTimed};
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

/// A lock without data, for [`lock_api`]: with the feature `lock_api`,
/// `lock_api::Mutex<heirlock::RawMutex, T>` is a mutex of this crate in everything that
/// is written for that library: mapped guards and guards in an `Arc`, serialization,
/// generic code.
///
/// It is a [`Mutex<()>`](Mutex), 16 bytes: first in, first out, and so fair
/// whichever way it is unlocked.
///
/// ```
/// static TOTAL: lock_api::Mutex<heirlock::RawMutex, u64> = lock_api::Mutex::new(0);
///
/// std::thread::scope(|scope| {
///     for _ in 0..4 {
///         scope.spawn(|| *TOTAL.lock() += 1);
///     }
/// });
/// assert_eq!(*TOTAL.lock(), 4);
/// ```
///
/// # In a segment
///
/// A `lock_api::Mutex` cannot live in a [`Segment`](crate::Segment): it says of itself
/// neither how it lies in memory nor that any bytes are one. Use [`Mutex`]
/// there. Where it must be code that is generic over [`lock_api::RawMutex`], the raw
/// lock itself can be a field of what is in a segment:
///
/// ```
/// use heirlock::{RawMutex, Segment};
/// use lock_api::RawMutex as _;
/// use std::cell::UnsafeCell;
/// use zerocopy::FromBytes;
///
/// #[derive(FromBytes)]
/// #[repr(C)]
/// struct Shared {
///     lock: RawMutex,
///     total: UnsafeCell<u64>,
/// }
/// // SAFETY: `total` is only accessed by who holds `lock`.
/// unsafe impl Sync for Shared {}
///
/// let shared: Segment<Shared> = Segment::anonymous()?;
/// let guard = shared.lock.lock();
/// if let Some(dead) = shared.lock.inherited() {
///     println!("{dead} died here: repair what it left");
/// }
/// // SAFETY: the lock is held.
/// unsafe { *shared.total.get() += 1 };
/// // SAFETY: the guard is this acquisition's.
/// unsafe { shared.lock.unlock(guard) };
/// assert!(!shared.lock.is_locked());
/// # Ok::<(), heirlock::SegmentError>(())
/// ```
///
/// # What is otherwise than in this crate's mutex
///
/// * `lock_api`'s guards may be forgotten and leaked by safe code that keeps the
///   reference. So a thread that has ever taken such a lock keeps, when it ends, what it
///   still holds, as by [`MutexGuard::leak`]: until its process
///   ends. (A thread that is killed is killed with its process.)
/// * `lock_api`'s guards do not look whether `fork` has copied them. In the child such a
///   guard holds nothing: it may be dropped, and must not be used. (To wait for a
///   condition variable with it aborts the child.)
/// * `MutexGuard::unlocked` and `bump` abort where [`Mutex::lock`] would
///   panic.
///
/// # Panics
///
/// All ways of locking, as those of [`Mutex`] that have the same names.
#[derive(FromBytes)]
#[repr(transparent)]
pub struct RawMutex(Mutex<()>);

/// What a thread keeps that holds a [`RawMutex`]. To drop it does not unlock.
///
/// # Examples
///
/// See [`RawMutex`].
pub struct RawGuard(Current);

// SAFETY: a shared one can only be printed. That reads the id of the attachment, which
// changes in a forked child alone, before that has a second thread; and the attachment
// stays while the lock is held.
unsafe impl Sync for RawGuard {}

impl RawGuard {
    fn new(guard: MutexGuard<'_, ()>) -> Self {
        Self(MutexGuard::suspend(guard))
    }
}

impl RawMutex {
    /// Who died holding the lock, if the calling thread holds it now and took it over:
    /// see [`MutexGuard::inherited`].
    ///
    /// # Examples
    ///
    /// See the [type](Self).
    pub fn inherited(&self) -> Option<DeadOwner> {
        let owner = self.0.raw().owner();
        if !owner.inherited() {
            return None;
        }
        let me = self.0.join().ok()?;
        if owner.plain() != me.id() {
            return None;
        }
        // SAFETY: this thread holds it; this guard only looks, and is not dropped.
        let guard = ManuallyDrop::new(unsafe { MutexGuard::resume(me, &self.0) });
        MutexGuard::inherited(&guard)
    }

    /// The same for a lock that is inside of a `lock_api::Mutex`, as it can be had of a
    /// guard.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::RawMutex;
    /// use lock_api::{Mutex, MutexGuard};
    /// static LOCK: Mutex<RawMutex, u64> = Mutex::new(0);
    /// let guard = LOCK.lock();
    /// assert!(RawMutex::inherited_of(MutexGuard::mutex(&guard)).is_none());
    /// ```
    pub fn inherited_of<T: ?Sized>(mutex: &lock_api::Mutex<Self, T>) -> Option<DeadOwner> {
        // SAFETY: it only looks.
        unsafe { mutex.raw() }.inherited()
    }
}

// SAFETY: `Mutex` excludes, acquires and releases. A guard that is forgotten holds the
// lock for as long as the process lives, also past the end of the thread
// (`MutexGuard::suspend`). A mutex that is moved or dropped while it is locked has no
// waiters, and nothing refers to its place but this thread's note of whom it inherited
// from, by address, which is replaced when another lock there is inherited. A lock
// operation unwinds before it has acquired anything, and unlocking when it has released,
// unless the segment is corrupted: then the lock stays taken and nobody has a guard,
// which takes nothing from exclusion.
unsafe impl lock_api::RawMutex for RawMutex {
    #[allow(clippy::declare_interior_mutable_const, reason = "by the trait")]
    const INIT: Self = Self(Mutex::new(()));

    type Guard = RawGuard;

    #[inline]
    fn lock(&self) -> RawGuard {
        RawGuard::new(self.0.lock())
    }

    #[inline]
    fn try_lock(&self) -> Option<RawGuard> {
        self.0.try_lock().map(RawGuard::new)
    }

    #[inline]
    unsafe fn unlock(&self, guard: RawGuard) {
        // SAFETY: by contract the guard is this acquisition's, and is used up.
        drop(unsafe { MutexGuard::resume(guard.0, &self.0) });
    }

    fn is_locked(&self) -> bool {
        self.0.is_locked()
    }
}

// SAFETY: as above. Whoever waits is served in turn, always.
unsafe impl RawMutexFair for RawMutex {
    #[inline]
    unsafe fn unlock_fair(&self, guard: RawGuard) {
        // SAFETY: by contract.
        unsafe { lock_api::RawMutex::unlock(self, guard) };
    }
}

// SAFETY: as above.
unsafe impl RawMutexTimed for RawMutex {
    type Duration = Duration;
    type Instant = Instant;

    fn try_lock_for(&self, timeout: Duration) -> Option<RawGuard> {
        self.0.try_lock_for(timeout).map(RawGuard::new)
    }

    fn try_lock_until(&self, deadline: Instant) -> Option<RawGuard> {
        self.0.try_lock_until(deadline).map(RawGuard::new)
    }
}

/// A condition variable for [`RawMutex`]: `lock_api::Condvar<heirlock::RawCondvar>` is
/// one in everything that is written for that library.
///
/// It is a [`Condvar`], 16 bytes, and keeps its promises. There are no spurious
/// wake-ups, so `notify_one` and `notify_all` say exactly how many were notified. (The
/// one exception takes the death of two threads, which threads of one process do
/// not die.)
///
/// # Panics
///
/// As [`Condvar::wait`], without having waited. If the mutex cannot be acquired again
/// the process aborts.
///
/// # Examples
///
/// ```
/// use heirlock::{RawCondvar, RawMutex};
/// use lock_api::{Condvar, Mutex};
/// static READY: Mutex<RawMutex, bool> = Mutex::new(false);
/// static CHANGED: Condvar<RawCondvar> = Condvar::new();
///
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         *READY.lock() = true;
///         CHANGED.notify_one();
///     });
///     CHANGED.wait_while(&mut READY.lock(), |ready| !*ready);
/// });
/// ```
#[derive(FromBytes, Debug)]
#[repr(transparent)]
pub struct RawCondvar(Condvar);

impl RawCondvar {
    /// # Safety
    ///
    /// As [`lock_api::RawCondvar::wait`].
    unsafe fn wait(&self, mutex: &RawMutex, guard: &mut RawGuard, limits: Limits) -> Outcome {
        /// A guard without its lock must not be unwound to.
        struct Abort;
        impl Drop for Abort {
            fn drop(&mut self) {
                std::process::abort();
            }
        }
        // SAFETY: by contract the guard is that of the present acquisition.
        let mut held = ManuallyDrop::new(unsafe { MutexGuard::resume(guard.0, &mutex.0) });
        let abort = Abort;
        let waited = MutexGuard::wait_for_news(&mut held, self.0.raw(), limits);
        mem::forget(abort);
        *guard = RawGuard::new(ManuallyDrop::into_inner(held));
        waited.unwrap_or_else(|unusable| panic!("heirlock: {unusable}"))
    }
}

// SAFETY: `Condvar` releases the mutex when the thread is in the queue, and has it again
// when it returns; a wait that is refused has not released it.
unsafe impl lock_api::RawCondvar for RawCondvar {
    #[allow(clippy::declare_interior_mutable_const, reason = "by the trait")]
    const INIT: Self = Self(Condvar::new());

    type RawMutex = RawMutex;

    unsafe fn wait(&self, mutex: &RawMutex, guard: &mut RawGuard) {
        // SAFETY: by contract.
        unsafe { Self::wait(self, mutex, guard, Limits::default()) };
    }

    fn notify_one(&self) -> bool {
        self.0.notify_one()
    }

    fn notify_all(&self) -> usize {
        self.0.notify_all()
    }
}

// SAFETY: as above.
unsafe impl RawCondvarTimed for RawCondvar {
    fn checked_duration_to_instant(timeout: &Duration) -> Option<Instant> {
        Instant::now().checked_add(*timeout)
    }

    unsafe fn wait_until(&self, mutex: &RawMutex, guard: &mut RawGuard, until: &Instant) -> bool {
        let deadline = Deadline::after(until.saturating_duration_since(Instant::now()));
        let limits = Limits { deadline, ..Limits::default() };
        // SAFETY: by contract.
        unsafe { Self::wait(self, mutex, guard, limits) == Outcome::TimedOut }
    }
}

impl fmt::Debug for RawMutex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawMutex").field("locked", &self.0.is_locked()).finish()
    }
}

impl fmt::Debug for RawGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RawGuard").field(&self.0.id()).finish()
    }
}
