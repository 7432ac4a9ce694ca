//! A signal at every point of a wait for a condition variable: as in `signals.rs`.

use super::ground::{Allowed, Ground};
use super::scenario::{Op, SIGNALLED, Scenario, Wake, Who};
use super::{Condvars, Recorded, advance, next_leg, same_place};
use crate::image::Image;
use crate::run::signals::{Tally, only_point, to_marker};
use crate::run::{self, bring, guarded};
use crate::trace::{Fail, How, Point, Res, SIGNAL, Traced, wrong};
use crate::victim::{Outcome, handle_signals};
use std::time::Instant;

/// A wait that is over.
struct Ended {
    outcome: Option<Outcome>,
    handled: i64,
    image: Image,
    victim_owns: bool,
    /// Those alone are in the queue who wait.
    tidy: bool,
    /// Where it got the signal: in its futex call, before it was notified.
    in_wait: bool,
}

impl Ended {
    /// Whether that is how it may end.
    fn check(&self, scenario: &Scenario, without: &Self) -> Res<()> {
        let right = if scenario.op == Op::Interruptible && self.in_wait {
            self.outcome == Some(Outcome::Interrupted) && self.tidy
        } else {
            self.outcome == without.outcome && self.image == without.image
        };
        if right && self.handled == 1 && self.victim_owns {
            return Ok(());
        }
        wrong(format!(
            "it ended with {:?}, owns the lock: {}, nobody queues who does not wait: {}, the \
             image is that without a signal: {}; was waiting: {}; the handler ran {} times",
            self.outcome,
            self.victim_owns,
            self.tidy,
            self.image == without.image,
            self.in_wait,
            self.handled
        ))
    }
}

impl Condvars {
    /// Runs the operations whose name contains `filter`: how many points.
    pub(crate) fn signals(&mut self, filter: &str) -> usize {
        let mut total = 0;
        for scenario in SIGNALLED.iter().filter(|scenario| scenario.name.contains(filter)) {
            if let Err(fail) = self.operation(scenario, &mut total) {
                self.report(scenario, "without a signal", None, &fail);
            }
            if self.broken && self.ground.slow > 0 {
                println!("FAILED \"{}\": a heartbeat had to help", scenario.name);
                self.failures += 1;
            }
            if self.has_enough() {
                println!("enough failures: the rest was left out");
                break;
            }
        }
        total
    }

    fn operation(&mut self, scenario: &Scenario, total: &mut usize) -> Res<()> {
        let Some(recorded) = self.usual(scenario) else { return Ok(()) };
        let run = |ground: &mut Ground| signalled(ground, &recorded, None, How::Steps);
        let without = guarded(&mut self.ground, run)?;
        for restart in [false, true] {
            handle_signals(restart);
            let start = Instant::now();
            let tally = self.each_point(&recorded, &without);
            println!("{}", tally.row(scenario.name, restart, start.elapsed()));
            *total += tally.points;
            if self.has_enough() {
                break;
            }
            // A futex call can be hit at its entry and asleep.
            let least = if scenario.op == Op::Interruptible { 2 } else { 0 };
            let few = tally.points < scenario.floor || tally.ended < least;
            if few && only_point().is_none() {
                println!("  fewer than the floors, {} and {least}", scenario.floor);
                self.failures += 1;
            }
        }
        Ok(())
    }

    fn each_point(&mut self, recorded: &Recorded, without: &Ended) -> Tally {
        let mut tally = Tally::default();
        let mut steps = run::Tally::default();
        for at in only_point().map_or(0..=recorded.trace.last(), |only| only..=only) {
            let run = |ground: &mut Ground, how| {
                let ended = signalled(ground, recorded, Some(at), how)?;
                ended.check(recorded.scenario, without)?;
                Ok(ended)
            };
            tally.points += 1;
            match bring(&mut self.ground, &mut steps, run) {
                Ok(ended) => tally.ended += usize::from(ended.outcome != without.outcome),
                Err(fail) => {
                    let point = recorded.trace.points().get(at).copied();
                    let what = format!("a signal, point {at}");
                    self.report(recorded.scenario, &what, point, &fail);
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

/// Brings a new victim to point `at`, sends it a signal there, and sees it and the
/// others to their ends.
fn signalled(ground: &mut Ground, recorded: &Recorded, at: Option<usize>, how: How) -> Res<Ended> {
    let to = at.unwrap_or(0);
    let mut victim = super::start(ground, recorded.scenario)?;
    let begun = advance(ground, recorded, &mut victim, to, how)?;
    if how != How::Steps {
        same_place(recorded, to, &victim, &ground.image(Some(victim.pid)))?;
    }
    let asleep = matches!(victim.point, Point::Asleep(_));
    let in_wait = (asleep || victim.about_to_wait()) && !ground.victim_is_notified();
    if at.is_some() {
        victim.signal()?;
        victim.deliver()?;
    }
    finish(ground, recorded.scenario, &mut victim, (at.is_some(), asleep), begun)?;
    ground.settle();
    let image = ground.image(Some(victim.pid));
    to_marker(&mut victim)?;
    let (outcome, handled) = Outcome::of(&victim);
    let victim_owns = ground.look(victim.pid)?.victim_owns;
    ground.bury(Who::V);
    let tidy = ground.is_tidy();
    to_marker(&mut victim)?;
    let seen = ground.look(victim.pid)?;
    victim.kill();
    ground.survive(&seen, Allowed::NONE)?;
    Ok(Ended { outcome, handled, image, victim_owns, tidy, in_wait })
}

/// Lets the victim go on to its end marker, through the handler of a signal first if it
/// has got one. The others do what they do while it sleeps.
fn finish(
    ground: &mut Ground,
    scenario: &Scenario,
    victim: &mut Traced,
    (signal, asleep): (bool, bool),
    mut begun: usize,
) -> Res<()> {
    let mut signal = signal.then_some(SIGNAL);
    // What ends the sleep that the signal may have disturbed.
    let mut sleep = asleep.then(|| scenario.legs[begun - 1].wake);
    while !victim.run(signal.take())? {
        let asleep = matches!(victim.point, Point::Asleep(_));
        if !asleep && !victim.about_to_wait() {
            ground.settle();
            continue;
        }
        if sleep.is_none() && begun < scenario.legs.len() {
            sleep = Some(next_leg(ground, scenario, &mut begun)?.wake);
        }
        match (sleep, asleep) {
            (Some(Wake::Timeout(_)), _) => return Err(Fail::Nothing),
            (_, false) => victim.postpone()?,
            (Some(Wake::By(acts)), true) => {
                sleep = None;
                ground.act(acts)?;
            }
            (None, true) => victim.must_wake()?,
        }
    }
    Ok(())
}
