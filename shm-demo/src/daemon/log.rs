//! Where the daemon says what happens.

use crate::Result;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A file that can be opened anew, or standard error, which has its times from whoever
/// reads it (the journal).
pub(crate) struct Log(Option<(PathBuf, File)>);

fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.map_err(|error| format!("cannot open the log {}: {error}", path.display()).into())
}

impl Log {
    pub(crate) fn open(path: Option<&Path>) -> Result<Self> {
        let file = path.map(|path| Ok::<_, Box<dyn std::error::Error>>((path.into(), open(path)?)));
        Ok(Self(file.transpose()?))
    }

    /// Leaves the file to whoever renamed it, and begins another one. If that cannot be,
    /// the log stays where it is.
    pub(crate) fn reopen(&mut self) -> Result<()> {
        if let Some((path, file)) = &mut self.0 {
            *file = open(path)?;
        }
        Ok(())
    }

    /// A line; or several, of which the first has the time. What cannot be written is
    /// lost: a full disk is no reason for locks not to be served.
    pub(crate) fn say(&mut self, text: &str) {
        let text = text.trim_end();
        let _ = match &mut self.0 {
            Some((_, file)) => {
                let now = humantime::format_rfc3339_millis(SystemTime::now());
                file.write_all(format!("{now} {text}\n").as_bytes())
            }
            None => std::io::stderr().write_all(format!("{text}\n").as_bytes()),
        };
    }
}
