//! What ends a wait early: signals, tokens, deadlines; and stops, which do not.

use crate::kit::{Got, HANG, Process, Puppet, Stage, TempPath, Test, skip, until};
use heirlock::{
    CancelToken, Cancelled, Interrupted, LockError, LockOptions, Mutex, Segment, Unusable,
};
use nix::sys::signal::Signal;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("a_signal_handler_ends_an_interruptible_wait", || interrupted(&Stage::new())),
    ("an_interruptible_waiter_inherits", || interruptible_heir(&Stage::new())),
    ("cancelling_ends_every_wait_with_the_token_and_no_other", || cancelled(&Stage::new())),
    ("a_signal_handler_may_cancel", || cancelled_by_handler(&Stage::new())),
    ("a_cancelled_token_refuses_a_free_lock_until_reset", cancelled_before),
    ("a_reset_does_not_revive_a_cancelled_wait", reset_at_once),
    ("a_cancellation_that_races_with_the_hand_over_loses_no_lock", cancel_race),
    ("signals_do_not_stretch_a_deadline", || deadline_under_signals(&Stage::new())),
    ("deadlines_zero_past_and_without_end", deadlines),
    ("a_stopped_owner_is_waited_for", stopped_owner),
    ("a_daemon_leaves_at_sigterm_in_the_middle_of_a_wait", daemon),
    ("lock_with_says_why", why),
    ("each_error_says_what_to_do", messages),
];

/// What holds in every sandbox as well.
pub(crate) const CORE: &[fn(&Stage)] =
    &[interrupted, interruptible_heir, cancelled, cancelled_by_handler, deadline_under_signals];

/// Has `waiter` wait for lock 0 by `command`, until it sleeps in the queue.
fn sleep(stage: &Stage, waiter: &mut Puppet, command: &str) {
    waiter.start(command);
    waiter.until_queued(&stage.segment, 0);
    until("a puppet sleeps", || {
        heirlock::statistics(&stage.segment, waiter.participant).is_some_and(|s| s.sleeps > 0)
    });
}

fn queue(stage: &Stage) -> Option<Vec<heirlock::Participant>> {
    heirlock::queue(&stage.segment.locks[0])
}

fn interrupted(stage: &Stage) {
    for handle in ["handle", "handle restart"] {
        let mut owner = stage.puppet();
        assert_eq!(owner.lock(0), Got::Lock);
        let mut waiters = stage.puppets(3);
        waiters[1].tell(handle);
        sleep(stage, &mut waiters[0], "lock 0");
        sleep(stage, &mut waiters[1], "interruptible 0");
        sleep(stage, &mut waiters[2], "lock 0");
        let queued: Vec<_> = waiters.iter().map(|waiter| waiter.participant).collect();
        assert_eq!(queue(stage), Some(queued.clone()));

        // Once is enough if it hits the thread asleep, as it mostly does.
        until("the wait is interrupted", || {
            waiters[1].process.interrupt(Signal::SIGUSR1);
            queue(stage).is_some_and(|queue| !queue.contains(&queued[1]))
        });
        assert_eq!(waiters[1].got(), Got::Interrupted, "{handle}");
        assert_eq!(queue(stage), Some(vec![queued[0], queued[2]]), "the others keep their place");

        owner.unlock(0);
        for at in [0, 2] {
            assert_eq!(waiters[at].got(), Got::Lock);
            waiters[at].unlock(0);
        }
        assert!(!stage.segment.locks[0].is_locked());
    }
}

fn interruptible_heir(stage: &Stage) {
    let mut owner = stage.puppet();
    assert_ne!(owner.lock(0), Got::Nothing);
    let mut waiters = stage.puppets(3);
    for waiter in &mut waiters {
        sleep(stage, waiter, "interruptible 0");
    }
    let dead = owner.pid();
    owner.kill();
    let mut waiters = waiters.into_iter();
    let (mut heir, middle, mut last) =
        (waiters.next().unwrap(), waiters.next().unwrap(), waiters.next().unwrap());
    let got = heir.got();
    assert!(matches!(got, Got::Inherited { pid, .. } if pid == dead), "{got:?}");
    middle.kill();
    heir.unlock(0);
    let got = last.got();
    assert!(got == Got::Lock || !stage.marks_deaths(), "{got:?}");
    last.unlock(0);
}

fn cancelled(stage: &Stage) {
    let mut owner = stage.puppet();
    let mut other = stage.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    let mut waiters = stage.puppets(5);
    // Two with token 0, two with token 1, one without.
    for (waiter, command) in waiters.iter_mut().zip([
        "cancellable 0 0",
        "cancellable 0 1",
        "lock 0",
        "cancellable 0 0",
        "cancellable 0 1",
    ]) {
        sleep(stage, waiter, command);
    }
    let queued: Vec<_> = waiters.iter().map(|waiter| waiter.participant).collect();
    // By another process than any that waits, and by this one.
    assert_eq!(other.tell("cancel 0"), "ok");
    for at in [0, 3] {
        assert_eq!(waiters[at].got(), Got::Cancelled);
    }
    assert_eq!(queue(stage), Some(vec![queued[1], queued[2], queued[4]]));
    stage.segment.tokens[1].canceller().cancel();
    for at in [1, 4] {
        assert_eq!(waiters[at].got(), Got::Cancelled);
    }
    assert_eq!(queue(stage), Some(vec![queued[2]]));
    owner.unlock(0);
    assert_eq!(waiters[2].got(), Got::Lock);
    waiters[2].unlock(0);
}

fn cancelled_by_handler(stage: &Stage) {
    let mut owner = stage.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    let mut waiters = stage.puppets(2);
    // The handler runs in the thread that waits; the other has no handler.
    waiters[0].tell("handle cancel 2");
    for waiter in &mut waiters {
        sleep(stage, waiter, "cancellable 0 2");
    }
    waiters[0].process.signal(Signal::SIGUSR1);
    for waiter in &mut waiters {
        assert_eq!(waiter.got(), Got::Cancelled);
    }
    assert_eq!(waiters[0].tell("handled"), "1");
    assert_eq!(queue(stage), Some(vec![]));
    owner.unlock(0);
}

fn cancelled_before() {
    let token = CancelToken::new();
    let lock = Mutex::new(0);
    *lock.lock_cancellable(&token).expect("nothing is cancelled") += 1;
    for _ in 0..2 {
        token.canceller().cancel();
        assert!(token.is_cancelled());
        assert!(matches!(lock.lock_cancellable(&token), Err(Cancelled::Token)));
        let timed = LockOptions::new().cancel(&token).timeout(Duration::ZERO);
        assert!(matches!(lock.lock_with(&timed), Err(LockError::Cancelled)));
    }
    assert!(!lock.is_locked());
    // A reset of what is not cancelled changes nothing.
    for _ in 0..2 {
        token.reset();
        assert!(!token.is_cancelled());
        *lock.lock_cancellable(&token).expect("nothing is cancelled") += 1;
    }
    assert_eq!(*lock.lock(), 3);
}

/// The waiter cannot run between the cancellation and the reset.
fn reset_at_once() {
    let stage = Stage::new();
    let mut owner = stage.puppet();
    let mut waiter = stage.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    sleep(&stage, &mut waiter, "cancellable 0 0");
    waiter.process.stop();
    let token = &stage.segment.tokens[0];
    token.canceller().cancel();
    token.reset();
    assert!(!token.is_cancelled());
    waiter.process.resume();
    assert_eq!(waiter.got(), Got::Cancelled);
    waiter.start("cancellable 0 0");
    waiter.until_queued(&stage.segment, 0);
    owner.unlock(0);
    assert_eq!(waiter.got(), Got::Lock);
}

fn cancel_race() {
    const ROUNDS: u64 = 20_000;
    static LOCK: Mutex<u64> = Mutex::new(0);
    static TOKEN: CancelToken = CancelToken::new();
    let (mut acquired, mut cancelled) = (0, 0);
    let (begin, begun) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let waiter = thread::spawn(move || {
        for () in begun {
            let got = LOCK.lock_cancellable(&TOKEN).map(|mut guard| *guard += 1);
            tell.send(got.is_ok()).expect("tell");
        }
    });
    for round in 0..ROUNDS {
        let guard = LOCK.lock();
        begin.send(()).expect("begin");
        if round % 2 == 0 {
            until("the waiter is queued", || heirlock::queue(&LOCK).is_none_or(|q| !q.is_empty()));
        }
        thread::scope(|scope| {
            scope.spawn(|| TOKEN.canceller().cancel());
            // Somewhere around the time that the other takes to start.
            for _ in 0..fastrand::u32(..40_000) {
                std::hint::spin_loop();
            }
            drop(guard);
        });
        match told.recv_timeout(HANG).expect("the waiter is stuck") {
            true => acquired += 1,
            false => cancelled += 1,
        }
        assert!(!LOCK.is_locked(), "after round {round}");
        assert_eq!(heirlock::queue(&LOCK), Some(vec![]), "after round {round}");
        TOKEN.reset();
    }
    drop(begin);
    waiter.join().expect("join");
    assert_eq!(*LOCK.lock(), acquired);
    eprintln!("cancellations that raced: {acquired} acquired, {cancelled} cancelled");
    assert!(acquired > 0 && cancelled > 0, "{acquired}, {cancelled}");
}

/// A wait that began anew with each signal would never end.
fn deadline_under_signals(stage: &Stage) {
    const TIMEOUT: Duration = Duration::from_millis(200);
    let mut owner = stage.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    for handle in ["handle", "handle restart"] {
        let mut waiter = stage.puppet();
        waiter.tell(handle);
        let start = Instant::now();
        sleep(stage, &mut waiter, &format!("timed 0 {}", TIMEOUT.as_micros()));
        let mut signals = 0;
        until("the deadline passes", || {
            waiter.process.interrupt(Signal::SIGUSR1);
            signals += 1;
            queue(stage).is_some_and(|queue| queue.is_empty())
        });
        assert_eq!(waiter.got(), Got::Nothing);
        assert!(start.elapsed() >= TIMEOUT);
        let handled: u64 = waiter.tell("handled").parse().expect("a number");
        let seen = heirlock::statistics(&stage.segment, waiter.participant).expect("it is there");
        eprintln!("{handle}: {signals} signals, {handled} handled, {seen:?}");
        assert!(signals > 10 && handled >= 10, "{signals}, {handled}");
        // Without SA_RESTART each one that hits the sleep ends it.
        assert!(handle != "handle" || seen.interruptions > 5, "{seen:?}");
    }
    owner.unlock(0);
}

fn deadlines() {
    let lock = Mutex::new(());
    let past = Instant::now() - Duration::from_millis(1);
    let none = [
        LockOptions::new().timeout(Duration::ZERO),
        LockOptions::new().deadline(past),
        LockOptions::new().timeout(Duration::from_millis(1)),
        LockOptions::new().deadline(Instant::now() + Duration::from_millis(1)),
    ];
    for options in none {
        drop(lock.lock_with(&options).expect("it is free"));
    }
    drop(lock.try_lock_until(past).expect("it is free"));
    drop(lock.try_lock_for(Duration::MAX).expect("it is free"));
    thread::scope(|scope| {
        let guard = lock.lock();
        let other = scope.spawn(|| {
            for options in none {
                assert!(matches!(lock.lock_with(&options), Err(LockError::TimedOut)));
            }
            assert!(lock.try_lock_until(past).is_none());
            assert!(lock.try_lock_for(Duration::ZERO).is_none());
        });
        other.join().expect("join");
        // What does not fit is for ever.
        let patient =
            scope.spawn(|| lock.lock_with(&LockOptions::new().timeout(Duration::MAX)).is_ok());
        until("it is queued", || heirlock::queue(&lock).is_some_and(|queue| queue.len() == 1));
        drop(guard);
        assert!(patient.join().expect("join"));
    });
}

fn stopped_owner() {
    let stage = Stage::new();
    let mut owner = stage.puppet();
    let mut waiters = stage.puppets(3);
    assert_eq!(owner.lock(0), Got::Lock);
    owner.process.stop();
    sleep(&stage, &mut waiters[0], "lock 0");
    sleep(&stage, &mut waiters[1], "cancellable 0 0");
    // Longer than a heartbeat: a stop is not taken for a death.
    assert_eq!(waiters[2].try_lock_for(0, Duration::from_millis(1500)), Got::Nothing);
    assert_eq!(stage.owner(0), Some(owner.participant));
    stage.segment.tokens[0].canceller().cancel();
    assert_eq!(waiters[1].got(), Got::Cancelled);
    owner.process.resume();
    owner.unlock(0);
    assert_eq!(waiters[0].got(), Got::Lock);
    waiters[0].unlock(0);
}

/// `examples/stoppable.rs`, as cargo has built it beside this test.
fn daemon() {
    let test = std::env::current_exe().expect("the own path");
    let program = test.parent().and_then(Path::parent).expect("target/debug");
    let program = program.join("examples/stoppable");
    if !program.exists() {
        skip(format!("{} is not built; `cargo test` without --test builds it", program.display()));
    }
    let path = TempPath::new();
    let segment: Segment<Mutex<u64>> = Segment::create(&path).expect("create");
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let guard = segment.lock();
        let mut command = Command::new(&program);
        let mut daemon = Process::from_command(command.arg(&*path).stdout(Stdio::piped()));
        until("the daemon is queued", || heirlock::queue(&segment).is_some_and(|q| q.len() == 1));
        let start = Instant::now();
        daemon.signal(Signal::SIGTERM);
        let said = daemon.output();
        slowest = slowest.max(start.elapsed());
        assert!(said.ends_with("told to stop; did 0 jobs\n"), "{said}");
        assert_eq!(heirlock::queue(&segment), Some(vec![]), "its place is given up");
        drop(guard);
    }
    eprintln!("from SIGTERM to the end of the process: {slowest:?} at the most");
    assert!(segment.lock().eq(&0));
}

fn why() {
    let token = CancelToken::new();
    let options = LockOptions::new().timeout(Duration::from_secs(1)).cancel(&token);
    let lock = Mutex::new(());
    let guard = lock.lock();
    let error = lock.lock_with(&options).unwrap_err();
    assert!(matches!(error, LockError::Unusable(Unusable::WouldDeadlock)), "{error:?}");
    let error = lock.lock_cancellable(&token).unwrap_err();
    assert!(matches!(error, Cancelled::Unusable(Unusable::WouldDeadlock)), "{error:?}");
    let error = lock.lock_interruptible().unwrap_err();
    assert!(matches!(error, Interrupted::Unusable(Unusable::WouldDeadlock)), "{error:?}");
    drop(guard);

    let full: Segment<Mutex<u64>> = Segment::options().capacity(1).anonymous().expect("create");
    full.attach().expect("the first");
    let error = thread::scope(|scope| {
        scope.spawn(|| full.lock_with(&options).map(drop).unwrap_err()).join().expect("join")
    });
    let LockError::Unusable(Unusable::Attach(heirlock::AttachError::Full { capacity: 1 })) = error
    else {
        panic!("{error:?}");
    };
}

fn messages() {
    let deadlock = || Unusable::WouldDeadlock;
    let corrupted = || Unusable::Corrupted { what: "a test" };
    for (error, needles) in [
        (LockError::TimedOut, ["in time", "wait longer"]),
        (LockError::from(Cancelled::Token), ["cancelled", "reset"]),
        (LockError::from(Interrupted::Signal), ["signal handler", "call again"]),
        (LockError::from(Cancelled::Unusable(deadlock())), ["holds the lock already", "drop"]),
        (LockError::from(Interrupted::Unusable(corrupted())), ["a test", "unlink"]),
        (LockError::from(deadlock()), ["holds the lock already", "drop"]),
    ] {
        let message = error.to_string();
        assert!(needles.iter().all(|needle| message.contains(needle)), "{message}");
    }
    assert_eq!(Cancelled::Token.to_string(), LockError::Cancelled.to_string());
    assert_eq!(Interrupted::Signal.to_string(), LockError::Interrupted.to_string());
}
