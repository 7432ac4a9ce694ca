//! Parking: a thread sleeps until somebody has given it a token.
//!
//! The token is a bit of the thread's row, and no lock is involved, no queue and no
//! edit: so there is nothing that a death could leave half-done. Whoever gives it
//! away is killed either before it is there, or when it is, and then the thread
//! finds it at its next look.

use super::raw::Failed;
use super::wait::{self, Limits, Slept};
use crate::memory::error::Corrupted;
use crate::participant::attach::Attachment;
use crate::participant::id::Id;
use crate::participant::life::Fate;
use crate::participant::table::{Row, TOKEN, Table};
use crate::sys::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::clock::Deadline;
use crate::sys::fault::{Fault, active};
use crate::sys::futex;

/// Sleeps until the thread has a token, and takes it; or until the first of the
/// limits, and then it takes none.
pub(crate) fn park(me: &Attachment, limits: Limits) -> Result<(), Failed> {
    if me.is_broken() {
        return Err(Corrupted("the thread met that in an earlier operation").into());
    }
    let word = &me.row().token;
    let without = Row::without_token(me.id());
    let mut over = None;
    loop {
        // Acquire pairs with the Release in `unpark`: all that was done before the
        // unparks that made the token, which are one release sequence. Relaxed on
        // failure: nothing is read but the word, and the kernel compares that once
        // more.
        match word.compare_exchange(without | TOKEN, without, Acquire, Relaxed) {
            Ok(_) => return Ok(()),
            Err(found) if found != without => {
                return Err(Corrupted("a thread's token is another thread's").into());
            }
            Err(_) => {}
        }
        if let Some(over) = over {
            return Err(over);
        }
        if limits.is_cancelled() {
            return Err(Failed::Cancelled);
        }
        if limits.are_over() {
            return Err(Failed::TimedOut);
        }
        // Whom it waits for, nobody knows: it watches no death.
        over = match wait::sleep(me, Deadline::now(), (word, without), None, limits)? {
            Slept::Look | Slept::Heartbeat => None,
            Slept::TimedOut => Some(Failed::TimedOut),
            Slept::Interrupted => Some(Failed::Interrupted),
        };
    }
}

/// Gives `id` a token, unless it is dead. Whether it was alive.
///
/// Async-signal-safe: atomic accesses and one system call.
pub(crate) fn unpark(table: Table, id: Id) -> bool {
    let alive = matches!(table.fate(id), Fate::Alive(_));
    let Some(row) = table.row(id.index()).filter(|_| alive || active(Fault::UnparkOfRow)) else {
        return false;
    };
    let without = Row::without_token(id);
    let mut found = without;
    // Release: see `park`. Written also if the token is there already, so that
    // whoever takes it sees what was done before this, too. If the word is another
    // generation's, this one has died since.
    while let Err(now) = row.token.compare_exchange(found, found | TOKEN, Release, Relaxed) {
        if now & !TOKEN != without && !active(Fault::UnparkOfRow) {
            return false;
        }
        found = now;
    }
    // Also if it was there already: whoever gave it may have been killed before it
    // could wake.
    if !active(Fault::NoUnparkWake) {
        futex::wake_all(&row.token);
    }
    true
}
