//! The format of a segment, byte by byte.
//!
//! ```text
//! offset                what
//! 0                     header, 128 bytes
//!     0   u64           magic, "HEIRLOCK" (so a machine of the other byte
//!                       order finds something else)
//!     8   u32           layout version, 4
//!    12   u32           state: 0 unfinished, 0x5245_4459 ready
//!    16   u64           schema, the user's own version number
//!    24   u64           size of T in bytes
//!    32   u32           alignment of T in bytes
//!    36   u32           page size of the creator in bytes
//!    40   u32           capacity: how many rows there are
//!    44   u32           rows used so far (the highest index; only grows)
//!    48   u128          boot in which rows were last alive, as two u64
//!    64   u32           1 once somebody joined who is refused `membarrier`
//!    68   u32           the row that a newcomer looked at last, a hint
//!    72   56 bytes      zero
//! 128                   what things in T are called, 62 times 64 bytes
//!                       (see `memory::names`)
//!     0   u64           where the thing is, from the start of the segment; 0 none
//!     8   56 bytes      its name in UTF-8, and 0xff up to the end
//! 4096                  rows 0..=capacity, 64 bytes each; row 0 is not used
//!                       (see `participant::table::Row`)
//! value_offset          T, aligned to 64 or to its own alignment
//! life_offset           capacity pages, one for each row from 1 on
//!     0   16 bytes      zero in a file; in process-private memory the
//!                       robust-list node of the row before
//!     64  32 * 64       identities of the last 32 users of the row
//!   2112  4 * u64       what the user of the row has been through, for people
//!     page - 32  u64    the generation: which user of the row this is
//!     page - 24  u32    the life word
//!     page - 20  u32    1 if what the user holds is its process's, not its thread's
//! life_offset + capacity * page
//!     the end; in process-private memory one more page, for the last node
//! ```
//!
//! `value_offset` and `life_offset` follow from capacity, page size, and size
//! and alignment of `T`; they are not stored, so they cannot be corrupted.
//!
//! A life word lies where it does because its robust-list node must lie 24
//! bytes behind it (on 64-bit glibc) and must *not* be shared: a thread maps
//! the page of its row and, directly behind it, a private page that begins
//! with the node. So there is no pointer in shared memory.

use super::error::SegmentError;
use crate::sys::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sys::process;
use crate::sys::robust_list::WORD_BEFORE_NODE;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// "HEIRLOCK" as a little-endian machine reads it.
pub(crate) const MAGIC: u64 = u64::from_ne_bytes(*b"HEIRLOCK");
/// The version of everything said above.
pub(crate) const VERSION: u32 = 4;
/// The header's `state` once the creator is done.
pub(crate) const READY: u32 = 0x5245_4459;
/// The most rows that a 16-bit index can name (0 means nobody).
pub(crate) const MAX_CAPACITY: u32 = u16::MAX as u32;

/// Where the table of names begins.
pub(crate) const NAMES_OFFSET: usize = 128;
/// How many names there can be.
pub(crate) const NAMES: usize = (ROWS_OFFSET - NAMES_OFFSET) / 64;
const ROWS_OFFSET: usize = 4096;
/// The size of a row in bytes: a cache line of its own.
pub(crate) const ROW_SIZE: usize = 64;
/// The largest alignment that a value may ask for.
pub(crate) const MAX_ALIGN: usize = 4096;
/// Where in its page the identities of a row's users begin.
pub(crate) const IDENTITIES_OFFSET: usize = 64;
/// How many users of a row are remembered.
pub(crate) const IDENTITIES: usize = 32;
/// How much room each takes in bytes.
pub(crate) const IDENTITY_SIZE: usize = 64;
/// Where in its page a row's counters are.
pub(crate) const COUNTERS_OFFSET: usize = IDENTITIES_OFFSET + IDENTITIES * IDENTITY_SIZE;
/// What a lock takes up in bytes, and how it is aligned.
pub(crate) const LOCK_SIZE: usize = 16;
pub(crate) const LOCK_ALIGN: usize = 8;
/// The bytes of a page that come before anything a life page needs.
const SMALLEST_PAGE: usize = 4096;

/// Who is alive, at the end of a life page: apart from what else a row consists of,
/// because everybody looks at it, and it seldom changes.
#[derive(FromBytes, Debug)]
#[repr(C)]
pub(crate) struct Life {
    /// Which user of the row this is. Written by who attaches, before the word.
    pub(crate) generation: AtomicU64,
    pub(crate) word: AtomicU32,
    /// Whether what the user holds it holds for its process: then it is dead when no thread
    /// of that runs any more, not when the life word says so. 0 or 1; written by who
    /// attaches, before the word, and by the user.
    pub(crate) of_process: AtomicU32,
}

/// The head of a segment, as in the file.
#[derive(FromBytes, Debug)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) magic: u64,
    pub(crate) version: u32,
    pub(crate) state: AtomicU32,
    pub(crate) schema: u64,
    pub(crate) value_size: u64,
    pub(crate) value_align: u32,
    pub(crate) page_size: u32,
    pub(crate) capacity: u32,
    pub(crate) rows: AtomicU32,
    pub(crate) boot: [AtomicU64; 2],
    pub(crate) fences: AtomicU32,
    pub(crate) next_row: AtomicU32,
    reserved: [u32; 14],
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Header>() == NAMES_OFFSET && NAMES == 62);
    assert!(offset_of!(Header, magic) == 0);
    assert!(offset_of!(Header, version) == 8);
    assert!(offset_of!(Header, state) == 12);
    assert!(offset_of!(Header, schema) == 16);
    assert!(offset_of!(Header, value_size) == 24);
    assert!(offset_of!(Header, value_align) == 32);
    assert!(offset_of!(Header, page_size) == 36);
    assert!(offset_of!(Header, capacity) == 40);
    assert!(offset_of!(Header, rows) == 44);
    assert!(offset_of!(Header, boot) == 48 && offset_of!(Header, fences) == 64);
    assert!(offset_of!(Header, next_row) == 68);
    assert!(size_of::<Life>() == 16 && offset_of!(Life, word) == 8);
    assert!(offset_of!(Life, of_process) == 12);
    assert!(WORD_BEFORE_NODE == 24);
    // A value's alignment holds in every mapping because mappings start at a
    // page boundary.
    assert!(MAX_ALIGN <= SMALLEST_PAGE);
};

impl Header {
    /// Whether it is the header of a segment of this format.
    fn check_identity(&self) -> Result<(), SegmentError> {
        if self.magic != MAGIC {
            return Err(SegmentError::NotASegment { found: self.magic.to_ne_bytes() });
        }
        differs("layout version", self.version.into(), VERSION.into())
    }

    /// Whether it is the header of a segment of this format that nobody has
    /// finished yet.
    pub(super) fn is_unfinished(&self) -> Result<bool, SegmentError> {
        self.check_identity()?;
        Ok(self.state.load(Ordering::Relaxed) != READY)
    }
}

fn differs(field: &'static str, found: u64, expected: u64) -> Result<(), SegmentError> {
    if found == expected { Ok(()) } else { Err(SegmentError::Mismatch { field, found, expected }) }
}

/// A header for a new segment, before it is ready.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct NewHeader {
    magic: u64,
    version: u32,
    state: u32,
    schema: u64,
    value_size: u64,
    value_align: u32,
    page_size: u32,
    capacity: u32,
    rows: u32,
    boot: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<NewHeader>() == size_of::<Header>());

/// What a user wants a segment to be; it must agree with what a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) capacity: u32,
    pub(crate) schema: u64,
    pub(crate) value_size: usize,
    pub(crate) value_align: usize,
}

impl Wanted {
    /// The header that a new segment of this kind starts with.
    pub(crate) fn header(&self, page_size: usize, boot: u128) -> NewHeader {
        NewHeader {
            magic: MAGIC,
            version: VERSION,
            state: 0,
            schema: self.schema,
            value_size: self.value_size as u64,
            value_align: self.value_align as u32,
            page_size: page_size as u32,
            capacity: self.capacity,
            rows: 0,
            boot: [boot as u64, (boot >> 64) as u64],
            reserved: [0; 8],
        }
    }
}

/// Where things are in one segment. Computed, never read from shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) capacity: u32,
    pub(crate) page_size: usize,
    pub(crate) value_offset: usize,
    pub(crate) value_size: usize,
    pub(crate) life_offset: usize,
    pub(crate) total: usize,
}

impl Layout {
    /// The layout of a segment of `capacity` rows; `None` if it does not fit
    /// into the address space.
    pub(crate) fn new(
        capacity: u32,
        page_size: usize,
        value_size: usize,
        value_align: usize,
    ) -> Option<Self> {
        let rows_end = ROWS_OFFSET + (capacity as usize + 1) * ROW_SIZE;
        let value_offset = rows_end.next_multiple_of(value_align.max(ROW_SIZE));
        let life_offset =
            value_offset.checked_add(value_size)?.checked_next_multiple_of(page_size)?;
        let total = life_offset.checked_add(capacity as usize * page_size)?;
        isize::try_from(total).ok()?;
        Some(Self { capacity, page_size, value_offset, value_size, life_offset, total })
    }

    /// The layout of a file of `file_size` bytes that starts with `header`, if
    /// it is a finished segment of the kind wanted.
    pub(crate) fn of(
        header: &Header,
        wanted: &Wanted,
        file_size: u64,
    ) -> Result<Self, SegmentError> {
        header.check_identity()?;
        differs("schema", header.schema, wanted.schema)?;
        differs("size of the value", header.value_size, wanted.value_size as u64)?;
        differs("alignment of the value", header.value_align.into(), wanted.value_align as u64)?;
        Self::of_any(header, file_size)
    }

    /// The layout of a file of `file_size` bytes that starts with `header`, if
    /// it is a finished segment.
    pub(crate) fn of_any(header: &Header, file_size: u64) -> Result<Self, SegmentError> {
        header.check_identity()?;
        if header.state.load(Ordering::Relaxed) != READY {
            return Err(SegmentError::Unfinished);
        }
        let page_size = process::page_size();
        differs("page size", header.page_size.into(), page_size as u64)?;
        let limit = |field, found: u64, max: u64, min: u64| {
            let fits = (min..=max).contains(&found);
            if fits { Ok(()) } else { Err(SegmentError::Mismatch { field, found, expected: max }) }
        };
        limit("capacity", header.capacity.into(), MAX_CAPACITY.into(), 1)?;
        limit("alignment of the value", header.value_align.into(), MAX_ALIGN as u64, 1)?;
        let value_size = usize::try_from(header.value_size).map_err(|_| SegmentError::TooLarge)?;
        let layout = Self::new(header.capacity, page_size, value_size, header.value_align as usize)
            .ok_or(SegmentError::TooLarge)?;
        let (found, expected) = (file_size, layout.total as u64);
        if found == expected {
            Ok(layout)
        } else {
            Err(SegmentError::Truncated { found, expected })
        }
    }

    /// Whether a lock can lie at `offset`: inside the value, aligned.
    pub(crate) fn holds_lock(&self, offset: u64) -> bool {
        let Ok(offset) = usize::try_from(offset) else { return false };
        let end = self.value_offset + self.value_size;
        offset >= self.value_offset
            && offset.checked_add(LOCK_SIZE).is_some_and(|lock_end| lock_end <= end)
            && offset.is_multiple_of(LOCK_ALIGN)
    }

    /// The offset of row `index`, which is at most `capacity`.
    pub(crate) fn row(&self, index: u32) -> usize {
        debug_assert!(index <= self.capacity);
        ROWS_OFFSET + index as usize * ROW_SIZE
    }

    /// The offset of the life page of row `index`, from 1 to `capacity`.
    pub(crate) fn life_page(&self, index: u32) -> usize {
        debug_assert!((1..=self.capacity).contains(&index));
        self.life_offset + (index as usize - 1) * self.page_size
    }

    /// The offset of the [`Life`] of row `index`, from 1 to `capacity`.
    pub(crate) fn life(&self, index: u32) -> usize {
        let word = self.life_page(index) + self.page_size - WORD_BEFORE_NODE;
        word - core::mem::offset_of!(Life, word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_segment_of_default_capacity_reserves_under_256_kib() {
        let layout = Layout::new(1024, 4096, 4096, 8).unwrap();
        assert!(layout.life_offset < 256 * 1024, "{}", layout.life_offset);
    }

    #[test]
    fn regions_do_not_overlap_and_end_at_the_end() {
        for capacity in [1, 2, 63, 1024, MAX_CAPACITY] {
            for (size, align) in [(0, 1), (1, 1), (16, 8), (4097, 128), (1 << 20, 4096)] {
                for page in [4096, 65536] {
                    let layout = Layout::new(capacity, page, size, align).unwrap();
                    assert!(layout.row(capacity) + ROW_SIZE <= layout.value_offset);
                    assert!(layout.value_offset.is_multiple_of(align));
                    assert!(layout.value_offset + size <= layout.life_offset);
                    assert_eq!(layout.life_page(1), layout.life_offset);
                    assert_eq!(layout.life_page(capacity) + page, layout.total);
                }
            }
        }
        assert!(Layout::new(1024, 4096, usize::MAX - 10_000, 8).is_none());
    }
}
