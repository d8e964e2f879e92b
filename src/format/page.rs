//! Pages: their numbers, and the table entry that says what one holds.

use std::num::NonZeroU32;

use super::LaneId;

/// A page of the data area, counted from its start. Made by [`super::Tables::page`] (F2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PageIndex(pub(super) u32);

impl PageIndex {
    pub(crate) fn get(self) -> u32 {
        self.0
    }

    /// How a link or a list end names this page: never zero, which means "none".
    pub(crate) fn link(self) -> u32 {
        self.0 + 1
    }
}

/// How many pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PageCount(NonZeroU32);

impl PageCount {
    pub(crate) fn new(pages: u32) -> Option<Self> {
        NonZeroU32::new(pages).map(Self)
    }

    pub(crate) fn get(self) -> u32 {
        self.0.get()
    }
}

/// A size class, counted from the smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct ClassIndex(pub(crate) u8);

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageState {
    /// Nothing.
    Free,
    /// Part of a slab; the entry's number is the distance from the slab's first page.
    Slab,
    /// The first page of a large block; the number is the block's page count.
    Large,
    /// A further page of a large block; the number is the distance from its first page.
    LargeTail,
    /// The first page of a slab, wholly free, that its lane keeps; its further pages stay as they were.
    KeptSlab,
    /// The first page of what was a large block, and is kept by the lane that the entry names; the number is the page
    /// count, and its further pages stay as they were.
    KeptLarge,
}

/// One page table entry, as it stands in the region.
///
/// | bits | meaning |
/// |---|---|
/// | 0..4 | state: 0 free, 1 slab, 2 first page of a large block, 3 further page of one, 4 first page of a kept slab, |
/// | | 5 first page of a kept span that was a large block |
/// | 8..16 | slab: size class |
/// | 16..32 | lane that owns the slab, that allocated the large block, or that keeps the span; 0 = orphan, or none |
/// | 32..64 | number: see [`PageState`] |
///
/// All zero is a free page, so that a fresh region's table needs no writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct PageEntry(pub(crate) u64);

const _: () = assert!(size_of::<PageEntry>() == 8, "the page table has 8 bytes per page");

impl PageEntry {
    pub(crate) const FREE: Self = Self(0);

    /// The entry of a slab's page, for distance 0.
    pub(crate) fn slab(class: ClassIndex, lane: LaneId) -> Self {
        Self(1 | u64::from(class.0) << 8 | u64::from(lane.get()) << 16)
    }

    /// The entry of a large block's first page, without the page count.
    pub(crate) fn large(lane: LaneId) -> Self {
        Self(2 | u64::from(lane.get()) << 16)
    }

    /// The entry of the page `distance` pages into a span of `count` pages whose first page has this entry.
    pub(crate) fn at(self, distance: u32, count: PageCount) -> Self {
        let number = match self.state() {
            Some(PageState::Slab) => distance,
            Some(PageState::Large) if distance == 0 => count.get(),
            Some(PageState::Large) => return Self(self.0 & 0xffff_0000 | 3 | u64::from(distance) << 32),
            _ => 0,
        };
        Self(self.0 & 0xffff_ffff | u64::from(number) << 32)
    }

    /// The first page's entry of the same span, kept.
    pub(crate) fn kept(self) -> Self {
        Self(self.0 + 3)
    }

    /// True for the first page of a kept span.
    pub(crate) fn is_kept(self) -> bool {
        matches!(self.state(), Some(PageState::KeptSlab | PageState::KeptLarge))
    }

    /// True if bits are set that mean nothing in this state.
    pub(crate) fn has_stray_bits(self) -> bool {
        let meaning = match self.state() {
            Some(PageState::Slab | PageState::KeptSlab) => !0xf0,
            Some(PageState::Large | PageState::LargeTail | PageState::KeptLarge) => !0xfff0,
            Some(PageState::Free) | None => 0xf,
        };
        self.0 & !meaning != 0
    }

    /// The same entry for another lane.
    pub(crate) fn with_lane(self, lane: LaneId) -> Self {
        Self(self.0 & !0xffff_0000 | u64::from(lane.get()) << 16)
    }

    /// `None` for a state that this version does not write.
    #[inline]
    pub(crate) fn state(self) -> Option<PageState> {
        match self.0 & 0xf {
            0 => Some(PageState::Free),
            1 => Some(PageState::Slab),
            2 => Some(PageState::Large),
            3 => Some(PageState::LargeTail),
            4 => Some(PageState::KeptSlab),
            5 => Some(PageState::KeptLarge),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn class(self) -> ClassIndex {
        ClassIndex((self.0 >> 8) as u8)
    }

    #[inline]
    pub(crate) fn lane(self) -> LaneId {
        LaneId::new((self.0 >> 16) as u16)
    }

    #[inline]
    pub(crate) fn number(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entries_of_a_span_say_where_its_head_is() {
        let count = PageCount::new(3).unwrap();
        let slab = PageEntry::slab(ClassIndex(7), LaneId::new(9));
        let entry = slab.at(2, count);
        assert_eq!(
            (entry.state(), entry.class(), entry.lane(), entry.number()),
            (Some(PageState::Slab), ClassIndex(7), LaneId::new(9), 2)
        );
        assert_eq!((slab.kept().state(), slab.kept().class()), (Some(PageState::KeptSlab), slab.class()));
        let large = PageEntry::large(LaneId::new(5));
        assert_eq!((large.kept().state(), large.kept().lane()), (Some(PageState::KeptLarge), large.lane()));
        assert_eq!((large.at(0, count).state(), large.at(0, count).number()), (Some(PageState::Large), 3));
        assert_eq!((large.at(1, count).state(), large.at(1, count).number()), (Some(PageState::LargeTail), 1));
        assert_eq!(large.at(1, count).lane(), LaneId::new(5));
        assert_eq!(PageEntry::FREE.at(2, count), PageEntry::FREE);
        assert_eq!(slab.with_lane(LaneId::new(0)).lane(), LaneId::new(0));
        assert_eq!(slab.with_lane(LaneId::new(0)).class(), ClassIndex(7));
    }
}
