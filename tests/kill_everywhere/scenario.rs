//! What is killed, or gets a signal, and where the others stand meanwhile.

use heirlock::Policy;

/// The others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// Owns the lock.
    O,
    /// Wait.
    W1,
    W2,
    W3,
    /// Comes when the victim is dead.
    N,
    /// Die in the course of the scenario: an owner and a waiter.
    D,
    M,
    /// Waits in a ring.
    A,
}

/// What one of the others does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Do {
    /// Takes the lock, which is free.
    Lock(Who),
    /// Takes a place in the queue and falls asleep.
    Queue(Who),
    /// The owner takes the second lock as well.
    LockOther(Who),
    /// The same as `Queue`, at the second lock.
    QueueOther(Who),
    /// The same as `Queue`, and falls asleep in a ring.
    QueueInRing(Who),
    /// Gives back all that it has.
    Unlock(Who),
    /// Gives back the second lock.
    UnlockOther(Who),
    /// Has been served.
    Got(Who),
    Die(Who),
    /// The token of the segment is cancelled.
    Cancel,
    /// Is stopped, until the survivors' turn comes.
    Stop(Who),
    /// Goes on.
    Continue(Who),
    /// Everybody has done what there was to do, and whoever waits has waited for
    /// too long to be passed by.
    Rest,
}

/// What ends a victim's sleep.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wake {
    By(&'static [Do]),
    /// Its deadline.
    Timeout,
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
    Lock,
    Timed,
    /// With a deadline that has passed when it begins to wait.
    Late,
    Try,
    Cancellable,
    Interruptible,
    /// Of a lock that it took before the start marker.
    Unlock,
    Attach,
    /// What is done without a thread that sleeps, and with several locks at once; see
    /// `waits.rs`.
    Waits(Waits),
    // From here on in a segment of its own.
    OpenOrCreate,
    Open,
    /// Joins a segment that it opened before.
    Join,
    /// Opens or creates, and joins.
    OpenAndJoin,
    /// Closes, and so leaves, a segment that it joined before.
    Close,
}

impl Op {
    /// Whether it has a segment for itself.
    pub(crate) fn aside(self) -> bool {
        matches!(
            self,
            Self::OpenOrCreate | Self::Open | Self::Join | Self::OpenAndJoin | Self::Close
        )
    }
}

/// An operation of a victim that waits in a ring, or for several locks at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// Takes a place in the queue, or the lock.
    Start,
    /// The same, and joins the segment for it.
    StartAndJoin,
    /// From the first to the last, asleep in a ring in between.
    Ring,
    /// Of an acquisition that was started before: looks, as for a completion.
    Complete,
    /// Looks as the time is over.
    CompleteLate,
    Cancel,
    Drop,
    /// Drops the guard.
    Release,
    /// Waits for the first two locks.
    Any,
    /// The same, unless the token is cancelled.
    AnyCancellable,
}

/// What is at the path of the victim's own segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Nothing,
    Empty,
    Segment,
    /// A segment from before a reboot, with an owner of its lock.
    OtherBoot,
}

/// A moment in the middle of the operation at which the others act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// The next instruction changes the owner.
    BeforeOwner,
    /// The last instruction changed the owner.
    AfterOwner,
}

/// An operation, and the circumstances.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Before the victim exists.
    pub(crate) before: &'static [Do],
    /// When it is at its start marker.
    pub(crate) after: &'static [Do],
    /// Of the lock.
    pub(crate) policy: Policy,
    pub(crate) op: Op,
    pub(crate) place: Place,
    pub(crate) interject: Option<(When, &'static [Do])>,
    pub(crate) legs: &'static [Leg],
    /// Whether the newcomer tries rather than waits.
    pub(crate) tries: bool,
    /// Whether the newcomer comes when the victim is still alive.
    pub(crate) early: bool,
    /// Whether the victim owns the lock before and after its operation.
    pub(crate) owns: (bool, bool),
    /// How often that changes.
    pub(crate) changes: usize,
    /// Whether it is only killed wherever it changes something.
    pub(crate) sparse: bool,
    /// The least number of kill points.
    pub(crate) floor: usize,
}

impl Scenario {
    /// Whether the victim would look by itself after some milliseconds of a sleep
    /// that others are to end: that has to be put off.
    pub(crate) fn sleeps_on(&self, leg: Leg) -> bool {
        // What has been queued for longer when it falls asleep looks sooner, too.
        let looks = matches!(self.op, Op::Interruptible | Op::Waits(_))
            || self.policy == Policy::Throughput;
        looks && matches!(leg.wake, Wake::By(_))
    }

    /// Whether it is about the second lock as well.
    pub(crate) fn has_two_locks(&self) -> bool {
        matches!(self.op, Op::Waits(Waits::Any | Waits::AnyCancellable))
    }
}

pub(crate) const BASE: Scenario = Scenario {
    name: "",
    before: &[],
    after: &[],
    policy: Policy::Fifo,
    op: Op::Lock,
    place: Place::Nothing,
    interject: None,
    legs: &[],
    tries: false,
    early: false,
    owns: (false, true),
    changes: 1,
    sparse: false,
    floor: 1,
};

const UNLOCK: Scenario = Scenario { op: Op::Unlock, owns: (true, false), ..BASE };
const TIMED: Scenario = Scenario { op: Op::Timed, owns: (false, false), ..BASE };
const ASIDE: Scenario =
    Scenario { op: Op::OpenOrCreate, owns: (false, false), place: Place::Segment, ..BASE };

const PAST: Scenario = Scenario { policy: Policy::Throughput, ..BASE };
const PAST_UNLOCK: Scenario = Scenario { policy: Policy::Throughput, ..UNLOCK };

/// A sleep that others end.
pub(crate) const fn leg(wake: &'static [Do]) -> Leg {
    Leg { entry: &[], wake: Wake::By(wake) }
}

use Do::{Continue, Die, Got, Lock, LockOther, Queue, QueueOther, Rest, Stop, Unlock};
use Who::{D, M, O, W1, W2, W3};

/// All of them.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "lock: free", floor: 30, ..BASE },
    Scenario { name: "lock: free; a try inherits", floor: 30, tries: true, ..BASE },
    Scenario {
        name: "lock: another one is faster",
        floor: 451,
        interject: Some((When::BeforeOwner, &[Lock(O)])),
        legs: &[leg(&[Unlock(O)])],
        ..BASE
    },
    Scenario {
        name: "lock: free, somebody queues meanwhile",
        floor: 167,
        interject: Some((When::AfterOwner, &[Queue(W1)])),
        ..BASE
    },
    Scenario { name: "unlock: nobody waits", floor: 16, ..UNLOCK },
    Scenario { name: "unlock: nobody waits; a try inherits", floor: 16, tries: true, ..UNLOCK },
    Scenario {
        name: "unlock: somebody queues meanwhile",
        floor: 224,
        interject: Some((When::BeforeOwner, &[Queue(W1)])),
        ..UNLOCK
    },
    Scenario {
        name: "unlock: two queue meanwhile",
        floor: 224,
        interject: Some((When::BeforeOwner, &[Queue(W1)])),
        early: true,
        ..UNLOCK
    },
    Scenario {
        name: "lock: behind an owner",
        floor: 451,
        before: &[Lock(O)],
        legs: &[leg(&[Unlock(O)])],
        ..BASE
    },
    Scenario {
        name: "lock: behind an owner, one behind",
        floor: 451,
        before: &[Lock(O)],
        legs: &[Leg { entry: &[Queue(W2)], wake: Wake::By(&[Unlock(O)]) }],
        ..BASE
    },
    Scenario {
        name: "lock: in the middle",
        floor: 434,
        before: &[Lock(O), Queue(W1)],
        legs: &[Leg { entry: &[Queue(W2)], wake: Wake::By(&[Unlock(O), Got(W1), Unlock(W1)]) }],
        ..BASE
    },
    Scenario {
        name: "lock: behind a queue of three",
        floor: 434,
        before: &[Lock(O), Queue(W1), Queue(W2), Queue(W3)],
        legs: &[leg(&[Unlock(O), Got(W1), Unlock(W1), Got(W2), Unlock(W2), Got(W3), Unlock(W3)])],
        ..BASE
    },
    Scenario { name: "unlock: hands over", floor: 251, after: &[Queue(W1)], ..UNLOCK },
    Scenario {
        name: "unlock: hands over, more behind",
        floor: 395,
        after: &[Queue(W1), Queue(W2), Queue(W3)],
        ..UNLOCK
    },
    Scenario {
        name: "unlock: a dead head alone",
        floor: 200,
        after: &[Queue(M), Die(M)],
        ..UNLOCK
    },
    Scenario {
        name: "unlock: a dead head, one behind",
        floor: 393,
        after: &[Queue(M), Queue(W1), Stop(W1), Die(M)],
        ..UNLOCK
    },
    Scenario {
        name: "unlock: a dead tail",
        floor: 305,
        after: &[Queue(W1), Queue(M), Die(M)],
        ..UNLOCK
    },
    Scenario { name: "unlock: an inherited lock", floor: 66, before: &[Lock(D), Die(D)], ..UNLOCK },
    Scenario {
        name: "unlock: an inherited lock, hands over",
        floor: 280,
        before: &[Lock(D), Die(D)],
        after: &[Queue(W1)],
        ..UNLOCK
    },
    Scenario { name: "take over: nobody waits", floor: 538, before: &[Lock(D), Die(D)], ..BASE },
    Scenario {
        name: "take over: at the head",
        floor: 864,
        before: &[Lock(D)],
        legs: &[leg(&[Die(D)])],
        ..BASE
    },
    Scenario {
        name: "take over: at the head, two behind",
        floor: 924,
        before: &[Lock(D)],
        legs: &[Leg { entry: &[Queue(W1), Queue(W2)], wake: Wake::By(&[Die(D)]) }],
        ..BASE
    },
    // The kernel wakes one of those who watch the dead, the first to have fallen
    // asleep: the victim. It owes the wake to the other one.
    Scenario {
        name: "take over: one of a dead owner's two locks",
        floor: 1000,
        before: &[Lock(D), LockOther(D)],
        legs: &[leg(&[QueueOther(W1), Die(D)])],
        ..BASE
    },
    Scenario {
        name: "take over: a dead head in front",
        floor: 653,
        before: &[Lock(D), Queue(M), Die(M), Die(D)],
        ..BASE
    },
    Scenario {
        name: "step over: a dead waiter in front",
        floor: 855,
        before: &[Lock(O), Queue(W1), Queue(M)],
        legs: &[
            Leg { entry: &[Queue(W2)], wake: Wake::By(&[Die(M)]) },
            leg(&[Unlock(O), Got(W1), Unlock(W1)]),
        ],
        ..BASE
    },
    Scenario {
        name: "give up: alone",
        floor: 708,
        before: &[Lock(O)],
        legs: &[Leg { entry: &[], wake: Wake::Timeout }],
        ..TIMED
    },
    Scenario {
        name: "give up: at the head",
        floor: 779,
        before: &[Lock(O)],
        legs: &[Leg { entry: &[Queue(W1)], wake: Wake::Timeout }],
        ..TIMED
    },
    Scenario {
        name: "give up: in the middle",
        floor: 762,
        before: &[Lock(O), Queue(W1)],
        legs: &[Leg { entry: &[Queue(W2)], wake: Wake::Timeout }],
        ..TIMED
    },
    Scenario {
        name: "give up: at the tail",
        floor: 692,
        before: &[Lock(O), Queue(W1)],
        legs: &[Leg { entry: &[], wake: Wake::Timeout }],
        ..TIMED
    },
    Scenario { name: "try_lock: free", floor: 21, op: Op::Try, ..BASE },
    Scenario {
        name: "try_lock: owned",
        floor: 61,
        before: &[Lock(O)],
        op: Op::Try,
        owns: (false, false),
        ..BASE
    },
    Scenario {
        name: "try_lock: a dead owner's",
        floor: 628,
        before: &[Lock(D), Die(D)],
        op: Op::Try,
        ..BASE
    },
    Scenario {
        name: "try_lock: a dead owner's, a dead waiter",
        floor: 769,
        before: &[Lock(D), Queue(M), Die(M), Die(D)],
        op: Op::Try,
        ..BASE
    },
    Scenario {
        name: "attach: a left row",
        floor: 5353,
        op: Op::Attach,
        owns: (false, false),
        ..BASE
    },
    Scenario {
        name: "attach: a dead waiter's row",
        floor: 5567,
        before: &[Lock(O), Queue(W1), Queue(M), Die(M)],
        op: Op::Attach,
        owns: (false, false),
        ..BASE
    },
    Scenario {
        name: "attach: a dead owner's row",
        floor: 5370,
        before: &[Lock(D), Die(D)],
        op: Op::Attach,
        owns: (false, false),
        ..BASE
    },
    Scenario { name: "attach: a new row", floor: 5300, op: Op::Join, ..ASIDE },
    Scenario { name: "detach, close", floor: 915, op: Op::Close, ..ASIDE },
    Scenario { name: "create", floor: 4626, place: Place::Nothing, ..ASIDE },
    Scenario { name: "create: left unfinished", floor: 4483, place: Place::Empty, ..ASIDE },
    Scenario { name: "open", floor: 3943, op: Op::Open, ..ASIDE },
    Scenario {
        name: "open: after a reboot",
        floor: 4094,
        op: Op::Open,
        place: Place::OtherBoot,
        ..ASIDE
    },
    // From here on the lock can be taken past those who wait. How long somebody has
    // waited is not for a harness to choose that stops the victim all the time: all
    // have waited for too long. How many instructions an operation has depends on the
    // clock, too: the floors are three quarters of what was counted.
    Scenario {
        name: "past: free, somebody queues meanwhile",
        floor: 190,
        interject: Some((When::AfterOwner, &[Queue(W1)])),
        ..PAST
    },
    Scenario {
        name: "past: lock past a dead waiter",
        floor: 240,
        before: &[Lock(O), Queue(M), Stop(M), Unlock(O)],
        after: &[Die(M)],
        ..PAST
    },
    Scenario {
        name: "past: try_lock past a dead waiter",
        floor: 250,
        before: &[Lock(O), Queue(M), Stop(M), Unlock(O)],
        after: &[Die(M)],
        op: Op::Try,
        ..PAST
    },
    // It hands over what it has just taken.
    Scenario {
        name: "past: try_lock, somebody has waited long",
        floor: 750,
        before: &[Lock(O), Queue(W1), Stop(W1), Rest, Unlock(O)],
        op: Op::Try,
        owns: (false, false),
        changes: 2,
        ..PAST
    },
    Scenario {
        name: "past: lock, somebody has waited long",
        floor: 970,
        before: &[Lock(O), Queue(W1), Stop(W1), Rest, Unlock(O)],
        legs: &[leg(&[Continue(W1), Got(W1), Unlock(W1)])],
        changes: 3,
        ..PAST
    },
    Scenario {
        name: "past: lock, two have waited long",
        floor: 780,
        before: &[Lock(O), Queue(W1), Queue(W2), Stop(W1), Rest, Unlock(O)],
        legs: &[leg(&[Continue(W1), Got(W1), Unlock(W1), Got(W2), Unlock(W2)])],
        changes: 3,
        ..PAST
    },
    Scenario {
        name: "past: lock behind an owner",
        floor: 820,
        before: &[Lock(O)],
        legs: &[leg(&[Unlock(O)])],
        ..PAST
    },
    Scenario {
        name: "past: lock in the middle",
        floor: 520,
        before: &[Lock(O), Queue(W1)],
        legs: &[Leg { entry: &[Queue(W2)], wake: Wake::By(&[Unlock(O), Got(W1), Unlock(W1)]) }],
        ..PAST
    },
    Scenario { name: "past: unlock, nobody waits", floor: 17, ..PAST_UNLOCK },
    Scenario {
        name: "past: unlock, leaves it free",
        floor: 190,
        after: &[Queue(W1), Rest],
        ..PAST_UNLOCK
    },
    Scenario {
        name: "past: unlock, leaves it free, more behind",
        floor: 210,
        after: &[Queue(W1), Queue(W2), Queue(W3), Rest],
        ..PAST_UNLOCK
    },
    Scenario {
        name: "past: unlock, somebody queues meanwhile",
        floor: 180,
        interject: Some((When::BeforeOwner, &[Queue(W1)])),
        ..PAST_UNLOCK
    },
    Scenario {
        name: "past: unlock, a dead head, one behind",
        floor: 320,
        after: &[Queue(M), Queue(W1), Stop(W1), Die(M), Rest],
        ..PAST_UNLOCK
    },
    // Who has stepped over the dead is known to be the head: nobody has to edit.
    Scenario {
        name: "past: unlock, hands over",
        floor: 300,
        after: &[Queue(M), Queue(W1), Die(M), Rest],
        ..PAST_UNLOCK
    },
    Scenario {
        name: "past: unlock, hands over, more behind",
        floor: 370,
        after: &[Queue(M), Queue(W1), Queue(W2), Queue(W3), Die(M), Rest],
        ..PAST_UNLOCK
    },
    Scenario {
        name: "past: unlock, an inherited lock",
        floor: 200,
        before: &[Lock(D), Die(D)],
        after: &[Queue(W1), Rest],
        ..PAST_UNLOCK
    },
    Scenario {
        name: "past: take over, nobody waits",
        floor: 520,
        before: &[Lock(D), Die(D)],
        ..PAST
    },
    Scenario {
        name: "past: take over at the head, two behind",
        floor: 1200,
        before: &[Lock(D)],
        legs: &[Leg { entry: &[Queue(W1), Queue(W2)], wake: Wake::By(&[Die(D)]) }],
        ..PAST
    },
    Scenario {
        name: "past: give up alone",
        floor: 460,
        before: &[Lock(O)],
        op: Op::Late,
        owns: (false, false),
        ..PAST
    },
    Scenario {
        name: "past: give up at the tail",
        floor: 220,
        before: &[Lock(O), Queue(W1)],
        op: Op::Late,
        owns: (false, false),
        ..PAST
    },
];
