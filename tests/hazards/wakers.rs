//! Wakers that do what they should not.

use crate::Task;
use crate::kit::{self, Test};
use heirlock::Mutex;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex as StdMutex};
use std::task::{Context, Wake, Waker};

pub(crate) const TESTS: &[Test] = &[
    ("a_waker_that_panics_costs_nobody_a_lock", a_waker_that_panics_costs_nobody_a_lock),
    ("a_waker_may_poll_its_task_at_once", a_waker_may_poll_its_task_at_once),
    #[cfg(feature = "io-uring")]
    ("a_waker_that_is_replaced_may_end_the_wait", a_waker_that_is_replaced_may_end_the_wait),
];

static PANICKED: AtomicBool = AtomicBool::new(false);

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        PANICKED.store(true, SeqCst);
        panic!("this waker always panics");
    }
}

/// The rows of all futures and of all their guards are the helper's.
fn a_waker_that_panics_costs_nobody_a_lock() {
    static HELD: Mutex<u32> = Mutex::new(0);
    static OTHER: Mutex<u32> = Mutex::new(0);
    let guard = pollster::block_on(HELD.lock_async());
    let other = OTHER.lock();
    let waker = Waker::from(Arc::new(Panics));
    let mut future = pin!(OTHER.lock_async());
    assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    drop(other);
    kit::until("the waker panics", || PANICKED.load(SeqCst));
    assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());

    // The helper goes on: it has others wait, and joins.
    let held = OTHER.lock();
    let task = Task::waiting(OTHER.lock_async());
    drop(held);
    drop(task.finish(|| ()));
    assert!(HELD.try_lock().is_none(), "a lock that is held was had a second time");
    drop(guard);
    assert!(HELD.try_lock().is_some());
}

/// An executor without a thread: whoever wakes the task runs it.
struct Inline {
    task: StdMutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    done: AtomicBool,
}

impl Wake for Inline {
    fn wake(self: Arc<Self>) {
        let waker = Waker::from(Arc::clone(&self));
        let mut task = self.task.lock().expect("no task panics");
        if let Some(future) = &mut *task
            && future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
        {
            *task = None;
            self.done.store(true, SeqCst);
        }
    }
}

/// Then it joins segments on the helper, which is whom one asks to join.
fn a_waker_may_poll_its_task_at_once() {
    static LOCKS: [Mutex<u32>; 3] = [const { Mutex::new(0) }; 3];
    let held = LOCKS[0].lock();
    let take_all = async {
        let mut guards = Vec::new();
        for lock in &LOCKS {
            guards.push(lock.lock_async().await);
        }
        guards.iter_mut().for_each(|guard| **guard += 1);
    };
    let task = StdMutex::new(Some(Box::pin(take_all) as _));
    let inline = Arc::new(Inline { task, done: AtomicBool::new(false) });
    Arc::clone(&inline).wake();
    drop(held);
    kit::until("the task is done", || inline.done.load(SeqCst));
    assert!(LOCKS.iter().all(|lock| *lock.lock() == 1));
}

/// The last that is left of a task, whose end closes the ring in which another one waits.
#[cfg(feature = "io-uring")]
struct Closes(heirlock::uring::Reactor);

#[cfg(feature = "io-uring")]
impl Wake for Closes {
    fn wake(self: Arc<Self>) {}
}

#[cfg(feature = "io-uring")]
impl Drop for Closes {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A future that goes from one task to another, of which the first is not needed any more.
#[cfg(feature = "io-uring")]
fn a_waker_that_is_replaced_may_end_the_wait() {
    static LOCK: Mutex<u32> = Mutex::new(0);
    if let Some(error) = heirlock::uring::refused() {
        kit::skip(format!("no io_uring here: {error}"));
    }
    let ring = io_uring::IoUring::new(8).expect("a ring");
    let reactor = heirlock::uring::Reactor::new(ring);
    let held = LOCK.lock();
    let future = Box::pin(LOCK.lock_async().on(&reactor));
    let mut task = Task { woken: Arc::default(), future };
    let first = Waker::from(Arc::new(Closes(reactor)));
    assert!(task.future.as_mut().poll(&mut Context::from_waker(&first)).is_pending());
    drop(first);
    assert!(task.poll().is_pending());
    drop(held);
    drop(task.finish(|| ()));
}
