//! Rings of the program's in which futures wait.
#![allow(unsafe_code)]

use crate::participant::current::generation_of_process;
use crate::participant::watch::{Over, Watch};
use crate::sys::event;
use crate::sys::uring::{Waits, is_foreign};
use core::fmt;
use io_uring::{IoUring, SubmissionQueue, Submitter, cqueue};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A ring of the program's in which futures wait for locks: the program drives it, beside
/// whatever else it has in the ring. It is a handle; clones are the same reactor.
///
/// A future that waits in it is woken by [`turn`](Self::turn), which is to be called
/// whenever the ring's descriptor is readable ([`AsFd`]), or an eventfd is that was
/// registered with it. If nobody does, it waits for ever. In a forked child, whose
/// reactor does nothing, and where the ring takes no more, or no waits at all (before Linux
/// 6.7, or if it is for polled I/O), the process's helper waits instead: so it does for a
/// future that is polled by another thread than the one which a ring wants to submit
/// (`IORING_SETUP_SINGLE_ISSUER`). That thread is the one to call [`turn`](Self::turn):
/// where the kernel completes requests for it alone (`IORING_SETUP_DEFER_TASKRUN`), to turn
/// the ring elsewhere closes the reactor.
///
/// # Examples
///
/// An executor of one thread, with one task:
///
/// ```
/// use heirlock::{Mutex, uring::Reactor};
/// use std::{future::Future, pin::pin, task::{Context, Poll, Waker}};
/// static LOCK: Mutex<u32> = Mutex::new(1);
///
/// # if heirlock::uring::refused().is_some() { return Ok(()); }
/// let reactor = Reactor::new(io_uring::IoUring::new(8)?);
/// let held = LOCK.lock();
/// let mut task = pin!(LOCK.lock_async().on(&reactor));
/// let mut context = Context::from_waker(Waker::noop());
/// assert!(task.as_mut().poll(&mut context).is_pending());
/// drop(held);
/// let guard = loop {
///     reactor.wait()?;
///     reactor.turn(|done| unreachable!("nothing else is in the ring: {done:?}"));
///     if let Poll::Ready(guard) = task.as_mut().poll(&mut context) {
///         break guard;
///     }
/// };
/// assert_eq!(*guard, 1);
/// # drop(guard);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Reactor(Arc<Shared>);

struct Shared {
    /// That of the ring, which stays open for as long as this.
    fd: RawFd,
    state: Mutex<State>,
    process: u32,
}

struct State {
    waits: Waits<Arc<Watch>>,
    /// Nobody calls `turn` any more.
    closed: bool,
}

impl State {
    /// Nobody turns the ring any more: those for whom it waits.
    fn close(&mut self) -> impl Iterator<Item = Arc<Watch>> {
        self.closed = true;
        self.waits.give_up()
    }
}

impl Reactor {
    /// A reactor of `ring`, which it keeps.
    ///
    /// # Examples
    ///
    /// See the [type](Self).
    pub fn new(ring: IoUring) -> Self {
        let fd = ring.as_raw_fd();
        let state = Mutex::new(State { waits: Waits::new(ring), closed: false });
        Self(Arc::new(Shared { fd, state, process: generation_of_process() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is not a copy that `fork` made. A child has no part in its parent's ring,
    /// whose memory it shares: what it took there its parent would never see.
    fn is_of_this_process(&self) -> bool {
        self.0.process == generation_of_process()
    }

    /// Begins to wait. `Err` if that has to be done elsewhere.
    pub(crate) fn watch(&self, watch: &Arc<Watch>) -> io::Result<()> {
        if !self.is_of_this_process() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut state = self.state();
        if state.closed || state.waits.is_unfit() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        state.waits.add(Arc::clone(watch), watch.words(), watch.until())
    }

    /// Wakes the tasks whose waits are over, and passes what else is completed in the ring,
    /// which is the program's own, to `others`. Does not wait. How many tasks it woke.
    ///
    /// # Examples
    ///
    /// See the [type](Self).
    pub fn turn(&self, others: impl FnMut(cqueue::Entry)) -> usize {
        if !self.is_of_this_process() {
            return 0;
        }
        let (over, completed) = {
            let mut state = self.state();
            let (mut over, mut others) = state.waits.over();
            // What there was no room for is there now, and has the descriptor, or the
            // eventfd, say so. If the kernel takes nothing for the moment, it is asked again
            // at the next turn; from this thread it may never.
            let submitted = state.waits.submit();
            let more = state.waits.over();
            over.extend(more.0);
            others.extend(more.1);
            if submitted.is_err_and(|error| is_foreign(&error)) {
                over.extend(state.close().map(|watch| (watch, false)));
            }
            (over, others)
        };
        // Without the lock: a waker may poll its task at once.
        over.iter().for_each(|(watch, is_completed)| watch.end(Over::of_request(*is_completed)));
        completed.into_iter().for_each(others);
        over.len()
    }

    /// Has the ring take what there is to be submitted, and sleeps until something is
    /// completed in it, or a signal handler runs.
    ///
    /// # Errors
    ///
    /// What `poll` says; not `EINTR`.
    ///
    /// # Examples
    ///
    /// See the [type](Self).
    pub fn wait(&self) -> io::Result<()> {
        if self.is_of_this_process() {
            // If the kernel takes nothing now, the next turn asks again.
            let _ = self.state().waits.submit();
        }
        event::wait_until_readable(self.as_fd())
    }

    /// Gives access to the ring, for the program's own requests. What is pushed is submitted
    /// with what else there is, at the next [`turn`](Self::turn) or [`wait`](Self::wait) at the
    /// latest, or by `f`, behind a `sync` of the queue. Their `user_data` has neither bit 63
    /// nor bit 62, and the last of them is not linked to a next one, which would be a
    /// future's. What is completed is taken by [`turn`](Self::turn) alone.
    ///
    /// No future may be polled meanwhile that waits in this reactor.
    ///
    /// # Panics
    ///
    /// In a forked child.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::uring::Reactor;
    /// use io_uring::{IoUring, opcode};
    ///
    /// # if heirlock::uring::refused().is_some() { return Ok(()); }
    /// let reactor = Reactor::new(IoUring::new(8)?);
    /// reactor.with_ring(|submitter, queue| {
    ///     // SAFETY: it refers to nothing.
    ///     unsafe { queue.push(&opcode::Nop::new().build().user_data(5)) }
    ///         .expect("there is room");
    ///     queue.sync();
    ///     submitter.submit()
    /// })?;
    /// reactor.wait()?;
    /// let mut done = Vec::new();
    /// reactor.turn(|entry| done.push(entry.user_data()));
    /// assert_eq!(done, [5]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn with_ring<R>(&self, f: impl FnOnce(&Submitter, &mut SubmissionQueue) -> R) -> R {
        assert!(
            self.is_of_this_process(),
            "heirlock: this reactor was copied by fork; the ring is the parent's, not the child's"
        );
        // Not the ring itself: it could be exchanged for another one, with another
        // descriptor.
        let mut state = self.state();
        let (submitter, mut queue, _) = state.waits.ring().split();
        f(&submitter, &mut queue)
    }

    /// Says that nobody will call [`turn`](Self::turn) any more: those who wait are woken,
    /// and the helper waits in their place. What else is in the ring stays there.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Mutex, uring::Reactor};
    /// static LOCK: Mutex<u32> = Mutex::new(1);
    /// # if heirlock::uring::refused().is_some() { return Ok(()); }
    /// let reactor = Reactor::new(io_uring::IoUring::new(8)?);
    /// reactor.close();
    /// let guard = LOCK.lock();
    /// let waiter = std::thread::spawn(move || {
    ///     *pollster::block_on(LOCK.lock_async().on(&reactor))
    /// });
    /// drop(guard);
    /// assert_eq!(waiter.join().unwrap(), 1);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn close(&self) {
        if !self.is_of_this_process() {
            return;
        }
        let waiting: Vec<_> = self.state().close().collect();
        waiting.iter().for_each(|watch| watch.end(Over::GivenUp));
    }
}

impl AsFd for Reactor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring is closed with the last handle.
        unsafe { BorrowedFd::borrow_raw(self.0.fd) }
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor").field("fd", &self.0.fd).finish_non_exhaustive()
    }
}
