//! Nobody takes a lock past somebody who has waited for a millisecond, whoever
//! hammers on it.
//!
//! Each owner writes down whom it sees in the queue, in which wait, and when. Who
//! was seen at a moment has waited since that moment or longer; so it must not be
//! passed by anybody who comes later and gets the lock a millisecond after it.
#![allow(clippy::disallowed_types, reason = "the test's own books")]

use crate::kit::{HANG, Process, TempPath, Test, until};
use fastrand::Rng;
use heirlock::{Mutex, Participant, Policy, Segment};
use nix::sys::signal::Signal;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, FromZeros};

pub(crate) const TESTS: &[Test] =
    &[("nobody_is_passed_by_after_a_millisecond_however_many_hammer_on_the_lock", hammered)];

pub(crate) const ROLES: &[crate::kit::Role] = &[("presser", press)];

const PROCESSES: usize = 5;
const CAPACITY: usize = 8;
/// In nanoseconds, as all times here.
const MILLISECOND: u64 = 1_000_000;

/// How much there must have been to see.
const FLOORS: [(&str, u64); 3] = [("checks", 100), ("served late", 100), ("passed by early", 200)];

#[derive(FromBytes)]
#[repr(C)]
struct Arena {
    lock: Mutex<Books>,
    stop: AtomicU64,
    /// By row: how many waits its thread has begun and ended: odd in a wait.
    waits: [AtomicU64; CAPACITY + 1],
    tally: Tally,
}

/// What the lock protects.
#[derive(FromBytes)]
#[repr(C)]
struct Books {
    /// When the last owner was about to unlock.
    left: u64,
    /// By row.
    seen: [Seen; CAPACITY + 1],
    /// Who waited when the last owner looked last, in order: which wait of which
    /// row.
    queue: [Queued; CAPACITY],
}

/// The first time that a thread was seen in the queue in a wait.
#[derive(FromBytes, Clone, Copy)]
#[repr(C)]
struct Seen {
    wait: u64,
    at: u64,
}

#[derive(FromBytes, Clone, Copy, PartialEq)]
#[repr(C)]
struct Queued {
    row: u64,
    wait: u64,
}

#[derive(FromBytes)]
#[repr(C)]
struct Tally {
    acquired: AtomicU64,
    /// Acquisitions when somebody was known to have waited for a millisecond.
    checks: AtomicU64,
    /// Of these those by one of whom that was known.
    served_late: AtomicU64,
    /// Waiters passed by who were not known to have waited as long, and who were.
    passed_early: AtomicU64,
    passed_late: AtomicU64,
    /// Waiters passed by others that were seen behind them.
    overtaken: AtomicU64,
    longest: AtomicU64,
}

fn nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn hammered() {
    let path = TempPath::new();
    let init = |arena: &mut Arena| {
        arena.lock = Mutex::with_policy(Books::new_zeroed(), Policy::Throughput);
    };
    let arena: Segment<Arena> =
        Segment::options().capacity(CAPACITY as u32).init(init).create(&path).expect("create");
    let path = path.to_str().expect("a printable path");
    let start = Instant::now();
    let crew: Vec<Process> = (0..PROCESSES).map(|_| Process::spawn("presser", &[path])).collect();
    let tally = &arena.tally;
    let counts =
        || [&tally.checks, &tally.served_late, &tally.passed_early].map(|n| n.load(SeqCst));
    while start.elapsed() < Duration::from_secs(3)
        || start.elapsed() < HANG && counts().iter().zip(FLOORS).any(|(n, (_, floor))| *n < floor)
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    arena.stop.store(1, SeqCst);
    for mut process in crew {
        until("a process comes to its end", || process.has_ended());
        assert!(process.succeeds());
    }
    for (what, count) in [
        ("acquired", &tally.acquired),
        ("known to wait for a millisecond", &tally.checks),
        ("  served then", &tally.served_late),
        ("  passed by then", &tally.passed_late),
        ("passed by before", &tally.passed_early),
        ("overtaken", &tally.overtaken),
        ("longest known wait, ns", &tally.longest),
    ] {
        eprintln!("{what:<32} {}", count.load(SeqCst));
    }
    assert_eq!(tally.passed_late.load(SeqCst), 0, "passed by after a millisecond");
    assert_eq!(tally.overtaken.load(SeqCst), 0, "overtaken by those behind");
    for (count, (what, floor)) in counts().into_iter().zip(FLOORS) {
        assert!(count >= floor, "{what}: {count}, less than {floor}");
    }
}

/// `presser PATH`: locks and unlocks until it is told to end.
fn press(args: &[String]) {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("prctl");
    let arena = Segment::<Arena>::open(&args[0]).expect("open");
    let me = arena.attach().expect("attach");
    let mut rng = Rng::new();
    while arena.stop.load(SeqCst) == 0 {
        // Some come again at once, which gets them past the others.
        for _ in 0..rng.u32(1..12) {
            visit(&arena, me, Duration::from_micros(rng.u64(..300)));
        }
        if rng.u32(..4) == 0 {
            std::thread::sleep(Duration::from_micros(rng.u64(..500)));
        }
    }
}

fn visit(arena: &Arena, me: Participant, hold: Duration) {
    let own = &arena.waits[me.row() as usize];
    let wait = own.load(SeqCst) + 1;
    own.store(wait, SeqCst);
    let came = nanos();
    let mut books = arena.lock.lock();
    check(arena, &books, Queued { row: me.row().into(), wait }, came);
    own.store(wait + 1, SeqCst);
    look(arena, &mut books);
    let start = Instant::now();
    while start.elapsed() < hold {
        std::hint::spin_loop();
    }
    look(arena, &mut books);
    books.left = nanos();
}

/// Whether the new owner, which came at `came`, has passed anybody whom it should
/// not have.
fn check(arena: &Arena, books: &Books, me: Queued, came: u64) {
    let tally = &arena.tally;
    let add = |count: &AtomicU64| count.fetch_add(1, SeqCst);
    add(&tally.acquired);
    // It did not have the lock before.
    let acquired = came.max(books.left);
    let mut known = false;
    for (row, seen) in (0..).zip(&books.seen) {
        let still_waits = seen.wait % 2 == 1 && arena.waits[row].load(SeqCst) == seen.wait;
        if !still_waits {
            continue;
        }
        let is_mine = me == Queued { row: row as u64, wait: seen.wait };
        let waited = acquired.saturating_sub(seen.at);
        let long = waited >= MILLISECOND;
        known |= long;
        if is_mine {
            if long {
                add(&tally.served_late);
            }
            tally.longest.fetch_max(waited, SeqCst);
        } else if seen.at <= came {
            add(if long { &tally.passed_late } else { &tally.passed_early });
        }
    }
    if known {
        add(&tally.checks);
    }
    let Some(place) = books.queue.iter().position(|queued| *queued == me) else { return };
    for ahead in &books.queue[..place] {
        if ahead.wait % 2 == 1 && arena.waits[ahead.row as usize].load(SeqCst) == ahead.wait {
            add(&tally.overtaken);
        }
    }
}

/// Writes down who waits.
fn look(arena: &Arena, books: &mut Books) {
    // Who is in the same wait before and after the look was in that wait when it
    // was seen in the queue.
    let waits = || arena.waits.each_ref().map(|wait| wait.load(SeqCst));
    let before = waits();
    let Some(queue) = heirlock::queue(&arena.lock) else { return };
    let at = nanos();
    let after = waits();
    books.queue = [Queued { row: 0, wait: 0 }; CAPACITY];
    for (entry, waiter) in books.queue.iter_mut().zip(queue) {
        let row = waiter.row() as usize;
        let wait = before[row];
        if wait != after[row] || wait % 2 == 0 {
            continue;
        }
        *entry = Queued { row: row as u64, wait };
        if books.seen[row].wait != wait {
            books.seen[row] = Seen { wait, at };
        }
    }
}
