//! Spans: runs of pages, taken and given back under the heap lock.
//!
//! The page entries are the truth, changed through the journal; the in-use bits and the summaries follow them. Neighbouring
//! free pages are neighbouring clear bits, so free spans coalesce by being free.
//!
//! Pages at and above `PAGES_HIGH` have never been used and their tables are not reserved; when no run below is long
//! enough, that mark moves up.

use std::sync::atomic::Ordering;

use super::{Classes, summary};
use crate::error::{Corruption, Error, Result, Shortage};
use crate::format::{CHUNK_PAGES, LaneId, PageCount, PageEntry, PageIndex, PageState, Summary, Tables, superblock};
use crate::journal::{self, Locked, Range};

/// Words of a bitmap of `pages` bits.
pub(super) fn word_count(pages: u32) -> u32 {
    pages.div_ceil(64)
}

/// Calls `f` with the index of each word and the bits of it that stand for [first, first + count).
fn for_words(first: u32, count: u32, mut f: impl FnMut(u32, u64)) {
    let end = first + count;
    let mut page = first;
    while page < end {
        let bits = (64 - page % 64).min(end - page);
        let mask = if bits == 64 { u64::MAX } else { ((1u64 << bits) - 1) << (page % 64) };
        f(page / 64, mask);
        page += bits;
    }
}

/// Takes `count` free pages; gives them `entry` after `before_commit` was called with the first of them.
///
/// The memory behind them is reserved first, and for a slab that behind its bitmaps. `before_commit` prepares what must be
/// in place when the entries change (a slab's bits, an intent).
pub(crate) fn allocate(
    tables: &Tables,
    locked: &Locked,
    count: PageCount,
    entry: PageEntry,
    before_commit: impl FnOnce(PageIndex),
) -> Result<PageIndex> {
    let first = find(tables, locked, count)?;
    take(tables, locked, first, count, entry, before_commit)
}

/// As [`allocate`], at a given place, which must be free: for who knows from an image where everything stood.
pub(crate) fn place(
    tables: &Tables,
    locked: &Locked,
    first: u32,
    count: PageCount,
    entry: PageEntry,
    before_commit: impl FnOnce(PageIndex),
) -> Result<PageIndex> {
    let end = u64::from(first) + u64::from(count.get());
    if end > u64::from(tables.geometry.pages) || !is_free(tables, first, count.get()) {
        return Err(Corruption::new("a span lies outside the pages, or over another one", superblock::PAGES_HIGH).into());
    }
    raise_high(tables, locked, end as u32)?;
    let first = tables.page_from_region(first, superblock::PAGES_HIGH)?;
    take(tables, locked, first, count, entry, before_commit)
}

/// Reserves the memory of free pages, and puts them to use.
fn take(
    tables: &Tables,
    locked: &Locked,
    first: PageIndex,
    count: PageCount,
    entry: PageEntry,
    before_commit: impl FnOnce(PageIndex),
) -> Result<PageIndex> {
    reserve_pages(tables, locked, first, count)?;
    if entry.state() == Some(PageState::Slab) {
        reserve_bitmaps(tables, locked, first, count)?;
    }
    before_commit(first);
    set(tables, locked, &[Range { first, count, entry }])?;
    Ok(first)
}

/// True if `count` pages can be taken without memory that was never used, or was given back.
pub(crate) fn is_at_hand(tables: &Tables, _locked: &Locked, count: PageCount) -> Result<bool> {
    let Some(first) = summary::find(tables, count.get(), tables.pages_high())? else { return Ok(false) };
    check_free(tables, first, count)?;
    let mut missing = false;
    for_words(first, count.get(), |word, mask| {
        missing |= tables.reserved_word(word).load(Ordering::Relaxed) & mask != mask;
    });
    Ok(!missing)
}

/// Gives pages back.
pub(crate) fn free(tables: &Tables, locked: &Locked, first: PageIndex, count: PageCount) -> Result<()> {
    set(tables, locked, &[Range { first, count, entry: PageEntry::FREE }])
}

/// Lets a large block of `old` pages have `new` pages, in place; false if what follows it is not free.
pub(crate) fn resize(
    tables: &Tables,
    locked: &Locked,
    first: PageIndex,
    old: PageCount,
    new: PageCount,
    lane: LaneId,
) -> Result<bool> {
    let block = Range { first, count: new, entry: PageEntry::large(lane) };
    if let Some(rest) = old.get().checked_sub(new.get()).and_then(PageCount::new) {
        let rest_first = tables.page_from_region(first.get() + new.get(), tables.entry_at(first))?;
        set(tables, locked, &[block, Range { first: rest_first, count: rest, entry: PageEntry::FREE }])?;
        return Ok(true);
    }
    let Some(more) = new.get().checked_sub(old.get()).and_then(PageCount::new) else { return Ok(true) };
    let tail = first.get() + old.get();
    if u64::from(tail) + u64::from(more.get()) > u64::from(tables.geometry.pages) || !is_free(tables, tail, more.get()) {
        return Ok(false);
    }
    raise_high(tables, locked, tail + more.get())?;
    let tail = tables.page_from_region(tail, tables.entry_at(first))?;
    reserve_pages(tables, locked, tail, more)?;
    set(tables, locked, &[block])?;
    Ok(true)
}

/// True if none of the pages [first, first + count) is in use.
fn is_free(tables: &Tables, first: u32, count: u32) -> bool {
    let below = tables.pages_high().saturating_sub(first).min(count);
    let mut free = true;
    for_words(first, below, |word, mask| free &= tables.in_use_word(word).load(Ordering::Relaxed) & mask == 0);
    free
}

/// Sets entries through the journal, and what is derived from them.
fn set(tables: &Tables, locked: &Locked, ranges: &[Range]) -> Result<()> {
    tables.superblock(superblock::SPAN_SEQUENCE).fetch_add(1, Ordering::AcqRel);
    journal::set(tables, locked, ranges)?;
    let high = tables.pages_high();
    for range in ranges {
        let (first, count) = (range.first.get(), range.count.get());
        let free = range.entry.state() == Some(PageState::Free);
        for_words(first, count, |word, mask| {
            let bits = tables.in_use_word(word);
            let now = bits.load(Ordering::Relaxed);
            bits.store(if free { now & !mask } else { now | mask }, Ordering::Relaxed);
        });
        summary::update(tables, first, first + count, high);
    }
    tables.superblock(superblock::SPAN_SEQUENCE).fetch_add(1, Ordering::AcqRel);
    journal::clear(tables, locked);
    Ok(())
}

/// The lowest run of free pages that is long enough, after raising `PAGES_HIGH` where that is needed.
fn find(tables: &Tables, locked: &Locked, count: PageCount) -> Result<PageIndex> {
    let high = tables.pages_high();
    let found = match summary::find(tables, count.get(), high)? {
        Some(page) => page,
        None => {
            // The free pages at the end of those in use, and those never used, are one run.
            let start = high - summary::whole(tables, high).end.min(high);
            let end = u64::from(start) + u64::from(count.get());
            if end > u64::from(tables.geometry.pages) {
                return Err(out_of_memory(tables, u64::from(count.get()) << tables.geometry.page_shift));
            }
            raise_high(tables, locked, end as u32)?;
            start
        }
    };
    check_free(tables, found, count)?;
    Ok(tables.page_from_region(found, superblock::PAGES_HIGH)?)
}

/// The entries of a run that was found by what is derived from them say that it is free: else a summary or an in-use bit
/// that somebody has scribbled on would lead into a living block.
fn check_free(tables: &Tables, first: u32, count: PageCount) -> Result<()> {
    let end = u64::from(first) + u64::from(count.get());
    let beyond = || Corruption::new("C5: a summary promises free pages beyond those in use", superblock::PAGES_HIGH);
    let end = u32::try_from(end).ok().filter(|end| *end <= tables.pages_high()).ok_or_else(beyond)?;
    for number in first..end {
        let page = tables.page_from_region(number, superblock::PAGES_HIGH)?;
        if tables.entry(page) != PageEntry::FREE {
            return Err(Corruption::new("C4: a page is in use that is said to be free", tables.entry_at(page)).into());
        }
    }
    Ok(())
}

/// The error for a request of `requested` bytes that found no room.
pub(crate) fn out_of_memory(tables: &Tables, requested: u64) -> Error {
    let shift = tables.geometry.page_shift;
    let free = u64::from(free_pages(tables)) << shift;
    let largest_free = u64::from(longest_run(tables)) << shift;
    let shortage = if free >= requested { Shortage::Fragmented } else { Shortage::Full };
    Error::OutOfMemory { requested, largest_free, free, shortage }
}

/// Pages in the longest run of free ones. Exact under the heap lock.
pub(crate) fn longest_run(tables: &Tables) -> u32 {
    let high = tables.pages_high();
    let whole = summary::whole(tables, high);
    let unused = tables.geometry.pages - high;
    whole.longest.max(whole.end.saturating_add(unused))
}

/// Pages that are free. Exact under the heap lock.
pub(crate) fn free_pages(tables: &Tables) -> u32 {
    let high = tables.pages_high();
    let mut used = 0;
    for_words(0, high, |word, mask| used += (tables.in_use_word(word).load(Ordering::Relaxed) & mask).count_ones());
    tables.geometry.pages - used.min(high)
}

/// Puts the pages below `needed` into use. COMMIT is the store to `PAGES_HIGH`; before it, the reserved memory holds zeros,
/// which say "free".
pub(crate) fn raise_high(tables: &Tables, _locked: &Locked, needed: u32) -> Result<()> {
    let high = tables.pages_high();
    if needed <= high {
        return Ok(());
    }
    let new_high = tables.next_high(needed);
    tables.reserve_tables(high, new_high)?;
    let first_chunk_start = high / CHUNK_PAGES * CHUNK_PAGES;
    summary::update(tables, first_chunk_start, new_high, new_high);
    tables.superblock(superblock::PAGES_HIGH).store(u64::from(new_high), Ordering::Release); // COMMIT
    Ok(())
}

/// Reserves the memory of pages where that was not done yet. The bits are set afterwards: a death in between leaves memory
/// reserved that nobody knows of, which the next reservation of the page finds, or `trim` gives back.
fn reserve_pages(tables: &Tables, _locked: &Locked, first: PageIndex, count: PageCount) -> Result<()> {
    let mut missing = false;
    for_words(first.get(), count.get(), |word, mask| {
        missing |= tables.reserved_word(word).load(Ordering::Relaxed) & mask != mask;
    });
    if !missing {
        return Ok(());
    }
    let len = u64::from(count.get()) << tables.geometry.page_shift;
    tables.region.reserve(tables.page_start(first), len)?;
    for_words(first.get(), count.get(), |word, mask| {
        tables.reserved_word(word).fetch_or(mask, Ordering::Release);
    });
    Ok(())
}

/// Reserves the memory of pages that are going to be written as a whole before anybody reads them: it is not entered into
/// this process's page table, for which it would have to be zeroed first.
pub(crate) fn reserve_ahead(tables: &Tables, locked: &Locked, first: u32, pages: u32) -> Result<()> {
    let end = u64::from(first) + u64::from(pages);
    if end > u64::from(tables.geometry.pages) {
        return Err(Corruption::new("a span lies outside the pages", superblock::PAGES_HIGH).into());
    }
    raise_high(tables, locked, end as u32)?;
    let start = tables.page_start(tables.page_from_region(first, superblock::PAGES_HIGH)?);
    tables.region.back(start, u64::from(pages) << tables.geometry.page_shift)?;
    for_words(first, pages, |word, mask| _ = tables.reserved_word(word).fetch_or(mask, Ordering::Release));
    Ok(())
}

/// Reserves the slab bitmaps of the groups that a span touches.
fn reserve_bitmaps(tables: &Tables, _locked: &Locked, first: PageIndex, count: PageCount) -> Result<()> {
    for group in tables.groups_of(first, count.get()) {
        let (word, bit) = tables.group_bit(group);
        if word.load(Ordering::Relaxed) & bit == 0 {
            let (first, pages) = tables.group_pages(group);
            let (at, len) = tables.bitmaps_range(first, pages);
            tables.region.reserve(at, len)?;
            word.fetch_or(bit, Ordering::Release);
        }
    }
    Ok(())
}

/// Reserves the memory of everything in use once more, whatever the bits say, and sets them.
pub(crate) fn reserve_again(tables: &Tables, locked: &Locked, classes: &Classes) -> Result<()> {
    let high = tables.pages_high();
    tables.reserve_tables(0, high)?;
    for word in 0..word_count(high) {
        tables.reserved_word(word).store(0, Ordering::Relaxed);
    }
    let mut page = 0;
    while let Some((first, count)) = next_run(tables, page, high, true) {
        let start = tables.page_from_region(first, superblock::PAGES_HIGH)?;
        if let Some(count) = PageCount::new(count) {
            reserve_pages(tables, locked, start, count)?;
        }
        page = first + count;
    }
    for group in 0..tables.geometry.groups(high) {
        let (word, bit) = tables.group_bit(group);
        word.fetch_and(!bit, Ordering::Relaxed);
    }
    for number in 0..high {
        let page = tables.page_from_region(number, superblock::PAGES_HIGH)?;
        let entry = tables.entry(page);
        let is_slab = matches!(entry.state(), Some(PageState::Slab | PageState::KeptSlab));
        if is_slab && let Some(pages) = PageCount::new(classes.get(entry.class()).map_or(1, |info| info.pages)) {
            reserve_bitmaps(tables, locked, page, pages)?;
        }
    }
    Ok(())
}

/// Gives the memory of all free pages back, and that of bitmaps whose groups are free; returns how many bytes.
///
/// The bits that say "reserved" are cleared first: a death in between leaves memory that nobody counts on.
pub(crate) fn trim(tables: &Tables, _locked: &Locked) -> Result<u64> {
    let high = tables.pages_high();
    let mut given = 0;
    let mut page = 0;
    while let Some((first, count)) = next_run(tables, page, high, false) {
        let mut reserved = 0u64;
        for_words(first, count, |word, mask| {
            let before = tables.reserved_word(word).fetch_and(!mask, Ordering::Release);
            reserved += u64::from((before & mask).count_ones());
        });
        let start = tables.geometry.data_start + (u64::from(first) << tables.geometry.page_shift);
        if tables.region.give_back(start, u64::from(count) << tables.geometry.page_shift)? != 0 {
            given += reserved << tables.geometry.page_shift;
        }
        page = first + count;
    }
    given += trim_bitmaps(tables, high)?;
    // Behind the last page in use, a creator or a reservation that died may have left memory that no bit knows of.
    if high < tables.geometry.pages {
        let start = tables.geometry.data_start + (u64::from(high) << tables.geometry.page_shift);
        let len = u64::from(tables.geometry.pages - high) << tables.geometry.page_shift;
        tables.region.give_back(start, len)?;
    }
    Ok(given)
}

/// Gives the memory of slab bitmaps back whose pages are all free.
fn trim_bitmaps(tables: &Tables, high: u32) -> Result<u64> {
    let mut given = 0;
    for group in 0..tables.geometry.groups(high) {
        let (word, bit) = tables.group_bit(group);
        let (first, pages) = tables.group_pages(group);
        if word.load(Ordering::Relaxed) & bit != 0 && is_free(tables, first, pages) {
            word.fetch_and(!bit, Ordering::Release);
            let (at, len) = tables.bitmaps_range(first, pages);
            given += tables.region.give_back(at, len)?;
        }
    }
    Ok(given)
}

/// The first maximal run of pages at or after `page` that are in use, or that are free.
fn next_run(tables: &Tables, page: u32, high: u32, in_use: bool) -> Option<(u32, u32)> {
    let next = |from: u32, in_use: bool| {
        let mut at = from;
        while at < high {
            let bits = tables.in_use_word(at / 64).load(Ordering::Relaxed);
            let rest = if in_use { bits } else { !bits } >> (at % 64);
            if rest != 0 {
                return (at + rest.trailing_zeros()).min(high);
            }
            at = (at / 64 + 1) * 64;
        }
        high
    };
    let first = next(page, in_use);
    let end = next(first, !in_use);
    (first < high).then(|| (first, end - first))
}

/// Rebuilds the in-use bits and the summaries from the page entries.
pub(crate) fn rebuild_derived(tables: &Tables, _locked: &Locked) -> Result<()> {
    let high = tables.pages_high();
    for word in 0..word_count(high) {
        let bits = in_use_by_entries(tables, word, high)?;
        tables.in_use_word(word).store(bits, Ordering::Relaxed);
    }
    if high != 0 {
        summary::update(tables, 0, high, high);
    }
    Ok(())
}

/// What a word of the in-use bitmap should say, by the page entries.
pub(crate) fn in_use_by_entries(tables: &Tables, word: u32, high: u32) -> Result<u64> {
    let mut bits = 0;
    for bit in 0..64.min(high - word * 64) {
        let page = tables.page_from_region(word * 64 + bit, superblock::PAGES_HIGH)?;
        if tables.entry(page).state() != Some(PageState::Free) {
            bits |= 1 << bit;
        }
    }
    Ok(bits)
}

/// The summary nodes that do not say what lies below them: their levels and numbers.
pub(crate) fn wrong_summaries(tables: &Tables) -> impl Iterator<Item = (usize, u32)> {
    let high = tables.pages_high();
    let len = move |level: usize| crate::format::Geometry::summary_len(level, high);
    let leaves = (0..len(0)).map(move |chunk| (0, chunk, summary::of_chunk(tables, chunk, high)));
    let inner = (1..crate::format::LEVELS)
        .take_while(move |level| len(level - 1) > 1)
        .flat_map(move |level| (0..len(level)).map(move |node| (level, node)))
        .map(move |(level, node)| (level, node, summary::of_children(tables, level, node, high)));
    let wrong = move |(level, node, right): &(usize, u32, Summary)| tables.summary(*level, *node) != *right;
    leaves.chain(inner).filter(wrong).map(|(level, node, _)| (level, node))
}
