//! A segment that is older than the boot.

use crate::kit::{Board, Got, Puppet, TempPath, Test};
use crate::support::{OnDisk, Surgery, life_word};
use heirlock::{MutexGuard, Participant, Segment, Snapshot, is_alive};
use nix::unistd::gettid;
use std::path::Path;

pub(crate) const TESTS: &[Test] = &[
    ("after_a_reboot_everybody_is_dead_in_shared_memory", in_shared_memory),
    ("after_a_reboot_everybody_is_dead_on_a_disk", disk),
];

/// Where the header has the boot id.
const BOOT: u64 = 48;

fn in_shared_memory() {
    survives(&TempPath::new());
}

fn disk() {
    survives(&OnDisk::new());
}

fn survives(path: &Path) {
    let segment: Segment<Board> = Segment::options().capacity(8).create(path).expect("create");
    let offset = segment.offset_of(&segment.locks[0]).expect("it is inside");
    let mut owner = Puppet::spawn(path);
    let mut waiter = Puppet::spawn(path);
    let idle = Puppet::spawn(path);
    assert_eq!(owner.lock(0), Got::Lock);
    assert_eq!(owner.tell("set 0 42"), "ok");
    waiter.queue(&segment, 0);
    let pid = owner.pid();
    let former: Vec<Participant> =
        [&owner, &waiter, &idle].map(|puppet| puppet.participant).to_vec();
    drop(segment);
    // The owner last, or the waiter would inherit.
    for puppet in [idle, waiter, owner] {
        puppet.kill();
    }

    // As the file would be if the machine had lost power instead: the life
    // words say that all three live, one of them in our own name.
    let before = Snapshot::read(path, &[offset]).expect("read");
    assert!(!before.other_boot);
    let file = Surgery::on(path);
    let waiters = 0x8000_0000;
    let own = gettid().as_raw() as u32;
    for (participant, tid) in former.iter().zip([own, 1, 0x3fff_fffe]) {
        let life: u32 = tid | waiters;
        file.write(life_word(&before, participant.row()), &life.to_ne_bytes());
    }
    let boot = file.read(BOOT, 16);
    let other: Vec<u8> = boot.iter().map(|byte| byte ^ 0x55).collect();
    file.write(BOOT, &other);

    let snapshot = Snapshot::read(path, &[offset]).expect("read");
    assert!(snapshot.other_boot);
    assert!(snapshot.to_string().contains("of another boot"), "{snapshot}");
    assert_eq!(snapshot.participants.len(), 3);
    assert_eq!(snapshot.lock(offset).expect("asked for").owner, Some(former[0]));
    assert_eq!(snapshot.lock(offset).expect("asked for").queue, [former[1]]);
    assert_eq!(file.read(BOOT, 16), other, "to look is not to change");

    let segment: Segment<Board> = Segment::open(path).expect("open");
    assert_eq!(file.read(BOOT, 16), boot, "it is of this boot from now on");
    for participant in &former {
        assert!(!is_alive(&segment, *participant), "{participant} is of another boot");
    }
    let guard = segment.locks[0].lock();
    let dead = MutexGuard::inherited(&guard).expect("from the owner of the other boot");
    assert_eq!(dead.pid(), pid);
    assert_eq!(*guard, 42);
    drop(guard);
    assert_eq!(heirlock::queue(&segment.locks[0]), Some(vec![]));
    assert!(MutexGuard::inherited(&segment.locks[0].lock()).is_none(), "it is told once");

    let after = Snapshot::read(path, &[]).expect("read");
    assert!(!after.other_boot);
    // Those of this boot are alive to whoever opens it next.
    let mut puppet = Puppet::spawn(path);
    assert_eq!(puppet.lock(1), Got::Lock);
    let again: Segment<Board> = Segment::open(path).expect("open");
    assert!(is_alive(&again, puppet.participant));
    assert!(again.locks[1].try_lock().is_none());
}
