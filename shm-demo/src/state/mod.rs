//! `shm-demo state`: keys and values that processes share. Any process may be killed
//! at any instruction: a change is made, or it is not.

mod acks;
mod bench;
pub(crate) mod cli;
mod serve;
mod table;
mod worker;

use crate::{Result, about_path, print, print_json};
use cli::{StateArgs, StateCommand, Where};
use heirlock::{Mutex, MutexGuard, Options, Segment, SegmentError};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use table::{CAPACITY, Table};
use zerocopy::FromBytes;

pub(crate) use worker::run as work;

/// Which `State` this is: another number for every change of it.
const SCHEMA: u64 = 0x5354_4154_4501;

/// How many threads may be at it at a time.
const ROWS: u32 = 256;

/// What is in the segment. All bytes zero is the beginning.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct State {
    table: Mutex<Table>,
    /// Held by the one process that serves, for as long as it does; how many have.
    server: Mutex<u64>,
}

impl State {
    /// The table, whole. This is all that it takes to survive kills: who gets the
    /// lock from a dead owner finishes what that had begun.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        mended(self.table.lock())
    }

    /// The same, if it can be had in time.
    pub(crate) fn table_within(&self, time: Duration) -> Option<MutexGuard<'_, Table>> {
        self.table.try_lock_for(time).map(mended)
    }
}

fn mended(mut table: MutexGuard<'_, Table>) -> MutexGuard<'_, Table> {
    let inherited = MutexGuard::inherited(&table).is_some();
    table.recover(inherited);
    table
}

fn options() -> Options<'static, State> {
    Segment::options().schema(SCHEMA).capacity(ROWS)
}

fn open_or_create(path: &Path) -> Result<Segment<State>> {
    options().open_or_create(path).map_err(|error| about_path(path, &error).into())
}

/// What is there must be there already.
fn open(path: &Path) -> Result<Segment<State>> {
    options().open(path).map_err(|error| match error {
        SegmentError::NotFound { .. } => {
            let path = path.display();
            format!("{path}: there is no state; `shm-demo state set` or `serve` makes one").into()
        }
        error => about_path(path, &error).into(),
    })
}

pub(crate) fn run(args: &StateArgs) -> Result<ExitCode> {
    match &args.command {
        StateCommand::Set { at, key, value } => {
            let segment = open_or_create(&at.path)?;
            let mut table = segment.table();
            let change = table.set(key.as_bytes(), value.as_bytes(), &|| ())?;
            let entries = table.entries();
            drop(table);
            tell_change(at, "set", key, change, entries)
        }
        StateCommand::Get { at, key } => get(at, key),
        StateCommand::Remove { at, key } => {
            let segment = open(&at.path)?;
            let mut table = segment.table();
            let change = table.remove(key.as_bytes(), &|| ())?.ok_or_else(|| no_key(key))?;
            let entries = table.entries();
            drop(table);
            tell_change(at, "removed", key, change, entries)
        }
        StateCommand::List { at } => list(at),
        StateCommand::Serve(args) => serve::run(args),
        StateCommand::Bench(args) => bench::run(args),
    }
}

fn no_key(key: &str) -> String {
    format!("there is no key {key}")
}

fn tell_change(at: &Where, what: &str, key: &str, version: u64, entries: u64) -> Result<ExitCode> {
    if at.json {
        print_json(&json!({ "outcome": what, "key": key, "version": version,
                            "entries": entries }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Bytes that somebody has set, as far as they are text.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn get(at: &Where, key: &str) -> Result<ExitCode> {
    let segment = open(&at.path)?;
    let mut table = segment.table();
    let found = table.get(key.as_bytes())?.ok_or_else(|| no_key(key))?;
    let (value, version) = (text(found.value), found.version);
    // Nobody waits for a lock while this waits for whoever reads what it prints.
    drop(table);
    if at.json {
        print_json(&json!({ "outcome": "found", "key": key, "value": value,
                            "version": version }))?;
    } else {
        print(&format!("{value}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(at: &Where) -> Result<ExitCode> {
    let segment = open(&at.path)?;
    let table = segment.table();
    let list: Vec<(String, String)> =
        table.list()?.into_iter().map(|(key, value)| (text(key), text(value))).collect();
    let (changes, counts) = (table.changes(), table.counts.clone());
    drop(table);
    if at.json {
        let entry = |(key, value): &(String, String)| json!({ "key": key, "value": value });
        print_json(&json!({
            "outcome": "listed",
            "path": at.path,
            "entries": list.iter().map(entry).collect::<Vec<_>>(),
            "capacity": CAPACITY,
            "changes": changes,
            "inherited": counts.inherited,
            "repaired": counts.repaired,
        }))?;
    } else {
        print(&list.iter().map(|(key, value)| format!("{key}\t{value}\n")).collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}
