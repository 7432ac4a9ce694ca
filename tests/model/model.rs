//! The state machine: who may do what in a state, and which part of the state
//! is worth telling apart.

use stateright::{Model, Property};

use crate::mutants::Mutant;
use crate::pc::{Job, Pc};
use crate::state::{DIED, Exit, Fault, Fenced, Id, LOCKS, ROWS, Row, State, Thread, tid};
use crate::step::Stepper;
use crate::{kernel, properties};

/// One operation of a thread's program, on a lock (0-based).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    /// `lock`, or a timed lock where the configuration has give-ups.
    Lock(u8),
    /// `try_lock` as `lock_slow` with a deadline that has passed.
    Try(u8),
    /// `unlock`; skipped if the lock was not obtained.
    Unlock(u8),
}

use Op::{Lock, Try, Unlock};

/// What threads do. [`Config::programs`] and [`Config::reuser`] index it.
pub(crate) const PROGRAMS: &[&[Op]] = &[
    &[],
    &[Lock(0), Unlock(0)],
    &[Lock(0), Unlock(0), Lock(0), Unlock(0)],
    &[Lock(1), Unlock(1)],
    &[Lock(0), Lock(1), Unlock(1), Unlock(0)],
    &[Try(0), Unlock(0)],
    &[Lock(0), Unlock(0)],
];

/// Locks A once.
pub(crate) const ONCE: u8 = 1;
/// Locks A twice, one after the other.
pub(crate) const TWICE: u8 = 2;
/// Locks B once.
pub(crate) const OTHER: u8 = 3;
/// Locks B inside A.
pub(crate) const NESTED: u8 = 4;
/// Tries A once.
pub(crate) const TRIES: u8 = 5;

/// Locks A once, and cannot have the others fence: its process is refused
/// `membarrier` from some time after it joined. (Who is refused at once also
/// fences itself from the start, as [`Thread::fencing`] says.)
pub(crate) const UNFENCED: u8 = 6;

/// The bounds of an exploration.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Config {
    /// The program of each row's first thread; 0 is an unused row.
    pub(crate) programs: [u8; ROWS],
    /// May a waiter's deadline pass, at any time?
    pub(crate) give_ups: bool,
    /// How many threads are killed.
    pub(crate) kills: u8,
    /// How many dead rows are taken over by a new thread.
    pub(crate) reuses: u8,
    /// The program of those.
    pub(crate) reuser: u8,
    /// How many heirs panic.
    pub(crate) panics: u8,
    /// May whoever comes take a free lock, whoever waits?
    pub(crate) throughput: bool,
    /// The deliberate fault.
    pub(crate) mutant: Option<Mutant>,
}

/// The lock algorithm, within bounds.
#[derive(Clone, Debug)]
pub(crate) struct LockModel {
    /// The bounds.
    pub(crate) config: Config,
}

/// What happens next. Rows are 0-based here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// The thread takes its next step.
    Step(u8),
    /// The waiting thread finds that its deadline has passed.
    Expire(u8),
    /// The thread unlocks because it panics, being an heir.
    Panic(u8),
    /// The thread is killed instead of taking its next step.
    Kill(u8),
    /// The kernel goes on with the row's last death; `woken` is the sleeper
    /// (1-based, 0 if there is none) that gets the single wake.
    Exit {
        /// The row of the dead thread.
        row: u8,
        /// Who is woken.
        woken: u8,
    },
    /// A new thread takes the dead row over.
    Reuse(u8),
    /// The oldest store in the thread's buffer becomes visible.
    Drain(u8),
    /// The waiting thread, which polls, looks again.
    Poll(u8),
    /// The thread takes its next step, and decides the other way: who has waited
    /// longest has not waited too long (`unlock`), or it has (`settle_barge`).
    Otherwise(u8),
}

impl LockModel {
    /// Is the deliberate fault `mutant` in force?
    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.config.mutant == Some(mutant)
    }

    /// Could the thread of row `i` take a step on its own?
    ///
    /// A thread that waits for the guard is one that is blocked: its parking on
    /// the guard and on the life of its holder is not spelt out, only what the
    /// holder's death needs of it (see [`crate::kernel::absorbs`]).
    fn can_step(&self, s: &State, i: usize) -> bool {
        let thread = &s.threads[i];
        match thread.pc {
            Pc::Done | Pc::Sleeping => false,
            pc if !thread.buffer.is_empty() && !pc.may_be_buffered() => false,
            Pc::GuardTake => {
                let guard = s.locks[usize::from(thread.lock)].guard;
                guard.is_nobody()
                    || guard.index() == i as u8 + 1
                    || s.row(guard.index()).life == DIED && !self.is(Mutant::NoGuardTakeover)
            }
            _ => true,
        }
    }

    /// Can anything happen that needs no luck? Deadlines, kills and new threads
    /// do not count: a waiter must not depend on them.
    pub(crate) fn moves(&self, s: &State) -> bool {
        (0..ROWS).any(|i| {
            let thread = &s.threads[i];
            let goes_on = self.can_step(s, i) || !thread.buffer.is_empty() || polls(thread);
            thread.exit != Exit::Nothing || thread.alive && goes_on
        })
    }

    /// Is the thread of row `i` where a lock's policy has to decide?
    fn decides(&self, s: &State, i: usize) -> bool {
        let thread = &s.threads[i];
        match thread.pc {
            Pc::UnlockLoadTail => s.locks[usize::from(thread.lock)].tail != 0,
            Pc::FindHead => thread.job == Job::Barge,
            Pc::LockReloadTail => s.locks[usize::from(thread.lock)].tail != 0,
            _ => false,
        }
    }

    fn kill_action(&self, s: &State, i: usize) -> Option<Action> {
        let thread = &s.threads[i];
        // A second death in the row while the kernel is busy with the first is
        // left out: there is one set of exit registers for each row.
        let done = thread.pc == Pc::Done && thread.buffer.is_empty();
        let killable = s.kills > 0 && !done && thread.exit == Exit::Nothing;
        killable.then_some(Action::Kill(i as u8))
    }

    fn thread_actions(&self, s: &State, i: usize, actions: &mut Vec<Action>) {
        let thread = &s.threads[i];
        let row = i as u8;
        if self.can_step(s, i) {
            actions.push(Action::Step(row));
        }
        if !thread.buffer.is_empty() {
            actions.push(Action::Drain(row));
        }
        if polls(thread) {
            actions.push(Action::Poll(row));
        }
        if matches!(thread.pc, Pc::FenceOwners | Pc::DemandFences | Pc::ParkState | Pc::Sleeping)
            && self.config.give_ups
            && !thread.expired
        {
            actions.push(Action::Expire(row));
        }
        if self.config.throughput && self.decides(s, i) {
            actions.push(Action::Otherwise(row));
        }
        let heir = s.locks[usize::from(thread.lock)].inherited;
        if thread.pc == Pc::UnlockLoadTail && s.panics > 0 && heir {
            actions.push(Action::Panic(row));
        }
        actions.extend(self.kill_action(s, i));
    }

    /// A thread whose step commutes with everything that others can do goes
    /// first, alone: the other orders lead to the same states. Its kill stays
    /// possible. No circle of steps consists of such steps only.
    fn first_of_all(&self, s: &State) -> Option<usize> {
        (0..ROWS).find(|&i| {
            let thread = &s.threads[i];
            // A splice may have the life in front still to load.
            let hint = thread.pc.is_hint()
                && (thread.pc != Pc::SpliceOwn || thread.behind != 0)
                && !self.config.throughput;
            let local = hint || thread.pc.is_local() && !is_targeted(s, i);
            thread.alive && thread.buffer.is_empty() && local
        })
    }
}

/// Is the thread asleep, and not for long?
fn polls(thread: &Thread) -> bool {
    thread.pc == Pc::Sleeping && thread.fenced == Fenced::Polls
}

/// Does another thread hold `{row, round}` of row `i`, to nudge or to grant?
fn is_targeted(s: &State, i: usize) -> bool {
    s.threads.iter().enumerate().any(|(j, thread)| {
        j != i && usize::from(thread.peer) == i + 1 && thread.pc.live(thread.job).round
    })
}

/// Forgets what nobody can read any more, so that states which differ in it
/// only are one state.
pub(crate) fn normalise(s: &mut State) {
    for i in 0..ROWS {
        let thread = &mut s.threads[i];
        let live = thread.pc.live(thread.job);
        thread.word = if live.word { thread.word } else { Id::NOBODY };
        thread.peer = if live.peer { thread.peer } else { 0 };
        thread.seen = if live.seen { thread.seen } else { 0 };
        thread.peer_id = if live.id { thread.peer_id } else { Id::NOBODY };
        thread.peer_round = if live.round { thread.peer_round } else { 0 };
        thread.behind = if live.behind { thread.behind } else { 0 };
        thread.job = if live.job { thread.job } else { Default::default() };
        // A poll is one sleep's. What a barrier has shown is one wait's.
        let over = match thread.fenced {
            Fenced::Polls => !(Pc::ParkState..=Pc::Sleeping).contains(&thread.pc),
            _ => !thread.waiting && thread.pc > Pc::EnqueueCasTail || thread.job == Job::GiveUp,
        };
        if over {
            thread.fenced = Fenced::No;
        }
        if s.panics == 0 {
            thread.heir_of = Id::NOBODY;
        }
        let (alive, lock) = (thread.alive, s.rows[i].lock);
        // A wake or a code for a dead thread has no effect, and `prev` is read
        // of linked rows only.
        if !alive && s.rows[i].life != 0 {
            s.rows[i].code = Default::default();
            if lock == 0 || !s.is_linked(usize::from(lock) - 1, i as u8 + 1) {
                s.rows[i].prev = 0;
                s.rows[i].waiting_as = Id::NOBODY;
            }
        }
    }
    // Rounds are compared with remembered rounds only.
    for i in 0..ROWS {
        if !is_targeted(s, i) {
            s.rows[i].round = 0;
        }
    }
}

/// No kill is left and nobody is inside an edit: from here on each edit is one
/// step, which does the same whether it knows a hint or finds out by a walk. So
/// which hints are known does not matter, if they are right; and whether they
/// are has been seen in the states up to here, what the last dead editor left
/// behind and what the next one made of it included.
fn forget_hints(s: &mut State, lock: usize) {
    if !s.locks[lock].guard.is_nobody() {
        return;
    }
    s.locks[lock].head = 0;
    for &row in s.chain(lock).unwrap_or_default().as_slice() {
        s.row_mut(row).next = 0;
    }
}

impl Model for LockModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut s = State {
            kills: self.config.kills,
            reuses: self.config.reuses,
            panics: self.config.panics,
            ..State::default()
        };
        for (i, &program) in self.config.programs.iter().enumerate() {
            if program != 0 {
                s.rows[i] = Row { life: tid(0), ..Row::default() };
                s.threads[i] = Thread { alive: true, program, ..Thread::default() };
                s = Stepper::new(self, s, i).begin();
            }
        }
        vec![s]
    }

    fn actions(&self, s: &State, actions: &mut Vec<Action>) {
        if s.fault != Fault::None {
            return;
        }
        if let Some(i) = self.first_of_all(s) {
            actions.push(Action::Step(i as u8));
            actions.extend(self.kill_action(s, i));
            return;
        }
        for i in 0..ROWS {
            if s.threads[i].alive {
                self.thread_actions(s, i, actions);
            } else if s.reuses > 0 && s.rows[i].life == DIED {
                actions.push(Action::Reuse(i as u8));
            }
            kernel::exit_actions(s, i, actions);
        }
    }

    fn next_state(&self, s: &State, action: Action) -> Option<State> {
        let mut next = match action {
            Action::Step(i) => Stepper::new(self, *s, i.into()).step(),
            Action::Expire(i) => Stepper::new(self, *s, i.into()).expire(),
            Action::Panic(i) => Stepper::new(self, *s, i.into()).panic(),
            Action::Kill(i) => kernel::kill(self, s, i.into()),
            Action::Exit { row, woken } => kernel::exit(s, row.into(), woken),
            Action::Reuse(i) => kernel::reuse(s, i.into(), self.config.reuser),
            Action::Drain(i) => {
                let mut next = *s;
                next.drain(i.into());
                next
            }
            Action::Poll(i) => Stepper::new(self, *s, i.into()).poll(),
            Action::Otherwise(i) => Stepper::new(self, *s, i.into()).otherwise(),
        };
        normalise(&mut next);
        // Of a throughput lock the head is looked at without the guard.
        if next.kills == 0 && !self.config.throughput {
            (0..LOCKS).for_each(|lock| forget_hints(&mut next, lock));
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

const _: () = assert!(LOCKS == 2, "programs name locks 0 and 1");
