//! Where the daemon says what happens.

use crate::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::stderr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A file that can be opened anew, or standard error, which has its times from whoever
/// reads it (the journal). It never waits for whoever reads it.
pub(crate) struct Log {
    file: Option<(PathBuf, File)>,
    /// How many lines could not be written since the last one that was.
    lost: usize,
}

fn open(path: &Path) -> Result<File> {
    // A FIFO that nobody reads is not waited for, either.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().create(true).append(true).custom_flags(flags).open(path);
    file.map_err(|error| format!("cannot open the log {}: {error}", path.display()).into())
}

/// Writes what can be written without waiting; returns how many lines cannot.
fn write(out: BorrowedFd<'_>, text: &str) -> usize {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        // Standard error is shared with others, so it is not made non-blocking: a pipe for
        // which there is POLLOUT takes a piece without waiting.
        let mut files = [PollFd::new(&out, PollFlags::OUT)];
        let polled = poll(&mut files, Some(&Timespec::default()));
        if polled.is_err() || !files[0].revents().contains(PollFlags::OUT) {
            break;
        }
        match rustix::io::write(out, &rest[..piece(rest)]) {
            Ok(count) if count > 0 => rest = &rest[count..],
            _ => break,
        }
    }
    rest.iter().filter(|byte| **byte == b'\n').count()
}

/// How much of `text` is written at a time: whole lines, unless one is too long.
fn piece(text: &[u8]) -> usize {
    let most = text.len().min(libc::PIPE_BUF);
    text[..most].iter().rposition(|byte| *byte == b'\n').map_or(most, |end| end + 1)
}

impl Log {
    pub(crate) fn open(path: Option<&Path>) -> Result<Self> {
        let file = path.map(|path| Ok::<_, Box<dyn std::error::Error>>((path.into(), open(path)?)));
        Ok(Self { file: file.transpose()?, lost: 0 })
    }

    /// Leaves the file to whoever renamed it, and begins another one; returns whether there
    /// is one. If that cannot be, the log stays where it is.
    pub(crate) fn reopen(&mut self) -> Result<bool> {
        if let Some((path, file)) = &mut self.file {
            *file = open(path)?;
        }
        Ok(self.file.is_some())
    }

    /// A line; or several, of which the first has the time. What cannot be written is
    /// lost: a full disk, or a pipe that nobody reads, is no reason for locks not to be
    /// served. How much it was is said when it goes on.
    pub(crate) fn say(&mut self, text: &str) {
        if self.lost > 0 && self.put(&format!("{} lines of the log were lost", self.lost)) == 0 {
            self.lost = 0;
        }
        self.lost += self.put(text.trim_end());
    }

    fn put(&self, text: &str) -> usize {
        match &self.file {
            Some((_, file)) => {
                let now = humantime::format_rfc3339_millis(SystemTime::now());
                write(file.as_fd(), &format!("{now} {text}\n"))
            }
            None => write(stderr().as_fd(), &format!("{text}\n")),
        }
    }
}
