//! Parts of the region whose place is checked once, when the heap is attached, so that the hot paths compare an index with
//! a length and no more.
//!
//! R3. The items of a part, as many as it says that there are, lie in the region. There are none before the part is laid.

use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use super::Region;
use super::access::WORD;

/// Equal items side by side, each made of atomic words.
#[derive(Debug)]
pub(super) struct Items<T> {
    start: NonNull<T>,
    count: u64,
}

/// The bytes of blocks.
#[derive(Debug)]
pub(super) struct Data {
    start: NonNull<u8>,
    at: u64,
    len: u64,
}

impl<T> Items<T> {
    pub(super) fn none() -> Self {
        Self { start: NonNull::dangling(), count: 0 }
    }

    /// Items of `region`, if the place is a multiple of 8 and they lie in it.
    fn laid(region: &Region, at: u64, count: u64) -> Option<Self> {
        let len = count.checked_mul(size_of::<T>() as u64).filter(|_| at.is_multiple_of(WORD))?;
        Some(Self { start: region.address(at, len)?.cast(), count })
    }

    #[inline]
    fn get(&self, index: u64) -> Option<&T> {
        if index >= self.count {
            return None;
        }
        // SAFETY: R3, and `index` was checked above.
        let address = unsafe { self.start.add(index as usize) };
        // SAFETY: R1: R3 as above; R2: a multiple of 8 from a place that `laid` has checked; items are atomic words; the
        // mapping outlives the region that has the items.
        Some(unsafe { address.as_ref() })
    }
}

impl Data {
    pub(super) fn none() -> Self {
        Self { start: NonNull::dangling(), at: 0, len: 0 }
    }
}

impl Region {
    /// Says where the page entries stand, and the pairs of a free word and a remote word: place and number. False, and there
    /// are none, if a place is not a multiple of 8 or they do not lie in the region.
    pub(crate) fn lay_tables(&mut self, entries: (u64, u64), pairs: (u64, u64)) -> bool {
        let laid = Items::laid(self, entries.0, entries.1).zip(Items::laid(self, pairs.0, pairs.1));
        let Some((entries, pairs)) = laid else { return false };
        (self.entries, self.pairs) = (entries, pairs);
        true
    }

    /// Page entry `index`. Panics beyond the last: the index comes from the checked layout.
    #[inline]
    pub(crate) fn entry(&self, index: u64) -> &AtomicU64 {
        known(self.entries.get(index))
    }

    /// Pair `index`; `None` beyond the last. The index may come from anywhere.
    #[inline]
    pub(crate) fn pair(&self, index: u64) -> Option<&[AtomicU64; 2]> {
        self.pairs.get(index)
    }

    /// Pair `index`. Panics beyond the last: the index comes from the checked layout.
    #[inline]
    pub(crate) fn known_pair(&self, index: u64) -> &[AtomicU64; 2] {
        known(self.pairs.get(index))
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

#[inline]
fn known<T>(item: Option<&T>) -> &T {
    assert!(item.is_some(), "an item's number comes from the checked layout");
    item.unwrap_or_else(|| unreachable!("asserted above"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_nothing_in_a_part_that_was_not_laid_and_nothing_behind_its_end() {
        let mut region = Region::sample();
        assert!(region.pair(0).is_none() && region.resolve(0).is_none());
        assert!(region.lay_tables((1024, 5), (4096, 10)) && region.lay_data(8192, 4096));
        assert_eq!(region.offset_of(NonNull::from(region.entry(4)).cast()), Some(1024 + 4 * 8));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| region.entry(5).as_ptr())).is_err());
        assert!(region.pair(9).is_some() && region.pair(10).is_none() && region.pair(u64::MAX).is_none());
        for at in [0, 8191, 8192, 12_287, 12_288, u64::MAX] {
            let back = region.resolve(at).and_then(|address| region.offset_of(address));
            assert_eq!(back, (8192..12_288).contains(&at).then_some(at));
        }
    }

    #[test]
    fn a_part_beyond_the_region_is_not_laid() {
        let mut region = Region::sample();
        for misplaced in [(4096, 8192), (4100, 1), (4096, u64::MAX)] {
            assert!(!region.lay_tables((4096, 1), misplaced) && !region.lay_tables(misplaced, (4096, 1)));
        }
        assert!(!region.lay_data(8192, 65_536) && !region.lay_data(u64::MAX, 2));
        assert!(region.pair(0).is_none() && region.resolve(8192).is_none());
    }
}
