//! The condition variable where processes are killed: no notification is lost to the
//! dead, and the mutex is inherited.

use crate::condvar::{queue, wait, waiters, waiting, who};
use crate::kit::{Got, Puppet, Stage, Test, board_of, until};
use heirlock::Policy;
use std::thread;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("killed_waiters_are_not_notified_and_the_others_keep_their_order", || {
        killed_waiters(&Stage::new(), KILLED);
    }),
    ("the_notification_of_a_killed_waiter_goes_to_the_next", || notified(&Stage::new())),
    ("the_notifications_of_many_killed_waiters_go_to_as_many_others", || {
        many_notified(&Stage::new(), NOTIFIED);
    }),
    ("the_notification_of_a_waiter_killed_while_stopped_goes_to_the_next", || {
        stopped(&Stage::new());
    }),
    ("who_is_killed_with_the_lock_has_had_its_notification", || had_it(&Stage::new())),
    ("of_all_who_are_notified_those_killed_leave_nothing_to_others", || all(&Stage::new())),
    ("an_owner_that_dies_after_it_notified_is_inherited_from", || owner_after(&Stage::new())),
    ("an_owner_that_dies_before_it_notifies_leaves_that_to_its_heir", || {
        owner_before(&Stage::new());
    }),
    ("a_wait_that_returns_tells_of_a_dead_owner_once", || told_once(&Stage::new())),
    ("deaths_with_a_throughput_lock_lose_no_notification", throughput),
    ("a_row_of_a_killed_waiter_is_used_again", row_of_a_waiter),
    ("a_row_of_a_killed_waiter_that_was_notified_is_used_again", row_of_a_notified),
];

/// What holds in every sandbox as well.
pub(crate) const CORE: &[fn(&Stage)] = &[
    |stage| killed_waiters(stage, &KILLED[..3]),
    notified,
    |stage| many_notified(stage, &NOTIFIED[..1]),
    stopped,
    had_it,
    all,
    owner_after,
    owner_before,
    told_once,
];

fn throughput() {
    for core in CORE {
        core(&Stage::with_policy(Policy::Throughput));
    }
}

/// Longer than anybody takes to notice a death that nobody tells him of.
const NOTICED: Duration = Duration::from_millis(1500);

/// The waiter has the lock, and is not told of anybody's death, where deaths are known
/// at once. Where they are not, a dead waiter may have been served before.
#[track_caller]
fn has_it(stage: &Stage, puppet: &mut Puppet) {
    let got = puppet.got();
    let told = matches!(got, Got::Inherited { .. });
    assert!(got == Got::Lock || told && !stage.marks_deaths(), "{got:?}");
    assert_eq!(stage.owner(0), Some(puppet.participant));
}

#[track_caller]
fn inherits(stage: &Stage, puppet: &mut Puppet, dead: u32) {
    let got = puppet.got();
    assert!(matches!(got, Got::Inherited { pid, .. } if pid == dead), "{got:?}, not of {dead}");
    assert_eq!(stage.owner(0), Some(puppet.participant));
}

/// Which of six waiters are killed, in which order.
const KILLED: &[&[usize]] = &[
    &[0],
    &[5],
    &[1, 2, 3],
    &[0, 5, 2],
    &[5, 4, 3, 2, 1],
    &[2],
    &[3, 2, 1],
    &[0, 1],
    &[5, 4],
    &[0, 2, 4],
    &[0, 1, 2, 3, 4],
];

fn killed_waiters(stage: &Stage, cases: &[&[usize]]) {
    let mut notifier = stage.puppet();
    for killed in cases {
        for all in [false, true] {
            let mut puppets: Vec<_> = waiting(stage, 6).into_iter().map(Some).collect();
            for victim in *killed {
                puppets[*victim].take().expect("killed once").kill();
            }
            let mut living: Vec<_> = puppets.into_iter().flatten().collect();
            if all {
                let notified = notifier.notify_all(0);
                assert!(notified == living.len() || !stage.marks_deaths(), "{killed:?}");
                for puppet in &mut living {
                    has_it(stage, puppet);
                    puppet.unlock(0);
                }
            } else {
                for puppet in &mut living {
                    assert!(notifier.notify_one(0), "{killed:?}");
                    has_it(stage, puppet);
                    puppet.unlock(0);
                }
            }
            // Where the dead are not known to be, they may be notified, and so on.
            if stage.marks_deaths() {
                assert!(!notifier.notify_one(0), "{killed:?}");
                assert_eq!(waiters(stage), Some(vec![]));
            } else {
                until("the dead are out", || {
                    notifier.notify_all(0);
                    assert_ne!(notifier.lock(0), Got::Nothing);
                    notifier.unlock(0);
                    waiters(stage) == Some(vec![]) && queue(stage) == Some(vec![])
                });
            }
        }
    }
}

fn notified(stage: &Stage) {
    // While the notifier holds the lock, at once.
    let mut notifier = stage.puppet();
    let mut puppets = waiting(stage, 3).into_iter();
    let (first, mut second, third) =
        (puppets.next().unwrap(), puppets.next().unwrap(), puppets.next().unwrap());
    assert_eq!(notifier.lock(0), Got::Lock);
    assert!(notifier.notify_one(0));
    assert_eq!(queue(stage), who([&first]));
    first.kill();
    until("the notification passes on", || queue(stage) == who([&second]));
    assert_eq!(waiters(stage), who([&third]));
    notifier.unlock(0);
    has_it(stage, &mut second);
    second.unlock(0);
    // And on, to one that begins to wait only after the death of the first.
    wait(stage, &mut second, "");
    assert_eq!(notifier.lock(0), Got::Lock);
    assert!(notifier.notify_one(0));
    assert_eq!(queue(stage), who([&third]));
    third.kill();
    until("the notification passes on", || queue(stage) == who([&second]));
    notifier.unlock(0);
    has_it(stage, &mut second);
    second.unlock(0);
    // If nobody waits any more it is gone, and does not wake who waits next.
    wait(stage, &mut second, "");
    assert_eq!(notifier.lock(0), Got::Lock);
    assert!(notifier.notify_one(0));
    second.kill();
    notifier.unlock(0);
    if stage.marks_deaths() {
        let mut late = stage.puppet();
        assert_eq!(late.lock(0), Got::Lock);
        late.start("wait 0 0 for 100000");
        assert_eq!(late.got(), Got::Nothing);
        late.unlock(0);
    }
}

/// How many of six are notified one by one, and which of these are killed.
const NOTIFIED: &[(usize, &[usize])] =
    &[(2, &[0]), (3, &[0, 1, 2]), (2, &[1]), (2, &[0, 1]), (3, &[1, 0]), (3, &[2, 0])];

fn many_notified(stage: &Stage, cases: &[(usize, &[usize])]) {
    let mut notifier = stage.puppet();
    for (count, killed) in cases {
        let case = format!("{killed:?} of {count}");
        let mut puppets: Vec<_> = waiting(stage, 6).into_iter().map(Some).collect();
        assert_ne!(notifier.lock(0), Got::Nothing);
        for _ in 0..*count {
            assert!(notifier.notify_one(0));
        }
        assert_eq!(queue(stage), who(puppets[..*count].iter().flatten()));
        for victim in *killed {
            puppets[*victim].take().expect("killed once").kill();
        }
        // As many as were killed follow, while the lock is held.
        let mut living: Vec<_> = puppets.into_iter().flatten().collect();
        until("the notifications pass on", || queue(stage) == who(&living[..*count]));
        assert_eq!(waiters(stage), who(&living[*count..]), "{case}");
        thread::sleep(Duration::from_millis(50));
        assert_eq!(waiters(stage), who(&living[*count..]), "{case}");
        notifier.unlock(0);
        let (first, rest) = living.split_at_mut(*count);
        for puppet in first {
            has_it(stage, puppet);
            puppet.unlock(0);
        }
        assert_eq!(waiters(stage), who(&*rest), "{case}");
        assert_eq!(notifier.notify_all(0), rest.len());
        for puppet in rest {
            has_it(stage, puppet);
            puppet.unlock(0);
        }
    }
}

fn stopped(stage: &Stage) {
    let mut notifier = stage.puppet();
    let mut puppets = waiting(stage, 3).into_iter();
    let (first, mut second, third) =
        (puppets.next().unwrap(), puppets.next().unwrap(), puppets.next().unwrap());
    first.process.stop();
    assert_eq!(notifier.lock(0), Got::Lock);
    assert!(notifier.notify_one(0));
    notifier.unlock(0);
    // The lock is its, if the policy is to hand it over, but it does not run.
    assert_eq!(waiters(stage), who([&second, &third]));
    let had_lock = stage.owner(0) == Some(first.participant);
    let dead = first.pid();
    first.kill();
    if had_lock {
        inherits(stage, &mut second, dead);
    } else {
        has_it(stage, &mut second);
    }
    assert_eq!(waiters(stage), who([&third]));
    second.unlock(0);
    thread::sleep(NOTICED);
    assert_eq!(waiters(stage), who([&third]));
}

fn had_it(stage: &Stage) {
    let mut notifier = stage.puppet();
    let mut puppets = waiting(stage, 2).into_iter();
    let (mut first, mut second) = (puppets.next().unwrap(), puppets.next().unwrap());
    assert!(notifier.notify_one(0));
    assert_eq!(first.got(), Got::Lock);
    let dead = first.pid();
    first.kill();
    // It may have done what it was notified for, or not: the heir is told.
    thread::sleep(NOTICED);
    assert_eq!(waiters(stage), who([&second]));
    let mut heir = stage.puppet();
    let got = heir.lock(0);
    assert!(matches!(got, Got::Inherited { pid, .. } if pid == dead), "{got:?}");
    assert!(heir.notify_one(0));
    heir.unlock(0);
    has_it(stage, &mut second);
}

fn all(stage: &Stage) {
    let mut notifier = stage.puppet();
    let mut puppets: Vec<_> = waiting(stage, 4).into_iter().map(Some).collect();
    assert_eq!(notifier.lock(0), Got::Lock);
    assert_eq!(notifier.notify_all(0), 4);
    // One that waits when they have been notified, but not been served.
    let mut late = stage.puppet();
    assert_eq!(notifier.tell("unlock 0"), "ok");
    let mut first = puppets[0].take().expect("it is there");
    assert_eq!(first.got(), Got::Lock);
    late.queue(&stage.segment, 0);
    for at in [1, 3] {
        puppets[at].take().expect("killed once").kill();
    }
    first.unlock(0);
    let mut third = puppets[2].take().expect("it is there");
    has_it(stage, &mut third);
    third.unlock(0);
    has_it(stage, &mut late);
    late.wait(&stage.segment, 0, 0, "");
    thread::sleep(NOTICED);
    assert_eq!(waiters(stage), who([&late]));
    assert!(notifier.notify_one(0));
    has_it(stage, &mut late);
}

fn owner_after(stage: &Stage) {
    for all in [false, true] {
        let mut owner = stage.puppet();
        let mut puppets = waiting(stage, 3);
        assert_eq!(owner.lock(0), Got::Lock);
        if all {
            assert_eq!(owner.notify_all(0), 3);
        } else {
            assert!(owner.notify_one(0) && owner.notify_one(0));
        }
        let dead = owner.pid();
        owner.kill();
        inherits(stage, &mut puppets[0], dead);
        puppets[0].unlock(0);
        assert_eq!(puppets[1].got(), Got::Lock);
        if !all {
            assert_eq!(waiters(stage), who(&puppets[2..]));
            assert!(puppets[0].notify_one(0));
        }
        puppets[1].unlock(0);
        assert_eq!(puppets[2].got(), Got::Lock);
        puppets[2].unlock(0);
    }
}

fn owner_before(stage: &Stage) {
    let mut owner = stage.puppet();
    let mut puppets = waiting(stage, 2);
    assert_eq!(owner.lock(0), Got::Lock);
    let dead = owner.pid();
    owner.kill();
    thread::sleep(NOTICED);
    assert_eq!(waiters(stage), who(&puppets));
    let mut heir = stage.puppet();
    let got = heir.lock(0);
    assert!(matches!(got, Got::Inherited { pid, .. } if pid == dead), "{got:?}");
    assert_eq!(heir.notify_all(0), 2);
    heir.unlock(0);
    for puppet in &mut puppets {
        assert_eq!(puppet.got(), Got::Lock);
        puppet.unlock(0);
    }
}

fn told_once(stage: &Stage) {
    let mut owner = stage.puppet();
    let mut puppet = stage.puppet();
    let mut other = stage.puppet();
    for limit in ["", "for 100000"] {
        assert_ne!(owner.lock(0), Got::Nothing);
        let dead = owner.pid();
        std::mem::replace(&mut owner, stage.puppet()).kill();
        let got = puppet.lock(0);
        assert!(matches!(got, Got::Inherited { pid, .. } if pid == dead), "{got:?}");
        // It released the lock when it began to wait: that is the end of it.
        puppet.wait(&stage.segment, 0, 0, limit);
        assert_eq!(other.lock(0), Got::Lock);
        other.unlock(0);
        if limit.is_empty() {
            assert!(other.notify_one(0));
            assert_eq!(puppet.got(), Got::Lock);
        } else {
            // The next owner dies, and the wait has timed out.
            assert_eq!(other.lock(0), Got::Lock);
            puppet.until_queued(&stage.segment, 0);
            let dead = other.pid();
            std::mem::replace(&mut other, stage.puppet()).kill();
            assert_eq!(puppet.got(), Got::Nothing);
            let inherited = puppet.tell("inherited 0");
            assert!(inherited.starts_with(&format!("inherited {dead} ")), "{inherited}");
        }
        puppet.unlock(0);
    }
    assert_eq!(other.lock(0), Got::Lock);
}

fn row_of_a_waiter() {
    let (path, segment) = board_of(4);
    let waiters = || heirlock::waiters(&segment.condvars[0]);
    let mut notifier = Puppet::spawn(&path);
    for victim in [0, 1, 2] {
        let mut puppets: Vec<_> = (0..3).map(|_| Puppet::spawn(&path)).collect();
        for puppet in &mut puppets {
            assert_eq!(puppet.lock(0), Got::Lock);
            puppet.wait(&segment, 0, 0, "");
        }
        // So that nobody else clears up before the row is used again.
        puppets.iter().for_each(|puppet| puppet.process.stop());
        let row = puppets[victim].participant.row();
        puppets.remove(victim).kill();
        let mut next = Puppet::spawn(&path);
        assert_eq!(next.participant.row(), row);
        assert_eq!(waiters(), who(&puppets));
        puppets.iter().for_each(|puppet| puppet.process.resume());
        assert_eq!(next.lock(0), Got::Lock);
        next.wait(&segment, 0, 0, "");
        puppets.push(next);
        assert_eq!(waiters(), who(&puppets));
        for puppet in &mut puppets {
            assert!(notifier.notify_one(0));
            assert_eq!(puppet.got(), Got::Lock);
            puppet.unlock(0);
        }
        assert!(!notifier.notify_one(0));
    }
}

fn row_of_a_notified() {
    // The first of two that were notified, and the last.
    for victim in [0, 1] {
        let (path, segment) = board_of(5);
        let [lock, condvar] = [0, 0];
        let waiters = || heirlock::waiters(&segment.condvars[condvar]);
        let queue = || heirlock::queue(&segment.locks[lock]);
        let mut notifier = Puppet::spawn(&path);
        let mut puppets: Vec<_> = (0..4).map(|_| Puppet::spawn(&path)).collect();
        for puppet in &mut puppets {
            assert_eq!(puppet.lock(lock), Got::Lock);
            puppet.wait(&segment, lock, condvar, "");
        }
        puppets.iter().for_each(|puppet| puppet.process.stop());
        assert_eq!(notifier.lock(lock), Got::Lock);
        assert!(notifier.notify_one(condvar) && notifier.notify_one(condvar));
        let row = puppets[victim].participant.row();
        puppets.remove(victim).kill();
        let mut next = Puppet::spawn(&path);
        assert_eq!(next.participant.row(), row);
        // It passed the notification on before it did anything else.
        assert_eq!(queue(), who(&puppets[..2]));
        assert_eq!(waiters(), who(&puppets[2..]));
        puppets.iter().for_each(|puppet| puppet.process.resume());
        next.queue(&segment, lock);
        notifier.unlock(lock);
        for puppet in &mut puppets[..2] {
            assert_eq!(puppet.got(), Got::Lock);
            puppet.unlock(lock);
        }
        assert_eq!(next.got(), Got::Lock);
        next.wait(&segment, lock, condvar, "");
        thread::sleep(NOTICED);
        assert_eq!(waiters(), who([&puppets[2], &next]), "nobody else is woken");
        assert_eq!(notifier.notify_all(condvar), 2);
        for puppet in [&mut puppets[2], &mut next] {
            assert_eq!(puppet.got(), Got::Lock);
            puppet.unlock(lock);
        }
    }
}
