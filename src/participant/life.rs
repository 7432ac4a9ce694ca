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

/// Whether a life word speaks of a dead thread, or of none. If what that held was its
/// process's, others of its threads may still be at work: see [`Table::is_dead`].
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
    /// Whether the user of row `index`, whose life word is `life`, is dead: nobody goes on
    /// with what it was in the middle of, or uses what it held.
    ///
    /// When a process is killed, its threads end one after the other, and one that is in
    /// the middle of a system call (`read` into the protected data, say) ends that. Of a
    /// thread's own row the life word tells all. A row of the process is marked when the
    /// keeper ends; but the OFD lock, whose description belongs to all threads, is dropped
    /// when the last of them has let go of its files, and none comes back from there.
    ///
    /// (A child that was made past `pthread_atfork` has a copy of the descriptor. While it
    /// has not ended or called `exec`, it keeps its dead parent's rows of this kind alive.)
    pub(crate) fn is_dead(self, index: u32, life: u32) -> bool {
        died(life) && !self.is_kept(index, life)
    }

    /// Whether row `index` is marked dead, and what its user held is still its process's.
    pub(super) fn is_kept(self, index: u32, life: u32) -> bool {
        life & OWNER_DIED != 0 && self.is_of_process(index) && !self.is_gone(index)
    }

    /// Whether what the user of row `index` holds is its process's.
    fn is_of_process(self, index: u32) -> bool {
        // No model has a process of several threads. Relaxed: written before the life word,
        // which has been read.
        !cfg!(heirlock_loom)
            && self.checked(index).is_some_and(|index| {
                self.mapping().life(index).of_process.load(Ordering::Relaxed) != 0
            })
    }

    /// Whether the process of the user of row `index` holds the row's byte no more.
    fn is_gone(self, index: u32) -> bool {
        if active(Fault::LivesByItsKeeper) {
            return true;
        }
        // In private memory it is this process: what its parent had is nobody's here (see
        // `Mapping::bury_everybody`).
        let Some(file) = self.mapping().file() else { return false };
        // This process's own bytes are known without a call. (Asked is the file, which may
        // be before there is a witness.) Where it cannot be asked the word has to do.
        !self.mapping().claimed_here(index)
            && !matches!(ofd_lock::locked_elsewhere(file, witness_byte(index)), Ok(true))
    }

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
        if self.is_dead(index, life) || !same && !active(Fault::NoDeathCheck) {
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
/// kernel marks 2048 of a thread's rows, and the keeper of a process may have had more.
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
