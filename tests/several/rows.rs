//! The rows that waits without a thread take, and give back.

use crate::kit::{Test, until};
use heirlock::select::lock_any;
use heirlock::{Mutex, ParticipantView, Segment, Snapshot, statistics};
use std::sync::mpsc;
use std::thread;

pub(crate) const TESTS: &[Test] = &[
    ("rows_that_are_kept_are_given_up_if_there_is_none_left", given_up),
    ("who_waits_for_many_once_keeps_few_rows", kept),
    ("one_barrier_is_for_all_waits", one_barrier),
];

type Locks = [Mutex<u64>; 16];

fn segment(capacity: u32) -> Segment<Locks> {
    Segment::options().capacity(capacity).anonymous().expect("a segment")
}

/// How many rows belong to somebody who lives.
fn alive(segment: &Segment<Locks>) -> usize {
    let snapshot = Snapshot::of(segment.as_fd(), &[]).expect("a snapshot");
    snapshot.participants.iter().filter(|view| view.alive).count()
}

/// Waits for any of the first `count`, which somebody else has, until it is handed one.
fn wait_for_any(segment: &Segment<Locks>, count: usize) {
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let holder = scope.spawn(move || {
            let held: Vec<_> = segment.iter().map(Mutex::lock).collect();
            tell.send(()).expect("tell");
            let waits = |lock: &Mutex<u64>| heirlock::queue(lock).is_some_and(|all| all.len() == 1);
            until("it waits for all", || segment[..count].iter().all(waits));
            drop(held);
        });
        told.recv().expect("be told");
        let some: Vec<&Mutex<u64>> = segment[..count].iter().collect();
        drop(lock_any(&some));
        // To its end: it has left the segment then.
        holder.join().expect("join");
    });
}

fn given_up() {
    // Its own, six on lease, and one of whoever comes.
    let segment = segment(8);
    let segment = &segment;
    segment.attach().expect("there is room");
    wait_for_any(segment, 6);
    assert_eq!(alive(segment), 7);
    let held = segment[0].lock();
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        scope.spawn(move || {
            segment.attach().expect("there is room for one");
            tell.send(()).expect("tell");
            ended.recv().expect("be told");
        });
        told.recv().expect("be told");
        assert_eq!(alive(segment), 8);
        // For the process, which has none yet; and once more, for a thread's.
        let future = pollster::block_on(segment[1].lock_async());
        assert!(alive(segment) < 8);
        drop(future);
        wait_for_any_of_free(segment);
        end.send(()).expect("tell");
    });
    drop(held);
}

/// In five rows, as one has its process.
fn wait_for_any_of_free(segment: &Segment<Locks>) {
    drop(lock_any(&[&segment[1]]));
    let guards: Vec<_> = segment[1..6].iter().map(|lock| lock_any(&[lock]).1).collect();
    assert_eq!(alive(segment), 8);
    drop(guards);
}

fn kept() {
    let segment = segment(64);
    segment.attach().expect("there is room");
    wait_for_any(&segment, 16);
    assert_eq!(alive(&segment), 1 + 8);
    // Again and again.
    wait_for_any(&segment, 16);
    wait_for_any(&segment, 16);
    assert_eq!(alive(&segment), 1 + 16);
}

fn one_barrier() {
    let segment = segment(64);
    let barriers = || {
        let snapshot = Snapshot::of(segment.as_fd(), &[]).expect("a snapshot");
        let of = |view: &ParticipantView| statistics(&segment, view.participant);
        snapshot.participants.iter().filter_map(of).map(|of| of.barriers).sum::<u64>()
    };
    let before = barriers();
    wait_for_any(&segment, 16);
    // Each look needs one at the most, the first one for all of them.
    let after = barriers() - before;
    assert!(after <= 2, "{after} barriers");
}
