//! Who is served out of turn, also where waiters may leave the queue.
//!
//! An owner that is about to release writes down the queue: which rows, and in
//! which of its waits each is ([`WaitNumbers`]). The next owner marks everybody
//! who stood before it. Who was marked may have given up or died since, and then
//! the mark means nothing: its next wait has another number. But if it is served
//! *in that very wait*, somebody who stood behind it was served before it, and it
//! says so itself. So nothing is guessed and no clock is looked at; a waiter that
//! is passed over and then never served is the watchdog's.
//!
//! [`WaitNumbers`]: super::ground::WaitNumbers

use super::ground::ROWS;
use std::hint::black_box;
use zerocopy::FromBytes;

/// How much of the queue is written down.
const LEN: usize = 64;

/// No wait's number: the thread began or ended a wait while it was looked at.
const UNKNOWN: u64 = 0;

/// A waiter in the queue: its row and its wait's number.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub(crate) struct Waiter {
    row: u64,
    wait: u64,
}

impl Waiter {
    pub(crate) fn new(row: u32, wait: Option<u64>) -> Self {
        Self { row: u64::from(row), wait: wait.unwrap_or(UNKNOWN) }
    }
}

/// The queue as the last owner found it that came so far as to write it down. One
/// that dies before leaves the list of the one before it, of which the same
/// holds: who stands in it before the new owner must not be served after it.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Line {
    /// How many there are; 0 while they are being written.
    len: u64,
    list: [Waiter; LEN],
    /// By row: the last wait in which its thread was passed over.
    passed: [u64; ROWS + 1],
}

/// What is known of how an owner was served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Served {
    /// Somebody was written down in the queue.
    pub(crate) checked: bool,
    /// The owner itself was.
    pub(crate) queued: bool,
    /// Somebody who stood behind it was served before.
    pub(crate) inverted: bool,
}

impl Line {
    /// To be called by each owner first, which came to own by its wait `wait`.
    pub(crate) fn enter(&mut self, row: u32, wait: u64) -> Served {
        let list = &self.list[..LEN.min(self.len as usize)];
        // With the wait unknown it may be an earlier one of its own: then no one
        // behind it is marked.
        let is_me = |other: &&Waiter| {
            other.row == u64::from(row) && (other.wait == wait || other.wait == UNKNOWN)
        };
        let ahead = list.iter().take_while(|other| !is_me(other));
        for other in ahead.filter(|other| other.wait != UNKNOWN) {
            if let Some(passed) = self.passed.get_mut(other.row as usize) {
                *passed = other.wait;
            }
        }
        Served {
            checked: !list.is_empty(),
            queued: list.iter().any(|other| is_me(&other) && other.wait != UNKNOWN),
            inverted: self.passed[row as usize] == wait,
        }
    }

    /// To be called by each owner last: `queue` is who waits now, as far as it
    /// is known.
    pub(crate) fn leave(&mut self, queue: impl Iterator<Item = Waiter>) {
        // A kill in between must not leave a mixture of two queues.
        self.len = 0;
        black_box(&mut *self);
        let mut len = 0;
        for (place, waiter) in self.list.iter_mut().zip(queue) {
            *place = waiter;
            len += 1;
        }
        black_box(&mut *self);
        self.len = len;
    }
}

#[cfg(test)]
mod tests {
    use super::{Line, Waiter};
    use zerocopy::FromZeros;

    fn line(queue: &[(u32, u64)]) -> Line {
        let mut line = Line::new_zeroed();
        write(&mut line, queue);
        line
    }

    fn write(line: &mut Line, queue: &[(u32, u64)]) {
        let wait = |wait: u64| (wait != 0).then_some(wait);
        line.leave(queue.iter().map(|(row, number)| Waiter::new(*row, wait(*number))));
    }

    #[test]
    fn in_turn_is_no_inversion() {
        let mut line = line(&[(1, 11), (2, 21)]);
        let served = line.enter(1, 11);
        assert!(served.checked && served.queued && !served.inverted);
        write(&mut line, &[(2, 21)]);
        assert!(!line.enter(2, 21).inverted);
        write(&mut line, &[]);
        let served = line.enter(1, 13);
        assert!(!served.checked && !served.queued && !served.inverted);
    }

    #[test]
    fn who_is_served_after_one_behind_it_says_so() {
        let mut line = line(&[(1, 11), (2, 21), (3, 31)]);
        assert!(!line.enter(2, 21).inverted);
        write(&mut line, &[(1, 11), (3, 31)]);
        assert!(line.enter(1, 11).inverted);
        write(&mut line, &[(3, 31)]);
        assert!(!line.enter(3, 31).inverted);
    }

    #[test]
    fn so_does_who_waited_while_a_newcomer_was_served() {
        let mut line = line(&[(1, 11)]);
        let newcomer = line.enter(2, 21);
        assert!(newcomer.checked && !newcomer.queued && !newcomer.inverted);
        write(&mut line, &[(1, 11)]);
        assert!(line.enter(1, 11).inverted);
    }

    #[test]
    fn who_gave_up_or_died_was_not_passed_over() {
        let mut line = line(&[(1, 11), (2, 21)]);
        assert!(!line.enter(2, 21).inverted);
        // The next wait of the same thread, or the first of the row's next user.
        assert!(!line.enter(1, 13).inverted);
    }

    #[test]
    fn the_list_of_an_owner_before_a_dead_one_still_counts() {
        let mut line = line(&[(1, 11), (2, 21), (3, 31)]);
        line.enter(1, 11);
        // 1 dies. 3 takes over, though 2 was before it.
        line.enter(3, 31);
        write(&mut line, &[(2, 21)]);
        assert!(line.enter(2, 21).inverted);
    }

    #[test]
    fn what_is_not_known_is_no_inversion() {
        let mut line = line(&[(1, 0), (2, 21)]);
        line.enter(2, 21);
        assert!(!line.enter(1, 11).inverted);
        write(&mut line, &[(2, 0), (3, 31)]);
        let served = line.enter(2, 23);
        assert!(served.checked && !served.queued);
        assert!(!line.enter(3, 31).inverted);
    }
}
