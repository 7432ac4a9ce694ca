//! A creator that is stopped or killed, at any point.

use crate::kit::{Process, Role, TempPath, Test, until, until_in_syscall};
use crate::support::{Actor, Counter, OnDisk, Surgery, line, metadata, text, works};
use heirlock::{Segment, SegmentError};
use nix::libc::SYS_fcntl;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("a_creator_killed_in_init_leaves_what_the_next_one_finishes", killed_in_init),
    ("a_creator_killed_at_any_moment_leaves_what_the_next_one_finishes", killed_at_random),
    ("a_creator_killed_after_any_system_call_leaves_what_the_next_one_finishes", killed_at_each),
    ("a_finisher_killed_after_any_system_call_leaves_what_the_next_one_finishes", finisher_killed),
    ("who_opens_while_a_creator_works_gets_the_segment_or_is_told", opened_meanwhile),
    ("who_looks_while_a_creator_works_sees_the_segment_or_is_told", looked_meanwhile),
    ("who_waits_for_a_stopped_creator_gets_its_segment", stopped_then_continued),
    ("who_waits_for_a_stopped_creator_finishes_when_that_is_killed", stopped_then_killed),
];

pub(crate) const ROLES: &[Role] = &[
    ("creator", creator),
    ("hasty_creator", hasty_creator),
    ("traced", traced),
    ("traced_opener", traced_opener),
    ("traced_watcher", traced_watcher),
];

/// What `init` makes of the value.
const INITIAL: u64 = 100;

/// The segment, created or opened, with `INITIAL` in it; `in_init` runs before.
fn open_or_create(
    path: impl AsRef<Path>,
    in_init: impl FnOnce(),
) -> Result<Segment<Counter>, SegmentError> {
    Segment::options()
        .init(|value: &mut Counter| {
            in_init();
            *value.get_mut() = INITIAL;
        })
        .open_or_create(path)
}

/// Checks that what a creator left, wherever it was killed, is nothing, an
/// unfinished segment or a finished one, and that the next creator makes do.
#[track_caller]
fn check_leftover(path: &Path) {
    match Segment::<Counter>::open(path) {
        Ok(segment) => assert!(*segment.lock() >= INITIAL, "finished means initialized"),
        Err(SegmentError::Unfinished | SegmentError::NotFound { .. }) => {}
        Err(other) => panic!("a killed creator left this: {other}"),
    }
    let segment = open_or_create(path, || ()).expect("the next creator");
    let value = works(&segment);
    // The dead one may have been the first to count.
    assert!((INITIAL + 1..=INITIAL + 2).contains(&value), "{value}");
    assert_eq!(metadata(&segment).ino(), std::fs::metadata(path).expect("stat").ino());
    let opened: Segment<Counter> = Segment::open(path).expect("open");
    assert_eq!(works(&opened), value + 1);
}

/// Says `in init` there, waits for a line, and says what it got.
fn creator(args: &[String]) {
    let wait = || {
        println!("in init");
        line();
    };
    let segment = open_or_create(&args[0], wait).expect("open_or_create");
    println!("got {} {}", metadata(&segment).ino(), works(&segment));
    line();
}

fn killed_in_init() {
    let (shared, disk) = (TempPath::new(), OnDisk::new());
    for path in [&*shared, &*disk] {
        for _ in 0..5 {
            let mut creator = Actor::spawn("creator", &[text(path)]);
            creator.expect("in init");
            creator.process.kill();
            let error = Segment::<Counter>::open(path).expect_err("it is not finished");
            assert!(matches!(error, SegmentError::Unfinished), "{error}");
        }
        check_leftover(path);
    }
}

/// Creates, uses and unlinks for as long as it lives.
fn hasty_creator(args: &[String]) {
    println!("ready");
    loop {
        let segment = open_or_create(&args[0], || ()).expect("open_or_create");
        works(&segment);
        drop(segment);
        Segment::unlink(&args[0]).expect("unlink");
    }
}

fn killed_at_random() {
    let [mut absent, mut unfinished, mut finished] = [0; 3];
    for _ in 0..400 {
        let path = TempPath::new();
        let mut creator = Actor::spawn("hasty_creator", &[text(&path)]);
        creator.expect("ready");
        let after = Duration::from_nanos(fastrand::u64(0..1_000_000));
        let start = Instant::now();
        while start.elapsed() < after {
            std::hint::spin_loop();
        }
        creator.process.kill();
        match Segment::<Counter>::open(&path) {
            Err(SegmentError::NotFound { .. }) => absent += 1,
            Err(SegmentError::Unfinished) => unfinished += 1,
            _ => finished += 1,
        }
        check_leftover(&path);
    }
    eprintln!(
        "400 creators were killed: {absent} left nothing, {unfinished} something unfinished, \
         {finished} a segment"
    );
}

/// Stops twice: before it creates, and when it has done everything.
fn traced(args: &[String]) {
    raise(Signal::SIGSTOP).expect("raise");
    let segment = open_or_create(&args[0], || ()).expect("open_or_create");
    works(&segment);
    drop(segment);
    raise(Signal::SIGSTOP).expect("raise");
}

#[allow(unsafe_code)]
fn spawn_traced(role: &str, path: &TempPath) -> Process {
    let mut command = Process::command(role, &[text(path)]);
    // SAFETY: runs between fork and exec and makes one system call; it neither
    // allocates nor locks anything.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    Process::from_command(&mut command)
}

fn killed_at_each() {
    each_system_call("an absent file", |_| {});
}

fn finisher_killed() {
    each_system_call("an unfinished file", leave_unfinished);
}

/// Leaves what a creator of a larger segment left that was killed late.
fn leave_unfinished(path: &Path) {
    let larger: Segment<[Counter; 4096]> = Segment::create(path).expect("create");
    drop(larger);
    Surgery::on(path).write(12, &[0; 4]);
}

fn leave_empty(path: &Path) {
    std::fs::write(path, []).expect("an empty file");
}

fn each_system_call(what: &str, prepare: impl Fn(&Path)) {
    let mut stops = 0;
    loop {
        stops += 1;
        let path = TempPath::new();
        prepare(&path);
        let mut process = spawn_traced("traced", &path);
        let done = run_for(&process, stops);
        process.kill();
        check_leftover(&path);
        if done {
            break;
        }
    }
    eprintln!("{what}: killed at {stops} stops around system calls");
    assert!(stops > 40, "each of the twenty or more system calls stops twice");
}

/// Waits for the next stop of a traced process. If it ended instead that is left
/// to be waited for.
fn next_stop(pid: Pid) -> nix::Result<WaitStatus> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(pid), flags)? {
        ended @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => Ok(ended),
        _ => waitpid(pid, None),
    }
}

/// Lets a traced process run from its first SIGSTOP over `stops` entries to and
/// exits from system calls; whether it came to its second SIGSTOP before.
fn run_for(process: &Process, stops: usize) -> bool {
    let pid = process.pid();
    let status = next_stop(pid).expect("wait for the exec");
    assert_eq!(status, WaitStatus::Stopped(pid, Signal::SIGTRAP));
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(pid, options).expect("trace options");
    ptrace::cont(pid, None).expect("continue");
    let status = next_stop(pid).expect("wait for the first stop");
    assert_eq!(status, WaitStatus::Stopped(pid, Signal::SIGSTOP));
    let mut seen = 0;
    while seen < stops {
        ptrace::syscall(pid, None).expect("go on to the next system call");
        match next_stop(pid).expect("wait for a system call") {
            WaitStatus::PtraceSyscall(_) => seen += 1,
            WaitStatus::Stopped(_, Signal::SIGSTOP) => return true,
            other => panic!("a traced creator came to this: {other:?}"),
        }
    }
    false
}

/// Stops twice: before it opens, and when it has got the segment, or has been
/// told that it is not finished.
fn traced_opener(args: &[String]) {
    raise(Signal::SIGSTOP).expect("raise");
    match Segment::<Counter>::open(&args[0]) {
        Ok(segment) => assert!(works(&segment) > INITIAL),
        Err(SegmentError::Unfinished) => {}
        Err(other) => panic!("an opener was told: {other}"),
    }
    raise(Signal::SIGSTOP).expect("raise");
}

/// The same for one who only looks.
fn traced_watcher(args: &[String]) {
    raise(Signal::SIGSTOP).expect("raise");
    match heirlock::Snapshot::read(&args[0], &[]) {
        Ok(snapshot) => assert_eq!(snapshot.capacity, 1024),
        Err(error) => assert!(error.to_string().contains("not finished"), "{error}"),
    }
    raise(Signal::SIGSTOP).expect("raise");
}

fn opened_meanwhile() {
    meanwhile("traced_opener", leave_empty);
    meanwhile("traced_opener", leave_unfinished);
}

fn looked_meanwhile() {
    meanwhile("traced_watcher", leave_empty);
    meanwhile("traced_watcher", leave_unfinished);
}

/// What was found out of a file before its creator was at work must not be
/// mixed up with what is found out after. Between any two system calls of the
/// other one, this process makes a segment of what is there.
fn meanwhile(role: &str, prepare: impl Fn(&Path)) {
    for stops in 1.. {
        let path = TempPath::new();
        prepare(&path);
        let mut process = spawn_traced(role, &path);
        if run_for(&process, stops) {
            process.kill();
            break;
        }
        let segment = open_or_create(&path, || ()).expect("create");
        let pid = process.pid();
        ptrace::cont(pid, None).expect("continue");
        let status = next_stop(pid).expect("wait for the second stop");
        assert_eq!(status, WaitStatus::Stopped(pid, Signal::SIGSTOP), "after {stops} stops");
        process.kill();
        works(&segment);
    }
}

/// A creator that is stopped in `init`, and one that waits for it.
fn stopped_creator(path: &TempPath) -> (Actor, Actor) {
    let mut first = Actor::spawn("creator", &[text(path)]);
    first.expect("in init");
    first.process.stop();
    let second = Actor::spawn("creator", &[text(path)]);
    until_in_syscall(second.process.pid(), SYS_fcntl);
    let error = Segment::<Counter>::open(path).expect_err("it is not finished");
    assert!(matches!(error, SegmentError::Unfinished), "{error}");
    (first, second)
}

fn stopped_then_continued() {
    let path = TempPath::new();
    let (mut first, mut second) = stopped_creator(&path);
    first.say("go on");
    first.process.resume();
    let ino = std::fs::metadata(&path).expect("stat").ino();
    let mut heard = [first.hear(), second.hear()];
    heard.sort();
    // Both count in the same segment, and `init` has not run twice.
    assert_eq!(heard, [1, 2].map(|count| format!("got {ino} {}", INITIAL + count)));
    first.finish();
    second.finish();
}

fn stopped_then_killed() {
    let path = TempPath::new();
    let (mut first, mut second) = stopped_creator(&path);
    first.process.kill();
    second.expect("in init");
    second.say("go on");
    let ino = std::fs::metadata(&path).expect("stat").ino();
    second.expect(&format!("got {ino} {}", INITIAL + 1));
    let segment: Segment<Counter> = Segment::open(&path).expect("open");
    assert_eq!(works(&segment), INITIAL + 2);
    second.finish();
    until("the rows are free", || {
        heirlock::Snapshot::read(&path, &[]).expect("read").participants.len() == 1
    });
}
