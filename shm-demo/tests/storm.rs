//! `shm-demo storm`: that the storm is one, that nothing is lost in it, and that
//! nothing is left behind. That it sees what it looks for is in `ci/broken-locks`.

mod kit;

use kit::{
    Said, TempPath, assert_explains, assert_nobody_outlives, assert_refuses, assert_signals_end,
    run,
};
use std::fs;

#[track_caller]
fn assert_held(said: &Said) {
    said.assert_held();
    said.assert_none(&["order_inversions", "lost_wakeups", "deadlocks"]);
    assert!(said.number("repaired") <= said.number("inherited"), "{said:?}");
    assert!(said.number("handovers") <= said.number("acquisitions"), "{said:?}");
}

/// What a storm must do in five seconds on a machine that is busy with other
/// things.
const FLOORS: [(&str, u64); 15] = [
    ("signals_sent", 5_000),
    ("handlers_run", 2_000),
    ("eintr_observed", 500),
    ("acquisitions", 1_000),
    ("handovers", 500),
    ("timeouts", 10),
    ("cancellations", 10),
    ("interrupted", 10),
    ("kills", 5),
    ("stops", 10),
    ("inherited", 1),
    ("order_checked", 1_000),
    ("longest_wait_us", 1),
    ("deadlock_checks", 100),
    ("nested", 100),
];

#[test]
fn nothing_is_lost_in_a_storm() {
    let path = TempPath::new();
    let plot = format!("{}/storm-{}.svg", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let line = "storm --seconds 5 --timeouts --stops --deadlock-checks --json";
    let said = path.run(&format!("{line} --plot {plot}"));
    println!("{}", said.out);
    assert_held(&said);
    said.assert_floors(&FLOORS);
    assert!(said.number("eintr_observed") <= said.number("handlers_run"), "{said:?}");
    assert_eq!(said.json()["restart"], "mixed");
    path.assert_clean();

    let json = said.json();
    let locks = json["locks"].as_array().expect("an array");
    assert!(locks.len() > 1);
    let of_locks = |lock: &serde_json::Value| lock["storm"]["acquisitions"].as_u64();
    let sum: u64 = locks.iter().filter_map(of_locks).sum();
    // A kill between one count and the other.
    assert!(sum.abs_diff(said.number("acquisitions")) <= 4 * said.number("kills"), "{said:?}");
    for waits in locks.iter().flat_map(|lock| [&lock["calm"], &lock["storm"]]) {
        let at = |field: &str| waits[field].as_f64().unwrap_or_else(|| panic!("{field}: {waits}"));
        assert!(at("acquisitions") > 0.0, "{waits}");
        assert!(at("p50_us") <= at("p99_us") && at("p99_us") <= at("p999_us"), "{waits}");
        // The percentiles are good to 3%, and rounded up to 1%.
        assert!(at("p999_us") <= at("max_us") * 1.05 + 1.0, "{waits}");
    }

    let svg = fs::read_to_string(&plot).expect("a plot");
    let _ = fs::remove_file(&plot);
    for what in ["<svg", "polyline", "calm: ", "storm: ", "10 ms", "0.1%"] {
        assert!(svg.contains(what), "no {what:?} in the plot");
    }

    assert_explains("storm", &json);
    let help = run("storm --help");
    for field in locks[0]["storm"].as_object().expect("an object").keys() {
        assert!(help.out.contains(field.as_str()), "--help does not explain {field}");
    }
}

#[test]
fn without_signals_nobody_is_interrupted() {
    let path = TempPath::new();
    let said = path
        .run("storm --seconds 1 --workers 2 --signals-per-second 0 --kills-per-second 0 --json");
    assert_held(&said);
    said.assert_none(&["signals_sent", "handlers_run", "eintr_observed", "interrupted"]);
    said.assert_none(&["timeouts", "kills", "inherited", "stops"]);
    path.assert_clean();
}

#[test]
fn too_few_interruptions_are_a_failure() {
    let path = TempPath::new();
    let said = path.run("storm --seconds 1 --restart --floor-eintr 1000000000");
    said.assert_error(1, "less than 1000000000");
    for what in ["SA_RESTART: always", "0 inversions", "FAILED"] {
        assert!(said.out.contains(what), "no {what:?} in {said:?}");
    }
    path.assert_clean();
}

const ENDLESS: &str = "storm --seconds 1000000 --timeouts --stops";

#[test]
fn signals_end_it_cleanly() {
    assert_signals_end(ENDLESS);
}

#[test]
fn workers_do_not_outlive_their_parent() {
    assert_nobody_outlives(ENDLESS);
}

#[test]
fn says_what_is_wrong_with_the_command_line() {
    let refused = [
        ("--floor-deadlock-checks 9", "--deadlock-checks"),
        ("--workers 0", "--workers"),
        ("--workers 65", "1..=64"),
        ("--seconds 0", "--seconds"),
        ("--signals-per-second 1000000000", "0..=1000000"),
        ("--kills-per-second 1000", "0..=100"),
        ("--restart --no-restart", "cannot be used with"),
        ("--mixed --no-restart", "cannot be used with"),
    ];
    assert_refuses("storm", &refused, "storm-worker /nonexistent 0 1 never");
    run("storm --plot /nonexistent/x.svg").assert_error(1, "/nonexistent/x.svg");
}
