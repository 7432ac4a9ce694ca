//! Parking: no token is lost, none comes from nowhere, whoever is killed or
//! interrupted wherever.
#![allow(clippy::disallowed_types, reason = "the tests' own counts, in a segment")]

use crate::kit::sandbox::Refusal;
use crate::kit::{HANG, Process, Puppet, Role, Stage, TempPath, Test, fork, panic_of, until};
use heirlock::thread::{ParkError, Thread, current, park, park_timeout, park_until, park_with};
use heirlock::{
    AttachError, CancelToken, LockOptions, Mutex, Participant, Segment, Unusable, statistics,
};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

pub(crate) const TESTS: &[Test] = &[
    ("a_token_that_comes_before_the_park_is_taken_without_sleeping", unpark_before),
    ("two_unparks_make_one_token", one_token),
    ("a_park_with_a_time_says_whether_it_took_a_token", times),
    ("a_parked_thread_is_unparked_by_another_process", || unparked(&Stage::new())),
    ("parking_works_without_futex_waitv", || {
        for refused in [&[Some(Refusal::WAITV)], &[Some(Refusal::WAITV_UNKNOWN)]] {
            unparked(&Stage::sandboxed(refused));
            ended(&Stage::sandboxed(refused));
        }
    }),
    ("unparking_the_dead_does_nothing_and_says_so", || unpark_the_dead(&Stage::new())),
    ("who_reuses_the_row_of_a_dead_thread_gets_no_token_of_its", reused_row),
    ("a_token_dies_with_its_thread", token_of_the_dead),
    ("a_handle_that_names_no_thread_unparks_nobody", nobody),
    ("a_signal_handler_may_unpark_its_own_thread", own_handler),
    ("a_signal_handler_may_interrupt_an_unpark_of_the_same_thread", nested_unparks),
    ("a_token_a_deadline_or_a_signal_handler_ends_a_park", || ended(&Stage::new())),
    ("signals_do_not_end_a_park_nor_stretch_its_deadline", signals),
    ("killed_unparkers_lose_no_token_that_they_have_given", || play("killed-unparkers")),
    ("two_processes_unpark_each_other_ten_thousand_times", ping_pong),
    ("every_unpark_of_many_processes_is_seen", many_unparkers),
    ("a_forked_child_parks_for_itself", || play("fork-parked")),
    ("a_thread_that_is_unparked_has_a_token_in_that_segment_only", two_segments),
    ("a_garbled_token_is_a_clear_error", garbled),
    ("park_with_says_why", why),
];

pub(crate) const ROLES: &[Role] = &[
    ("killed-unparkers", |_| killed_unparkers()),
    ("fork-parked", |_| fork_parked()),
    ("pong", pong),
    ("unparker", unparker),
];

fn play(role: &str) {
    assert!(Process::spawn(role, &[]).succeeds(), "see above");
}

fn anonymous() -> Segment<Mutex<u64>> {
    Segment::anonymous().expect("create")
}

fn sleeps<T>(segment: &Segment<T>, thread: Participant) -> u64 {
    statistics(segment, thread).map_or(0, |statistics| statistics.sleeps)
}

/// Has `puppet` park by `command`, until it sleeps.
fn sleep(stage: &Stage, puppet: &mut Puppet, command: &str) {
    let before = sleeps(&stage.segment, puppet.participant);
    puppet.start(command);
    until("a puppet sleeps", || sleeps(&stage.segment, puppet.participant) > before);
}

/// Whether a puppet has a token, which it loses by that.
fn has_token(puppet: &mut Puppet) -> bool {
    puppet.tell("park-for 0") == "unparked"
}

fn unpark_before() {
    let segment = anonymous();
    let me = current(&segment).expect("join");
    for _ in 0..10 {
        assert!(me.unpark());
        park(&segment);
    }
    // By another thread.
    thread::scope(|scope| {
        scope.spawn(move || assert!(me.unpark())).join().expect("join");
    });
    park(&segment);
    assert_eq!(sleeps(&segment, me.participant()), 0);
    assert!(!park_timeout(&segment, Duration::ZERO), "there are no more");
}

fn one_token() {
    let stage = Stage::new();
    let mut parked = stage.puppet();
    let thread = Thread::of(&stage.segment, parked.participant);
    assert!(!has_token(&mut parked), "a new thread has none");
    assert!(thread.unpark() && thread.unpark());
    assert!(has_token(&mut parked) && !has_token(&mut parked));
}

fn times() {
    let segment = anonymous();
    let me = current(&segment).expect("join");
    let past = Instant::now() - Duration::from_millis(1);
    let short = Duration::from_millis(1);
    // Nobody comes.
    let start = Instant::now();
    assert!(!park_timeout(&segment, short));
    assert!(start.elapsed() >= short, "too early");
    assert!(!park_until(&segment, start + 2 * short));
    assert!(start.elapsed() >= 2 * short, "too early");
    assert!(!park_timeout(&segment, Duration::ZERO));
    assert!(!park_until(&segment, past));
    // Somebody was there before.
    for timeout in [Duration::ZERO, short, HANG] {
        assert!(me.unpark());
        assert!(park_timeout(&segment, timeout), "{timeout:?}");
        assert!(me.unpark());
        assert!(park_until(&segment, Instant::now() + timeout), "{timeout:?}");
    }
    assert!(me.unpark());
    assert!(park_until(&segment, past), "what is there is taken");
    // Somebody comes; what does not fit is for ever.
    for timeout in [HANG, Duration::MAX] {
        thread::scope(|scope| {
            let before = sleeps(&segment, me.participant());
            let segment = &segment;
            scope.spawn(move || {
                until("it sleeps", || sleeps(segment, me.participant()) > before);
                assert!(me.unpark());
            });
            assert!(park_timeout(segment, timeout));
        });
    }
}

fn unparked(stage: &Stage) {
    let (mut parked, mut other) = (stage.puppet(), stage.puppet());
    let unpark = format!("unpark {}", parked.participant.to_bits());
    for command in ["park", "park-for 25000000", "park-cancellable 0", "park-interruptible"] {
        sleep(stage, &mut parked, command);
        assert_eq!(other.tell(&unpark), "true");
        assert_eq!(parked.answer(), "unparked", "{command}");
        // By one who has not joined.
        sleep(stage, &mut parked, command);
        assert!(Thread::of(&stage.segment, parked.participant).unpark());
        assert_eq!(parked.answer(), "unparked", "{command}");
    }
    assert!(!has_token(&mut parked));
    let joined = (1..=stage.segment.capacity()).filter(|row| {
        let first = Participant::from_bits(1 << 20 | u64::from(*row)).expect("a participant");
        heirlock::is_alive(&stage.segment, first)
    });
    assert_eq!(joined.count(), 2, "who unparks need not join");
}

fn unpark_the_dead(stage: &Stage) {
    let (mut parked, mut other) = (stage.puppet(), stage.puppet());
    let dead = parked.participant;
    let thread = Thread::of(&stage.segment, dead);
    assert!(thread.unpark());
    assert_eq!(parked.tell("park"), "unparked");
    sleep(stage, &mut parked, "park");
    parked.kill();
    for _ in 0..2 {
        assert!(!thread.unpark());
        assert_eq!(other.tell(&format!("unpark {}", dead.to_bits())), "false");
    }
    // One that has left is as good as dead.
    let segment = &stage.segment;
    let left = thread::scope(|scope| {
        scope.spawn(|| segment.attach().expect("attach")).join().expect("join")
    });
    assert!(!Thread::of(&stage.segment, left).unpark());
}

fn reused_row() {
    let stage = Stage::new();
    let mut before = Vec::new();
    for _ in 0..4 {
        let dead = stage.puppet();
        before.push(Thread::of(&stage.segment, dead.participant));
        dead.kill();
    }
    let mut next = stage.puppet();
    for thread in &before {
        assert_eq!(thread.participant().row(), next.participant.row());
        assert!(!thread.unpark());
        assert!(!has_token(&mut next), "a token that was meant for {thread:?}");
    }
    sleep(&stage, &mut next, "park-cancellable 0");
    assert!(before.iter().all(|thread| !thread.unpark()));
    assert!(Thread::of(&stage.segment, next.participant).unpark());
    assert_eq!(next.answer(), "unparked");
}

fn token_of_the_dead() {
    let stage = Stage::new();
    let dead = stage.puppet();
    let row = dead.participant.row();
    assert!(Thread::of(&stage.segment, dead.participant).unpark());
    dead.kill();
    let mut next = stage.puppet();
    assert_eq!(next.participant.row(), row);
    assert!(!has_token(&mut next), "it has its predecessor's");
}

fn nobody() {
    let segment: Segment<Mutex<u64>> = Segment::options().capacity(3).anonymous().expect("create");
    let me = current(&segment).expect("join").participant();
    for row in [2, 3, 4, 0x7fff, 0xffff] {
        for generation in [0, 1, 2, (1 << 44) - 1] {
            let named = Participant::from_bits(generation << 20 | row).expect("a participant");
            assert!(!Thread::of(&segment, named).unpark(), "{named}");
        }
    }
    // As the own one, but for what the token's word does not say.
    for generation in [0, 2, 1 + (1 << 31), 1 + (1 << 43)] {
        let named = Participant::from_bits(generation << 20 | u64::from(me.row()));
        assert!(!Thread::of(&segment, named.expect("a participant")).unpark(), "{generation}");
    }
    assert!(!park_timeout(&segment, Duration::ZERO));
}

fn own_handler() {
    let stage = Stage::new();
    let mut parked = stage.puppet();
    let own = parked.participant.to_bits();
    // Installed with SA_RESTART: the kernel restarts the sleep, and finds the token.
    parked.tell(&format!("handle unpark {own}"));
    for command in ["park", "park-for 25000000", "park-cancellable 0", "park-interruptible"] {
        sleep(&stage, &mut parked, command);
        parked.process.interrupt(Signal::SIGUSR1);
        assert_eq!(parked.answer(), "unparked", "{command}");
    }
    parked.process.interrupt(Signal::SIGUSR1);
    until("the handler has run", || parked.tell("handled") == "5");
    assert!(has_token(&mut parked) && !has_token(&mut parked));
}

fn nested_unparks() {
    const OFTEN: u64 = 100_000;
    let stage = Stage::new();
    let (mut parked, mut other) = (stage.puppet(), stage.puppet());
    let handle = parked.participant.to_bits();
    other.tell(&format!("handle unpark {handle}"));
    let mut handled = 0;
    while handled < 100 {
        other.start(&format!("unpark-often {handle} {OFTEN}"));
        for _ in 0..200 {
            other.process.interrupt(Signal::SIGUSR1);
        }
        assert_eq!(other.answer(), OFTEN.to_string(), "each finds it alive");
        handled = other.tell("handled").parse().expect("a number");
    }
    assert!(has_token(&mut parked) && !has_token(&mut parked));
    // And while the tokens are taken.
    other.start(&format!("unpark-often {handle} {OFTEN}"));
    for _ in 0..100 {
        other.process.interrupt(Signal::SIGUSR1);
        has_token(&mut parked);
    }
    assert_eq!(other.answer(), OFTEN.to_string());
    has_token(&mut parked);
    assert!(!has_token(&mut parked));
}

fn ended(stage: &Stage) {
    // Each in turn, and the token that comes too late is there the next time.
    let mut parked = stage.puppet();
    let thread = Thread::of(&stage.segment, parked.participant);
    sleep(stage, &mut parked, "park-cancellable 0");
    stage.segment.tokens[0].canceller().cancel();
    assert_eq!(parked.answer(), "cancelled");
    assert!(thread.unpark());
    assert_eq!(parked.tell("park-cancellable 0"), "cancelled", "it is cancelled already");
    assert!(has_token(&mut parked), "which has not been taken by that");
    stage.segment.tokens[0].reset();

    sleep(stage, &mut parked, "park-for 1000");
    assert_eq!(parked.answer(), "nothing");

    for handle in ["handle", "handle restart"] {
        parked.tell(handle);
        let sleeping = parked.participant;
        let before = statistics(&stage.segment, sleeping).expect("it is there").interruptions;
        sleep(stage, &mut parked, "park-interruptible");
        // Once is enough if it hits the thread asleep, as it mostly does.
        until("the park is interrupted", || {
            parked.process.interrupt(Signal::SIGUSR1);
            statistics(&stage.segment, sleeping).is_some_and(|s| s.interruptions > before)
        });
        assert_eq!(parked.answer(), "interrupted", "{handle}");
        assert!(thread.unpark());
        assert_eq!(parked.tell("park-interruptible"), "unparked", "{handle}");
    }
}

fn signals() {
    const TIMEOUT: Duration = Duration::from_millis(200);
    let stage = Stage::new();
    for handle in ["handle", "handle restart"] {
        let mut parked = stage.puppet();
        parked.tell(handle);
        let thread = Thread::of(&stage.segment, parked.participant);
        let interruptions =
            || statistics(&stage.segment, thread.participant()).expect("it is there").interruptions;
        // It answers when it is unparked, and not before: there is one answer.
        sleep(&stage, &mut parked, "park");
        let mut signals = 0;
        until("many signals", || {
            parked.process.interrupt(Signal::SIGUSR1);
            signals += 1;
            signals >= 1000
        });
        // Without SA_RESTART each one that hits the sleep ends the call.
        assert!(handle != "handle" || interruptions() > 100, "{}", interruptions());
        parked.start("handled");
        assert!(thread.unpark());
        assert_eq!(parked.answer(), "unparked");
        let handled: u64 = parked.answer().parse().expect("a number");
        assert!(handled > 100, "{handled}");

        let start = Instant::now();
        parked.start(&format!("park-for {}", TIMEOUT.as_micros()));
        until("the deadline has passed", || {
            parked.process.interrupt(Signal::SIGUSR1);
            start.elapsed() >= TIMEOUT + TIMEOUT / 4
        });
        assert_eq!(parked.answer(), "nothing");
        assert!(start.elapsed() >= TIMEOUT);
    }
}

/// What the players of the larger tests share.
#[derive(FromBytes)]
#[repr(C)]
struct Court {
    /// Who plays.
    players: [AtomicU64; 2],
    /// Whose turn it is: even or odd.
    turn: AtomicU64,
    /// How many unparks have begun, and how many are over, by unparker.
    begun: [AtomicU64; 4],
    over: [AtomicU64; 4],
    /// The last one that the parked thread has seen begun.
    seen: AtomicU64,
}

fn court() -> (TempPath, Segment<Court>) {
    let path = TempPath::new();
    let segment = Segment::options().capacity(16).create(&path).expect("create");
    (path, segment)
}

/// The thread that a word of the court names.
fn player<'s>(segment: &'s Segment<Court>, at: usize) -> Thread<'s> {
    let mut named = None;
    until("a player is there", || {
        named = Participant::from_bits(segment.players[at].load(Relaxed));
        named.is_some()
    });
    Thread::of(segment, named.expect("see above"))
}

/// Children unpark a thread, one at a time, each as often as it can until it is
/// killed. Each unpark waits until the last one was seen, so a lost one shows.
fn killed_unparkers() {
    const KILLS: u32 = 1000;
    let segment: Segment<Court> = Segment::anonymous().expect("create");
    let Court { begun: [begun, ..], over: [over, ..], seen, .. } = &*segment;
    let (parked_for, stop) = (&segment, u64::MAX);
    thread::scope(|scope| {
        scope.spawn(move || {
            let me = current(parked_for).expect("join").participant();
            parked_for.players[0].store(me.to_bits(), Relaxed);
            loop {
                park(parked_for);
                let now = parked_for.begun[0].load(Relaxed);
                parked_for.seen.store(now, Relaxed);
                if now == stop {
                    return;
                }
            }
        });
        let parked = player(&segment, 0);
        let (mut between, mut slowest) = (0, Duration::ZERO);
        for _ in 0..KILLS {
            let before = over.load(Relaxed);
            let mut child = fork(|| {
                loop {
                    let next = over.load(Relaxed) + 1;
                    begun.store(next, Relaxed);
                    assert!(parked.unpark());
                    over.store(next, Relaxed);
                    while seen.load(Relaxed) < next {
                        std::hint::spin_loop();
                    }
                }
            });
            let delay = Duration::from_micros(fastrand::u64(..2000));
            thread::sleep(delay);
            child.kill();
            let start = Instant::now();
            let given = over.load(Relaxed);
            until("the last token is taken", || given == before || seen.load(Relaxed) >= given);
            slowest = slowest.max(start.elapsed());
            // In the middle of one: the token may be there or not, and does no harm.
            between += u32::from(begun.load(Relaxed) != given);
            over.store(begun.load(Relaxed), Relaxed);
        }
        let given = over.load(Relaxed);
        eprintln!(
            "{KILLS} unparkers were killed, {between} of them in the middle of {given} unparks; \
             at the most {slowest:?} until a token was taken"
        );
        assert!(given > u64::from(KILLS), "{given}");
        begun.store(stop, Relaxed);
        assert!(parked.unpark());
    });
}

/// `pong PATH SIDE`: plays.
fn pong(args: &[String]) {
    set_pdeathsig(Signal::SIGKILL).expect("PR_SET_PDEATHSIG");
    let segment: Segment<Court> = Segment::open(&args[0]).expect("open");
    let side: usize = args[1].parse().expect("a number");
    let me = current(&segment).expect("join").participant();
    segment.players[side].store(me.to_bits(), Relaxed);
    let other = player(&segment, 1 - side);
    let mut parks = 0;
    for round in 0..ROUNDS {
        let mine = 2 * round + side as u64;
        // Relaxed, for the unpark is behind all that its thread did before it.
        while segment.turn.load(Relaxed) != mine {
            park(&segment);
            parks += 1;
        }
        segment.turn.store(mine + 1, Relaxed);
        assert!(other.unpark() || round + 1 == ROUNDS);
    }
    assert!(parks <= ROUNDS, "{parks} parks returned, there were {ROUNDS} tokens");
}

const ROUNDS: u64 = 10_000;

fn ping_pong() {
    let (path, segment) = court();
    let path = path.to_str().expect("a printable path");
    let players: Vec<_> = ["0", "1"].map(|side| Process::spawn("pong", &[path, side])).into();
    assert!(players.into_iter().all(Process::succeeds), "see above");
    assert_eq!(segment.turn.load(Relaxed), 2 * ROUNDS);
}

/// `unparker PATH WHICH`: unparks player 0, each time for a reason.
fn unparker(args: &[String]) {
    set_pdeathsig(Signal::SIGKILL).expect("PR_SET_PDEATHSIG");
    let segment: Segment<Court> = Segment::open(&args[0]).expect("open");
    let which: usize = args[1].parse().expect("a number");
    let parked = player(&segment, 0);
    for done in 1..=ROUNDS {
        segment.begun[which].store(done, Relaxed);
        assert!(parked.unpark());
        // Not always, so that tokens meet a parked thread as well.
        if done % 64 == u64::from(fastrand::u8(..64)) {
            thread::sleep(Duration::from_micros(50));
        }
    }
}

fn many_unparkers() {
    let (path, segment) = court();
    let me = current(&segment).expect("join").participant();
    let path = path.to_str().expect("a printable path");
    let unparkers: Vec<_> =
        ["0", "1", "2", "3"].map(|which| Process::spawn("unparker", &[path, which])).into();
    segment.players[0].store(me.to_bits(), Relaxed);
    let mut parks = 0;
    // If one that came after the last look were lost, it would sleep on.
    while segment.begun.iter().any(|begun| begun.load(Relaxed) < ROUNDS) {
        assert!(park_timeout(&segment, HANG), "it was not told of the last one");
        parks += 1;
    }
    assert!(unparkers.into_iter().all(Process::succeeds), "see above");
    eprintln!("{} unparks, {parks} parks, {} sleeps", 4 * ROUNDS, sleeps(&segment, me));
    park_timeout(&segment, Duration::ZERO);
    assert!(!park_timeout(&segment, Duration::ZERO), "more than one token");
    assert!(parks <= 4 * ROUNDS);
}

fn fork_parked() {
    let segment = anonymous();
    let me = current(&segment).expect("join");
    assert!(me.unpark());
    fork(|| {
        let child = current(&segment).expect("join");
        assert_ne!(child.participant(), me.participant());
        assert!(!park_timeout(&segment, Duration::ZERO), "the token is its parent's");
        assert!(child.unpark());
        park(&segment);
    })
    .succeed();
    park(&segment);
    let child = fork(|| assert!(me.unpark()));
    park(&segment);
    child.succeed();
}

fn two_segments() {
    let (first, second) = (anonymous(), anonymous());
    let me = current(&first).expect("join");
    current(&second).expect("join");
    assert!(me.unpark());
    assert!(!park_timeout(&second, Duration::ZERO));
    assert!(park_timeout(&first, Duration::ZERO));
}

/// The word of a row, 52 bytes behind its start, is another generation's.
fn garbled() {
    let path = TempPath::new();
    let segment: Segment<Mutex<u64>> = Segment::create(&path).expect("create");
    let me = current(&segment).expect("join");
    let file = std::fs::File::options().write(true).open(&*path).expect("open");
    let word = 4096 + 64 * u64::from(me.participant().row()) + 52;
    for garbage in [0, 1, 5, 1 << 31, u32::MAX] {
        file.write_all_at(&u32::to_ne_bytes(garbage), word).expect("write");
        let error = park_with(&segment, &LockOptions::new()).unwrap_err();
        let ParkError::Unusable(Unusable::Corrupted { .. }) = error else { panic!("{error:?}") };
        let message = panic_of(|| park(&segment));
        assert!(message.contains("token"), "{message}");
        assert!(!me.unpark(), "it would do nothing");
    }
    file.write_all_at(&u32::to_ne_bytes(2), word).expect("write");
    assert!(me.unpark());
    park(&segment);
}

fn why() {
    let stop = CancelToken::new();
    let segment = anonymous();
    let options = LockOptions::new().cancel(&stop).timeout(Duration::from_millis(1));
    let error = park_with(&segment, &options).unwrap_err();
    assert!(matches!(error, ParkError::TimedOut), "{error:?}");
    assert!(error.to_string().contains("nobody has unparked"), "{error}");
    stop.canceller().cancel();
    let error = park_with(&segment, &options).unwrap_err();
    assert!(matches!(error, ParkError::Cancelled), "{error:?}");
    assert!(error.to_string().contains("reset"), "{error}");
    assert!(ParkError::Interrupted.to_string().contains("park again"));

    let full: Segment<Mutex<u64>> = Segment::options().capacity(1).anonymous().expect("create");
    full.attach().expect("the first");
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let error = park_with(&full, &LockOptions::new()).unwrap_err();
            let full_error = matches!(
                error,
                ParkError::Unusable(Unusable::Attach(AttachError::Full { capacity: 1 }))
            );
            assert!(full_error, "{error:?}");
            assert!(current(&full).is_err());
            let message = panic_of(|| park(&full));
            assert!(message.contains("capacity"), "{message}");
        });
        other.join().expect("join");
    });
}
