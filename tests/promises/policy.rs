//! Locks that may be taken past those who wait: what that changes, and what not.

use crate::kit::{Board, Got, Process, Puppet, Stage, Test, board, until};
use crate::{death, interruption, order};
use heirlock::{Mutex, MutexGuard, Participant, Policy, Segment, Snapshot};
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("every_process_sees_the_policy_of_a_lock_and_none_is_fifo", seen_by_all),
    ("a_policy_survives_whatever_befalls_the_queue", survives),
    ("who_unlocks_and_locks_again_may_get_past_a_sleeper_that_has_just_come", barging),
    ("nobody_gets_past_who_has_waited_for_a_millisecond", patience),
    ("waiters_of_a_throughput_lock_are_served_in_order", || play(order::WAITING)),
    ("dead_owners_of_a_throughput_lock_are_inherited_from", || play(death::WAITING)),
    ("waits_for_a_throughput_lock_can_be_ended", || play(interruption::CORE)),
    ("a_timeout_that_races_with_a_throughput_locks_release_loses_no_lock", || {
        order::timeout_race(Policy::Throughput);
    }),
    ("who_took_a_lock_past_a_waiter_and_dies_is_inherited_from", barger_dies),
    ("the_first_in_line_of_a_throughput_lock_dies_as_it_is_served", head_dies),
    ("try_lock_of_a_throughput_lock_never_waits", try_lock),
];

pub(crate) const ROLES: &[crate::kit::Role] = &[("barger", barger), ("churner", churner)];

/// So much later everybody who waits has done so for too long to be passed by.
const TOO_LONG: Duration = Duration::from_millis(2);

fn play(tests: &[fn(&Stage)]) {
    for test in tests {
        test(&Stage::with_policy(Policy::Throughput));
    }
}

fn seen_by_all() {
    for policy in [Policy::Fifo, Policy::Throughput] {
        let stage = Stage::with_policy(policy);
        let again: Segment<Board> = Segment::open(stage.path()).expect("open");
        let mut puppet = stage.puppet();
        for lock in 0..8 {
            assert_eq!(stage.segment.locks[lock].policy(), policy);
            assert_eq!(again.locks[lock].policy(), policy);
            assert_eq!(puppet.tell(&format!("policy {lock}")), format!("{policy:?}"));
        }
    }
    let (_path, zeroed) = board();
    assert!(zeroed.locks.iter().all(|lock| lock.policy() == Policy::Fifo));
    assert_eq!(Mutex::new(()).policy(), Policy::default());
}

fn survives() {
    for policy in [Policy::Fifo, Policy::Throughput] {
        let stage = Stage::with_policy(policy);
        let lock = &stage.segment.locks[0];
        let assert_unchanged = |after: &str| assert_eq!(lock.policy(), policy, "after {after}");
        let mut owner = stage.puppet();
        assert_eq!(owner.lock(0), Got::Lock);
        let mut waiters = stage.puppets(3);
        for waiter in &mut waiters {
            waiter.queue(&stage.segment, 0);
        }
        assert_unchanged("queuing");
        assert_eq!(stage.puppet().try_lock_for(0, Duration::from_millis(5)), Got::Nothing);
        assert_unchanged("giving up");
        let mut last = waiters.pop().expect("there are three");
        waiters.into_iter().for_each(Puppet::kill);
        until("the dead are out", || heirlock::queue(lock) == Some(vec![last.participant]));
        assert_unchanged("the death of the head");
        owner.kill();
        assert!(matches!(last.got(), Got::Inherited { .. }));
        assert_unchanged("an heir");
        last.unlock(0);
        assert_unchanged("a release");
        drop(last);
        for _ in 0..40 {
            let path = stage.path().to_str().expect("a printable path");
            let mut churner = Process::spawn("churner", &[path]);
            until("it is under way", || lock.is_locked());
            thread::sleep(Duration::from_micros(fastrand::u64(..3000)));
            churner.kill();
            // Takes whatever guard there is from the dead.
            let mut next = stage.puppet();
            assert_ne!(next.lock(0), Got::Nothing);
            next.unlock(0);
            assert_eq!(heirlock::queue(lock), Some(vec![]));
            assert_unchanged("a death in the middle of it all");
        }
    }
}

/// `churner PATH`: has threads that queue, edit, give up, lock and unlock.
fn churner(args: &[String]) {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).expect("prctl");
    let segment = Segment::<Board>::open(&args[0]).expect("open");
    thread::scope(|scope| {
        for thread in 0..4 {
            let lock = &segment.locks[0];
            scope.spawn(move || {
                loop {
                    let timeout = Duration::from_micros(50 * thread);
                    drop(lock.try_lock_for(timeout));
                    drop(lock.lock());
                }
            });
        }
    });
}

/// Whether the participant is seen to sleep in the queue of a lock.
fn is_parked<T>(segment: &Segment<T>, participant: Participant) -> bool {
    let snapshot = Snapshot::of(std::os::fd::AsFd::as_fd(segment), &[]).expect("a snapshot");
    let view = snapshot.participant(participant.row());
    let wait = view.and_then(|view| view.busy_with.as_ref());
    wait.is_some_and(|wait| wait.queued && wait.state == "parked")
}

fn barging() {
    const ROUNDS: u32 = 300;
    // Somebody who does not come to run within a millisecond may make any one of
    // the attempts fail, and does on a slow machine.
    const FLOOR: u32 = 20;
    for policy in [Policy::Fifo, Policy::Throughput] {
        let start = Instant::now();
        let (mut rounds, mut tried, mut locked) = (0, 0, 0);
        while rounds < ROUNDS || policy == Policy::Throughput && tried.min(locked) < FLOOR {
            assert!(start.elapsed() < crate::kit::HANG, "in {rounds}: {tried}, {locked}");
            rounds += 1;
            match barge(policy, rounds % 2 == 0) {
                true if rounds % 2 == 0 => tried += 1,
                true => locked += 1,
                false => {}
            }
        }
        eprintln!("{policy:?}, past a sleeper in {rounds} rounds: try_lock {tried}, lock {locked}");
        assert!(policy == Policy::Throughput || tried + locked == 0);
    }
}

/// Whether an owner that unlocks, and tries or locks again at once, has the lock
/// before a waiter that has just fallen asleep.
fn barge(policy: Policy, tries: bool) -> bool {
    let init = |lock: &mut Mutex<u64>| *lock = Mutex::with_policy(0, policy);
    let segment: Segment<Mutex<u64>> =
        Segment::options().capacity(4).init(init).anonymous().expect("anonymous");
    let guard = segment.lock();
    thread::scope(|scope| {
        scope.spawn(|| *segment.lock() += 1);
        let mut waiter = None;
        until("a waiter comes", || {
            waiter = heirlock::queue(&segment).and_then(|queue| queue.first().copied());
            waiter.is_some()
        });
        let waiter = waiter.expect("it came");
        let start = Instant::now();
        while !is_parked(&segment, waiter) && start.elapsed() < crate::kit::HANG {}
        drop(guard);
        match tries {
            true => segment.try_lock().is_some_and(|value| *value == 0),
            false => *segment.lock() == 0,
        }
    })
}

/// The waiter does not run, so that the lock is there to be taken past it.
fn patience() {
    let stage = Stage::with_policy(Policy::Throughput);
    let mut owner = stage.puppet();
    let mut waiters = stage.puppets(2);
    let mut stranger = stage.puppet();
    for round in 0..20 {
        assert_eq!(owner.lock(0), Got::Lock);
        for waiter in &mut waiters {
            waiter.queue(&stage.segment, 0);
        }
        waiters[0].process.stop();
        thread::sleep(TOO_LONG);
        owner.unlock(0);
        match round % 3 {
            0 => assert_eq!(stranger.try_lock(0), Got::Nothing),
            1 => assert_eq!(stranger.try_lock_for(0, TOO_LONG), Got::Nothing),
            _ => stranger.start("lock 0"),
        }
        until("it is handed over", || stage.owner(0) == Some(waiters[0].participant));
        waiters[0].process.resume();
        for waiter in &mut waiters {
            assert_eq!(waiter.got(), Got::Lock);
            waiter.unlock(0);
        }
        if round % 3 == 2 {
            assert_eq!(stranger.got(), Got::Lock);
            stranger.unlock(0);
        }
    }
}

/// `barger PATH`: for each line on standard input takes lock 0, waits until somebody
/// sleeps in the queue, unlocks, and tries to take the lock past it. Says whether it did;
/// holds it then.
fn barger(args: &[String]) {
    let segment = Segment::<Board>::open(&args[0]).expect("open");
    let lock = &segment.locks[0];
    for line in std::io::stdin().lines() {
        line.expect("read");
        let guard = lock.lock();
        println!("ready");
        let mut waiter = None;
        until("a waiter comes", || {
            waiter = heirlock::queue(lock).and_then(|queue| queue.first().copied());
            waiter.is_some()
        });
        // Awake: a sleep may take longer than the waiter is patient.
        let (waiter, start) = (waiter.expect("it came"), Instant::now());
        while !is_parked(&segment, waiter) && start.elapsed() < crate::kit::HANG {}
        drop(guard);
        let guard: Option<MutexGuard<'_, u64>> = lock.try_lock();
        println!("{}", guard.is_some());
        std::mem::forget(guard);
    }
}

/// A barger that was started.
struct Barger {
    process: Process,
    stdin: ChildStdin,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Barger {
    fn spawn(stage: &Stage) -> Self {
        let path = stage.path().to_str().expect("a printable path");
        let mut process = Process::from_command(
            Process::command("barger", &[path]).stdin(Stdio::piped()).stdout(Stdio::piped()),
        );
        let (stdin, stdout) = process.pipes();
        Self { process, stdin, lines: BufReader::new(stdout).lines() }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("a line").expect("read")
    }

    /// Whether it gets past the first of `waiters`, all of whom wait then, or have the lock.
    fn gets_past(&mut self, waiters: &mut [Puppet]) -> bool {
        writeln!(self.stdin).expect("begin");
        assert_eq!(self.line(), "ready");
        for waiter in waiters {
            waiter.start("lock 0");
        }
        self.line() == "true"
    }
}

/// Who does not come to run within a millisecond may make any one of the attempts fail. The
/// waiters are the same in all of them: they learn that it does not pay to stay awake.
fn barger_dies() {
    const FLOOR: u32 = 5;
    let stage = Stage::with_policy(Policy::Throughput);
    let start = Instant::now();
    let mut waiters = stage.puppets(2);
    let (mut barged, mut not) = (0, 0);
    while barged < FLOOR {
        let mut barger = Barger::spawn(&stage);
        let pid = barger.process.pid().as_raw() as u32;
        let mut past = false;
        while !past {
            assert!(start.elapsed() < 2 * crate::kit::HANG, "{barged} barged, {not} did not");
            past = barger.gets_past(&mut waiters);
            not += u32::from(!past);
            if past {
                barger.process.kill();
            }
            let mut told = 0;
            let mut waiting: Vec<&mut Puppet> = waiters.iter_mut().collect();
            while !waiting.is_empty() {
                let mut served = None;
                until("a waiter is served", || {
                    let owner = stage.owner(0);
                    served = waiting.iter().position(|waiter| Some(waiter.participant) == owner);
                    served.is_some()
                });
                let waiter = waiting.swap_remove(served.expect("one is"));
                match waiter.got() {
                    Got::Lock => {}
                    Got::Inherited { pid: dead, .. } if dead == pid => told += 1,
                    got => panic!("{got:?}"),
                }
                waiter.unlock(0);
            }
            assert_eq!(told, u32::from(past), "heirs of the barger");
        }
        barged += 1;
    }
    eprintln!("{barged} died that had barged, {not} times none did");
}

/// It is the owner by then, or out of the queue without the lock.
fn head_dies() {
    let stage = Stage::with_policy(Policy::Throughput);
    for handed_over in [false, true] {
        let mut owner = stage.puppet();
        let (mut head, mut next) = (stage.puppet(), stage.puppet());
        assert_eq!(owner.lock(0), Got::Lock);
        head.queue(&stage.segment, 0);
        next.queue(&stage.segment, 0);
        head.process.stop();
        thread::sleep(TOO_LONG);
        owner.unlock(0);
        if handed_over {
            assert_eq!(owner.try_lock(0), Got::Nothing);
            assert_eq!(stage.owner(0), Some(head.participant));
        }
        let pid = head.pid();
        head.kill();
        match next.got() {
            Got::Lock => assert!(!handed_over),
            Got::Inherited { pid: dead, .. } => assert!(handed_over && dead == pid),
            got => panic!("{got:?}"),
        }
        next.unlock(0);
        assert_eq!(owner.lock(0), Got::Lock);
        owner.unlock(0);
    }
}

fn try_lock() {
    let stage = Stage::with_policy(Policy::Throughput);
    let (mut owner, mut waiter) = (stage.puppet(), stage.puppet());
    let mut stranger = stage.puppet();
    assert_eq!(stranger.try_lock(0), Got::Lock);
    assert_eq!(owner.try_lock(0), Got::Nothing);
    stranger.unlock(0);
    assert_eq!(owner.lock(0), Got::Lock);
    waiter.queue(&stage.segment, 0);
    assert_eq!(stranger.try_lock(0), Got::Nothing);
    waiter.kill();
    owner.unlock(0);
    assert_eq!(stranger.try_lock(0), Got::Lock, "past a dead one");
    stranger.unlock(0);
    assert_eq!(heirlock::queue(&stage.segment.locks[0]), Some(vec![]));
}
