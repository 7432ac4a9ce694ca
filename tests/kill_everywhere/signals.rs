//! A signal at every point: the operation ends as it does without, or as the
//! call promises.
//!
//! The handler runs in the victim, counts, and cancels the victim's token, which
//! matters to `lock_cancellable` alone. Every point has its turn with a handler
//! that was installed without `SA_RESTART`, and with it. No sleep of the victim
//! after the signal ends by itself: the heartbeat of its futex calls is put off
//! for ever. So a wake that is lost is a hang.
//!
//! What was measured, and is asserted here, of the calls that a signal ends:
//!
//! * `lock_cancellable` ends with `Cancelled` at every point from its first
//!   instruction to its sleep, as long as the lock was not handed over.
//! * `lock_interruptible` ends with `Interrupted` if the signal comes at the
//!   entry of its futex call or while it sleeps in there: with `SA_RESTART` as
//!   well as without. At every other point, the instruction in front of the call
//!   and the exit of the call included, it does not notice: it keeps its place,
//!   sleeps (again), and has the lock in its turn.

use super::{Effort, Recorded, Res, Run, advance, same_place, wrong};
use crate::actor::Got;
use crate::image::Image;
use crate::scenario::{BASE, Do, Leg, Op, SCENARIOS, Scenario, Wake, Who, leg};
use crate::trace::{How, Point, SIGNAL, Traced};
use crate::victim::{Outcome, handle_signals};
use crate::world::World;
use heirlock::Policy;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// How many system calls joining, leaving, creating and opening make at least, with
/// two points each.
const CALLS: usize = 8;

/// What a signal does to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Nothing.
    Nothing,
    /// Ends it, unless the lock was handed over before. Nobody else acts.
    Cancels,
    /// The lock is handed over between the signal and its handler: both ends
    /// are right.
    Races,
    /// It comes while the victim sleeps; the points are those from the end of
    /// the handler to the end of the operation, and at each the lock is handed
    /// over: both ends are right.
    GivesUp,
    /// Ends it if it is in its futex call, and no one has woken it.
    Interrupts,
}

/// The operations that a signal may end. To the ones that are killed elsewhere it
/// does nothing.
static SENSITIVE: [(What, Scenario); 6] = [
    (
        What::Races,
        Scenario { name: "lock_cancellable: free", op: Op::Cancellable, floor: 30, ..BASE },
    ),
    (What::Cancels, Scenario { name: "lock_cancellable: behind an owner", ..CANCELLABLE }),
    (
        What::Cancels,
        Scenario {
            name: "lock_cancellable: in the middle",
            before: &[Do::Lock(Who::O), Do::Queue(Who::W1)],
            legs: &[Leg {
                entry: &[Do::Queue(Who::W2)],
                wake: Wake::By(&[Do::Unlock(Who::O), Do::Got(Who::W1), Do::Unlock(Who::W1)]),
            }],
            floor: 434,
            ..CANCELLABLE
        },
    ),
    (What::Races, Scenario { name: "lock_cancellable: as the owner unlocks", ..CANCELLABLE }),
    (
        What::GivesUp,
        Scenario { name: "lock_cancellable: as it gives up", floor: 150, ..CANCELLABLE },
    ),
    (
        What::Interrupts,
        Scenario {
            name: "lock_interruptible: behind an owner",
            op: Op::Interruptible,
            floor: 451,
            before: &[Do::Lock(Who::O)],
            legs: &[leg(&[Do::Unlock(Who::O)])],
            ..BASE
        },
    ),
];

const CANCELLABLE: Scenario = Scenario {
    op: Op::Cancellable,
    floor: 451,
    before: &[Do::Lock(Who::O)],
    legs: &[Leg { entry: &[Do::Queue(Who::W1)], wake: Wake::By(&[Do::Unlock(Who::O)]) }],
    ..BASE
};

/// An operation that is over.
struct Ended {
    outcome: Option<Outcome>,
    handled: i64,
    image: Image,
    victim_owns: bool,
    /// Nobody is in the queue who does not wait.
    tidy: bool,
    /// It was over before the others acted.
    over: bool,
    stood: Stood,
}

/// Where the victim stood when it got the signal.
#[derive(Clone, Copy, Debug)]
struct Stood {
    /// The others had done all that they do.
    served: bool,
    /// At the entry of a futex call that may sleep, or asleep in it.
    in_wait: bool,
}

impl Ended {
    /// Whether that is how it may end.
    fn check(&self, what: What, without: &Self) -> Res<()> {
        if self.handled != 1 {
            return wrong(format!("the handler ran {} times", self.handled));
        }
        let same = self.outcome == without.outcome && self.image == without.image;
        let gave_up = self.tidy && !self.victim_owns;
        let ended = |outcome| self.outcome == Some(outcome) && gave_up;
        let locked = self.outcome == Some(Outcome::Locked) && self.victim_owns && self.tidy;
        let right = match (what, self.stood) {
            (What::Cancels, Stood { served: false, .. }) => ended(Outcome::Cancelled),
            (What::Interrupts, Stood { in_wait: true, .. }) => ended(Outcome::Interrupted),
            (What::Races | What::GivesUp, _) => locked || ended(Outcome::Cancelled),
            _ => same,
        };
        if right {
            return Ok(());
        }
        wrong(format!(
            "it ended with {:?}, owns the lock: {}, nobody queues who does not wait: {}, the \
             image is that without a signal: {}; stood: {:?}",
            self.outcome,
            self.victim_owns,
            self.tidy,
            self.image == without.image,
            self.stood
        ))
    }
}

/// What the signals of one operation came to.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) points: usize,
    pub(crate) ended: usize,
    pub(crate) stepped: usize,
}

impl Tally {
    pub(crate) fn row(&self, name: &str, restart: bool, time: Duration) -> String {
        format!(
            "{name:<42}{:>12}{:>8}{:>8}{:>9}{:>8.1} s",
            if restart { "with" } else { "without" },
            self.points,
            self.ended,
            self.stepped,
            time.as_secs_f64()
        )
    }
}

impl Run {
    /// Runs the operations whose name contains `filter`; says whether all was
    /// well.
    pub(crate) fn signals(mut self, filter: &str) -> bool {
        println!(
            "{:<42}{:>12}{:>8}{:>8}{:>9}{:>10}",
            "operation", "SA_RESTART", "points", "ended", "stepped", "time"
        );
        let start = Instant::now();
        let mut total = 0;
        // The tests of the newcomer are the same for a victim that lives.
        let indifferent = SCENARIOS
            .iter()
            .chain(super::waits())
            .filter(|scenario| scenario.interject.is_none() && !scenario.tries)
            .map(|scenario| (What::Nothing, scenario));
        let sensitive = SENSITIVE.iter().map(|(what, scenario)| (*what, scenario));
        let all = indifferent.chain(sensitive);
        // In the long run, or if they are asked for, also those on throughput locks.
        let every = self.effort == Effort::Long || !filter.is_empty();
        let chosen = |scenario: &Scenario| {
            scenario.name.contains(filter) && (every || scenario.policy == Policy::Fifo)
        };
        for (what, scenario) in all.filter(|(_, scenario)| chosen(scenario)) {
            total += self.operation(what, scenario);
            if self.broken && self.world.slow > 0 {
                println!("FAILED \"{}\": a heartbeat had to help", scenario.name);
                self.failures += 1;
            }
            if self.has_enough() {
                println!("enough failures: the rest was left out");
                break;
            }
        }
        let mut condvars = self.condvars();
        if !self.has_enough() {
            total += condvars.signals(filter);
        }
        let failures = self.failures + condvars.failures;
        let slow = self.world.slow + condvars.slow();
        println!("acquisitions that needed a heartbeat: {slow}");
        println!("{:.0} s", start.elapsed().as_secs_f64());
        println!("signal points: {total}, failures: {failures}");
        failures == 0
    }

    fn operation(&mut self, what: What, scenario: &'static Scenario) -> usize {
        let mut total = 0;
        let Some(recorded) = self.usual(scenario) else { return 0 };
        let without = self.guarded(|world| signalled(world, &recorded, what, None, How::Steps));
        let without = match without {
            Ok(without) => without,
            Err(fail) => {
                self.report(scenario, "without a signal", None, &fail);
                return 0;
            }
        };
        for restart in [false, true] {
            handle_signals(restart);
            let start = Instant::now();
            let tally = self.each_point(what, &recorded, &without);
            println!("{}", tally.row(scenario.name, restart, start.elapsed()));
            if self.has_enough() {
                break;
            }
            // A futex call can be hit at its entry and asleep.
            let least = if what == What::Interrupts { 2 } else { 0 };
            let floor = if self.each_instruction(scenario) { scenario.floor } else { CALLS };
            if (tally.points < floor || tally.ended < least) && only_point().is_none() {
                println!("  fewer than the floors, {floor} and {least}");
                self.failures += 1;
            }
            total += tally.points;
        }
        total
    }

    /// Joining, leaving, creating and opening are long, and do not wait: a
    /// signal between two system calls is worth the time in long runs alone.
    fn each_instruction(&self, scenario: &Scenario) -> bool {
        let long = scenario.op.aside() || scenario.op == Op::Attach || scenario.sparse;
        !long || self.effort == Effort::Long
    }

    fn each_point(&mut self, what: What, recorded: &Recorded, without: &Ended) -> Tally {
        let mut tally = Tally::default();
        let mut steps = super::Tally::default();
        let last = if what == What::GivesUp { usize::MAX } else { recorded.trace.last() };
        let points = only_point().map_or(0..=last, |only| only..=only);
        let all = self.each_instruction(recorded.scenario);
        for at in points {
            if !all && matches!(recorded.trace.points()[at], Point::At(_)) {
                continue;
            }
            let run = |world: &mut World, how| {
                let ended = signalled(world, recorded, what, Some(at), how)?;
                ended.check(what, without)?;
                Ok(ended)
            };
            tally.points += 1;
            match self.bring(&mut steps, run) {
                Ok(ended) => {
                    tally.ended += usize::from(ended.outcome != without.outcome);
                    if what == What::GivesUp && ended.over {
                        break;
                    }
                }
                Err(fail) => {
                    let point = recorded.trace.points().get(at).copied();
                    let named = format!("a signal ({what:?}), point {at}");
                    self.report(recorded.scenario, &named, point, &fail);
                    if self.has_enough() {
                        break;
                    }
                }
            }
        }
        tally.stepped = steps.diverged;
        tally
    }
}

/// The one point that is asked for, if one is.
pub(crate) fn only_point() -> Option<usize> {
    let at = std::env::args().find_map(|arg| arg.strip_prefix("--at=").map(str::to_owned))?;
    Some(at.parse().expect("--at=N"))
}

/// Brings a new victim to point `at`, sends it a signal there, and sees it and
/// the others to their ends.
fn signalled(
    world: &mut World,
    recorded: &Recorded,
    what: What,
    at: Option<usize>,
    how: How,
) -> Res<Ended> {
    let scenario = recorded.scenario;
    world.begin(scenario)?;
    let mut victim = world.victim(scenario.op)?;
    world.act(scenario.after)?;
    let to = match what {
        What::GivesUp if at.is_some() => recorded.trace.sleep_from(0).expect("a sleep") + 1,
        _ => at.unwrap_or(0),
    };
    let begun = advance(world, recorded, &mut victim, to, how)?;
    world.settle();
    if how != How::Steps {
        let image = world.image(scenario.op, victim.pid);
        same_place(&victim, recorded.trace.points()[to], &image, &recorded.images[to])?;
    }
    let asleep = matches!(victim.point, Point::Asleep(_));
    let stood = Stood {
        served: begun == scenario.legs.len() && !asleep,
        in_wait: asleep || victim.about_to_wait(),
    };
    // What the others have yet to do, from the sleep on in which it may be.
    let mut legs = &scenario.legs[begun..];
    let mut sleep = asleep.then(|| scenario.legs[begun - 1].wake);
    if at.is_some() {
        victim.signal()?;
        let ends = matches!(what, What::Cancels | What::Races | What::GivesUp);
        if let Some(leg) = scenario.legs.last()
            && ends
            && !stood.served
        {
            if let (What::Races, Wake::By(acts)) = (what, leg.wake) {
                world.act(acts)?;
            }
            (legs, sleep) = (&[], None);
        }
        victim.deliver()?;
    }
    let mut signal = at.map(|_| SIGNAL);
    let mut over = false;
    if let (What::GivesUp, Some(steps)) = (what, at) {
        victim.handle()?;
        signal = None;
        for _ in 0..steps {
            if victim.at_end() {
                over = true;
                break;
            }
            victim.step()?;
        }
        world.begin_unlock(Who::O)?;
    }
    finish(world, &mut victim, signal, sleep, legs)?;
    if what == What::GivesUp && at.is_some() {
        world.end_unlock(Who::O)?;
    }
    world.settle();
    let image = world.image(scenario.op, victim.pid);
    to_marker(&mut victim)?;
    let (outcome, handled) = Outcome::of(&victim);
    let seen = world.look(scenario.op, victim.pid)?;
    let tidy = world.only_waiters_queue();
    to_marker(&mut victim)?;
    if scenario.has_two_locks() {
        // It may have released the second one.
        world.look(scenario.op, victim.pid)?;
    }
    world.check_woken()?;
    victim.kill();
    if scenario.op.aside() {
        world.visit(scenario)?;
    } else {
        world.drain(scenario, if seen.victim_owns { Got::Lock } else { seen.expect })?;
        world.end()?;
    }
    Ok(Ended { outcome, handled, image, victim_owns: seen.victim_owns, tidy, over, stood })
}

/// From one marker behind the operation to the next.
pub(crate) fn to_marker(victim: &mut Traced) -> Res<()> {
    while !victim.run(None)? {}
    Ok(())
}

/// Lets the victim go on to its end marker, first through the handler of
/// `signal`. The others do what they do while it sleeps: `sleep` is what ends
/// the sleep that the signal may have disturbed.
fn finish(
    world: &mut World,
    victim: &mut Traced,
    mut signal: Option<Signal>,
    mut sleep: Option<Wake>,
    mut legs: &[Leg],
) -> Res<()> {
    while !victim.run(signal.take())? {
        let asleep = matches!(victim.point, Point::Asleep(_));
        if !asleep && !victim.about_to_wait() {
            continue;
        }
        if sleep.is_none()
            && let [next, others @ ..] = legs
        {
            world.act(next.entry)?;
            (sleep, legs) = (Some(next.wake), others);
        }
        match (sleep, asleep) {
            (Some(Wake::Timeout), false) => victim.expire()?,
            (Some(Wake::Timeout), true) => {}
            (_, false) => victim.postpone()?,
            (Some(Wake::By(acts)), true) => {
                sleep = None;
                world.act(acts)?;
            }
            (None, true) => victim.must_wake()?,
        }
    }
    Ok(())
}
