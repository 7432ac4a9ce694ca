//! `shm-demo state`: a map for processes, and that no kill loses or tears anything in
//! it.

mod kit;

use kit::{
    Demo, Said, TempPath, assert_explains, assert_nobody_outlives, assert_refuses, assert_says,
    assert_signals_end, run, until,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn state(path: &TempPath, command: &str, args: &[&str]) -> Said {
    Demo::run(&[&["state", command, "--path", path.str()], args].concat())
}

#[test]
fn processes_share_a_map() {
    let path = TempPath::new();
    assert_eq!(state(&path, "set", &["colour", "green"]).code(), Some(0));
    let said = state(&path, "get", &["colour"]);
    assert_eq!((said.code(), said.out.as_str()), (Some(0), "green\n"), "{said:?}");
    state(&path, "set", &["colour", "blue"]);
    let said = state(&path, "set", &["a", "", "--json"]);
    let expected = json!({ "outcome": "set", "key": "a", "version": 3, "entries": 2 });
    assert_eq!(said.json(), expected);
    assert_eq!(state(&path, "list", &[]).out, "a\t\ncolour\tblue\n");
    let json = state(&path, "list", &["--json"]).json();
    assert_eq!(json["entries"][1], json!({ "key": "colour", "value": "blue" }));
    assert_eq!((json["changes"].as_u64(), json["capacity"].as_u64()), (Some(3), Some(1024)));
    let found = state(&path, "get", &["colour", "--json"]).json();
    assert_eq!((&found["value"], &found["version"]), (&json!("blue"), &json!(2)));
    assert_eq!(state(&path, "remove", &["a"]).code(), Some(0));
    state(&path, "get", &["a"]).assert_error(1, "there is no key a");
    let said = state(&path, "remove", &["a", "--json"]);
    said.assert_error(1, "there is no key a");
    assert_eq!(said.json()["outcome"], "error");
    assert_eq!(state(&path, "list", &[]).out, "colour\tblue\n");
}

#[test]
fn says_what_does_not_fit() {
    let path = TempPath::new();
    state(&path, "get", &["x"]).assert_error(1, "there is no state; `shm-demo state set`");
    state(&path, "list", &[]).assert_error(1, "there is no state");
    assert!(!path.exists());
    let long = "x".repeat(257);
    state(&path, "set", &[&long[..65], "x"]).assert_error(1, "at most 64 fit; shorten it");
    state(&path, "set", &["x", &long]).assert_error(1, "at most 256 fit; shorten it");
    state(&path, "set", &["", "x"]).assert_error(1, "the key is empty");
    assert_eq!(state(&path, "set", &[&long[..64], &long[..256]]).code(), Some(0));
    assert_eq!(state(&path, "get", &[&long[..64]]).out, long[..256].to_string() + "\n");
    std::fs::write(path.str(), "no segment at all").expect("write");
    state(&path, "get", &["x"]).assert_error(1, "not a heirlock segment");
}

#[test]
fn nothing_is_lost_when_workers_are_killed() {
    let path = TempPath::new();
    let said = path.run("state bench --operations 20000 --kills 100 --json");
    said.assert_held_through(100);
    said.assert_none(&["wrong"]);
    assert_eq!(said.number("entries"), said.number("entries_expected"));
    assert!(said.number("repaired") <= said.number("inherited"), "{said:?}");
    said.assert_floors(&[
        ("changes_acknowledged", 20_000),
        ("gets", 1_000),
        ("entries", 8),
        ("inherited", 10),
        ("repaired", 2),
        ("in_doubt_made", 1),
        ("in_doubt_not_made", 1),
    ]);
    assert_explains("state bench", &said.json());
    path.assert_clean();
}

#[test]
fn the_check_fails_if_heirs_do_not_repair() {
    let path = TempPath::new();
    let line = "state bench --operations 20000 --kills 100 --without-repair --json";
    path.run(line).assert_failed("FAILED");
    path.assert_clean();
}

const ENDLESS: &str = "state bench --operations 1000000000 --kills 1000000";

#[test]
fn signals_end_it_cleanly() {
    assert_signals_end(ENDLESS);
}

#[test]
fn workers_do_not_outlive_their_parent() {
    assert_nobody_outlives(ENDLESS);
}

#[test]
fn says_in_words_what_it_showed() {
    assert_says("state bench --operations 500 --kills 3", &["3 of 3", "0 wrong", "held"]);
}

#[test]
fn serves_until_it_is_told_to_end() {
    let path = TempPath::new();
    let serve = "state serve --every 1000 --json";
    let mut demo = path.start(serve);
    let lines = demo.lines();
    assert_eq!(lines.json()["outcome"], "started");
    for value in ["1", "2"] {
        assert_eq!(state(&path, "set", &["key", value]).code(), Some(0));
    }
    demo.signal(Signal::SIGUSR1);
    let line = lines.json();
    assert_eq!(line["outcome"], "serving");
    let counts = ["sets", "entries", "changes", "operations", "servers"].map(|name| &line[name]);
    assert_eq!(counts.map(Value::as_u64), [2, 1, 2, 2, 1].map(Some));
    // One at a time, also if the one that is there does not answer.
    path.run(serve).assert_error(1, &format!("served already, by process {}", demo.pid()));
    demo.signal(Signal::SIGKILL);
    assert_eq!(demo.end_soon().code(), None);

    let mut demo = path.start(&format!("{serve} --remove"));
    let lines = demo.lines();
    let line = lines.json();
    assert_eq!((&line["servers"], &line["entries"]), (&json!(2), &json!(1)));
    demo.signal(Signal::SIGTERM);
    let line = lines.json();
    assert_eq!((&line["outcome"], &line["signal"]), (&json!("ended"), &json!("SIGTERM")));
    assert_explains("state serve", &line);
    assert_eq!(demo.end_soon().code(), Some(0));
    path.assert_clean();
}

#[test]
fn serves_without_being_asked() {
    let path = TempPath::new();
    let mut demo = path.start("state serve --every 1 --json");
    let lines = demo.lines();
    until("a line came by itself", || lines.json()["outcome"] == "serving");
    demo.signal(Signal::SIGINT);
    assert_eq!(demo.end_soon().code(), Some(0));
    // What it served is there for the next.
    assert!(path.exists());
}

#[test]
fn says_what_is_wrong_with_the_command_line() {
    run("state").assert_error(2, "Usage");
    run("state get").assert_error(2, "KEY");
    run("state set x").assert_error(2, "VALUE");
    run("state set --path /nonexistent/x a b").assert_error(1, "/nonexist");
    run("state serve --every 0").assert_error(2, "--every");
    let refused =
        [("--workers 65", "1..=64"), ("--operations 0", "--operations"), ("--kills -1", "-1")];
    assert_refuses("state bench", &refused, "state-worker /nonexistent 0 1");
}
