//! What a segment's file holds, read without the crate: raw, and as an image in
//! which two runs that did the same are equal.
#![allow(unsafe_code)]

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const PAGE: u64 = 4096;
const ROWS: u64 = 4096;
const ROW: u64 = 64;
/// The size of one lock of the board, value included.
const LOCK: u64 = 24;
const OWNER_DIED: u32 = 0x4000_0000;
const TID: u32 = 0x3fff_ffff;
/// The flags of an owner, INHERITED and FENCES.
pub(crate) const FLAGS: u64 = 3 << 16;

/// A row of the table, and its life word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) lock: u64,
    pub(crate) waiting_as: u64,
    pub(crate) generation: u64,
    pub(crate) prev: u32,
    pub(crate) next: u32,
    pub(crate) state: u32,
    pub(crate) stage: u32,
    pub(crate) condvar: u64,
    pub(crate) life: u32,
}

impl Row {
    /// The thread that uses it, if it lives.
    pub(crate) fn tid(&self) -> u32 {
        self.life & TID
    }

    pub(crate) fn alive(&self) -> bool {
        self.life != 0 && self.life & OWNER_DIED == 0
    }

    pub(crate) fn granted(&self) -> bool {
        self.state & 7 == 4
    }

    pub(crate) fn parked(&self) -> bool {
        self.state & 7 == 2
    }
}

/// The words of a condition variable, or of a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) owner: u64,
    pub(crate) tail: u32,
    pub(crate) head: u32,
    pub(crate) guard: u32,
}

/// The words that the lock under test, and its users, consist of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Raw {
    /// Whether there is a file, its length, and its header.
    pub(crate) len: Option<u64>,
    pub(crate) header: Vec<u64>,
    pub(crate) owner: u64,
    pub(crate) tail: u32,
    pub(crate) head: u32,
    pub(crate) guard: u32,
    /// Of the condition variable under test, or of the second lock.
    pub(crate) other: Words,
    /// From row 1 on.
    pub(crate) rows: Vec<Row>,
}

impl Raw {
    pub(crate) fn row(&self, index: u32) -> Option<&Row> {
        self.rows.get((index as usize).checked_sub(1)?)
    }

    /// The row of the owner, and whether it is still the one who took the lock.
    pub(crate) fn owner_row(&self) -> Option<(u32, bool)> {
        let index = (self.owner & 0xffff) as u32;
        let row = self.row(index)?;
        Some((index, row.generation == self.owner >> 20 && row.alive()))
    }

    /// The rows in the queue, the head first; `None` if it is no queue.
    pub(crate) fn queue(&self) -> Option<Vec<u32>> {
        self.queue_up_to(self.tail)
    }

    /// The same, of the queue that ends with row `tail`.
    pub(crate) fn queue_up_to(&self, tail: u32) -> Option<Vec<u32>> {
        let mut queue = Vec::new();
        let mut index = tail;
        while index != 0 {
            if queue.contains(&index) {
                return None;
            }
            queue.push(index);
            index = self.row(index)?.prev;
        }
        queue.reverse();
        Some(queue)
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn u16_at(bytes: &[u8], at: usize) -> u32 {
    u16::from_ne_bytes(bytes[at..at + 2].try_into().expect("2 bytes")).into()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// A way to look at a segment's file.
#[derive(Debug)]
pub(crate) struct Peek {
    path: PathBuf,
    /// Kept open where the file stays the same.
    file: Option<File>,
    value: u64,
    life: u64,
    /// Where the condition variable under test is, or the second lock.
    other: Option<u64>,
}

impl Peek {
    /// Of the file at `path`, whenever there is one.
    pub(crate) fn at(path: &Path, capacity: u64) -> Self {
        let value = ROWS + (capacity + 1) * ROW;
        let life = (value + 8 * LOCK).next_multiple_of(PAGE);
        Self { path: path.to_path_buf(), file: None, value, life, other: None }
    }

    /// Of the segment at `path`, which is there to stay.
    pub(crate) fn open(path: &Path, capacity: u64) -> Self {
        let file = File::options().read(true).write(true).open(path).expect("open to peek");
        Self { file: Some(file), ..Self::at(path, capacity) }
    }

    /// Also of the condition variable, or lock, at `offset`.
    pub(crate) fn with_other(self, offset: u64) -> Self {
        Self { other: Some(offset), ..self }
    }

    /// Where the first lock is.
    pub(crate) fn lock_offset(&self) -> u64 {
        self.value
    }

    pub(crate) fn life_word(&self, index: u64) -> u64 {
        self.life + index * PAGE - 24
    }

    /// The row whose life word is `offset` bytes into the file.
    fn row_of_life(&self, offset: u64) -> u64 {
        if offset >= self.life && (offset + 24).is_multiple_of(PAGE) {
            (offset + 24 - self.life) / PAGE
        } else {
            u64::from(u32::MAX)
        }
    }

    pub(crate) fn raw(&self) -> Raw {
        let opened;
        let file = match &self.file {
            Some(file) => file,
            None => match File::open(&self.path) {
                Ok(file) => {
                    opened = file;
                    &opened
                }
                Err(_) => return Raw::default(),
            },
        };
        let read = |offset: u64, len: usize| {
            let mut bytes = vec![0; len];
            let mut done = 0;
            while done < len {
                match file.read_at(&mut bytes[done..], offset + done as u64) {
                    Ok(0) | Err(_) => break,
                    Ok(more) => done += more,
                }
            }
            bytes
        };
        let header = read(0, 128);
        let used = u32_at(&header, 44).min(64);
        let table = read(ROWS, (used as usize + 1) * ROW as usize);
        let words = |at: u64| {
            let bytes = read(at, 16);
            let (tail, head) = (u16_at(&bytes, 8), u16_at(&bytes, 10));
            Words { owner: u64_at(&bytes, 0), tail, head, guard: u32_at(&bytes, 12) }
        };
        let Words { owner, tail, head, guard } = words(self.value);
        let rows = (1..=used as usize).map(|index| {
            let row = &table[index * ROW as usize..];
            Row {
                lock: u64_at(row, 0),
                waiting_as: u64_at(row, 8),
                generation: u64_at(&read(self.life_word(index as u64) - 8, 8), 0),
                prev: u16_at(row, 16),
                next: u16_at(row, 18),
                state: u32_at(row, 20),
                stage: u32_at(row, 28),
                condvar: u64_at(row, 32),
                life: u32_at(&read(self.life_word(index as u64), 4), 0),
            }
        });
        Raw {
            len: Some(file.metadata().map_or(0, |meta| meta.len())),
            rows: rows.collect(),
            owner,
            tail,
            head,
            guard,
            other: self.other.map_or(Words::default(), words),
            header: header.chunks(8).map(|word| u64_at(word, 0)).collect(),
        }
    }
}

/// What the kernel will find on the robust list of a victim's thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Robust {
    linked: bool,
    pending: u64,
}

/// Where the C library keeps the head of the main thread's robust list: in this
/// process, and so in all that are forked from it.
pub(crate) fn robust_head() -> u64 {
    let mut head = 0u64;
    let mut len = 0usize;
    // SAFETY: pid 0 is the calling thread; both pointers are to locals of the
    // sizes that the kernel writes.
    let failed = unsafe {
        nix::libc::syscall(nix::libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len)
    };
    assert!(failed == 0 && head != 0, "the robust list of this thread");
    head
}

impl Robust {
    /// Of a victim that is stopped or asleep.
    pub(crate) fn of(pid: Pid, head: u64) -> Self {
        let mut bytes = [0; 24];
        let remote = [RemoteIoVec { base: head as usize, len: bytes.len() }];
        let _ = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &remote);
        Self { linked: u64_at(&bytes, 0) != head, pending: u64_at(&bytes, 16) }
    }
}

/// A segment as it was, in terms that do not depend on who did it: no TIDs, no
/// generations, no rounds.
pub(crate) type Image = Vec<u64>;

/// The image of `raw`, with the generations counted from those in `before`.
/// `base` is where the victim has mapped the segment.
pub(crate) fn image(peek: &Peek, raw: &Raw, before: &Raw, robust: Robust, base: u64) -> Image {
    let id = |bits: u64| {
        let row = (bits & 0xffff) as u32;
        let current = raw.row(row).is_some_and(|row| row.generation == bits >> 20);
        u64::from(row) | u64::from(current) << 32 | (bits & FLAGS) << 32
    };
    // The guard has the low bits of its holder's generation, whether somebody
    // sleeps on it, and the lock's policy.
    let guard = |bits: u32| {
        let row = bits & 0xffff;
        let generation = raw.row(row).map_or(0, |row| row.generation) as u32;
        let current = (bits >> 16 ^ generation) & 0x3fff == 0;
        u64::from(row) | u64::from(current) << 32 | u64::from(bits >> 30) << 33
    };
    let queue = raw.queue().unwrap_or_else(|| vec![u32::MAX]);
    let pending = match robust.pending {
        0 => 0,
        link => peek.row_of_life(link.wrapping_sub(32).wrapping_sub(base)),
    };
    let mut image = vec![
        raw.len.map_or(0, |len| len + 1),
        // All but the boot.
        raw.header.first().copied().unwrap_or(0),
        raw.header.get(1).copied().unwrap_or(0),
        raw.header.get(5).copied().unwrap_or(0),
        raw.header.get(6).copied().unwrap_or(0),
        raw.header.get(7).copied().unwrap_or(0),
        id(raw.owner),
        raw.tail.into(),
        raw.head.into(),
        guard(raw.guard),
        // That all are notified is no id, and no row has that number.
        id(raw.other.owner),
        raw.other.tail.into(),
        raw.other.head.into(),
        guard(raw.other.guard),
        robust.linked.into(),
        pending,
    ];
    for (index, row) in (1..).zip(&raw.rows) {
        let life = if row.alive() { 1 } else { u64::from(row.life != 0) * 2 };
        let born = row.generation.wrapping_sub(before.row(index).map_or(0, |row| row.generation));
        image.extend([life, born, row.lock, row.next.into()]);
        if row.condvar != 0 {
            image.extend([u64::MAX, row.stage.into()]);
        }
        if row.lock != 0 || queue.contains(&index) {
            image.extend([id(row.waiting_as), row.prev.into(), u64::from(row.state & 7)]);
        }
    }
    image
}
