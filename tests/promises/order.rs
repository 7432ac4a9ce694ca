//! First in, first out, whatever happens to the others; and inherited.

use crate::kit::{Got, Puppet, Test, board};

pub(crate) const TESTS: &[Test] = &[
    ("waiters_are_served_in_the_order_in_which_they_queued", served_in_order),
    ("a_killed_owner_is_inherited_from_once", inherited_once),
];

fn served_in_order() {
    let (path, segment) = board();
    let mut owner = Puppet::spawn(&path);
    assert_eq!(owner.lock(0), Got::Lock);
    let mut waiters: Vec<Puppet> = (0..5).map(|_| Puppet::spawn(&path)).collect();
    for waiter in &mut waiters {
        waiter.queue(&segment, 0);
    }
    owner.unlock(0);
    for waiter in &mut waiters {
        assert_eq!(waiter.got(), Got::Lock);
        assert_eq!(heirlock::owner(&segment.locks[0]), Some(waiter.participant));
        waiter.unlock(0);
    }
    assert!(!segment.locks[0].is_locked());
}

fn inherited_once() {
    let (path, segment) = board();
    let mut owner = Puppet::spawn(&path);
    let mut heir = Puppet::spawn(&path);
    let mut next = Puppet::spawn(&path);
    assert_eq!(owner.lock(0), Got::Lock);
    heir.queue(&segment, 0);
    next.queue(&segment, 0);
    let pid = owner.pid();
    owner.kill();
    match heir.got() {
        Got::Inherited { pid: dead, tid, .. } => assert_eq!((dead, tid), (pid, pid)),
        other => panic!("{other:?}"),
    }
    heir.unlock(0);
    assert_eq!(next.got(), Got::Lock);
}
