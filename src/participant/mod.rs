//! Who takes part: threads with a row in a segment, and the two witnesses of
//! their deaths.
//!
//! Imports the floor below (`memory`) and the kernel; knows no lock.

pub(crate) mod attach;
pub(crate) mod current;
mod desk;
pub(crate) mod helper;
pub(crate) mod id;
mod keeper;
pub(crate) mod lease;
pub(crate) mod life;
pub(crate) mod table;
pub(crate) mod watch;
