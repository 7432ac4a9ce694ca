//! Creating and opening, as it should go.

use crate::kit::sandbox::Refusal;
use crate::kit::{HANG, Process, Role, TempPath, Test, skip};
use crate::support::{
    Actor, Counter, NOT_PERMITTED, OnDisk, error_of, line, metadata, play, text, works,
};
use heirlock::{Mutex, Segment, SegmentError};
use nix::sys::stat::{Mode, umask};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

pub(crate) const TESTS: &[Test] = &[
    ("create_open_and_unlink_go_round", round_trip),
    ("a_segment_works_on_a_disk_as_well", round_trip_on_disk),
    ("create_refuses_what_exists_and_open_what_does_not", exists_or_not),
    ("open_or_create_creates_once_and_opens_from_then_on", open_or_create),
    ("an_anonymous_segment_is_opened_through_its_descriptor", anonymous),
    ("the_default_capacity_is_1024_threads", default_capacity),
    ("capacities_from_1_to_65535_are_allowed", capacities),
    ("the_mode_is_exact_whatever_the_umask", exact_mode),
    ("who_may_not_read_its_own_proc_files_takes_part", unreadable_proc),
    ("an_out_of_range_mode_is_refused", modes),
    ("a_new_segment_is_zeroed", zeroed),
    ("eight_processes_that_race_to_create_get_one_segment", race),
    ("an_init_that_panics_leaves_no_segment", init_panics),
    ("an_init_may_lock_what_it_initializes", init_locks),
    ("an_empty_file_becomes_a_segment", empty_file),
];

pub(crate) const ROLES: &[Role] =
    &[("with_umask", with_umask), ("without_auxv", without_auxv), ("racer", racer)];

fn round_trip() {
    round_trip_at(&TempPath::new());
}

fn round_trip_on_disk() {
    round_trip_at(&OnDisk::new());
}

fn round_trip_at(path: &Path) {
    let created: Segment<Counter> = Segment::create(path).expect("create");
    assert_eq!(works(&created), 1);
    let opened: Segment<Counter> = Segment::open(path).expect("open");
    assert_eq!(works(&opened), 2);
    assert_eq!(metadata(&created).ino(), metadata(&opened).ino());
    assert_eq!(metadata(&opened).ino(), fs::metadata(path).expect("stat").ino());
    Segment::unlink(path).expect("unlink");
    assert!(!path.exists());
    assert_eq!(works(&created), 3);
    drop((created, opened));
    let anew: Segment<Counter> = Segment::create(path).expect("create again");
    assert_eq!(works(&anew), 1);
}

fn exists_or_not() {
    let path = TempPath::new();
    let missing = error_of(Segment::<Counter>::open(&path));
    assert!(matches!(&missing, SegmentError::NotFound { path: of } if **of == *path), "{missing}");
    assert!(missing.to_string().contains(text(&path)), "{missing}");
    assert!(!path.exists(), "open creates nothing");
    let missing = Segment::unlink(&path).expect_err("there is nothing to unlink");
    assert!(matches!(missing, SegmentError::NotFound { .. }), "{missing}");
    let segment: Segment<Counter> = Segment::create(&path).expect("create");
    works(&segment);
    let exists = error_of(Segment::<Counter>::create(&path));
    assert!(matches!(&exists, SegmentError::AlreadyExists { path: of } if **of == *path));
    assert!(exists.to_string().contains(text(&path)), "{exists}");
    assert_eq!(works(&segment), 2, "the refused creation changed nothing");
    let nowhere = path.join("further");
    let below_a_file = error_of(Segment::<Counter>::open_or_create(&nowhere));
    assert!(matches!(below_a_file, SegmentError::Io { .. }), "{below_a_file}");
}

fn open_or_create() {
    let path = TempPath::new();
    let mut inits = 0;
    for round in 1..=3 {
        let segment: Segment<Counter> = Segment::options()
            .init(|value: &mut Counter| {
                inits += 1;
                *value.get_mut() = 100;
            })
            .open_or_create(&path)
            .expect("open_or_create");
        assert_eq!(works(&segment), 100 + round);
    }
    assert_eq!(inits, 1);
}

fn anonymous() {
    let segment: Segment<Counter> = Segment::options()
        .capacity(3)
        .schema(9)
        .init(|value: &mut Counter| *value.get_mut() = 40)
        .anonymous()
        .expect("anonymous");
    assert_eq!(segment.capacity(), 3);
    let fd = segment.as_fd().try_clone_to_owned().expect("dup");
    let other = error_of(Segment::<Counter>::from_fd(fd));
    assert!(matches!(other, SegmentError::Mismatch { field: "schema", found: 9, expected: 0 }));
    let fd = segment.as_fd().try_clone_to_owned().expect("dup");
    let same: Segment<Counter> = Segment::options().schema(9).from_fd(fd).expect("from_fd");
    assert_eq!(same.capacity(), 3);
    assert_eq!(works(&segment), 41);
    assert_eq!(works(&same), 42);
    drop(segment);
    assert_eq!(works(&same), 43);
}

fn default_capacity() {
    let path = TempPath::new();
    let segment: Segment<Counter> = Segment::create(&path).expect("create");
    assert_eq!(segment.capacity(), 1024);
    let opened: Segment<Counter> =
        Segment::options().capacity(5).open_or_create(&path).expect("open");
    assert_eq!(opened.capacity(), 1024, "the capacity is the creator's");
}

fn capacities() {
    for refused in [0, 65_536, u32::MAX] {
        let path = TempPath::new();
        let error = error_of(Segment::<Counter>::options().capacity(refused).create(&path));
        match &error {
            SegmentError::InvalidOption { option: "capacity", found, max: 65_535 } => {
                assert_eq!(*found, u64::from(refused));
            }
            other => panic!("{other}"),
        }
        let message = error.to_string();
        assert!(message.contains(&refused.to_string()) && message.contains("65535"), "{message}");
        assert!(!path.exists());
        let anonymous = error_of(Segment::<Counter>::options().capacity(refused).anonymous());
        assert!(matches!(anonymous, SegmentError::InvalidOption { .. }), "{anonymous}");
    }
    for capacity in [1, 2, 65_535] {
        let path = TempPath::new();
        let segment: Segment<Counter> =
            Segment::options().capacity(capacity).create(&path).expect("create");
        assert_eq!(segment.capacity(), capacity);
        assert_eq!(works(&segment), 1);
        drop(segment);
        let opened: Segment<Counter> = Segment::open(&path).expect("open");
        assert_eq!(opened.capacity(), capacity);
        assert_eq!(*opened.lock(), 1);
    }
}

fn exact_mode() {
    for mask in ["0", "77", "777"] {
        for mode in ["600", "660", "666", "640", "400"] {
            let path = TempPath::new();
            assert!(play("with_umask", &[text(&path), mask, mode, "create"]));
            let found = fs::metadata(&path).expect("stat").mode() & 0o7777;
            assert_eq!(format!("{found:o}"), mode, "umask {mask}");
            let path = TempPath::new();
            assert!(play("with_umask", &[text(&path), mask, mode, "open_or_create"]));
            let found = fs::metadata(&path).expect("stat").mode() & 0o7777;
            assert_eq!(format!("{found:o}"), mode, "umask {mask}");
        }
    }
    let path = TempPath::new();
    if !play("with_umask", &[text(&path), "777", "600", "as_nobody"]) {
        skip("may not become another user");
    }
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o600);
}

fn with_umask(args: &[String]) {
    let octal = |text: &str| u32::from_str_radix(text, 8).expect("an octal number");
    if args[3] == "as_nobody" && !crate::support::become_nobody() {
        std::process::exit(NOT_PERMITTED);
    }
    umask(Mode::from_bits_truncate(octal(&args[1])));
    let options = Segment::<Counter>::options().mode(octal(&args[2]));
    let segment = match &*args[3] {
        "create" => options.create(&args[0]),
        _ => options.open_or_create(&args[0]),
    };
    let segment = segment.expect("create");
    // To take part is to open the file for reading and writing.
    if octal(&args[2]) & 0o600 == 0o600 {
        assert_eq!(works(&segment), 1);
    }
}

/// A process that has changed its user may not read `/proc/self/auxv`, and
/// kernels before 6.4 (here: a sandbox) do not tell its contents by `prctl`. To
/// ask for the page size used to panic then.
fn unreadable_proc() {
    Refusal::PRCTL.require();
    let path = TempPath::new();
    let mut command = Process::command("without_auxv", &[text(&path)]);
    Refusal::PRCTL.impose(&mut command);
    let status = Process::from_command(&mut command).wait();
    if status.code() == Some(NOT_PERMITTED) {
        skip("may not become another user");
    }
    assert!(status.success(), "{status}");
}

fn without_auxv(args: &[String]) {
    if !crate::support::become_nobody() {
        std::process::exit(NOT_PERMITTED);
    }
    assert!(fs::read("/proc/self/auxv").is_err(), "it may read it");
    let segment: Segment<Counter> = Segment::create(&args[0]).expect("create");
    assert_eq!(works(&segment), 1);
}

fn modes() {
    for mode in [0, 0o10000, u32::MAX] {
        let path = TempPath::new();
        let error = error_of(Segment::<Counter>::options().mode(mode).create(&path));
        assert!(matches!(error, SegmentError::InvalidOption { option: "mode", .. }), "{error}");
        assert!(!path.exists());
    }
}

fn zeroed() {
    let path = TempPath::new();
    let segment: Segment<[Mutex<[u64; 64]>; 16]> = Segment::create(&path).expect("create");
    for lock in segment.iter() {
        assert!(!lock.is_locked());
        assert_eq!(*lock.lock(), [0; 64]);
    }
}

fn race() {
    const ROUNDS: usize = 100;
    let mut racers: Vec<Actor> = (0..8).map(|_| Actor::spawn("racer", &[])).collect();
    for round in 0..ROUNDS {
        let path = TempPath::new();
        for racer in &mut racers {
            racer.say(&format!("{} {}", path.display(), round % 4));
        }
        let answers: Vec<String> = racers.iter_mut().map(Actor::hear).collect();
        let inode = fs::metadata(&path).expect("stat").ino().to_string();
        let mut inits = 0;
        for answer in &answers {
            let (of, ran) = answer.split_once(' ').expect("two words");
            assert_eq!(of, inode, "{answers:?}");
            inits += usize::from(ran == "true");
        }
        assert_eq!(inits, 1, "round {round}: {answers:?}");
        let segment: Segment<Counter> = Segment::open(&path).expect("open");
        assert_eq!(*segment.lock(), 1000 + 8, "round {round}");
    }
    for racer in racers {
        racer.finish();
    }
}

fn racer(_: &[String]) {
    while let Some(line) = line() {
        let (path, slow) = line.split_once(' ').expect("two words");
        let mut ran = false;
        let segment: Segment<Counter> = Segment::options()
            .init(|value: &mut Counter| {
                ran = true;
                // Now and then the others find it unfinished for a while.
                if slow == "0" {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                *value.get_mut() = 1000;
            })
            .open_or_create(path)
            .expect("open_or_create");
        works(&segment);
        println!("{} {ran}", metadata(&segment).ino());
    }
}

fn init_panics() {
    let path = TempPath::new();
    for _ in 0..2 {
        let created = catch_unwind(AssertUnwindSafe(|| {
            Segment::<Counter>::options()
                .init(|_| std::panic::resume_unwind(Box::new("on purpose")))
                .open_or_create(&path)
        }));
        assert!(created.is_err());
        assert!(!path.exists());
    }
    let anonymous = catch_unwind(AssertUnwindSafe(|| {
        Segment::<Counter>::options()
            .init(|_| std::panic::resume_unwind(Box::new("on purpose")))
            .anonymous()
    }));
    assert!(anonymous.is_err());
    let segment: Segment<Counter> = Segment::open_or_create(&path).expect("create");
    assert_eq!(works(&segment), 1);
}

fn init_locks() {
    let path = TempPath::new();
    let segment: Segment<[Counter; 2]> = Segment::options()
        .init(|value: &mut [Counter; 2]| {
            *value[0].lock() = 5;
            let taken = value[1].try_lock_for(HANG).map(|mut guard| *guard = 6);
            assert!(taken.is_some() && !value[0].is_locked());
        })
        .create(&path)
        .expect("create");
    assert_eq!((*segment[0].lock(), *segment[1].lock()), (5, 6));
    assert_eq!(segment.attach().expect("attach").row(), 1, "one thread takes one row");
}

fn empty_file() {
    let path = TempPath::new();
    fs::write(&path, []).expect("an empty file");
    let unfinished = error_of(Segment::<Counter>::open(&path));
    assert!(matches!(unfinished, SegmentError::Unfinished), "{unfinished}");
    let inode = fs::metadata(&path).expect("stat").ino();
    let segment: Segment<Counter> = Segment::open_or_create(&path).expect("open_or_create");
    assert_eq!(works(&segment), 1);
    let meta = fs::metadata(&path).expect("stat");
    assert_eq!((meta.ino(), meta.mode() & 0o7777), (inode, 0o600));
}
