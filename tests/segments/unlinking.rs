//! Taking the name away.

use crate::kit::{Got, Puppet, Role, TempPath, Test, board, skip, until, until_in_syscall};
use crate::support::{Actor, Counter, line, metadata, text, works};
use heirlock::{Segment, SegmentError};
use nix::libc::SYS_fcntl;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::fs;
use std::os::unix::fs::MetadataExt;

pub(crate) const TESTS: &[Test] = &[
    ("who_has_a_segment_open_keeps_it_when_it_is_unlinked", holders_keep_it),
    ("unlink_refuses_what_is_not_a_segment", refuses),
    ("unlink_takes_away_what_a_dead_creator_left", unfinished),
    ("who_waited_for_a_creator_gets_no_unlinked_segment", waited),
    ("creators_and_unlinkers_that_race_do_no_harm", race),
];

pub(crate) const ROLES: &[Role] = &[("newcomer", newcomer), ("unlinker", unlinker)];

fn holders_keep_it() {
    let (path, segment) = board();
    let mut owner = Puppet::spawn(&path);
    let mut waiter = Puppet::spawn(&path);
    assert_eq!(owner.lock(0), Got::Lock);
    waiter.queue(&segment, 0);
    Segment::unlink(&path).expect("unlink");
    assert_eq!(metadata(&segment).nlink(), 0);
    owner.unlock(0);
    assert_eq!(waiter.got(), Got::Lock);
    owner.start("lock 0");
    owner.until_queued(&segment, 0);
    // A death is noticed without the name as well.
    waiter.kill();
    assert!(matches!(owner.got(), Got::Inherited { .. }));
    owner.unlock(0);
    let missing = crate::support::error_of(Segment::<Counter>::open(&path));
    assert!(matches!(missing, SegmentError::NotFound { .. }), "{missing}");
    let other: Segment<Counter> = Segment::open_or_create(&path).expect("a new one");
    assert_ne!(metadata(&other).ino(), metadata(&segment).ino());
}

fn refuses() {
    let path = TempPath::new();
    fs::write(&path, "precious").expect("write");
    let error = Segment::unlink(&path).expect_err("it is not a segment");
    assert!(matches!(error, SegmentError::NotASegment { found } if found == *b"precious"));
    assert_eq!(fs::read(&path).expect("it is there"), b"precious");

    // A device from which there is nothing to read is not an empty file.
    let device = TempPath::new();
    let mode = Mode::from_bits_truncate(0o600);
    if mknod(&*device, SFlag::S_IFCHR, mode, makedev(1, 3)).is_err()
        || fs::File::open(&device).is_err()
    {
        skip("may not make a device like /dev/null");
    }
    let error = Segment::unlink(&device).expect_err("it is a device");
    assert!(matches!(error, SegmentError::NotAFile), "{error}");
    assert!(device.exists());
}

fn unfinished() {
    let path = TempPath::new();
    let mut creator = Actor::spawn("creator", &[text(&path)]);
    creator.expect("in init");
    creator.process.kill();
    Segment::unlink(&path).expect("unlink");
    fs::write(&path, []).expect("an empty file");
    Segment::unlink(&path).expect("unlink");
    assert!(!path.exists());
}

/// For each path it is told: opens or creates, and says which inode it got,
/// with how many links, and how far it counted.
fn newcomer(_: &[String]) {
    println!("ready");
    while let Some(path) = line() {
        let segment: Segment<Counter> = Segment::open_or_create(path).expect("open_or_create");
        let meta = metadata(&segment);
        println!("{} {} {}", meta.ino(), meta.nlink(), works(&segment));
    }
}

/// Unlinks each path it is told, if it is there.
fn unlinker(_: &[String]) {
    while let Some(path) = line() {
        match Segment::unlink(path) {
            Ok(()) => println!("unlinked"),
            Err(SegmentError::NotFound { .. }) => println!("absent"),
            Err(error) => panic!("{error}"),
        }
    }
}

fn waited() {
    let mut newcomer = Actor::spawn("newcomer", &[]);
    newcomer.expect("ready");
    let path = TempPath::new();
    for round in 0..200 {
        // This process creates; the newcomer waits for it; then the name goes.
        let mut unlinked = 0;
        let created: Segment<Counter> = Segment::options()
            .init(|_| {
                newcomer.say(text(&path));
                until_in_syscall(newcomer.process.pid(), SYS_fcntl);
                unlinked = fs::metadata(&path).expect("stat").ino();
                Segment::unlink(&path).expect("unlink");
            })
            .create(&path)
            .expect("create");
        assert_eq!(metadata(&created).ino(), unlinked);
        let got = newcomer.hear();
        let now = fs::metadata(&path).expect("the newcomer made a new one").ino();
        assert_eq!(got, format!("{now} 1 1"), "round {round}");
        assert_ne!(now, unlinked);
        Segment::unlink(&path).expect("unlink");
        // And the creator has its own still.
        assert_eq!(works(&created), 1);
    }
    newcomer.finish();
}

fn race() {
    let mut newcomers: Vec<Actor> = (0..3).map(|_| Actor::spawn("newcomer", &[])).collect();
    for newcomer in &mut newcomers {
        newcomer.expect("ready");
    }
    let mut unlinkers: Vec<Actor> = (0..2).map(|_| Actor::spawn("unlinker", &[])).collect();
    let path = TempPath::new();
    let mut unlinked = 0;
    for _ in 0..200 {
        for actor in newcomers.iter_mut().chain(&mut unlinkers) {
            actor.say(text(&path));
        }
        for newcomer in &mut newcomers {
            let got = newcomer.hear();
            let words: Vec<&str> = got.split(' ').collect();
            // It worked, whether it has a name by now or not.
            assert!(matches!(words[..], [_, "0" | "1", _]), "{got}");
        }
        for unlinker in &mut unlinkers {
            unlinked += usize::from(unlinker.hear() == "unlinked");
        }
    }
    assert!(unlinked > 0);
    for actor in newcomers.into_iter().chain(unlinkers) {
        actor.finish();
    }
    let segment: Segment<Counter> = Segment::open_or_create(&path).expect("open_or_create");
    works(&segment);
    until("everybody has left", || {
        heirlock::Snapshot::read(&path, &[]).expect("read").participants.len() == 1
    });
}
