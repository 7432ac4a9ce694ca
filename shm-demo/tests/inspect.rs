//! `shm-demo inspect`: what it shows of a segment that is busy, and of one that
//! is stuck; and what it says of what is no segment.
#![allow(clippy::disallowed_types, reason = "the test's own words")]

mod kit;

use heirlock::{Mutex, Segment, Unusable};
use kit::{Demo, TempPath, endless, inspect, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

#[test]
fn shows_a_busy_segment() {
    let path = TempPath::new();
    let demo = endless(&path, 4);
    let json = inspect(&path);
    assert_eq!(json["path"], path.str());
    assert_eq!(json["schema"], 1);
    assert_eq!(json["other_boot"], false);
    assert_eq!(json["rows_used"], 4);
    for field in ["layout_version", "value_offset", "value_size", "capacity"] {
        assert!(json[field].as_u64() > Some(0), "{field} in {json}");
    }
    let processes = path.processes();
    for one in json["participants"].as_array().expect("participants") {
        assert_eq!(one["alive"], true, "{json}");
        assert_eq!(one["pid"], one["tid"]);
        assert!(processes.contains(&(one["pid"].as_i64().expect("a PID") as i32)));
        assert!(one["start_time"].as_u64() > Some(0));
        assert!(one["thread_name"].as_str().expect("a name").starts_with("worker-"));
        let namespace = fs::read_link("/proc/self/ns/pid").expect("a namespace");
        let expected = format!("pid:[{}]", one["pid_namespace"]);
        assert_eq!(namespace.to_str(), Some(expected.as_str()));
    }
    // A lock that is asked for is shown whether or not somebody waits.
    let offset = json["value_offset"].to_string();
    let said = Demo::run(&["inspect", path.str(), "--lock", &offset, "--json"]);
    assert_eq!(said.json()["locks"][0]["offset"], json["value_offset"], "{said:?}");

    let said = Demo::run(&["inspect", path.str()]);
    assert_eq!(said.code(), Some(0), "{said:?}");
    for what in ["Participants: 4", "ROW#GEN", "worker-3", "alive"] {
        assert!(said.out.contains(what), "no {what:?} in {said:?}");
    }
    demo.signal(Signal::SIGINT);
    assert_eq!(demo.end_soon().code(), Some(130));
    path.assert_clean();
}

/// Whether each process is stopped or asleep, none about to change anything.
fn all_at_rest(processes: &[i32]) -> bool {
    processes.iter().all(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        matches!(state, Some('T' | 'S'))
    })
}

/// Stops the owner of the lock while it is the owner, and returns its PID and
/// what there is to see when the others have gone to sleep in the queue.
fn stuck(path: &TempPath, workers: usize) -> (i32, Value) {
    let mut found = None;
    until("an owner is stopped", || {
        let owner = inspect(path)["locks"][0]["owner"]["pid"].as_i64();
        let Some(pid) = owner.map(|pid| pid as i32) else { return false };
        kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("stop a worker");
        let workers_pids = |json: &Value| -> Vec<i32> {
            let all = json["participants"].as_array().expect("participants");
            all.iter().map(|one| one["pid"].as_i64().expect("a PID") as i32).collect()
        };
        // If it was the owner when it stopped, the rest queue up behind it.
        for _ in 0..100 {
            let json = inspect(path);
            let lock = &json["locks"][0];
            if lock["owner"]["pid"] == i64::from(pid)
                && lock["queue"].as_array().is_some_and(|queue| queue.len() == workers - 1)
                && all_at_rest(&workers_pids(&json))
            {
                found = Some((pid, inspect(path)));
                return true;
            }
        }
        kill(Pid::from_raw(pid), Signal::SIGCONT).expect("continue a worker");
        false
    });
    found.expect("found")
}

#[test]
fn shows_a_stuck_segment() {
    let path = TempPath::new();
    let demo = endless(&path, 4);
    let (stopped, json) = stuck(&path, 4);
    let lock = &json["locks"][0];
    assert_eq!(lock["owner"]["pid"], i64::from(stopped));
    assert_eq!(lock["owner_alive"], true);
    assert_eq!(lock["broken"], Value::Null);
    let queue = lock["queue"].as_array().expect("a queue");
    assert_eq!(queue.len(), 3, "{json}");
    let participants = json["participants"].as_array().expect("participants");
    let mut front = 0;
    for member in queue {
        let is_it = |one: &&Value| one["row"] == member["row"];
        let one = participants.iter().find(is_it).expect("a participant");
        assert_eq!(one["pid"], member["pid"]);
        assert_eq!(one["generation"], member["generation"]);
        let wait = &one["busy_with"];
        assert_eq!(wait["lock"], lock["offset"]);
        assert_eq!(wait["queued"], true);
        assert_eq!(wait["behind_row"], front, "{json}");
        front = member["row"].as_u64().expect("a row");
    }
    // Nothing moves, and looking has moved nothing.
    assert_eq!(inspect(&path), json);

    let said = Demo::run(&["inspect", path.str()]);
    let owned = format!("(pid {stopped}, alive");
    for what in [&owned, "3 waiting, in this order:", "first in line", "owns lock"] {
        assert!(said.out.contains(what), "no {what:?} in {said:?}");
    }
    // And it goes on when the owner does.
    kill(Pid::from_raw(stopped), Signal::SIGCONT).expect("continue a worker");
    until("the lock moves", || inspect(&path)["locks"] != json["locks"]);
    drop(demo);
}

#[test]
fn says_what_is_no_segment() {
    let path = TempPath::new();
    Demo::run(&["inspect", path.str()]).assert_error(1, "there is no such file");
    Demo::run(&["inspect", "no-such-file"]).assert_error(1, "there is no such file");
    fs::write(path.str(), "A text, longer than the header of a segment. ".repeat(200))
        .expect("write");
    let said = Demo::run(&["inspect", path.str(), "--json"]);
    said.assert_error(1, "not a heirlock segment");
    assert_eq!(said.json()["outcome"], "error");
    fs::write(path.str(), "").expect("write");
    Demo::run(&["inspect", path.str()]).assert_error(1, path.str());
    Demo::run(&["inspect", "/dev/shm"]).assert_error(1, "not a regular file");
    Demo::run(&["inspect", "/dev/null"]).assert_error(1, "not a regular file");
    let link = TempPath::new();
    symlink(path.str(), link.str()).expect("link");
    Demo::run(&["inspect", link.str()]).assert_error(1, "symbolic link");
}

#[test]
fn says_where_no_lock_can_be() {
    let path = TempPath::new();
    let demo = endless(&path, 2);
    for offset in ["0", "1", "18446744073709551615"] {
        let said = Demo::run(&["inspect", path.str(), "--lock", offset]);
        said.assert_error(1, &format!("offset {offset}"));
    }
    drop(demo);
}

#[test]
fn shows_a_deadlock_and_the_names_of_its_locks() {
    let path = TempPath::new();
    let segment: Segment<[Mutex<u64>; 2]> = Segment::create(path.str()).expect("create");
    let [accounts, orders] = &*segment;
    segment.set_name(accounts, "accounts").expect("a name");
    let (held, seen) = (Barrier::new(2), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let _accounts = accounts.lock();
            held.wait();
            drop(orders.lock());
        });
        scope.spawn(|| {
            let _orders = orders.lock();
            held.wait();
            // Each time it gives up without dropping anything there is another one.
            while !seen.load(SeqCst) {
                let found = accounts.lock_checked();
                assert!(matches!(found, Err(Unusable::Deadlock(_))), "{found:?}");
            }
        });
        let mut json = Value::Null;
        until("a deadlock is shown", || {
            json = inspect(&path);
            json["deadlocks"].as_array().is_some_and(|found| !found.is_empty())
        });
        let mut said = String::new();
        until("it is shown as a text", || {
            said = Demo::run(&["inspect", path.str()]).out;
            said.contains("Deadlocks: 1")
        });
        seen.store(true, SeqCst);
        let members = json["deadlocks"][0].as_array().expect("members");
        assert_eq!(members.len(), 2, "{json}");
        for member in members {
            assert_eq!(member["pid"], std::process::id());
            let (name, other) = (&member["lock_name"], &member["lock"]);
            assert_eq!(name == "accounts", *other == segment.offset_of(accounts).unwrap());
        }
        let first = &json["locks"][0];
        assert_eq!((&first["name"], &first["policy"]), (&"accounts".into(), &"Fifo".into()));
        for what in ["a deadlock of 2 threads:", "\"accounts\" (Fifo): owned by", " has waited "] {
            assert!(said.contains(what), "no {what:?} in {said}");
        }
    });
    Segment::unlink(path.str()).expect("unlink");
}
