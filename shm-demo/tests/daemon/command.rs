//! Commands that run with a lock, and never without it.

use crate::kit::{Demo, Lines, until};
use crate::support::{Ground, kill};
use nix::sys::signal::Signal;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// What the client is told that does without a daemon, and the other.
const WAYS: [&str; 2] = ["", "--direct"];

/// A client that runs a script while it holds a lock.
fn holding(ground: &Ground, flag: &str, request: &str, script: &str) -> Command {
    let mut command = Demo::command(&["client", "--path", ground.path.str()]);
    command.args(flag.split_whitespace()).args(request.split_whitespace());
    // With the path as its name, so that nobody is left behind.
    command.args(["--", "sh", "-c", script, ground.path.str()]);
    command
}

/// The same, when the script has begun. It goes on until a signal ends it, and says which.
fn begun(ground: &Ground, flag: &str) -> (Demo, Lines) {
    let script = "for s in TERM INT HUP; do trap \"echo got $s; exit 9\" $s; done; echo begun; \
                  while :; do sleep 0.01; done";
    let mut demo = Demo::spawn(&mut holding(ground, flag, "LOCK a", script));
    let said = demo.lines();
    assert_eq!(said.next(), "begun");
    (demo, said)
}

#[test]
fn a_command_runs_with_the_lock() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    let mut client = ground.connect();
    for flag in WAYS {
        let holds = |request: &str, script: &str| {
            Demo::spawn(&mut holding(&ground, flag, request, script)).end_soon()
        };
        let program = env!("CARGO_BIN_EXE_shm-demo");
        let ask = format!("{program} client --path {} TRY a; exit 7", ground.path.str());
        let said = holds("LOCK a", &ask);
        assert_eq!((said.code(), said.out.as_str()), (Some(7), "BUSY\n"), "{said:?}");
        assert_eq!(holds("WITH 1000 a", "kill -TERM $$").code(), Some(143));
        client.assert_ok("LOCK a");
        let said = holds("TRY a", "echo it ran");
        assert_eq!((said.code(), &*said.out, &*said.err), (Some(1), "", "BUSY\n"));
        assert_eq!(holds("WITH 5 a", "echo it ran").err, "TIMEOUT\n");
        client.assert_ok("UNLOCK a");
        holds("STATUS", "true").assert_error(1, "only LOCK, WITH and TRY get one");
        holds("LOCK a b", "true").assert_error(1, "LOCK takes one word");
    }
}

#[test]
fn signals_that_end_the_client_end_its_command() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    let mut next = ground.connect();
    for (flag, signal) in WAYS
        .iter()
        .flat_map(|flag| [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].map(|s| (flag, s)))
    {
        let (client, said) = begun(&ground, flag);
        next.send(b"LOCK a\n");
        ground.connect().until_waiting("a", 1);
        client.signal(signal);
        let name = signal.as_str().trim_start_matches("SIG");
        assert_eq!(said.next(), format!("got {name}"), "{flag}");
        let said = client.end_soon();
        assert_eq!((said.code(), &*said.err), (Some(9), ""));
        // It was given back.
        assert_eq!(next.line(), "OK", "{flag} {signal}");
        next.assert_ok("UNLOCK a");
    }
}

#[test]
fn no_signal_is_kept_from_a_command() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    for flag in WAYS {
        let mut command = Demo::command(&["client", "--path", ground.path.str()]);
        command.args(flag.split_whitespace());
        command.args(["LOCK", "a", "--", "grep", "SigBlk", "/proc/self/status"]);
        assert_eq!(Demo::spawn(&mut command).end_soon().out, "SigBlk:\t0000000000000000\n");
    }
}

#[test]
fn what_is_ignored_stays_so() {
    let ground = Ground::new();
    for flag in WAYS {
        let _daemon = flag.is_empty().then(|| ground.start(""));
        let script = "echo begun; while ! [ -e $0.end ]; do sleep 0.01; done; exit 5";
        let mut command = Command::new("sh");
        let client = holding(&ground, flag, "LOCK a", script);
        command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]);
        command.arg(client.get_program()).args(client.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = Demo::spawn(&mut command);
        let said = client.lines();
        assert_eq!(said.next(), "begun");
        client.signal(Signal::SIGHUP);
        let end = ground.path.beside(".end");
        std::fs::write(end.str(), "").expect("write");
        assert_eq!(client.end_soon().code(), Some(5));
    }
}

/// A terminal: what has its keyboard and screen, and what programs take for it.
#[allow(unsafe_code)]
fn terminal() -> (File, OwnedFd) {
    let (mut keyboard, mut screen) = (-1, -1);
    let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
    // SAFETY: it writes the two numbers, and gets no pointer besides.
    let done = unsafe { libc::openpty(&mut keyboard, &mut screen, name, settings, size) };
    assert_eq!(done, 0, "openpty: {}", io::Error::last_os_error());
    // SAFETY: they were made for this caller.
    unsafe { (File::from_raw_fd(keyboard), OwnedFd::from_raw_fd(screen)) }
}

#[allow(unsafe_code)]
#[test]
fn a_key_reaches_the_command_once() {
    let ground = Ground::new();
    for flag in WAYS {
        let _daemon = flag.is_empty().then(|| ground.start(""));
        let (mut keyboard, screen) = terminal();
        let script = "trap 'echo got INT' INT; trap 'echo got TERM; exit 9' TERM; echo begun; \
                      while :; do sleep 0.01; done";
        let mut command = holding(&ground, flag, "LOCK a", script);
        command.stdin(screen);
        let lead = || {
            // SAFETY: it has no memory to do with. The terminal is standard input.
            let done = unsafe { libc::setsid() != -1 && libc::ioctl(0, libc::TIOCSCTTY, 0) == 0 };
            if done { Ok(()) } else { Err(io::Error::last_os_error()) }
        };
        // SAFETY: between fork and exec it makes two system calls, and takes no lock and no
        // memory.
        unsafe { command.pre_exec(lead) };
        let mut client = Demo::spawn(&mut command);
        let said = client.lines();
        assert_eq!(said.next(), "begun");
        // If the client passes it on, it does so after the command has seen it.
        client.signal(Signal::SIGSTOP);
        io::Write::write_all(&mut keyboard, b"\x03").expect("press Ctrl-C");
        assert_eq!(said.next(), "got INT");
        client.signal(Signal::SIGTERM);
        client.signal(Signal::SIGCONT);
        assert_eq!(said.next(), "got TERM");
        assert_eq!(client.end_soon().code(), Some(9));
    }
}

#[test]
fn a_killed_client_takes_its_command_along() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    for flag in WAYS {
        let (client, _said) = begun(&ground, flag);
        // The client, its command (which begins others), and the daemon.
        assert!(ground.path.processes().len() >= 3);
        let pid = client.pid();
        client.signal(Signal::SIGKILL);
        // Not to its end: if the command lives it has standard error.
        drop(client);
        until("the command is gone", || ground.path.processes().len() == 1);
        let mut next = ground.connect();
        assert_eq!(next.ask("LOCK a"), format!("OK INHERITED {pid}"));
        next.assert_ok("UNLOCK a");
    }
}

#[test]
fn a_command_ends_when_its_lock_is_lost() {
    for how in [Signal::SIGKILL, Signal::SIGTERM] {
        let ground = Ground::new();
        let daemon = ground.start("--drain-seconds 0");
        let (client, said) = begun(&ground, "");
        daemon.signal(how);
        assert_eq!(said.next(), "got TERM", "after {how}");
        let said = client.end_soon();
        said.assert_error(1, "the connection to the daemon is lost, and with it the lock");
    }
}

#[test]
fn a_command_that_cannot_be_run_holds_nothing() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    let mut next = ground.connect();
    for flag in WAYS {
        let mut command = Demo::command(&["client", "--path", ground.path.str()]);
        command.args(flag.split_whitespace()).args(["LOCK", "a", "--", "/nonexistent/x"]);
        let said = Demo::spawn(&mut command).end_soon();
        said.assert_error(1, "cannot run /nonexistent/x: ");
        next.assert_ok("LOCK a");
        next.assert_ok("UNLOCK a");
    }
}

#[test]
fn a_command_is_told_what_its_client_was() {
    let ground = Ground::new();
    let _daemon = ground.start("");
    for flag in WAYS {
        let (mut before, said) = ground.process(flag);
        before.say("LOCK a");
        assert_eq!(said.next(), "OK");
        let pid = before.pid();
        kill(before);
        let told = |lock: &str| {
            let script = "echo ${HEIRLOCK_INHERITED-nothing}";
            let mut command = holding(&ground, flag, lock, script);
            // As of a lock with which the client itself runs.
            Demo::spawn(command.env("HEIRLOCK_INHERITED", "7")).end_soon()
        };
        let said = told("LOCK a");
        assert_eq!((said.code(), said.out), (Some(0), format!("{pid}\n")));
        assert_eq!(said.err, format!("OK INHERITED {pid}\n"));
        assert_eq!(told("LOCK a").out, "nothing\n");
    }
}
