//! Kills at every point, and kills at every point of the recovery.

use crate::condvar::Condvars;
use crate::image::Image;
use crate::scenario::{Op, SCENARIOS, Scenario, Wake, When, Who};
use crate::trace::{Fail, How, Point, Res, Trace, Traced, wrong};
use crate::waits;
use crate::world::{Seen, World};
use heirlock::Policy;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

#[path = "signals.rs"]
pub(crate) mod signals;

/// How many broken promises are enough; in a broken build one.
const ENOUGH: usize = 20;

/// How many acquisitions by a heartbeat are enough in a broken build.
pub(crate) const ENOUGH_SLOW: usize = 3;

/// How long one run may take altogether, by the process's alarm clock.
const ALARM: u32 = 40;

/// Whom the second kill meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Second {
    /// One who waited when the first one died.
    Waiter(Who),
    /// One who comes to take the lock.
    Locker,
    /// One who re-uses the row.
    Attacher,
    /// One who opens the segment and joins it.
    Visitor,
}

impl Second {
    fn op(self) -> Op {
        match self {
            Self::Waiter(_) | Self::Locker => Op::Lock,
            Self::Attacher => Op::Attach,
            Self::Visitor => Op::OpenAndJoin,
        }
    }
}

/// An image that a first kill left behind, and how to make it again.
struct Left {
    at: usize,
    waiting: Vec<Who>,
}

/// What the kills of one scenario came to.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) points: usize,
    pub(crate) second_points: usize,
    pub(crate) images: usize,
    pub(crate) diverged: usize,
}

impl Tally {
    pub(crate) fn row(&self, name: &str, time: Duration) -> String {
        format!(
            "{name:<42}{:>8}{:>8}{:>8}{:>9}{:>8.1} s",
            self.points,
            self.second_points,
            self.images,
            self.diverged,
            time.as_secs_f64()
        )
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.points += other.points;
        self.second_points += other.second_points;
        self.images += other.images;
        self.diverged += other.diverged;
    }
}

/// Where a scenario takes place.
pub(crate) trait Place {
    /// What it looked like before the last kill, and what it looks like now.
    fn show(&self) -> [String; 2];
    /// Starts afresh, with nobody who is stuck.
    fn rebuild(&mut self);
}

impl Place for World {
    fn show(&self) -> [String; 2] {
        [self.last.clone(), self.show()]
    }

    fn rebuild(&mut self) {
        let slow = self.slow;
        *self = Self::new(self.policy);
        self.slow = slow;
    }
}

/// Does `run`; with what is left of a failed one no other one starts.
pub(crate) fn guarded<P: Place, T>(world: &mut P, run: impl FnOnce(&mut P) -> Res<T>) -> Res<T> {
    nix::unistd::alarm::set(ALARM);
    let done = catch_unwind(AssertUnwindSafe(|| run(world)));
    nix::unistd::alarm::cancel();
    let done = done.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map_or("something", String::as_str);
        wrong(format!("panicked: {said}"))
    });
    if done.is_err() {
        if let Err(Fail::Wrong(_)) = done {
            let [before, now] = world.show();
            println!("the segment before the kill:\n{before}\nand now:\n{now}");
        }
        world.rebuild();
    }
    done
}

/// Does `run` by breakpoints, or, if the victim goes another way than the recorded
/// one, step by step.
pub(crate) fn bring<P: Place, T>(
    world: &mut P,
    tally: &mut Tally,
    run: impl Fn(&mut P, How) -> Res<T>,
) -> Res<T> {
    for how in [How::Breakpoint, How::Breakpoint, How::Landmark] {
        match guarded(world, |world| run(world, how)) {
            Err(Fail::Diverged(_)) => {}
            done => return done,
        }
    }
    tally.diverged += 1;
    guarded(world, |world| run(world, How::Steps))
}

/// What `record` records as a rule. The clock has its moods (a loop more, if its page is
/// just being updated): what counts is the shortest way, if it is a usual one.
pub(crate) fn usual<R>(trace: impl Fn(&R) -> &Trace, mut record: impl FnMut() -> Res<R>) -> Res<R> {
    let mut recorded = record()?;
    for round in 1..6 {
        let again = record()?;
        let usual = trace(&recorded).points() == trace(&again).points();
        if trace(&again).last() <= trace(&recorded).last() {
            recorded = again;
        }
        if usual && round >= 2 {
            break;
        }
    }
    Ok(recorded)
}

/// The whole test.
pub(crate) struct Run {
    world: World,
    failures: usize,
    effort: Effort,
    shard: Shard,
    /// Whether the build is broken on purpose.
    broken: bool,
    /// The images from which a recovery has been killed, and what recovered.
    done: BTreeSet<(Second, Image)>,
    /// The images that an attacher found, when the others had settled.
    settled: BTreeSet<Image>,
}

/// What is done without a thread that sleeps, or with several locks, where that can be.
fn waits() -> &'static [Scenario] {
    match heirlock::uring::refused() {
        None => waits::SCENARIOS,
        Some(error) => {
            println!("skipped: what waits in a ring: {error}");
            &[]
        }
    }
}

/// How much is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// The victims, but not who recovers from their deaths.
    First,
    /// Who recovers, too, wherever that leaves another image behind.
    Usual,
    /// Who recovers, too, at every instruction.
    Long,
}

/// A part of the kills of recoveries, of so many parts that are the same size:
/// every how manieth instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shard {
    part: usize,
    parts: usize,
}

impl Shard {
    /// `HEIRLOCK_SHARD=3/10`, say; all if it is not set.
    fn wanted() -> Self {
        let Ok(wanted) = std::env::var("HEIRLOCK_SHARD") else { return Self { part: 1, parts: 1 } };
        let numbers = wanted.split_once('/').and_then(|(part, parts)| {
            Some(Self { part: part.parse().ok()?, parts: parts.parse().ok()? })
        });
        let shard = numbers.filter(|shard| (1..=shard.parts).contains(&shard.part));
        shard.unwrap_or_else(|| panic!("HEIRLOCK_SHARD={wanted} is no part, as 1/10 is"))
    }

    pub(crate) fn has(self, at: usize) -> bool {
        at % self.parts == self.part - 1
    }
}

/// A run of one scenario: what was recorded of it.
struct Recorded<'a> {
    scenario: &'a Scenario,
    /// At which point the others interject.
    interject: Option<usize>,
    trace: Trace,
    /// What the segment was like at each point.
    images: Vec<Image>,
}

impl Recorded<'_> {
    fn note(&mut self, world: &mut World, victim: &Traced) {
        if !matches!(victim.point, Point::At(_)) {
            world.settle();
        }
        if let Some(first) = self.trace.look_of_the_clock(victim.point) {
            self.trace.truncate(first);
            self.images.truncate(first);
        }
        // A long list of words is cleared by one instruction, in the victim's own memory.
        let repeats = matches!(self.scenario.op, Op::Waits(_))
            && self.trace.points().last() == Some(&victim.point);
        let image = match self.images.last() {
            Some(last) if repeats => last.clone(),
            _ => world.image(self.scenario.op, victim.pid),
        };
        self.trace.push(victim.point);
        self.images.push(image);
    }

    /// Whether to kill at a point if only that is wanted what makes a difference.
    fn matters(&self, at: usize) -> bool {
        at == 0
            || at == self.trace.last()
            || self.images[at] != self.images[at - 1]
            || self.trace.points()[at].has_other_effects()
    }

    fn interjection(&self) -> Option<(usize, &'static [crate::scenario::Do])> {
        Some((self.interject?, self.scenario.interject?.1))
    }
}

impl Run {
    pub(crate) fn new(effort: Effort) -> Self {
        let broken = std::env::var("HEIRLOCK_FAULT").is_ok_and(|fault| fault != "none");
        Self {
            world: World::new(Policy::Fifo),
            failures: 0,
            effort,
            shard: Shard::wanted(),
            broken,
            done: BTreeSet::new(),
            settled: BTreeSet::new(),
        }
    }

    /// Runs the scenarios whose name contains `filter`; says whether all was
    /// well.
    pub(crate) fn all(mut self, filter: &str) -> bool {
        println!(
            "{:<42}{:>8}{:>8}{:>8}{:>9}{:>10}",
            "operation", "points", "second", "images", "stepped", "time"
        );
        let mut total = Tally::default();
        let start = Instant::now();
        let all = SCENARIOS.iter().chain(waits());
        for scenario in all.filter(|scenario| scenario.name.contains(filter)) {
            let start = Instant::now();
            let tally = self.scenario(scenario);
            println!("{}", tally.row(scenario.name, start.elapsed()));
            if tally.points < scenario.floor && !self.has_enough() {
                println!("  fewer kill points than the floor, {}", scenario.floor);
                self.failures += 1;
            }
            total.add(&tally);
            // In a build that is broken on purpose, a heartbeat that heals is
            // what is to be seen; in any other it may be a busy machine.
            if self.broken && self.world.slow > 0 {
                println!("FAILED \"{}\": a heartbeat had to help", scenario.name);
                self.failures += 1;
                break;
            }
            if self.has_enough() {
                println!("enough failures: the rest was left out");
                break;
            }
        }
        let mut condvars = self.condvars();
        if !self.has_enough() {
            condvars.all(filter, &mut total);
        }
        let failures = self.failures + condvars.failures;
        println!("{}", total.row("all", start.elapsed()));
        println!("acquisitions that needed a heartbeat: {}", self.world.slow + condvars.slow());
        println!(
            "kill points: {}, images: {}, failures: {failures}",
            total.points + total.second_points,
            total.images,
        );
        failures == 0
    }

    fn has_enough(&self) -> bool {
        self.failures >= self.enough()
    }

    fn enough(&self) -> usize {
        if self.broken { 1 } else { ENOUGH }
    }

    fn condvars(&self) -> Condvars {
        Condvars::new(self.effort, self.shard, self.broken, self.enough())
    }

    fn guarded<T>(&mut self, run: impl FnOnce(&mut World) -> Res<T>) -> Res<T> {
        guarded(&mut self.world, run)
    }

    fn bring<T>(&mut self, tally: &mut Tally, run: impl Fn(&mut World, How) -> Res<T>) -> Res<T> {
        bring(&mut self.world, tally, run)
    }

    fn report(&mut self, scenario: &Scenario, what: &str, at: Option<Point>, fail: &Fail) {
        self.failures += 1;
        let place = at.map_or(String::new(), |point| format!(", {}", place(point)));
        println!("FAILED \"{}\", {what}{place}: {fail}", scenario.name);
    }

    /// What the operation consists of, as a rule; `None` if it fails.
    fn usual<'a>(&mut self, scenario: &'a Scenario) -> Option<Recorded<'a>> {
        if self.world.policy != scenario.policy {
            self.world.policy = scenario.policy;
            self.world.rebuild();
        }
        let recorded = usual(
            |recorded: &Recorded| &recorded.trace,
            || guarded(&mut self.world, |world| record(world, scenario)),
        );
        recorded.map_err(|fail| self.report(scenario, "the undisturbed run", None, &fail)).ok()
    }

    fn scenario(&mut self, scenario: &Scenario) -> Tally {
        let mut tally = Tally::default();
        let Some(recorded) = self.usual(scenario) else { return tally };
        let lefts = self.first_kills(&recorded, &mut tally);
        // Recovering does not depend on the policy, but for words that the first kills
        // have changed.
        // Nor does it on what those did who are dead.
        let known = scenario.policy == Policy::Throughput || matches!(scenario.op, Op::Waits(_));
        let recovers_alike = known && self.effort == Effort::Usual;
        if self.effort == Effort::First || recovers_alike {
            tally.images = lefts.len();
            return tally;
        }
        for (image, left) in lefts {
            let mut seconds = vec![Second::Visitor];
            if !scenario.op.aside() {
                seconds = left.waiting.iter().copied().map(Second::Waiter).collect();
                if seconds.is_empty() {
                    seconds.push(Second::Locker);
                }
                seconds.push(Second::Attacher);
            }
            let mut new = false;
            for second in seconds {
                // For the attacher it is the image that the others have left.
                let key = (second, image.clone());
                if !self.done.insert(key) {
                    continue;
                }
                new = true;
                self.second_kills(&recorded, &left, second, &mut tally);
                if self.has_enough() {
                    return tally;
                }
            }
            tally.images += usize::from(new);
        }
        tally
    }

    fn first_kills(&mut self, recorded: &Recorded, tally: &mut Tally) -> BTreeMap<Image, Left> {
        let mut lefts = BTreeMap::new();
        let mut owned = recorded.scenario.owns.0;
        let mut changes = 0;
        for at in 0..=recorded.trace.last() {
            if self.broken && self.world.slow >= ENOUGH_SLOW {
                break;
            }
            if recorded.scenario.sparse && self.effort != Effort::Long && !recorded.matters(at) {
                continue;
            }
            let run = |world: &mut World, how| first_kill(world, recorded, at, how);
            let done = self.bring(tally, run);
            tally.points += 1;
            let done = done.and_then(|(seen, waiting)| {
                if seen.image != recorded.images[at] {
                    // It went its own way, to somewhere near.
                    return Ok(());
                }
                let last = at == recorded.trace.last();
                changes += usize::from(seen.victim_owns != owned);
                owned = seen.victim_owns;
                if changes > recorded.scenario.changes || last && owned != recorded.scenario.owns.1
                {
                    return wrong(format!("the victim owns the lock: {owned}"));
                }
                lefts.entry(seen.image).or_insert(Left { at, waiting });
                Ok(())
            });
            if let Err(fail) = done {
                let point = recorded.trace.points()[at];
                self.report(recorded.scenario, &format!("killed at {at}"), Some(point), &fail);
                if self.has_enough() {
                    break;
                }
            }
        }
        lefts
    }

    fn second_kills(
        &mut self,
        recorded: &Recorded,
        left: &Left,
        second: Second,
        tally: &mut Tally,
    ) {
        let what = format!("killed at {}, and {second:?}", left.at);
        let run = |world: &mut World, how| record_second(world, recorded, left, second, how);
        let (trace, images) = match self.bring(tally, run) {
            // What another death left looks the same to who comes after the
            // survivors.
            Ok((.., image))
                if second == Second::Attacher && !self.settled.insert(image.clone()) =>
            {
                return;
            }
            Ok((trace, images, _)) => (trace, images),
            Err(Fail::Nothing) => return,
            Err(fail) => {
                let point = recorded.trace.points()[left.at];
                return self.report(recorded.scenario, &what, Some(point), &fail);
            }
        };
        for at in 0..=trace.last() {
            let same = at > 0
                && at < trace.last()
                && images[at] == images[at - 1]
                && !trace.points()[at].has_other_effects();
            if same && self.effort != Effort::Long || !self.shard.has(at) {
                continue;
            }
            let run = |world: &mut World, how: How| {
                second_kill(world, recorded, left, second, (&trace, at, &images[at]), how)
            };
            let done = self.bring(tally, run);
            tally.second_points += 1;
            if let Err(fail) = done {
                let point = trace.points()[at];
                let what = format!("{what} at {at}");
                self.report(recorded.scenario, &what, Some(point), &fail);
                if self.has_enough() {
                    return;
                }
            }
        }
    }
}

/// An address as people can look it up.
pub(crate) fn place(point: Point) -> String {
    let (Point::At(rip) | Point::Exit(_, rip)) = point else { return format!("{point:?}") };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut first = BTreeMap::new();
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some((start, end)) = words[0].split_once('-') else { continue };
        let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        let name = words.get(5).copied().unwrap_or("?");
        let base = *first.entry(name).or_insert(number(start));
        if (number(start)..number(end)).contains(&rip) {
            return format!("{point:x?} = {name}+{:#x}", rip - base);
        }
    }
    format!("{point:x?}")
}

/// Steps from where the victim is to point `to`, or to the end, and notes every
/// point. Returns how many sleeps it began.
fn walk(
    world: &mut World,
    recorded: &mut Recorded,
    victim: &mut Traced,
    to: Option<usize>,
) -> Res<usize> {
    let mut begun = 0;
    let interjection = recorded.interjection();
    recorded.note(world, victim);
    loop {
        let at = recorded.trace.last();
        if to == Some(at) {
            return Ok(begun);
        }
        if let Some((when, acts)) = interjection
            && when == at
        {
            world.act(acts)?;
        }
        if victim.at_end() {
            return Ok(begun);
        }
        if !victim.about_to_wait() {
            victim.step()?;
            recorded.note(world, victim);
            continue;
        }
        let Some(leg) = recorded.scenario.legs.get(begun) else {
            return wrong("the victim sleeps once too often");
        };
        begun += 1;
        world.act(leg.entry)?;
        let beyond = to.is_some_and(|to| to > at + 1);
        if beyond && matches!(leg.wake, Wake::Timeout) {
            // There is no need to wait for it.
            victim.expire()?;
            recorded.note(world, victim);
            victim.step()?;
            recorded.note(world, victim);
            continue;
        }
        if recorded.scenario.sleeps_on(*leg) {
            victim.postpone()?;
        }
        victim.step()?;
        recorded.note(world, victim);
        if !matches!(victim.point, Point::Asleep(_)) {
            return wrong("the victim does not fall asleep");
        }
        if to == Some(recorded.trace.last()) {
            return Ok(begun);
        }
        if let Wake::By(acts) = leg.wake {
            world.act(acts)?;
        }
        victim.step()?;
        recorded.note(world, victim);
    }
}

/// Records what the operation consists of.
fn record<'a>(world: &mut World, scenario: &'a Scenario) -> Res<Recorded<'a>> {
    let interject = match scenario.interject {
        None => None,
        Some((when, _)) => Some(find_moment(world, scenario, when)?),
    };
    let mut recorded =
        Recorded { scenario, interject, trace: Trace::default(), images: Vec::new() };
    world.begin(scenario)?;
    let mut victim = world.victim(scenario.op)?;
    world.act(scenario.after)?;
    walk(world, &mut recorded, &mut victim, None)?;
    let seen = world.look(scenario.op, victim.pid)?;
    // Nor does it wait any more.
    let over = !seen.victim_owns && !matches!(scenario.op, Op::Waits(_));
    if !scenario.op.aside() && over {
        // The others need no death to get on.
        world.drain(scenario, seen.expect)?;
        victim.kill();
        world.end()?;
        return Ok(recorded);
    }
    survive(world, scenario, &mut victim, &seen)?;
    Ok(recorded)
}

/// The point at which the others shall interject.
fn find_moment(world: &mut World, scenario: &Scenario, when: When) -> Res<usize> {
    world.begin(scenario)?;
    let mut victim = world.victim(scenario.op)?;
    world.act(scenario.after)?;
    let owner = world.owner();
    let mut at = 0;
    while world.owner() == owner {
        if victim.at_end() {
            return wrong("the owner never changes");
        }
        victim.step()?;
        at += 1;
    }
    let seen = world.look(scenario.op, victim.pid)?;
    survive(world, scenario, &mut victim, &seen)?;
    Ok(if when == When::BeforeOwner { at - 1 } else { at })
}

/// Brings a new victim to point `to`. Returns how many sleeps it began.
fn advance(
    world: &mut World,
    recorded: &Recorded,
    victim: &mut Traced,
    to: usize,
    how: How,
) -> Res<usize> {
    if how == How::Steps {
        let mut again = Recorded {
            scenario: recorded.scenario,
            interject: recorded.interject,
            trace: Trace::default(),
            images: Vec::new(),
        };
        return walk(world, &mut again, victim, Some(to));
    }
    let trace = &recorded.trace;
    let mut begun = 0;
    let mut interjection = recorded.interjection();
    let mut at = 0;
    loop {
        let sleep = trace.sleep_from(at);
        let stop = [sleep, interjection.map(|(when, _)| when)].into_iter().flatten().min();
        let Some(stop) = stop.filter(|stop| *stop < to) else {
            victim.go(trace, at, to, how)?;
            return Ok(begun);
        };
        victim.go(trace, at, stop, how)?;
        victim.must_be_at(trace.points()[stop])?;
        if let Some((when, acts)) = interjection
            && when == stop
        {
            world.act(acts)?;
            interjection = None;
            at = stop;
            continue;
        }
        // It slept as often when it was recorded.
        let leg = recorded.scenario.legs[begun];
        begun += 1;
        world.act(leg.entry)?;
        let asleep = stop + 1;
        match leg.wake {
            Wake::Timeout if to > asleep => victim.expire()?,
            _ => {
                if recorded.scenario.sleeps_on(leg) {
                    victim.postpone()?;
                }
                victim.step()?;
            }
        }
        if to == asleep {
            return Ok(begun);
        }
        if let Wake::By(acts) = leg.wake {
            world.act(acts)?;
        }
        victim.step()?;
        at = asleep + 1;
        victim.must_be_at(trace.points()[at])?;
    }
}

/// Whether a victim stands where the recorded one stood. What the clock shows
/// decides some branches, so it may be another instruction; but then it must
/// have done the same to the segment.
fn same_place(victim: &Traced, point: Point, image: &Image, recorded: &Image) -> Res<()> {
    match (victim.point, point) {
        (Point::At(_), Point::At(_)) if image == recorded => Ok(()),
        (Point::At(_), _) => Err(Fail::Diverged("another image than recorded".into())),
        _ => victim.must_be_at(point),
    }
}

/// Kills the victim; the others must go on as if nothing had been.
fn survive(world: &mut World, scenario: &Scenario, victim: &mut Traced, seen: &Seen) -> Res<()> {
    victim.kill();
    if scenario.op.aside() {
        return world.visit(scenario);
    }
    world.drain(scenario, seen.expect)?;
    world.end()
}

fn first_kill(
    world: &mut World,
    recorded: &Recorded,
    at: usize,
    how: How,
) -> Res<(Seen, Vec<Who>)> {
    let scenario = recorded.scenario;
    world.begin(scenario)?;
    let mut victim = world.victim(scenario.op)?;
    world.act(scenario.after)?;
    advance(world, recorded, &mut victim, at, how)?;
    let seen = world.look(scenario.op, victim.pid)?;
    if how != How::Steps {
        same_place(&victim, recorded.trace.points()[at], &seen.image, &recorded.images[at])?;
    }
    let seen = match scenario.early {
        true => {
            world.come_early(scenario)?;
            Seen { image: seen.image, ..world.look(scenario.op, victim.pid)? }
        }
        false => seen,
    };
    let waiting = world.waiting().to_vec();
    survive(world, scenario, &mut victim, &seen)?;
    Ok((seen, waiting))
}

/// Kills a first victim, and brings the second to the point at which it notices.
fn start_second(
    world: &mut World,
    recorded: &Recorded,
    left: &Left,
    second: Second,
    how: How,
) -> Res<Traced> {
    let scenario = recorded.scenario;
    if let Second::Waiter(who) = second {
        world.traced = Some(who);
    }
    world.begin(scenario)?;
    let mut victim = world.victim(scenario.op)?;
    world.act(scenario.after)?;
    // Joins now: later it would re-use the row of the dead.
    let locker = match second {
        Second::Locker => Some(world.victim(Op::Lock)?),
        _ => None,
    };
    advance(world, recorded, &mut victim, left.at, how)?;
    world.look(scenario.op, victim.pid)?;
    if how != How::Steps {
        // The image has one more participant in it than the recorded one; but
        // this is an instruction that made a difference, so no other will do.
        victim.must_be_at(recorded.trace.points()[left.at])?;
    }
    victim.kill();
    world.settle();
    match second {
        Second::Waiter(_) => {
            if !world.second_has_woken() {
                return Err(Fail::Nothing);
            }
            let mut second = world.take_second().ok_or(Fail::Nothing)?;
            second.step()?;
            Ok(second)
        }
        Second::Locker => locker.ok_or(Fail::Nothing),
        Second::Attacher | Second::Visitor => world.victim(second.op()),
    }
}

fn survive_second(world: &mut World, scenario: &Scenario, second: &mut Traced, op: Op) -> Res<()> {
    let seen = world.look(op, second.pid)?;
    second.kill();
    world.forget_second();
    if op.aside() {
        return world.visit(scenario);
    }
    world.settle();
    world.drain(scenario, seen.expect)?;
    world.end()
}

/// Records the recovery from a death.
fn record_second(
    world: &mut World,
    recorded: &Recorded,
    left: &Left,
    second: Second,
    how: How,
) -> Res<(Trace, Vec<Image>, Image)> {
    let mut victim = start_second(world, recorded, left, second, how)?;
    let settled = world.image_at_rest();
    let mut trace = Trace::default();
    let mut images = Vec::new();
    let mut note = |world: &mut World, victim: &Traced| {
        if !matches!(victim.point, Point::At(_)) {
            world.settle();
        }
        trace.push(victim.point);
        images.push(world.image(second.op(), victim.pid));
    };
    note(world, &victim);
    while !victim.at_end() && !matches!(victim.point, Point::Asleep(_)) {
        victim.step()?;
        note(world, &victim);
    }
    survive_second(world, recorded.scenario, &mut victim, second.op())?;
    Ok((trace, images, settled))
}

fn second_kill(
    world: &mut World,
    recorded: &Recorded,
    left: &Left,
    second: Second,
    (trace, at, image): (&Trace, usize, &Image),
    how: How,
) -> Res<()> {
    let mut victim = start_second(world, recorded, left, second, how)?;
    victim.go(trace, 0, at, how)?;
    if how != How::Steps {
        let here = world.image(second.op(), victim.pid);
        same_place(&victim, trace.points()[at], &here, image)?;
    }
    survive_second(world, recorded.scenario, &mut victim, second.op())
}
