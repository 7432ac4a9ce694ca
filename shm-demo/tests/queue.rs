//! `shm-demo queue`: that no kill loses an item or hands one over twice.

mod kit;

use kit::{
    Said, TempPath, assert_explains, assert_nobody_outlives, assert_refuses, assert_says,
    assert_signals_end,
};

#[track_caller]
fn assert_held(said: &Said, items: u64, kills: u64) {
    said.assert_held_through(kills);
    for field in ["items", "pushed", "popped", "worked"] {
        assert_eq!(said.number(field), items, "{field} in {said:?}");
    }
    said.assert_none(&["misplaced", "wrong"]);
    assert!(said.number("repaired") <= said.number("inherited"), "{said:?}");
}

#[test]
fn no_item_is_lost_or_doubled_when_anybody_is_killed() {
    let path = TempPath::new();
    let said = path.run("queue --items 20000 --kills 200 --json");
    assert_held(&said, 20_000, 200);
    said.assert_floors(&[
        ("waits_for_room", 10),
        ("waits_for_items", 10),
        ("inherited", 10),
        ("repaired", 1),
        ("again", 1),
    ]);
    assert_explains("queue", &said.json());
    path.assert_clean();
}

#[test]
fn a_ring_of_one_passes_every_item_on() {
    let path = TempPath::new();
    let line = "queue --producers 6 --consumers 2 --capacity 1 --items 3000 --kills 30 --json";
    let said = path.run(line);
    assert_held(&said, 3000, 30);
    said.assert_floors(&[("waits_for_room", 500)]);
    path.assert_clean();
}

#[test]
fn one_of_each_and_one_item() {
    let path = TempPath::new();
    let one = path.run("queue --producers 1 --consumers 1 --items 1 --kills 5 --json");
    assert_held(&one, 1, 5);
    path.assert_clean();
}

#[test]
fn nobody_is_told_of_deaths_where_there_are_none() {
    let path = TempPath::new();
    let said = path.run("queue --items 5000 --kills 0 --json");
    assert_held(&said, 5000, 0);
    said.assert_none(&["inherited", "again"]);
    path.assert_clean();
}

#[test]
fn the_check_fails_if_heirs_do_not_repair() {
    let path = TempPath::new();
    let line = "queue --items 20000 --kills 200 --without-repair --json";
    path.run(line).assert_failed("FAILED");
    path.assert_clean();
}

const ENDLESS: &str = "queue --items 1000000000 --kills 1000000";

#[test]
fn signals_end_it_cleanly() {
    assert_signals_end(ENDLESS);
}

#[test]
fn its_processes_do_not_outlive_their_parent() {
    assert_nobody_outlives(ENDLESS);
}

#[test]
fn says_in_words_what_it_showed() {
    let whats = ["500 pushed by 3", "500 popped by 3", "3 of 3", "held"];
    assert_says("queue --items 500 --kills 3", &whats);
}

#[test]
fn says_what_is_wrong_with_the_command_line() {
    let refused = [
        ("--producers 0", "--producers"),
        ("--consumers 65", "1..=64"),
        ("--capacity 1025", "1..=1024"),
        ("--items 0", "--items"),
        ("--kills many", "many"),
    ];
    assert_refuses("queue", &refused, "queue-member /nonexistent 0 1");
}
