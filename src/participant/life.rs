//! Who is dead: the life word, which the kernel marks, and the second witness,
//! for what the kernel's robust list misses.

use super::id::Id;
use super::table::Table;
use crate::memory::map::Mapping;
use crate::memory::registry;
use crate::sys::atomic::Ordering;
use crate::sys::fault::{Fault, active};
use crate::sys::robust_list::{DIED, OWNER_DIED};
use crate::sys::{futex, ofd_lock};

/// The byte of the file whose OFD lock belongs to row `index`.
pub(super) fn witness_byte(index: u32) -> u64 {
    (1 << 41) + u64::from(index)
}

/// Whether a life word speaks of a dead thread, or of none.
pub(crate) fn died(life: u32) -> bool {
    !active(Fault::NoDeathCheck) && (life == 0 || life & OWNER_DIED != 0)
}

/// How a participant fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Alive when its life word had this value, which will change.
    Alive(u32),
    /// Dead, or gone from its row. For good: ids do not come back.
    Dead,
    /// The id names no row: shared memory is corrupted.
    NoSuchRow,
}

impl Table<'_> {
    /// How `id` fares.
    ///
    /// The life word is read before the generation, and whoever re-uses a row
    /// writes the generation before the life word: so a live word that was
    /// read belongs to the generation found, or to an earlier one, in which
    /// case the word has changed since and a sleep on it ends at once.
    pub(crate) fn fate(self, id: Id) -> Fate {
        let index = id.index();
        let (Some(life), Some(generation)) = (self.life(index), self.generation(index)) else {
            return Fate::NoSuchRow;
        };
        // Acquire pairs with the store of the life word in `attach`, and with
        // the kernel's mark, which is a full barrier: what the dead wrote is
        // visible to whoever saw it dead.
        let life = life.load(Ordering::Acquire);
        let same = generation.load(Ordering::Acquire) == id.generation();
        if died(life) || !same && !active(Fault::NoDeathCheck) {
            Fate::Dead
        } else {
            Fate::Alive(life)
        }
    }

    /// Wakes everybody who sleeps on the life word of row `index`: the kernel
    /// wakes one when it marks the word, and that one wakes the others.
    pub(crate) fn relay(self, index: u32) {
        if active(Fault::NoRelay) {
            return;
        }
        if let Some(life) = self.life(index) {
            futex::wake_all(life);
        }
    }
}

/// Asks the second witness whether the row is still in use, and marks it dead
/// if it is not. For the slow heartbeat: it costs a system call.
///
/// `life` is the value with which the row was seen alive. Whoever uses a row
/// holds the OFD lock of its byte from before the life word is alive until
/// after it is not, so a free byte means that the user of the row as it was is
/// gone. Rows of this process cannot be judged so: its own locks do not show.
pub(crate) fn consult_witness(mapping: &Mapping, index: u32, life: u32) -> bool {
    let _registry = registry::lock();
    let gone = bury_if_gone(mapping, index, life);
    if gone {
        bury_kin(mapping, index);
    }
    gone
}

/// Judges all other rows of the process to which row `index` belonged, which is gone: the
/// kernel marks 2048 of a thread's rows, and the helper of a process may have had more.
/// Whoever waits behind those is not to find them one by one, each after a heartbeat.
fn bury_kin(mapping: &Mapping, index: u32) {
    let table = Table::new(mapping);
    let process = |index| {
        let generation = table.generation(index)?.load(Ordering::Acquire);
        let identity = table.identity(Id::new(index, generation))?;
        Some((identity.pid, identity.start_time, identity.pid_namespace))
    };
    let Some(gone) = process(index).filter(|(pid, ..)| *pid != 0) else { return };
    for other in 1..=mapping.rows() {
        let Some(word) = table.life(other) else { return };
        let life = word.load(Ordering::Acquire);
        if !died(life) && process(other) == Some(gone) {
            bury_if_gone(mapping, other, life);
        }
    }
}

/// As [`consult_witness`], for who holds the registry's lock.
pub(super) fn bury_if_gone(mapping: &Mapping, index: u32, life: u32) -> bool {
    let Some(fd) = mapping.witness() else { return false };
    if mapping.claimed_here(index) {
        return false;
    }
    let byte = witness_byte(index);
    if !matches!(ofd_lock::locked_elsewhere(fd, byte), Ok(false)) {
        return false;
    }
    // The byte is held meanwhile, lest somebody with the same TID re-use the
    // row and be marked dead in its last user's stead. (Within this process
    // the registry's lock sees to that.)
    if !matches!(ofd_lock::try_lock(fd, byte), Ok(true)) {
        return false;
    }
    // AcqRel: the mark hands on what the dead wrote, as the kernel's does. A
    // failure means that the kernel, or a re-user, was faster.
    let table = Table::new(mapping);
    if let Some(word) = table.life(index)
        && word.compare_exchange(life, DIED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    {
        table.relay(index);
    }
    ofd_lock::unlock(fd, byte);
    true
}
