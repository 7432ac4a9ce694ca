//! Looking at a segment from outside.

use crate::kit::{Board, Got, Puppet, TempPath, Test, board, until};
use crate::support::{Fingerprint, life_word};
use heirlock::{Participant, Segment, Snapshot};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::Instant;

pub(crate) const TESTS: &[Test] = &[
    ("a_snapshot_shows_owner_queue_and_dead", shows),
    ("a_snapshot_takes_no_row_and_changes_nothing", changes_nothing),
    ("a_snapshot_needs_only_to_read", read_only),
    ("a_snapshot_works_while_everybody_is_stopped", stopped),
    ("a_snapshot_of_garbage_is_an_error_or_a_snapshot", garbage),
    ("a_snapshot_of_many_tangled_queues_stays_small", tangled),
];

fn shows() {
    let (path, segment) = board();
    let offset = segment.offset_of(&segment.locks[2]).expect("it is inside");
    let mut owner = Puppet::spawn(&path);
    assert_eq!(owner.lock(2), Got::Lock);
    let mut waiters: Vec<Puppet> = (0..4).map(|_| Puppet::spawn(&path)).collect();
    for waiter in &mut waiters {
        waiter.queue(&segment, 2);
    }
    let names: Vec<Participant> = waiters.iter().map(|waiter| waiter.participant).collect();
    until("everybody sleeps", || {
        let snapshot = Snapshot::read(&path, &[]).expect("read");
        snapshot.participants.iter().filter_map(|view| view.busy_with.as_ref()).count() == 4
            && names.iter().all(|name| {
                let view = snapshot.participant(name.row()).expect("it is attached");
                view.busy_with.as_ref().is_some_and(|wait| wait.state == "parked")
            })
    });

    let snapshot = Snapshot::read(&path, &[]).expect("read");
    assert_eq!((snapshot.layout_version, snapshot.schema), (4, 0));
    assert_eq!(snapshot.value_size, size_of::<Board>() as u64);
    assert_eq!((snapshot.capacity, snapshot.rows_used), (64, 5));
    assert!(!snapshot.other_boot);
    let lock = snapshot.lock(offset).expect("somebody waits for it");
    assert_eq!(lock.owner, Some(owner.participant));
    assert!(lock.owner_alive && !lock.inherited && lock.guard == 0 && lock.broken.is_none());
    assert_eq!(lock.queue, names);
    let mut behind = 0;
    for waiter in &waiters {
        let view = snapshot.participant(waiter.participant.row()).expect("it is attached");
        assert_eq!(view.participant, waiter.participant);
        assert_eq!((view.pid, view.tid, view.alive), (waiter.pid(), waiter.pid(), true));
        assert!(view.start_time != 0 && view.pid_namespace != 0);
        let name = fs::read_to_string(format!("/proc/{}/comm", view.pid)).expect("read");
        assert_eq!(view.thread_name, name.trim_end());
        let wait = view.busy_with.as_ref().expect("it waits");
        assert_eq!((wait.lock, wait.queued, wait.behind), (offset, true, behind));
        behind = view.participant.row();
    }
    let idle = snapshot.participant(owner.participant.row()).expect("it is attached");
    assert!(idle.busy_with.is_none());

    // Two of those who wait die, then the owner: the next in line inherits,
    // from where it is in the queue.
    let mut rest = Vec::new();
    for (at, waiter) in waiters.into_iter().enumerate() {
        if at == 0 || at == 2 { waiter.kill() } else { rest.push(waiter) }
    }
    let snapshot = Snapshot::read(&path, &[]).expect("read");
    for (at, name) in names.iter().enumerate() {
        if let Some(view) = snapshot.participant(name.row()) {
            assert_eq!(view.alive, at == 1 || at == 3, "{snapshot}");
        }
    }
    owner.kill();
    assert!(matches!(rest[0].got(), Got::Inherited { .. }));
    until("the next one stands first", || {
        let snapshot = Snapshot::read(&path, &[offset]).expect("read");
        let lock = snapshot.lock(offset).expect("asked for");
        lock.inherited && lock.owner == Some(names[1]) && lock.queue == [names[3]]
    });
    let shown = Snapshot::read(&path, &[offset]).expect("read").to_string();
    assert!(shown.contains(&format!("owner {} (alive, inherited)", names[1])), "{shown}");
    assert!(shown.contains(": dead, pid "), "{shown}");
}

fn changes_nothing() {
    let (path, segment) = board();
    let mut puppet = Puppet::spawn(&path);
    assert_eq!(puppet.lock(0), Got::Lock);
    let before = Fingerprint::of(&path);
    for _ in 0..10 {
        let snapshot = Snapshot::read(&path, &[1, 8, u64::MAX, u64::MAX - 15]).expect("read");
        assert_eq!((snapshot.rows_used, snapshot.participants.len()), (1, 1));
        assert!(snapshot.locks.is_empty(), "at these offsets there can be no lock");
        Snapshot::of(segment.as_fd(), &[]).expect("of the descriptor");
    }
    assert_eq!(Fingerprint::of(&path), before);
}

fn read_only() {
    // That this is true of other users than root is checked where there is one
    // to become: see `a_file_without_permission_is_refused`.
    let (path, segment) = board();
    let puppet = Puppet::spawn(&path);
    fs::set_permissions(&*path, fs::Permissions::from_mode(0o400)).expect("chmod");
    let snapshot = Snapshot::read(&path, &[]).expect("read");
    assert!(snapshot.participant(puppet.participant.row()).is_some());
    let file = File::open(&path).expect("open");
    assert_eq!(Snapshot::of(file.as_fd(), &[]).expect("read").participants, snapshot.participants);
    drop(segment);
}

fn stopped() {
    let (path, segment) = board();
    let offset = segment.offset_of(&segment.locks[0]).expect("it is inside");
    let mut owner = Puppet::spawn(&path);
    let mut waiter = Puppet::spawn(&path);
    let mut busy: Vec<Puppet> = (0..2).map(|_| Puppet::spawn(&path)).collect();
    assert_eq!(owner.lock(0), Got::Lock);
    waiter.queue(&segment, 0);
    for _ in 0..50 {
        // Two that take another lock in turns are stopped wherever they are.
        for puppet in &mut busy {
            for _ in 0..20 {
                puppet.start("lock 1");
                puppet.start("unlock 1");
            }
        }
        for puppet in busy.iter().chain([&owner, &waiter]) {
            puppet.process.stop();
        }
        let snapshot = Snapshot::read(&path, &[offset]).expect("read");
        assert_eq!(snapshot.participants.len(), 4);
        assert!(snapshot.participants.iter().all(|view| view.alive));
        let lock = snapshot.lock(offset).expect("asked for");
        assert_eq!(lock.owner, Some(owner.participant));
        assert_eq!(lock.queue, [waiter.participant]);
        assert!(!snapshot.to_string().is_empty());
        for puppet in busy.iter().chain([&owner, &waiter]) {
            puppet.process.resume();
        }
        for puppet in &mut busy {
            for _ in 0..20 {
                puppet.answer();
                assert_eq!(puppet.answer(), "ok");
            }
        }
    }
}

/// The bytes of a real segment with an owner, a queue and some dead.
pub(crate) fn lively_image(path: &Path) -> Vec<u8> {
    let segment: Segment<Board> = Segment::options().capacity(7).create(path).expect("create");
    let mut puppets: Vec<Puppet> = (0..6).map(|_| Puppet::spawn(path)).collect();
    assert_eq!(puppets[0].lock(0), Got::Lock);
    assert_eq!(puppets[1].lock(1), Got::Lock);
    for waiter in &mut puppets[2..5] {
        waiter.queue(&segment, 0);
    }
    puppets[5].queue(&segment, 1);
    let dead = [5, 3, 1];
    for at in dead {
        puppets.remove(at).kill();
    }
    fs::read(path).expect("read")
}

/// The image of a segment in which some wait for condition variables, some of them
/// dead, and others have been notified, and wait for the lock.
pub(crate) fn waiting_image(path: &Path) -> Vec<u8> {
    let segment: Segment<Board> = Segment::options().capacity(7).create(path).expect("create");
    let mut puppets: Vec<Puppet> = (0..6).map(|_| Puppet::spawn(path)).collect();
    for puppet in &mut puppets[..5] {
        assert_eq!(puppet.lock(0), Got::Lock);
        puppet.wait(&segment, 0, 0, "");
    }
    assert_eq!(puppets[5].lock(0), Got::Lock);
    assert!(puppets[5].notify_one(0) && puppets[5].notify_one(0));
    // One that was notified, and one behind whom somebody still waits. Nobody else runs
    // who could clear up.
    puppets.iter().for_each(|puppet| puppet.process.stop());
    for at in [3, 1] {
        puppets.remove(at).kill();
    }
    fs::read(path).expect("read")
}

fn garbage() {
    let path = TempPath::new();
    let image = lively_image(&path);
    let file = File::options().read(true).write(true).open(&path).expect("open");
    let snapshot = Snapshot::of(file.as_fd(), &[]).expect("read");
    let offsets: Vec<u64> = (0..8).map(|at| snapshot.value_offset + 24 * at).collect();
    let (mut errors, mut broken) = (0, 0);
    for seed in 0..20_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut patched = Vec::new();
        for _ in 0..random.usize(1..20) {
            let offset = match random.u8(0..8) {
                0 => random.u64(12..64),
                1..=3 => random.u64(4096..4096 + 8 * 64),
                4..=5 => snapshot.value_offset + random.u64(0..snapshot.value_size - 8),
                6 => life_word(&snapshot, random.u32(1..=7)) - random.u64(0..9),
                _ => random.u64(12..image.len() as u64 - 8),
            };
            let aligned = offset & !3;
            let bytes = match random.u8(0..4) {
                0 => random.u64(..).to_ne_bytes().to_vec(),
                1 => random.u32(0..10).to_ne_bytes().to_vec(),
                2 => random.u32(..).to_ne_bytes().to_vec(),
                _ => vec![random.u8(..)],
            };
            file.write_all_at(&bytes, aligned).expect("write");
            patched.push((aligned as usize, bytes.len()));
        }
        let start = Instant::now();
        match Snapshot::of(file.as_fd(), &offsets) {
            Err(error) => {
                errors += 1;
                assert!(!error.to_string().is_empty());
            }
            Ok(snapshot) => {
                broken += usize::from(snapshot.locks.iter().any(|lock| lock.broken.is_some()));
                let text = snapshot.to_string();
                assert!(text.len() < 100_000, "seed {seed}: {} bytes", text.len());
                assert!(snapshot.participants.len() <= 7, "seed {seed}");
            }
        }
        assert!(start.elapsed() < crate::kit::HANG, "seed {seed}");
        for (offset, len) in patched {
            file.write_all_at(&image[offset..offset + len], offset as u64).expect("write");
        }
    }
    eprintln!("20000 garbage images: {errors} errors, {broken} with broken queues");
    assert!(errors > 100 && broken > 100, "{errors} {broken}");
}

/// Each row names a lock of its own, and each of these locks claims all rows as
/// its queue: the square of the number of rows if one believes it.
fn tangled() {
    const ROWS: u32 = 8192;
    let path = TempPath::new();
    let segment: Segment<[heirlock::Mutex<()>; ROWS as usize]> =
        Segment::options().capacity(ROWS).create(&path).expect("create");
    let value = segment.offset_of(&*segment).expect("it is inside");
    drop(segment);
    let file = File::options().read(true).write(true).open(&path).expect("open");
    file.write_all_at(&ROWS.to_ne_bytes(), 44).expect("write");
    for row in 1..=ROWS {
        let lock = value + 16 * u64::from(row - 1);
        let mut bytes = Vec::new();
        bytes.extend(lock.to_ne_bytes());
        bytes.extend((1u64 << 20 | u64::from(row)).to_ne_bytes());
        bytes.extend(1u64.to_ne_bytes());
        bytes.extend((row - 1).to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        file.write_all_at(&bytes, 4096 + 64 * u64::from(row)).expect("write");
        file.write_all_at(&ROWS.to_ne_bytes(), lock + 8).expect("write");
    }
    let snapshot = Snapshot::read(&path, &[]).expect("read");
    assert_eq!(snapshot.locks.len(), ROWS as usize);
    let members: usize = snapshot.locks.iter().map(|lock| lock.queue.len()).sum();
    assert!(members <= 4 * ROWS as usize, "{members} members of queues in {ROWS} rows");
    assert!(snapshot.locks.iter().filter(|lock| lock.broken.is_some()).count() > 1);
}
