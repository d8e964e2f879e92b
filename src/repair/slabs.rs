//! Slabs and kept spans, whose entries are sound by now: bits that nobody uses, and lanes that nobody claims.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::marks::is_accounted_for;
use super::{Patient, Remedy, RepairReport, pages};
use crate::alloc::Slab;
use crate::check::{self, Findings, Span};
use crate::format::{PageCount, PageEntry, PageIndex, SHARED_LANE};

/// The slabs that should stand in the orphans' lists.
pub(super) fn orphans_with_room(patient: Patient<'_>) -> BTreeSet<PageIndex> {
    // What is found beside is mended, and told, by those who come next.
    let mut beside = Findings::up_to(usize::MAX);
    check::check_spans(patient.tables(), patient.ward.classes, &mut beside).continue_value().unwrap_or_default()
}

/// Puts every slab and every kept span into a state in which recovery can see to it.
pub(super) fn mend(patient: Patient<'_>, report: &mut RepairReport) {
    for (page, span) in patient.spans() {
        let entry = patient.tables().entry(page);
        match span {
            Span::Free => {}
            Span::Slab(slab) if entry.is_kept() => mend_kept_slab(patient, &slab, report),
            Span::Slab(slab) => mend_slab(patient, &slab, report),
            Span::Large { pages } if entry.is_kept() => mend_kept_large(patient, page, pages, report),
            Span::Large { .. } => {}
        }
    }
}

fn set_head(patient: Patient<'_>, page: PageIndex, entry: PageEntry) {
    patient.tables().entry_word(page).store(entry.0, Ordering::Release);
}

fn mend_slab(patient: Patient<'_>, slab: &Slab<'_>, report: &mut RepairReport) {
    let tables = patient.tables();
    let at = tables.entry_at(slab.head);
    put_to_rest(patient, slab, report);
    let pages = slab.head.get()..slab.head.get() + slab.info.pages;
    let other = pages.filter_map(|number| tables.page(number)).find(|page| tables.entry(*page).lane() != slab.lane);
    if let Some(other) = other {
        let what = "C3: a page of a span has an entry that does not fit its first page";
        report.note(what, tables.entry_at(other), Remedy::Orphaned);
    }
    // Recovery writes the lane into the further pages.
    if !is_accounted_for(tables, slab.lane) {
        set_head(patient, slab.head, tables.entry(slab.head).with_lane(SHARED_LANE));
        report.note("C8: a slab belongs to a lane that nobody claims", at, Remedy::Orphaned);
    }
    if slab.lane == SHARED_LANE && slab.is_wholly_free(tables) {
        report.note("C10: an orphan is wholly free", at, Remedy::Freed);
    }
}

/// C7.
fn put_to_rest(patient: Patient<'_>, slab: &Slab<'_>, report: &mut RepairReport) {
    let tables = patient.tables();
    let restless: Vec<u32> = check::restless_words(tables, slab).collect();
    for word in restless {
        let mask = slab.info.mask(word);
        slab.free_word(tables, word).fetch_or(!mask, Ordering::Release);
        slab.remote_word(tables, word).fetch_and(mask, Ordering::Release);
        let what = "C7: bits beyond a slab's last block are not at rest";
        report.note(what, slab.words_at(tables, word), Remedy::Reset);
    }
}

/// A kept slab without blocks goes back to the pages by recovery; one with blocks cannot have been kept.
fn mend_kept_slab(patient: Patient<'_>, slab: &Slab<'_>, report: &mut RepairReport) {
    let tables = patient.tables();
    let at = tables.entry_at(slab.head);
    put_to_rest(patient, slab, report);
    if !slab.is_wholly_free(tables) {
        set_head(patient, slab.head, PageEntry::slab(slab.class, SHARED_LANE));
        report.note("C16: a kept slab holds a block", at, Remedy::Orphaned);
    } else if !is_accounted_for(tables, slab.lane) {
        set_head(patient, slab.head, tables.entry(slab.head).with_lane(SHARED_LANE));
        report.note("C16: a span is kept by a lane that nobody claims", at, Remedy::Freed);
    }
}

/// That a large span is kept is said by one word alone, and if nobody keeps it, that word may be wrong: it stays allocated.
fn mend_kept_large(patient: Patient<'_>, page: PageIndex, pages: u32, report: &mut RepairReport) {
    let tables = patient.tables();
    if is_accounted_for(tables, tables.entry(page).lane()) {
        return;
    }
    let remedy = pages::remedy_of(tables, tables.page_start(page), pages);
    if let (Some(count), Some(remedy)) = (PageCount::new(pages), remedy) {
        set_head(patient, page, PageEntry::large(SHARED_LANE).at(0, count));
        report.note("C16: a span is kept by a lane that nobody claims", tables.entry_at(page), remedy);
    }
}
