//! More futures, and acquisitions of a thread, than the kernel marks dead.

use crate::Task;
use crate::kit::{self, Process, Role, TempPath, Test};
#[cfg(feature = "io-uring")]
use heirlock::MutexGuard;
use heirlock::{Mutex, Segment, queue};
use std::thread;
use std::time::Instant;

pub(crate) const TESTS: &[Test] = &[
    ("a_killed_process_may_have_had_any_number_of_futures", a_killed_process_may_have_had_many),
    #[cfg(feature = "io-uring")]
    ("a_thread_that_ends_may_have_begun_any_number_of_acquisitions", || {
        assert!(Process::spawn("forgets_many", &[]).succeeds());
    }),
];

pub(crate) const ROLES: &[Role] = &[
    ("queues_many", queues_many),
    #[cfg(feature = "io-uring")]
    ("forgets_many", |_| forgets_many()),
];

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

/// The thread's own row is the first one of its list, which the kernel visits last. Its
/// process goes on, so nothing else tells of its death.
#[cfg(feature = "io-uring")]
fn forgets_many() {
    static STATIC: Mutex<u32> = Mutex::new(0);
    // There is no room for twice as many.
    let options = Segment::<Mutex<u32>>::options().capacity(FUTURES as u32 + 8);
    let segment = options.anonymous().expect("a segment");
    for lock in [&STATIC, &segment, &segment] {
        thread::scope(|scope| {
            let forgets = scope.spawn(|| {
                std::mem::forget(lock.lock());
                for _ in 0..FUTURES {
                    std::mem::forget(lock.start(1).expect("it is started"));
                }
            });
            let queued = |number| queue(lock).is_some_and(|queue| queue.len() == number);
            kit::until("they have queued", || queued(FUTURES) || forgets.is_finished());
            let begin = Instant::now();
            let guard = lock.try_lock_for(kit::HANG).expect("it waited for the dead");
            assert!(MutexGuard::inherited(&guard).is_some(), "it was not told");
            println!("{FUTURES} dead waiters, passed in {:?}", begin.elapsed());
            forgets.join().expect("join");
        });
    }
}
