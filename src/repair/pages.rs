//! Page entries that contradict each other, and the memory behind the pages.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::{Patient, Remedy, RepairReport};
use crate::alloc::span;
use crate::check::{self, Span};
use crate::error::{Corruption, Result};
use crate::format::{CHUNK_PAGES, PageCount, PageEntry, PageIndex, PageState, SHARED_LANE, Tables, superblock};
use crate::region::Offset;

/// What the page entries say, and what contradicts them.
struct Entries<'a> {
    patient: Patient<'a>,
    /// Chunks whose in-use bits are not what their summary says.
    doubtful_chunks: BTreeSet<u32>,
    at_rest: bool,
}

impl<'a> Entries<'a> {
    fn new(patient: Patient<'a>, interrupted: bool) -> Self {
        let leaves = span::wrong_summaries(patient.tables()).filter(|(level, _)| *level == 0);
        Self { patient, doubtful_chunks: leaves.map(|(_, chunk)| chunk).collect(), at_rest: !interrupted }
    }

    fn span_at(&self, page: PageIndex) -> Result<Span<'a>, Corruption> {
        let tables = self.patient.tables();
        match check::span_at(tables, self.patient.ward.classes, page) {
            Ok(Span::Free) if self.is_lost(page) => {
                let what = "C4: a page's entry says that it is free, and its bit and the summary that it is not";
                Err(Corruption::new(what, tables.entry_at(page)))
            }
            result => result,
        }
    }

    /// True if a page's entry says "free", and all that should follow from it the contrary. In a heap at rest the entry may
    /// be what is wrong: that of an orphan of the smallest class differs from zero by a single bit.
    fn is_lost(&self, page: PageIndex) -> bool {
        let tables = self.patient.tables();
        let in_use = tables.in_use_word(page.get() / 64).load(Ordering::Acquire) >> (page.get() % 64) & 1 != 0;
        let is_doubtful = || self.doubtful_chunks.contains(&(page.get() / CHUNK_PAGES));
        self.at_rest && in_use && reserved(tables, page) && !is_doubtful()
    }
}

/// Makes allocated blocks of all pages whose entries contradict each other; afterwards every page belongs to one span, as
/// the entries say (C3).
///
/// What is quarantined are the pages that could belong to what is broken (Q3): from where its entry says that it starts, for
/// as long as it says that it is, up to the next span that is sound; free pages in between too.
pub(super) fn quarantine_contradictions(patient: Patient<'_>, interrupted: bool, report: &mut RepairReport) -> Result<()> {
    let tables = patient.tables();
    let entries = Entries::new(patient, interrupted);
    let high = tables.pages_high();
    // Where the last span ended that is sound and in use.
    let mut settled = 0;
    let mut number = 0;
    while number < high {
        let page = tables.page_from_region(number, superblock::PAGES_HIGH)?;
        match entries.span_at(page) {
            Ok(span) => {
                number += span.pages();
                settled = if let Span::Free = span { settled } else { number };
            }
            Err(found) => {
                let (first, end) = extent(&entries, number, settled);
                let remedy = quarantine(tables, first, end)?;
                report.add(found, remedy);
                (number, settled) = (end, end);
            }
        }
    }
    Ok(())
}

/// The pages from `first` on, up to but not including the second number, that could belong to the broken span, or the broken
/// spans in a row, of which page `number` is the first that was met.
fn extent(entries: &Entries<'_>, number: u32, settled: u32) -> (u32, u32) {
    let tables = entries.patient.tables();
    let high = tables.pages_high();
    let (mut first, mut claimed, mut next) = (number, number, number);
    while let Some(page) = (next < high).then(|| tables.page(next)).flatten() {
        match entries.span_at(page) {
            Ok(Span::Free) if next >= claimed => break,
            Ok(Span::Free) => {}
            Ok(_) => break,
            Err(_) => {
                let (start, end) = claim_of(entries.patient, page);
                first = if start >= settled { first.min(start) } else { first };
                claimed = claimed.max(end);
            }
        }
        next += 1;
    }
    (first, next)
}

/// Where the span of this page starts and ends by the page's own entry; the page alone where that says nothing.
fn claim_of(patient: Patient<'_>, page: PageIndex) -> (u32, u32) {
    let entry = patient.tables().entry(page);
    let (number, own) = (entry.number(), page.get());
    let start = own.saturating_sub(number);
    let class_pages = patient.ward.classes.get(entry.class()).map_or(1, |info| info.pages);
    match entry.state() {
        Some(PageState::Slab) if number < class_pages && number <= own => (start, start + class_pages),
        Some(PageState::KeptSlab) => (own, own + class_pages),
        Some(PageState::Large | PageState::KeptLarge) => (own, own.saturating_add(number)),
        Some(PageState::LargeTail) if number <= own => (start, own + 1),
        _ => (own, own + 1),
    }
}

/// Makes one block of these pages. The first store claims them all: a death after it leaves a block whose further pages do
/// not fit to it, which is what the next repair quarantines again.
fn quarantine(tables: &Tables, first: u32, end: u32) -> Result<Remedy> {
    let nobody_writes = || Corruption::new("C3: pages without a beginning", superblock::PAGES_HIGH);
    let count = PageCount::new(end - first).ok_or_else(nobody_writes)?;
    let start = tables.page_start(tables.page_from_region(first, superblock::PAGES_HIGH)?);
    for distance in 0..count.get() {
        let page = tables.page_from_region(first + distance, superblock::PAGES_HIGH)?;
        let entry = PageEntry::large(SHARED_LANE).at(distance, count);
        tables.entry_word(page).store(entry.0, Ordering::Release);
    }
    remedy_of(tables, start, count.get()).ok_or_else(|| nobody_writes().into())
}

/// How a quarantine of these pages is told.
pub(super) fn remedy_of(tables: &Tables, start: u64, pages: u32) -> Option<Remedy> {
    let len = u64::from(pages) << tables.geometry.page_shift;
    Offset::new(start).map(|block| Remedy::Quarantined { block, len })
}

/// Reserves the memory of all that is in use, and of all that is said to be reserved: for what is there already, that does
/// nothing. A bit is set after the memory is there.
pub(super) fn reserve(patient: Patient<'_>, report: &mut RepairReport) -> Result<()> {
    let tables = patient.tables();
    let mut run: Option<(u32, u32)> = None;
    for number in 0..tables.pages_high() {
        let page = tables.page_from_region(number, superblock::PAGES_HIGH)?;
        let is_wanted = tables.entry(page) != PageEntry::FREE || reserved(tables, page);
        run = match run {
            Some((first, end)) if is_wanted && end == number => Some((first, number + 1)),
            Some(done) if is_wanted => {
                back_pages(tables, done)?;
                Some((number, number + 1))
            }
            None if is_wanted => Some((number, number + 1)),
            run => run,
        };
    }
    run.map_or(Ok(()), |run| back_pages(tables, run))?;
    for (page, span) in patient.spans().filter(|(_, span)| !matches!(span, Span::Free)) {
        let pages = page.get()..page.get() + span.pages();
        for next in pages.filter_map(|number| tables.page(number)).filter(|next| !reserved(tables, *next)) {
            tables.reserved_word(next.get() / 64).fetch_or(1 << (next.get() % 64), Ordering::Release);
            report.note("C6: a page in use is not reserved", tables.page_start(next), Remedy::Reserved);
        }
    }
    reserve_bitmaps(patient, report)
}

fn reserved(tables: &Tables, page: PageIndex) -> bool {
    tables.reserved_word(page.get() / 64).load(Ordering::Acquire) >> (page.get() % 64) & 1 != 0
}

fn back_pages(tables: &Tables, (first, end): (u32, u32)) -> Result<()> {
    let shift = tables.geometry.page_shift;
    tables.region.back(tables.geometry.data_start + (u64::from(first) << shift), u64::from(end - first) << shift)
}

/// Likewise for the bitmaps of slabs.
fn reserve_bitmaps(patient: Patient<'_>, report: &mut RepairReport) -> Result<()> {
    let tables = patient.tables();
    let back = |group: u32| {
        let (first, pages) = tables.group_pages(group);
        let (at, len) = tables.bitmaps_range(first, pages);
        tables.region.back(at, len)
    };
    for group in 0..tables.geometry.groups(tables.pages_high()) {
        let (word, bit) = tables.group_bit(group);
        if word.load(Ordering::Acquire) & bit != 0 {
            back(group)?;
        }
    }
    for (page, span) in patient.spans() {
        let Span::Slab(slab) = span else { continue };
        for group in tables.groups_of(slab.head, slab.info.pages) {
            let (word, bit) = tables.group_bit(group);
            if word.load(Ordering::Acquire) & bit == 0 {
                back(group)?;
                word.fetch_or(bit, Ordering::Release);
                report.note("C6: a slab's bitmap is not reserved", tables.entry_at(page), Remedy::Reserved);
            }
        }
    }
    Ok(())
}
