//! The guards of the mutex, and what an heir is told.
#![allow(unsafe_code)]

use super::{Mutex, fail};
use crate::error::Unusable;
use crate::lock::condvar::{Outcome, RawCondvar, Refused};
use crate::lock::raw::{Failed, Fast, RawMutex, reclaim};
use crate::lock::wait::{Detect, Limits};
use crate::memory::error::Corrupted;
use crate::participant::attach::{Home, Inheritance};
use crate::participant::current::{Current, current};
use crate::participant::lease::{Lease, give_back};
use core::fmt;
use core::marker::PhantomData;
use core::mem::{self, ManuallyDrop};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

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

/// Releases what a guard held that is gone.
#[inline(always)]
fn drop_guard(raw: &RawMutex, me: &Current) {
    match raw.unlock_fast(me, me.is_marked()) {
        Fast::Done => {}
        // Rows on lease never release on the fast path.
        Fast::Slow => drop_slow(raw, *me),
        Fast::Late => released(raw.release_slow(me)),
    }
}

#[cold]
fn drop_slow(raw: &RawMutex, me: Current) {
    // SAFETY: it was the guard's, and of those that are copied (by `MutexGuard::map`, and
    // for `lock_api`) none is without its lock.
    if unsafe { me.free_nowhere() } {
        return;
    }
    let result = raw.unlock_slow(&me);
    if me.home() != Home::Thread {
        if result.is_err() {
            me.mark_broken();
        }
        give_back(me);
    }
    released(result);
}

#[cold]
fn released(result: Result<(), Corrupted>) {
    if let Err(corrupted) = result {
        release_failed(corrupted);
    }
}

#[cold]
fn void_guard(me: Current) -> ! {
    if me.home() == Home::Nowhere {
        panic!("heirlock: this guard has lost its lock, which could not be acquired again")
    }
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
        drop_guard(&self.mutex.raw, &self.me);
    }
}

impl<'a, T: ?Sized> MutexGuard<'a, T> {
    /// For who has just acquired the lock; marked if it may be released on the fast path.
    #[inline(always)]
    pub(crate) fn new(me: Current, mutex: &'a Mutex<T>) -> Self {
        Self { me, mutex }
    }

    /// For who has acquired the lock with a row on lease.
    pub(crate) fn on_lease(lease: Lease, mutex: &'a Mutex<T>) -> Self {
        Self { me: lease.into_current(), mutex }
    }

    #[inline(always)]
    fn check_process(&self) {
        if !self.me.is_of_this_process() {
            void_guard(self.me);
        }
    }

    /// The lock was released, or is to be, and `failed` to be acquired again: from here on
    /// there is a guard without a lock, which somebody may have who caught the panic.
    ///
    /// Where memory is corrupted the lock may be the row's all the same. Then it stays that
    /// until the thread ends, as after a `lock` that failed so.
    #[cold]
    fn lose(&mut self, failed: &Failed) {
        let me = self.me;
        self.me = me.nowhere();
        // By another row of the thread's, or another guard of the same one.
        let is_elsewhere = matches!(failed, Failed::OwnedByCaller);
        if me.home() != Home::Thread && !is_elsewhere {
            me.mark_broken();
        }
        give_back(me);
    }

    /// Releases the lock, of which nobody has made use: who died holding it is told to the
    /// next owner. Only for the row of a thread.
    pub(crate) fn release_untold(this: Self) {
        let this = ManuallyDrop::new(this);
        released(this.mutex.raw.unlock_untold(&this.me));
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
    /// As [`Mutex::lock`]: if `f` keeps the lock, say. Then the guard has lost it: whoever
    /// catches the panic may drop the guard, which releases nothing, and to use it panics.
    /// (While the thread unwinds, because `f` panics or from before, there is no second
    /// panic: then the use of the guard is all that tells.)
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
                    Err(failed) => {
                        self.0.lose(&failed);
                        // A second panic would abort, and say less than the first.
                        if !thread::panicking() {
                            fail(failed);
                        }
                    }
                }
            }
        }
        this.check_process();
        if let Err(corrupted) = this.mutex.raw.unlock(&this.me, this.me.is_marked()) {
            // Nobody knows whose the lock is now.
            let failed = corrupted.into();
            this.lose(&failed);
            fail(failed);
        }
        // Until then the guard holds nothing that could be released on the fast path.
        this.me = this.me.marked(false);
        // Also on unwinding: the guard will release the lock.
        let _again = Again(this);
        f()
    }

    /// Releases the lock, waits for `condvar`, and has the lock again if that returns,
    /// as a success or not. If it panics because it has not, it has lost the lock.
    pub(crate) fn wait_for_news(
        this: &mut Self,
        condvar: &RawCondvar,
        limits: Limits,
    ) -> Result<Outcome, Unusable> {
        this.check_process();
        let there = current(core::ptr::from_ref(condvar).addr(), reclaim)?;
        if !there.is_same(this.me) && !Arc::ptr_eq(there.mapping(), this.me.mapping()) {
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
            Err(Refused::Lost(failed)) => {
                this.lose(&failed);
                fail(failed)
            }
            Err(refused) => {
                this.me = this.me.marked(mark);
                Err(match refused {
                    Refused::Corrupted(corrupted) => corrupted.into(),
                    Refused::WouldDeadlock => Unusable::WouldDeadlock,
                    Refused::OtherMutex | Refused::Lost(_) => Unusable::OtherMutex,
                })
            }
        }
    }

    /// Lets those go first who wait, if there are any: releases the lock and
    /// waits its turn for it again.
    ///
    /// # Panics
    ///
    /// As [`MutexGuard::unlocked`]; and, with the guard as it was, if the thread waits for
    /// the lock in a ring, to which it would go.
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
        this.check_process();
        match this.mutex.raw.is_awaited_by_caller(&this.me) {
            // It would go to this thread, and the guard would be without.
            Ok(true) => fail(Failed::OwnedByCaller),
            Ok(false) if this.mutex.raw.has_queue() => Self::unlocked(this, || ()),
            Ok(false) => {}
            Err(corrupted) => fail(corrupted.into()),
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
        // SAFETY: the lock is held by this thread, in this process: a guard that has lost
        // it is not of this process.
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
            void_guard(self.me);
        }
    }
}

impl<U: ?Sized> Drop for MappedMutexGuard<'_, U> {
    #[inline(always)]
    fn drop(&mut self) {
        drop_guard(self.raw, &self.me);
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
