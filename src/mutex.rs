//! The mutex as its users see it.
#![allow(unsafe_code)]

mod guard;

pub use self::guard::{DeadOwner, MappedMutexGuard, MutexGuard};

use crate::error::{Cancelled, Interrupted, LockError, Unusable};
use crate::lock::cancel::CancelToken;
use crate::lock::raw::{Failed, Fast, RawMutex, reclaim};
use crate::lock::wait::{Detect, Limits};
use crate::lock::word::Policy;
use crate::lock_options::LockOptions;
use crate::participant::attach::AttachError;
use crate::participant::current::{Current, current, current_hot};
use crate::sys::clock::Deadline;
use core::cell::UnsafeCell;
use core::fmt;
use std::thread;
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

/// After how long [`Mutex::lock_checked`] looks for a deadlock.
const CHECK_AFTER: Duration = Duration::from_secs(1);

/// A mutual exclusion lock that processes can share: first in, first out, and
/// inherited from owners that die.
///
/// It works wherever it lives. In a [`Segment`](crate::Segment) it is shared
/// with every process that maps the segment; in a `static`, on the heap or on
/// the stack it serves the threads of one process. (In memory that is shared by
/// other means it would serve each process apart: put it into a segment.)
///
/// # Layout
///
/// 16 bytes for the lock, then `T`; all zero bytes are an unlocked mutex with a
/// zeroed value. Any bytes at all are a `Mutex<T>` if any bytes are a `T`, so
/// it can be a field of your own `#[derive(FromBytes)] #[repr(C)]` structs.
///
/// # Fork
///
/// After `fork` the child is a new participant. A lock in a segment that the
/// parent held at that moment stays the parent's; the guard that was copied
/// into the child panics if it is used, and releases nothing. A lock outside of
/// every segment is copied too: what the parent's threads held is inherited in
/// the child, whose other threads do not exist.
///
/// # Examples
///
/// ```
/// use heirlock::Mutex;
/// use std::thread;
///
/// static TOTAL: Mutex<u64> = Mutex::new(0);
///
/// thread::scope(|scope| {
///     for _ in 0..4 {
///         scope.spawn(|| *TOTAL.lock() += 1);
///     }
/// });
/// assert_eq!(*TOTAL.lock(), 4);
/// ```
#[derive(FromBytes)]
#[repr(C)]
pub struct Mutex<T: ?Sized> {
    raw: RawMutex,
    value: UnsafeCell<T>,
}

// SAFETY: the lock gives the value to one thread at a time, so sharing the
// mutex moves access to the value between threads, as sending it would.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// An unlocked mutex.
    ///
    /// # Examples
    ///
    /// ```
    /// static MUTEX: heirlock::Mutex<u32> = heirlock::Mutex::new(7);
    /// assert_eq!(*MUTEX.lock(), 7);
    /// ```
    pub const fn new(value: T) -> Self {
        Self::with_policy(value, Policy::Fifo)
    }

    /// An unlocked mutex that follows `policy` for as long as it exists.
    ///
    /// In a segment it is put in its place when the segment is made: by
    /// [`Options::init`](crate::Options::init).
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Mutex, Policy, Segment};
    /// let segment: Segment<Mutex<u64>> = Segment::options()
    ///     .init(|mutex| *mutex = Mutex::with_policy(1, Policy::Throughput))
    ///     .anonymous()?;
    /// assert_eq!(*segment.lock(), 1);
    /// # Ok::<(), heirlock::SegmentError>(())
    /// ```
    pub const fn with_policy(value: T, policy: Policy) -> Self {
        Self { raw: RawMutex::new(policy), value: UnsafeCell::new(value) }
    }

    /// Gives the value back.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heirlock::Mutex::new(7).into_inner(), 7);
    /// ```
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits its turn and takes the lock.
    ///
    /// Whoever began to wait first is served first. If the owner dies the head
    /// of the queue takes over at once, and
    /// [`MutexGuard::inherited`] tells it. A signal handler that runs meanwhile
    /// does not change the place in the queue.
    ///
    /// # Panics
    ///
    /// If the calling thread holds the lock already, or waits for it in a ring (it would
    /// wait for itself for ever); if it cannot join the segment (see
    /// [`Segment::attach`](crate::Segment::attach), which returns that as an
    /// error instead); if the segment is corrupted. If the process wants that in the
    /// segment ([`Segment::detect_deadlocks`](crate::Segment::detect_deadlocks)), also
    /// if it is chosen to end a deadlock.
    ///
    /// # Examples
    ///
    /// ```
    /// let mutex = heirlock::Mutex::new(1);
    /// *mutex.lock() += 1;
    /// assert_eq!(*mutex.lock(), 2);
    /// ```
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let Some(me) = current_hot(self.address()) else { return self.lock_anew() };
        match self.raw.lock_fast(&me) {
            Fast::Done => MutexGuard::new(me.marked(true), self),
            Fast::Slow => self.lock_slow(me),
            Fast::Late => self.lock_late(me),
        }
    }

    #[cold]
    fn lock_anew(&self) -> MutexGuard<'_, T> {
        let me = self.me();
        match self.raw.lock(&me, Limits::default()) {
            Ok(hasty) => MutexGuard::new(me.marked(hasty), self),
            Err(failed) => fail(failed),
        }
    }

    #[cold]
    fn lock_slow(&self, me: Current) -> MutexGuard<'_, T> {
        match self.raw.lock_slow(&me, Limits::default()) {
            Ok(()) => MutexGuard::new(me, self),
            Err(failed) => fail(failed),
        }
    }

    #[cold]
    fn lock_late(&self, me: Current) -> MutexGuard<'_, T> {
        match self.raw.settle_barge(&me) {
            Ok(()) => MutexGuard::new(me, self),
            Err(corrupted) => fail(corrupted.into()),
        }
    }

    /// Waits its turn and takes the lock, unless the thread and others turn out to wait
    /// for each other for ever, and this one is chosen to give up: it looks for that
    /// when it has waited for a second, and each second from then on. See
    /// [`deadlock`](crate::deadlock).
    ///
    /// [`LockOptions::detect_deadlocks`] has it look sooner or later.
    ///
    /// # Errors
    ///
    /// [`Unusable::Deadlock`], for the thread to drop the locks that it holds; otherwise
    /// where [`Mutex::lock`] would panic.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Mutex, Unusable};
    /// fn transfer(from: &Mutex<u64>, to: &Mutex<u64>) -> Result<(), Unusable> {
    ///     loop {
    ///         let mut from = from.lock();
    ///         match to.lock_checked() {
    ///             Ok(mut to) => {
    ///                 *from -= 1;
    ///                 *to += 1;
    ///                 return Ok(());
    ///             }
    ///             // Somebody transfers the other way.
    ///             Err(Unusable::Deadlock(cycle)) => println!("{cycle}"),
    ///             Err(error) => return Err(error),
    ///         }
    ///     }
    /// }
    /// transfer(&Mutex::new(1), &Mutex::new(0))?;
    /// # Ok::<(), Unusable>(())
    /// ```
    pub fn lock_checked(&self) -> Result<MutexGuard<'_, T>, Unusable> {
        let me = self.join()?;
        let detect = Detect::After(CHECK_AFTER);
        match self.raw.lock(&me, Limits { detect, ..Limits::default() }) {
            Ok(hasty) => Ok(MutexGuard::new(me.marked(hasty), self)),
            Err(failed) => match LockError::from(failed) {
                LockError::Unusable(unusable) => Err(unusable),
                ended => unreachable!("nothing was to end the wait: {ended}"),
            },
        }
    }

    /// Takes the lock if nobody holds it and nobody waits for it; with
    /// [`Policy::Throughput`], if nobody has waited for a millisecond.
    ///
    /// What a dead thread held is inherited, and the dead do not count as
    /// waiting. It never waits for an owner; if threads have died in the queue
    /// it may wait for another thread to finish an edit of the queue, which is
    /// a matter of nanoseconds unless that thread is preempted or stopped.
    ///
    /// # Panics
    ///
    /// As [`Mutex::lock`], but for a lock that the calling thread holds: then it
    /// returns `None`.
    ///
    /// # Examples
    ///
    /// ```
    /// let mutex = heirlock::Mutex::new(());
    /// let guard = mutex.try_lock().expect("nobody holds it");
    /// assert!(mutex.try_lock().is_none());
    /// # drop(guard);
    /// ```
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let me = self.me();
        match self.raw.try_lock(&me) {
            Ok(hasty) => Some(MutexGuard::new(me.marked(hasty), self)),
            Err(Failed::TimedOut | Failed::OwnedByCaller) => None,
            Err(failed) => fail(failed),
        }
    }

    /// Waits its turn and takes the lock, or gives up its place in the queue
    /// after `timeout` (on `CLOCK_MONOTONIC`, which stands still while the
    /// machine is suspended). A timeout of zero is a [`Mutex::try_lock`]; one too
    /// long to be represented is none.
    ///
    /// The deadline is computed once: signal handlers that run meanwhile do not
    /// stretch it. If the lock is handed over in the last moment it is acquired,
    /// never lost.
    ///
    /// # Panics
    ///
    /// As [`Mutex::lock`], but for a lock that the calling thread holds: then it
    /// returns `None` when the time is over.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// let mutex = heirlock::Mutex::new(());
    /// let guard = mutex.try_lock_for(Duration::from_millis(1));
    /// assert!(guard.is_some());
    /// assert!(mutex.try_lock_for(Duration::from_millis(1)).is_none());
    /// ```
    pub fn try_lock_for(&self, timeout: Duration) -> Option<MutexGuard<'_, T>> {
        let deadline = Deadline::after(timeout);
        if timeout.is_zero() {
            return self.try_lock();
        }
        let me = self.me();
        match self.raw.lock(&me, Limits { deadline, ..Limits::default() }) {
            Ok(hasty) => Some(MutexGuard::new(me.marked(hasty), self)),
            Err(Failed::TimedOut) => None,
            Err(Failed::OwnedByCaller) if deadline.is_some() => {
                thread::sleep(timeout);
                None
            }
            Err(failed) => fail(failed),
        }
    }

    /// [`Mutex::try_lock_for`] until a point in time; one in the past acts as
    /// a timeout of zero.
    ///
    /// # Panics
    ///
    /// As [`Mutex::try_lock_for`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// let mutex = heirlock::Mutex::new(());
    /// assert!(mutex.try_lock_until(Instant::now() + Duration::from_secs(1)).is_some());
    /// ```
    pub fn try_lock_until(&self, deadline: Instant) -> Option<MutexGuard<'_, T>> {
        self.try_lock_for(deadline.saturating_duration_since(Instant::now()))
    }

    /// Waits its turn and takes the lock, unless a signal handler runs in this
    /// thread while it sleeps; then it gives up its place in the queue.
    ///
    /// A handler is noticed if it runs while the thread is in the futex call in
    /// which it sleeps, whether it was installed with `SA_RESTART` or without.
    /// One that runs in the few instructions before or between sleeps, or at
    /// the very moment at which the thread is woken for another reason, is not:
    /// no futex call can be entered and the signal mask changed in one. A signal
    /// that must not be missed cancels a token in its handler
    /// ([`Mutex::lock_cancellable`]): that is never too early nor too late. See
    /// [`signals`](crate::signals).
    ///
    /// While it sleeps like this, the thread notices the death of the owner, or
    /// of the waiter in front, within 20 ms instead of at once: the call that
    /// waits for both, `futex_waitv`, would hide handlers with `SA_RESTART`.
    ///
    /// # Errors
    ///
    /// [`Interrupted::Signal`], and [`Interrupted::Unusable`] where
    /// [`Mutex::lock`] would panic.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Interrupted, Mutex};
    /// let mutex = Mutex::new(1);
    /// loop {
    ///     match mutex.lock_interruptible() {
    ///         Ok(mut guard) => break *guard += 1,
    ///         Err(Interrupted::Signal) => println!("look at the flags, wait again"),
    ///         Err(error) => return Err(error),
    ///     }
    /// }
    /// # Ok::<(), Interrupted>(())
    /// ```
    pub fn lock_interruptible(&self) -> Result<MutexGuard<'_, T>, Interrupted> {
        match self.lock_with(&LockOptions::new().interruptible(true)) {
            Ok(guard) => Ok(guard),
            Err(LockError::Unusable(unusable)) => Err(Interrupted::Unusable(unusable)),
            Err(_) => Err(Interrupted::Signal),
        }
    }

    /// Waits its turn and takes the lock, unless `token` is cancelled before
    /// that; then it gives up its place in the queue.
    ///
    /// If the token is cancelled already, the lock is not taken even if it is
    /// free. If the lock is handed over in the last moment it is acquired, and
    /// the next call fails.
    ///
    /// # Errors
    ///
    /// [`Cancelled::Token`], and [`Cancelled::Unusable`] where [`Mutex::lock`]
    /// would panic.
    ///
    /// # Examples
    ///
    /// See [`CancelToken`].
    pub fn lock_cancellable(&self, token: &CancelToken) -> Result<MutexGuard<'_, T>, Cancelled> {
        match self.lock_with(&LockOptions::new().cancel(token)) {
            Ok(guard) => Ok(guard),
            Err(LockError::Unusable(unusable)) => Err(Cancelled::Unusable(unusable)),
            Err(_) => Err(Cancelled::Token),
        }
    }

    /// Waits its turn and takes the lock, unless one of the `options` ends the
    /// wait before; says which. The one call that covers the others, and that
    /// never panics.
    ///
    /// # Errors
    ///
    /// [`LockError`] says why the lock was not acquired. The place in the queue
    /// is given up.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{CancelToken, LockError, LockOptions, Mutex};
    /// use std::time::Duration;
    /// static STOP: CancelToken = CancelToken::new();
    /// static LOCK: Mutex<u32> = Mutex::new(0);
    ///
    /// let options = LockOptions::new().timeout(Duration::from_millis(1)).cancel(&STOP);
    /// let guard = LOCK.lock_with(&options)?;
    /// let other = std::thread::spawn(move || LOCK.lock_with(&options).map(drop));
    /// assert!(matches!(other.join().unwrap(), Err(LockError::TimedOut)));
    /// # drop(guard);
    /// # Ok::<(), LockError>(())
    /// ```
    pub fn lock_with(&self, options: &LockOptions) -> Result<MutexGuard<'_, T>, LockError> {
        let limits = options.limits().ok_or(LockError::Cancelled)?;
        let me = self.join().map_err(Unusable::from)?;
        let hasty = self.raw.lock(&me, limits)?;
        Ok(MutexGuard::new(me.marked(hasty), self))
    }

    /// Who gets the lock next when somebody waits for it.
    ///
    /// # Examples
    ///
    /// See [`Policy`].
    pub fn policy(&self) -> Policy {
        self.raw.words().policy()
    }

    /// Whether somebody holds the lock, or died holding it and has no heir yet.
    /// Out of date as soon as it is known.
    ///
    /// # Examples
    ///
    /// ```
    /// let mutex = heirlock::Mutex::new(());
    /// let guard = mutex.lock();
    /// assert!(mutex.is_locked());
    /// drop(guard);
    /// assert!(!mutex.is_locked());
    /// ```
    pub fn is_locked(&self) -> bool {
        !self.raw.owner().is_nobody()
    }

    /// The value, without locking: the exclusive borrow shows that nobody else
    /// can have it.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut mutex = heirlock::Mutex::new(1);
    /// *mutex.get_mut() = 2;
    /// assert_eq!(*mutex.lock(), 2);
    /// ```
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    pub(crate) fn raw(&self) -> &RawMutex {
        &self.raw
    }

    #[inline(always)]
    fn address(&self) -> usize {
        core::ptr::from_ref(&self.raw).addr()
    }

    pub(crate) fn join(&self) -> Result<Current, AttachError> {
        current(self.address(), reclaim)
    }

    fn me(&self) -> Current {
        match self.join() {
            Ok(me) => me,
            Err(error) => cannot_attach(&error),
        }
    }
}

#[cold]
fn cannot_attach(error: &AttachError) -> ! {
    panic!("heirlock: {error}")
}

#[cold]
fn fail(failed: Failed) -> ! {
    panic!("heirlock: {}", LockError::from(failed))
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Mutex");
        match self.try_lock() {
            Some(guard) => debug.field("value", &&*guard),
            None => debug.field("value", &format_args!("<locked>")),
        };
        debug.finish()
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> From<T> for Mutex<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}
