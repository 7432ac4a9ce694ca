//! `shm-demo pool`: that what killed clients had comes back, and that nobody gets what
//! somebody else has.

mod kit;

use kit::{Demo, Said, TempPath, assert_nobody_outlives, assert_signals_end};
use serde_json::json;
use std::process::Command;

#[track_caller]
fn assert_held(said: &Said, size: u64, requests: u64, kills: u64) {
    assert_eq!(said.code(), Some(0), "{said:?}");
    assert_eq!(said.json()["outcome"], "held", "{said:?}");
    assert_eq!(said.json()["failures"], json!([]));
    assert_eq!(said.number("kills"), kills);
    assert_eq!(said.number("slots_free"), size);
    assert!(said.number("requests_answered") >= requests, "{said:?}");
    for field in ["overlaps", "wrong", "order_inversions", "kills_from_outside"] {
        assert_eq!(said.number(field), 0, "{field} in {said:?}");
    }
}

fn pool(path: &TempPath, args: &[&str]) -> Said {
    Demo::run(&[&["pool", "--json", "--path", path.str()], args].concat())
}

#[test]
fn slots_of_the_killed_come_back() {
    let path = TempPath::new();
    let args = ["--size", "5", "--clients", "20", "--requests", "5000", "--kills", "120"];
    let said = pool(&path, &args);
    assert_held(&said, 5, 5000, 120);
    said.assert_floors(&[
        ("slots_taken", 5000),
        ("slots_of_the_dead", 10),
        ("inherited", 1),
        ("waits", 100),
        ("order_checked", 1000),
        ("connections", 60),
    ]);
    said.assert_explained(&["pool"]);
    path.assert_clean();
}

#[test]
fn one_connection_is_enough() {
    let path = TempPath::new();
    let args = ["--size", "1", "--clients", "6", "--requests", "500", "--kills", "40"];
    let said = pool(&path, &args);
    assert_held(&said, 1, 500, 40);
    said.assert_floors(&[("slots_of_the_dead", 3), ("waits", 100)]);
    path.assert_clean();
}

#[test]
fn more_slots_than_clients() {
    let path = TempPath::new();
    let args = ["--size", "8", "--clients", "3", "--requests", "500", "--kills", "0"];
    let said = pool(&path, &args);
    assert_held(&said, 8, 500, 0);
    assert_eq!((said.number("slots_of_the_dead"), said.number("inherited")), (0, 0), "{said:?}");
    path.assert_clean();
}

#[test]
fn the_check_fails_if_nobody_takes_slots_back() {
    let path = TempPath::new();
    // Fewer kills than slots: the clients can go on.
    let args = ["--size", "32", "--clients", "8", "--requests", "3000", "--kills", "31"];
    let said = pool(&path, &[&args[..], &["--without-repair"]].concat());
    assert_eq!(said.code(), Some(1), "{said:?}");
    assert_eq!(said.json()["outcome"], "failed");
    assert!(said.err.contains("of 32 slots are free at the end"), "{said:?}");
    path.assert_clean();
}

const ENDLESS: [&str; 5] = ["pool", "--requests", "1000000000", "--kills", "1000000"];

#[test]
fn signals_end_it_cleanly() {
    assert_signals_end(&ENDLESS);
}

#[test]
fn clients_do_not_outlive_their_parent() {
    assert_nobody_outlives(&ENDLESS);
}

#[test]
fn says_in_words_what_it_showed() {
    let said = Demo::run(&["pool", "--requests", "200", "--kills", "3"]);
    assert_eq!(said.code(), Some(0), "{said:?}");
    for what in ["20 processes", "5 connections", "3 of 3", "0 overlaps", "5 of 5 free", "held"] {
        assert!(said.out.contains(what), "no {what:?} in {said:?}");
    }
    assert_eq!(said.err, "");
}

#[test]
fn says_what_is_wrong_with_the_command_line() {
    Demo::run(&["pool", "--size", "0"]).assert_error(2, "--size");
    Demo::run(&["pool", "--size", "33"]).assert_error(2, "1..=32");
    Demo::run(&["pool", "--clients", "129"]).assert_error(2, "1..=128");
    Demo::run(&["pool", "--requests", "0"]).assert_error(2, "--requests");
    Demo::run(&["pool", "--kills", "-1"]).assert_error(2, "-1");
    Demo::run(&["pool", "--path", "/nonexistent/x"]).assert_error(1, "does the directory exist");
    Demo::run(&["pool-client", "/nonexistent", "0", "1"]).assert_error(1, "started by");
}

#[test]
fn says_so_if_so_many_files_are_not_allowed() {
    let run = format!("ulimit -n 300; exec {} pool --size 32", env!("CARGO_BIN_EXE_shm-demo"));
    let said = Command::new("sh").args(["-c", &run]).output().expect("run a shell");
    let error = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{error}");
    assert!(error.contains("need 724 open files, and 300 are allowed"), "{error}");
}
