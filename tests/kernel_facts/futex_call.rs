//! Futex calls: signals, several words, deadlines, and who meets whom.

use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use libtest_mimic::Completion::Completed;
use nix::errno::Errno as NixErrno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::fs::ftruncate;
use rustix::io::Errno;
use rustix::mm::MapFlags;
use rustix::thread::ClockId;
use rustix::thread::futex::{self, Flags, WakeOp, WakeOpCmp, wake_op};

use crate::support::*;

/// How often the handler has run.
static HANDLER_RUNS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_run(_: c_int) {
    HANDLER_RUNS.fetch_add(1, SeqCst);
}

/// Counts `SIGUSR1` until dropped.
struct Counting(SigAction);

impl Counting {
    fn start(flags: SaFlags) -> nix::Result<Self> {
        let action = SigAction::new(SigHandler::Handler(count_run), flags, SigSet::empty());
        // SAFETY: the handler does nothing but add to an atomic counter.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.map(Self)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // SAFETY: restores what was there before.
        let _ = unsafe { sigaction(Signal::SIGUSR1, &self.0) };
    }
}

/// Which blocked call ends with `EINTR` when a handler has run, and which goes on to wait.
pub(crate) fn signals() -> Verdict {
    let (plain, restart) = (SaFlags::empty(), SaFlags::SA_RESTART);
    let table = [
        (Call::WaitBitset, plain, false, true),
        (Call::WaitBitset, plain, true, true),
        (Call::WaitBitset, restart, false, false),
        (Call::WaitBitset, restart, true, true),
        (Call::Waitv, plain, false, true),
        (Call::Waitv, plain, true, true),
        (Call::Waitv, restart, false, false),
        (Call::Waitv, restart, true, false),
    ];
    let missing = waitv_missing();
    for (call, flags, timed, interrupted) in table {
        if let (Call::Waitv, Some(reason)) = (call, &missing) {
            eprintln!("note: skipped {call:?}: {reason}");
            continue;
        }
        let row = format!("{call:?}, {flags:?}, with timeout: {timed}");
        let _handler = Counting::start(flags)?;
        HANDLER_RUNS.store(0, SeqCst);
        let word = shared_words()(0);
        let mut sleeper = Sleeper::within(vec![(word, SHARED)], move || {
            let deadline = timed.then(|| from_now(Duration::from_secs(3600)));
            wait_for(call, word, 0, SHARED, deadline.as_ref())
        })?;
        for run in 1..=3 {
            sleeper.signal(Signal::SIGUSR1);
            wait_until("the handler", || HANDLER_RUNS.load(SeqCst) == run)?;
            // The handler runs after the call has left the queue: it is back there, or over.
            wait_until("the call to go on or to end", || {
                sleeper.returned() || queued(word, SHARED) == 1
            })?;
            ensure!(sleeper.returned() == interrupted, "{row}: run {run}");
            if interrupted {
                break;
            }
        }
        let expected = if interrupted { Err(Errno::INTR) } else { Ok(0) };
        wake(word, SHARED);
        let result = sleeper.result()?;
        ensure!(result == expected, "{row}: {result:?}");
    }
    Ok(Completed)
}

/// A waiter that is stopped and continued waits on; while it is stopped, it is not in the queue,
/// and the kernel compares the word anew when it goes on.
pub(crate) fn stop_and_continue_are_invisible() -> Verdict {
    let missing = waitv_missing();
    for (call, timed, changed) in [
        (Call::WaitBitset, false, false),
        (Call::WaitBitset, true, false),
        (Call::WaitBitset, true, true),
        (Call::Waitv, false, false),
        (Call::Waitv, true, false),
        (Call::Waitv, true, true),
    ] {
        if let (Call::Waitv, Some(reason)) = (call, &missing) {
            eprintln!("note: skipped {call:?}: {reason}");
            continue;
        }
        let row = format!("{call:?}, with timeout: {timed}, word changed: {changed}");
        let word = shared_words()(0);
        let mut child = Child::spawn(|| {
            let deadline = timed.then(|| from_now(Duration::from_secs(3600)));
            let expected = if changed { Err(Errno::AGAIN) } else { Ok(0) };
            assert_eq!(wait_for(call, word, 0, SHARED, deadline.as_ref()), expected);
        })?;
        let pid = child.pid;
        wait_until("the child to sleep", || queued(word, SHARED) == 1)?;
        let reported = |flag| waitpid(pid, Some(WaitPidFlag::WNOHANG | flag));
        kill(pid, Signal::SIGSTOP)?;
        let stopped = Ok(WaitStatus::Stopped(pid, Signal::SIGSTOP));
        wait_until("the stop", || reported(WaitPidFlag::WUNTRACED) == stopped)?;
        ensure!(queued(word, SHARED) == 0, "{row}: a stopped waiter is queued");
        word.store(u32::from(changed), SeqCst);
        kill(pid, Signal::SIGCONT)?;
        if !changed {
            wait_until("the child to sleep again or to end", || {
                queued(word, SHARED) == 1 || child.exited().is_some()
            })?;
            ensure!(child.status.is_none(), "{row}: the call ended: {:?}", child.status);
            ensure!(wake(word, SHARED) == 1, "{row}: nobody was woken");
        }
        child.succeed()?;
    }
    Ok(Completed)
}

/// `futex_waitv` sleeps only if every word has the expected value, and takes up to 128 words.
pub(crate) fn waitv_checks_every_word() -> Verdict {
    if let Some(reason) = waitv_missing() {
        return skip(reason);
    }
    let words = [(); 129].map(|()| AtomicU32::new(0));
    for mismatch in [0, 1, 127] {
        let mut expected = words.each_ref().map(|word| (word, 0));
        expected[mismatch].1 = 1;
        let result = waitv(&expected[..128], None);
        ensure!(result == Err(Errno::AGAIN), "word {mismatch} of 128: {result:?}");
        let result = waitv(&expected[..=mismatch], None);
        ensure!(result == Err(Errno::AGAIN), "last word {mismatch}: {result:?}");
    }
    let result = waitv(&words.each_ref().map(|word| (word, 1)), None);
    ensure!(result == Err(Errno::INVAL), "129 words: {result:?}");
    Ok(Completed)
}

/// A wake of any of the words ends the call, which says which; then no word has it queued.
pub(crate) fn waitv_is_woken_through_any_word() -> Verdict {
    if let Some(reason) = waitv_missing() {
        return skip(reason);
    }
    let page = shared_words();
    let words = [page(0), page(1), page(2)];
    for (index, word) in words.iter().enumerate() {
        let mut sleeper = Sleeper::within(words.map(|word| (word, SHARED)).to_vec(), move || {
            waitv(&words.map(|word| (word, 0)), None)
        })?;
        ensure!(wake(word, SHARED) == 1, "word {index} woke nobody");
        let result = sleeper.result()?;
        ensure!(result == Ok(index), "woken through {index}: {result:?}");
        ensure!(words.iter().all(|word| queued(word, SHARED) == 0), "still queued");
    }
    Ok(Completed)
}

/// A call that was woken through two words at once has used up both wakes and names one word.
pub(crate) fn waitv_names_one_of_several_woken_words() -> Verdict {
    if let Some(reason) = waitv_missing() {
        return skip(reason);
    }
    let (one, two) = (shared_words()(0), shared_words()(0));
    let mut sleeper = Sleeper::within(vec![(one, SHARED), (two, SHARED)], move || {
        waitv(&[(one, 0), (two, 0)], None)
    })?;
    let woken = wake_op(one, SHARED, 1, 1, two, WakeOp::Set, WakeOpCmp::Eq, 0, 0)?;
    ensure!(woken == 2, "{woken} wakes were used up, not 2");
    let result = sleeper.result()?;
    ensure!(result == Ok(0) || result == Ok(1), "{result:?}");
    Ok(Completed)
}

/// The deadlines of both calls are points on the monotonic clock, and none returns before its own.
pub(crate) fn timeouts_are_absolute() -> Verdict {
    for call in [Call::WaitBitset, Call::Waitv] {
        if let (Call::Waitv, Some(reason)) = (call, waitv_missing()) {
            eprintln!("note: skipped {call:?}: {reason}");
            continue;
        }
        for ahead in [0, 20] {
            let word = shared_words()(0);
            let deadline = from_now(Duration::from_millis(ahead));
            let mut sleeper = Sleeper::start(vec![(word, SHARED)], move || {
                wait_for(call, word, 0, SHARED, Some(&deadline))
            });
            let result = sleeper.result()?;
            let now = rustix::time::clock_gettime(ClockId::Monotonic);
            ensure!(result == Err(Errno::TIMEDOUT), "{call:?}, {ahead} ms: {result:?}");
            ensure!(now >= deadline, "{call:?} gave up before its deadline");
        }
    }
    Ok(Completed)
}

/// A waiter and a waker meet if they mean the same offset of the same file through shared mappings
/// with the shared kind of call, wherever these are mapped. A writable private mapping is a file of
/// its own in this respect, and so is each address space for the private kind of call.
pub(crate) fn shared_keys_are_file_and_offset() -> Verdict {
    let segment = Segment::new(1);
    let word = segment.word(64);
    let other_view = word_at(segment.map_again(MapFlags::SHARED) + 64);
    let copy = word_at(segment.map_again(MapFlags::PRIVATE) + 64);
    let other_file = Segment::new(1);

    let mut sleeper = Sleeper::on(word, SHARED)?;
    ensure!(wake(other_file.word(64), SHARED) == 0, "another file");
    ensure!(wake(segment.word(68), SHARED) == 0, "another offset");
    ensure!(wake(other_view, Flags::PRIVATE) == 0, "a private wake");
    ensure!(wake(copy, SHARED) == 0, "a wake in a private mapping");
    ensure!(wake(other_view, SHARED) == 1, "the other mapping");
    ensure!(sleeper.result()? == Ok(0), "the waiter");

    let mut sleeper = Sleeper::on(word, Flags::PRIVATE)?;
    ensure!(wake(word, SHARED) == 0, "a private waiter, a shared wake");
    ensure!(wake(word, Flags::PRIVATE) == 1, "a private waiter, a private wake");
    ensure!(sleeper.result()? == Ok(0), "the private waiter");

    let mut sleeper = Sleeper::on(copy, SHARED)?;
    ensure!(wake(word, SHARED) == 0, "a waiter in a private mapping, a wake in a shared one");
    ensure!(wake(copy, SHARED) == 1, "a waiter and a wake in a private mapping");
    ensure!(sleeper.result()? == Ok(0), "the waiter in a private mapping");
    Ok(Completed)
}

/// A wait or wake on a word that its file no longer covers fails, and does not kill.
pub(crate) fn word_beyond_the_end_of_file_faults() -> Verdict {
    let segment = Segment::new(2);
    let beyond = segment.base + page_size();
    ftruncate(&segment.fd, page_size() as u64)?;
    // The value differs from what a readable page would hold, so that no call could block.
    for operation in [libc::FUTEX_WAKE, libc::FUTEX_WAIT_BITSET] {
        // SAFETY: the kernel checks the address, which is all that this is about; nothing else
        // reads or writes the word.
        let result = unsafe {
            let nothing = ptr::null::<libc::timespec>();
            libc::syscall(libc::SYS_futex, beyond, operation, 1, nothing, nothing, u32::MAX)
        };
        let error = NixErrno::last();
        ensure!(result == -1 && error == NixErrno::EFAULT, "{operation}: {result}, {error}");
    }
    if waitv_missing().is_none() {
        let mut entry = futex::Wait::new();
        entry.val = 1;
        entry.uaddr = futex::WaitPtr::new(ptr::with_exposed_provenance_mut(beyond));
        entry.flags = futex::WaitFlags::SIZE_U32;
        let none = futex::WaitvFlags::empty();
        let result = futex::waitv(&[entry], none, None, ClockId::Monotonic);
        ensure!(result == Err(Errno::FAULT), "futex_waitv: {result:?}");
    }
    Ok(Completed)
}

/// In private anonymous memory the shared kind of call works between threads, and it is the kind
/// that the kernel uses for a death notice: a waiter of the private kind misses that.
pub(crate) fn shared_flag_works_on_private_memory() -> Verdict {
    if let Some(reason) = robust_list_missing() {
        return skip(reason);
    }
    let life = Life::in_private_memory();
    let mut sleeper = Sleeper::on(life.word, SHARED)?;
    ensure!(wake(life.word, SHARED) == 1, "no wake between threads");
    ensure!(sleeper.result()? == Ok(0), "the waiter");

    let (end, ended) = mpsc::channel::<()>();
    let owner = thread::spawn(move || {
        life.link();
        // An error means that the trial has failed and dropped the sender.
        let _ = ended.recv();
    });
    wait_until("the owner", || life.word.load(SeqCst) != 0)?;
    let mut sleeper = Sleeper::on(life.word, SHARED)?;
    let _deaf = Sleeper::on(life.word, Flags::PRIVATE)?;
    end.send(())?;
    owner.join().expect("no panic");
    life.ensure_dead("the owner")?;
    ensure!(queued(life.word, SHARED) == 0, "the shared waiter missed the notice");
    ensure!(queued(life.word, Flags::PRIVATE) == 1, "the private waiter got it");
    ensure!(sleeper.result()? == Ok(0), "the shared waiter");
    Ok(Completed)
}
