//! What each worker process does: lock, count, unlock, until it is done or
//! killed.

use crate::Result;
use crate::cli::WorkerArgs;
use crate::course::MAX_WORKERS;
use crate::crew::{enlist, set_name};
use crate::ledger::Entry;
use crate::served::alive;
use crate::shared;
use heirlock::{MutexGuard, Participant};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a worker looks whether the others are there.
const PAUSE: Duration = Duration::from_micros(100);

pub(crate) fn run(args: &WorkerArgs) -> Result<()> {
    let _signals = enlist(args.parent, "counter")?;
    set_name(format!("worker-{}", args.slot))?;

    let segment = shared::open(&args.path)?;
    let shared = &*segment;
    let course = &shared.course;
    let me = segment.attach()?;
    course.take_place(args.slot, me, MAX_WORKERS)?;
    // So that small counts are shared, too.
    while !course.all_there() {
        sleep(PAUSE);
    }

    let (target, alone) = (course.target(), course.workers() == 1);
    let alive = |who| alive(&segment, who);
    loop {
        let before = shared.served.waiting(&shared.ledger, course);
        let start = Instant::now();
        let mut ledger = shared.ledger.lock();
        let entry = Entry {
            me: me.to_bits(),
            inherited: MutexGuard::inherited(&ledger).is_some(),
            waited: start.elapsed(),
            passed_over: shared.served.is_passed_over(&before, alive),
            alive: &alive,
        };
        shared.served.count(args.slot);
        ledger.enter(&entry);
        let may_count = ledger.done() < course.limit();
        if may_count {
            ledger.increment(args.slot);
            course.set_progress(ledger.done());
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
