//! The facade for atomics, with loom's behind it.
//!
//! A value here is a plain integer, so that it can lie in mapped memory like the
//! real one: it is `FromBytes`, has the size and the `const` constructor. It is
//! never written: it is the word's initial value, and its address names loom's
//! atomic, which is made when the word is first accessed in an execution. That
//! must be before the threads of the model start ([`AtomicU32::touch`]), because
//! loom counts it as a write that others must happen after.
//!
//! # Sequential consistency
//!
//! loom's manual says that it takes `SeqCst` accesses for acquire and release.
//! Of version 0.7 that holds for what happens-before what; but a `SeqCst` load
//! does not return a `SeqCst` store that is older than another one in the word's
//! modification order. Where all that is stored in a word is `SeqCst`, the
//! initial value too, that is sequential consistency, with the order in which
//! loom runs the accesses as the one total order, and loom tries these orders.
//! So the initial value is stored with `SeqCst` here, and nothing else is needed
//! for loom to see pairs of the shape "store mine, then look at yours"; and as
//! soon as one of the stores is weaker, loom finds that such a pair fails
//! (`lock::loom_tests` holds it to both). Fences would do too, but loom's order
//! more than real ones: a fence there acquires all that earlier ones released.
#![allow(clippy::disallowed_types, reason = "the real ones' sizes")]
#![allow(unsafe_code)]

use super::{machine, step};
use core::cell::RefCell;
use core::ptr;
pub(crate) use core::sync::atomic::Ordering;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
pub(crate) use loom::sync::atomic::fence;
use std::collections::HashMap;
use std::rc::Rc;
use zerocopy::FromBytes;

/// loom's atomics of one execution, by address.
struct Words<A> {
    execution: u64,
    atomics: HashMap<usize, Rc<A>>,
}

macro_rules! atomics {
    ($($(#[$doc:meta])* $name:ident($value:ty), $words:ident;)*) => {$(
        thread_local! {
            static $words: RefCell<Words<loom::sync::atomic::$name>> =
                RefCell::new(Words { execution: 0, atomics: HashMap::new() });
        }

        $(#[$doc])*
        #[derive(FromBytes, Debug)]
        #[repr(transparent)]
        pub(crate) struct $name($value);

        #[allow(dead_code, reason = "not each width needs each operation")]
        impl $name {
            pub(crate) const fn new(value: $value) -> Self {
                Self(value)
            }

            /// loom's atomic for the word.
            fn word(&self) -> Rc<loom::sync::atomic::$name> {
                let address = ptr::from_ref(self).addr();
                Self::known_at(address).unwrap_or_else(|| {
                    let word = Rc::new(loom::sync::atomic::$name::new(self.0));
                    word.store(self.0, SeqCst);
                    $words.with_borrow_mut(|words| {
                        words.atomics.insert(address, Rc::clone(&word));
                    });
                    word
                })
            }

            /// loom's atomic for the word at `address`, if it has been accessed.
            fn known_at(address: usize) -> Option<Rc<loom::sync::atomic::$name>> {
                let execution = machine(|machine| machine.execution);
                $words.with_borrow_mut(|words| {
                    if words.execution != execution {
                        words.execution = execution;
                        words.atomics.clear();
                    }
                    words.atomics.get(&address).map(Rc::clone)
                })
            }

            /// Makes the word known to loom.
            pub(crate) fn touch(&self) {
                self.word();
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                if step() { self.word().load(order) } else { 0 }
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                if step() {
                    self.word().store(value, order);
                }
            }

            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                if step() { self.word().swap(value, order) } else { 0 }
            }

            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                if step() {
                    self.word().compare_exchange(current, new, success, failure)
                } else {
                    Ok(current)
                }
            }

            /// Stores what `change` makes of the value, unless that is `None`.
            pub(crate) fn update(
                &self,
                mut change: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut found = self.load(SeqCst);
                while let Some(new) = change(found) {
                    match self.compare_exchange(found, new, SeqCst, SeqCst) {
                        Ok(_) => return Ok(found),
                        Err(now) => found = now,
                    }
                }
                Err(found)
            }

            pub(crate) fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                if step() { self.word().fetch_add(value, order) } else { 0 }
            }

            pub(crate) fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                if step() { self.word().fetch_or(value, order) } else { 0 }
            }

            pub(crate) fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                if step() { self.word().fetch_and(value, order) } else { 0 }
            }

            pub(crate) fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                if step() { self.word().fetch_max(value, order) } else { 0 }
            }

            /// The last value in the word's modification order, as the kernel
            /// finds it between the barriers of a futex call. Relaxed, for the
            /// kernel does not promise its caller more: to loom it is a
            /// compare-and-exchange that fails.
            pub(crate) fn latest(&self) -> $value {
                let known = self.word().compare_exchange(<$value>::MAX, <$value>::MAX, Relaxed, Relaxed);
                known.unwrap_or_else(|found| found)
            }
        }

        const _: () = assert!(size_of::<$name>() == size_of::<core::sync::atomic::$name>());
    )*};
}

atomics! {
    /// A 16-bit atomic.
    AtomicU16(u16), WORDS_U16;
    /// A 32-bit atomic, and so a futex word.
    AtomicU32(u32), WORDS_U32;
    /// A 64-bit atomic.
    AtomicU64(u64), WORDS_U64;
    /// A descriptor number.
    AtomicI32(i32), WORDS_I32;
}

thread_local! {
    static NOTES: RefCell<Words<loom::cell::UnsafeCell<u16>>> =
        RefCell::new(Words { execution: 0, atomics: HashMap::new() });
}

/// A number that belongs to whoever holds some guard. loom does not try what else
/// a load could return: it checks that no two accesses race, so that there is
/// nothing else. Each is a step all the same, at which its thread may die.
#[derive(FromBytes, Debug)]
#[repr(transparent)]
pub(crate) struct Note(u16);

impl Note {
    pub(crate) const fn new() -> Self {
        Self(0)
    }

    fn cell(&self) -> Rc<loom::cell::UnsafeCell<u16>> {
        let execution = machine(|machine| machine.execution);
        NOTES.with_borrow_mut(|notes| {
            if notes.execution != execution {
                notes.execution = execution;
                notes.atomics.clear();
            }
            let cell = || Rc::new(loom::cell::UnsafeCell::new(self.0));
            Rc::clone(notes.atomics.entry(ptr::from_ref(self).addr()).or_insert_with(cell))
        })
    }

    /// Makes the note known to loom.
    pub(crate) fn touch(&self) {
        self.cell();
    }

    pub(crate) fn get(&self) -> u16 {
        // SAFETY: loom would have ended the execution if somebody wrote.
        if step() { self.cell().with(|value| unsafe { *value }) } else { 0 }
    }

    pub(crate) fn set(&self, value: u16) {
        if step() {
            // SAFETY: loom would have ended the execution if somebody looked.
            self.cell().with_mut(|place| unsafe { *place = value });
        }
    }

    /// Nothing is known without the guard.
    pub(crate) fn peek(&self) -> u16 {
        0
    }
}

/// What the kernel knows by address.
impl AtomicU32 {
    fn futex_at(address: usize) -> Rc<loom::sync::atomic::AtomicU32> {
        Self::known_at(address).expect("a futex word that nobody has accessed")
    }

    /// [`Self::latest`] of the word at `address`.
    pub(super) fn latest_at(address: usize) -> u32 {
        let looked = Self::futex_at(address).compare_exchange(u32::MAX, u32::MAX, Relaxed, Relaxed);
        looked.unwrap_or_else(|found| found)
    }

    /// The kernel's compare-and-exchange, a full barrier.
    pub(super) fn mark_at(address: usize, found: u32, new: u32) -> Result<u32, u32> {
        Self::futex_at(address).compare_exchange(found, new, SeqCst, SeqCst)
    }
}
