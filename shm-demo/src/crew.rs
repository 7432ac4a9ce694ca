//! The worker processes, as their parent sees them: none is left behind.

use crate::Result;
use crate::signals::Signals;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use std::ffi::CString;
use std::io;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// What a process does first that `parent` has started for `shm-demo DEMO`.
pub(crate) fn enlist(parent: u32, demo: &str) -> Result<Signals> {
    // The parent can be killed, too, and then nobody else would end this.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if parent_id() != parent {
        return Err(format!("this is started by `shm-demo {demo}` only; its parent is gone").into());
    }
    // Ctrl-C goes to the whole group. The parent sees to the end of it.
    Signals::watch()
}

/// Names the calling thread, so that `inspect` shows who is who.
pub(crate) fn set_name(name: String) -> Result<()> {
    Ok(prctl::set_name(&CString::new(name)?)?)
}

/// The workers, each in its place. Dropping it kills and reaps them all.
pub(crate) struct Crew {
    /// The subcommand that is a worker's, and what it is told besides where the
    /// segment is, which place is its own, and who started it.
    role: &'static str,
    more: Vec<String>,
    path: PathBuf,
    /// `None` where a worker has ended, and has been reaped.
    places: Vec<Option<Child>>,
}

impl Crew {
    /// A crew for the segment at `path`, of nobody so far.
    pub(crate) fn new(role: &'static str, path: &Path, workers: usize, more: &[&str]) -> Self {
        let more = more.iter().map(ToString::to_string).collect();
        Self { role, more, path: path.to_path_buf(), places: (0..workers).map(|_| None).collect() }
    }

    /// Starts a worker in the place `slot`, which is empty.
    pub(crate) fn start(&mut self, slot: usize) -> io::Result<()> {
        // Not by its name: that may be another program by now.
        let child = Command::new("/proc/self/exe")
            .arg0("shm-demo")
            .arg(self.role)
            .arg(&self.path)
            .arg(slot.to_string())
            .arg(std::process::id().to_string())
            .args(&self.more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        self.places[slot] = Some(child);
        Ok(())
    }

    /// The places in which a worker runs, as far as is known.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.places.len()).filter(|slot| self.places[*slot].is_some()).collect()
    }

    /// The worker in place `slot`. Its ID is nobody else's as long as the crew is
    /// borrowed, which alone reaps it.
    pub(crate) fn pid(&self, slot: usize) -> Option<i32> {
        self.places[slot].as_ref().map(|child| child.id() as i32)
    }

    /// Kills the worker in place `slot` and reaps it. How it ended says whether
    /// it was still running; `None` if there was nobody.
    pub(crate) fn kill(&mut self, slot: usize) -> io::Result<Option<ExitStatus>> {
        let Some(mut child) = self.places[slot].take() else { return Ok(None) };
        child.kill()?;
        child.wait().map(Some)
    }

    /// A worker that has ended by itself since the last call.
    pub(crate) fn ended(&mut self) -> io::Result<Option<(usize, ExitStatus)>> {
        for (slot, place) in self.places.iter_mut().enumerate() {
            if let Some(child) = place
                && let Some(status) = child.try_wait()?
            {
                *place = None;
                return Ok(Some((slot, status)));
            }
        }
        Ok(None)
    }

    /// Kills and reaps all who are left.
    pub(crate) fn dismiss(&mut self) {
        let mut children: Vec<Child> = self.places.iter_mut().filter_map(Option::take).collect();
        // All at once, so that nobody waits for those who are still running.
        for child in &mut children {
            let _ = child.kill();
        }
        for child in &mut children {
            let _ = child.wait();
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.dismiss();
    }
}
