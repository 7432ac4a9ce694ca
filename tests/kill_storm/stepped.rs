//! Deaths and delays between two instructions: a process is stepped through
//! `lock` and `unlock` by `ptrace` until shared memory shows that it has come to
//! the place in question.

use crate::kit::{Board, Got, Process, Puppet, Test};
use crate::scene::{Scene, is_asleep, until};
use heirlock::{Participant, Policy, Segment, is_alive};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("who_queues_in_the_last_moment_is_told_of_the_release", late_waiter),
    ("who_queues_in_the_last_moment_notices_the_releasers_death", dead_releaser),
    ("nobody_overtakes_who_queued_in_the_last_moment", no_barging),
    ("who_came_first_by_the_fast_path_is_watched", barger_is_watched),
    ("who_is_served_past_a_barger_is_watched", served_past_a_barger),
    ("a_dead_editors_guard_is_taken_over", dead_editor),
    ("a_dead_editor_leaves_the_policy_as_it_was", dead_editor_with_policy),
    ("a_dead_editors_guard_is_not_taken_over_twice", two_editors),
    ("an_editor_wakes_who_waits_for_the_guard", slow_editor),
];

/// How many instructions a `lock` or `unlock` may take: far more than it does.
const FAR: u32 = 1_000_000;

/// `stepper PATH`: locks and unlocks lock 0, with a stop before each. Exits at
/// once where it may not be traced.
pub(crate) fn play(args: &[String]) {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("prctl");
    if ptrace::traceme().is_err() {
        return;
    }
    let segment = Segment::<Board>::open(&args[0]).expect("open");
    // Waits once, so that what is done only once is done.
    let guard = segment.locks[7].lock();
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(segment.locks[7].try_lock_for(Duration::from_millis(1)).is_none()));
    });
    drop(guard);
    loop {
        raise(Signal::SIGSTOP).expect("stop");
        let guard = segment.locks[0].lock();
        raise(Signal::SIGSTOP).expect("stop");
        drop(guard);
    }
}

/// `newcomer PATH`: attaches, with a stop before and after.
pub(crate) fn attach(args: &[String]) {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("prctl");
    let segment = Segment::<Board>::open(&args[0]).expect("open");
    ptrace::traceme().expect("as for the stepper");
    loop {
        raise(Signal::SIGSTOP).expect("stop");
        segment.attach().expect("attach");
    }
}

/// A process that is stepped through an operation. It stands still unless it is
/// told to move.
pub(crate) struct Stepper {
    pub(crate) process: Process,
    pub(crate) participant: Participant,
}

impl Stepper {
    /// A stepper in front of its first `lock`; `None`, with a note, where
    /// there is no tracing.
    fn new(scene: &Scene) -> Option<Self> {
        Self::in_role(scene, "stepper")
    }

    /// The same with other operations.
    pub(crate) fn in_role(scene: &Scene, role: &str) -> Option<Self> {
        let process = Process::spawn(role, &[scene.path.to_str().expect("printable")]);
        let stopped = wait(&process);
        if !cfg!(target_arch = "x86_64") || !stopped {
            println!("no ptrace: nothing is tested here");
            return None;
        }
        scene.watch(&process);
        ptrace::setoptions(process.pid(), ptrace::Options::PTRACE_O_EXITKILL).expect("ptrace");
        let pid = process.pid().as_raw() as u32;
        let participants = scene.snapshot().participants;
        let view = participants.iter().find(|view| view.alive && view.pid == pid);
        let participant = view.expect("it is attached").participant;
        Some(Self { process, participant })
    }

    /// A process in front of its attach, where there is tracing.
    fn newcomer(scene: &Scene, participant: Participant) -> Self {
        let process = Process::spawn("newcomer", &[scene.path.to_str().expect("printable")]);
        assert!(wait(&process), "the newcomer ended");
        scene.watch(&process);
        ptrace::setoptions(process.pid(), ptrace::Options::PTRACE_O_EXITKILL).expect("ptrace");
        Self { process, participant }
    }

    /// One instruction.
    fn step(&self) {
        ptrace::step(self.process.pid(), None).expect("step");
        assert!(wait(&self.process), "the stepper ended");
    }

    fn steps(&self, scene: &Scene, count: u32) {
        (0..count).for_each(|_| self.step());
        scene.progress();
    }

    /// Instruction by instruction until `reached`; returns their number.
    #[track_caller]
    pub(crate) fn until(
        &self,
        scene: &Scene,
        what: &str,
        mut reached: impl FnMut() -> bool,
    ) -> u32 {
        for steps in 0..FAR {
            if reached() {
                scene.progress();
                return steps;
            }
            if steps % 1000 == 0 {
                scene.progress();
            }
            self.step();
        }
        panic!("{FAR} instructions, and not yet: {what}");
    }

    /// To its next stop, in front of an operation.
    pub(crate) fn go_on(&self) {
        self.set_going();
        assert!(wait(&self.process), "the stepper ended");
    }

    /// Sets it free, to go on by itself to its next stop.
    pub(crate) fn set_going(&self) {
        ptrace::cont(self.process.pid(), None).expect("continue");
    }

    fn owns(&self, scene: &Scene) -> bool {
        scene.owner(0) == Some(self.participant)
    }

    pub(crate) fn kill(self, scene: &Scene) -> u32 {
        let pid = self.process.pid().as_raw() as u32;
        scene.unwatch(&self.process);
        drop(self);
        pid
    }
}

/// Waits until a traced process stops; `false` if it has ended instead, which
/// is then still to be reaped.
fn wait(process: &Process) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
    let status = waitid(Id::Pid(process.pid()), flags).expect("wait for a stop");
    if matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)) {
        return false;
    }
    waitpid(process.pid(), None).expect("take note of a stop");
    true
}

/// A stepper that owns lock 0 and is about to execute the instruction that
/// releases it: past its look at the queue.
fn about_to_release(scene: &Scene) -> Option<Stepper> {
    let stepper = Stepper::new(scene)?;
    // The first times may take other ways, through what is set up only once.
    for _ in 0..4 {
        stepper.go_on();
        stepper.go_on();
    }
    stepper.go_on();
    let count = stepper.until(scene, "it releases", || scene.owner(0).is_none());
    stepper.go_on();
    stepper.go_on();
    stepper.steps(scene, count - 1);
    assert!(stepper.owns(scene));
    Some(stepper)
}

/// A stepper that has just released lock 0 and not yet looked at the queue a
/// second time, and a waiter that queued after it had looked the first time.
fn released_past_a_waiter(scene: &Scene) -> Option<(Stepper, Puppet)> {
    let stepper = about_to_release(scene)?;
    let mut waiter = scene.puppet();
    scene.park(&mut waiter, "lock 0");
    stepper.step();
    assert_eq!(scene.owner(0), None, "released");
    assert_eq!(heirlock::queue(&scene.segment.locks[0]), Some(vec![waiter.participant]));
    Some((stepper, waiter))
}

fn late_waiter() {
    let scene = Scene::new();
    let Some((stepper, mut waiter)) = released_past_a_waiter(&scene) else { return };
    stepper.set_going();
    assert_eq!(waiter.got(), Got::Lock);
}

fn dead_releaser() {
    let scene = Scene::new();
    let Some((stepper, mut waiter)) = released_past_a_waiter(&scene) else { return };
    stepper.kill(&scene);
    assert_eq!(waiter.got(), Got::Lock, "who has released is no owner any more");
}

fn no_barging() {
    let scene = Scene::new();
    let Some((stepper, mut waiter)) = released_past_a_waiter(&scene) else { return };
    let mut newcomer = scene.puppet();
    assert_eq!(newcomer.try_lock(0), Got::Nothing, "overtaken");
    assert_eq!(newcomer.try_lock_for(0, Duration::from_millis(5)), Got::Nothing, "overtaken");
    stepper.set_going();
    assert_eq!(waiter.got(), Got::Lock);
}

/// The waiter watches the former owner, which has released but got no further.
/// The new owner saw no queue when it looked; it must have the waiter watch
/// itself, for it dies.
fn barger_is_watched() {
    let scene = Scene::new();
    let Some(barger) = Stepper::new(&scene) else { return };
    for _ in 0..4 {
        barger.go_on();
        barger.go_on();
    }
    let count = barger.until(&scene, "it locks", || scene.owner(0).is_some());
    barger.go_on();
    barger.go_on();
    let Some(former) = about_to_release(&scene) else { return };
    barger.steps(&scene, count - 1);
    let mut waiter = scene.puppet();
    scene.park(&mut waiter, "lock 0");
    former.step();
    assert_eq!(scene.owner(0), None, "released");
    barger.step();
    assert!(barger.owns(&scene), "acquired");
    barger.go_on();
    let pid = barger.kill(&scene);
    let got = waiter.got();
    assert!(matches!(got, Got::Inherited { pid: dead, .. } if dead == pid), "{got:?}");
}

/// The waiter sleeps, and watches an owner that has left the lock free and got no
/// further. Another one took the lock past the waiter, found that this had waited
/// for too long, and handed the lock over; it is killed before it could say so.
/// Nobody but the dead one can have told the waiter.
fn served_past_a_barger() {
    let scene = Scene::with_policy(Policy::Throughput);
    let Some(former) = Stepper::new(&scene) else { return };
    let Some(barger) = Stepper::new(&scene) else { return };
    former.go_on();
    assert!(former.owns(&scene));
    let mut waiter = scene.sound_sleeper();
    scene.park(&mut waiter, "lock 0");
    // Where it looks by itself every now and then it must not yet.
    let keep_asleep = !cfg!(heirlock_faults);
    if keep_asleep {
        waiter.process.stop();
    }
    former.until(&scene, "it releases", || scene.owner(0).is_none());
    std::thread::sleep(Duration::from_millis(2));
    barger.until(&scene, "it barges", || barger.owns(&scene));
    let served = Some(waiter.participant);
    barger.until(&scene, "it hands over", || scene.owner(0) == served);
    let queue = || heirlock::queue(&scene.segment.locks[0]);
    barger.until(&scene, "it takes the new owner out of the queue", || queue() == Some(vec![]));
    barger.kill(&scene);
    if keep_asleep {
        waiter.process.resume();
    }
    assert_eq!(waiter.got(), Got::Lock);
}

/// A stepper that unlocks and has just become the editor of the queue.
fn editor(scene: &Scene, waits: &str) -> Option<(Stepper, Puppet)> {
    let stepper = Stepper::new(scene)?;
    stepper.go_on();
    let mut waiter = scene.puppet();
    scene.park(&mut waiter, waits);
    stepper.until(scene, "it edits", || scene.editor(0) == stepper.participant.row());
    Some((stepper, waiter))
}

fn dead_editor() {
    let scene = Scene::new();
    let Some((stepper, mut waiter)) = editor(&scene, "lock 0") else { return };
    let pid = stepper.kill(&scene);
    let got = waiter.got();
    assert!(matches!(got, Got::Inherited { pid: dead, .. } if dead == pid), "{got:?}");
}

/// The lock was left free before the queue was edited: nobody inherits. The waiter
/// may have found that out by itself; but who gives up must edit.
fn dead_editor_with_policy() {
    let scene = Scene::with_policy(Policy::Throughput);
    let Some((stepper, mut waiter)) = editor(&scene, "lock 0") else { return };
    stepper.kill(&scene);
    assert_eq!(waiter.got(), Got::Lock);
    assert_eq!(scene.puppet().try_lock_for(0, Duration::from_millis(5)), Got::Nothing);
    assert_eq!(scene.editor(0), 0);
    assert_eq!(scene.segment.locks[0].policy(), Policy::Throughput);
}

/// The waiter gives up, for which it needs the guard, for which it sleeps.
fn slow_editor() {
    let scene = Scene::new();
    let Some((stepper, mut waiter)) = editor(&scene, "timed 0 1000000") else { return };
    until("the waiter sleeps for the guard", || {
        scene.wait_state(&waiter) == Some("waiting") && is_asleep(waiter.process.pid())
    });
    stepper.set_going();
    assert_eq!(waiter.got(), Got::Lock, "served in the last moment");
}

/// Leaves lock 0 to a dead owner, who was the editor of the queue, in which
/// there is a dead waiter. Returns who uses the dead editor's row next.
fn leave_to_the_dead(scene: &Scene) -> Participant {
    let editor = Stepper::new(scene).expect("tracing, as before");
    editor.go_on();
    let mut waiter = scene.puppet();
    scene.park(&mut waiter, "lock 0");
    scene.kill(waiter);
    let dead = editor.participant;
    editor.until(scene, "it edits", || scene.editor(0) == dead.row());
    editor.kill(scene);
    // The generation is above the 20 lowest bits.
    Participant::from_bits(dead.to_bits() + (1 << 20)).expect("the next generation")
}

/// A thread saw that the editor was dead, and is about to take the guard over.
/// Before it does, another attaches, gets the dead editor's row, and so its
/// guard, to clear up after it. The first must not succeed now: the two would
/// edit the queue at once.
///
/// When the guard's word was no more than a row, it was the same for both.
fn two_editors() {
    let scene = Scene::new();
    let Some(first) = Stepper::new(&scene) else { return };
    let row = first.participant.row();

    // How far is it to the take-over? The first times may take other ways.
    let mut count = 0;
    for _ in 0..2 {
        leave_to_the_dead(&scene);
        count = first.until(&scene, "it takes the guard over", || scene.editor(0) == row);
        first.go_on();
        assert!(first.owns(&scene));
        first.go_on();
    }
    // And from a newcomer's first sign of life to the end of its edit?
    let next = leave_to_the_dead(&scene);
    first.steps(&scene, count - 1);
    let trial = Stepper::newcomer(&scene, next);
    trial.until(&scene, "it lives", || is_alive(&scene.segment, next));
    let edited = trial.until(&scene, "it has edited", || scene.editor(0) == 0);
    trial.kill(&scene);
    first.go_on();
    assert!(first.owns(&scene));
    first.go_on();

    let next = leave_to_the_dead(&scene);
    first.steps(&scene, count - 1);
    let second = Stepper::newcomer(&scene, next);
    second.until(&scene, "it lives", || is_alive(&scene.segment, next));
    second.steps(&scene, edited - 1);
    assert_eq!(scene.editor(0), next.row(), "the second edits");
    first.step();
    assert_eq!(scene.editor(0), next.row(), "the first edits as well");
    second.go_on();
    assert_eq!(scene.editor(0), 0, "the second has edited");
    first.go_on();
    assert!(first.owns(&scene));
}
