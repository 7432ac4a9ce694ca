//! `shm-demo queue`: that no kill loses an item or hands one over twice.

mod kit;

use kit::{Demo, Said, TempPath, assert_nobody_outlives, assert_signals_end};
use serde_json::json;

#[track_caller]
fn assert_held(said: &Said, items: u64, kills: u64) {
    assert_eq!(said.code(), Some(0), "{said:?}");
    assert_eq!(said.json()["outcome"], "held", "{said:?}");
    assert_eq!(said.json()["failures"], json!([]));
    for field in ["items", "pushed", "popped", "worked"] {
        assert_eq!(said.number(field), items, "{field} in {said:?}");
    }
    assert_eq!(said.number("kills"), kills);
    for field in ["misplaced", "wrong", "kills_from_outside"] {
        assert_eq!(said.number(field), 0, "{field} in {said:?}");
    }
    assert!(said.number("inherited") <= kills, "{said:?}");
    assert!(said.number("repaired") <= said.number("inherited"), "{said:?}");
}

fn queue(path: &TempPath, args: &[&str]) -> Said {
    Demo::run(&[&["queue", "--json", "--path", path.str()], args].concat())
}

#[test]
fn no_item_is_lost_or_doubled_when_anybody_is_killed() {
    let path = TempPath::new();
    let said = queue(&path, &["--items", "20000", "--kills", "200"]);
    assert_held(&said, 20_000, 200);
    said.assert_floors(&[
        ("waits_for_room", 10),
        ("waits_for_items", 10),
        ("inherited", 10),
        ("repaired", 1),
        ("again", 1),
    ]);
    said.assert_explained(&["queue"]);
    path.assert_clean();
}

#[test]
fn a_ring_of_one_passes_every_item_on() {
    let path = TempPath::new();
    let args = ["--producers", "6", "--consumers", "2", "--capacity", "1", "--items", "3000"];
    let said = queue(&path, &[&args[..], &["--kills", "30"]].concat());
    assert_held(&said, 3000, 30);
    said.assert_floors(&[("waits_for_room", 500)]);
    path.assert_clean();
}

#[test]
fn one_of_each_and_one_item() {
    let path = TempPath::new();
    let one = ["--producers", "1", "--consumers", "1", "--items", "1", "--kills", "5"];
    assert_held(&queue(&path, &one), 1, 5);
    path.assert_clean();
}

#[test]
fn nobody_is_told_of_deaths_where_there_are_none() {
    let path = TempPath::new();
    let said = queue(&path, &["--items", "5000", "--kills", "0"]);
    assert_held(&said, 5000, 0);
    assert_eq!((said.number("inherited"), said.number("again")), (0, 0), "{said:?}");
    path.assert_clean();
}

#[test]
fn the_check_fails_if_heirs_do_not_repair() {
    let path = TempPath::new();
    let said = queue(&path, &["--items", "20000", "--kills", "200", "--without-repair"]);
    assert_eq!(said.code(), Some(1), "{said:?}");
    assert_eq!(said.json()["outcome"], "failed");
    assert!(said.err.contains("FAILED"), "{said:?}");
    path.assert_clean();
}

const ENDLESS: [&str; 5] = ["queue", "--items", "1000000000", "--kills", "1000000"];

#[test]
fn signals_end_it_cleanly() {
    assert_signals_end(&ENDLESS);
}

#[test]
fn its_processes_do_not_outlive_their_parent() {
    assert_nobody_outlives(&ENDLESS);
}

#[test]
fn says_in_words_what_it_showed() {
    let said = Demo::run(&["queue", "--items", "500", "--kills", "3"]);
    assert_eq!(said.code(), Some(0), "{said:?}");
    for what in ["500 pushed by 3", "500 popped by 3", "3 of 3", "held"] {
        assert!(said.out.contains(what), "no {what:?} in {said:?}");
    }
    assert_eq!(said.err, "");
}

#[test]
fn says_what_is_wrong_with_the_command_line() {
    Demo::run(&["queue", "--producers", "0"]).assert_error(2, "--producers");
    Demo::run(&["queue", "--consumers", "65"]).assert_error(2, "1..=64");
    Demo::run(&["queue", "--capacity", "1025"]).assert_error(2, "1..=1024");
    Demo::run(&["queue", "--items", "0"]).assert_error(2, "--items");
    Demo::run(&["queue", "--kills", "many"]).assert_error(2, "many");
    Demo::run(&["queue", "--path", "/nonexistent/x"]).assert_error(1, "does the directory exist");
    Demo::run(&["queue-member", "/nonexistent", "0", "1"]).assert_error(1, "started by");
}
