//! Children that `fork` copies futures and reactors into.

use crate::Task;
use crate::kit::{self, Process, Role, Test};
use heirlock::Mutex;

pub(crate) const TESTS: &[Test] = &[(
    "a_child_that_polls_its_parents_future_is_told",
    a_child_that_polls_its_parents_future_is_told,
)];

pub(crate) const ROLES: &[Role] = &[("forks_a_future", forks_a_future)];

static LOCK: Mutex<u32> = Mutex::new(0);

fn a_child_that_polls_its_parents_future_is_told() {
    assert!(Process::spawn("forks_a_future", &[]).succeeds());
}

/// Nobody in the child would ever wake it.
fn forks_a_future(_: &[String]) {
    let held = LOCK.lock();
    let mut task = Task::waiting(LOCK.lock_async());
    let child = kit::fork(|| {
        let message = kit::panic_of(|| task.poll().is_ready());
        assert!(message.contains("copied by fork"), "{message}");
        drop(task);
    });
    child.succeed();
    drop(held);
}
