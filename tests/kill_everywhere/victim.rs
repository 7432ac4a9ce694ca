//! The part of the one who is killed, or gets a signal.
#![allow(unsafe_code)]
#![allow(clippy::disallowed_types, reason = "what a victim's own signal handler writes")]

use crate::actor::open_or_create;
use crate::kit::Board;
use crate::scenario::Op;
use crate::trace::{SIGNAL, Traced, marker};
use crate::waits;
use heirlock::{CancelToken, Cancelled, Interrupted, MutexGuard, Segment};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
use std::hint::black_box;
use std::mem::forget;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A deadline that is later than anything the victim does before it sleeps,
/// and earlier than a sleeper's heartbeat.
const TIMEOUT: Duration = Duration::from_millis(800);

/// What the handler cancels: each victim has a copy of its own.
static STOP: CancelToken = CancelToken::new();

/// How often the handler ran.
static HANDLED: AtomicU64 = AtomicU64::new(0);

/// How the operation ended: an [`Outcome`].
static OUTCOME: AtomicU64 = AtomicU64::new(0);

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Without a lock, as was intended.
    Done,
    Locked,
    /// Busy, or timed out.
    Nothing,
    Cancelled,
    Interrupted,
}

impl Outcome {
    const ALL: [Self; 5] =
        [Self::Done, Self::Locked, Self::Nothing, Self::Cancelled, Self::Interrupted];

    /// That of a victim that is at the marker behind its end marker, and how
    /// often its handler ran.
    pub(crate) fn of(victim: &Traced) -> (Option<Self>, i64) {
        let outcome = victim.peek(&OUTCOME);
        (Self::ALL.into_iter().find(|known| *known as i64 == outcome), victim.peek(&HANDLED))
    }
}

extern "C" fn handle(_: i32) {
    STOP.canceller().cancel();
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

/// Has this process, and those that are forked from it, handle [`SIGNAL`].
pub(crate) fn handle_signals(restart: bool) {
    let flags = if restart { SaFlags::SA_RESTART } else { SaFlags::empty() };
    let action = SigAction::new(SigHandler::Handler(handle), flags, SigSet::empty());
    // SAFETY: the handler cancels, which is async-signal-safe, and adds to an
    // atomic number.
    unsafe { sigaction(SIGNAL, &action) }.expect("sigaction");
}

/// The victim's part: prepares itself, and does its operation between two
/// markers. In `segment`, or in its own at `path`. Who lives on says how it
/// ended, and unlocks.
pub(crate) fn play(op: Op, segment: &Segment<Board>, path: &Path) {
    let lock = &segment.locks[0];
    match op {
        Op::Lock => {
            segment.attach().expect("attach");
            marker();
            let guard = black_box(lock.lock());
            marker();
            live_on(Outcome::Locked, Some(guard));
        }
        Op::Timed => {
            segment.attach().expect("attach");
            marker();
            let guard = black_box(lock.try_lock_for(TIMEOUT));
            marker();
            live_on(Outcome::Nothing, guard);
        }
        Op::Late => {
            segment.attach().expect("attach");
            marker();
            let guard = black_box(lock.try_lock_for(Duration::from_nanos(1)));
            marker();
            live_on(Outcome::Nothing, guard);
        }
        Op::Try => {
            segment.attach().expect("attach");
            marker();
            let guard = black_box(lock.try_lock());
            marker();
            live_on(Outcome::Nothing, guard);
        }
        Op::Cancellable => {
            segment.attach().expect("attach");
            marker();
            let guard = black_box(lock.lock_cancellable(&STOP));
            marker();
            assert!(!matches!(guard, Err(Cancelled::Unusable(_))), "{guard:?}");
            live_on(Outcome::Cancelled, guard.ok());
        }
        Op::Interruptible => {
            segment.attach().expect("attach");
            marker();
            let guard = black_box(lock.lock_interruptible());
            marker();
            assert!(!matches!(guard, Err(Interrupted::Unusable(_))), "{guard:?}");
            live_on(Outcome::Interrupted, guard.ok());
        }
        Op::Unlock => {
            let guard = lock.lock();
            marker();
            drop(black_box(guard));
            marker();
            live_on(Outcome::Done, None);
        }
        Op::Waits(op) => waits::play(op, segment),
        Op::Attach => {
            marker();
            let me = black_box(segment.attach());
            marker();
            me.expect("attach");
            live_on(Outcome::Done, None);
        }
        Op::OpenOrCreate => {
            marker();
            let own = black_box(open_or_create(path));
            marker();
            let own = own.expect("open or create");
            live_on(Outcome::Done, None);
            forget(own);
        }
        Op::Open => {
            marker();
            let own = black_box(Segment::<Board>::open(path));
            marker();
            let own = own.expect("open");
            live_on(Outcome::Done, None);
            forget(own);
        }
        Op::Join => {
            let own = Segment::<Board>::open(path).expect("open");
            marker();
            let me = black_box(own.attach());
            marker();
            me.expect("attach");
            live_on(Outcome::Done, None);
            forget(own);
        }
        Op::OpenAndJoin => {
            marker();
            let own = black_box(open_or_create(path));
            let me = black_box(own.as_ref().map(|own| own.attach().is_ok()).ok());
            marker();
            assert_eq!(me, Some(true), "open and join: {own:?}");
            forget(own);
        }
        Op::Close => {
            let own = Segment::<Board>::open(path).expect("open");
            own.attach().expect("attach");
            marker();
            drop(black_box(own));
            marker();
            live_on(Outcome::Done, None);
        }
    }
}

/// `without` is how it ended if there is no guard.
pub(crate) fn live_on(without: Outcome, guard: Option<MutexGuard<'_, u64>>) {
    let outcome = if guard.is_some() { Outcome::Locked } else { without };
    live_on_with(outcome, guard);
}

/// Says how the operation ended, and then unlocks, between two more markers.
pub(crate) fn live_on_with(outcome: Outcome, guard: Option<MutexGuard<'_, u64>>) {
    OUTCOME.store(outcome as u64, Ordering::Relaxed);
    marker();
    drop(guard);
    marker();
}
