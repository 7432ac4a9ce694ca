//! What each process of `queue` does: push or pop, until all is done or it is killed.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use super::ring::{Consumer, MAX_CONSUMERS, MAX_PRODUCERS};
use super::{Queue, open};
use crate::Result;
use crate::cli::WorkerArgs;
use crate::crew::{enlist, set_name};
use crate::settle::pace;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread::sleep;
use std::time::Duration;

/// How often a producer that may not go on looks whether it may.
const PAUSE: Duration = Duration::from_micros(200);

pub(crate) fn run(args: &WorkerArgs) -> Result<()> {
    let _signals = enlist(args.parent, "queue")?;
    let segment = open(&args.path)?;
    let producers = (segment.producers as usize).min(MAX_PRODUCERS);
    segment.course.take_place(args.slot, segment.attach()?, producers + MAX_CONSUMERS)?;
    match args.slot.checked_sub(producers) {
        None => {
            set_name(format!("producer-{}", args.slot))?;
            produce(&segment, args.slot);
        }
        Some(consumer) => {
            set_name(format!("consumer-{consumer}"))?;
            consume(&segment, consumer);
        }
    }
    Ok(())
}

fn produce(queue: &Queue, producer: usize) {
    let course = &queue.course;
    while !course.is_complete() {
        let mut ring = queue.lock();
        while ring.is_full() && ring.pushed() < course.target() {
            ring.counts.waits_for_room += 1;
            queue.wait(&queue.not_full, &mut ring);
        }
        if ring.pushed() < course.limit() {
            ring.push(producer, &pace);
            // With the lock held: if this process is killed before it has notified, there
            // is an heir, and it does.
            queue.not_empty.notify_one();
            if ring.pushed() >= course.target() {
                // Nobody needs room any more.
                queue.not_full.notify_all();
            }
        } else {
            // All are pushed, or a kill is due first.
            drop(ring);
            sleep(PAUSE);
        }
    }
}

fn consume(queue: &Queue, consumer: usize) {
    let course = &queue.course;
    // Whoever had this place before may have been killed with an item in hand. It is
    // this consumer's now: nobody else gets it.
    let before = queue.lock().consumer(consumer);
    if queue.worked[consumer].load(Acquire) < before.taken {
        work(queue, consumer, &before);
        queue.again.fetch_add(1, Relaxed);
    }
    loop {
        let mut ring = queue.lock();
        while ring.is_empty() && ring.popped() < course.target() {
            ring.counts.waits_for_items += 1;
            queue.wait(&queue.not_empty, &mut ring);
        }
        if ring.is_empty() {
            // The last one was popped.
            return;
        }
        let given = ring.pop(consumer, &pace);
        course.set_progress(ring.popped());
        queue.not_full.notify_one();
        if ring.popped() >= course.target() {
            // Nobody needs an item any more.
            queue.not_empty.notify_all();
        }
        drop(ring);
        work(queue, consumer, &given);
    }
}

/// What is done with an item, outside of the lock; and noted when it is done.
fn work(queue: &Queue, consumer: usize, given: &Consumer) {
    if !given.in_hand.is_whole() {
        queue.wrong.fetch_add(1, Relaxed);
    }
    pace();
    queue.worked[consumer].store(given.taken, Release);
}
