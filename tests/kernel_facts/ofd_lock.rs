//! Locks of open file descriptions: the second witness of a process's death.

use std::ffi::c_int;
use std::os::fd::OwnedFd;
use std::thread;

use libtest_mimic::Completion::Completed;
use nix::errno::Errno as NixErrno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::support::*;

fn ofd(fd: &OwnedFd, kind: c_int, byte: i64, get: bool) -> nix::Result<c_int> {
    let mut lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    if get {
        fcntl(fd, FcntlArg::F_OFD_GETLK(&mut lock))?;
    } else {
        fcntl(fd, FcntlArg::F_OFD_SETLK(&lock))?;
    }
    Ok(c_int::from(lock.l_type))
}

fn lock(fd: &OwnedFd, byte: i64) -> nix::Result<()> {
    ofd(fd, libc::F_WRLCK, byte, false).map(|_| ())
}

/// Whether a description other than that of `fd` holds a lock on `byte`.
fn held_elsewhere(fd: &OwnedFd, byte: i64) -> bool {
    ofd(fd, libc::F_WRLCK, byte, true).expect("F_OFD_GETLK") != libc::F_UNLCK
}

/// Two descriptions of one memfd exclude each other, byte by byte; one does not exclude itself,
/// neither through the same descriptor nor through a copy.
pub(crate) fn belongs_to_a_description() -> Verdict {
    let segment = Segment::new(1);
    let one = match segment.reopen() {
        Ok(one) => one,
        Err(error) => return skip(format!("/proc/self/fd cannot be used: {error}")),
    };
    let (two, copy) = (segment.reopen()?, one.try_clone()?);
    lock(&one, 3)?;
    ensure!(!held_elsewhere(&one, 3), "GETLK reports the description's own lock");
    ensure!(!held_elsewhere(&copy, 3), "GETLK reports it through a copy");
    ensure!(held_elsewhere(&two, 3), "another description does not see the lock");
    ensure!(held_elsewhere(&segment.fd, 3), "the first description does not see the lock");
    ensure!(lock(&two, 3) == Err(NixErrno::EAGAIN), "two hold the same byte");
    lock(&copy, 3)?;
    ensure!(!held_elsewhere(&two, 4), "a neighbouring byte is locked, too");
    lock(&two, 4)?;
    ofd(&one, libc::F_UNLCK, 3, false)?;
    lock(&two, 3)?;
    ensure!(held_elsewhere(&one, 3), "the lock did not change hands");
    Ok(Completed)
}

/// A killed process loses its locks.
pub(crate) fn ends_with_a_killed_process() -> Verdict {
    let segment = Segment::new(1);
    let mut child = Child::parked(|| {
        let own = segment.reopen().expect("reopen");
        lock(&own, 0).expect("F_OFD_SETLK");
        std::mem::forget(own);
    })?;
    ensure!(held_elsewhere(&segment.fd, 0), "the living child holds no lock");
    child.kill()?;
    wait_until("the end of the lock", || !held_elsewhere(&segment.fd, 0))?;
    Ok(Completed)
}

/// `execve`, from whichever thread, ends the locks of close-on-exec descriptors, and only those.
pub(crate) fn ends_with_execve() -> Verdict {
    for from_leader in [true, false] {
        let segment = Segment::new(1);
        let exec = |segment: &Segment| {
            let [closing, staying] = [(); 2].map(|()| segment.reopen().expect("reopen"));
            rustix::io::fcntl_setfd(&staying, rustix::io::FdFlags::empty()).expect("F_SETFD");
            lock(&closing, 0).expect("F_OFD_SETLK");
            lock(&staying, 1).expect("F_OFD_SETLK");
            become_sleep();
        };
        let mut child = Child::spawn(|| {
            if from_leader {
                exec(&segment);
            } else {
                thread::scope(|scope| {
                    scope.spawn(|| exec(&segment));
                    park_forever();
                });
            }
        })?;
        child.replaced()?;
        wait_until("the end of the lock", || !held_elsewhere(&segment.fd, 0))?;
        ensure!(held_elsewhere(&segment.fd, 1), "the other descriptor was closed as well");
        child.kill()?;
        wait_until("the end of the other lock", || !held_elsewhere(&segment.fd, 1))?;
    }
    Ok(Completed)
}

/// A forked child shares the description, and so keeps its locks when the parent has closed it.
pub(crate) fn survives_in_a_forked_child() -> Verdict {
    let segment = Segment::new(1);
    let own = segment.reopen()?;
    lock(&own, 0)?;
    let mut child = Child::parked(|| ())?;
    drop(own);
    ensure!(held_elsewhere(&segment.fd, 0), "the lock ended with the parent's descriptor");
    child.kill()?;
    wait_until("the end of the lock", || !held_elsewhere(&segment.fd, 0))?;
    Ok(Completed)
}
