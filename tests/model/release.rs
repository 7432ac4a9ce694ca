//! The queue's guard and what is done under it; `RawMutex::unlock`,
//! `grant_slow`, `release_slow`.
//!
//! The guard word names its holder by index *and generation*. With the index
//! alone, a thread that has read the holder as dead could take the guard from
//! the thread that re-uses the holder's row and holds the guard by the same
//! word ([`Mutant::GuardWithoutGeneration`]).

use crate::kernel;
use crate::mutants::Mutant;
use crate::pc::{Job, Pc};
use crate::state::{Code, Fault, Id, State, Thread};
use crate::step::Stepper;

impl Stepper<'_> {
    /// `row.lock`, the guard, walks and nudges.
    pub(crate) fn step_queue(&mut self, pc: Pc) {
        match pc {
            Pc::PublishRow => {
                self.s.rows[self.i].lock = self.thread().lock + 1;
                self.go(Pc::GuardTake);
            }
            Pc::ClearRow => self.clear_row(),
            Pc::GuardTake => self.guard_take(),
            Pc::GuardRelay => {
                if !self.is(Mutant::NoRelayInGuard) {
                    let index = self.thread().word.index();
                    kernel::wake_life(&mut self.s, index);
                }
                self.go(Pc::GuardSteal);
            }
            Pc::GuardSteal if self.header().guard == self.registers().word => self.guard_taken(),
            Pc::GuardSteal => self.go(Pc::GuardTake),
            Pc::GuardDrop => self.guard_drop(),
            Pc::FindHead => self.find_head(),
            Pc::OldestWalk => self.oldest_walk(),
            Pc::UnlinkWalk => self.unlink_walk(),
            Pc::UnlinkForget => self.unlink_forget(),
            Pc::UnlinkHint => self.unlink_hint(),
            Pc::NudgeState => self.nudge_state(),
            Pc::NudgeWake => {
                let index = self.thread().peer;
                kernel::wake_state(&mut self.s, index);
                self.nudged();
            }
            _ => unreachable!("not a step of the queue"),
        }
    }

    /// Out of the slow path. What `state` is left at means nothing from here
    /// on; [`Code::Idle`] stands for all of it.
    fn clear_row(&mut self) {
        let row = &mut self.s.rows[self.i];
        row.lock = 0;
        row.prev = 0;
        row.waiting_as = Id::NOBODY;
        row.code = Code::Idle;
        match self.thread().job {
            Job::Attach => self.go(Pc::AttachRelayAgain),
            Job::YieldServe => self.lock_slow(),
            _ => self.next_operation(),
        }
    }

    /// The word by which this thread holds the guard.
    fn guard_word(&self) -> Id {
        if self.is(Mutant::GuardWithoutGeneration) { Id::new(self.index(), 0) } else { self.me() }
    }

    /// CAS from 0; or the word names this row (its dead thread's); or the
    /// holder is dead. The load of the word and of the holder's life are one
    /// step: a dead holder that has the guard when the CAS succeeds has had it
    /// since before it died.
    fn guard_take(&mut self) {
        let guard = self.lock().guard;
        if guard.is_nobody() || guard.index() == self.index() {
            self.guard_taken();
        } else {
            self.thread().word = guard;
            self.go(Pc::GuardRelay);
        }
    }

    /// The guard becomes this thread's, no repair needed.
    fn guard_taken(&mut self) {
        self.lock().guard = self.guard_word();
        match self.thread().job {
            Job::Barge | Job::Grant | Job::Release => self.go(Pc::FindHead),
            job @ (Job::Splice | Job::Leave | Job::Attach) => self.unlink(job),
            Job::GiveUp => self.go(Pc::GiveUpLoadOwner),
            _ => unreachable!("no use for the guard"),
        }
    }

    fn guard_drop(&mut self) {
        self.lock().guard = Id::NOBODY;
        let Thread { job, peer, .. } = self.registers();
        let nobody = peer == 0;
        match job {
            Job::Splice => self.go(Pc::LookOwner),
            Job::Grant if nobody => self.go(Pc::UnlockReloadTail),
            Job::Serve | Job::YieldServe if nobody => self.go(Pc::ClearRow),
            Job::Serve | Job::YieldServe => self.go(Pc::GrantWake),
            Job::Release if nobody || self.is(Mutant::NoNudgeInRelease) => self.go(Pc::ClearRow),
            Job::Release => self.work(Job::ReleaseHead, Pc::NudgeState),
            _ => self.go(Pc::ClearRow),
        }
    }

    /// WAITING | PARKED -> NUDGED in the round remembered. A load and a CAS
    /// that is repeated until it succeeds are one step: what was loaded is what
    /// the CAS replaced.
    ///
    /// Who finds NUDGED wakes too: whoever stored it may have been killed
    /// before its wake ([`Mutant::WakeOnlyParked`]).
    fn nudge_state(&mut self) {
        let (index, round) = (self.thread().peer, self.thread().peer_round);
        let only_parked = self.is(Mutant::WakeOnlyParked);
        let row = self.s.row_mut(index);
        let wakes = match row.code {
            _ if row.round != round => false,
            Code::Waiting => {
                row.code = Code::Nudged;
                false
            }
            Code::Parked => {
                row.code = Code::Nudged;
                true
            }
            Code::Nudged => !only_parked,
            Code::Granted | Code::Idle => false,
        };
        if wakes { self.go(Pc::NudgeWake) } else { self.nudged() }
    }

    /// What comes after a nudge.
    fn nudged(&mut self) {
        match self.registers().job {
            Job::Grant if self.nudges_at_grant() => self.go(Pc::GrantOwner),
            Job::Grant | Job::Release => self.go(Pc::FindHead),
            Job::Yield => self.go(Pc::GrantOwner),
            Job::ReleaseHead => self.go(Pc::ClearRow),
            _ => self.go(Pc::GuardDrop),
        }
    }

    /// `RawMutex::unlock`, `grant_slow`, `release_slow`.
    pub(crate) fn step_unlock(&mut self, pc: Pc) {
        match pc {
            Pc::UnlockLoadTail => self.unlock_load_tail(),
            Pc::UnlockStoreOwner => {
                self.free();
                self.unlock_stored();
            }
            Pc::UnlockStoreHastily => {
                let lock = self.lock_number();
                self.thread().buffer.push(lock);
                self.unlock_stored();
            }
            Pc::UnlockStoreDead => self.unlock_store_dead(),
            Pc::UnlockReloadTail => self.unlock_reload_tail(),
            Pc::SpliceStore | Pc::GrantUnlink => self.unlink_store(),
            Pc::GrantFree => {
                self.free();
                self.go(Pc::GuardDrop);
            }
            Pc::GrantOwner => self.grant_owner(),
            Pc::GrantState => self.grant_state(),
            Pc::GrantWake => {
                let index = self.thread().peer;
                kernel::wake_state(&mut self.s, index);
                self.go(Pc::ClearRow);
            }
            _ => unreachable!("not a step of unlock"),
        }
    }

    /// Of `unlock_fast` or of `unlock_slow`. (Who finds a queue in the former
    /// looks once more in the latter: as if it looked then only. It may find
    /// none any more, and then does what [`Pc::UnlockStoreHastily`] and a buffer
    /// that is drained at once do.)
    fn unlock_load_tail(&mut self) {
        self.leave_critical_section();
        let hasty = self.is_hasty() || self.is(Mutant::GrantedHastily);
        let bit = 1 << self.lock_number();
        self.thread().hasty &= !bit;
        match self.lock().tail {
            0 if hasty => self.go(Pc::UnlockStoreHastily),
            0 => self.go(Pc::UnlockStoreOwner),
            _ => self.work(Job::Grant, Pc::PublishRow),
        }
    }

    /// The lock's policy decides the other way.
    pub(crate) fn otherwise(mut self) -> State {
        if self.registers().pc == Pc::FindHead {
            self.thread().job = Job::Yield;
            self.find_head();
        } else if self.registers().pc == Pc::LockReloadTail {
            // `all_are_patient`: a look at the head's time, without the guard.
            self.acquired();
            self.lock_done();
        } else {
            self.leave_critical_section();
            let bit = 1 << self.lock_number();
            self.thread().hasty &= !bit;
            self.go(Pc::UnlockStoreOwner);
        }
        self.s
    }

    fn unlock_stored(&mut self) {
        if self.is(Mutant::NoReleaseSlow) {
            self.next_operation();
        } else {
            self.go(Pc::UnlockReloadTail);
        }
    }

    fn leave_critical_section(&mut self) {
        if !self.owns() {
            self.s.fault = Fault::NotOwner;
        }
        let bit = 1 << self.lock_number();
        self.thread().held &= !bit;
    }

    /// `owner = 0`.
    fn free(&mut self) {
        self.s.free(self.lock_number());
    }

    /// An heir panics before its release: the next owner is to be told again.
    pub(crate) fn panic(mut self) -> State {
        self.leave_critical_section();
        self.s.panics -= 1;
        let heir_of = self.thread().heir_of;
        if self.is(Mutant::PanicNotRetold) {
            self.lock().debt = true;
            self.go(Pc::UnlockStoreOwner);
        } else {
            self.thread().word = heir_of;
            self.go(Pc::UnlockStoreDead);
        }
        self.s
    }

    /// `owner = the dead id`, and on as after `owner = 0`: no hand-over.
    fn unlock_store_dead(&mut self) {
        let dead = self.thread().word;
        let lock = self.lock();
        lock.owner = dead;
        lock.inherited = false;
        lock.debt = true;
        if self.is(Mutant::PanicWithoutNudge) {
            self.next_operation();
        } else {
            self.go(Pc::UnlockReloadTail);
        }
    }

    /// Behind a hasty release the store may still be in the buffer: then the
    /// processor executes this load first.
    fn unlock_reload_tail(&mut self) {
        let published = self.s.rows[self.i].lock != 0;
        let head = self.header().head;
        if self.model.config.throughput && self.header().tail != 0 && head != 0 {
            // The load of `head`, just behind that of `tail`.
            self.target(head);
            return self.work(Job::ReleaseHead, Pc::NudgeState);
        }
        match (self.lock().tail, published) {
            (0, false) => self.next_operation(),
            (0, true) => self.work(Job::Release, Pc::ClearRow),
            (_, false) => self.work(Job::Release, Pc::PublishRow),
            (_, true) => self.work(Job::Release, Pc::GuardTake),
        }
    }

    /// The hand-over: one store.
    fn grant_owner(&mut self) {
        let (index, id) = (self.thread().peer, self.thread().peer_id);
        let id = match self.is(Mutant::GrantCurrentGeneration) {
            true => Id::new(index, self.s.row(index).generation),
            false => id,
        };
        let keeps = self.is(Mutant::InheritedKept);
        // Whoever is killed before it is granted the lock is an owner that died.
        let i = usize::from(index) - 1;
        let thread = &self.s.threads[i];
        let new = thread.pc == Pc::AttachGeneration || self.s.id(i) != id;
        let dead = !thread.alive || new;
        let lock = self.lock();
        lock.owner = id.as_fencing();
        lock.inherited &= keeps;
        lock.debt |= dead;
        if self.is(Mutant::UnlinkBeforeOwner) || self.is(Mutant::GrantWithoutUnlink) {
            self.work(Job::Serve, Pc::GrantState);
        } else {
            let yields = self.registers().job == Job::Yield;
            self.unlink(if yields { Job::YieldServe } else { Job::Serve });
        }
    }

    /// GRANTED, in the round remembered; a CAS as in [`Self::nudge_state`]. Under
    /// the guard still; the wake comes behind it, if one is due.
    fn grant_state(&mut self) {
        let (index, round) = (self.thread().peer, self.thread().peer_round);
        let only_parked = self.is(Mutant::WakeOnlyParked);
        let no_wake = self.is(Mutant::NoWakeAtGrant);
        let row = self.s.row_mut(index);
        let mut wakes = false;
        if row.round == round && row.code != Code::Idle {
            wakes = row.code == Code::Parked || row.code == Code::Nudged && !only_parked;
            row.code = Code::Granted;
        }
        if !wakes || no_wake {
            self.thread().peer = 0;
        }
        self.go(Pc::GuardDrop);
    }
}
