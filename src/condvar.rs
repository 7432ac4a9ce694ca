//! The condition variable as its users see it.

use crate::error::{Cancelled, Interrupted, LockError, Unusable};
use crate::lock::cancel::CancelToken;
use crate::lock::condvar::{Outcome, RawCondvar};
use crate::lock::raw::reclaim;
use crate::lock::wait::Limits;
use crate::lock_options::LockOptions;
use crate::memory::error::Corrupted;
use crate::mutex::MutexGuard;
use crate::participant::current::{Current, current};
use crate::sys::clock::Deadline;
use core::fmt;
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

/// A condition variable that processes can share: first in, first out, and no
/// notification is lost to a waiter that dies.
///
/// It belongs to a [`Mutex`](crate::Mutex): whoever waits gives the guard, and has the
/// lock again when the wait returns. Like the mutex it works wherever it lives, and
/// lives where the mutex does: in the same [`Segment`](crate::Segment), or both
/// outside of any. All that wait at a time use the same mutex.
///
/// # Promises
///
/// * **First in, first out.** Who began to wait first is notified first.
/// * **Straight to the mutex.** A notified waiter goes from this queue to the mutex's,
///   behind those that wait there already. The first one of many is woken to look
///   whom it waits for by now, the others when the mutex is theirs; so notifying a
///   hundred wakes one at a time, not a hundred at once. (With a mutex of
///   [`Policy::Throughput`](crate::Policy::Throughput) each looks once.)
/// * **Nothing is lost to the dead.** A waiter that is killed is skipped. One that is
///   killed after it was notified, and before it had the mutex, leaves its
///   notification to the next. A notifier that is killed has notified or has not; what
///   it began is finished by others.
/// * **No spurious wake-ups**, with two exceptions. If a notified waiter *and* the
///   thread that passes its notification on are killed, two others may be woken by it.
///   And if several have been notified one by one, nobody else waits, and one of them
///   that is not the last is killed, somebody who begins to wait later may be woken in
///   its stead. Whoever waits with [`Condvar::wait_while`] need not care.
/// * **The mutex's promises.** A wait that returns holds the lock, and
///   [`MutexGuard::inherited`] tells if the owner before it died.
///
/// # After a death
///
/// An owner may be killed after it changed the data and before it notified those that
/// wait for the change. They sleep on. Its heir, who is told, is the one who can know:
/// repair the data, then [`Condvar::notify_all`]. So notify *before* you release the
/// lock: of a thread that is killed between its release and its notification nobody
/// inherits. It costs little: who is notified has a place in the mutex's queue, and
/// does not compete.
///
/// # Layout
///
/// 16 bytes; all zero bytes are a condition variable that nobody waits for, and any
/// bytes at all are a `Condvar`.
///
/// # Examples
///
/// ```
/// use heirlock::{Condvar, Mutex, Segment};
/// use zerocopy::FromBytes;
///
/// #[derive(FromBytes)]
/// #[repr(C)]
/// struct Mailbox {
///     letters: Mutex<u64>,
///     arrived: Condvar,
/// }
///
/// let mailbox: Segment<Mailbox> = Segment::anonymous()?;
/// std::thread::scope(|scope| {
///     // In another process, usually.
///     scope.spawn(|| {
///         let mut letters = mailbox.letters.lock();
///         mailbox.arrived.wait_while(&mut letters, |letters| *letters == 0);
///         *letters -= 1;
///     });
///     *mailbox.letters.lock() += 1;
///     mailbox.arrived.notify_one();
/// });
/// assert_eq!(*mailbox.letters.lock(), 0);
/// # Ok::<(), heirlock::SegmentError>(())
/// ```
#[derive(FromBytes)]
#[repr(transparent)]
pub struct Condvar {
    raw: RawCondvar,
}

/// Whether a wait with a limit reached it.
///
/// # Examples
///
/// See [`Condvar::wait_for`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Whether the time was over before a notification came (for
    /// [`Condvar::wait_while_for`]: before the condition changed).
    ///
    /// # Examples
    ///
    /// See [`Condvar::wait_for`].
    pub fn timed_out(self) -> bool {
        self.0
    }
}

impl Condvar {
    /// A condition variable that nobody waits for.
    ///
    /// # Examples
    ///
    /// ```
    /// static READY: heirlock::Condvar = heirlock::Condvar::new();
    /// assert!(!READY.notify_one());
    /// ```
    pub const fn new() -> Self {
        Self { raw: RawCondvar::new() }
    }

    /// Releases the lock, waits for a notification, and waits its turn for the lock
    /// again. Releasing and beginning to wait are one: whoever notifies with the lock
    /// held finds this thread waiting.
    ///
    /// # Panics
    ///
    /// Without having waited, if others wait with another mutex, if the mutex lies in
    /// another segment, if the thread waits for the mutex itself in a ring, or if it
    /// cannot join the segment. If the segment turns out to be corrupted while it
    /// waits; then the guard has lost the lock: whoever catches the panic may drop it,
    /// which releases nothing, and to use it panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Condvar, Mutex};
    /// static READY: Mutex<bool> = Mutex::new(false);
    /// static CHANGED: Condvar = Condvar::new();
    ///
    /// let waiter = std::thread::spawn(|| {
    ///     let mut ready = READY.lock();
    ///     while !*ready {
    ///         CHANGED.wait(&mut ready);
    ///     }
    /// });
    /// *READY.lock() = true;
    /// CHANGED.notify_one();
    /// waiter.join().unwrap();
    /// ```
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        match MutexGuard::wait_for_news(guard, &self.raw, Limits::default()) {
            Ok(_) => {}
            Err(unusable) => refused(&unusable),
        }
    }

    /// [`Condvar::wait`] for at most `timeout` (on `CLOCK_MONOTONIC`, which stands
    /// still while the machine is suspended). One too long to be represented is none.
    ///
    /// When the time is over the thread gives up its place and waits its turn for the
    /// lock, however long that takes. A notification that came in the last moment is
    /// taken, never lost.
    ///
    /// # Panics
    ///
    /// As [`Condvar::wait`]. The guard has lost the lock, too, if this thread has begun an
    /// acquisition through another mapping of the segment, which has the lock when the time
    /// is over.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Condvar, Mutex};
    /// use std::time::Duration;
    /// let (mutex, condvar) = (Mutex::new(1), Condvar::new());
    /// let mut guard = mutex.lock();
    /// let result = condvar.wait_for(&mut guard, Duration::from_millis(1));
    /// assert!(result.timed_out());
    /// *guard += 1; // the lock is held again
    /// ```
    pub fn wait_for<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        timeout: Duration,
    ) -> WaitTimeoutResult {
        self.wait_before(guard, Deadline::after(timeout))
    }

    /// [`Condvar::wait_for`] until a point in time; one in the past is over at once.
    ///
    /// # Panics
    ///
    /// As [`Condvar::wait_for`].
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Condvar, Mutex};
    /// use std::time::Instant;
    /// static DONE: Condvar = Condvar::new();
    /// static LOCK: Mutex<()> = Mutex::new(());
    /// assert!(DONE.wait_until(&mut LOCK.lock(), Instant::now()).timed_out());
    /// ```
    pub fn wait_until<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        deadline: Instant,
    ) -> WaitTimeoutResult {
        self.wait_for(guard, deadline.saturating_duration_since(Instant::now()))
    }

    fn wait_before<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        deadline: Option<Deadline>,
    ) -> WaitTimeoutResult {
        let limits = Limits { deadline, ..Limits::default() };
        match MutexGuard::wait_for_news(guard, &self.raw, limits) {
            Ok(outcome) => WaitTimeoutResult(outcome == Outcome::TimedOut),
            Err(unusable) => refused(&unusable),
        }
    }

    /// Waits as long as `condition` holds. It is asked with the lock held, before the
    /// first wait and after each.
    ///
    /// # Panics
    ///
    /// As [`Condvar::wait`], and as `condition` does.
    ///
    /// # Examples
    ///
    /// See [`Condvar`].
    pub fn wait_while<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) {
        while condition(guard) {
            self.wait(guard);
        }
    }

    /// [`Condvar::wait_while`] for at most `timeout` in all. It has timed out if the
    /// condition still holds then.
    ///
    /// # Panics
    ///
    /// As [`Condvar::wait_for`], and as `condition` does.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Condvar, Mutex};
    /// use std::time::Duration;
    /// static CHANGED: Condvar = Condvar::new();
    /// static VALUE: Mutex<u32> = Mutex::new(0);
    ///
    /// let mut value = VALUE.lock();
    /// let result = CHANGED.wait_while_for(&mut value, |v| *v == 0, Duration::from_millis(1));
    /// assert!(result.timed_out() && *value == 0);
    /// ```
    pub fn wait_while_for<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        mut condition: impl FnMut(&mut T) -> bool,
        timeout: Duration,
    ) -> WaitTimeoutResult {
        let deadline = Deadline::after(timeout);
        let mut result = WaitTimeoutResult(false);
        while condition(guard) {
            if result.timed_out() {
                return result;
            }
            result = self.wait_before(guard, deadline);
        }
        WaitTimeoutResult(false)
    }

    /// [`Condvar::wait`], unless a signal handler runs in this thread while it sleeps
    /// before it is notified. See
    /// [`Mutex::lock_interruptible`](crate::Mutex::lock_interruptible) for which
    /// handlers are noticed. The lock is held again in any case.
    ///
    /// # Errors
    ///
    /// [`Interrupted::Signal`], and [`Interrupted::Unusable`] where [`Condvar::wait`]
    /// would panic without having waited.
    ///
    /// # Panics
    ///
    /// If the lock cannot be acquired again: see [`Condvar::wait_for`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use heirlock::{Condvar, Interrupted, Mutex};
    /// static CHANGED: Condvar = Condvar::new();
    /// static VALUE: Mutex<u32> = Mutex::new(0);
    ///
    /// let mut value = VALUE.lock();
    /// while *value == 0 {
    ///     match CHANGED.wait_interruptible(&mut value) {
    ///         Ok(()) => {}
    ///         Err(Interrupted::Signal) => println!("look at the flags, wait again"),
    ///         Err(error) => return Err(error),
    ///     }
    /// }
    /// # Ok::<(), Interrupted>(())
    /// ```
    pub fn wait_interruptible<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
    ) -> Result<(), Interrupted> {
        match self.wait_with(guard, &LockOptions::new().interruptible(true)) {
            Ok(()) => Ok(()),
            Err(LockError::Unusable(unusable)) => Err(Interrupted::Unusable(unusable)),
            Err(_) => Err(Interrupted::Signal),
        }
    }

    /// [`Condvar::wait`], unless `token` is cancelled before it is notified. If it is
    /// cancelled already, the lock is not even released. It is held again in any
    /// case.
    ///
    /// # Errors
    ///
    /// [`Cancelled::Token`], and [`Cancelled::Unusable`] where [`Condvar::wait`] would
    /// panic without having waited.
    ///
    /// # Panics
    ///
    /// If the lock cannot be acquired again: see [`Condvar::wait_for`].
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{CancelToken, Cancelled, Condvar, Mutex};
    /// static STOP: CancelToken = CancelToken::new();
    /// static CHANGED: Condvar = Condvar::new();
    /// static LOCK: Mutex<()> = Mutex::new(());
    ///
    /// let waiter = std::thread::spawn(|| CHANGED.wait_cancellable(&mut LOCK.lock(), &STOP));
    /// STOP.canceller().cancel();
    /// assert!(matches!(waiter.join().unwrap(), Err(Cancelled::Token)));
    /// ```
    pub fn wait_cancellable<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        token: &CancelToken,
    ) -> Result<(), Cancelled> {
        match self.wait_with(guard, &LockOptions::new().cancel(token)) {
            Ok(()) => Ok(()),
            Err(LockError::Unusable(unusable)) => Err(Cancelled::Unusable(unusable)),
            Err(_) => Err(Cancelled::Token),
        }
    }

    /// [`Condvar::wait`], unless one of the `options` ends the wait before it is
    /// notified; says which. The lock is held again in any case: none of the options
    /// ends the wait for the lock.
    ///
    /// # Errors
    ///
    /// [`LockError`] says what ended the wait. [`LockError::Unusable`]: it did not
    /// begin.
    ///
    /// # Panics
    ///
    /// If the lock cannot be acquired again: see [`Condvar::wait_for`].
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Condvar, LockError, LockOptions, Mutex};
    /// use std::time::Duration;
    /// static CHANGED: Condvar = Condvar::new();
    /// static LOCK: Mutex<()> = Mutex::new(());
    ///
    /// let options = LockOptions::new().timeout(Duration::from_millis(1)).interruptible(true);
    /// let error = CHANGED.wait_with(&mut LOCK.lock(), &options).unwrap_err();
    /// assert!(matches!(error, LockError::TimedOut));
    /// ```
    pub fn wait_with<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        options: &LockOptions,
    ) -> Result<(), LockError> {
        let limits = options.limits().ok_or(LockError::Cancelled)?;
        match MutexGuard::wait_for_news(guard, &self.raw, limits)? {
            Outcome::Notified => Ok(()),
            Outcome::TimedOut => Err(LockError::TimedOut),
            Outcome::Cancelled => Err(LockError::Cancelled),
            Outcome::Interrupted => Err(LockError::Interrupted),
        }
    }

    /// Notifies the one that has waited longest. Whether there was one.
    ///
    /// The caller need not hold the lock. If it does, as it should if it changed what
    /// the others wait for, the notified thread sleeps until it is released.
    ///
    /// # Panics
    ///
    /// If somebody waits, and the calling thread cannot join the segment, or the
    /// segment is corrupted.
    ///
    /// # Examples
    ///
    /// See [`Condvar`].
    pub fn notify_one(&self) -> bool {
        self.raw.has_queue()
            && self.raw.notify_one(&self.me()).unwrap_or_else(|corrupted| failed(corrupted))
    }

    /// Notifies everybody who waits. How many that were.
    ///
    /// They follow each other in the order in which they began to wait, each when
    /// the one before has released the lock.
    ///
    /// # Panics
    ///
    /// As [`Condvar::notify_one`].
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Condvar, Mutex};
    /// static OPEN: Mutex<bool> = Mutex::new(false);
    /// static CHANGED: Condvar = Condvar::new();
    ///
    /// std::thread::scope(|scope| {
    ///     for _ in 0..3 {
    ///         scope.spawn(|| CHANGED.wait_while(&mut OPEN.lock(), |open| !*open));
    ///     }
    ///     *OPEN.lock() = true;
    ///     assert!(CHANGED.notify_all() <= 3);
    /// });
    /// ```
    pub fn notify_all(&self) -> usize {
        if !self.raw.has_queue() {
            return 0;
        }
        self.raw.notify_all(&self.me()).unwrap_or_else(|corrupted| failed(corrupted))
    }

    pub(crate) fn raw(&self) -> &RawCondvar {
        &self.raw
    }

    fn me(&self) -> Current {
        match current(core::ptr::from_ref(&self.raw).addr(), reclaim) {
            Ok(me) => me,
            Err(error) => refused(&error.into()),
        }
    }
}

#[cold]
fn refused(unusable: &Unusable) -> ! {
    panic!("heirlock: {unusable}")
}

#[cold]
fn failed(corrupted: Corrupted) -> ! {
    refused(&corrupted.into())
}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condvar").field("has_waiters", &self.raw.has_queue()).finish()
    }
}
