//! The machine on which loom runs the crate: atomics that loom knows, futexes,
//! robust lists, a clock, and deaths. Compiled with `--cfg heirlock_loom` alone, in the
//! place of the modules of `sys` that have the same names; everything above
//! `sys` is the real code.
//!
//! loom runs the threads of a model as coroutines of one OS thread. What it has
//! to know of (the atomics) is its own; the rest of the machine is plain data in
//! a thread-local of that OS thread, and no borrow of it is held across an
//! operation of loom's.
//!
//! # Deaths
//!
//! A simulated thread may be given a number of steps to live. Its steps are its
//! accesses to atomics, its futex calls and its writes to its robust list: all
//! that another thread or the kernel could tell. When they are used up, it dies
//! instead of the next one: the kernel walks its robust list and the thread
//! unwinds with [`Killed`]. While a thread unwinds its accesses do nothing, so
//! destructors do not do what a dead thread could not.

pub(crate) mod atomic;
pub(crate) mod clock;
pub(crate) mod futex;
pub(crate) mod membarrier;
pub(crate) mod robust_list;

use core::cell::{Cell, RefCell};

/// What a thread that was killed unwinds with.
#[derive(Debug)]
pub(crate) struct Killed;

/// A simulated thread, as the kernel sees it.
#[derive(Debug, Default)]
struct Task {
    /// How many steps it has left; `None` for no end.
    steps_left: Option<u32>,
    /// Whether it was killed; from before the kernel says so on.
    killed: bool,
    /// The addresses of the words on its robust list, the first in front.
    list: Vec<usize>,
    /// The address of the word in `list_op_pending`, 0 for none.
    pending: usize,
}

/// The machine of one execution.
#[derive(Debug, Default)]
struct Machine {
    /// Which execution of which model this is; the atomics carry it.
    execution: u64,
    /// By thread number. 0 is what sets the scene.
    tasks: Vec<Task>,
    sleepers: Vec<futex::Sleeper>,
}

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::default();
}

loom::thread_local! {
    /// The number of the simulated thread that this coroutine is.
    static TID: Cell<u32> = Cell::new(0);
}

fn machine<R>(f: impl FnOnce(&mut Machine) -> R) -> R {
    MACHINE.with_borrow_mut(f)
}

/// A new machine with `threads` threads, 1 and up. At the start of each
/// execution.
pub(crate) fn power_on(threads: u32) {
    machine(|machine| {
        machine.execution += 1;
        machine.tasks = (0..=threads).map(|_| Task::default()).collect();
        machine.sleepers.clear();
    });
}

/// The number of the present thread.
pub(crate) fn tid() -> u32 {
    TID.with(Cell::get)
}

/// From here on this coroutine is thread `tid`.
pub(crate) fn become_thread(tid: u32) {
    TID.with(|current| current.set(tid));
}

/// Lets the present thread live for so many steps more; `None` for no end.
pub(crate) fn live_for(steps: Option<u32>) {
    let tid = tid() as usize;
    machine(|machine| machine.tasks[tid].steps_left = steps);
}

/// Whether thread `tid` was killed.
pub(crate) fn is_killed(tid: u32) -> bool {
    machine(|machine| machine.tasks[tid as usize].killed)
}

/// One step of the present thread, or its death. `false` while it unwinds.
fn step() -> bool {
    if std::thread::panicking() {
        return false;
    }
    let tid = tid();
    let dies = machine(|machine| {
        let task = &mut machine.tasks[tid as usize];
        task.killed = task.steps_left == Some(0);
        task.steps_left = task.steps_left.and_then(|left| left.checked_sub(1));
        task.killed
    });
    if dies {
        robust_list::exit(tid);
        std::panic::resume_unwind(Box::new(Killed));
    }
    true
}
