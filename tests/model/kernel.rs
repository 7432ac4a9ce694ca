//! What the kernel does: death, its late notice, and wakes.
//!
//! There are no queues of sleepers. A wake of one picks any sleeper of the
//! word: the kernel promises no order that the lock could rely on, and a state
//! without queues is smaller.

use crate::model::{Action, LockModel};
use crate::mutants::Mutant;
use crate::pc::Pc;
use crate::state::{DIED, Exit, Id, ROWS, State, Thread};

/// `FUTEX_WAKE(life[index], all)`.
pub(crate) fn wake_life(s: &mut State, index: u8) {
    for thread in &mut s.threads {
        if thread.pc == Pc::Sleeping && thread.peer == index {
            thread.pc = Pc::ParkLoadLife;
        }
    }
}

/// `FUTEX_WAKE(state[index])`: only the row's own thread sleeps on it.
pub(crate) fn wake_state(s: &mut State, index: u8) {
    let thread = &mut s.threads[usize::from(index) - 1];
    if thread.pc == Pc::Sleeping {
        thread.pc = Pc::ParkLoadLife;
    }
}

/// Can the thread of row `i` swallow a single wake of `life[index]`?
///
/// A sleeper can, and so can one that is awake for another reason but has not
/// left `futex_waitv` yet; and one that waits for the guard, parked on the life
/// of its holder.
pub(crate) fn absorbs(s: &State, i: usize, index: u8) -> bool {
    let thread = &s.threads[i];
    let holder = s.locks[usize::from(thread.lock)].guard.index();
    thread.alive
        && match thread.pc {
            Pc::Sleeping | Pc::ParkLoadLife => thread.peer == index,
            Pc::GuardTake => holder == index && usize::from(index) != i + 1,
            Pc::GuardRelay => thread.word.index() == index,
            _ => false,
        }
}

/// The life word that the next exit stage of row `i` wakes one sleeper of.
fn wake_target(s: &State, i: usize) -> Option<u8> {
    let thread = &s.threads[i];
    match thread.exit {
        Exit::Wake => Some(i as u8 + 1),
        // `handle_futex_death` wakes for the pending word if it has no TID.
        Exit::Pending if s.row(thread.exit_pending).life == DIED => Some(thread.exit_pending),
        _ => None,
    }
}

/// The ways in which the kernel can go on with the last death in row `i`.
pub(crate) fn exit_actions(s: &State, i: usize, actions: &mut Vec<Action>) {
    if s.threads[i].exit == Exit::Nothing {
        return;
    }
    let row = i as u8;
    let target = wake_target(s, i);
    let before = actions.len();
    if let Some(index) = target {
        let sleepers = (0..ROWS).filter(|&j| absorbs(s, j, index));
        actions.extend(sleepers.map(|j| Action::Exit { row, woken: j as u8 + 1 }));
    }
    if actions.len() == before {
        actions.push(Action::Exit { row, woken: 0 });
    }
}

/// One stage of `exit_robust_list`: mark the life word; wake one sleeper of it;
/// wake one sleeper of the pending word. Each is later than the one before,
/// and a new thread may have the row in between.
pub(crate) fn exit(s: &State, i: usize, woken: u8) -> State {
    let mut next = *s;
    if woken != 0 {
        let thread = &mut next.threads[usize::from(woken) - 1];
        if thread.pc == Pc::Sleeping {
            thread.pc = Pc::ParkLoadLife;
        }
    }
    let pending = s.threads[i].exit_pending;
    next.threads[i].exit = match s.threads[i].exit {
        Exit::Mark => {
            next.rows[i].life = DIED;
            Exit::Wake
        }
        Exit::Wake if pending != 0 => Exit::Pending,
        _ => {
            next.threads[i].exit_pending = 0;
            Exit::Nothing
        }
    };
    next
}

/// The thread of row `i` is killed before its next step.
pub(crate) fn kill(model: &LockModel, s: &State, i: usize) -> State {
    let mut next = *s;
    let index = i as u8 + 1;
    let id = s.id(i);
    let victim = s.threads[i];
    next.kills -= 1;
    // What it stored is not lost, and is seen before its death. (Later than
    // now: as if it had died later.)
    next.drain_all(i);
    for lock in &mut next.locks {
        lock.debt |= lock.owner.plain() == id;
    }
    let (exit, exit_pending) = match victim.pc {
        // `attach` has not told the kernel of this life word yet, or only by
        // `list_op_pending`, and the word still says DIED.
        Pc::AttachGeneration => (Exit::Nothing, 0),
        Pc::AttachLife => (Exit::Pending, index),
        Pc::GuardTake | Pc::GuardRelay if model.is(Mutant::NoPendingInGuard) => (Exit::Mark, 0),
        Pc::GuardTake => {
            let holder = s.locks[usize::from(victim.lock)].guard.index();
            (Exit::Mark, if holder == index { 0 } else { holder })
        }
        Pc::GuardRelay => (Exit::Mark, victim.word.index()),
        _ => (Exit::Mark, victim.pending),
    };
    next.threads[i] = Thread { exit, exit_pending, ..Thread::default() };
    forget(&mut next, index);
    next
}

/// Nobody need be behind row `index` any more.
pub(crate) fn forget(s: &mut State, index: u8) {
    s.threads[usize::from(index) - 1].waiting = false;
    for thread in &mut s.threads {
        thread.ahead &= !(1 << (index - 1));
    }
}

/// A new thread finds the dead row and starts to attach. (Which of several such
/// threads gets the row is settled outside of this model.)
pub(crate) fn reuse(s: &State, i: usize, program: u8) -> State {
    let mut next = *s;
    next.reuses -= 1;
    next.threads[i] = Thread {
        alive: true,
        pc: Pc::AttachGeneration,
        program,
        heir_of: Id::NOBODY,
        exit: s.threads[i].exit,
        exit_pending: s.threads[i].exit_pending,
        ..Thread::default()
    };
    next
}
