//! The throughput policy beside locks that are not fair.

use super::contended::{cases, each, window};
use super::contest::{Setup, Sum, hold};
use super::figures::{Item, Target};
use super::peers::Player;
use super::stage::Stage;
use crate::Result;

/// The first is measured against the others.
const PLAYERS: [Player; 4] =
    [Player::HeirlockThroughput, Player::Pthread, Player::PthreadRobust, Player::ParkingLot];

pub(crate) fn measure(stage: &Stage) -> Result<Item> {
    let mut item = Item::new(
        "policy",
        "Locks that let whoever comes first have the lock, with more processes (of parking_lot: \
         threads) than CPUs. And whom they forget: a bypass is an acquisition by somebody who \
         arrived when another one had been asleep in the lock for more than a millisecond, and \
         still waits. Looked for in one of 16 acquisitions, in runs of their own.",
    );
    for (members, held) in cases(stage) {
        let (busy, cpus, window) = (stage.turns(held), &stage.cpus[..], window(stage));
        let run = |player, watch| {
            hold(stage, &Setup { player, members, cpus, busy, window, watch, timed: false })
        };
        let rounds = stage.repeat(|| {
            let both = |player| Ok((run(player, false)?, run(player, true)?));
            PLAYERS.into_iter().map(both).collect::<Result<Vec<(Sum, Sum)>>>()
        })?;
        let case = format!("{members} × {held:?}");
        let of = |at: usize| -> (Vec<Sum>, Vec<Sum>) { rounds.iter().map(|all| all[at]).unzip() };
        let ours = each(&of(0).0, Sum::throughput);
        for (at, player) in PLAYERS.into_iter().enumerate() {
            let (plain, watched) = of(at);
            let rates = each(&plain, Sum::throughput);
            item.figure("acquisitions per second", &case, player.name(), &rates);
            let bypasses = each(&watched, |sum| sum.bypasses / sum.seconds);
            item.figure("bypasses seen per second", &case, player.name(), &bypasses);
            let longest = each(&watched, |sum| sum.longest_ns / 1e6);
            item.figure("longest wait (ms)", &case, player.name(), &longest);
            if at == 0 {
                let what = format!("{}: bypasses", player.name());
                let bypasses = each(&watched, |sum| sum.bypasses);
                item.check(&case, what, &bypasses, Target::AtMost(0.0));
            } else {
                let what = format!("{} / {}", PLAYERS[0].name(), player.name());
                item.ratio(&case, what, (&ours, &rates), Target::AtLeast(1.0));
            }
        }
    }
    Ok(item)
}
