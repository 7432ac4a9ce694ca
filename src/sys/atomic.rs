//! The facade for atomics: the rest of the crate names no `core::sync::atomic`
//! (`clippy.toml` makes that an error), so that one edit here puts a model
//! checker's atomics under the real code.
#![allow(clippy::disallowed_types)]

pub(crate) use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering, compiler_fence, fence,
};
