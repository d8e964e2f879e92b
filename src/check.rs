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
//! | C17 | all gates are open, but for those of a heap that is marked as clean (G2) |
//!
//! C1 to C3, C7, C12 and C14 hold at every moment. The others hold whenever the heap lock is free, so whoever checks them
//! holds it; one who may not write checks them, and looks again if something changed meanwhile (`heap::inspect`).
//!
//! What is found goes to [`Findings`], which end the check when there are enough of them: after the first, or after many.
//!
//! Not here: how to mend what is wrong (`recovery` for what the dead leave, `repair` for everything else).

#![allow(
    clippy::arithmetic_side_effects,
    reason = "page numbers are below 2^31, slots below 2^17, and places below 2^47 (F1)"
)]

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use crate::alloc::{Classes, Slab, list, slab, span};
use crate::error::{Corruption, Result};
use crate::format::{
    CHUNK_PAGES, HEADER_LEN, Header, LaneId, PageEntry, PageIndex, PageState, RootName, RootState, SHARED_LANE, Tables,
    superblock,
};
use crate::journal;

/// Goes on, or ends the check because there are enough findings.
type Flow<T = ()> = ControlFlow<(), T>;

/// What a check has found, up to a number of findings that ends it.
#[derive(Debug)]
pub(crate) struct Findings {
    list: Vec<Corruption>,
    max: usize,
}

impl Findings {
    pub(crate) fn up_to(max: usize) -> Self {
        Self { list: Vec::new(), max }
    }

    pub(crate) fn into_list(self) -> Vec<Corruption> {
        self.list
    }

    fn add(&mut self, found: Corruption) -> Flow {
        self.list.push(found);
        if self.list.len() < self.max { Flow::Continue(()) } else { Flow::Break(()) }
    }

    fn note(&mut self, what: &'static str, at: u64) -> Flow {
        self.add(Corruption::new(what, at))
    }

    /// The value, or `None` after the error was noted.
    fn sift<T>(&mut self, result: Result<T, Corruption>) -> Flow<Option<T>> {
        match result {
            Ok(value) => Flow::Continue(Some(value)),
            Err(found) => self.add(found).map_continue(|()| None),
        }
    }
}

/// Checks every invariant; the first that is broken is the error.
pub(crate) fn check(tables: &Tables, classes: &Classes) -> Result<()> {
    findings(tables, classes, 1).first().map_or(Ok(()), |found| Err((*found).into()))
}

/// Everything that is broken, up to `max` findings. Behind a span that is broken the check goes on where another can start.
pub(crate) fn findings(tables: &Tables, classes: &Classes, max: usize) -> Vec<Corruption> {
    let mut findings = Findings::up_to(max);
    // That it ended early changes nothing for those who read what was found.
    let _ = check_all(tables, classes, &mut findings);
    findings.into_list()
}

fn check_all(tables: &Tables, classes: &Classes, findings: &mut Findings) -> Flow {
    let tables_are_there = check_superblock(tables, findings)?;
    // Pages beyond a mark that is wrong may have no memory behind their tables.
    if tables_are_there {
        let orphans_with_room = check_spans(tables, classes, findings)?;
        check_derived(tables, findings)?;
        check_orphan_lists(tables, classes, orphans_with_room, findings)?;
    }
    check_roots(tables, findings)
}

/// Checks what follows from the page entries.
pub(crate) fn check_derived(tables: &Tables, findings: &mut Findings) -> Flow {
    let high = tables.pages_high();
    for word in 0..high.div_ceil(64) {
        let bits = tables.in_use_word(word).load(Ordering::Acquire);
        if span::in_use_by_entries(tables, word, high).is_ok_and(|right| right != bits) {
            findings.note("C4: the in-use bits differ from the page entries", tables.in_use_at(word))?;
        }
    }
    for (level, node) in span::wrong_summaries(tables) {
        findings.note("C5: a summary differs from what lies below it", tables.summary_at(level, node))?;
    }
    Flow::Continue(())
}

/// Checks the superblock and the lane records; false if `PAGES_HIGH` is wrong.
fn check_superblock(tables: &Tables, findings: &mut Findings) -> Flow<bool> {
    let mut bytes = [0; HEADER_LEN];
    if !tables.region.copy_out(0, &mut bytes) || Header::decode(&bytes, "").as_ref() != Ok(&tables.header) {
        findings.note("C1: the header has changed since this process attached", 0)?;
    }
    let high = tables.superblock(superblock::PAGES_HIGH).load(Ordering::Acquire);
    let pages = u64::from(tables.geometry.pages);
    let high_fits = high == pages || high < pages && high.is_multiple_of(u64::from(CHUNK_PAGES));
    if !high_fits {
        findings.note("C2: the mark of pages in use is out of range", superblock::PAGES_HIGH)?;
    }
    if journal::is_armed(tables) || tables.superblock(superblock::MERGE_HOLD).load(Ordering::Acquire) != 0 {
        findings.note("C11: a journal record or a hold on merging was left behind", superblock::JOURNAL)?;
    }
    for record in tables.header.all_lanes().filter_map(|lane| tables.lane(lane)) {
        if record.is_armed() {
            findings.note("C11: an intent was left behind", record.at())?;
        }
        // The shared lane's may end between the two looks.
        if record.is_moving() && !record.is_claimed() && record.is_moving() {
            findings.note("C15: a move belongs to a lane that nobody claims", record.at())?;
        }
        if record.gate().is_shut() && tables.superblock(superblock::CLEAN).load(Ordering::Acquire) == 0 {
            findings.note("C17: a gate is shut, and nobody freezes the heap", record.at())?;
        }
    }
    let lock = tables.lock().load(Ordering::Acquire);
    if crate::sys::lock::holder(lock).is_some_and(|lane| lane > tables.geometry.lanes) {
        findings.note("C14: the lock word names a lane that does not exist", superblock::LOCK)?;
    }
    Flow::Continue(high_fits)
}

pub(crate) fn is_claimed(tables: &Tables, lane: LaneId) -> bool {
    tables.lane(lane).is_some_and(|record| record.is_claimed())
}

/// A span whose pages' entries agree with each other (C3), the lanes that they name apart.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Span<'a> {
    /// One free page.
    Free,
    /// A slab, kept or not.
    Slab(Slab<'a>),
    /// A large block, or a kept span that was one.
    Large { pages: u32 },
}

impl Span<'_> {
    pub(crate) fn pages(&self) -> u32 {
        match self {
            Self::Free => 1,
            Self::Slab(slab) => slab.info.pages,
            Self::Large { pages } => *pages,
        }
    }
}

/// The span that starts at `page`, or why none does.
pub(crate) fn span_at<'a>(tables: &Tables, classes: &'a Classes, page: PageIndex) -> Result<Span<'a>, Corruption> {
    let entry = tables.entry(page);
    let at = tables.entry_at(page);
    let broken = |what| Err(Corruption::new(what, at));
    let (span, tail) = match entry.state() {
        Some(_) if entry.has_stray_bits() => return broken("C3: a page entry has bits that nobody writes"),
        Some(PageState::Free) => return Ok(Span::Free),
        Some(PageState::Slab | PageState::KeptSlab) => {
            (Span::Slab(slab::slab_of(tables, classes, page, entry)?), PageState::Slab)
        }
        Some(PageState::Large | PageState::KeptLarge) => (Span::Large { pages: entry.number() }, PageState::LargeTail),
        Some(PageState::LargeTail) => return broken("C3: a large block has no first page"),
        None => return broken("C3: a page entry has a state that nobody writes"),
    };
    if tail == PageState::Slab && entry.number() != 0 {
        return broken("C3: a slab has no first page");
    }
    let pages = span.pages();
    if pages == 0 || u64::from(page.get()) + u64::from(pages) > u64::from(tables.pages_high()) {
        return broken("C3: a span reaches beyond the pages in use");
    }
    for distance in 1..pages {
        let next = tables.page_from_region(page.get() + distance, at)?;
        let found = tables.entry(next);
        let same = found.state() == Some(tail) && found.number() == distance && !found.has_stray_bits();
        if !same || found.class() != entry.class() {
            let what = "C3: a page of a span has an entry that does not fit its first page";
            return Err(Corruption::new(what, tables.entry_at(next)));
        }
    }
    Ok(span)
}

/// True if no span starts with this entry: it is a further page of one, or nothing that anybody writes.
fn is_no_start(entry: PageEntry) -> bool {
    match entry.state() {
        Some(PageState::Slab) => entry.number() != 0,
        Some(PageState::LargeTail) | None => true,
        Some(_) => false,
    }
}

/// Checks all spans; returns the orphans with room.
pub(crate) fn check_spans(tables: &Tables, classes: &Classes, findings: &mut Findings) -> Flow<BTreeSet<PageIndex>> {
    let high = tables.pages_high();
    let mut orphans_with_room = BTreeSet::new();
    let mut number = 0;
    while let Some(page) = (number < high).then(|| tables.page(number)).flatten() {
        match findings.sift(span_at(tables, classes, page))? {
            Some(span) => {
                check_span(tables, page, &span, &mut orphans_with_room, findings)?;
                number += span.pages();
            }
            None => {
                // The further pages of what is broken are part of the same finding.
                let is_part = |number: &u32| tables.page(*number).is_some_and(|page| is_no_start(tables.entry(page)));
                number = (number + 1..high).find(|next| !is_part(next)).unwrap_or(high);
            }
        }
    }
    Flow::Continue(orphans_with_room)
}

/// Checks the span that starts at `page`, whose entries agree.
fn check_span(
    tables: &Tables,
    page: PageIndex,
    span: &Span<'_>,
    orphans_with_room: &mut BTreeSet<PageIndex>,
    findings: &mut Findings,
) -> Flow {
    let entry = tables.entry(page);
    if let Span::Free = span {
        return Flow::Continue(());
    }
    if entry.is_kept() && !is_claimed(tables, entry.lane()) {
        findings.note("C16: a span is kept by a lane that nobody claims", tables.entry_at(page))?;
    }
    for next in (page.get()..page.get() + span.pages()).filter_map(|number| tables.page(number)) {
        if matches!(span, Span::Slab(_)) && tables.entry(next).lane() != entry.lane() {
            let what = "C3: a page of a span has an entry that does not fit its first page";
            findings.note(what, tables.entry_at(next))?;
        }
        let reserved = tables.reserved_word(next.get() / 64).load(Ordering::Acquire) >> (next.get() % 64) & 1;
        if reserved == 0 {
            findings.note("C6: a page in use is not reserved", tables.page_start(next))?;
        }
    }
    let Span::Slab(slab) = span else { return Flow::Continue(()) };
    for group in tables.groups_of(slab.head, slab.info.pages) {
        let (word, bit) = tables.group_bit(group);
        if word.load(Ordering::Acquire) & bit == 0 {
            // There may be no memory behind the bits that are checked below.
            return findings.note("C6: a slab's bitmap is not reserved", tables.entry_at(page));
        }
    }
    if entry.is_kept() {
        return check_kept_slab(tables, slab, findings);
    }
    check_slab(tables, slab, findings)?;
    if slab.lane == SHARED_LANE && slab.word_with_room(tables, 0).is_some() {
        orphans_with_room.insert(page);
    }
    Flow::Continue(())
}

/// Words of a slab in which bits beyond its last block are not at rest (C7).
pub(crate) fn restless_words(tables: &Tables, slab: &Slab<'_>) -> impl Iterator<Item = u32> {
    (0..slab.info.words()).filter(|word| {
        let beyond = !slab.info.mask(*word);
        let free = slab.free_word(tables, *word).load(Ordering::Acquire);
        let remote = slab.remote_word(tables, *word).load(Ordering::Acquire);
        free & beyond != beyond || remote & beyond != 0
    })
}

fn check_slab(tables: &Tables, slab: &Slab<'_>, findings: &mut Findings) -> Flow {
    let at = tables.entry_at(slab.head);
    for word in restless_words(tables, slab) {
        findings.note("C7: bits beyond a slab's last block are not at rest", slab.words_at(tables, word))?;
    }
    if slab.lane != SHARED_LANE && !is_claimed(tables, slab.lane) {
        findings.note("C8: a slab belongs to a lane that nobody claims", at)?;
    }
    if slab.lane == SHARED_LANE && slab.is_wholly_free(tables) {
        findings.note("C10: an orphan is wholly free", at)?;
    }
    Flow::Continue(())
}

/// How often a kept slab that holds a block is looked at again: its lane may take it meanwhile, and keep it anew.
const LOOKS: u32 = 3;

fn check_kept_slab(tables: &Tables, slab: &Slab<'_>, findings: &mut Findings) -> Flow {
    let entry = tables.entry(slab.head);
    let holds_block = || !slab.is_wholly_free(tables) && tables.entry(slab.head) == entry;
    if entry.is_kept() && (0..LOOKS).all(|_| holds_block()) {
        findings.note("C16: a kept slab holds a block", tables.entry_at(slab.head))?;
    }
    Flow::Continue(())
}

/// Checks the lists of orphans, in which these and no others should stand.
pub(crate) fn check_orphan_lists(
    tables: &Tables,
    classes: &Classes,
    mut expected: BTreeSet<PageIndex>,
    findings: &mut Findings,
) -> Flow {
    for class in classes.indices() {
        let mut next = findings.sift(list::first(tables, tables.orphan_head(class)))?.flatten();
        while let Some(head) = next {
            let fits = tables.entry(head).class() == class && list::is_listed(tables, head);
            // Each is taken out of the set once, so the walk ends.
            if !fits || !expected.remove(&head) {
                let what = "C9: a list of orphans holds a slab that does not belong there";
                findings.note(what, tables.link_at(head))?;
                break;
            }
            next = findings.sift(list::next(tables, head))?.flatten();
        }
    }
    expected.iter().try_for_each(|head| findings.note("C9: an orphan with room stands in no list", tables.link_at(*head)))
}

fn check_roots(tables: &Tables, findings: &mut Findings) -> Flow {
    let mut names = BTreeSet::new();
    let is_gap = |slot: &u32| tables.root(*slot).is_none_or(|record| record.state() == Some(RootState::Empty));
    let gaps: Vec<u32> = (0..tables.geometry.root_slots).filter(is_gap).collect();
    for slot in 0..tables.geometry.root_slots {
        if let Err(found) = check_root(tables, slot, &gaps, &mut names) {
            findings.add(found)?;
        }
    }
    Flow::Continue(())
}

/// Checks one root, given the slots at which searches end, and the names of the roots before it, to which it adds its own.
fn check_root(tables: &Tables, slot: u32, gaps: &[u32], names: &mut BTreeSet<String>) -> Result<(), Corruption> {
    let slots = tables.geometry.root_slots;
    let Some(record) = tables.root(slot) else { return Ok(()) };
    let Some((state, name, offset)) = record.snapshot() else { return Ok(()) };
    let broken = |what| Err(Corruption::new(what, record.at()));
    match state {
        Some(RootState::Empty | RootState::Removed) => return Ok(()),
        Some(RootState::Live) => {}
        Some(RootState::Constructing) => {
            let lane = record.lane().load(Ordering::Acquire);
            let claimed = u16::try_from(lane).is_ok_and(|lane| is_claimed(tables, LaneId::new(lane)));
            // A root that was finished meanwhile needs no lane any more.
            if !claimed && record.state() == Some(RootState::Constructing) {
                return broken("C13: a root's constructor belongs to a lane that nobody claims");
            }
        }
        None => return broken("C12: a root has a state that nobody writes"),
    }
    let Some(text) = name.text().filter(|text| RootName::new(text).is_ok()) else {
        return broken("C12: a root has no legal name");
    };
    let in_data = (tables.geometry.data_start..tables.geometry.data_end()).contains(&offset);
    let has_none_yet = offset == 0 && state == Some(RootState::Constructing);
    if !in_data && !has_none_yet {
        return Err(Corruption::new("C12: a root leads outside the data", record.cell()));
    }
    if !names.insert(text.to_owned()) {
        return broken("C12: two roots have the same name");
    }
    let start = name.hash() % slots;
    // A search may go round the end of the table.
    let gap_in = |from: u32, to: u32| gaps.get(gaps.partition_point(|gap| *gap < from)).is_some_and(|gap| *gap < to);
    if if start <= slot { gap_in(start, slot) } else { gap_in(start, slots) || gap_in(0, slot) } {
        return broken("C12: a root stands behind a gap where no search finds it");
    }
    Ok(())
}
