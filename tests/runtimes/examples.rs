//! The examples of other runtimes run, and count what they are to count.

use std::path::PathBuf;
use std::process::Command;

fn run(example: &str) -> String {
    // Beside this program's directory, `deps`.
    let mut path: PathBuf = std::env::current_exe().expect("the own path");
    path.pop();
    path.pop();
    path.push("examples");
    path.push(example);
    let output = Command::new(&path).output().unwrap_or_else(|error| {
        panic!("{}: {error}; `cargo test` builds it, `cargo test --test` may not", path.display())
    });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn twenty_connections_of_a_tokio_server_add_up() {
    assert!(run("tokio").contains("210, of 210"));
}

#[test]
fn tasks_of_compio_add_up() {
    let said = run("compio");
    assert!(said.contains("400, of 400") || said.contains("io_uring is refused"), "{said}");
}
