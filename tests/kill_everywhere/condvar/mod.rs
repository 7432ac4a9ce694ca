//! Kills at every point of what is done with a condition variable.
//!
//! Somebody is killed, and the others settle, without a heartbeat. Who was notified
//! then are all who were to be, or nobody; and each of them returns with the lock, in
//! order. The others sleep on until the newcomer, who is told if an owner died,
//! notifies them: one, and then all. In the end nothing is left of the dead.

mod ground;
mod scenario;
mod signals;

use crate::image::Image;
use crate::run::{ENOUGH_SLOW, Effort, Shard, Tally, bring, guarded, place, usual};
use crate::trace::{Fail, How, Point, Res, Trace, Traced, wrong};
use ground::{Allowed, Ground, Seen};
use scenario::{Leg, Op, SCENARIOS, Scenario, Wake, Who};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Whom the second kill meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Second {
    /// The oldest waiter, who takes the guard over.
    Waiter,
    /// One who re-uses the row, while those who wait are stopped.
    Attacher,
}

/// An image that a first kill left behind, with the guard the dead one's.
struct Left {
    at: usize,
    /// Whether those who took the guard over had been notified then.
    done: bool,
    notifies_all: bool,
}

/// A run of one scenario: what was recorded of it.
struct Recorded<'a> {
    scenario: &'a Scenario,
    trace: Trace,
    /// What the segment was like at each point.
    images: Vec<Image>,
}

impl<'a> Recorded<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        Self { scenario, trace: Trace::default(), images: Vec::new() }
    }

    fn note(&mut self, ground: &Ground, victim: &Traced) {
        if !matches!(victim.point, Point::At(_)) {
            ground.settle();
        }
        if let Some(first) = self.trace.look_of_the_clock(victim.point) {
            self.trace.truncate(first);
            self.images.truncate(first);
        }
        self.trace.push(victim.point);
        self.images.push(ground.image(Some(victim.pid)));
    }

    /// Whether to kill at a point: not, if only that is wanted what makes a difference,
    /// where it makes none.
    fn matters(&self, at: usize) -> bool {
        at == 0
            || at == self.trace.last()
            || self.images[at] != self.images[at - 1]
            || self.trace.points()[at].has_other_effects()
    }
}

/// What `Run` needs to know of it.
pub(crate) struct Condvars {
    ground: Ground,
    effort: Effort,
    shard: Shard,
    broken: bool,
    /// How many broken promises are enough.
    enough: usize,
    pub(crate) failures: usize,
    /// The images from which a recovery has been killed, and what recovered.
    done: BTreeSet<(Second, Image)>,
}

impl Condvars {
    pub(crate) fn new(effort: Effort, shard: Shard, broken: bool, enough: usize) -> Self {
        let (ground, done) = (Ground::new(), BTreeSet::new());
        Self { ground, effort, shard, broken, enough, failures: 0, done }
    }

    /// How many acquisitions and returns needed a heartbeat.
    pub(crate) fn slow(&self) -> usize {
        self.ground.slow
    }

    /// Runs the scenarios whose name contains `filter`.
    pub(crate) fn all(&mut self, filter: &str, total: &mut Tally) {
        for scenario in SCENARIOS.iter().filter(|scenario| scenario.name.contains(filter)) {
            let start = Instant::now();
            let tally = self.scenario(scenario);
            println!("{}", tally.row(scenario.name, start.elapsed()));
            if tally.points < scenario.floor && !self.has_enough() {
                println!("  fewer kill points than the floor, {}", scenario.floor);
                self.failures += 1;
            }
            total.add(&tally);
            if self.broken && self.ground.slow > 0 {
                println!("FAILED \"{}\": a heartbeat had to help", scenario.name);
                self.failures += 1;
            }
            if self.has_enough() {
                println!("enough failures: the rest was left out");
                break;
            }
        }
    }

    fn has_enough(&self) -> bool {
        self.failures >= self.enough || self.broken && self.ground.slow >= ENOUGH_SLOW
    }

    fn report(&mut self, scenario: &Scenario, what: &str, at: Option<Point>, fail: &Fail) {
        self.failures += 1;
        let place = at.map_or(String::new(), |point| format!(", {}", place(point)));
        println!("FAILED \"{}\", {what}{place}: {fail}", scenario.name);
    }

    /// What the operation consists of, as a rule; `None` if it fails.
    fn usual<'a>(&mut self, scenario: &'a Scenario) -> Option<Recorded<'a>> {
        let recorded = usual(
            |recorded: &Recorded| &recorded.trace,
            || guarded(&mut self.ground, |ground| record(ground, scenario)),
        );
        recorded.map_err(|fail| self.report(scenario, "the undisturbed run", None, &fail)).ok()
    }

    fn scenario(&mut self, scenario: &Scenario) -> Tally {
        let mut tally = Tally::default();
        let Some(recorded) = self.usual(scenario) else { return tally };
        let lefts = self.first_kills(&recorded, &mut tally);
        if self.effort == Effort::First {
            tally.images = lefts.len();
            return tally;
        }
        let all = self.effort == Effort::Long || !scenario.sparse;
        let seconds = if all { &[Second::Waiter, Second::Attacher][..] } else { &[Second::Waiter] };
        for (image, left) in lefts {
            let mut new = false;
            for second in seconds.iter().copied() {
                if self.has_enough() {
                    return tally;
                }
                if self.done.insert((second, image.clone())) {
                    new = true;
                    self.second_kills(&recorded, &left, second, &mut tally);
                }
            }
            tally.images += usize::from(new);
        }
        tally
    }

    fn first_kills(&mut self, recorded: &Recorded, tally: &mut Tally) -> BTreeMap<Image, Left> {
        let Scenario { op, .. } = *recorded.scenario;
        let mut lefts = BTreeMap::new();
        let last = recorded.trace.last();
        // What one kill has shown of those behind.
        let mut order = Order::default();
        for at in 0..=last {
            if self.has_enough() {
                break;
            }
            if recorded.scenario.sparse && self.effort != Effort::Long && !recorded.matters(at) {
                continue;
            }
            tally.points += 1;
            let run = |ground: &mut Ground, how| first_kill(ground, recorded, at, how);
            let done = bring(&mut self.ground, tally, run).and_then(|(seen, notified)| {
                if seen.image != recorded.images[at] {
                    // It went its own way, to somewhere near.
                    return Ok(());
                }
                if op.notifies().is_some() {
                    order.of_notifier(notified, at, last)?;
                } else if op.waits() {
                    order.of_waiter(&seen, notified)?;
                }
                if let Some(notifies_all) = op.notifies()
                    && seen.victim_edits
                {
                    let left = Left { at, done: notified, notifies_all };
                    lefts.entry(seen.image).or_insert(left);
                }
                Ok(())
            });
            if let Err(fail) = done {
                let point = recorded.trace.points()[at];
                self.report(recorded.scenario, &format!("killed at {at}"), Some(point), &fail);
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
        let run = |ground: &mut Ground, how| record_second(ground, recorded, left, second, how);
        let again = match bring(&mut self.ground, tally, run) {
            Ok(again) => again,
            Err(Fail::Nothing) => return,
            Err(fail) => {
                let point = recorded.trace.points()[left.at];
                return self.report(recorded.scenario, &what, Some(point), &fail);
            }
        };
        for at in 0..=again.trace.last() {
            let wanted = self.effort == Effort::Long || again.matters(at);
            if !wanted || !self.shard.has(at) {
                continue;
            }
            let run = |ground: &mut Ground, how| {
                second_kill(ground, recorded, left, second, (&again, at), how)
            };
            let done = bring(&mut self.ground, tally, run);
            if matches!(done, Err(Fail::Nothing)) {
                continue;
            }
            tally.second_points += 1;
            if let Err(fail) = done {
                let point = again.trace.points()[at];
                self.report(recorded.scenario, &format!("{what} at {at}"), Some(point), &fail);
            }
            if self.has_enough() {
                return;
            }
        }
    }
}

/// What must be true from one kill point to the next.
#[derive(Default)]
struct Order {
    done: bool,
    /// The victim had the lock again, and its notification was nobody else's.
    over: bool,
}

impl Order {
    /// What is done is done.
    fn of_notifier(&mut self, notified: bool, at: usize, last: usize) -> Res<()> {
        let too_early = notified && at == 0;
        let too_late = !notified && (self.done || at == last);
        if too_early || too_late {
            return wrong(format!("notified: {notified}, at the point before: {}", self.done));
        }
        self.done = notified;
        Ok(())
    }

    /// Its notification passes on until it has returned.
    fn of_waiter(&mut self, seen: &Seen, notified: bool) -> Res<()> {
        if self.over && notified {
            return wrong("passed on, and was not at the point before");
        }
        self.over = self.done && seen.victim_owns && !notified;
        self.done |= notified;
        Ok(())
    }
}

/// Steps from where the victim is to point `to`, or to the end, and notes every point.
/// Returns how many sleeps it began.
fn walk(
    ground: &mut Ground,
    recorded: &mut Recorded,
    victim: &mut Traced,
    to: Option<usize>,
) -> Res<usize> {
    let mut begun = 0;
    recorded.note(ground, victim);
    loop {
        let at = recorded.trace.last();
        if to == Some(at) || victim.at_end() {
            return Ok(begun);
        }
        if !victim.about_to_wait() {
            victim.step()?;
            recorded.note(ground, victim);
            continue;
        }
        let leg = next_leg(ground, recorded.scenario, &mut begun)?;
        match leg.wake {
            Wake::Timeout(_) if to.is_some_and(|to| to > at + 1) => victim.expire()?,
            _ => {
                postpone(victim, leg)?;
                victim.step()?;
                recorded.note(ground, victim);
                if !matches!(victim.point, Point::Asleep(_)) {
                    return wrong("the victim does not fall asleep");
                }
                if to == Some(at + 1) {
                    return Ok(begun);
                }
            }
        }
        if let Wake::By(acts) = leg.wake {
            ground.act(acts)?;
        }
        victim.step()?;
        if recorded.trace.last() == at {
            // Where it would have slept.
            recorded.trace.push(Point::Asleep(0));
            recorded.images.push(Image::default());
        }
        recorded.note(ground, victim);
        if let Wake::Timeout(acts) = leg.wake
            && to != Some(at + 2)
        {
            ground.act(acts)?;
        }
    }
}

/// The victim is about to sleep for the `begun`th time.
fn next_leg(ground: &mut Ground, scenario: &Scenario, begun: &mut usize) -> Res<Leg> {
    let Some(leg) = scenario.legs.get(*begun) else {
        return wrong("the victim sleeps once too often");
    };
    if *begun == 0 {
        ground.victim_waits();
    }
    *begun += 1;
    ground.act(leg.entry)?;
    Ok(*leg)
}

/// A sleep that others are to end does not end by itself.
fn postpone(victim: &Traced, leg: Leg) -> Res<()> {
    match leg.wake {
        Wake::By(_) => victim.postpone(),
        Wake::Timeout(_) => Ok(()),
    }
}

/// Brings a new victim to point `to`. Returns how many sleeps it began.
fn advance(
    ground: &mut Ground,
    recorded: &Recorded,
    victim: &mut Traced,
    to: usize,
    how: How,
) -> Res<usize> {
    if how == How::Steps {
        return walk(ground, &mut Recorded::new(recorded.scenario), victim, Some(to));
    }
    let trace = &recorded.trace;
    let (mut begun, mut at) = (0, 0);
    while let Some(stop) = trace.sleep_from(at).filter(|stop| *stop < to) {
        go(ground, recorded, victim, (at, stop), how)?;
        victim.must_be_at(trace.points()[stop])?;
        // It slept as often when it was recorded.
        let leg = next_leg(ground, recorded.scenario, &mut begun)?;
        match leg.wake {
            Wake::Timeout(_) if to > stop + 1 => victim.expire()?,
            _ => {
                postpone(victim, leg)?;
                victim.step()?;
            }
        }
        if to == stop + 1 {
            return Ok(begun);
        }
        if let Wake::By(acts) = leg.wake {
            ground.act(acts)?;
        }
        victim.step()?;
        at = stop + 2;
        victim.must_be_at(trace.points()[at])?;
        if at == to {
            return Ok(begun);
        }
        if let Wake::Timeout(acts) = leg.wake {
            ground.act(acts)?;
        }
    }
    go(ground, recorded, victim, (at, to), how)?;
    Ok(begun)
}

/// From one point to another, between which the victim does not sleep. Whomever it
/// wakes settles at once, as when it was recorded.
fn go(
    ground: &Ground,
    recorded: &Recorded,
    victim: &mut Traced,
    (mut from, to): (usize, usize),
    how: How,
) -> Res<()> {
    ground.settle();
    if how == How::Steps {
        for _ in from..to {
            // On its own way it may be there sooner.
            if victim.at_end() || matches!(victim.point, Point::Asleep(_)) {
                break;
            }
            victim.step()?;
            if !matches!(victim.point, Point::At(_)) {
                ground.settle();
            }
        }
        return Ok(());
    }
    let points = recorded.trace.points();
    for woken in (from + 1..to).filter(|at| points[*at].has_woken_others()) {
        victim.go(&recorded.trace, from, woken, how)?;
        victim.must_be_at(points[woken])?;
        ground.settle();
        from = woken;
    }
    victim.go(&recorded.trace, from, to, how)?;
    ground.settle();
    Ok(())
}

/// Whether a victim stands where the recorded one stood, or at another instruction that
/// has done the same to the segment: what the clock shows decides some branches.
fn same_place(recorded: &Recorded, at: usize, victim: &Traced, image: &Image) -> Res<()> {
    match (victim.point, recorded.trace.points()[at]) {
        (Point::At(_), Point::At(_)) if *image == recorded.images[at] => Ok(()),
        (Point::At(_), _) => Err(Fail::Diverged("another image than recorded".into())),
        (_, point) => victim.must_be_at(point),
    }
}

/// Who may have been notified when the victim has died.
fn allowed(ground: &Ground, scenario: &Scenario, seen: &Seen) -> Allowed {
    let twice = scenario.passes_on;
    match scenario.op.notifies() {
        Some(all) => Allowed { none: true, some: if all { usize::MAX } else { 1 }, twice: false },
        None if scenario.op.waits() && ground.victim_is_notified() => {
            Allowed { none: seen.victim_owns, some: 1, twice }
        }
        // The dead one's, whose row it was to re-use.
        None if scenario.op == Op::Attach && twice => Allowed { none: false, some: 1, twice },
        None => Allowed::NONE,
    }
}

/// Kills the victim; the others must go on as they should. Whether anybody was notified
/// who had not been before.
fn survive(
    ground: &mut Ground,
    scenario: &Scenario,
    victim: &mut Traced,
    seen: &Seen,
) -> Res<bool> {
    let allowed = allowed(ground, scenario, seen);
    victim.kill();
    ground.bury(Who::V);
    ground.survive(seen, allowed)
}

fn start(ground: &mut Ground, scenario: &Scenario) -> Res<Traced> {
    ground.begin(scenario)?;
    let victim = ground.victim(scenario.op)?;
    ground.act(scenario.after)?;
    Ok(victim)
}

/// Records what the operation consists of.
fn record<'a>(ground: &mut Ground, scenario: &'a Scenario) -> Res<Recorded<'a>> {
    let mut recorded = Recorded::new(scenario);
    let mut victim = start(ground, scenario)?;
    walk(ground, &mut recorded, &mut victim, None)?;
    let seen = ground.look(victim.pid)?;
    survive(ground, scenario, &mut victim, &seen)?;
    Ok(recorded)
}

fn first_kill(ground: &mut Ground, recorded: &Recorded, at: usize, how: How) -> Res<(Seen, bool)> {
    let mut victim = start(ground, recorded.scenario)?;
    advance(ground, recorded, &mut victim, at, how)?;
    let seen = ground.look(victim.pid)?;
    if how != How::Steps {
        same_place(recorded, at, &victim, &seen.image)?;
    }
    let waits = recorded.scenario.op == Op::Wait && !ground.victim_is_notified();
    if waits && !seen.victim_owns && !seen.victim_waits {
        return wrong("it has released the lock, and nobody could notify it");
    }
    let notified = survive(ground, recorded.scenario, &mut victim, &seen)?;
    Ok((seen, notified))
}

/// Kills a first victim, and brings the second to the point at which it notices.
fn start_second(
    ground: &mut Ground,
    recorded: &Recorded,
    left: &Left,
    second: Second,
    how: How,
) -> Res<Traced> {
    if second == Second::Waiter {
        ground.traced = Some(Who::W1);
    }
    let mut victim = start(ground, recorded.scenario)?;
    advance(ground, recorded, &mut victim, left.at, how)?;
    ground.look(victim.pid)?;
    // The image has another participant in it than the recorded one; but this is an
    // instruction that made a difference, so no other will do.
    let there = victim.must_be_at(recorded.trace.points()[left.at]);
    match how {
        How::Steps => there.map_err(|_| Fail::Nothing)?,
        _ => there?,
    }
    if second == Second::Attacher {
        ground.stop_waiters();
    }
    victim.kill();
    match second {
        Second::Waiter => {
            let mut second = ground.take_second()?;
            second.step()?;
            Ok(second)
        }
        Second::Attacher => ground.victim(Op::Attach),
    }
}

/// Kills the second one as well.
fn survive_second(
    ground: &mut Ground,
    left: &Left,
    second: Second,
    victim: &mut Traced,
) -> Res<()> {
    let seen = ground.look(victim.pid)?;
    victim.kill();
    ground.bury(if second == Second::Waiter { Who::W1 } else { Who::V });
    let some = if left.notifies_all { usize::MAX } else { 1 };
    let allowed = match left.done {
        false => Allowed::NONE,
        // A waiter that has the lock may have ended its wait.
        true => Allowed {
            none: second == Second::Waiter && seen.victim_owns && !left.notifies_all,
            some,
            twice: false,
        },
    };
    ground.survive(&seen, allowed)?;
    Ok(())
}

/// Records the recovery from a death.
fn record_second<'a>(
    ground: &mut Ground,
    recorded: &Recorded<'a>,
    left: &Left,
    second: Second,
    how: How,
) -> Res<Recorded<'a>> {
    let mut victim = start_second(ground, recorded, left, second, how)?;
    let mut again = Recorded::new(recorded.scenario);
    again.note(ground, &victim);
    while !victim.at_end() && !matches!(victim.point, Point::Asleep(_)) {
        victim.step()?;
        again.note(ground, &victim);
    }
    survive_second(ground, left, second, &mut victim)?;
    Ok(again)
}

fn second_kill(
    ground: &mut Ground,
    recorded: &Recorded,
    left: &Left,
    second: Second,
    (again, at): (&Recorded, usize),
    how: How,
) -> Res<()> {
    let mut victim = start_second(ground, recorded, left, second, how)?;
    go(ground, again, &mut victim, (0, at), how)?;
    if how != How::Steps {
        same_place(again, at, &victim, &ground.image(Some(victim.pid)))?;
    }
    survive_second(ground, left, second, &mut victim)
}
