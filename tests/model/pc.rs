//! The program counter: one entry per access to shared memory, under the name
//! of the function of the crate that makes it.

use zerocopy::{Immutable, IntoBytes};

/// What a thread took the guard for, or wants it for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, IntoBytes, Immutable)]
#[repr(u8)]
pub(crate) enum Job {
    /// Nothing.
    #[default]
    None,
    /// `settle_barge`: nudge the head that may still watch the former owner.
    Barge,
    /// `step_behind`: splice the dead waiters in front of me.
    Splice,
    /// `leave`: unlink myself, I own the lock.
    Leave,
    /// `give_up`.
    GiveUp,
    /// `grant_slow`, until the lock has a new owner.
    Grant,
    /// `grant_slow`, from then on: unlink that one, and tell it.
    Serve,
    /// `settle_barge`, the oldest has waited too long: as [`Job::Grant`].
    Yield,
    /// As [`Job::Serve`]; and then I queue.
    YieldServe,
    /// `release_slow`, under the guard.
    Release,
    /// `release_slow`, after the guard.
    ReleaseHead,
    /// `attach`: clean up after the row's dead thread.
    Attach,
}

macro_rules! program_counter {
    ($($(#[$doc:meta])* $name:ident = $function:literal: $step:literal,)*) => {
        /// The step that a thread takes next.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, IntoBytes, Immutable)]
        #[repr(u8)]
        pub(crate) enum Pc {
            /// The program is at its end, or there is no thread.
            #[default]
            Done,
            $(#[doc = concat!("`", $function, "`: ", $step, ".")] $(#[$doc])* $name,)*
        }

        impl Pc {
            /// The function of the crate, and the step in it.
            pub(crate) fn names(self) -> (&'static str, &'static str) {
                match self {
                    Pc::Done => ("-", "nothing left to do"),
                    $(Pc::$name => ($function, $step),)*
                }
            }
        }
    };
}

program_counter! {
    LockLoadTail = "RawMutex::lock": "load tail",
    LockCasOwner = "RawMutex::lock": "CAS owner from free",
    BargeCasOwner = "RawMutex::lock": "CAS owner from free, though somebody waits",
    LockReloadTail = "RawMutex::lock": "load tail again, owning",

    LookWhoFences = "look_who_fences": "load the header's fences",
    PublishLock = "lock_slow": "store row.lock",
    PublishId = "lock_slow": "store waiting_as",
    PublishState = "lock_slow": "store state",
    EnqueueLoadTail = "Queue::enqueue": "load tail",
    EnqueueStorePrev = "Queue::enqueue": "store prev",
    EnqueueCasTail = "Queue::enqueue": "CAS tail",

    LookOwner = "wait loop": "load owner",
    LookPrev = "wait loop": "load prev",
    HeadLoadOwner = "step_head": "load owner",
    HeadCasFree = "step_head": "CAS owner from free",
    HeadLoadLife = "step_head": "load the owner's life",
    HeadLoadGeneration = "step_head": "load the owner's generation",
    HeadRelay = "step_head": "relay: wake all on the dead owner's life",
    HeadCasDead = "step_head": "CAS owner from dead to me|INHERITED",
    BehindLoadLife = "step_behind": "load the predecessor's life",
    BehindReloadPrev = "step_behind": "load prev again",
    BehindRelay = "step_behind": "relay: wake all on the predecessor's life",
    SpliceOwn = "step_behind": "store prev, past a dead predecessor",

    FenceOwners = "fence_owners": "membarrier",
    DemandFences = "demand_fences": "store the header's fences",
    ParkState = "park": "CAS state to PARKED",
    ParkPending = "park": "store list_op_pending",
    ParkWait = "park": "futex_waitv compares and sleeps",
    Sleeping = "park": "asleep in futex_waitv",
    ParkLoadLife = "park": "futex_waitv returns; load the watched life",
    ParkRelay = "park": "relay: wake all on the watched life",
    ParkClear = "park": "clear list_op_pending",
    ParkRestore = "park": "CAS state back to WAITING",

    LeaveLoadState = "leave": "load state",
    UnlinkSelf = "leave": "Queue::unlink: unlink myself",
    GiveUpLoadOwner = "give_up": "load owner, under the guard",
    GiveUpUnlink = "give_up": "Queue::unlink: unlink myself",

    PublishRow = "slow path": "store row.lock",
    ClearRow = "slow path": "store row.lock = 0",
    GuardTake = "Queue::guard": "CAS guard, or read a dead holder",
    GuardRelay = "Queue::guard": "relay: wake all on the dead holder's life",
    GuardSteal = "Queue::guard": "CAS guard from the dead holder",
    GuardDrop = "Queue::guard drop": "store guard = 0",
    FindHead = "Queue::oldest": "load head; load the oldest's life",
    OldestWalk = "Queue::oldest": "walk: store the next hint",
    UnlinkWalk = "Queue::unlink": "walk to the one behind: store the next hint",
    UnlinkForget = "Queue::forget": "forget the next hint that will be wrong",
    UnlinkHint = "Queue::unlink": "store the hint to the one behind",
    NudgeState = "nudge": "CAS state to NUDGED",
    NudgeWake = "nudge": "wake on state",

    UnlockLoadTail = "RawMutex::unlock": "load tail",
    UnlockStoreOwner = "RawMutex::unlock": "store owner = 0",
    UnlockStoreHastily = "unlock_fast": "store owner = 0, into the buffer",
    UnlockStoreDead = "RawMutex::unlock, heir panics": "store owner = the dead id",
    UnlockReloadTail = "RawMutex::unlock": "load tail again",
    SpliceStore = "Queue::unlink": "unlink the dead head",
    GrantFree = "grant_slow": "nobody waits: store owner = 0",
    GrantOwner = "grant_slow": "store owner = the head's id",
    GrantUnlink = "grant_slow": "Queue::unlink: unlink the head",
    GrantState = "grant_slow": "CAS the head's state to GRANTED",
    GrantWake = "grant_slow": "wake on state",

    AttachGeneration = "attach": "store generation + 1",
    AttachLife = "attach": "store life = TID",
    AttachRelay = "attach": "relay: wake all on my life; read row.lock",
    AttachUnlink = "attach": "Queue::unlink: unlink the dead waiter",
    AttachRelayAgain = "attach": "relay again: wake all on my life",
}

/// Which registers still matter.
#[derive(Clone, Copy, Default)]
pub(crate) struct Registers {
    /// `word`.
    pub(crate) word: bool,
    /// `peer`.
    pub(crate) peer: bool,
    /// `seen`.
    pub(crate) seen: bool,
    /// `peer_id`.
    pub(crate) id: bool,
    /// `peer_round`.
    pub(crate) round: bool,
    /// `behind`.
    pub(crate) behind: bool,
    /// `job`.
    pub(crate) job: bool,
}

impl Pc {
    /// The registers that the steps from here on read before they write them.
    pub(crate) fn live(self, job: Job) -> Registers {
        let none = Registers::default();
        let working = Registers { job: true, ..none };
        let target = Registers { peer: true, round: true, ..working };
        // Whom the thread takes out, if it is not itself.
        let unlinking = match job {
            Job::Barge | Job::Grant | Job::Yield | Job::Release => {
                Registers { peer: true, ..working }
            }
            Job::Serve | Job::YieldServe => Registers { id: true, ..target },
            _ => working,
        };
        match self {
            Pc::EnqueueStorePrev
            | Pc::EnqueueCasTail
            | Pc::BehindLoadLife
            | Pc::BehindRelay
            | Pc::ParkRelay => Registers { peer: true, ..none },
            Pc::HeadLoadLife | Pc::HeadRelay | Pc::HeadCasDead | Pc::UnlockStoreDead => {
                Registers { word: true, ..none }
            }
            Pc::HeadLoadGeneration => Registers { word: true, seen: true, ..none },
            Pc::BehindReloadPrev
            | Pc::FenceOwners
            | Pc::DemandFences
            | Pc::ParkState
            | Pc::ParkPending
            | Pc::ParkWait
            | Pc::Sleeping
            | Pc::ParkLoadLife => Registers { peer: true, seen: true, ..none },
            Pc::GuardRelay | Pc::GuardSteal => Registers { word: true, ..working },
            Pc::UnlinkWalk => unlinking,
            Pc::UnlinkHint
                if !matches!(job, Job::Serve | Job::YieldServe | Job::Leave | Job::Splice) =>
            {
                Registers { behind: true, ..target }
            }
            Pc::UnlinkForget
            | Pc::UnlinkHint
            | Pc::UnlinkSelf
            | Pc::GiveUpUnlink
            | Pc::AttachUnlink
            | Pc::SpliceOwn
            | Pc::SpliceStore
            | Pc::GrantUnlink => Registers { behind: true, ..unlinking },
            Pc::NudgeState | Pc::NudgeWake if matches!(job, Job::Yield | Job::Grant) => {
                Registers { id: true, ..target }
            }
            Pc::NudgeState | Pc::GrantState => target,
            Pc::NudgeWake | Pc::GrantWake => Registers { peer: true, ..working },
            Pc::GrantOwner => Registers { id: true, ..target },
            Pc::GuardDrop
                if matches!(job, Job::Grant | Job::Serve | Job::YieldServe | Job::Release) =>
            {
                target
            }
            Pc::PublishRow
            | Pc::ClearRow
            | Pc::GuardTake
            | Pc::GuardDrop
            | Pc::FindHead
            | Pc::OldestWalk
            | Pc::GiveUpLoadOwner
            | Pc::GrantFree => working,
            _ => none,
        }
    }

    /// Can the step be taken while a store is in the buffer? Loads can, and
    /// plain stores behind it. What is SeqCst, a compare-and-swap or a system
    /// call waits until the buffer is empty.
    pub(crate) fn may_be_buffered(self) -> bool {
        matches!(
            self,
            Pc::LockLoadTail
                | Pc::LookWhoFences
                | Pc::UnlockLoadTail
                | Pc::UnlockStoreHastily
                | Pc::UnlockReloadTail
        )
    }

    /// Does the step touch only what no other thread's step reads or writes?
    ///
    /// `row.lock` is read by whoever re-uses the row, `list_op_pending` by the
    /// kernel, both after this thread's death only; `waiting_as`, `state` and
    /// `prev` of a row that is not linked are read by nobody (a late
    /// compare-and-swap on `state` names an older round and fails before the
    /// step as after it).
    pub(crate) fn is_local(self) -> bool {
        matches!(
            self,
            Pc::PublishLock
                | Pc::PublishId
                | Pc::PublishState
                | Pc::EnqueueStorePrev
                | Pc::PublishRow
                | Pc::ClearRow
                | Pc::ParkPending
                | Pc::ParkClear
        )
    }

    /// Is the step the store of a hint? Who holds the guard reads and writes
    /// hints, and nobody else: only by this thread's death can a state between
    /// two of its hints be seen. (The walks read `tail` as well, once, in the
    /// step before them; `prev` of whom they meet stands still.)
    ///
    /// Or the store of `prev` of one's own row, which nobody reads without the
    /// guard but this thread.
    pub(crate) fn is_hint(self) -> bool {
        matches!(
            self,
            Pc::OldestWalk | Pc::UnlinkWalk | Pc::UnlinkForget | Pc::SpliceOwn | Pc::UnlinkHint
        )
    }
}
