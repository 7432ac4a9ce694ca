//! The facade for atomics: the rest of the crate names no `core::sync::atomic`
//! type (`clippy.toml` makes that an error), so that one edit here puts a model
//! checker's atomics, or a counter, under the real code.
#![allow(clippy::disallowed_types, reason = "this is the one place")]

use core::sync::atomic;
pub(crate) use core::sync::atomic::{Ordering, compiler_fence, fence};
use zerocopy::FromBytes;

macro_rules! atomics {
    ($($(#[$doc:meta])* $name:ident($value:ty);)*) => {$(
        $(#[$doc])*
        #[derive(FromBytes, Debug)]
        #[repr(transparent)]
        pub(crate) struct $name(atomic::$name);

        #[allow(dead_code, reason = "not each width needs each operation")]
        impl $name {
            pub(crate) const fn new(value: $value) -> Self {
                Self(atomic::$name::new(value))
            }

            #[inline(always)]
            pub(crate) fn load(&self, order: Ordering) -> $value {
                self.0.load(order)
            }

            #[inline(always)]
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                self.0.store(value, order);
            }

            #[inline(always)]
            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                self.0.swap(value, order)
            }

            #[inline(always)]
            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.0.compare_exchange(current, new, success, failure)
            }

            /// Stores what `change` makes of the value, unless that is `None`.
            pub(crate) fn update(
                &self,
                mut change: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, &mut change)
            }

            pub(crate) fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                self.0.fetch_add(value, order)
            }

            pub(crate) fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                self.0.fetch_or(value, order)
            }

            pub(crate) fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                self.0.fetch_and(value, order)
            }

            pub(crate) fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                self.0.fetch_max(value, order)
            }
        }
    )*};
}

atomics! {
    /// A 16-bit atomic.
    AtomicU16(u16);
    /// A 32-bit atomic, and so a futex word.
    AtomicU32(u32);
    /// A 64-bit atomic.
    AtomicU64(u64);
    /// A descriptor number.
    AtomicI32(i32);
}

/// A 16-bit number that belongs to whoever holds some guard, which orders the
/// accesses. Anybody may peek.
#[derive(FromBytes, Debug)]
#[repr(transparent)]
pub(crate) struct Note(AtomicU16);

impl Note {
    pub(crate) const fn new() -> Self {
        Self(AtomicU16::new(0))
    }

    /// With the guard held. (Relaxed, as in `set`: see above.)
    #[inline(always)]
    pub(crate) fn get(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }

    /// With the guard held.
    #[inline(always)]
    pub(crate) fn set(&self, value: u16) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Without the guard: it may change at any moment.
    #[inline(always)]
    pub(crate) fn peek(&self) -> u16 {
        self.0.load(Ordering::SeqCst)
    }
}

impl AtomicU32 {
    /// The word as the kernel's interfaces take it.
    pub(super) fn word(&self) -> &atomic::AtomicU32 {
        &self.0
    }
}
