//! What the tests share: runs of the program that leave nothing behind, also
//! when a test fails.
#![allow(dead_code, reason = "each test binary uses its part")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything may take that ought to take no time.
pub(crate) const HANG: Duration = Duration::from_secs(30);

/// How long a whole run may take, on a machine that is busy with other things.
const RUN: Duration = Duration::from_secs(120);

/// Polls `condition` until it holds; panics with `what` after `limit`.
#[track_caller]
fn until_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain until {what}");
        sleep(Duration::from_millis(2));
    }
}

#[track_caller]
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(HANG, what, condition);
}

/// A path in `/dev/shm` of which nothing is left when it is dropped.
pub(crate) struct TempPath(PathBuf);

impl TempPath {
    pub(crate) fn new() -> Self {
        let name = format!("heirlock-demo-test-{}-{:08x}", std::process::id(), fastrand::u32(..));
        Self(Path::new("/dev/shm").join(name))
    }

    /// Another one, called the same but for its end.
    pub(crate) fn beside(&self, end: &str) -> Self {
        Self(PathBuf::from(format!("{}{end}", self.str())))
    }

    pub(crate) fn str(&self) -> &str {
        self.0.to_str().expect("a printable path")
    }

    pub(crate) fn exists(&self) -> bool {
        fs::symlink_metadata(&self.0).is_ok()
    }

    /// Starts the program with the words of `line`, and with the path.
    pub(crate) fn start(&self, line: &str) -> Demo {
        Demo::start(&words(&format!("{line} --path {}", self.str())))
    }

    /// Starts it and waits for its end.
    #[track_caller]
    pub(crate) fn run(&self, line: &str) -> Said {
        self.start(line).end()
    }

    /// Who takes part in the segment, if there is one already.
    fn participants(&self) -> Vec<Value> {
        let said = Demo::run(&["inspect", self.str(), "--json"]);
        let all = (said.code() == Some(0)).then(|| said.json()["participants"].take());
        all.and_then(|all| all.as_array().cloned()).unwrap_or_default()
    }

    /// The processes whose command line names the path.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let names_it = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == self.str().as_bytes())
        };
        let entries = fs::read_dir("/proc").expect("read /proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(names_it).collect()
    }

    /// Asserts that a run at this path has left nothing.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert!(!self.exists(), "{} was left behind", self.str());
        let left = self.processes();
        assert!(left.is_empty(), "processes {left:?} were left behind");
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = fs::remove_file(&self.0);
    }
}

/// What a run has said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The object on the last line.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let last = self.out.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    #[track_caller]
    pub(crate) fn number(&self, field: &str) -> u64 {
        self.json()[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {self:?}"))
    }

    /// Prints how often what happened, and asserts that it was often enough.
    #[track_caller]
    pub(crate) fn assert_floors(&self, floors: &[(&str, u64)]) {
        for (field, floor) in floors {
            let count = self.number(field);
            println!("{field}: {count}, at least {floor}");
            assert!(count >= *floor, "{field} is {count}, less than {floor}: {self:?}");
        }
    }

    /// Asserts that none of it has happened.
    #[track_caller]
    pub(crate) fn assert_none(&self, fields: &[&str]) {
        for field in fields {
            assert_eq!(self.number(field), 0, "{field} in {self:?}");
        }
    }

    /// Asserts that everything held.
    #[track_caller]
    pub(crate) fn assert_held(&self) {
        assert_eq!(self.code(), Some(0), "{self:?}");
        assert_eq!(self.json()["outcome"], "held", "{self:?}");
        assert_eq!(self.json()["failures"], json!([]));
        self.assert_none(&["kills_from_outside"]);
    }

    /// The same, through so many kills.
    #[track_caller]
    pub(crate) fn assert_held_through(&self, kills: u64) {
        self.assert_held();
        assert_eq!((self.number("kills"), self.number("kills_asked")), (kills, kills));
        assert!(self.number("inherited") <= kills, "{self:?}");
    }

    /// Asserts that the check of a run found something that did not hold, and said
    /// `what`.
    #[track_caller]
    pub(crate) fn assert_failed(&self, what: &str) {
        self.assert_error(1, what);
        assert_eq!(self.json()["outcome"], "failed");
    }

    /// Asserts that this is an error for the user: a code, a text that has
    /// `what` in it, and no panic.
    #[track_caller]
    pub(crate) fn assert_error(&self, code: i32, what: &str) {
        assert_eq!(self.code(), Some(code), "{self:?}");
        assert!(self.err.contains(what), "no {what:?} in {self:?}");
        assert!(!self.err.contains("panicked"), "{self:?}");
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Runs the program with the words of `line`.
#[track_caller]
pub(crate) fn run(line: &str) -> Said {
    Demo::run(&words(line))
}

/// A run of the program; killed and reaped when dropped.
pub(crate) struct Demo(Child);

impl Demo {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::spawn(&mut Self::command(args))
    }

    /// What `start` starts, to be changed before.
    pub(crate) fn command(args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shm-demo"));
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().expect("start shm-demo"))
    }

    /// Starts it and waits for its end.
    #[track_caller]
    pub(crate) fn run(args: &[&str]) -> Said {
        Self::start(args).end()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("signal shm-demo");
    }

    /// Tells it a line, if its standard input is piped.
    pub(crate) fn say(&mut self, line: &str) {
        let stdin = self.0.stdin.as_mut().expect("stdin is piped");
        stdin.write_all(format!("{line}\n").as_bytes()).expect("write to shm-demo");
    }

    /// Tells it nothing more.
    pub(crate) fn hang_up(&mut self) {
        self.0.stdin.take();
    }

    /// What it says from now on, line by line, instead of at its end.
    pub(crate) fn lines(&mut self) -> Lines {
        Lines::of(self.0.stdout.take().expect("stdout"))
    }

    /// The same of its standard error.
    pub(crate) fn errors(&mut self) -> Lines {
        Lines::of(self.0.stderr.take().expect("stderr"))
    }

    #[track_caller]
    pub(crate) fn end(self) -> Said {
        self.end_within(RUN)
    }

    #[track_caller]
    pub(crate) fn end_soon(self) -> Said {
        self.end_within(HANG)
    }

    /// What it says is less than a pipe holds, so it can be read at the end.
    #[track_caller]
    fn end_within(mut self, limit: Duration) -> Said {
        until_within(limit, "shm-demo ends", || self.0.try_wait().expect("wait").is_some());
        let status = self.0.wait().expect("it has ended");
        let (mut out, mut err) = (String::new(), String::new());
        if let Some(mut stdout) = self.0.stdout.take() {
            stdout.read_to_string(&mut out).expect("read");
        }
        if let Some(mut stderr) = self.0.stderr.take() {
            stderr.read_to_string(&mut err).expect("read");
        }
        Said { status, out, err }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // The workers die with their parent.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a run says while it goes on.
pub(crate) struct Lines(Receiver<String>);

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let (tell, lines) = channel();
        // Ends with the process.
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(std::io::Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Self(lines)
    }

    #[track_caller]
    pub(crate) fn next(&self) -> String {
        self.0.recv_timeout(HANG).expect("a line")
    }

    /// Whether it has said nothing since the last line.
    pub(crate) fn is_silent(&self) -> bool {
        self.0.try_recv().is_err()
    }

    /// The object on the next line.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let line = self.next();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"))
    }
}

/// `shm-demo inspect --json` of what must be a segment.
#[track_caller]
pub(crate) fn inspect(path: &TempPath) -> Value {
    let said = Demo::run(&["inspect", path.str(), "--json"]);
    assert_eq!(said.code(), Some(0), "{said:?}");
    said.json()
}

/// A run that goes on until it is ended, with its workers at work.
#[track_caller]
pub(crate) fn endless(path: &TempPath, workers: usize) -> Demo {
    let line = format!("counter --workers {workers} --increments 1000000000 --kills 0");
    let demo = path.start(&line);
    until("the workers are at work", || {
        let all = path.participants();
        all.len() == workers && all.iter().any(|one| !one["busy_with"].is_null())
    });
    demo
}

/// A run of `line`, which has no end, after somebody was killed in it and replaced.
#[track_caller]
fn at_work(path: &TempPath, line: &str) -> Demo {
    let demo = path.start(line);
    until("somebody was killed and replaced", || {
        path.participants().iter().any(|one| one["generation"].as_u64() > Some(1))
    });
    demo
}

/// Has each signal end a run of `line`, which has no end, while it is at work.
#[track_caller]
pub(crate) fn assert_signals_end(line: &str) {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let path = TempPath::new();
        let demo = at_work(&path, &format!("{line} --json"));
        demo.signal(signal);
        let said = demo.end_soon();
        assert_eq!(said.code(), Some(code), "{said:?}");
        assert_eq!(said.json()["outcome"], "interrupted", "{said:?}");
        assert_eq!(said.json()["signal"], signal.as_str());
        said.assert_floors(&[("kills", 1)]);
        path.assert_clean();
    }
}

/// Has SIGKILL end a run of `line`, which leaves the segment, and nobody.
#[track_caller]
pub(crate) fn assert_nobody_outlives(line: &str) {
    let path = TempPath::new();
    let demo = at_work(&path, line);
    until("the workers are there", || path.processes().len() > 2);
    demo.signal(Signal::SIGKILL);
    assert_eq!(demo.end_soon().code(), None);
    until("the workers are gone", || path.processes().is_empty());
    path.run(line).assert_error(1, "exists already");
}

/// Asserts that a run of `line` says this of itself, and nothing on standard error, which
/// is no terminal.
#[track_caller]
pub(crate) fn assert_says(line: &str, whats: &[&str]) {
    let said = run(line);
    assert_eq!(said.code(), Some(0), "{said:?}");
    for what in whats {
        assert!(said.out.contains(what), "no {what:?} in {said:?}");
    }
    assert_eq!(said.err, "");
}

/// Asserts that `--help` of the subcommand explains every field of `object`: each begins
/// a line, or comes behind others that do.
#[track_caller]
pub(crate) fn assert_explains(subcommand: &str, object: &Value) {
    let help = run(&format!("{subcommand} --help"));
    assert_eq!(help.code(), Some(0));
    assert!(help.out.contains("Example"), "{help:?}");
    let mut names = Vec::new();
    for line in help.out.lines() {
        let mut goes_on = true;
        names.extend(
            line.split_whitespace()
                .take_while(|word| std::mem::replace(&mut goes_on, word.ends_with(','))),
        );
    }
    for field in object.as_object().expect("an object").keys() {
        let explained = names.iter().any(|name| name.trim_end_matches(',') == field);
        assert!(explained, "--help does not explain {field}");
    }
}

/// Asserts that the subcommand refuses what makes no sense, and says why; that it says
/// so if it can create no segment; and that `child`, which it starts, works for it only.
#[track_caller]
pub(crate) fn assert_refuses(subcommand: &str, refused: &[(&str, &str)], child: &str) {
    for (args, what) in refused {
        run(&format!("{subcommand} {args}")).assert_error(2, what);
    }
    let said = run(&format!("{subcommand} --path /nonexistent/x"));
    said.assert_error(1, "does the directory exist");
    run(child).assert_error(1, "started by");
}
