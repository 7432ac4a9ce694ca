//! What is done to the queue under its guard: `Queue::oldest`, `Queue::unlink`,
//! `Queue::splice_predecessor_of`, and the hints that make them short.
//!
//! Hints are read and written by the guard's holder only. Each store of one is a
//! step of its own as long as there are kills left, for a death is the only way
//! in which anybody can see an edit half done. With no kill left an edit is one
//! step: the store or CAS that unlinks, the hints with it. A load of `tail`
//! and a compare-and-swap that fails because somebody queued between them are
//! then one load, made late: the walk that follows is the same.
//!
//! Dead waiters are taken out at the head, by whoever serves the queue; in front
//! of a living one, by that one; and by who uses their row again. The others stay.

use crate::mutants::Mutant;
use crate::pc::{Job, Pc};
use crate::state::Fault;
use crate::step::Stepper;

/// How an unlinking ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unlinked {
    /// The row is not in the queue.
    NotThere,
    /// It was at the tail.
    Last,
    /// Somebody is behind it: `Thread::behind`.
    Before,
}

/// A word that holds a hint.
enum Hint {
    /// The lock's `head`.
    Head,
    /// `next` of a row.
    Next(u8),
}

impl Stepper<'_> {
    /// Can nobody see an edit half done any more?
    fn at_once(&self) -> bool {
        self.s.kills == 0 && !self.model.config.throughput
    }

    /// `oldest()`, and what it is wanted for.
    ///
    /// The load of the head's life goes with that of the hint, and `waiting_as`
    /// and `state` with both: a row that is read as alive and marked before the
    /// last of them is as one that is marked right after it.
    pub(crate) fn find_head(&mut self) {
        if self.header().head == 0 && self.header().tail != 0 {
            if !self.at_once() {
                return self.go(Pc::OldestWalk);
            }
            while self.oldest_store() {}
        }
        let head = self.header().head;
        let job = self.thread().job;
        let keeps = match job {
            Job::Grant => self.is(Mutant::DeadHeadServed),
            _ => self.is(Mutant::DeadHeadNudged),
        };
        let dead = head != 0 && self.died(head) && !keeps;
        let throughput = self.model.config.throughput;
        if dead
            && (matches!(job, Job::Grant | Job::Yield | Job::Release)
                || job == Job::Barge && throughput)
        {
            self.thread().peer = head;
            return self.unlink(job);
        }
        self.target(head);
        match (job, head) {
            (Job::Grant, 0) => self.go(Pc::GrantFree),
            (Job::Grant, _) if self.is(Mutant::UnlinkBeforeOwner) => self.unlink(Job::Serve),
            (Job::Grant, _) if self.nudges_at_grant() => self.go(Pc::NudgeState),
            (Job::Grant, _) => self.go(Pc::GrantOwner),
            (Job::Yield, 0) => self.keep(),
            (Job::Yield, _) if self.is(Mutant::NoNudgeBeforeYield) => self.go(Pc::GrantOwner),
            (Job::Yield, _) => self.go(Pc::NudgeState),
            (Job::Barge, _) if throughput => self.keep(),
            (Job::Release, 0) => self.go(Pc::GuardDrop),
            (Job::Release, _)
                if self.is(Mutant::ReleaseGrants) && self.header().owner.is_nobody() =>
            {
                self.work(Job::Grant, Pc::GrantOwner);
            }
            (Job::Release, _) | (_, 0) => self.go(Pc::GuardDrop),
            _ => self.go(Pc::NudgeState),
        }
    }

    /// Who barged keeps the lock.
    fn keep(&mut self) {
        self.acquired();
        self.work(Job::Barge, Pc::GuardDrop);
    }

    /// The walk that finds the head stores one more hint. What comes after the
    /// last goes with it.
    pub(crate) fn oldest_walk(&mut self) {
        if !self.oldest_store() {
            self.find_head();
        }
    }

    /// Are there more to store behind the one that this stores?
    fn oldest_store(&mut self) -> bool {
        let lock = self.lock_number();
        let chain = self.s.chain(lock).unwrap_or_default();
        if let Some((behind, row)) = self.unknown(chain.as_slice(), 0) {
            self.s.row_mut(row).next = behind;
            return true;
        }
        self.lock().head = chain.as_slice().last().copied().unwrap_or(0);
        false
    }

    /// The first two neighbours from the tail on whose hint the walk has still
    /// to store, `(behind, row)`, as far as the row `last`.
    fn unknown(&self, chain: &[u8], last: u8) -> Option<(u8, u8)> {
        let end = chain.iter().position(|&row| row == last).map_or(chain.len(), |n| n + 1);
        let mut pairs = chain[..end].windows(2).map(|pair| (pair[0], pair[1]));
        pairs.find(|&(behind, row)| self.s.row(row).next != behind)
    }

    /// `unlink(x)` or `splice_predecessor_of` begins, on behalf of `job`: who is
    /// behind? `next` says it, or nobody is: `tail` says it, or else a walk.
    ///
    /// The load of `tail` goes with the step before it: who queues between the
    /// two could as well have queued before both. So does that of the life of the
    /// one in front: the same holds for who marks it.
    pub(crate) fn unlink(&mut self, job: Job) {
        self.thread().job = job;
        self.thread().behind = 0;
        if self.at_once() {
            return self.go(unlinking(job));
        }
        if job == Job::Splice {
            if !self.is_behind_dead() {
                return self.go(Pc::GuardDrop);
            }
            let index = self.index();
            self.thread().behind = index;
        } else {
            let next = self.s.row(self.leaver()).next;
            self.thread().behind = next;
        }
        if self.registers().behind != 0 || self.header().tail == self.leaver() {
            self.forget_or_unlink();
        } else {
            self.walk_or_forget();
        }
    }

    /// Whom the thread takes out.
    fn leaver(&self) -> u8 {
        match self.registers().job {
            Job::Splice => self.s.rows[self.i].prev,
            Job::Barge | Job::Grant | Job::Yield | Job::Release | Job::Serve | Job::YieldServe => {
                self.registers().peer
            }
            _ => self.index(),
        }
    }

    /// Is the one in front of this thread dead? `prev` of both is frozen under
    /// the guard, and a row read as dead stays linked as the dead one's until
    /// somebody has the guard.
    fn is_behind_dead(&self) -> bool {
        let prev = self.s.rows[self.i].prev;
        prev != 0 && self.died(prev)
    }

    /// The walk from the tail to the leaver stores one more hint.
    pub(crate) fn unlink_walk(&mut self) {
        self.walk_store();
        self.walk_or_forget();
    }

    /// Was there one more to store?
    fn walk_store(&mut self) -> bool {
        let chain = self.s.chain(self.lock_number()).unwrap_or_default();
        let unknown = self.unknown(chain.as_slice(), self.leaver());
        if let Some((behind, row)) = unknown {
            self.s.row_mut(row).next = behind;
        }
        unknown.is_some()
    }

    /// Whom the walk finds behind the leaver, if that is in the queue.
    fn walk_end(&self) -> Option<u8> {
        let leaver = self.leaver();
        let chain = self.s.chain(self.lock_number()).unwrap_or_default();
        let mut pairs = chain.as_slice().windows(2);
        pairs.find(|pair| pair[1] == leaver).map(|pair| pair[0])
    }

    fn walk_or_forget(&mut self) {
        let chain = self.s.chain(self.lock_number()).unwrap_or_default();
        if self.unknown(chain.as_slice(), self.leaver()).is_some() {
            return self.go(Pc::UnlinkWalk);
        }
        match self.walk_end() {
            Some(behind) => {
                self.thread().behind = behind;
                self.forget_or_unlink();
            }
            None => self.unlinked(Unlinked::NotThere),
        }
    }

    /// The next hint that must be forgotten before the leaver is unlinked: those
    /// that say where it stands.
    fn outdated(&self) -> Option<Hint> {
        let leaver = self.leaver();
        let prev = self.s.row(leaver).prev;
        let next = |row: u8| self.s.row(row).next;
        if self.header().head == leaver && !self.is(Mutant::HeadNotForgotten) {
            Some(Hint::Head)
        } else if next(leaver) != 0 && !self.is(Mutant::NextNotForgotten) {
            Some(Hint::Next(leaver))
        } else if prev != 0 && next(prev) != 0 && !self.is(Mutant::NextInFrontNotForgotten) {
            Some(Hint::Next(prev))
        } else {
            None
        }
    }

    fn forget_or_unlink(&mut self) {
        let job = self.registers().job;
        let hints_now = self.is(Mutant::HintBeforeUnlink) && self.registers().behind != 0;
        self.go(match self.outdated() {
            Some(_) => Pc::UnlinkForget,
            None if hints_now => Pc::UnlinkHint,
            None => unlinking(job),
        });
    }

    /// One more hint becomes unknown.
    pub(crate) fn unlink_forget(&mut self) {
        self.forget_one();
        self.forget_or_unlink();
    }

    /// Was there one more to forget?
    fn forget_one(&mut self) -> bool {
        let outdated = self.outdated();
        match outdated {
            Some(Hint::Head) => self.lock().head = 0,
            Some(Hint::Next(row)) => self.s.row_mut(row).next = 0,
            None => {}
        }
        outdated.is_some()
    }

    /// The store or CAS that takes the leaver out.
    pub(crate) fn unlink_store(&mut self) {
        let at_once = self.at_once();
        if self.thread().job == Job::Splice && self.thread().behind == 0 {
            if !self.is_behind_dead() {
                return self.go(Pc::GuardDrop);
            }
            let index = self.index();
            self.thread().behind = index;
        }
        let leaver = self.leaver();
        let prev = self.s.row(leaver).prev;
        if self.thread().behind == 0 {
            let next = self.s.row(leaver).next;
            self.thread().behind = next;
        }
        if self.thread().behind == 0 {
            if self.header().tail == leaver {
                while at_once && self.forget_one() {}
                self.lock().tail = prev;
                return self.unlinked(Unlinked::Last);
            }
            // Somebody has queued since it was the tail.
            if !at_once {
                return self.walk_or_forget();
            }
            while self.walk_store() {}
            let Some(behind) = self.walk_end() else {
                return self.unlinked(Unlinked::NotThere);
            };
            self.thread().behind = behind;
        }
        while at_once && self.forget_one() {}
        let behind = self.thread().behind;
        self.s.row_mut(behind).prev = prev;
        if at_once || self.is(Mutant::HintBeforeUnlink) {
            self.store_hint(behind, prev);
            self.unlinked(Unlinked::Before);
        } else {
            self.left();
            self.go(Pc::UnlinkHint);
        }
    }

    /// Who was behind the leaver is behind whoever was in front of it.
    pub(crate) fn unlink_hint(&mut self) {
        let (job, behind) = (self.thread().job, self.thread().behind);
        if self.is(Mutant::HintBeforeUnlink) {
            let prev = self.s.row(self.leaver()).prev;
            self.store_hint(behind, prev);
            return self.go(unlinking(job));
        }
        let prev = self.s.row(behind).prev;
        self.store_hint(behind, prev);
        self.unlinked(Unlinked::Before);
    }

    fn store_hint(&mut self, behind: u8, prev: u8) {
        match prev {
            0 => self.lock().head = behind,
            _ => self.s.row_mut(prev).next = behind,
        }
    }

    /// The leaver is out: from here on the registers say who is to be nudged.
    fn left(&mut self) {
        let Self { s, i, .. } = self;
        let (job, behind) = (s.threads[*i].job, s.threads[*i].behind);
        if job == Job::GiveUp {
            self.gave_up();
        }
        if !matches!(job, Job::Leave | Job::Splice | Job::Serve | Job::YieldServe) {
            self.target(behind);
        }
    }

    /// What comes after an unlinking.
    fn unlinked(&mut self, how: Unlinked) {
        if self.thread().pc != Pc::UnlinkHint && how != Unlinked::NotThere {
            self.left();
        }
        let nudges = how == Unlinked::Before;
        let job = self.thread().job;
        match job {
            Job::Splice if self.is_behind_dead() => self.unlink(job),
            Job::GiveUp if how == Unlinked::NotThere => self.s.fault = Fault::NotLinked,
            Job::GiveUp if nudges && !self.is(Mutant::NoNudgeOnGiveUp) => self.go(Pc::NudgeState),
            Job::Attach if how == Unlinked::NotThere => {
                let leaves = self.is(Mutant::AttachWithoutNudgeHead);
                self.go(if leaves { Pc::GuardDrop } else { Pc::FindHead });
            }
            Job::Attach if nudges && !self.is(Mutant::AttachWithoutNudge) => {
                self.go(Pc::NudgeState);
            }
            Job::Grant if self.nudges_at_grant() => self.go(Pc::FindHead),
            Job::Grant | Job::Release if nudges && !self.is(Mutant::NoNudgeBehindDeadHead) => {
                self.go(Pc::NudgeState);
            }
            Job::Barge | Job::Grant | Job::Yield | Job::Release => self.go(Pc::FindHead),
            Job::Serve if self.is(Mutant::UnlinkBeforeOwner) => self.go(Pc::GrantOwner),
            Job::Serve | Job::YieldServe => self.go(Pc::GrantState),
            _ => self.go(Pc::GuardDrop),
        }
    }
}

/// The step that unlinks, on behalf of `job`.
fn unlinking(job: Job) -> Pc {
    match job {
        Job::Splice => Pc::SpliceOwn,
        Job::Leave => Pc::UnlinkSelf,
        Job::GiveUp => Pc::GiveUpUnlink,
        Job::Attach => Pc::AttachUnlink,
        Job::Serve | Job::YieldServe => Pc::GrantUnlink,
        _ => Pc::SpliceStore,
    }
}
