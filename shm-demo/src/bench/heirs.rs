//! Many locks of one owner, and those who inherit them.

use super::arena::now;
use super::pin;
use super::solo::say;
use crate::Result;
use heirlock::{Mutex, MutexGuard, Segment, SegmentError};
use std::path::Path;
use std::thread::{self, sleep};
use std::time::Duration;

/// How many locks there are.
pub(crate) const LOCKS: usize = 1000;

/// More rows than locks.
const SPARE_ROWS: u32 = 100;

/// Of threads of which there are many.
const STACK: usize = 64 << 10;

/// What is in the segment.
pub(crate) type Locks = [Mutex<u64>; LOCKS];

pub(crate) fn create(path: &Path) -> std::result::Result<Segment<Locks>, SegmentError> {
    Segment::options().capacity(LOCKS as u32 + SPARE_ROWS).create(path)
}

/// Takes the first locks, says so, and keeps them.
pub(super) fn own(path: &Path, locks: usize) -> Result<()> {
    pin::to_cpu(pin::cpus()[0]);
    let segment: Segment<Locks> = Segment::open(path)?;
    let _guards: Vec<_> = segment[..locks].iter().map(Mutex::lock).collect();
    say(&[locks as f64])?;
    loop {
        sleep(Duration::from_secs(3600));
    }
}

/// Inherits the first locks, and says when it had them all.
pub(super) fn inherit(path: &Path, locks: usize, threads: usize) -> Result<()> {
    let segment: Segment<Locks> = Segment::open(path)?;
    let cpus = pin::cpus();
    let take = |locks: &[Mutex<u64>]| {
        // The CPU that is not the owner's.
        pin::to_cpu(cpus[cpus.len() - 1]);
        for lock in locks {
            assert!(MutexGuard::inherited(&lock.lock()).is_some(), "its owner was killed");
        }
        now()
    };
    let had = thread::scope(|scope| {
        let mut heirs = Vec::new();
        for part in segment[..locks].chunks(locks.div_ceil(threads)) {
            heirs
                .push(thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || take(part))?);
        }
        let ends = heirs.into_iter().map(|heir| heir.join().expect("it does not panic"));
        std::io::Result::Ok(ends.max())
    })?;
    say(&[had.expect("there is an heir") as f64])
}
