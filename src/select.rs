//! Several locks at once: any one of them, or all.
//!
//! [`lock_any`] stands in the queues of up to [`MAX_LOCKS`] locks at the same time, takes the
//! first that is handed to it, and leaves the other queues. If a second one came in the
//! same moment it passes on to the next in line: nobody's turn is lost, and nobody is
//! passed by. The locks may be in different segments, or in none.
//!
//! [`lock_all`] takes all of them, one after the other in an order that is the same in all
//! processes, so that those who use it do not wait for each other in a circle.
//!
//! # Examples
//!
//! ```
//! use heirlock::{Mutex, select};
//! static QUEUES: [Mutex<Vec<u32>>; 2] = [Mutex::new(Vec::new()), Mutex::new(Vec::new())];
//!
//! let busy = QUEUES[0].lock();
//! let (which, mut queue) = select::lock_any(&QUEUES.each_ref());
//! queue.push(7);
//! assert_eq!(which, 1);
//! drop((queue, busy));
//!
//! let [first, second] = &mut select::lock_all(&QUEUES.each_ref())[..] else { unreachable!() };
//! first.append(second);
//! assert_eq!(**first, [7]);
//! ```

use crate::error::{LockError, Unusable};
use crate::future::{AsyncMutexGuard, Pending};
use crate::lock::acquisition::{self, Acquired, Acquisition};
use crate::lock_options::LockOptions;
use crate::mutex::{Mutex, MutexGuard};
use crate::participant::lease::Lease;
use crate::sys::fault::{Fault, active};
#[cfg(feature = "io-uring")]
use crate::uring::Reactor;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

/// In how many queues one can stand at once: each takes two of the 128 words on which the
/// kernel lets a thread sleep (`FUTEX_WAITV_MAX`).
pub const MAX_LOCKS: usize = acquisition::MAX_LOCKS;

/// Waits for the first of `mutexes` that is this thread's, and takes it: its index, and its
/// guard.
///
/// If several can be had at once, the first of the slice. If owners die, or waiters in
/// front, it takes over as [`Mutex::lock`] does. It never looks for deadlocks.
///
/// In each segment it takes as many rows as there are locks in it (of
/// [`Options::capacity`](crate::Options::capacity)). The thread keeps eight of them until it
/// ends, and more (64 at most) if it wants more again and again. If the segment has no row
/// left, what the calling thread keeps of the kind, and the process for its futures, is
/// given up first.
///
/// # Panics
///
/// As [`Mutex::lock`]: also if the thread holds all of them, or waits for them in a ring (for
/// those it does not wait here); if there are none, or more than [`MAX_LOCKS`].
///
/// # Examples
///
/// See the [module](self).
pub fn lock_any<'m, T: ?Sized>(mutexes: &[&'m Mutex<T>]) -> (usize, MutexGuard<'m, T>) {
    expect(lock_any_with(mutexes, &LockOptions::new()))
}

/// [`lock_any`], unless one of the `options` ends the wait before.
///
/// A signal handler that is to end it is noticed while the thread sleeps; and then it is
/// woken at once by the first lock alone, and looks at the others every 20 milliseconds
/// (see [`Mutex::lock_interruptible`]). So it does where `futex_waitv` is missing.
///
/// # Errors
///
/// [`LockError`] says why nothing was acquired. All places are given up.
///
/// # Examples
///
/// ```
/// use heirlock::{LockError, LockOptions, Mutex, select::lock_any_with};
/// use std::time::Duration;
/// let mutexes = [Mutex::new(1), Mutex::new(2)];
/// let [one, two] = &mutexes;
/// let guards = (one.lock(), two.lock());
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         let soon = LockOptions::new().timeout(Duration::from_millis(1));
///         assert!(matches!(lock_any_with(&[one, two], &soon), Err(LockError::TimedOut)));
///     });
/// });
/// # drop(guards);
/// ```
pub fn lock_any_with<'m, T: ?Sized>(
    mutexes: &[&'m Mutex<T>],
    options: &LockOptions<'_>,
) -> Result<(usize, MutexGuard<'m, T>), LockError> {
    check(mutexes)?;
    let limits = options.limits().ok_or(LockError::Cancelled)?;
    let raw = mutexes.iter().map(|mutex| mutex.raw());
    let (mut under_way, mut acquired) = Acquisition::begin(raw, limits, Lease::of_thread, true)?;
    loop {
        if let Some(Acquired { which, lease }) = acquired {
            return Ok((which, MutexGuard::on_lease(lease, mutexes[which])));
        }
        acquired = match under_way.sleep() {
            Ok(()) => under_way.look()?,
            Err(failed) => under_way.give_up(failed)?,
        };
    }
}

fn check<T: ?Sized>(mutexes: &[&Mutex<T>]) -> Result<(), Unusable> {
    let found = mutexes.len();
    let some = (1..=MAX_LOCKS).contains(&found);
    if some { Ok(()) } else { Err(Unusable::NumberOfLocks { found, max: MAX_LOCKS }) }
}

fn expect<R>(result: Result<R, LockError>) -> R {
    result.unwrap_or_else(|error| panic!("heirlock: {error}"))
}

/// The future of [`lock_any_async`]. To be dropped it leaves all queues.
#[must_use = "futures do nothing unless they are awaited"]
pub struct LockAnyAsync<'m, T: ?Sized> {
    mutexes: Vec<&'m Mutex<T>>,
    pending: Pending<'m>,
}

/// [`lock_any`] without a thread that sleeps; see [`future`](crate::future). One of the
/// `options` may end the wait before.
///
/// # Errors
///
/// [`LockError`] says why nothing was acquired. All places are given up.
///
/// # Examples
///
/// ```
/// use heirlock::{LockOptions, Mutex, select::lock_any_async};
/// let mutexes = [Mutex::new(1), Mutex::new(2)];
/// let [one, two] = &mutexes;
/// let busy = one.lock();
/// let any = lock_any_async(&[one, two], &LockOptions::new());
/// let (which, guard) = pollster::block_on(any)?;
/// assert_eq!((which, *guard), (1, 2));
/// # drop((guard, busy));
/// # Ok::<(), heirlock::LockError>(())
/// ```
pub fn lock_any_async<'m, T: ?Sized>(
    mutexes: &[&'m Mutex<T>],
    options: &LockOptions<'m>,
) -> LockAnyAsync<'m, T> {
    LockAnyAsync { mutexes: mutexes.to_vec(), pending: Pending::new(options) }
}

#[cfg(feature = "io-uring")]
impl<T: ?Sized> LockAnyAsync<'_, T> {
    /// The same, waiting in the ring of `reactor`.
    ///
    /// # Examples
    ///
    /// See [`Reactor`].
    pub fn on(self, reactor: &Reactor) -> Self {
        Self { pending: self.pending.on(reactor), ..self }
    }
}

impl<'m, T: ?Sized> Future for LockAnyAsync<'m, T> {
    type Output = Result<(usize, AsyncMutexGuard<'m, T>), LockError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Self::Output> {
        check(&self.mutexes)?;
        let Self { mutexes, pending } = &mut *self;
        let raw = mutexes.iter().map(|mutex| mutex.raw());
        let acquired = ready!(pending.poll(raw, context))?;
        let which = acquired.which;
        Poll::Ready(Ok((which, AsyncMutexGuard::new(acquired, mutexes[which]))))
    }
}

impl<T: ?Sized> fmt::Debug for LockAnyAsync<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockAnyAsync").field("locks", &self.mutexes.len()).finish_non_exhaustive()
    }
}

/// Takes all of `mutexes`, each in its turn, whatever order they are passed in: their guards
/// are in that order.
///
/// They are taken in the order of their places: those of one segment by where they lie in
/// it, segments by the file (device and inode), what is in no segment by address and
/// first. (Addresses alone would not do: a segment lies elsewhere in each process.)
///
/// # Panics
///
/// As [`Mutex::lock`], also if one of them is there twice. What was taken is released.
///
/// # Examples
///
/// See the [module](self).
pub fn lock_all<'m, T: ?Sized>(mutexes: &[&'m Mutex<T>]) -> Vec<MutexGuard<'m, T>> {
    expect(lock_all_with(mutexes, &LockOptions::new()))
}

/// [`lock_all`], unless one of the `options` ends one of the waits before. A timeout is for
/// all together.
///
/// # Errors
///
/// [`LockError`] says why one of them was not acquired; what was taken is released, and who
/// had died holding it is told to its next owner.
///
/// # Examples
///
/// ```
/// use heirlock::{LockError, Mutex, Unusable, select::lock_all_with};
/// let mutex = Mutex::new(1);
/// let twice = lock_all_with(&[&mutex, &mutex], &Default::default());
/// assert!(matches!(twice, Err(LockError::Unusable(Unusable::WouldDeadlock))));
/// assert!(!mutex.is_locked());
/// ```
pub fn lock_all_with<'m, T: ?Sized>(
    mutexes: &[&'m Mutex<T>],
    options: &LockOptions<'_>,
) -> Result<Vec<MutexGuard<'m, T>>, LockError> {
    let limits = options.limits().ok_or(LockError::Cancelled)?;
    let mut order = Vec::with_capacity(mutexes.len());
    for (which, mutex) in mutexes.iter().enumerate() {
        let me = mutex.join().map_err(Unusable::from)?;
        let place = mutex.raw().place(&me).map_err(Unusable::from)?;
        order.push((place, which, me));
    }
    if !active(Fault::AsNamed) {
        order.sort_by_key(|(place, ..)| *place);
    }
    if order.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(Unusable::WouldDeadlock.into());
    }
    let mut guards: Vec<Option<MutexGuard<'m, T>>> = mutexes.iter().map(|_| None).collect();
    for (_, which, me) in order {
        let mutex = mutexes[which];
        match mutex.raw().lock(&me, limits) {
            Ok(hasty) => guards[which] = Some(MutexGuard::new(me.marked(hasty), mutex)),
            Err(failed) => {
                guards.into_iter().flatten().for_each(MutexGuard::release_untold);
                return Err(failed.into());
            }
        }
    }
    Ok(guards.into_iter().flatten().collect())
}
