//! The bounds that are explored.
//!
//! The target (three threads that lock twice, give-ups, two deaths, a row used
//! again, all at once) is the largest that is run by default. The others add
//! what it has not: two locks, `try_lock`, a fourth thread, heirs that panic, a
//! thread that cannot have the others fence, locks that whoever comes may take.

use crate::model::{Config, NESTED, ONCE, OTHER, TRIES, TWICE, UNFENCED};

/// When a configuration is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Size {
    /// Always.
    Small,
    /// In optimised builds.
    Medium,
    /// In optimised builds, on request.
    Full,
}

/// A configuration, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// What the trial is called.
    pub(crate) name: &'static str,
    /// When it is run.
    pub(crate) size: Size,
    /// The bounds.
    pub(crate) config: Config,
    /// Fewer states than this mean that the model lost behaviour.
    pub(crate) floor: usize,
}

const NOTHING: Config = Config {
    programs: [0; 4],
    give_ups: false,
    kills: 0,
    reuses: 0,
    reuser: ONCE,
    panics: 0,
    throughput: false,
    mutant: None,
};

/// A lock that whoever comes may take.
const THROUGHPUT: Config = Config { throughput: true, ..NOTHING };

const TARGET: Config =
    Config { programs: [TWICE, TWICE, TWICE, 0], give_ups: true, kills: 2, reuses: 1, ..NOTHING };

/// All configurations. The floors are 95 % of the counts recorded: which of
/// several equivalent states represents them depends on the order of the search.
pub(crate) const ALL: &[Bounds] = &[
    Bounds {
        name: "2 threads x 2, give-ups, 1 death, 1 re-use",
        size: Size::Small,
        config: Config {
            programs: [TWICE, TWICE, 0, 0],
            give_ups: true,
            kills: 1,
            reuses: 1,
            ..NOTHING
        },
        floor: 176_000,
    },
    Bounds {
        name: "3 threads x 1, give-ups, 1 death",
        size: Size::Small,
        config: Config { programs: [ONCE, ONCE, ONCE, 0], give_ups: true, kills: 1, ..NOTHING },
        floor: 242_000,
    },
    Bounds {
        name: "3 threads x 1, 2 deaths, 1 panic of an heir",
        size: Size::Small,
        config: Config { programs: [ONCE, ONCE, ONCE, 0], kills: 2, panics: 1, ..NOTHING },
        floor: 240_000,
    },
    Bounds {
        name: "2 threads, one cannot fence, give-ups, 1 death, 1 re-use",
        size: Size::Small,
        config: Config {
            programs: [TWICE, UNFENCED, 0, 0],
            give_ups: true,
            kills: 1,
            reuses: 1,
            ..NOTHING
        },
        floor: 347_000,
    },
    Bounds {
        name: "3 threads, one cannot fence, give-ups, 1 death",
        size: Size::Medium,
        config: Config {
            programs: [TWICE, ONCE, UNFENCED, 0],
            give_ups: true,
            kills: 1,
            ..NOTHING
        },
        floor: 7_550_000,
    },
    Bounds {
        name: "3 threads x 1, give-ups, 2 deaths, 1 re-use, 1 panic of an heir",
        size: Size::Full,
        config: Config {
            programs: [ONCE, ONCE, ONCE, 0],
            give_ups: true,
            kills: 2,
            reuses: 1,
            panics: 1,
            ..NOTHING
        },
        floor: 13_100_000,
    },
    Bounds {
        name: "3 threads, one tries, give-ups, 1 death, 1 re-use, 1 panic of an heir",
        size: Size::Full,
        config: Config {
            programs: [ONCE, ONCE, TRIES, 0],
            give_ups: true,
            kills: 1,
            reuses: 1,
            panics: 1,
            ..NOTHING
        },
        floor: 9_560_000,
    },
    Bounds {
        name: "3 threads, two try, 2 deaths, 1 panic of an heir",
        size: Size::Medium,
        config: Config { programs: [TWICE, TRIES, TRIES, 0], kills: 2, panics: 1, ..NOTHING },
        floor: 1_480_000,
    },
    Bounds {
        name: "4 threads x 1, give-ups, 1 death",
        size: Size::Medium,
        config: Config { programs: [ONCE; 4], give_ups: true, kills: 1, ..NOTHING },
        floor: 10_200_000,
    },
    Bounds {
        name: "2 locks, 3 threads, one nests, give-ups, 2 deaths",
        size: Size::Medium,
        config: Config { programs: [NESTED, OTHER, ONCE, 0], give_ups: true, kills: 2, ..NOTHING },
        floor: 2_620_000,
    },
    Bounds {
        name: "2 locks, 3 threads, one nests, give-ups, 1 death, 1 re-use",
        size: Size::Medium,
        config: Config {
            programs: [NESTED, OTHER, ONCE, 0],
            give_ups: true,
            kills: 1,
            reuses: 1,
            ..NOTHING
        },
        floor: 22_500_000,
    },
    Bounds {
        name: "3 threads x 2, give-ups, 2 deaths, 1 re-use",
        size: Size::Medium,
        config: TARGET,
        floor: 113_000_000,
    },
    Bounds {
        name: "2 locks, 3 threads, one nests, 2 deaths, 1 re-use",
        size: Size::Full,
        config: Config { programs: [NESTED, OTHER, ONCE, 0], kills: 2, reuses: 1, ..NOTHING },
        floor: 22_400_000,
    },
    Bounds {
        name: "3 threads x 2, give-ups, 2 deaths, 1 re-use, 1 panic of an heir",
        size: Size::Full,
        config: Config { panics: 1, ..TARGET },
        floor: 92_500_000,
    },
    Bounds {
        name: "3 threads x 1, give-ups, 2 deaths, 2 re-uses",
        size: Size::Full,
        config: Config { programs: [ONCE, ONCE, ONCE, 0], reuses: 2, ..TARGET },
        floor: 82_700_000,
    },
    Bounds {
        name: "4 threads x 1, give-ups, 2 deaths, 1 panic of an heir",
        size: Size::Full,
        config: Config { programs: [ONCE; 4], reuses: 0, panics: 1, ..TARGET },
        floor: 13_600_000,
    },
    Bounds {
        name: "throughput, 2 threads x 2, give-ups, 1 death, 1 re-use",
        size: Size::Small,
        config: Config {
            programs: [TWICE, TWICE, 0, 0],
            give_ups: true,
            kills: 1,
            reuses: 1,
            ..THROUGHPUT
        },
        floor: 260_000,
    },
    Bounds {
        name: "throughput, 2 threads x 2, 2 deaths, 2 re-uses",
        size: Size::Medium,
        config: Config { programs: [TWICE, TWICE, 0, 0], kills: 2, reuses: 2, ..THROUGHPUT },
        floor: 1_080_000,
    },
    Bounds {
        name: "throughput, 3 threads x 1, give-ups, 1 death",
        size: Size::Small,
        config: Config { programs: [ONCE, ONCE, ONCE, 0], give_ups: true, kills: 1, ..THROUGHPUT },
        floor: 665_000,
    },
    Bounds {
        name: "throughput, 3 threads x 1, 2 deaths, 1 panic of an heir",
        size: Size::Medium,
        config: Config { programs: [ONCE, ONCE, ONCE, 0], kills: 2, panics: 1, ..THROUGHPUT },
        floor: 555_000,
    },
    Bounds {
        name: "throughput, 3 threads, one twice, 1 death, 1 re-use",
        size: Size::Full,
        config: Config { programs: [TWICE, ONCE, ONCE, 0], kills: 1, reuses: 1, ..THROUGHPUT },
        floor: 26_700_000,
    },
];
