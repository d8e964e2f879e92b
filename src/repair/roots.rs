//! Roots: which of them are any, and where a search for them ends.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::{Patient, Remedy, RepairReport};
use crate::alloc::{Located, slab};
use crate::check;
use crate::error::Result;
use crate::format::{LaneId, RootName, RootRecord, RootState, Tables};

/// Root records whose memory is reserved together, and the bytes of that memory.
const PIECE_SLOTS: u32 = 32;
const PIECE_BYTES: usize = 4096;

/// Removes what is no root, and moves roots that no search finds. Those that dead lanes were constructing are left to
/// recovery.
pub(super) fn mend(patient: Patient<'_>, report: &mut RepairReport) -> Result<()> {
    reserve(patient, report)?;
    let tables = patient.tables();
    let mut by_name: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for (slot, record) in records(tables) {
        match name_of(tables, &record) {
            Ok(Some(name)) => by_name.entry(name).or_default().push(slot),
            Ok(None) => {}
            Err((what, at)) => {
                record.set_state(RootState::Removed);
                report.note(what, at, Remedy::Removed);
            }
        }
    }
    for (name, slots) in by_name {
        let Ok(name) = RootName::new(&name) else { continue };
        keep_one(tables, &name, &slots, report)?;
    }
    note_constructions(tables, report);
    Ok(())
}

/// All records whose memory is reserved, with their slots.
fn records(tables: &Tables) -> impl Iterator<Item = (u32, RootRecord<'_>)> {
    (0..tables.geometry.root_slots).filter_map(|slot| tables.root(slot).map(|record| (slot, record)))
}

/// Reserves the memory of the records that are in use, and finds those whose bit was lost.
fn reserve(patient: Patient<'_>, report: &mut RepairReport) -> Result<()> {
    let tables = patient.tables();
    for slot in (0..tables.geometry.root_slots).step_by(PIECE_SLOTS as usize) {
        let at = tables.root_at(slot);
        let is_reserved = tables.root(slot).is_some();
        let mut bytes = [0; PIECE_BYTES];
        // The last piece may be shorter than what is reserved for it.
        let len = usize::try_from(tables.geometry.data_start - at).unwrap_or(0).min(PIECE_BYTES);
        let Some(piece) = bytes.get_mut(..len) else { continue };
        patient.peek(at, piece)?;
        if is_reserved {
            tables.region.back(at, PIECE_BYTES as u64)?;
        } else if piece.iter().any(|byte| *byte != 0) {
            tables.reserve_root(slot)?;
            report.note("C12: roots stand in memory that is not marked as reserved", at, Remedy::Reserved);
        }
    }
    Ok(())
}

/// The root's name; `None` if there is no root; or what is wrong with it, and where.
fn name_of(tables: &Tables, record: &RootRecord<'_>) -> std::result::Result<Option<String>, (&'static str, u64)> {
    let lane = u16::try_from(record.lane().load(Ordering::Relaxed)).map(LaneId::new);
    match record.state() {
        Some(RootState::Empty | RootState::Removed) => return Ok(None),
        Some(RootState::Live) => {}
        Some(RootState::Constructing) if lane.is_ok_and(|lane| check::is_claimed(tables, lane)) => {}
        Some(RootState::Constructing) => {
            return Err(("C13: a root's constructor belongs to a lane that nobody claims", record.at()));
        }
        None => return Err(("C12: a root has a state that nobody writes", record.at())),
    }
    let name = record.name().text().filter(|text| RootName::new(text).is_ok()).map(str::to_owned);
    let offset = record.offset().load(Ordering::Relaxed);
    let in_data = (tables.geometry.data_start..tables.geometry.data_end()).contains(&offset);
    let has_none_yet = offset == 0 && record.state() == Some(RootState::Constructing);
    match name {
        None => Err(("C12: a root has no legal name", record.at())),
        Some(_) if !in_data && !has_none_yet => Err(("C12: a root leads outside the data", record.cell())),
        name => Ok(name),
    }
}

/// Keeps one of the roots of this name, where a search finds it.
fn keep_one(tables: &Tables, name: &RootName, slots: &[u32], report: &mut RepairReport) -> Result<()> {
    let count = tables.geometry.root_slots;
    let start = name.hash() % count;
    let distance = |slot: u32| (slot + count - start) % count;
    // The first that a search meets is the one that users saw; those behind a gap were never seen.
    let mut slots = slots.to_vec();
    slots.sort_by_key(|slot| distance(*slot));
    let Some((kept, others)) = slots.split_first() else { return Ok(()) };
    for record in others.iter().filter_map(|slot| tables.root(*slot)) {
        record.set_state(RootState::Removed);
        report.note("C12: two roots have the same name", record.at(), Remedy::Removed);
    }
    let is_empty = |slot: &u32| tables.root(*slot).is_none_or(|record| record.state() == Some(RootState::Empty));
    let gap = (0..distance(*kept)).map(|step| (start + step) % count).find(is_empty);
    let (Some(gap), Some(hidden)) = (gap, tables.root(*kept)) else { return Ok(()) };
    let what = "C12: a root stands behind a gap where no search finds it";
    if hidden.state() == Some(RootState::Constructing) {
        // Recovery undoes it where it is.
        report.note(what, hidden.at(), Remedy::Removed);
        return Ok(());
    }
    // A death between the two leaves two roots of one name, of which the next repair keeps the one that is found.
    let target = tables.reserve_root(gap)?;
    target.set_name(name);
    tables.region.copy_within(hidden.at() + 8, target.at() + 8, 24);
    target.set_state(RootState::Live);
    hidden.set_state(RootState::Removed);
    report.note(what, hidden.at(), Remedy::Moved { to: target.at() });
    Ok(())
}

/// Makes sure that recovery looks for every root that a dead lane was constructing.
fn note_constructions(tables: &Tables, report: &mut RepairReport) {
    for (_, record) in records(tables).filter(|(_, record)| record.state() == Some(RootState::Constructing)) {
        let lane = u16::try_from(record.lane().load(Ordering::Relaxed)).map(LaneId::new);
        if let Some(of_lane) = lane.ok().and_then(|lane| tables.lane(lane)) {
            of_lane.constructing().fetch_max(1, Ordering::Relaxed);
            report.note("a root was being constructed by one who died", record.at(), Remedy::Recovered);
        }
    }
}

/// Points out the roots that lead to no block, or into what was quarantined: only their users can tell what they are for.
pub(super) fn note_lost(patient: Patient<'_>, report: &mut RepairReport) {
    let tables = patient.tables();
    let quarantined: Vec<(u64, u64)> = report
        .actions
        .iter()
        .filter_map(|action| match action.remedy {
            Remedy::Quarantined { block, len } => Some((block.get(), block.get() + len)),
            _ => None,
        })
        .collect();
    for (_, record) in records(tables).filter(|(_, record)| record.state() == Some(RootState::Live)) {
        let offset = record.offset().load(Ordering::Relaxed);
        let leads_to_block = match slab::locate(tables, patient.ward.classes, offset) {
            Ok(Located::Block { slab, bit }) => slab.is_allocated(tables, bit),
            Ok(Located::Large { .. }) => true,
            Err(_) => false,
        };
        if quarantined.iter().any(|(start, end)| (*start..*end).contains(&offset)) {
            report.note("a root leads into pages that were quarantined", record.cell(), Remedy::Kept);
        } else if !leads_to_block {
            report.note("a root leads to no allocated block", record.cell(), Remedy::Kept);
        }
    }
}
