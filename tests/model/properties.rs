//! What must hold in every state.

use stateright::Property;

use crate::model::LockModel;
use crate::pc::Pc;
use crate::state::{Fault, LOCKS, ROWS, State};

/// I1.
pub(crate) const MUTUAL_EXCLUSION: &str = "mutual exclusion";
/// I2, and that no edit leaves a circle.
pub(crate) const CHAIN_TRUTH: &str = "chain truth";
/// That a hint is right or 0.
pub(crate) const HINT_TRUTH: &str = "hint truth";
/// I4.
pub(crate) const FCFS: &str = "first come, first served";
/// I5 and I7.
pub(crate) const NO_STUCK_WAITER: &str = "no stuck waiter";
/// I6.
pub(crate) const TOLD_ONCE: &str = "told exactly once";

/// All of them.
pub(crate) fn all() -> Vec<Property<LockModel>> {
    vec![
        Property::always(MUTUAL_EXCLUSION, |_, s| mutual_exclusion(s)),
        Property::always(CHAIN_TRUTH, |_, s| chain_truth(s)),
        Property::always(HINT_TRUTH, |_, s| hint_truth(s)),
        Property::always(FCFS, |_, s: &State| s.fault != Fault::Overtaken),
        Property::always(NO_STUCK_WAITER, no_stuck_waiter),
        Property::always(TOLD_ONCE, |_, s: &State| {
            !matches!(s.fault, Fault::Untold | Fault::ToldFalsely)
        }),
    ]
}

/// No lock is held by two live threads, and whoever unlocks is the owner.
fn mutual_exclusion(s: &State) -> bool {
    let mut held = 0;
    for thread in &s.threads {
        if held & thread.held != 0 {
            return false;
        }
        held |= thread.held;
    }
    s.fault != Fault::NotOwner
}

/// Every live waiter that is not the owner is reached from `tail`.
fn chain_truth(s: &State) -> bool {
    (0..LOCKS).all(|lock| {
        let Some(chain) = s.chain(lock) else {
            return false;
        };
        (0..ROWS).all(|i| {
            let thread = &s.threads[i];
            let waits = thread.waiting && usize::from(thread.lock) == lock;
            !waits
                || s.locks[lock].owner.plain() == s.id(i)
                || chain.as_slice().contains(&(i as u8 + 1))
        })
    }) && s.fault != Fault::NotLinked
}

/// A lock's `head`, if known, is the oldest of its queue; a row's `next`, if
/// known, is the one behind it in the queue that both are in.
///
/// In every state: the holder of the guard may be killed anywhere, and whoever
/// takes the guard over believes what the hints say.
fn hint_truth(s: &State) -> bool {
    let chains: [_; LOCKS] = std::array::from_fn(|lock| s.chain(lock).unwrap_or_default());
    let heads = s.locks.iter().zip(&chains).all(|(lock, chain)| {
        lock.head == 0 || chain.as_slice().last().is_some_and(|&oldest| oldest == lock.head)
    });
    // Newest first: who is behind comes first.
    let is_behind = |next: u8, x: u8| {
        chains.iter().any(|chain| chain.as_slice().windows(2).any(|pair| pair == [next, x]))
    };
    let mut rows = s.rows.iter().zip(1..);
    heads && rows.all(|(row, x)| row.next == 0 || is_behind(row.next, x))
}

/// Where nothing moves any more, every live thread is at the end of its program.
fn no_stuck_waiter(model: &LockModel, s: &State) -> bool {
    let done = s.threads.iter().all(|thread| thread.pc == Pc::Done);
    done || s.fault != Fault::None || model.moves(s)
}
