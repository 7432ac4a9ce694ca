//! Rows have no order that the algorithm could see: two states that differ in
//! the numbering of the rows only are one state to the checker.

use crate::state::{Id, ROWS, State};

/// A renumbering: `place[i]` is the new place of row `i` (both 0-based).
struct Renumbering {
    place: [u8; ROWS],
}

impl Renumbering {
    /// Of an index, 1-based; 0 stays 0.
    fn index(&self, index: u8) -> u8 {
        match index {
            0 => 0,
            _ => self.place[usize::from(index) - 1] + 1,
        }
    }

    fn id(&self, id: Id) -> Id {
        let renumbered = Id::new(self.index(id.index()), id.generation());
        if id.fences() { renumbered.as_fencing() } else { renumbered }
    }

    /// Of a set of rows, bit `i` for row `i`.
    fn set(&self, set: u8) -> u8 {
        (0..ROWS).filter(|i| set & 1 << i != 0).fold(0, |set, i| set | 1 << self.place[i])
    }

    fn apply(&self, s: &State) -> State {
        let mut next = *s;
        for (i, &place) in self.place.iter().enumerate() {
            let (row, thread) = (&s.rows[i], &s.threads[i]);
            let to_row = &mut next.rows[usize::from(place)];
            *to_row = *row;
            to_row.prev = self.index(row.prev);
            to_row.next = self.index(row.next);
            to_row.waiting_as = self.id(row.waiting_as);
            let to_thread = &mut next.threads[usize::from(place)];
            *to_thread = *thread;
            to_thread.word = self.id(thread.word);
            to_thread.peer = self.index(thread.peer);
            to_thread.behind = self.index(thread.behind);
            to_thread.peer_id = self.id(thread.peer_id);
            to_thread.pending = self.index(thread.pending);
            to_thread.heir_of = self.id(thread.heir_of);
            to_thread.exit_pending = self.index(thread.exit_pending);
            to_thread.ahead = self.set(thread.ahead);
        }
        for lock in &mut next.locks {
            lock.owner = self.id(lock.owner);
            lock.tail = self.index(lock.tail);
            lock.head = self.index(lock.head);
            lock.guard = self.id(lock.guard);
        }
        next
    }
}

/// What tells row `i` from others, whatever the rows' numbers are.
fn key(s: &State, i: usize) -> u64 {
    let (row, thread) = (&s.rows[i], &s.threads[i]);
    let index = i as u8 + 1;
    let mut roles = 0;
    for lock in &s.locks {
        roles = roles << 4
            | u64::from(lock.owner.index() == index)
            | u64::from(lock.tail == index) << 1
            | u64::from(lock.guard.index() == index) << 2
            | u64::from(lock.head == index) << 3;
    }
    let bytes = [
        thread.pc as u8,
        thread.job as u8,
        thread.op | thread.program << 4,
        row.code as u8 | row.life << 4,
        row.lock
            | row.generation << 2
            | (thread.exit as u8) << 4
            | u8::from(thread.behind != 0) << 6,
        roles as u8,
        // Fewer ahead in the queue, or behind: no numbers either.
        thread.ahead.count_ones() as u8
            | u8::from(row.prev != 0) << 4
            | thread.held << 5
            | u8::from(row.next != 0) << 7,
        u8::from(thread.peer != 0)
            | u8::from(thread.pending != 0) << 1
            | thread.buffer.bits() << 2
            | (thread.fenced as u8) << 6,
    ];
    u64::from_be_bytes(bytes)
}

/// One state for all that differ in the numbering of rows: the rows in order of
/// their [`key`]s. Rows with equal keys stay in the order that they have, so
/// some classes have more than one representative; that costs, and is sound.
pub(crate) fn representative(s: &State) -> State {
    let mut order: [(u64, u8); ROWS] = std::array::from_fn(|i| (key(s, i), i as u8));
    order.sort_unstable();
    let mut place = [0; ROWS];
    for (to, &(_, from)) in order.iter().enumerate() {
        place[usize::from(from)] = to as u8;
    }
    Renumbering { place }.apply(s)
}
