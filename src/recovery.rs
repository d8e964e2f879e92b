//! A lane died: finish or undo what it was doing, and make orphans of its slabs.
//!
//! Recovery runs under the heap lock, in one of two depths:
//!
//! - [`after_dead_holder`]: the lock was taken from a dead lane. The journal is replayed, everything derived is rebuilt,
//!   armed intents are completed or undone, and then dead lanes are seen to.
//! - [`dead_lanes`]: the lock was free. What is behind it is whole; only lanes that died outside of it are seen to.
//!
//! V1. Every step can be repeated from the start after a death in the middle, any number of times: a replayed journal
//!     gives the same entries; an intent stays armed until its effect is whole; a dead lane's record stays claimed
//!     until nothing is left of it; `RECOVERING` stays set until the end.
//! V2. Who is dead is asked of [`Liveness`] alone, and a lane is seen to only by one who holds its token.
//! V3. Intents are armed only under the heap lock: by a lane for itself, or by recovery in the record of a dead one. So
//!     whoever takes the lock from a dead holder finds none that belongs to a living lane, and settles all of them, even
//!     those of lanes whose tokens others have taken to claim them.
//!
//! Not here: how the lock changes hands (`sys::lock`, `heap::lock`).

#![allow(clippy::arithmetic_side_effects, reason = "page numbers are below 2^31 and slots below 2^17")]

use std::sync::atomic::Ordering;

use crate::alloc::{Classes, Located, Slab, kept, orphan, slab, span};
use crate::error::{Corruption, Result};
use crate::format::{
    Intent, IntentKind, LaneId, MOVE_DECIDES, PageIndex, PageState, RootState, SHARED_LANE, Tables, superblock,
};
use crate::journal::{self, Locked};
use crate::sys::token::Liveness;

/// What recovery works on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ward<'a> {
    pub(crate) tables: &'a Tables,
    pub(crate) classes: &'a Classes,
    pub(crate) liveness: &'a dyn Liveness,
}

/// Lanes that are dead, by number.
struct Dead(Vec<bool>);

impl Dead {
    fn none(tables: &Tables) -> Self {
        Self(vec![false; tables.geometry.lanes as usize + 1])
    }

    fn insert(&mut self, lane: LaneId) {
        if let Some(entry) = self.0.get_mut(usize::from(lane.get())) {
            *entry = true;
        }
    }

    fn contains(&self, lane: LaneId) -> bool {
        self.0.get(usize::from(lane.get())).copied().unwrap_or(false)
    }

    fn is_empty(&self) -> bool {
        !self.0.iter().any(|dead| *dead)
    }

    fn lanes(&self, tables: &Tables) -> impl Iterator<Item = LaneId> {
        tables.header.all_lanes().filter(|lane| self.contains(*lane))
    }
}

/// Sees to everything that a dead holder of the heap lock left. `held` are lanes whose tokens the caller has just taken:
/// their records, if claimed, are those of dead ones.
pub(crate) fn after_dead_holder(ward: Ward<'_>, locked: &Locked, held: &[LaneId]) -> Result<()> {
    let tables = ward.tables;
    // It may have died while it froze the heap.
    open_gates(tables, locked);
    journal::replay(tables, locked)?;
    span::rebuild_derived(tables, locked)?;
    journal::clear(tables, locked);
    let dead = gather(ward, held)?;
    let done = settle_and_bury(ward, locked, &dead);
    let_go(ward, &dead, held);
    done
}

/// Opens the gates of all lanes: nobody freezes the heap, or not any more.
pub(crate) fn open_gates(tables: &Tables, _locked: &Locked) {
    tables.header.lane_ids().filter_map(|lane| tables.lane(lane)).for_each(|record| record.gate().open());
}

/// Settles what the holder had under way, and buries the dead.
fn settle_and_bury(ward: Ward<'_>, locked: &Locked, dead: &Dead) -> Result<()> {
    let tables = ward.tables;
    tables.header.all_lanes().try_for_each(|lane| settle_intent(ward, locked, lane, false))?;
    tables.superblock(superblock::MERGE_HOLD).store(0, Ordering::Release);
    orphan::clear_lists(tables, locked, ward.classes);
    // Orphans are listed anew together with the dead lanes' slabs.
    bury(ward, locked, dead, true)
}

/// Sees to lanes that died without holding the lock; returns how many there were.
pub(crate) fn dead_lanes(ward: Ward<'_>, locked: &Locked, held: &[LaneId]) -> Result<u32> {
    let dead = gather(ward, held)?;
    if dead.is_empty() {
        return Ok(0);
    }
    let done = bury(ward, locked, &dead, false);
    let_go(ward, &dead, held);
    done?;
    Ok(dead.0.iter().map(|dead| u32::from(*dead)).sum())
}

/// Makes orphans of one lane's slabs and frees its record: what a lane does that leaves in good order, as a whole.
pub(crate) fn retire_lanes(ward: Ward<'_>, locked: &Locked, lanes: &[LaneId]) -> Result<()> {
    let mut leaving = Dead::none(ward.tables);
    lanes.iter().for_each(|lane| leaving.insert(*lane));
    bury(ward, locked, &leaving, false)
}

/// The dead among the claimed lanes, with their tokens taken.
fn gather(ward: Ward<'_>, held: &[LaneId]) -> Result<Dead> {
    let mut dead = Dead::none(ward.tables);
    let is_claimed = |lane: &LaneId| ward.tables.lane(*lane).is_some_and(|record| record.is_claimed());
    for lane in ward.tables.header.all_lanes().filter(is_claimed) {
        let taken = |lane: LaneId| Ok(!ward.liveness.is_alive(lane.token())? && ward.liveness.take(lane.token())?);
        match if held.contains(&lane) { Ok(true) } else { taken(lane) } {
            Ok(true) => dead.insert(lane),
            Ok(false) => {}
            Err(error) => {
                let_go(ward, &dead, held);
                return Err(error);
            }
        }
    }
    Ok(dead)
}

fn let_go(ward: Ward<'_>, dead: &Dead, held: &[LaneId]) {
    for lane in dead.lanes(ward.tables).filter(|lane| !held.contains(lane)) {
        ward.liveness.give_back(lane.token());
    }
}

/// Settles the moves of dead lanes, undoes the roots that they were constructing, makes orphans of their slabs, and frees
/// their records, in this order: as long as a record is claimed, whoever comes next starts again.
fn bury(ward: Ward<'_>, locked: &Locked, dead: &Dead, relist: bool) -> Result<()> {
    let tables = ward.tables;
    dead.lanes(tables).try_for_each(|lane| settle_move(ward, locked, lane, !relist))?;
    let constructing =
        |lane: LaneId| tables.lane(lane).is_some_and(|record| record.constructing().load(Ordering::Acquire) != 0);
    if dead.lanes(tables).any(constructing) {
        undo_constructions(ward, locked, dead, !relist)?;
    }
    let mut number = 0;
    while number < tables.pages_high() {
        let page = tables.page_from_region(number, superblock::PAGES_HIGH)?;
        number = number.saturating_add(visit_span(ward, locked, dead, relist, page)?);
    }
    for lane in dead.lanes(tables) {
        if let Some(record) = tables.lane(lane) {
            record.constructing().store(0, Ordering::Relaxed);
            record.hints().store(0, Ordering::Relaxed);
            record.gate().leave();
            record.claimed().store(0, Ordering::Release); // COMMIT: nothing is left of the lane
        }
    }
    Ok(())
}

/// Sees to the span that starts at `page`; returns how many pages it has.
fn visit_span(ward: Ward<'_>, locked: &Locked, dead: &Dead, relist: bool, page: PageIndex) -> Result<u32> {
    let tables = ward.tables;
    let entry = tables.entry(page);
    match entry.state() {
        Some(PageState::Free) => Ok(1),
        Some(PageState::Slab) => {
            let slab = slab::slab_of(tables, ward.classes, page, entry)?;
            if slab.head != page {
                return Err(broken(tables, page));
            }
            // One who died while it wrote its lane into the slab's entries, or the shared one, held the lock: then the first
            // page, which is written first, names the dead lane or none, and all orphans are listed anew.
            let is_orphan = entry.lane().is_shared();
            if is_orphan && relist || !is_orphan && dead.contains(entry.lane()) {
                orphan::disown(tables, locked, &slab)?;
            } else if is_orphan {
                resettle_if_freed_in(tables, locked, &slab)?;
            }
            Ok(slab.info.pages)
        }
        Some(PageState::Large) => {
            if dead.contains(entry.lane()) {
                // Unless somebody has freed it meanwhile, for which no lock is needed.
                let (word, orphaned) = (tables.entry_word(page), entry.with_lane(SHARED_LANE));
                let _ = word.compare_exchange(entry.0, orphaned.0, Ordering::AcqRel, Ordering::Relaxed);
            }
            Ok(entry.number().max(1))
        }
        Some(PageState::KeptSlab | PageState::KeptLarge) => {
            let pages = kept::pages_of(ward.classes, entry).ok_or_else(|| broken(tables, page))?;
            // One that is kept by nobody was being taken away from its lane.
            if entry.lane().is_shared() || dead.contains(entry.lane()) {
                kept::free_kept(tables, locked, ward.classes, page, entry)?;
            }
            Ok(pages.get())
        }
        Some(PageState::LargeTail) | None => Err(broken(tables, page)),
    }
}

/// Sees to an orphan in which somebody freed while it lost its lane, and who then could not see to it: the lock was held, or
/// death came first.
fn resettle_if_freed_in(tables: &Tables, locked: &Locked, slab: &Slab<'_>) -> Result<()> {
    if slab.has_remote(tables) { orphan::resettle(tables, locked, slab) } else { Ok(()) }
}

/// Looks through all orphans for blocks that were freed and that nobody has seen to, and takes what other lanes keep. For
/// those who are short of memory, or are to give some back: it takes time proportional to the pages in use so far.
pub(crate) fn gather_freed(ward: Ward<'_>, locked: &Locked) -> Result<()> {
    let tables = ward.tables;
    let mut number = 0;
    while number < tables.pages_high() {
        let page = tables.page_from_region(number, superblock::PAGES_HIGH)?;
        let entry = tables.entry(page);
        let pages = match entry.state() {
            Some(PageState::Slab) => {
                let slab = slab::slab_of(tables, ward.classes, page, entry)?;
                if entry.lane().is_shared() {
                    resettle_if_freed_in(tables, locked, &slab)?;
                }
                slab.info.pages
            }
            Some(PageState::Large) => entry.number().max(1),
            Some(PageState::KeptSlab | PageState::KeptLarge) => {
                kept::free_kept(tables, locked, ward.classes, page, entry)?;
                kept::pages_of(ward.classes, entry).map_or(1, |pages| pages.get())
            }
            _ => 1,
        };
        number = number.saturating_add(pages);
    }
    Ok(())
}

fn broken(tables: &Tables, page: PageIndex) -> crate::error::Error {
    Corruption::new("a span does not start where the one before it ends", tables.entry_at(page)).into()
}

/// The block that would go if `lane` died now, or goes because it is dead: the new one of a move that has not happened.
pub(crate) fn superseded(ward: Ward<'_>, lane: LaneId) -> Result<Option<u64>> {
    let Some(record) = ward.tables.lane(lane) else { return Ok(None) };
    let (old, new) = (record.move_old().load(Ordering::Acquire), record.move_new().load(Ordering::Acquire));
    Ok(if new != 0 && !has_moved(ward, old)? { Some(new) } else { None })
}

/// Ends the move of a dead lane, if it has one: of the two blocks, one stays. `lists_are_sound`: see [`free_if_allocated`].
///
/// The new block is freed by way of an intent: should this recovery die too, whoever comes next repeats the free before
/// anybody can allocate there, even if the dead lane's token has been taken by one who waits to claim the lane (V3).
fn settle_move(ward: Ward<'_>, locked: &Locked, lane: LaneId, lists_are_sound: bool) -> Result<()> {
    let Some(record) = ward.tables.lane(lane) else { return Ok(()) };
    if let Some(new) = superseded(ward, lane)? {
        record.arm(Intent { kind: IntentKind::Free, cell: record.move_new_cell(), block: new });
        settle_intent(ward, locked, lane, lists_are_sound)?;
    }
    record.move_old().store(0, Ordering::Release);
    record.move_new().store(0, Ordering::Release);
    Ok(())
}

/// True if a move with this first word has happened. Where its free bit decides, the old block lies in the dead lane's own
/// slab, in which nobody allocates or merges before the lane is buried; its remote bit would be somebody else's free.
fn has_moved(ward: Ward<'_>, old: u64) -> Result<bool> {
    if old & MOVE_DECIDES == 0 {
        return Ok(old == 0);
    }
    match slab::locate(ward.tables, ward.classes, old & !MOVE_DECIDES) {
        Ok(Located::Block { slab, bit }) => {
            Ok(slab.free_word(ward.tables, bit.word).load(Ordering::Acquire) & bit.mask != 0)
        }
        Ok(Located::Large { .. }) | Err(crate::error::Error::InvalidOffset { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Completes or undoes the intent of a lane, if it has one. `lists_are_sound`: see [`free_if_allocated`].
fn settle_intent(ward: Ward<'_>, locked: &Locked, lane: LaneId, lists_are_sound: bool) -> Result<()> {
    let tables = ward.tables;
    let Some(record) = tables.lane(lane) else { return Ok(()) };
    let Some(Intent { kind, cell, block }) = record.intent() else { return Ok(()) };
    // Cells stand in lane records, in root records, and in blocks.
    if cell % 8 != 0 || !(superblock::LEN..tables.geometry.data_end()).contains(&cell) {
        return Err(Corruption::new("an intent names what cannot be a cell", record.at()).into());
    }
    let cell_word = tables.region.word(cell);
    let published = cell_word.load(Ordering::Acquire) == block;
    match kind {
        // The block is the cell's: the operation is complete.
        IntentKind::Allocate if published => {}
        // Nobody was told of the block: undo.
        IntentKind::Allocate => free_if_allocated(ward, locked, block, lists_are_sound)?,
        // The block may be its living owner's to merge: not before the intent has ended.
        IntentKind::Free => {
            tables.superblock(superblock::MERGE_HOLD).store(1, Ordering::SeqCst);
            if published {
                cell_word.store(0, Ordering::Release);
            }
            free_if_allocated(ward, locked, block, lists_are_sound)?;
        }
    }
    record.disarm();
    tables.superblock(superblock::MERGE_HOLD).store(0, Ordering::Release);
    Ok(())
}

/// Frees a block that an intent or a construction names, unless it is free already.
///
/// A block of a slab gets its remote bit, whoever owns the slab: that can be repeated, and needs no right to the free bits.
/// The owner merges it, or the relisting that follows. Where the orphans' lists are sound and stay as they are
/// (`lists_are_sound`), an orphan's block is freed in place.
fn free_if_allocated(ward: Ward<'_>, locked: &Locked, block: u64, lists_are_sound: bool) -> Result<()> {
    match slab::locate(ward.tables, ward.classes, block) {
        Ok(Located::Block { slab, bit }) if !slab.is_allocated(ward.tables, bit) => Ok(()),
        Ok(Located::Block { slab, bit }) if lists_are_sound && slab.lane == SHARED_LANE => {
            orphan::free(ward.tables, locked, &slab, bit)
        }
        Ok(Located::Block { slab, bit }) => {
            slab.free_remote(ward.tables, bit)?;
            hint(ward.tables, &slab);
            Ok(())
        }
        Ok(Located::Large { first, pages, .. }) => span::free(ward.tables, locked, first, pages),
        // The span is gone already.
        Err(crate::error::Error::InvalidOffset { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Tells a slab's owner that there is something to merge.
pub(crate) fn hint(tables: &Tables, slab: &Slab<'_>) {
    let bit = 1u64 << (slab.class.0 & 63);
    if let Some(record) = tables.lane(slab.lane)
        && slab.lane != SHARED_LANE
        && record.hints().load(Ordering::Relaxed) & bit == 0
    {
        record.hints().fetch_or(bit, Ordering::SeqCst);
    }
}

/// Frees the blocks of roots whose constructors are dead, and removes the roots.
fn undo_constructions(ward: Ward<'_>, locked: &Locked, dead: &Dead, lists_are_sound: bool) -> Result<()> {
    let tables = ward.tables;
    for record in (0..tables.geometry.root_slots).filter_map(|slot| tables.root(slot)) {
        let lane = u16::try_from(record.lane().load(Ordering::Relaxed)).map(LaneId::new);
        if let Ok(lane) = lane
            && record.state() == Some(RootState::Constructing)
            && dead.contains(lane)
        {
            let block = record.offset().load(Ordering::Relaxed);
            if block != 0
                && let Some(of_lane) = tables.lane(lane)
            {
                // By way of an intent, as in `settle_move`.
                of_lane.arm(Intent { kind: IntentKind::Free, cell: record.cell(), block });
                settle_intent(ward, locked, lane, lists_are_sound)?;
            }
            record.set_state(RootState::Removed);
        }
    }
    Ok(())
}
