//! Parking threads, across processes: [`std::thread::park`] for a segment.
//!
//! A thread that [parks](park) sleeps until another one, in whichever process, has
//! [unparked](Thread::unpark) it. Whom to unpark is said by a handle, and a handle
//! is a [`Participant`]: a number that can be kept in the segment. That is enough to
//! build one's own queues, pools and rendezvous from.
//!
//! ```
//! use heirlock::{Mutex, Participant, Segment, thread};
//! use zerocopy::FromBytes;
//!
//! #[derive(FromBytes)]
//! #[repr(C)]
//! struct Shared {
//!     /// The job, and who has asked for it.
//!     job: Mutex<[u64; 2]>,
//! }
//!
//! # let path = format!("/dev/shm/heirlock-doc-thread-{}", std::process::id());
//! let segment: Segment<Shared> = Segment::create(&path)?;
//! let me = thread::current(&segment)?;
//! *segment.job.lock() = [20, me.participant().to_bits()];
//!
//! // Here a thread, but it could be in any process that opens the segment.
//! let worker = {
//! #   let path = path.clone();
//!     std::thread::spawn(move || {
//!         let segment: Segment<Shared> = Segment::open(&path).unwrap();
//!         let mut job = segment.job.lock();
//!         let asked = Participant::from_bits(job[1]).expect("somebody has asked");
//!         *job = [job[0] + 1, 0];
//!         drop(job);
//!         if !thread::Thread::of(&segment, asked).unpark() {
//!             println!("{asked} has died: nobody waits for the answer");
//!         }
//!     })
//! };
//! thread::park(&segment);
//! assert_eq!(segment.job.lock()[0], 21);
//! # worker.join().unwrap();
//! # Segment::unlink(&path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The token
//!
//! A thread has a token or not; when it joins the segment it has none.
//! [`unpark`](Thread::unpark) gives it one, if it has none already; [`park`] takes
//! the token and returns, and if there is none it sleeps until there is. So
//!
//! * a token is never lost: if the unpark comes first, the next park returns at
//!   once, without a system call;
//! * two unparks without a park in between are one;
//! * no park returns without a token, whatever signals come. (The standard library
//!   allows that.) It is still good practice to look in a loop whether what one
//!   waits for has come: somebody else may have given the token, for another reason.
//!
//! What a thread did before it unparked is visible to the parked one once its park
//! has returned; also what was done before those unparks that found the token there.
//!
//! A thread has one token for each segment that it has joined, not one for each
//! `Segment` value, unless it has mapped the same segment twice.
//!
//! # Deaths
//!
//! A handle names one thread for good. To unpark it when it is dead, or has left the
//! segment, does nothing and [says so](Thread::unpark), and whoever uses its row after
//! it gets no token by that.
//!
//! A thread that is killed as it unparks has given the token or it has not. If it is
//! killed in the instant between the token and the wake, the parked thread finds the
//! token when it next looks by itself, within a second (or when somebody else unparks
//! it).
//!
//! Nobody is told that the thread which was to unpark has died: a parked thread
//! waits for no one in particular. Who must know uses a [`Mutex`](crate::Mutex), or
//! [`park_timeout`] and [`is_alive`](crate::is_alive).
//!
//! # Signals
//!
//! A signal handler that runs in a parked thread changes nothing: not even a storm of
//! them ends the park, or stretches a deadline. Those that are to end it say so, as
//! they do with locks: by a token ([`LockOptions::cancel`]), or by running at all
//! ([`LockOptions::interruptible`]), for [`park_with`]. What is missed then and what not
//! is in the chapter on [signals](crate::signals); a handler that *unparks* its
//! thread is never missed.

use crate::error::{LockError, Unusable};
use crate::lock::park as parking;
use crate::lock::raw::reclaim;
use crate::lock::wait::Limits;
use crate::lock_options::LockOptions;
use crate::participant::attach::AttachError;
use crate::participant::current::current_in;
use crate::participant::table::Table;
use crate::segment::{Participant, Segment};
use crate::sys::clock::Deadline;
use core::fmt;
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

/// A thread in a segment, to be unparked. See the [module](self).
///
/// It is the thread's [`Participant`], which can be kept in the segment, and the
/// segment as this process has it, and is as cheap to copy as that.
#[derive(Clone, Copy)]
pub struct Thread<'s> {
    table: Table<'s>,
    participant: Participant,
}

impl<'s> Thread<'s> {
    /// The thread that joined `segment` as `participant`, dead or alive.
    ///
    /// # Examples
    ///
    /// See the [module](self).
    pub fn of<T>(segment: &'s Segment<T>, participant: Participant) -> Self {
        Self { table: Table::new(segment.mapping()), participant }
    }

    /// Its name, which any process that has the segment open understands.
    ///
    /// # Examples
    ///
    /// See the [module](self).
    pub fn participant(self) -> Participant {
        self.participant
    }

    /// Gives the thread its token: its [`park`] returns, or, if it is not parked,
    /// the next one does. `false` if it is dead, or has left the segment: then nothing
    /// has happened.
    ///
    /// `true` says that it was alive when it got the token; it may die before it takes
    /// it. A death that the kernel did not mark is not known here, either, until
    /// somebody has noticed it (see [`is_alive`](crate::is_alive)): that of a thread
    /// that was not its process's first and called `execve`, and any where
    /// `get_robust_list` is refused.
    ///
    /// The calling thread need not have joined the segment, and does not by this.
    ///
    /// Async-signal-safe: a few atomic instructions and one system call (`FUTEX_WAKE`,
    /// made again if it fails for lack of memory), no allocation, no lock, and `errno`
    /// is left alone. So a signal handler may call it, whatever it interrupted: the
    /// very thread's own `park`, say, or an unpark of the same thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Mutex, Segment, thread};
    /// use signal_hook::{consts::SIGUSR1, low_level};
    /// use std::sync::{Arc, OnceLock};
    /// let segment: Arc<Segment<Mutex<u64>>> = Arc::new(Segment::anonymous()?);
    /// let me = thread::current(&segment)?.participant();
    ///
    /// let mapped = segment.clone();
    /// // SAFETY: `unpark` is async-signal-safe, and it is all that is called.
    /// unsafe {
    ///     low_level::register(SIGUSR1, move || {
    ///         thread::Thread::of(&mapped, me).unpark();
    ///     })
    /// }?;
    /// low_level::raise(SIGUSR1)?;
    /// thread::park(&segment);
    ///
    /// let gone = std::thread::scope(|s| {
    ///     s.spawn(|| thread::current(&segment).unwrap().participant()).join().unwrap()
    /// });
    /// assert!(!thread::Thread::of(&segment, gone).unpark());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unpark(self) -> bool {
        parking::unpark(self.table, self.participant.0)
    }
}

impl fmt::Debug for Thread<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Thread").field(&self.participant).finish()
    }
}

/// The calling thread in `segment`, which it joins at the first need.
///
/// # Errors
///
/// As [`Segment::attach`].
///
/// # Examples
///
/// ```
/// use heirlock::{Mutex, Segment, thread};
/// let segment: Segment<Mutex<u64>> = Segment::anonymous()?;
/// let me = thread::current(&segment)?;
/// assert_eq!(me.participant(), segment.attach()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn current<T>(segment: &Segment<T>) -> Result<Thread<'_>, AttachError>
where
    T: FromBytes + Sync + 'static,
{
    Ok(Thread::of(segment, segment.attach()?))
}

/// Sleeps until the calling thread has a token in `segment`, and takes it. It returns
/// for no other reason.
///
/// # Panics
///
/// If the thread cannot join the segment (see [`Segment::attach`]); if the segment is
/// corrupted.
///
/// # Examples
///
/// ```
/// use heirlock::{Mutex, Segment, thread};
/// let segment: Segment<Mutex<u64>> = Segment::anonymous()?;
/// let me = thread::current(&segment)?;
/// std::thread::scope(|scope| {
///     scope.spawn(move || assert!(me.unpark()));
///     thread::park(&segment);
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn park<T>(segment: &Segment<T>) {
    took(wait(segment, Limits::default()));
}

/// [`park`], but no longer than `timeout` (on `CLOCK_MONOTONIC`, which stands still while
/// the machine is suspended). Whether it took a token.
///
/// A timeout of zero takes the token if there is one; one too long to be represented
/// is none. The deadline is computed once: signal handlers that run meanwhile do not
/// stretch it.
///
/// # Panics
///
/// As [`park`].
///
/// # Examples
///
/// ```
/// use heirlock::{Mutex, Segment, thread};
/// use std::time::Duration;
/// let segment: Segment<Mutex<u64>> = Segment::anonymous()?;
/// assert!(!thread::park_timeout(&segment, Duration::from_millis(1)));
/// thread::current(&segment)?.unpark();
/// assert!(thread::park_timeout(&segment, Duration::from_millis(1)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn park_timeout<T>(segment: &Segment<T>, timeout: Duration) -> bool {
    let deadline = Deadline::after(timeout);
    took(wait(segment, Limits { deadline, ..Limits::default() }))
}

/// [`park_timeout`] until a point in time; one in the past acts as a timeout of zero.
///
/// # Panics
///
/// As [`park`].
///
/// # Examples
///
/// ```
/// use heirlock::{Mutex, Segment, thread};
/// use std::time::Instant;
/// let segment: Segment<Mutex<u64>> = Segment::anonymous()?;
/// assert!(!thread::park_until(&segment, Instant::now()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn park_until<T>(segment: &Segment<T>, deadline: Instant) -> bool {
    park_timeout(segment, deadline.saturating_duration_since(Instant::now()))
}

/// [`park`], unless one of the `options` ends it before; says which. The one call that
/// covers the others, and that never panics.
///
/// If the token comes in the last moment, it is taken. If it is not taken it is not
/// lost: the next park has it. A cancelled token of the options ends the call even
/// if there is a token to be taken.
///
/// # Errors
///
/// [`ParkError`] says why no token was taken.
///
/// # Examples
///
/// ```
/// use heirlock::thread::{self, ParkError};
/// use heirlock::{CancelToken, LockOptions, Mutex, Segment};
/// let segment: Segment<Mutex<u64>> = Segment::anonymous()?;
/// let stop = CancelToken::new();
/// let options = LockOptions::new().cancel(&stop);
/// std::thread::scope(|scope| {
///     let parked = scope.spawn(|| thread::park_with(&segment, &options));
///     stop.canceller().cancel();
///     assert!(matches!(parked.join().unwrap(), Err(ParkError::Cancelled)));
/// });
/// # Ok::<(), heirlock::SegmentError>(())
/// ```
pub fn park_with<T>(segment: &Segment<T>, options: &LockOptions) -> Result<(), ParkError> {
    wait(segment, options.limits().ok_or(ParkError::Cancelled)?)
}

fn wait<T>(segment: &Segment<T>, limits: Limits) -> Result<(), ParkError> {
    let me = current_in(segment.mapping(), reclaim).map_err(Unusable::from)?;
    parking::park(&me, limits).map_err(|failed| match LockError::from(failed) {
        LockError::TimedOut => ParkError::TimedOut,
        LockError::Cancelled => ParkError::Cancelled,
        LockError::Interrupted => ParkError::Interrupted,
        LockError::Unusable(unusable) => unusable.into(),
    })
}

/// Whether a token was taken, where there is no other way out than its time.
fn took(parked: Result<(), ParkError>) -> bool {
    match parked {
        Ok(()) => true,
        Err(ParkError::TimedOut) => false,
        Err(error) => panic!("heirlock: {error}"),
    }
}

/// Why [`park_with`] took no token.
///
/// # Examples
///
/// See [`park_with`].
#[derive(Debug)]
#[non_exhaustive]
pub enum ParkError {
    /// The time was over.
    TimedOut,
    /// The [`CancelToken`](crate::CancelToken) was cancelled.
    Cancelled,
    /// A signal handler ran in the thread while it slept.
    Interrupted,
    /// The thread cannot park in this segment.
    Unusable(Unusable),
}

impl From<Unusable> for ParkError {
    fn from(unusable: Unusable) -> Self {
        Self::Unusable(unusable)
    }
}

impl fmt::Display for ParkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TimedOut => {
                "nobody has unparked the thread in time; if somebody does later, its next park \
                 returns at once"
            }
            Self::Cancelled => {
                "the park was cancelled; parks with the same token fail until `CancelToken::reset`"
            }
            Self::Interrupted => {
                "a signal handler ran while the thread was parked; see to the signal and park again"
            }
            Self::Unusable(unusable) => return unusable.fmt(f),
        })
    }
}

impl std::error::Error for ParkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unusable(unusable) => unusable.source(),
            _ => None,
        }
    }
}
