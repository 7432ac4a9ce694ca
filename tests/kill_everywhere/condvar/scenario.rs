//! What is killed at a condition variable, and where the others stand meanwhile.

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// The victim.
    V,
    /// Owns the lock, notifies.
    O,
    /// Waits for the lock.
    Q,
    /// Wait for the condition variable.
    W1,
    W2,
    W3,
    /// Comes when the victim is dead.
    N,
    /// Dies in the course of the scenario.
    M,
}

/// What one of the others does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Do {
    /// Takes the lock, which is free.
    Lock(Who),
    /// Queues for the lock, and falls asleep.
    Queue(Who),
    /// Waits for the condition variable, asleep.
    Wait(Who),
    /// Notifies one.
    One(Who),
    /// Notifies all.
    All(Who),
    Unlock(Who),
    /// Has got the lock.
    Got(Who),
    Die(Who),
    /// Is stopped, until the survivors' turn comes.
    Stop(Who),
}

/// What ends a sleep of the victim.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wake {
    By(&'static [Do]),
    /// Its deadline; then that happens, before the victim looks.
    Timeout(&'static [Do]),
}

/// A sleep of the victim.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leg {
    /// What happens just before it sleeps.
    pub(crate) entry: &'static [Do],
    pub(crate) wake: Wake,
}

/// What the victim does between its markers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    NotifyOne,
    NotifyAll,
    /// With the lock that it took before the start marker.
    NotifyOneLocked,
    NotifyAllLocked,
    Wait,
    /// With a deadline.
    Timed,
    Interruptible,
    /// Re-uses the row of a dead thread.
    Attach,
}

impl Op {
    /// Whether it waits for the condition variable.
    pub(crate) fn waits(self) -> bool {
        matches!(self, Self::Wait | Self::Timed | Self::Interruptible)
    }

    /// Whether it notifies one, or all.
    pub(crate) fn notifies(self) -> Option<bool> {
        match self {
            Self::NotifyOne | Self::NotifyOneLocked => Some(false),
            Self::NotifyAll | Self::NotifyAllLocked => Some(true),
            _ => None,
        }
    }
}

/// An operation, and the circumstances.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Before the victim exists.
    pub(crate) before: &'static [Do],
    /// When it is at its start marker.
    pub(crate) after: &'static [Do],
    pub(crate) op: Op,
    pub(crate) legs: &'static [Leg],
    /// Whether a notification of a dead waiter is about, which the victim passes on:
    /// if it is killed as well, that may reach two.
    pub(crate) passes_on: bool,
    /// Whether to kill only where the last instruction made a difference, and no one who
    /// re-uses the row: in the long run at every one, and those too.
    pub(crate) sparse: bool,
    /// The least number of kill points.
    pub(crate) floor: usize,
}

const BASE: Scenario = Scenario {
    name: "",
    before: &[],
    after: &[],
    op: Op::Wait,
    legs: &[],
    passes_on: false,
    sparse: true,
    floor: 1,
};

const ONE: Scenario = Scenario { op: Op::NotifyOne, ..BASE };
const ALL: Scenario = Scenario { op: Op::NotifyAll, ..BASE };

/// A sleep that others end.
const fn leg(wake: &'static [Do]) -> Leg {
    Leg { entry: &[], wake: Wake::By(wake) }
}

use Do::{All, Die, Got, Lock, One, Queue, Stop, Unlock, Wait};
use Who::{M, O, Q, W1, W2, W3};

/// All of them.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "condvar: notify one of one",
        floor: 480,
        sparse: false,
        before: &[Wait(W1)],
        ..ONE
    },
    Scenario {
        name: "condvar: notify one of one, as the owner",
        floor: 14,
        before: &[Wait(W1)],
        op: Op::NotifyOneLocked,
        ..ONE
    },
    Scenario {
        name: "condvar: notify one of one, owned",
        floor: 14,
        before: &[Wait(W1), Lock(O)],
        ..ONE
    },
    Scenario {
        name: "condvar: notify one of two",
        floor: 500,
        sparse: false,
        before: &[Wait(W1), Wait(W2)],
        ..ONE
    },
    Scenario {
        name: "condvar: notify one of three, as the owner",
        floor: 16,
        before: &[Wait(W1), Wait(W2), Wait(W3)],
        op: Op::NotifyOneLocked,
        ..ONE
    },
    Scenario {
        name: "condvar: notify all",
        floor: 26,
        before: &[Wait(W1), Wait(W2), Wait(W3)],
        ..ALL
    },
    Scenario {
        name: "condvar: notify all, as the owner",
        floor: 26,
        before: &[Wait(W1), Wait(W2), Wait(W3)],
        op: Op::NotifyAllLocked,
        ..ALL
    },
    Scenario {
        name: "condvar: notify all, the lock has a queue",
        floor: 20,
        before: &[Wait(W1), Wait(W2), Wait(W3), Lock(O), Queue(Q)],
        ..ALL
    },
    Scenario {
        name: "condvar: notify one, a dead head",
        floor: 12,
        before: &[Wait(M), Wait(W1), Wait(W2), Stop(W1), Die(M)],
        ..ONE
    },
    Scenario {
        name: "condvar: notify all, a dead head",
        floor: 17,
        before: &[Wait(M), Wait(W1), Wait(W2), Stop(W1), Die(M)],
        ..ALL
    },
    Scenario {
        name: "condvar: notify all, a dead one inside",
        floor: 19,
        before: &[Wait(W1), Wait(M), Wait(W2), Stop(W2), Die(M)],
        ..ALL
    },
    Scenario {
        name: "condvar: wait alone",
        floor: 22,
        legs: &[leg(&[Lock(O), One(O)]), leg(&[Unlock(O)])],
        ..BASE
    },
    Scenario {
        name: "condvar: wait behind one",
        floor: 25,
        before: &[Wait(W1)],
        legs: &[leg(&[Lock(O), One(O), One(O)]), leg(&[Unlock(O), Got(W1), Unlock(W1)])],
        ..BASE
    },
    Scenario {
        name: "condvar: wait behind one, all notified",
        floor: 17,
        before: &[Wait(W1)],
        legs: &[Leg {
            entry: &[Wait(W2)],
            wake: Wake::By(&[Lock(O), All(O), Unlock(O), Got(W1), Unlock(W1)]),
        }],
        ..BASE
    },
    Scenario { name: "condvar: wait in front of one", sparse: false, ..IN_FRONT },
    Scenario {
        name: "condvar: wait, one queues for the lock",
        floor: 28,
        after: &[Queue(Q)],
        legs: &[leg(&[Got(Q), One(Q)]), leg(&[Unlock(Q)])],
        ..BASE
    },
    Scenario {
        name: "condvar: give up alone",
        floor: 17,
        op: Op::Timed,
        legs: &[Leg { entry: &[], wake: Wake::Timeout(&[]) }],
        ..BASE
    },
    Scenario {
        name: "condvar: give up, one behind",
        floor: 25,
        op: Op::Timed,
        legs: &[Leg { entry: &[Wait(W2)], wake: Wake::Timeout(&[]) }],
        ..BASE
    },
    Scenario {
        name: "condvar: give up, one in front",
        floor: 29,
        before: &[Wait(W1)],
        op: Op::Timed,
        legs: &[Leg { entry: &[], wake: Wake::Timeout(&[Lock(O)]) }, leg(&[Unlock(O)])],
        ..BASE
    },
    Scenario {
        name: "condvar: give up as it is notified",
        floor: 1600,
        sparse: false,
        op: Op::Timed,
        legs: &[
            Leg { entry: &[Wait(W2)], wake: Wake::Timeout(&[Lock(O), One(O)]) },
            leg(&[Unlock(O)]),
        ],
        ..BASE
    },
    Scenario {
        name: "condvar: pass on",
        floor: 35,
        before: &[Wait(M)],
        legs: &[
            Leg { entry: &[Wait(W1), Wait(W2)], wake: Wake::By(&[Lock(O), One(O), Die(M)]) },
            leg(&[Unlock(O)]),
        ],
        passes_on: true,
        ..BASE
    },
    Scenario {
        name: "condvar: attach, a dead waiter's row",
        floor: 21,
        before: &[Wait(W1), Wait(M), Wait(W2), Stop(W2), Die(M)],
        op: Op::Attach,
        ..BASE
    },
    Scenario {
        name: "condvar: attach, a dead notified one's row",
        floor: 29,
        before: &[Wait(M), Wait(W1), Wait(W2), Lock(O), One(O), Stop(W1), Stop(W2), Die(M)],
        op: Op::Attach,
        passes_on: true,
        ..BASE
    },
];

/// Those that get a signal at each point: the wait goes on, unless it is
/// interruptible and asleep.
pub(crate) const SIGNALLED: &[Scenario] = &[
    Scenario { name: "condvar: wait", ..IN_FRONT },
    Scenario { name: "condvar: wait_interruptible", op: Op::Interruptible, ..IN_FRONT },
];

const IN_FRONT: Scenario = Scenario {
    legs: &[Leg { entry: &[Wait(W2)], wake: Wake::By(&[Lock(O), One(O)]) }, leg(&[Unlock(O)])],
    floor: 1400,
    ..BASE
};
