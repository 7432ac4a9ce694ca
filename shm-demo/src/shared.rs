//! The segment that the processes of `counter` share.

use crate::course::{Course, SPARE_ROWS};
use crate::ledger::Ledger;
use crate::served::Served;
use heirlock::{Mutex, Options, Segment, SegmentError};
use std::path::Path;
use zerocopy::FromBytes;

/// Which `Shared` this is: another number for every change of it.
const SCHEMA: u64 = 1;

/// What is in the segment: a lock with what it protects, and what parent and
/// workers tell each other without it.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Shared {
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) course: Course,
    pub(crate) served: Served,
}

fn options() -> Options<'static, Shared> {
    Segment::options().schema(SCHEMA)
}

pub(crate) fn create(
    path: &Path,
    workers: u32,
    target: u64,
) -> Result<Segment<Shared>, SegmentError> {
    options()
        .capacity(workers + SPARE_ROWS)
        .init(move |shared: &mut Shared| shared.course.lay_out(workers, target))
        .create(path)
}

pub(crate) fn open(path: &Path) -> Result<Segment<Shared>, SegmentError> {
    options().open(path)
}
