//! A process that measures by itself, and says on its standard output what it found.

use super::stage::{STUCK, Stage};
use crate::Result;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child as Process, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How often it is looked whether a signal came.
const PAUSE: Duration = Duration::from_millis(20);

/// This program, to play a part of its own.
pub(crate) fn this_program() -> Command {
    // Not by its name: that may be another program by now.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("shm-demo");
    command
}

/// Killed and reaped when it is dropped.
pub(crate) struct Child {
    process: Process,
    lines: Receiver<String>,
}

impl Child {
    /// Starts one for a part, `bench-solo PARENT PART...`.
    pub(crate) fn start(part: &[&str]) -> Result<Self> {
        let mut process = this_program()
            .args(["bench-solo", &std::process::id().to_string()])
            .args(part)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = process.stdout.take().expect("it is piped");
        let (tell, lines) = channel();
        // Ends with the process.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { process, lines })
    }

    /// The next thing that it says. An error if that takes too long.
    pub(crate) fn line(&mut self, stage: &Stage) -> Result<String> {
        let start = Instant::now();
        loop {
            match self.lines.recv_timeout(PAUSE) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(format!("a child ended with {}", self.process.wait()?).into());
                }
                Err(RecvTimeoutError::Timeout) if start.elapsed() > STUCK => {
                    return Err(format!("a child made no progress for {STUCK:?}").into());
                }
                Err(RecvTimeoutError::Timeout) => stage.go_on()?,
            }
        }
    }

    /// The same, of numbers.
    pub(crate) fn numbers(&mut self, stage: &Stage) -> Result<Vec<f64>> {
        let line = self.line(stage)?;
        Ok(line.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?)
    }

    /// Kills it and reaps it.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
