//! More futures than the kernel marks dead.

use crate::Task;
use crate::kit::{self, Process, Role, TempPath, Test};
use heirlock::{Mutex, Segment, queue};
use std::thread;
use std::time::Instant;

pub(crate) const TESTS: &[Test] =
    &[("a_killed_process_may_have_had_any_number_of_futures", a_killed_process_may_have_had_many)];

pub(crate) const ROLES: &[Role] = &[("queues_many", queues_many)];

/// 2048 is how many nodes of a thread's robust list the kernel visits.
const FUTURES: usize = 2048 + 400;

fn a_killed_process_may_have_had_many() {
    let path = TempPath::new();
    let options = Segment::<Mutex<u32>>::options().capacity(FUTURES as u32 + 8);
    let segment = options.create(&*path).expect("a segment");
    let held = segment.lock();
    let mut process = Process::spawn("queues_many", &[path.to_str().expect("a path")]);
    let queued = |number| queue(&*segment).is_some_and(|queue| queue.len() == number);
    kit::until("the futures have queued", || queued(FUTURES));
    thread::scope(|scope| {
        let behind = scope.spawn(|| segment.try_lock_for(kit::HANG).map(drop));
        kit::until("a thread waits behind them", || queued(FUTURES + 1));
        process.kill();
        let begin = Instant::now();
        drop(held);
        assert!(behind.join().expect("it waits").is_some(), "it waited for the dead");
        println!("{FUTURES} dead waiters, passed in {:?}", begin.elapsed());
    });
}

fn queues_many(args: &[String]) {
    let segment = Segment::<Mutex<u32>>::open(&args[0]).expect("the segment");
    let waiting: Vec<_> = (0..FUTURES).map(|_| Task::waiting(segment.lock_async())).collect();
    thread::sleep(4 * kit::HANG);
    drop(waiting);
}
