//! Locks that several want: passing one on, and having more threads than CPUs.

use super::contest::{Setup, Sum, hold};
use super::figures::{Item, Target};
use super::peers::Player;
use super::stage::Stage;
use crate::Result;
use std::time::Duration;

pub(super) fn each(sums: &[Sum], of: impl Fn(&Sum) -> f64) -> Vec<f64> {
    sums.iter().map(of).collect()
}

/// How long a variant runs in a repetition.
pub(super) fn window(stage: &Stage) -> Duration {
    stage.usually(Duration::from_millis(200), Duration::from_millis(5))
}

pub(crate) fn handover(stage: &Stage) -> Result<Item> {
    let mut item = Item::new(
        "handover",
        "Two processes on two CPUs, each of which locks and unlocks all the time. One way: from the \
         release by one, after half a microsecond in which the other one has queued, to the \
         acquisition by the other. Beside it two processes that pass on a cache line without any \
         lock. The time from one owner to the next, and the counts, are of owners who release at \
         once.",
    );
    let (cpus, window) = (stage.two_cpus()?, window(stage));
    let run = |player, held, timed| {
        let busy = stage.turns(held);
        hold(stage, &Setup { player, members: 2, cpus: &cpus, busy, window, watch: false, timed })
    };
    let rounds = stage.repeat(|| {
        Ok([
            run(Player::Heirlock, Duration::from_nanos(500), true)?,
            run(Player::PingPong, Duration::ZERO, false)?,
            run(Player::Heirlock, Duration::ZERO, false)?,
        ])
    })?;
    let [timed, bare, ours] =
        [0, 1, 2].map(|at| rounds.iter().map(|round| round[at]).collect::<Vec<Sum>>());
    let (one_way, bare) = (each(&timed, |sum| sum.one_way_ns), each(&bare, Sum::handover_ns));
    item.figure("one way (ns)", "two processes", Player::Heirlock.name(), &one_way);
    item.figure("one way (ns)", "two processes", Player::PingPong.name(), &bare);
    item.ratio("", "heirlock / ping-pong", (&one_way, &bare), Target::AtMost(3.0));
    let whole = each(&ours, Sum::handover_ns);
    item.figure("from owner to owner (ns)", "two processes", Player::Heirlock.name(), &whole);
    let counts = [
        ("wakes", each(&ours, |sum| sum.per_handover(sum.wakes)), Some(0.05)),
        ("parks", each(&ours, |sum| sum.per_handover(sum.parks)), Some(0.05)),
        ("barriers", each(&ours, |sum| sum.per_handover(sum.barriers)), None),
        ("acquisitions", each(&ours, |sum| sum.per_handover(sum.acquisitions)), None),
    ];
    for (name, samples, most) in &counts {
        item.figure("heirlock, per hand-over", "two processes", *name, samples);
        if let Some(most) = most {
            item.check("", format!("{name} per hand-over"), samples, Target::AtMost(*most));
        }
    }
    Ok(item)
}

/// How many there are, and how long each holds the lock.
pub(super) fn cases(stage: &Stage) -> Vec<(usize, Duration)> {
    let members: &[usize] = stage.usually(&[4, 8, 32], &[4]);
    let held: &[u64] = stage.usually(&[0, 200, 2_000, 20_000], &[0, 2_000]);
    let of = |members: usize| held.iter().map(move |ns| (members, Duration::from_nanos(*ns)));
    members.iter().copied().flat_map(of).collect()
}

pub(crate) fn oversubscribed(stage: &Stage) -> Result<Item> {
    let mut item = Item::new(
        "oversubscribed",
        "More processes (of FairMutex: threads) than CPUs, each pinned to one, which hold the lock \
         for a time and want it again at once. What counts is how often the owner changes: whoever \
         comes back before the others run has the lock to itself for a while, and that is no \
         hand-over. The bound is what is possible if each hand-over costs one context switch and \
         nothing else: that of two processes on one CPU.",
    );
    let window = window(stage);
    for (members, held) in cases(stage) {
        let (busy, cpus) = (stage.turns(held), &stage.cpus[..]);
        let run = |player| {
            hold(stage, &Setup { player, members, cpus, busy, window, watch: false, timed: false })
        };
        let one_cpu = Setup {
            player: Player::Switch,
            members: 2,
            cpus: &stage.cpus[..1],
            busy: 0,
            window: window / 2,
            watch: false,
            timed: false,
        };
        let rounds = stage.repeat(|| {
            Ok([run(Player::Heirlock)?, run(Player::FairMutex)?, hold(stage, &one_cpu)?])
        })?;
        let [ours, fair, switch] =
            [0, 1, 2].map(|at| rounds.iter().map(|round| round[at]).collect::<Vec<Sum>>());
        let bound = |switch: &Sum| 1.0 / (held.as_secs_f64() + switch.handover_ns() / 1e9);
        let (case, bound) = (format!("{members} × {held:?}"), each(&switch, bound));
        report_case(&mut item, &case, &ours, &fair, &bound);
    }
    Ok(item)
}

/// Adds what was found of so many members, which hold the lock for so long.
fn report_case(item: &mut Item, case: &str, ours: &[Sum], fair: &[Sum], bound: &[f64]) {
    let rates = [each(ours, Sum::handover_rate), each(fair, Sum::handover_rate)];
    let table = "hand-overs per second";
    item.figure(table, case, "heirlock", &rates[0]);
    item.figure(table, case, "FairMutex", &rates[1]);
    item.figure(table, case, "bound", bound);
    for (name, sums) in [("heirlock", ours), ("FairMutex", fair)] {
        let table = "per hand-over";
        let mut add = |what: &str, count: fn(&Sum) -> f64| {
            let samples = each(sums, |sum| sum.per_handover(count(sum)));
            item.figure(table, case, format!("{name}: {what}"), &samples);
        };
        add("acquisitions", |sum| sum.acquisitions);
        add("voluntary switches", |sum| sum.voluntary);
        add("involuntary switches", |sum| sum.involuntary);
    }
    let wakes = each(ours, |sum| sum.per_handover(sum.wakes));
    let parks = each(ours, |sum| sum.per_handover(sum.parks));
    let barriers = each(ours, |sum| sum.per_handover(sum.barriers));
    for (name, samples) in [("wakes", &wakes), ("parks", &parks), ("barriers", &barriers)] {
        item.figure("heirlock, per hand-over", case, name, samples);
    }
    item.ratio(case, "heirlock / FairMutex", (&rates[0], &rates[1]), Target::AtLeast(1.5));
    item.ratio(case, "heirlock / bound", (&rates[0], bound), Target::AtLeast(0.5));
    item.check(case, "wakes per hand-over", &wakes, Target::AtMost(1.05));
    item.check(case, "parks per hand-over", &parks, Target::AtMost(1.05));
}
