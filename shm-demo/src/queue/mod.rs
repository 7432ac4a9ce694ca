//! `shm-demo queue`: a bounded queue between processes that are killed, and whether an
//! item was lost, came twice or came out of turn.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

pub(crate) mod cli;
mod member;
mod ring;

use crate::Result;
use crate::course::{Course, SPARE_ROWS};
use crate::outcome::{Account, End, Outcome};
use crate::trial::{self, Subject, Trial};
use cli::QueueArgs;
use heirlock::{Condvar, Mutex, MutexGuard, Options, Participant, Segment, SegmentError};
use ring::{Counts, MAX_CONSUMERS, Ring};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use zerocopy::FromBytes;

pub(crate) use member::run as join;

/// Which `Queue` this is: another number for every change of it.
const SCHEMA: u64 = 0x5155_4555_4501;

/// How long anybody sleeps without a look at the lock. An owner that dies before it
/// notifies has an heir who does; but an heir is whoever locks next, and if all
/// others sleep there is nobody.
const LOOK: Duration = Duration::from_secs(1);

/// What is in the segment. All bytes zero is the beginning.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Queue {
    ring: Mutex<Ring>,
    not_full: Condvar,
    not_empty: Condvar,
    course: Course,
    /// How many of the places are producers'. Never changes.
    producers: u64,
    /// Whether heirs repair. Never changes.
    repairs: u64,
    /// By consumer, how many of the items that it was given are done with.
    worked: [AtomicU64; MAX_CONSUMERS],
    again: AtomicU64,
    wrong: AtomicU64,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Ring> {
        let mut ring = self.ring.lock();
        self.see_to_the_dead(&mut ring);
        ring
    }

    /// Waits for a notification, or for long enough. To be called until what is waited
    /// for is there.
    fn wait(&self, condvar: &Condvar, ring: &mut MutexGuard<'_, Ring>) {
        if condvar.wait_for(ring, LOOK).timed_out() {
            ring.counts.timeouts += 1;
        }
        // The wait has acquired the lock anew, perhaps from a dead owner.
        self.see_to_the_dead(ring);
    }

    /// To be called whenever the lock was acquired: by `lock`, and by a wait.
    fn see_to_the_dead(&self, ring: &mut MutexGuard<'_, Ring>) {
        if MutexGuard::inherited(ring).is_none() {
            return;
        }
        ring.counts.inherited += 1;
        if self.repairs != 0 {
            ring.repair();
        }
        self.course.set_progress(ring.popped());
        // The dead owner may have pushed or popped, and died before it notified: those
        // who wait would sleep on. Whoever is notified for nothing waits again.
        self.not_full.notify_all();
        self.not_empty.notify_all();
    }
}

fn options() -> Options<'static, Queue> {
    Segment::options().schema(SCHEMA)
}

fn open(path: &Path) -> std::result::Result<Segment<Queue>, SegmentError> {
    options().open(path)
}

impl Subject for Segment<Queue> {
    fn course(&self) -> &Course {
        &self.course
    }

    fn owner(&self) -> Option<Participant> {
        heirlock::owner(&self.ring)
    }

    fn locks(&self) -> Vec<u64> {
        self.offset_of(&self.ring).into_iter().collect()
    }
}

pub(crate) fn run(args: &QueueArgs) -> Result<ExitCode> {
    let members = args.producers + args.consumers;
    let create = |path: &Path| {
        let lay_out = |queue: &mut Queue| {
            queue.ring.get_mut().capacity = args.capacity.into();
            queue.course.lay_out(members, args.items);
            queue.producers = args.producers.into();
            queue.repairs = u64::from(!args.without_repair);
        };
        options().capacity(members + SPARE_ROWS).init(lay_out).create(path)
    };
    trial::run(&args.trial, "queue", "queue-member", create, |queue, trial, end| {
        report(args, queue, trial, end)
    })
}

/// The result of a run; `shm-demo queue --help` says what the fields mean.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    outcome: Outcome,
    producers: u32,
    consumers: u32,
    capacity: u32,
    items: u64,
    pushed: u64,
    popped: u64,
    worked: u64,
    again: u64,
    misplaced: u64,
    wrong: u64,
    waits_for_room: u64,
    waits_for_items: u64,
    timeouts: u64,
    inherited: u64,
    repaired: u64,
}

/// What the ring says, now that nobody is left who could hold the lock.
fn report(args: &QueueArgs, queue: &Queue, mut trial: Trial, end: &End) -> Report {
    let (mut pushed, mut popped, mut counts) = (0, 0, Counts::default());
    if let Some(mut ring) = trial.final_lock(|time| queue.ring.try_lock_for(time)) {
        queue.see_to_the_dead(&mut ring);
        (pushed, popped, counts) = (ring.pushed(), ring.popped(), ring.counts.clone());
        if let End::Done = end {
            ring.audit(args.items).into_iter().for_each(|failure| trial.fail(failure));
            for (consumer, worked) in queue.worked.iter().enumerate() {
                let (worked, taken) = (worked.load(Relaxed), ring.consumer(consumer).taken);
                trial.must(
                    worked == taken,
                    format!("consumer {consumer} was given {taken} items and did {worked}"),
                );
            }
        }
    }
    let (wrong, deaths) = (queue.wrong.load(Relaxed), trial.deaths());
    trial.must(wrong == 0, format!("{wrong} items did not have their checksum"));
    let Counts { inherited, repaired, .. } = counts;
    if let End::Done = end {
        trial.must(inherited <= deaths, format!("{inherited} heirs of {deaths} dead"));
        trial.must(repaired <= inherited, format!("{repaired} repairs by {inherited} heirs"));
    }
    Report {
        outcome: trial.outcome(end),
        producers: args.producers,
        consumers: args.consumers,
        capacity: args.capacity,
        items: args.items,
        pushed,
        popped,
        worked: queue.worked.iter().map(|worked| worked.load(Relaxed)).sum(),
        again: queue.again.load(Relaxed),
        misplaced: counts.misplaced,
        wrong,
        waits_for_room: counts.waits_for_room,
        waits_for_items: counts.waits_for_items,
        timeouts: counts.timeouts,
        inherited,
        repaired,
    }
}

impl Account for Report {
    const HELD: &'static str =
        "everything: no item lost, none handed over twice, each producer's in order";

    fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    fn lines(&self) -> [(&'static str, String); 4] {
        [
            (
                "items",
                format!(
                    "{} pushed by {} processes, {} popped by {}, in {:.1} s",
                    self.pushed, self.producers, self.popped, self.consumers, self.outcome.seconds
                ),
            ),
            (
                "kills",
                format!(
                    "{}; {} hit the owner of the lock, of which {} left something to carry out",
                    self.outcome.kills(),
                    self.inherited,
                    self.repaired
                ),
            ),
            (
                "waits",
                format!(
                    "{} for room and {} for items; {} of them until the time was over",
                    self.waits_for_room, self.waits_for_items, self.timeouts
                ),
            ),
            ("in hand", format!("{} items of the dead, done by their successors", self.again)),
        ]
    }
}
