//! The process's helper: a thread, made at the first need, that never ends.
//!
//! The rows that outlive threads are on its robust list, so they die with the process.
//! And it sleeps in place of those who cannot: for futures, in a ring of its own, or
//! where that is refused on the words themselves.
#![allow(unsafe_code)]

use super::attach::{self, AttachError, Attachment, Reclaim};
use super::current::generation_of_process;
use super::watch::Watch;
use crate::memory::map::Mapping;
use crate::memory::registry;
use crate::sys::atomic::{AtomicU32, Ordering};
use crate::sys::clock::Deadline;
use crate::sys::futex::{self, WAITV_MAX};
use crate::sys::process;
use core::cell::Cell;
use core::ptr::NonNull;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

#[cfg(all(feature = "io-uring", not(heirlock_loom)))]
mod ring;

/// For how long the helper sleeps if nothing is to be done; it is woken anyway.
const LONG: Duration = Duration::from_secs(3600);

/// How often it looks at words that it cannot all sleep on.
const CROWDED: Duration = Duration::from_millis(20);

/// Of how many waits it asks the kernel at once whether something has happened.
const AT_ONCE: usize = WAITV_MAX / 2;

/// What passes to or from the helper. It is used by one thread at a time.
struct Handed<T>(T);

// SAFETY: for what is handed over here: an attachment that nobody else has, whose robust
// list is the helper's own, and which only the helper changes.
unsafe impl<T> Send for Handed<T> {}

type Answer = Handed<Result<Box<Attachment>, AttachError>>;

enum Job {
    Attach(Arc<Mapping>, Reclaim, SyncSender<Answer>),
    Detach(Handed<NonNull<Attachment>>),
    Watch(Arc<Watch>),
}

/// What is to be done, and a word that changes with it.
struct Desk {
    jobs: Mutex<Vec<Job>>,
    bell: AtomicU32,
}

impl Desk {
    fn put(&self, job: Job) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push(job);
        // Release pairs with the Acquire in `take`: who sees it finds the job.
        self.bell.fetch_add(1, Ordering::Release);
        futex::wake_all(&self.bell);
    }

    /// The jobs, and the value of the bell as long as there are no others.
    fn take(&self) -> (Vec<Job>, u32) {
        let rung = self.bell.load(Ordering::Acquire);
        (std::mem::take(&mut *self.jobs.lock().unwrap_or_else(PoisonError::into_inner)), rung)
    }
}

/// This process's desk, and which process that is: a forked child has no helper. Locked
/// by who holds the registry's lock, so that `fork` never copies it locked.
static DESK: Mutex<Option<(u32, Arc<Desk>)>> = Mutex::new(None);

/// The desk of the helper, which is started at the first need.
fn desk() -> std::io::Result<Arc<Desk>> {
    let _registry = registry::lock();
    let mut known = DESK.lock().unwrap_or_else(PoisonError::into_inner);
    let process = generation_of_process();
    if let Some((of, desk)) = &*known {
        if *of == process {
            return Ok(Arc::clone(desk));
        }
        // The parent's: another of its threads may have had it locked.
        std::mem::forget(known.take());
    }
    let desk = Arc::new(Desk { jobs: Mutex::new(Vec::new()), bell: AtomicU32::new(0) });
    let of_helper = Arc::clone(&desk);
    process::spawn_without_signals("heirlock", move || {
        let _unwound = AbortOnUnwind;
        HELPS.set(process);
        work(&of_helper);
    })?;
    *known = Some((process, Arc::clone(&desk)));
    Ok(desk)
}

thread_local! {
    /// For the helper, of which process it is that. (A child that a waker forks has the same
    /// thread, but no helper.)
    static HELPS: Cell<u32> = const { Cell::new(u32::MAX) };
}

/// If the helper ended, its rows would die, and others inherit what this process still
/// holds with them.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

fn no_thread(source: std::io::Error) -> AttachError {
    AttachError::Io { step: "start the helper thread", source }
}

/// Joins the segment with a row that lives as long as the process.
pub(super) fn attach(
    mapping: Arc<Mapping>,
    reclaim: Reclaim,
) -> Result<Box<Attachment>, AttachError> {
    // A waker may poll its task at once, on the helper.
    if HELPS.get() == generation_of_process() {
        return attach::attach(&mapping, reclaim);
    }
    let (answer, answered) = sync_channel(1);
    desk().map_err(no_thread)?.put(Job::Attach(mapping, reclaim, answer));
    let gone = || no_thread(std::io::ErrorKind::BrokenPipe.into());
    answered.recv().map_err(|_| gone())?.0
}

/// Leaves the segment with one of these rows, which nobody has and which holds nothing.
pub(super) fn detach(attachment: NonNull<Attachment>) {
    if let Ok(desk) = desk() {
        desk.put(Job::Detach(Handed(attachment)));
    }
}

/// Has the helper watch.
pub(crate) fn watch(watch: Arc<Watch>) -> std::io::Result<()> {
    desk()?.put(Job::Watch(watch));
    Ok(())
}

/// Whether the helper sleeps in a ring.
pub(crate) fn has_ring() -> bool {
    #[cfg(all(feature = "io-uring", not(heirlock_loom)))]
    let refused = crate::sys::uring::refused().is_some();
    #[cfg(not(all(feature = "io-uring", not(heirlock_loom))))]
    let refused = true;
    !refused
}

/// What the helper does, for as long as the process lives.
fn work(desk: &Desk) {
    #[cfg(all(feature = "io-uring", not(heirlock_loom)))]
    if has_ring() {
        // It returns if the kernel denies a ring all the same.
        ring::work(desk);
    }
    let mut watches: Vec<Arc<Watch>> = Vec::new();
    loop {
        let (jobs, rung) = desk.take();
        jobs.into_iter().for_each(|job| watches.extend(job.run()));
        let changed: Vec<bool> = watches.chunks(AT_ONCE).map(any_changed).collect();
        let mut each = 0..;
        watches.retain(|watch| {
            let at = each.next().unwrap_or_default();
            let due = watch.is_due(changed[at / AT_ONCE]);
            if due {
                watch.end();
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
fn sleep(desk: &Desk, rung: u32, watches: &[Arc<Watch>]) {
    let count: usize = watches.iter().map(|watch| watch.words().len()).sum();
    let words = watches.iter().flat_map(|watch| watch.words()).copied();
    let words: Vec<(usize, u32)> = words.take(WAITV_MAX - 1).collect();
    let patience = if count > words.len() { CROWDED } else { LONG };
    let first = watches.iter().map(|watch| watch.until()).min();
    if let Some(until) = [first, Deadline::after(patience)].into_iter().flatten().min()
        && futex::wait_beside((&desk.bell, rung), &words, until).is_err()
    {
        // The words of a segment that is closed, whose watch is, too; or no memory.
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Job {
    /// Does it; what is to be watched is for the caller.
    fn run(self) -> Option<Arc<Watch>> {
        match self {
            Self::Attach(mapping, reclaim, answer) => {
                let _ = answer.send(Handed(attach::attach(&mapping, reclaim)));
                None
            }
            Self::Detach(Handed(attachment)) => {
                // SAFETY: who gave it away had it alone, and it was leaked from a box.
                unsafe { Box::from_raw(attachment.as_ptr()) }.detach();
                None
            }
            Self::Watch(watch) => Some(watch),
        }
    }
}
