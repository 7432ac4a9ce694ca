//! The mutex as its users see it.
#![allow(unsafe_code)]

use crate::error::{Cancelled, Interrupted, LockError, Unusable};
use crate::lock::cancel::CancelToken;
use crate::lock::condvar::{Outcome, RawCondvar, Refused};
use crate::lock::raw::{Failed, Fast, RawMutex, reclaim};
use crate::lock::wait::{Detect, Limits};
use crate::lock::word::Policy;
use crate::lock_options::LockOptions;
use crate::memory::error::Corrupted;
use crate::participant::attach::{AttachError, Inheritance};
use crate::participant::current::{Current, current, current_hot};
use crate::sys::clock::Deadline;
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{self, ManuallyDrop};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use std::thread;
use std::time::{Duration, Instant, SystemTime};
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
    /// If the calling thread holds the lock already (it would wait for itself
    /// for ever); if it cannot join the segment (see
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
            Fast::Done => MutexGuard { me: me.marked(true), mutex: self },
            Fast::Slow => self.lock_slow(me),
            Fast::Late => self.lock_late(me),
        }
    }

    #[cold]
    fn lock_anew(&self) -> MutexGuard<'_, T> {
        let me = self.me();
        match self.raw.lock(&me, Limits::default()) {
            Ok(hasty) => MutexGuard { me: me.marked(hasty), mutex: self },
            Err(failed) => fail(failed),
        }
    }

    #[cold]
    fn lock_slow(&self, me: Current) -> MutexGuard<'_, T> {
        match self.raw.lock_slow(&me, Limits::default()) {
            Ok(()) => MutexGuard { me, mutex: self },
            Err(failed) => fail(failed),
        }
    }

    #[cold]
    fn lock_late(&self, me: Current) -> MutexGuard<'_, T> {
        match self.raw.settle_barge(&me) {
            Ok(()) => MutexGuard { me, mutex: self },
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
            Ok(hasty) => Ok(MutexGuard { me: me.marked(hasty), mutex: self }),
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
            Ok(hasty) => Some(MutexGuard { me: me.marked(hasty), mutex: self }),
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
            Ok(hasty) => Some(MutexGuard { me: me.marked(hasty), mutex: self }),
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
        Ok(MutexGuard { me: me.marked(hasty), mutex: self })
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

/// The lock of a guard could not be acquired again, because of corruption mostly. It may
/// be this thread's all the same: then the guard, which stays, goes on to release it,
/// and the end of an acquisition is counted for which there has to be a beginning.
#[cold]
fn lost(me: &Current, failed: Failed) -> ! {
    me.count_acquired();
    fail(failed)
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

/// An owner that died holding a lock, as its heir is told.
///
/// The numbers are as its own PID namespace counts them. They are 0 if the
/// dead thread's row has had 32 other users before anybody took the lock.
///
/// # Examples
///
/// ```
/// use heirlock::{Mutex, MutexGuard};
/// static LOCK: Mutex<u32> = Mutex::new(0);
///
/// // A thread that ends without releasing is a dead owner, too.
/// std::thread::spawn(|| std::mem::forget(LOCK.lock())).join().unwrap();
///
/// let guard = LOCK.lock();
/// let dead = MutexGuard::inherited(&guard).expect("the owner is gone");
/// assert_eq!(dead.pid(), std::process::id());
/// drop(guard);
/// assert!(MutexGuard::inherited(&LOCK.lock()).is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadOwner(Inheritance);

impl DeadOwner {
    /// The ID of its process.
    pub fn pid(&self) -> u32 {
        self.0.identity.pid
    }

    /// The ID of its thread.
    pub fn tid(&self) -> u32 {
        self.0.identity.tid
    }

    /// The PID namespace in which those count: the inode of `/proc/PID/ns/pid`,
    /// 0 where `/proc` did not tell.
    pub fn pid_namespace(&self) -> u64 {
        self.0.identity.pid_namespace
    }

    /// The name of its thread when it joined the segment: at most 15 bytes.
    pub fn thread_name(&self) -> String {
        crate::segment::display_name(&self.0.identity.name)
    }

    /// When the heir took over.
    pub fn noticed(&self) -> SystemTime {
        self.0.noticed
    }
}

impl fmt::Display for DeadOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} \"{}\" of process {}", self.tid(), self.thread_name(), self.pid())
    }
}

/// Releases what a guard holds.
#[inline(always)]
fn release(raw: &RawMutex, me: &Current) {
    match raw.unlock_fast(me, me.is_marked()) {
        Fast::Done => {}
        Fast::Slow => released(raw.unlock_slow(me)),
        Fast::Late => released(raw.release_slow(me)),
    }
}

#[cold]
fn released(result: Result<(), Corrupted>) {
    if let Err(corrupted) = result {
        release_failed(corrupted);
    }
}

#[cold]
fn copied_guard() -> ! {
    panic!("heirlock: this guard was copied by fork; the parent holds the lock, not the child")
}

#[cold]
fn release_failed(corrupted: Corrupted) {
    // A second panic would abort, and say less than the first.
    if !thread::panicking() {
        panic!("heirlock: {corrupted}");
    }
}

/// A held lock; dropping it, also by unwinding, releases the lock. It derefs to
/// the value and stays on its thread.
///
/// # Leaks
///
/// A guard that is forgotten (`mem::forget`) leaves the lock held until the
/// thread ends, and then the next in line inherits it. For this to be sound no
/// reference to the value may outlive the thread: do not leak a *boxed* guard
/// and send what it derefs to elsewhere (`Box::leak(Box::new(guard))`), which
/// the compiler cannot forbid. [`MutexGuard::leak`] is made for that.
///
/// ```compile_fail
/// let mutex = heirlock::Mutex::new(());
/// let guard = mutex.lock();
/// std::thread::scope(|scope| {
///     scope.spawn(move || drop(guard)); // error: cannot be sent
/// });
/// ```
#[must_use = "a guard that is dropped at once releases the lock at once"]
pub struct MutexGuard<'a, T: ?Sized> {
    /// Marked if the lock was acquired on the fast path, and so may be released
    /// on it.
    me: Current,
    mutex: &'a Mutex<T>,
}

// SAFETY: a shared guard gives shared access to the value and nothing else.
unsafe impl<T: ?Sized + Sync> Sync for MutexGuard<'_, T> {}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        release(&self.mutex.raw, &self.me);
    }
}

impl<'a, T: ?Sized> MutexGuard<'a, T> {
    #[inline(always)]
    fn check_process(&self) {
        if !self.me.is_of_this_process() {
            copied_guard();
        }
    }

    /// Who died holding the lock, if this guard's owner took it over.
    ///
    /// Each death is told to one owner: the heir. If the heir dies too, or
    /// panics, before it releases, the next owner is told again (of the heir's
    /// death in the one case, of the first one's in the other).
    ///
    /// # Examples
    ///
    /// See [`DeadOwner`].
    pub fn inherited(this: &Self) -> Option<DeadOwner> {
        this.mutex.raw.inheritance(&this.me).map(DeadOwner)
    }

    /// Narrows the guard to a part of the value.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Mutex, MutexGuard};
    /// let mutex = Mutex::new((1, 2));
    /// let mut second = MutexGuard::map(mutex.lock(), |pair| &mut pair.1);
    /// *second = 3;
    /// drop(second);
    /// assert_eq!(*mutex.lock(), (1, 3));
    /// ```
    pub fn map<U: ?Sized>(
        mut this: Self,
        part: impl FnOnce(&mut T) -> &mut U,
    ) -> MappedMutexGuard<'a, U> {
        let value = NonNull::from(part(&mut this));
        let MutexGuard { me, mutex } = *ManuallyDrop::new(this);
        MappedMutexGuard { me, raw: &mutex.raw, value, _borrow: PhantomData }
    }

    /// Releases the lock, runs `f`, and waits its turn for the lock again. The
    /// guard then tells of what it inherited the second time.
    ///
    /// That wait does not look for deadlocks, so it is never chosen to end one.
    ///
    /// # Panics
    ///
    /// As [`Mutex::lock`].
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Mutex, MutexGuard};
    /// let mutex = Mutex::new(1);
    /// let mut guard = mutex.lock();
    /// MutexGuard::unlocked(&mut guard, || *mutex.lock() += 1);
    /// assert_eq!(*guard, 2);
    /// ```
    pub fn unlocked<R>(this: &mut Self, f: impl FnOnce() -> R) -> R {
        struct Again<'g, 'a, T: ?Sized>(&'g mut MutexGuard<'a, T>);
        impl<T: ?Sized> Drop for Again<'_, '_, T> {
            fn drop(&mut self) {
                // If `f` forked, the child's copy of the guard stays void.
                if !self.0.me.is_of_this_process() {
                    return;
                }
                // There is no guard to be returned if it gives up.
                let limits = Limits { detect: Detect::Never, ..Limits::default() };
                match self.0.mutex.raw.lock(&self.0.me, limits) {
                    Ok(hasty) => self.0.me = self.0.me.marked(hasty),
                    Err(failed) => lost(&self.0.me, failed),
                }
            }
        }
        this.check_process();
        release(&this.mutex.raw, &this.me);
        // Until then the guard holds nothing that could be released on the fast path.
        this.me = this.me.marked(false);
        // Also on unwinding: the guard will release the lock.
        let _again = Again(this);
        f()
    }

    /// Releases the lock, waits for `condvar`, and has the lock again if that returns,
    /// as a success or not.
    pub(crate) fn wait_for_news(
        this: &mut Self,
        condvar: &RawCondvar,
        limits: Limits,
    ) -> Result<Outcome, Unusable> {
        this.check_process();
        let there = current(core::ptr::from_ref(condvar).addr(), reclaim)?;
        if !there.is_same(this.me) {
            return Err(Unusable::OtherSegment);
        }
        let mark = this.me.is_marked();
        // Meanwhile the guard holds nothing that could be released on the fast path.
        this.me = this.me.marked(false);
        match condvar.wait(&this.me, &this.mutex.raw, mark, limits) {
            Ok((outcome, hasty)) => {
                this.me = this.me.marked(hasty);
                Ok(outcome)
            }
            Err(Refused::Lost(failed)) => lost(&this.me, failed),
            Err(refused) => {
                this.me = this.me.marked(mark);
                Err(match refused {
                    Refused::Corrupted(corrupted) => corrupted.into(),
                    _ => Unusable::OtherMutex,
                })
            }
        }
    }

    /// Lets those go first who wait, if there are any: releases the lock and
    /// waits its turn for it again.
    ///
    /// # Panics
    ///
    /// As [`Mutex::lock`].
    ///
    /// # Examples
    ///
    /// ```
    /// let mutex = heirlock::Mutex::new(1);
    /// let mut guard = mutex.lock();
    /// heirlock::MutexGuard::bump(&mut guard);
    /// assert_eq!(*guard, 1);
    /// ```
    pub fn bump(this: &mut Self) {
        if this.mutex.raw.has_queue() {
            Self::unlocked(this, || ());
        }
    }

    /// Keeps the lock for as long as the process lives, even when the thread
    /// ends before (unlike `mem::forget`, see the type's documentation): the
    /// reference may be sent elsewhere.
    ///
    /// In a segment the lock is inherited when the process has ended: at once
    /// if the thread lived until then, else within two seconds.
    ///
    /// # Examples
    ///
    /// ```
    /// static LOCK: heirlock::Mutex<u32> = heirlock::Mutex::new(0);
    /// let value: &'static mut u32 = heirlock::MutexGuard::leak(LOCK.lock());
    /// std::thread::spawn(move || *value = 1).join().unwrap();
    /// assert!(LOCK.is_locked());
    /// ```
    pub fn leak(this: Self) -> &'a mut T {
        this.check_process();
        let value = this.mutex.value.get();
        this.me.outlive_thread();
        mem::forget(this);
        // SAFETY: the lock is held and, without the guard, never released
        // while this process lives, so nobody else has access meanwhile; the
        // value lives as long as the mutex, for 'a.
        unsafe { &mut *value }
    }
}

#[cfg(feature = "lock_api")]
impl<'a, T: ?Sized> MutexGuard<'a, T> {
    /// What is left of the guard without its lifetime. As for [`MutexGuard::leak`], the
    /// lock stays held past the end of the thread, until [`Self::resume`].
    pub(crate) fn suspend(this: Self) -> Current {
        let me = ManuallyDrop::new(this).me;
        me.outlive_thread();
        me
    }

    /// The guard again.
    ///
    /// # Safety
    ///
    /// The calling thread holds `mutex`, has no guard of it, and got `me` from
    /// [`Self::suspend`] when it acquired it.
    pub(crate) unsafe fn resume(me: Current, mutex: &'a Mutex<T>) -> Self {
        Self { me, mutex }
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.check_process();
        // SAFETY: the lock is held by this thread, in this process.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.check_process();
        // SAFETY: the lock is held by this thread, in this process, and the
        // guard is borrowed exclusively.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// A held lock of which a part of the value is seen; see [`MutexGuard::map`].
#[must_use = "a guard that is dropped at once releases the lock at once"]
pub struct MappedMutexGuard<'a, U: ?Sized> {
    me: Current,
    raw: &'a RawMutex,
    value: NonNull<U>,
    _borrow: PhantomData<&'a mut U>,
}

// SAFETY: a shared guard gives shared access to the value and nothing else.
unsafe impl<U: ?Sized + Sync> Sync for MappedMutexGuard<'_, U> {}

impl<'a, U: ?Sized> MappedMutexGuard<'a, U> {
    /// Who died holding the lock; see [`MutexGuard::inherited`].
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{MappedMutexGuard, Mutex, MutexGuard};
    /// let mutex = Mutex::new((1, 2));
    /// let first = MutexGuard::map(mutex.lock(), |pair| &mut pair.0);
    /// assert!(MappedMutexGuard::inherited(&first).is_none());
    /// ```
    pub fn inherited(this: &Self) -> Option<DeadOwner> {
        this.raw.inheritance(&this.me).map(DeadOwner)
    }

    /// Narrows the guard further.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{MappedMutexGuard, Mutex, MutexGuard};
    /// let mutex = Mutex::new([(1, 2), (3, 4)]);
    /// let pair = MutexGuard::map(mutex.lock(), |pairs| &mut pairs[1]);
    /// let first = MappedMutexGuard::map(pair, |pair| &mut pair.0);
    /// assert_eq!(*first, 3);
    /// ```
    pub fn map<V: ?Sized>(
        mut this: Self,
        part: impl FnOnce(&mut U) -> &mut V,
    ) -> MappedMutexGuard<'a, V> {
        let value = NonNull::from(part(&mut this));
        let MappedMutexGuard { me, raw, .. } = *ManuallyDrop::new(this);
        MappedMutexGuard { me, raw, value, _borrow: PhantomData }
    }

    #[inline(always)]
    fn check_process(&self) {
        if !self.me.is_of_this_process() {
            copied_guard();
        }
    }
}

impl<U: ?Sized> Drop for MappedMutexGuard<'_, U> {
    #[inline(always)]
    fn drop(&mut self) {
        release(self.raw, &self.me);
    }
}

impl<U: ?Sized> Deref for MappedMutexGuard<'_, U> {
    type Target = U;

    #[inline]
    fn deref(&self) -> &U {
        self.check_process();
        // SAFETY: a part of the value, and the lock is held by this thread, in
        // this process.
        unsafe { self.value.as_ref() }
    }
}

impl<U: ?Sized> DerefMut for MappedMutexGuard<'_, U> {
    #[inline]
    fn deref_mut(&mut self) -> &mut U {
        self.check_process();
        // SAFETY: as in `deref`, and the guard is borrowed exclusively.
        unsafe { self.value.as_mut() }
    }
}

impl<U: ?Sized + fmt::Debug> fmt::Debug for MappedMutexGuard<'_, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
