//! Joining a segment, leaving it, and re-using the row of a dead thread.
#![allow(unsafe_code)]

use super::id::{Id, next_generation};
use super::life::{bury_if_gone, witness_byte};
use super::table::{Counters, Identity, Row, Table};
use crate::memory::error::Corrupted;
use crate::memory::map::Mapping;
use crate::memory::registry;
use crate::sys::atomic::{AtomicU32, Ordering};
use crate::sys::fault::{Fault, active};
use crate::sys::robust_list::{DIED, Node, OWNER_DIED, RobustList, TID_MASK, WAITERS};
use crate::sys::{membarrier, ofd_lock, process, shm};
use core::cell::Cell;
use core::ptr::NonNull;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Why a thread could not join a segment.
#[derive(Debug)]
#[non_exhaustive]
pub enum AttachError {
    /// Every row belongs to a living thread.
    Full {
        /// How many rows there are.
        capacity: u32,
    },
    /// The operating system refused a step; `ENOSPC` means that the file system
    /// of the segment (`/dev/shm`, say) is full.
    Io {
        /// The step, for example `"reserve a page"`.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The segment holds what no participant can have written.
    Corrupted {
        /// What it was that could not be.
        what: &'static str,
    },
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { capacity } => write!(
                f,
                "all {capacity} rows of the segment belong to living threads; \
                 create it with a larger Options::capacity"
            ),
            Self::Io { step, source } => write!(f, "cannot {step} to join the segment: {source}"),
            Self::Corrupted { what } => Corrupted(what).fmt(f),
        }
    }
}

impl std::error::Error for AttachError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<Corrupted> for AttachError {
    fn from(corrupted: Corrupted) -> Self {
        Self::Corrupted { what: corrupted.0 }
    }
}

fn io_error(step: &'static str) -> impl FnOnce(io::Error) -> AttachError {
    move |source| AttachError::Io { step, source }
}

/// Takes the dead thread, whose row the attachment now has, out of the queues in
/// which it may be: the row says which, and then no longer. Handed down from the
/// floor above.
pub(crate) type Reclaim = fn(&Attachment) -> Result<(), Corrupted>;

/// The calling thread's place on its robust list.
#[derive(Debug)]
struct Enlisted {
    list: RobustList,
    node: NonNull<Node>,
    /// Where the node lives; in private memory it lives in the mapping.
    _pair: Option<shm::PagePair>,
}

/// The life word of a thread that ended and whose locks its process keeps: the
/// TID is one that no thread can have (`PID_MAX_LIMIT` is 2^22).
const OF_PROCESS: u32 = WAITERS | TID_MASK;

/// A lock that the thread holds and took over from a dead owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inheritance {
    /// The address of the lock.
    pub(crate) lock: usize,
    pub(crate) dead: Id,
    /// Who that was; all zero if its row has been used too often since.
    pub(crate) identity: Identity,
    /// When it was noticed.
    pub(crate) noticed: SystemTime,
    /// Whether the heir was unwinding already.
    pub(crate) unwinding: bool,
}

/// Whose row an attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// A thread's: the row in which it waits asleep.
    Thread,
    /// A thread's, too: one of those in which it waits otherwise, each for one lock.
    Lease,
    /// The process's keeper's, for whichever thread has it at the moment.
    Process,
    /// Nobody's: it is in no table, and belongs to a guard without a lock.
    Nowhere,
}

/// A row in a segment, and whatever else belongs to who uses it. It stays on its
/// thread, in a box, unless its home is the process.
#[derive(Debug)]
pub(crate) struct Attachment {
    home: Cell<Home>,
    /// Which place it has among its thread's, or the process's, leases.
    pub(super) place: Cell<u32>,
    /// Nobody, in a child into which fork copied it.
    id: Cell<Id>,
    /// The id as an owner's: it says whether this thread releases with a fence.
    owner_as: Cell<Id>,
    /// Whether it may release without.
    hasty: Cell<bool>,
    /// How many locks the thread holds here.
    held: Cell<u32>,
    tid: u32,
    /// A mutex, since guards can be asked by several threads at once.
    inherited: Mutex<Vec<Inheritance>>,
    /// Set when the thread gave away what it holds to its process.
    outlives_thread: Cell<bool>,
    /// Set when the thread met corruption half-way through an operation.
    broken: Cell<bool>,
    enlisted: Option<Enlisted>,
    mapping: Arc<Mapping>,
}

impl Attachment {
    #[inline(always)]
    pub(crate) fn id(&self) -> Id {
        self.id.get()
    }

    pub(crate) fn home(&self) -> Home {
        self.home.get()
    }

    /// One without a row, which holds nothing and never will: whoever asks takes it for
    /// another process's.
    pub(super) fn nowhere(mapping: &Arc<Mapping>) -> Box<Self> {
        let attachment = Self {
            home: Cell::new(Home::Nowhere),
            place: Cell::new(0),
            id: Cell::new(Id::new(0, 1)),
            owner_as: Cell::new(Id::new(0, 1)),
            hasty: Cell::new(false),
            held: Cell::new(0),
            tid: 0,
            inherited: Mutex::new(Vec::new()),
            outlives_thread: Cell::new(false),
            broken: Cell::new(false),
            enlisted: None,
            mapping: Arc::clone(mapping),
        };
        Box::new(attachment)
    }

    /// Makes it one of the leases, which all release with a fence: so whoever drops a
    /// guard of theirs comes by where they are given back.
    pub(super) fn let_out(&self, home: Home, place: u32) {
        self.home.set(home);
        self.place.set(place);
        self.owner_as.set(self.id().as_fencing());
        self.hasty.set(false);
    }

    /// The id that this thread has as the owner of a lock that nobody waited
    /// for.
    #[inline(always)]
    pub(crate) fn owner_as(&self) -> Id {
        self.owner_as.get()
    }

    /// Whether this thread may release such a lock without a fence.
    #[inline(always)]
    pub(crate) fn is_hasty(&self) -> bool {
        self.hasty.get()
    }

    /// Takes note if somebody has joined who cannot fence the others.
    pub(crate) fn look_who_fences(&self) {
        // Relaxed: whoever reads it too early is found out by his id.
        if self.mapping.header().fences.load(Ordering::Relaxed) != 0 {
            self.owner_as.set(self.id().as_fencing());
            self.hasty.set(false);
        }
    }

    /// Has all others fence from their next look on: this process cannot.
    pub(crate) fn demand_fences(&self) {
        self.mapping.header().fences.store(1, Ordering::Relaxed);
        self.look_who_fences();
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    pub(crate) fn table(&self) -> Table<'_> {
        Table::new(&self.mapping)
    }

    pub(crate) fn counters(&self) -> &Counters {
        self.table().counters(self.id().index()).expect("the own row was checked at attach")
    }

    pub(crate) fn row(&self) -> &Row {
        self.table().row(self.id().index()).expect("the own row was checked at attach")
    }

    /// Whether it belongs to this process, not to the one that it was forked
    /// from.
    #[inline(always)]
    pub(crate) fn is_of_this_process(&self) -> bool {
        !self.id().is_nobody()
    }

    /// In a forked child: this is the parent's. Async-signal-safe.
    pub(super) fn disown(&self) {
        // Nobody, but not the 0 of a free lock either: that would be taken for
        // a lock that this participant holds.
        self.id.set(Id::new(0, 1));
        self.owner_as.set(Id::new(0, 1));
        self.hasty.set(false);
    }

    /// Notes that the lock at the address `lock` was taken over from `dead`.
    pub(crate) fn inherit(&self, lock: usize, dead: Id) {
        // Of a lock that was forgotten, and whose memory is another lock's now.
        self.disinherit(lock);
        self.inheritances().push(Inheritance {
            lock,
            dead,
            identity: self.identity(dead),
            noticed: SystemTime::now(),
            unwinding: std::thread::panicking(),
        });
    }

    /// From whom the lock at the address `lock`, which is held, was taken over.
    pub(crate) fn inheritance(&self, lock: usize) -> Option<Inheritance> {
        self.inheritances().iter().find(|one| one.lock == lock).cloned()
    }

    fn inheritances(&self) -> MutexGuard<'_, Vec<Inheritance>> {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, when the lock is released.
    pub(crate) fn disinherit(&self, lock: usize) -> Option<Inheritance> {
        let mut all = self.inheritances();
        let at = all.iter().position(|one| one.lock == lock)?;
        Some(all.swap_remove(at))
    }

    #[inline(always)]
    pub(crate) fn count_acquired(&self) {
        self.held.set(self.held.get() + 1);
    }

    #[inline(always)]
    pub(crate) fn count_released(&self) {
        self.held.set(self.held.get() - 1);
    }

    pub(crate) fn holds_nothing(&self) -> bool {
        self.held.get() == 0
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    pub(crate) fn mark_broken(&self) {
        self.broken.set(true);
    }

    /// What the thread holds, it holds for its process: the end of the thread
    /// is not its death.
    pub(crate) fn outlive_thread(&self) {
        if !self.outlives_thread.replace(true) {
            // Relaxed: who finds the thread dead finds what it did before.
            let life = self.mapping.life(self.id().index());
            life.of_process.store(1, Ordering::Relaxed);
        }
    }

    /// Whether a life word belongs to this thread, or to one that has the same
    /// TID in another PID namespace.
    pub(crate) fn looks_like_own_life(&self, life: u32) -> bool {
        life & TID_MASK == self.tid
    }

    /// Has the kernel wake another sleeper on the life word of row `index` if
    /// this thread is killed after it consumed the one wake that a death
    /// gives; `None` ends that.
    ///
    /// `life` is the word's value as watched. If it holds this very TID (in
    /// another PID namespace) nothing is published: the kernel would take that
    /// thread for us and mark it dead.
    pub(crate) fn publish_watch(&self, watched: Option<(&AtomicU32, u32)>) {
        // Of the process's rows the list is the keeper's, and belongs to that.
        let own = self.home.get() != Home::Process;
        let Some(enlisted) = self.enlisted.as_ref().filter(|_| own) else { return };
        match watched {
            Some((_, life)) if self.looks_like_own_life(life) => {}
            Some((word, _)) => enlisted.list.set_pending(Some(word)),
            None => enlisted.list.set_pending(None),
        }
    }

    /// Who the participant `id` was; all zero where its row has been used too
    /// often since.
    pub(crate) fn identity(&self, id: Id) -> Identity {
        self.table().identity(id).unwrap_or_default()
    }

    fn life(&self) -> &AtomicU32 {
        self.mapping.life_word(self.id().index())
    }

    /// Leaves the segment. The thread holds no lock in it and is not inside
    /// any operation on one.
    pub(crate) fn detach(self) {
        debug_assert!(self.holds_nothing() && self.is_of_this_process());
        let index = self.id().index();
        let life = self.life();
        let _registry = registry::lock();
        // At each point in between the word is alive and on the list, or
        // alive and pending, or 0: a kill never leaves it alive for good.
        if let Some(Enlisted { list, node, .. }) = &self.enlisted {
            list.set_pending(Some(life));
            // SAFETY: `attach` linked it, on this thread, once.
            unsafe { list.unlink(*node) };
        }
        // Release: whoever re-uses the row sees all that was done under it.
        life.store(0, Ordering::Release);
        if let Some(Enlisted { list, .. }) = &self.enlisted {
            list.set_pending(None);
        }
        release_claim(&self.mapping, index);
    }

    /// Whether the thread may leave as if it went on.
    pub(super) fn may_detach(&self) -> bool {
        self.holds_nothing() && !self.is_broken()
    }

    /// Leaves at the end of the thread, which may hold locks, or have a wait `under_way`:
    /// then the row stays until the kernel has marked it, if it is to be `seen` by that,
    /// and those who wait inherit. No guard of the thread will be dropped any more.
    pub(super) fn leave_at_thread_end(self: Box<Self>, under_way: bool, seen: bool) {
        if self.may_detach() && !under_way {
            return self.detach();
        }
        // The node must stay mapped until the kernel has walked the list, and whoever has
        // forgotten a guard may find it again.
        let this = Box::leak(self);
        if this.outlives_thread.get() {
            // The life word stays alive, but another thread may get the TID;
            // the OFD lock, which goes with the process, is the one witness
            // left.
            if let Some(Enlisted { list, node, .. }) = &this.enlisted {
                // SAFETY: `attach` linked it, on this thread, once.
                unsafe { list.unlink(*node) };
            }
            // Release: hands on what the thread did, as its end would have.
            this.life().store(OF_PROCESS, Ordering::Release);
            this.table().relay(this.id().index());
        } else if !seen || this.enlisted.is_none() {
            this.mark_dead();
        }
    }

    /// Says that the thread is dead, as no kernel will.
    pub(crate) fn mark_dead(&self) {
        // From before the word says so: or else who re-uses the row would lose the claim.
        let _registry = registry::lock();
        if let Some(Enlisted { list, node, .. }) = &self.enlisted {
            // As in `detach`: a kill in between leaves it to the kernel.
            list.set_pending(Some(self.life()));
            // SAFETY: `attach` linked it, on this thread, once.
            unsafe { list.unlink(*node) };
        }
        // Release: hands on what the thread did.
        self.life().store(DIED, Ordering::Release);
        self.table().relay(self.id().index());
        if let Some(Enlisted { list, .. }) = &self.enlisted {
            list.set_pending(None);
        }
        release_claim(&self.mapping, self.id().index());
    }
}

/// A claim to a row: its OFD lock in a file, the registry's lock in memory of
/// this process alone. Given back if the attach fails.
struct Claim<'m> {
    mapping: &'m Mapping,
    index: u32,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        release_claim(self.mapping, self.index);
    }
}

fn release_claim(mapping: &Mapping, index: u32) {
    if mapping.is_shared() {
        mapping.note_claim(index, false);
        if let Some(fd) = mapping.witness() {
            ofd_lock::unlock(fd, witness_byte(index));
        }
    }
}

/// How many used rows a newcomer looks at before it takes one that was never used,
/// so that joining takes no longer where there are many. Of the rows that are used
/// few are free, then, in the long run.
const GLANCE: u32 = 16;

/// Finds a row that nobody uses and claims it.
fn claim(mapping: &Mapping, tid: u32) -> Result<Claim<'_>, AttachError> {
    let table = Table::new(mapping);
    let used = mapping.rows();
    // From where the last newcomer stopped. Relaxed: it is as good as any other.
    let next = &mapping.header().next_row;
    let start = if used > GLANCE { next.load(Ordering::Relaxed) % used } else { 0 };
    let in_use = (0..used).map(|step| (start + step) % used + 1);
    let claim_again = |rows: &mut dyn Iterator<Item = u32>| {
        for index in rows {
            next.store(index, Ordering::Relaxed);
            let life = mapping.life_word(index).load(Ordering::Acquire);
            let differs = life == 0 || last_tid(table, index) != Some(tid);
            let free = is_free(table, index, life) && differs && may_reuse(table, index, life);
            if free && try_claim(mapping, index)? {
                return Ok(Some(Claim { mapping, index }));
            }
        }
        Ok::<_, AttachError>(None)
    };
    if let Some(claim) = claim_again(&mut in_use.clone().take(GLANCE as usize))? {
        return Ok(claim);
    }
    for index in used + 1..=table.capacity() {
        if try_claim(mapping, index)? {
            let claim = Claim { mapping, index };
            reserve_life_pages(mapping, used, index)?;
            return Ok(claim);
        }
    }
    if let Some(claim) = claim_again(&mut in_use.skip(GLANCE as usize))? {
        return Ok(claim);
    }
    // Only now those whose last user had the same TID (the first process of a
    // container always has): a sleeper that missed the death sees the life word
    // as it was, and notices on its heartbeat. Deaths that the kernel did not
    // mark show here, too.
    for index in 1..=used {
        let life = mapping.life_word(index).load(Ordering::Acquire);
        let free = is_free(table, index, life) || bury_if_gone(mapping, index, life);
        if free && may_reuse(table, index, DIED) && try_claim(mapping, index)? {
            return Ok(Claim { mapping, index });
        }
    }
    Err(AttachError::Full { capacity: table.capacity() })
}

fn is_free(table: Table, index: u32, life: u32) -> bool {
    life == 0 || life & OWNER_DIED != 0 && !table.is_kept(index, life)
}

/// The TID of the last user of a row.
fn last_tid(table: Table, index: u32) -> Option<u32> {
    let last = Id::new(index, table.generation(index)?.load(Ordering::Acquire));
    table.identity(last).map(|identity| identity.tid)
}

/// Whether a row that is not in use may be used again.
fn may_reuse(table: Table, index: u32, life: u32) -> bool {
    let Some(row) = table.row(index) else { return false };
    if life == 0 {
        return true;
    }
    // In private memory `lock` is an address, perhaps of a stack that is gone
    // (the other threads of a process that forked). Such a row stays dead, and
    // linked, until a waiter for the lock splices it.
    table.is_shared() || !row.is_busy()
}

fn try_claim(mapping: &Mapping, index: u32) -> Result<bool, AttachError> {
    // A row that this process has claimed already is one whose thread died
    // without leaving: the claim passes on.
    if !mapping.is_shared() || mapping.claimed_here(index) {
        return Ok(true);
    }
    let fd = mapping.open_witness().map_err(io_error("open a second descriptor"))?;
    let claimed = ofd_lock::try_lock(fd, witness_byte(index)).map_err(io_error("lock a row"))?;
    if claimed {
        mapping.note_claim(index, true);
    }
    Ok(claimed)
}

/// Reserves the page of row `index`, which the caller has claimed, and of the
/// rows from `used` on that it passed over: others had claimed them, but may
/// have been killed before they reserved anything.
fn reserve_life_pages(mapping: &Mapping, used: u32, index: u32) -> Result<(), AttachError> {
    let layout = mapping.layout();
    if let Some(fd) = mapping.file() {
        let page = |index| layout.life_page(index) as u64;
        let (passed_over, own) = (page(used + 1), page(index));
        shm::reserve(fd, own, layout.page_size as u64).map_err(io_error("reserve a page"))?;
        if passed_over != own {
            shm::reserve_in_use(fd, passed_over, own - passed_over)
                .map_err(io_error("reserve a page"))?;
        }
    }
    // Release pairs with the Acquire in `Mapping::rows`: a row below the mark
    // has its page.
    mapping.header().rows.fetch_max(index, Ordering::Release);
    Ok(())
}

fn enlist(mapping: &Mapping, index: u32) -> Result<Option<Enlisted>, AttachError> {
    let Some(list) = RobustList::of_this_thread() else { return Ok(None) };
    let layout = mapping.layout();
    let pair = match mapping.file() {
        Some(fd) => Some(
            shm::PagePair::map(fd, layout.life_page(index) as u64, layout.page_size)
                .map_err(io_error("map a page"))?,
        ),
        None => None,
    };
    let node = match &pair {
        Some(pair) => pair.private(),
        None => {
            let end = layout.life_page(index) + layout.page_size;
            // SAFETY: private memory has one page more than the layout, so the
            // byte behind the last life page is inside.
            unsafe { NonNull::new_unchecked(mapping.base().add(end)) }
        }
    };
    Ok(Some(Enlisted { list, node: node.cast(), _pair: pair }))
}

/// Locked by who holds the registry's lock, so that `fork` never copies it
/// locked.
static PROCESS: Mutex<Option<Identity>> = Mutex::new(None);

/// What stays the same for all threads of a process. The caller holds the
/// registry's lock.
fn process_identity() -> Identity {
    let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let read = || Identity {
        pid: process::pid(),
        pid_namespace: process::pid_namespace(),
        start_time: process::start_time(),
        ..Identity::default()
    };
    process.get_or_insert_with(read).clone()
}

/// In a forked child, which is another process, even if it has its parent's
/// PID as the first one of a new namespace. Async-signal-safe.
pub(super) fn forget_process_identity() {
    if let Ok(mut process) = PROCESS.try_lock() {
        *process = None;
    }
}

/// Joins the segment as a new participant.
pub(crate) fn attach(
    mapping: &Arc<Mapping>,
    reclaim: Reclaim,
    of_process: bool,
) -> Result<Box<Attachment>, AttachError> {
    let tid = process::tid();
    let registry = registry::lock();
    let identity = Identity { tid, name: process::thread_name(), ..process_identity() };
    let claim = claim(mapping, tid)?;
    let index = claim.index;
    let table = Table::new(mapping);
    let row = table.row(index).ok_or(Corrupted("a claimed row is out of range"))?;
    let enlisted = enlist(mapping, index)?;

    // From here on nothing fails. The generation changes before the life word
    // comes alive: see `Table::fate`.
    let current = &mapping.life(index).generation;
    let last = current.load(Ordering::Relaxed);
    let same = last != 0 && active(Fault::SameGeneration);
    let generation = if same { last } else { next_generation(last) };
    current.store(generation, Ordering::Release);
    table.counters(index).ok_or(Corrupted("a claimed row is out of range"))?.reset();
    let id = Id::new(index, generation);
    // From here on who unparks the dead user finds another's token. Release: before
    // the life word is alive, so whoever finds this one alive finds its token.
    row.token.store(Row::without_token(id), Ordering::Release);
    table.write_identity(id, &identity);
    // The last user may have died in a wait; this one is in none. (Release, below.)
    row.asleep.store(0, Ordering::Relaxed);
    // (Release, below.)
    mapping.life(index).of_process.store(of_process.into(), Ordering::Relaxed);
    let life = mapping.life_word(index);
    if let Some(Enlisted { list, .. }) = &enlisted {
        list.set_pending(Some(life));
    }
    life.store(tid | WAITERS, Ordering::Release);
    if let Some(Enlisted { list, node, .. }) = &enlisted {
        // SAFETY: the node is writable memory of this process, 24 bytes behind
        // a mapping of the life word, new or of a dead thread, so on no list;
        // it stays mapped until `detach`, or for good.
        unsafe { list.link(*node) };
        list.set_pending(None);
    }
    std::mem::forget(claim);
    drop(registry);

    let attachment = Box::new(Attachment {
        home: Cell::new(Home::Thread),
        place: Cell::new(0),
        id: Cell::new(id),
        owner_as: Cell::new(id),
        hasty: Cell::new(true),
        held: Cell::new(0),
        tid,
        inherited: Mutex::new(Vec::new()),
        outlives_thread: Cell::new(false),
        broken: Cell::new(false),
        enlisted,
        mapping: Arc::clone(mapping),
    });
    if membarrier::register() {
        attachment.look_who_fences();
    } else {
        attachment.demand_fences();
    }
    // The thread to whom the kernel gave the death notice may have died too;
    // as the word has a TID again the kernel no longer passes it on.
    table.relay(index);
    if row.is_busy()
        && !active(Fault::NoReclaim)
        && let Err(corrupted) = reclaim(&attachment)
    {
        attachment.mark_broken();
        attachment.leave_at_thread_end(false, true);
        return Err(corrupted.into());
    }
    // Somebody may have begun to watch the row before it was unlinked.
    table.relay(index);
    Ok(attachment)
}
