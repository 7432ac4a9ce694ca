//! What locks, threads and segments take up.

use super::figures::{Item, Target};
use super::stage::Stage;
use crate::Result;
use crate::segment_file::SegmentFile;
use heirlock::{Mutex, Segment};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

/// How many threads take part.
const THREADS: usize = 50;

/// What a file takes up in bytes.
fn taken(path: &Path) -> Result<f64> {
    /// The unit in which files' blocks are counted.
    const BLOCK: u64 = 512;
    Ok((std::fs::metadata(path)?.blocks() * BLOCK) as f64)
}

pub(crate) fn measure(stage: &Stage) -> Result<Item> {
    let mut item = Item::new(
        "memory",
        "The size of a lock without its data; what a segment's file takes up in memory, as the \
         file system counts it, and how much more for each thread that takes part (which has a \
         page of private memory as well).",
    );
    stage.go_on()?;
    let ours = size_of::<Mutex<u64>>() - size_of::<u64>();
    let pthread = size_of::<libc::pthread_mutex_t>();
    let sizes = [
        ("heirlock", ours),
        ("pthread_mutex_t", pthread),
        ("std", size_of::<std::sync::Mutex<()>>()),
        ("parking_lot", size_of::<parking_lot::Mutex<()>>()),
    ];
    for (name, size) in sizes {
        item.figure("bytes", "a lock", name, &[size as f64]);
    }
    item.ratio("", "heirlock / pthread_mutex_t", (&[ours as f64], &[pthread as f64]), {
        Target::AtMost(0.5)
    });
    for capacity in [64, 1000, 60_000] {
        let create = |path: &Path| Segment::<Mutex<u64>>::options().capacity(capacity).create(path);
        let (file, segment) = SegmentFile::create(None, "bench", create)?;
        let idle = taken(&file.0)?;
        let (joined, seen) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
        let with_threads = thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let joins = segment.attach();
                    joined.wait();
                    seen.wait();
                    joins.map(drop).expect("there is a row for each");
                });
            }
            joined.wait();
            let taken = taken(&file.0);
            seen.wait();
            taken
        })?;
        let case = format!("capacity {capacity}");
        item.figure("a segment's file (bytes)", &case, "idle", &[idle]);
        let each = (with_threads - idle) / THREADS as f64;
        item.figure("a segment's file (bytes)", &case, "for each thread", &[each]);
    }
    item.notes.push(
        "parking_lot has a table of waiting threads besides, one for the process; std and \
         parking_lot work within one process only."
            .into(),
    );
    Ok(item)
}
