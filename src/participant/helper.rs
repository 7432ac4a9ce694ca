//! The process's helper: a thread, made at the first need, that never ends. It sleeps in
//! place of those who cannot: for futures, in a ring of its own, or where that is refused
//! on the words themselves.

#[cfg(all(feature = "io-uring", not(heirlock_loom)))]
use super::current::generation_of_process;
use super::desk::{Desk, Place};
use super::watch::{Over, Watch};
#[cfg(all(feature = "io-uring", not(heirlock_loom)))]
use crate::sys::atomic::{AtomicU32, Ordering};
use crate::sys::clock::Deadline;
use crate::sys::futex::{self, WAITV_MAX};
use std::sync::Arc;
use std::time::Duration;

#[cfg(all(feature = "io-uring", not(heirlock_loom)))]
mod ring;

/// For how long the helper sleeps if nothing is to be done; it is woken anyway.
const LONG: Duration = Duration::from_secs(3600);

/// How often it looks at words that it cannot all sleep on.
const CROWDED: Duration = Duration::from_millis(20);

/// Of how many waits it asks the kernel at once whether something has happened.
const AT_ONCE: usize = WAITV_MAX / 2;

static PLACE: Place<Arc<Watch>> = Place::new("heirlock-wait", work);

/// Has the helper watch.
pub(crate) fn watch(watch: Arc<Watch>) -> std::io::Result<()> {
    PLACE.desk()?.put(watch);
    Ok(())
}

/// The generation of the process whose helper has found that it has to do without a ring;
/// see `generation_of_process`.
#[cfg(all(feature = "io-uring", not(heirlock_loom)))]
static WITHOUT: AtomicU32 = AtomicU32::new(u32::MAX);

/// Whether the helper sleeps in a ring, or will, as far as is known.
pub(crate) fn has_ring() -> bool {
    // Relaxed: nothing is read because of it.
    #[cfg(all(feature = "io-uring", not(heirlock_loom)))]
    let has = crate::sys::uring::refused().is_none()
        && WITHOUT.load(Ordering::Relaxed) != generation_of_process();
    #[cfg(not(all(feature = "io-uring", not(heirlock_loom))))]
    let has = false;
    has
}

/// What the helper does, for as long as the process lives.
fn work(desk: &Desk<Arc<Watch>>) {
    #[cfg(all(feature = "io-uring", not(heirlock_loom)))]
    if has_ring() {
        // It returns if the kernel denies a ring all the same.
        ring::work(desk);
        WITHOUT.store(generation_of_process(), Ordering::Relaxed);
    }
    let mut watches: Vec<Arc<Watch>> = Vec::new();
    loop {
        let (jobs, rung) = desk.take();
        watches.extend(jobs);
        let changed: Vec<bool> = watches.chunks(AT_ONCE).map(any_changed).collect();
        let mut each = 0..;
        watches.retain(|watch| {
            let at = each.next().unwrap_or_default();
            let due = watch.is_due(changed[at / AT_ONCE]);
            if due {
                watch.end(Over::Returned);
            }
            !due
        });
        sleep(desk, rung, &watches);
    }
}

/// Whether something may have happened to one of those.
fn any_changed(watches: &[Arc<Watch>]) -> bool {
    let words = watches.iter().flat_map(|watch| watch.words()).copied();
    futex::has_changed(&words.collect::<Vec<_>>())
}

/// Sleeps until the bell rings, or something happens to the first of those that are
/// watched; and looks at the others now and then.
fn sleep(desk: &Desk<Arc<Watch>>, rung: u32, watches: &[Arc<Watch>]) {
    let count: usize = watches.iter().map(|watch| watch.words().len()).sum();
    let words = watches.iter().flat_map(|watch| watch.words()).copied();
    let words: Vec<(usize, u32)> = words.take(WAITV_MAX - 1).collect();
    let patience = if count > words.len() { CROWDED } else { LONG };
    let first = watches.iter().map(|watch| watch.until()).min();
    if let Some(until) = [first, Deadline::after(patience)].into_iter().flatten().min()
        && futex::wait_beside(desk.silent(rung), &words, until).is_err()
    {
        // The words of a segment that is closed, whose watch is, too; or no memory.
        std::thread::sleep(Duration::from_millis(1));
    }
}
