//! The asymmetric fence, which loom does not know: here every thread executes a
//! whole one. That it may be left to the other side is proved by the model, which
//! has store buffers (`tests/model`).

use super::atomic::{Ordering, fence};

pub(crate) fn register() -> bool {
    true
}

pub(crate) fn heavy() -> bool {
    fence(Ordering::SeqCst);
    true
}

pub(crate) fn light() {
    fence(Ordering::SeqCst);
}
