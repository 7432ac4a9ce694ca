//! What is left of a killed process, when what it held is inherited.
#![allow(unsafe_code)]

use crate::kit::{self, Process, Role, TempPath, Test};
use heirlock::{Mutex, MutexGuard, Segment, owner, queue};
use rustix::fs::{MemfdFlags, memfd_create};
use std::io::{Read, Seek, Write};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("who_inherits_from_a_future_finds_nobody_writing", || nobody_writes("future")),
    ("who_inherits_what_was_leaked_finds_nobody_writing", || nobody_writes("leak")),
];

pub(crate) const ROLES: &[Role] = &[("writes_with_the_lock", writes_with_the_lock)];

/// So many bytes that to write them takes the kernel milliseconds.
const SIZE: usize = 16 << 20;

/// How many processes are killed. Without a look whether all threads have ended, most heirs
/// see somebody writing.
const KILLS: usize = 12;

type Shared = Mutex<[u8; SIZE]>;

/// The process is killed while the kernel writes into the value on its behalf.
fn nobody_writes(how: &str) {
    let mut waits = Vec::new();
    for _ in 0..KILLS {
        let path = TempPath::new();
        let segment = Segment::<Shared>::create(&*path).expect("a segment");
        let path = path.to_str().expect("a path");
        let mut process = Process::spawn("writes_with_the_lock", &[path, how]);
        kit::until("the process has the lock", || owner(&segment).is_some());
        thread::scope(|scope| {
            let heir = scope.spawn(|| {
                let value = segment.lock();
                let inherited = Instant::now();
                assert!(MutexGuard::inherited(&value).is_some(), "it was not told");
                let first = sum(&value);
                while inherited.elapsed() < Duration::from_millis(60) {
                    assert_eq!(sum(&value), first, "written after {:?}", inherited.elapsed());
                }
                inherited
            });
            kit::until("a thread waits", || queue(&segment).is_some_and(|all| !all.is_empty()));
            // It is in the middle of a write, most probably.
            thread::sleep(Duration::from_millis(3));
            let killed = Instant::now();
            process.kill();
            waits.push(heir.join().expect("the heir") - killed);
        });
    }
    println!("{KILLS} kills, inherited after {:?} at the latest", waits.iter().max());
}

/// What some of the bytes are now.
fn sum(value: &[u8; SIZE]) -> u64 {
    let bytes = value.iter().step_by(509);
    // SAFETY: it is a reference's. Somebody else may write there, which is what this is to see.
    let now = |byte: &u8| u64::from(unsafe { std::ptr::read_volatile(byte) });
    bytes.fold(0, |sum: u64, byte| sum.rotate_left(7) ^ now(byte))
}

fn writes_with_the_lock(args: &[String]) {
    let segment: &Segment<Shared> =
        Box::leak(Box::new(Segment::open(&args[0]).expect("the segment")));
    // To read from there the kernel copies all of it, and does not look whether the thread is
    // to die before it is done.
    let mut files = [1, 2].map(|byte| {
        let file = memfd_create("bytes", MemfdFlags::CLOEXEC).expect("a memfd");
        let mut file = std::fs::File::from(file);
        file.write_all(&vec![byte; SIZE]).expect("room for the bytes");
        file
    });
    let mut write = move |value: &mut [u8; SIZE]| {
        for file in (0..files.len()).cycle() {
            files[file].rewind().expect("seek");
            files[file].read_exact(value).expect("the bytes");
        }
    };
    if args[1] == "future" {
        write(&mut pollster::block_on(segment.lock_async()));
    } else {
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let leaked = sender.send(MutexGuard::leak(segment.lock()));
            leaked.expect("the other thread");
            thread::sleep(4 * kit::HANG);
        });
        write(receiver.recv().expect("the value"));
    }
}
