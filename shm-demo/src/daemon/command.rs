//! A command that runs while a lock is held, and not without it.
#![allow(unsafe_code)]

use crate::Result;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::{CommandExt, parent_id};
use std::process::{Child, Command, ExitStatus};

/// Tells the command which process had the lock before and did not unlock it.
const INHERITED: &str = "HEIRLOCK_INHERITED";

const PASSED_ON: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// How it came to an end.
pub(crate) enum Ended {
    ByItself(ExitStatus),
    /// It was sent SIGTERM, as the lock was lost.
    Lost,
}

/// Killed and reaped when dropped: if nobody can wait for it, it must not go on.
struct Running(Child);

/// Runs `words` until their end. Signals that ask this process to end go to the command,
/// from now on; that of `lifeline` is the end of the lock.
pub(crate) fn run(
    words: &[String],
    inherited: Option<&str>,
    lifeline: Option<BorrowedFd<'_>>,
) -> Result<Ended> {
    let (program, arguments) = words.split_first().ok_or("there is no command to run")?;
    let mut command = Command::new(program);
    command.args(arguments);
    match inherited {
        Some(pid) => command.env(INHERITED, pid),
        // It may be of a lock that this process runs with.
        None => command.env_remove(INHERITED),
    };
    // Read, and not handled: what is ignored (`nohup`) stays so, for the command as well,
    // and it is said who has sent them.
    let signals: SigSet = PASSED_ON.into_iter().collect();
    let before = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let parent = std::process::id();
    let prepare = move || {
        before.thread_set_mask()?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if parent_id() != parent {
            // It was killed before that, and nobody reads this.
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes three system calls, and takes no lock and no
    // memory.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn().map_err(|error| format!("cannot run {program}: {error}"))?;
    Running(child).wait(&signals, lifeline)
}

impl Running {
    fn wait(&mut self, signals: &SignalFd, mut lifeline: Option<BorrowedFd<'_>>) -> Result<Ended> {
        let pid = rustix::process::Pid::from_child(&self.0);
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let mut lost = false;
        loop {
            let mut files =
                vec![PollFd::new(&process, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            files.extend(lifeline.iter().map(|socket| PollFd::new(socket, PollFlags::RDHUP)));
            retry_on_intr(|| poll(&mut files, None))?;
            let ready: Vec<bool> = files.iter().map(|file| !file.revents().is_empty()).collect();
            if ready[0] {
                let status = self.0.wait()?;
                return Ok(if lost { Ended::Lost } else { Ended::ByItself(status) });
            }
            while let Some(signal) = signals.read_signal()? {
                // That of a terminal (Ctrl-C) comes from the kernel, which has sent it to the
                // command, too.
                if signal.ssi_code != libc::SI_KERNEL {
                    self.send(Signal::try_from(signal.ssi_signo as i32)?)?;
                }
            }
            if ready.get(2) == Some(&true) {
                eprintln!(
                    "shm-demo: the connection to the daemon is lost, and with it the lock; ends \
                     the command"
                );
                (lifeline, lost) = (None, true);
                self.send(Signal::SIGTERM)?;
            }
        }
    }

    fn send(&self, signal: Signal) -> Result<()> {
        // It was not reaped yet: the number is its own.
        Ok(kill(Pid::from_raw(self.0.id() as i32), signal)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
