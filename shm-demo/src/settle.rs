//! The order of plain writes, for what must be mended after a kill.

use std::hint::black_box;
use std::thread::sleep;
use std::time::Duration;

/// One in so many steps of a change is followed by a short sleep.
const LINGERS: u32 = 40;

/// Makes the compiler do all writes to `value` before this point before all behind
/// it, by claiming to look at them.
///
/// That is enough against a kill: a killed thread has made its writes up to some
/// instruction, and all of these are in memory before the kernel calls it dead.
pub(crate) fn settle<T>(value: &mut T) {
    black_box(value);
}

/// What a change may do between two of its writes: so that there are changes half done
/// for long enough to be hit by a kill.
pub(crate) fn pace() {
    if fastrand::u32(..LINGERS) == 0 {
        sleep(Duration::from_micros(fastrand::u64(20..200)));
    }
}
