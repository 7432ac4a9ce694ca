//! Who used the processors.

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::fs;

/// Processor time, in the kernel's ticks, of all processors together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ticks {
    /// All that there was.
    all: f64,
    /// In which they ran something of this machine.
    busy: f64,
    /// That the host took.
    pub(crate) stolen: f64,
    /// Of `busy`, that of this program and of its children, once they were reaped.
    own: f64,
}

impl Ticks {
    /// Since boot, and since this program began.
    pub(crate) fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let ms = |who| {
            getrusage(who)
                .map_or(0, |used| (used.user_time() + used.system_time()).num_milliseconds())
        };
        let own = ms(UsageWho::RUSAGE_SELF) + ms(UsageWho::RUSAGE_CHILDREN);
        Self { own: own as f64 / MS_PER_TICK, ..Self::of(&stat) }
    }

    /// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq,
    /// softirq, steal. (What follows is in user and nice.)
    fn of(stat: &str) -> Self {
        let line = stat.lines().next().unwrap_or_default();
        let fields = line.split_whitespace().skip(1).take(8);
        let ticks: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0.0);
        let (all, stolen) = (ticks.iter().sum(), at(7));
        Self { all, busy: all - at(3) - at(4) - stolen, stolen, own: 0.0 }
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            all: self.all - before.all,
            busy: self.busy - before.busy,
            stolen: self.stolen - before.stolen,
            own: self.own - before.own,
        }
    }

    /// What other programs used.
    pub(crate) fn others(&self) -> f64 {
        (self.busy - self.own).max(0.0)
    }

    /// Which share of all these are.
    pub(crate) fn share(&self, ticks: f64) -> f64 {
        ticks / self.all.max(1.0)
    }
}

/// What `USER_HZ` is on all machines.
const MS_PER_TICK: f64 = 10.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_all_time() {
        let before = Ticks::of("cpu  10 0 10 70 5 0 0 5 0 0\ncpu0 1 2 3");
        let after = Ticks { own: 20.0, ..Ticks::of("cpu  40 5 15 110 5 0 5 20 30 0\n") };
        let spent = after.since(before);
        assert_eq!(spent.share(spent.stolen), 0.15);
        assert_eq!(spent.share(spent.others()), 0.25);
        assert_eq!(Ticks::default().share(0.0), 0.0);
    }
}
