//! The superblock's words and the lane records: how far the pages go, and what was under way.

use std::sync::atomic::Ordering;

use super::{Patient, Remedy, RepairReport};
use crate::alloc::slab;
use crate::check;
use crate::error::Result;
use crate::format::{CHUNK_PAGES, Intent, LaneId, PageCount, PageState, SHARED_LANE, Tables, superblock};
use crate::journal::{self, Locked, Range};
use crate::sys::lock;

/// What `RECOVERING` says while a heap that was at rest is repaired: what comes next may still take for granted that nobody
/// had died holding the lock. Once recovery begins, the word is 1, as for all who recover.
pub(super) const MENDING: u64 = 2;

/// Bytes of the page table that are looked at together.
const PIECE: u64 = 64 << 10;

/// Sets `PAGES_HIGH` so that it is legal and lies above every page whose entry says anything, and reserves the tables below.
pub(super) fn mend_pages_high(patient: Patient<'_>, report: &mut RepairReport) -> Result<()> {
    let tables = patient.tables();
    let word = tables.superblock(superblock::PAGES_HIGH);
    let (high, pages) = (word.load(Ordering::Acquire), tables.geometry.pages);
    let needed = pages_with_entries(patient)?;
    let is_legal = |high: u32| high == pages || high < pages && high.is_multiple_of(CHUNK_PAGES);
    let legal = u32::try_from(high).ok().filter(|high| is_legal(*high));
    let right = legal.filter(|high| *high >= needed).unwrap_or_else(|| tables.next_high(needed));
    tables.reserve_tables(0, right)?;
    if high != u64::from(right) {
        let what = match legal {
            Some(_) => "C2: the mark of pages in use lies below pages whose entries say something",
            None => "C2: the mark of pages in use is out of range",
        };
        word.store(u64::from(right), Ordering::Release);
        report.note(what, superblock::PAGES_HIGH, Remedy::Reset);
    }
    Ok(())
}

/// Clears bits of pages that were never in use: they are taken for what they say once the pages come into use.
pub(super) fn clear_bits_above(patient: Patient<'_>, report: &mut RepairReport) -> Result<()> {
    let tables = patient.tables();
    for (range, below) in tables.bits_above(tables.pages_high()) {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
        patient.peek(range.start, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<8>();
        for (at, word) in range.clone().step_by(8).zip(words) {
            let kept = if at == range.start { below } else { 0 };
            if u64::from_ne_bytes(*word) & !kept != 0 {
                tables.region.word(at).fetch_and(kept, Ordering::Release);
                report.note("bits of pages that were never in use are set", at, Remedy::Reset);
            }
        }
    }
    Ok(())
}

/// The number of pages up to the last whose entry is not 0.
fn pages_with_entries(patient: Patient<'_>) -> Result<u32> {
    let geometry = &patient.tables().geometry;
    let len = u64::from(geometry.pages) * 8;
    let mut buffer = vec![0; usize::try_from(len.min(PIECE)).unwrap_or(0)];
    let mut last = 0;
    for start in (0..len).step_by(buffer.len()) {
        let piece = usize::try_from((len - start).min(PIECE)).unwrap_or(0);
        let Some(bytes) = buffer.get_mut(..piece) else { break };
        patient.peek(patient.tables().entries_at() + start, bytes)?;
        if let Some(at) = bytes.iter().rposition(|byte| *byte != 0) {
            last = start / 8 + at as u64 / 8 + 1;
        }
    }
    Ok(u32::try_from(last).unwrap_or(u32::MAX).min(geometry.pages))
}

/// Marks the lock as held by the caller, and the heap as being recovered. True if somebody died while he held the lock: only
/// then can a journal record and intents be what they seem; otherwise they are dropped first (Q4).
pub(super) fn mark_as_held(patient: Patient<'_>, locked: &Locked, report: &mut RepairReport) -> bool {
    let tables = patient.tables();
    let recovering = tables.superblock(superblock::RECOVERING);
    let holder = lock::holder(tables.lock().load(Ordering::Acquire));
    let is_held = holder.is_some_and(|lane| lane <= tables.geometry.lanes);
    let interrupted = match recovering.load(Ordering::Acquire) {
        0 => is_held,
        MENDING => false,
        _ => true,
    };
    if !interrupted {
        if journal::is_armed(tables) {
            let what = "C11: a journal record is armed, and nobody held the lock";
            report.note(what, superblock::JOURNAL, Remedy::Dropped);
            journal::clear(tables, locked);
        }
        drop_intents(tables, |_| true, "C11: an intent is armed, and nobody held the lock", report);
    }
    match holder {
        Some(_) if is_held => report.note("the lock was held by one who died", superblock::LOCK, Remedy::Recovered),
        Some(_) => report.note("C14: the lock word names a lane that does not exist", superblock::LOCK, Remedy::Reset),
        None => {}
    }
    if recovering.load(Ordering::Acquire) != 0 {
        report.note("a recovery or a repair did not come to its end", superblock::RECOVERING, Remedy::Recovered);
    }
    recovering.store(if interrupted { 1 } else { MENDING }, Ordering::Release);
    tables.lock().store(u32::from(SHARED_LANE.get()) + 1, Ordering::Release);
    interrupted
}

/// From here on, whoever finds the heap finishes what the lanes had under way.
pub(super) fn mark_as_recovering(tables: &Tables) {
    tables.superblock(superblock::RECOVERING).store(1, Ordering::Release);
}

/// Ends the intents of which `is_wrong` says so.
fn drop_intents(tables: &Tables, is_wrong: impl Fn(Option<Intent>) -> bool, what: &'static str, report: &mut RepairReport) {
    for record in tables.header.all_lanes().filter_map(|lane| tables.lane(lane)) {
        if record.is_armed() && is_wrong(record.intent()) {
            record.disarm();
            report.note(what, record.at(), Remedy::Dropped);
        }
    }
}

/// Replays the journal, or drops it, and lets merging go on.
pub(super) fn replay_journal(patient: Patient<'_>, locked: &Locked, interrupted: bool, report: &mut RepairReport) {
    let tables = patient.tables();
    if journal::is_armed(tables) {
        let is_sound = is_replayable(patient) && journal::replay(tables, locked).is_ok();
        let (what, remedy) = if is_sound {
            ("C11: a journal record was left behind", Remedy::Recovered)
        } else {
            ("C11: the journal holds a record that nobody writes here", Remedy::Dropped)
        };
        report.note(what, superblock::JOURNAL, remedy);
        journal::clear(tables, locked);
    }
    let hold = tables.superblock(superblock::MERGE_HOLD);
    if hold.load(Ordering::Acquire) != 0 {
        let remedy = if interrupted { Remedy::Recovered } else { Remedy::Reset };
        report.note("C11: a hold on merging was left behind", superblock::MERGE_HOLD, remedy);
        hold.store(0, Ordering::Release);
    }
}

/// True if the armed record is one that can be under way, given the entries of its pages (J2): each is what it is to be,
/// free, or what it was as a part of one span.
fn is_replayable(patient: Patient<'_>) -> bool {
    let Ok(ranges) = journal::ranges(patient.tables()) else { return false };
    let mut distance = 0;
    ranges.iter().all(|range| {
        // What a large block is shortened by follows it.
        let is_sound = is_entry_sound(patient, range) && is_under_way(patient, range, distance);
        distance = range.count.get();
        is_sound
    })
}

fn is_entry_sound(patient: Patient<'_>, range: &Range) -> bool {
    let pages = match range.entry.state() {
        Some(PageState::Free | PageState::Large) => Some(range.count),
        Some(PageState::Slab) => patient.ward.classes.get(range.entry.class()).and_then(|info| PageCount::new(info.pages)),
        _ => None,
    };
    pages == Some(range.count) && !range.entry.has_stray_bits()
}

/// `before` is the distance of the range's first page from the start of the span that it was a part of.
fn is_under_way(patient: Patient<'_>, range: &Range, before: u32) -> bool {
    let tables = patient.tables();
    let becomes_free = range.entry.state() == Some(PageState::Free);
    (0..range.count.get()).all(|distance| {
        let Some(page) = tables.page(range.first.get() + distance) else { return false };
        let now = tables.entry(page);
        let place = before + distance;
        now == range.entry.at(distance, range.count)
            || match now.state() {
                Some(PageState::Free) => true,
                // Only a slab without blocks is given back.
                Some(PageState::Slab) => {
                    let slab = slab::slab_of(tables, patient.ward.classes, page, now);
                    now.number() == place && becomes_free && slab.is_ok_and(|slab| slab.is_wholly_free(tables))
                }
                Some(PageState::LargeTail) => now.number() == place,
                Some(PageState::Large | PageState::KeptSlab | PageState::KeptLarge) => place == 0,
                None => false,
            }
    })
}

/// Lets recovery see to every lane record: what it could not carry out is dropped.
pub(super) fn mend_lanes(patient: Patient<'_>, report: &mut RepairReport) {
    let tables = patient.tables();
    let is_illegal = |intent: Option<Intent>| !intent.is_some_and(|intent| is_cell(tables, intent.cell));
    drop_intents(tables, is_illegal, "C11: an intent names no cell, or is none that anybody writes", report);
    for record in tables.header.all_lanes().filter_map(|lane| tables.lane(lane)) {
        if record.is_armed() {
            report.note("C11: an intent was left behind", record.at(), Remedy::Recovered);
        }
        if record.gate().is_shut() {
            record.gate().open();
            report.note("C17: a gate is shut, and nobody freezes the heap", record.at(), Remedy::Reset);
        }
        if !record.is_claimed() && record.gate().is_busy() {
            record.gate().leave();
            report.note("a lane is busy that nobody claims", record.at(), Remedy::Reset);
        }
        if record.is_claimed() {
            report.note("a lane is claimed by one who died", record.at(), Remedy::Recovered);
        } else if record.is_moving() {
            record.move_old().store(0, Ordering::Release);
            record.move_new().store(0, Ordering::Release);
            report.note("C15: a move belongs to a lane that nobody claims", record.at(), Remedy::Dropped);
        }
    }
}

/// True if an intent can name this cell: a word of a block, of a root, or of a move.
fn is_cell(tables: &Tables, cell: u64) -> bool {
    let geometry = &tables.geometry;
    let mut records = tables.header.all_lanes().filter_map(|lane| tables.lane(lane));
    let of_record = records.any(|record| cell == record.move_old_cell() || cell == record.move_new_cell());
    let of_root = || (0..geometry.root_slots).filter_map(|slot| tables.root(slot)).any(|record| record.cell() == cell);
    let in_data = (geometry.data_start..geometry.data_end()).contains(&cell) && cell.is_multiple_of(8);
    in_data || of_record || of_root()
}

/// True if the lane of an entry is claimed, or it is nobody's.
pub(super) fn is_accounted_for(tables: &Tables, lane: LaneId) -> bool {
    lane.is_shared() || check::is_claimed(tables, lane)
}
