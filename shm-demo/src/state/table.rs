//! The table of keys and values, and the journal that makes each change of it whole.
//!
//! A change is first written into the journal, then the journal is armed, by one
//! store; from there on the change is made, whoever carries it out: its owner, or
//! the heir of an owner that is killed. Before that store nothing has happened.

use crate::settle::settle;
use std::fmt;
use zerocopy::{FromBytes, FromZeros};

/// How many entries there can be.
pub(crate) const CAPACITY: usize = 1024;

/// How long a key can be, in bytes.
pub(crate) const MAX_KEY: usize = 64;

/// How long a value can be, in bytes.
pub(crate) const MAX_VALUE: usize = 256;

/// What is at a place of the table. Whoever looks for a key goes on past the
/// removed, and ends at the first empty one.
const EMPTY: u64 = 0;
const USED: u64 = 1;
const REMOVED: u64 = 2;

/// All bytes zero is an empty table. Open addressing, one step at a time.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Table {
    /// How many keys there are.
    entries: u64,
    /// How many changes have been made.
    changes: u64,
    journal: Journal,
    pub(crate) counts: Counts,
    places: [Entry; CAPACITY],
}

#[derive(Clone, FromBytes)]
#[repr(C)]
struct Entry {
    state: u64,
    /// The number of the change that made it.
    version: u64,
    /// Of all that follows.
    checksum: u64,
    key_len: u32,
    value_len: u32,
    key: [u8; MAX_KEY],
    value: [u8; MAX_VALUE],
}

/// What is to be in the table when the change is done. It can be carried out any
/// number of times.
#[derive(FromBytes)]
#[repr(C)]
struct Journal {
    armed: u64,
    index: u64,
    entries: u64,
    changes: u64,
    entry: Entry,
}

/// What happened. A kill can make one of these miss one event of the killed
/// process.
#[derive(Clone, Default, FromBytes)]
#[repr(C)]
pub(crate) struct Counts {
    pub(crate) gets: u64,
    pub(crate) sets: u64,
    pub(crate) removes: u64,
    /// How often somebody got the lock from a dead owner, and was told.
    pub(crate) inherited: u64,
    /// How often the dead owner had left a change half done.
    pub(crate) repaired: u64,
    /// How often a change was found half done without anybody being told.
    pub(crate) untold: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TableError {
    KeyLength(usize),
    ValueLength(usize),
    Full,
    /// The entry at this place is none that was ever set.
    Torn(usize),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyLength(0) => f.write_str("the key is empty; give it 1 byte at least"),
            Self::KeyLength(len) => {
                write!(f, "the key has {len} bytes, and at most {MAX_KEY} fit; shorten it")
            }
            Self::ValueLength(len) => write!(
                f,
                "the value has {len} bytes, and at most {MAX_VALUE} fit; shorten it, or store \
                 a path to it"
            ),
            Self::Full => write!(
                f,
                "the table has all of its {CAPACITY} entries; remove keys that are not needed \
                 (`shm-demo state list` shows them)"
            ),
            Self::Torn(index) => write!(
                f,
                "the entry at place {index} does not have its checksum; something else wrote \
                 into the segment: remove the file"
            ),
        }
    }
}

impl std::error::Error for TableError {}

pub(crate) struct Found<'t> {
    pub(crate) version: u64,
    pub(crate) value: &'t [u8],
}

/// A key and its value.
type Pair<'t> = (&'t [u8], &'t [u8]);

/// FNV-1a, of 64 bits.
pub(crate) fn hash(parts: &[&[u8]]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    parts.iter().flat_map(|part| part.iter()).fold(0xcbf2_9ce4_8422_2325, step)
}

impl Entry {
    fn new(key: &[u8], value: &[u8]) -> Self {
        let mut entry = Self::new_zeroed();
        entry.state = USED;
        entry.key_len = key.len() as u32;
        entry.value_len = value.len() as u32;
        entry.key[..key.len()].copy_from_slice(key);
        entry.value[..value.len()].copy_from_slice(value);
        entry.checksum = entry.sum();
        entry
    }

    /// What has been at a place from which a key was removed.
    fn gone() -> Self {
        let mut entry = Self::new_zeroed();
        entry.state = REMOVED;
        entry
    }

    fn sum(&self) -> u64 {
        let lengths = [self.key_len.to_le_bytes(), self.value_len.to_le_bytes()];
        hash(&[&lengths[0], &lengths[1], &self.key, &self.value])
    }

    /// The key and the value, if they are what was set.
    fn parts(&self) -> Option<(&[u8], &[u8])> {
        let key = self.key.get(..self.key_len as usize)?;
        let value = self.value.get(..self.value_len as usize)?;
        (self.checksum == self.sum()).then_some((key, value))
    }

    fn has(&self, key: &[u8]) -> bool {
        self.state == USED && self.key.get(..self.key_len as usize) == Some(key)
    }
}

/// Where a key is, or where it may go.
enum Place {
    At(usize),
    Free(usize),
    Nowhere,
}

impl Table {
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    fn start(key: &[u8]) -> usize {
        hash(&[key]) as usize % CAPACITY
    }

    fn place(&self, key: &[u8]) -> Place {
        let mut free = None;
        for step in 0..CAPACITY {
            let index = (Self::start(key) + step) % CAPACITY;
            let entry = &self.places[index];
            match entry.state {
                EMPTY => return Place::Free(free.unwrap_or(index)),
                REMOVED => free = free.or(Some(index)),
                _ if entry.has(key) => return Place::At(index),
                _ => {}
            }
        }
        free.map_or(Place::Nowhere, Place::Free)
    }

    pub(crate) fn get(&mut self, key: &[u8]) -> Result<Option<Found<'_>>, TableError> {
        check_key(key)?;
        self.counts.gets += 1;
        let Place::At(index) = self.place(key) else { return Ok(None) };
        let entry = &self.places[index];
        let (_, value) = entry.parts().ok_or(TableError::Torn(index))?;
        Ok(Some(Found { version: entry.version, value }))
    }

    /// Sets the key, and says which change that was. `pace` is called between
    /// any two writes: to be slow enough for kills to find it.
    pub(crate) fn set(
        &mut self,
        key: &[u8],
        value: &[u8],
        pace: &dyn Fn(),
    ) -> Result<u64, TableError> {
        check_key(key)?;
        if value.len() > MAX_VALUE {
            return Err(TableError::ValueLength(value.len()));
        }
        let (index, entries) = match self.place(key) {
            Place::At(index) => (index, self.entries),
            Place::Free(index) => (index, self.entries + 1),
            Place::Nowhere => return Err(TableError::Full),
        };
        self.counts.sets += 1;
        Ok(self.change(index, Entry::new(key, value), entries, pace))
    }

    /// Removes the key, and says which change that was; `None` if it is not there.
    pub(crate) fn remove(
        &mut self,
        key: &[u8],
        pace: &dyn Fn(),
    ) -> Result<Option<u64>, TableError> {
        check_key(key)?;
        let Place::At(index) = self.place(key) else { return Ok(None) };
        self.counts.removes += 1;
        let change = self.change(index, Entry::gone(), self.entries.saturating_sub(1), pace);
        self.shorten(index);
        Ok(Some(change))
    }

    /// Empties the removed places at the end of a chain. A removed place in front of
    /// an empty one says the same as an empty one: so each of these stores is a
    /// change by itself that changes nothing, and needs no journal.
    fn shorten(&mut self, mut index: usize) {
        for _ in 0..CAPACITY {
            let next = (index + 1) % CAPACITY;
            if self.places[index].state != REMOVED || self.places[next].state != EMPTY {
                return;
            }
            self.places[index].state = EMPTY;
            settle(self);
            index = (index + CAPACITY - 1) % CAPACITY;
        }
    }

    fn change(&mut self, index: usize, entry: Entry, entries: u64, pace: &dyn Fn()) -> u64 {
        let change = self.changes + 1;
        self.journal.index = index as u64;
        self.journal.entries = entries;
        self.journal.changes = change;
        self.journal.entry = Entry { version: change, ..entry };
        settle(self);
        pace();
        // From here on it is made.
        self.journal.armed = 1;
        settle(self);
        self.carry_out(pace);
        change
    }

    /// Does what the journal says, in pieces, in an order in which a kill leaves
    /// as much to be seen as possible.
    fn carry_out(&mut self, pace: &dyn Fn()) {
        let step = |table: &mut Self| {
            settle(table);
            pace();
        };
        let index = self.journal.index as usize;
        // Garbage is written nowhere.
        if index < CAPACITY {
            let half = MAX_VALUE / 2;
            self.places[index].state = self.journal.entry.state;
            step(self);
            self.places[index].key = self.journal.entry.key;
            self.places[index].key_len = self.journal.entry.key_len;
            step(self);
            self.places[index].value_len = self.journal.entry.value_len;
            self.places[index].value[..half].copy_from_slice(&self.journal.entry.value[..half]);
            step(self);
            self.places[index].value[half..].copy_from_slice(&self.journal.entry.value[half..]);
            step(self);
            self.places[index].checksum = self.journal.entry.checksum;
            self.places[index].version = self.journal.entry.version;
            step(self);
            self.entries = self.journal.entries;
            step(self);
            self.changes = self.journal.changes;
            step(self);
        }
        self.journal.armed = 0;
        settle(self);
    }

    /// The first thing that a new owner does: finishes what a dead one had begun.
    /// If it is killed in here, its own heir does the same again.
    pub(crate) fn recover(&mut self, inherited: bool) {
        if inherited {
            self.counts.inherited += 1;
        }
        if self.journal.armed != 0 {
            self.carry_out(&|| ());
            if inherited {
                self.counts.repaired += 1;
            } else {
                self.counts.untold += 1;
            }
            settle(self);
        }
    }

    /// The keys, with their values, in order.
    pub(crate) fn list<'t>(&'t self) -> Result<Vec<Pair<'t>>, TableError> {
        let used = self.places.iter().enumerate().filter(|(_, entry)| entry.state == USED);
        let parts =
            |(index, entry): (usize, &'t Entry)| entry.parts().ok_or(TableError::Torn(index));
        let mut all = used.map(parts).collect::<Result<Vec<_>, _>>()?;
        all.sort_unstable();
        Ok(all)
    }

    /// What is wrong with the table, in words.
    pub(crate) fn audit(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.journal.armed != 0 {
            wrong.push("a change is half done, and nobody finished it".to_string());
        }
        let mut used = 0;
        for (index, entry) in self.places.iter().enumerate() {
            match (entry.state, entry.parts()) {
                (EMPTY | REMOVED, _) => {}
                (USED, Some((key, _))) => {
                    used += 1;
                    if !matches!(self.place(key), Place::At(at) if at == index) {
                        let key = String::from_utf8_lossy(key);
                        wrong.push(format!("the key {key} cannot be found where it is"));
                    }
                }
                _ => wrong.push(format!("the entry at place {index} is torn")),
            }
        }
        if used != self.entries {
            wrong.push(format!("there are {used} entries, but {} are counted", self.entries));
        }
        wrong
    }
}

fn check_key(key: &[u8]) -> Result<(), TableError> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(TableError::KeyLength(key.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{CAPACITY, Entry, MAX_KEY, MAX_VALUE, Table, TableError};
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use zerocopy::FromZeros;

    fn table() -> Box<Table> {
        Box::new(Table::new_zeroed())
    }

    #[track_caller]
    fn value(table: &mut Table, key: &str) -> Option<String> {
        let found = table.get(key.as_bytes()).expect("no error");
        found.map(|found| String::from_utf8(found.value.to_vec()).expect("text"))
    }

    fn set(table: &mut Table, key: &str, value: &str) -> Result<u64, TableError> {
        table.set(key.as_bytes(), value.as_bytes(), &|| ())
    }

    #[test]
    fn is_a_map() {
        let mut table = table();
        let mut model = BTreeMap::new();
        let mut rng = fastrand::Rng::with_seed(7);
        for round in 0..20_000 {
            // Few enough to come again, many enough to collide.
            let key = format!("key-{}", rng.u32(..700));
            if rng.bool() {
                let value = format!("value-{round}");
                set(&mut table, &key, &value).expect("room");
                model.insert(key, value);
            } else {
                let removed = table.remove(key.as_bytes(), &|| ()).expect("no error");
                assert_eq!(removed.is_some(), model.remove(&key).is_some());
            }
        }
        assert_eq!(table.audit(), [""; 0]);
        let list = table.list().expect("whole");
        let as_bytes = |(key, value): (&'_ String, &'_ String)| {
            (key.as_bytes().to_vec(), value.as_bytes().to_vec())
        };
        let list: Vec<_> = list.into_iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        assert_eq!(list, model.iter().map(as_bytes).collect::<Vec<_>>());
        assert_eq!(table.entries(), model.len() as u64);
    }

    #[test]
    fn says_what_does_not_fit() {
        let mut table = table();
        assert_eq!(set(&mut table, "", "x"), Err(TableError::KeyLength(0)));
        let (key, long) = ("k".repeat(MAX_KEY), "v".repeat(MAX_VALUE));
        assert_eq!(set(&mut table, &key, &long), Ok(1));
        assert_eq!(value(&mut table, &key), Some(long.clone()));
        let error = set(&mut table, &(key + "k"), "x").expect_err("a long key");
        assert!(error.to_string().contains("65 bytes, and at most 64"), "{error}");
        let error = set(&mut table, "k", &(long + "v")).expect_err("a long value");
        assert!(error.to_string().contains("257 bytes, and at most 256"), "{error}");
        for number in 1..CAPACITY {
            set(&mut table, &number.to_string(), "x").expect("room");
        }
        let error = set(&mut table, "one more", "x").expect_err("full");
        assert!(error.to_string().contains("remove keys"), "{error}");
        // What is there can still be changed.
        set(&mut table, "7", "y").expect("it is there");
        assert!(table.remove(b"8", &|| ()).expect("no error").is_some());
        set(&mut table, "one more", "x").expect("room again");
        assert_eq!(table.audit(), [""; 0]);
    }

    /// Kills each change between any two of its writes; and each heir likewise.
    #[test]
    fn a_change_is_made_or_not() {
        let kill_at = |step: usize| {
            let steps = Cell::new(0);
            move || {
                steps.set(steps.get() + 1);
                if steps.get() == step {
                    resume_unwind(Box::new("killed"));
                }
            }
        };
        type Change = fn(&mut Table, &dyn Fn());
        /// What the keys a and b are.
        type State = [Option<&'static str>; 2];
        let changes: [(Change, State, State); 3] = [
            (|t, pace| drop(t.set(b"a", b"2", pace)), [Some("1"), None], [Some("2"), None]),
            (|t, pace| drop(t.set(b"b", b"2", pace)), [Some("1"), None], [Some("1"), Some("2")]),
            (|t, pace| drop(t.remove(b"a", pace)), [Some("1"), None], [None, None]),
        ];
        for (change, before, after) in changes {
            let mut step = 1;
            loop {
                let mut table = table();
                set(&mut table, "a", "1").expect("room");
                let pace = kill_at(step);
                let killed = catch_unwind(AssertUnwindSafe(|| change(&mut table, &pace))).is_err();
                if !killed {
                    break;
                }
                let armed = table.journal.armed != 0;
                assert_eq!(armed, step > 1, "the first step is before the point of no return");
                // The heir is killed, too, wherever it is.
                for heir in 1..10 {
                    let pace = kill_at(heir);
                    let mut again = table_of(&table);
                    let carry_out = || {
                        if armed {
                            again.carry_out(&pace)
                        }
                    };
                    let _ = catch_unwind(AssertUnwindSafe(carry_out));
                    again.recover(true);
                    assert_eq!(again.audit(), [""; 0], "step {step}, heir {heir}");
                    let found = [value(&mut again, "a"), value(&mut again, "b")];
                    let found = found.each_ref().map(Option::as_deref);
                    assert_eq!(found, if armed { after } else { before });
                    assert_eq!(again.changes(), if armed { 2 } else { 1 });
                }
                step += 1;
            }
            assert!(step > 6, "{step} steps");
        }
    }

    fn table_of(other: &Table) -> Box<Table> {
        let mut table = table();
        table.entries = other.entries;
        table.changes = other.changes;
        table.journal.armed = other.journal.armed;
        table.journal.index = other.journal.index;
        table.journal.entries = other.journal.entries;
        table.journal.changes = other.journal.changes;
        table.journal.entry = other.journal.entry.clone();
        table.places.clone_from_slice(&other.places);
        table
    }

    #[test]
    fn notices_what_is_torn() {
        let mut table = table();
        set(&mut table, "a", "1").expect("room");
        let at = table.places.iter().position(|entry| entry.has(b"a")).expect("it is there");
        table.places[at].value[0] ^= 1;
        assert_eq!(table.get(b"a").err(), Some(TableError::Torn(at)));
        assert_eq!(table.list().err(), Some(TableError::Torn(at)));
        assert_eq!(table.audit().len(), 2, "torn, and not counted");
        // Lengths that are none.
        table.places[at] = Entry::new(b"a", b"1");
        (table.places[at].key_len, table.places[at].value_len) = (u32::MAX, u32::MAX);
        assert_eq!(table.audit().len(), 2);
        table.places[at] = Entry::new(b"a", b"1");
        table.entries = 5;
        assert_eq!(table.audit(), ["there are 1 entries, but 5 are counted"]);
        // A death that nobody told of, with a journal that is garbage.
        (table.journal.armed, table.journal.index) = (1, u64::MAX);
        assert_eq!(table.audit().len(), 2);
        table.recover(false);
        assert_eq!((table.counts.untold, table.counts.repaired), (1, 0));
    }
}
