//! Futures for locks: `mutex.lock_async().await`, on any executor.
//!
//! Somebody has to wait while the executor does other things. By default that is a thread
//! of this process, which is started when the first future has to wait and never ends:
//! it sleeps in an io_uring of its own, or where that is refused (see [`backend`]) on the
//! futex words themselves. With the feature `io-uring` it can be a ring that the program
//! drives instead: see [`Reactor`], and for tokio
//! the module `tokio`.
//!
//! # Who owns such a lock
//!
//! The process, not a thread: the row that stands in the queue, and owns the lock then,
//! belongs to a second such thread, and so lives as long as the process. So a future may be
//! polled by one thread now and by another one then, and the guard may be held across an
//! `await` and moved. The lock is inherited when the *process* dies. A thread that ends, or
//! a task that is forgotten, leaves it locked.
//!
//! When a process is killed its threads end one by one, in any order, and one that is in the
//! middle of a system call (a `read` into what the lock protects, say) ends that first. So
//! whoever is next in line has the lock when the last of them is gone, and not before.
//!
//! A thread that waits asleep for a lock that a task of its own executor holds waits for
//! ever. Nobody finds that out: there are no deadlock checks for futures.
//!
//! # Examples
//!
//! ```
//! use heirlock::Mutex;
//! use std::thread;
//! static TOTAL: Mutex<u64> = Mutex::new(0);
//!
//! let add = async || *TOTAL.lock_async().await += 1;
//! let held = TOTAL.lock();
//! let waiter = thread::spawn(move || pollster::block_on(add()));
//! drop(held);
//! waiter.join().unwrap();
//! assert_eq!(*TOTAL.lock(), 1);
//! ```
#![allow(unsafe_code)]

use crate::error::{LockError, Unusable};
use crate::lock::acquisition::{Acquired, Acquisition};
use crate::lock::raw::RawMutex;
use crate::lock::wait::Limits;
use crate::lock_options::LockOptions;
use crate::mutex::{DeadOwner, Mutex, MutexGuard};
use crate::participant::helper;
use crate::participant::lease::Lease;
use crate::participant::watch::{Over, Watch};
#[cfg(feature = "io-uring")]
use crate::uring::Reactor;
use core::fmt;
use core::future::Future;
use core::ops::{Deref, DerefMut};
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::io;
use std::sync::Arc;

/// How this process waits on behalf of futures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// The helper sleeps in an io_uring: any number of futures at the same cost for each.
    IoUring,
    /// The helper sleeps in `futex_waitv`, on at most 128 words; beyond some 40 futures
    /// that wait, it looks at the others every 20 milliseconds.
    Futex,
}

/// How this process waits on behalf of futures that have no other reactor: in an io_uring if
/// the kernel, its settings and seccomp filters let it, else without. (Also if it could have
/// a ring, but had none when the first future waited, for want of descriptors or memory, or
/// the program has closed it since.)
///
/// # Examples
///
/// ```
/// use heirlock::future::{Backend, backend};
/// match backend() {
///     Backend::IoUring => println!("in a ring"),
///     _ => println!("in a thread, without a ring"),
/// }
/// ```
pub fn backend() -> Backend {
    if helper::has_ring() { Backend::IoUring } else { Backend::Futex }
}

/// A held lock that no thread owns, but the process: it may be moved to another thread, and
/// dropping it, wherever that is, releases the lock.
///
/// # Examples
///
/// ```
/// use heirlock::Mutex;
/// static TOTAL: Mutex<u64> = Mutex::new(0);
/// let mut guard = pollster::block_on(TOTAL.lock_async());
/// std::thread::spawn(move || *guard += 1).join().unwrap();
/// assert_eq!(*TOTAL.lock(), 1);
/// ```
#[must_use = "a guard that is dropped at once releases the lock at once"]
pub struct AsyncMutexGuard<'m, T: ?Sized>(MutexGuard<'m, T>);

// SAFETY: the guard is what it is sent for: access to the value by one thread at a time, as
// `&mut T` gives it (so `T: Send`). The lock belongs to a row of the process
// (`Lease::of_process`), and nothing of that belongs to a thread: its place on a robust list
// is the keeper's, which alone changes it, and does so when nobody has the row any more.
// What is counted beside the row is used by who has the guard; handing it over is in
// between.
unsafe impl<T: ?Sized + Send> Send for AsyncMutexGuard<'_, T> {}

impl<'m, T: ?Sized> AsyncMutexGuard<'m, T> {
    pub(crate) fn new(acquired: Acquired, mutex: &'m Mutex<T>) -> Self {
        Self(MutexGuard::on_lease(acquired.lease, mutex))
    }

    /// Who died holding the lock, if it was taken over from a dead owner; see
    /// [`MutexGuard::inherited`].
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::future::AsyncMutexGuard;
    /// let mutex = heirlock::Mutex::new(1);
    /// let guard = pollster::block_on(mutex.lock_async());
    /// assert!(AsyncMutexGuard::inherited(&guard).is_none());
    /// ```
    pub fn inherited(this: &Self) -> Option<DeadOwner> {
        MutexGuard::inherited(&this.0)
    }
}

impl<T: ?Sized> Deref for AsyncMutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized> DerefMut for AsyncMutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for AsyncMutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for AsyncMutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who waits on behalf of a future.
#[derive(Clone, Debug, Default)]
enum Waiter {
    #[default]
    Helper,
    #[cfg(feature = "io-uring")]
    Reactor(Reactor),
}

impl Waiter {
    fn watch(&self, watch: Arc<Watch>) -> io::Result<()> {
        #[cfg(feature = "io-uring")]
        if let Self::Reactor(reactor) = self
            && reactor.watch(&watch).is_ok()
        {
            return Ok(());
        }
        helper::watch(watch)
    }
}

/// What is to be acquired by a future, with what is under way for it.
pub(crate) struct Pending<'m> {
    waiter: Waiter,
    /// `None` if it was cancelled before it was made.
    limits: Option<Limits<'m>>,
    // Before the acquisition, whose words it is about.
    watch: Option<Closing>,
    acquisition: Option<Acquisition<'m>>,
}

/// Closes a watch on drop: then nobody looks at the words any more.
struct Closing(Arc<Watch>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

// SAFETY: what is under way belongs to rows of the process, which no thread need have to
// itself; see `AsyncMutexGuard`. One thread at a time polls a future or drops it.
unsafe impl Send for Pending<'_> {}

impl<'m> Pending<'m> {
    pub(crate) fn new(options: &LockOptions<'m>) -> Self {
        let (waiter, limits) = (Waiter::default(), options.limits());
        Self { waiter, limits, watch: None, acquisition: None }
    }

    #[cfg(feature = "io-uring")]
    pub(crate) fn on(self, reactor: &Reactor) -> Self {
        let waiter = Waiter::Reactor(reactor.clone());
        // It may have been polled already: then it looks, and waits there.
        Self { waiter, watch: None, ..self }
    }

    pub(crate) fn poll(
        &mut self,
        locks: impl IntoIterator<Item = &'m RawMutex>,
        context: &mut Context,
    ) -> Poll<Result<Acquired, LockError>> {
        // The token was cancelled before there was a future.
        let Some(limits) = self.limits else { return Poll::Ready(Err(LockError::Cancelled)) };
        let over = match &self.watch {
            Some(Closing(watch)) => match watch.over(context.waker()) {
                None => return Poll::Pending,
                over => over,
            },
            None => None,
        };
        self.watch = None;
        let acquired = match &mut self.acquisition {
            Some(under_way) => {
                if over == Some(Over::Returned) {
                    under_way.returned();
                }
                under_way.look()?
            }
            None => {
                let (begun, acquired) =
                    Acquisition::begin(locks, limits, Lease::of_process, false)?;
                self.acquisition = Some(begun);
                acquired
            }
        };
        if let Some(acquired) = acquired {
            return Poll::Ready(Ok(acquired));
        }
        let Some(under_way) = &mut self.acquisition else { unreachable!("it has just begun") };
        let (words, until) = under_way.words().map_err(Unusable::from)?;
        let watch = Arc::new(Watch::new(&words, until, context.waker()));
        self.watch = Some(Closing(Arc::clone(&watch)));
        self.waiter.watch(watch).map_err(Unusable::Refused)?;
        Poll::Pending
    }
}

/// The future of [`Mutex::lock_async`]. To be dropped it leaves the queue.
#[must_use = "futures do nothing unless they are awaited"]
pub struct LockAsync<'m, T: ?Sized>(LockAsyncWith<'m, T>);

/// The future of [`Mutex::lock_async_with`]. To be dropped it leaves the queue.
#[must_use = "futures do nothing unless they are awaited"]
pub struct LockAsyncWith<'m, T: ?Sized> {
    mutex: &'m Mutex<T>,
    pending: Pending<'m>,
}

impl<T: ?Sized> Mutex<T> {
    /// Waits its turn and takes the lock, without a thread that sleeps: when it is polled
    /// first it takes its place in the queue, in which threads and futures of all
    /// processes are served first in, first out. See [`future`](crate::future).
    ///
    /// # Panics
    ///
    /// When it is polled: as [`Mutex::lock`], but for a lock that the calling thread
    /// holds, for which it waits; and if the helper thread cannot be started.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::Mutex;
    /// async fn add(total: &Mutex<u64>, n: u64) {
    ///     *total.lock_async().await += n;
    /// }
    /// let total = Mutex::new(1);
    /// pollster::block_on(add(&total, 2));
    /// assert_eq!(*total.lock(), 3);
    /// ```
    pub fn lock_async(&self) -> LockAsync<'_, T> {
        LockAsync(self.lock_async_with(&LockOptions::new()))
    }

    /// The same, unless one of the `options` ends the wait before. (No signal does, and it
    /// is never part of a deadlock that is found.) A timeout runs from this call on.
    ///
    /// # Errors
    ///
    /// [`LockError`] says why the lock was not acquired. The place in the queue is given
    /// up.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{LockError, LockOptions, Mutex};
    /// use std::time::Duration;
    /// let mutex = Mutex::new(());
    /// let guard = mutex.lock();
    /// let soon = LockOptions::new().timeout(Duration::from_millis(1));
    /// let late = pollster::block_on(mutex.lock_async_with(&soon));
    /// assert!(matches!(late, Err(LockError::TimedOut)));
    /// # drop(guard);
    /// ```
    pub fn lock_async_with<'m>(&'m self, options: &LockOptions<'m>) -> LockAsyncWith<'m, T> {
        LockAsyncWith { mutex: self, pending: Pending::new(options) }
    }
}

#[cfg(feature = "io-uring")]
impl<T: ?Sized> LockAsync<'_, T> {
    /// The same, waiting in the ring of `reactor`.
    ///
    /// # Examples
    ///
    /// See [`Reactor`].
    pub fn on(self, reactor: &Reactor) -> Self {
        Self(self.0.on(reactor))
    }
}

#[cfg(feature = "io-uring")]
impl<T: ?Sized> LockAsyncWith<'_, T> {
    /// The same, waiting in the ring of `reactor`.
    ///
    /// # Examples
    ///
    /// See [`Reactor`].
    pub fn on(self, reactor: &Reactor) -> Self {
        Self { pending: self.pending.on(reactor), ..self }
    }
}

impl<'m, T: ?Sized> Future for LockAsyncWith<'m, T> {
    type Output = Result<AsyncMutexGuard<'m, T>, LockError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Self::Output> {
        let mutex = self.mutex;
        let acquired = ready!(self.pending.poll([mutex.raw()], context));
        Poll::Ready(acquired.map(|acquired| AsyncMutexGuard::new(acquired, mutex)))
    }
}

impl<'m, T: ?Sized> Future for LockAsync<'m, T> {
    type Output = AsyncMutexGuard<'m, T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Self::Output> {
        match ready!(Pin::new(&mut self.0).poll(context)) {
            Ok(guard) => Poll::Ready(guard),
            Err(error) => panic!("heirlock: {error}"),
        }
    }
}

impl<T: ?Sized> fmt::Debug for LockAsync<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockAsync").finish_non_exhaustive()
    }
}

impl<T: ?Sized> fmt::Debug for LockAsyncWith<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockAsyncWith").finish_non_exhaustive()
    }
}
