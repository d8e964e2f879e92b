//! Every numbered invariant of a heap, checked without writing a byte.
//!
//! | | |
//! |---|---|
//! | C1 | the header in the region is the one that was checked at attach |
//! | C2 | `PAGES_HIGH` is at most the number of pages, and a multiple of 512 or all of them |
//! | C3 | the pages below it are divided among free pages, slabs, large blocks and kept spans, as their entries say |
//! | C4 | a page's in-use bit is set iff its entry is not free |
//! | C5 | every summary node says what lies below it |
//! | C6 | the memory of every page in use is reserved, and so are the bitmaps of every slab |
//! | C7 | bits beyond a slab's last block are set in free words and clear in remote words (A3) |
//! | C8 | the lane of every slab is claimed, or the slab is an orphan |
//! | C9 | an orphan stands in its class's list iff it has room; the lists are sound and hold nothing else |
//! | C10 | no slab is an orphan and wholly free |
//! | C11 | the journal and all intents are at rest, and nothing holds up merging |
//! | C12 | every root has a legal name, found where a search for it ends, and a place in the data; names are unique |
//! | C13 | a root under construction belongs to a claimed lane |
//! | C14 | the lock word names a lane that exists, or none |
//! | C15 | a move belongs to a claimed lane |
//! | C16 | a kept span belongs to a claimed lane, and holds no block (K1) |
//!
//! C1 to C3, C7, C12 and C14 hold at every moment. The others hold whenever the heap lock is free, so whoever checks them
//! holds it; one who may not write checks them, and looks again if something changed meanwhile (`heap::inspect`).
//!
//! Not here: how to mend what is wrong (`recovery` for what the dead leave).

#![allow(
    clippy::arithmetic_side_effects,
    reason = "page numbers are below 2^31, slots below 2^17, and places below 2^47 (F1)"
)]

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use crate::alloc::{Classes, Slab, list, slab, span};
use crate::error::{Corruption, Result};
use crate::format::{
    CHUNK_PAGES, HEADER_LEN, Header, LaneId, PageIndex, PageState, RootState, SHARED_LANE, Tables, superblock,
};
use crate::journal;

/// Checks every invariant; the first that is broken is the error.
pub(crate) fn check(tables: &Tables, classes: &Classes) -> Result<()> {
    check_superblock(tables)?;
    let high = tables.pages_high();
    let mut orphans_with_room = BTreeSet::new();
    let mut number = 0;
    while number < high {
        let page = tables.page_from_region(number, superblock::PAGES_HIGH)?;
        number += check_span(tables, classes, page, &mut orphans_with_room)?;
    }
    for word in 0..high.div_ceil(64) {
        let bits = tables.in_use_word(word).load(Ordering::Acquire);
        if bits != span::in_use_by_entries(tables, word, high)? {
            return broken("C4: the in-use bits differ from the page entries", u64::from(word));
        }
    }
    if let Some((level, node)) = span::wrong_summary(tables) {
        return broken("C5: a summary differs from what lies below it", tables.summary_at(level, node));
    }
    check_orphan_lists(tables, classes, orphans_with_room)?;
    check_roots(tables)
}

fn broken<T>(what: &'static str, at: u64) -> Result<T> {
    Err(Corruption::new(what, at).into())
}

fn check_superblock(tables: &Tables) -> Result<()> {
    let mut bytes = [0; HEADER_LEN];
    if !tables.region.copy_out(0, &mut bytes) || Header::decode(&bytes, "").as_ref() != Ok(&tables.header) {
        return broken("C1: the header has changed since this process attached", 0);
    }
    let high = tables.superblock(superblock::PAGES_HIGH).load(Ordering::Acquire);
    let pages = u64::from(tables.geometry.pages);
    if high > pages || (high != pages && !high.is_multiple_of(u64::from(CHUNK_PAGES))) {
        return broken("C2: the mark of pages in use is out of range", superblock::PAGES_HIGH);
    }
    if journal::is_armed(tables) || tables.superblock(superblock::MERGE_HOLD).load(Ordering::Acquire) != 0 {
        return broken("C11: a journal record or a hold on merging was left behind", superblock::JOURNAL);
    }
    for record in tables.header.all_lanes().filter_map(|lane| tables.lane(lane)) {
        if record.intent().is_some() {
            return broken("C11: an intent was left behind", record.at());
        }
        // The shared lane's may end between the two looks.
        if record.is_moving() && !record.is_claimed() && record.is_moving() {
            return broken("C15: a move belongs to a lane that nobody claims", record.at());
        }
    }
    let lock = tables.lock().load(Ordering::Acquire);
    if crate::sys::lock::holder(lock).is_some_and(|lane| lane > tables.geometry.lanes) {
        return broken("C14: the lock word names a lane that does not exist", superblock::LOCK);
    }
    Ok(())
}

fn is_claimed(tables: &Tables, lane: LaneId) -> bool {
    tables.lane(lane).is_some_and(|record| record.is_claimed())
}

/// Checks the span that starts at `page`; returns its length in pages.
fn check_span(
    tables: &Tables,
    classes: &Classes,
    page: PageIndex,
    orphans_with_room: &mut BTreeSet<PageIndex>,
) -> Result<u32> {
    let at = tables.entry_at(page);
    let entry = tables.entry(page);
    let (pages, tail) = match entry.state() {
        Some(PageState::Free) => return Ok(1),
        Some(PageState::Slab) => {
            let slab = slab::slab_of(tables, classes, page, entry)?;
            check_slab(tables, &slab)?;
            if slab.lane == SHARED_LANE && slab.word_with_room(tables, 0).is_some() {
                orphans_with_room.insert(page);
            }
            (slab.info.pages, PageState::Slab)
        }
        Some(PageState::KeptSlab) => {
            let slab = slab::slab_of(tables, classes, page, entry)?;
            check_kept_slab(tables, &slab)?;
            (slab.info.pages, PageState::Slab)
        }
        Some(PageState::Large | PageState::KeptLarge) => (entry.number(), PageState::LargeTail),
        Some(PageState::LargeTail) => return broken("C3: a large block has no first page", at),
        None => return broken("C3: a page entry has a state that nobody writes", at),
    };
    if tail == PageState::Slab && entry.number() != 0 {
        return broken("C3: a slab has no first page", at);
    }
    if entry.is_kept() && !is_claimed(tables, entry.lane()) {
        return broken("C16: a span is kept by a lane that nobody claims", at);
    }
    if pages == 0 || u64::from(page.get()) + u64::from(pages) > u64::from(tables.pages_high()) {
        return broken("C3: a span reaches beyond the pages in use", at);
    }
    for distance in 0..pages {
        let next = tables.page_from_region(page.get() + distance, at)?;
        let found = tables.entry(next);
        let same = found.state() == Some(tail) && found.number() == distance;
        let same_slab = tail != PageState::Slab || (found.class() == entry.class() && found.lane() == entry.lane());
        if distance != 0 && !(same && same_slab) {
            return broken("C3: a page of a span has an entry that does not fit its first page", tables.entry_at(next));
        }
        let reserved = tables.reserved_word(next.get() / 64).load(Ordering::Acquire) >> (next.get() % 64) & 1;
        if reserved == 0 {
            return broken("C6: a page in use is not reserved", tables.page_start(next));
        }
    }
    Ok(pages)
}

fn check_slab(tables: &Tables, slab: &Slab<'_>) -> Result<()> {
    let at = tables.entry_at(slab.head);
    for group in tables.groups_of(slab.head, slab.info.pages) {
        let (word, bit) = tables.group_bit(group);
        if word.load(Ordering::Acquire) & bit == 0 {
            return broken("C6: a slab's bitmap is not reserved", at);
        }
    }
    for word in 0..slab.info.words() {
        let beyond = !slab.info.mask(word);
        let free = slab.free_word(tables, word).load(Ordering::Acquire);
        let remote = slab.remote_word(tables, word).load(Ordering::Acquire);
        if free & beyond != beyond || remote & beyond != 0 {
            return broken("C7: bits beyond a slab's last block are not at rest", slab.words_at(tables, word));
        }
    }
    if slab.lane != SHARED_LANE && !is_claimed(tables, slab.lane) {
        return broken("C8: a slab belongs to a lane that nobody claims", at);
    }
    if slab.lane == SHARED_LANE && slab.is_wholly_free(tables) {
        return broken("C10: an orphan is wholly free", at);
    }
    Ok(())
}

/// How often a kept slab that holds a block is looked at again: its lane may take it meanwhile, and keep it anew.
const LOOKS: u32 = 3;

fn check_kept_slab(tables: &Tables, slab: &Slab<'_>) -> Result<()> {
    let entry = tables.entry(slab.head);
    let holds_block = || !slab.is_wholly_free(tables) && tables.entry(slab.head) == entry;
    if entry.is_kept() && (0..LOOKS).all(|_| holds_block()) {
        return broken("C16: a kept slab holds a block", tables.entry_at(slab.head));
    }
    Ok(())
}

fn check_orphan_lists(tables: &Tables, classes: &Classes, mut expected: BTreeSet<PageIndex>) -> Result<()> {
    for class in classes.indices() {
        let mut next = list::first(tables, tables.orphan_head(class))?;
        while let Some(head) = next {
            let fits = tables.entry(head).class() == class && list::is_listed(tables, head);
            // Each is taken out of the set once, so the walk ends.
            if !fits || !expected.remove(&head) {
                return broken("C9: a list of orphans holds a slab that does not belong there", tables.link_at(head));
            }
            next = list::next(tables, head)?;
        }
    }
    match expected.first() {
        Some(head) => broken("C9: an orphan with room stands in no list", tables.link_at(*head)),
        None => Ok(()),
    }
}

fn check_roots(tables: &Tables) -> Result<()> {
    let slots = tables.geometry.root_slots;
    let mut names = BTreeSet::new();
    for slot in 0..slots {
        let Some(record) = tables.root(slot) else { continue };
        let Some((state, name, offset)) = record.snapshot() else { continue };
        match state {
            Some(RootState::Empty | RootState::Removed) => continue,
            Some(RootState::Live) => {}
            Some(RootState::Constructing) => {
                let lane = record.lane().load(Ordering::Acquire);
                let claimed = u16::try_from(lane).is_ok_and(|lane| is_claimed(tables, LaneId::new(lane)));
                // A root that was finished meanwhile needs no lane any more.
                if !claimed && record.state() == Some(RootState::Constructing) {
                    return broken("C13: a root's constructor belongs to a lane that nobody claims", record.at());
                }
            }
            None => return broken("C12: a root has a state that nobody writes", record.at()),
        }
        let Some(text) = name.text() else { return broken("C12: a root has no legal name", record.at()) };
        let end = tables.geometry.data_start + tables.geometry.data_len;
        let in_data = (tables.geometry.data_start..end).contains(&offset);
        let has_none_yet = offset == 0 && state == Some(RootState::Constructing);
        if !in_data && !has_none_yet {
            return broken("C12: a root leads outside the data", record.cell());
        }
        if !names.insert(text.to_owned()) {
            return broken("C12: two roots have the same name", record.at());
        }
        let start = name.hash() % slots;
        let distance = (slot + slots - start) % slots;
        let is_gap = |slot: u32| tables.root(slot).is_none_or(|record| record.state() == Some(RootState::Empty));
        if (0..distance).any(|step| is_gap((start + step) % slots)) {
            return broken("C12: a root stands behind a gap where no search finds it", record.at());
        }
    }
    Ok(())
}
