//! The process's keeper: a thread, made at the first need, that never ends. The rows that
//! outlive threads are on its robust list, so they die with the process. It runs nobody
//! else's code: whoever waits for it holds what he likes.
#![allow(unsafe_code)]

use super::attach::{self, AttachError, Attachment, Reclaim};
use super::desk::{Desk, Place};
use crate::memory::map::Mapping;
use crate::sys::clock::Deadline;
use crate::sys::futex;
use core::ptr::NonNull;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

/// For how long the keeper sleeps if nothing is to be done; it is woken anyway.
const LONG: Duration = Duration::from_secs(3600);

/// What passes to or from the keeper. It is used by one thread at a time.
struct Handed<T>(T);

// SAFETY: for what is handed over here: an attachment that nobody else has, whose robust
// list is the keeper's own, and which only the keeper changes.
unsafe impl<T> Send for Handed<T> {}

type Answer = Handed<Result<Box<Attachment>, AttachError>>;

enum Job {
    Attach(Arc<Mapping>, Reclaim, SyncSender<Answer>),
    Detach(Handed<NonNull<Attachment>>),
    /// Says that all jobs before it are done.
    Report(SyncSender<()>),
}

static PLACE: Place<Job> = Place::new("heirlock-keep", work);

fn no_thread(source: std::io::Error) -> AttachError {
    AttachError::Io { step: "start the thread that keeps the process's rows", source }
}

/// Joins the segment with a row that lives as long as the process.
pub(super) fn attach(
    mapping: Arc<Mapping>,
    reclaim: Reclaim,
) -> Result<Box<Attachment>, AttachError> {
    let (answer, answered) = sync_channel(1);
    PLACE.desk().map_err(no_thread)?.put(Job::Attach(mapping, reclaim, answer));
    let gone = || no_thread(std::io::ErrorKind::BrokenPipe.into());
    answered.recv().map_err(|_| gone())?.0
}

/// Leaves the segment with one of these rows, which nobody has and which holds nothing.
pub(super) fn detach(attachment: NonNull<Attachment>) {
    if let Ok(desk) = PLACE.desk() {
        desk.put(Job::Detach(Handed(attachment)));
    }
}

/// Waits until the keeper has done all that it was told to do before.
pub(super) fn await_the_last() {
    let (tell, told) = sync_channel(1);
    if let Ok(desk) = PLACE.desk() {
        desk.put(Job::Report(tell));
        // If it is gone there is nothing to wait for.
        let _ = told.recv();
    }
}

/// What the keeper does, for as long as the process lives.
fn work(desk: &Desk<Job>) {
    loop {
        let (jobs, rung) = desk.take();
        jobs.into_iter().for_each(Job::run);
        if let Some(until) = Deadline::after(LONG) {
            // Whatever ends it is a reason to look.
            let _ = futex::wait(&[desk.silent(rung)], until, false);
        }
    }
}

impl Job {
    fn run(self) {
        match self {
            Self::Attach(mapping, reclaim, answer) => {
                let _ = answer.send(Handed(attach::attach(&mapping, reclaim, true)));
            }
            Self::Report(tell) => {
                let _ = tell.send(());
            }
            Self::Detach(Handed(attachment)) => {
                // SAFETY: who gave it away had it alone, and it was leaked from a box.
                unsafe { Box::from_raw(attachment.as_ptr()) }.detach();
            }
        }
    }
}
