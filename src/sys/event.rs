//! Descriptors that become readable.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::BorrowedFd;
#[cfg(feature = "tokio")]
use std::os::fd::OwnedFd;

/// Sleeps until `fd` is readable, or a signal handler runs.
pub(crate) fn wait_until_readable(fd: BorrowedFd) -> io::Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A counter that is readable unless it is 0.
#[cfg(feature = "tokio")]
pub(crate) fn counter() -> io::Result<OwnedFd> {
    use rustix::event::{EventfdFlags, eventfd};
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Sets the counter to 0.
#[cfg(feature = "tokio")]
pub(crate) fn reset(fd: BorrowedFd) {
    // It fails only if it is 0 already.
    let _ = rustix::io::read(fd, &mut [0; 8]);
}
