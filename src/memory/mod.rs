//! The memory: the format of a segment, and how a file becomes a mapping.
//!
//! Nothing here knows what a participant does with its row, or what a lock is.

pub(crate) mod error;
pub(crate) mod layout;
pub(crate) mod map;
pub(crate) mod names;
pub(crate) mod registry;
