//! First in, first out, whatever happens to the others.

use crate::kit::{Got, HANG, Puppet, Stage, Test, board, until};
use heirlock::{Mutex, Policy, Segment};
use nix::sys::signal::Signal;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("waiters_are_served_in_the_order_in_which_they_queued", || served_in_order(&Stage::new())),
    ("killed_waiters_are_skipped_and_the_others_keep_their_order", || {
        killed_waiters(&Stage::new(), KILLED)
    }),
    ("signals_with_handlers_do_not_cost_the_place_in_the_queue", || signals(&Stage::new())),
    ("stopped_waiters_keep_their_place", stopped_waiters),
    ("nobody_barges_past_the_queue", || nobody_barges(&Stage::new())),
    ("who_unlocks_and_locks_again_goes_behind_the_queue", || releaser_queues(&Stage::new())),
    (
        "a_waiter_that_gives_up_leaves_and_its_successors_keep_their_place",
        || give_up(&Stage::new()),
    ),
    ("a_timeout_that_races_with_the_hand_over_loses_no_lock", || timeout_race(Policy::Fifo)),
    ("a_thread_may_hold_any_number_of_locks_in_any_order", any_number),
    ("locking_again_what_the_thread_holds_is_a_clear_panic_or_none", relocking),
];

/// What holds in every sandbox as well.
pub(crate) const CORE: &[fn(&Stage)] = &[
    served_in_order,
    |stage| killed_waiters(stage, &KILLED[..4]),
    signals,
    nobody_barges,
    releaser_queues,
    give_up,
];

/// What holds as well where a lock may be taken past those who wait, as nobody
/// comes who could do that.
pub(crate) const WAITING: &[fn(&Stage)] =
    &[served_in_order, |stage| killed_waiters(stage, KILLED), signals, give_up];

fn served_in_order(stage: &Stage) {
    let mut owner = stage.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    let mut waiters = stage.puppets(5);
    for waiter in &mut waiters {
        waiter.queue(&stage.segment, 0);
    }
    owner.unlock(0);
    serve(stage, &mut waiters);
}

/// Each of `waiters` gets lock 0 in turn, as long as nobody dies.
fn serve(stage: &Stage, waiters: &mut [Puppet]) {
    for at in 0..waiters.len() {
        assert_eq!(waiters[at].got(), Got::Lock);
        assert_eq!(stage.owner(0), Some(waiters[at].participant));
        let rest: Vec<_> = waiters[at + 1..].iter().map(|waiter| waiter.participant).collect();
        assert_eq!(heirlock::queue(&stage.segment.locks[0]), Some(rest));
        waiters[at].unlock(0);
    }
    assert!(!stage.segment.locks[0].is_locked());
}

/// Which of six waiters are killed, in which order.
const KILLED: &[&[usize]] = &[
    &[0],
    &[2],
    &[5],
    &[1, 2, 3],
    &[3, 2, 1],
    &[0, 1],
    &[5, 4],
    &[0, 5, 2],
    &[0, 2, 4],
    &[0, 1, 2, 3, 4],
    &[5, 4, 3, 2, 1, 0],
];

fn killed_waiters(stage: &Stage, cases: &[&[usize]]) {
    for killed in cases {
        for owner_dies in [false, true] {
            killed_waiters_once(stage, killed, owner_dies);
        }
    }
}

fn killed_waiters_once(stage: &Stage, killed: &[usize], owner_dies: bool) {
    let case = format!("{killed:?} killed, owner dies: {owner_dies}");
    let mut owner = stage.puppet();
    // From the second case on it inherits, if nobody was left to.
    assert_ne!(owner.lock(0), Got::Nothing);
    let mut waiters: Vec<Option<Puppet>> = stage.puppets(6).into_iter().map(Some).collect();
    for waiter in waiters.iter_mut().flatten() {
        waiter.queue(&stage.segment, 0);
    }
    for victim in killed {
        waiters[*victim].take().expect("killed once").kill();
    }
    let mut dead = owner.pid();
    if owner_dies {
        owner.kill();
    } else {
        owner.unlock(0);
        dead = 0;
    }
    for waiter in waiters.iter_mut().flatten() {
        match waiter.got() {
            Got::Inherited { pid, .. } if stage.marks_deaths() => assert_eq!(pid, dead, "{case}"),
            // Until it is known that a waiter is dead it may be served: then
            // the next inherits from it.
            Got::Inherited { .. } if !stage.marks_deaths() => {}
            got => assert!(got == Got::Lock && dead == 0, "{case}: {got:?}"),
        }
        dead = 0;
        assert_eq!(stage.owner(0), Some(waiter.participant), "{case}");
        waiter.unlock(0);
    }
}

fn signals(stage: &Stage) {
    const SIGNALS: u64 = 100;
    let mut owner = stage.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    let mut waiters = stage.puppets(4);
    for (number, waiter) in waiters.iter_mut().enumerate() {
        waiter.tell(["handle", "handle restart"][number % 2]);
        waiter.queue(&stage.segment, 0);
    }
    for _ in 0..SIGNALS {
        for waiter in &waiters {
            waiter.process.interrupt(Signal::SIGUSR1);
        }
    }
    let participants: Vec<_> = waiters.iter().map(|waiter| waiter.participant).collect();
    assert_eq!(heirlock::queue(&stage.segment.locks[0]), Some(participants));
    owner.unlock(0);
    serve(stage, &mut waiters);
    for waiter in &mut waiters {
        let handled: u64 = waiter.tell("handled").parse().expect("a number");
        assert!(handled >= SIGNALS, "{handled}");
    }
}

fn stopped_waiters() {
    let stage = Stage::new();
    let mut owner = stage.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    let mut waiters = stage.puppets(3);
    for waiter in &mut waiters {
        waiter.queue(&stage.segment, 0);
    }
    waiters[0].process.stop();
    waiters[1].process.stop();
    waiters[1].process.resume();
    owner.unlock(0);
    // It is the first one's, although it does not run, and nobody else's.
    assert_eq!(stage.owner(0), Some(waiters[0].participant));
    assert_eq!(owner.try_lock_for(0, Duration::from_millis(50)), Got::Nothing);
    waiters[0].process.resume();
    serve(&stage, &mut waiters);
}

fn nobody_barges(stage: &Stage) {
    let mut owner = stage.puppet();
    let mut waiter = stage.puppet();
    let mut stranger = stage.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    waiter.queue(&stage.segment, 0);
    assert_eq!(stranger.try_lock(0), Got::Nothing);
    // It cannot run: the lock goes to it all the same, and stays its.
    waiter.process.stop();
    owner.unlock(0);
    assert_eq!(stranger.try_lock(0), Got::Nothing);
    assert_eq!(owner.try_lock(0), Got::Nothing);
    assert_eq!(stage.owner(0), Some(waiter.participant));
    waiter.process.resume();
    assert_eq!(waiter.got(), Got::Lock);
    waiter.unlock(0);
    assert_eq!(stranger.try_lock(0), Got::Lock);
    stranger.unlock(0);
}

fn releaser_queues(stage: &Stage) {
    let mut owner = stage.puppet();
    let mut waiters = stage.puppets(2);
    assert_eq!(owner.lock(0), Got::Lock);
    for waiter in &mut waiters {
        waiter.queue(&stage.segment, 0);
    }
    owner.start("unlock 0");
    owner.start("lock 0");
    assert_eq!(waiters[0].got(), Got::Lock);
    owner.until_queued(&stage.segment, 0);
    assert_eq!(
        heirlock::queue(&stage.segment.locks[0]),
        Some(vec![waiters[1].participant, owner.participant])
    );
    waiters[0].unlock(0);
    assert_eq!(waiters[1].got(), Got::Lock);
    waiters[1].unlock(0);
    assert_eq!(owner.answer(), "ok");
    assert_eq!(owner.got(), Got::Lock);
    owner.unlock(0);
}

fn give_up(stage: &Stage) {
    let mut owner = stage.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    let mut waiters = stage.puppets(4);
    // The head, one in the middle, and at the end the tail have a timeout.
    for at in [0, 2] {
        let (timed, other) = waiters[at..].split_first_mut().expect("there are four");
        timed.start("timed 0 1000000");
        timed.until_queued(&stage.segment, 0);
        other[0].queue(&stage.segment, 0);
    }
    let others = vec![waiters[1].participant, waiters[3].participant];
    for at in [0, 2] {
        assert_eq!(waiters[at].got(), Got::Nothing);
        let queue = heirlock::queue(&stage.segment.locks[0]).expect("it stands still");
        assert!(!queue.contains(&waiters[at].participant), "it has left");
    }
    assert_eq!(waiters[0].try_lock_for(0, Duration::from_millis(10)), Got::Nothing);
    assert_eq!(heirlock::queue(&stage.segment.locks[0]), Some(others));
    owner.unlock(0);
    let mut others = [waiters.remove(3), waiters.remove(1)];
    others.reverse();
    serve(stage, &mut others);
    assert_eq!(waiters[0].try_lock_for(0, HANG), Got::Lock);
    waiters[0].unlock(0);
}

pub(crate) fn timeout_race(policy: Policy) {
    const ROUNDS: u64 = 2_000;
    let private = Mutex::with_policy(0, policy);
    let init = |lock: &mut Mutex<u64>| *lock = Mutex::with_policy(0, policy);
    let segment: Segment<Mutex<u64>> =
        Segment::options().init(init).anonymous().expect("anonymous");
    let locks: [&Mutex<u64>; 2] = [&segment, &private];
    for lock in locks {
        let (mut acquired, mut gave_up) = (0, 0);
        // In microseconds, such that both happen about as often on any machine.
        let mut longest = 300;
        for round in 0..ROUNDS {
            let guard = lock.lock();
            thread::scope(|scope| {
                let timeout = Duration::from_micros(fastrand::u64(0..longest));
                let timed = scope.spawn(move || lock.try_lock_for(timeout).map(drop).is_some());
                until("a waiter is queued, or has given up", || {
                    timed.is_finished()
                        || heirlock::queue(lock).is_some_and(|queue| !queue.is_empty())
                });
                let (entering, entered) = mpsc::channel();
                let patient = scope.spawn(move || {
                    entering.send(()).expect("send");
                    *lock.lock() += 1;
                });
                entered.recv().expect("receive");
                let hold = std::time::Instant::now();
                let time = Duration::from_micros(fastrand::u64(0..200));
                while hold.elapsed() < time {
                    std::hint::spin_loop();
                }
                drop(guard);
                if timed.join().expect("join") {
                    acquired += 1;
                    longest = (longest - longest / 16).max(100);
                } else {
                    gave_up += 1;
                    longest += longest / 16;
                }
                patient.join().expect("join");
            });
            assert!(!lock.is_locked(), "after round {round}");
            assert_eq!(heirlock::queue(lock), Some(vec![]), "after round {round}");
        }
        assert_eq!(*lock.lock(), ROUNDS);
        eprintln!("timeouts that raced: {acquired} acquired, {gave_up} gave up");
        assert!(acquired > 0 && gave_up > 0, "{acquired}, {gave_up}");
    }
}

fn any_number() {
    let (path, segment) = board();
    let mut all = Puppet::spawn(&path);
    let mut other = Puppet::spawn(&path);
    assert_eq!(other.lock(4), Got::Lock);
    for lock in [7, 1, 0, 5, 2, 6, 3] {
        assert_eq!(all.lock(lock), Got::Lock);
    }
    all.queue(&segment, 4);
    for lock in [0, 1, 2, 3, 5, 6, 7] {
        assert_eq!(other.try_lock(lock), Got::Nothing);
    }
    other.unlock(4);
    assert_eq!(all.got(), Got::Lock);
    for lock in [5, 4, 7, 0, 3, 1, 6, 2] {
        all.unlock(lock);
        assert_eq!(other.try_lock(lock), Got::Lock);
    }
}

fn relocking() {
    use crate::kit::panic_of;
    static STATIC: Mutex<u64> = Mutex::new(0);
    let (path, segment) = board();
    // A second handle is a second row of the same thread, which owns as one.
    let again: Segment<crate::kit::Board> = Segment::open(&path).expect("open");
    let locks = [&segment.locks[0], &again.locks[0], &STATIC];
    for taken in locks {
        let _guard = taken.lock();
        for wanted in locks {
            if std::ptr::eq(wanted, &STATIC) != std::ptr::eq(taken, &STATIC) {
                continue;
            }
            let message = panic_of(|| wanted.lock());
            assert!(message.contains("this thread holds the lock already"), "{message}");
            assert!(wanted.try_lock().is_none());
            assert!(wanted.try_lock_for(Duration::from_millis(1)).is_none());
            let forever = panic_of(|| wanted.try_lock_for(Duration::MAX));
            assert!(forever.contains("this thread holds the lock already"), "{forever}");
        }
    }
    for lock in locks {
        assert!(!lock.is_locked());
        *lock.lock() += 1;
    }
}
