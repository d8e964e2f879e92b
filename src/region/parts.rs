//! Parts of the region whose place is checked once, when the heap is attached, so that the hot paths compare an index with
//! a length and no more.
//!
//! R3. The items of a part, as many as it says that there are, lie in the region. There are none before the part is laid.

use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use super::Region;
use super::access::WORD;

/// A free word and a remote word, again and again.
#[derive(Debug)]
pub(super) struct Pairs {
    start: NonNull<[AtomicU64; 2]>,
    count: u64,
}

/// The bytes of blocks.
#[derive(Debug)]
pub(super) struct Data {
    start: NonNull<u8>,
    at: u64,
    len: u64,
}

impl Pairs {
    pub(super) fn none() -> Self {
        Self { start: NonNull::dangling(), count: 0 }
    }
}

impl Data {
    pub(super) fn none() -> Self {
        Self { start: NonNull::dangling(), at: 0, len: 0 }
    }
}

impl Region {
    /// Says where the pairs of words stand. False, and there are none, if the place is not a multiple of 8 or they do not
    /// lie in the region.
    pub(crate) fn lay_pairs(&mut self, at: u64, count: u64) -> bool {
        let len = count.checked_mul(2 * WORD).filter(|_| at.is_multiple_of(WORD));
        let Some(start) = len.and_then(|len| self.address(at, len)) else { return false };
        self.pairs = Pairs { start: start.cast(), count };
        true
    }

    /// Pair `index`; `None` beyond the last. The index may come from anywhere.
    #[inline]
    pub(crate) fn pair(&self, index: u64) -> Option<&[AtomicU64; 2]> {
        if index >= self.pairs.count {
            return None;
        }
        // SAFETY: R3, and `index` was checked above.
        let address = unsafe { self.pairs.start.add(index as usize) };
        // SAFETY: R1: R3 as above; R2: a multiple of 8 from a place that `lay_pairs` has checked; all access to shared words
        // is atomic; the mapping outlives `self`.
        Some(unsafe { address.as_ref() })
    }

    /// Says where the bytes of blocks stand. False, and there are none, if they do not lie in the region.
    pub(crate) fn lay_data(&mut self, at: u64, len: u64) -> bool {
        let Some(start) = self.address(at, len) else { return false };
        self.data = Data { start, at, len };
        true
    }

    /// The address, in this process, of an offset among the bytes of blocks; `None` elsewhere.
    #[inline]
    pub(crate) fn resolve(&self, at: u64) -> Option<NonNull<u8>> {
        let distance = at.wrapping_sub(self.data.at);
        if distance >= self.data.len {
            return None;
        }
        // SAFETY: R3, and the distance was checked above.
        Some(unsafe { self.data.start.add(distance as usize) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Mapping, Memory};
    use super::*;

    fn region() -> Region {
        Region::new(Mapping::memory(Memory::zeroed(65_536).unwrap()), None)
    }

    #[test]
    fn there_is_nothing_in_a_part_that_was_not_laid_and_nothing_behind_its_end() {
        let mut region = region();
        assert!(region.pair(0).is_none() && region.resolve(0).is_none());
        assert!(region.lay_pairs(4096, 10) && region.lay_data(8192, 4096));
        assert!(region.pair(9).is_some() && region.pair(10).is_none() && region.pair(u64::MAX).is_none());
        for (at, lies_inside) in [(8191, false), (8192, true), (12_287, true), (12_288, false), (0, false), (u64::MAX, false)] {
            let address = region.resolve(at);
            assert_eq!(address.and_then(|address| region.offset_of(address)), lies_inside.then_some(at));
        }
    }

    #[test]
    fn a_part_beyond_the_region_is_not_laid() {
        let mut region = region();
        assert!(!region.lay_pairs(4096, 4096) && !region.lay_pairs(4100, 1) && !region.lay_pairs(4096, u64::MAX));
        assert!(!region.lay_data(8192, 65_536) && !region.lay_data(u64::MAX, 2));
        assert!(region.pair(0).is_none() && region.resolve(8192).is_none());
    }
}
