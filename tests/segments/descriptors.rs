//! Segments as descriptors: sealed, inherited, sent; and what a descriptor that
//! was passed on does not keep alive.

use crate::kit::{Board, Got, HANG, Process, Puppet, Role, TempPath, Test, until};
use crate::support::{Actor, Counter, line, row_is_claimed, text, works};
use heirlock::{MutexGuard, Segment};
use nix::cmsg_space;
use nix::fcntl::{FcntlArg, FdFlag, SealFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

pub(crate) const TESTS: &[Test] = &[
    ("nobody_can_change_the_size_of_an_anonymous_segment", sealed),
    ("an_anonymous_segment_passes_to_a_child_by_inheritance", inherited),
    ("an_anonymous_segment_passes_through_a_socket", sent),
    ("a_descriptor_that_was_passed_on_keeps_no_row_alive", keeps_no_row),
    ("a_descriptor_that_was_passed_on_keeps_no_lock_held", keeps_no_lock),
];

pub(crate) const ROLES: &[Role] =
    &[("receiver", receiver), ("passes_on", passes_on), ("sleeper", sleeper)];

fn sealed() {
    let segment: Segment<Counter> = Segment::anonymous().expect("anonymous");
    let seals = fcntl(&segment, FcntlArg::F_GET_SEALS).expect("F_GET_SEALS");
    let seals = SealFlag::from_bits_retain(seals);
    assert!(seals.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW), "{seals:?}");
    let fd = segment.as_fd().try_clone_to_owned().expect("dup");
    let file = File::from(fd);
    let len = file.metadata().expect("stat").len();
    for other in [0, len - 1, len + 1] {
        file.set_len(other).expect_err("the size is sealed");
    }
    // Which hinders nobody to join, up to the last row.
    let all: Segment<Counter> = Segment::options().capacity(2).anonymous().expect("anonymous");
    works(&all);
    thread::scope(|scope| scope.spawn(|| works(&all)).join()).expect("join");
}

/// Lets the child of `command` inherit `fd` under its number.
#[allow(unsafe_code)]
fn inherit(command: &mut Command, fd: BorrowedFd) {
    let fd: RawFd = fd.as_raw_fd();
    // SAFETY: runs between fork and exec and makes one system call on a
    // descriptor that the child has as a copy of the parent's, which keeps it
    // open until it has spawned; it neither allocates nor locks anything.
    unsafe {
        command.pre_exec(move || {
            let fd = BorrowedFd::borrow_raw(fd);
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map(drop).map_err(Into::into)
        })
    };
}

fn puppet_that_inherits(segment: &Segment<Board>) -> Puppet {
    let name = format!("fd:{}", segment.as_fd().as_raw_fd());
    let mut command = Process::command("puppet", &[&name]);
    inherit(&mut command, segment.as_fd());
    Puppet::from_command(&mut command)
}

fn inherited() {
    let segment: Segment<Board> = Segment::anonymous().expect("anonymous");
    let mut owner = puppet_that_inherits(&segment);
    let mut heir = puppet_that_inherits(&segment);
    assert_eq!(owner.lock(3), Got::Lock);
    assert_eq!(owner.tell("set 3 9"), "ok");
    heir.queue(&segment, 3);
    owner.kill();
    assert!(matches!(heir.got(), Got::Inherited { .. }));
    assert_eq!(heir.tell("get 3"), "9");
    heir.unlock(3);
    assert_eq!(works(&segment.locks[3]), 10);
}

fn sent() {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)
            .expect("socketpair");
    let mut command = Process::command("receiver", &[]);
    command.stdin(Stdio::from(theirs));
    let mut receiver = Process::from_command(&mut command);
    drop(command);
    let segment: Segment<Counter> = Segment::anonymous().expect("anonymous");
    *segment.lock() = 20;
    let fds = [segment.as_fd().as_raw_fd()];
    sendmsg::<()>(
        ours.as_raw_fd(),
        &[IoSlice::new(b"segment")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )
    .expect("sendmsg");
    let status = receiver.wait();
    assert!(status.success(), "{status}");
    assert_eq!(works(&segment), 22);
}

#[allow(unsafe_code)]
fn receiver(_: &[String]) {
    let mut byte = [0; 16];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(0, &mut slices, Some(&mut space), flags).expect("recvmsg");
    let mut received = message.cmsgs().expect("control messages");
    let Some(ControlMessageOwned::ScmRights(fds)) = received.next() else { panic!("no rights") };
    // SAFETY: the kernel has just made this descriptor for us; nobody else in
    // this process knows its number.
    let fd = unsafe { OwnedFd::from_raw_fd(fds[0]) };
    let segment: Segment<Counter> = Segment::from_fd(fd).expect("from_fd");
    assert_eq!(works(&segment), 21);
}

/// Attaches, gives the descriptor of the segment to a process that outlives it,
/// and waits. With `leak` a thread that has ended holds the lock, so that no
/// mark of the kernel tells of the death of the process.
fn passes_on(args: &[String]) {
    let segment: Segment<Counter> = Segment::open(&args[0]).expect("open");
    let segment: &'static Segment<Counter> = Box::leak(Box::new(segment));
    let row = if args[1] == "leak" {
        let thread = thread::spawn(|| {
            *MutexGuard::leak(segment.lock()) = 5;
            segment.attach().expect("attach").row()
        });
        thread.join().expect("join")
    } else {
        segment.attach().expect("attach").row()
    };
    let mut command = Process::command("sleeper", &[]);
    inherit(&mut command, segment.as_fd());
    command.stdin(Stdio::inherit());
    let sleeper = Process::from_command(&mut command);
    println!("{row} {}", sleeper.pid());
    loop {
        thread::park();
    }
}

/// Lives until its standard input is closed.
fn sleeper(_: &[String]) {
    while line().is_some() {}
}

fn holds_open(pid: i32, path: &Path) -> bool {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd"));
    fds.is_ok_and(|fds| {
        fds.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == path))
    })
}

fn keeps_no_row() {
    let path = TempPath::new();
    drop(Segment::<Counter>::create(&path).expect("create"));
    let mut actor = Actor::spawn("passes_on", &[text(&path), "stay"]);
    let (row, sleeper) = two_numbers(&actor.hear());
    assert!(row_is_claimed(&path, row as u32));
    actor.process.kill();
    assert!(holds_open(sleeper, &path), "the sleeper lives, and has the descriptor");
    assert!(!row_is_claimed(&path, row as u32));
    actor.finish_killed();
    until("the sleeper is gone", || !holds_open(sleeper, &path));
}

fn keeps_no_lock() {
    let path = TempPath::new();
    let segment: Segment<Counter> = Segment::create(&path).expect("create");
    let mut actor = Actor::spawn("passes_on", &[text(&path), "leak"]);
    let (row, sleeper) = two_numbers(&actor.hear());
    assert_eq!(heirlock::owner(&segment).expect("it is leaked").row(), row as u32);
    assert!(segment.try_lock().is_none());
    actor.process.kill();
    assert!(holds_open(sleeper, &path), "the sleeper lives, and has the descriptor");
    let guard = segment.try_lock_for(HANG).expect("only the second witness knows");
    assert!(MutexGuard::inherited(&guard).is_some());
    assert_eq!(*guard, 5);
    actor.finish_killed();
    until("the sleeper is gone", || !holds_open(sleeper, &path));
}

fn two_numbers(line: &str) -> (i32, i32) {
    let (first, second) = line.split_once(' ').expect("two words");
    (first.parse().expect("a number"), second.parse().expect("a number"))
}
