//! Open-file-description locks (`F_OFD_SETLK`, Linux 3.15): the kernel drops
//! them when the last reference to the description goes, so at exit and, on an
//! `O_CLOEXEC` descriptor, at exec. They are keyed by inode, so namespaces do
//! not matter.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::os::fd::BorrowedFd;

fn request(kind: i32, byte: u64) -> nix::libc::flock {
    nix::libc::flock {
        l_type: kind as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: byte as i64,
        l_len: 1,
        l_pid: 0, // demanded by the kernel for OFD locks
    }
}

/// Locks one byte exclusively; `false` when another description holds it.
pub(crate) fn try_lock(fd: BorrowedFd, byte: u64) -> Result<bool, std::io::Error> {
    match fcntl(fd, FcntlArg::F_OFD_SETLK(&request(nix::libc::F_WRLCK, byte))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Locks one byte exclusively, waiting for its holder as long as it takes.
pub(crate) fn lock(fd: BorrowedFd, byte: u64) -> Result<(), std::io::Error> {
    loop {
        match fcntl(fd, FcntlArg::F_OFD_SETLKW(&request(nix::libc::F_WRLCK, byte))) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Drops the lock on one byte. Closing the description does it as well, so a
/// failure leaves nothing behind that outlives the process.
pub(crate) fn unlock(fd: BorrowedFd, byte: u64) {
    let _ = fcntl(fd, FcntlArg::F_OFD_SETLK(&request(nix::libc::F_UNLCK, byte)));
}

/// Whether another description holds the byte. A lock of `fd`'s own
/// description is not reported.
pub(crate) fn locked_elsewhere(fd: BorrowedFd, byte: u64) -> Result<bool, std::io::Error> {
    let mut query = request(nix::libc::F_WRLCK, byte);
    fcntl(fd, FcntlArg::F_OFD_GETLK(&mut query))?;
    Ok(i32::from(query.l_type) != nix::libc::F_UNLCK)
}
