//! What things in a segment's value are called, for people.
//!
//! A name is given once and stays, so every process may give it when it starts: the
//! first does, the others find it there.
//!
//! Entries are used in order and never given back. Whoever names a thing takes the first
//! free one with a CAS of `offset`, unless it meets one of that thing before, so there
//! is one for each thing. Then it stores the name word after word, each with a CAS from
//! 0, and stops where it finds another word than its own. So of several names that are
//! given at once one is there in the end: who came to the last word had found or
//! stored all the words before it. No word of a name is 0, for a name has no zero
//! bytes, and what is behind it is filled with 0xff, which is in no UTF-8: so who reads
//! it sees all of it or nothing. A namer that is killed leaves the beginning of a name,
//! which does not count until somebody who gives the same one has finished it.

use super::layout::{NAMES, NAMES_OFFSET};
use crate::sys::atomic::{AtomicU64, Ordering};
use zerocopy::FromBytes;

/// How long a name can be, in bytes.
pub(crate) const NAME_LEN: usize = 56;

const WORDS: usize = NAME_LEN / 8;
const FILLER: u8 = 0xff;

#[derive(FromBytes, Debug)]
#[repr(C)]
pub(crate) struct Names([Entry; NAMES]);

#[derive(FromBytes, Debug)]
#[repr(C)]
struct Entry {
    offset: AtomicU64,
    words: [AtomicU64; WORDS],
}

const _: () = assert!(size_of::<Names>() == 4096 - NAMES_OFFSET && size_of::<Entry>() == 64);

/// Why a thing was not given a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// All entries are other things'.
    Full,
    /// It has, or is about to get, another name.
    Another,
}

impl Names {
    /// Calls what is at `offset`, which is not 0, `name`: of 1 to [`NAME_LEN`] bytes,
    /// none of them zero.
    pub(crate) fn give(&self, offset: u64, name: &str) -> Result<(), Refused> {
        let mut bytes = [FILLER; NAME_LEN];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        for entry in &self.0 {
            // Acquire and Release, here and below, are of no consequence: each word
            // is looked at for itself, and changes once.
            let claimed =
                entry.offset.compare_exchange(0, offset, Ordering::AcqRel, Ordering::Acquire);
            if claimed.is_ok() || claimed == Err(offset) {
                return entry.write(&bytes);
            }
        }
        Err(Refused::Full)
    }

    /// What the thing at `offset` is called, as it is shown to people.
    pub(crate) fn of(&self, offset: u64) -> Option<String> {
        let found = |entry: &&Entry| entry.offset.load(Ordering::Acquire) == offset;
        self.0.iter().find(found).filter(|_| offset != 0)?.read()
    }
}

impl Entry {
    fn write(&self, bytes: &[u8; NAME_LEN]) -> Result<(), Refused> {
        for (word, part) in self.words.iter().zip(bytes.chunks_exact(8)) {
            let part = u64::from_ne_bytes(part.try_into().expect("chunks of 8"));
            match word.compare_exchange(0, part, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {}
                Err(there) if there == part => {}
                Err(_) => return Err(Refused::Another),
            }
        }
        Ok(())
    }

    /// It comes from shared memory, so it can be anything.
    fn read(&self) -> Option<String> {
        let mut bytes = [0; NAME_LEN];
        for (word, part) in self.words.iter().zip(bytes.chunks_exact_mut(8)) {
            match word.load(Ordering::Acquire) {
                0 => return None,
                there => part.copy_from_slice(&there.to_ne_bytes()),
            }
        }
        let len = bytes.iter().position(|byte| *byte == FILLER).unwrap_or(NAME_LEN);
        let text = String::from_utf8_lossy(&bytes[..len]);
        Some(text.chars().filter(|c| !c.is_control()).collect())
    }
}

#[cfg(all(test, not(heirlock_loom)))]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn of_names_given_at_once_one_is_there_in_the_end() {
        let candidates = ["lock", "lock-of-accounts", "lock-of-accounts-and-more", "other"];
        for _ in 0..200 {
            let names = &Names::new_zeroed();
            let given = std::thread::scope(|scope| {
                let give =
                    |name| scope.spawn(move || names.give(4096, name).is_ok().then_some(name));
                let threads = candidates.map(give);
                threads.map(|thread| thread.join().expect("no panic"))
            });
            let given: Vec<&str> = given.into_iter().flatten().collect();
            assert_eq!(given.len(), 1, "{given:?}");
            assert_eq!(names.of(4096).as_deref(), Some(given[0]));
            assert_eq!(names.0.iter().filter(|e| e.offset.load(Ordering::Relaxed) != 0).count(), 1);
        }
    }

    #[test]
    fn the_beginning_of_a_name_is_none_and_can_be_finished() {
        let (first, last) = ("accounts", "accounts-of-customers");
        let names = Names::new_zeroed();
        // A namer that was killed after one word.
        names.0[0].offset.store(4096, Ordering::Relaxed);
        let word = u64::from_ne_bytes(first.as_bytes().try_into().unwrap());
        names.0[0].words[0].store(word, Ordering::Relaxed);
        assert_eq!(names.of(4096), None);
        assert_eq!(names.give(4096, "another"), Err(Refused::Another));
        assert_eq!(names.of(4096), None);
        assert_eq!(names.give(4096, last), Ok(()));
        assert_eq!(names.of(4096).as_deref(), Some(last));
        assert_eq!(names.give(4096, first), Err(Refused::Another));
    }

    #[test]
    fn whatever_is_there_is_shown_without_control_characters() {
        let names = Names::new_zeroed();
        names.0[3].offset.store(8, Ordering::Relaxed);
        for word in &names.0[3].words {
            word.store(u64::from_ne_bytes(*b"\x1b[1m\xc3\n\x07x"), Ordering::Relaxed);
        }
        let shown = names.of(8).expect("it has a name");
        assert!(shown.starts_with("[1m\u{fffd}x"), "{shown:?}");
        assert!(!shown.contains(char::is_control));
        assert_eq!(names.of(0), None);
    }
}
