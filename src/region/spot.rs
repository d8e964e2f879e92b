//! Spots: words of the region whose places were checked once, for paths that go to the same few words again and again.

use std::ptr::NonNull;

use super::Region;

/// A word of a region, as its address in this process.
///
/// R4. A spot is used only with the region that has made it. (Spots are kept by those who belong to one attachment, beside
///     nothing of another.)
#[derive(Debug)]
pub(crate) struct Spot<T>(NonNull<T>);

impl<T> Clone for Spot<T> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Spot<T> {}

impl Region {
    /// The spot of a word of this region.
    #[inline]
    pub(crate) fn spot<T>(&self, word: &T) -> Spot<T> {
        let address = NonNull::from(word);
        debug_assert!(self.offset_of(address.cast()).is_some(), "a word of this region");
        Spot(address)
    }

    /// The word at a spot.
    #[inline]
    pub(crate) fn at<T>(&self, spot: Spot<T>) -> &T {
        debug_assert!(self.offset_of(spot.0.cast()).is_some(), "R4");
        // SAFETY: R4: the address comes from a reference to a word of this region, whose mapping outlives `self`.
        unsafe { spot.0.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_spot_leads_to_its_word() {
        let region = Region::sample();
        let spot = region.spot(region.word(4096));
        region.at(spot).store(5, Ordering::Relaxed);
        assert_eq!(region.word(4096).load(Ordering::Relaxed), 5);
    }
}
