//! Whether everything held, and what was counted.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use super::cli::PoolArgs;
use super::slots::{Access, Client, Counts, Pool};
use crate::outcome::{Account, End, Outcome};
use crate::trial::Trial;
use heirlock::Segment;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The result of a run; `shm-demo pool --help` says what the fields mean.
#[derive(Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
    size: u32,
    clients: u32,
    requests_asked: u64,
    #[serde(flatten)]
    found: Found,
}

/// What there is at the end.
#[derive(Clone, Debug, Default, Serialize)]
struct Found {
    requests_answered: u64,
    requests_sent: u64,
    requests_served: u64,
    connections: u64,
    slots_free: u64,
    slots_taken: u64,
    slots_of_the_dead: u64,
    waits: u64,
    overlaps: u64,
    wrong: u64,
    order_inversions: u64,
    order_checked: u64,
    inherited: u64,
    longest_wait_us: u64,
}

impl Found {
    /// What does not hold of a run that came to its end, with `deaths` of clients.
    fn judge(&self, size: u64, asked: u64, deaths: u64) -> Vec<String> {
        let mut failures = self.judge_any();
        let mut must = |holds: bool, what: String| {
            if !holds {
                failures.push(what);
            }
        };
        let (free, sent, answered, served) =
            (self.slots_free, self.requests_sent, self.requests_answered, self.requests_served);
        must(free == size, format!("{free} of {size} slots are free at the end"));
        must(answered >= asked, format!("{answered} requests of {asked} were answered"));
        // Each dead client may have sent one request that nobody acknowledged.
        must(
            (answered..=answered + deaths).contains(&sent),
            format!("{sent} requests were sent and {answered} answered, with {deaths} deaths"),
        );
        must(
            (answered..=sent).contains(&served),
            format!("the server has answered {served} of {sent} requests, clients say {answered}"),
        );
        let (of_the_dead, inherited) = (self.slots_of_the_dead, self.inherited);
        must(of_the_dead <= deaths, format!("{of_the_dead} slots of {deaths} dead"));
        must(inherited <= deaths, format!("{inherited} heirs of {deaths} dead"));
        failures
    }

    /// What holds in no run.
    fn judge_any(&self) -> Vec<String> {
        let never = [
            (self.overlaps, "times two clients had one connection"),
            (self.wrong, "answers were not what was asked"),
            (self.order_inversions, "times a client was served out of order"),
        ];
        let found = never.into_iter().filter(|(count, _)| *count > 0);
        found.map(|(count, what)| format!("{count} {what}")).collect()
    }
}

/// What the pool says, now that nobody is left who could hold the lock.
pub(super) fn report(
    args: &PoolArgs,
    pool: &Segment<Pool>,
    mut trial: Trial,
    end: &End,
    (requests_served, connections): (u64, u64),
) -> Report {
    let (mut free, mut counts) = (0, Counts::default());
    let access = Access { pool };
    if let Some(slots) = trial.final_lock(|time| access.lock_within(time)) {
        (free, counts) = (slots.free(), slots.counts.clone());
    }
    let sum = |of: fn(&Client) -> &AtomicU64| {
        pool.clients.iter().map(|client| of(client).load(Relaxed)).sum()
    };
    let found = Found {
        requests_answered: sum(|client| &client.answered),
        requests_sent: sum(|client| &client.sent),
        requests_served,
        connections,
        slots_free: free as u64,
        slots_taken: counts.taken,
        slots_of_the_dead: counts.of_the_dead,
        waits: counts.waits,
        overlaps: pool.overlaps.load(Relaxed),
        wrong: pool.wrong.load(Relaxed),
        order_inversions: pool.order_inversions.load(Relaxed),
        order_checked: pool.order_checked.load(Relaxed),
        inherited: counts.inherited,
        longest_wait_us: pool.longest_wait_us.load(Relaxed),
    };
    let failures = match end {
        End::Done => found.judge(args.size.into(), args.requests, trial.deaths()),
        End::GivenUp | End::Signal(..) => found.judge_any(),
    };
    failures.into_iter().for_each(|failure| trial.fail(failure));
    Report {
        outcome: trial.outcome(end),
        size: args.size,
        clients: args.clients,
        requests_asked: args.requests,
        found,
    }
}

impl Account for Report {
    const HELD: &'static str = "everything: every slot came back, none was given out twice, every answer \
                    was right";

    fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    fn lines(&self) -> [(&'static str, String); 4] {
        let found = &self.found;
        [
            (
                "requests",
                format!(
                    "{} answered, for {} processes over {} connections at a time, in {:.1} s",
                    found.requests_answered, self.clients, self.size, self.outcome.seconds
                ),
            ),
            (
                "kills",
                format!(
                    "{}; {} slots taken back from the dead, {} locks inherited",
                    self.outcome.kills(),
                    found.slots_of_the_dead,
                    found.inherited
                ),
            ),
            (
                "slots",
                format!(
                    "taken {} times, {} overlaps; {} of {} free at the end",
                    found.slots_taken, found.overlaps, found.slots_free, self.size
                ),
            ),
            (
                "order",
                format!(
                    "{} inversions in {} checks; the longest wait was {:?}",
                    found.order_inversions,
                    found.order_checked,
                    Duration::from_micros(found.longest_wait_us)
                ),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::Found;

    /// A run with five slots, in which ten clients died.
    fn found() -> Found {
        Found {
            requests_answered: 1000,
            requests_sent: 1006,
            requests_served: 1003,
            slots_free: 5,
            slots_of_the_dead: 8,
            inherited: 3,
            ..Found::default()
        }
    }

    #[track_caller]
    fn assert_fails(change: impl Fn(&mut Found), what: &str) {
        let mut found = found();
        change(&mut found);
        let failures = found.judge(5, 1000, 10);
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert!(failures[0].contains(what), "{what}: {failures:?}");
    }

    #[test]
    fn notices_each_thing_that_does_not_hold() {
        assert_eq!(found().judge(5, 1000, 10), [""; 0]);
        assert_fails(|found| found.slots_free = 4, "4 of 5 slots are free");
        assert_fails(|found| found.requests_answered = 999, "999 requests of 1000");
        assert_fails(|found| found.requests_sent = 1011, "1011 requests were sent");
        assert_fails(|found| found.requests_served = 999, "server has answered 999");
        assert_fails(|found| found.requests_served = 1007, "server has answered 1007");
        assert_fails(|found| found.slots_of_the_dead = 11, "11 slots of 10 dead");
        assert_fails(|found| found.inherited = 11, "11 heirs of 10 dead");
        assert_fails(|found| found.overlaps = 1, "two clients had one connection");
        assert_fails(|found| found.wrong = 2, "2 answers were not what was asked");
        assert_fails(|found| found.order_inversions = 1, "served out of order");
    }
}
