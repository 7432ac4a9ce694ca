//! What is not a segment, or not the right one, is refused and left as it is.

use crate::kit::{Role, TempPath, Test, skip};
use crate::support::{
    Counter, Fingerprint, NOBODY, NOT_PERMITTED, PAGE, Surgery, become_nobody, error_of, play, text,
};
use heirlock::{Mutex, Segment, SegmentError, Snapshot};
use nix::sys::stat::Mode;
use nix::unistd::{Uid, chown, geteuid, mkfifo};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use zerocopy::FromBytes;

pub(crate) const TESTS: &[Test] = &[
    ("another_schema_is_refused", schema),
    ("a_value_of_another_size_is_refused", size),
    ("a_value_of_another_alignment_is_refused", alignment),
    ("another_kind_of_file_is_refused", foreign),
    ("another_layout_version_or_page_size_is_refused", header_fields),
    ("a_file_whose_size_was_changed_is_refused", resized),
    ("open_leaves_an_unfinished_file_unfinished", unfinished),
    ("directories_fifos_sockets_and_devices_are_refused", not_files),
    ("symbolic_links_are_not_followed", links),
    ("a_file_without_permission_is_refused", unreadable),
    ("a_read_only_descriptor_is_refused", read_only),
];

pub(crate) const ROLES: &[Role] = &[("nobody", nobody)];

/// A small segment, closed.
fn made(path: &Path) -> Surgery {
    let segment: Segment<Counter> = Segment::options().capacity(4).create(path).expect("create");
    *segment.lock() = 7;
    drop(segment);
    Surgery::on(path)
}

/// Checks that `path` is refused as a segment of `T` by each way to open it,
/// with an error that `is` accepts and whose message holds all of `says`, and
/// that it is afterwards as it was before.
#[track_caller]
fn refused<T: FromBytes + Sync + 'static>(
    path: &Path,
    is: impl Fn(&SegmentError) -> bool,
    says: &[&str],
) {
    let before = Fingerprint::of(path);
    let check = |error: SegmentError| {
        assert!(is(&error), "{error:?}");
        let message = error.to_string();
        for word in says {
            assert!(message.contains(word), "{word} is not in {message:?}");
        }
        assert_eq!(Fingerprint::of(path), before, "{message}");
    };
    check(error_of(Segment::<T>::open(path)));
    check(error_of(Segment::<T>::open_or_create(path)));
    let exists = error_of(Segment::<T>::create(path));
    assert!(matches!(exists, SegmentError::AlreadyExists { .. }), "{exists:?}");
    assert_eq!(Fingerprint::of(path), before);
    if before_is_file(path) {
        let file = File::options().read(true).write(true).open(path).expect("open");
        check(error_of(Segment::<T>::from_fd(file.into())));
    }
}

fn before_is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).expect("stat").is_file()
}

fn mismatch(field: &'static str) -> impl Fn(&SegmentError) -> bool {
    move |error| matches!(error, SegmentError::Mismatch { field: is, .. } if *is == field)
}

fn schema() {
    let path = TempPath::new();
    let make = Segment::<Counter>::options().schema(41).capacity(4).create(&path);
    drop(make.expect("create"));
    refused::<Counter>(&path, mismatch("schema"), &["schema is 41", "expects 0"]);
    let again = Segment::<Counter>::options().schema(41).open(&path);
    assert_eq!(*again.expect("the right schema").lock(), 0);
}

fn size() {
    let path = TempPath::new();
    made(&path);
    let field = mismatch("size of the value");
    refused::<[Counter; 2]>(&path, &field, &["is 24", "expects 48"]);
    refused::<Mutex<()>>(&path, &field, &["is 24", "expects 16"]);
    refused::<()>(&path, &field, &["is 24", "expects 0"]);
}

fn alignment() {
    #[derive(FromBytes)]
    #[repr(C, align(64))]
    struct Wide(Counter, [u64; 5]);
    #[derive(FromBytes)]
    #[repr(C)]
    struct Narrow(Counter, [u64; 5]);

    let path = TempPath::new();
    let made: Segment<Wide> = Segment::options().capacity(4).create(&path).expect("create");
    assert_eq!((*made.0.lock(), made.1), (0, [0; 5]));
    refused::<Narrow>(&path, mismatch("alignment of the value"), &["is 64", "expects 8"]);
}

fn foreign() {
    let not_a_segment = |error: &SegmentError| matches!(error, SegmentError::NotASegment { .. });
    for (content, found) in [
        (&b"hello, world\n"[..], "hello, w"),
        (b"x", "x\\x00"),
        (b"HEIRLOC", "HEIRLOC\\x00"),
        (b"KCOLRIEH and on", "KCOLRIEH"),
        (b"\0\0\0\0\0\0\0\0\0", "\\x00\\x00"),
        (&[0xff; 10_000], "\\xff"),
    ] {
        let path = TempPath::new();
        fs::write(&path, content).expect("write");
        refused::<Counter>(&path, not_a_segment, &[found, "HEIRLOCK"]);
        let error = Segment::unlink(&path).expect_err("it is not unlinked either");
        assert!(not_a_segment(&error), "{error}");
        Snapshot::read(&path, &[]).expect_err("nor shown");
        assert_eq!(fs::read(&path).expect("it is there"), content);
    }
    let path = TempPath::new();
    made(&path).write(0, b"NOTALOCK");
    refused::<Counter>(&path, not_a_segment, &["NOTALOCK", "HEIRLOCK"]);
}

fn header_fields() {
    let path = TempPath::new();
    let file = made(&path);
    let patched = |offset, value: u32, field, says: &[&str]| {
        let old = file.read(offset, 4);
        file.write(offset, &value.to_ne_bytes());
        refused::<Counter>(&path, mismatch(field), says);
        file.write(offset, &old);
    };
    patched(8, 1, "layout version", &["is 1", "expects 4"]);
    patched(8, 0, "layout version", &["is 0", "expects 4"]);
    patched(36, 65_536, "page size", &["is 65536", &format!("expects {PAGE}")]);
    patched(36, 0, "page size", &["is 0"]);
    patched(40, 0, "capacity", &["is 0", "1 to 65535"]);
    patched(40, 70_000, "capacity", &["is 70000", "1 to 65535"]);
    patched(32, 3, "alignment of the value", &["is 3", "expects 8"]);
    // Put back it is a segment again: nothing else had changed.
    assert_eq!(*Segment::<Counter>::open(&path).expect("open").lock(), 7);
}

fn resized() {
    let path = TempPath::new();
    let file = made(&path);
    let full = fs::metadata(&path).expect("stat").len();
    for size in [full - 1, full - PAGE, PAGE, 128, 64, full + 1, full + PAGE, full * 100] {
        file.resize(size);
        let truncated = |error: &SegmentError| {
            matches!(error, SegmentError::Truncated { found, expected }
                if (*found, *expected) == (size, full))
        };
        refused::<Counter>(&path, truncated, &[&size.to_string(), &full.to_string()]);
    }
    // Another capacity is another size.
    let path = TempPath::new();
    made(&path).write(40, &5u32.to_ne_bytes());
    let expected = (full + PAGE).to_string();
    let truncated = |error: &SegmentError| matches!(error, SegmentError::Truncated { .. });
    refused::<Counter>(&path, truncated, &[&full.to_string(), &expected]);
    // And so is a value that would not fit into the address space.
    for huge in [u64::MAX, u64::MAX - 8192, 1 << 63, i64::MAX as u64] {
        made_huge(huge);
    }
}

fn made_huge(size: u64) {
    let path = TempPath::new();
    made(&path).write(24, &size.to_ne_bytes());
    let says = &[&*size.to_string(), "24"];
    refused::<Counter>(&path, mismatch("size of the value"), says);
    let error = Snapshot::read(&path, &[]).expect_err("too large");
    assert!(error.to_string().contains("address space"), "{error}");
}

fn unfinished() {
    let path = TempPath::new();
    made(&path).write(12, &[0; 4]);
    let before = Fingerprint::of(&path);
    let error = error_of(Segment::<Counter>::open(&path));
    assert!(matches!(error, SegmentError::Unfinished), "{error}");
    Snapshot::read(&path, &[]).expect_err("unfinished");
    assert_eq!(Fingerprint::of(&path), before);
    // Whoever may create starts anew.
    let anew: Segment<[Counter; 3]> = Segment::open_or_create(&path).expect("finish");
    assert_eq!(*anew[0].lock(), 0);
}

fn not_files() {
    let not_a_file = |error: &SegmentError| matches!(error, SegmentError::NotAFile);
    let says = &["not a regular file"];

    let directory = crate::support::TempDir::new();
    refused::<Counter>(&directory, not_a_file, says);
    let error = Segment::unlink(&*directory).expect_err("a directory");
    assert!(not_a_file(&error), "{error}");

    let fifo = TempPath::new();
    mkfifo(&*fifo, Mode::from_bits_truncate(0o600)).expect("mkfifo");
    refused::<Counter>(&fifo, not_a_file, says);
    let error = Segment::unlink(&fifo).expect_err("a FIFO");
    assert!(not_a_file(&error), "{error}");
    assert!(fifo.exists());
    Snapshot::read(&fifo, &[]).expect_err("a FIFO");

    let socket = TempPath::new();
    let listener = UnixListener::bind(&*socket).expect("bind");
    refused::<Counter>(&socket, |_| true, &[]);
    Segment::unlink(&socket).expect_err("a socket");
    assert!(socket.exists());
    drop(listener);

    let null = Path::new("/dev/null");
    for result in [Segment::<Counter>::open(null), Segment::open_or_create(null)] {
        let error = error_of(result);
        assert!(not_a_file(&error), "{error}");
    }
    let null: OwnedFd = File::options().read(true).write(true).open(null).expect("open").into();
    assert!(not_a_file(&error_of(Segment::<Counter>::from_fd(null))));
}

fn links() {
    let target = TempPath::new();
    made(&target);
    let before = Fingerprint::of(&target);
    let link = TempPath::new();
    symlink(&*target, &*link).expect("symlink");
    let is_link = |error: &SegmentError| matches!(error, SegmentError::SymbolicLink { .. });
    refused::<Counter>(&link, is_link, &[text(&link), "symbolic link"]);
    assert!(is_link(&Segment::unlink(&link).expect_err("a link")));
    let error = Snapshot::read(&link, &[]).expect_err("a link");
    assert!(error.to_string().contains("symbolic link"), "{error}");
    assert_eq!(Fingerprint::of(&target), before);

    let dangling = TempPath::new();
    let nowhere = TempPath::new();
    symlink(&*nowhere, &*dangling).expect("symlink");
    refused::<Counter>(&dangling, is_link, &[text(&dangling), "symbolic link"]);
    assert!(!nowhere.exists(), "nothing is created through the link");
}

fn unreadable() {
    let path = TempPath::new();
    made(&path);
    fs::set_permissions(&*path, fs::Permissions::from_mode(0o600)).expect("chmod");
    let own = TempPath::new();
    made(&own);
    if !geteuid().is_root() {
        skip("not root, so there is no other user to become");
    }
    chown(&*own, Some(Uid::from_raw(NOBODY)), None).expect("chown");
    fs::set_permissions(&*own, fs::Permissions::from_mode(0o400)).expect("chmod");
    let before = (Fingerprint::of(&path), Fingerprint::of(&own));
    if !play("nobody", &[text(&path), text(&own)]) {
        skip("may not become another user");
    }
    assert_eq!((Fingerprint::of(&path), Fingerprint::of(&own)), before);
}

/// Somebody else's segment in the first argument, an own one that is read-only
/// in the second.
fn nobody(args: &[String]) {
    if !become_nobody() {
        std::process::exit(NOT_PERMITTED);
    }
    for path in args {
        for result in [Segment::<Counter>::open(path), Segment::open_or_create(path)] {
            let error = error_of(result);
            assert!(matches!(error, SegmentError::Io { step: "open", .. }), "{error:?}");
            let message = error.to_string();
            assert!(message.contains(path) && message.contains("Permission denied"), "{message}");
        }
    }
    Snapshot::read(&args[0], &[]).expect_err("it is not readable");
    Segment::unlink(&args[0]).expect_err("it is not readable");
    let snapshot = Snapshot::read(&args[1], &[]).expect("to read is all it takes");
    assert_eq!(snapshot.capacity, 4);
}

fn read_only() {
    let path = TempPath::new();
    made(&path);
    let before = Fingerprint::of(&path);
    let error = error_of(Segment::<Counter>::from_fd(File::open(&path).expect("open").into()));
    assert!(matches!(error, SegmentError::Io { .. }), "{error:?}");
    assert!(error.to_string().contains("Permission denied"), "{error}");
    assert_eq!(Fingerprint::of(&path), before);
}
