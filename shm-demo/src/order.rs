//! Who may be served next, by what the lock's own queue said before.
//!
//! Participants are the numbers that [`heirlock::Participant::to_bits`] gives.

use std::hint::black_box;
use zerocopy::FromBytes;

/// How much of the queue is written down: its beginning says who is next.
const LEN: usize = 64;

/// The queue as the last owner found it, who was about to release.
///
/// An owner that is killed before it could write leaves the list of the one
/// before it, which goes on to be true: the dead owner was the first of it that
/// lived, so its heir must be the next.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Order {
    /// 0 while it is being written, and when the queue was not to be had;
    /// otherwise one more than the length.
    known: u64,
    list: [u64; LEN],
}

impl Order {
    pub(crate) fn get(&self) -> Option<&[u64]> {
        let len = usize::try_from(self.known).ok()?.checked_sub(1)?;
        Some(&self.list[..len.min(LEN)])
    }

    pub(crate) fn set(&mut self, queue: Option<&[u64]>) {
        // A kill in between must not leave a mixture of two queues.
        self.known = 0;
        black_box(&mut *self);
        let Some(queue) = queue else { return };
        let len = queue.len().min(LEN);
        self.list[..len].copy_from_slice(&queue[..len]);
        black_box(&mut *self);
        self.known = len as u64 + 1;
    }
}

/// Whether `me` may be served by a lock whose queue was `queue`: nobody who
/// lives was in front.
pub(crate) fn may_be_served(queue: &[u64], me: u64, alive: impl Fn(u64) -> bool) -> bool {
    queue.iter().take_while(|other| **other != me).all(|other| !alive(*other))
}

/// Whether those of the queue `before` who live, other than `me` who left it
/// for the lock, stand in `now` in the same order, with nobody else in front.
pub(crate) fn has_kept(before: &[u64], now: &[u64], me: u64, alive: impl Fn(u64) -> bool) -> bool {
    let mut now = now.iter();
    before.iter().filter(|member| **member != me && alive(**member)).all(|member| {
        now.by_ref().find(|other| *other == member || !before.contains(other)) == Some(member)
    })
}

#[cfg(test)]
mod tests {
    use super::{LEN, Order, has_kept, may_be_served};
    use zerocopy::FromZeros;

    #[test]
    fn only_the_dead_may_be_passed() {
        let alive = |who| who < 10;
        assert!(may_be_served(&[], 1, alive));
        assert!(may_be_served(&[1, 2], 1, alive));
        assert!(may_be_served(&[11, 12, 1, 2], 1, alive));
        assert!(may_be_served(&[11, 12], 1, alive));
        assert!(!may_be_served(&[2, 1], 1, alive));
        assert!(!may_be_served(&[11, 2], 1, alive));
        assert!(!may_be_served(&[2], 1, alive));
    }

    #[test]
    fn a_queue_keeps_its_order_but_for_the_dead() {
        let alive = |who| who < 10;
        assert!(has_kept(&[], &[2, 3], 1, alive));
        assert!(has_kept(&[1], &[], 1, alive));
        assert!(has_kept(&[1, 2, 3], &[2, 3, 4], 1, alive));
        assert!(has_kept(&[11, 1, 12, 2], &[2, 4], 1, alive));
        assert!(has_kept(&[1, 12, 2], &[12, 2, 4], 1, alive));
        assert!(!has_kept(&[1, 2, 3], &[3, 2], 1, alive));
        assert!(!has_kept(&[1, 2], &[4, 2], 1, alive));
        assert!(!has_kept(&[1, 2], &[12, 2], 1, alive));
        assert!(!has_kept(&[1, 2, 3], &[2], 1, alive));
        assert!(!has_kept(&[1, 2], &[], 1, alive));
    }

    #[test]
    fn a_list_is_known_or_not() {
        let mut order = Order::new_zeroed();
        assert_eq!(order.get(), None);
        order.set(Some(&[]));
        assert_eq!(order.get(), Some(&[][..]));
        order.set(Some(&[1, 2]));
        assert_eq!(order.get(), Some(&[1, 2][..]));
        order.set(Some(&[7; LEN + 1]));
        assert_eq!(order.get(), Some(&[7; LEN][..]));
        order.set(None);
        assert_eq!(order.get(), None);
        order.known = u64::MAX;
        assert_eq!(order.get().map(<[u64]>::len), Some(LEN));
    }
}
