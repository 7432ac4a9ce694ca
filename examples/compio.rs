//! A lock as an operation of compio, waited for in the ring of its runtime:
//! `cargo run -p heirlock-runtimes --example compio`.
#![allow(unsafe_code)]

use compio_driver::{OpCode, OpEntry};
use compio_runtime::Runtime;
use compio_runtime::time::{sleep, timeout};
use heirlock::uring::{self, Progress};
use heirlock::{Mutex, MutexGuard, Segment, Unusable};
use std::time::Duration;

/// A wait for a futex in a lock's segment.
struct Wait(io_uring::squeue::Entry);

// SAFETY: what the entry points to outlives its completion: `uring::Entries` says so.
unsafe impl OpCode for Wait {
    type Control = ();

    fn create_entry(&mut self, (): &mut ()) -> OpEntry {
        OpEntry::Submission(self.0.clone())
    }
}

/// Waits its turn without a thread that sleeps. The guard stays on the thread, as everything
/// does in compio.
async fn lock<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>, Unusable> {
    let (mut acquire, mut progress) = mutex.start(0)?;
    loop {
        match progress {
            Progress::Acquired(guard) => return Ok(guard),
            Progress::Again(entries) => {
                let woken = compio_runtime::submit(Wait(entries.wait()));
                // It looks also when nobody woke it, for what the kernel does not tell.
                let _ = timeout(entries.time_left(), woken).await;
                progress = acquire.look()?;
            }
            ended => unreachable!("nothing was to end the wait: {ended:?}"),
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if let Some(refused) = uring::refused() {
        println!("io_uring is refused here ({refused}), so compio has no ring");
        return Ok(());
    }
    let segment: &Segment<Mutex<u32>> = Box::leak(Box::new(Segment::anonymous()?));
    Runtime::new()?.block_on(async {
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                compio_runtime::spawn(async {
                    for _ in 0..100 {
                        let mut count = lock(segment).await?;
                        let before = *count;
                        // The other tasks wait meanwhile, and the thread does not.
                        sleep(Duration::from_micros(100)).await;
                        *count = before + 1;
                    }
                    Ok::<(), Unusable>(())
                })
            })
            .collect();
        for task in tasks {
            task.await.map_err(|_| "a task panicked")??;
        }
        Ok::<(), Box<dyn std::error::Error>>(())
    })?;
    println!("4 tasks of compio added {}, of 400", segment.lock());
    assert_eq!(*segment.lock(), 400);
    Ok(())
}
