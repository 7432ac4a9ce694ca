//! The queue of a lock: a chain of `prev` indices from `tail` to the head.
//!
//! Every edit is one store or one CAS, so an editor that is killed between two
//! of them leaves a valid chain, and taking over its guard needs no repair.
//! Enqueuing needs no guard; everything else does.
//!
//! The chain leads from the newest to the oldest, who is to be served. So that
//! nobody has to walk along it each time, whoever edits notes what it learns of
//! the other direction: in `head`, and in each row's `next`. Both are right or
//! 0, whenever an editor is killed: what an edit makes wrong it forgets before.
//! A walk notes all that it passes, so each waiter is passed about once.
//!
//! Notes belong to who holds the guard: taking it, also over a dead editor, orders
//! one editor's accesses behind the other's.

use super::spin;
use super::wait::{self, Watched};
use super::word::{Code, Editor, LockWords, Policy, Stage, WaitState};
use crate::memory::error::Corrupted;
use crate::participant::attach::Attachment;
use crate::participant::current::is_of_this_thread;
use crate::participant::id::Id;
use crate::participant::table::{Row, Table};
use crate::sys::atomic::Ordering::{Relaxed, SeqCst};
use crate::sys::clock::{self, Deadline};
use crate::sys::fault::{Fault, active};
use crate::sys::futex;

const BAD_ROW: Corrupted = Corrupted("a queue names a row that does not exist");
const CYCLE: Corrupted = Corrupted("a queue has more members than there are rows");

/// The right to edit a lock's queue; given back on drop.
pub(super) struct QueueGuard<'a> {
    words: &'a LockWords,
    me: &'a Attachment,
    /// What the word is without an editor.
    free: Editor,
    /// Whether the last editor was killed in the middle.
    inherited: bool,
}

/// The waiter that is to be served next, as it was when it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Oldest {
    pub(super) index: u32,
    pub(super) id: Id,
    pub(super) state: WaitState,
    since: u32,
}

/// For how many ticks a waiter may be passed by: a millisecond at most, less
/// what rounding hides.
const PATIENCE: u32 = 975;

/// Whether nobody may take the lock past a waiter that queued at `since` any
/// more.
fn too_long(since: u32) -> bool {
    clock::ticks().wrapping_sub(since) >= PATIENCE && !active(Fault::EndlessPatience)
}

impl Oldest {
    /// Whether nobody may take the lock past it any more.
    pub(super) fn has_waited_too_long(&self) -> bool {
        too_long(self.since)
    }
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
        let mut spun = false;
        let (free, inherited) = loop {
            let editor = Editor::from_bits(words.guard.load(SeqCst));
            let replace = |new: Editor| {
                words.guard.compare_exchange(editor.bits(), new.bits(), SeqCst, SeqCst).is_ok()
            };
            let row = editor.row();
            // Nobody edits, or a former user of this row was killed while it
            // did. Sleepers keep their wake: it passes on with the bit.
            if row == 0 || row == mine.row() {
                if replace(mine.in_place_of(editor)) {
                    break (editor.gone(), row != 0);
                }
                continue;
            }
            let life = table.life(row).ok_or(Corrupted("a queue guard names no row"))?;
            let life = life.load(SeqCst);
            if table.is_dead(row, life) && !active(Fault::NoGuardTakeover) {
                // First: once the guard is taken nobody need look at the dead.
                table.relay(row);
                if replace(mine.in_place_of(editor)) {
                    break (editor.gone(), true);
                }
                continue;
            }
            if !spun {
                spun = true;
                spin::spin(|| words.guard.load(SeqCst) != editor.bits());
                continue;
            }
            // Nor does this thread, in another row: so that is left over, too.
            if is_of_this_thread(me.mapping(), row) {
                if replace(mine.in_place_of(editor)) {
                    break (editor.gone(), true);
                }
                continue;
            }
            // Or else the row has a new user, who has yet to clear up: it takes
            // the guard, and gives it back.
            if editor.is_awaited() || replace(editor.awaited()) {
                let watched = Watched { index: row, life, hasty: false, lossy: false };
                let own = (&words.guard, editor.awaited().bits());
                // Neither a deadline nor a signal ends it: an edit is short.
                wait::sleep(me, Deadline::now(), own, Some(watched), wait::Limits::default())?;
            }
        };
        Ok(Self { words, me, free, inherited })
    }

    /// Whether the guard was taken over from a dead editor.
    pub(super) fn is_inherited(&self) -> bool {
        self.inherited
    }

    pub(super) fn policy(&self) -> Policy {
        self.free.policy()
    }

    fn table(&self) -> Table<'a> {
        self.me.table()
    }

    fn row(&self, index: u32) -> Result<&'a Row, Corrupted> {
        self.table().row(index).ok_or(BAD_ROW)
    }

    /// Walks from the tail to the head and notes who stands behind whom, until
    /// `found(waiter, who is in front of it)`: then that waiter. Else the head,
    /// which is noted too; `None` if nobody waits.
    ///
    /// The members and their order stand still while the guard is held, but for
    /// new ones behind the tail.
    fn walk(&self, found: impl Fn(u32, u32) -> bool) -> Result<Option<u32>, Corrupted> {
        let mut index = self.words.tail.load(SeqCst);
        for _ in 0..=self.table().capacity() {
            if index == 0 {
                return Ok(None);
            }
            let prev = self.row(index)?.prev.load(SeqCst);
            if prev == 0 {
                self.words.head.set(index as u16);
            } else {
                self.row(prev)?.next.set(index as u16);
            }
            if prev == 0 || found(index, prev) {
                return Ok(Some(index));
            }
            index = prev;
        }
        Err(CYCLE)
    }

    /// Forgets who is behind and in front of row `index`, which is about to
    /// leave, with `prev` in front of it. In this order: an editor that is
    /// killed may leave things unknown, but nothing wrong.
    fn forget(&self, index: u32, prev: u32) -> Result<(), Corrupted> {
        if u32::from(self.words.head.get()) == index {
            self.words.head.set(0);
        }
        let next = &self.row(index)?.next;
        // A store takes the line away from the waiter, who looks at it.
        if next.get() != 0 {
            next.set(0);
        }
        if prev != 0 {
            self.row(prev)?.next.set(0);
        }
        Ok(())
    }

    /// Takes row `index`, which is in the queue between `prev` and `successor`,
    /// out of it.
    fn bypass(&self, index: u32, prev: u32, successor: u32) -> Result<(), Corrupted> {
        self.forget(index, prev)?;
        self.row(successor)?.prev.store(prev, SeqCst);
        let behind = if prev == 0 { &self.words.head } else { &self.row(prev)?.next };
        behind.set(successor as u16);
        Ok(())
    }

    /// Has `enter` put the head, row `index`, into another queue, and takes it out of
    /// this one then. If the thread is killed in between, [`Self::former_head`] finds
    /// it.
    pub(super) fn transfer_head(
        &self,
        index: u32,
        enter: impl FnOnce() -> Result<(), Corrupted>,
    ) -> Result<(), Corrupted> {
        let successor = self.nth(1)?.unwrap_or(0);
        // From here on the editors of the other queue note what they learn there.
        self.forget(index, 0)?;
        enter()?;
        self.begin_with(successor, index)
    }

    /// The row that stands where a head would, but is no member (any more), and who
    /// is behind it, 0 for nobody. For who took the guard over.
    pub(super) fn former_head(
        &self,
        is_member: impl Fn(&Row) -> bool,
    ) -> Result<Option<(u32, u32)>, Corrupted> {
        let mut behind = 0;
        let mut index = self.words.tail.load(SeqCst);
        for _ in 0..=self.table().capacity() {
            if index == 0 {
                return Ok(None);
            }
            let row = self.row(index)?;
            if !is_member(row) {
                return Ok(Some((index, behind)));
            }
            behind = index;
            index = row.prev.load(SeqCst);
        }
        Err(CYCLE)
    }

    /// Has the queue begin with row `index`, or be empty if that is 0, instead of
    /// with row `former`, in front of it.
    pub(super) fn begin_with(&self, index: u32, former: u32) -> Result<(), Corrupted> {
        if index == 0 {
            let gone = self.words.tail.replace(former, 0);
            return gone.map_err(|_| Corrupted("somebody queued without the guard"));
        }
        self.row(index)?.prev.store(0, SeqCst);
        self.words.head.set(index as u16);
        Ok(())
    }

    /// Whether row `index` is in the queue.
    pub(super) fn contains(&self, index: u32) -> Result<bool, Corrupted> {
        Ok(self.walk(|member, _| member == index)? == Some(index))
    }

    /// The waiter at the head, dead or alive.
    fn head(&self) -> Result<Option<u32>, Corrupted> {
        if active(Fault::Lifo) {
            let tail = self.words.tail.load(SeqCst);
            return Ok((tail != 0).then_some(tail));
        }
        match self.words.head.get() {
            0 => self.walk(|_, _| false),
            known => Ok(Some(known.into())),
        }
    }

    /// The oldest living waiter; the dead in front of it are taken out. The dead
    /// behind it are left to who comes upon them: their successors, who watch
    /// them, the next users of their rows, or the next call.
    pub(super) fn oldest(&self) -> Result<Option<Oldest>, Corrupted> {
        // Each round takes one out, and the dead do not come back.
        for _ in 0..=self.table().capacity() {
            let Some(head) = self.head()? else { return Ok(None) };
            let life = self.table().life(head).ok_or(BAD_ROW)?;
            if self.table().is_dead(head, life.load(SeqCst)) {
                mourn(self.me, head)?;
                if let Unlinked::Before(successor) = self.unlink(head)? {
                    wait::nudge(self.me, successor)?;
                }
                continue;
            }
            let row = self.row(head)?;
            // Whom the lock goes to is the thread that asked. The row may have
            // another user by now, who did not.
            let state = WaitState::from_bits(row.state.load(SeqCst));
            let id = Id::from_bits(row.waiting_as.load(SeqCst));
            if id.index() != head {
                return Err(Corrupted("a waiter waits under an id that is not its own"));
            }
            // Relaxed, as `waiting_as` could be: published with `tail`.
            let since = row.since.load(Relaxed);
            return Ok(Some(Oldest { index: head, id, state, since }));
        }
        Err(CYCLE)
    }

    /// The waiter behind so many others; `None` if there are not so many.
    pub(super) fn nth(&self, others: u32) -> Result<Option<u32>, Corrupted> {
        let Some(mut index) = self.head()? else { return Ok(None) };
        for _ in 0..others {
            let mut next = self.row(index)?.next.get().into();
            if next == 0 && index != self.words.tail.load(SeqCst) {
                self.walk(|_, in_front| in_front == index)?;
                next = self.row(index)?.next.get().into();
            }
            if next == 0 {
                return Ok(None);
            }
            index = next;
        }
        Ok(Some(index))
    }

    /// Tells a waiter that it was served. Its row, if it may be asleep.
    pub(super) fn tell_granted(&self, oldest: Oldest) -> Result<Option<u32>, Corrupted> {
        let may_sleep = wait::tell_granted(self.row(oldest.index)?, oldest.state);
        Ok(may_sleep.then_some(oldest.index))
    }

    /// Takes row `index` out of the queue, if it is there.
    pub(super) fn unlink(&self, index: u32) -> Result<Unlinked, Corrupted> {
        let row = self.row(index)?;
        let prev = row.prev.load(SeqCst);
        let mut successor = u32::from(row.next.get());
        if successor == 0 {
            if self.words.tail.load(SeqCst) == index {
                self.forget(index, prev)?;
                if self.words.tail.replace(index, prev).is_ok() {
                    return Ok(Unlinked::Last);
                }
            }
            let head = u32::from(self.words.head.get());
            if prev == 0 && head != 0 && head != index {
                return Ok(Unlinked::NotThere);
            }
            // Not the tail any more, and there is always somebody behind: only
            // who holds the guard could take that one out.
            match self.walk(|_, in_front| in_front == index)? {
                Some(found) if self.row(found)?.prev.load(SeqCst) == index => successor = found,
                _ => return Ok(Unlinked::NotThere),
            }
        }
        self.bypass(index, prev, successor)?;
        Ok(Unlinked::Before(successor))
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
            if !self.table().is_dead(prev, life.load(SeqCst)) {
                return Ok(());
            }
            mourn(self.me, prev)?;
            self.bypass(prev, self.row(prev)?.prev.load(SeqCst), index)?;
        }
        Err(CYCLE)
    }
}

impl Drop for QueueGuard<'_> {
    fn drop(&mut self) {
        let last = Editor::from_bits(self.words.guard.swap(self.free.bits(), SeqCst));
        if last.is_awaited() && !active(Fault::NoGuardWake) {
            futex::wake_all(&self.words.guard);
        }
    }
}

/// The user of row `index`, who is dead, gives up its place in a queue, or its lock. If
/// it had been notified, and had not returned, somebody who waits for the condition
/// variable is to look, and to be notified in its stead.
pub(super) fn mourn(me: &Attachment, index: u32) -> Result<(), Corrupted> {
    let row = me.table().row(index).ok_or(BAD_ROW)?;
    if Stage::of(row) != Stage::One || active(Fault::NoPassingOn) {
        return Ok(());
    }
    // In private memory only a forked child meets the dead, and all of them.
    let condvar = LockWords::named(me.mapping(), row.condvar.load(SeqCst));
    match condvar.map_or(0, |condvar| condvar.tail.load(SeqCst)) {
        0 => Ok(()),
        tail => wait::nudge(me, tail),
    }
}

/// Whether there are at most `n` waiters in front of `me`, as far as a look
/// without the guard can tell.
pub(super) fn is_soon(me: &Attachment, n: u32) -> bool {
    let mut index = me.row().prev.load(SeqCst);
    for _ in 0..n {
        let Some(row) = me.table().row(index) else { return true };
        index = row.prev.load(SeqCst);
    }
    index == 0
}

/// Whether the head sleeps, and has waited for too long, as far as a look without
/// the guard can tell.
pub(super) fn head_oversleeps(words: &LockWords, table: Table) -> bool {
    table.row(words.head.peek().into()).is_some_and(|row| {
        let state = WaitState::from_bits(row.state.load(SeqCst));
        state.code() == Some(Code::Parked) && too_long(row.since.load(SeqCst))
    })
}

/// Whether it is certain, without the guard, that no waiter has waited for too
/// long. Nobody but the caller, who owns the lock, can serve one meanwhile.
pub(super) fn all_are_patient(words: &LockWords, table: Table) -> bool {
    let head = u32::from(words.head.peek());
    let Some(row) = table.row(head) else { return false };
    let patient = !too_long(row.since.load(SeqCst));
    // It is the head still, and so was the oldest when its time was looked at,
    // which is that of this wait, or of an earlier one.
    patient && u32::from(words.head.peek()) == head
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
        if !table.is_dead(index, life.load(SeqCst)) {
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
