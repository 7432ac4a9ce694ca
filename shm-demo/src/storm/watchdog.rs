//! Who sleeps though nothing is left to wait for. It takes no lock and no row,
//! so it sees what is stuck while it is.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use super::ground::{Ground, LOCKS};
use heirlock::{LockView, Participant, ParticipantView, Segment, Snapshot};
use std::collections::BTreeMap;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a waiter may sleep on.
const LIMIT: Duration = Duration::from_secs(2);

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// How often it must have seen the same, besides: on a machine on which it is
/// seldom its turn, the others' turn is as seldom.
const LOOKS: u32 = 10;

/// How often it looks, a millisecond apart, whether a thread is asleep: one that
/// is between two sleeps because signals keep coming is found asleep soon.
const TRIES: u32 = 10;

/// A thread that sleeps in a wait for a lock that is free, or whose owner is dead,
/// or that is its own: all of it the same for as long as it is suspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Suspicion {
    participant: u64,
    lock: usize,
    /// The number of its wait.
    wait: u64,
    /// How often the lock has been acquired.
    progress: u64,
    owner: Option<u64>,
}

pub(crate) struct Watchdog<'a> {
    ground: &'a Segment<Ground>,
    offsets: [u64; LOCKS],
    lost: AtomicU64,
    over: AtomicBool,
}

/// Ends the watch when it is dropped.
pub(crate) struct Watch<'a>(&'a AtomicBool);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

impl<'a> Watchdog<'a> {
    pub(crate) fn new(ground: &'a Segment<Ground>) -> Self {
        let offset = |lock: usize| ground.offset_of(&ground.locks[lock]).expect("it is inside");
        Self {
            ground,
            offsets: std::array::from_fn(offset),
            lost: AtomicU64::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// What ends the watch when it is dropped.
    pub(crate) fn watch(&self) -> Watch<'_> {
        Watch(&self.over)
    }

    /// How many waiters were found to sleep on.
    pub(crate) fn lost_wakeups(&self) -> u64 {
        self.lost.load(SeqCst)
    }

    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        Snapshot::of(self.ground.as_fd(), &self.offsets).ok()
    }

    /// Watches until the watch is dropped, or somebody is found.
    pub(crate) fn run(&self) {
        let mut suspects: BTreeMap<Suspicion, (Instant, u32)> = BTreeMap::new();
        while !self.over.load(SeqCst) {
            sleep(INTERVAL);
            let Some((snapshot, seen)) = self.look() else { continue };
            let now = Instant::now();
            let again = |suspicion| {
                let (since, looks) = suspects.get(&suspicion).copied().unwrap_or((now, 0));
                (suspicion, (since, looks + 1))
            };
            suspects = seen.into_iter().map(again).collect();
            let lost = |(_, (since, looks)): &(&Suspicion, &(Instant, u32))| {
                since.elapsed() > LIMIT && *looks >= LOOKS
            };
            let found: Vec<_> = suspects.iter().filter(lost).map(|(found, _)| found).collect();
            if !found.is_empty() {
                eprintln!("shm-demo: asleep for {LIMIT:?}, and nothing left to wait for:");
                for found in &found {
                    let who = Participant::from_bits(found.participant);
                    let who = who.map_or_else(String::new, |who| who.to_string());
                    eprintln!("  participant {who}, lock {}", self.offsets[found.lock]);
                }
                eprint!("{snapshot}");
                self.lost.store(found.len() as u64, SeqCst);
                return;
            }
        }
    }

    /// Who is suspect now.
    fn look(&self) -> Option<(Snapshot, Vec<Suspicion>)> {
        let progress = || self.ground.progress.each_ref().map(|progress| progress.load(Relaxed));
        let before = progress();
        let snapshot = self.snapshot()?;
        // The parts of the snapshot of a lock that moved may not fit together.
        let after = progress();
        let still = (0..LOCKS).filter(|lock| before[*lock] == after[*lock]);
        let mut suspects = Vec::new();
        for lock in still {
            let Some(view) = snapshot.lock(self.offsets[lock]) else { continue };
            for thread in &snapshot.participants {
                let wait = self.ground.waits.get(thread.participant.row());
                let inside = wait % 2 == 1;
                if inside && ought_to_move(thread, view, &snapshot) && is_asleep(thread) {
                    suspects.push(Suspicion {
                        participant: thread.participant.to_bits(),
                        lock,
                        wait,
                        progress: before[lock],
                        owner: view.owner.map(Participant::to_bits),
                    });
                }
            }
        }
        Some((snapshot, suspects))
    }
}

/// Whether a thread that is inside a wait for the lock has something to do.
fn ought_to_move(thread: &ParticipantView, lock: &LockView, snapshot: &Snapshot) -> bool {
    let Some(wait) = &thread.busy_with else { return false };
    if !thread.alive || wait.lock != lock.offset {
        return false;
    }
    if lock.owner == Some(thread.participant) {
        return true;
    }
    if lock.owner.is_some() && lock.owner_alive {
        return false;
    }
    // Of those who wait for a free lock it is the first one's turn.
    let lives = |member: &Participant| {
        snapshot
            .participant(member.row())
            .is_some_and(|row| row.participant == *member && row.alive)
    };
    let first = lock.queue.iter().find(|member| lives(member));
    !wait.queued || first == Some(&thread.participant)
}

/// Whether the kernel says that the thread sleeps: it is not stopped, and not
/// waiting for a processor.
fn is_asleep(thread: &ParticipantView) -> bool {
    let path = format!("/proc/{}/task/{}/stat", thread.pid, thread.tid);
    (0..TRIES).any(|_| {
        let stat = std::fs::read_to_string(&path).unwrap_or_default();
        // Behind the name, which is in parentheses and may have some itself.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if state == Some('S') {
            return true;
        }
        sleep(Duration::from_millis(1));
        false
    })
}
