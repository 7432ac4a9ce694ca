//! What a run has shown: whether everything held, and what was counted.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use super::Run;
use super::ground::{Counts, Ground, LOCKS, Phase, THREADS};
use super::histogram::{Percentiles, Waits};
use super::report::{Lock, Report};
use super::signals::Restart;
use crate::Result;
use crate::ledger::Book;
use crate::outcome::End;
use crate::trial::FINAL_LOCK;
use heirlock::MutexGuard;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

impl Run<'_> {
    /// To be called when all workers are gone.
    pub(super) fn report(mut self, end: &End, path: &Path) -> Result<Report> {
        let ground: &Ground = self.ground;
        // Those whom a signal or a failure ended.
        for slot in 0..self.args.workers as usize {
            self.count_the_dead(slot);
        }
        let book = match end {
            End::Done => self.audit(),
            // It may never be had.
            End::GivenUp | End::Signal(..) => Book::default(),
        };
        let counts = &ground.counts[Phase::Storm.index()];
        let storm = &ground.waited[Phase::Storm.index()];
        let both = |of: fn(&Counts) -> &AtomicU64| {
            ground.counts.iter().map(|counts| of(counts).load(Relaxed)).sum::<u64>()
        };
        let (order_inversions, order_checked) =
            (both(|counts| &counts.order_inversions), both(|counts| &counts.order_checked));
        let lost_wakeups = self.watchdog.lost_wakeups();
        let (deadlocks, deadlock_checks) = (self.sceptic.found(), self.sceptic.made());
        let nested = counts.nested.load(Relaxed);
        let mut must = |holds: bool, what: String| {
            if !holds {
                self.failures.push(what);
            }
        };
        must(order_inversions == 0, format!("{order_inversions} times somebody was passed over"));
        must(lost_wakeups == 0, format!("{lost_wakeups} waiters slept on (see above)"));
        must(deadlocks == 0, format!("{deadlocks} deadlocks where there were none (see above)"));
        if let End::Done = end
            && self.args.deadlock_checks
        {
            let floor = self.args.floor_deadlock_checks;
            must(
                deadlock_checks >= floor,
                format!("{deadlock_checks} checks for deadlocks, less than {floor}"),
            );
            must(nested > 0, "no owner went for another lock".into());
        }
        if let End::Done = end {
            must(order_checked > 0, "no hand-over could be checked for its order".into());
            let (eintr, floor) = (self.eintr_observed, self.args.floor_eintr);
            must(eintr >= floor, format!("{eintr} EINTRs were observed, less than {floor}"));
        }
        let signals_sent = self.weather.signals_sent.load(Relaxed);
        let lock = |lock: usize| -> Result<Lock> {
            let [calm, storm] =
                [Phase::Calm, Phase::Storm].map(|phase| &ground.waited[phase.index()][lock]);
            Ok(Lock {
                offset: self.ground.offset_of(&ground.locks[lock]).expect("it is inside"),
                calm: Percentiles::new(calm)?,
                storm: Percentiles::new(storm)?,
            })
        };
        Ok(Report {
            outcome: match end {
                _ if !self.failures.is_empty() => "failed",
                End::Signal(..) => "interrupted",
                End::Done | End::GivenUp => "held",
            },
            signal: if let End::Signal(_, name) = end { Some(name) } else { None },
            path: path.to_path_buf(),
            restart: match self.args.restart() {
                Restart::Never => "never",
                Restart::Always => "always",
                Restart::Mixed => "mixed",
            },
            workers: self.args.workers,
            threads: self.args.workers * THREADS as u32,
            seconds: self.seconds,
            signals_sent,
            signals_per_second: (signals_sent as f64 / self.seconds.max(0.001)) as u64,
            signals_per_second_asked: self.args.signals_per_second,
            handlers_run: ground.places.iter().map(|place| place.handlers.load(Relaxed)).sum(),
            eintr_observed: self.eintr_observed,
            acquisitions: counts.acquisitions.load(Relaxed),
            handovers: counts.handovers.load(Relaxed),
            timeouts: counts.timeouts.load(Relaxed),
            cancellations: counts.cancellations.load(Relaxed),
            interrupted: counts.interrupted.load(Relaxed),
            kills: self.kills,
            kills_from_outside: self.kills_from_outside,
            stops: self.weather.stops.load(Relaxed),
            inherited: book.inherited,
            repaired: book.repaired,
            order_inversions,
            order_checked,
            lost_wakeups,
            deadlock_checks,
            deadlocks,
            nested,
            longest_wait_us: storm.iter().map(Waits::longest_us).max().unwrap_or(0),
            locks: (0..LOCKS).map(lock).collect::<Result<_>>()?,
            failures: self.failures,
        })
    }

    /// What the ledgers say, now that nobody is left who could hold a lock.
    fn audit(&mut self) -> Book {
        let held = if self.args.deadlock_checks { LOCKS as u64 } else { 1 };
        // For each lock that a dead thread may have held.
        let dead = (self.kills + self.kills_from_outside) * THREADS as u64 * held;
        let mut sum = Book::default();
        let mut counted = 0;
        for lock in &self.ground.locks {
            let Some(mut guard) = lock.try_lock_for(FINAL_LOCK) else {
                self.failures.push(format!(
                    "a lock could not be had for {FINAL_LOCK:?}, though nobody is left to hold it"
                ));
                continue;
            };
            let inherited = MutexGuard::inherited(&guard).is_some();
            guard.ledger.repair(inherited);
            match guard.ledger.count() {
                Ok(count) => counted += count,
                Err(what) => self.failures.push(what),
            }
            let book = &guard.ledger.book;
            sum.inherited += book.inherited;
            sum.repaired += book.repaired;
            sum.overlaps += book.overlaps;
            sum.untold += book.untold;
        }
        let souls = self.ground.places.iter().flat_map(|place| &place.threads);
        let done: u64 = souls.map(|soul| soul.done.load(Relaxed)).sum();
        let mut must = |holds: bool, what: String| {
            if !holds {
                self.failures.push(what);
            }
        };
        let Book { inherited, repaired, overlaps, untold, .. } = sum;
        must(overlaps == 0, format!("{overlaps} times two threads had a lock at once"));
        must(untold == 0, format!("{untold} times an owner was not told of a dead one"));
        must(inherited <= dead, format!("{inherited} heirs of at most {dead} dead owners"));
        must(repaired <= inherited, format!("{repaired} repairs by {inherited} heirs"));
        // Who is killed right after it released has not said so.
        must(
            (done..=done + dead).contains(&counted),
            format!("{done} increments made, at most {dead} owners died, but {counted} counted"),
        );
        sum
    }
}
