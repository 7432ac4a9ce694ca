//! Counting for people. Apart from the atomics, because loom is not to know: no
//! step of the algorithm depends on a count.
#![allow(clippy::disallowed_types, reason = "not one of the algorithm's words")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use zerocopy::FromBytes;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident($atomic:ident, $value:ty);)*) => {$(
        $(#[$doc])*
        #[derive(FromBytes, Debug)]
        #[repr(transparent)]
        pub(crate) struct $name($atomic);

        impl $name {
            /// One more. By one thread at a time.
            pub(crate) fn add_one(&self) {
                // Relaxed, and not one step: nobody else writes.
                self.0.store(self.get().wrapping_add(1), Ordering::Relaxed);
            }

            /// From the start again.
            pub(crate) fn reset(&self) {
                // Release: who finds this 0, and then has an acquire fence, sees what
                // its writer did before.
                self.0.store(0, Ordering::Release);
            }

            pub(crate) fn get(&self) -> $value {
                self.0.load(Ordering::Relaxed)
            }
        }
    )*};
}

counters! {
    /// How often its one writer did something. Others may read it.
    Counter(AtomicU64, u64);
    /// The same for what is rare: it starts again after 2^32.
    Counter32(AtomicU32, u32);
}
