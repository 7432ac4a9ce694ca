//! The condition variable: first in, first out, straight to the mutex, and what ends
//! a wait early.

use crate::kit::{
    Board, Got, HANG, Process, Puppet, Role, Stage, Test, board, board_of, fork, panic_of, until,
};
use heirlock::{
    CancelToken, Cancelled, Condvar, Interrupted, LockError, LockOptions, Mutex, MutexGuard,
    Participant, Policy, Segment, Unusable,
};
use nix::sys::signal::Signal;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("waiters_are_notified_in_the_order_in_which_they_began_to_wait", || fifo(&Stage::new())),
    ("notified_waiters_stand_behind_those_who_wait_for_the_mutex_and_before_who_comes", || {
        straight_to_the_mutex(&Stage::new());
    }),
    ("to_notify_says_whom_and_the_dead_do_not_count", || counted(&Stage::new())),
    ("notifying_a_hundred_wakes_one_at_a_time", stampede),
    ("signals_end_no_wait_for_a_condition_variable", || signals(&Stage::new())),
    ("a_stopped_waiter_keeps_its_place_and_its_notification", || stopped(&Stage::new())),
    ("a_wait_that_times_out_has_the_lock_again", || timed_out(&Stage::new())),
    ("deadlines_of_a_wait_zero_past_and_without_end", deadlines),
    ("a_notification_that_races_with_a_timeout_is_not_lost", || {
        race(Policy::Fifo, EndsBy::Timeout);
    }),
    ("a_notification_that_races_with_a_cancellation_is_not_lost", || {
        race(Policy::Fifo, EndsBy::Token);
    }),
    ("cancelling_ends_the_waits_with_the_token_and_no_other", || cancelled(&Stage::new())),
    ("a_cancelled_token_does_not_even_release_the_lock", cancelled_before),
    ("a_signal_handler_ends_an_interruptible_wait_for_a_condition_variable", || {
        interrupted(&Stage::new());
    }),
    ("waiters_with_a_throughput_lock_are_notified_in_order", throughput),
    ("a_notification_that_races_with_a_timeout_is_not_lost_with_a_throughput_lock", || {
        race(Policy::Throughput, EndsBy::Timeout);
        race(Policy::Throughput, EndsBy::Token);
    }),
    ("a_second_mutex_is_refused_while_somebody_waits_with_the_first", two_mutexes),
    ("a_condition_variable_elsewhere_than_the_mutex_is_refused", elsewhere),
    ("condition_variables_work_wherever_they_live", private),
    ("a_forked_child_cannot_wait_with_a_copied_guard", || play("condvar-fork-guard")),
    ("in_a_forked_child_nobody_waits_for_what_the_parents_threads_wait_for", || {
        play("condvar-fork-private");
    }),
];

pub(crate) const ROLES: &[Role] =
    &[("condvar-fork-guard", |_| copied_guard()), ("condvar-fork-private", |_| forked_private())];

/// What holds in every sandbox as well.
pub(crate) const CORE: &[fn(&Stage)] =
    &[fifo, straight_to_the_mutex, counted, signals, stopped, timed_out, cancelled, interrupted];

fn play(role: &str) {
    assert!(Process::spawn(role, &[]).succeeds(), "{role}");
}

/// Puppets that wait for condition variable 0 with lock 0, in this order.
pub(crate) fn waiting(stage: &Stage, count: usize) -> Vec<Puppet> {
    let mut puppets = stage.puppets(count);
    for puppet in &mut puppets {
        wait(stage, puppet, "");
    }
    puppets
}

/// Has a puppet wait for condition variable 0 with lock 0; see [`Puppet::wait`].
pub(crate) fn wait(stage: &Stage, puppet: &mut Puppet, limit: &str) {
    assert_ne!(puppet.lock(0), Got::Nothing);
    puppet.wait(&stage.segment, 0, 0, limit);
}

pub(crate) fn waiters(stage: &Stage) -> Option<Vec<Participant>> {
    heirlock::waiters(&stage.segment.condvars[0])
}

pub(crate) fn queue(stage: &Stage) -> Option<Vec<Participant>> {
    heirlock::queue(&stage.segment.locks[0])
}

pub(crate) fn who<'a>(puppets: impl IntoIterator<Item = &'a Puppet>) -> Option<Vec<Participant>> {
    Some(puppets.into_iter().map(|puppet| puppet.participant).collect())
}

/// Each of `puppets` has lock 0 in turn, told of nobody's death.
fn serve<'a>(stage: &Stage, puppets: impl IntoIterator<Item = &'a mut Puppet>) {
    for puppet in puppets {
        assert_eq!(puppet.got(), Got::Lock);
        assert_eq!(stage.owner(0), Some(puppet.participant));
        puppet.unlock(0);
    }
}

/// Each of `puppets` has lock 0 when its wait has ended so, in whichever order they
/// woke up.
fn in_any_order(stage: &Stage, mut puppets: Vec<&mut Puppet>, expected: &Got) {
    while !puppets.is_empty() {
        let mut at = None;
        until("one of them has it", || {
            at = puppets.iter().position(|puppet| stage.owner(0) == Some(puppet.participant));
            at.is_some()
        });
        let puppet = puppets.remove(at.expect("it has it"));
        assert_eq!(puppet.got(), *expected);
        puppet.unlock(0);
    }
}

fn fifo(stage: &Stage) {
    let mut notifier = stage.puppet();
    // One by one, without and with the lock held.
    for held in [false, true] {
        let mut puppets = waiting(stage, 5);
        assert_eq!(waiters(stage), who(&puppets));
        for at in 0..5 {
            if held {
                assert_eq!(notifier.lock(0), Got::Lock);
            }
            assert!(notifier.notify_one(0));
            if held {
                assert_eq!(queue(stage), who(&puppets[at..=at]));
                notifier.unlock(0);
            }
            assert_eq!(waiters(stage), who(&puppets[at + 1..]));
            serve(stage, &mut puppets[at..=at]);
        }
    }
    // All at once, while the lock is held, and while it is not.
    for held in [false, true] {
        let mut puppets = waiting(stage, 5);
        if held {
            assert_eq!(notifier.lock(0), Got::Lock);
        }
        assert_eq!(notifier.notify_all(0), 5);
        assert_eq!(waiters(stage), Some(vec![]));
        if held {
            assert_eq!(queue(stage), who(&puppets));
            notifier.unlock(0);
        }
        serve(stage, &mut puppets);
    }
    assert!(!stage.segment.locks[0].is_locked());
}

fn straight_to_the_mutex(stage: &Stage) {
    let mut notifier = stage.puppet();
    for all in [false, true] {
        let mut puppets = waiting(stage, 4);
        assert_eq!(notifier.lock(0), Got::Lock);
        let mut others = stage.puppets(2);
        others[0].queue(&stage.segment, 0);
        if all {
            assert_eq!(notifier.notify_all(0), 4);
        } else {
            assert!(notifier.notify_one(0) && notifier.notify_one(0));
        }
        others[1].queue(&stage.segment, 0);
        let (before, after) = others.split_at_mut(1);
        let (notified, rest) = puppets.split_at_mut(if all { 4 } else { 2 });
        assert_eq!(queue(stage), who(before.iter().chain(&*notified).chain(&*after)));
        assert_eq!(waiters(stage), who(&*rest));
        if !all {
            // These come behind everybody.
            assert!(notifier.notify_one(0) && notifier.notify_one(0));
            assert!(!notifier.notify_one(0));
        }
        notifier.unlock(0);
        serve(stage, before.iter_mut().chain(notified).chain(after).chain(rest));
    }
}

fn counted(stage: &Stage) {
    let mut notifier = stage.puppet();
    assert!(!notifier.notify_one(0));
    assert_eq!(notifier.notify_all(0), 0);
    let mut puppets = waiting(stage, 3);
    assert!(notifier.notify_one(0));
    assert_eq!(notifier.notify_all(0), 2);
    serve(stage, &mut puppets);
    assert!(!notifier.notify_one(0));
    assert_eq!(notifier.notify_all(0), 0);
    if !stage.marks_deaths() {
        return;
    }
    for killed in [&[0, 1, 2, 3][..], &[1, 2], &[0, 3]] {
        let mut puppets: Vec<_> = waiting(stage, 4).into_iter().map(Some).collect();
        for victim in killed {
            puppets[*victim].take().expect("killed once").kill();
        }
        let living = 4 - killed.len();
        assert_eq!(notifier.notify_one(0), living > 0, "{killed:?}");
        assert_eq!(notifier.notify_all(0), living.saturating_sub(1), "{killed:?}");
        serve(stage, puppets.iter_mut().flatten());
        assert_eq!(waiters(stage), Some(vec![]));
    }
}

fn stampede() {
    const WAITERS: usize = 100;
    let (path, segment) = board_of(256);
    let mut puppets: Vec<_> = (0..WAITERS).map(|_| Puppet::spawn(&path)).collect();
    for puppet in &mut puppets {
        assert_eq!(puppet.lock(0), Got::Lock);
        puppet.wait(&segment, 0, 0, "");
        // Whoever has the lock goes on to release it at once.
        puppet.start("unlock 0");
    }
    let guard = segment.locks[0].lock();
    let me = segment.attach().expect("attach");
    let count = |participant| {
        let counts = heirlock::statistics(&segment, participant).expect("it is there");
        (counts.sleeps, counts.wakes)
    };
    let participants: Vec<_> = puppets.iter().map(|puppet| puppet.participant).collect();
    let asleep = |participant: &Participant| count(*participant).0 > 0;
    until("all sleep", || participants.iter().all(asleep));
    let before: Vec<_> = participants.iter().map(|puppet| count(*puppet)).collect();
    let wakes_before = count(me).1;
    let start = Instant::now();
    assert_eq!(segment.condvars[0].notify_all(), WAITERS);
    assert_eq!(heirlock::queue(&segment.locks[0]), Some(participants.clone()));
    assert_eq!(heirlock::waiters(&segment.condvars[0]), Some(vec![]));
    let wakes_to_notify = count(me).1 - wakes_before;
    drop(guard);
    for puppet in &mut puppets {
        assert_eq!(puppet.got(), Got::Lock);
        assert_eq!(puppet.answer(), "ok");
    }
    let took = start.elapsed();
    // Each second a sleeper looks around, and sleeps again.
    let heartbeats = took.as_secs() + 1;
    let after: Vec<_> = participants.iter().map(|puppet| count(*puppet)).collect();
    let sleeps: Vec<_> = before.iter().zip(&after).map(|(old, new)| new.0 - old.0).collect();
    let others: u64 = before.iter().zip(&after).map(|(old, new)| new.1 - old.1).sum();
    let wakes = others + count(me).1 - wakes_before;
    let (all, most) = (sleeps.iter().sum::<u64>(), sleeps.iter().max().expect("a hundred"));
    eprintln!(
        "{WAITERS} notified in {took:?}: {wakes_to_notify} wakes to notify, {wakes} in all; \
         {all} sleeps, {most} of one at the most"
    );
    assert!(wakes_to_notify <= 1, "{wakes_to_notify}");
    // Whoever looked around meanwhile may wake those whose turn comes soon.
    assert!((50..=101 + 8 * all).contains(&wakes), "{wakes}");
    assert!(*most <= 1 + heartbeats, "{sleeps:?}");
    assert!(!segment.locks[0].is_locked());
}

fn signals(stage: &Stage) {
    const SIGNALS: u64 = 500;
    let mut notifier = stage.puppet();
    let mut puppets = stage.puppets(4);
    for (number, puppet) in puppets.iter_mut().enumerate() {
        puppet.tell(["handle", "handle restart"][number % 2]);
        wait(stage, puppet, "");
    }
    for _ in 0..SIGNALS {
        for puppet in &puppets {
            puppet.process.interrupt(Signal::SIGUSR1);
        }
    }
    assert_eq!(waiters(stage), who(&puppets));
    let mut interruptions = 0;
    for puppet in &puppets {
        let seen = heirlock::statistics(&stage.segment, puppet.participant);
        interruptions += seen.expect("it is there").interruptions;
    }
    eprintln!("{} signals, {interruptions} sleeps ended by one", 4 * SIGNALS);
    // Without SA_RESTART each one that hits the sleep ends it.
    assert!(interruptions > SIGNALS / 10, "{interruptions}");
    // Notified, and waiting for the mutex, the same.
    assert_eq!(notifier.lock(0), Got::Lock);
    assert_eq!(notifier.notify_all(0), 4);
    for _ in 0..SIGNALS / 10 {
        for puppet in &puppets {
            puppet.process.interrupt(Signal::SIGUSR1);
        }
    }
    assert_eq!(queue(stage), who(&puppets));
    notifier.unlock(0);
    serve(stage, &mut puppets);
    for puppet in &mut puppets {
        let handled: u64 = puppet.tell("handled").parse().expect("a number");
        assert!(handled >= SIGNALS, "{handled}");
    }
}

fn stopped(stage: &Stage) {
    let mut notifier = stage.puppet();
    let mut puppets = waiting(stage, 3);
    puppets[0].process.stop();
    puppets[1].process.stop();
    puppets[1].process.resume();
    assert_eq!(notifier.lock(0), Got::Lock);
    assert!(notifier.notify_one(0));
    assert_eq!(queue(stage), who(&puppets[..1]));
    assert_eq!(waiters(stage), who(&puppets[1..]));
    notifier.unlock(0);
    // It does not run: it has the lock all the same, or will, and nobody else.
    assert_eq!(notifier.try_lock_for(0, Duration::from_millis(50)), Got::Nothing);
    assert_eq!(waiters(stage), who(&puppets[1..]));
    puppets[0].process.resume();
    serve(stage, &mut puppets[..1]);
    assert_eq!(notifier.notify_all(0), 2);
    serve(stage, &mut puppets[1..]);
}

fn timed_out(stage: &Stage) {
    let mut other = stage.puppet();
    let mut puppets = waiting(stage, 3);
    let start = Instant::now();
    let mut timed = stage.puppet();
    wait(stage, &mut timed, "for 50000");
    assert_eq!(timed.got(), Got::Nothing);
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert_eq!(stage.owner(0), Some(timed.participant));
    timed.unlock(0);
    assert_eq!(waiters(stage), who(&puppets));
    // Somebody else has the lock when the time is over.
    wait(stage, &mut timed, "for 20000");
    assert_eq!(other.lock(0), Got::Lock);
    timed.until_queued(&stage.segment, 0);
    assert_eq!(waiters(stage), who(&puppets));
    assert!(other.notify_one(0));
    other.unlock(0);
    assert_eq!(timed.got(), Got::Nothing);
    assert_eq!(stage.owner(0), Some(timed.participant));
    assert_eq!(queue(stage), who(&puppets[..1]));
    timed.unlock(0);
    serve(stage, &mut puppets[..1]);
    // In front of others, who keep their order.
    puppets.remove(0);
    assert_eq!(other.notify_all(0), 2);
    serve(stage, &mut puppets);
    let mut timed = stage.puppets(2);
    wait(stage, &mut timed[0], "for 300000");
    wait(stage, &mut puppets[0], "");
    wait(stage, &mut timed[1], "for 300000");
    wait(stage, &mut puppets[1], "");
    in_any_order(stage, timed.iter_mut().collect(), &Got::Nothing);
    assert_eq!(waiters(stage), who(&puppets));
    assert_eq!(other.notify_all(0), 2);
    serve(stage, &mut puppets);
}

fn deadlines() {
    static LOCK: Mutex<u64> = Mutex::new(0);
    static CONDVAR: Condvar = Condvar::new();
    let past = Instant::now() - Duration::from_millis(1);
    let soon = Duration::from_millis(5);
    let mut guard = LOCK.lock();
    assert!(CONDVAR.wait_for(&mut guard, Duration::ZERO).timed_out());
    assert!(CONDVAR.wait_until(&mut guard, past).timed_out());
    assert!(CONDVAR.wait_while_for(&mut guard, |_| true, Duration::ZERO).timed_out());
    let start = Instant::now();
    assert!(CONDVAR.wait_for(&mut guard, soon).timed_out());
    assert!(CONDVAR.wait_until(&mut guard, Instant::now() + soon).timed_out());
    assert!(CONDVAR.wait_while_for(&mut guard, |_| true, soon).timed_out());
    assert!(start.elapsed() >= 3 * soon);
    for options in [
        LockOptions::new().timeout(Duration::ZERO),
        LockOptions::new().timeout(soon),
        LockOptions::new().deadline(past),
    ] {
        assert!(matches!(CONDVAR.wait_with(&mut guard, &options), Err(LockError::TimedOut)));
    }
    assert_eq!(heirlock::waiters(&CONDVAR), Some(vec![]));
    assert!(LOCK.is_locked());
    // What does not fit is for ever.
    let far = Instant::now() + Duration::from_secs(1 << 40);
    for patient in [0, 1, 2, 3] {
        let waiter = thread::spawn(move || {
            let mut guard = LOCK.lock();
            let result = match patient {
                0 => CONDVAR.wait_for(&mut guard, Duration::MAX),
                1 => CONDVAR.wait_until(&mut guard, far),
                2 => CONDVAR.wait_while_for(&mut guard, |turn| *turn == 2, Duration::MAX),
                _ => CONDVAR.wait_for(&mut guard, Duration::from_millis(u32::MAX.into())),
            };
            assert!(!result.timed_out());
        });
        *guard = patient;
        MutexGuard::unlocked(&mut guard, || {
            until("it waits", || heirlock::waiters(&CONDVAR).is_some_and(|all| all.len() == 1));
            *LOCK.lock() = 9;
            assert!(CONDVAR.notify_one());
            waiter.join().expect("join");
        });
    }
}

/// Each round somebody waits for a time, while somebody else notifies. Whoever is told
/// that there was somebody to be notified has notified him, and the other way round.
fn race(policy: Policy, ends_by: EndsBy) {
    const ROUNDS: u64 = 2_000;
    let private = (Mutex::with_policy(0, policy), Condvar::new());
    let init = |board: &mut Board| board.locks[0] = Mutex::with_policy(0, policy);
    let segment: Segment<Board> = Segment::options().init(init).anonymous().expect("anonymous");
    let places = [(&segment.locks[0], &segment.condvars[0]), (&private.0, &private.1)];
    for (lock, condvar) in places {
        let (mut notified, mut ended) = (0u64, 0u64);
        // In microseconds, such that both happen about as often on any machine.
        let mut longest = 300;
        for round in 0..ROUNDS {
            let time = Duration::from_micros(fastrand::u64(0..longest));
            let token = CancelToken::new();
            thread::scope(|scope| {
                let token = &token;
                let waiter = scope.spawn(move || {
                    let mut guard = lock.lock();
                    *guard += 1;
                    match ends_by {
                        EndsBy::Timeout => !condvar.wait_for(&mut guard, time).timed_out(),
                        EndsBy::Token => condvar.wait_cancellable(&mut guard, token).is_ok(),
                    }
                });
                if ends_by == EndsBy::Token {
                    scope.spawn(move || {
                        spin(time);
                        token.canceller().cancel();
                    });
                }
                until("somebody waits, or does not any more", || {
                    waiter.is_finished()
                        || heirlock::waiters(condvar).is_none_or(|waiters| !waiters.is_empty())
                });
                spin(Duration::from_micros(fastrand::u64(0..200)));
                let guard = (round % 2 == 0).then(|| lock.lock());
                let was_there =
                    if round % 3 == 0 { condvar.notify_all() == 1 } else { condvar.notify_one() };
                drop(guard);
                let was_notified = waiter.join().expect("join");
                assert_eq!(was_notified, was_there, "round {round}");
                if was_there {
                    notified += 1;
                    longest = (longest - longest / 16).max(100);
                } else {
                    ended += 1;
                    longest += longest / 16;
                }
            });
            assert!(!lock.is_locked(), "after round {round}");
            assert_eq!(heirlock::queue(lock), Some(vec![]), "after round {round}");
            assert_eq!(heirlock::waiters(condvar), Some(vec![]), "after round {round}");
        }
        assert_eq!(*lock.lock(), ROUNDS);
        eprintln!("{policy:?}, {ends_by:?} that raced: {notified} notified, {ended} ended");
        assert!(notified > ROUNDS / 20 && ended > ROUNDS / 20, "{notified}, {ended}");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndsBy {
    Timeout,
    Token,
}

fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

fn cancelled(stage: &Stage) {
    let mut other = stage.puppet();
    let mut puppets = stage.puppets(4);
    for (puppet, limit) in
        puppets.iter_mut().zip(["cancellable 0", "cancellable 1", "", "cancellable 0"])
    {
        wait(stage, puppet, limit);
    }
    // While the lock is held, and while it is free.
    assert_eq!(other.lock(0), Got::Lock);
    assert_eq!(other.tell("cancel 0"), "ok");
    for at in [0, 3] {
        puppets[at].until_queued(&stage.segment, 0);
    }
    assert_eq!(waiters(stage), who(&puppets[1..3]));
    other.unlock(0);
    let (first, rest) = puppets.split_at_mut(3);
    in_any_order(stage, vec![&mut first[0], &mut rest[0]], &Got::Cancelled);
    stage.segment.tokens[1].canceller().cancel();
    assert_eq!(puppets[1].got(), Got::Cancelled);
    puppets[1].unlock(0);
    assert_eq!(waiters(stage), who(&puppets[2..3]));
    // Once it is notified, nothing ends the wait for the lock.
    stage.segment.tokens[1].reset();
    wait(stage, &mut puppets[1], "cancellable 1");
    assert_eq!(other.lock(0), Got::Lock);
    assert_eq!(other.notify_all(0), 2);
    assert_eq!(other.tell("cancel 1"), "ok");
    thread::sleep(Duration::from_millis(20));
    assert_eq!(queue(stage), who([&puppets[2], &puppets[1]]));
    other.unlock(0);
    serve(stage, &mut puppets[2..3]);
    serve(stage, &mut puppets[1..2]);
    stage.segment.tokens.iter().for_each(CancelToken::reset);
}

fn cancelled_before() {
    let stage = Stage::new();
    let mut puppet = stage.puppet();
    let mut other = stage.puppet();
    assert_eq!(puppet.lock(0), Got::Lock);
    other.queue(&stage.segment, 0);
    stage.segment.tokens[0].canceller().cancel();
    for _ in 0..2 {
        assert_eq!(puppet.tell("wait 0 0 cancellable 0"), "cancelled");
        assert_eq!(stage.owner(0), Some(puppet.participant));
        assert_eq!(queue(&stage), who([&other]));
    }
    puppet.unlock(0);
    assert_eq!(other.got(), Got::Lock);
}

fn interrupted(stage: &Stage) {
    let mut other = stage.puppet();
    for handle in ["handle", "handle restart"] {
        let mut puppets = stage.puppets(3);
        puppets[1].tell(handle);
        for (puppet, limit) in puppets.iter_mut().zip(["", "interruptible", "interruptible"]) {
            wait(stage, puppet, limit);
        }
        // Once is enough if it hits the thread asleep, as it mostly does.
        let victim = puppets[1].participant;
        until("the wait is interrupted", || {
            puppets[1].process.interrupt(Signal::SIGUSR1);
            waiters(stage).is_some_and(|waiters| !waiters.contains(&victim))
        });
        assert_eq!(puppets[1].got(), Got::Interrupted, "{handle}");
        assert_eq!(stage.owner(0), Some(victim));
        assert_eq!(waiters(stage), who([&puppets[0], &puppets[2]]));
        puppets[1].unlock(0);
        // Once it is notified, no signal ends the wait for the lock.
        wait(stage, &mut puppets[1], "interruptible");
        assert_eq!(other.lock(0), Got::Lock);
        assert_eq!(other.notify_all(0), 3);
        for _ in 0..20 {
            puppets[1].process.interrupt(Signal::SIGUSR1);
        }
        puppets.swap(1, 2);
        assert_eq!(queue(stage), who(&puppets));
        other.unlock(0);
        serve(stage, &mut puppets);
    }
}

fn throughput() {
    for core in [fifo, counted, signals, timed_out, cancelled, interrupted] {
        core(&Stage::with_policy(Policy::Throughput));
    }
}

fn two_mutexes() {
    let stage = Stage::new();
    let [first, second, ..] = &stage.segment.locks;
    let condvar = &stage.segment.condvars[0];
    let me = Some(stage.segment.attach().expect("attach"));
    let mut puppets = waiting(&stage, 2);
    let refuse = || {
        let mut guard = second.lock();
        *guard += 1;
        let options = LockOptions::new().timeout(HANG);
        let error = condvar.wait_with(&mut guard, &options).unwrap_err();
        assert!(matches!(error, LockError::Unusable(Unusable::OtherMutex)), "{error:?}");
        let error = condvar.wait_cancellable(&mut guard, &CancelToken::new()).unwrap_err();
        assert!(matches!(error, Cancelled::Unusable(Unusable::OtherMutex)), "{error:?}");
        let error = condvar.wait_interruptible(&mut guard).unwrap_err();
        assert!(matches!(error, Interrupted::Unusable(Unusable::OtherMutex)), "{error:?}");
        let needle = "others wait for this condition variable with another mutex";
        let message = panic_of(|| condvar.wait(&mut guard));
        assert!(message.starts_with("heirlock: ") && message.contains(needle), "{message}");
        let message = panic_of(|| condvar.wait_for(&mut guard, HANG));
        assert!(message.contains(needle), "{message}");
        // It was never released.
        assert_eq!(heirlock::owner(second), me);
        assert!(stage.puppet().try_lock(1) == Got::Nothing);
        *guard += 1;
        drop(guard);
        assert!(!second.is_locked());
        assert_eq!(waiters(&stage), who(&puppets));
    };
    refuse();
    refuse();
    assert_eq!(condvar.notify_all(), 2);
    serve(&stage, &mut puppets);
    // Nobody waits any more, or only the dead: it may go with any mutex.
    assert!(condvar.wait_for(&mut second.lock(), Duration::from_millis(1)).timed_out());
    for puppet in waiting(&stage, 2) {
        puppet.kill();
    }
    assert!(condvar.wait_for(&mut second.lock(), Duration::from_millis(1)).timed_out());
    assert!(condvar.wait_for(&mut first.lock(), Duration::from_millis(1)).timed_out());
    assert_eq!(*second.lock(), 4);
}

fn elsewhere() {
    static LOCK: Mutex<u64> = Mutex::new(0);
    static CONDVAR: Condvar = Condvar::new();
    let (_path, one) = board();
    let (_other_path, other) = board();
    for (lock, condvar) in [
        (&one.locks[0], &other.condvars[0]),
        (&other.locks[0], &one.condvars[0]),
        (&one.locks[0], &CONDVAR),
        (&LOCK, &one.condvars[0]),
    ] {
        let mut guard = lock.lock();
        let error = condvar.wait_with(&mut guard, &LockOptions::new().timeout(HANG)).unwrap_err();
        assert!(matches!(error, LockError::Unusable(Unusable::OtherSegment)), "{error:?}");
        let message = panic_of(|| condvar.wait(&mut guard));
        let needle = "not in the same segment; put them side by side";
        assert!(message.starts_with("heirlock: ") && message.contains(needle), "{message}");
        assert!(lock.is_locked());
        drop(guard);
        assert!(!lock.is_locked());
        assert_eq!(heirlock::waiters(condvar), Some(vec![]));
    }
}

/// Hands a number to and fro.
fn ping_pong(lock: &Mutex<u64>, condvars: [&Condvar; 2]) {
    const ROUNDS: u64 = 500;
    thread::scope(|scope| {
        for me in 0..2 {
            scope.spawn(move || {
                let mut number = lock.lock();
                for _ in 0..ROUNDS {
                    condvars[me].wait_while(&mut number, |number| *number % 2 != me as u64);
                    *number += 1;
                    condvars[1 - me].notify_one();
                }
            });
        }
    });
    assert_eq!(*lock.lock(), 2 * ROUNDS);
}

fn private() {
    static LOCK: Mutex<u64> = Mutex::new(0);
    static CONDVARS: [Condvar; 2] = [const { Condvar::new() }; 2];
    ping_pong(&LOCK, CONDVARS.each_ref());
    let on_stack = (Mutex::new(0), [Condvar::new(), Condvar::new()]);
    ping_pong(&on_stack.0, on_stack.1.each_ref());
    let on_heap = Box::new(on_stack);
    *on_heap.0.lock() = 0;
    ping_pong(&on_heap.0, on_heap.1.each_ref());
    // Some here, some there: that is one place.
    *LOCK.lock() = 0;
    ping_pong(&LOCK, [&CONDVARS[0], &on_heap.1[1]]);
    let segment: Segment<Board> = Segment::anonymous().expect("anonymous");
    ping_pong(&segment.locks[0], [&segment.condvars[0], &segment.condvars[3]]);
}

fn copied_guard() {
    let (_path, segment) = board();
    let private = (Mutex::new(0), Condvar::new());
    for (lock, condvar) in [(&segment.locks[0], &segment.condvars[0]), (&private.0, &private.1)] {
        let mut guard = lock.lock();
        fork(|| {
            let message = panic_of(|| condvar.wait_for(&mut guard, HANG));
            assert!(message.contains("copied by fork"), "{message}");
        })
        .succeed();
        assert!(condvar.wait_for(&mut guard, Duration::from_millis(1)).timed_out());
        *guard += 1;
    }
}

fn forked_private() {
    static LOCK: Mutex<u64> = Mutex::new(0);
    static CONDVAR: Condvar = Condvar::new();
    let waiter = || {
        thread::spawn(|| {
            let mut guard = LOCK.lock();
            CONDVAR.wait_while(&mut guard, |value| *value == 0);
            *guard += 1;
        })
    };
    let until_waiting = |count| {
        until("they wait", || heirlock::waiters(&CONDVAR).is_some_and(|all| all.len() == count));
    };
    let threads: Vec<_> = (0..3).map(|_| waiter()).collect();
    until_waiting(3);
    for notify in [false, true] {
        fork(|| {
            if notify {
                assert_eq!(CONDVAR.notify_all(), 0);
                assert!(!CONDVAR.notify_one());
            }
            let waiter = waiter();
            until("it waits", || heirlock::waiters(&CONDVAR).is_some_and(|all| all.len() == 1));
            *LOCK.lock() = 10;
            assert!(CONDVAR.notify_one());
            waiter.join().expect("join");
            assert_eq!(*LOCK.lock(), 11);
            assert!(!CONDVAR.notify_one());
        })
        .succeed();
    }
    // The child's doings were on a copy.
    until_waiting(3);
    *LOCK.lock() = 1;
    assert_eq!(CONDVAR.notify_all(), 3);
    threads.into_iter().for_each(|thread| thread.join().expect("join"));
    assert_eq!(*LOCK.lock(), 4);
}
