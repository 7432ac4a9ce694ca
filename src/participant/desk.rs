//! A thread of the process that does what is put on its desk, made at the first need; it
//! never ends, and a forked child has one of its own.

use super::current::generation_of_process;
use crate::memory::registry;
use crate::sys::atomic::{AtomicU32, Ordering};
use crate::sys::futex::{self, Expect};
use crate::sys::process;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// What is to be done, and a word that changes with it.
pub(super) struct Desk<J> {
    jobs: Mutex<Vec<J>>,
    bell: AtomicU32,
}

impl<J> Desk<J> {
    pub(super) fn put(&self, job: J) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push(job);
        // Release pairs with the Acquire in `take`: who sees it finds the job.
        self.bell.fetch_add(1, Ordering::Release);
        futex::wake_all(&self.bell);
    }

    /// The jobs, and the value of the bell as long as there are no others.
    pub(super) fn take(&self) -> (Vec<J>, u32) {
        let rung = self.bell.load(Ordering::Acquire);
        (std::mem::take(&mut *self.jobs.lock().unwrap_or_else(PoisonError::into_inner)), rung)
    }

    /// What to sleep on until there is something to be done.
    pub(super) fn silent(&self, rung: u32) -> Expect<'_> {
        (&self.bell, rung)
    }
}

/// A desk, and of which process it is.
type Known<J> = Option<(u32, Arc<Desk<J>>)>;

/// Where the desk is to be found.
pub(super) struct Place<J> {
    name: &'static str,
    /// What the thread does; it does not return.
    work: fn(&Desk<J>),
    /// Locked by who holds the registry's lock, so that `fork` never copies it locked.
    known: Mutex<Known<J>>,
}

/// If such a thread ended, others would wait for ever for what it does, and if rows are its
/// own, inherit what this process still holds with them.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

impl<J: Send + 'static> Place<J> {
    pub(super) const fn new(name: &'static str, work: fn(&Desk<J>)) -> Self {
        Self { name, work, known: Mutex::new(None) }
    }

    /// This process's.
    pub(super) fn desk(&self) -> io::Result<Arc<Desk<J>>> {
        let _registry = registry::lock();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let process = generation_of_process();
        if let Some((of, desk)) = &*known {
            if *of == process {
                return Ok(Arc::clone(desk));
            }
            // The parent's: another of its threads may have had it locked.
            std::mem::forget(known.take());
        }
        let desk = Arc::new(Desk { jobs: Mutex::new(Vec::new()), bell: AtomicU32::new(0) });
        let (of_thread, work) = (Arc::clone(&desk), self.work);
        process::spawn_without_signals(self.name, move || {
            let _ended = AbortOnUnwind;
            work(&of_thread);
        })?;
        *known = Some((process, Arc::clone(&desk)));
        Ok(desk)
    }
}
