//! Futures among wakers that panic or poll at once, forks, rings that are closed, and the
//! slow ends of processes.
#![allow(clippy::disallowed_types, reason = "flags of the tests' own")]

#[path = "../kit/mod.rs"]
mod kit;

mod ends;
mod forgotten;
mod forks;
mod many;
#[cfg(feature = "io-uring")]
mod rings;
mod several;
mod wakers;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

fn main() {
    kit::run(
        &[
            wakers::TESTS,
            ends::TESTS,
            forgotten::TESTS,
            many::TESTS,
            forks::TESTS,
            several::TESTS,
            #[cfg(feature = "io-uring")]
            rings::TESTS,
        ],
        &[
            ends::ROLES,
            forgotten::ROLES,
            many::ROLES,
            forks::ROLES,
            #[cfg(feature = "io-uring")]
            rings::ROLES,
        ]
        .concat(),
        2 * kit::HANG,
    )
}

/// A task that is polled by hand, and how often it was woken.
struct Task<F: ?Sized> {
    woken: Arc<Woken>,
    future: Pin<Box<F>>,
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl<F: Future> Task<F> {
    /// A task that has to wait.
    fn waiting(future: F) -> Self {
        let mut task = Self { woken: Arc::default(), future: Box::pin(future) };
        assert!(task.poll().is_pending(), "it was to wait");
        task
    }

    fn poll(&mut self) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(&self.woken));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    /// Polls it whenever it is woken, doing `meanwhile` all the time, until it is ready.
    fn finish(mut self, mut meanwhile: impl FnMut()) -> F::Output {
        let mut output = None;
        kit::until("a future is ready", || {
            meanwhile();
            if self.woken.0.swap(0, SeqCst) > 0
                && let Poll::Ready(ready) = self.poll()
            {
                output = Some(ready);
            }
            output.is_some()
        });
        output.expect("it was waited for")
    }
}
