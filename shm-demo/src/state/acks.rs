//! What the workers of `state bench` say that they have done, outside of the lock,
//! and whether the table agrees.
//!
//! For each of its keys a worker notes the number of the change that it is going to
//! make (`intent`), makes it, and notes that it is made (`acked`). The number says
//! what the change is, so whoever knows the number knows the value.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use super::table::{Found, MAX_VALUE, Table, TableError, hash};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use zerocopy::FromBytes;

/// How many workers there can be at a time.
pub(crate) const MAX_WORKERS: usize = 64;

/// How many keys each worker has that nobody else changes.
pub(crate) const OWN: usize = 8;

/// How many keys there are that everybody sets.
pub(crate) const HOT: usize = 4;

/// One in so many changes of a worker's own keys is a removal.
const REMOVALS: u64 = 8;

/// One key, as one worker has changed it.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Ack {
    intent: AtomicU64,
    acked: AtomicU64,
    /// The change of the table that the last acknowledged one was.
    version: AtomicU64,
}

/// One worker, and whoever had its place before.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Acks {
    pub(crate) own: [Ack; OWN],
    pub(crate) hot: [Ack; HOT],
}

/// How a change ended that nobody acknowledged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    None,
    Made,
    NotMade,
    /// There is neither what was before it nor what was to be.
    Torn,
}

pub(crate) fn own_key(slot: usize, key: usize) -> String {
    format!("worker-{slot}-{key}")
}

pub(crate) fn hot_key(key: usize) -> String {
    format!("hot-{key}")
}

/// What change `number` makes of a worker's own key: a value, or nothing.
pub(crate) fn own_value(slot: usize, key: usize, number: u64) -> Option<String> {
    (!number.is_multiple_of(REMOVALS)).then(|| value(slot, key, number))
}

/// A value that says which change set it, and has a length and letters that no
/// other one has.
pub(crate) fn value(slot: usize, key: usize, number: u64) -> String {
    let mut text = format!("{slot} {key} {number} ");
    let mut seed = hash(&[text.as_bytes()]);
    let length = text.len() + seed as usize % (MAX_VALUE - text.len() + 1);
    while text.len() < length {
        seed = hash(&[&seed.to_le_bytes()]);
        text.push(char::from(b'a' + (seed % 26) as u8));
    }
    text
}

/// Which worker set a hot key to `found`, by which of its changes; `None` if nobody can
/// have.
fn author(found: &[u8], key: usize) -> Option<(usize, u64)> {
    let text = std::str::from_utf8(found).ok()?;
    let mut words = text.split(' ');
    let slot = words.next()?.parse().ok()?;
    let number = words.nth(1)?.parse().ok()?;
    (value(slot, key, number) == text).then_some((slot, number))
}

impl Ack {
    /// Notes that the next change is going to be made, and says which that is.
    pub(crate) fn intend(&self) -> u64 {
        let number = self.intent.load(Relaxed) + 1;
        // Written before anything of the change is, as the lock comes behind it.
        self.intent.store(number, Release);
        number
    }

    /// Notes that it is made.
    pub(crate) fn acknowledge(&self, number: u64, version: u64) {
        self.version.store(version, Release);
        self.acked.store(number, Release);
    }

    pub(crate) fn acked(&self) -> u64 {
        self.acked.load(Acquire)
    }

    fn intent(&self) -> u64 {
        self.intent.load(Acquire)
    }

    /// Finds out whether the last change of a dead worker was made, and notes that.
    pub(crate) fn resolve(&self, slot: usize, key: usize, found: Option<&[u8]>) -> Doubt {
        let (intent, acked) = (self.intent(), self.acked());
        let is = |number| own_value(slot, key, number).as_deref().map(str::as_bytes) == found;
        if intent == acked {
            Doubt::None
        } else if is(intent) {
            self.acked.store(intent, Release);
            Doubt::Made
        } else if is(acked) {
            self.intent.store(acked, Release);
            Doubt::NotMade
        } else {
            Doubt::Torn
        }
    }
}

/// What a hot key is set to must be a value that somebody was going to set it to.
pub(crate) fn is_hot_value(acks: &[Acks], key: usize, found: &[u8]) -> bool {
    author(found, key).is_some_and(|(slot, number)| {
        acks.get(slot).is_some_and(|acks| number <= acks.hot[key].intent())
    })
}

/// What was found at the end.
#[derive(Default)]
pub(crate) struct Verdict {
    pub(crate) failures: Vec<String>,
    pub(crate) changes_acknowledged: u64,
    pub(crate) entries_expected: u64,
}

/// Compares the table with what the workers have acknowledged, when nobody is left
/// and `deaths` workers have died.
pub(crate) fn judge(table: &mut Table, acks: &[Acks], deaths: u64) -> Verdict {
    let mut verdict = Verdict { failures: table.audit(), ..Verdict::default() };
    // What was made for certain, and what may have been.
    let (mut made, mut perhaps) = (0, 0);
    for (slot, worker) in acks.iter().enumerate() {
        for (key, ack) in worker.own.iter().enumerate() {
            made += ack.acked();
            if ack.intent() != ack.acked() {
                verdict.failures.push(format!("a change of worker {slot} was left in doubt"));
            }
            let expected = own_value(slot, key, ack.acked());
            verdict.entries_expected += u64::from(expected.is_some());
            let name = own_key(slot, key);
            let expected = expected.as_deref().map(str::as_bytes);
            match look(table, &name) {
                Ok(found) if found.as_ref().map(|found| found.value) == expected => {}
                Ok(found) => verdict.failures.push(format!(
                    "{name} was last acknowledged as {}, but is {}",
                    say(expected),
                    say(found.map(|found| found.value))
                )),
                Err(error) => verdict.failures.push(format!("{name}: {error}")),
            }
        }
        perhaps += worker.hot.iter().map(Ack::intent).sum::<u64>();
        verdict.changes_acknowledged += worker.hot.iter().map(Ack::acked).sum::<u64>();
    }
    verdict.changes_acknowledged += made;
    for key in 0..HOT {
        let acked = |acks: &Acks| acks.hot[key].version.load(Acquire);
        let last = acks.iter().map(acked).max().unwrap_or(0);
        let name = hot_key(key);
        match look(table, &name) {
            Ok(None) if last == 0 => {}
            Ok(Some(found)) if found.version >= last && is_hot_value(acks, key, found.value) => {
                verdict.entries_expected += 1;
            }
            Ok(found) => verdict.failures.push(format!(
                "{name} was last acknowledged in change {last}, but is {}",
                say(found.map(|found| found.value))
            )),
            Err(error) => verdict.failures.push(format!("{name}: {error}")),
        }
    }
    let (entries, expected) = (table.entries(), verdict.entries_expected);
    if entries != expected {
        verdict.failures.push(format!("there are {entries} entries, not {expected}"));
    }
    // Of each dead worker the last set of a hot key may not have been made.
    let (least, most) = (made + perhaps.saturating_sub(deaths), made + perhaps);
    let changes = table.changes();
    if !(least..=most).contains(&changes) {
        verdict
            .failures
            .push(format!("the table counts {changes} changes, the workers {least} to {most}"));
    }
    verdict
}

fn look<'t>(table: &'t mut Table, key: &str) -> Result<Option<Found<'t>>, TableError> {
    table.get(key.as_bytes())
}

fn say(value: Option<&[u8]>) -> String {
    value.map_or("nothing".into(), |value| format!("{:?}", String::from_utf8_lossy(value)))
}

#[cfg(test)]
mod tests {
    use super::{Acks, Doubt, HOT, MAX_VALUE, OWN, Table, hot_key, is_hot_value, judge};
    use super::{own_key, own_value, value};
    use zerocopy::FromZeros;

    /// A run of two workers in which nothing was lost, change by change.
    fn run() -> (Box<Table>, Vec<Acks>) {
        let mut table = Box::new(Table::new_zeroed());
        let acks = vec![Acks::new_zeroed(), Acks::new_zeroed()];
        for round in 0..20 {
            for (slot, worker) in acks.iter().enumerate() {
                let key = round % OWN;
                let number = worker.own[key].intend();
                change(&mut table, slot, key, number);
                worker.own[key].acknowledge(number, 0);
                let hot = &worker.hot[round % HOT];
                let (number, name) = (hot.intend(), hot_key(round % HOT));
                let value = value(slot, round % HOT, number);
                let version = table.set(name.as_bytes(), value.as_bytes(), &|| ()).expect("room");
                hot.acknowledge(number, version);
            }
        }
        (table, acks)
    }

    fn change(table: &mut Table, slot: usize, key: usize, number: u64) {
        let name = own_key(slot, key);
        match own_value(slot, key, number) {
            Some(value) => drop(table.set(name.as_bytes(), value.as_bytes(), &|| ())),
            None => drop(table.remove(name.as_bytes(), &|| ())),
        }
    }

    #[track_caller]
    fn assert_fails(table: &mut Table, acks: &[Acks], what: &str) {
        let failures = judge(table, acks, 0).failures;
        assert!(failures.iter().any(|failure| failure.contains(what)), "{what}: {failures:?}");
    }

    #[test]
    fn passes_a_run_in_which_nothing_was_lost() {
        let (mut table, acks) = run();
        let verdict = judge(&mut table, &acks, 0);
        assert_eq!(verdict.failures, [""; 0]);
        assert_eq!((verdict.changes_acknowledged, table.changes()), (80, 80));
        assert_eq!(verdict.entries_expected, 2 * OWN as u64 + HOT as u64);
    }

    #[test]
    fn a_lost_change_fails() {
        // A set, a removal, and one that came twice.
        let (mut table, acks) = run();
        table.remove(own_key(1, 3).as_bytes(), &|| ()).expect("no error");
        assert_fails(&mut table, &acks, "worker-1-3 was last acknowledged");
        let (mut table, acks) = run();
        change(&mut table, 0, 0, 2);
        assert_fails(&mut table, &acks, "worker-0-0 was last acknowledged");
        let (mut table, acks) = run();
        change(&mut table, 0, 0, 3);
        assert_fails(&mut table, &acks, "the table counts 81 changes");
        // An old value of a hot key is as lost as none.
        let (mut table, acks) = run();
        acks[1].hot[2].acknowledge(99, 81);
        assert_fails(&mut table, &acks, "hot-2 was last acknowledged in change 81");
        let (mut table, acks) = run();
        table.remove(hot_key(1).as_bytes(), &|| ()).expect("no error");
        assert_fails(&mut table, &acks, "hot-1");
    }

    #[test]
    fn a_value_that_nobody_set_fails() {
        let (mut table, acks) = run();
        let mut torn = value(0, 1, 5);
        torn.replace_range(3..4, "6");
        table.set(hot_key(1).as_bytes(), torn.as_bytes(), &|| ()).expect("room");
        assert_fails(&mut table, &acks, "hot-1");
        assert!(!is_hot_value(&acks, 1, value(0, 1, 99).as_bytes()), "not yet set");
        assert!(!is_hot_value(&acks, 1, value(7, 1, 1).as_bytes()), "no such worker");
        assert!(!is_hot_value(&acks, 1, b"\xff"));
        assert!(is_hot_value(&acks, 1, value(0, 1, 5).as_bytes()));
        for number in 0..5000 {
            assert!(value(63, 7, number).len() <= MAX_VALUE);
        }
    }

    #[test]
    fn what_a_dead_worker_did_is_found_out() {
        let ack = &Acks::new_zeroed().own[0];
        let is = |number| own_value(0, 0, number);
        assert_eq!(ack.resolve(0, 0, None), Doubt::None);
        for number in 1..20 {
            assert_eq!(ack.intend(), number);
            let bytes = |value: &Option<String>| value.clone().map(String::into_bytes);
            let (before, after) = (bytes(&is(number - 1)), bytes(&is(number)));
            assert_eq!(ack.resolve(0, 0, Some(b"torn")), Doubt::Torn);
            assert_eq!(ack.resolve(0, 0, before.as_deref()), Doubt::NotMade);
            assert_eq!(ack.intend(), number);
            assert_eq!(ack.resolve(0, 0, after.as_deref()), Doubt::Made);
            assert_eq!(ack.acked(), number);
        }
    }
}
