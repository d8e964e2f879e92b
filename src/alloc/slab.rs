//! Slabs: two bits per block, and what is done to them.
//!
//! The words of a slab's bitmap come in pairs, free and remote, so that both bits of a block share a cache line; they
//! stand apart from the pages, so that a block that is overrun cannot reach them.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::size_class::PAIRS_PER_LINE;
use super::{Class, Classes};
use crate::error::{Corruption, Error, OffsetFault, Result};
use crate::format::{ClassIndex, LaneId, PageCount, PageEntry, PageIndex, PageState, Tables, superblock};

/// A slab: its first page, its class, and its lane as the entry said when it was looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slab<'a> {
    pub(crate) head: PageIndex,
    pub(crate) class: ClassIndex,
    pub(crate) info: &'a Class,
    pub(crate) lane: LaneId,
}

/// Where a block's two bits are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockBit {
    pub(crate) word: u32,
    pub(crate) mask: u64,
}

impl BlockBit {
    /// The block's index in its slab.
    pub(crate) fn index(self) -> u32 {
        self.word * 64 + self.mask.trailing_zeros()
    }
}

/// What an offset names.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Located<'a> {
    /// A block of a slab, allocated or not.
    Block { slab: Slab<'a>, bit: BlockBit },
    /// A large block.
    Large { first: PageIndex, pages: PageCount, lane: LaneId },
}

fn invalid(offset: u64, fault: OffsetFault) -> Error {
    Error::InvalidOffset { offset, fault }
}

/// Finds what `offset` names. Reads one page entry; takes no lock. That a block of a slab is allocated is not checked here.
#[inline]
pub(crate) fn locate<'a>(tables: &Tables, classes: &'a Classes, offset: u64) -> Result<Located<'a>> {
    match find(tables, classes, offset) {
        Some((slab, bit)) => Ok(Located::Block { slab, bit }),
        None => locate_other(tables, classes, offset),
    }
}

/// Finds the block of a slab that starts at `offset`, allocated or not; `None` if none does, whatever else may be there.
#[inline]
pub(crate) fn find<'a>(tables: &Tables, classes: &'a Classes, offset: u64) -> Option<(Slab<'a>, BlockBit)> {
    let page = tables.page_at(offset)?;
    let entry = tables.entry(page);
    if entry.state() != Some(PageState::Slab) {
        return None;
    }
    let slab = slab_of(tables, classes, page, entry).ok()?;
    slab.block_bit(tables, offset).map(|bit| (slab, bit))
}

/// What is not the start of a slab's block: a large block, or an error that says what is there.
fn locate_other<'a>(tables: &Tables, classes: &Classes, offset: u64) -> Result<Located<'a>> {
    let Some(page) = tables.page_at(offset) else { return Err(not_in_use(tables, offset)) };
    let entry = tables.entry(page);
    if entry.state() == Some(PageState::Slab) {
        let slab = slab_of(tables, classes, page, entry)?;
        return Err(inside(tables, &slab, offset));
    }
    locate_large(tables, page, entry, offset)
}

/// The slab to which a page with this entry belongs.
#[inline]
pub(crate) fn slab_of<'a>(
    tables: &Tables,
    classes: &'a Classes,
    page: PageIndex,
    entry: PageEntry,
) -> Result<Slab<'a>, Corruption> {
    let corrupt = |what| Corruption::new(what, tables.entry_at(page));
    let info = classes.get(entry.class()).ok_or_else(|| corrupt("a page entry names a size class that the heap has not"))?;
    let head = Tables::page_before(page, entry.number()).filter(|_| entry.number() < info.pages);
    let head = head.ok_or_else(|| corrupt("a page entry lies further from its slab's start than the slab is long"))?;
    if u64::from(head.get()) + u64::from(info.pages) > u64::from(tables.geometry.pages) {
        return Err(corrupt("a slab reaches beyond the heap's last page"));
    }
    Ok(Slab { head, class: entry.class(), info, lane: entry.lane() })
}

#[cold]
fn not_in_use(tables: &Tables, offset: u64) -> Error {
    let start = tables.geometry.data_start;
    let inside = offset >= start && offset - start < tables.geometry.data_len;
    invalid(offset, if inside { OffsetFault::NotAllocated } else { OffsetFault::Outside })
}

#[cold]
fn inside(tables: &Tables, slab: &Slab<'_>, offset: u64) -> Error {
    let (index, _) = slab.info.index_of(offset.wrapping_sub(tables.page_start(slab.head)));
    if index >= slab.info.blocks {
        return invalid(offset, OffsetFault::NotAllocated);
    }
    let bit = BlockBit { word: index / 64, mask: 1 << (index % 64) };
    if slab.is_allocated(tables, bit) {
        invalid(offset, OffsetFault::InsideBlock(slab.block_at(tables, index)))
    } else {
        invalid(offset, OffsetFault::NotAllocated)
    }
}

fn locate_large<'a>(tables: &Tables, page: PageIndex, entry: PageEntry, offset: u64) -> Result<Located<'a>> {
    let at = tables.entry_at(page);
    let start = tables.page_start(page);
    match entry.state() {
        Some(PageState::Large) if offset == start => {
            let pages = PageCount::new(entry.number())
                .filter(|pages| u64::from(page.get()) + u64::from(pages.get()) <= u64::from(tables.pages_high()))
                .ok_or_else(|| Corruption::new("a large block is longer than the pages in use", at))?;
            Ok(Located::Large { first: page, pages, lane: entry.lane() })
        }
        Some(PageState::Large) => Err(invalid(offset, OffsetFault::InsideBlock(start))),
        Some(PageState::LargeTail) => {
            let first = Tables::page_before(page, entry.number()).ok_or_else(|| {
                Corruption::new("a large block's page lies further from its start than the heap's start", at)
            })?;
            let is_free = tables.entry(first).is_kept();
            let start = tables.page_start(first);
            Err(invalid(offset, if is_free { OffsetFault::NotAllocated } else { OffsetFault::InsideBlock(start) }))
        }
        Some(_) => Err(invalid(offset, OffsetFault::NotAllocated)),
        None => Err(Corruption::new("a page entry has a state that nobody writes", at).into()),
    }
}

impl Slab<'_> {
    /// The number of the slab's first pair of words, among all pairs. Slabs that need few of their pages' pairs start at
    /// different lines of them, so that the words of many slabs do not all fall into the same few sets of a cache.
    #[inline]
    pub(crate) fn first_pair(&self, tables: &Tables) -> u64 {
        tables.first_pair(self.head) + u64::from(self.head.get() & self.info.skew) * PAIRS_PER_LINE
    }

    /// Place of the pair of words of 64 blocks.
    #[inline]
    pub(crate) fn words_at(&self, tables: &Tables, word: u32) -> u64 {
        tables.pair_at(self.first_pair(tables) + u64::from(word))
    }

    /// The free word and the remote word of 64 blocks.
    #[inline]
    fn words<'t>(&self, tables: &'t Tables, word: u32) -> &'t [AtomicU64; 2] {
        tables.region.known_pair(self.first_pair(tables) + u64::from(word))
    }

    /// The free word of 64 blocks.
    #[inline]
    pub(crate) fn free_word<'t>(&self, tables: &'t Tables, word: u32) -> &'t AtomicU64 {
        let [free, _] = self.words(tables, word);
        free
    }

    /// The remote word of 64 blocks.
    #[inline]
    pub(crate) fn remote_word<'t>(&self, tables: &'t Tables, word: u32) -> &'t AtomicU64 {
        let [_, remote] = self.words(tables, word);
        remote
    }

    /// The bits of the block that starts at `offset`, which lies in the slab; `None` if none starts there.
    #[inline]
    pub(crate) fn block_bit(&self, tables: &Tables, offset: u64) -> Option<BlockBit> {
        let (index, rest) = self.info.index_of(offset.wrapping_sub(tables.page_start(self.head)));
        let starts_there = rest == 0 && index < self.info.blocks;
        starts_there.then_some(BlockBit { word: index / 64, mask: 1 << (index % 64) })
    }

    /// Where block `index` starts.
    pub(crate) fn block_at(&self, tables: &Tables, index: u32) -> u64 {
        tables.page_start(self.head) + u64::from(index) * u64::from(self.info.size)
    }

    /// Pages of the slab.
    pub(crate) fn pages(&self) -> Option<PageCount> {
        PageCount::new(self.info.pages)
    }

    /// A1.
    #[inline]
    pub(crate) fn is_allocated(&self, tables: &Tables, bit: BlockBit) -> bool {
        self.freed(tables, bit.word) & bit.mask == 0
    }

    /// Free blocks among the 64 of a word. The remote word is read first: a merge sets bits in the other before it clears
    /// them there, so that a block that is free all the while is seen to be.
    #[inline]
    fn freed(&self, tables: &Tables, word: u32) -> u64 {
        let [free, remote] = self.words(tables, word);
        let remote = remote.load(Ordering::Acquire);
        remote | free.load(Ordering::Acquire)
    }

    /// Allocated blocks among the 64 of a word, as bits.
    pub(crate) fn allocated(&self, tables: &Tables, word: u32) -> u64 {
        !self.freed(tables, word) & self.info.mask(word)
    }

    /// Number of allocated blocks.
    pub(crate) fn allocated_count(&self, tables: &Tables) -> u32 {
        (0..self.info.words()).map(|word| self.allocated(tables, word).count_ones()).sum()
    }

    /// All blocks free, none remote (A3). For a span that is about to become a slab.
    pub(crate) fn format(&self, tables: &Tables) {
        for word in 0..self.info.words() {
            self.free_word(tables, word).store(u64::MAX, Ordering::Relaxed);
            self.remote_word(tables, word).store(0, Ordering::Relaxed);
        }
        list_none(tables, self.head);
    }

    /// Marks blocks of a slab that was just formatted as allocated.
    pub(crate) fn set_allocated(&self, tables: &Tables, allocated: &[u64]) {
        for (word, bits) in (0..self.info.words()).zip(allocated) {
            self.free_word(tables, word).store(!(bits & self.info.mask(word)), Ordering::Relaxed);
        }
    }

    /// Frees a block of a slab whose free bits the caller may write (A2). Returns the free word before and after.
    pub(crate) fn free_own(&self, tables: &Tables, bit: BlockBit) -> Result<(u64, u64)> {
        self.try_free_own(tables, bit).ok_or_else(|| self.double_free(tables, bit))
    }

    /// As [`Self::free_own`]; `None` if the block is free already.
    #[inline]
    pub(crate) fn try_free_own(&self, tables: &Tables, bit: BlockBit) -> Option<(u64, u64)> {
        let [free, remote] = self.words(tables, bit.word);
        let before = free.load(Ordering::Relaxed);
        if (before | remote.load(Ordering::Relaxed)) & bit.mask != 0 {
            return None;
        }
        // ORDERING O1: Release, so that what was done with the block stays before its reuse; pairs with the Acquire in
        // `merge` of whoever owns the slab next.
        free.store(before | bit.mask, Ordering::Release); // COMMIT
        Some((before, before | bit.mask))
    }

    /// Frees a block of another lane's slab.
    #[inline]
    pub(crate) fn free_remote(&self, tables: &Tables, bit: BlockBit) -> Result<()> {
        let [free, remote] = self.words(tables, bit.word);
        if free.load(Ordering::Relaxed) & bit.mask != 0 {
            return Err(self.double_free(tables, bit));
        }
        // ORDERING O1, and O2: SeqCst; pairs with the fence in `disown`: either the one who disowns the slab sees this
        // bit, or the caller, looking at the entry again, sees that the slab has no owner any more.
        let before = remote.fetch_or(bit.mask, Ordering::SeqCst); // COMMIT
        if before & bit.mask != 0 {
            return Err(self.double_free(tables, bit));
        }
        Ok(())
    }

    #[cold]
    fn double_free(&self, tables: &Tables, bit: BlockBit) -> Error {
        Error::DoubleFree { offset: self.block_at(tables, bit.index()) }
    }

    /// Moves the remote bits of a word into its free word, for who may write it. A death between the two stores leaves
    /// blocks with both bits set: free all the same (A1).
    ///
    /// While an intent frees a block of a living lane's slab (MERGE_HOLD), nothing is merged: recovery must be able to
    /// repeat that free, and could not tell the block from one that was allocated again.
    #[inline]
    pub(crate) fn merge(&self, tables: &Tables, word: u32) -> u64 {
        let [free, remote] = self.words(tables, word);
        let now = free.load(Ordering::Acquire);
        // ORDERING O4: the remote bits are read before the hold: who sees a bit that an intent set sees the hold too,
        // which was raised before it.
        let freed = remote.load(Ordering::Acquire) & self.info.mask(word);
        if freed == 0 {
            return now;
        }
        if tables.superblock(superblock::MERGE_HOLD).load(Ordering::Acquire) != 0 {
            return now & !freed;
        }
        free.store(now | freed, Ordering::Release);
        remote.fetch_and(!freed, Ordering::Release);
        now | freed
    }

    /// Merges every word.
    pub(crate) fn merge_all(&self, tables: &Tables) {
        (0..self.info.words()).for_each(|word| _ = self.merge(tables, word));
    }

    /// True if any remote bit is set.
    pub(crate) fn has_remote(&self, tables: &Tables) -> bool {
        (0..self.info.words()).any(|word| self.remote_word(tables, word).load(Ordering::Relaxed) != 0)
    }

    /// True if every free bit is set.
    #[inline]
    pub(crate) fn is_wholly_free(&self, tables: &Tables) -> bool {
        let first = self.first_pair(tables);
        let is_free = |pair| {
            let words = tables.region.pair(pair);
            words.is_some_and(|[free, _]| free.load(Ordering::Relaxed) == u64::MAX)
        };
        (first..first + u64::from(self.info.words())).all(is_free)
    }

    /// The first word at or after `from` with a free block.
    pub(crate) fn word_with_room(&self, tables: &Tables, from: u32) -> Option<u32> {
        let first = self.first_pair(tables);
        (from..self.info.words()).find(|word| {
            let words = tables.region.pair(first + u64::from(*word));
            words.is_some_and(|[free, _]| free.load(Ordering::Relaxed) & self.info.mask(*word) != 0)
        })
    }

    /// Writes another lane into the entries of the slab's pages. Under the heap lock.
    pub(crate) fn set_lane(&self, tables: &Tables, lane: LaneId) -> Result<()> {
        for distance in 0..self.info.pages {
            let page = tables.page_from_region(self.head.get() + distance, tables.entry_at(self.head))?;
            let entry = tables.entry(page).with_lane(lane);
            tables.entry_word(page).store(entry.0, Ordering::Release);
        }
        // ORDERING O2: pairs with the SeqCst `fetch_or` in `free_remote`.
        fence(Ordering::SeqCst);
        Ok(())
    }
}

fn list_none(tables: &Tables, head: PageIndex) {
    super::list::reset(tables, head);
}
