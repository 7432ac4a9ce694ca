//! Any of several locks, all of several, and futures: by real processes, in order, across
//! deaths, and where io_uring and `futex_waitv` are refused.
#![allow(clippy::disallowed_types, reason = "a counter of the tests' own")]

#[path = "../kit/mod.rs"]
mod kit;

mod all;
mod any;
mod clerk;
mod fallback;
mod futures;
mod moves;
mod rows;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

fn main() {
    kit::run(
        &[any::TESTS, all::TESTS, futures::TESTS, moves::TESTS, fallback::TESTS, rows::TESTS],
        &[clerk::ROLES, all::ROLES, fallback::ROLES].concat(),
        2 * kit::HANG,
    )
}

/// A task that is polled by hand, and how often it was woken.
struct Task<F> {
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
    fn new(future: F) -> Self {
        Self { woken: Arc::default(), future: Box::pin(future) }
    }

    /// A task that has to wait.
    #[track_caller]
    fn waiting(future: F) -> Self {
        let mut task = Self::new(future);
        assert!(task.poll().is_pending(), "it was to wait");
        task
    }

    fn poll(&mut self) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(&self.woken));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    /// Polls it if it was woken: what comes of it, if anything does.
    fn run(&mut self) -> Option<F::Output> {
        match (self.woken.0.swap(0, SeqCst) > 0).then(|| self.poll()) {
            Some(Poll::Ready(output)) => Some(output),
            _ => None,
        }
    }

    /// Polls it whenever it is woken, until it is ready.
    #[track_caller]
    fn finish(mut self) -> F::Output {
        let mut output = None;
        kit::until("a future is ready", || {
            output = self.run();
            output.is_some()
        });
        output.expect("it was waited for")
    }
}
