//! The segment, everybody in it, and what must be true of it.

use crate::actor::{Actor, Answer, Got, INITIAL, Tell, who_answered};
use crate::image::{Image, Peek, Raw, Robust, image, robust_head};
use crate::kit::{Board, HANG, TempPath, hang, until};
use crate::scenario::{Do, Op, Place, Scenario, Who};
use crate::trace::{Fail, Point, Res, Traced, process_state, sleeps_in_futex, wrong};
use crate::victim::play;
use heirlock::{LockView, Mutex, Policy, Segment, Snapshot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const CAPACITY: u32 = 64;
/// An acquisition that took longer was only made by a sleeper's heartbeat.
pub(crate) const SLOW: Duration = Duration::from_millis(900);

/// After so long nobody may take the lock past somebody who waits.
const TOO_LONG: Duration = Duration::from_millis(2);
/// The guard word of a lock that can be taken past those who wait, without an
/// editor.
const THROUGHPUT: u32 = 1 << 30;

/// What is to be seen at the moment of a kill.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) image: Image,
    /// Whether the victim owns the lock.
    pub(crate) victim_owns: bool,
    /// What the next owner is to be told.
    pub(crate) expect: Got,
}

/// Everybody but the victim.
pub(crate) struct World {
    pub(crate) segment: Segment<Board>,
    pub(crate) policy: Policy,
    path: TempPath,
    /// The victim's own segment, where it has one.
    aside: TempPath,
    peek: Peek,
    aside_peek: Peek,
    actors: BTreeMap<Who, Actor>,
    bystander: Actor,
    /// A waiter that is traced, and whose part it plays.
    pub(crate) second: Option<(Who, Traced)>,
    /// Who is to be played by a traced process.
    pub(crate) traced: Option<Who>,
    holder: Option<Who>,
    /// In the order in which they came.
    waiting: Vec<Who>,
    /// Who waits for the second lock.
    other: Option<Who>,
    stopped: BTreeSet<Who>,
    /// The process of every participant that was seen.
    known: BTreeMap<u64, u32>,
    before: Raw,
    head: u64,
    /// What the heir of the one who died first is to be told, and of the second lock.
    promised: [Got; 2],
    /// Acquisitions that needed a heartbeat.
    pub(crate) slow: usize,
    /// The last thing that the segment looked like.
    pub(crate) last: String,
}

impl World {
    /// With a lock of this policy.
    pub(crate) fn new(policy: Policy) -> Self {
        let path = TempPath::new();
        let aside = TempPath::new();
        let init = |board: &mut Board| board.locks[0] = Mutex::with_policy(0, policy);
        let segment: Segment<Board> =
            Segment::options().capacity(CAPACITY).init(init).create(&*path).expect("create");
        let second = segment.offset_of(&segment.locks[1]).expect("it is inside");
        let peek = Peek::open(&path, CAPACITY.into()).with_other(second);
        assert_eq!(segment.offset_of(&segment.locks[0]), Some(peek.lock_offset()));
        let aside_peek = Peek::at(&aside, 4);
        let mut bystander = Actor::bystander(&segment, &aside);
        let mut actors = BTreeMap::new();
        for who in [Who::O, Who::W1, Who::W2, Who::W3, Who::N] {
            actors.insert(who, Actor::participant(&segment));
        }
        if heirlock::uring::refused().is_none() {
            // With a row on lease.
            let mut waiter = Actor::participant(&segment);
            waiter.ask(Tell::LockInRing).expect("queued");
            waiter.answer().expect("locked");
            waiter.ask(Tell::Unlock).expect("unlocked");
            actors.insert(Who::A, waiter);
        }
        // Rows for victims, so that those find some that had been used before.
        assert_eq!(bystander.ask(Tell::Reuse(5)).expect("new threads").rows.len(), 5);
        let before = peek.raw();
        Self {
            segment,
            policy,
            path,
            aside,
            peek,
            aside_peek,
            actors,
            bystander,
            second: None,
            traced: None,
            holder: None,
            waiting: Vec::new(),
            other: None,
            stopped: BTreeSet::new(),
            known: BTreeMap::new(),
            before,
            head: robust_head(),
            promised: [Got::Lock; 2],
            slow: 0,
            last: String::new(),
        }
    }

    pub(crate) fn waiting(&self) -> &[Who] {
        &self.waiting
    }

    /// Where in memory the segment is mapped, here and in whoever was forked.
    fn base(&self) -> u64 {
        core::ptr::from_ref(&*self.segment).addr() as u64 - self.peek.lock_offset()
    }

    /// Makes everything ready for the victim of `scenario`.
    pub(crate) fn begin(&mut self, scenario: &Scenario) -> Res<()> {
        self.before = self.peek.raw();
        self.promised = [Got::Lock; 2];
        self.segment.tokens[0].reset();
        if scenario.op.aside() {
            self.prepare_aside(scenario.place)?;
            self.before = self.aside_peek.raw();
        }
        self.act(scenario.before)
    }

    /// Starts a process that does `op`, up to its start marker.
    pub(crate) fn victim(&self, op: Op) -> Res<Traced> {
        Traced::start(|| play(op, &self.segment, &self.aside))
    }

    fn actor(&mut self, who: Who) -> &mut Actor {
        let segment = &self.segment;
        self.actors.entry(who).or_insert_with(|| Actor::participant(segment))
    }

    /// Has the others act.
    pub(crate) fn act(&mut self, what: &[Do]) -> Res<()> {
        what.iter().try_for_each(|one| self.act_one(*one))
    }

    fn act_one(&mut self, what: Do) -> Res<()> {
        match what {
            Do::Lock(who) => {
                self.actor(who).take_free(Tell::Lock)?;
                self.holder = Some(who);
            }
            Do::Queue(who) => {
                if self.traced == Some(who) {
                    let mut second = self.victim(Op::Lock)?;
                    second.run_asleep(self.policy == Policy::Throughput)?;
                    self.second = Some((who, second));
                } else {
                    self.actor(who).tell(Tell::Lock)?;
                    let (pid, row) = (self.actor(who).pid, self.actor(who).row);
                    self.until_asleep(pid, row)?;
                }
                self.waiting.push(who);
            }
            Do::LockOther(who) => {
                self.actor(who).take_free(Tell::LockOther)?;
            }
            Do::QueueOther(who) => {
                self.actor(who).tell(Tell::LockOther)?;
                self.until_asleep(self.actors[&who].pid, self.actors[&who].row)?;
                self.other = Some(who);
            }
            Do::QueueInRing(who) => {
                let actor = self.actor(who);
                actor.row = match actor.ask(Tell::LockInRing)?.rows[..] {
                    [row] => row,
                    _ => return wrong(format!("{who:?} does not queue")),
                };
                let (pid, row) = (actor.pid, actor.row);
                self.until_asleep(pid, row)?;
                self.waiting.push(who);
            }
            Do::UnlockOther(who) => {
                self.actor(who).ask(Tell::UnlockOther)?;
            }
            Do::Unlock(who) => {
                self.actor(who).ask(Tell::Unlock)?;
                self.holder = None;
            }
            Do::Got(who) => {
                if self.traced == Some(who) {
                    return Err(Fail::Nothing);
                }
                let answer = self.actor(who).answer()?;
                if answer.got != Got::Lock || self.waiting.first() != Some(&who) {
                    return wrong(format!("{who:?}'s turn came, and it got {:?}", answer.got));
                }
                self.waiting.remove(0);
                self.holder = Some(who);
            }
            Do::Die(who) => {
                self.know();
                let mut actor = self.actors.remove(&who).expect("who dies is there");
                let owned = self.peek.raw().other.owner & 0xffff == u64::from(actor.row);
                actor.kill();
                if owned {
                    self.promised[1] = Got::Inherited(actor.pid.as_raw() as u32);
                }
                self.waiting.retain(|other| *other != who);
                if self.holder == Some(who) {
                    self.holder = None;
                    self.promised[0] = Got::Inherited(actor.pid.as_raw() as u32);
                }
                self.stopped.remove(&who);
            }
            Do::Cancel => self.segment.tokens[0].canceller().cancel(),
            Do::Stop(who) => {
                let pid = self.actor(who).pid;
                kill(pid, Signal::SIGSTOP).expect("stop");
                waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("wait for the stop");
                self.stopped.insert(who);
            }
            Do::Continue(who) => {
                kill(self.actor(who).pid, Signal::SIGCONT).expect("continue");
                self.stopped.remove(&who);
            }
            Do::Rest => {
                self.settle();
                thread::sleep(TOO_LONG);
                self.settle();
            }
        }
        Ok(())
    }

    fn until_asleep(&self, pid: Pid, row: u32) -> Res<()> {
        let start = Instant::now();
        loop {
            if process_state(pid) == b'S'
                && self.peek.raw().row(row).is_some_and(|row| row.parked())
            {
                return Ok(());
            }
            if start.elapsed() > HANG {
                return wrong("who shall wait does not fall asleep");
            }
            let _ = nix::sched::sched_yield();
        }
    }

    /// Waits until everybody who waits has done what there was to do.
    pub(crate) fn settle(&mut self) {
        let pids: Vec<Pid> = self
            .waiting
            .iter()
            .filter(|who| self.traced != Some(**who))
            .chain(&self.other)
            .map(|who| self.actors[who].pid)
            .collect();
        // Somebody may have woken somebody who was looked at before.
        for _ in 0..2 {
            for pid in &pids {
                until("a waiter has settled", || {
                    let settled = matches!(process_state(*pid), b'S' | b'T');
                    if !settled {
                        let _ = nix::sched::sched_yield();
                    }
                    settled
                });
            }
        }
    }

    /// Remembers who is who.
    fn know(&mut self) {
        let Ok(snapshot) = Snapshot::of(self.segment.as_fd(), &[]) else { return };
        for view in snapshot.participants {
            self.known.insert(view.participant.to_bits(), view.pid);
        }
    }

    /// The image of the segment that the victims of `op` have.
    pub(crate) fn image(&self, op: Op, victim: Pid) -> Image {
        let robust = Robust::of(victim, self.head);
        if op.aside() {
            let raw = self.aside_peek.raw();
            image(&self.aside_peek, &raw, &self.before, robust, 0)
        } else {
            image(&self.peek, &self.peek.raw(), &self.before, robust, self.base())
        }
    }

    /// The image of the common segment, whoever is its victim.
    pub(crate) fn image_at_rest(&self) -> Image {
        image(&self.peek, &self.peek.raw(), &self.before, Robust::default(), self.base())
    }

    /// The owner word.
    pub(crate) fn owner(&self) -> u64 {
        self.peek.raw().owner
    }

    /// Looks at the segment in the moment before `victim` is killed.
    pub(crate) fn look(&mut self, op: Op, victim: Pid) -> Res<Seen> {
        self.settle();
        if op.aside() {
            let image = self.image(op, victim);
            return Ok(Seen { image, victim_owns: false, expect: Got::Lock });
        }
        let offset = self.peek.lock_offset();
        let other = self.segment.offset_of(&self.segment.locks[1]).expect("it is inside");
        // A waiter that looks by itself every now and then may do so between two
        // looks of the harness.
        let (raw, snapshot) = loop {
            let raw = self.peek.raw();
            let snapshot = Snapshot::of(self.segment.as_fd(), &[offset, other])
                .or_else(|error| wrong(format!("no snapshot: {error}")))?;
            if self.policy == Policy::Fifo || self.peek.raw() == raw {
                break (raw, snapshot);
            }
            self.settle();
        };
        let robust = Robust::of(victim, self.head);
        let image = image(&self.peek, &raw, &self.before, robust, self.base());
        self.last = format!("{snapshot}  owes the next owner: {:?}", self.promised);
        for view in &snapshot.participants {
            self.known.insert(view.participant.to_bits(), view.pid);
        }
        let (Some(lock), Some(other)) = (snapshot.lock(offset), snapshot.lock(other)) else {
            return wrong("a snapshot without the locks");
        };
        if let Some(broken) = lock.broken.or(other.broken) {
            return wrong(format!("the queue {broken}"));
        }
        let queue: Vec<u32> = lock.queue.iter().map(|member| member.row()).collect();
        if raw.queue().as_ref() != Some(&queue) {
            return wrong(format!("queue {queue:?}, by another look {:?}", raw.queue()));
        }
        self.check_queue(&queue, &raw)?;
        let (expect, owner) = self.owed(lock, self.promised[0], victim)?;
        self.promised = [expect, self.owed(other, self.promised[1], victim)?.0];
        Ok(Seen { image, victim_owns: owner == Some(victim.as_raw() as u32), expect })
    }

    /// What the next owner of a lock is to be told, when `victim` is dead, and the process
    /// of its owner. `promised` is what it was to be told before.
    fn owed(&self, lock: &LockView, promised: Got, victim: Pid) -> Res<(Got, Option<u32>)> {
        let Some(owner) = lock.owner else { return Ok((Got::Lock, None)) };
        let Some(pid) = self.known.get(&owner.to_bits()).copied() else {
            return wrong(format!("the owner {owner} is nobody"));
        };
        let survives = self.actors.values().any(|actor| actor.pid.as_raw() as u32 == pid)
            || self.second.as_ref().is_some_and(|(_, second)| {
                second.pid != victim && second.pid.as_raw() as u32 == pid
            });
        let expect = match (survives, lock.inherited) {
            (true, true) => promised,
            (true, false) => Got::Lock,
            (false, _) => Got::Inherited(pid),
        };
        Ok((expect, Some(pid)))
    }

    /// Whoever waits is in the queue, or owns the lock, in the order in which
    /// they came.
    fn check_queue(&self, queue: &[u32], raw: &Raw) -> Res<()> {
        let owner = raw.owner_row().map_or(0, |(row, _)| row);
        let rows: Vec<u32> = self
            .waiting
            .iter()
            .filter(|who| self.traced != Some(**who))
            .map(|who| self.actors[who].row)
            .collect();
        for row in &rows {
            if !queue.contains(row) && owner != *row {
                return wrong(format!("row {row} waits, and is not in the queue"));
            }
        }
        let order: Vec<u32> = queue.iter().copied().filter(|row| rows.contains(row)).collect();
        let expected: Vec<u32> = rows.iter().copied().filter(|row| queue.contains(row)).collect();
        if order != expected {
            return wrong(format!("the queue is {order:?}, they came as {expected:?}"));
        }
        Ok(())
    }

    /// Has `who` unlock, up to where it must wait for the guard of the queue.
    pub(crate) fn begin_unlock(&mut self, who: Who) -> Res<()> {
        self.actor(who).tell(Tell::Unlock)?;
        let pid = self.actor(who).pid;
        until("who unlocks has done so, or waits", || process_state(pid) == b'S');
        Ok(())
    }

    /// And to the end.
    pub(crate) fn end_unlock(&mut self, who: Who) -> Res<()> {
        self.actor(who).answer()?;
        self.holder = None;
        Ok(())
    }

    /// Whether those alone queue who wait.
    pub(crate) fn only_waiters_queue(&self) -> bool {
        let waits = |row| self.waiting.iter().any(|who| self.actors[who].row == row);
        self.peek.raw().queue().is_some_and(|queue| queue.into_iter().all(waits))
    }

    /// The traced waiter, which keeps its place in the queue.
    pub(crate) fn take_second(&mut self) -> Option<Traced> {
        self.second.take().map(|(_, second)| second)
    }

    /// The traced waiter is dead: the others do not count on it.
    pub(crate) fn forget_second(&mut self) {
        if let Some(who) = self.traced.take() {
            self.waiting.retain(|other| *other != who);
        }
        self.second = None;
    }

    /// Whether the traced waiter has woken up.
    pub(crate) fn second_has_woken(&mut self) -> bool {
        self.settle();
        self.second.as_ref().is_some_and(|(_, second)| {
            matches!(second.point, Point::Asleep(_)) && second.has_woken()
        })
    }

    /// Whoever has handed over has woken the one who now owns the lock: it does
    /// not sleep on until its heartbeat.
    pub(crate) fn check_woken(&self) -> Res<()> {
        for who in self.waiting.iter().filter(|who| !self.stopped.contains(who)) {
            let actor = &self.actors[who];
            // In this order: before it sleeps the row may say how an earlier
            // wait ended.
            let sleeps = sleeps_in_futex(actor.pid);
            let granted = self.peek.raw().row(actor.row).is_some_and(|row| row.granted());
            if granted && sleeps {
                return wrong(format!("{who:?} was granted the lock, and nobody woke it"));
            }
        }
        Ok(())
    }

    fn newcomer(&mut self, command: Tell) -> Res<()> {
        if !self.waiting.contains(&Who::N) {
            self.actor(Who::N).tell(command)?;
            self.waiting.push(Who::N);
        }
        Ok(())
    }

    /// The newcomer comes while the victim still lives, if it shall.
    pub(crate) fn come_early(&mut self, scenario: &Scenario) -> Res<()> {
        if scenario.early {
            self.newcomer(Tell::Lock)?;
            self.settle();
        }
        Ok(())
    }

    /// Everybody who is left gets the lock, in order; the first of them hears
    /// `expect`.
    pub(crate) fn drain(&mut self, scenario: &Scenario, expect: Got) -> Res<()> {
        for who in std::mem::take(&mut self.stopped) {
            kill(self.actors[&who].pid, Signal::SIGCONT).expect("continue");
        }
        // Before the newcomer, who would tell others of a dead owner of both.
        if self.holder.is_none() {
            self.drain_other()?;
        }
        if self.policy == Policy::Throughput {
            // Lest the newcomer get past them.
            thread::sleep(TOO_LONG);
        }
        let tries = scenario.tries && self.holder.is_none() && self.waiting.is_empty();
        self.newcomer(if tries { Tell::Try } else { Tell::Lock })?;
        if let Some(holder) = self.holder.take() {
            self.actor(holder).ask(Tell::Unlock)?;
            self.check_woken()?;
        }
        self.drain_other()?;
        let mut expect = expect;
        while let Some(next) = self.waiting.first().copied() {
            let start = Instant::now();
            let actors: Vec<&Actor> = self.waiting.iter().map(|who| &self.actors[who]).collect();
            let answered = who_answered(&actors, hang());
            let names: Vec<Who> = answered.iter().map(|at| self.waiting[*at]).collect();
            if names.is_empty() {
                return wrong(format!("{:?} wait, and nobody gets the lock", self.waiting));
            }
            if names != [next] {
                return wrong(format!("{names:?} got the lock, it is {next:?}'s turn"));
            }
            self.slow += usize::from(start.elapsed() > SLOW);
            let Answer { got, .. } = self.actor(next).answer()?;
            if got != expect {
                return wrong(format!("{next:?} got {got:?}, expected {expect:?}"));
            }
            expect = Got::Lock;
            let row = self.actor(next).row;
            if self.peek.raw().owner_row() != Some((row, true)) {
                return wrong(format!("{next:?} got the lock, and the owner is another"));
            }
            self.waiting.remove(0);
            let actors: Vec<&Actor> = self.waiting.iter().map(|who| &self.actors[who]).collect();
            if !who_answered(&actors, Duration::ZERO).is_empty() {
                return wrong(format!("somebody got the lock while {next:?} has it"));
            }
            self.actor(next).ask(Tell::Unlock)?;
            self.check_woken()?;
        }
        if scenario.has_two_locks() {
            self.actor(Who::N).tell(Tell::LockOther)?;
            self.other = Some(Who::N);
            self.drain_other()?;
        }
        Ok(())
    }

    /// Who waits for the second lock gets it.
    fn drain_other(&mut self) -> Res<()> {
        let Some(who) = self.other.take() else { return Ok(()) };
        let expect = std::mem::replace(&mut self.promised[1], Got::Lock);
        let start = Instant::now();
        if who_answered(&[&self.actors[&who]], hang()).is_empty() {
            return wrong(format!("{who:?} waits for the second lock, and does not get it"));
        }
        self.slow += usize::from(start.elapsed() > SLOW);
        let answer = self.actor(who).answer()?;
        if answer.got != expect {
            return wrong(format!("{who:?} got {:?}, expected {expect:?}", answer.got));
        }
        self.actor(who).ask(Tell::Unlock)?;
        Ok(())
    }

    /// New threads re-use the rows of the dead, and nothing is left of those.
    pub(crate) fn end(&mut self) -> Res<()> {
        self.actors.remove(&Who::D);
        self.actors.remove(&Who::M);
        self.known.clear();
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
            if answer.rows != free {
                return wrong(format!("rows {free:?} are free, new threads got {:?}", answer.rows));
            }
            if answer.got != Got::Lock {
                return wrong(format!("a new thread got {:?}", answer.got));
            }
        }
        let raw = self.peek.raw();
        let unguarded = if self.policy == Policy::Throughput { THROUGHPUT } else { 0 };
        if (raw.owner, raw.tail, raw.guard) != (0, 0, unguarded) {
            return wrong(format!(
                "at rest: owner {:#x}, tail {}, guard {:#x}",
                raw.owner, raw.tail, raw.guard
            ));
        }
        let busy = (1..).zip(&raw.rows).find(|(_, row)| row.lock != 0);
        busy.map_or(Ok(()), |(at, _)| wrong(format!("at rest row {at} is busy with a lock")))
    }

    fn prepare_aside(&mut self, place: Place) -> Res<()> {
        let _ = std::fs::remove_file(&*self.aside);
        match place {
            Place::Nothing => {}
            Place::Empty => {
                File::create(&*self.aside).expect("an empty file");
            }
            Place::Segment | Place::OtherBoot => {
                self.bystander.ask(Tell::Visit)?;
            }
        }
        if place == Place::OtherBoot {
            let file = File::options().write(true).open(&*self.aside).expect("open");
            let write = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).expect("write");
            // One generation later, so that the row is not the visitor's own;
            // alive, under a TID that nobody has, and the witness's lock free.
            let generation = self.aside_peek.raw().rows[0].generation + 1;
            write(self.aside_peek.life_word(1) - 8, &generation.to_ne_bytes());
            write(self.aside_peek.life_word(1), &0xbfff_ffff_u32.to_ne_bytes());
            write(self.aside_peek.lock_offset(), &(generation << 20 | 1).to_ne_bytes());
            write(48, &[1; 16]);
        }
        Ok(())
    }

    /// After a death in a segment of its own: somebody opens or creates it,
    /// joins it, and takes the lock.
    pub(crate) fn visit(&mut self, scenario: &Scenario) -> Res<()> {
        let raw = self.aside_peek.raw();
        self.last = format!("{raw:x?}");
        let Answer { got, rows, value } = self.bystander.ask(Tell::Visit)?;
        // Of a thread from before the reboot nothing is known but the death.
        let told = match (scenario.place, got) {
            (Place::OtherBoot, Got::Inherited(_)) => true,
            (Place::OtherBoot, _) => false,
            (_, got) => got == Got::Lock,
        };
        if !told || rows != [1] || value != INITIAL {
            return wrong(format!("a visitor got {got:?}, row {rows:?}, the value {value}"));
        }
        let raw = self.aside_peek.raw();
        let (owner, _) = (raw.owner, ());
        if (owner, raw.tail, raw.guard) != (0, 0, 0) || raw.rows.iter().any(|row| row.lock != 0) {
            return wrong(format!("after the visit: {raw:x?}"));
        }
        Ok(())
    }

    /// The segment as text.
    pub(crate) fn show(&self) -> String {
        match Snapshot::read(&*self.path, &[self.peek.lock_offset()]) {
            Ok(snapshot) => snapshot.to_string(),
            Err(error) => error.to_string(),
        }
    }
}
