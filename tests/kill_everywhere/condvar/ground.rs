//! The segment, everybody in it, and what must be true of it.

use super::scenario::{Do, Op, Scenario, Who};
use crate::actor::{Actor, Got, Tell, who_answered};
use crate::image::{FLAGS, Image, Peek, Raw, Robust, image, robust_head};
use crate::kit::{Board, HANG, TempPath, hang, until};
use crate::run::Place;
use crate::trace::{Fail, Point, Res, Traced, marker, process_state, wrong};
use crate::victim::{Outcome, live_on_with};
use crate::world::{CAPACITY, SLOW};
use heirlock::{Condvar, Interrupted, MutexGuard, Segment, Snapshot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Later than anything the victim does before it sleeps, and earlier than a
/// sleeper's heartbeat.
const TIMEOUT: Duration = Duration::from_millis(800);

/// A row's `stage`, in the queue of the condition variable.
const QUEUED: u32 = 1;

/// What is to be seen at the moment of a kill.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) image: Image,
    /// Whether the victim owns the lock.
    pub(super) victim_owns: bool,
    /// Whether the guard of the condition variable is the victim's.
    pub(super) victim_edits: bool,
    /// Whether the victim is in the queue of the condition variable.
    pub(super) victim_waits: bool,
    /// What the next owner is to be told.
    expect: Got,
}

/// How many more of those who wait must have been notified when all have settled, at
/// least and at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    pub(super) none: bool,
    /// `usize::MAX` for all.
    pub(super) some: usize,
    /// Whether one more may be.
    pub(super) twice: bool,
}

impl Allowed {
    pub(super) const NONE: Self = Self { none: true, some: 0, twice: false };

    fn allows(self, notified: usize, waiting: usize) -> bool {
        let some = self.some.min(waiting);
        self.none && notified == 0
            || notified == some
            || self.twice && notified == waiting.min(some + 1)
    }
}

/// Everybody but the victim.
pub(super) struct Ground {
    segment: Segment<Board>,
    path: TempPath,
    peek: Peek,
    actors: BTreeMap<Who, Actor>,
    bystander: Actor,
    /// A waiter that is traced, and whose part it plays.
    second: Option<(Who, Traced)>,
    /// Who is to be played by a traced process.
    pub(super) traced: Option<Who>,
    holder: Option<Who>,
    /// Who waits for the condition variable, in order.
    line: Vec<Who>,
    /// Who waits for the lock, in order.
    turn: Vec<Who>,
    stopped: BTreeSet<Who>,
    /// The process of every owner that was seen.
    known: BTreeMap<u64, u32>,
    before: Raw,
    head: u64,
    /// Acquisitions and returns that needed a heartbeat.
    pub(super) slow: usize,
    /// The last thing that the segment looked like.
    last: String,
}

impl Place for Ground {
    fn show(&self) -> [String; 2] {
        [self.last.clone(), self.show_now()]
    }

    fn rebuild(&mut self) {
        let slow = self.slow;
        *self = Self::new();
        self.slow = slow;
    }
}

impl Ground {
    pub(super) fn new() -> Self {
        let path = TempPath::new();
        let segment: Segment<Board> =
            Segment::options().capacity(CAPACITY).create(&*path).expect("create");
        let condvar = segment.offset_of(&segment.condvars[0]).expect("its condition variable");
        let peek = Peek::open(&path, CAPACITY.into()).with_other(condvar);
        let mut bystander = Actor::bystander(&segment, &path);
        let mut actors = BTreeMap::new();
        for who in [Who::O, Who::Q, Who::W1, Who::W2, Who::W3, Who::N] {
            actors.insert(who, Actor::participant(&segment));
        }
        // Rows for victims, so that those find some that had been used before.
        assert_eq!(bystander.ask(Tell::Reuse(5)).expect("new threads").rows.len(), 5);
        let before = peek.raw();
        Self {
            segment,
            path,
            peek,
            actors,
            bystander,
            second: None,
            traced: None,
            holder: None,
            line: Vec::new(),
            turn: Vec::new(),
            stopped: BTreeSet::new(),
            known: BTreeMap::new(),
            before,
            head: robust_head(),
            slow: 0,
            last: String::new(),
        }
    }

    fn show_now(&self) -> String {
        let raw = self.peek.raw();
        let segment = Snapshot::read(&*self.path, &[self.peek.lock_offset()]);
        let segment = segment.map_or_else(|error| error.to_string(), |now| now.to_string());
        let rows: Vec<_> =
            (1u32..).zip(&raw.rows).filter(|(_, row)| row.lock != 0 || row.condvar != 0).collect();
        format!(
            "{segment}  {:x?}, busy rows {rows:x?}\n  waits {:?}, for the lock {:?}, holder {:?}",
            raw.other, self.line, self.turn, self.holder
        )
    }

    /// Makes everything ready for the victim of `scenario`.
    pub(super) fn begin(&mut self, scenario: &Scenario) -> Res<()> {
        self.before = self.peek.raw();
        self.act(scenario.before)
    }

    /// Starts a process that does `op`, up to its start marker.
    pub(super) fn victim(&self, op: Op) -> Res<Traced> {
        Traced::start(|| play(op, &self.segment))
    }

    fn actor(&mut self, who: Who) -> &mut Actor {
        let segment = &self.segment;
        self.actors.entry(who).or_insert_with(|| Actor::participant(segment))
    }

    /// The victim is about to sleep: it waits for the condition variable from here on.
    pub(super) fn victim_waits(&mut self) {
        self.line.push(Who::V);
    }

    /// Whether those alone wait for the condition variable who are to.
    pub(super) fn is_tidy(&self) -> bool {
        let raw = self.peek.raw();
        let line: Vec<u32> = self.pending_in(&self.line).map(|who| self.actors[&who].row).collect();
        raw.queue_up_to(raw.other.tail) == Some(line)
    }

    /// Whether the victim was notified.
    pub(super) fn victim_is_notified(&self) -> bool {
        self.turn.contains(&Who::V)
    }

    /// Has the others act.
    pub(super) fn act(&mut self, what: &[Do]) -> Res<()> {
        what.iter().try_for_each(|one| self.act_one(*one))
    }

    fn act_one(&mut self, what: Do) -> Res<()> {
        match what {
            Do::Lock(who) => {
                self.actor(who).take_free(Tell::Lock)?;
                self.holder = Some(who);
            }
            Do::Queue(who) => {
                self.actor(who).tell(Tell::Lock)?;
                self.until_asleep(who, |row| row.parked())?;
                self.turn.push(who);
            }
            Do::Wait(who) if self.traced == Some(who) => {
                let mut second = self.victim(Op::Wait)?;
                second.run_asleep(true)?;
                self.second = Some((who, second));
                self.line.push(who);
            }
            Do::Wait(who) => {
                self.actor(who).tell(Tell::Wait)?;
                self.until_asleep(who, |row| row.stage == QUEUED && row.parked())?;
                self.line.push(who);
            }
            Do::One(who) => {
                let answer = self.actor(who).ask(Tell::NotifyOne)?;
                if answer.value != 1 || self.line.is_empty() {
                    return wrong(format!("{who:?} notified {} of one", answer.value));
                }
                let next = self.line.remove(0);
                self.turn.push(next);
            }
            Do::All(who) => {
                let answer = self.actor(who).ask(Tell::NotifyAll)?;
                if answer.value != self.line.len() as u64 {
                    return wrong(format!("{who:?} notified {} of all", answer.value));
                }
                self.turn.append(&mut self.line);
            }
            Do::Unlock(who) => {
                self.actor(who).ask(Tell::Unlock)?;
                self.holder = None;
            }
            Do::Got(who) => {
                let answer = self.actor(who).answer()?;
                if answer.got != Got::Lock || self.turn.first() != Some(&who) {
                    return wrong(format!("{who:?}'s turn came, and it got {:?}", answer.got));
                }
                self.turn.remove(0);
                self.holder = Some(who);
            }
            Do::Die(who) => {
                self.settle();
                self.actors.remove(&who).expect("who dies is there").kill();
                self.stopped.remove(&who);
                self.forget(who);
            }
            Do::Stop(who) => self.stop(who),
        }
        Ok(())
    }

    fn stop(&mut self, who: Who) {
        let pid = self.actor(who).pid;
        kill(pid, Signal::SIGSTOP).expect("stop");
        waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("wait for the stop");
        self.stopped.insert(who);
    }

    /// Stops everybody who waits for the condition variable.
    pub(super) fn stop_waiters(&mut self) {
        for who in self.line.clone() {
            if !self.stopped.contains(&who) {
                self.stop(who);
            }
        }
    }

    /// `who` is dead: the notification that it has had, but for the lock, is the next
    /// one's.
    fn forget(&mut self, who: Who) {
        self.line.retain(|other| *other != who);
        if let Some(at) = self.turn.iter().position(|other| *other == who) {
            self.turn.remove(at);
            if !self.line.is_empty() && self.stopped.is_empty() {
                let next = self.line.remove(0);
                self.turn.push(next);
            }
        }
    }

    /// The victim is dead.
    pub(super) fn bury(&mut self, who: Who) {
        self.line.retain(|other| *other != who);
        self.turn.retain(|other| *other != who);
    }

    fn until_asleep(&mut self, who: Who, well: impl Fn(&crate::image::Row) -> bool) -> Res<()> {
        let (pid, row) = (self.actor(who).pid, self.actor(who).row);
        let start = Instant::now();
        while process_state(pid) != b'S' || !self.peek.raw().row(row).is_some_and(&well) {
            if start.elapsed() > HANG {
                return wrong("who shall wait does not fall asleep");
            }
            let _ = nix::sched::sched_yield();
        }
        Ok(())
    }

    /// Who waits, the victim and who is traced excepted.
    fn pending(&self) -> Vec<Who> {
        self.pending_in(&self.turn).chain(self.pending_in(&self.line)).collect()
    }

    fn pending_in<'a>(&'a self, list: &'a [Who]) -> impl Iterator<Item = Who> + 'a {
        list.iter().copied().filter(|who| *who != Who::V && self.traced != Some(*who))
    }

    /// Waits until everybody who waits has done what there was to do.
    pub(super) fn settle(&self) {
        let pids: Vec<Pid> = self.pending().iter().map(|who| self.actors[who].pid).collect();
        let settled = || pids.iter().all(|pid| matches!(process_state(*pid), b'S' | b'T'));
        until("those who wait have settled", || {
            // One may wake another one, who was looked at before.
            let well = settled() && settled();
            if !well {
                let _ = nix::sched::sched_yield();
            }
            well
        });
    }

    /// Where in memory the segment is mapped, here and in whoever was forked.
    fn base(&self) -> u64 {
        core::ptr::from_ref(&*self.segment).addr() as u64 - self.peek.lock_offset()
    }

    pub(super) fn image(&self, victim: Option<Pid>) -> Image {
        let robust = victim.map_or(Robust::default(), |victim| Robust::of(victim, self.head));
        image(&self.peek, &self.peek.raw(), &self.before, robust, self.base())
    }

    /// Looks at the segment in the moment before `victim` is killed.
    pub(super) fn look(&mut self, victim: Pid) -> Res<Seen> {
        self.settle();
        let image = self.image(Some(victim));
        self.last = self.show_now();
        let raw = self.peek.raw();
        let victim = victim.as_raw() as u32;
        let mut own = 0;
        for (index, row) in (1u64..).zip(&raw.rows).filter(|(_, row)| row.alive()) {
            self.known.insert(row.generation << 20 | index, row.tid());
            if row.tid() == victim {
                own = index as u32;
            }
        }
        let owner = raw.owner & !FLAGS;
        let pid = match owner {
            0 => None,
            owner => match self.known.get(&owner) {
                Some(pid) => Some(*pid),
                None => return wrong(format!("the owner {owner:#x} is nobody")),
            },
        };
        let survives = |pid: u32| {
            pid != victim && self.actors.values().any(|actor| actor.pid.as_raw() as u32 == pid)
        };
        Ok(Seen {
            image,
            victim_owns: pid == Some(victim),
            victim_edits: own != 0 && raw.other.guard & 0xffff == own,
            victim_waits: raw.queue_up_to(raw.other.tail).is_some_and(|queue| queue.contains(&own)),
            expect: pid.filter(|pid| !survives(*pid)).map_or(Got::Lock, Got::Inherited),
        })
    }

    /// The traced waiter, if it has woken up.
    pub(super) fn take_second(&mut self) -> Res<Traced> {
        self.settle();
        match self.second.take() {
            Some((_, second)) if matches!(second.point, Point::Asleep(_)) && second.has_woken() => {
                Ok(second)
            }
            _ => Err(Fail::Nothing),
        }
    }

    /// Whoever waits for the lock gets it, in order; the first of them hears `expect`.
    fn drain(&mut self, expect: &mut Got) -> Res<()> {
        while let Some(next) = self.turn.first().copied() {
            let start = Instant::now();
            let names = self.answered(hang());
            if names.is_empty() {
                return wrong(format!("{:?} wait, and nobody gets the lock", self.turn));
            }
            if names != [next] {
                return wrong(format!("{names:?} got the lock, it is {next:?}'s turn"));
            }
            self.slow += usize::from(start.elapsed() > SLOW);
            let got = self.actor(next).answer()?.got;
            self.check_owner(next, got, expect)?;
            self.turn.remove(0);
            if !self.answered(Duration::ZERO).is_empty() {
                return wrong(format!("somebody got the lock while {next:?} has it"));
            }
            self.actor(next).ask(Tell::Unlock)?;
        }
        Ok(())
    }

    fn check_owner(&mut self, who: Who, got: Got, expect: &mut Got) -> Res<()> {
        if got != *expect {
            return wrong(format!("{who:?} got {got:?}, expected {expect:?}"));
        }
        *expect = Got::Lock;
        let row = self.actor(who).row;
        if self.peek.raw().owner_row() != Some((row, true)) {
            return wrong(format!("{who:?} got the lock, and the owner is another"));
        }
        Ok(())
    }

    fn answered(&self, timeout: Duration) -> Vec<Who> {
        let pending = self.pending();
        let actors: Vec<&Actor> = pending.iter().map(|who| &self.actors[who]).collect();
        who_answered(&actors, timeout).into_iter().map(|at| pending[at]).collect()
    }

    /// Takes the lock for the newcomer.
    fn newcomer(&mut self, expect: &mut Got) -> Res<()> {
        let start = Instant::now();
        let got = self.actor(Who::N).ask(Tell::Lock)?.got;
        self.slow += usize::from(start.elapsed() > SLOW);
        self.check_owner(Who::N, got, expect)
    }

    /// The victim, `seen` in this moment, is dead. Who was notified gets the lock, and
    /// who was not sleeps on until the newcomer notifies; nothing is left in the end.
    /// Whether any were notified that had not been before.
    pub(super) fn survive(&mut self, seen: &Seen, allowed: Allowed) -> Res<bool> {
        for who in std::mem::take(&mut self.stopped) {
            kill(self.actors[&who].pid, Signal::SIGCONT).expect("continue");
        }
        let start = Instant::now();
        self.settle();
        self.slow += usize::from(start.elapsed() > SLOW);
        let raw = self.peek.raw();
        let queue = raw.queue().unwrap_or_default();
        let answered = self.answered(Duration::ZERO);
        let notified = |who: &Who| {
            let row = self.actors[who].row;
            answered.contains(who)
                || queue.contains(&row)
                || raw.owner_row().is_some_and(|(owner, _)| owner == row)
        };
        let now: Vec<Who> = self.line.iter().copied().filter(notified).collect();
        if !self.line.starts_with(&now) || !allowed.allows(now.len(), self.line.len()) {
            return wrong(format!(
                "{now:?} of {:?} were notified, expected: {allowed:?}",
                self.line
            ));
        }
        self.line.drain(..now.len());
        self.turn.extend(&now);

        let mut expect = seen.expect;
        if let Some(holder) = self.holder.take() {
            self.actor(holder).ask(Tell::Unlock)?;
        }
        self.drain(&mut expect)?;
        self.newcomer(&mut expect)?;
        if self.line.len() > 1 {
            self.act_one(Do::One(Who::N))?;
            self.actor(Who::N).ask(Tell::Unlock)?;
            self.drain(&mut expect)?;
            self.newcomer(&mut expect)?;
        }
        self.act_one(Do::All(Who::N))?;
        self.actor(Who::N).ask(Tell::Unlock)?;
        self.drain(&mut expect)?;
        self.end()?;
        Ok(!now.is_empty())
    }

    /// New threads re-use the rows of the dead, and nothing is left of those.
    fn end(&mut self) -> Res<()> {
        self.actors.remove(&Who::M);
        self.known.clear();
        self.traced = None;
        let raw = self.peek.raw();
        // Up to the last one that anybody had since the beginning.
        let used = |at: u32| {
            let (now, then) = (raw.row(at), self.before.row(at));
            now.map(|row| (row.generation, row.life)) != then.map(|row| (row.generation, row.life))
        };
        let last = (1..=raw.rows.len() as u32).rev().find(|at| used(*at)).unwrap_or(0);
        let free: Vec<u32> =
            (1..=last).filter(|at| raw.row(*at).is_some_and(|row| !row.alive())).collect();
        if !free.is_empty() {
            let start = Instant::now();
            let mut answer = self.bystander.ask(Tell::Reuse(free.len() as u32))?;
            self.slow += usize::from(start.elapsed() > SLOW);
            answer.rows.sort_unstable();
            if answer.rows != free || answer.got != Got::Lock {
                return wrong(format!("rows {free:?} are free, new threads got {answer:?}"));
            }
        }
        let raw = self.peek.raw();
        if (raw.owner, raw.tail, raw.guard) != (0, 0, 0) {
            return wrong(format!("the lock is not at rest: {raw:x?}"));
        }
        // That a waiter that is dead was the last to be notified does no harm.
        let dead = raw.other.owner;
        let dead = raw.row((dead & 0xffff) as u32).is_some_and(|row| row.generation != dead >> 20);
        if raw.other.owner != 0 && !dead || (raw.other.tail, raw.other.guard) != (0, 0) {
            return wrong(format!("the condition variable is not at rest: {:x?}", raw.other));
        }
        let busy = |row: &crate::image::Row| (row.lock, row.condvar, row.stage) != (0, 0, 0);
        let busy = (1..).zip(&raw.rows).find(|(_, row)| busy(row));
        busy.map_or(Ok(()), |(at, row)| wrong(format!("at rest row {at} is busy: {row:x?}")))
    }
}

/// The victim's part: prepares itself, and does its operation between two markers.
fn play(op: Op, segment: &Segment<Board>) {
    let (lock, condvar) = (&segment.locks[0], &segment.condvars[0]);
    let between_markers = |operation: &mut dyn FnMut()| {
        marker();
        operation();
        marker();
    };
    match op {
        Op::NotifyOne | Op::NotifyAll => {
            segment.attach().expect("attach");
            notify(op, condvar);
        }
        Op::NotifyOneLocked | Op::NotifyAllLocked => {
            let guard = lock.lock();
            notify(op, condvar);
            drop(guard);
        }
        Op::Wait => {
            let mut guard: MutexGuard<'_, u64> = lock.lock();
            between_markers(&mut || condvar.wait(&mut guard));
            live_on_with(Outcome::Locked, Some(guard));
        }
        Op::Interruptible => {
            let mut guard = lock.lock();
            let mut ended = Ok(());
            between_markers(&mut || ended = black_box(condvar.wait_interruptible(&mut guard)));
            let outcome = match ended {
                Ok(()) => Outcome::Locked,
                Err(Interrupted::Signal) => Outcome::Interrupted,
                Err(unusable) => panic!("{unusable}"),
            };
            live_on_with(outcome, Some(guard));
        }
        Op::Timed => {
            let mut guard = lock.lock();
            between_markers(&mut || {
                black_box(condvar.wait_for(&mut guard, TIMEOUT));
            });
        }
        Op::Attach => {
            let mut me = None;
            between_markers(&mut || me = Some(black_box(segment.attach())));
            me.expect("an answer").expect("attach");
        }
    }
}

fn notify(op: Op, condvar: &Condvar) {
    marker();
    let count = match op.notifies() {
        Some(true) => condvar.notify_all(),
        _ => condvar.notify_one().into(),
    };
    black_box(count);
    marker();
}
