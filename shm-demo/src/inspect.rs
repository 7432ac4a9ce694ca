//! `shm-demo inspect`: a segment, for people and for programs.

use crate::cli::InspectArgs;
use crate::{Result, about_path, print, print_json};
use heirlock::deadlock::{Cycle, Member};
use heirlock::{LockView, Participant, ParticipantView, Snapshot};
use serde_json::{Value, json};
use std::fmt::Write;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

pub(crate) fn run(args: &InspectArgs) -> Result<ExitCode> {
    let found = args.path.symlink_metadata();
    if found.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return Err(format!("{}: there is no such file", args.path.display()).into());
    }
    let snapshot =
        Snapshot::read(&args.path, &args.lock).map_err(|error| about_path(&args.path, &error))?;
    for offset in &args.lock {
        if snapshot.lock(*offset).is_none() {
            let Snapshot { value_offset, value_size, .. } = snapshot;
            return Err(format!(
                "no lock can be at offset {offset}: the value is at {value_offset} and has \
                 {value_size} bytes, and a lock is aligned in it"
            )
            .into());
        }
    }
    if args.json {
        print_json(&to_json(&args.path, &snapshot))?;
    } else {
        print(&to_text(&args.path, &snapshot))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn to_json(path: &Path, snapshot: &Snapshot) -> Value {
    json!({
        "path": path,
        "layout_version": snapshot.layout_version,
        "schema": snapshot.schema,
        "value_offset": snapshot.value_offset,
        "value_size": snapshot.value_size,
        "capacity": snapshot.capacity,
        "rows_used": snapshot.rows_used,
        "other_boot": snapshot.other_boot,
        "participants": snapshot.participants.iter().map(participant_json).collect::<Vec<_>>(),
        "locks": snapshot.locks.iter().map(|lock| lock_json(snapshot, lock)).collect::<Vec<_>>(),
        "deadlocks": snapshot.deadlocks.iter().map(deadlock_json).collect::<Vec<_>>(),
    })
}

fn id_json(participant: Participant) -> Value {
    json!({ "row": participant.row(), "generation": participant.generation() })
}

/// Each waits for a lock that the next one holds, the last for one that the first holds.
fn deadlock_json(cycle: &Cycle) -> Value {
    let member = |member: &Member| {
        json!({
            "row": member.participant.row(),
            "generation": member.participant.generation(),
            "pid": member.pid,
            "tid": member.tid,
            "pid_namespace": member.pid_namespace,
            "thread_name": member.thread_name,
            "lock": member.lock,
            "lock_name": member.lock_name,
            "waited_ms": member.waited.as_millis() as u64,
        })
    };
    cycle.members().iter().map(member).collect()
}

fn participant_json(view: &ParticipantView) -> Value {
    let busy_with = view.busy_with.as_ref().map(|wait| {
        json!({
            "lock": wait.lock,
            "condvar": wait.condvar,
            "notified": wait.notified,
            "queued": wait.queued,
            "behind_row": wait.behind,
            "state": wait.state,
        })
    });
    json!({
        "row": view.participant.row(),
        "generation": view.participant.generation(),
        "alive": view.alive,
        "pid": view.pid,
        "tid": view.tid,
        "pid_namespace": view.pid_namespace,
        "start_time": view.start_time,
        "thread_name": view.thread_name,
        "busy_with": busy_with,
    })
}

fn lock_json(snapshot: &Snapshot, lock: &LockView) -> Value {
    let member = |participant: Participant| {
        let mut member = id_json(participant);
        if let Some(view) = find(snapshot, participant) {
            member["alive"] = view.alive.into();
            member["pid"] = view.pid.into();
            member["tid"] = view.tid.into();
        }
        member
    };
    json!({
        "offset": lock.offset,
        "name": lock.name,
        "policy": format!("{:?}", lock.policy),
        "owner": lock.owner.map(member),
        "owner_alive": lock.owner_alive,
        "inherited": lock.inherited,
        "queue_edited_by_row": lock.guard,
        "queue": lock.queue.iter().copied().map(member).collect::<Vec<_>>(),
        "broken": lock.broken,
    })
}

/// The participant, if its row has not got another user since.
fn find(snapshot: &Snapshot, participant: Participant) -> Option<&ParticipantView> {
    snapshot.participant(participant.row()).filter(|view| view.participant == participant)
}

/// The segment for people; the daemon shows it as well.
pub(crate) fn to_text(path: &Path, snapshot: &Snapshot) -> String {
    let mut text = String::new();
    write_text(&mut text, path, snapshot).expect("a String takes anything");
    text
}

fn write_text(text: &mut String, path: &Path, snapshot: &Snapshot) -> std::fmt::Result {
    writeln!(text, "{}", path.display())?;
    writeln!(
        text,
        "  layout {}, schema {}, value of {} bytes at offset {}",
        snapshot.layout_version, snapshot.schema, snapshot.value_size, snapshot.value_offset
    )?;
    writeln!(text, "  {} of {} rows used so far", snapshot.rows_used, snapshot.capacity)?;
    if snapshot.other_boot {
        writeln!(text, "  written before the last boot: nobody in it is alive")?;
    }
    writeln!(text, "\nParticipants: {}", snapshot.participants.len())?;
    if !snapshot.participants.is_empty() {
        write_table(text, &participants_table(snapshot))?;
    }
    writeln!(text, "\nLocks: {}", snapshot.locks.len())?;
    if snapshot.locks.is_empty() {
        writeln!(text, "  nobody waits for one; name one with --lock to see who holds it")?;
    }
    snapshot.locks.iter().try_for_each(|lock| write_lock(text, snapshot, lock))?;
    if !snapshot.deadlocks.is_empty() {
        writeln!(text, "\nDeadlocks: {}", snapshot.deadlocks.len())?;
    }
    snapshot.deadlocks.iter().try_for_each(|cycle| {
        cycle.to_string().lines().try_for_each(|line| writeln!(text, "  {line}"))
    })
}

fn participants_table(snapshot: &Snapshot) -> Vec<[String; 8]> {
    let here = std::fs::metadata("/proc/self/ns/pid").map_or(0, |found| found.ino());
    let head = ["ROW#GEN", "STATE", "PID", "TID", "NAMESPACE", "STARTED", "NAME", "DOES"];
    let row = |view: &ParticipantView| {
        let known = |number: u64| if number == 0 { "?".into() } else { number.to_string() };
        let elsewhere = view.pid_namespace != 0 && here != 0 && view.pid_namespace != here;
        [
            view.participant.to_string(),
            state(view.alive).into(),
            known(view.pid.into()),
            known(view.tid.into()),
            known(view.pid_namespace) + if elsewhere { "*" } else { "" },
            known(view.start_time),
            view.thread_name.clone(),
            does(view, snapshot),
        ]
    };
    std::iter::once(head.map(String::from)).chain(snapshot.participants.iter().map(row)).collect()
}

fn state(alive: bool) -> &'static str {
    if alive { "alive" } else { "dead" }
}

fn does(view: &ParticipantView, snapshot: &Snapshot) -> String {
    let owned = snapshot.locks.iter().filter(|lock| lock.owner == Some(view.participant));
    let mut does: Vec<String> = owned.map(|lock| format!("owns lock {}", lock.offset)).collect();
    if let Some(wait) = &view.busy_with {
        let (lock, state) = (wait.lock, wait.state);
        does.push(match (wait.queued, wait.behind) {
            _ if lock == 0 => format!("notifies condition variable {}", wait.condvar.unwrap_or(0)),
            _ if !wait.notified && wait.condvar.is_some() => {
                let condvar = wait.condvar.unwrap_or(0);
                format!("waits for condition variable {condvar} with lock {lock} ({state})")
            }
            (true, 0) => format!("waits for lock {lock}, first in line ({state})"),
            (true, row) => format!("waits for lock {lock} behind row {row} ({state})"),
            // The owner, on its way out of the queue.
            (false, _) if state == "granted" => format!("has just been given lock {lock}"),
            (false, _) => {
                format!("is about to queue for lock {lock}, or edits its queue ({state})")
            }
        });
    }
    does.join("; ")
}

/// Each column as wide as its widest cell.
fn write_table<const N: usize>(text: &mut String, rows: &[[String; N]]) -> std::fmt::Result {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(text, "  {}", line.trim_end())?;
    }
    Ok(())
}

fn write_lock(text: &mut String, snapshot: &Snapshot, lock: &LockView) -> std::fmt::Result {
    let who = |participant: Participant| match find(snapshot, participant) {
        Some(view) => format!("pid {}, {}", view.pid, state(view.alive)),
        None => "gone".into(),
    };
    write!(text, "  lock {}", lock.offset)?;
    if let Some(name) = &lock.name {
        write!(text, " \"{name}\"")?;
    }
    write!(text, " ({:?}): ", lock.policy)?;
    match lock.owner {
        None => write!(text, "free")?,
        Some(owner) => {
            let inherited = if lock.inherited { ", inherited" } else { "" };
            write!(text, "owned by {owner} ({}{inherited})", who(owner))?;
        }
    }
    if lock.guard != 0 {
        write!(text, "; queue edited by row {}", lock.guard)?;
    }
    match lock.queue.len() {
        0 => writeln!(text, "; nobody waits")?,
        waiting => writeln!(text, "; {waiting} waiting, in this order:")?,
    }
    let rows = lock.queue.iter().enumerate().map(|(at, participant)| {
        let state = find(snapshot, *participant)
            .and_then(|view| view.busy_with.as_ref())
            .map_or("", |wait| wait.state);
        [
            format!("  {}.", at + 1),
            participant.to_string(),
            format!("({})", who(*participant)),
            state.into(),
        ]
    });
    write_table(text, &rows.collect::<Vec<_>>())?;
    match lock.broken {
        Some(broken) => writeln!(text, "    the queue {broken}!"),
        None => Ok(()),
    }
}
