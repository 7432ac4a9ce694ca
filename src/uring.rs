//! Waiting for locks in an io_uring: without a thread that sleeps, beside whatever else a
//! program waits for. Needs Linux 6.7, and the feature `io-uring` (a default).
//!
//! [`Mutex::start`] takes a place in the queue, at once, and gives back a state machine
//! ([`AsyncAcquire`]) and what it wants submitted ([`Entries`]). What completes them is
//! passed to [`AsyncAcquire::complete`], which has the lock then, or wants to wait again.
//! There is no runtime and no other thread, and the ring is the program's own. For
//! futures see [`future`](crate::future), which work without io_uring as well.
//!
//! Each acquisition has a row of its own in the segment. So a thread can have any number
//! of them under way, on different locks or the same, while it holds others; each stands
//! in its queue beside the blocking waiters of all processes, first in, first out.
//!
//! # What may happen to one
//!
//! * It is dropped: it leaves the queue, and its request completes by itself; the loop
//!   ignores the completion, as it knows nobody of that `user_data`. If the lock came in
//!   the last moment it passes on to the next in line.
//! * Its ring is closed: nothing completes any more. Drop it.
//! * Its process, or thread, is killed: whoever comes behind it steps over it, as over
//!   any dead waiter.
//! * A completion comes twice, or too early: whether the turn has come is in shared memory,
//!   and what completes a request is only a reason to look there. (If one is lost, nobody
//!   looks: then [`AsyncAcquire::look`] is for the program to call.)
//!
//! A death wakes one of those who watch the dead, and that one wakes the others. If a ring
//! used the wake up and its process is killed before it looks, or leaves its ring alone,
//! those others look after one second. (A thread that sleeps has the kernel pass the wake
//! on; a ring cannot.)
//!
//! # Examples
//!
//! ```
//! use heirlock::Mutex;
//! use heirlock::uring::{self, Progress};
//! use io_uring::IoUring;
//! static LOCK: Mutex<u32> = Mutex::new(0);
//!
//! # if uring::refused().is_some() { return Ok(()); }
//! let mut ring = IoUring::new(8)?;
//! let other = LOCK.lock();
//! let (mut acquire, mut progress) = LOCK.start(7)?;
//! assert!(matches!(progress, Progress::Again(_)));
//! drop(other);
//! let guard = loop {
//!     match progress {
//!         Progress::Acquired(guard) => break guard,
//!         // SAFETY: what entries point to outlives their completion.
//!         Progress::Again(entries) => unsafe { ring.submission().push_multiple(&entries)? },
//!         _ => {}
//!     }
//!     ring.submit_and_wait(1)?;
//!     let done = ring.completion().next().expect("one was waited for");
//!     assert_eq!(uring::user_data(&done), 7);
//!     progress = acquire.complete(&done)?;
//! };
//! # drop(guard);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod reactor;

pub use self::reactor::Reactor;

use crate::error::{LockError, Unusable};
use crate::lock::acquisition::{Acquired, Acquisition};
use crate::lock::raw::Failed;
use crate::lock::wait::Limits;
use crate::lock_options::LockOptions;
use crate::mutex::{Mutex, MutexGuard};
use crate::participant::lease::Lease;
use crate::segment::Participant;
use crate::sys::clock::Deadline;
use crate::sys::futex::Expect;
use crate::sys::uring::{self as sys, Ended, Request, Timer};
use core::fmt;
use core::ops::Deref;
use io_uring::{cqueue, squeue};
use std::io;
use std::time::Duration;

/// The bit of `user_data` that tells an acquisition's timeout from its wait.
pub const TIMEOUT: u64 = sys::TIMEOUT;

/// Why this process cannot wait for locks in a ring; `None` if it can.
///
/// `EPERM` says that `kernel.io_uring_disabled` or a seccomp filter forbids it, `ENOSYS`
/// that the kernel knows no io_uring, and `EOPNOTSUPP` that it is older than 6.7. (Asked
/// once, and then remembered.)
///
/// # Examples
///
/// ```
/// if let Some(error) = heirlock::uring::refused() {
///     println!("no io_uring here: {error}");
/// }
/// ```
pub fn refused() -> Option<io::Error> {
    sys::refused()
}

/// The `user_data` with which an acquisition was started, of what completes one of its
/// two requests.
///
/// # Examples
///
/// See the [module](self).
pub fn user_data(done: &cqueue::Entry) -> u64 {
    done.user_data() & !TIMEOUT
}

/// What is to be submitted: a wait, and its timeout, linked to it. They are pushed
/// together (`push_multiple`), and the ring stays the program's own.
///
/// # Safety of pushing them
///
/// What they point to is never freed, whatever becomes of the [`AsyncAcquire`]; if that is
/// dropped before they are submitted, they complete without a wait. They are to be pushed
/// once, and submitted within five seconds: after that they may wait for the words of
/// another acquisition, which does no harm but to who waits for their completion.
///
/// Requests belong to the thread that submits them: when it ends the kernel cancels them,
/// and [`AsyncAcquire::complete`] says [`Progress::Cancelled`].
#[derive(Debug)]
#[must_use = "what is not submitted does not complete"]
pub struct Entries {
    requests: [squeue::Entry; 2],
    until: Deadline,
}

impl Entries {
    /// The wait alone, for a runtime that takes one entry for an operation. Whoever submits
    /// that instead calls [`AsyncAcquire::look`] when it is completed, and when
    /// [`time_left`](Self::time_left) has passed at the latest.
    ///
    /// # Examples
    ///
    /// `examples/compio.rs` in the repository is an operation of compio's.
    pub fn wait(&self) -> squeue::Entry {
        self.requests[0].clone().clear_flags()
    }

    /// How long it is until somebody has to look, though nothing was completed: when the
    /// acquisition's time is over, or for what the kernel does not tell. A second at most.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::uring::Progress;
    /// use std::time::Duration;
    /// let mutex = heirlock::Mutex::new(());
    /// let guard = mutex.lock();
    /// let (acquire, progress) = mutex.start(1)?;
    /// let Progress::Again(entries) = progress else { panic!("it is held") };
    /// assert!(entries.time_left() <= Duration::from_secs(1));
    /// # drop((acquire, guard));
    /// # Ok::<(), heirlock::Unusable>(())
    /// ```
    pub fn time_left(&self) -> Duration {
        self.until.left()
    }
}

impl Deref for Entries {
    type Target = [squeue::Entry];

    fn deref(&self) -> &[squeue::Entry] {
        &self.requests
    }
}

/// How an acquisition goes on.
#[must_use = "what it says is to be submitted, or is the lock"]
pub enum Progress<'m, T: ?Sized> {
    /// The lock is this thread's.
    Acquired(MutexGuard<'m, T>),
    /// These are to be submitted.
    Again(Entries),
    /// What was submitted is not completed yet, not all of it.
    Pending,
    /// The time is over, and the place in the queue given up.
    TimedOut,
    /// It was cancelled, by its token or [`AsyncAcquire::cancel`], or its request was
    /// (`IORING_OP_ASYNC_CANCEL`), and the place in the queue is given up.
    Cancelled,
}

/// An acquisition that is under way: a place in the queue of a lock.
///
/// It stays on the thread that started it, and so does the guard.
///
/// ```compile_fail
/// let mutex = heirlock::Mutex::new(());
/// let (acquire, _) = mutex.start(1).unwrap();
/// std::thread::scope(|scope| {
///     scope.spawn(move || drop(acquire)); // error: cannot be sent
/// });
/// ```
///
/// # Examples
///
/// See the [module](self).
#[must_use = "an acquisition that is dropped leaves the queue"]
pub struct AsyncAcquire<'m, T: ?Sized> {
    mutex: &'m Mutex<T>,
    acquisition: Acquisition<'m>,
    user_data: u64,
    /// `None` when it is over.
    request: Option<Box<Request>>,
    /// How many waits are under way: more than one if it looked before one was completed.
    waits: u32,
    /// How many timeouts are.
    timeouts: u32,
    /// Whether a wait was cancelled, by whom is not known yet.
    cancelled: bool,
    /// Whether a timeout has expired since it looked.
    expired: bool,
}

impl<T: ?Sized> Mutex<T> {
    /// Takes the lock, or a place in its queue and says what is to be submitted for it. The
    /// requests will have this `user_data`, and the timeout [`TIMEOUT`] on top of it. No other
    /// request may have that until both are completed, whatever has become of the
    /// acquisition: the kernel cancels by it, and a late timeout of this one would be taken
    /// for the next one's.
    ///
    /// A thread may hold the lock, and wait for it in this way: it waits for itself only if
    /// it does nothing else. While it waits so it cannot wait for the lock asleep as well,
    /// without a limit: [`Unusable::WouldDeadlock`].
    ///
    /// # Errors
    ///
    /// [`Unusable`], if the thread cannot join the segment, which takes a row for each
    /// acquisition, or the segment is corrupted.
    ///
    /// # Panics
    ///
    /// If `user_data` has the bit [`TIMEOUT`].
    ///
    /// # Examples
    ///
    /// See [`uring`](crate::uring).
    pub fn start(
        &self,
        user_data: u64,
    ) -> Result<(AsyncAcquire<'_, T>, Progress<'_, T>), Unusable> {
        AsyncAcquire::begin(self, Limits::default(), user_data).map_err(|error| match error {
            LockError::Unusable(unusable) => unusable,
            ended => unreachable!("nothing was to end the wait: {ended}"),
        })
    }

    /// The same, unless one of the `options` ends the wait before. (No signal does, and it
    /// is never part of a deadlock that is found.)
    ///
    /// # Errors
    ///
    /// As [`Mutex::start`]; and [`LockError::TimedOut`] or [`LockError::Cancelled`] if the
    /// time is over, or the token cancelled, before it began.
    ///
    /// # Panics
    ///
    /// As [`Mutex::start`].
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::uring::{self, Progress};
    /// use heirlock::{LockOptions, Mutex};
    /// use std::time::Duration;
    /// let mutex = Mutex::new(1);
    /// let options = LockOptions::new().timeout(Duration::from_millis(20));
    /// let (_, progress) = mutex.start_with(&options, 1)?;
    /// let Progress::Acquired(guard) = progress else { panic!("it was free") };
    /// # drop(guard);
    /// # Ok::<(), heirlock::LockError>(())
    /// ```
    pub fn start_with<'m>(
        &'m self,
        options: &LockOptions<'m>,
        user_data: u64,
    ) -> Result<(AsyncAcquire<'m, T>, Progress<'m, T>), LockError> {
        let limits = options.limits().ok_or(LockError::Cancelled)?;
        AsyncAcquire::begin(self, limits, user_data)
    }
}

impl<'m, T: ?Sized> AsyncAcquire<'m, T> {
    fn begin(
        mutex: &'m Mutex<T>,
        limits: Limits<'m>,
        user_data: u64,
    ) -> Result<(Self, Progress<'m, T>), LockError> {
        assert!(user_data & TIMEOUT == 0, "heirlock: bit 63 of user_data is for the timeout");
        let (acquisition, acquired) =
            Acquisition::begin([mutex.raw()], limits, Lease::of_thread, false)?;
        let mut this = Self {
            mutex,
            acquisition,
            user_data,
            request: None,
            waits: 0,
            timeouts: 0,
            cancelled: false,
            expired: false,
        };
        let progress = match acquired {
            Some(acquired) => this.acquired(acquired),
            None => this.again()?,
        };
        Ok((this, progress))
    }

    /// Goes on with what completes one of its requests: that with its `user_data`, or the
    /// same and [`TIMEOUT`]. It is to be passed both, in whatever order they come.
    ///
    /// What is somebody else's it does not look at: [`Progress::Pending`].
    ///
    /// When it has said anything else than [`Progress::Again`] or [`Progress::Pending`] it is
    /// over. A timeout may be completed later still, which can be passed or not.
    ///
    /// # Errors
    ///
    /// [`Unusable::Refused`] if the kernel does not know the request, and
    /// [`Unusable::Corrupted`]. The place in the queue is given up, as far as that is
    /// possible.
    ///
    /// # Examples
    ///
    /// See the [module](self).
    pub fn complete(&mut self, done: &cqueue::Entry) -> Result<Progress<'m, T>, Unusable> {
        if self.request.is_none() || user_data(done) != self.user_data {
            return Ok(Progress::Pending);
        }
        if done.user_data() & TIMEOUT != 0 {
            self.timeouts = self.timeouts.saturating_sub(1);
            match Timer::of(done.result()) {
                Timer::Idle => {}
                Timer::Expired => self.expired = true,
                // The wait has no timeout: another one will have.
                Timer::Refused => return self.look(),
            }
        } else {
            self.waits = self.waits.saturating_sub(1);
            match Ended::of(done.result()) {
                Ended::Look if self.waits == 0 => {
                    self.acquisition.returned();
                    return self.look();
                }
                Ended::Look => return self.look(),
                Ended::Cancelled => self.cancelled = true,
                Ended::Fault => {
                    let truncated = Unusable::Corrupted { what: "its file was truncated" };
                    return self.give_up_for(truncated);
                }
                Ended::Unknown(code) => {
                    let refused = io::Error::from_raw_os_error(code);
                    return self.give_up_for(Unusable::Refused(refused));
                }
            }
        }
        if !self.cancelled {
            return Ok(Progress::Pending);
        }
        // A timeout cancels by `user_data`, so if several waits are under way it need not be
        // its own. If none was it, the last one says so.
        match self.expired {
            true => self.look(),
            false if self.timeouts > 0 => Ok(Progress::Pending),
            false => self.give_up(Failed::Cancelled),
        }
    }

    /// Leaves the queue: [`Progress::Cancelled`], or [`Progress::Acquired`] if the lock came
    /// in the last moment. What was submitted completes by itself.
    ///
    /// # Errors
    ///
    /// [`Unusable::Corrupted`].
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::uring::Progress;
    /// let mutex = heirlock::Mutex::new(());
    /// let guard = mutex.lock();
    /// let (mut acquire, _) = mutex.start(1)?;
    /// assert!(matches!(acquire.cancel()?, Progress::Cancelled));
    /// # drop(guard);
    /// # Ok::<(), heirlock::Unusable>(())
    /// ```
    pub fn cancel(&mut self) -> Result<Progress<'m, T>, Unusable> {
        match self.request {
            Some(_) => self.give_up(Failed::Cancelled),
            None => Ok(Progress::Cancelled),
        }
    }

    /// Which row stands in the queue, for [`queue`](crate::queue); `None` when it is over.
    pub fn participant(&self) -> Option<Participant> {
        self.acquisition.first().map(Participant)
    }

    /// Looks whether the turn has come, for whatever reason: where the ring's completions are
    /// not to be had, as they are a runtime's own. Can be called at any time.
    ///
    /// What was submitted before may still be under way beside what this returns, and each of
    /// the two, when it completes, has [`complete`](Self::complete) ask for another one. So a
    /// loop that passes completions has no reason to call this as well; and a request to
    /// cancel (`IORING_OP_ASYNC_CANCEL`) may meet the one that nobody misses:
    /// [`cancel`](Self::cancel) does not.
    ///
    /// # Errors
    ///
    /// [`Unusable::Corrupted`].
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::uring::Progress;
    /// let mutex = heirlock::Mutex::new(());
    /// let guard = mutex.lock();
    /// let (mut acquire, _) = mutex.start(1)?;
    /// drop(guard);
    /// assert!(matches!(acquire.look()?, Progress::Acquired(_)));
    /// # Ok::<(), heirlock::Unusable>(())
    /// ```
    pub fn look(&mut self) -> Result<Progress<'m, T>, Unusable> {
        if self.request.is_none() {
            return Ok(Progress::Pending);
        }
        match self.acquisition.look() {
            Ok(Some(acquired)) => Ok(self.acquired(acquired)),
            Ok(None) => self.again(),
            Err(failed) => self.failed(failed),
        }
    }

    /// Leaves the queue because of `why`, unless the lock came in the last moment.
    fn give_up_for(&mut self, why: Unusable) -> Result<Progress<'m, T>, Unusable> {
        match self.give_up(Failed::Cancelled)? {
            Progress::Acquired(guard) => Ok(Progress::Acquired(guard)),
            _ => Err(why),
        }
    }

    fn give_up(&mut self, why: Failed) -> Result<Progress<'m, T>, Unusable> {
        match self.acquisition.give_up(why) {
            Ok(Some(acquired)) => Ok(self.acquired(acquired)),
            Ok(None) => Ok(Progress::Cancelled),
            Err(failed) => self.failed(failed),
        }
    }

    fn acquired(&mut self, acquired: Acquired) -> Progress<'m, T> {
        self.finish();
        Progress::Acquired(MutexGuard::on_lease(acquired.lease, self.mutex))
    }

    fn failed(&mut self, failed: Failed) -> Result<Progress<'m, T>, Unusable> {
        self.finish();
        match LockError::from(failed) {
            LockError::TimedOut => Ok(Progress::TimedOut),
            LockError::Unusable(unusable) => Err(unusable),
            _ => Ok(Progress::Cancelled),
        }
    }

    /// Waits once more.
    fn again(&mut self) -> Result<Progress<'m, T>, Unusable> {
        let (words, until) = match self.acquisition.words() {
            Ok(words) => words,
            Err(corrupted) => return self.give_up_for(corrupted.into()),
        };
        let address = |(word, value): &Expect| (core::ptr::from_ref(*word).addr(), *value);
        let words: Vec<_> = words.iter().map(address).collect();
        let request = self.request.get_or_insert_with(Request::take);
        request.set(&words, until);
        self.waits += 1;
        self.timeouts += 1;
        (self.cancelled, self.expired) = (false, false);
        let requests = request.entries(self.user_data);
        Ok(Progress::Again(Entries { requests, until }))
    }

    fn finish(&mut self) {
        match self.request.take() {
            // It may not have been submitted yet.
            Some(request) if self.waits > 0 => request.bury(),
            // It need not be so: who passes a completion twice has it counted twice.
            Some(request) => request.rest(),
            None => {}
        }
    }
}

impl<T: ?Sized> fmt::Debug for Progress<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acquired(_) => f.debug_tuple("Acquired").finish_non_exhaustive(),
            Self::Again(entries) => f.debug_tuple("Again").field(entries).finish(),
            Self::Pending => f.write_str("Pending"),
            Self::TimedOut => f.write_str("TimedOut"),
            Self::Cancelled => f.write_str("Cancelled"),
        }
    }
}

impl<T: ?Sized> Drop for AsyncAcquire<'_, T> {
    fn drop(&mut self) {
        self.finish();
    }
}

impl<T: ?Sized> fmt::Debug for AsyncAcquire<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncAcquire")
            .field("user_data", &self.user_data)
            .field("participant", &self.participant())
            .finish_non_exhaustive()
    }
}
