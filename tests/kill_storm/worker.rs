//! A process of the storm: locks and unlocks until it is killed, or told to end.
#![allow(clippy::disallowed_types, reason = "the test's own books")]

use crate::ground::{Ground, How, LOCKS, Visitor};
use fastrand::Rng;
use heirlock::Segment;
use nix::sys::signal::Signal;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

/// How a process comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// One thread that stays.
    Steady,
    /// Two threads that stay.
    Pair,
    /// One short-lived thread after the other.
    Threads,
    /// One thread that closes the segment and opens it again.
    Reopen,
}

pub(crate) const STYLES: [Style; 4] = [Style::Steady, Style::Pair, Style::Threads, Style::Reopen];

/// `worker PATH PLACE STYLE SEED`
pub(crate) fn play(args: &[String]) {
    // Not to outlive the test.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("prctl");
    let [path, place, style, seed] = args else { panic!("worker PATH PLACE STYLE SEED") };
    let path = Path::new(path);
    let place = place.parse().expect("a place");
    let style = STYLES[style.parse::<usize>().expect("a style")];
    let mut rng = Rng::with_seed(seed.parse().expect("a seed"));
    let ground = Segment::<Ground>::open(path).expect("open");
    let running = || ground.stop.load(SeqCst) == 0;
    match style {
        Style::Steady => work(&ground, place, 0, u32::MAX, rng),
        Style::Pair => thread::scope(|scope| {
            let ground = &ground;
            for thread in 0..2 {
                let rng = rng.fork();
                scope.spawn(move || work(ground, place, thread, u32::MAX, rng));
            }
        }),
        Style::Threads => {
            while running() {
                let rng = rng.fork();
                thread::scope(|scope| {
                    scope.spawn(|| work(&ground, place, 0, 8, rng));
                });
            }
        }
        Style::Reopen => {
            while running() {
                let again = Segment::<Ground>::open(path).expect("open");
                work(&again, place, 0, 8, rng.fork());
            }
        }
    }
}

/// `auditor PATH`: visits each lock when all is over.
pub(crate) fn audit(args: &[String]) {
    let ground = Segment::<Ground>::open(&args[0]).expect("open");
    let visitor = Visitor::attach(&ground, 0, 0);
    for lock in 0..LOCKS {
        let held = visitor.enter(lock, How::Wait).expect("a wait without end");
        ground.audit[lock].store(held.counter(), SeqCst);
        held.leave();
    }
}

fn work(ground: &Segment<Ground>, place: usize, thread: usize, rounds: u32, mut rng: Rng) {
    let visitor = Visitor::attach(ground, place, thread);
    for _ in 0..rounds {
        if ground.stop.load(SeqCst) != 0 {
            return;
        }
        round(&visitor, &mut rng);
        ground.workers[place].finished[thread].fetch_add(1, SeqCst);
    }
}

fn round(visitor: &Visitor, rng: &mut Rng) {
    let how = match rng.u32(..10) {
        0 => How::Try,
        1 | 2 => How::WaitFor(Duration::from_micros(rng.u64(..400))),
        _ => How::Wait,
    };
    let spins = rng.u32(..10).checked_sub(6).map_or(0, |more| more * 1000);
    let linger = || (0..spins).for_each(|_| std::hint::spin_loop());
    let lock = rng.usize(..LOCKS);
    let Some(outer) = visitor.enter(lock, how) else { return };
    outer.count(linger);
    // Always upwards, lest two wait for each other.
    if lock + 1 < LOCKS && rng.u32(..4) == 0 {
        if let Some(inner) = visitor.enter(rng.usize(lock + 1..LOCKS), how) {
            inner.count(linger);
            inner.leave();
        }
        outer.count(linger);
    }
    outer.leave();
    linger();
}
