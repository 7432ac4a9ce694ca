//! A daemon with its files, and those who talk to it.

use crate::kit::{Demo, HANG, Lines, TempPath, until};
use nix::sys::signal::Signal;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

/// Where a daemon has its things; nothing of it is left when it is dropped.
pub(crate) struct Ground {
    pub(crate) path: TempPath,
    pub(crate) socket: TempPath,
    pub(crate) log: TempPath,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let path = TempPath::new();
        let (socket, log) = (path.beside(".sock"), path.beside(".log"));
        Self { path, socket, log }
    }

    /// What starts a daemon here.
    pub(crate) fn command(&self, more: &str) -> Command {
        let mut command =
            Demo::command(&["daemon", "--path", self.path.str(), "--log", self.log.str()]);
        command.args(more.split_whitespace());
        command
    }

    /// A daemon that listens.
    #[track_caller]
    pub(crate) fn start(&self, more: &str) -> Demo {
        let demo = Demo::spawn(&mut self.command(more));
        self.until_ready(&demo);
        demo
    }

    /// (That somebody can connect does not say who listens: the socket of one that was
    /// killed may outlive it a little.)
    #[track_caller]
    pub(crate) fn until_ready(&self, demo: &Demo) {
        self.until_logged(&format!("ready: process {},", demo.pid()));
    }

    #[track_caller]
    pub(crate) fn connect(&self) -> Client {
        let stream = UnixStream::connect(self.socket.str()).expect("connect");
        stream.set_read_timeout(Some(HANG)).expect("set a timeout");
        Client(BufReader::new(stream))
    }

    /// A process of its own that does what it is told; `--direct` if not by the daemon.
    pub(crate) fn process(&self, flags: &str) -> (Demo, Lines) {
        let mut command = Demo::command(&["client", "--path", self.path.str()]);
        command.args(flags.split_whitespace()).stdin(Stdio::piped());
        let mut demo = Demo::spawn(&mut command);
        let lines = demo.lines();
        (demo, lines)
    }

    pub(crate) fn logged(&self) -> String {
        fs::read_to_string(self.log.str()).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn until_logged(&self, what: &str) {
        until(&format!("the log says {what:?}"), || self.logged().contains(what));
    }

    /// Asserts that an ended daemon has left its segment, and nothing else.
    #[track_caller]
    pub(crate) fn assert_only_the_segment_is_left(&self) {
        assert!(self.path.exists());
        assert!(!self.socket.exists(), "the socket was left behind");
        assert_eq!(self.path.processes(), Vec::<i32>::new());
    }
}

#[track_caller]
pub(crate) fn kill(demo: Demo) {
    demo.signal(Signal::SIGKILL);
    assert_eq!(demo.end_soon().code(), None);
}

/// Stops a daemon, so that what is sent to it comes all at once when it goes on.
#[track_caller]
pub(crate) fn stop(demo: &Demo) {
    demo.signal(Signal::SIGSTOP);
    let stat = format!("/proc/{}/stat", demo.pid());
    until("it is stopped", || fs::read_to_string(&stat).expect("stat").contains(") T "));
}

/// The processor time that a process has used, in ticks.
pub(crate) fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    // The fields 14 and 15, of which the first two are gone.
    fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

/// A connection.
pub(crate) struct Client(BufReader<UnixStream>);

impl Client {
    pub(crate) fn stream(&mut self) -> &mut UnixStream {
        self.0.get_mut()
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("send");
    }

    /// The next line; empty at the end of the stream.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => line.trim_end().into(),
        }
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\n").as_bytes());
        self.line()
    }

    #[track_caller]
    pub(crate) fn assert_ok(&mut self, line: &str) {
        assert_eq!(self.ask(line), "OK", "to {line}");
    }

    #[track_caller]
    pub(crate) fn assert_refused(&mut self, line: &str, what: &str) {
        let reply = self.ask(line);
        assert!(reply.starts_with("ERR ") && reply.contains(what), "{reply} to {line}");
    }

    /// Whether nothing has come.
    pub(crate) fn is_silent(&mut self) -> bool {
        assert!(self.0.buffer().is_empty());
        let stream = self.0.get_mut();
        stream.set_nonblocking(true).expect("do not block");
        let found = stream.read(&mut [0]);
        stream.set_nonblocking(false).expect("block again");
        found.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// What STATUS says of the lock `name`.
    #[track_caller]
    pub(crate) fn status(&mut self, name: &str) -> Status {
        self.send(b"STATUS\n");
        let (mut found, mut locks) = (None, 0);
        loop {
            let line = self.line();
            if line.starts_with("OK ") {
                assert_eq!(line, format!("OK {locks}"));
                return found.unwrap_or_else(|| panic!("no lock {name}"));
            }
            locks += 1;
            let status = Status::parse(&line);
            if status.name == name {
                found = Some(status);
            }
        }
    }

    /// Waits until so many wait for the lock.
    #[track_caller]
    pub(crate) fn until_waiting(&mut self, name: &str, count: usize) {
        until(&format!("{count} wait for {name}"), || self.status(name).queue.len() == count);
    }
}

#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) owner: String,
    pub(crate) queue: Vec<String>,
}

impl Status {
    #[track_caller]
    fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let ["LOCK", name, state, owner, waiters, queue] = words[..] else { panic!("{line}") };
        let value = |word: &str, key: &str| {
            let value = word.strip_prefix(key).and_then(|rest| rest.strip_prefix('='));
            value.unwrap_or_else(|| panic!("no {key} in {line}")).to_string()
        };
        let queue = value(queue, "queue");
        let queue: Vec<String> =
            queue.split(',').filter(|who| *who != "-").map(String::from).collect();
        assert_eq!(value(waiters, "waiters"), queue.len().to_string(), "{line}");
        Self {
            name: value(name, "name"),
            state: value(state, "state"),
            owner: value(owner, "owner"),
            queue,
        }
    }
}
