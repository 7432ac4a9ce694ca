//! Looking into a segment without taking part: no lock, no row, no write.

use crate::condvar::Condvar;
use crate::lock::queue::snapshot;
use crate::lock::word::{Code, LockWords, Stage, WaitState};
use crate::memory::error::SegmentError;
use crate::memory::layout::{Header, Layout, Life};
use crate::memory::map::Mapping;
use crate::memory::registry::{self, Found};
use crate::mutex::Mutex;
use crate::participant::id::Id;
use crate::participant::life::Fate;
use crate::participant::table::{Counters, Identity, IdentityRecord, Row, Table};
use crate::segment::{Participant, Segment, display_name};
use crate::sys::atomic::Ordering::{Acquire, Relaxed};
use crate::sys::atomic::fence;
use crate::sys::{process, robust_list, shm};
use core::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use zerocopy::FromBytes;

/// How often a queue in motion is looked at before it is given up.
const TRIES: u32 = 1000;

/// The members of the queue of a lock or a condition variable.
fn members(words: &LockWords) -> Option<Vec<Participant>> {
    let address = core::ptr::from_ref(words).addr();
    let found = registry::lock().find(address, Mapping::private).ok()?;
    let (Found::Shared(mapping) | Found::Private(mapping, _)) = found;
    let members = snapshot(words, Table::new(&mapping), TRIES)?;
    Some(members.into_iter().map(|(id, _)| Participant(id.plain())).collect())
}

/// The threads that wait for `mutex`, in the order in which they will be
/// served; dead ones among them as long as nobody has taken them out. `None` if
/// the queue moved too fast to be seen standing still, or is corrupted.
///
/// Takes no lock and no row.
///
/// # Examples
///
/// ```
/// let mutex = heirlock::Mutex::new(());
/// assert_eq!(heirlock::queue(&mutex), Some(vec![]));
/// ```
pub fn queue<T: ?Sized>(mutex: &Mutex<T>) -> Option<Vec<Participant>> {
    members(mutex.raw().words())
}

/// The threads that wait for `condvar` and were not notified yet, in the order in
/// which they will be; dead ones among them as long as nobody has taken them out.
/// `None` if the queue moved too fast to be seen standing still, or is corrupted.
///
/// Takes no lock and no row.
///
/// # Examples
///
/// ```
/// let condvar = heirlock::Condvar::new();
/// assert_eq!(heirlock::waiters(&condvar), Some(vec![]));
/// ```
pub fn waiters(condvar: &Condvar) -> Option<Vec<Participant>> {
    members(condvar.raw().words())
}

/// The owner of `mutex`, dead or alive; `None` if it is free.
///
/// # Examples
///
/// See [`Segment::attach`].
pub fn owner<T: ?Sized>(mutex: &Mutex<T>) -> Option<Participant> {
    let owner = mutex.raw().owner();
    (!owner.is_nobody()).then_some(Participant(owner.plain()))
}

/// Whether a thread that joined `segment` as `participant` is alive, and has
/// not left.
///
/// # Examples
///
/// ```
/// use heirlock::{Mutex, Segment, is_alive};
/// let segment: Segment<Mutex<u64>> = Segment::anonymous()?;
/// let me = segment.attach()?;
/// assert!(is_alive(&segment, me));
/// let other = std::thread::scope(|s| s.spawn(|| segment.attach().unwrap()).join()).unwrap();
/// assert!(!is_alive(&segment, other));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn is_alive<T>(segment: &Segment<T>, participant: Participant) -> bool {
    matches!(Table::new(segment.mapping()).fate(participant.0), Fate::Alive(_))
}

/// What a thread has been through in a segment since it joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// How many futex waits it made.
    pub sleeps: u64,
    /// How many of them a signal handler ended (`EINTR`).
    pub interruptions: u64,
    /// How many waiters it woke.
    pub wakes: u64,
    /// How many times it had all other participants execute a fence
    /// (`membarrier`) before it slept.
    pub barriers: u64,
}

impl Statistics {
    fn of(counters: &Counters) -> Self {
        Self {
            sleeps: counters.sleeps.get(),
            interruptions: counters.interruptions.get(),
            wakes: counters.wakes.get(),
            barriers: counters.barriers.get(),
        }
    }
}

/// What the thread that joined `segment` as `participant` has been through;
/// `None` if its row has had another user since.
///
/// # Examples
///
/// ```
/// use heirlock::{Mutex, Segment, statistics};
/// let segment: Segment<Mutex<u64>> = Segment::anonymous()?;
/// let me = segment.attach()?;
/// drop(segment.lock());
/// // Nobody else was there: it did not have to sleep.
/// assert_eq!(statistics(&segment, me).unwrap().sleeps, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn statistics<T>(segment: &Segment<T>, participant: Participant) -> Option<Statistics> {
    let table = Table::new(segment.mapping());
    let statistics = Statistics::of(table.counters(participant.row())?);
    // Pairs with `Counter::reset`, before which the next user of the row bumps
    // the generation: if it is the old one, so are the counters.
    fence(Acquire);
    let generation = table.generation(participant.row())?.load(Relaxed);
    (generation == participant.generation()).then_some(statistics)
}

/// Why a segment could not be inspected.
#[derive(Debug)]
pub struct InspectError(SegmentError);

impl fmt::Display for InspectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for InspectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl From<SegmentError> for InspectError {
    fn from(error: SegmentError) -> Self {
        Self(error)
    }
}

/// A segment at one moment, of whatever type its value is.
///
/// It is read through a read-only descriptor, with no lock and no row taken,
/// so it works while everything in the segment is stuck, and cannot be faulted
/// by a file that shrinks. The parts are read one after the other: in a busy
/// segment they may not fit together.
///
/// # Examples
///
/// ```
/// use heirlock::{Mutex, Segment, Snapshot};
/// # let path = format!("/dev/shm/heirlock-doc-inspect-{}", std::process::id());
/// let segment: Segment<Mutex<u64>> = Segment::create(&path)?;
/// let guard = segment.lock();
/// let offset = segment.offset_of(&*segment).unwrap();
/// let snapshot = Snapshot::read(&path, &[offset])?;
/// assert_eq!(snapshot.participants.len(), 1);
/// assert_eq!(snapshot.locks[0].owner, heirlock::owner(&segment));
/// println!("{snapshot}");
/// # drop(guard);
/// # Segment::unlink(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// The format of the segment.
    pub layout_version: u32,
    /// The user's own version number.
    pub schema: u64,
    /// The size of the value in bytes.
    pub value_size: u64,
    /// Where the value begins, in bytes from the start of the segment.
    pub value_offset: u64,
    /// How many threads can be attached at a time.
    pub capacity: u32,
    /// How many rows have been used at least once.
    pub rows_used: u32,
    /// Whether the participants lived before the last boot, so that none is
    /// alive whatever it says.
    pub other_boot: bool,
    /// Every row that is in use, or was when its thread died.
    pub participants: Vec<ParticipantView>,
    /// The locks asked for, and every lock with which some thread is busy. (A
    /// lock that is held and that nobody waits for leaves no trace in the
    /// table.)
    pub locks: Vec<LockView>,
}

/// A thread in a segment, as [`Snapshot`] saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParticipantView {
    /// Its row and generation.
    pub participant: Participant,
    /// Whether its life word says that it lives. (A death that the kernel did
    /// not mark is noticed by those who wait, within two seconds.)
    pub alive: bool,
    /// The ID of its process, in its own PID namespace; 0 if unknown.
    pub pid: u32,
    /// The ID of its thread, in its own PID namespace; 0 if unknown.
    pub tid: u32,
    /// The inode of its PID namespace; 0 if unknown.
    pub pid_namespace: u64,
    /// When its process started, in clock ticks since boot; 0 if unknown.
    pub start_time: u64,
    /// The name of its thread when it joined.
    pub thread_name: String,
    /// What it waits for, notifies, or edits the queue of.
    pub busy_with: Option<WaitView>,
}

/// What a thread waits for, as [`Snapshot`] saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaitView {
    /// The lock, as [`Segment::offset_of`] names it; 0 if it notifies those who wait
    /// for a condition variable.
    pub lock: u64,
    /// The condition variable for which it waits before it waits for the lock, or
    /// which it notifies, as [`Segment::offset_of`] names it.
    pub condvar: Option<u64>,
    /// Whether it was notified, and waits for the lock by now.
    pub notified: bool,
    /// Whether the thread is in the lock's queue. If not it is about to enter,
    /// or edits the queue, or has just been served.
    pub queued: bool,
    /// The row in front; 0 at the head. Only of use if it is queued.
    pub behind: u32,
    /// `"waiting"`, `"parked"` (asleep), `"nudged"`, `"granted"` or `"idle"`.
    pub state: &'static str,
}

/// A lock, as [`Snapshot`] saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockView {
    /// Where it is, as [`Segment::offset_of`] names it.
    pub offset: u64,
    /// Its owner, dead or alive; `None` if it is free.
    pub owner: Option<Participant>,
    /// Whether the owner is alive.
    pub owner_alive: bool,
    /// Whether the owner took over from a dead one.
    pub inherited: bool,
    /// The row of the thread that edits the queue; 0 for none.
    pub guard: u32,
    /// Those who wait, in the order in which they will be served, the dead
    /// among them included.
    pub queue: Vec<Participant>,
    /// What is wrong with the queue, if something is.
    pub broken: Option<&'static str>,
}

/// The table as read from the file.
struct Rows {
    rows: Vec<(Row, Life)>,
}

impl Rows {
    fn get(&self, index: u32) -> Option<&(Row, Life)> {
        (index as usize).checked_sub(1).and_then(|at| self.rows.get(at))
    }

    fn alive(&self, id: Id) -> bool {
        self.get(id.index()).is_some_and(|(_, life)| {
            let (current, word) = (life.generation.load(Relaxed), life.word.load(Relaxed));
            current == id.generation() && word != 0 && word & robust_list::OWNER_DIED == 0
        })
    }

    /// The queue that ends at row `tail`. `left` is how many members all queues
    /// together can still have.
    fn queue(&self, tail: u32, left: &mut usize) -> (Vec<Participant>, Option<&'static str>) {
        let mut queue = Vec::new();
        let mut index = tail;
        let broken = loop {
            if index == 0 {
                break None;
            }
            let Some((row, _)) = self.get(index) else { break Some("names no row") };
            if queue.len() == self.rows.len() {
                break Some("is a cycle");
            }
            if *left == 0 {
                break Some("shares its members with others");
            }
            *left -= 1;
            let id = Id::from_bits(row.waiting_as.load(Relaxed));
            if id.index() != index {
                break Some("has a member under another's id");
            }
            queue.push(Participant(id.plain()));
            index = row.prev.load(Relaxed);
        };
        queue.reverse();
        (queue, broken)
    }
}

fn io(step: &'static str) -> impl FnOnce(std::io::Error) -> SegmentError {
    SegmentError::io(step)
}

/// Reads one `R` from the file; zero bytes where the file ends.
fn read<R: FromBytes>(fd: BorrowedFd, offset: usize) -> Result<R, SegmentError> {
    let mut bytes = vec![0; size_of::<R>()];
    shm::read_at(fd, &mut bytes, offset as u64).map_err(io("read the"))?;
    Ok(R::read_from_bytes(&bytes).expect("the sizes are equal"))
}

impl Snapshot {
    /// Reads the segment at `path`, with the locks at the offsets `locks`
    /// besides those that are found.
    ///
    /// # Errors
    ///
    /// [`InspectError`] says what is there instead of a segment.
    pub fn read(path: impl AsRef<Path>, locks: &[u64]) -> Result<Self, InspectError> {
        let path = path.as_ref();
        let fd = shm::open_read_only(path)
            .map_err(|source| SegmentError::of_path("open", path, source))?;
        Self::of(fd.as_fd(), locks)
    }

    /// Reads the segment behind a descriptor, for example
    /// [`Segment::as_fd`].
    ///
    /// # Errors
    ///
    /// [`InspectError`] says what is there instead of a segment.
    pub fn of(fd: BorrowedFd, locks: &[u64]) -> Result<Self, InspectError> {
        let stat = || shm::stat(fd).map_err(io("stat"));
        if !stat()?.regular {
            return Err(SegmentError::NotAFile.into());
        }
        let mut bytes = [0; size_of::<Header>()];
        if shm::read_at(fd, &mut bytes, 0).map_err(io("read the"))? == 0 {
            return Err(SegmentError::Unfinished.into());
        }
        let header = Header::read_from_bytes(&bytes).expect("the sizes are equal");
        // The size after the header, for the sake of a creator at work.
        let layout = Layout::of_any(&header, stat()?.size)?;

        let rows_used = header.rows.load(Relaxed).min(layout.capacity);
        let rows = (1..=rows_used)
            .map(|index| Ok((read(fd, layout.row(index))?, read(fd, layout.life(index))?)))
            .collect::<Result<_, SegmentError>>()?;
        let rows = Rows { rows };

        let mut offsets = locks.to_vec();
        offsets.extend(rows.rows.iter().map(|(row, _)| row.lock.load(Relaxed)));
        offsets.retain(|offset| *offset != 0);
        offsets.sort_unstable();
        offsets.dedup();
        let mut locks = Vec::new();
        // A row is in one queue, or was seen in a second one meanwhile.
        let mut members = 2 * rows.rows.len();
        for offset in offsets {
            if layout.holds_lock(offset) {
                let words = read(fd, offset as usize)?;
                locks.push(LockView::new(offset, &words, &rows, &mut members));
            }
        }
        let mut participants = Vec::new();
        for index in 1..=rows_used {
            participants.extend(ParticipantView::new(fd, &layout, index, &rows, &locks)?);
        }
        let boot =
            header.boot[0].load(Relaxed) as u128 | (header.boot[1].load(Relaxed) as u128) << 64;
        let now = process::boot_id();
        Ok(Self {
            layout_version: header.version,
            schema: header.schema,
            value_size: header.value_size,
            value_offset: layout.value_offset as u64,
            capacity: layout.capacity,
            rows_used,
            other_boot: boot != 0 && now != 0 && boot != now,
            participants,
            locks,
        })
    }

    /// The lock at `offset`, if it is among [`Snapshot::locks`].
    pub fn lock(&self, offset: u64) -> Option<&LockView> {
        self.locks.iter().find(|lock| lock.offset == offset)
    }

    /// The participant in row `row`, if the row is in use.
    pub fn participant(&self, row: u32) -> Option<&ParticipantView> {
        self.participants.iter().find(|view| view.participant.row() == row)
    }
}

impl ParticipantView {
    fn new(
        fd: BorrowedFd,
        layout: &Layout,
        index: u32,
        rows: &Rows,
        locks: &[LockView],
    ) -> Result<Option<Self>, SegmentError> {
        let Some((row, life)) = rows.get(index) else { return Ok(None) };
        if life.word.load(Relaxed) == 0 {
            return Ok(None);
        }
        let id = Id::new(index, life.generation.load(Relaxed));
        let record: IdentityRecord = read(fd, IdentityRecord::offset(layout, id))?;
        let Identity { pid, tid, pid_namespace, start_time, name } =
            record.identity(id).unwrap_or_default();
        let (lock, condvar) = (row.lock.load(Relaxed), row.condvar.load(Relaxed));
        let participant = Participant(id);
        let busy_with = (lock != 0 || condvar != 0).then(|| {
            let at = locks.binary_search_by_key(&lock, |view| view.offset);
            let at = at.ok().map(|at| &locks[at]);
            let state = WaitState::from_bits(row.state.load(Relaxed));
            WaitView {
                lock,
                condvar: (condvar != 0).then_some(condvar),
                notified: condvar != 0 && Stage::of(row).is_notified(),
                queued: at.is_some_and(|view| view.queue.contains(&participant)),
                behind: row.prev.load(Relaxed),
                state: match state.code() {
                    Some(Code::Waiting) => "waiting",
                    Some(Code::Parked) => "parked",
                    Some(Code::Nudged) => "nudged",
                    Some(Code::Granted) => "granted",
                    None => "idle",
                },
            }
        });
        Ok(Some(Self {
            participant,
            alive: rows.alive(id),
            pid,
            tid,
            pid_namespace,
            start_time,
            thread_name: display_name(&name),
            busy_with,
        }))
    }
}

impl LockView {
    fn new(offset: u64, words: &LockWords, rows: &Rows, members: &mut usize) -> Self {
        let owner = Id::from_bits(words.owner.load(Relaxed));
        let (queue, broken) = rows.queue(words.tail.load(Relaxed), members);
        Self {
            offset,
            owner: (!owner.is_nobody()).then_some(Participant(owner.plain())),
            owner_alive: rows.alive(owner.plain()),
            inherited: owner.inherited(),
            guard: words.guard_holder(),
            queue,
            broken,
        }
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "segment: layout {}, schema {}, value {} bytes at {}, rows {} of {} used{}",
            self.layout_version,
            self.schema,
            self.value_size,
            self.value_offset,
            self.rows_used,
            self.capacity,
            if self.other_boot { ", of another boot: nobody is alive" } else { "" },
        )?;
        for view in &self.participants {
            writeln!(f, "  {view}")?;
        }
        for lock in &self.locks {
            writeln!(f, "  {lock}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ParticipantView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "participant {}: {}, pid {} tid {} \"{}\" in namespace {}",
            self.participant,
            if self.alive { "alive" } else { "dead" },
            self.pid,
            self.tid,
            self.thread_name,
            self.pid_namespace,
        )?;
        match &self.busy_with {
            None => Ok(()),
            Some(WaitView { lock: 0, condvar: Some(condvar), .. }) => {
                write!(f, ", notifies condition variable {condvar}")
            }
            Some(WaitView { lock, condvar: Some(condvar), notified: false, state, .. }) => {
                write!(f, ", waits for condition variable {condvar} with lock {lock} ({state})")
            }
            Some(wait) if !wait.queued => {
                write!(f, ", busy with lock {} ({})", wait.lock, wait.state)
            }
            Some(wait) if wait.behind == 0 => {
                write!(f, ", first in the queue of lock {} ({})", wait.lock, wait.state)
            }
            Some(wait) => write!(
                f,
                ", in the queue of lock {} behind row {} ({})",
                wait.lock, wait.behind, wait.state
            ),
        }
    }
}

impl fmt::Display for LockView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lock {}: ", self.offset)?;
        match self.owner {
            None => f.write_str("free")?,
            Some(owner) => write!(
                f,
                "owner {owner} ({}{})",
                if self.owner_alive { "alive" } else { "dead" },
                if self.inherited { ", inherited" } else { "" },
            )?,
        }
        if self.guard != 0 {
            write!(f, ", queue edited by row {}", self.guard)?;
        }
        write!(f, ", queue {:?}", self.queue)?;
        match self.broken {
            Some(broken) => write!(f, ", but the queue {broken}"),
            None => Ok(()),
        }
    }
}
