//! Who waits for whom in a circle. Reads only: no lock, no row, no system call.
//!
//! # What is looked for
//!
//! A thread that sleeps in a wait (`asleep` in its row) points to the living owner of
//! the lock that it waits for, if that thread sleeps in a wait, too; a wait that may end
//! by itself does not count. So each points to one other at most, and circles are
//! found by following. One thread may have several rows: one in each segment, several
//! in one that it has mapped more than once, and those on lease, in which it waits
//! without sleeping, and owns what it waited for. So a circle may be of one thread: it
//! was handed a lock in one row while it sleeps for that in another. What says that two
//! rows are one thread's is the identity in them, and that both are alive.
//!
//! # Why what is found is a deadlock
//!
//! First every row is looked at, then the owners of the locks, then each row of a
//! circle once more. In a row, `asleep` is looked at before and after all else, and in
//! the second look must be what it was in the first. A thread stores the time there
//! when it falls asleep in a wait, and 0 when the wait is over, before it does anything
//! else to a lock. If it sleeps in the queue of a condition variable, and so for no
//! lock, whoever moves it to that of the lock stores the time there anew before it is
//! in that one: meanwhile it can neither end its wait nor be handed the lock. No time
//! comes twice. Each access is an acquire or a release, so:
//!
//! * What was read between two equal looks at `asleep` is of that very wait: of the next
//!   one it could have been seen only if the 0 in between had been.
//! * Who is found to own a lock, and was found asleep before and after that, in a wait
//!   for another one, owns it all through that wait. It acquired it before: had it done
//!   so after the wait, who sees it own the lock would see the 0, too, also if it was
//!   handed the lock, for by then it had queued. And it has not released it since: who
//!   sees it asleep sees what it had released before, and in a wait it releases nothing,
//!   but for the lock to which it will return, and that before it falls asleep.
//!
//! So of a circle that passes, each holds a lock for as long as its wait lasts, and the
//! one before it waits for that. None of these waits can have ended before the next
//! one's had, and so none ends, unless somebody is killed or gives up. That the
//! looks are not all at one moment does not matter.
//!
//! # Who gives up
//!
//! Of those in the circle who look, the one who fell asleep last. While the circle
//! stands nothing that this depends on changes: `asleep` of those who look (whom
//! another one moves does not), what each waits for, and who they are. So all who look find the same one, whenever they do. When that one is
//! out of the queue there is no circle any more for the others to find, and before
//! that they find that it is not them. If it comes back to the same lock with the same
//! locks, that is another circle, and its turn again.

use super::word::{CHECKS, Code, ENDS_BY_ITSELF, LockWords, Stage, WaitState};
use crate::memory::layout::Life;
use crate::memory::map::Mapping;
use crate::memory::registry;
use crate::participant::attach::Attachment;
use crate::participant::id::Id;
use crate::participant::life::{Fate, died};
use crate::participant::table::{Identity, Row, Table};
use crate::sys::atomic::Ordering::{Acquire, Relaxed};
use crate::sys::clock::Deadline;
use crate::sys::fault::{Fault, active};
use crate::sys::robust_list::TID_MASK;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A segment as who looks for circles sees it.
pub(crate) trait View {
    /// How many rows have been used.
    fn rows(&self) -> u32;
    /// What the thread of row `index` sleeps for, if it does.
    fn wait(&self, index: u32) -> Option<Wait>;
    /// The owner of the lock at `offset`, dead or alive; `None` if no lock can be
    /// there.
    fn owner(&self, offset: u64) -> Option<Id>;
    /// The life word of `id`, if that is alive.
    fn life(&self, id: Id) -> Option<u32>;
    /// Who `id` is.
    fn identity(&self, id: Id) -> Option<Identity>;
    /// What the lock at `offset` is called.
    fn name(&self, offset: u64) -> Option<String>;
    /// The path of the segment.
    fn path(&self) -> Option<&Path>;
}

/// A wait in which a thread sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    id: Id,
    lock: u64,
    asleep: u64,
    terms: u32,
    /// Which wait of the row, whatever its code.
    round: WaitState,
}

impl Wait {
    /// What the thread of row `index` sleeps for, if it does. The three rows are one,
    /// or what was read of it one after the other, `life` behind the first.
    pub(crate) fn of(index: u32, first: &Row, life: &Life, row: &Row, last: &Row) -> Option<Self> {
        let asleep = first.asleep.load(Acquire);
        if asleep == 0 || died(life.word.load(Acquire)) {
            return None;
        }
        let id = Id::new(index, life.generation.load(Acquire));
        let state = WaitState::from_bits(row.state.load(Acquire));
        let wait = Self {
            id,
            lock: row.lock.load(Acquire),
            asleep,
            terms: row.terms.load(Acquire),
            round: state.with(Code::Waiting),
        };
        let waits = matches!(state.code(), Some(Code::Waiting | Code::Parked | Code::Nudged))
            && wait.lock != 0
            && row.waiting_as.load(Acquire) == id.bits();
        // In the queue of a condition variable nobody waits for a lock.
        let notified = row.condvar.load(Acquire) == 0 || Stage::of(row) != Stage::Queued;
        let ends = wait.terms & ENDS_BY_ITSELF != 0 && !active(Fault::TimedCounts);
        (waits && notified && !ends && last.asleep.load(Acquire) == asleep).then_some(wait)
    }
}

impl View for Mapping {
    fn rows(&self) -> u32 {
        Mapping::rows(self)
    }

    fn wait(&self, index: u32) -> Option<Wait> {
        let row = Table::new(self).row(index)?;
        Wait::of(index, row, Mapping::life(self, index), row, row)
    }

    fn owner(&self, offset: u64) -> Option<Id> {
        Some(Id::from_bits(LockWords::named(self, offset)?.owner.load(Acquire)).plain())
    }

    fn life(&self, id: Id) -> Option<u32> {
        match Table::new(self).fate(id) {
            Fate::Alive(life) => Some(life),
            Fate::Dead | Fate::NoSuchRow => None,
        }
    }

    fn identity(&self, id: Id) -> Option<Identity> {
        Table::new(self).identity(id)
    }

    fn name(&self, offset: u64) -> Option<String> {
        self.names().of(offset)
    }

    fn path(&self) -> Option<&Path> {
        Mapping::path(self)
    }
}

/// A thread of a circle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: Id,
    /// All zero if it is not known.
    pub(crate) identity: Identity,
    pub(crate) path: Option<PathBuf>,
    pub(crate) lock: u64,
    pub(crate) name: Option<String>,
    pub(crate) waited: Duration,
    asleep: u64,
    checks: bool,
}

/// Threads of which each waits for the next one's lock, and the last for the first
/// one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cycle(pub(crate) Vec<Member>);

/// What tells a thread from all others of the machine, if it is all there.
fn thread_of(identity: &Identity) -> Option<(u64, u32, u64, u32)> {
    let Identity { pid, tid, pid_namespace, start_time, .. } = *identity;
    let complete = pid != 0 && tid != 0 && pid_namespace != 0 && start_time != 0;
    complete.then_some((pid_namespace, pid, start_time, tid))
}

/// All circles in the segments, each once.
pub(crate) fn cycles(views: &[&dyn View]) -> Vec<Cycle> {
    let mut waits = Vec::new();
    for (at, view) in views.iter().enumerate() {
        waits.extend((1..=view.rows()).filter_map(|row| Some((at, view.wait(row)?))));
    }
    let mut by_id = BTreeMap::new();
    let mut by_thread = BTreeMap::new();
    for (number, (view, wait)) in waits.iter().enumerate() {
        by_id.insert((*view, wait.id.bits()), number);
        let identity = views[*view].identity(wait.id);
        if let Some(thread) = identity.as_ref().and_then(thread_of) {
            by_thread.entry(thread).or_insert(number);
        }
    }
    // For which wait each one waits to end.
    let next = |(view, wait): &(usize, Wait)| {
        let owner = views[*view].owner(wait.lock).filter(|owner| *owner != wait.id)?;
        if let Some(number) = by_id.get(&(*view, owner.bits())) {
            return Some(*number);
        }
        // Its thread may sleep in another row. A thread that has left its locks to its
        // process has another life word, and its TID may be another thread's.
        let life = views[*view].life(owner)?;
        let identity = views[*view].identity(owner)?;
        let same = life & TID_MASK == identity.tid;
        thread_of(&identity).filter(|_| same).and_then(|thread| by_thread.get(&thread)).copied()
    };
    let next: Vec<Option<usize>> = waits.iter().map(next).collect();
    let stands = |number: &usize| {
        let (view, wait) = &waits[*number];
        views[*view].wait(wait.id.index()) == Some(*wait) || active(Fault::NoSecondLook)
    };
    let now = Deadline::now().as_nanos();
    let member = |number: usize| {
        let (view, wait) = waits[number];
        let view = views[view];
        Member {
            id: wait.id,
            identity: view.identity(wait.id).unwrap_or_default(),
            path: view.path().map(Path::to_path_buf),
            lock: wait.lock,
            name: view.name(wait.lock),
            waited: Duration::from_nanos(now.saturating_sub(wait.asleep)),
            asleep: wait.asleep,
            checks: wait.terms & CHECKS != 0,
        }
    };
    // A process may have mapped a segment twice, and then sees everything twice.
    let mut known = BTreeSet::new();
    circles(&next)
        .into_iter()
        .filter(|circle| circle.iter().all(stands))
        .map(|circle| Cycle(circle.into_iter().map(member).collect()))
        .filter(|cycle| known.insert(cycle.key()))
        .collect()
}

/// The circles in which one comes by going from each number to the next.
fn circles(next: &[Option<usize>]) -> Vec<Vec<usize>> {
    const NOT_YET: usize = usize::MAX;
    // On which walk each was come by.
    let mut walks = vec![NOT_YET; next.len()];
    let mut circles = Vec::new();
    for walk in 0..next.len() {
        let mut at = Some(walk);
        while let Some(number) = at.filter(|number| walks[*number] == NOT_YET) {
            walks[number] = walk;
            at = next[number];
        }
        // It ended where nothing follows, on an older walk, or on itself.
        if let Some(first) = at.filter(|number| walks[*number] == walk) {
            let step = |number: &usize| next[*number].filter(|number| *number != first);
            circles.push(std::iter::successors(Some(first), step).collect());
        }
    }
    circles
}

impl Cycle {
    /// What tells it from other circles.
    fn key(&self) -> Vec<(u64, u64, u64)> {
        let wait = |member: &Member| (member.asleep, member.id.bits(), member.lock);
        let mut key: Vec<_> = self.0.iter().map(wait).collect();
        key.sort_unstable();
        key
    }

    /// Who of those who look gives up.
    fn victim(&self) -> Option<&Member> {
        let who = |member: &&Member| (member.asleep, thread_of(&member.identity), member.id.bits());
        self.0.iter().filter(|member| member.checks).max_by_key(who)
    }
}

/// The circle in which `me` waits, if it is the one to give up.
#[cold]
pub(super) fn as_victim(me: &Attachment) -> Option<Box<Cycle>> {
    if !me.mapping().is_shared() {
        return None;
    }
    let row = me.row();
    // Relaxed: the thread's own.
    let (lock, asleep) = (row.lock.load(Relaxed), row.asleep.load(Relaxed));
    let identity = me.identity(me.id());
    let is_me = |member: &Member| {
        let own = (member.id, member.lock, member.asleep) == (me.id(), lock, asleep);
        own && member.identity == identity
    };
    let mappings = registry::shared();
    let views: Vec<&dyn View> = mappings.iter().map(|mapping| &**mapping as &dyn View).collect();
    let mut found = cycles(&views).into_iter();
    let chosen = |cycle: &Cycle| match cycle.victim() {
        Some(_) if active(Fault::AllVictims) => cycle.0.iter().any(is_me),
        victim => victim.is_some_and(is_me),
    };
    found.find(chosen).map(Box::new)
}

#[cfg(all(test, not(heirlock_loom)))]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    /// Row n waits for lock n, which row n + 1 owns, and the last one's the first.
    struct Ring {
        rows: u32,
        /// Which row has left its wait at the second look.
        leaves: Option<u32>,
        looks: RefCell<BTreeMap<u32, u32>>,
        owners: Cell<u32>,
    }

    impl Ring {
        fn of(rows: u32, leaves: Option<u32>) -> Self {
            Self { rows, leaves, looks: RefCell::default(), owners: Cell::new(0) }
        }
    }

    impl View for Ring {
        fn rows(&self) -> u32 {
            self.rows
        }

        fn wait(&self, index: u32) -> Option<Wait> {
            let mut looks = self.looks.borrow_mut();
            let looks = looks.entry(index).or_insert(0);
            *looks += 1;
            let again = self.leaves == Some(index) && *looks > 1;
            Some(Wait {
                id: Id::new(index, 1),
                lock: index.into(),
                asleep: u64::from(index) + if again { 100 } else { 0 },
                terms: if index == 2 { 0 } else { CHECKS },
                round: WaitState::from_bits(0),
            })
        }

        fn owner(&self, offset: u64) -> Option<Id> {
            // Only when everybody has been looked at once, and nobody twice.
            assert!((1..=self.rows).all(|row| self.looks.borrow()[&row] == 1));
            self.owners.set(self.owners.get() + 1);
            Some(Id::new(offset as u32 % self.rows + 1, 1))
        }

        fn life(&self, _: Id) -> Option<u32> {
            None
        }

        fn identity(&self, _: Id) -> Option<Identity> {
            None
        }

        fn name(&self, _: u64) -> Option<String> {
            None
        }

        fn path(&self) -> Option<&Path> {
            None
        }
    }

    #[test]
    fn a_circle_is_looked_at_twice_and_its_owners_in_between() {
        for rows in 2..5 {
            let ring = Ring::of(rows, None);
            let found = cycles(&[&ring]);
            assert_eq!(found.len(), 1);
            let members: Vec<u32> = found[0].0.iter().map(|member| member.id.index()).collect();
            assert_eq!(members, (1..=rows).collect::<Vec<_>>());
            assert!(ring.looks.borrow().values().all(|looks| *looks == 2));
            assert_eq!(ring.owners.get(), rows);
            // The last one that fell asleep, of those who look.
            let victim = if rows == 2 { 1 } else { rows };
            assert_eq!(found[0].victim().map(|member| member.id.index()), Some(victim));
        }
    }

    #[test]
    fn a_circle_that_somebody_leaves_between_the_looks_is_none() {
        for leaves in 1..=3 {
            assert_eq!(cycles(&[&Ring::of(3, Some(leaves))]), []);
        }
    }

    #[test]
    fn what_leads_into_a_circle_is_no_part_of_it_and_no_circle_is_found_twice() {
        let mut found = circles(&[Some(1), Some(2), Some(1), None, Some(3), Some(0), Some(6)]);
        found.iter_mut().for_each(|circle| circle.sort_unstable());
        assert_eq!(found, [vec![1, 2], vec![6]]);
        assert_eq!(circles(&[]), Vec::<Vec<usize>>::new());
    }
}
