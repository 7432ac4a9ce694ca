//! `shm-demo bench`: heirlock beside its peers, in one run, item by item.
#![allow(clippy::disallowed_types, reason = "the benchmark's own words, not the lock's")]

mod arena;
mod child;
pub(crate) mod cli;
mod contended;
mod contest;
mod figures;
#[path = "../../../benches/support/heir.rs"]
mod heir;
mod heirs;
mod machine;
mod member;
mod memory;
mod peers;
#[path = "../../../benches/support/pin.rs"]
mod pin;
mod plot;
mod policy;
#[path = "../../../benches/support/pthread.rs"]
mod pthread;
mod recovery;
mod report;
mod scale;
mod solo;
mod stage;
mod ticks;
mod uncontended;
mod watch;

use crate::{Result, print, print_json};
use clap::ValueEnum;
use cli::BenchArgs;
use figures::Item;
use machine::Machine;
use report::Report;
use stage::Stage;
use std::fs;
use std::process::ExitCode;

pub(crate) use member::run as join;
pub(crate) use peers::Player;
pub(crate) use solo::run as play;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ItemName {
    /// A lock that nobody else wants
    Uncontended,
    /// Two processes that pass a lock on
    Handover,
    /// More processes than CPUs
    Oversubscribed,
    /// The throughput policy, beside locks that are not fair
    Policy,
    /// Long queues, many threads, many locks
    Scale,
    /// Owners that are killed
    Recovery,
    /// What locks and threads take up
    Memory,
}

impl ItemName {
    fn measure(self, stage: &Stage) -> Result<Item> {
        match self {
            Self::Uncontended => uncontended::measure(stage),
            Self::Handover => contended::handover(stage),
            Self::Oversubscribed => contended::oversubscribed(stage),
            Self::Policy => policy::measure(stage),
            Self::Scale => scale::measure(stage),
            Self::Recovery => recovery::measure(stage),
            Self::Memory => memory::measure(stage),
        }
    }
}

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let stage = Stage::new(args)?;
    if let Some(directory) = &args.plot {
        // Rather than to find out at the end.
        fs::create_dir_all(directory).map_err(|error| crate::about_path(directory, &error))?;
    }
    let chosen = &args.items;
    let names = if chosen.is_empty() { ItemName::value_variants() } else { chosen };
    let machine = Machine::look(stage.cpus.len());
    let mut report = Report::new(args.quick, machine, stage.repetitions);
    let say = |text: &str| if args.json { Ok(()) } else { print(text) };
    say(&report.head())?;
    for name in names {
        let measured = name.measure(&stage);
        if let Some((number, signal)) = stage.signals.caught() {
            eprintln!("shm-demo: ended by {signal}; cleaned up");
            return Ok(ExitCode::from(128 + number));
        }
        let mut item = measured?;
        item.disturbance = stage.take_disturbance();
        say(&report::markdown(&item))?;
        if let Some(directory) = &args.plot {
            plot::draw(directory, &item)?;
        }
        report.add(item);
    }
    say(&report.foot())?;
    if args.json {
        print_json(&report)?;
    }
    Ok(ExitCode::SUCCESS)
}
