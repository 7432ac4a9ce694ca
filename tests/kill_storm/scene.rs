//! A stage for a few puppets, on which nothing waits for ever.

use crate::hang;
use crate::kit::{Board, Process, Puppet, TempPath, board_with};
use heirlock::{Participant, Policy, Segment, Snapshot, WaitView};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A segment and its puppets. If they get stuck the segment is shown and the
/// puppets are killed, so that whoever waits for an answer gets an end of file.
pub(crate) struct Scene {
    pub(crate) path: TempPath,
    pub(crate) segment: Segment<Board>,
    cast: Arc<Mutex<Vec<Pid>>>,
    progress: Option<mpsc::Sender<()>>,
    watchdog: Option<JoinHandle<()>>,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with_policy(Policy::Fifo)
    }

    /// With locks of this policy.
    pub(crate) fn with_policy(policy: Policy) -> Self {
        let (path, segment) = board_with(policy);
        let cast = Arc::new(Mutex::new(Vec::new()));
        let (progress, watch) = mpsc::channel::<()>();
        let fd = segment.as_fd().try_clone_to_owned().expect("a descriptor");
        let pids = Arc::clone(&cast);
        let watchdog = thread::spawn(move || {
            loop {
                match watch.recv_timeout(hang()) {
                    Ok(()) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    Err(mpsc::RecvTimeoutError::Timeout) => return give_up(&fd, &pids),
                }
            }
        });
        Self { path, segment, cast, progress: Some(progress), watchdog: Some(watchdog) }
    }

    /// Tells the watchdog that something is under way that takes its time.
    pub(crate) fn progress(&self) {
        let _ = self.progress.as_ref().expect("not dropped").send(());
    }

    /// Has the watchdog watch over a process.
    pub(crate) fn watch(&self, process: &Process) {
        self.cast.lock().expect("no panics").push(process.pid());
    }

    /// From here on the process may be reaped, and its number be another's.
    pub(crate) fn unwatch(&self, process: &Process) {
        self.cast.lock().expect("no panics").retain(|pid| *pid != process.pid());
    }

    pub(crate) fn puppet(&self) -> Puppet {
        let puppet = Puppet::spawn(&self.path);
        self.watch(&puppet.process);
        puppet
    }

    /// A puppet that sleeps until it is woken, where faults are built in.
    pub(crate) fn sound_sleeper(&self) -> Puppet {
        let path = self.path.to_str().expect("a printable path");
        let mut command = Process::command("puppet", &[path]);
        for name in ["HEIRLOCK_HEARTBEAT_MS", "HEIRLOCK_LOSSY_MS"] {
            command.env(name, "3600000");
        }
        let puppet = Puppet::from_command(&mut command);
        self.watch(&puppet.process);
        puppet
    }

    pub(crate) fn kill(&self, puppet: Puppet) {
        self.unwatch(&puppet.process);
        puppet.kill();
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let offset = |lock| self.segment.offset_of(lock).expect("it is inside");
        let offsets: Vec<u64> = self.segment.locks.iter().map(offset).collect();
        Snapshot::of(self.segment.as_fd(), &offsets).expect("a snapshot")
    }

    pub(crate) fn owner(&self, lock: usize) -> Option<Participant> {
        heirlock::owner(&self.segment.locks[lock])
    }

    /// The row of who edits the queue of a lock, 0 for nobody. Read from where
    /// it is, as a whole snapshot after each instruction would take long.
    pub(crate) fn editor(&self, lock: usize) -> u32 {
        let offset = self.segment.offset_of(&self.segment.locks[lock]).expect("it is inside");
        let mut guard = [0; 4];
        rustix::io::pread(self.segment.as_fd(), &mut guard, offset + 12).expect("read");
        u32::from_ne_bytes(guard) & 0xffff
    }

    /// Starts a puppet's wait for a lock, and waits until it sleeps.
    pub(crate) fn park(&self, puppet: &mut Puppet, command: &str) {
        puppet.start(command);
        self.until_parked(puppet);
    }

    pub(crate) fn until_parked(&self, puppet: &Puppet) {
        until("a puppet sleeps in the queue", || {
            self.wait_state(puppet) == Some("parked") && is_asleep(puppet.process.pid())
        });
    }

    /// How a puppet's wait stands; `None` if it is in no queue.
    pub(crate) fn wait_state(&self, puppet: &Puppet) -> Option<&'static str> {
        let snapshot = self.snapshot();
        let view = snapshot.participant(puppet.participant.row())?;
        let waits = |wait: &&WaitView| wait.queued || wait.condvar.is_some() && !wait.notified;
        view.busy_with.as_ref().filter(waits).map(|wait| wait.state)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        drop(self.progress.take());
        if let Some(watchdog) = self.watchdog.take() {
            let _ = watchdog.join();
        }
    }
}

fn give_up(fd: &OwnedFd, cast: &Mutex<Vec<Pid>>) {
    use std::os::fd::AsFd;
    match Snapshot::of(fd.as_fd(), &[]) {
        Ok(snapshot) => eprintln!("\nstuck for {:?}:\n{snapshot}", hang()),
        Err(error) => eprintln!("\nstuck for {:?}: {error}", hang()),
    }
    // Stopped first, lest the death of one set free another.
    let cast = std::mem::take(&mut *cast.lock().expect("no panics"));
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in &cast {
            let _ = kill(*pid, signal);
        }
    }
}

/// Polls `condition`; panics if it does not come to hold before the watchdog
/// has long bitten.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < hang(), "waited {:?} in vain until {what}", hang());
        thread::sleep(Duration::from_micros(200));
    }
}

/// Whether a process's first thread sleeps in the kernel.
pub(crate) fn is_asleep(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}
