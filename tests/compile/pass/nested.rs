// A user's own types, by derives alone, without a dependency on zerocopy.
use heirlock::zerocopy::FromBytes;
use heirlock::{CancelToken, Condvar, Mutex, Segment};
use std::sync::atomic::{AtomicU32, AtomicU64};

#[derive(FromBytes, Clone, Copy)]
#[zerocopy(crate = "heirlock::zerocopy")]
#[repr(C)]
struct Point {
    x: f64,
    y: f64,
}

#[derive(FromBytes)]
#[zerocopy(crate = "heirlock::zerocopy")]
#[repr(C)]
struct Track {
    points: [Point; 16],
    used: u64,
}

#[derive(FromBytes)]
#[zerocopy(crate = "heirlock::zerocopy")]
#[repr(C)]
struct Worker {
    /// A `Participant`, by its bits.
    thread: AtomicU64,
    progress: Mutex<(u32, u32)>,
    changed: Condvar,
    stop: CancelToken,
    spare: AtomicU32,
}

#[derive(FromBytes)]
#[zerocopy(crate = "heirlock::zerocopy")]
#[repr(C)]
struct Shared {
    tracks: [Mutex<Track>; 4],
    workers: [Worker; 8],
    /// Locks in what a lock protects.
    nested: Mutex<[Mutex<u64>; 2]>,
    version: u64,
}

fn main() {
    let segment: Segment<Shared> =
        Segment::options().init(|shared: &mut Shared| shared.version = 3).anonymous().unwrap();
    let mut track = segment.tracks[1].lock();
    track.points[0] = Point { x: 1.0, y: 2.0 };
    track.used += 1;
    drop(track);
    segment.workers[7].progress.lock().1 += 1;
    segment.workers[7].changed.notify_all();
    *segment.nested.lock()[0].lock() += 1;
    let track = segment.tracks[1].lock();
    assert_eq!(track.used, 1);
    assert_eq!(track.points[0].x + track.points[0].y, 3.0);
    assert_eq!(segment.version, 3);
    assert!(!segment.workers[0].stop.is_cancelled());
}
