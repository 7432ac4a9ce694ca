//! `RawMutex::lock`, `lock_slow` and its wait loop, `park`, `leave`, `give_up`.

use crate::kernel;
use crate::model::UNFENCED;
use crate::mutants::Mutant;
use crate::pc::{Job, Pc};
use crate::state::{Code, Fenced, Id, State, tid};
use crate::step::Stepper;

impl Stepper<'_> {
    /// `RawMutex::lock`, and `lock_slow` up to the doorway.
    pub(crate) fn step_lock(&mut self, pc: Pc) {
        match pc {
            Pc::LockLoadTail => self.lock_load_tail(),
            Pc::LockCasOwner | Pc::BargeCasOwner => self.lock_cas_owner(),
            Pc::LockReloadTail => match self.header().tail {
                0 if self.model.config.throughput => {
                    self.acquired();
                    self.lock_done();
                }
                0 => self.lock_done(),
                _ => {
                    if self.is(Mutant::SettledHastily) {
                        self.mark_hasty();
                    }
                    self.work(Job::Barge, Pc::PublishRow);
                }
            },
            Pc::LookWhoFences => {
                self.thread().fencing |= self.s.fences;
                self.go(Pc::PublishLock);
            }
            Pc::PublishLock => {
                self.s.rows[self.i].lock = self.thread().lock + 1;
                self.go(Pc::PublishId);
            }
            Pc::PublishId => {
                self.s.rows[self.i].waiting_as = self.me();
                self.go(Pc::PublishState);
            }
            Pc::PublishState => {
                self.s.rows[self.i].round += 1;
                self.s.rows[self.i].code = Code::Waiting;
                self.go(Pc::EnqueueLoadTail);
            }
            Pc::EnqueueLoadTail => {
                self.thread().peer = self.lock().tail;
                if self.is(Mutant::BarrierBeforeEnqueue) {
                    self.membarrier();
                }
                self.go(Pc::EnqueueStorePrev);
            }
            Pc::EnqueueStorePrev => {
                self.s.rows[self.i].prev = self.thread().peer;
                self.go(Pc::EnqueueCasTail);
            }
            Pc::EnqueueCasTail => self.enqueue_cas_tail(),
            _ => unreachable!("not a step of lock"),
        }
    }

    /// An empty queue is the doorway of the fast path.
    fn lock_load_tail(&mut self) {
        if self.lock().tail == 0 || self.is(Mutant::BargePastQueue) {
            self.doorway();
            self.go(Pc::LockCasOwner);
        } else if self.model.config.throughput && !self.is_try() {
            self.go(Pc::BargeCasOwner);
        } else {
            self.lock_slow();
        }
    }

    fn lock_cas_owner(&mut self) {
        if self.lock().owner.is_nobody() {
            let me = self.me();
            let fences = self.registers().fencing || self.registers().pc == Pc::BargeCasOwner;
            self.own(if fences { me.as_fencing() } else { me }, false);
            // Who barges may hand over yet, and has not acquired before.
            let settles = !self.is(Mutant::NoSettleBarge);
            if !self.model.config.throughput || !settles {
                self.acquired();
            }
            if settles {
                self.go(Pc::LockReloadTail);
            } else {
                self.lock_done();
            }
        } else {
            self.thread().ahead = 0;
            self.lock_slow();
        }
    }

    /// Acquired on the fast path: `Fast::Done`.
    pub(crate) fn lock_done(&mut self) {
        if !self.header().owner.fences() {
            self.mark_hasty();
        }
        self.next_operation();
    }

    fn mark_hasty(&mut self) {
        let bit = 1 << self.lock_number();
        self.thread().hasty |= bit;
    }

    /// The look at who fences is a step where somebody cannot.
    pub(crate) fn lock_slow(&mut self) {
        let all_fence = self.model.config.programs.iter().all(|&program| program != UNFENCED);
        self.go(if all_fence { Pc::PublishLock } else { Pc::LookWhoFences });
    }

    /// The doorway of the slow path.
    fn enqueue_cas_tail(&mut self) {
        if self.lock().tail != self.thread().peer {
            return self.go(Pc::EnqueueLoadTail);
        }
        self.lock().tail = self.index();
        self.doorway();
        self.thread().waiting = true;
        self.go(Pc::LookOwner);
    }

    /// The owner word becomes this thread's.
    fn own(&mut self, me: Id, inherited: bool) {
        let lock = self.lock();
        lock.owner = me;
        lock.inherited = inherited;
    }

    /// The wait loop, `park`, `leave` and `give_up`.
    pub(crate) fn step_wait(&mut self, pc: Pc) {
        match pc {
            Pc::LookOwner if self.owns() => self.own_at_last(),
            Pc::LookOwner => self.go(Pc::LookPrev),
            Pc::LookPrev => {
                self.thread().peer = self.s.rows[self.i].prev;
                match self.thread().peer {
                    0 => self.go(Pc::HeadLoadOwner),
                    _ => self.go(Pc::BehindLoadLife),
                }
            }
            Pc::HeadLoadOwner
            | Pc::HeadCasFree
            | Pc::HeadLoadLife
            | Pc::HeadLoadGeneration
            | Pc::HeadRelay
            | Pc::HeadCasDead => self.step_head(pc),
            Pc::BehindLoadLife | Pc::BehindReloadPrev | Pc::BehindRelay | Pc::SpliceOwn => {
                self.step_behind(pc);
            }
            Pc::FenceOwners | Pc::DemandFences => self.step_fence(pc),
            Pc::ParkState
            | Pc::ParkPending
            | Pc::ParkWait
            | Pc::ParkLoadLife
            | Pc::ParkRelay
            | Pc::ParkClear
            | Pc::ParkRestore => self.step_park(pc),
            Pc::LeaveLoadState if self.s.rows[self.i].code == Code::Granted => {
                self.work(Job::Leave, Pc::ClearRow);
            }
            Pc::LeaveLoadState => self.work(Job::Leave, Pc::GuardTake),
            Pc::GiveUpLoadOwner if self.owns() => {
                self.acquired();
                self.unlink(Job::Leave);
            }
            Pc::GiveUpLoadOwner => self.unlink(Job::GiveUp),
            Pc::UnlinkSelf | Pc::GiveUpUnlink => self.unlink_store(),
            _ => unreachable!("not a step of the wait loop"),
        }
    }

    fn own_at_last(&mut self) {
        self.acquired();
        self.go(Pc::LeaveLoadState);
    }

    /// Nobody in front: the owner word decides.
    fn step_head(&mut self, pc: Pc) {
        match pc {
            Pc::HeadLoadOwner => {
                let owner = self.lock().owner;
                self.thread().word = owner;
                if owner.is_nobody() {
                    self.go(Pc::HeadCasFree);
                } else if owner.plain() == self.me() {
                    self.own_at_last();
                } else {
                    self.go(Pc::HeadLoadLife);
                }
            }
            Pc::HeadCasFree if self.lock().owner.is_nobody() => {
                self.own(self.me().as_fencing(), false);
                self.own_at_last();
            }
            Pc::HeadCasFree => self.go(Pc::LookOwner),
            Pc::HeadLoadLife => {
                let index = self.thread().word.index();
                self.thread().seen = self.s.row(index).life;
                if self.died(index) && !self.is(Mutant::NoDeadCheckOfOwner) {
                    self.go(Pc::HeadRelay);
                } else {
                    self.go(Pc::HeadLoadGeneration);
                }
            }
            Pc::HeadLoadGeneration => {
                let owner = self.thread().word;
                self.thread().peer = owner.index();
                let same = self.s.row(owner.index()).generation == owner.generation();
                if same || self.is(Mutant::NoDeadCheckOfOwner) {
                    self.watch(owner);
                } else {
                    self.go(Pc::HeadRelay);
                }
            }
            Pc::HeadRelay => {
                let index = self.thread().word.index();
                kernel::wake_life(&mut self.s, index);
                self.go(Pc::HeadCasDead);
            }
            _ => self.head_cas_dead(),
        }
    }

    /// The owner lives: sleeps, unless it may not have seen that somebody
    /// waits. (A `try_lock` goes to [`Pc::ParkState`] to give up.)
    fn watch(&mut self, owner: Id) {
        let unseen = !owner.fences() && self.registers().fenced == Fenced::No;
        self.go(match unseen && !self.is_try() {
            true if self.registers().program == UNFENCED => Pc::DemandFences,
            true => Pc::FenceOwners,
            false => Pc::ParkState,
        });
    }

    fn step_fence(&mut self, pc: Pc) {
        if pc == Pc::DemandFences {
            self.s.fences = true;
            self.thread().fencing = true;
            if !self.is(Mutant::UnfencedSleeps) {
                self.thread().fenced = Fenced::Polls;
            }
            return self.go(Pc::ParkState);
        }
        if self.is(Mutant::NoBarrier) {
            self.thread().fenced = Fenced::Yes;
        } else {
            self.membarrier();
        }
        self.go(if self.is(Mutant::NoLookAfterBarrier) { Pc::ParkState } else { Pc::LookOwner });
    }

    fn head_cas_dead(&mut self) {
        let dead = self.thread().word;
        if self.lock().owner == dead {
            self.own(self.me().as_fencing(), !self.is(Mutant::InheritedDropped));
            self.thread().heir_of = dead.plain();
            self.own_at_last();
        } else {
            self.go(Pc::LookOwner);
        }
    }

    /// Somebody in front: its life decides.
    fn step_behind(&mut self, pc: Pc) {
        let index = self.thread().peer;
        match pc {
            Pc::BehindLoadLife => {
                self.thread().seen = self.s.row(index).life;
                if self.died(index) && !self.is(Mutant::NoDeadCheckOfPredecessor) {
                    self.go(Pc::BehindRelay);
                } else if self.is(Mutant::NoRereadOfPrev) {
                    self.go(Pc::ParkState);
                } else {
                    self.go(Pc::BehindReloadPrev);
                }
            }
            Pc::BehindReloadPrev if self.s.rows[self.i].prev == index => self.go(Pc::ParkState),
            Pc::BehindReloadPrev => self.go(Pc::LookOwner),
            Pc::BehindRelay => {
                kernel::wake_life(&mut self.s, index);
                self.work(Job::Splice, Pc::GuardTake);
            }
            _ => self.unlink_store(),
        }
    }

    /// `park(watched, life as read)`.
    fn step_park(&mut self, pc: Pc) {
        let watched = self.thread().peer;
        let seen = self.thread().seen;
        match pc {
            Pc::ParkState => self.park_state(),
            Pc::ParkPending => {
                if !self.is(Mutant::NoPending) {
                    self.thread().pending = watched;
                }
                self.go(Pc::ParkWait);
            }
            Pc::ParkWait => {
                let asleep =
                    self.s.rows[self.i].code == Code::Parked && self.s.row(watched).life == seen;
                self.go(if asleep { Pc::Sleeping } else { Pc::ParkLoadLife });
            }
            Pc::ParkLoadLife => {
                let changed = self.s.row(watched).life != seen;
                let relays = changed && !self.is(Mutant::NoRelayAfterPark);
                self.go(if relays { Pc::ParkRelay } else { Pc::ParkClear });
            }
            Pc::ParkRelay => {
                kernel::wake_life(&mut self.s, watched);
                self.go(Pc::ParkClear);
            }
            Pc::ParkClear => {
                self.thread().pending = 0;
                self.go(Pc::ParkRestore);
            }
            _ => {
                if self.s.rows[self.i].code != Code::Granted {
                    self.s.rows[self.i].code = Code::Waiting;
                }
                if self.thread().expired {
                    self.work(Job::GiveUp, Pc::GuardTake);
                } else {
                    self.go(Pc::LookOwner);
                }
            }
        }
    }

    /// WAITING -> PARKED, or a nudge was here first: NUDGED -> WAITING and look
    /// again. Each arm is the compare-and-swap that succeeds in the end.
    fn park_state(&mut self) {
        if self.is_try() {
            return self.work(Job::GiveUp, Pc::GuardTake);
        }
        let code = &mut self.s.rows[self.i].code;
        match *code {
            Code::Waiting => {
                *code = Code::Parked;
                self.go(Pc::ParkPending);
            }
            Code::Granted => self.go(Pc::LookOwner),
            _ => {
                *code = Code::Waiting;
                self.go(Pc::LookOwner);
            }
        }
    }

    /// The deadline passes, before the thread sleeps or while it does.
    pub(crate) fn expire(mut self) -> State {
        self.thread().expired = true;
        if self.thread().pc == Pc::Sleeping {
            self.go(Pc::ParkLoadLife);
        } else {
            self.work(Job::GiveUp, Pc::GuardTake);
        }
        self.s
    }

    /// The sleep of a thread that could not make the owner see it is over.
    pub(crate) fn poll(mut self) -> State {
        self.go(Pc::ParkLoadLife);
        self.s
    }

    /// `attach` to a row whose last thread died.
    pub(crate) fn step_attach(&mut self, pc: Pc) {
        let index = self.index();
        match pc {
            Pc::AttachGeneration => {
                if !self.is(Mutant::GenerationNotBumped) {
                    self.s.rows[self.i].generation += 1;
                }
                self.go(Pc::AttachLife);
            }
            Pc::AttachLife => {
                // The model numbers TIDs by generation; a TID is new in any case.
                let kept = u8::from(self.is(Mutant::GenerationNotBumped));
                self.s.rows[self.i].life = tid(self.me().generation() + kept);
                self.go(Pc::AttachRelay);
            }
            Pc::AttachRelay => self.attach_relay(),
            Pc::AttachUnlink => self.unlink_store(),
            _ => {
                if !self.is(Mutant::AttachWithoutLastRelay) && !self.is(Mutant::AttachWithoutRelays)
                {
                    kernel::wake_life(&mut self.s, index);
                }
                self.next_operation();
            }
        }
    }

    fn attach_relay(&mut self) {
        // `look_who_fences`, just before: it matters not how old the answer is.
        self.thread().fencing = self.s.fences;
        if !self.is(Mutant::AttachWithoutFirstRelay) && !self.is(Mutant::AttachWithoutRelays) {
            let index = self.index();
            kernel::wake_life(&mut self.s, index);
        }
        let lock = self.s.rows[self.i].lock;
        if lock == 0 {
            return self.go(Pc::AttachRelayAgain);
        }
        self.thread().lock = lock - 1;
        if self.is(Mutant::AttachWithoutUnlink) {
            self.work(Job::Attach, Pc::ClearRow);
        } else {
            self.work(Job::Attach, Pc::GuardTake);
        }
    }
}
