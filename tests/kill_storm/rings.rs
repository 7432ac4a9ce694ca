//! The same as `directed`, for those who wait in a ring, or for several locks.
#![allow(unsafe_code)]

use crate::directed::starve;
use crate::kit::{Board, Got, Process, Puppet, Test, skip};
use crate::scene::{Scene, until};
use heirlock::select::lock_any;
use heirlock::uring::{AsyncAcquire, Progress, user_data};
use heirlock::{MutexGuard, Segment};
use io_uring::IoUring;
use nix::sys::signal::Signal;
use std::io::BufRead;

pub(crate) const TESTS: &[Test] = &[
    ("a_lock_that_is_handed_over_completes_a_request", handed_over),
    ("a_ring_that_is_told_of_a_death_tells_the_others", told),
    ("who_drops_an_acquisition_passes_on_the_death_of_which_it_was_told", told_and_dropped),
    ("who_gets_one_of_two_locks_passes_on_the_death_of_the_others_owner", told_and_served),
    ("an_acquisition_dropped_after_it_was_granted_passes_the_lock_on", granted_and_dropped),
    ("who_gets_two_locks_at_once_passes_the_second_on", granted_both),
    ("a_dropped_acquisition_ends_its_request", request_ends),
    ("who_moves_up_as_an_acquisition_is_dropped_notices_the_owners_death", moved_up),
    ("who_waits_for_any_of_two_locks_notices_the_death_of_either_owner", either_owner),
];

type Pending = AsyncAcquire<'static, u64>;

/// `ringed PATH`: a puppet that waits in a ring. At most one acquisition of each lock is
/// under way.
///
/// * `start LOCK`: `locked`, or `pending` when the kernel waits.
/// * `finish LOCK`: waits in the ring until it has the lock.
/// * `drop LOCK`: drops the acquisition, and does not look at the ring.
/// * `reap COUNT`: waits until so many requests are completed that nobody waits for.
/// * `any`: waits for the first two locks, asleep.
/// * `unlock LOCK`
pub(crate) fn play(args: &[String]) {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("prctl");
    let segment: Segment<Board> = Segment::open(&args[0]).expect("open");
    let segment: &'static Segment<Board> = Box::leak(Box::new(segment));
    println!("participant {}", segment.attach().expect("attach").to_bits());
    let mut ringed = Ringed {
        segment,
        ring: IoUring::new(16).expect("a ring"),
        turn: 0,
        pending: Default::default(),
        guards: Default::default(),
    };
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("read a command");
        let (command, number) = line.split_once(' ').unwrap_or((&line, "0"));
        println!("{}", ringed.obey(command, number.parse().expect("a number")));
    }
}

struct Ringed {
    segment: &'static Segment<Board>,
    ring: IoUring,
    /// Each acquisition has a number of its own, whose remainder by 8 is the lock's: what
    /// completes late is not the next one's.
    turn: u64,
    pending: [Option<Pending>; 8],
    guards: [Option<MutexGuard<'static, u64>>; 8],
}

impl Ringed {
    fn obey(&mut self, command: &str, number: usize) -> String {
        match command {
            "start" => {
                let lock: &'static _ = &self.segment.locks[number];
                self.turn += 8;
                let (acquire, progress) = lock.start(self.turn + number as u64).expect("start");
                self.pending[number] = Some(acquire);
                self.go_on(number, progress).unwrap_or_else(|| "pending".into())
            }
            "finish" => loop {
                for done in self.completed() {
                    let at = user_data(&done) as usize % 8;
                    let Some(acquire) = &mut self.pending[at] else { continue };
                    let progress = acquire.complete(&done).expect("complete");
                    if let Some(answer) = self.go_on(at, progress).filter(|_| at == number) {
                        return answer;
                    }
                }
                self.ring.submit_and_wait(1).expect("wait in a ring");
            },
            "drop" => {
                drop(self.pending[number].take().expect("it is under way"));
                "ok".into()
            }
            "reap" => {
                while self.ring.completion().len() < number {
                    self.ring.submit_and_wait(number).expect("wait in a ring");
                }
                assert_eq!(self.completed().len(), number);
                "ok".into()
            }
            "any" => {
                let [first, second, ..] = &self.segment.locks;
                let (which, guard) = lock_any(&[first, second]);
                self.keep(which, guard)
            }
            "unlock" => {
                drop(self.guards[number].take().expect("it is held"));
                "ok".into()
            }
            other => panic!("a puppet with a ring does not know {other}"),
        }
    }

    fn completed(&mut self) -> Vec<io_uring::cqueue::Entry> {
        self.ring.completion().collect()
    }

    fn go_on(&mut self, at: usize, progress: Progress<'static, u64>) -> Option<String> {
        match progress {
            Progress::Acquired(guard) => return Some(self.keep(at, guard)),
            Progress::Again(entries) => {
                // SAFETY: what they point to is kept for as long as the kernel may look.
                unsafe { self.ring.submission().push_multiple(&entries) }.expect("room");
                self.ring.submit().expect("submit");
            }
            Progress::Pending => {}
            Progress::TimedOut | Progress::Cancelled => panic!("nothing was to end the wait"),
        }
        None
    }

    fn keep(&mut self, at: usize, guard: MutexGuard<'static, u64>) -> String {
        let said = match MutexGuard::inherited(&guard) {
            None => format!("locked {at}"),
            Some(dead) => format!("inherited {at} {}", dead.pid()),
        };
        self.guards[at] = Some(guard);
        said
    }
}

impl Scene {
    /// A puppet with a ring.
    fn ringed(&self) -> Puppet {
        if let Some(error) = heirlock::uring::refused() {
            skip(format!("no io_uring here: {error}"));
        }
        let path = self.path.to_str().expect("a printable path");
        let puppet = Puppet::from_command(&mut Process::command("ringed", &[path]));
        self.watch(&puppet.process);
        puppet
    }

    fn queue_len(&self, lock: usize) -> usize {
        heirlock::queue(&self.segment.locks[lock]).map_or(0, |queue| queue.len())
    }

    /// Until the queue of a lock is so long, and its last member sleeps.
    fn until_queued(&self, lock: usize, len: usize) {
        until("so many sleep in a queue", || {
            let snapshot = self.snapshot();
            let queue = &snapshot.locks[lock].queue;
            let sleeps = |row| {
                let view = snapshot.participant(row).and_then(|view| view.busy_with.as_ref());
                view.is_some_and(|wait| wait.state == "parked")
            };
            queue.len() == len && queue.last().is_some_and(|last| sleeps(last.row()))
        });
    }
}

fn inherited(lock: usize, from: u32) -> String {
    format!("inherited {lock} {from}")
}

fn is_from(dead: u32, got: &Got) -> bool {
    matches!(got, Got::Inherited { pid, .. } if *pid == dead)
}

fn handed_over() {
    let scene = Scene::new();
    let (mut owner, mut waiter) = (scene.puppet(), scene.ringed());
    assert_eq!(owner.lock(0), Got::Lock);
    assert_eq!(waiter.tell("start 0"), "pending");
    waiter.start("finish 0");
    owner.unlock(0);
    assert_eq!(waiter.answer(), "locked 0");
}

/// The kernel wakes the first who watches the dead: the ring. Of four others each has a
/// lock of its own to wait for.
fn told() {
    let scene = Scene::new();
    let (mut owner, mut waiter) = (scene.puppet(), scene.ringed());
    let mut others: Vec<Puppet> = (0..4).map(|_| scene.puppet()).collect();
    (0..5).for_each(|lock| assert_eq!(owner.lock(lock), Got::Lock));
    assert_eq!(waiter.tell("start 0"), "pending");
    for (other, lock) in others.iter_mut().zip(1..) {
        scene.park(other, &format!("lock {lock}"));
    }
    waiter.start("finish 0");
    let pid = owner.pid();
    scene.kill(owner);
    assert_eq!(waiter.answer(), inherited(0, pid));
    for other in &mut others {
        let got = other.got();
        assert!(is_from(pid, &got), "{got:?}");
    }
}

fn told_and_dropped() {
    let scene = Scene::new();
    let (mut owner, mut waiter, mut other) = (scene.puppet(), scene.ringed(), scene.puppet());
    for lock in [0, 1] {
        assert_eq!(owner.lock(lock), Got::Lock);
    }
    assert_eq!(waiter.tell("start 0"), "pending");
    scene.park(&mut other, "lock 1");
    let pid = owner.pid();
    scene.kill(owner);
    assert_eq!(waiter.tell("drop 0"), "ok");
    let got = other.got();
    assert!(is_from(pid, &got), "{got:?}");
}

/// It is told of the death of the second lock's owner before it gets a CPU, and gets the
/// first: it has no reason to look at the second any more. Who waits for a third one of
/// the dead has only it.
fn told_and_served() {
    // On a busy machine it may get a CPU too soon, and then it has the second.
    let served = (0..20).any(|_| is_told_and_served());
    assert!(served, "it was never told and served at once");
}

/// Whether it was served before it looked.
fn is_told_and_served() -> bool {
    let scene = Scene::new();
    let (mut owner, mut dead) = (scene.puppet(), scene.puppet());
    let (mut waiter, mut other) = (scene.ringed(), scene.puppet());
    assert_eq!(owner.lock(0), Got::Lock);
    for lock in [1, 2] {
        assert_eq!(dead.lock(lock), Got::Lock);
    }
    waiter.start("any");
    scene.until_queued(0, 1);
    scene.until_queued(1, 1);
    until("it sleeps", || crate::scene::is_asleep(waiter.process.pid()));
    scene.park(&mut other, "lock 2");
    let mut hog = Process::spawn("hog", &[]);
    starve(&waiter.process, &hog);
    let pid = dead.pid();
    scene.kill(dead);
    owner.unlock(0);
    hog.kill();
    let served = waiter.answer() == "locked 0";
    let got = other.got();
    assert!(is_from(pid, &got), "{got:?}");
    served
}

fn granted_and_dropped() {
    let scene = Scene::new();
    let (mut owner, mut waiter, mut next) = (scene.puppet(), scene.ringed(), scene.puppet());
    assert_eq!(owner.lock(0), Got::Lock);
    assert_eq!(waiter.tell("start 0"), "pending");
    scene.park(&mut next, "lock 0");
    owner.unlock(0);
    assert_eq!(scene.queue_len(0), 1, "the lock is handed to the ring");
    assert_eq!(waiter.tell("drop 0"), "ok");
    assert_eq!(next.got(), Got::Lock);
}

fn granted_both() {
    let scene = Scene::new();
    let (mut owner, mut waiter, mut next) = (scene.puppet(), scene.ringed(), scene.puppet());
    for lock in [0, 1] {
        assert_eq!(owner.lock(lock), Got::Lock);
    }
    waiter.start("any");
    scene.until_queued(1, 1);
    scene.park(&mut next, "lock 1");
    // It does not run before it has both.
    waiter.process.stop();
    owner.unlock(0);
    owner.unlock(1);
    waiter.process.resume();
    assert_eq!(waiter.answer(), "locked 0");
    assert_eq!(next.got(), Got::Lock);
}

/// The wait and its timeout.
fn request_ends() {
    let scene = Scene::new();
    let (mut owner, mut waiter) = (scene.puppet(), scene.ringed());
    assert_eq!(owner.lock(0), Got::Lock);
    assert_eq!(waiter.tell("start 0"), "pending");
    assert_eq!(waiter.tell("drop 0"), "ok");
    assert_eq!(waiter.tell("reap 2"), "ok");
    assert_eq!(scene.queue_len(0), 0);
}

fn moved_up() {
    let scene = Scene::new();
    let (mut owner, mut waiter, mut next) = (scene.puppet(), scene.ringed(), scene.puppet());
    assert_eq!(owner.lock(0), Got::Lock);
    assert_eq!(waiter.tell("start 0"), "pending");
    scene.park(&mut next, "lock 0");
    assert_eq!(waiter.tell("drop 0"), "ok");
    let pid = owner.pid();
    scene.kill(owner);
    let got = next.got();
    assert!(is_from(pid, &got), "{got:?}");
}

fn either_owner() {
    for lock in [0, 1] {
        let scene = Scene::new();
        let (mut owners, mut waiter) = ([scene.puppet(), scene.puppet()], scene.ringed());
        for lock in [0, 1] {
            assert_eq!(owners[lock].lock(lock), Got::Lock);
        }
        waiter.start("any");
        scene.until_queued(1, 1);
        until("it sleeps", || crate::scene::is_asleep(waiter.process.pid()));
        let [first, second] = owners;
        let (dead, _lives) = if lock == 0 { (first, second) } else { (second, first) };
        let pid = dead.pid();
        scene.kill(dead);
        assert_eq!(waiter.answer(), inherited(lock, pid));
    }
}
