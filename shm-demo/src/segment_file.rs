//! The file of a run's segment, which goes when the run ends.

use crate::{Result, about_path};
use heirlock::{Segment, SegmentError};
use std::path::{Path, PathBuf};

/// The name of the segment, which is removed at the end.
pub(crate) struct SegmentFile(pub(crate) PathBuf);

impl SegmentFile {
    /// Has `create` make a segment at `path`, or else at a path of its own that
    /// has `name` in it.
    pub(crate) fn create<T>(
        path: Option<&Path>,
        name: &str,
        create: impl Fn(&Path) -> std::result::Result<Segment<T>, SegmentError>,
    ) -> Result<(Self, Segment<T>)> {
        if let Some(path) = path {
            return match create(path) {
                Ok(segment) => Ok((Self(path.to_path_buf()), segment)),
                Err(SegmentError::AlreadyExists { path }) => Err(format!(
                    "{} exists already, perhaps from an earlier run; two runs are never \
                     mixed: remove it, or choose another path",
                    path.display()
                )
                .into()),
                Err(SegmentError::NotFound { path }) => Err(format!(
                    "{}: no file can be created there; does the directory exist?",
                    path.display()
                )
                .into()),
                Err(error) => Err(about_path(path, &error).into()),
            };
        }
        // A run of the same PID may have been killed, or may be at work in
        // another PID namespace.
        let mut path = PathBuf::from(format!("/dev/shm/heirlock-{name}-{}", std::process::id()));
        let mut tries = 0;
        loop {
            match create(&path) {
                Ok(segment) => return Ok((Self(path), segment)),
                Err(SegmentError::AlreadyExists { .. }) if tries < 100 => {
                    tries += 1;
                    path.set_file_name(format!("heirlock-{name}-{}-{tries}", std::process::id()));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for SegmentFile {
    fn drop(&mut self) {
        if let Err(error) = Segment::unlink(&self.0) {
            eprintln!("shm-demo: cannot remove the segment: {error}");
        }
    }
}
