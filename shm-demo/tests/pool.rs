//! `shm-demo pool`: that what killed clients had comes back, and that nobody gets what
//! somebody else has.

mod kit;

use kit::{
    Said, TempPath, assert_explains, assert_nobody_outlives, assert_refuses, assert_says,
    assert_signals_end,
};
use std::process::Command;

#[track_caller]
fn assert_held(said: &Said, size: u64, requests: u64, kills: u64) {
    said.assert_held_through(kills);
    assert_eq!(said.number("slots_free"), size);
    assert!(said.number("requests_answered") >= requests, "{said:?}");
    said.assert_none(&["overlaps", "wrong", "order_inversions"]);
}

#[test]
fn slots_of_the_killed_come_back() {
    let path = TempPath::new();
    let said = path.run("pool --size 5 --clients 20 --requests 5000 --kills 120 --json");
    assert_held(&said, 5, 5000, 120);
    said.assert_floors(&[
        ("slots_taken", 5000),
        ("slots_of_the_dead", 3),
        ("inherited", 1),
        ("waits", 30),
        ("order_checked", 1000),
        ("connections", 60),
    ]);
    assert_explains("pool", &said.json());
    path.assert_clean();
}

#[test]
fn one_connection_is_enough() {
    let path = TempPath::new();
    let said = path.run("pool --size 1 --clients 6 --requests 500 --kills 40 --json");
    assert_held(&said, 1, 500, 40);
    said.assert_floors(&[("slots_of_the_dead", 1), ("waits", 20)]);
    path.assert_clean();
}

#[test]
fn more_slots_than_clients() {
    let path = TempPath::new();
    let said = path.run("pool --size 8 --clients 3 --requests 500 --kills 0 --json");
    assert_held(&said, 8, 500, 0);
    said.assert_none(&["slots_of_the_dead", "inherited"]);
    path.assert_clean();
}

#[test]
fn the_check_fails_if_nobody_takes_slots_back() {
    let path = TempPath::new();
    // Fewer kills than slots: the clients can go on.
    let line = "pool --size 32 --clients 8 --requests 3000 --kills 31 --without-repair --json";
    path.run(line).assert_failed("of 32 slots are free at the end");
    path.assert_clean();
}

const ENDLESS: &str = "pool --requests 1000000000 --kills 1000000";

#[test]
fn signals_end_it_cleanly() {
    assert_signals_end(ENDLESS);
}

#[test]
fn clients_do_not_outlive_their_parent() {
    assert_nobody_outlives(ENDLESS);
}

#[test]
fn says_in_words_what_it_showed() {
    let whats = ["20 processes", "5 connections", "3 of 3", "0 overlaps", "5 of 5 free", "held"];
    assert_says("pool --requests 200 --kills 3", &whats);
}

#[test]
fn says_what_is_wrong_with_the_command_line() {
    let refused = [
        ("--size 0", "--size"),
        ("--size 33", "1..=32"),
        ("--clients 129", "1..=128"),
        ("--requests 0", "--requests"),
        ("--kills -1", "-1"),
    ];
    assert_refuses("pool", &refused, "pool-client /nonexistent 0 1");
}

#[test]
fn says_so_if_so_many_files_are_not_allowed() {
    let run = format!("ulimit -n 300; exec {} pool --size 32", env!("CARGO_BIN_EXE_shm-demo"));
    let said = Command::new("sh").args(["-c", &run]).output().expect("run a shell");
    let error = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{error}");
    assert!(error.contains("need 724 open files, and 300 are allowed"), "{error}");
}
