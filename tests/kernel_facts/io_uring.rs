//! Waiting for futexes in an io_uring.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use ::io_uring::types::{FutexWaitV, TimeoutFlags, Timespec};
use ::io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use libtest_mimic::{Completion, Failed};
use rustix::mm::MapFlags;

use crate::support::{
    Child, HANG, Life, SHARED, Segment, Sleeper, Verdict, ensure, map, page_size, queued,
    shared_words, skip, unmap, wait_until, wake, word_at,
};

const PASSED: Verdict = Ok(Completion::Completed);

/// `FUTEX2_SIZE_U32`, and not `FUTEX2_PRIVATE`.
const SHARED_U32: u32 = 2;

const WAIT: u64 = 1;
const TIMEOUT: u64 = 2;
const CANCEL: u64 = 3;

/// Why such waits cannot be tried here, if so.
pub(crate) fn ring_missing() -> Option<String> {
    let known = || -> io::Result<bool> {
        let ring = IoUring::new(2)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        Ok(probe.is_supported(opcode::FutexWaitV::CODE))
    };
    match known() {
        Ok(true) => None,
        Ok(false) => Some("io_uring waits for futexes since Linux 6.7".into()),
        Err(error) => Some(format!("io_uring is refused: {error}")),
    }
}

fn entry(word: &AtomicU32, value: u32) -> FutexWaitV {
    FutexWaitV::new().uaddr(word.as_ptr().addr() as u64).val(value.into()).flags(SHARED_U32)
}

fn wait_entry(words: &[FutexWaitV]) -> squeue::Entry {
    opcode::FutexWaitV::new(words.as_ptr(), words.len() as u32).build().user_data(WAIT)
}

/// Has the kernel take the entries, in which everything stays valid for as long as it reads it.
fn submit(ring: &mut IoUring, entries: &[squeue::Entry]) -> Result<(), Failed> {
    // SAFETY: by contract of this function.
    unsafe { ring.submission().push_multiple(entries) }.expect("there is room");
    ensure!(ring.submit()? == entries.len(), "not all entries were taken");
    Ok(())
}

/// What is completed, as soon as it is so much.
fn completed(ring: &mut IoUring, want: usize) -> Result<Vec<(u64, i32)>, Failed> {
    let mut found = Vec::new();
    wait_until("completions", || {
        // It runs what the kernel has put off for this thread.
        ring.submit().expect("submit");
        found
            .extend(ring.completion().map(|done: cqueue::Entry| (done.user_data(), done.result())));
        found.len() >= want
    })?;
    found.sort_unstable();
    Ok(found)
}

pub(crate) fn waits_for_words_that_processes_share() -> Verdict {
    let segment = Segment::new(1);
    let (first, second) = (segment.word(0), segment.word(64));
    let mut ring = IoUring::new(8)?;
    let words = [entry(first, 0), entry(second, 0)];
    submit(&mut ring, &[wait_entry(&words)])?;
    // Of the file, not of the address space.
    let again = word_at(segment.map_again(MapFlags::SHARED) + 64);
    Child::spawn(|| assert_eq!(wake(again, SHARED), 1))?.succeed()?;
    ensure!(completed(&mut ring, 1)? == [(WAIT, 1)], "not woken by the second word");
    PASSED
}

pub(crate) fn tells_at_once_what_has_changed_or_is_no_memory() -> Verdict {
    let word = shared_words()(0);
    let mut ring = IoUring::new(8)?;
    let words = [entry(word, 1)];
    submit(&mut ring, &[wait_entry(&words)])?;
    ensure!(completed(&mut ring, 1)? == [(WAIT, -libc::EAGAIN)], "a changed word");
    let gone = map(page_size(), MapFlags::SHARED, None);
    let words = [entry(word_at(gone), 0)];
    unmap(gone, page_size());
    submit(&mut ring, &[wait_entry(&words)])?;
    ensure!(completed(&mut ring, 1)? == [(WAIT, -libc::EFAULT)], "a word that is gone");
    let words = [FutexWaitV::new()];
    submit(&mut ring, &[wait_entry(&words)])?;
    ensure!(completed(&mut ring, 1)? == [(WAIT, -libc::EINVAL)], "an entry of zeros");
    PASSED
}

pub(crate) fn request_is_read_when_it_is_submitted() -> Verdict {
    let word = shared_words()(0);
    let mut ring = IoUring::new(8)?;
    let mut words = [entry(word, 0)];
    let until = Timespec::new().sec(HANG.as_secs());
    let timeout = opcode::LinkTimeout::new(&raw const until).build().user_data(TIMEOUT);
    submit(&mut ring, &[wait_entry(&words).flags(squeue::Flags::IO_LINK), timeout])?;
    words[0] = FutexWaitV::new();
    std::hint::black_box(&words);
    ensure!(wake(word, SHARED) == 1, "nobody waits");
    let ended = completed(&mut ring, 2)?;
    ensure!(ended == [(WAIT, 0), (TIMEOUT, -libc::ECANCELED)], "{ended:?}");
    PASSED
}

pub(crate) fn linked_timeout_cancels_the_wait() -> Verdict {
    let word = shared_words()(0);
    let mut ring = IoUring::new(8)?;
    let words = [entry(word, 0)];
    // In the past, on `CLOCK_MONOTONIC`.
    let until = Timespec::new().nsec(1);
    let timeout = opcode::LinkTimeout::new(&raw const until).flags(TimeoutFlags::ABS);
    let timeout = timeout.build().user_data(TIMEOUT);
    submit(&mut ring, &[wait_entry(&words).flags(squeue::Flags::IO_LINK), timeout])?;
    let ended = completed(&mut ring, 2)?;
    // What has ended a wait for a futex says how many, where others say 0, or `ETIME`.
    let says = |result| [1, -libc::ETIME].contains(&result);
    let [(WAIT, wait), (TIMEOUT, timeout)] = ended[..] else {
        return Err(format!("{ended:?}").into());
    };
    ensure!(wait == -libc::ECANCELED && says(timeout), "{ended:?}");
    ensure!(wake(word, SHARED) == 0, "it waits still");
    PASSED
}

pub(crate) fn cancellation_cancels_the_wait() -> Verdict {
    let word = shared_words()(0);
    let mut ring = IoUring::new(8)?;
    let words = [entry(word, 0)];
    submit(&mut ring, &[wait_entry(&words)])?;
    submit(&mut ring, &[opcode::AsyncCancel::new(WAIT).build().user_data(CANCEL)])?;
    let ended = completed(&mut ring, 2)?;
    let [(WAIT, wait), (CANCEL, cancel)] = ended[..] else {
        return Err(format!("{ended:?}").into());
    };
    ensure!(wait == -libc::ECANCELED && [0, 1].contains(&cancel), "{ended:?}");
    PASSED
}

pub(crate) fn end_of_the_submitting_thread_cancels_the_wait() -> Verdict {
    let word = shared_words()(0);
    let mut ring = IoUring::new(8)?;
    let words = [entry(word, 0)];
    std::thread::scope(|scope| {
        scope.spawn(|| submit(&mut ring, &[wait_entry(&words)])).join().expect("it does not panic")
    })?;
    ensure!(completed(&mut ring, 1)? == [(WAIT, -libc::ECANCELED)], "another end");
    PASSED
}

pub(crate) fn killed_process_takes_its_wake_along() -> Verdict {
    let life = Life::new();
    let mut dying = Child::parked(|| {
        life.link();
    })?;
    let value = life.view.load(SeqCst);
    // The first in the kernel's queue, and so the one that is woken. It never looks.
    let mut ringing = Child::parked(|| {
        let mut ring = IoUring::new(8).expect("a ring");
        let words = [entry(life.view, value)];
        submit(&mut ring, &[wait_entry(&words)]).expect("submit");
        std::mem::forget(ring);
    })?;
    let mut other = Sleeper::on(life.view, SHARED)?;
    dying.kill()?;
    ringing.kill()?;
    ensure!(!other.returned(), "the wake was passed on");
    ensure!(queued(life.view, SHARED) == 1, "nobody is left");
    ensure!(wake(life.view, SHARED) == 1, "nobody sleeps");
    ensure!(other.result()? == Ok(0), "it was not woken");
    PASSED
}

pub(crate) fn woken_request_uses_up_the_wakes_of_its_other_words() -> Verdict {
    let segment = Segment::new(1);
    let (first, second) = (segment.word(0), segment.word(64));
    // What completes a request is done when the ring is entered.
    let mut ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8)?;
    let words = [entry(first, 0), entry(second, 0)];
    submit(&mut ring, &[wait_entry(&words)])?;
    let mut other = Sleeper::on(second, SHARED)?;
    ensure!(wake(first, SHARED) == 1, "nobody waits for the first word");
    // One is to be woken, as when a thread dies.
    let woken = rustix::thread::futex::wake(second, SHARED, 1)?;
    ensure!(woken == 1, "nobody waits for the second word");
    ensure!(!other.returned(), "the wake was not used up");
    ring.submit_and_wait(1)?;
    ensure!(completed(&mut ring, 1)? == [(WAIT, 0)], "not woken by the first word");
    ensure!(wake(second, SHARED) == 1, "nobody sleeps");
    ensure!(other.result()? == Ok(0), "it was not woken");
    PASSED
}

/// As is an absolute one since Linux 7.1, and not before.
pub(crate) fn relative_timeout_is_right_in_a_time_namespace() -> Verdict {
    const TIME: Duration = Duration::from_millis(50);
    let (denied, word) = (shared_words()(0), shared_words()(0));
    for offset in ["-3", "86400"] {
        Child::spawn(|| {
            // SAFETY: it concerns the children alone.
            let made = unsafe { libc::unshare(libc::CLONE_NEWTIME) } == 0;
            let offset = format!("monotonic {offset} 0\n");
            if !made || std::fs::write("/proc/self/timens_offsets", offset).is_err() {
                denied.store(1, SeqCst);
                return;
            }
            let child = Child::spawn(|| {
                let start = Instant::now();
                let mut ring = IoUring::new(8).expect("a ring");
                let words = [entry(word, 0)];
                let time = Timespec::from(TIME);
                let timeout = opcode::LinkTimeout::new(&raw const time).build().user_data(TIMEOUT);
                let wait = wait_entry(&words).flags(squeue::Flags::IO_LINK);
                submit(&mut ring, &[wait, timeout]).expect("submit");
                let ended = completed(&mut ring, 2).expect("it ends in time");
                assert_eq!(ended[0], (WAIT, -libc::ECANCELED));
                assert!(start.elapsed() >= TIME);
            });
            child.and_then(Child::succeed).expect("a child in the namespace");
        })?
        .succeed()?;
        if denied.load(SeqCst) != 0 {
            return skip("no time namespace is to be had here");
        }
    }
    PASSED
}
