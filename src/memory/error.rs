//! What can go wrong between a path and a mapping.

use rustix::io::Errno;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why a segment could not be created or opened. `Display` says what was found
/// and what was expected.
#[derive(Debug)]
#[non_exhaustive]
pub enum SegmentError {
    /// The operating system refused a step.
    Io {
        /// The step, for example `"open"`.
        step: &'static str,
        /// The file, where it has a name.
        path: Option<PathBuf>,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no file to open (and this call does not create one).
    NotFound {
        /// The path that was looked up.
        path: PathBuf,
    },
    /// `create` found that there is a file already.
    AlreadyExists {
        /// The path of the file.
        path: PathBuf,
    },
    /// The path names a symbolic link; those are not followed.
    SymbolicLink {
        /// The path of the link.
        path: PathBuf,
    },
    /// A directory, device, socket or FIFO.
    NotAFile,
    /// The file does not start with the magic number of a segment.
    NotASegment {
        /// Its first eight bytes.
        found: [u8; 8],
    },
    /// A header field is not what this program expects.
    Mismatch {
        /// Which one.
        field: &'static str,
        /// Its value in the file.
        found: u64,
        /// The value expected (of a capacity: the largest).
        expected: u64,
    },
    /// The file is shorter (or longer) than its header says.
    Truncated {
        /// The size of the file in bytes.
        found: u64,
        /// The size expected in bytes.
        expected: u64,
    },
    /// The file is empty, or its creator has not finished it, or died before it
    /// could. `open_or_create` finishes it.
    Unfinished,
    /// The segment would be larger than the address space.
    TooLarge,
    /// An option is out of range.
    InvalidOption {
        /// Which one.
        option: &'static str,
        /// Its value.
        found: u64,
        /// The largest value allowed; the smallest is 1.
        max: u64,
    },
}

impl SegmentError {
    pub(crate) fn io(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { step, path: None, source }
    }

    /// What the kernel says of a path, in the words of this type.
    pub(crate) fn of_path(step: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match Errno::from_io_error(&source) {
            Some(Errno::NOENT) => Self::NotFound { path },
            Some(Errno::EXIST) => Self::AlreadyExists { path },
            Some(Errno::LOOP) => Self::SymbolicLink { path },
            Some(Errno::ISDIR) => Self::NotAFile,
            _ => Self::Io { step, path: Some(path), source },
        }
    }
}

impl fmt::Display for SegmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { step, path: Some(path), source } => {
                write!(f, "cannot {step} {}: {source}", path.display())
            }
            Self::Io { step, path: None, source } => write!(f, "cannot {step} segment: {source}"),
            Self::NotFound { path } => {
                write!(f, "{}: no such file (or no such directory)", path.display())
            }
            Self::AlreadyExists { path } => write!(
                f,
                "{} exists already; use Segment::open or open_or_create, or unlink it",
                path.display()
            ),
            Self::SymbolicLink { path } => write!(
                f,
                "{} is a symbolic link, which is not followed; name its target",
                path.display()
            ),
            Self::NotAFile => f.write_str("not a regular file; a segment is one, or a memfd"),
            Self::NotASegment { found } => write!(
                f,
                "not a heirlock segment: it starts with \"{}\", expected \"HEIRLOCK\"; \
                 it was left as it is",
                found.escape_ascii()
            ),
            Self::Mismatch { field: "capacity", found, expected } => {
                write!(f, "the segment's capacity is {found}, expected 1 to {expected}")
            }
            Self::Mismatch { field, found, expected } => write!(
                f,
                "the segment's {field} is {found}, this program expects {expected}; \
                 open it with the program that made it, or unlink it"
            ),
            Self::Truncated { found, expected } => write!(
                f,
                "the segment's file has {found} bytes, expected {expected}: \
                 somebody changed its size; unlink it"
            ),
            Self::Unfinished => f.write_str(
                "the segment is not finished: its creator is at work, or died; \
                 Segment::open_or_create waits for the one and finishes after the other",
            ),
            Self::TooLarge => f.write_str("the segment would not fit into the address space"),
            Self::InvalidOption { option, found, max } => {
                write!(f, "{option} is {found}, allowed is 1 to {max}")
            }
        }
    }
}

impl std::error::Error for SegmentError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Shared memory holds what no participant can have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Corrupted(pub(crate) &'static str);

impl fmt::Display for Corrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the segment is corrupted ({}): some process wrote into it that should not have; \
             stop its users and unlink it",
            self.0
        )
    }
}
