//! The order of plain writes, for what must be mended after a kill.

use std::hint::black_box;

/// Makes the compiler do all writes to `value` before this point before all behind
/// it, by claiming to look at them.
///
/// That is enough against a kill: a killed thread has made its writes up to some
/// instruction, and all of these are in memory before the kernel calls it dead.
pub(crate) fn settle<T>(value: &mut T) {
    black_box(value);
}
