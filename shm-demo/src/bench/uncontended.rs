//! One thread that locks and unlocks what nobody else wants.

use super::figures::{Item, Target, median};
use super::peers::{Lock, Player};
use super::pin;
use super::pthread::{Pthread, Sharing};
use super::stage::Stage;
use crate::Result;
use heirlock::Segment;
use std::hint::black_box;
use std::time::Instant;

static STATIC: heirlock::Mutex<u64> = heirlock::Mutex::new(0);

/// How many nanoseconds a lock and its unlock take.
#[inline(never)]
fn turn(lock: &impl Lock, locks: u32) -> f64 {
    let start = Instant::now();
    for _ in 0..locks {
        black_box(lock).locked(|value| *value += 1);
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(locks)
}

pub(crate) fn measure(stage: &Stage) -> Result<Item> {
    let mut item = Item::new(
        "uncontended",
        "Lock and unlock by one thread, pinned to a CPU; nobody else wants the lock. In each \
         repetition the locks take many short turns, of which the median counts.",
    );
    let segment: Segment<heirlock::Mutex<u64>> = Segment::anonymous()?;
    let std = std::sync::Mutex::new(0);
    let parking_lot = parking_lot::Mutex::new(0);
    let pthread = Pthread::anonymous(Sharing::Plain);
    let robust = Pthread::anonymous(Sharing::Robust);
    let (turns, locks) = stage.usually((200, 20_000), (5, 200));
    let names = [
        "heirlock in a segment",
        "heirlock static",
        Player::Std.name(),
        Player::ParkingLot.name(),
        Player::Pthread.name(),
        Player::PthreadRobust.name(),
    ];
    pin::to_cpu(stage.cpus[0]);
    let rounds = stage.repeat(|| {
        stage.go_on()?;
        let mut times = [const { Vec::new() }; 6];
        for _ in 0..turns {
            times[0].push(turn(&*segment, locks));
            times[1].push(turn(&STATIC, locks));
            times[2].push(turn(&std, locks));
            times[3].push(turn(&parking_lot, locks));
            times[4].push(turn(&pthread, locks));
            times[5].push(turn(&robust, locks));
        }
        Ok(times.map(median))
    });
    pin::to_cpus(&stage.cpus);
    let rounds = rounds?;
    let of = |at: usize| rounds.iter().map(|round| round[at]).collect::<Vec<f64>>();
    for (at, name) in names.into_iter().enumerate() {
        item.figure("lock + unlock (ns)", "one thread", name, &of(at));
    }
    let ours = of(0);
    item.ratio("", "heirlock in a segment / std", (&ours, &of(2)), Target::AtMost(0.60));
    item.ratio("", "heirlock in a segment / pthread robust", (&ours, &of(5)), Target::AtMost(0.50));
    Ok(item)
}
