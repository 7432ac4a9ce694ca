//! A wait of somebody who does not sleep: which words it is for, and whom to tell.

use super::current::generation_of_process;
use crate::sys::atomic::AtomicU32;
use crate::sys::clock::Deadline;
use crate::sys::futex;
use core::ptr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// A wait that another thread, or a ring, sees through. Whoever waits ends it
/// ([`Watch::close`]) before the words go.
pub(crate) struct Watch {
    words: Vec<(usize, u32)>,
    until: Deadline,
    /// A child that `fork` copied it into must not touch the state, which may have been
    /// locked by a thread of its parent's.
    process: u32,
    state: Mutex<State>,
}

/// How a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// Nobody sleeps on the words any more.
    Returned,
    /// It is not waited for any more, but a ring may still have the request.
    GivenUp,
}

impl Over {
    /// Whether a request `is_completed`, for which nobody waits any more.
    #[cfg_attr(not(feature = "io-uring"), expect(dead_code, reason = "for rings"))]
    pub(crate) fn of_request(is_completed: bool) -> Self {
        if is_completed { Self::Returned } else { Self::GivenUp }
    }
}

#[derive(Default)]
struct State {
    /// Something happened, or the time is over.
    over: Option<Over>,
    /// Nobody waits any more.
    closed: bool,
    waker: Option<Waker>,
}

impl Watch {
    /// Waits for one of `words` to have another value, until then at the latest.
    pub(crate) fn new(words: &[(&AtomicU32, u32)], until: Deadline, waker: &Waker) -> Self {
        let address =
            |(word, value): &(&AtomicU32, u32)| (ptr::from_ref(*word).expose_provenance(), *value);
        Self {
            words: words.iter().map(address).collect(),
            until,
            process: generation_of_process(),
            state: Mutex::new(State { waker: Some(waker.clone()), ..State::default() }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses of the words, for the kernel.
    pub(crate) fn words(&self) -> &[(usize, u32)] {
        &self.words
    }

    pub(crate) fn until(&self) -> Deadline {
        self.until
    }

    fn is_of_this_process(&self) -> bool {
        self.process == generation_of_process()
    }

    /// How it ended; in a child nobody watches. If it is not over, it is `waker` that will be
    /// woken.
    pub(crate) fn over(&self, waker: &Waker) -> Option<Over> {
        if !self.is_of_this_process() {
            return Some(Over::Returned);
        }
        let state = self.state();
        let over = state.over;
        if over.is_some() || state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            return over;
        }
        drop(state);
        // Without the lock: to clone or drop a waker may run what it likes, which may end
        // this very wait.
        let waker = waker.clone();
        let mut state = self.state();
        let over = state.over;
        // If it is over it was not that one who was told, and it looks now.
        let former = if over.is_some() { Some(waker) } else { state.waker.replace(waker) };
        drop(state);
        drop(former);
        over
    }

    /// Wakes who waits, for it to look. A waker that panics has said so by then, and is of
    /// no concern to who else is to be woken.
    pub(crate) fn end(&self, how: Over) {
        let waker = {
            let mut state = self.state();
            state.over = Some(how);
            state.waker.take()
        };
        // Without the lock: it may run what it likes.
        if let Some(waker) = waker
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| waker.wake()))
        {
            // To drop it may panic again.
            std::mem::forget(panic);
        }
    }

    /// Nobody waits any more, and the words may go.
    pub(crate) fn close(&self) {
        if !self.is_of_this_process() {
            return;
        }
        let mut state = self.state();
        state.closed = true;
        let waker = state.waker.take();
        drop(state);
        drop(waker);
    }

    /// Whether there is something to tell, if something `may_have_changed`: for who watches
    /// without a ring.
    pub(crate) fn is_due(&self, may_have_changed: bool) -> bool {
        // Not a look at the words themselves: who forgets a future that a token cancels need
        // not keep the token.
        self.state().closed
            || self.until.passed()
            || may_have_changed && futex::has_changed(&self.words)
    }
}
