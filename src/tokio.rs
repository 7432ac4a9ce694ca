//! Futures that wait in a ring which tokio watches: without the process's helper in
//! between, a lock that is handed over wakes a worker of the runtime itself.
//!
//! [`Mutex::lock_async`](crate::Mutex::lock_async) works under tokio without this, too, as
//! on any executor. Futures and guards are `Send`, so tasks can be spawned on the
//! multi-thread runtime and hold a lock across an `await`.
//!
//! # Examples
//!
//! ```
//! use heirlock::{Mutex, tokio::Driver};
//! static TOTAL: Mutex<u64> = Mutex::new(0);
//!
//! # if heirlock::uring::refused().is_some() { return Ok(()); }
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
//! # runtime.block_on(async {
//! let driver = Driver::new()?;
//! let tasks: Vec<_> = (0..8)
//!     .map(|_| {
//!         let reactor = driver.reactor().clone();
//!         tokio::spawn(async move {
//!             let mut total = TOTAL.lock_async().on(&reactor).await;
//!             tokio::task::yield_now().await;
//!             *total += 1;
//!         })
//!     })
//!     .collect();
//! for task in tasks {
//!     task.await?;
//! }
//! assert_eq!(*TOTAL.lock_async().on(driver.reactor()).await, 8);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![allow(unsafe_code)]

use crate::sys::event;
use crate::uring::Reactor;
use io_uring::{IoUring, cqueue};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

/// How many requests can be submitted in one go.
const ENTRIES: u32 = 256;

/// A ring, and the task that watches it in the runtime in which it was made: through an
/// eventfd, and an [`AsyncFd`].
///
/// When it is dropped, or the runtime is, those who wait in the ring are woken, and the
/// process's helper waits in their place.
///
/// # Examples
///
/// See the [module](self).
#[derive(Debug)]
pub struct Driver {
    reactor: Reactor,
    task: JoinHandle<()>,
}

/// Closes the reactor when nobody drives it any more.
struct Drive(Reactor);

impl Drop for Drive {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Driver {
    /// A ring that the current runtime drives, which has its I/O enabled.
    ///
    /// # Errors
    ///
    /// What the kernel says if it refuses a ring (see
    /// [`uring::refused`](crate::uring::refused)) or an eventfd.
    ///
    /// # Panics
    ///
    /// Outside of a runtime, or if its I/O is not enabled.
    ///
    /// # Examples
    ///
    /// See the [module](self).
    pub fn new() -> io::Result<Self> {
        Self::with_ring(IoUring::new(ENTRIES)?, |_| {})
    }

    /// The same with a ring of the program's, which keeps using it through
    /// [`Reactor::with_ring`], and submits what it pushes there: what is completed of that is
    /// passed to `others`, in the task that drives the ring.
    ///
    /// # Errors
    ///
    /// As [`Driver::new`]; the ring must have no eventfd yet. `EINVAL` if it is for one thread
    /// alone (`IORING_SETUP_SINGLE_ISSUER`): a runtime's tasks go from thread to thread.
    ///
    /// # Panics
    ///
    /// As [`Driver::new`].
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::tokio::Driver;
    /// use io_uring::{IoUring, opcode};
    ///
    /// # if heirlock::uring::refused().is_some() { return Ok(()); }
    /// # let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    /// # runtime.block_on(async {
    /// let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    /// let driver = Driver::with_ring(IoUring::new(8)?, move |done| {
    ///     let _ = tell.send(done.user_data());
    /// })?;
    /// driver.reactor().with_ring(|submitter, queue| {
    ///     // SAFETY: it refers to nothing.
    ///     unsafe { queue.push(&opcode::Nop::new().build().user_data(5)) }
    ///         .expect("there is room");
    ///     queue.sync();
    ///     submitter.submit()
    /// })?;
    /// assert_eq!(told.recv().await, Some(5));
    /// # Ok::<(), std::io::Error>(())
    /// # })?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn with_ring(
        ring: IoUring,
        mut others: impl FnMut(cqueue::Entry) + Send + 'static,
    ) -> io::Result<Self> {
        crate::uring::refused().map_or(Ok(()), Err)?;
        if ring.params().is_setup_single_issuer() {
            return Err(Errno::INVAL.into());
        }
        let counter = event::counter()?;
        ring.submitter().register_eventfd(counter.as_raw_fd())?;
        // SAFETY: it is an open descriptor, which the `AsyncFd` owns from here on.
        let counter = unsafe { AsyncFd::register_with_interest(counter, Interest::READABLE) };
        let counter = counter.map_err(io::Error::from)?;
        let reactor = Reactor::new(ring);
        let drive = Drive(reactor.clone());
        let task = tokio::spawn(async move {
            let Drive(reactor) = &drive;
            // It fails when the runtime ends.
            while let Ok(mut ready) = counter.readable().await {
                ready.clear_ready();
                // Before it looks what there is, so that nothing is missed.
                event::reset(counter.as_fd());
                reactor.turn(&mut others);
            }
        });
        Ok(Self { reactor, task })
    }

    /// The ring in which futures can wait: see
    /// [`LockAsync::on`](crate::future::LockAsync::on).
    ///
    /// # Examples
    ///
    /// See the [module](self).
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // At once: nobody may run the runtime's tasks at the moment, nor its end.
        self.reactor.close();
        self.task.abort();
    }
}
