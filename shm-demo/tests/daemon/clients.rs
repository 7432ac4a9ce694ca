//! What clients are told, and when.

use crate::kit::{Demo, HANG, run};
use crate::support::Ground;
use heirlock::{Mutex, Segment};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::sync::Mutex as ThreadMutex;
use std::time::{Duration, Instant};

#[test]
fn each_request_has_its_reply() {
    let ground = Ground::new();
    let daemon = ground.start("");
    let (mut one, mut two) = (ground.connect(), ground.connect());
    one.send(b"STATUS\n");
    assert_eq!(one.line(), "OK 0");
    one.assert_ok("LOCK a");
    two.assert_refused("LOCK", "LOCK takes one word");
    assert_eq!(two.ask("TRY a"), "BUSY");
    assert_eq!(two.ask("WITH 20 a"), "TIMEOUT");
    assert_eq!(two.ask("WITH 0 a"), "TIMEOUT");
    two.assert_ok("try b");
    two.assert_refused("UNLOCK a", "this connection does not hold a");
    two.assert_refused("UNLOCK c", "this connection does not hold c");
    two.assert_refused("LOCK b", "holds b already");
    let (status, me) = (two.status("b"), std::process::id());
    assert_eq!((&*status.state, &*status.queue), ("held", &[][..]));
    assert_eq!(status.owner, format!("{}/{me}", daemon.pid()));
    one.assert_ok("UNLOCK a");
    let status = one.status("a");
    assert_eq!((&*status.state, &*status.owner), ("free", "-"));
    two.assert_ok("WITH 20 a");
    // Whoever lets go by UNLOCK is not inherited from.
    two.assert_ok("UNLOCK a");
    one.assert_ok("LOCK a");
}

#[test]
fn a_wait_that_lasts_keeps_its_place() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    let (mut one, mut two, mut three) = (ground.connect(), ground.connect(), ground.connect());
    one.assert_ok("LOCK a");
    two.send(b"LOCK a\n");
    one.until_waiting("a", 1);
    three.send(b"WITH 86400000 a\n");
    one.until_waiting("a", 2);
    let before = one.status("a").queue;
    // Longer than anybody sleeps in one go.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(one.status("a").queue, before);
    assert!(two.is_silent() && three.is_silent());
    one.assert_ok("UNLOCK a");
    assert_eq!(two.line(), "OK");
    assert!(three.is_silent());
    two.assert_ok("UNLOCK a");
    assert_eq!(three.line(), "OK");
}

#[test]
fn clients_and_those_who_map_the_segment_stand_in_one_queue() {
    let ground = Ground::new();
    let daemon = ground.start("");
    let mut holder = ground.connect();
    holder.assert_ok("LOCK a");
    // By turns: processes that wait themselves, and clients.
    let (mut direct, mut served) = (Vec::new(), Vec::new());
    let mut expected = Vec::new();
    for turn in 0..3 {
        let (mut process, lines) = ground.process("--direct");
        process.say("LOCK a");
        holder.until_waiting("a", 2 * turn + 1);
        expected.push(process.pid().to_string());
        direct.push((process, lines));
        let (mut process, lines) = ground.process("");
        process.say("LOCK a");
        holder.until_waiting("a", 2 * turn + 2);
        expected.push(format!("{}/{}", daemon.pid(), process.pid()));
        served.push((process, lines));
    }
    let status = holder.status("a");
    assert_eq!(status.owner, format!("{}/{}", daemon.pid(), std::process::id()));
    assert_eq!(status.queue, expected);

    let mut all: Vec<_> = direct.into_iter().zip(served).flat_map(|(a, b)| [a, b]).collect();
    holder.assert_ok("UNLOCK a");
    for at in 0..all.len() {
        // Exactly one of them has it.
        assert_eq!(all[at].1.next(), "OK", "the one at {at}");
        let status = holder.status("a");
        assert_eq!((&status.owner, &status.queue[..]), (&expected[at], &expected[at + 1..]));
        assert!(all[at + 1..].iter().all(|(_, lines)| lines.is_silent()));
        if at % 2 == 0 {
            // Who came and went leaves no trace in the order.
            assert_eq!(holder.ask("WITH 10 a"), "TIMEOUT");
        }
        let (process, lines) = &mut all[at];
        process.say("UNLOCK a");
        assert_eq!(lines.next(), "OK");
    }
    assert_eq!(holder.status("a").state, "free");
}

#[test]
fn a_program_of_ones_own_shares_the_locks() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    let mut client = ground.connect();
    client.assert_ok("LOCK first");
    client.assert_ok("LOCK a.name-of_the_greatest-length.possible0");
    // As `Locks` in the source: the daemon's own lock, and 61 with a note of who has each.
    let options = Segment::<[Mutex<u64>; 62]>::options().schema(0x4c4f_434b_5301);
    let segment = options.open(ground.path.str()).expect("open");
    let name = |at: usize| segment.name_of(&segment[at]);
    assert_eq!(name(0).as_deref(), Some("the daemon"));
    assert_eq!(name(1).as_deref(), Some("first"));
    assert_eq!(name(2).as_deref(), Some("a.name-of_the_greatest-length.possible0"));
    assert_eq!(name(3), None);
    assert!(segment[1].try_lock().is_none());
    client.assert_ok("UNLOCK first");
    // It says who has it, as the daemon does.
    let mut guard = segment[1].lock();
    assert_eq!(*guard, 0);
    *guard = 1 << 32 | 7;
    assert_eq!(client.ask("TRY first"), "BUSY");
    drop(guard);
    assert_eq!(client.ask("TRY first"), "OK INHERITED 7");
    let me = u64::from(std::process::id());
    drop(client);
    let mut guard = segment[1].try_lock_for(HANG).expect("it is released");
    assert_eq!(*guard, 1 << 32 | me);
    *guard = 0;
    drop(guard);
    let mut client = ground.connect();
    client.assert_ok("TRY first");
    // A name that no client can ask for is none that it is told.
    segment.set_name(&segment[3], "x state=free").expect("a name");
    client.send(b"STATUS\n");
    let lines = [client.line(), client.line(), client.line()];
    assert!(lines[0].starts_with("LOCK name=first ") && lines[1].starts_with("LOCK name=a.name"));
    assert_eq!(lines[2], "OK 2");
}

#[test]
fn there_is_room_for_61_names() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    let mut client = ground.connect();
    for n in 0..61 {
        client.assert_ok(&format!("LOCK lock-{n}"));
    }
    client.assert_refused("LOCK another", "all 61 locks have other names; use one of them");
    client.assert_ok("UNLOCK lock-60");
    client.assert_ok("LOCK lock-60");
    assert_eq!(client.status("lock-17").state, "held");
}

#[test]
fn nobody_is_where_somebody_else_is() {
    const FOR: Duration = Duration::from_secs(3);
    let ground = Ground::new();
    let _daemon = ground.start("");
    let options = Segment::<[Mutex<u64>; 62]>::options().schema(0x4c4f_434b_5301);
    let segment = options.open(ground.path.str()).expect("open");
    ground.connect().assert_ok("LOCK a");
    let lock = &segment[1];
    // Held by whoever has the lock: if it is held already, somebody else has it, too.
    let inside = &ThreadMutex::new(());
    let enter = || inside.try_lock().expect("nobody else is here");
    let start = Instant::now();
    let counts = std::thread::scope(|scope| {
        let client = |seed: u64| {
            let ground = &ground;
            move || {
                let mut random = fastrand::Rng::with_seed(seed);
                let (mut client, mut had, mut left, mut late) = (ground.connect(), 0, 0, 0);
                while start.elapsed() < FOR {
                    match random.u32(..20) {
                        // Leaves while it waits, or in the very moment at which it is served.
                        0 => {
                            client.send(b"LOCK a\n");
                            client = ground.connect();
                            continue;
                        }
                        1 => client.send(b"WITH 1 a\n"),
                        _ => client.send(b"LOCK a\n"),
                    }
                    let reply = client.line();
                    if reply == "TIMEOUT" {
                        late += 1;
                        continue;
                    }
                    assert!(reply.starts_with("OK"), "{reply}");
                    let within = enter();
                    had += 1;
                    std::thread::yield_now();
                    drop(within);
                    if random.u32(..20) == 0 {
                        left += 1;
                        client = ground.connect();
                    } else {
                        client.assert_ok("UNLOCK a");
                    }
                }
                [had, left, late]
            }
        };
        let direct = || {
            let mut had = 0;
            while start.elapsed() < FOR {
                let guard = lock.try_lock_for(HANG).expect("the lock comes");
                drop((enter(), guard));
                had += 1;
                std::thread::yield_now();
            }
            [had, 0, 0]
        };
        let clients: Vec<_> = (0..6).map(|seed| scope.spawn(client(seed))).collect();
        let direct = [scope.spawn(direct), scope.spawn(direct)];
        let sum = |counts: [u32; 3], more: [u32; 3]| std::array::from_fn(|n| counts[n] + more[n]);
        let joined = |threads: Vec<std::thread::ScopedJoinHandle<'_, [u32; 3]>>| {
            threads.into_iter().map(|thread| thread.join().expect("no panic")).fold([0; 3], sum)
        };
        (joined(clients), joined(direct.into()))
    });
    let ([had, left, late], [direct, ..]) = counts;
    println!(
        "clients had it {had} times, left with it {left}, were too late {late}; direct {direct}"
    );
    assert!(had >= 300 && left >= 5 && direct >= 100, "too little: {counts:?}");
    let mut client = ground.connect();
    assert!(client.ask("LOCK a").starts_with("OK"));
    assert_eq!(client.status("a").queue.len(), 0);
}

#[test]
fn a_client_lets_go_at_its_end() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    let mut next = ground.connect();
    for flag in ["", "--direct"] {
        let (mut process, said) = ground.process(flag);
        for line in ["LOCK a", "TRY b", "WITH 5 c", "UNLOCK b"] {
            process.say(line);
            assert_eq!(said.next(), "OK");
        }
        next.send(b"LOCK a\nLOCK b\nLOCK c\n");
        ground.connect().until_waiting("a", 1);
        process.hang_up();
        // It came to its end, and did not die.
        assert_eq!([next.line(), next.line(), next.line()], ["OK"; 3]);
        assert_eq!(process.end_soon().code(), Some(0));
        ["a", "b", "c"].iter().for_each(|name| next.assert_ok(&format!("UNLOCK {name}")));
        // One request, without a command.
        let ask = |line: &str| ground.path.run(&format!("client {flag} {line}"));
        assert_eq!(ask("TRY a").out, "OK\n");
        assert_eq!(ask("TRY a").out, "OK\n");
        let said = ask("LOCK");
        assert_eq!(said.code(), Some(1));
        assert!(said.out.starts_with("ERR LOCK takes one word"), "{said:?}");
        assert!(ask("STATUS").out.ends_with("OK 3\n"));
    }
}

#[test]
fn a_request_is_one_line_and_so_is_a_reply() {
    let ground = Ground::new();
    let path = ground.path.str();
    for flag in ["--direct", ""] {
        let _daemon = flag.is_empty().then(|| ground.start(""));
        for request in ["LOCK a\nLOCK b", "LOCK\na"] {
            let mut command = Demo::command(&["client", "--path", path]);
            command.args(flag.split_whitespace()).args([request, "--", "true"]);
            Demo::spawn(&mut command).end_soon().assert_error(1, "a request is one line");
        }
        assert_eq!(ground.path.run(&format!("client {flag} STATUS")).out, "OK 0\n");
    }
    // What the daemon could not say to its end.
    for (reply, what) in [("OK", "the daemon is gone"), ("LOCK name=a\n", "the daemon is gone")] {
        let ground = Ground::new();
        let listener = UnixListener::bind(ground.socket.str()).expect("bind");
        let client = ground.path.start("client LOCK a");
        let (mut stream, _) = listener.accept().expect("accept");
        BufReader::new(&stream).read_line(&mut String::new()).expect("a request");
        stream.write_all(reply.as_bytes()).expect("write");
        drop(stream);
        let said = client.end_soon();
        said.assert_error(1, what);
        assert_eq!(said.out, "");
    }
}

#[test]
fn says_what_is_wrong_with_the_command_line() {
    let ground = Ground::new();
    let said = ground.path.run("client STATUS");
    said.assert_error(1, "nobody listens there; start `shm-demo daemon --path");
    run("daemon --mode 8").assert_error(2, "octal");
    run("daemon --clients 0").assert_error(2, "--clients");
    run("daemon --path /nonexistent/x").assert_error(1, "/nonexistent/x");
    run("client -- true").assert_error(2, "REQUEST");
    let said = ground.path.run("daemon --log /nonexistent/log");
    said.assert_error(1, "cannot open the log /nonexistent/log");
    let long = format!("daemon --socket /tmp/{}", "x".repeat(110));
    ground.path.run(&long).assert_error(1, "at most 107 bytes with --socket");
    for (command, what) in [
        ("daemon", ["OK INHERITED PID", "1 << 32 | PID", "Example"]),
        ("client", ["--direct", "Exit codes", "Example"]),
    ] {
        let said = run(&format!("{command} --help"));
        assert!(what.iter().all(|what| said.out.contains(what)), "{said:?}");
    }
}
