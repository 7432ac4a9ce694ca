//! Futures of several processes.

use crate::clerk::{Clerk, Scene};
use crate::kit::Test;
use heirlock::MutexGuard;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("futures_and_threads_are_served_in_the_order_in_which_they_queued", || {
        in_order(&Scene::new());
    }),
    ("a_future_inherits_and_is_told_once", || future_inherits(&Scene::new())),
    ("who_inherits_from_a_future_is_told_once", || inherited_from_future(&Scene::new())),
    ("futures_of_a_killed_process_are_stepped_over", || stepped_over(&Scene::new())),
    ("a_future_of_another_process_ends_in_time_or_is_cancelled", || limits(&Scene::new())),
];

/// What holds in every sandbox as well.
pub(crate) const CORE: &[fn(&Scene)] =
    &[in_order, future_inherits, inherited_from_future, stepped_over, limits];

fn in_order(scene: &Scene) {
    let held = scene.lock(0).lock();
    let mut clerks = [(); 6].map(|()| scene.clerk());
    for (at, clerk) in clerks.iter_mut().enumerate() {
        clerk.queue(scene, ["future", "lock"][at % 2], &[0], at + 1);
    }
    let order = scene.queue(0);
    drop(held);
    for (at, clerk) in clerks.iter_mut().enumerate() {
        assert_eq!(clerk.answer(), "0 locked");
        assert_eq!(heirlock::owner(scene.lock(0)), Some(order[at]));
        assert_eq!(scene.queue(0), order[at + 1..]);
        assert!(scene.lock(0).try_lock().is_none());
        clerk.unlock();
    }
    assert!(!scene.lock(0).is_locked());
}

fn future_inherits(scene: &Scene) {
    let [mut owner, mut heir, mut next] = [(); 3].map(|()| scene.clerk());
    assert_eq!(owner.tell("lock 0"), "0 locked");
    heir.queue(scene, "future", &[0], 1);
    next.queue(scene, "future", &[0], 2);
    told_once(scene, &mut owner, &mut heir, &mut next);
}

fn inherited_from_future(scene: &Scene) {
    let [mut owner, mut heir, mut next] = [(); 3].map(|()| scene.clerk());
    assert_eq!(owner.tell("future 0"), "0 locked");
    heir.queue(scene, "lock", &[0], 1);
    next.queue(scene, "lock", &[0], 2);
    told_once(scene, &mut owner, &mut heir, &mut next);
}

fn told_once(scene: &Scene, owner: &mut Clerk, heir: &mut Clerk, next: &mut Clerk) {
    owner.process.kill();
    assert_eq!(heir.answer(), Clerk::inherits(0, owner));
    heir.unlock();
    assert_eq!(next.answer(), "0 locked");
    next.unlock();
    assert!(MutexGuard::inherited(&scene.lock(0).lock()).is_none());
}

/// Head, middle and tail, as the owner lives and as it dies, too.
fn stepped_over(scene: &Scene) {
    for owner_dies in [false, true] {
        let [mut owner, mut one, mut two] = [(); 3].map(|()| scene.clerk());
        assert_eq!(owner.tell("future 0"), "0 locked");
        let elsewhere = scene.lock(1).lock();
        let mut dead = [(); 3].map(|()| scene.clerk());
        dead[0].queue(scene, "future", &[0], 1);
        one.queue(scene, "future", &[0], 2);
        dead[1].start("any-async 1 0");
        scene.until_queued(0, 3);
        two.queue(scene, "lock", &[0], 4);
        dead[2].queue(scene, "future", &[0], 5);
        dead.iter_mut().for_each(|dead| dead.process.kill());
        drop(elsewhere);
        let first = if owner_dies {
            owner.process.kill();
            Clerk::inherits(0, &owner)
        } else {
            owner.unlock();
            "0 locked".into()
        };
        assert_eq!(one.answer(), first);
        one.unlock();
        assert_eq!(two.answer(), "0 locked");
        two.unlock();
        assert!(MutexGuard::inherited(&scene.lock(0).lock()).is_none());
    }
}

fn limits(scene: &Scene) {
    let held = scene.lock(0).lock();
    let [mut first, mut second] = [(); 2].map(|()| scene.clerk());
    let start = Instant::now();
    assert_eq!(first.tell("future/60 0"), "timed out");
    assert!(start.elapsed() >= Duration::from_millis(60));
    assert_eq!(scene.queue(0), []);
    first.queue(scene, "future/token", &[0], 1);
    second.queue(scene, "future", &[0], 2);
    let order = scene.queue(0);
    scene.segment.token.canceller().cancel();
    assert_eq!(first.answer(), "cancelled");
    assert_eq!(scene.queue(0), order[1..]);
    assert_eq!(first.tell("future/token 1"), "cancelled");
    scene.segment.token.reset();
    drop(held);
    assert_eq!(second.answer(), "0 locked");
    second.unlock();
}
