//! Clients that send what is no request, too much of it, or nothing.

use crate::kit::until;
use crate::support::{Client, Ground, stop, ticks};
use heirlock::{Mutex, Segment};
use nix::sys::signal::Signal;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

#[test]
fn garbage_is_answered_and_nobody_else_notices() {
    let ground = Ground::new();
    let demo = ground.start("");
    let mut bystander = ground.connect();
    bystander.assert_ok("LOCK a");
    for seed in 0..50 {
        let mut random = fastrand::Rng::with_seed(seed);
        let len = random.usize(1..3000);
        let mut bytes: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
        bytes.push(b'\n');
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
        let mut client = ground.connect();
        client.send(&bytes);
        for _ in 0..lines {
            let reply = client.line();
            assert!(reply.starts_with("ERR "), "{reply}, seed {seed}");
        }
        // It is understood again.
        assert_eq!(client.ask("TRY a"), "BUSY", "seed {seed}");
    }
    bystander.assert_ok("UNLOCK a");
    demo.signal(Signal::SIGTERM);
    assert_eq!(demo.end_soon().code(), Some(0));
}

#[test]
fn a_line_of_a_megabyte_is_refused_once() {
    let ground = Ground::new();
    let daemon = ground.start("");
    let mut client = ground.connect();
    client.send(&[b'x'; 1_000_000]);
    assert!(client.line().starts_with("ERR the line has more than 128 bytes"));
    client.send(b" and its end\n");
    client.assert_ok("LOCK a");
    let kilobytes = resident(daemon.pid());
    // Lines that were sent while nothing is looked at are kept, up to a point.
    let mut waiting = ground.connect();
    waiting.send(b"LOCK a\n");
    client.until_waiting("a", 1);
    let flood = flood(&mut waiting, b"TRY b\n");
    println!("{flood} bytes were taken ahead of their time");
    assert!(flood < 2_000_000, "{flood} bytes were taken");
    assert!(resident(daemon.pid()) < kilobytes + 4096);
    client.assert_ok("UNLOCK a");
    assert_eq!(waiting.line(), "OK");
    // All of it is answered.
    assert_eq!(waiting.line(), "OK");
    for _ in 1..flood / 6 {
        assert!(waiting.line().starts_with("ERR this connection holds b already"));
    }
}

/// Sends until nothing more is taken; returns how much was, a whole number of times `what`.
pub(crate) fn flood(client: &mut Client, what: &[u8]) -> usize {
    let stream = client.stream();
    stream.set_nonblocking(true).expect("do not block");
    let mut sent = 0;
    let mut quiet = 0;
    while quiet < 50 {
        let rest = &what[sent % what.len()..];
        match stream.write(rest) {
            Ok(count) => (sent, quiet) = (sent + count, 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                quiet += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("{error}"),
        }
    }
    stream.set_nonblocking(false).expect("block again");
    let rest = (what.len() - sent % what.len()) % what.len();
    assert_eq!(rest, 0, "a line was taken in part");
    sent
}

/// How many kilobytes of memory a process has.
fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

#[test]
fn whoever_does_not_read_is_not_answered_for_ever() {
    let ground = Ground::new();
    let daemon = ground.start("");
    let mut other = ground.connect();
    for n in 0..20 {
        other.assert_ok(&format!("LOCK lock-{n}"));
    }
    let kilobytes = resident(daemon.pid());
    let mut deaf = ground.connect();
    let asked = flood(&mut deaf, b"STATUS\n") / 7;
    println!("{asked} requests were taken from a client that reads nothing");
    assert!(asked > 100);
    assert!(resident(daemon.pid()) < kilobytes + 8192);
    // Nobody else notices, and it gets all of its replies when it reads.
    other.assert_ok("UNLOCK lock-3");
    for _ in 0..asked {
        while !deaf.line().starts_with("OK 20") {}
    }
    deaf.assert_ok("LOCK lock-3");
}

#[test]
fn half_a_line_is_none() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    let mut client = ground.connect();
    client.assert_ok("LOCK a");
    for part in ["", "L", "LOCK", "LOCK b", "UNLOCK a"] {
        let mut other = ground.connect();
        other.send(part.as_bytes());
        // All that it can be told it is told.
        other.stream().shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(other.line(), "");
    }
    client.send(b"UN");
    client.send(b"LOCK");
    client.send(b" a\nLOCK a\nSTATUS");
    assert_eq!(client.line(), "OK");
    assert_eq!(client.line(), "OK");
    client.send(b"\n");
    let status = client.line();
    assert!(status.starts_with("LOCK name=a state=held"), "{status}");
    assert_eq!(client.line(), "OK 1");
}

#[test]
fn whoever_says_nothing_more_still_hears_everything() {
    let ground = Ground::new();
    let daemon = ground.start("");
    let mut holder = ground.connect();
    holder.assert_ok("LOCK a");
    let mut client = ground.connect();
    client.send(b"TRY a\nLOCK a\nLOCK b\nSTATUS\nLOCK");
    client.stream().shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(client.line(), "BUSY");
    holder.until_waiting("a", 1);
    let before = ticks(daemon.pid());
    std::thread::sleep(Duration::from_secs(1));
    let used = ticks(daemon.pid()) - before;
    println!("while it waits for a second the daemon used {used} ticks");
    assert!(used <= 10);
    holder.assert_ok("UNLOCK a");
    assert_eq!((client.line(), client.line()), ("OK".into(), "OK".into()));
    for name in ["a", "b"] {
        let status = client.line();
        assert!(status.starts_with(&format!("LOCK name={name} state=held")), "{status}");
    }
    assert_eq!((client.line(), client.line()), ("OK 2".into(), String::new()));
    // It has not given them back.
    for name in ["a", "b"] {
        let reply = holder.ask(&format!("WITH 30000 {name}"));
        assert_eq!(reply, format!("OK INHERITED {}", std::process::id()));
    }
}

#[test]
fn whoever_is_gone_waits_for_nothing_whatever_was_sent() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    let mut holder = ground.connect();
    holder.assert_ok("LOCK a");
    for (more, is_half_closed) in [(false, true), (true, true), (true, false)] {
        let mut client = ground.connect();
        client.send(b"LOCK a\n");
        holder.until_waiting("a", 1);
        if more {
            flood(&mut client, b"LOCK b\n");
        }
        if is_half_closed {
            client.stream().shutdown(Shutdown::Write).expect("shutdown");
            assert_eq!(holder.status("a").queue.len(), 1);
            assert!(client.is_silent());
        }
        drop(client);
        holder.until_waiting("a", 0);
    }
}

#[test]
fn what_was_said_before_the_end_counts() {
    let ground = Ground::new();
    let daemon = ground.start("");
    for _ in 0..20 {
        let mut client = ground.connect();
        client.assert_ok("LOCK a");
        stop(&daemon);
        client.send(b"UNLOCK a\n");
        drop(client);
        daemon.signal(Signal::SIGCONT);
        ground.connect().assert_ok("LOCK a");
        let mut next = ground.connect();
        assert!(next.ask("LOCK a").starts_with("OK INHERITED"));
        next.assert_ok("UNLOCK a");
    }
}

#[test]
fn whoever_asks_much_does_not_keep_the_others_waiting() {
    const REQUESTS: usize = 500;
    let ground = Ground::new();
    let daemon = ground.start("");
    let (mut eager, mut other) = (ground.connect(), ground.connect());
    for client in [&mut eager, &mut other] {
        assert_eq!(client.ask("STATUS"), "OK 0");
    }
    stop(&daemon);
    eager.send("STATUS\n".repeat(REQUESTS).as_bytes());
    other.send(b"LOCK a\n");
    daemon.signal(Signal::SIGCONT);
    assert_eq!(other.line(), "OK");
    let mut before = 0;
    while eager.line() == "OK 0" {
        before += 1;
        assert!(before < REQUESTS, "it was served to its end before");
    }
    println!("{before} of {REQUESTS} requests were served before another client's");
    assert!(before <= 100);
}

#[test]
fn requests_may_come_before_the_replies_and_go_in_order() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    let mut client = ground.connect();
    let rounds = 2000;
    let text = "LOCK a\nTRY b\nUNLOCK b\nUNLOCK a\nUNLOCK a\n".repeat(rounds);
    let mut writer = client.stream().try_clone().expect("another handle");
    let writer = std::thread::spawn(move || writer.write_all(text.as_bytes()));
    for _ in 0..rounds {
        for _ in 0..4 {
            assert_eq!(client.line(), "OK");
        }
        assert!(client.line().starts_with("ERR this connection does not hold a"));
    }
    writer.join().expect("no panic").expect("written");
}

#[test]
fn a_hundred_clients_are_served_in_order_and_one_too_many_is_told() {
    let ground = Ground::new();
    let _daemon = ground.start("--clients 101");
    let mut holder = ground.connect();
    holder.assert_ok("TRY a");
    let mut clients: Vec<Client> = Vec::new();
    for n in 0..100 {
        let mut client = ground.connect();
        client.send(b"LOCK a\n");
        holder.until_waiting("a", n + 1);
        clients.push(client);
    }
    let mut more = ground.connect();
    let reply = more.line();
    assert!(reply.starts_with("ERR there are 101 clients already"), "{reply}");
    assert_eq!(more.line(), "");
    holder.assert_ok("UNLOCK a");
    for at in 0..clients.len() {
        assert_eq!(clients[at].line(), "OK");
        assert!(clients[at + 1..].iter_mut().all(Client::is_silent));
        clients[at].assert_ok("UNLOCK a");
    }
    clients.pop();
    until("there is room again", || {
        let mut client = ground.connect();
        let _ = client.stream().write_all(b"TRY a\n");
        client.line() == "OK"
    });
}

#[test]
fn a_corrupted_lock_is_the_only_one() {
    let ground = Ground::new();
    let daemon = ground.start("");
    let (mut holder, mut client) = (ground.connect(), ground.connect());
    for name in ["a", "b", "c"] {
        holder.assert_ok(&format!("LOCK {name}"));
    }
    holder.assert_ok("UNLOCK a");
    let options = Segment::<[Mutex<u64>; 62]>::options().schema(0x4c4f_434b_5301);
    let segment = options.open(ground.path.str()).expect("open");
    let file = OpenOptions::new().write(true).open(ground.path.str()).expect("open");
    let corrupt = |at: usize| {
        let offset = segment.offset_of(&segment[at]).expect("an offset");
        file.write_all_at(&u64::MAX.to_ne_bytes(), offset).expect("write");
    };
    corrupt(1);
    client.assert_refused("TRY a", "the segment is corrupted");
    // One that is held: there is no giving it back.
    corrupt(2);
    let mut bystander = ground.connect();
    bystander.assert_ok("LOCK d");
    holder.assert_refused("UNLOCK b", "the segment is corrupted; this connection ends");
    assert_eq!(holder.line(), "");
    let inherited = format!("OK INHERITED {}", std::process::id());
    assert_eq!(client.ask("WITH 30000 c"), inherited);
    // Nor by its end.
    client.assert_ok("LOCK e");
    corrupt(3);
    drop(client);
    assert_eq!(bystander.ask("WITH 30000 e"), inherited);
    bystander.assert_ok("UNLOCK e");
    assert_eq!(ground.logged().matches("cannot unlock what it had").count(), 2);
    daemon.signal(Signal::SIGTERM);
    bystander.assert_ok("UNLOCK d");
    assert_eq!(daemon.end_soon().code(), Some(0));
}

#[test]
fn connections_come_and_go() {
    let ground = Ground::new();
    let daemon = ground.start("");
    let mut client = ground.connect();
    client.assert_ok("LOCK a");
    let sockets = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("files");
        let links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    };
    for n in 0..500 {
        let mut stream = UnixStream::connect(ground.socket.str()).expect("connect");
        if n % 2 == 0 {
            stream.write_all(b"LOCK a\nLOCK b\n").expect("write");
        }
    }
    // That at which it listens, and the client's.
    until("all others are gone", || sockets() == 2);
    assert_eq!(client.status("a").queue.len(), 0);
}
