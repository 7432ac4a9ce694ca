//! The locks, and their names.
//!
//! The table of names is the segment's own (`Segment::set_name`): a lock gets a name at
//! its first use and keeps it, so whoever looks for a name tries the locks in order until
//! one has it or takes it. A lock that refuses a name refuses it for ever: so a name is
//! never at two locks, whoever gives it at the same time or is killed meanwhile.

use super::protocol::{Reply, is_name};
use crate::{Result, about_path};
use heirlock::{
    LockError, LockOptions, LockView, Mutex, MutexGuard, NameError, Participant, ParticipantView,
    Segment, Snapshot,
};
use rustix::fs::fstat;
use rustix::process::geteuid;
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use zerocopy::FromBytes;

/// Which `Locks` this is: another number for every change of it.
const SCHEMA: u64 = 0x4c4f_434b_5301;

/// How many locks there can be: one less than a segment has names.
pub(crate) const LOCKS: usize = 61;

/// How many threads and waiting clients there can be at a time.
const ROWS: u32 = 4096;

/// What the lock is called that the daemon holds. No client can ask for that.
const CLAIM: &str = "the daemon";

/// Set in the value of a lock from when it is acquired until it is unlocked; the rest is
/// the process for which.
const HELD: u64 = 1 << 32;

/// What is in the segment. All bytes zero is the beginning.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Locks {
    /// Held by the one daemon of the segment; how many there have been.
    pub(crate) daemon: Mutex<u64>,
    /// Each with a note of who has it: see `take`.
    locks: [Mutex<u64>; LOCKS],
}

pub(crate) fn open_or_create(path: &Path, mode: u32) -> Result<Segment<Locks>> {
    let options = Segment::options().schema(SCHEMA).capacity(ROWS).mode(mode);
    let segment: Segment<Locks> =
        options.open_or_create(path).map_err(|error| about_path(path, &error))?;
    segment.set_name(&segment.daemon, CLAIM).map_err(|error| about_path(path, &error))?;
    Ok(segment)
}

/// Claims the segment for the one daemon that it may have. `None` if the path is another
/// file's by now, or nobody's: the daemon before has removed it.
pub(crate) fn claim<'s>(
    segment: &'s Segment<Locks>,
    path: &Path,
) -> Result<Option<MutexGuard<'s, u64>>> {
    let opened = fstat(segment.as_fd())?;
    let me = geteuid();
    if opened.st_uid != me.as_raw() && opened.st_uid != 0 {
        return Err(format!(
            "{}: it is user {}'s, who could cut it off under this daemon, which runs as user \
             {me}; remove it, or choose another --path",
            path.display(),
            opened.st_uid
        )
        .into());
    }
    let now = LockOptions::new().timeout(Duration::ZERO);
    let claim = match segment.daemon.lock_with(&now) {
        Ok(claim) => claim,
        Err(LockError::TimedOut) => {
            return Err(format!(
                "{}: there is a daemon already, process {}; end that one first",
                path.display(),
                owner_pid(segment)
            )
            .into());
        }
        Err(error) => return Err(about_path(path, &error).into()),
    };
    let is_there = |found: Metadata| (found.dev(), found.ino()) == (opened.st_dev, opened.st_ino);
    match fs::metadata(path) {
        Ok(found) => Ok(is_there(found).then_some(claim)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(about_path(path, &error).into()),
    }
}

fn owner_pid(segment: &Segment<Locks>) -> String {
    let pid = || {
        let snapshot = snapshot(segment).ok()?;
        Some(participant_of(&snapshot, heirlock::owner(&segment.daemon)?)?.pid)
    };
    pid().map_or("?".into(), |pid| pid.to_string())
}

/// The processes that take part in the segment and are alive, besides its daemon, which
/// this one is.
pub(crate) fn others(segment: &Segment<Locks>) -> Result<BTreeSet<u32>> {
    let snapshot = snapshot(segment)?;
    let process = |view: &ParticipantView| (view.pid, view.pid_namespace);
    // The row that has the claim.
    let me = heirlock::owner(&segment.daemon);
    let me = me.and_then(|me| participant_of(&snapshot, me)).map(process);
    let alive = snapshot.participants.iter().filter(|view| view.alive);
    Ok(alive.filter(|view| Some(process(view)) != me).map(|view| view.pid).collect())
}

/// Notes that the lock is held for the process `pid`, and returns which one had it
/// before and did not unlock it, whether that died or lost its connection.
pub(crate) fn take(guard: &mut MutexGuard<'_, u64>, pid: u32) -> Reply {
    let before = std::mem::replace(&mut **guard, HELD | u64::from(pid));
    // If that was killed before it could note anything.
    let dead = MutexGuard::inherited(guard).map(|dead| dead.pid());
    let left = (before & HELD != 0).then_some(before as u32);
    left.or(dead).map_or(Reply::Done, Reply::Inherited)
}

/// Unlocks it, and nobody is told anything. (To drop the guard alone tells the next.)
pub(crate) fn give_back(mut guard: MutexGuard<'_, u64>) {
    *guard = 0;
}

/// The lock of this name, if there is one.
pub(crate) fn find(segment: &Segment<Locks>, name: &str) -> Option<usize> {
    (0..LOCKS).find(|at| segment.name_of(&segment.locks[*at]).as_deref() == Some(name))
}

/// The lock of this name, from now on if not before.
pub(crate) fn find_or_make(
    segment: &Segment<Locks>,
    name: &str,
) -> std::result::Result<usize, String> {
    for (at, lock) in segment.locks.iter().enumerate() {
        match segment.set_name(lock, name) {
            Ok(()) => return Ok(at),
            Err(NameError::Another { .. }) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Err(format!("all {LOCKS} locks have other names; use one of them (STATUS shows them)"))
}

pub(crate) fn lock(segment: &Segment<Locks>, at: usize) -> &Mutex<u64> {
    &segment.locks[at]
}

pub(crate) fn name(segment: &Segment<Locks>, at: usize) -> String {
    segment.name_of(&segment.locks[at]).unwrap_or_default()
}

/// The segment as it is now, with all locks that have a name.
pub(crate) fn snapshot(segment: &Segment<Locks>) -> Result<Snapshot> {
    let named = segment.locks.iter().filter(|lock| segment.name_of(*lock).is_some());
    let offsets: Vec<u64> = named.filter_map(|lock| segment.offset_of(lock)).collect();
    Ok(Snapshot::of(segment.as_fd(), &offsets)?)
}

/// Which clients a daemon has at a lock.
#[derive(Default)]
pub(crate) struct Clients {
    /// The process for which it holds the lock.
    pub(crate) holder: Option<u32>,
    /// The rows that stand in the queue, and the processes for which they do.
    pub(crate) waiting: HashMap<Participant, u32>,
}

/// What there is to say of each lock that clients can ask for by its name; `clients` are
/// those at the one at a place, as far as this process knows.
pub(crate) fn status(
    segment: &Segment<Locks>,
    clients: impl Fn(usize) -> Clients,
) -> Result<Vec<String>> {
    let snapshot = snapshot(segment)?;
    let locks = segment.locks.iter().enumerate().filter_map(|(at, lock)| {
        let view = snapshot.lock(segment.offset_of(lock)?)?;
        // Somebody who maps the segment may have given it one that reads like a line.
        let name = view.name.as_deref().filter(|name| is_name(name))?;
        Some(status_line(&snapshot, name, view, &clients(at)))
    });
    Ok(locks.collect())
}

fn status_line(snapshot: &Snapshot, name: &str, view: &LockView, clients: &Clients) -> String {
    let who = |participant: Participant, client: Option<u32>| {
        let pid = participant_of(snapshot, participant).map_or(0, |view| view.pid);
        client.map_or_else(|| pid.to_string(), |client| format!("{pid}/{client}"))
    };
    let waiting = |participant| clients.waiting.get(&participant).copied();
    let state = match view.owner {
        None => "free",
        Some(_) if view.owner_alive => "held",
        Some(_) => "dead",
    };
    // It may have been served just now, and not know of it yet.
    let owner = view.owner.map(|owner| who(owner, clients.holder.or(waiting(owner))));
    // The dead are not out of the queue yet, and will not be served.
    let alive =
        |member: &&Participant| participant_of(snapshot, **member).is_some_and(|view| view.alive);
    let queue = view.queue.iter().filter(alive);
    let queue: Vec<String> = queue.map(|member| who(*member, waiting(*member))).collect();
    format!(
        "LOCK name={name} state={state} owner={} waiters={} queue={}",
        owner.as_deref().unwrap_or("-"),
        queue.len(),
        if queue.is_empty() { "-".into() } else { queue.join(",") }
    )
}

/// The participant, if its row has not got another user since.
pub(crate) fn participant_of(snapshot: &Snapshot, who: Participant) -> Option<&ParticipantView> {
    snapshot.participant(who.row()).filter(|view| view.participant == who)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment_file::SegmentFile;

    fn segment() -> Segment<Locks> {
        Segment::anonymous().expect("a segment")
    }

    #[test]
    fn a_name_has_one_lock_whoever_asks_first() {
        let segment = &segment();
        let names: Vec<String> = (0..LOCKS).map(|n| format!("name-of-a-lock-{n}")).collect();
        let places = std::thread::scope(|scope| {
            let ask = |shift: usize| {
                let names = &names;
                scope.spawn(move || {
                    let order = (0..LOCKS).map(|n| (n + shift) % LOCKS);
                    let mut found: Vec<(usize, usize)> =
                        order.map(|n| (n, find_or_make(segment, &names[n]).unwrap())).collect();
                    found.sort_unstable();
                    found
                })
            };
            [0, 20, 40].map(ask).map(|asked| asked.join().expect("no panic"))
        });
        assert_eq!(places[0], places[1]);
        assert_eq!(places[0], places[2]);
        let mut at: Vec<usize> = places[0].iter().map(|(_, at)| *at).collect();
        at.sort_unstable();
        assert_eq!(at, (0..LOCKS).collect::<Vec<_>>());
        for (n, at) in &places[0] {
            assert_eq!(find(segment, &names[*n]), Some(*at));
            assert_eq!(name(segment, *at), names[*n]);
        }
        let error = find_or_make(segment, "one-more").expect_err("no room");
        assert!(error.contains("all 61 locks have other names"), "{error}");
        assert_eq!(find(segment, "one-more"), None);
    }

    #[test]
    fn what_is_claimed_is_what_is_at_the_path() {
        let name = format!("heirlock-claim-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let file = SegmentFile(Path::new("/dev/shm").join(name));
        let path = &file.0;
        let old = open_or_create(path, 0o600).expect("a segment");
        let is_claimed = |segment| claim(segment, path).expect("it is free").is_some();
        assert!(is_claimed(&old));
        fs::remove_file(path).expect("it was there");
        assert!(!is_claimed(&old));
        let new = open_or_create(path, 0o600).expect("a segment");
        assert!(!is_claimed(&old));
        assert!(is_claimed(&new));
    }

    #[test]
    fn who_did_not_unlock_is_told_to_the_next_alone() {
        let segment = segment();
        let lock = lock(&segment, find_or_make(&segment, "a").unwrap());
        let mut guard = lock.lock();
        assert_eq!(take(&mut guard, 7), Reply::Done);
        drop(guard);
        let mut guard = lock.lock();
        assert_eq!(take(&mut guard, 8), Reply::Inherited(7));
        give_back(guard);
        assert_eq!(take(&mut lock.lock(), 0), Reply::Done);
        assert_eq!(take(&mut lock.lock(), 9), Reply::Inherited(0));
    }
}
