//! Size classes: the sizes that blocks are rounded up to, and how slabs of them are cut.
//!
//! Steps of 16 bytes up to 128, then four classes per doubling, so that rounding wastes at most a fifth (as in jemalloc).
//! Every size is a multiple of 16, and slabs start at page boundaries; a class whose size is a multiple of an alignment
//! therefore has only blocks aligned to it.

#![allow(
    clippy::indexing_slicing,
    reason = "tables of constant length, built and indexed here by values bounded beside the access"
)]

use crate::format::{CLASSES_MAX, ClassIndex, Header};

/// Largest size that the lookup table knows.
const SMALL_MAX: u64 = 32_768;
/// A class that no heap has: what the lookup table says of sizes that are 0 or above the heap's largest class.
const NO_CLASS: u8 = CLASSES_MAX as u8;
/// Entries of tables that are indexed by any class, [`NO_CLASS`] included; a power of two.
pub(crate) const CLASS_SLOTS: usize = 64;

const _: () = assert!((NO_CLASS as usize) < CLASS_SLOTS, "there is room for a class that no heap has");
/// A slab has at least this many blocks.
const BLOCKS_MIN: u64 = 8;
/// A pair of words, free and remote, stands for 64 blocks; pages have one for so many bytes, enough for the smallest
/// blocks.
const BYTES_PER_PAIR: u64 = 64 * 16;
/// Pairs of words in a cache line.
pub(super) const PAIRS_PER_LINE: u64 = 4;
/// Fraction bits of the reciprocal by which offsets are divided by block sizes.
const RECIPROCAL_SHIFT: u32 = 42;

/// Size in bytes of class `index`, for any index below 64.
const fn size_of_class(index: u32) -> u64 {
    if index < 8 {
        return 16 * (index as u64 + 1);
    }
    let (doubling, quarter) = ((index - 8) / 4, (index - 8) % 4);
    let base = 128u64 << doubling;
    base + base / 4 * (quarter as u64 + 1)
}

/// Everything about one size class that the hot paths need, in a cache line.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Class {
    /// Bytes per block.
    pub(crate) size: u32,
    /// Blocks per slab.
    pub(crate) blocks: u32,
    /// 2^42 / size, rounded up.
    reciprocal: u64,
    /// Inverse of the odd part of `size`, modulo 2^64.
    pub(crate) inverse: u64,
    /// Pages per slab.
    pub(crate) pages: u32,
    /// Index of the last word of a slab's bitmap.
    pub(crate) last_word: u32,
    /// A slab on page n starts at line `n & skew` of its pages' pairs of words.
    pub(crate) skew: u32,
    /// Bits of the last word that stand for blocks.
    pub(crate) last_mask: u64,
}

impl Class {
    fn new(size: u64, header: &Header) -> Self {
        let page_size = header.page_size();
        let bytes_min = (BLOCKS_MIN * size).max(u64::from(header.slab_bytes_min)).max(page_size);
        let pages_min = bytes_min.div_ceil(page_size);
        // Take a few more pages where that leaves less over behind the last block.
        let waste = |pages: u64| (pages * page_size % size) * 16 > pages * page_size;
        let pages = (pages_min..pages_min * 2).find(|pages| !waste(*pages)).unwrap_or(pages_min);
        let blocks = pages * page_size / size;
        let beyond = blocks % 64;
        let lines = |pairs: u64| pairs.div_ceil(PAIRS_PER_LINE);
        let spare = (pages * page_size / BYTES_PER_PAIR / PAIRS_PER_LINE).saturating_sub(lines(blocks.div_ceil(64)));
        Self {
            skew: (1 << (spare + 1).ilog2()) - 1,
            size: size as u32,
            blocks: blocks as u32,
            reciprocal: (1u64 << RECIPROCAL_SHIFT).div_ceil(size),
            inverse: inverse_of(size >> size.trailing_zeros()),
            pages: pages as u32,
            last_word: ((blocks - 1) / 64) as u32,
            last_mask: if beyond == 0 { u64::MAX } else { (1 << beyond) - 1 },
        }
    }

    /// Index of the block in which the byte lies that is `distance` bytes into the slab, and the distance from that
    /// block's start. `distance` is below the slab's length, thus below 2^21: the product does not overflow, and the
    /// quotient is exact (Granlund and Montgomery, PLDI 1994).
    #[inline]
    pub(crate) fn index_of(&self, distance: u64) -> (u32, u64) {
        let index = distance.wrapping_mul(self.reciprocal) >> RECIPROCAL_SHIFT;
        (index as u32, distance.wrapping_sub(index.wrapping_mul(u64::from(self.size))))
    }

    /// Bytes of a slab's blocks.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.blocks) * u64::from(self.size)
    }

    /// Number of words of a slab's bitmap.
    pub(crate) fn words(&self) -> u32 {
        self.last_word + 1
    }

    /// Bits of word `word` that stand for blocks.
    #[inline]
    pub(crate) fn mask(&self, word: u32) -> u64 {
        if word == self.last_word { self.last_mask } else { u64::MAX }
    }
}

/// The inverse of an odd number modulo 2^64, by Newton's method: each step doubles the bits that are right, of which an odd
/// number's own last three are.
fn inverse_of(odd: u64) -> u64 {
    (0..5).fold(odd, |inverse, _| inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse))))
}

/// The classes of one heap: fixed by its header.
#[derive(Debug)]
pub(crate) struct Classes {
    table: [Class; CLASS_SLOTS],
    /// Class of every size up to [`SMALL_MAX`], in steps of 16.
    small: [u8; SMALL_MAX as usize / 16 + 1],
    count: u32,
}

impl Classes {
    pub(crate) fn new(header: &Header) -> Self {
        let mut table = [Class::default(); CLASS_SLOTS];
        for (index, class) in (0..header.classes.min(CLASSES_MAX)).zip(&mut table) {
            *class = Class::new(size_of_class(index), header);
        }
        let count = header.classes.min(CLASSES_MAX);
        let mut small = [NO_CLASS; SMALL_MAX as usize / 16 + 1];
        // Each class serves the sizes from the one below it up to its own; attaching is quicker than size by size.
        let mut rest = small.get_mut(1..).unwrap_or_default();
        let mut below = 0;
        for index in 0..count {
            let size = size_of_class(index).min(SMALL_MAX);
            let (own, above) = rest.split_at_mut(((size - below) / 16) as usize);
            own.fill(index as u8);
            (rest, below) = (above, size);
        }
        Self { table, small, count }
    }

    /// How many classes a heap should have whose largest class is to be `size_max` bytes.
    pub(crate) fn count_up_to(size_max: u64) -> u32 {
        smallest(size_max) + 1
    }

    /// Number of classes.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// The class for `size` bytes, or one that the heap has not: its bins are always empty.
    #[inline]
    pub(crate) fn quick(&self, size: u64) -> ClassIndex {
        if size <= SMALL_MAX { ClassIndex(self.small[((size + 15) >> 4) as usize]) } else { ClassIndex(NO_CLASS) }
    }

    /// The class for `size` bytes, which are not 0; `None` if none is large enough.
    pub(crate) fn for_size(&self, size: u64) -> Option<ClassIndex> {
        let index = smallest(size);
        (index < self.count).then_some(ClassIndex(index as u8))
    }

    /// The smallest class for `size` bytes whose blocks are all aligned to `alignment`, a power of two.
    pub(crate) fn for_aligned(&self, size: u64, alignment: u64) -> Option<ClassIndex> {
        let first = self.for_size(size.max(alignment))?;
        (u32::from(first.0)..self.count)
            .find(|index| size_of_class(*index).is_multiple_of(alignment))
            .filter(|index| size_of_class(*index) <= 2 * size.max(alignment))
            .map(|index| ClassIndex(index as u8))
    }

    /// The class of this number; `None` if the heap has fewer.
    #[inline]
    pub(crate) fn get(&self, class: ClassIndex) -> Option<&Class> {
        if u32::from(class.0) < self.count { self.table.get(usize::from(class.0)) } else { None }
    }

    /// All classes.
    pub(crate) fn indices(&self) -> impl Iterator<Item = ClassIndex> + use<> {
        (0..self.count as u8).map(ClassIndex)
    }
}

/// Index of the smallest class of at least `size` bytes, were there classes without end.
fn smallest(size: u64) -> u32 {
    if size <= 128 {
        return (size.div_ceil(16).max(1) - 1) as u32;
    }
    // 2^exponent < size <= 2^(exponent + 1), and each class is a quarter of 2^exponent above the one before.
    let exponent = (size - 1).ilog2();
    let quarter = ((size - 1) >> (exponent - 2)) & 3;
    8 + (exponent - 7) * 4 + quarter as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(page_shift: u32) -> Header {
        Header {
            capacity: 64 << 20,
            page_shift,
            lanes: 4,
            root_slots: 16,
            classes: Classes::count_up_to(32_768),
            slab_bytes_min: 16_384,
            instance: [0; 2],
            created_ms: 0,
        }
    }

    #[test]
    fn every_size_has_the_smallest_class_that_holds_it() {
        let classes = Classes::new(&header(12));
        assert_eq!(size_of_class(classes.count() - 1), 32_768);
        for size in 1..=32_768u64 {
            let class = classes.for_size(size).unwrap();
            assert!(size_of_class(u32::from(class.0)) >= size);
            assert!(class.0 == 0 || size_of_class(u32::from(class.0) - 1) < size, "size {size}");
        }
        assert_eq!(classes.for_size(32_769), None);
    }

    #[test]
    fn rounding_wastes_at_most_a_fifth_above_128_bytes() {
        let classes = Classes::new(&header(12));
        for size in 129..=32_768u64 {
            let rounded = u64::from(classes.get(classes.for_size(size).unwrap()).unwrap().size);
            assert!((rounded - size) * 5 <= rounded, "size {size}");
        }
    }

    #[test]
    fn every_byte_of_a_slab_is_found_in_its_block() {
        for page_shift in [12, 14, 16] {
            let header = header(page_shift);
            let classes = Classes::new(&header);
            for class in classes.indices().map(|index| *classes.get(index).unwrap()) {
                let bytes = u64::from(class.pages) << page_shift;
                assert!(u64::from(class.blocks) >= BLOCKS_MIN && u64::from(class.blocks) * u64::from(class.size) <= bytes);
                assert!(bytes < 1 << 21, "index_of needs distances below 2^21");
                let last_pair = u64::from(class.skew) * PAIRS_PER_LINE + u64::from(class.last_word);
                assert!((class.skew + 1).is_power_of_two() && last_pair < bytes / BYTES_PER_PAIR);
                assert!(class.blocks as u64 * 16 <= bytes, "the bitmap has room for a block per 16 bytes");
                for distance in (0..bytes).step_by(if cfg!(miri) { 997 } else { 1 }) {
                    let size = u64::from(class.size);
                    assert_eq!(class.index_of(distance), ((distance / size) as u32, distance % size));
                }
            }
        }
    }

    #[test]
    fn the_inverse_gives_the_quotient_of_multiples_and_no_small_number_for_others() {
        let classes = Classes::new(&header(12));
        for class in classes.indices().map(|index| *classes.get(index).unwrap()) {
            let size = u64::from(class.size);
            for distance in (0..4 * size).step_by(if cfg!(miri) { 1009 } else { 1 }) {
                let index = distance.wrapping_mul(class.inverse).rotate_right(class.size.trailing_zeros());
                assert_eq!(index < u64::from(class.blocks), distance.is_multiple_of(size), "{distance} of {size}");
                assert!(!distance.is_multiple_of(size) || index == distance / size);
            }
        }
    }

    #[test]
    fn an_alignment_leads_to_a_class_that_keeps_it() {
        let classes = Classes::new(&header(12));
        for shift in 3..=12 {
            let alignment = 1u64 << shift;
            for size in [1, 15, 100, 500, 1000, 4000, 5000, 9000] {
                let class = classes.for_aligned(size, alignment).unwrap();
                let rounded = u64::from(classes.get(class).unwrap().size);
                assert!(rounded >= size && rounded.is_multiple_of(alignment));
            }
        }
    }
}
