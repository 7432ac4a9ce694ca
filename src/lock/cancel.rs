//! Cancelling waits.

use crate::sys::atomic::{AtomicU32, Ordering};
use crate::sys::fault::{Fault, active};
use crate::sys::futex::{self, Expect};
use zerocopy::FromBytes;

/// What cancels waits: a 4-byte flag that can be waited for.
///
/// A wait that is given a token ([`Mutex::lock_cancellable`],
/// [`LockOptions::cancel`]) ends when the token is cancelled. One token may
/// serve any number of waits, on any locks, and all of them end; to be able to
/// cancel a single wait, give it a token of its own.
///
/// Cancelling is remembered: waits that begin later end at once, until
/// [`CancelToken::reset`]. It makes no difference to who holds the lock, and
/// none to who got it in the last moment: they find out with their next wait.
///
/// A token works where it lives. In a [`Segment`] every process that maps the
/// segment can cancel it and wait with it; in a `static` or on the stack, the
/// threads of one process. All zero bytes are a token that is not cancelled,
/// and any bytes are a token.
///
/// [`Mutex::lock_cancellable`]: crate::Mutex::lock_cancellable
/// [`LockOptions::cancel`]: crate::LockOptions::cancel
/// [`Segment`]: crate::Segment
///
/// # Examples
///
/// ```
/// use heirlock::{CancelToken, Cancelled, Mutex};
/// static STOP: CancelToken = CancelToken::new();
/// static LOCK: Mutex<u32> = Mutex::new(0);
///
/// let guard = LOCK.lock();
/// let waiter = std::thread::spawn(|| LOCK.lock_cancellable(&STOP).map(drop));
/// STOP.canceller().cancel();
/// assert!(matches!(waiter.join().unwrap(), Err(Cancelled::Token)));
/// # drop(guard);
/// ```
#[derive(FromBytes, Debug)]
#[repr(transparent)]
pub struct CancelToken {
    /// Bit 0: cancelled. The others count the resets, so that a wait is
    /// cancelled even if it only looks after the reset.
    word: AtomicU32,
}

const CANCELLED: u32 = 1;

impl CancelToken {
    /// A token that is not cancelled.
    ///
    /// # Examples
    ///
    /// ```
    /// static STOP: heirlock::CancelToken = heirlock::CancelToken::new();
    /// assert!(!STOP.is_cancelled());
    /// ```
    pub const fn new() -> Self {
        Self { word: AtomicU32::new(0) }
    }

    /// The right to cancel the token, to be handed to who decides that.
    ///
    /// # Examples
    ///
    /// See [`Canceller::cancel`].
    pub const fn canceller(&self) -> Canceller<'_> {
        Canceller(self)
    }

    /// Whether it was cancelled since it was made or last reset.
    pub fn is_cancelled(&self) -> bool {
        // Acquire pairs with the Release in `cancel`: who sees that it was
        // cancelled sees what was done before.
        self.word.load(Ordering::Acquire) & CANCELLED != 0
    }

    /// Lets waits begin again. Those that were cancelled before stay so, even
    /// if they have not noticed yet.
    ///
    /// # Examples
    ///
    /// ```
    /// let token = heirlock::CancelToken::new();
    /// token.canceller().cancel();
    /// assert!(token.is_cancelled());
    /// token.reset();
    /// assert!(!token.is_cancelled());
    /// ```
    pub fn reset(&self) {
        // One more clears bit 0 and carries into the count.
        let next = |word: u32| (word & CANCELLED != 0).then(|| word.wrapping_add(1));
        let _ = self.word.update(next);
    }

    /// What a wait that begins now looks at; `None` if it is cancelled already.
    pub(crate) fn ticket(&self) -> Option<Ticket<'_>> {
        // Acquire: as in `is_cancelled`.
        let value = self.word.load(Ordering::Acquire);
        (value & CANCELLED == 0).then_some(Ticket { word: &self.word, value })
    }
}

impl Default for CancelToken {
    fn default() -> Self {
        Self::new()
    }
}

/// The right to cancel a [`CancelToken`].
#[derive(Clone, Copy, Debug)]
pub struct Canceller<'a>(&'a CancelToken);

impl Canceller<'_> {
    /// Ends every wait with the token, and every one that begins from now on
    /// until the token is reset.
    ///
    /// Async-signal-safe: one atomic instruction and one system call
    /// (`FUTEX_WAKE`, made again if it fails for lack of memory), no allocation,
    /// no lock, and `errno` is left alone. So a
    /// signal handler may call it, whatever it interrupted, an operation on
    /// this very token or lock included. The waits end at once; where
    /// `futex_waitv` is missing, or a wait is interruptible as well, within
    /// 20 ms.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::CancelToken;
    /// use signal_hook::{consts::SIGTERM, low_level};
    /// static STOP: CancelToken = CancelToken::new();
    ///
    /// // SAFETY: `cancel` is async-signal-safe, and it is all that is called.
    /// unsafe { low_level::register(SIGTERM, || STOP.canceller().cancel()) }?;
    /// low_level::raise(SIGTERM)?;
    /// assert!(STOP.is_cancelled());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn cancel(self) {
        // Release pairs with the Acquire of who finds it cancelled. Between the
        // look of a waiter and its sleep nothing can be lost: the kernel
        // compares the word once more. Whoever finds it cancelled already wakes
        // as well, for who cancelled it may have been killed before it could.
        self.0.word.fetch_or(CANCELLED, Ordering::Release);
        if !active(Fault::NoCancelWake) {
            futex::wake_all(&self.0.word);
        }
    }
}

/// A wait's view of its token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket<'a> {
    word: &'a AtomicU32,
    value: u32,
}

impl<'a> Ticket<'a> {
    /// Whether the token was cancelled since the ticket was taken.
    pub(super) fn is_cancelled(self) -> bool {
        // Acquire: as in `CancelToken::is_cancelled`.
        self.word.load(Ordering::Acquire) != self.value
    }

    /// The word, and its value as long as it is not cancelled.
    pub(super) fn word(self) -> Expect<'a> {
        (self.word, self.value)
    }
}
