//! `shm-demo counter`: what it promises when it is left alone, when it is
//! interrupted, and when it is killed.

mod kit;

use kit::{
    Demo, Said, TempPath, assert_explains, assert_nobody_outlives, assert_refuses, assert_says,
    assert_signals_end, endless, inspect, run, until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Everything that holds of each run that held.
#[track_caller]
fn assert_held(said: &Said, workers: u64, increments: u64, kills: u64) {
    said.assert_held_through(kills);
    assert!(said.json()["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{said:?}");
    assert_eq!(said.number("workers"), workers);
    assert_eq!(said.number("increments_expected"), increments);
    assert_eq!(said.number("increments_counted"), increments);
    said.assert_none(&["order_inversions"]);
    assert!(said.number("repaired") <= said.number("inherited"));
    assert!(said.number("acquisitions") >= increments);
    let of_order = said.number("order_checked") + said.number("order_unchecked");
    assert!(of_order <= said.number("acquisitions"));
    assert!(workers == 1 || said.number("order_checked") > 0);
    said.number("longest_wait_us");
}

#[test]
fn holds_through_kills() {
    let path = TempPath::new();
    let said = path.run("counter --workers 4 --increments 40000 --kills 40 --json");
    assert_held(&said, 4, 40_000, 40);
    // Every other kill is aimed at the owner.
    assert!(said.number("inherited") > 0, "{said:?}");
    path.assert_clean();
}

#[test]
fn holds_with_more_kills_than_increments() {
    let path = TempPath::new();
    let said = path.run("counter --workers 3 --increments 20 --kills 50 --json");
    assert_held(&said, 3, 20, 50);
    path.assert_clean();
}

#[test]
fn a_small_count_is_checked_for_its_order() {
    let said = run("counter --increments 1 --kills 0 --json");
    assert_held(&said, 4, 1, 0);
}

#[test]
fn one_worker_has_nobody_to_wait_for() {
    let path = TempPath::new();
    let said = path.run("counter --workers 1 --increments 5000 --kills 5 --json");
    assert_held(&said, 1, 5000, 5);
    path.assert_clean();
}

#[test]
fn says_in_words_what_it_showed() {
    let whats = ["5000 of 5000", "4 of 4", "0 inversions", "held"];
    assert_says("counter --increments 5000 --kills 4", &whats);
}

const ENDLESS: &str = "counter --increments 1000000000 --kills 1000000";

#[test]
fn signals_end_it_cleanly() {
    assert_signals_end(ENDLESS);
}

#[test]
fn a_signal_ends_it_while_it_is_stuck() {
    let path = TempPath::new();
    let demo = endless(&path, 3);
    for one in inspect(&path)["participants"].as_array().expect("participants") {
        let pid = one["pid"].as_i64().expect("a PID") as i32;
        kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("stop a worker");
    }
    demo.signal(Signal::SIGINT);
    let said = demo.end_soon();
    assert_eq!(said.code(), Some(130), "{said:?}");
    assert!(said.out.contains("ended by SIGINT"), "{said:?}");
    path.assert_clean();
}

#[test]
fn workers_do_not_outlive_their_parent() {
    assert_nobody_outlives(ENDLESS);
}

#[test]
fn survives_a_killer_from_outside() {
    let path = TempPath::new();
    let demo = path.start("counter --increments 300000 --kills 0 --json");
    let mut killed = 0;
    until("a worker was killed", || {
        let said = Demo::run(&["inspect", path.str(), "--json"]);
        if said.code() == Some(0)
            && let Some(pid) = said.json()["locks"][0]["owner"]["pid"].as_i64()
            && kill(Pid::from_raw(pid as i32), Signal::SIGKILL).is_ok()
        {
            killed += 1;
        }
        killed > 0
    });
    let said = demo.end();
    assert_eq!(said.code(), Some(0), "{said:?}");
    assert_eq!(said.number("kills_from_outside"), killed);
    assert_eq!(said.number("increments_counted"), 300_000);
    path.assert_clean();
}

#[test]
fn fails_when_a_worker_ends_in_another_way() {
    let path = TempPath::new();
    let demo = endless(&path, 4);
    let pid = inspect(&path)["participants"][0]["pid"].as_i64().expect("a PID") as i32;
    kill(Pid::from_raw(pid), Signal::SIGUSR1).expect("signal a worker");
    let said = demo.end_soon();
    said.assert_error(1, "ended before its time");
    path.assert_clean();
}

#[test]
fn says_what_is_wrong_with_the_command_line() {
    run("").assert_error(2, "Usage");
    run("inspect").assert_error(2, "PATH");
    run("inspect /dev/shm --lock x").assert_error(2, "--lock");
    let refused = [
        ("--workers 0", "--workers"),
        ("--workers 0 --kills 5", "--workers"),
        ("--workers 257", "1..=256"),
        ("--increments 0", "--increments"),
        ("--increments many", "many"),
        ("--kills -1", "-1"),
    ];
    assert_refuses("counter", &refused, "worker /nonexistent 0 1");
}

#[test]
fn leaves_what_is_at_its_path() {
    let path = TempPath::new();
    std::fs::write(path.str(), "precious").expect("write");
    let said = path.run("counter --json");
    said.assert_error(1, "exists already");
    assert_eq!(said.json()["outcome"], "error");
    assert_eq!(std::fs::read_to_string(path.str()).expect("read"), "precious");
    run("counter --path /proc/x").assert_error(1, "/proc/x: no file can");
    run("counter --path /dev/shm").assert_error(1, "/dev/shm");
}

#[test]
fn help_explains_every_field() {
    let said = run("counter --increments 2000 --kills 1 --json");
    assert_held(&said, 4, 2000, 1);
    assert_explains("counter", &said.json());
    for line in ["--help", "inspect --help"] {
        let help = run(line);
        assert_eq!(help.code(), Some(0));
        assert!(help.out.contains("Examples:") && !help.out.contains("worker "), "{help:?}");
    }
}
