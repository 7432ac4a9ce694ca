//! The examples of other runtimes run, and count what they are to count.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take that ought to take no time.
const HANG: Duration = Duration::from_secs(30);

/// An example that runs; killed and reaped when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(example: &str) -> String {
    // Beside this program's directory, `deps`.
    let mut path: PathBuf = std::env::current_exe().expect("the own path");
    path.pop();
    path.pop();
    path.push("examples");
    path.push(example);
    let mut command = Command::new(&path);
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut running = Running(spawned.unwrap_or_else(|error| {
        panic!("{}: {error}; `cargo test` builds it, `cargo test --test` may not", path.display())
    }));
    let start = Instant::now();
    let status = loop {
        match running.0.try_wait().expect("look at a child") {
            Some(status) => break status,
            None => assert!(start.elapsed() < HANG, "{example} still runs after {HANG:?}"),
        }
        thread::sleep(Duration::from_millis(1));
    };
    // As little as it says waits in the pipes.
    let mut text = String::new();
    running.0.stdout.take().expect("stdout").read_to_string(&mut text).expect("read");
    let said = text.len();
    running.0.stderr.take().expect("stderr").read_to_string(&mut text).expect("read");
    assert!(status.success(), "{example}: {status}: {text}");
    text.truncate(said);
    text
}

#[test]
fn twenty_connections_of_a_tokio_server_add_up() {
    assert!(run("tokio").contains("210, of 210"));
}

#[test]
fn tasks_of_compio_add_up() {
    let said = run("compio");
    let refused = said.contains("io_uring is refused");
    if refused {
        // Not by a macro, whose output is shown of failed tests only.
        let _ = write!(std::io::stderr(), "compio: skipped: {said}");
    }
    assert!(said.contains("400, of 400") || refused, "{said}");
}
