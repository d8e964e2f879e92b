//! Roots: blocks that are found by name.
//!
//! Readers take no lock (`format::root` tells how that is sound); writers hold the heap lock.

use std::sync::atomic::Ordering;

use super::Heap;
use super::attachment::Attachment;
use crate::error::{Corruption, Error, OffsetFault, Result};
use crate::format::{RootName, RootRecord, RootState, superblock};
use crate::journal::Locked;
use crate::region::Offset;

/// How often a root is looked at whose block is freed between two looks.
const ROOT_LOOKS_MAX: u32 = 100;

/// A root, as [`Heap::roots`] lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RootInfo {
    /// Its name.
    pub name: String,
    /// The block that it leads to; `None` while it is under construction and has none yet.
    pub block: Option<Offset>,
    /// True while its constructor is at work.
    pub constructing: bool,
    /// False if the block has been freed without the root being removed.
    pub allocated: bool,
}

/// A root that a search has found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) record: RootRecord<'a>,
    pub(super) slot: u32,
    pub(super) state: RootState,
    pub(super) offset: u64,
}

impl Heap {
    /// The block that the root of this name leads to; `None` if there is no such root, it is still under construction, or
    /// its block has been freed.
    ///
    /// Takes no lock.
    ///
    /// # Errors
    ///
    /// [`Error::BadName`]; [`Error::Corrupt`].
    pub fn root(&self, name: &str) -> Result<Option<Offset>> {
        let key = RootName::new(name)?;
        let mut freed = None;
        for _ in 0..ROOT_LOOKS_MAX {
            let Some(found) = self.attachment.find_root(&key)?.filter(|found| found.state == RootState::Live) else { break };
            if self.attachment.is_allocated(found.offset) {
                return Ok(Offset::new(found.offset));
            }
            // The root may have been given another block, and this one been freed, between the two looks.
            if freed.replace(found.offset) == Some(found.offset) {
                break;
            }
        }
        Ok(None)
    }

    /// Makes the root of this name lead to `block`, whether there was one or not. Returns the block that it led to before,
    /// if that is still allocated; it is not freed.
    ///
    /// # Errors
    ///
    /// [`Error::BadName`]; [`Error::RootsFull`]; [`Error::RootExists`] if the root is under construction;
    /// [`Error::InvalidOffset`] or [`Error::DoubleFree`] if the block is not allocated; [`Error::NoSpace`],
    /// [`Error::LockTimeout`], [`Error::ReadOnly`], [`Error::Corrupt`]. Nothing has changed then.
    pub fn set_root(&self, name: &str, block: Offset) -> Result<Option<Offset>> {
        self.write_root(name, block, true)
    }

    /// Makes a new root of this name lead to `block`.
    ///
    /// # Errors
    ///
    /// As [`Heap::set_root`], and [`Error::RootExists`] if there is a root of this name.
    pub fn insert_root(&self, name: &str, block: Offset) -> Result<()> {
        self.write_root(name, block, false).map(|_| ())
    }

    fn write_root(&self, name: &str, block: Offset, replace: bool) -> Result<Option<Offset>> {
        let key = RootName::new(name)?;
        let attachment = &self.attachment;
        self.as_caller(|caller| {
            let lock = attachment.lock_for(caller)?;
            attachment.locate_allocated(block.get())?;
            match attachment.find_root(&key)? {
                Some(found) if replace && found.state == RootState::Live => {
                    found.record.offset().store(block.get(), Ordering::Release); // COMMIT
                    Ok(Offset::new(found.offset).filter(|old| attachment.is_allocated(old.get())))
                }
                Some(_) => Err(Error::RootExists { name: name.to_owned() }),
                None => {
                    let (record, _) = attachment.vacant_root(&lock, &key)?;
                    record.set_name(&key);
                    record.offset().store(block.get(), Ordering::Relaxed);
                    record.set_state(RootState::Live); // COMMIT
                    Ok(None)
                }
            }
        })
    }

    /// Removes a root; returns the block that it led to, which is not freed.
    ///
    /// # Errors
    ///
    /// [`Error::RootUnknown`] if there is none of this name, or it is under construction; [`Error::BadName`],
    /// [`Error::LockTimeout`], [`Error::ReadOnly`], [`Error::Corrupt`].
    pub fn remove_root(&self, name: &str) -> Result<Offset> {
        let key = RootName::new(name)?;
        let attachment = &self.attachment;
        self.as_caller(|caller| {
            let lock = attachment.lock_for(caller)?;
            match attachment.find_root(&key)? {
                Some(found) if found.state == RootState::Live => {
                    attachment.remove_found(&lock, &found);
                    let outside = Error::InvalidOffset { offset: found.offset, fault: OffsetFault::Outside };
                    Offset::new(found.offset).ok_or(outside)
                }
                _ => Err(Error::RootUnknown { name: name.to_owned() }),
            }
        })
    }

    /// All roots, in no particular order. Those that come or go meanwhile may be there or not.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if a root has no legal name.
    pub fn roots(&self) -> Result<Vec<RootInfo>> {
        let attachment = &self.attachment;
        let mut roots = Vec::new();
        for record in (0..attachment.tables.geometry.root_slots).filter_map(|slot| attachment.tables.root(slot)) {
            let Some((state, name, offset)) = record.snapshot() else { continue };
            let constructing = match state {
                Some(RootState::Live) => false,
                Some(RootState::Constructing) => true,
                _ => continue,
            };
            let text = name.text().ok_or_else(|| Corruption::new("C12: a root has no legal name", record.at()))?;
            let allocated = attachment.is_allocated(offset);
            roots.push(RootInfo { name: text.to_owned(), block: Offset::new(offset), constructing, allocated });
        }
        Ok(roots)
    }
}

impl Attachment {
    /// Finds the root of this name, live or under construction.
    pub(super) fn find_root(&self, name: &RootName) -> Result<Option<Found<'_>>> {
        let slots = self.tables.geometry.root_slots;
        for slot in probe(name, slots) {
            let Some(record) = self.tables.root(slot) else { return Ok(None) };
            // A slot that keeps changing is at least not a root that has been there all along.
            let Some((state, found, offset)) = record.snapshot() else { continue };
            match state {
                Some(RootState::Empty) => return Ok(None),
                Some(RootState::Removed) => {}
                Some(state @ (RootState::Live | RootState::Constructing)) => {
                    if found == *name {
                        return Ok(Some(Found { record, slot, state, offset }));
                    }
                }
                None => return Err(Corruption::new("C12: a root has a state that nobody writes", record.at()).into()),
            }
        }
        Ok(None)
    }

    /// A slot for a new root of this name, which must not exist; its memory is reserved.
    pub(super) fn vacant_root(&self, _locked: &Locked, name: &RootName) -> Result<(RootRecord<'_>, u32)> {
        let slots = self.tables.geometry.root_slots;
        for slot in probe(name, slots) {
            let is_vacant = match self.tables.root(slot) {
                None => true,
                Some(record) => matches!(record.state(), Some(RootState::Empty | RootState::Removed)),
            };
            if is_vacant {
                return Ok((self.tables.reserve_root(slot)?, slot));
            }
        }
        Err(Error::RootsFull { slots })
    }

    /// Removes a root that was found under the lock. COMMIT is its change of state; what follows only shortens searches:
    /// removed slots in front of an empty one are made empty, each of which leaves the table whole.
    pub(super) fn remove_found(&self, _locked: &Locked, found: &Found<'_>) {
        found.record.set_state(RootState::Removed); // COMMIT
        let slots = self.tables.geometry.root_slots;
        let is_empty = |slot: u32| self.tables.root(slot).is_none_or(|record| record.state() == Some(RootState::Empty));
        let mut slot = found.slot;
        for _ in 0..slots {
            let next = if slot.saturating_add(1) == slots { 0 } else { slot.saturating_add(1) };
            let Some(record) = self.tables.root(slot) else { return };
            if record.state() != Some(RootState::Removed) || !is_empty(next) {
                return;
            }
            record.set_state(RootState::Empty);
            slot = slot.checked_sub(1).unwrap_or(slots.saturating_sub(1));
        }
    }

    /// Counts roots, for the statistics.
    pub(super) fn count_roots(&self) -> u32 {
        let records = (0..self.tables.geometry.root_slots).filter_map(|slot| self.tables.root(slot));
        let count = records.filter(|record| record.state() == Some(RootState::Live)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// The slots in which a name may stand, in the order of search.
fn probe(name: &RootName, slots: u32) -> impl Iterator<Item = u32> + use<> {
    let start = name.hash().checked_rem(slots).unwrap_or(0);
    (start..slots).chain(0..start)
}

// The superblock's bitmap of reserved slots has a bit for each 32 records.
const _: () =
    assert!(superblock::ROOTS_RESERVED_WORDS * 64 * 32 >= crate::format::ROOT_SLOTS_MAX as u64, "bits for all slots");
