//! Clients, direct users and the daemon itself are killed.

use crate::kit::{Demo, until};
use crate::support::{Client, Ground, kill};
use nix::sys::signal::Signal;

#[test]
fn what_a_killed_client_held_goes_to_the_next() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    let (mut holder, said) = ground.process("");
    holder.say("LOCK a");
    assert_eq!(said.next(), "OK");
    let (mut direct, direct_said) = ground.process("--direct");
    let mut next = ground.connect();
    direct.say("LOCK a");
    next.until_waiting("a", 1);
    next.send(b"LOCK a\n");
    ground.connect().until_waiting("a", 2);
    let (pid, direct_pid) = (holder.pid(), direct.pid());
    kill(holder);
    // Whether it maps the segment or not, it is told who had it.
    assert_eq!(direct_said.next(), format!("OK INHERITED {pid}"));
    assert!(next.is_silent());
    kill(direct);
    assert_eq!(next.line(), format!("OK INHERITED {direct_pid}"));
    // Once.
    next.assert_ok("UNLOCK a");
    next.assert_ok("LOCK a");
    ground.until_logged(&format!("lock a: process {pid} is gone and had it"));
}

#[test]
fn a_killed_client_waits_no_longer() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    let mut holder = ground.connect();
    holder.assert_ok("LOCK a");
    let mut waiting = Vec::new();
    for n in 0..4 {
        let (mut process, lines) = ground.process("");
        process.say("LOCK a");
        holder.until_waiting("a", n + 1);
        waiting.push((process, lines));
    }
    let (third, _) = waiting.remove(2);
    kill(third);
    holder.until_waiting("a", 3);
    let (first, _) = waiting.remove(0);
    kill(first);
    holder.until_waiting("a", 2);
    holder.assert_ok("UNLOCK a");
    for (mut process, lines) in waiting {
        assert_eq!(lines.next(), "OK");
        process.say("UNLOCK a");
        assert_eq!(lines.next(), "OK");
    }
    assert_eq!(holder.status("a").state, "free");
}

#[test]
fn a_connection_that_ends_waits_for_nothing_and_holds_nothing() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    let mut watcher = ground.connect();
    let mut one = ground.connect();
    for name in ["a", "b", "c"] {
        one.assert_ok(&format!("LOCK {name}"));
    }
    let mut two = ground.connect();
    // What comes behind the LOCK is never looked at.
    two.send(b"LOCK a\nLOCK d\n");
    watcher.until_waiting("a", 1);
    drop(two);
    watcher.until_waiting("a", 0);
    drop(one);
    for name in ["a", "b", "c"] {
        until("it is released", || watcher.status(name).state == "free");
    }
    let me = std::process::id();
    assert_eq!(watcher.ask("TRY b"), format!("OK INHERITED {me}"));
    watcher.assert_ok("TRY d");
}

/// A client that has the lock `a`, and a process that waits for it.
fn held(ground: &Ground) -> (Client, Demo, crate::kit::Lines) {
    let mut holder = ground.connect();
    holder.assert_ok("LOCK a");
    let (mut direct, said) = ground.process("--direct");
    direct.say("LOCK a");
    holder.until_waiting("a", 1);
    (holder, direct, said)
}

#[test]
fn a_killed_daemon_is_inherited_from() {
    let ground = Ground::new();
    let daemon = ground.start("");
    let (mut holder, mut direct, said) = held(&ground);
    holder.assert_ok("LOCK b");
    let mut waiting = ground.connect();
    waiting.send(b"LOCK a\n");
    holder.until_waiting("a", 2);
    kill(daemon);
    // At once, whether or not there is another daemon.
    let me = std::process::id();
    assert_eq!(said.next(), format!("OK INHERITED {me}"));
    assert_eq!((holder.line(), waiting.line()), (String::new(), String::new()));

    let daemon = ground.start("");
    ground.until_logged("daemon 2 of");
    ground.until_logged("lock b: process");
    let mut client = ground.connect();
    // The names are what they were, and the dead wait for nothing.
    let status = client.status("a");
    assert_eq!((status.owner, status.queue), (direct.pid().to_string(), vec![]));
    assert_eq!(client.status("b").state, "dead");
    assert_eq!(client.ask("LOCK b"), format!("OK INHERITED {me}"));
    client.assert_ok("UNLOCK b");
    client.assert_ok("LOCK b");
    assert_eq!(client.ask("TRY a"), "BUSY");
    direct.say("UNLOCK a");
    assert_eq!(said.next(), "OK");
    client.assert_ok("TRY a");
    drop(daemon);
}

#[test]
fn a_daemon_that_is_killed_again_and_again_loses_nothing() {
    const KILLS: u32 = 20;
    let ground = Ground::new();
    // What the next one who asks for it is to be told.
    let (mut told, mut inherited) = ("OK".to_string(), 0);
    for _ in 0..KILLS {
        let daemon = ground.start("");
        let mut holder = ground.connect();
        assert_eq!(holder.ask("LOCK a"), told);
        let (mut direct, said) = ground.process("--direct");
        direct.say("LOCK a");
        holder.until_waiting("a", 1);
        // With clients that queue, wait and let go all the time.
        let mut others: Vec<Client> = (0..3).map(|_| ground.connect()).collect();
        for other in &mut others {
            other.send(b"LOCK b\nUNLOCK b\nWITH 3 a\nLOCK b\nLOCK a\n");
        }
        std::thread::sleep(std::time::Duration::from_millis(fastrand::u64(..20)));
        kill(daemon);
        assert_eq!(said.next(), format!("OK INHERITED {}", std::process::id()));
        assert_eq!(holder.line(), "");
        if fastrand::bool() {
            direct.say("UNLOCK a");
            assert_eq!(said.next(), "OK");
            told = "OK".into();
        } else {
            told = format!("OK INHERITED {}", direct.pid());
            inherited += 1;
            kill(direct);
        }
    }
    println!("{KILLS} daemons killed; the next one's client inherited {inherited} times");
    let demo = ground.start("");
    assert_eq!(ground.connect().ask("LOCK a"), told);
    assert!(ground.logged().contains(&format!("daemon {} of", KILLS + 1)));
    demo.signal(Signal::SIGTERM);
    assert_eq!(demo.end_soon().code(), Some(0));
}
