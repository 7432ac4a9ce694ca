//! Runs the checker on one configuration.
//!
//! Depth first, because its memory is one fingerprint a state: breadth first,
//! stateright keeps the whole path beside each pending state. The paths that it
//! finds are long, so a failure is looked for again breadth first, within
//! limits, to be shown.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use stateright::{Checker, HasDiscoveries, Model as _};

use crate::configs::Bounds;
use crate::model::{Config, LockModel, PROGRAMS};
use crate::mutants::Catch;
use crate::state::State;
use crate::symmetry;
use crate::trace;

/// How long to look for a shorter path to a failure.
const SHORTEN: Duration = Duration::from_secs(60);
/// And how far.
const SHORTEN_STATES: usize = 20_000_000;

/// The configuration has at least as many states as recorded, and all of them
/// have all properties.
pub(crate) fn holds(bounds: &Bounds) -> Result<(), Failed> {
    let config = bounds.config;
    let started = Instant::now();
    let checker = LockModel { config }
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .symmetry_fn(symmetry::representative)
        .spawn_dfs()
        .join();
    let states = checker.unique_state_count();
    println!(
        "{}: {states} unique states, {} steps, depth {}, {:.1?}",
        bounds.name,
        checker.state_count(),
        checker.max_depth(),
        started.elapsed()
    );
    if let Some(failure) = first_failure(&checker) {
        drop(checker);
        let short = shortest(config, None);
        return Err(short.unwrap_or(failure).into());
    }
    if states < bounds.floor {
        return Err(format!("only {states} states, {} recorded", bounds.floor).into());
    }
    Ok(())
}

/// The model with the deliberate fault violates the property named.
pub(crate) fn catches(catch: &Catch) -> Result<(), Failed> {
    let config = Config { mutant: Some(catch.mutant), ..catch.config };
    let checker = LockModel { config }
        .checker()
        .finish_when(HasDiscoveries::AnyOf(BTreeSet::from([catch.property])))
        .symmetry_fn(symmetry::representative)
        .spawn_dfs()
        .join();
    let found = checker.discovery(catch.property).is_some();
    println!("{:?}: {} unique states", catch.mutant, checker.unique_state_count());
    if !found {
        return Err(format!("no violation of \"{}\" found", catch.property).into());
    }
    if std::env::var_os("HEIRLOCK_MODEL_TRACES").is_some_and(|value| value == "1") {
        let short = shortest(config, Some(catch.property));
        println!("{}", short.unwrap_or_else(|| "no short path within the limits".into()));
    }
    Ok(())
}

fn first_failure<C: Checker<LockModel>>(checker: &C) -> Option<String> {
    let (property, path) = checker.discoveries().into_iter().next()?;
    let path = trace::render(checker.model(), path);
    Some(format!("violated: {property}\n{path}"))
}

/// A path to a violation that is as short as breadth-first search finds it.
fn shortest(config: Config, property: Option<&'static str>) -> Option<String> {
    let finish = match property {
        Some(property) => HasDiscoveries::AnyOf(BTreeSet::from([property])),
        None => HasDiscoveries::AnyFailures,
    };
    let checker = LockModel { config }
        .checker()
        .finish_when(finish)
        .timeout(SHORTEN)
        .target_state_count(SHORTEN_STATES)
        .spawn_bfs()
        .join();
    first_failure(&checker)
}

const _: () = assert!(PROGRAMS.len() < 16, "a program is four bits of a row's key");
const _: () = assert!(size_of::<State>() <= 160, "a state is copied for each step");
