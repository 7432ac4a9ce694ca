//! The helper's sleep in a ring.

use super::Desk;
use crate::participant::watch::Watch;
use crate::sys::clock::Deadline;
use crate::sys::uring::{Waits, ring_of_one_thread};
use core::ptr;
use std::sync::Arc;
use std::time::Duration;

/// How many requests are submitted in one go.
const ENTRIES: u32 = 256;

/// What the helper does; returns if it has no ring.
pub(super) fn work(desk: &Desk) {
    let Ok(ring) = ring_of_one_thread(ENTRIES) else { return };
    // Nobody: the wait for the bell.
    let mut waits: Waits<Option<Arc<Watch>>> = Waits::new(ring);
    let mut listens = false;
    loop {
        let (jobs, rung) = desk.take();
        for watch in jobs.into_iter().filter_map(super::Job::run) {
            if waits.queue(Some(Arc::clone(&watch)), watch.words(), watch.until()).is_err() {
                // It looks, and comes again.
                watch.end();
            }
        }
        let far = Deadline::after(super::LONG);
        if let Some(far) = far.filter(|_| !listens) {
            let bell = (ptr::from_ref(&desk.bell).expose_provenance(), rung);
            listens = waits.queue(None, &[bell], far).is_ok();
        }
        if !listens || waits.sleep().is_err() {
            // A signal (there are none), or no memory in the kernel.
            std::thread::sleep(Duration::from_millis(1));
        }
        for over in waits.over().0 {
            match over {
                Some(watch) => watch.end(),
                None => listens = false,
            }
        }
    }
}
