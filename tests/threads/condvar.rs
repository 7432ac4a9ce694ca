//! The condition variable between threads of one process: the tests of `parking_lot`'s
//! and of the standard library's condition variables, under the names they have there.
//! Every thread is joined, as `hammer` says why.

use heirlock::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("smoke", smoke),
    ("notify_one", notify_one),
    ("notify_all", notify_all),
    ("notify_one_return_true", notify_one_return_true),
    ("notify_one_return_false", notify_one_return_false),
    ("notify_all_return", notify_all_return),
    ("wait_for", wait_for),
    ("wait_until", wait_until),
    ("wait_while", wait_while),
    ("wait_while_does_not_wait_if_initially_false", wait_while_does_not_wait_if_initially_false),
    ("wait_while_for_times_out_before_false", wait_while_for_times_out_before_false),
    (
        "wait_while_for_rechecks_condition_after_timeout",
        wait_while_for_rechecks_condition_after_timeout,
    ),
    ("two_mutexes", two_mutexes),
    ("two_mutexes_disjoint", two_mutexes_disjoint),
    ("debug_condvar", debug_condvar),
    ("condvar_requeue", condvar_requeue),
    ("issue_129", issue_129),
    // Those of the standard library that are not among these.
    ("wait_timeout_wait", wait_timeout_wait),
    ("wait_timeout_while_instant_satisfy", wait_timeout_while_instant_satisfy),
    ("wait_timeout_while_wake", wait_timeout_while_wake),
    ("wait_timeout_wake", wait_timeout_wake),
    // WebKit's, by way of `parking_lot`.
    ("sanity_check_queue", || queue(1, 1, 1, 20_000, Style::All, Some(Duration::from_secs(1)))),
    ("new_test_without_timeout_5", || queue(1, 5, 1, 5_000, Style::All, None)),
    ("one_producer_one_consumer_one_slot", || queue(1, 1, 1, 20_000, Style::All, None)),
    ("one_producer_one_consumer_hundred_slots", || queue(1, 1, 100, 50_000, Style::All, None)),
    ("ten_producers_one_consumer_one_slot", || queue(10, 1, 1, 500, Style::All, None)),
    ("ten_producers_one_consumer_hundred_slots_notify_all", || {
        queue(10, 1, 100, 1_000, Style::All, None);
    }),
    ("ten_producers_one_consumer_hundred_slots_notify_one", || {
        queue(10, 1, 100, 1_000, Style::One, None);
    }),
    ("one_producer_ten_consumers_one_slot", || queue(1, 10, 1, 2_000, Style::All, None)),
    ("one_producer_ten_consumers_hundred_slots_notify_all", || {
        queue(1, 10, 100, 5_000, Style::All, None);
    }),
    ("one_producer_ten_consumers_hundred_slots_notify_one", || {
        queue(1, 10, 100, 5_000, Style::One, None);
    }),
    ("ten_producers_ten_consumers_one_slot", || queue(10, 10, 1, 500, Style::All, None)),
    ("ten_producers_ten_consumers_hundred_slots_notify_all", || {
        queue(10, 10, 100, 1_000, Style::All, None);
    }),
    ("ten_producers_ten_consumers_hundred_slots_notify_one", || {
        queue(10, 10, 100, 1_000, Style::One, None);
    }),
];

/// Longer than anything takes that is to happen.
const LONG: Duration = Duration::from_millis(u32::MAX as u64);

fn smoke() {
    let condvar = Condvar::new();
    condvar.notify_one();
    condvar.notify_all();
    Condvar::default().notify_one();
}

/// Waits by `wait` while another thread notifies once.
fn notified(wait: impl FnOnce(&Condvar, &mut MutexGuard<u64>)) {
    let pair = (Mutex::new(0), Condvar::new());
    let mut guard = pair.0.lock();
    thread::scope(|scope| {
        let notifier = scope.spawn(|| {
            let _guard = pair.0.lock();
            pair.1.notify_one()
        });
        wait(&pair.1, &mut guard);
        // So that it does not wait for this thread; and it has notified it.
        let told = MutexGuard::unlocked(&mut guard, || notifier.join().expect("join"));
        assert!(told);
    });
}

fn notify_one() {
    notified(|condvar, guard| condvar.wait(guard));
}

/// Has ten threads wait, and notifies them.
fn ten(notify: impl FnOnce(&Condvar)) {
    const N: usize = 10;
    let pair = (Mutex::new(0), Condvar::new());
    thread::scope(|scope| {
        let wait = || {
            let mut count = pair.0.lock();
            *count += 1;
            while *count != 0 {
                pair.1.wait(&mut count);
            }
        };
        let threads: Vec<_> = (0..N).map(|_| scope.spawn(wait)).collect();
        loop {
            let mut count = pair.0.lock();
            if *count == N {
                *count = 0;
                notify(&pair.1);
                break;
            }
            drop(count);
            thread::yield_now();
        }
        threads.into_iter().for_each(|thread| thread.join().expect("join"));
    });
    assert_eq!(pair.1.notify_all(), 0);
}

fn notify_all() {
    ten(|condvar| {
        condvar.notify_all();
    });
}

fn notify_one_return_true() {
    // `notified` asserts it.
    notified(|condvar, guard| condvar.wait(guard));
}

fn notify_one_return_false() {
    assert!(!Condvar::new().notify_one());
}

fn notify_all_return() {
    ten(|condvar| assert_eq!(condvar.notify_all(), 10));
}

fn wait_for() {
    notified(|condvar, guard| {
        // The other one waits for the mutex, or is late.
        assert!(!condvar.wait_for(guard, LONG).timed_out());
        assert!(condvar.wait_for(guard, Duration::from_millis(1)).timed_out());
    });
}

fn wait_until() {
    notified(|condvar, guard| {
        assert!(!condvar.wait_until(guard, Instant::now() + LONG).timed_out());
        let soon = Instant::now() + Duration::from_millis(1);
        assert!(condvar.wait_until(guard, soon).timed_out());
    });
}

/// Notifies once for each number from 1 to `last` that the value reaches, for so long.
/// How often that was.
fn notify_at_each(pair: &(Mutex<u32>, Condvar), last: u32, time: Duration) -> u32 {
    let start = Instant::now();
    let mut notified = 0;
    while notified < last && start.elapsed() < time {
        let value = pair.0.lock();
        if *value == notified + 1 {
            if !pair.1.notify_one() {
                break;
            }
            notified += 1;
        }
        drop(value);
        thread::yield_now();
    }
    notified
}

fn wait_while() {
    const LAST: u32 = 4;
    let pair = (Mutex::new(0), Condvar::new());
    let condition = |count: &mut u32| {
        *count += 1;
        *count <= LAST
    };
    let mut guard = pair.0.lock();
    thread::scope(|scope| {
        let notifier = scope.spawn(|| notify_at_each(&pair, LAST, LONG));
        pair.1.wait_while(&mut guard, condition);
        assert_eq!(*guard, LAST + 1);
        pair.1.wait_while(&mut guard, condition);
        assert_eq!(*guard, LAST + 2);
        assert_eq!(notifier.join().expect("join"), LAST);
    });
}

fn wait_while_does_not_wait_if_initially_false() {
    let pair = (Mutex::new(0), Condvar::new());
    let mut guard = pair.0.lock();
    pair.1.wait_while(&mut guard, |count| {
        *count += 1;
        false
    });
    assert_eq!(*guard, 1);
}

fn wait_while_for_times_out_before_false() {
    const LAST: u32 = 3;
    let pair = (Mutex::new(0), Condvar::new());
    let condition = |count: &mut u32| {
        *count += 1;
        true
    };
    let mut guard = pair.0.lock();
    thread::scope(|scope| {
        const TIME: Duration = Duration::from_millis(500);
        let notifier = scope.spawn(|| notify_at_each(&pair, LAST, TIME));
        let result = pair.1.wait_while_for(&mut guard, condition, TIME);
        assert!(result.timed_out());
        let asked = *guard;
        drop(guard);
        // Before the first wait, after each notification, and after the timeout.
        assert_eq!(asked, notifier.join().expect("join") + 2);
    });
}

fn wait_while_for_rechecks_condition_after_timeout() {
    let pair = (Mutex::new(()), Condvar::new());
    let mut calls = 0;
    let condition = |_: &mut ()| {
        calls += 1;
        calls == 1
    };
    let result = pair.1.wait_while_for(&mut pair.0.lock(), condition, Duration::ZERO);
    assert!(!result.timed_out());
    assert_eq!(calls, 2);
}

fn two_mutexes() {
    let (first, second, condvar) = (Mutex::new(()), Mutex::new(()), Condvar::new());
    thread::scope(|scope| {
        let waiter = scope.spawn(|| condvar.wait(&mut first.lock()));
        while heirlock::waiters(&condvar).is_none_or(|waiters| waiters.is_empty()) {
            thread::yield_now();
        }
        let other = scope.spawn(|| {
            // It is meant to panic, so that nobody need read of it.
            let error = condvar
                .wait_with(&mut second.lock(), &heirlock::LockOptions::new().timeout(LONG))
                .unwrap_err();
            error.to_string()
        });
        let error = other.join().expect("join");
        assert!(error.contains("with another mutex"), "{error}");
        assert!(condvar.notify_one());
        waiter.join().expect("join");
    });
}

fn two_mutexes_disjoint() {
    let (first, second, condvar) = (Mutex::new(0), Mutex::new(0), Condvar::new());
    for mutex in [&first, &second, &first] {
        let soon = Duration::from_millis(1);
        assert!(condvar.wait_for(&mut mutex.lock(), soon).timed_out());
        let mut guard = mutex.lock();
        thread::scope(|scope| {
            let notifier = scope.spawn(|| {
                let _guard = mutex.lock();
                assert!(condvar.notify_one());
            });
            condvar.wait(&mut guard);
            drop(guard);
            notifier.join().expect("join");
        });
    }
}

fn debug_condvar() {
    assert_eq!(format!("{:?}", Condvar::new()), "Condvar { has_waiters: false }");
}

fn condvar_requeue() {
    let pair = (Mutex::new(()), Condvar::new());
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pair.1.wait(&mut pair.0.lock()));
        let mut guard = pair.0.lock();
        while !pair.1.notify_one() {
            MutexGuard::bump(&mut guard);
            thread::yield_now();
        }
        // It has been moved to the mutex's queue.
        assert_eq!(heirlock::queue(&pair.0).map(|queue| queue.len()), Some(1));
        drop(guard);
        waiter.join().expect("join");
    });
}

fn issue_129() {
    let pair = (Mutex::new(0), Condvar::new());
    thread::scope(|scope| {
        let wait = || {
            let mut guard = pair.0.lock();
            *guard += 1;
            pair.1.wait(&mut guard);
            pair.1.wait_for(&mut guard, Duration::from_millis(1));
            pair.1.notify_one();
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(wait)).collect();
        while *pair.0.lock() != 4 {
            thread::yield_now();
        }
        pair.1.notify_one();
        threads.into_iter().for_each(|thread| thread.join().expect("join"));
    });
}

fn wait_timeout_wait() {
    let pair = (Mutex::new(()), Condvar::new());
    let start = Instant::now();
    assert!(pair.1.wait_for(&mut pair.0.lock(), Duration::from_millis(1)).timed_out());
    assert!(start.elapsed() >= Duration::from_millis(1));
}

fn wait_timeout_while_instant_satisfy() {
    let pair = (Mutex::new(()), Condvar::new());
    let result = pair.1.wait_while_for(&mut pair.0.lock(), |_| false, Duration::ZERO);
    assert!(!result.timed_out());
}

fn wait_timeout_while_wake() {
    let pair = (Mutex::new(false), Condvar::new());
    let mut guard = pair.0.lock();
    thread::scope(|scope| {
        let notifier = scope.spawn(|| {
            let mut started = pair.0.lock();
            thread::sleep(Duration::from_millis(1));
            *started = true;
            pair.1.notify_one()
        });
        let result = pair.1.wait_while_for(&mut guard, |started| !*started, LONG);
        assert!(!result.timed_out() && *guard);
        drop(guard);
        assert!(notifier.join().expect("join"));
    });
}

fn wait_timeout_wake() {
    let pair = (Mutex::new(false), Condvar::new());
    for _ in 0..100 {
        let mut guard = pair.0.lock();
        thread::scope(|scope| {
            let notifier = scope.spawn(|| {
                *pair.0.lock() = true;
                pair.1.notify_one()
            });
            assert!(!pair.1.wait_for(&mut guard, LONG).timed_out());
            // There are no spurious ones.
            assert!(std::mem::take(&mut *guard));
            drop(guard);
            notifier.join().expect("join");
        });
    }
}

#[derive(Clone, Copy)]
enum Style {
    One,
    All,
}

struct Queue {
    items: VecDeque<u64>,
    goes_on: bool,
}

/// Producers put so many messages each into a queue of so many slots, and consumers
/// take them out. They notify each time, or all when a queue is no longer empty or full.
fn queue(
    producers: usize,
    consumers: usize,
    slots: usize,
    messages: u64,
    style: Style,
    timeout: Option<Duration>,
) {
    let queue = Mutex::new(Queue { items: VecDeque::new(), goes_on: true });
    let (not_empty, not_full) = (Condvar::new(), Condvar::new());
    let output = Mutex::new(vec![0; messages as usize]);
    let wait = |condvar: &Condvar, guard: &mut MutexGuard<Queue>, idle: &dyn Fn(&Queue) -> bool| {
        while idle(guard) {
            match timeout {
                None => condvar.wait(guard),
                Some(timeout) => drop(condvar.wait_for(guard, timeout)),
            }
        }
    };
    let notify = |condvar: &Condvar, has_changed: bool| match style {
        Style::One => drop(condvar.notify_one()),
        Style::All if has_changed => drop(condvar.notify_all()),
        Style::All => {}
    };
    let consume = || {
        loop {
            let mut guard = queue.lock();
            wait(&not_empty, &mut guard, &|queue| queue.items.is_empty() && queue.goes_on);
            let was_full = guard.items.len() == slots;
            let Some(message) = guard.items.pop_front() else { return };
            drop(guard);
            notify(&not_full, was_full);
            output.lock()[message as usize] += 1;
        }
    };
    let produce = || {
        for message in 0..messages {
            let mut guard = queue.lock();
            wait(&not_full, &mut guard, &|queue| queue.items.len() == slots);
            let was_empty = guard.items.is_empty();
            guard.items.push_back(message);
            drop(guard);
            notify(&not_empty, was_empty);
        }
    };
    thread::scope(|scope| {
        let consumers: Vec<_> = (0..consumers).map(|_| scope.spawn(consume)).collect();
        let producers: Vec<_> = (0..producers).map(|_| scope.spawn(produce)).collect();
        producers.into_iter().for_each(|thread| thread.join().expect("join"));
        queue.lock().goes_on = false;
        not_empty.notify_all();
        consumers.into_iter().for_each(|thread| thread.join().expect("join"));
    });
    let output = output.lock();
    assert!(output.iter().all(|times| *times == producers), "each as often as it was sent");
}
