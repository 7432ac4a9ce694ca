//! Two processes that count under one lock: this program, and itself again.
//!
//! `cargo run --example two_processes`

use heirlock::{Mutex, MutexGuard, Segment};
use std::error::Error;
use std::process::Command;
use zerocopy::FromBytes;

/// What is in the segment. Zero bytes are an unlocked mutex around a zero.
#[derive(FromBytes)]
#[repr(C)]
struct Shared {
    count: Mutex<u64>,
}

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1) {
        None => parent(),
        Some(path) => count(&Segment::open(path)?),
    }
}

fn parent() -> Result<(), Box<dyn Error>> {
    let path = format!("/dev/shm/two_processes-{}", std::process::id());
    let segment: Segment<Shared> = Segment::create(&path)?;
    let child = Command::new(std::env::current_exe()?).arg(&path).spawn();
    let counted = count(&segment);
    let ended = child.and_then(|mut child| child.wait());
    // Without a name it goes when the last process that has it open does.
    Segment::unlink(&path)?;
    counted?;
    println!("counted to {} ({})", *segment.count.lock(), ended?);
    Ok(())
}

fn count(segment: &Segment<Shared>) -> Result<(), Box<dyn Error>> {
    for _ in 0..100_000 {
        let mut count = segment.count.lock();
        if let Some(dead) = MutexGuard::inherited(&count) {
            // One number cannot be torn. Otherwise this is where to repair it.
            println!("{dead} was killed while it had the lock");
        }
        *count += 1;
    }
    Ok(())
}
