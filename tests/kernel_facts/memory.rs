//! Memory: reserving it, and keeping it from children.

use std::ffi::c_int;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::atomic::Ordering::SeqCst;

use libtest_mimic::Completion::Completed;
use nix::errno::Errno as NixErrno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags};

use crate::support::*;

/// On a full tmpfs `fallocate` fails in time, where a mere `ftruncate` leads to `SIGBUS` later.
pub(crate) fn fallocate_reserves_memory() -> Verdict {
    const BIG: usize = 1 << 20;
    let (denied, checked) = (shared_words()(0), shared_words()(0));
    let mut child = Child::spawn(|| {
        without_core_dump();
        if let Err(error) = mount_small_tmpfs() {
            denied.store(error as u32, SeqCst);
            return;
        }
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open("/tmp/segment");
        let file = OwnedFd::from(file.expect("a file in the tmpfs"));
        let reserve = |length| fallocate(&file, FallocateFlags::empty(), 0, length as u64);
        reserve(4 * page_size()).expect("the small file fits");
        assert_eq!(reserve(BIG), Err(Errno::NOSPC));
        ftruncate(&file, BIG as u64).expect("ftruncate reserves nothing");
        let base = map(BIG, MapFlags::SHARED, Some(&file));
        word_at(base).store(1, SeqCst);
        checked.store(1, SeqCst);
        for page in 0..BIG / page_size() {
            word_at(base + page * page_size()).store(1, SeqCst);
        }
    })?;
    let outcome = child.outcome()?;
    if denied.load(SeqCst) != 0 {
        let error = NixErrno::from_raw(denied.load(SeqCst) as c_int);
        return skip(format!("no tmpfs can be mounted here: {error}"));
    }
    ensure!(checked.load(SeqCst) == 1, "before the crash: {outcome:?}");
    let crashed = matches!(outcome, WaitStatus::Signaled(_, Signal::SIGBUS, _));
    ensure!(crashed, "unreserved pages: {outcome:?}");
    Ok(Completed)
}

/// Puts a tmpfs of 64 KiB over /tmp, in a mount namespace that only this process is in.
fn mount_small_tmpfs() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let (none, private) = (ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
    // SAFETY: all strings are literals that end in NUL, and absent ones are allowed to be null.
    let results = unsafe {
        [
            libc::mount(none, c"/".as_ptr(), none, private, none.cast()),
            libc::mount(
                c"none".as_ptr(),
                c"/tmp".as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                c"size=64k".as_ptr().cast(),
            ),
        ]
    };
    results.iter().try_for_each(|&result| NixErrno::result(result).map(|_| ()))
}

/// A mapping with `MADV_DONTFORK` does not exist in a forked child.
pub(crate) fn dontfork_mapping_is_absent_in_the_child() -> Verdict {
    let page = page_size();
    let kept = map(2 * page, MapFlags::SHARED, None);
    let absent = kept + page;
    // SAFETY: the advice concerns children only; this process keeps the page.
    unsafe {
        let absent = ptr::with_exposed_provenance_mut(absent);
        rustix::mm::madvise(absent, page, Advice::LinuxDontFork)?;
    }
    let mapped = |address: usize| {
        let mut residency = 0_u8;
        let address = ptr::with_exposed_provenance_mut(address);
        // SAFETY: asks about one page, for which the kernel writes one byte.
        let result = unsafe { libc::mincore(address, page, &raw mut residency) };
        NixErrno::result(result).map(|_| ())
    };
    ensure!(mapped(absent).is_ok(), "absent in the parent");
    let child = Child::spawn(|| {
        assert_eq!(mapped(kept), Ok(()));
        assert_eq!(mapped(absent), Err(NixErrno::ENOMEM));
    })?;
    child.succeed()?;
    Ok(Completed)
}
