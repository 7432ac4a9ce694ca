//! Condition variables: one death, or one missing wake, in the place where it shows.

use crate::kit::{Board, Got, Puppet, Test};
use crate::scene::{Scene, until};
use crate::stepped::Stepper;
use heirlock::{Policy, Segment, WaitView, statistics, waiters};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};

pub(crate) const TESTS: &[Test] = &[
    ("a_notified_waiter_takes_a_free_lock", takes_a_free_lock),
    ("who_notifies_in_the_moment_of_the_release_finds_the_waiter", late_notifier),
    ("a_woken_waiter_waits_for_who_woke_it", slow_notifier),
    ("what_a_dead_notifier_began_is_finished", dead_notifier),
    ("what_a_dead_notifier_of_all_began_is_finished", dead_notifier_of_all),
    ("the_notification_of_a_dead_waiter_passes_to_the_next", dead_waiter),
    ("the_notifications_of_dead_waiters_pass_on_in_whichever_order_they_die", dead_waiters),
    ("who_comes_to_stand_behind_another_one_looks_whom_it_waits_for", interloper),
    ("who_moved_up_as_another_gave_up_watches_the_one_in_front", moved_up),
    ("who_is_moved_to_the_queue_of_a_throughput_lock_looks_there", throughput),
    ("who_dies_with_the_lock_before_its_wait_returned_passes_its_notification_on", dead_owner),
    ("a_row_is_reused_only_after_its_dead_user_left_both_queues", reused_row),
];

/// `notifier PATH`: notifies one waiter, with a stop before; then all, and so on.
pub(crate) fn notify(args: &[String]) {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("prctl");
    if ptrace::traceme().is_err() {
        return;
    }
    let segment = Segment::<Board>::open(&args[0]).expect("open");
    segment.attach().expect("attach");
    loop {
        raise(Signal::SIGSTOP).expect("stop");
        segment.condvars[0].notify_one();
        raise(Signal::SIGSTOP).expect("stop");
        segment.condvars[0].notify_all();
    }
}

/// `waiter PATH`: takes lock 0, stops, and waits.
pub(crate) fn wait(args: &[String]) {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("prctl");
    if ptrace::traceme().is_err() {
        return;
    }
    let segment = Segment::<Board>::open(&args[0]).expect("open");
    loop {
        let mut guard = segment.locks[0].lock();
        raise(Signal::SIGSTOP).expect("stop");
        segment.condvars[0].wait(&mut guard);
        raise(Signal::SIGSTOP).expect("stop");
    }
}

/// A puppet that waits, asleep.
fn waiter(scene: &Scene) -> Puppet {
    let mut waiter = scene.sound_sleeper();
    assert_eq!(waiter.lock(0), Got::Lock);
    waiter.wait(&scene.segment, 0, 0, "");
    scene.until_parked(&waiter);
    waiter
}

/// What a participant is busy with.
fn busy(scene: &Scene, row: u32) -> Option<WaitView> {
    scene.snapshot().participant(row)?.busy_with.clone()
}

fn is_notified(scene: &Scene, puppet: &Puppet) -> bool {
    busy(scene, puppet.participant.row()).is_some_and(|wait| wait.notified)
}

fn takes_a_free_lock() {
    let scene = Scene::new();
    let mut waiter = waiter(&scene);
    assert!(scene.segment.condvars[0].notify_one());
    assert_eq!(waiter.got(), Got::Lock);
}

/// A waiter that has just released the lock: whoever notifies finds it.
fn late_notifier() {
    let scene = Scene::new();
    let Some(waiter) = Stepper::in_role(&scene, "waiter") else { return };
    waiter.until(&scene, "it releases", || scene.owner(0).is_none());
    let mut notifier = scene.puppet();
    notifier.start("notify-one 0");
    // It has to wait for the waiter, or has found nobody.
    until("the notifier has come to its end, or sleeps", || {
        crate::scene::is_asleep(notifier.process.pid())
    });
    waiter.set_going();
    assert_eq!(notifier.answer(), "true", "nobody was there to be notified");
    until("the waiter has the lock", || scene.owner(0) == Some(waiter.participant));
}

/// A notifier that has woken the waiter, and no more.
fn woken(scene: &Scene, waiter: &Puppet) -> Option<Stepper> {
    let notifier = Stepper::in_role(scene, "notifier")?;
    let row = waiter.participant.row();
    let state = || busy(scene, row).map(|wait| wait.state);
    notifier.until(scene, "it wakes the waiter", || state() != Some("parked"));
    Some(notifier)
}

/// The waiter was woken, finds no news yet, and must not go to sleep as if nothing
/// were to come.
fn slow_notifier() {
    let scene = Scene::new();
    let mut waiter = waiter(&scene);
    let Some(notifier) = woken(&scene, &waiter) else { return };
    until("the waiter sleeps again", || crate::scene::is_asleep(waiter.process.pid()));
    assert!(!is_notified(&scene, &waiter));
    notifier.set_going();
    assert_eq!(waiter.got(), Got::Lock);
}

fn dead_notifier() {
    let scene = Scene::new();
    let mut waiter = waiter(&scene);
    let Some(notifier) = woken(&scene, &waiter) else { return };
    notifier.until(&scene, "it notifies", || is_notified(&scene, &waiter));
    notifier.kill(&scene);
    assert_eq!(waiter.got(), Got::Lock);
}

/// Killed when it has notified the first of three.
fn dead_notifier_of_all() {
    let scene = Scene::new();
    let Some(notifier) = Stepper::in_role(&scene, "notifier") else { return };
    notifier.go_on();
    let mut waiters: Vec<Puppet> = (0..3).map(|_| waiter(&scene)).collect();
    notifier.until(&scene, "it notifies", || is_notified(&scene, &waiters[0]));
    assert!(!is_notified(&scene, &waiters[1]));
    notifier.kill(&scene);
    for waiter in &mut waiters {
        assert_eq!(waiter.got(), Got::Lock);
        waiter.unlock(0);
    }
}

/// Killed as it waits for the lock.
fn dead_waiter() {
    let scene = Scene::new();
    let (first, mut second) = (waiter(&scene), waiter(&scene));
    let mut owner = scene.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    assert!(owner.notify_one(0));
    until("the first one waits for the lock", || is_notified(&scene, &first));
    scene.kill(first);
    until("the second one is notified in its stead", || {
        waiters(&scene.segment.condvars[0]).is_some_and(|waiters| waiters.is_empty())
    });
    owner.unlock(0);
    assert_eq!(second.got(), Got::Lock);
}

/// Of five waiters three are notified, and killed in some order, or some of them. The
/// head of the others watches the last one only; of the others it is told.
fn dead_waiters() {
    const CASES: &[&[usize]] = &[&[0], &[1], &[2], &[0, 1], &[1, 2], &[2, 0], &[2, 1, 0]];
    for killed in CASES {
        let scene = Scene::new();
        let mut all: Vec<_> = (0..5).map(|_| Some(waiter(&scene))).collect();
        let mut owner = scene.puppet();
        assert_eq!(owner.lock(0), Got::Lock);
        (0..3).for_each(|_| assert!(owner.notify_one(0)));
        for victim in *killed {
            scene.kill(all[*victim].take().expect("killed once"));
        }
        owner.unlock(0);
        // As many as were notified return.
        let mut alive = all.iter_mut().flatten();
        for other in alive.by_ref().take(3.min(5 - killed.len())) {
            assert_eq!(other.got(), Got::Lock);
            other.unlock(0);
        }
    }
}

fn sleeps(scene: &Scene, puppet: &Puppet) -> u64 {
    statistics(&scene.segment, puppet.participant).expect("it is there").sleeps
}

/// Between the moves of the first and the second of two who are all notified, another one
/// queues for the lock.
fn interloper() {
    let scene = Scene::new();
    let Some(notifier) = Stepper::in_role(&scene, "notifier") else { return };
    notifier.go_on();
    let (mut first, mut second) = (waiter(&scene), waiter(&scene));
    let (mut owner, mut other) = (scene.puppet(), scene.sound_sleeper());
    assert_eq!(owner.lock(0), Got::Lock);
    let queue = || heirlock::queue(&scene.segment.locks[0]).unwrap_or_default();
    let before = sleeps(&scene, &second);
    notifier.until(&scene, "it moves the first one", || queue() == [first.participant]);
    scene.park(&mut other, "lock 0");
    notifier.set_going();
    let order = [&first, &other, &second].map(|puppet| puppet.participant);
    until("the second one is moved", || queue() == order);
    until("it has looked", || sleeps(&scene, &second) > before);
    // Whom it watches is no longer the one that was in front of it.
    other.process.stop();
    owner.unlock(0);
    assert_eq!(first.got(), Got::Lock);
    first.unlock(0);
    assert_eq!(scene.owner(0), Some(other.participant));
    let pid = other.pid();
    scene.kill(other);
    let got = second.got();
    assert!(matches!(got, Got::Inherited { pid: dead, .. } if dead == pid), "{got:?}");
}

/// Whoever is behind one that gives up watches another one from then on, and sleeps on
/// when both are moved.
fn moved_up() {
    let scene = Scene::new();
    let first = waiter(&scene);
    let mut gives_up = scene.puppet();
    assert_eq!(gives_up.lock(0), Got::Lock);
    gives_up.wait(&scene.segment, 0, 0, "for 300000");
    let mut last = waiter(&scene);
    assert_eq!(gives_up.got(), Got::Nothing);
    gives_up.unlock(0);
    let mut owner = scene.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    first.process.stop();
    assert_eq!(owner.notify_all(0), 2);
    owner.unlock(0);
    assert_eq!(scene.owner(0), Some(first.participant));
    let pid = first.pid();
    scene.kill(first);
    let got = last.got();
    assert!(matches!(got, Got::Inherited { pid: dead, .. } if dead == pid), "{got:?}");
}

/// How long a waiter sleeps at most depends on the lock's policy. So each has to fall
/// asleep anew, also those that watch whom they have to watch.
fn throughput() {
    let scene = Scene::with_policy(Policy::Throughput);
    let mut waiters: Vec<Puppet> = (0..3).map(|_| waiter(&scene)).collect();
    let mut owner = scene.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    let before: Vec<_> = waiters.iter().map(|waiter| sleeps(&scene, waiter)).collect();
    assert_eq!(owner.notify_all(0), 3);
    for (waiter, before) in waiters.iter().zip(before) {
        until("each sleeps anew", || sleeps(&scene, waiter) > before);
    }
    owner.unlock(0);
    for waiter in &mut waiters {
        assert_eq!(waiter.got(), Got::Lock);
        waiter.unlock(0);
    }
}

/// The first of three was notified, and then the second, whom the third one watches. The
/// first is killed when it has been served, and has not looked yet: of that only who
/// inherits the lock learns, and no longer as of a waiter.
fn dead_owner() {
    let scene = Scene::new();
    let (first, mut second, mut third) = (waiter(&scene), waiter(&scene), waiter(&scene));
    let mut owner = scene.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    first.process.stop();
    assert!(owner.notify_one(0) && owner.notify_one(0));
    owner.unlock(0);
    assert_eq!(scene.owner(0), Some(first.participant));
    let pid = first.pid();
    scene.kill(first);
    let got = second.got();
    assert!(matches!(got, Got::Inherited { pid: dead, .. } if dead == pid), "{got:?}");
    until("the third one is notified", || is_notified(&scene, &third));
    second.unlock(0);
    assert_eq!(third.got(), Got::Lock);
}

/// The row of one that was notified and killed gets a new user, who has to leave the
/// lock's queue in its stead, and to pass its notification on.
fn reused_row() {
    let scene = Scene::new();
    let (first, mut second) = (waiter(&scene), waiter(&scene));
    // The second one is not to look before the row is another one's.
    second.process.stop();
    let mut owner = scene.puppet();
    assert_eq!(owner.lock(0), Got::Lock);
    assert!(owner.notify_one(0));
    let row = first.participant.row();
    scene.kill(first);
    let reused = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..60).map(|_| scope.spawn(|| scene.segment.attach().map(|me| me.row()))).collect();
        threads.into_iter().any(|thread| thread.join().expect("join").is_ok_and(|it| it == row))
    });
    assert!(reused, "nobody got row {row}");
    assert_eq!(heirlock::queue(&scene.segment.locks[0]), Some(vec![second.participant]));
    second.process.resume();
    owner.unlock(0);
    assert_eq!(second.got(), Got::Lock);
}
