//! Who comes before those who have waited for long.

use super::arena::{Apart, MAX_MEMBERS, Place, now};
use std::fs;
use std::sync::atomic::Ordering::Relaxed;

/// How long somebody has waited who ought to come before whoever arrives, in
/// nanoseconds.
const LONG: u64 = 1_000_000;

/// How long somebody has to have been there before it is looked whether it sleeps.
const WHILE: u64 = 100_000;

/// What a member has seen of the others.
#[derive(Default)]
pub(super) struct Watch {
    /// The wait, by its arrival, in which each was seen asleep, and since when.
    asleep: [(u64, u64); MAX_MEMBERS],
}

/// A member that has waited for long.
pub(super) struct Waiter<'a> {
    place: &'a Place,
    arrival: u64,
}

impl Watch {
    /// Somebody who has been seen asleep in the lock for long. (When it arrived says
    /// little: whoever has written that down may lose its CPU before it waits.)
    pub(super) fn look<'a>(&mut self, places: &'a [Apart<Place>]) -> Option<Waiter<'a>> {
        let now = now();
        let mut found = None;
        for (Apart(place), asleep) in places.iter().zip(&mut self.asleep) {
            let arrival = place.arrival.load(Relaxed);
            let waiter = Waiter { place, arrival };
            if arrival == 0 || arrival + WHILE > now {
                continue;
            }
            if asleep.0 == arrival {
                if asleep.1 + LONG < now {
                    found = Some(waiter);
                }
            } else if waiter.sleeps() && waiter.still_waits() {
                // Still: it was that wait in which it slept.
                *asleep = (arrival, now);
            }
        }
        found
    }
}

impl Waiter<'_> {
    fn sleeps(&self) -> bool {
        self.place.taken().is_some_and(|(pid, tid)| {
            let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat"));
            let stat = stat.unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" S"))
        })
    }

    /// Whether it is still in that wait. If the caller, which arrived later, has
    /// the lock, it was preferred.
    pub(super) fn still_waits(&self) -> bool {
        self.place.arrival.load(Relaxed) == self.arrival
    }
}
