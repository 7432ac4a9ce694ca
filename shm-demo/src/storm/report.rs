//! What `shm-demo storm` has to say at the end.

use super::histogram::Percentiles;
use crate::{Result, print, print_json};
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

/// The result of a run; `shm-demo storm --help` says what the fields mean.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signal: Option<&'static str>,
    pub(crate) failures: Vec<String>,
    pub(crate) path: PathBuf,
    pub(crate) restart: &'static str,
    pub(crate) workers: u32,
    pub(crate) threads: u32,
    pub(crate) seconds: f64,
    pub(crate) signals_sent: u64,
    pub(crate) signals_per_second: u64,
    pub(crate) signals_per_second_asked: u32,
    pub(crate) handlers_run: u64,
    pub(crate) eintr_observed: u64,
    pub(crate) acquisitions: u64,
    pub(crate) handovers: u64,
    pub(crate) timeouts: u64,
    pub(crate) cancellations: u64,
    pub(crate) interrupted: u64,
    pub(crate) kills: u64,
    pub(crate) kills_from_outside: u64,
    pub(crate) stops: u64,
    pub(crate) inherited: u64,
    pub(crate) repaired: u64,
    pub(crate) order_inversions: u64,
    pub(crate) order_checked: u64,
    pub(crate) lost_wakeups: u64,
    pub(crate) deadlock_checks: u64,
    pub(crate) deadlocks: u64,
    pub(crate) nested: u64,
    pub(crate) longest_wait_us: u64,
    pub(crate) locks: Vec<Lock>,
}

/// The waits for one lock, with the storm and without.
#[derive(Serialize)]
pub(crate) struct Lock {
    pub(crate) offset: u64,
    pub(crate) calm: Percentiles,
    pub(crate) storm: Percentiles,
}

impl Report {
    /// Whether everything held, to the end.
    pub(crate) fn held(&self) -> bool {
        self.outcome == "held"
    }

    pub(crate) fn print(&self, json: bool) -> Result<()> {
        for failure in &self.failures {
            eprintln!("shm-demo: FAILED: {failure}");
        }
        let asked = f64::from(self.signals_per_second_asked);
        if self.seconds > 0.0 && (self.signals_per_second as f64) < 0.9 * asked {
            eprintln!(
                "shm-demo: warning: {} signals per second were sent, not {asked}: \
                 there was no processor time for more",
                self.signals_per_second
            );
        }
        if json { print_json(self) } else { print(&self.summary()) }
    }

    fn summary(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, what: String| {
            writeln!(text, "{name:<13} {what}").expect("a String takes anything");
        };
        line(
            "storm",
            format!(
                "{:.1} s over {} processes with {} threads and {} locks",
                self.seconds,
                self.workers,
                self.threads,
                self.locks.len()
            ),
        );
        line(
            "signals",
            format!(
                "{} sent ({} per second; SA_RESTART: {}), {} handlers run, {} EINTRs observed by \
                 sleeping waiters",
                self.signals_sent,
                self.signals_per_second,
                self.restart,
                self.handlers_run,
                self.eintr_observed
            ),
        );
        line(
            "acquisitions",
            format!(
                "{}, {} of them by hand-over; the longest wait was {:?}",
                self.acquisitions,
                self.handovers,
                Duration::from_micros(self.longest_wait_us)
            ),
        );
        line(
            "given up",
            format!(
                "{} timed out, {} cancelled, {} interrupted",
                self.timeouts, self.cancellations, self.interrupted
            ),
        );
        let outside = match self.kills_from_outside {
            0 => String::new(),
            kills => format!(", and {kills} from outside"),
        };
        line(
            "kills",
            format!(
                "{}{outside}; {} locks inherited, {} with torn data; {} stops",
                self.kills, self.inherited, self.repaired, self.stops
            ),
        );
        line(
            "order",
            format!("{} inversions in {} checks", self.order_inversions, self.order_checked),
        );
        line("lost wakeups", self.lost_wakeups.to_string());
        if self.deadlock_checks > 0 {
            line(
                "deadlocks",
                format!(
                    "{} reported in {} checks; {} times an owner went for another lock",
                    self.deadlocks, self.deadlock_checks, self.nested
                ),
            );
        }
        for (number, lock) in self.locks.iter().enumerate() {
            for (phase, waits) in [("calm", &lock.calm), ("storm", &lock.storm)] {
                line(
                    &format!("lock {number} {phase}"),
                    format!(
                        "waits in µs: p50 {:.0}, p99 {:.0}, p99.9 {:.0}, max {} ({} acquisitions)",
                        waits.p50_us, waits.p99_us, waits.p999_us, waits.max_us, waits.acquisitions
                    ),
                );
            }
        }
        let outcome = match (self.outcome, self.signal) {
            ("held", _) => {
                "everything: nobody slept on, nobody was served out of turn, no count was lost"
            }
            (_, Some(signal)) => &format!("ended by {signal}, nothing is proved; cleaned up"),
            _ => "see the lines that say FAILED; cleaned up",
        };
        line(self.outcome, outcome.into());
        text
    }
}
