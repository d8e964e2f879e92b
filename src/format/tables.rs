//! Every word of the region by name.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::geometry::{CHUNK_PAGES, Geometry, SUMMARY_LEN};
use super::lane::{LANE_RECORD_LEN, LaneId, LaneRecord};
use super::root::{ROOT_RECORD_LEN, RootRecord};
use super::{ClassIndex, Header, PageEntry, PageIndex, superblock};
use crate::error::{Corruption, Error};
use crate::region::Region;

/// A region and the places of its tables.
///
/// Page entries, slab words and blocks are reached as parts of the region that are checked once.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) region: Region,
    pub(crate) geometry: Geometry,
    pub(crate) header: Header,
    /// The most pages that were seen to be in use (F2): their number never falls.
    high_seen: AtomicU32,
}

/// A summary node: free pages at the start, in the longest run, at the end of what it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    pub(crate) start: u32,
    pub(crate) longest: u32,
    pub(crate) end: u32,
}

impl Tables {
    pub(crate) fn new(mut region: Region, header: Header, geometry: Geometry) -> Self {
        let pages = u64::from(geometry.pages);
        let pairs = pages << geometry.pairs_shift;
        let laid = region.lay_tables((geometry.entries_at, pages), (geometry.bitmaps_at, pairs))
            && region.lay_data(geometry.data_start, geometry.data_len);
        assert!(laid, "the geometry was checked against the region's length");
        Self { region, geometry, header, high_seen: AtomicU32::new(0) }
    }

    /// The word at a place of the superblock.
    pub(crate) fn superblock(&self, at: u64) -> &AtomicU64 {
        self.region.word(at)
    }

    /// The lock word.
    pub(crate) fn lock(&self) -> &AtomicU32 {
        self.region.half(superblock::LOCK)
    }

    /// Where the list of orphans of a class starts: a page link.
    pub(crate) fn orphan_head(&self, class: ClassIndex) -> &AtomicU32 {
        self.region.half(superblock::ORPHANS + u64::from(class.0 & 63) * 4)
    }

    /// Pages whose entries are reserved, at most all of them.
    pub(crate) fn pages_high(&self) -> u32 {
        let word = self.superblock(superblock::PAGES_HIGH).load(Ordering::Acquire);
        let high = u32::try_from(word).unwrap_or(u32::MAX).min(self.geometry.pages);
        // Written seldom: calls of every thread read the cache line in which it stands.
        if high > self.high_seen.load(Ordering::Relaxed) {
            self.high_seen.fetch_max(high, Ordering::Relaxed);
        }
        high
    }

    /// The page of this number, if it is in use so far (F2).
    #[inline]
    pub(crate) fn page(&self, number: u32) -> Option<PageIndex> {
        let known = number < self.high_seen.load(Ordering::Relaxed) || number < self.pages_high();
        known.then_some(PageIndex(number))
    }

    /// As [`Self::page`], for a number that the region itself holds at `at`.
    pub(crate) fn page_from_region(&self, number: u32, at: u64) -> Result<PageIndex, Corruption> {
        self.page(number).ok_or(Corruption::new("a link leads to a page that is not in use", at))
    }

    /// The page that a link names; `None` for the zero link.
    pub(crate) fn linked_page(&self, link: u32, at: u64) -> Result<Option<PageIndex>, Corruption> {
        link.checked_sub(1).map(|number| self.page_from_region(number, at)).transpose()
    }

    /// The page in which `offset` lies; `None` outside the pages in use.
    #[inline]
    pub(crate) fn page_at(&self, offset: u64) -> Option<PageIndex> {
        let distance = offset.checked_sub(self.geometry.data_start)?;
        self.page(u32::try_from(distance >> self.geometry.page_shift).ok()?)
    }

    /// The number, among all pairs of a free word and a remote word, of the first that belongs to page `head`.
    #[inline]
    pub(crate) fn first_pair(&self, head: PageIndex) -> u64 {
        u64::from(head.get()) << self.geometry.pairs_shift
    }

    /// Place of a pair, for messages.
    pub(crate) fn pair_at(&self, pair: u64) -> u64 {
        self.geometry.bitmaps_at + pair * 16
    }

    /// Where a page's bytes start.
    #[inline]
    pub(crate) fn page_start(&self, page: PageIndex) -> u64 {
        self.geometry.data_start + (u64::from(page.get()) << self.geometry.page_shift)
    }

    /// The page `distance` pages before `page`, if there is one.
    #[inline]
    pub(crate) fn page_before(page: PageIndex, distance: u32) -> Option<PageIndex> {
        page.get().checked_sub(distance).map(PageIndex)
    }

    /// Where the page entries start, those of pages that are not in use so far included.
    pub(crate) fn entries_at(&self) -> u64 {
        self.geometry.entries_at
    }

    /// Place of a page's entry, for messages.
    pub(crate) fn entry_at(&self, page: PageIndex) -> u64 {
        self.geometry.entries_at + u64::from(page.get()) * 8
    }

    /// The word of a page's entry.
    #[inline]
    pub(crate) fn entry_word(&self, page: PageIndex) -> &AtomicU64 {
        self.region.entry(u64::from(page.get()))
    }

    /// A page's entry now.
    #[inline]
    pub(crate) fn entry(&self, page: PageIndex) -> PageEntry {
        PageEntry(self.entry_word(page).load(Ordering::Acquire))
    }

    /// Place of a page's link, for messages.
    pub(crate) fn link_at(&self, page: PageIndex) -> u64 {
        self.geometry.links_at + u64::from(page.get()) * 8
    }

    /// A page's link: which list its slab waits in, and between which others.
    pub(crate) fn link_word(&self, page: PageIndex) -> &AtomicU64 {
        self.region.word(self.link_at(page))
    }

    /// In-use bits of 64 pages, of which `word * 64` is the first; `word` is below `pages_high / 64`, rounded up.
    pub(crate) fn in_use_word(&self, word: u32) -> &AtomicU64 {
        self.region.word(self.in_use_at(word))
    }

    /// Place of a word of in-use bits, for messages.
    pub(crate) fn in_use_at(&self, word: u32) -> u64 {
        self.geometry.in_use_at + u64::from(word) * 8
    }

    /// Where the bits stand that no page below `high` has: in-use bits, reserved bits, group bits; each with those bits of
    /// its first word that belong to groups below.
    pub(crate) fn bits_above(&self, high: u32) -> [(std::ops::Range<u64>, u64); 3] {
        let geometry = &self.geometry;
        let (pages, groups) = (u64::from(high.div_ceil(64)) * 8, geometry.groups(high));
        let below = (1u64 << (groups % 64)) - 1;
        [
            (geometry.in_use_at + pages..geometry.reserved_at, 0),
            (geometry.reserved_at + pages..geometry.groups_at, 0),
            (geometry.groups_at + u64::from(groups / 64) * 8..geometry.summary_at[0], below),
        ]
    }

    /// Reserved bits of 64 pages.
    pub(crate) fn reserved_word(&self, word: u32) -> &AtomicU64 {
        self.region.word(self.geometry.reserved_at + u64::from(word) * 8)
    }

    /// The groups whose slab bitmaps a span's pages need.
    pub(crate) fn groups_of(&self, first: PageIndex, pages: u32) -> std::ops::RangeInclusive<u32> {
        let group_pages = self.geometry.group_pages();
        let last = first.get() + pages.saturating_sub(1);
        first.get() / group_pages..=last / group_pages
    }

    /// First page and number of pages of a group.
    pub(crate) fn group_pages(&self, group: u32) -> (u32, u32) {
        let group_pages = self.geometry.group_pages();
        let first = group * group_pages;
        (first, group_pages.min(self.geometry.pages - first))
    }

    /// The word that holds a group's bit, and the bit.
    pub(crate) fn group_bit(&self, group: u32) -> (&AtomicU64, u64) {
        (self.region.word(self.geometry.groups_at + u64::from(group / 64) * 8), 1 << (group % 64))
    }

    /// True if the slab bitmaps of a span's pages are reserved memory.
    pub(crate) fn has_bitmaps(&self, first: PageIndex, pages: u32) -> bool {
        let last = self.geometry.pages.saturating_sub(1).min(first.get().saturating_add(pages.saturating_sub(1)));
        let group_pages = self.geometry.group_pages();
        (first.get() / group_pages..=last / group_pages).all(|group| {
            let (word, bit) = self.group_bit(group);
            word.load(Ordering::Acquire) & bit != 0
        })
    }

    /// Place and length of the slab bitmaps of these pages.
    pub(crate) fn bitmaps_range(&self, first: u32, pages: u32) -> (u64, u64) {
        let stride = self.geometry.page_size() / 64;
        (self.geometry.bitmaps_at + u64::from(first) * stride, u64::from(pages) * stride)
    }

    fn summary_place(&self, level: usize, node: u32) -> u64 {
        self.geometry.summary_at[level] + u64::from(node) * SUMMARY_LEN
    }

    /// A summary node; `node` is below the level's length for the pages in use.
    pub(crate) fn summary(&self, level: usize, node: u32) -> Summary {
        let at = self.summary_place(level, node);
        let field = |index: u64| self.region.half(at + index * 4).load(Ordering::Relaxed);
        Summary { start: field(0), longest: field(1), end: field(2) }
    }

    pub(crate) fn set_summary(&self, level: usize, node: u32, summary: Summary) {
        let at = self.summary_place(level, node);
        let fields = [summary.start, summary.longest, summary.end];
        for (index, value) in (0u64..).zip(fields) {
            self.region.half(at + index * 4).store(value, Ordering::Relaxed);
        }
    }

    /// Place of a summary node, for messages.
    pub(crate) fn summary_at(&self, level: usize, node: u32) -> u64 {
        self.summary_place(level, node)
    }

    /// Reserves the tables of the pages below `high`, given that those of the pages below `from` are reserved.
    pub(crate) fn reserve_tables(&self, from: u32, high: u32) -> Result<(), Error> {
        let (from, high) = (u64::from(from), u64::from(high));
        let geometry = &self.geometry;
        let (from_bits, high_bits) = (from / 64 * 8, high.div_ceil(64) * 8);
        let group_bits = u64::from(geometry.groups(high as u32)).div_ceil(64) * 8;
        let mut pieces = vec![
            (geometry.entries_at + from * 8, geometry.entries_at + high * 8),
            (geometry.links_at + from * 8, geometry.links_at + high * 8),
            (geometry.in_use_at + from_bits, geometry.in_use_at + high_bits),
            (geometry.reserved_at + from_bits, geometry.reserved_at + high_bits),
            (geometry.groups_at, geometry.groups_at + group_bits),
        ];
        for (level, at) in geometry.summary_at.iter().enumerate() {
            let nodes = |pages: u64| u64::from(Geometry::summary_len(level, pages as u32)) * SUMMARY_LEN;
            pieces.push((at + nodes(from).saturating_sub(SUMMARY_LEN), at + nodes(high)));
        }
        // Neighbouring pieces that share or touch an OS page are reserved in one call.
        let mut pending: Option<(u64, u64)> = None;
        for (start, end) in pieces {
            pending = match pending {
                Some((first, last)) if start <= last.next_multiple_of(4096) && start >= first => {
                    Some((first, end.max(last)))
                }
                Some((first, last)) => {
                    self.region.reserve(first, last - first)?;
                    Some((start, end))
                }
                None => Some((start, end)),
            };
        }
        if let Some((first, last)) = pending {
            self.region.reserve(first, last - first)?;
        }
        Ok(())
    }

    /// The next value of `PAGES_HIGH` that covers `needed` pages.
    pub(crate) fn next_high(&self, needed: u32) -> u32 {
        needed.next_multiple_of(CHUNK_PAGES).min(self.geometry.pages)
    }

    /// A lane's record; `None` for a number beyond the lanes.
    pub(crate) fn lane(&self, lane: LaneId) -> Option<LaneRecord<'_>> {
        let number = u64::from(lane.get());
        let at = superblock::LEN + number * LANE_RECORD_LEN;
        (number <= u64::from(self.geometry.lanes)).then_some(LaneRecord { region: &self.region, at })
    }

    /// A root's record, if its slot is reserved; an unreserved slot is empty. `slot` is below the number of slots.
    pub(crate) fn root(&self, slot: u32) -> Option<RootRecord<'_>> {
        let (word, bit) = self.root_reserved_bit(slot);
        let reserved = word.load(Ordering::Acquire) & bit != 0;
        reserved.then_some(RootRecord { region: &self.region, at: self.root_at(slot) })
    }

    /// Place of a root's record.
    pub(crate) fn root_at(&self, slot: u32) -> u64 {
        self.geometry.roots_at + u64::from(slot) * ROOT_RECORD_LEN
    }

    /// Slots share a bit with those in the same 4 KiB of the table.
    fn root_reserved_bit(&self, slot: u32) -> (&AtomicU64, u64) {
        let piece = u64::from(slot) * ROOT_RECORD_LEN / 4096 % (superblock::ROOTS_RESERVED_WORDS * 64);
        (self.superblock(superblock::ROOTS_RESERVED + piece / 64 * 8), 1 << (piece % 64))
    }

    /// A root's record; reserves its memory where that was not done yet. Under the heap lock.
    pub(crate) fn reserve_root(&self, slot: u32) -> Result<RootRecord<'_>, Error> {
        let (word, bit) = self.root_reserved_bit(slot);
        let at = self.root_at(slot);
        if word.load(Ordering::Acquire) & bit == 0 {
            let first = u64::from(slot) * ROOT_RECORD_LEN / 4096 * 4096;
            self.region.reserve(self.geometry.roots_at + first, 4096)?;
            word.fetch_or(bit, Ordering::Release);
        }
        Ok(RootRecord { region: &self.region, at })
    }
}
