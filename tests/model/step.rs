//! One step of one thread: the frame around the functions of the crate.

use crate::kernel;
use crate::model::{LockModel, Op, PROGRAMS, UNFENCED};
use crate::mutants::Mutant;
use crate::pc::{Job, Pc};
use crate::state::{DIED, Fault, Fenced, Id, Lock, ROWS, State, Thread};

/// A thread about to take a step.
pub(crate) struct Stepper<'m> {
    /// The bounds, and the deliberate fault.
    pub(crate) model: &'m LockModel,
    /// The state, being changed into the next.
    pub(crate) s: State,
    /// The thread's row, 0-based.
    pub(crate) i: usize,
}

impl<'m> Stepper<'m> {
    /// Thread `i` in state `s`.
    pub(crate) fn new(model: &'m LockModel, s: State, i: usize) -> Self {
        Stepper { model, s, i }
    }

    /// The thread's first operation.
    pub(crate) fn begin(mut self) -> State {
        self.next_operation();
        self.s
    }

    /// The thread takes the step at its program counter.
    pub(crate) fn step(mut self) -> State {
        match self.thread().pc {
            pc if pc < Pc::LookOwner => self.step_lock(pc),
            pc if pc < Pc::PublishRow => self.step_wait(pc),
            pc if pc < Pc::UnlockLoadTail => self.step_queue(pc),
            pc if pc < Pc::AttachGeneration => self.step_unlock(pc),
            pc => self.step_attach(pc),
        }
        self.s
    }

    /// The thread's registers.
    pub(crate) fn thread(&mut self) -> &mut Thread {
        &mut self.s.threads[self.i]
    }

    /// The lock that the thread operates on.
    pub(crate) fn lock(&mut self) -> &mut Lock {
        &mut self.s.locks[usize::from(self.s.threads[self.i].lock)]
    }

    /// The thread's registers, to read.
    pub(crate) fn registers(&self) -> Thread {
        self.s.threads[self.i]
    }

    /// The lock that the thread operates on, to read.
    pub(crate) fn header(&self) -> Lock {
        self.s.locks[self.lock_number()]
    }

    /// The lock's number, 0-based.
    pub(crate) fn lock_number(&self) -> usize {
        usize::from(self.s.threads[self.i].lock)
    }

    /// The thread's index, 1-based.
    pub(crate) fn index(&self) -> u8 {
        self.i as u8 + 1
    }

    /// The thread's id.
    pub(crate) fn me(&self) -> Id {
        self.s.id(self.i)
    }

    /// Is the owner word this thread's?
    pub(crate) fn owns(&self) -> bool {
        self.header().owner.plain() == self.me()
    }

    /// The next step.
    pub(crate) fn go(&mut self, pc: Pc) {
        self.thread().pc = pc;
    }

    /// The next step, on behalf of `job`.
    pub(crate) fn work(&mut self, job: Job, pc: Pc) {
        self.thread().job = job;
        self.thread().pc = pc;
    }

    /// Is the deliberate fault `mutant` in force?
    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.model.is(mutant)
    }

    /// Does `grant_slow` nudge the oldest before it hands over?
    pub(crate) fn nudges_at_grant(&self) -> bool {
        self.model.config.throughput && !self.is(Mutant::NoNudgeBeforeGrant)
    }

    /// Does the row's life word say that its thread died?
    pub(crate) fn died(&self, index: u8) -> bool {
        self.s.row(index).life == DIED
    }

    /// Remembers `{row, id, round}` of a waiter, as read under the guard.
    pub(crate) fn target(&mut self, index: u8) {
        self.thread().peer = index;
        if index != 0 {
            let row = *self.s.row(index);
            self.thread().peer_round = row.round;
            self.thread().peer_id = row.waiting_as;
        }
    }

    /// Past the doorway: everybody alive who waits for this lock goes first.
    pub(crate) fn doorway(&mut self) {
        if self.model.config.throughput {
            return;
        }
        let lock = self.thread().lock;
        let threads = self.s.threads.iter().enumerate();
        self.s.threads[self.i].ahead = threads
            .filter(|(j, t)| *j != self.i && t.alive && t.waiting && t.lock == lock)
            .fold(0, |ahead, (j, _)| ahead | 1 << j);
    }

    /// This thread knows that it owns the lock.
    pub(crate) fn acquired(&mut self) {
        let lock = *self.lock();
        if self.thread().ahead != 0 {
            self.s.fault = Fault::Overtaken;
        } else if lock.debt && !lock.inherited {
            self.s.fault = Fault::Untold;
        } else if lock.inherited && !lock.debt {
            self.s.fault = Fault::ToldFalsely;
        }
        self.lock().debt = false;
        let bit = 1 << self.lock_number();
        self.thread().held |= bit;
        self.thread().expired = false;
        kernel::forget(&mut self.s, self.i as u8 + 1);
    }

    /// This thread waits no more, without the lock.
    pub(crate) fn gave_up(&mut self) {
        self.thread().expired = false;
        self.thread().ahead = 0;
        kernel::forget(&mut self.s, self.i as u8 + 1);
    }

    /// Does the lock's guard say that it was acquired on the fast path, and may
    /// the thread release such a lock without a fence?
    pub(crate) fn is_hasty(&self) -> bool {
        let thread = self.registers();
        thread.hasty & 1 << thread.lock != 0 && !thread.fencing
    }

    /// `membarrier`: the buffer of whoever has freed the lock that this thread
    /// waits for, and nobody saw it, drains.
    ///
    /// The other buffers drain as well, each at another moment of the call. No
    /// waiter can tell: of each lock one store at most is in all the buffers,
    /// and before its own lock's is drained it is as if the call came later.
    pub(crate) fn membarrier(&mut self) {
        let lock = self.lock_number();
        for i in 0..ROWS {
            let thread = &self.s.threads[i];
            if thread.program == UNFENCED && self.is(Mutant::UnregisteredHastily) {
                continue;
            }
            if thread.buffer.locks().any(|freed| freed == lock) {
                self.s.drain_all(i);
            }
        }
        self.thread().fenced = Fenced::Yes;
    }

    /// Is the operation in progress a `try_lock`?
    pub(crate) fn is_try(&self) -> bool {
        let thread = self.registers();
        matches!(PROGRAMS[usize::from(thread.program)][usize::from(thread.op) - 1], Op::Try(_))
    }

    /// Goes on to the next operation that applies. No access to shared memory,
    /// hence no step of its own.
    pub(crate) fn next_operation(&mut self) {
        self.thread().ahead = 0;
        if self.thread().held == 0 {
            self.thread().heir_of = Id::NOBODY;
        }
        let program = PROGRAMS[usize::from(self.thread().program)];
        loop {
            let op = usize::from(self.thread().op);
            let Some(&operation) = program.get(op) else {
                self.go(Pc::Done);
                return;
            };
            self.thread().op += 1;
            let (lock, pc) = match operation {
                Op::Lock(lock) | Op::Try(lock) => (lock, Pc::LockLoadTail),
                Op::Unlock(lock) if self.thread().held & 1 << lock != 0 => {
                    (lock, Pc::UnlockLoadTail)
                }
                Op::Unlock(_) => continue,
            };
            self.thread().lock = lock;
            self.go(pc);
            return;
        }
    }
}
