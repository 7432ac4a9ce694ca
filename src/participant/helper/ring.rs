//! The helper's sleep in a ring.

use crate::participant::desk::Desk;
use crate::participant::watch::{Over, Watch};
use crate::sys::clock::Deadline;
use crate::sys::uring::{Waits, is_passing, ring_of_one_thread};
use core::ptr;
use std::sync::Arc;
use std::time::Duration;

/// How many requests are submitted in one go.
const ENTRIES: u32 = 256;

/// What the helper does; returns if it has no ring, or none any more: the program may have
/// closed it with all descriptors, or a new seccomp filter denies it.
pub(super) fn work(desk: &Desk<Arc<Watch>>) {
    let Ok(ring) = ring_of_one_thread(ENTRIES) else { return };
    // Nobody: the wait for the bell.
    let mut waits: Waits<Option<Arc<Watch>>> = Waits::new(ring);
    let mut listens = false;
    loop {
        let (jobs, rung) = desk.take();
        for watch in jobs {
            if waits.queue(Some(Arc::clone(&watch)), watch.words(), watch.until()).is_err() {
                // It looks, and comes again.
                watch.end(Over::Returned);
            }
        }
        let far = Deadline::after(super::LONG);
        if let Some(far) = far.filter(|_| !listens) {
            let (bell, rung) = desk.silent(rung);
            let bell = (ptr::from_ref(bell).expose_provenance(), rung);
            listens = waits.queue(None, &[bell], far).is_ok();
        }
        match waits.sleep() {
            Ok(()) if listens => {}
            Err(error) if !is_passing(&error) => break,
            // A signal (there are none), or no memory in the kernel.
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
        for (whom, is_completed) in waits.over().0 {
            match whom {
                Some(watch) => watch.end(Over::of_request(is_completed)),
                None => listens = false,
            }
        }
        if waits.is_unfit() {
            break;
        }
    }
    // They come again, to who does without.
    waits.give_up().flatten().for_each(|watch| watch.end(Over::GivenUp));
    // The descriptor may be somebody else's by now.
    std::mem::forget(waits);
}
