//! Deliberate faults. Each is one line of the algorithm left out or bent, and
//! the model must see it: [`CAUGHT`] says in which bounds, and by which
//! property.
//!
//! # What it cannot see
//!
//! * `Mutant::AttachWithoutFirstRelay` and `Mutant::AttachWithoutLastRelay`: the
//!   two wakes of `attach` cover for each other, and only without both is
//!   somebody left asleep (explored in full with two locks, two deaths and one
//!   re-use). With the first in place the last wakes nobody there: who begins
//!   to watch the row in between is in the queue behind it, and nudged.
//! * GRANTED written into whatever round: it is written under the guard, and who
//!   was served needs that to begin another wait.
//! * Faults that only spin, such as reading an owner as dead and never taking
//!   the lock over: every state has a step, and none is stuck.
//! * `Mutant::SettledHastily`: whoever queued while a thread acquired on the fast
//!   path keeps `tail` from 0 until he has gone, and whoever queues later has a
//!   barrier of his own. (Explored in full with two threads x 2, a death and a
//!   re-use; three x 2 and four x 1, a death; three, two deaths, a panic.)
//! * `Mutant::DeadHeadServed`, `Mutant::DeadHeadNudged` and
//!   `Mutant::NoNudgeBehindDeadHead`: whoever is behind a dead waiter watches it,
//!   and is told of its death by the kernel or by who was told instead. It
//!   steps over it, and if it finds it the owner, is its heir. That the heir is
//!   told of a death that mattered to nobody is no fault to the model: a waiter
//!   may die right after the look at its life. (Explored in full: three threads,
//!   two deaths, with a re-use or give-ups; two locks, two deaths; the last of
//!   the three with two locks, two deaths and a re-use or give-ups, too.)
//! * Faults of memory ordering, but for those of the hasty release.
//! * Faults in how a thread parks on the guard word itself (a wake of one where
//!   all are due): waiting for the guard is not spelt out.

use crate::model::{Config, NESTED, ONCE, OTHER, TWICE, UNFENCED};
use crate::properties::{CHAIN_TRUTH, FCFS, HINT_TRUTH, NO_STUCK_WAITER, TOLD_ONCE};

/// A deliberate fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mutant {
    /// `park` does not relay when the watched thread has died.
    NoRelayAfterPark,
    /// `park` leaves `list_op_pending` empty.
    NoPending,
    /// `give_up` unlinks and nudges nobody.
    NoNudgeOnGiveUp,
    /// `release_slow` finds the head and does not nudge it.
    NoNudgeInRelease,
    /// `grant_slow` stores GRANTED and does not wake.
    NoWakeAtGrant,
    /// `step_behind` watches a predecessor that it read as dead.
    NoDeadCheckOfPredecessor,
    /// `step_head` watches an owner that it read as dead.
    NoDeadCheckOfOwner,
    /// The guard of a dead holder is never taken over.
    NoGuardTakeover,
    /// Taking a dead holder's guard over does not relay.
    NoRelayInGuard,
    /// A thread that waits for the guard leaves `list_op_pending` empty.
    NoPendingInGuard,
    /// The guard word holds an index without a generation.
    GuardWithoutGeneration,
    /// `grant_slow` leaves the new owner in the queue, but tells it otherwise.
    GrantWithoutUnlink,
    /// `grant_slow` unlinks first and stores `owner` then.
    UnlinkBeforeOwner,
    /// `unlock` does not look at `tail` after `owner = 0`.
    NoReleaseSlow,
    /// The fast path ignores the queue.
    BargePastQueue,
    /// The fast path does not look at `tail` once it owns the lock.
    NoSettleBarge,
    /// `release_slow` hands the lock over instead of nudging.
    ReleaseGrants,
    /// `grant_slow` stores the row's current generation.
    GrantCurrentGeneration,
    /// `attach` leaves the dead waiter in the queue.
    AttachWithoutUnlink,
    /// `attach` unlinks the dead waiter and nudges nobody.
    AttachWithoutNudge,
    /// `attach` finds the row unlinked already and nudges nobody.
    AttachWithoutNudgeHead,
    /// `attach` does not relay before it cleans up.
    AttachWithoutFirstRelay,
    /// `attach` does not relay when it is done.
    AttachWithoutLastRelay,
    /// `attach` relays neither before nor after.
    AttachWithoutRelays,
    /// `attach` keeps the generation.
    GenerationNotBumped,
    /// `step_behind` does not read `prev` again after the life word.
    NoRereadOfPrev,
    /// The heir takes the lock over without the flag.
    InheritedDropped,
    /// The hand-over keeps the flag of the owner before.
    InheritedKept,
    /// An heir's panic releases like any other.
    PanicNotRetold,
    /// An heir's panic stores the dead id and does not look at `tail`.
    PanicWithoutNudge,
    /// Whoever finds NUDGED leaves the wake to whoever stored it.
    WakeOnlyParked,
    /// A head sleeps without a barrier.
    NoBarrier,
    /// A head does not look again after its barrier.
    NoLookAfterBarrier,
    /// A waiter has its barrier before it enqueues, not after.
    BarrierBeforeEnqueue,
    /// An owner whose word says FENCES releases without a fence.
    GrantedHastily,
    /// Whoever acquired while somebody queued releases without a fence.
    SettledHastily,
    /// A head that cannot have a barrier sleeps as if it had had one.
    UnfencedSleeps,
    /// A thread that the others' barriers do not reach releases without a
    /// fence.
    UnregisteredHastily,
    /// `unlink` leaves `head` at the one that it takes out.
    HeadNotForgotten,
    /// `unlink` leaves `next` of the one that it takes out.
    NextNotForgotten,
    /// `unlink` leaves `next` of the one in front to the end, as it was.
    NextInFrontNotForgotten,
    /// `unlink` stores the new hint before it unlinks.
    HintBeforeUnlink,
    /// `grant_slow` hands over to the oldest, dead or alive.
    DeadHeadServed,
    /// `release_slow` nudges the oldest, dead or alive.
    DeadHeadNudged,
    /// Whoever takes the dead head out does not nudge the one behind it.
    NoNudgeBehindDeadHead,
    /// Throughput: `grant_slow` hands over to the oldest, which may still watch an
    /// owner before it.
    NoNudgeBeforeGrant,
    /// Throughput: whoever barges hands over to the oldest, which may still watch
    /// the owner before it.
    NoNudgeBeforeYield,
}

/// Where a deliberate fault shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Catch {
    /// The fault.
    pub(crate) mutant: Mutant,
    /// The property that it violates.
    pub(crate) property: &'static str,
    /// The bounds within which it does.
    pub(crate) config: Config,
    /// Too slow for a build without optimisation.
    pub(crate) slow: bool,
}

/// Fills the fields that most of the bounds below leave at nothing.
const NOTHING: Config = Config {
    programs: [0; 4],
    give_ups: false,
    kills: 0,
    reuses: 0,
    reuser: ONCE,
    panics: 0,
    throughput: false,
    mutant: None,
};
/// Three threads, one death.
const DEATH: Config = Config { programs: [ONCE, ONCE, ONCE, 0], kills: 1, ..NOTHING };
/// And deadlines.
const DEADLINES: Config = Config { give_ups: true, ..DEATH };
/// And a new thread in the dead one's row.
const REUSE: Config = Config { reuses: 1, ..DEATH };
/// Two threads that lock twice, and all that.
const TWO: Config = Config { programs: [TWICE, TWICE, 0, 0], reuses: 1, ..DEADLINES };
/// Three threads, two deaths, an heir that panics.
const HEIRS: Config = Config { kills: 2, panics: 1, ..DEATH };
/// Two locks, so that one death concerns two queues.
const LOCKS: Config = Config { programs: [NESTED, OTHER, ONCE, 0], ..DEATH };
/// Three threads, one death, and whoever comes may take the lock.
const THROUGHPUT: Config = Config { throughput: true, ..DEATH };
/// Two threads, no luck.
const PAIR: Config = Config { programs: [ONCE, ONCE, 0, 0], ..NOTHING };
/// And one of them cannot have a barrier.
const POLL: Config = Config { programs: [ONCE, UNFENCED, 0, 0], ..NOTHING };

const fn catch(mutant: Mutant, property: &'static str, config: Config) -> Catch {
    Catch { mutant, property, config, slow: false }
}

const fn slow(mutant: Mutant, property: &'static str, config: Config) -> Catch {
    Catch { slow: true, ..catch(mutant, property, config) }
}

/// The faults that the model sees.
pub(crate) const CAUGHT: &[Catch] = &[
    slow(Mutant::NoRelayAfterPark, NO_STUCK_WAITER, Config { give_ups: true, ..LOCKS }),
    slow(Mutant::NoPending, NO_STUCK_WAITER, Config { kills: 2, ..LOCKS }),
    catch(Mutant::NoNudgeOnGiveUp, NO_STUCK_WAITER, DEADLINES),
    catch(Mutant::NoNudgeInRelease, NO_STUCK_WAITER, DEATH),
    catch(Mutant::NoWakeAtGrant, NO_STUCK_WAITER, DEATH),
    catch(Mutant::NoDeadCheckOfPredecessor, NO_STUCK_WAITER, DEATH),
    catch(Mutant::NoDeadCheckOfOwner, NO_STUCK_WAITER, DEATH),
    catch(Mutant::NoGuardTakeover, NO_STUCK_WAITER, DEATH),
    catch(Mutant::NoRelayInGuard, NO_STUCK_WAITER, DEATH),
    slow(Mutant::NoPendingInGuard, NO_STUCK_WAITER, Config { kills: 2, ..DEADLINES }),
    catch(Mutant::GuardWithoutGeneration, CHAIN_TRUTH, TWO),
    catch(Mutant::GrantWithoutUnlink, NO_STUCK_WAITER, DEATH),
    catch(Mutant::UnlinkBeforeOwner, CHAIN_TRUTH, DEATH),
    catch(Mutant::NoReleaseSlow, NO_STUCK_WAITER, DEATH),
    catch(Mutant::BargePastQueue, FCFS, DEATH),
    catch(Mutant::NoSettleBarge, NO_STUCK_WAITER, DEATH),
    catch(Mutant::ReleaseGrants, NO_STUCK_WAITER, DEATH),
    catch(Mutant::GrantCurrentGeneration, FCFS, TWO),
    catch(Mutant::AttachWithoutUnlink, CHAIN_TRUTH, TWO),
    catch(Mutant::AttachWithoutNudge, NO_STUCK_WAITER, TWO),
    slow(Mutant::AttachWithoutNudgeHead, NO_STUCK_WAITER, REUSE),
    slow(Mutant::AttachWithoutRelays, NO_STUCK_WAITER, Config { kills: 2, reuses: 1, ..LOCKS }),
    catch(Mutant::GenerationNotBumped, FCFS, TWO),
    slow(Mutant::NoRereadOfPrev, NO_STUCK_WAITER, REUSE),
    catch(Mutant::InheritedDropped, TOLD_ONCE, DEATH),
    catch(Mutant::InheritedKept, TOLD_ONCE, DEATH),
    catch(Mutant::PanicNotRetold, TOLD_ONCE, HEIRS),
    catch(Mutant::PanicWithoutNudge, NO_STUCK_WAITER, HEIRS),
    catch(Mutant::WakeOnlyParked, NO_STUCK_WAITER, DEATH),
    catch(Mutant::NoBarrier, NO_STUCK_WAITER, PAIR),
    catch(Mutant::NoLookAfterBarrier, NO_STUCK_WAITER, PAIR),
    catch(Mutant::BarrierBeforeEnqueue, NO_STUCK_WAITER, PAIR),
    catch(Mutant::GrantedHastily, NO_STUCK_WAITER, DEATH),
    catch(Mutant::UnfencedSleeps, NO_STUCK_WAITER, POLL),
    catch(Mutant::UnregisteredHastily, NO_STUCK_WAITER, POLL),
    catch(Mutant::HeadNotForgotten, HINT_TRUTH, DEATH),
    catch(Mutant::NextNotForgotten, HINT_TRUTH, DEATH),
    catch(Mutant::NextInFrontNotForgotten, HINT_TRUTH, DEADLINES),
    catch(Mutant::HintBeforeUnlink, HINT_TRUTH, DEATH),
    catch(Mutant::NoNudgeBeforeYield, NO_STUCK_WAITER, THROUGHPUT),
    catch(Mutant::NoNudgeBeforeGrant, NO_STUCK_WAITER, THROUGHPUT),
];
