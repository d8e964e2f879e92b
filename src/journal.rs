//! The journal: set the entries of these pages, all or none, whoever dies meanwhile.
//!
//! A record is one or two ranges of pages with the entry that each is to have. It is written, armed by one store, applied,
//! and cleared by one store. Whoever takes the heap lock from a dead holder replays an armed record: applying it again
//! gives the same entries, so it does not matter how far the dead one came, nor how often recovery itself dies.
//!
//! J1. The record is armed only while the heap lock is held.
//! J2. While it is armed, the entries of its ranges are those before, those after, or a mixture; nothing else of the
//!     table differs from what it says.
//!
//! ```text
//! word 0      number of ranges; 0 = not armed
//! word 1, 3   first page in bits 0..32, number of pages in bits 32..64
//! word 2, 4   the entry for distance 0
//! ```
//!
//! Not here: why pages change (`alloc`), and what is derived from the entries (in-use bits and summaries: `alloc::span`).

#![allow(
    clippy::arithmetic_side_effects,
    reason = "sums of page numbers below 2^31, kept in 64 bits, and places in the superblock"
)]

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Corruption, Result};
use crate::format::{PageCount, PageEntry, PageIndex, Tables, superblock};

/// Proof that the caller holds the heap lock, or is alone with the region.
#[derive(Debug)]
pub(crate) struct Locked(());

impl Locked {
    /// To be made only by who has just taken the lock, or who creates a region that nobody else can reach.
    pub(crate) fn assume() -> Self {
        Self(())
    }
}

/// Most ranges of one record.
const RANGES_MAX: usize = 2;

/// Pages [first, first + count) that are to have an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub(crate) first: PageIndex,
    pub(crate) count: PageCount,
    pub(crate) entry: PageEntry,
}

fn words(tables: &Tables) -> [&AtomicU64; 1 + 2 * RANGES_MAX] {
    [0u64, 1, 2, 3, 4].map(|index| tables.superblock(superblock::JOURNAL + index * 8))
}

/// Sets the entries of one or two ranges. COMMIT is the store that arms the record: a death before it leaves everything as
/// it was, a death after it leaves everything for recovery to finish. The caller calls [`clear`] once what is derived from
/// the entries follows them.
pub(crate) fn set(tables: &Tables, _locked: &Locked, ranges: &[Range]) -> Result<()> {
    debug_assert!((1..=RANGES_MAX).contains(&ranges.len()), "a record has one or two ranges");
    // What cannot be applied is not armed: it would stay so for ever.
    ranges.iter().try_for_each(|range| check(tables, range))?;
    let [armed, first_range, first_entry, second_range, second_entry] = words(tables);
    let slots = [(first_range, first_entry), (second_range, second_entry)];
    for (range, (range_word, entry_word)) in ranges.iter().zip(slots) {
        let packed = u64::from(range.first.get()) | u64::from(range.count.get()) << 32;
        range_word.store(packed, Ordering::Relaxed);
        entry_word.store(range.entry.0, Ordering::Relaxed);
    }
    let count = u64::try_from(ranges.len()).unwrap_or(0);
    armed.store(count, Ordering::Release); // COMMIT
    ranges.iter().try_for_each(|range| apply(tables, range))
}

/// Ends the record.
pub(crate) fn clear(tables: &Tables, _locked: &Locked) {
    let [armed, ..] = words(tables);
    armed.store(0, Ordering::Release);
}

/// Finishes a record that a dead holder left armed, if there is one. The caller rebuilds what is derived, and then calls
/// [`clear`].
pub(crate) fn replay(tables: &Tables, _locked: &Locked) -> Result<()> {
    ranges(tables)?.iter().try_for_each(|range| apply(tables, range))
}

/// The ranges of the armed record; none if none is armed.
pub(crate) fn ranges(tables: &Tables) -> Result<Vec<Range>> {
    let [armed, first_range, first_entry, second_range, second_entry] = words(tables);
    let count = armed.load(Ordering::Acquire);
    let slots = [(first_range, first_entry), (second_range, second_entry)];
    let corrupt = || Corruption::new("the journal holds a record that nobody writes", superblock::JOURNAL);
    if count > 2 {
        return Err(corrupt().into());
    }
    let armed = slots.into_iter().take(usize::try_from(count).unwrap_or(0));
    let range = |(range_word, entry_word): (&AtomicU64, &AtomicU64)| {
        let packed = range_word.load(Ordering::Relaxed);
        let first = tables.page_from_region((packed & 0xffff_ffff) as u32, superblock::JOURNAL)?;
        let count = PageCount::new((packed >> 32) as u32).ok_or_else(corrupt)?;
        Ok(Range { first, count, entry: PageEntry(entry_word.load(Ordering::Relaxed)) })
    };
    armed.map(range).collect()
}

/// True while a record is armed.
pub(crate) fn is_armed(tables: &Tables) -> bool {
    let [armed, ..] = words(tables);
    armed.load(Ordering::Acquire) != 0
}

/// All pages of the range are in use so far.
fn check(tables: &Tables, range: &Range) -> Result<()> {
    let end = u64::from(range.first.get()) + u64::from(range.count.get());
    if end > u64::from(tables.pages_high()) {
        return Err(Corruption::new("the journal names pages that are not in use", superblock::JOURNAL).into());
    }
    Ok(())
}

fn apply(tables: &Tables, range: &Range) -> Result<()> {
    check(tables, range)?;
    for distance in 0..range.count.get() {
        let page = tables.page_from_region(range.first.get() + distance, superblock::JOURNAL)?;
        tables.entry_word(page).store(range.entry.at(distance, range.count).0, Ordering::Release);
    }
    Ok(())
}
