//! `shm-demo bench`: that every item runs and says what it found, and that nothing is
//! left behind. What the figures are is nobody's business here.

mod kit;

use kit::{Demo, Said, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;

const ITEMS: [&str; 7] =
    ["uncontended", "handover", "oversubscribed", "policy", "scale", "recovery", "memory"];

/// Asserts that a run has left no segment and no process.
#[track_caller]
fn assert_clean(pid: i32) {
    let name = |pid: i32| format!("heirlock-bench-{pid}");
    let left = fs::read_dir("/dev/shm").expect("read /dev/shm").flatten();
    let left: Vec<String> = left
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|file| *file == name(pid) || file.starts_with(&format!("{}-", name(pid))))
        .collect();
    assert!(left.is_empty(), "{left:?} were left behind");
    until("the processes have ended", || children(pid).is_empty());
}

/// The processes that were started with the PID as their parent's.
fn children(parent: i32) -> Vec<i32> {
    let parent = parent.to_string();
    let of_parent = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.get(1).is_some_and(|word| word.starts_with(b"bench-"))
            && words.contains(&parent.as_bytes())
    };
    let entries = fs::read_dir("/proc").expect("read /proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(of_parent).collect()
}

#[track_caller]
fn list<'a>(value: &'a Value, field: &str) -> &'a Vec<Value> {
    value[field].as_array().unwrap_or_else(|| panic!("no list {field} in {value}"))
}

#[track_caller]
fn assert_measured(said: &Said) {
    assert_eq!(said.code(), Some(0), "{said:?}");
    let json = said.json();
    assert_eq!(json["outcome"], "measured", "{said:?}");
    assert_eq!(json["quick"], true);
    let names: Vec<&str> =
        list(&json, "items").iter().filter_map(|item| item["name"].as_str()).collect();
    assert_eq!(names, ITEMS);
    let (mut checks, mut missed) = (0, 0);
    for item in list(&json, "items") {
        assert!(!list(item, "figures").is_empty(), "{item}");
        for figure in list(item, "figures").iter().chain(list(item, "checks")) {
            for field in ["median", "least", "most", "spread"] {
                let number = figure[field].as_f64();
                assert!(number.is_some_and(|number| number >= 0.0), "{field} in {figure}");
            }
        }
        checks += list(item, "checks").len();
        missed += list(item, "checks").iter().filter(|check| check["met"] == false).count();
    }
    assert_eq!(json["targets"], checks);
    assert_eq!(json["targets_missed"], missed);
}

#[test]
fn every_item_is_measured_and_drawn() {
    let plots = format!("{}/bench-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let demo = Demo::start(&["bench", "--quick", "--json", "--plot", &plots]);
    let pid = demo.pid();
    let said = demo.end();
    assert_measured(&said);
    assert_clean(pid);
    for item in ITEMS {
        let drawn = fs::read_dir(&plots).expect("read the plots").flatten();
        let svg = drawn.map(|entry| entry.path()).find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&format!("{item}-")))
        });
        let svg = svg.unwrap_or_else(|| panic!("no plot of {item}"));
        let text = fs::read_to_string(&svg).expect("read a plot");
        assert!(text.starts_with("<svg") && text.contains("polyline"), "{}", svg.display());
    }
    fs::remove_dir_all(&plots).expect("remove the plots");
}

#[test]
fn the_tables_are_markdown() {
    let said = Demo::run(&["bench", "memory", "--quick"]);
    assert_eq!(said.code(), Some(0), "{said:?}");
    assert!(said.out.contains("\n## memory\n"), "{said:?}");
    assert!(!said.out.contains("\n## handover\n"), "{said:?}");
    assert!(said.out.contains("\n| --- | ---: |"), "{said:?}");
    assert!(said.out.contains("| met |"), "{said:?}");
}

#[test]
fn a_signal_ends_it_and_nothing_is_left() {
    let demo = Demo::start(&["bench", "oversubscribed"]);
    let pid = demo.pid();
    until("processes have been started", || !children(pid).is_empty());
    demo.signal(Signal::SIGTERM);
    let said = demo.end_soon();
    assert_eq!(said.code(), Some(128 + Signal::SIGTERM as i32), "{said:?}");
    assert_clean(pid);
}

#[test]
fn a_member_that_is_killed_is_an_error() {
    let demo = Demo::start(&["bench", "oversubscribed", "--json"]);
    let pid = demo.pid();
    // Before, its command line may be empty as it is after its end.
    until("processes have been started", || !children(pid).is_empty());
    until("the run ends", || {
        // One that is just about to end by itself may be missed: then the next one.
        for child in children(pid) {
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty())
    });
    let said = demo.end_soon();
    assert_eq!(said.code(), Some(1), "{said:?}");
    assert_eq!(said.json()["outcome"], "error", "{said:?}");
    assert_clean(pid);
}

#[test]
fn an_unknown_item_is_refused() {
    let said = Demo::run(&["bench", "speed"]);
    said.assert_error(2, "speed");
    for item in ITEMS {
        assert!(said.err.contains(item), "{said:?}");
    }
}

#[test]
fn help_explains_every_field() {
    let help = Demo::run(&["bench", "--help"]).out;
    let json = Demo::run(&["bench", "memory", "--quick", "--json"]).json();
    let item = &json["items"][0];
    for object in [&json, &json["machine"], item, &item["figures"][0], &item["checks"][0]] {
        for field in object.as_object().expect("an object").keys() {
            assert!(help.contains(field), "no {field} in {help}");
        }
    }
    for item in ITEMS {
        assert!(help.contains(item), "no {item} in {help}");
    }
}
