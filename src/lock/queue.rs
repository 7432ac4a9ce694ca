//! The queue of a lock: a chain of `prev` indices from `tail` to the head.
//!
//! Every edit is one store or one CAS, so an editor that is killed between two
//! of them leaves a valid chain, and taking over its guard needs no repair.
//! Enqueuing needs no guard; everything else does.

use super::wait::{self, Watched};
use super::word::{Editor, LockWords, WaitState};
use crate::memory::error::Corrupted;
use crate::participant::attach::Attachment;
use crate::participant::id::Id;
use crate::participant::life::died;
use crate::participant::table::{Row, Table};
use crate::sys::atomic::Ordering::SeqCst;
use crate::sys::fault::{Fault, active};
use crate::sys::futex;

const BAD_ROW: Corrupted = Corrupted("a queue names a row that does not exist");
const CYCLE: Corrupted = Corrupted("a queue has more members than there are rows");

/// The right to edit a lock's queue; given back on drop.
pub(super) struct QueueGuard<'a> {
    words: &'a LockWords,
    me: &'a Attachment,
}

/// The waiter that is to be served next, as it was when it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Oldest {
    pub(super) index: u32,
    pub(super) id: Id,
    pub(super) state: WaitState,
}

/// Where a waiter stood when it was taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unlinked {
    /// It was not in the queue.
    NotThere,
    /// At the tail: nobody stood behind it.
    Last,
    /// In front of this row.
    Before(u32),
}

impl<'a> QueueGuard<'a> {
    /// Waits for the guard. Its holder is inside an edit, which is short,
    /// unless it was stopped or is dead; over a dead one's the guard is taken.
    pub(super) fn take(words: &'a LockWords, me: &'a Attachment) -> Result<Self, Corrupted> {
        let table = me.table();
        let mine = Editor::new(me.id());
        let mut spins = wait::spins();
        loop {
            let editor = Editor::from_bits(words.guard.load(SeqCst));
            let replace = |new: Editor| {
                words.guard.compare_exchange(editor.bits(), new.bits(), SeqCst, SeqCst).is_ok()
            };
            let row = editor.row();
            // Nobody edits, or a former user of this row was killed while it
            // did. Sleepers keep their wake: it passes on with the bit.
            if row == 0 || row == mine.row() {
                if replace(mine.in_place_of(editor)) {
                    break;
                }
                continue;
            }
            let life = table.life(row).ok_or(Corrupted("a queue guard names no row"))?;
            let life = life.load(SeqCst);
            if died(life) && !active(Fault::NoGuardTakeover) {
                // First: once the guard is taken nobody need look at the dead.
                table.relay(row);
                if replace(mine.in_place_of(editor)) {
                    break;
                }
                continue;
            }
            if spins > 0 {
                spins -= 1;
                core::hint::spin_loop();
                continue;
            }
            // Or else the row has a new user, who has yet to clear up: it takes
            // the guard, and gives it back.
            if editor.is_awaited() || replace(editor.awaited()) {
                let watched = Watched { index: row, life, hasty: false };
                let own = (&words.guard, editor.awaited().bits());
                // Neither a deadline nor a signal ends it: an edit is short.
                wait::sleep(me, own, watched, wait::Limits::default())?;
            }
        }
        Ok(Self { words, me })
    }

    fn table(&self) -> Table<'a> {
        self.me.table()
    }

    fn row(&self, index: u32) -> Result<&'a Row, Corrupted> {
        self.table().row(index).ok_or(BAD_ROW)
    }

    /// Calls `visit(row, successor)` from the tail to the head (successor 0 at
    /// the tail) until it says to stop. The members and their order stand
    /// still while the guard is held, but for new ones behind the tail.
    fn walk(
        &self,
        mut visit: impl FnMut(u32, u32) -> Result<bool, Corrupted>,
    ) -> Result<(), Corrupted> {
        let mut index = self.words.tail.load(SeqCst);
        let mut successor = 0;
        for _ in 0..=self.table().capacity() {
            if index == 0 {
                return Ok(());
            }
            let prev = self.row(index)?.prev.load(SeqCst);
            if !visit(index, successor)? {
                return Ok(());
            }
            successor = index;
            index = prev;
        }
        Err(CYCLE)
    }

    /// The first member from the tail on whose thread died.
    fn find_dead(&self) -> Result<Option<u32>, Corrupted> {
        let mut found = None;
        self.walk(|index, _| {
            let life = self.table().life(index).ok_or(BAD_ROW)?;
            if died(life.load(SeqCst)) {
                found = Some(index);
            }
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// Takes all dead waiters out and has their successors look.
    pub(super) fn splice_dead(&self) -> Result<(), Corrupted> {
        // Each round takes one out, and the dead do not come back.
        for _ in 0..=self.table().capacity() {
            let Some(dead) = self.find_dead()? else { return Ok(()) };
            if let Unlinked::Before(successor) = self.unlink(dead)? {
                wait::nudge(self.me, successor)?;
            }
        }
        Err(CYCLE)
    }

    /// The waiter at the head, dead or alive.
    pub(super) fn oldest(&self) -> Result<Option<Oldest>, Corrupted> {
        let mut head = 0;
        self.walk(|index, _| {
            head = index;
            Ok(!active(Fault::Lifo))
        })?;
        if head == 0 {
            return Ok(None);
        }
        let row = self.row(head)?;
        // Whom the lock goes to is the thread that asked. The row may have
        // another user by now, who did not.
        let state = WaitState::from_bits(row.state.load(SeqCst));
        let id = Id::from_bits(row.waiting_as.load(SeqCst));
        if id.index() != head {
            return Err(Corrupted("a waiter waits under an id that is not its own"));
        }
        Ok(Some(Oldest { index: head, id, state }))
    }

    /// Takes row `index` out of the queue, if it is there.
    pub(super) fn unlink(&self, index: u32) -> Result<Unlinked, Corrupted> {
        let tail = &self.words.tail;
        let prev = self.row(index)?.prev.load(SeqCst);
        if tail.load(SeqCst) == index && tail.compare_exchange(index, prev, SeqCst, SeqCst).is_ok()
        {
            return Ok(Unlinked::Last);
        }
        let mut found = Unlinked::NotThere;
        self.walk(|row, successor| {
            if row == index {
                found = Unlinked::Before(successor);
            }
            Ok(row != index)
        })?;
        if let Unlinked::Before(successor) = found {
            // Not the tail any more, and there is always somebody behind: only
            // who holds the guard could take that one out.
            self.row(successor)?.prev.store(prev, SeqCst);
        }
        Ok(found)
    }

    /// Row `index` saw its predecessor dead: steps over it, and over the dead
    /// in front of it.
    pub(super) fn splice_predecessor_of(&self, index: u32) -> Result<(), Corrupted> {
        let row = self.row(index)?;
        // Each round is over another one, unless they stand in a circle.
        for _ in 0..=self.table().capacity() {
            let prev = row.prev.load(SeqCst);
            if prev == 0 {
                return Ok(());
            }
            if prev == index {
                break;
            }
            let life = self.table().life(prev).ok_or(BAD_ROW)?;
            if !died(life.load(SeqCst)) {
                return Ok(());
            }
            row.prev.store(self.row(prev)?.prev.load(SeqCst), SeqCst);
        }
        Err(CYCLE)
    }
}

impl Drop for QueueGuard<'_> {
    fn drop(&mut self) {
        let last = Editor::from_bits(self.words.guard.swap(0, SeqCst));
        if last.is_awaited() && !active(Fault::NoGuardWake) {
            futex::wake_all(&self.words.guard);
        }
    }
}

/// Whether a living thread waits, as far as a look without the guard can tell:
/// what looks inconsistent counts as a queue in motion, so as a living one.
pub(super) fn has_living_waiter(words: &LockWords, table: Table) -> bool {
    let mut index = words.tail.load(SeqCst);
    for _ in 0..=table.capacity() {
        if index == 0 {
            return false;
        }
        let (Some(row), Some(life)) = (table.row(index), table.life(index)) else { return true };
        if !died(life.load(SeqCst)) {
            return true;
        }
        index = row.prev.load(SeqCst);
    }
    true
}

/// The waiters in order, the head first: who, and in which wait. Taken without
/// the guard, by two equal looks in a row; `None` if `tries` pairs differed.
pub(crate) fn snapshot(
    words: &LockWords,
    table: Table,
    tries: u32,
) -> Option<Vec<(Id, WaitState)>> {
    let look = || {
        let mut members = Vec::new();
        let mut index = words.tail.load(SeqCst);
        while index != 0 {
            let row = table.row(index)?;
            let state = WaitState::from_bits(row.state.load(SeqCst));
            members.push((Id::from_bits(row.waiting_as.load(SeqCst)), state));
            index = row.prev.load(SeqCst);
            if members.len() > table.capacity() as usize {
                return None;
            }
        }
        members.reverse();
        Some(members)
    };
    // Who waits under which id in which round: such a thing does not come
    // back, so two equal looks mean that the queue stood still between them.
    let members = |look: &Option<Vec<(Id, WaitState)>>| {
        look.as_ref().map(|members| {
            members
                .iter()
                .map(|(id, state)| (*id, state.with(super::word::Code::Waiting)))
                .collect::<Vec<_>>()
        })
    };
    let mut last = look();
    for _ in 0..tries {
        let next = look();
        if next.is_some() && members(&next) == members(&last) {
            return next;
        }
        last = next;
    }
    None
}
