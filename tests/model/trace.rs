//! A path that a person can read: who, in which function, what, with which
//! effect on the segment.

use std::fmt::Write as _;

use stateright::{Model as _, Path};

use crate::model::{Action, LockModel};
use crate::pc::Pc;
use crate::state::{Code, DIED, Exit, Id, LOCKS, Life, NO_LIFE, ROWS, State};

fn id(id: Id) -> String {
    match id.index() {
        0 => "0".into(),
        index => format!("{index}.{}", id.generation()),
    }
}

fn life(life: Life) -> String {
    match life {
        NO_LIFE => "0".into(),
        DIED => "DIED".into(),
        tid => format!("TID.{}", tid - 2),
    }
}

/// Who acts, in which function, what.
fn describe(s: &State, action: Action) -> (String, &'static str, String) {
    let thread = |i: u8| (format!("thread {}", i + 1), s.threads[usize::from(i)].pc.names());
    match action {
        Action::Step(i) => {
            let (who, (function, step)) = thread(i);
            (who, function, step.into())
        }
        Action::Expire(i) => {
            let (who, (function, _)) = thread(i);
            (who, function, "the deadline passes".into())
        }
        Action::Panic(i) => {
            let (who, (function, _)) = thread(i);
            (who, function, "the heir panics".into())
        }
        Action::Kill(i) => {
            let (who, (function, step)) = thread(i);
            (who, function, format!("KILLED before: {step}"))
        }
        Action::Exit { row, woken } => {
            let dead = &s.threads[usize::from(row)];
            let whom = match woken {
                0 => "nobody".into(),
                woken => format!("thread {woken}"),
            };
            let what = match dead.exit {
                Exit::Mark => "mark the life word".into(),
                Exit::Wake => format!("wake one on the life word: {whom}"),
                _ => format!("list_op_pending: wake one on life[{}]: {whom}", dead.exit_pending),
            };
            (format!("row {}", row + 1), "kernel exit", what)
        }
        Action::Drain(i) => {
            (format!("cpu of {}", i + 1), "store buffer", "the oldest store is seen".into())
        }
        Action::Poll(i) => {
            let (who, (function, _)) = thread(i);
            (who, function, "the poll's time is over".into())
        }
        Action::Otherwise(i) => {
            let (who, (function, step)) = thread(i);
            (who, function, format!("{step}, and decides otherwise"))
        }
        Action::Reuse(i) => {
            (format!("row {}", i + 1), "attach", "a new thread takes the row".into())
        }
    }
}

/// What of the segment, and of who sleeps, differs between two states.
fn effect(old: &State, new: &State) -> String {
    let mut out = String::new();
    let mut differ = |name: String, old: String, new: String| {
        if old != new {
            let comma = if out.is_empty() { "" } else { ", " };
            let _ = write!(out, "{comma}{name}: {old} -> {new}");
        }
    };
    for k in 0..LOCKS {
        let name = ["A", "B"][k];
        let (a, b) = (&old.locks[k], &new.locks[k]);
        let owner = |l: &crate::state::Lock| {
            let inherited = if l.inherited { "|INHERITED" } else { "" };
            let fences = if l.owner.fences() { "|FENCES" } else { "" };
            format!("{}{inherited}{fences}", id(l.owner))
        };
        differ(format!("{name}.owner"), owner(a), owner(b));
        differ(format!("{name}.tail"), a.tail.to_string(), b.tail.to_string());
        differ(format!("{name}.head"), a.head.to_string(), b.head.to_string());
        differ(format!("{name}.guard"), id(a.guard), id(b.guard));
    }
    for i in 0..ROWS {
        let n = i + 1;
        let (a, b) = (&old.rows[i], &new.rows[i]);
        differ(format!("generation[{n}]"), a.generation.to_string(), b.generation.to_string());
        differ(format!("life[{n}]"), life(a.life), life(b.life));
        differ(format!("prev[{n}]"), a.prev.to_string(), b.prev.to_string());
        differ(format!("next[{n}]"), a.next.to_string(), b.next.to_string());
        if b.code != Code::Idle {
            differ(format!("state[{n}]"), format!("{:?}", a.code), format!("{:?}", b.code));
        }
        let (a, b) = (&old.threads[i], &new.threads[i]);
        let awake = |pc: Pc| {
            if pc == Pc::Sleeping { "asleep" } else { "awake" }
        };
        differ(format!("thread {n}"), awake(a.pc).into(), awake(b.pc).into());
        let buffer = |t: &crate::state::Thread| {
            let names: String = t.buffer.locks().map(|k| ["A", "B"][k]).collect();
            if names.is_empty() { "nothing".into() } else { names }
        };
        differ(format!("buffer[{n}]"), buffer(a), buffer(b));
        differ(format!("fenced[{n}]"), format!("{:?}", a.fenced), format!("{:?}", b.fenced));
        differ(format!("pending[{n}]"), a.pending.to_string(), b.pending.to_string());
        let holds = |held: u8| ["nothing", "A", "B", "A and B"][usize::from(held & 3)];
        differ(format!("thread {n} holds"), holds(a.held).into(), holds(b.held).into());
    }
    out
}

/// Where everybody is in the last state.
fn ending(s: &State) -> String {
    let mut out = String::new();
    for (i, thread) in s.threads.iter().enumerate() {
        if thread.alive {
            let (function, step) = thread.pc.names();
            let _ = write!(out, "\n       thread {} at {function}: {step}", i + 1);
            if thread.pc == Pc::Sleeping {
                let _ = write!(out, ", watching {}", thread.peer);
            }
        }
    }
    for (k, lock) in s.locks.iter().enumerate() {
        let name = ["A", "B"][k];
        let (owner, guard) = (id(lock.owner), id(lock.guard));
        let _ = write!(out, "\n       {name}: owner {owner}, tail {}, guard {guard}", lock.tail);
    }
    out
}

/// The path as text, one step a line; ids are `index.generation`.
pub(crate) fn render(model: &LockModel, path: Path<State, Action>) -> String {
    let mut out = String::new();
    let mut last = None;
    for (n, (s, action)) in path.into_vec().into_iter().enumerate() {
        if let Some(action) = action {
            let (who, function, step) = describe(&s, action);
            let next = model.next_state(&s, action).unwrap_or(s);
            let effect = effect(&s, &next);
            let _ = writeln!(out, "{:>4}  {who:<9} {function:<18} {step:<45} {effect}", n + 1);
        }
        last = Some(s);
    }
    if let Some(s) = last {
        let _ = writeln!(out, "  end: {:?}{}", s.fault, ending(&s));
    }
    out
}
