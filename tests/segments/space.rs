//! What a segment costs, and what happens where there is no room for it.

use crate::kit::{HANG, Role, TempPath, Test, panic_of, skip};
use crate::support::{
    Counter, NOT_PERMITTED, PAGE, TempDir, claim_row, error_of, metadata, play, text, works,
};
use heirlock::{AttachError, Segment, SegmentError};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

pub(crate) const TESTS: &[Test] = &[
    ("an_idle_segment_takes_less_than_256_kib", idle),
    ("each_attached_thread_takes_one_page", a_page_each),
    ("rows_are_used_again", rows_again),
    ("a_full_segment_says_so_and_has_room_again_later", full_table),
    ("a_full_file_system_refuses_to_create_and_keeps_nothing", full_create),
    ("a_full_file_system_refuses_to_attach_and_has_room_again_later", full_attach),
    ("a_row_that_was_passed_over_has_its_page", passed_over),
];

pub(crate) const ROLES: &[Role] = &[("in_a_small_file_system", in_a_small_file_system)];

fn bytes(segment: &Segment<Counter>) -> u64 {
    metadata(segment).blocks() * 512
}

fn idle() {
    let path = TempPath::new();
    let segment: Segment<Counter> = Segment::create(&path).expect("create");
    let idle = bytes(&segment);
    assert!(idle < 256 * 1024, "{idle}");
    let opened: Segment<Counter> = Segment::open(&path).expect("open");
    assert_eq!(bytes(&opened), idle, "to open it takes nothing");
    heirlock::Snapshot::read(&path, &[]).expect("read");
    assert_eq!(bytes(&opened), idle, "nor to look at it");
    assert_eq!(heirlock::owner(&opened), None);
    assert_eq!(heirlock::queue(&opened), Some(vec![]));
    assert_eq!(bytes(&opened), idle, "nor to ask");
}

/// Runs `threads` that attach at the same time, and returns what the segment
/// takes while they are attached.
fn with_attached(segment: &Segment<Counter>, threads: usize) -> u64 {
    let attached = Barrier::new(threads + 1);
    let measured = Barrier::new(threads + 1);
    thread::scope(|scope| {
        let run = || {
            works(segment);
            attached.wait();
            measured.wait();
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        attached.wait();
        let bytes = bytes(segment);
        measured.wait();
        // The end of the scope alone is not the end of the threads.
        for thread in threads {
            thread.join().expect("join");
        }
        bytes
    })
}

fn a_page_each() {
    let path = TempPath::new();
    let segment: Segment<Counter> = Segment::create(&path).expect("create");
    let idle = bytes(&segment);
    for threads in [1, 2, 5, 40] {
        assert_eq!(with_attached(&segment, threads), idle + threads as u64 * PAGE);
    }
}

fn rows_again() {
    let path = TempPath::new();
    let segment: Segment<Counter> = Segment::create(&path).expect("create");
    let once = with_attached(&segment, 3);
    for _ in 0..100 {
        assert_eq!(with_attached(&segment, 3), once);
    }
    let mut rows = Vec::new();
    for _ in 0..100 {
        let attach = || segment.attach().expect("attach").row();
        rows.push(thread::scope(|scope| scope.spawn(attach).join()).expect("join"));
    }
    assert!(rows.iter().all(|row| *row <= 3), "{rows:?}");
    assert_eq!(bytes(&segment), once);
    assert_eq!(heirlock::Snapshot::read(&path, &[]).expect("read").rows_used, 3);
}

fn full_table() {
    let path = TempPath::new();
    let segment: Segment<Counter> = Segment::options().capacity(2).create(&path).expect("create");
    let opened: Segment<Counter> = Segment::open(&path).expect("open");
    with_attached(&segment, 2);
    let (attached, go) = (Barrier::new(3), Barrier::new(3));
    thread::scope(|scope| {
        let run = || {
            segment.attach().expect("attach");
            attached.wait();
            go.wait();
        };
        let threads = [scope.spawn(run), scope.spawn(run)];
        attached.wait();
        let error = opened.attach().expect_err("there is no row");
        assert!(matches!(error, AttachError::Full { capacity: 2 }), "{error}");
        let message = panic_of(|| drop(opened.lock()));
        assert!(message.contains("all 2 rows"), "{message}");
        go.wait();
        for thread in threads {
            thread.join().expect("join");
        }
    });
    opened.attach().expect("there is room again");
    works(&opened);
}

fn full_create() {
    in_small_file_system("create");
}

fn full_attach() {
    in_small_file_system("attach");
}

fn passed_over() {
    in_small_file_system("passed_over");
}

fn in_small_file_system(scene: &str) {
    let directory = TempDir::new();
    if !play("in_a_small_file_system", &[text(&directory), scene]) {
        skip("may not mount a file system");
    }
}

/// Mounts a tmpfs of 1 MiB that nobody else sees.
fn in_a_small_file_system(args: &[String]) {
    let directory = Path::new(&args[0]);
    let none = None::<&Path>;
    let mounted = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
        .and_then(|()| mount(none, directory, Some("tmpfs"), MsFlags::empty(), Some("size=1m")));
    if let Err(error) = mounted {
        eprintln!("cannot mount: {error}");
        std::process::exit(NOT_PERMITTED);
    }
    match &*args[1] {
        "create" => create_where_there_is_no_room(directory),
        "attach" => attach_where_there_is_no_room(directory),
        _ => attach_to_a_row_that_was_passed_over(directory),
    }
}

/// Takes all the room there is.
fn fill(directory: &Path) -> impl FnOnce() {
    let path = directory.join("filler");
    let mut filler = File::create(&path).expect("create");
    for size in [1 << 16, 1 << 12, 1] {
        while filler.write_all(&vec![1; size]).is_ok() {}
    }
    move || fs::remove_file(path).expect("remove")
}

#[track_caller]
fn is_full(error: &io::Error) {
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
}

fn create_where_there_is_no_room(directory: &Path) {
    let names = || fs::read_dir(directory).expect("read").count();
    let path = directory.join("segment");
    let check = |result: Result<Segment<[Counter; 100_000]>, _>| match error_of(result) {
        error @ SegmentError::Io { .. } => {
            assert!(error.to_string().contains("No space"), "{error}");
            let SegmentError::Io { source, .. } = error else { unreachable!() };
            is_full(&source);
        }
        other => panic!("{other:?}"),
    };
    check(Segment::create(&path));
    assert_eq!(names(), 0, "nothing is left");
    check(Segment::open_or_create(&path));
    assert_eq!(names(), 0, "nothing is left");
    let free = fill(directory);
    match error_of(Segment::<Counter>::create(&path)) {
        SegmentError::Io { source, .. } => is_full(&source),
        other => panic!("{other:?}"),
    }
    assert_eq!(names(), 1, "only the filler is left");
    free();
    let segment: Segment<Counter> = Segment::create(&path).expect("a small one fits");
    assert_eq!(works(&segment), 1);
}

fn attach_where_there_is_no_room(directory: &Path) {
    let path = directory.join("segment");
    let segment: Segment<Counter> = Segment::create(&path).expect("create");
    let free = fill(directory);
    for _ in 0..3 {
        match segment.attach().expect_err("there is no page") {
            AttachError::Io { source, .. } => is_full(&source),
            other => panic!("{other:?}"),
        }
        for message in [
            panic_of(|| drop(segment.lock())),
            panic_of(|| drop(segment.try_lock())),
            panic_of(|| drop(segment.try_lock_for(HANG))),
        ] {
            assert!(message.starts_with("heirlock: "), "{message}");
            assert!(message.contains("reserve a page"), "{message}");
            assert!(message.contains("No space"), "{message}");
        }
        // To look takes no room.
        let snapshot = heirlock::Snapshot::read(&path, &[]).expect("read");
        assert_eq!((snapshot.rows_used, heirlock::owner(&segment)), (0, None));
        let opened: Segment<Counter> = Segment::open(&path).expect("open");
        assert_eq!(heirlock::queue(&opened), Some(vec![]));
    }
    free();
    segment.attach().expect("there is room again");
    assert_eq!(works(&segment), 1);
    // Who is attached needs no more.
    let _free = fill(directory);
    assert_eq!(works(&segment), 2);
    let other = || segment.attach().map(drop);
    let error = thread::scope(|scope| scope.spawn(other).join()).expect("join");
    assert!(matches!(error, Err(AttachError::Io { .. })), "{error:?}");
}

/// One thread claims row 1 and is killed before it has the page of the row;
/// meanwhile another one got row 2. Row 1 then counts as used, and whoever
/// comes next touches its page: it must be there, also if there is no room for
/// it any more.
fn attach_to_a_row_that_was_passed_over(directory: &Path) {
    let path = directory.join("segment");
    let segment: Segment<Counter> = Segment::options().capacity(4).create(&path).expect("create");
    let claim = claim_row(&path, 1);
    let attach = || segment.attach().map(heirlock::Participant::row);
    let row = thread::scope(|scope| scope.spawn(attach).join()).expect("join");
    assert_eq!(row.expect("attach"), 2);
    drop(claim);
    let _free = fill(directory);
    assert_eq!(segment.attach().expect("attach").row(), 1);
    assert_eq!(works(&segment), 1);
}
