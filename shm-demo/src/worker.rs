//! What each worker process does: lock, count, unlock, until it is done or
//! killed.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use crate::Result;
use crate::cli::WorkerArgs;
use crate::ledger::Entry;
use crate::shared;
use crate::signals::Signals;
use heirlock::{MutexGuard, Participant};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use std::ffi::CString;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a worker looks whether the others are there.
const PAUSE: Duration = Duration::from_micros(100);

pub(crate) fn run(args: &WorkerArgs) -> Result<()> {
    // The parent can be killed, too, and then nobody else would end this.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if std::os::unix::process::parent_id() != args.parent {
        return Err("a worker is started by `shm-demo counter` only; its parent is gone".into());
    }
    // Ctrl-C goes to the whole group. The parent sees to the end of it.
    let _signals = Signals::watch()?;
    // So that `inspect` shows who is who.
    prctl::set_name(&CString::new(format!("worker-{}", args.slot))?)?;

    let segment = shared::open(&args.path)?;
    let shared = &*segment;
    let me = segment.attach()?;
    shared.take_place(args.slot, me);
    // So that small counts are shared, too.
    while !shared.all_there() {
        sleep(PAUSE);
    }

    let (target, alone) = (shared.target(), shared.workers() == 1);
    let alive = |who| shared::alive(&segment, who);
    loop {
        let before = shared.waiting();
        let start = Instant::now();
        let mut ledger = shared.ledger.lock();
        let entry = Entry {
            me: me.to_bits(),
            inherited: MutexGuard::inherited(&ledger).is_some(),
            waited: start.elapsed(),
            passed_over: shared.is_passed_over(&before, alive),
            alive: &alive,
        };
        shared.count_served(args.slot);
        ledger.enter(&entry);
        let may_count = ledger.done() < shared.limit.load(Relaxed).min(target);
        if may_count {
            ledger.increment(args.slot);
            shared.progress.store(ledger.done(), Relaxed);
        }
        // Small counts can be done before anybody has ever waited. At the
        // limit, too, the workers go on to queue, so that kills meet a lock
        // that is busy.
        let is_complete = ledger.done() >= target && (alone || ledger.book.order_checked > 0);
        let queue = heirlock::queue(&shared.ledger)
            .map(|queue| queue.into_iter().map(Participant::to_bits).collect::<Vec<_>>());
        ledger.leave(&entry, queue.as_deref());
        drop(ledger);
        if is_complete {
            return Ok(());
        }
    }
}
