//! Actors (processes with a script of lines), files as bytes, and where things
//! are in a segment.

use crate::kit::{HANG, Process};
use heirlock::{Mutex, Segment, SegmentError, Snapshot};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::ops::Deref;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

/// The value of most segments here.
pub(crate) type Counter = Mutex<u64>;

/// What a role exits with if it may not do here what it is there to do.
pub(crate) const NOT_PERMITTED: i32 = 77;

/// A user that has no rights to anything of ours.
pub(crate) const NOBODY: u32 = 65534;

pub(crate) const PAGE: u64 = 4096;

/// A process that plays a role and is spoken to in lines.
pub(crate) struct Actor {
    pub(crate) process: Process,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Actor {
    pub(crate) fn spawn(role: &str, args: &[&str]) -> Self {
        Self::from_command(&mut Process::command(role, args))
    }

    pub(crate) fn from_command(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::from_command(command);
        let (stdin, stdout) = process.pipes();
        Self { process, stdin, stdout: BufReader::new(stdout) }
    }

    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("speak to an actor");
    }

    /// The next line; `None` if it said its last.
    pub(crate) fn hear_any(&mut self) -> Option<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("listen to an actor");
        line.strip_suffix('\n').map(str::to_owned)
    }

    #[track_caller]
    pub(crate) fn hear(&mut self) -> String {
        self.hear_any().expect("an actor fell silent")
    }

    #[track_caller]
    pub(crate) fn expect(&mut self, line: &str) {
        assert_eq!(self.hear(), line);
    }

    /// Closes the input of an actor that was killed, and with it that of those
    /// who have it from the actor.
    pub(crate) fn finish_killed(self) {
        drop(self.stdin);
    }

    /// Closes its input and waits for its end, which must be a good one.
    #[track_caller]
    pub(crate) fn finish(self) {
        let Self { mut process, stdin, stdout } = self;
        drop(stdin);
        let status = process.wait();
        drop(stdout);
        assert!(status.success(), "an actor ended with {status}");
    }
}

/// The next line that was said to this actor.
pub(crate) fn line() -> Option<String> {
    let mut line = String::new();
    let len = std::io::stdin().read_line(&mut line).expect("listen");
    (len != 0).then(|| line.trim_end().to_owned())
}

/// Plays a role that says nothing; whether it was permitted to.
#[track_caller]
pub(crate) fn play(role: &str, args: &[&str]) -> bool {
    let status = Process::spawn(role, args).wait();
    if status.code() == Some(NOT_PERMITTED) {
        return false;
    }
    assert!(status.success(), "{role} {args:?} ended with {status}");
    true
}

/// Everything about a file that must not change when it is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    inode: (u64, u64),
    kind_and_mode: u32,
    owner: (u32, u32),
    links: u64,
    size: u64,
    blocks: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    bytes: Option<Vec<u8>>,
}

impl Fingerprint {
    pub(crate) fn of(path: &Path) -> Self {
        let meta = fs::symlink_metadata(path).expect("stat");
        Self {
            inode: (meta.dev(), meta.ino()),
            kind_and_mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            links: meta.nlink(),
            size: meta.size(),
            blocks: meta.blocks(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            bytes: meta.is_file().then(|| fs::read(path).expect("read")),
        }
    }
}

pub(crate) fn metadata(of: &impl AsFd) -> fs::Metadata {
    let fd = of.as_fd().try_clone_to_owned().expect("dup");
    File::from(fd).metadata().expect("fstat")
}

/// A file to patch as no participant would.
pub(crate) struct Surgery(File);

impl Surgery {
    pub(crate) fn on(path: &Path) -> Self {
        Self(OpenOptions::new().read(true).write(true).open(path).expect("open"))
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.0.write_all_at(bytes, offset).expect("write");
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact_at(&mut bytes, offset).expect("read");
        bytes
    }

    pub(crate) fn resize(&self, len: u64) {
        self.0.set_len(len).expect("set the length");
    }
}

/// Where the life word of a row is.
pub(crate) fn life_word(snapshot: &Snapshot, row: u32) -> u64 {
    let life = (snapshot.value_offset + snapshot.value_size).next_multiple_of(PAGE);
    life + u64::from(row) * PAGE - 24
}

/// A path on a disk, where there is one; unlinked when dropped.
pub(crate) struct OnDisk(PathBuf);

impl OnDisk {
    pub(crate) fn new() -> Self {
        Self(scratch("file"))
    }
}

impl Deref for OnDisk {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn scratch(kind: &str) -> PathBuf {
    let name = format!("heirlock-{kind}-{}-{:08x}", std::process::id(), fastrand::u32(..));
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A directory that is removed when dropped.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        let path = scratch("directory");
        fs::create_dir(&path).expect("create a directory");
        Self(path)
    }
}

impl Deref for TempDir {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a printable path")
}

/// Adds one under the lock, which must be had within the guard against hangs.
#[track_caller]
pub(crate) fn works(lock: &Counter) -> u64 {
    let mut guard = lock.try_lock_for(HANG).expect("the lock is had");
    *guard += 1;
    *guard
}

#[track_caller]
pub(crate) fn error_of<T>(result: Result<Segment<T>, SegmentError>) -> SegmentError {
    match result {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error,
    }
}

/// Becomes nobody, for good; `false` if this is not root.
pub(crate) fn become_nobody() -> bool {
    use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};
    geteuid().is_root()
        && setgroups(&[]).is_ok()
        && setgid(Gid::from_raw(NOBODY)).is_ok()
        && setuid(Uid::from_raw(NOBODY)).is_ok()
}

/// The lock that belongs to the second witness of a row.
fn witness_of(row: u32, kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: (1 << 41) + i64::from(row),
        l_len: 1,
        l_pid: 0,
    }
}

/// Claims a row, as somebody does who is about to attach, until the result is
/// dropped.
pub(crate) fn claim_row(path: &Path, row: u32) -> File {
    let file = File::options().read(true).write(true).open(path).expect("open");
    let lock = witness_of(row, libc::F_WRLCK);
    fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).expect("claim a row");
    file
}

/// Whether somebody has claimed a row.
pub(crate) fn row_is_claimed(path: &Path, row: u32) -> bool {
    let file = File::options().read(true).write(true).open(path).expect("open");
    let mut lock = witness_of(row, libc::F_WRLCK);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).expect("F_OFD_GETLK");
    i32::from(lock.l_type) != libc::F_UNLCK
}
