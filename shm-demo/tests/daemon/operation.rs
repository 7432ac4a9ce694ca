//! Beginning, ending, and what signals do in between.

use crate::hostile::flood;
use crate::kit::{Demo, TempPath, until};
use crate::service::Manager;
use crate::support::{Client, Ground, kill, ticks};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

#[test]
fn sigterm_waits_for_those_who_hold_locks() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let ground = Ground::new();
        let daemon = ground.start("--drain-seconds 1000000");
        let (mut holder, mut waiting, mut idle) =
            (ground.connect(), ground.connect(), ground.connect());
        holder.assert_ok("LOCK a");
        holder.assert_ok("LOCK b");
        waiting.send(b"LOCK a\nSTATUS\n");
        holder.until_waiting("a", 1);
        daemon.signal(signal);
        // Who has nothing is told so, or sent away.
        let reply = waiting.line();
        assert!(reply.starts_with("ERR the daemon is about to end"), "{reply}");
        assert_eq!(idle.line(), "");
        until("nobody can connect", || UnixStream::connect(ground.socket.str()).is_err());
        assert!(!ground.socket.exists());
        // Who has something can still give it back, and look, but get no more.
        for line in ["LOCK c", "TRY c", "WITH 5 c"] {
            holder.assert_refused(line, "the daemon is about to end");
        }
        holder.assert_ok("UNLOCK a");
        assert_eq!(holder.status("b").state, "held");
        sleep(Duration::from_millis(100));
        assert!(holder.is_silent());
        holder.assert_ok("UNLOCK b");
        assert_eq!(holder.line(), "");
        assert_eq!(daemon.end_soon().code(), Some(0));
        ground.assert_only_the_segment_is_left();
        assert!(ground.logged().contains(&format!("{signal}: drains")));
    }
}

#[test]
fn everybody_who_waits_is_sent_away() {
    let ground = Ground::new();
    let daemon = ground.start("--clients 600");
    let mut holder = ground.connect();
    holder.assert_ok("LOCK a");
    // More than the ring takes at a time.
    let mut waiting: Vec<Client> = (0..300).map(|_| ground.connect()).collect();
    waiting.iter_mut().for_each(|client| client.send(b"LOCK a\n"));
    holder.until_waiting("a", 300);
    daemon.signal(Signal::SIGTERM);
    for client in &mut waiting {
        let reply = client.line();
        assert!(reply.starts_with("ERR the daemon is about to end"), "{reply}");
        assert_eq!(client.line(), "");
    }
    assert_eq!(holder.status("a").queue.len(), 0);
    holder.assert_ok("UNLOCK a");
    assert_eq!(daemon.end_soon().code(), Some(0));
}

/// A daemon that is started by a shell, which does something first.
fn from_shell(ground: &Ground, first: &str, vars: &[(&str, &str)], flags: &str) -> Demo {
    let daemon = ground.command(flags);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{first} && exec \"$0\" \"$@\"")]);
    command.arg(daemon.get_program()).args(daemon.get_args()).envs(vars.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let daemon = Demo::spawn(&mut command);
    ground.until_ready(&daemon);
    daemon
}

#[test]
fn a_daemon_without_descriptors_waits_for_some() {
    let ground = Ground::new();
    let daemon = from_shell(&ground, "ulimit -n 20", &[], "");
    let mut client = ground.connect();
    client.assert_ok("LOCK a");
    let mut more: Vec<Client> = (0..30).map(|_| ground.connect()).collect();
    ground.until_logged("cannot accept a connection: ");
    let before = ticks(daemon.pid());
    sleep(Duration::from_secs(2));
    let used = ticks(daemon.pid()) - before;
    println!("in 2 s without descriptors it used {used} ticks");
    assert!(used <= 10);
    // Once is enough, and those who are there are served.
    assert_eq!(ground.logged().matches("cannot accept").count(), 1);
    client.assert_ok("UNLOCK a");
    more.drain(..25);
    more.iter_mut().for_each(|client| client.send(b"TRY b\n"));
    let replies: Vec<String> = more.iter_mut().map(Client::line).collect();
    assert_eq!(replies.iter().filter(|reply| *reply == "OK").count(), 1);
    assert_eq!(replies.iter().filter(|reply| *reply == "BUSY").count(), 4);
}

#[test]
fn a_daemon_without_descriptors_appeases_its_watchdog() {
    let ground = Ground::new();
    let manager = Manager::new(&ground);
    let vars = [("NOTIFY_SOCKET", manager.path.str()), ("WATCHDOG_USEC", "20000")];
    let _daemon = from_shell(&ground, "ulimit -n 20", &vars, "");
    let _clients: Vec<Client> = (0..30).map(|_| ground.connect()).collect();
    ground.until_logged("cannot accept a connection: ");
    // What it was told before does not count, nor what fits into the socket.
    (0..100).for_each(|_| drop(manager.told()));
    assert!(!ground.logged().contains("cannot notify"), "{}", ground.logged());
}

#[test]
fn a_daemon_takes_all_descriptors_that_it_may() {
    let ground = Ground::new();
    let _daemon = from_shell(&ground, "ulimit -S -n 20", &[], "");
    let mut clients: Vec<Client> = (0..60).map(|_| ground.connect()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.ask("STATUS"), "OK 0"));
}

#[test]
fn whoever_reads_nothing_does_not_keep_it_from_ending() {
    let ground = Ground::new();
    let daemon = ground.start("--drain-seconds 1000000");
    let mut other = ground.connect();
    for n in 0..20 {
        other.assert_ok(&format!("LOCK lock-{n}"));
    }
    let mut deaf = ground.connect();
    let asked = flood(&mut deaf, b"STATUS\n") / 7;
    assert!(asked > 100);
    daemon.signal(Signal::SIGTERM);
    ground.until_logged("clients that hold locks: 1;");
    drop(other);
    assert_eq!(daemon.end_soon().code(), Some(0));
    // It was not a second signal, nor the time.
    assert!(!ground.logged().contains("still has it"));
    // What came before is there to be read.
    assert!(deaf.line().starts_with("LOCK name=lock-0 state="));
}

#[test]
fn sigterm_does_not_wait_for_ever() {
    let ground = Ground::new();
    let daemon = ground.start("--drain-seconds 1");
    let mut holder = ground.connect();
    holder.assert_ok("LOCK a");
    let (mut direct, said) = ground.process("--direct");
    direct.say("LOCK a");
    holder.until_waiting("a", 1);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end_soon().code(), Some(0));
    // The next one is told that it was not given back.
    assert_eq!(said.next(), format!("OK INHERITED {}", std::process::id()));
    assert_eq!(holder.line(), "");
    ground.until_logged("lock a: process");
    kill(direct);

    // Nor does a second one.
    let daemon = ground.start("--drain-seconds 1000000 --remove");
    let mut holder = ground.connect();
    holder.assert_ok("LOCK b");
    daemon.signal(Signal::SIGTERM);
    ground.until_logged("clients that hold locks: 1; waits for them for 1000000 s");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end_soon().code(), Some(0));
    ground.until_logged("SIGTERM again");
    ground.until_logged("lock b: process");
    assert!(!ground.path.exists() && !ground.socket.exists());
}

#[test]
fn what_others_use_is_not_removed() {
    let ground = Ground::new();
    let daemon = ground.start("--remove");
    let (mut direct, said) = ground.process("--direct");
    direct.say("LOCK a");
    assert_eq!(said.next(), "OK");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end_soon().code(), Some(0));
    let why = format!("is not removed: others use it, processes {}", direct.pid());
    assert!(ground.logged().contains(&why), "{}", ground.logged());
    assert!(ground.path.exists());
    // The dead use nothing.
    kill(direct);
    let daemon = ground.start("--remove");
    assert_eq!(ground.connect().ask("LOCK a").split(' ').nth(1), Some("INHERITED"));
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end_soon().code(), Some(0));
    assert!(!ground.path.exists());
}

#[test]
fn a_segment_of_somebody_else_is_refused() {
    let ground = Ground::new();
    assert_eq!(ground.path.run("client --direct STATUS").out, "OK 0\n");
    if let Err(error) = chown(ground.path.str(), Some(12345), None) {
        println!("skipped: cannot give a file away: {error}");
        return;
    }
    ground.path.run("daemon").assert_error(1, "it is user 12345's");
    assert!(!ground.socket.exists());
}

#[test]
fn sighup_leaves_the_log_to_whoever_renamed_it() {
    let ground = Ground::new();
    let daemon = ground.start("");
    ground.until_logged("ready: process");
    let old = ground.path.beside(".log.1");
    fs::rename(ground.log.str(), old.str()).expect("rename");
    // Until it is told, it goes on where it was.
    daemon.signal(Signal::SIGUSR1);
    let read_old = || fs::read_to_string(old.str()).expect("read");
    until("it goes on in the old file", || read_old().contains("SIGUSR1"));
    assert!(!ground.log.exists());
    daemon.signal(Signal::SIGHUP);
    ground.until_logged("SIGHUP: the log is open anew");
    assert!(!read_old().contains("SIGHUP"));
    // A log that cannot be opened is none that is lost: a directory, or a FIFO that nobody
    // reads.
    let kept = ground.path.beside(".log.2");
    fs::rename(ground.log.str(), kept.str()).expect("rename");
    let refused = || {
        let text = fs::read_to_string(kept.str()).expect("read");
        text.matches("SIGHUP: cannot open the log").count().min(text.matches("it stays").count())
    };
    fs::create_dir(ground.log.str()).expect("make a directory");
    daemon.signal(Signal::SIGHUP);
    until("it stays where it is", || refused() == 1);
    fs::remove_dir(ground.log.str()).expect("remove the directory");
    let (fifo, mode) = (rustix::fs::FileType::Fifo, 0o600.into());
    rustix::fs::mknodat(rustix::fs::CWD, ground.log.str(), fifo, mode, 0).expect("make a FIFO");
    daemon.signal(Signal::SIGHUP);
    until("it stays where it is", || refused() == 2);
    ground.connect().assert_ok("LOCK a");
    for line in read_old().lines().filter(|line| line.contains("ready: ")) {
        // 2026-01-31T23:59:59.999Z
        assert!(line.as_bytes()[10] == b'T' && line.as_bytes()[23] == b'Z', "{line}");
    }
}

#[test]
fn a_log_that_nobody_reads_stops_nobody() {
    const ROUNDS: usize = 1000;
    let ground = Ground::new();
    let mut daemon = ground.path.start("daemon");
    until("it listens", || UnixStream::connect(ground.socket.str()).is_ok());
    for round in 0..ROUNDS {
        // Two lines each but for the first: it inherits, and leaves.
        let reply = ground.connect().ask("LOCK a");
        assert_eq!(reply.starts_with("OK INHERITED"), round > 0, "{reply}");
    }
    let mut client = ground.connect();
    assert!(client.ask("LOCK a").starts_with("OK INHERITED"));
    let errors = daemon.errors();
    assert!(errors.next().starts_with("ready: process"));
    daemon.signal(Signal::SIGHUP);
    let (mut said, mut lost) = (2, 0);
    loop {
        let line = errors.next();
        if let Some(count) = line.strip_suffix(" lines of the log were lost") {
            lost += count.parse::<usize>().expect("a number");
        } else if line == "SIGHUP: there is no --log to be opened anew" {
            break;
        } else {
            said += 1;
        }
    }
    println!("{said} lines were said, and {lost} lost");
    assert!(lost > 0);
    assert_eq!(said + lost, 2 * ROUNDS + 2);
    client.assert_ok("UNLOCK a");
}

#[test]
fn sigusr1_shows_who_holds_and_who_waits() {
    let ground = Ground::new();
    let daemon = ground.start("");
    let (mut holder, mut waiting) = (ground.connect(), ground.connect());
    holder.assert_ok("LOCK a.lock");
    waiting.send(b"LOCK a.lock\n");
    holder.until_waiting("a.lock", 1);
    daemon.signal(Signal::SIGUSR1);
    ground.until_logged("\n    1. ");
    let text = ground.logged();
    let owned = format!("(pid {}, alive)", daemon.pid());
    for what in ["SIGUSR1: 2 clients", "\"a.lock\" (Fifo): owned by", &owned, "1 waiting", "parked"]
    {
        assert!(text.contains(what), "no {what:?} in {text}");
    }
    // The same as `inspect` has, whatever the signal was for.
    let said = Demo::run(&["inspect", ground.path.str()]);
    assert!(said.out.contains("\"a.lock\" (Fifo): owned by"), "{said:?}");
}

/// How often a process has gone to sleep by itself.
fn sleeps(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt")).expect("a line");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

#[test]
fn an_idle_daemon_does_not_run() {
    let ground = Ground::new();
    let daemon = ground.start("");
    // Clients that are there and want nothing, one of which holds a lock.
    let mut clients = [ground.connect(), ground.connect(), ground.connect()];
    clients[0].assert_ok("LOCK a");
    clients[1].assert_ok("LOCK b");
    clients[1].assert_ok("UNLOCK b");
    sleep(Duration::from_millis(300));
    let before = (ticks(daemon.pid()), sleeps(daemon.pid()));
    sleep(Duration::from_secs(3));
    let after = (ticks(daemon.pid()), sleeps(daemon.pid()));
    println!("in 3 s it used {} ticks, woke {} times", after.0 - before.0, after.1 - before.1);
    assert!(after.0 - before.0 <= 2);
    assert_eq!(after.1, before.1, "it woke");
    clients[0].assert_ok("UNLOCK a");
}

#[test]
fn there_is_one_daemon_for_a_segment() {
    let ground = Ground::new();
    let daemon = ground.start("");
    let said = ground.path.run("daemon");
    let expected = format!("there is a daemon already, process {}; end that one", daemon.pid());
    said.assert_error(1, &expected);
    // It is unharmed, and so is its socket.
    ground.connect().assert_ok("LOCK a");
    // Another one may have another socket, not the same.
    let other = Ground::new();
    let line = format!("daemon --socket {}", ground.socket.str());
    let expected = format!("process {} listens there", daemon.pid());
    other.path.run(&line).assert_error(1, &expected);
    ground.connect().assert_ok("LOCK b");
    let _other = other.start("");
    other.connect().assert_ok("LOCK a");
}

#[test]
fn only_a_socket_at_which_nobody_listens_is_replaced() {
    let ground = Ground::new();
    fs::write(ground.socket.str(), "kept").expect("write");
    ground.path.run("daemon").assert_error(1, "is there already, and is no socket");
    assert_eq!(fs::read(ground.socket.str()).expect("read"), b"kept");
    fs::remove_file(ground.socket.str()).expect("remove");

    let listener = UnixListener::bind(ground.socket.str()).expect("bind");
    let expected = format!("process {} listens there", std::process::id());
    ground.path.run("daemon").assert_error(1, &expected);
    assert!(UnixStream::connect(ground.socket.str()).is_ok());
    drop(listener);
    let daemon = ground.start("");
    ground.connect().assert_ok("LOCK a");
    // One that took its place meanwhile is not the daemon's to remove.
    fs::remove_file(ground.socket.str()).expect("remove");
    let _listener = UnixListener::bind(ground.socket.str()).expect("bind");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end_soon().code(), Some(0));
    assert!(UnixStream::connect(ground.socket.str()).is_ok());
}

#[test]
fn the_mode_says_who_may_use_it() {
    for (flags, mode) in [("", 0o600), ("--mode 640", 0o640), ("--mode 666", 0o666)] {
        let ground = Ground::new();
        // Whatever the umask is.
        let _daemon = from_shell(&ground, "umask 077", &[], flags);
        for path in [&ground.path, &ground.socket] {
            let found = fs::symlink_metadata(path.str()).expect("it is there");
            assert_eq!(found.permissions().mode() & 0o777, mode, "{}", path.str());
        }
    }
}

#[test]
fn what_is_no_segment_stays_as_it_is() {
    let path = TempPath::new();
    let text = "A text, longer than the header of a segment. ".repeat(200);
    fs::write(path.str(), &text).expect("write");
    for line in ["daemon", "client --direct STATUS"] {
        path.run(line).assert_error(1, "not a heirlock segment");
    }
    assert_eq!(fs::read_to_string(path.str()).expect("read"), text);
    assert!(!path.beside(".sock").exists());
}
