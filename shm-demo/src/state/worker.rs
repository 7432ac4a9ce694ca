//! What each worker process of `state bench` does: change, acknowledge, look, until all
//! is done or it is killed.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use super::acks::{Doubt, HOT, MAX_WORKERS, OWN, hot_key, is_hot_value, own_key, own_value, value};
use super::bench::{self, Bench};
use crate::Result;
use crate::cli::WorkerArgs;
use crate::crew::{enlist, set_name};
use crate::settle::pace;
use fastrand::Rng;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub(crate) fn run(args: &WorkerArgs) -> Result<()> {
    let _signals = enlist(args.parent, "state bench")?;
    set_name(format!("state-{}", args.slot))?;
    let segment = bench::open(&args.path)?;
    segment.course.take_place(args.slot, segment.attach()?, MAX_WORKERS)?;
    let worker = Worker { bench: &segment, slot: args.slot };
    worker.look_what_is_in_doubt();
    let mut rng = Rng::new();
    while !segment.course.is_complete() {
        match rng.u8(..10) {
            // At the limit the workers go on to look, so that the lock is busy.
            0..6 if segment.course.may_go_on() => worker.change(rng.usize(..OWN)),
            6..8 if segment.course.may_go_on() => worker.set_hot(rng.usize(..HOT)),
            0..9 => worker.look(rng.usize(..OWN)),
            _ => worker.look_hot(rng.usize(..HOT)),
        }
    }
    Ok(())
}

struct Worker<'a> {
    bench: &'a Bench,
    slot: usize,
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Relaxed);
}

impl Worker<'_> {
    fn must(&self, holds: bool) {
        if !holds {
            add(&self.bench.wrong);
        }
    }

    /// Whoever had this place before may have been killed in a change.
    fn look_what_is_in_doubt(&self) {
        for (key, ack) in self.bench.acks[self.slot].own.iter().enumerate() {
            let mut table = self.bench.table();
            let found = table.get(own_key(self.slot, key).as_bytes());
            let Ok(found) = found else {
                self.must(false);
                continue;
            };
            match ack.resolve(self.slot, key, found.map(|found| found.value)) {
                Doubt::None => {}
                Doubt::Made => add(&self.bench.in_doubt_made),
                Doubt::NotMade => add(&self.bench.in_doubt_not_made),
                Doubt::Torn => self.must(false),
            }
        }
    }

    fn change(&self, key: usize) {
        let (ack, name) = (&self.bench.acks[self.slot].own[key], own_key(self.slot, key));
        let number = ack.intend();
        let version = match own_value(self.slot, key, number) {
            Some(value) => self.bench.table().set(name.as_bytes(), value.as_bytes(), &pace).ok(),
            None => self.bench.table().remove(name.as_bytes(), &pace).ok().flatten(),
        };
        self.must(version.is_some());
        ack.acknowledge(number, version.unwrap_or(0));
        self.bench.course.advance();
    }

    fn set_hot(&self, key: usize) {
        let (ack, name) = (&self.bench.acks[self.slot].hot[key], hot_key(key));
        let number = ack.intend();
        let value = value(self.slot, key, number);
        let version = self.bench.table().set(name.as_bytes(), value.as_bytes(), &pace).ok();
        self.must(version.is_some());
        ack.acknowledge(number, version.unwrap_or(0));
        self.bench.course.advance();
    }

    /// Nobody else changes the key: it must be as this worker last acknowledged it.
    fn look(&self, key: usize) {
        let acked = self.bench.acks[self.slot].own[key].acked();
        let expected = own_value(self.slot, key, acked);
        let mut table = self.bench.table();
        let found = table.get(own_key(self.slot, key).as_bytes());
        let expected = expected.as_deref().map(str::as_bytes);
        self.must(found.is_ok_and(|found| found.map(|found| found.value) == expected));
    }

    fn look_hot(&self, key: usize) {
        let mut table = self.bench.table();
        let is_right = match table.get(hot_key(key).as_bytes()) {
            Ok(Some(found)) => is_hot_value(&self.bench.acks, key, found.value),
            Ok(None) => true,
            Err(_) => false,
        };
        self.must(is_right);
    }
}
