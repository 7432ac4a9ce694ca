//! What a service manager sees of it; and its sandbox.

use crate::kit::{Demo, HANG, TempPath};
use crate::support::{Client, Ground, stop};
use nix::sys::signal::Signal;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter, compile_from_json};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc::channel;
use std::time::Instant;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/heirlock-demo.service");

/// A service manager, as far as a service sees it.
pub(crate) struct Manager {
    pub(crate) path: TempPath,
    socket: UnixDatagram,
}

impl Manager {
    pub(crate) fn new(ground: &Ground) -> Self {
        let path = ground.path.beside(".notify");
        let socket = UnixDatagram::bind(path.str()).expect("bind");
        socket.set_read_timeout(Some(HANG)).expect("set a timeout");
        Self { path, socket }
    }

    fn start(&self, ground: &Ground, watchdog_us: Option<&str>) -> Demo {
        let mut command = ground.command("");
        command.env("NOTIFY_SOCKET", self.path.str());
        if let Some(limit) = watchdog_us {
            command.env("WATCHDOG_USEC", limit);
        }
        Demo::spawn(&mut command)
    }

    /// The lines of the next message.
    #[track_caller]
    pub(crate) fn told(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let len = self.socket.recv(&mut bytes).expect("a message");
        let text = str::from_utf8(&bytes[..len]).expect("text");
        text.lines().map(String::from).collect()
    }

    /// The same, but for what the watchdog is told.
    #[track_caller]
    fn told_besides(&self) -> Vec<String> {
        loop {
            let told = self.told();
            if told != ["WATCHDOG=1"] {
                return told;
            }
        }
    }
}

#[test]
fn the_service_manager_is_told_what_it_is_up_to() {
    let ground = Ground::new();
    let manager = Manager::new(&ground);
    let daemon = manager.start(&ground, None);
    let ready = ["READY=1".into(), format!("STATUS=serves {}", ground.path.str())];
    assert_eq!(manager.told(), ready);
    // It is.
    let mut client = ground.connect();
    client.assert_ok("LOCK a");
    daemon.signal(Signal::SIGHUP);
    let told = manager.told();
    assert_eq!((told.len(), told[0].as_str()), (2, "RELOADING=1"));
    let since_boot = told[1].strip_prefix("MONOTONIC_USEC=").expect("the time");
    assert!(since_boot.parse::<u64>().expect("a number") > 0);
    assert_eq!(manager.told(), ready);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(manager.told()[0], "STOPPING=1");
    // Before it ends.
    client.assert_ok("UNLOCK a");
    assert_eq!(daemon.end_soon().code(), Some(0));
    // If nobody listens it serves all the same.
    let mut command = ground.command("");
    command.env("NOTIFY_SOCKET", ground.path.beside(".nobody").str());
    let daemon = Demo::spawn(&mut command);
    ground.until_ready(&daemon);
    ground.until_logged("cannot notify the service manager");
    ground.connect().assert_ok("LOCK a");
}

#[test]
fn the_watchdog_hears_of_it_while_it_lives() {
    let ground = Ground::new();
    let manager = Manager::new(&ground);
    let start = Instant::now();
    let daemon = manager.start(&ground, Some("200000"));
    assert_eq!(manager.told()[0], "READY=1");
    for _ in 0..10 {
        assert_eq!(manager.told(), ["WATCHDOG=1"]);
    }
    // Every 100 ms, not as fast as it can.
    println!("told the watchdog 10 times in {:?}", start.elapsed());
    assert!(start.elapsed().as_millis() >= 1000);
    // Also while it waits for a lock, and drains.
    let (mut client, mut waiting) = (ground.connect(), ground.connect());
    client.assert_ok("LOCK a");
    waiting.send(b"LOCK a\n");
    client.until_waiting("a", 1);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(manager.told_besides()[0], "STOPPING=1");
    for _ in 0..3 {
        assert_eq!(manager.told(), ["WATCHDOG=1"]);
    }
    // Not if it does not run.
    stop(&daemon);
    manager.socket.set_nonblocking(true).expect("do not block");
    while manager.socket.recv(&mut [0; 64]).is_ok() {}
    std::thread::sleep(std::time::Duration::from_millis(500));
    let silent = manager.socket.recv(&mut [0; 64]);
    assert!(silent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
    daemon.signal(Signal::SIGCONT);
    drop(client);
    assert_eq!(daemon.end_soon().code(), Some(0));
}

#[test]
fn the_watchdog_hears_of_it_while_it_has_much_to_do() {
    let ground = Ground::new();
    let manager = Manager::new(&ground);
    let daemon = manager.start(&ground, Some("2000"));
    let (tell, told) = channel();
    std::thread::scope(|scope| {
        // As it does not go on while nobody hears of it.
        scope.spawn(|| {
            while manager.told()[0] != "STOPPING=1" {
                tell.send(()).expect("somebody counts");
            }
        });
        ground.until_ready(&daemon);
        let mut other = ground.connect();
        for n in 0..61 {
            other.assert_ok(&format!("LOCK lock-{n}"));
        }
        let mut clients: Vec<Client> = (0..100).map(|_| ground.connect()).collect();
        clients.iter_mut().for_each(|client| drop(client.status("lock-0")));
        stop(&daemon);
        // What a client gets in one turn, and all of them at once.
        clients.iter_mut().for_each(|client| client.send("STATUS\n".repeat(16).as_bytes()));
        while told.try_recv().is_ok() {}
        daemon.signal(Signal::SIGCONT);
        clients[99].line();
        let count = told.try_iter().count();
        println!("the watchdog was told {count} times before the replies were sent");
        daemon.signal(Signal::SIGTERM);
        assert!(count >= 10);
    });
}

/// What systemd-analyze says, or `None` with a reason printed if there is none.
fn analyze(args: &[&str]) -> Option<Output> {
    match Command::new("systemd-analyze").args(args).env("SYSTEMD_PAGER", "").output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            println!("skipped: there is no systemd-analyze here");
            None
        }
        Err(error) => panic!("systemd-analyze: {error}"),
    }
}

/// A copy of the unit that starts the program where it is, and with one more line.
struct Unit(TempPath);

impl Unit {
    fn new(more: &str) -> Self {
        let text = fs::read_to_string(UNIT).expect("read the unit");
        let installed = "/usr/local/bin/shm-demo";
        assert!(text.contains(&format!("ExecStart={installed} daemon")));
        let text = text.replace(installed, env!("CARGO_BIN_EXE_shm-demo"));
        let text = text.replace("[Service]\n", &format!("[Service]\n{more}\n"));
        let path = TempPath::new().beside(".service");
        fs::write(path.str(), text).expect("write the unit");
        Self(path)
    }

    fn name(&self) -> &str {
        let name = Path::new(self.0.str()).file_name().and_then(|name| name.to_str());
        name.expect("a name")
    }
}

#[test]
fn systemd_accepts_the_sample_unit() {
    let unit = Unit::new("");
    let Some(found) = analyze(&["verify", unit.0.str()]) else { return };
    let said = String::from_utf8_lossy(&found.stderr).into_owned();
    if said.contains("Failed to initialize manager") {
        println!("skipped: systemd-analyze cannot verify here: {said}");
        return;
    }
    assert!(found.status.success() && !said.contains(unit.name()), "{said}");
    // And would say so if it did not.
    let broken = Unit::new("Restart=sometimes\nSystemCallFilter=@nonsense");
    let found = analyze(&["verify", broken.0.str()]).expect("as before");
    let said = String::from_utf8_lossy(&found.stderr);
    for what in [broken.name(), "sometimes", "@nonsense"] {
        assert!(said.contains(what), "no {what} in {said}");
    }
}

#[test]
fn the_sample_unit_has_a_sandbox() {
    let unit = Unit::new("");
    let Some(found) = analyze(&["security", "--offline=true", "--no-pager", unit.0.str()]) else {
        return;
    };
    if !found.status.success() {
        let said = String::from_utf8_lossy(&found.stderr);
        println!("skipped: `systemd-analyze security --offline` does not work here: {said}");
        return;
    }
    let said = String::from_utf8_lossy(&found.stdout);
    let overall = said.lines().find(|line| line.contains("Overall exposure level")).expect("a sum");
    println!("{}", overall.trim());
    let level = overall.split_whitespace().find_map(|word| word.parse::<f64>().ok());
    // 0 is nothing to be exposed, 10 everything.
    assert!(level.expect("a level") < 2.0, "{said}");
}

/// The settings of this name in the unit.
fn settings(name: &str) -> Vec<String> {
    let text = fs::read_to_string(UNIT).expect("read the unit");
    let values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values.map(String::from).collect()
}

#[test]
fn the_sample_unit_keeps_the_segment() {
    // If it were removed when the unit stops nothing could be inherited.
    assert_eq!(settings("RemoveIPC"), ["no"]);
    assert_eq!(settings("PrivateTmp"), ["yes"]);
    assert!(settings("DynamicUser").is_empty());
    assert!(settings("TemporaryFileSystem").is_empty());
    assert!(settings("ExecStart")[0].contains("--path /dev/shm/"));
}

/// The system calls that a filter of the unit's allows, groups resolved.
fn allowed(words: &[String], found: &mut BTreeSet<String>) -> Option<()> {
    for word in words {
        if !word.starts_with('@') {
            found.insert(word.clone());
            continue;
        }
        let listed = analyze(&["syscall-filter", "--no-pager", word])?;
        assert!(listed.status.success(), "{listed:?}");
        let text = String::from_utf8(listed.stdout).expect("text");
        let members = text.lines().skip(1).map(str::trim).filter(|line| !line.starts_with('#'));
        let members: Vec<String> =
            members.filter(|line| !line.is_empty()).map(String::from).collect();
        allowed(&members, found)?;
    }
    Some(())
}

fn filter(calls: &[&str]) -> Option<BpfProgram> {
    let filter: Vec<_> = calls.iter().map(|call| json!({ "syscall": call })).collect();
    // Stricter than the unit: whoever calls anything else is killed.
    let text = json!({ "main": { "mismatch_action": "kill_process", "match_action": "allow",
                                 "filter": filter } })
    .to_string();
    let architecture = std::env::consts::ARCH.try_into().expect("a known architecture");
    compile_from_json(text.as_bytes(), architecture).ok()?.remove("main")
}

/// Has the process that `command` starts be under this filter.
#[allow(unsafe_code)]
fn impose(command: &mut Command, filter: BpfProgram) {
    let apply = move || apply_filter(&filter).map_err(|_| io::ErrorKind::PermissionDenied.into());
    // SAFETY: between fork and exec it makes two system calls and takes no lock and no
    // memory: the filter was compiled before.
    unsafe { command.pre_exec(apply) };
}

#[test]
fn the_filter_of_the_sample_unit_lets_it_work() {
    let words: Vec<String> = settings("SystemCallFilter")
        .iter()
        .flat_map(|line| line.split_whitespace())
        .map(String::from)
        .collect();
    assert!(words.contains(&"io_uring_setup".into()) && words.contains(&"@system-service".into()));
    let mut calls = BTreeSet::new();
    let Some(()) = allowed(&words, &mut calls) else { return };
    // Of other architectures, or newer than the table of numbers.
    let known: Vec<&str> =
        calls.iter().map(String::as_str).filter(|call| filter(&[call]).is_some()).collect();
    println!("the filter allows {} system calls, {} of them known here", calls.len(), known.len());
    assert!(known.len() > 200 && known.contains(&"io_uring_enter"));

    let ground = Ground::new();
    let mut command = ground.command("");
    impose(&mut command, filter(&known).expect("a filter"));
    let daemon = Demo::spawn(&mut command);
    ground.until_ready(&daemon);
    let (mut holder, mut waiting) = (ground.connect(), ground.connect());
    holder.assert_ok("LOCK a");
    waiting.send(b"LOCK a\n");
    holder.until_waiting("a", 1);
    assert_eq!(holder.ask("WITH 5 b"), "OK");
    // Longer than it waits in one go.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let (mut direct, said) = ground.process("--direct");
    direct.say("LOCK a");
    holder.until_waiting("a", 2);
    daemon.signal(Signal::SIGUSR1);
    daemon.signal(Signal::SIGHUP);
    ground.until_logged("SIGHUP: the log is open anew");
    holder.assert_ok("UNLOCK a");
    assert_eq!(waiting.line(), "OK");
    drop(waiting);
    assert!(said.next().starts_with("OK INHERITED"));
    assert_eq!(holder.ask("WITH 20 a"), "TIMEOUT");
    daemon.signal(Signal::SIGTERM);
    holder.assert_ok("UNLOCK b");
    assert_eq!(daemon.end_soon().code(), Some(0));
    assert!(!ground.socket.exists());
    // And it is the filter that it was under: without the ring there is no daemon.
    let mut command = ground.command("");
    let fewer: Vec<&str> = known.into_iter().filter(|call| *call != "io_uring_setup").collect();
    impose(&mut command, filter(&fewer).expect("a filter"));
    let said = Demo::spawn(&mut command).end_soon();
    assert_eq!(said.code(), None, "{said:?}");
}

#[test]
fn says_what_to_do_if_io_uring_is_refused() {
    for error in [libc::EPERM, libc::ENOSYS] {
        let ground = Ground::new();
        let rules = [(libc::SYS_io_uring_setup, vec![])].into_iter().collect();
        let architecture = std::env::consts::ARCH.try_into().expect("a known architecture");
        let (otherwise, then) = (SeccompAction::Allow, SeccompAction::Errno(error as u32));
        let filter = SeccompFilter::new(rules, otherwise, then, architecture).expect("a filter");
        let mut command = ground.command("");
        impose(&mut command, filter.try_into().expect("a program"));
        let said = Demo::spawn(&mut command).end_soon();
        said.assert_error(1, "io_uring is not to be had here (");
        said.assert_error(1, "kernel.io_uring_disabled");
        assert!(!ground.socket.exists() && !ground.path.exists());
    }
}
