//! What must not compile, and what must: the types that may live in a segment, and how
//! long what borrows from it lives.
//!
//! With the compiler that the project is pinned to, its messages are compared as well,
//! so that each program is known to fail for the reason that it is there for.
//! `TRYBUILD=overwrite cargo test --package heirlock-compile-tests` writes them anew. They differ from
//! one compiler to the next: with another one all that is checked is that the programs
//! do not compile, and that is said.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs};

/// The compiler whose messages are recorded: the `rust-version` in `Cargo.toml`.
const RECORDED: &str = concat!("rustc ", env!("CARGO_PKG_RUST_VERSION"), ".");

fn main() {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().expect("rustc --version");
    let version = String::from_utf8_lossy(&version.stdout);
    let mut programs = PathBuf::from("fail");
    if !version.starts_with(RECORDED) {
        println!(
            "no messages are compared: they are recorded for {RECORDED}x, and this is {version}"
        );
        programs = without_messages(&programs);
        if env::var_os("TRYBUILD").is_none() {
            // In a process of its own, as it is the environment that says so.
            let mut again = Command::new(env::current_exe().expect("the own path"));
            again.args(env::args_os().skip(1)).env("TRYBUILD", "overwrite");
            exit(again.status().expect("run again").code().unwrap_or(101));
        }
    }
    let tests = trybuild::TestCases::new();
    tests.pass("pass/*.rs");
    tests.compile_fail(programs.join("*.rs"));
    drop(tests); // runs them, and panics if one fails
    println!("1 passed, 0 failed");
}

/// A copy of the programs alone: whatever the compiler says of one is right, as long as
/// it does not compile.
fn without_messages(programs: &Path) -> PathBuf {
    let copies = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("compile_fail");
    let _ = fs::remove_dir_all(&copies);
    fs::create_dir_all(&copies).expect("a directory for copies");
    for program in fs::read_dir(programs).expect("the programs") {
        let program = program.expect("a program").path();
        if program.extension().is_some_and(|extension| extension == "rs") {
            let name = program.file_name().expect("a file");
            fs::copy(&program, copies.join(name)).expect("copy a program");
        }
    }
    copies
}
