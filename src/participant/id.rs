//! The name of a participant: pure functions on a `u64`.

use std::fmt;

/// Who owns, owned or wants a lock.
///
/// ```text
///  63            20 19      18    17      16      15      0
/// +----------------+----------+--------+-----------+---------+
/// |   generation   | reserved | FENCES | INHERITED |  index  |
/// +----------------+----------+--------+-----------+---------+
/// ```
///
/// Index 0 is nobody. The generation says which user of the row is meant; a
/// row would have to be re-used 2^44 times before an id comes back. The flags
/// are set in a lock's owner word only. INHERITED: its owner took over from a
/// dead one. FENCES: its owner will release with a fence (see `lock`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Id(u64);

const INDEX: u64 = 0xffff;
const INHERITED: u64 = 1 << 16;
const FENCES: u64 = 1 << 17;
const GENERATION_SHIFT: u32 = 20;

impl Id {
    /// The `generation`th user of row `index`.
    pub(crate) const fn new(index: u32, generation: u64) -> Self {
        Self(generation << GENERATION_SHIFT | index as u64 & INDEX)
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[inline(always)]
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// The row, 0 for nobody.
    #[inline(always)]
    pub(crate) const fn index(self) -> u32 {
        (self.0 & INDEX) as u32
    }

    pub(crate) const fn generation(self) -> u64 {
        self.0 >> GENERATION_SHIFT
    }

    pub(crate) const fn is_nobody(self) -> bool {
        self.index() == 0
    }

    /// Whether the owner took over from a dead one.
    pub(crate) const fn inherited(self) -> bool {
        self.0 & INHERITED != 0
    }

    /// The same participant as one who took over from a dead owner.
    pub(crate) const fn as_heir(self) -> Self {
        Self(self.0 | INHERITED)
    }

    /// Whether the owner will release with a fence.
    pub(crate) const fn fences(self) -> bool {
        self.0 & FENCES != 0
    }

    /// The same participant as one who will release with a fence.
    pub(crate) const fn as_fencing(self) -> Self {
        Self(self.0 | FENCES)
    }

    /// The participant alone, without flags.
    pub(crate) const fn plain(self) -> Self {
        Self::new(self.index(), self.generation())
    }
}

/// The generation that a row's next user has: never 0, so that an id with a
/// row is never all-zero in its upper part by accident.
pub(crate) const fn next_generation(generation: u64) -> u64 {
    const MASK: u64 = u64::MAX >> GENERATION_SHIFT;
    let next = generation.wrapping_add(1) & MASK;
    if next == 0 { 1 } else { next }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.index(), self.generation())?;
        if self.inherited() { f.write_str("+inherited") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_apart() {
        for index in [1, 2, 0x7fff, 0xffff] {
            for generation in [1, 2, 1 << 43, (1 << 44) - 1] {
                let id = Id::new(index, generation);
                assert_eq!((id.index(), id.generation()), (index, generation));
                assert!(!id.inherited() && !id.is_nobody());
                assert!(!id.fences() && id.as_fencing().fences());
                assert!(id.as_fencing() != id && id.as_fencing().plain() == id);
                let heir = id.as_heir();
                assert!(heir.inherited() && heir != id && heir.plain() == id);
                assert_eq!((heir.index(), heir.generation()), (index, generation));
            }
        }
        assert!(Id::from_bits(0).is_nobody());
        assert_eq!(next_generation((1 << 44) - 1), 1);
        assert_eq!(next_generation(u64::MAX), 1);
    }
}
