//! A daemon that waits for a lock which others share, and that SIGTERM stops at
//! once, also in the middle of the wait; its place in the queue is given up.
//!
//! `cargo run --example stoppable -- /dev/shm/stoppable`
#![allow(unsafe_code, reason = "a signal handler")]

use heirlock::{CancelToken, Cancelled, Mutex, MutexGuard, Segment};
use signal_hook::{consts::SIGTERM, low_level};
use std::error::Error;
use std::thread;
use std::time::Duration;
use zerocopy::FromBytes;

/// What is in the segment.
#[derive(FromBytes)]
#[repr(C)]
struct Shared {
    jobs_done: Mutex<u64>,
}

/// Cancelled by SIGTERM. It is this process's own, so it is not in the segment.
static STOP: CancelToken = CancelToken::new();

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: stoppable PATH")?;
    let segment: Segment<Shared> = Segment::open_or_create(&path)?;
    // SAFETY: the handler calls `cancel` and nothing else, which is
    // async-signal-safe.
    unsafe { low_level::register(SIGTERM, || STOP.canceller().cancel()) }?;
    println!("{} waits for its turns", std::process::id());

    let mut jobs = 0;
    loop {
        match segment.jobs_done.lock_cancellable(&STOP) {
            Ok(mut done) => {
                if let Some(dead) = MutexGuard::inherited(&done) {
                    println!("{dead} was killed at work");
                }
                *done += 1;
                jobs += 1;
            }
            Err(Cancelled::Token) => break,
            Err(error) => return Err(error.into()),
        }
        thread::sleep(Duration::from_millis(10));
    }
    println!("told to stop; did {jobs} jobs");
    Ok(())
}
