//! One death, or one missing wake, in the place where it shows.

use crate::kit::{Got, Process, Puppet, Test};
use crate::scene::{Scene, is_asleep, until};
use heirlock::Policy;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("a_handed_over_lock_wakes_its_new_owner", hand_over_wakes),
    ("waiters_are_served_in_the_order_in_which_they_queued", served_in_order),
    ("a_waiter_does_not_take_the_lock_from_a_living_owner", owner_keeps),
    ("nobody_takes_a_lock_past_who_has_waited_for_a_millisecond", patience),
    ("an_heir_is_told_and_nobody_after_it", told_once),
    ("every_watcher_of_a_dead_owner_of_many_locks_is_told", every_watcher),
    ("a_watcher_killed_with_the_wake_in_hand_passes_it_on", wake_in_hand),
    ("who_moves_up_as_another_gives_up_notices_the_owners_death", moved_up),
    ("a_cancelled_waiter_is_woken", cancelled),
    ("a_waiter_that_polls_notices_the_owners_death", polled),
    ("a_row_is_reused_only_after_its_dead_user_left_the_queue", reused_waiter),
    ("the_next_user_of_a_dead_owners_row_does_not_own_its_lock", reused_owner),
    ("an_unparked_thread_is_woken", unparked),
    ("who_reuses_a_dead_threads_row_gets_no_token_of_its", unparked_too_late),
];

fn inherited_from(dead: u32) -> impl Fn(&Got) -> bool {
    move |got| matches!(got, Got::Inherited { pid, .. } if *pid == dead)
}

fn hand_over_wakes() {
    let scene = Scene::new();
    let (mut owner, mut waiter) = (scene.puppet(), scene.puppet());
    assert_eq!(owner.lock(0), Got::Lock);
    scene.park(&mut waiter, "lock 0");
    owner.unlock(0);
    assert_eq!(waiter.got(), Got::Lock);
}

/// By another process than its own, so that nothing but the wake ends its sleep.
fn cancelled() {
    let scene = Scene::new();
    let (mut owner, mut waiter) = (scene.puppet(), scene.puppet());
    assert_eq!(owner.lock(0), Got::Lock);
    scene.park(&mut waiter, "cancellable 0 0");
    scene.segment.tokens[0].canceller().cancel();
    assert_eq!(waiter.got(), Got::Cancelled);
    owner.unlock(0);
}

/// An interruptible waiter sleeps on its own word alone.
fn polled() {
    let scene = Scene::new();
    let (mut owner, mut waiter) = (scene.puppet(), scene.puppet());
    assert_eq!(owner.lock(0), Got::Lock);
    scene.park(&mut waiter, "interruptible 0");
    let dead = owner.pid();
    scene.kill(owner);
    let got = waiter.got();
    assert!(inherited_from(dead)(&got), "{got:?}");
}

fn served_in_order() {
    let scene = Scene::new();
    let mut owner = scene.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    let mut waiters: Vec<Puppet> = (0..3).map(|_| scene.puppet()).collect();
    for waiter in &mut waiters {
        scene.park(waiter, "lock 0");
    }
    owner.unlock(0);
    for waiter in &mut waiters {
        until("somebody has the lock", || scene.owner(0).is_some());
        assert_eq!(scene.owner(0), Some(waiter.participant), "out of order");
        assert_eq!(waiter.got(), Got::Lock);
        waiter.unlock(0);
    }
}

fn owner_keeps() {
    let scene = Scene::new();
    let (mut owner, mut waiter) = (scene.puppet(), scene.puppet());
    assert_eq!(owner.lock(0), Got::Lock);
    assert_eq!(waiter.try_lock_for(0, Duration::from_millis(20)), Got::Nothing);
    assert_eq!(scene.owner(0), Some(owner.participant));
    owner.unlock(0);
}

/// The waiter does not run, so the lock is there to be taken past it.
fn patience() {
    let scene = Scene::with_policy(Policy::Throughput);
    let (mut owner, mut waiter) = (scene.puppet(), scene.puppet());
    assert_eq!(owner.lock(0), Got::Lock);
    scene.park(&mut waiter, "lock 0");
    waiter.process.stop();
    std::thread::sleep(Duration::from_millis(2));
    owner.unlock(0);
    assert_eq!(owner.try_lock(0), Got::Nothing, "passed by");
    assert_eq!(scene.owner(0), Some(waiter.participant), "handed over");
    waiter.process.resume();
    assert_eq!(waiter.got(), Got::Lock);
}

fn told_once() {
    let scene = Scene::new();
    let (mut owner, mut heir, mut next) = (scene.puppet(), scene.puppet(), scene.puppet());
    assert_eq!(owner.lock(0), Got::Lock);
    scene.park(&mut heir, "lock 0");
    scene.park(&mut next, "lock 0");
    let pid = owner.pid();
    scene.kill(owner);
    let got = heir.got();
    assert!(inherited_from(pid)(&got), "the heir was not told: {got:?}");
    heir.unlock(0);
    assert_eq!(next.got(), Got::Lock, "told again");
    next.unlock(0);
    // Without a queue as well.
    let pid = next.pid();
    assert_eq!(next.lock(0), Got::Lock);
    scene.kill(next);
    let got = heir.try_lock(0);
    assert!(inherited_from(pid)(&got), "the heir was not told: {got:?}");
    heir.unlock(0);
    assert_eq!(heir.lock(0), Got::Lock, "told again");
}

/// The kernel wakes one of those who watch a dead thread. Here eight heads
/// watch the owner of their eight locks.
fn every_watcher() {
    let scene = Scene::new();
    let mut owner = scene.puppet();
    let mut heads: Vec<Puppet> = (0..8).map(|_| scene.puppet()).collect();
    for (lock, head) in heads.iter_mut().enumerate() {
        assert_eq!(owner.lock(lock), Got::Lock);
        scene.park(head, &format!("lock {lock}"));
    }
    let pid = owner.pid();
    scene.kill(owner);
    for head in &mut heads {
        let got = head.got();
        assert!(inherited_from(pid)(&got), "{got:?}");
    }
}

/// Two heads watch the owner of their two locks. The kernel wakes the first,
/// which is killed before it gets a CPU: it must not take the wake with it.
fn wake_in_hand() {
    for _ in 0..8 {
        let scene = Scene::new();
        let (mut owner, mut first, mut second) = (scene.puppet(), scene.puppet(), scene.puppet());
        for lock in [0, 1] {
            assert_eq!(owner.lock(lock), Got::Lock);
        }
        scene.park(&mut first, "lock 0");
        scene.park(&mut second, "lock 1");
        let mut hog = Process::spawn("hog", &[]);
        starve(&first.process, &hog);
        let pid = owner.pid();
        scene.kill(owner);
        scene.kill(first);
        hog.kill();
        let got = second.got();
        assert!(inherited_from(pid)(&got), "{got:?}");
    }
}

/// Lets a process run only when another has nothing to do, which always has.
pub(crate) fn starve(victim: &Process, hog: &Process) {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("the affinity");
    let cpu = (0..CpuSet::count()).rfind(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(cpu.expect("a CPU")).expect("a CPU in range");
    for process in [victim, hog] {
        sched_setaffinity(process.pid(), &one).expect("pin a child");
    }
    make_idle(victim.pid());
    until("the hog runs", || !is_asleep(hog.pid()));
}

#[allow(unsafe_code)]
fn make_idle(pid: Pid) {
    // SAFETY: `sched_param` is plain integers, for which zero is a value.
    let param: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the call reads one `sched_param` behind the pointer, which is a
    // local's.
    let failed =
        unsafe { libc::sched_setscheduler(pid.as_raw(), libc::SCHED_IDLE, &raw const param) };
    assert_eq!(failed, 0, "SCHED_IDLE: {}", std::io::Error::last_os_error());
}

/// Keeps a CPU busy.
pub(crate) fn hog(_: &[String]) {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("prctl");
    loop {
        std::hint::spin_loop();
    }
}

/// The second in line watches the first; when that one gives up, nobody but it
/// can tell the second to watch the owner.
fn moved_up() {
    let scene = Scene::new();
    let (mut owner, mut first, mut second) = (scene.puppet(), scene.puppet(), scene.puppet());
    assert_eq!(owner.lock(0), Got::Lock);
    scene.park(&mut first, "timed 0 300000");
    scene.park(&mut second, "lock 0");
    assert_eq!(first.got(), Got::Nothing);
    let pid = owner.pid();
    scene.kill(owner);
    let got = second.got();
    assert!(inherited_from(pid)(&got), "{got:?}");
}

fn reused_waiter() {
    let scene = Scene::new();
    let (mut owner, mut dead) = (scene.puppet(), scene.puppet());
    assert_eq!(owner.lock(0), Got::Lock);
    scene.park(&mut dead, "lock 0");
    let row = dead.participant.row();
    scene.kill(dead);
    let mut next = scene.puppet();
    assert_eq!(next.participant.row(), row);
    assert_eq!(heirlock::queue(&scene.segment.locks[0]), Some(vec![]));
    scene.park(&mut next, "lock 0");
    owner.unlock(0);
    assert_eq!(next.got(), Got::Lock);
}

fn reused_owner() {
    let scene = Scene::new();
    let mut dead = scene.puppet();
    assert_eq!(dead.lock(0), Got::Lock);
    let (row, pid) = (dead.participant.row(), dead.pid());
    scene.kill(dead);
    let mut next = scene.puppet();
    assert_eq!(next.participant.row(), row);
    assert_ne!(scene.owner(0), Some(next.participant), "it owns what it never asked for");
    let got = next.lock(0);
    assert!(inherited_from(pid)(&got), "{got:?}");
}

fn unparked() {
    let scene = Scene::new();
    let (mut parked, mut other) = (scene.puppet(), scene.puppet());
    parked.start("park");
    until("a puppet sleeps", || {
        let seen = heirlock::statistics(&scene.segment, parked.participant);
        seen.is_some_and(|seen| seen.sleeps > 0) && is_asleep(parked.process.pid())
    });
    assert_eq!(other.tell(&format!("unpark {}", parked.participant.to_bits())), "true");
    assert_eq!(parked.answer(), "unparked");
}

fn unparked_too_late() {
    let scene = Scene::new();
    let dead = scene.puppet();
    let thread = dead.participant;
    scene.kill(dead);
    let mut next = scene.puppet();
    assert_eq!(next.participant.row(), thread.row());
    let unparked = heirlock::thread::Thread::of(&scene.segment, thread).unpark();
    assert_eq!(next.tell("park-for 0"), "nothing", "a token that was meant for the dead");
    assert!(!unparked, "the dead was unparked");
}
