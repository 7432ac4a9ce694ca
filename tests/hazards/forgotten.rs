//! Futures that are forgotten.

use crate::Task;
use crate::kit::sandbox::Refusal;
use crate::kit::{Process, Role, Test};
use heirlock::future::{Backend, backend};
use heirlock::{CancelToken, LockOptions, Mutex};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};

pub(crate) const TESTS: &[Test] = &[
    ("a_forgotten_future_needs_no_token", a_forgotten_future_needs_no_token),
    ("a_forgotten_future_needs_no_token_without_io_uring", needs_no_token_without_io_uring),
];

pub(crate) const ROLES: &[Role] = &[("forgets_a_future", forgets_a_future)];

fn a_forgotten_future_needs_no_token() {
    assert!(Process::spawn("forgets_a_future", &["anyhow"]).succeeds());
}

fn needs_no_token_without_io_uring() {
    Refusal::IO_URING.require();
    let mut command = Process::command("forgets_a_future", &["in_a_thread"]);
    Refusal::IO_URING.impose(&mut command);
    assert!(Process::from_command(&mut command).succeeds());
}

/// Where the token was there is no memory any more.
fn forgets_a_future(args: &[String]) {
    static LOCKS: [Mutex<u32>; 2] = [const { Mutex::new(0) }; 2];
    const MUCH: usize = 1 << 20;
    if args[0] == "in_a_thread" {
        assert_eq!(backend(), Backend::Futex);
    }
    let (_held, held) = (LOCKS[0].lock(), LOCKS[1].lock());
    let tokens: Vec<_> = (0..MUCH).map(|_| CancelToken::new()).collect();
    let mut future = LOCKS[0].lock_async_with(&LockOptions::new().cancel(&tokens[MUCH / 2]));
    let mut context = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut future).poll(&mut context).is_pending());
    // The helper has begun to wait for it when it does for this one.
    let task = Task::waiting(LOCKS[1].lock_async());
    std::mem::forget(future);
    drop(tokens);
    drop(held);
    drop(task.finish(|| ()));
    // It has looked at all it waits for a few times more.
    for _ in 0..3 {
        let held = LOCKS[1].lock();
        let task = Task::waiting(LOCKS[1].lock_async());
        drop(held);
        drop(task.finish(|| ()));
    }
}
