//! `shm-demo storm`: that the storm is one, that nothing is lost in it, and that
//! nothing is left behind. That it sees what it looks for is in `ci/broken-locks`.

mod kit;

use kit::{Demo, Said, TempPath, until};
use nix::sys::signal::Signal;
use std::fs;

#[track_caller]
fn assert_held(said: &Said) {
    assert_eq!(said.code(), Some(0), "{said:?}");
    assert_eq!(said.json()["outcome"], "held", "{said:?}");
    assert_eq!(said.json()["failures"], serde_json::json!([]));
    assert_eq!(said.number("order_inversions"), 0);
    assert_eq!(said.number("lost_wakeups"), 0);
    assert_eq!(said.number("kills_from_outside"), 0);
    assert!(said.number("repaired") <= said.number("inherited"), "{said:?}");
    assert!(said.number("handovers") <= said.number("acquisitions"), "{said:?}");
}

/// What a storm must do in five seconds on a machine that is busy with other
/// things.
const FLOORS: [(&str, u64); 13] = [
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
];

#[test]
fn nothing_is_lost_in_a_storm() {
    let path = TempPath::new();
    let plot = format!("{}/storm-{}.svg", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let said = Demo::run(&[
        "storm",
        "--path",
        path.str(),
        "--seconds",
        "5",
        "--timeouts",
        "--stops",
        "--json",
        "--plot",
        &plot,
    ]);
    println!("{}", said.out);
    assert_held(&said);
    for (field, floor) in FLOORS {
        let count = said.number(field);
        assert!(count >= floor, "{field} is {count}, less than {floor}: {said:?}");
    }
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

    let help = Demo::run(&["storm", "--help"]);
    let fields = json.as_object().expect("an object").keys();
    let of_waits = locks[0]["storm"].as_object().expect("an object").keys();
    for field in fields.chain(of_waits) {
        assert!(help.out.contains(field.as_str()), "--help does not explain {field}");
    }
}

#[test]
fn without_signals_nobody_is_interrupted() {
    let path = TempPath::new();
    let said = Demo::run(&[
        "storm",
        "--path",
        path.str(),
        "--seconds",
        "1",
        "--workers",
        "2",
        "--signals-per-second",
        "0",
        "--kills-per-second",
        "0",
        "--json",
    ]);
    assert_held(&said);
    for field in ["signals_sent", "handlers_run", "eintr_observed", "interrupted", "timeouts"] {
        assert_eq!(said.number(field), 0, "{field} in {said:?}");
    }
    for field in ["kills", "inherited", "stops"] {
        assert_eq!(said.number(field), 0, "{field} in {said:?}");
    }
    path.assert_clean();
}

#[test]
fn too_few_interruptions_are_a_failure() {
    let path = TempPath::new();
    let said = Demo::run(&[
        "storm",
        "--path",
        path.str(),
        "--seconds",
        "1",
        "--restart",
        "--floor-eintr",
        "1000000000",
    ]);
    said.assert_error(1, "less than 1000000000");
    for what in ["SA_RESTART: always", "0 inversions", "FAILED"] {
        assert!(said.out.contains(what), "no {what:?} in {said:?}");
    }
    path.assert_clean();
}

/// A run that goes on until it is ended, and has killed and replaced a worker.
fn endless(path: &TempPath) -> Demo {
    let demo = Demo::start(&[
        "storm",
        "--path",
        path.str(),
        "--seconds",
        "1000000",
        "--timeouts",
        "--stops",
        "--json",
    ]);
    until("the workers are there", || path.processes().len() >= 7);
    let first = path.processes();
    until("a worker was killed and replaced", || {
        let now = path.processes();
        now.len() >= 7 && now != first
    });
    demo
}

#[test]
fn signals_end_it_cleanly() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let path = TempPath::new();
        let demo = endless(&path);
        demo.signal(signal);
        let said = demo.end_soon();
        assert_eq!(said.code(), Some(code), "{said:?}");
        assert_eq!(said.json()["outcome"], "interrupted", "{said:?}");
        assert_eq!(said.json()["signal"], signal.as_str());
        path.assert_clean();
    }
}

#[test]
fn workers_do_not_outlive_their_parent() {
    let path = TempPath::new();
    let demo = endless(&path);
    demo.signal(Signal::SIGKILL);
    assert_eq!(demo.end_soon().code(), None);
    until("the workers are gone", || path.processes().is_empty());
    let said = Demo::run(&["storm", "--path", path.str()]);
    said.assert_error(1, "exists already");
}

#[test]
fn says_what_is_wrong_with_the_command_line() {
    Demo::run(&["storm", "--workers", "0"]).assert_error(2, "--workers");
    Demo::run(&["storm", "--workers", "65"]).assert_error(2, "1..=64");
    Demo::run(&["storm", "--seconds", "0"]).assert_error(2, "--seconds");
    Demo::run(&["storm", "--signals-per-second", "1000000000"]).assert_error(2, "0..=1000000");
    Demo::run(&["storm", "--kills-per-second", "1000"]).assert_error(2, "0..=100");
    Demo::run(&["storm", "--restart", "--no-restart"]).assert_error(2, "cannot be used with");
    Demo::run(&["storm", "--mixed", "--no-restart"]).assert_error(2, "cannot be used with");
    Demo::run(&["storm", "--plot", "/nonexistent/x.svg"]).assert_error(1, "/nonexistent/x.svg");
    Demo::run(&["storm", "--path", "/nonexistent/x"]).assert_error(1, "does the directory exist");
    Demo::run(&["storm-worker", "/nonexistent", "0", "1", "never"]).assert_error(1, "started by");
}
