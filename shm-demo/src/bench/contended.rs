//! Locks that several want: passing one on, and having more threads than CPUs.

use super::contest::{Setup, Sum, hold};
use super::figures::{Item, Target};
use super::peers::Player;
use super::stage::Stage;
use crate::Result;
use std::time::Duration;

fn each(sums: &[Sum], of: impl Fn(&Sum) -> f64) -> Vec<f64> {
    sums.iter().map(of).collect()
}

/// How long a variant runs in a repetition.
pub(super) fn window(stage: &Stage) -> Duration {
    stage.usually(Duration::from_millis(200), Duration::from_millis(5))
}

pub(crate) fn handover(stage: &Stage) -> Result<Item> {
    let mut item = Item::new(
        "handover",
        "Two processes on two CPUs, each of which locks and unlocks all the time: the time from \
         one owner to the next. Beside it two processes that pass on a cache line without any lock.",
    );
    let cpus = stage.two_cpus()?;
    let run = |player| {
        hold(stage, &Setup { player, members: 2, cpus: &cpus, busy: 0, window: window(stage) })
    };
    let rounds = stage.repeat(|| Ok((run(Player::Heirlock)?, run(Player::PingPong)?)))?;
    let (ours, bare): (Vec<Sum>, Vec<Sum>) = rounds.into_iter().unzip();
    let time = |sums: &[Sum]| each(sums, Sum::handover_ns);
    let (ours_ns, bare_ns) = (time(&ours), time(&bare));
    item.figure("one way (ns)", "two processes", Player::Heirlock.name(), &ours_ns);
    item.figure("one way (ns)", "two processes", Player::PingPong.name(), &bare_ns);
    item.ratio("", "heirlock / ping-pong", (&ours_ns, &bare_ns), Target::AtMost(3.0));
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
         for a time and want it again at once. The bound is what is possible if each hand-over \
         costs one context switch and nothing else: that of two processes on one CPU.",
    );
    let window = window(stage);
    for (members, held) in cases(stage) {
        let (busy, cpus) = (stage.turns(held), &stage.cpus[..]);
        let run = |player| hold(stage, &Setup { player, members, cpus, busy, window });
        let rounds = stage.repeat(|| {
            let one_cpu = Setup {
                player: Player::Switch,
                members: 2,
                cpus: &stage.cpus[..1],
                busy: 0,
                window: window / 2,
            };
            Ok((run(Player::Heirlock)?, run(Player::FairMutex)?, hold(stage, &one_cpu)?))
        })?;
        let ours = rounds.iter().map(|round| round.0).collect::<Vec<_>>();
        let fair = rounds.iter().map(|round| round.1).collect::<Vec<_>>();
        let bound =
            |round: &(Sum, Sum, Sum)| 1.0 / (held.as_secs_f64() + round.2.handover_ns() / 1e9);
        let bound: Vec<f64> = rounds.iter().map(bound).collect();
        let case = format!("{members} × {held:?}");
        let (our_rate, fair_rate) = (each(&ours, Sum::throughput), each(&fair, Sum::throughput));
        let table = "acquisitions per second";
        item.figure(table, &case, "heirlock", &our_rate);
        item.figure(table, &case, "FairMutex", &fair_rate);
        item.figure(table, &case, "bound", &bound);
        for (name, sums) in [("heirlock", &ours), ("FairMutex", &fair)] {
            let table = "context switches per hand-over";
            let voluntary = each(sums, |sum| sum.per_handover(sum.voluntary));
            let involuntary = each(sums, |sum| sum.per_handover(sum.involuntary));
            item.figure(table, &case, format!("{name}, voluntary"), &voluntary);
            item.figure(table, &case, format!("{name}, involuntary"), &involuntary);
        }
        let wakes = each(&ours, |sum| sum.per_handover(sum.wakes));
        let parks = each(&ours, |sum| sum.per_handover(sum.parks));
        let barriers = each(&ours, |sum| sum.per_handover(sum.barriers));
        for (name, samples) in [("wakes", &wakes), ("parks", &parks), ("barriers", &barriers)] {
            item.figure("heirlock, per hand-over", &case, name, samples);
        }
        let ratio = (&our_rate[..], &fair_rate[..]);
        item.ratio(&case, "heirlock / FairMutex", ratio, Target::AtLeast(1.5));
        item.ratio(&case, "heirlock / bound", (&our_rate, &bound), Target::AtLeast(0.5));
        item.check(&case, "wakes per hand-over", &wakes, Target::AtMost(1.05));
        item.check(&case, "parks per hand-over", &parks, Target::AtMost(1.05));
    }
    Ok(item)
}
