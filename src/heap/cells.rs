//! Cells: allocate and publish, or unpublish and free, as one step.
//!
//! A cell is a word in the region that holds a block's offset, or zero. Between "the block is allocated" and "the cell
//! holds its offset" a process may die; the lane's intent tells recovery what to complete or undo (`recovery`). The heap
//! lock guards cells: it is held for the whole step, and whoever takes it from a dead holder settles the intent first.

use std::sync::atomic::Ordering;

use super::Heap;
use super::attachment::Attachment;
use super::blocks::as_offset;
use super::lane::Caller;
use super::paths::{Kind, as_requested};
use crate::alloc::{Located, slab};
use crate::error::{Corruption, Error, OffsetFault, Result};
use crate::format::{Intent, IntentKind, LaneRecord, SHARED_LANE, superblock};
use crate::journal::Locked;
use crate::recovery;
use crate::region::Offset;

impl Heap {
    /// Allocates a block and stores its offset in a cell, as one step: whoever dies meanwhile, either the cell holds the
    /// block or there is none.
    ///
    /// A cell is 8 aligned bytes inside an allocated block, zero at first. While it holds a block, change it by
    /// [`Heap::free_from`] only.
    ///
    /// # Errors
    ///
    /// As [`Heap::allocate`]; [`Error::BadCell`], [`Error::CellOccupied`]. Nothing has changed then.
    ///
    /// ```
    /// # let heap = shmheap::Heap::options().create_in(shmheap::Memory::zeroed(1 << 20)?)?;
    /// let list = heap.allocate_zeroed(64)?; // eight cells
    /// let block = heap.allocate_into(list, 1000)?;
    /// assert_eq!(heap.load_cell(list)?, Some(block));
    /// heap.free_from(list)?;
    /// assert_eq!(heap.load_cell(list)?, None);
    /// # Ok::<(), shmheap::Error>(())
    /// ```
    pub fn allocate_into(&self, cell: Offset, size: usize) -> Result<Offset> {
        let kind = self.attachment.kind(size as u64, 8)?;
        let allocated = self.as_caller(|caller| {
            let lock = self.attachment.lock_for(caller)?;
            let holds = self.cell_value(cell)?;
            if holds != 0 {
                return Err(Error::CellOccupied { cell: cell.get(), holds });
            }
            self.attachment.allocate_published(&lock, caller, kind, cell.get())
        });
        let block = allocated.map_err(|error| as_requested(error, size as u64))?;
        as_offset(block)
    }

    /// Frees the block that a cell holds and empties the cell, as one step.
    ///
    /// # Errors
    ///
    /// As [`Heap::deallocate`]; [`Error::BadCell`], [`Error::CellEmpty`]. Nothing has changed then.
    pub fn free_from(&self, cell: Offset) -> Result<()> {
        self.as_caller(|caller| {
            let lock = self.attachment.lock_for(caller)?;
            if self.cell_value(cell)? == 0 {
                return Err(Error::CellEmpty { cell: cell.get() });
            }
            self.attachment.free_published(&lock, caller, cell.get())
        })
    }

    /// What a cell holds.
    ///
    /// # Errors
    ///
    /// [`Error::BadCell`] if the offset does not name 8 aligned bytes inside an allocated block.
    pub fn load_cell(&self, cell: Offset) -> Result<Option<Offset>> {
        Ok(Offset::new(self.cell_value(cell)?))
    }

    fn cell_value(&self, cell: Offset) -> Result<u64> {
        let attachment = &self.attachment;
        let bad = || Error::BadCell { cell: cell.get() };
        let inside_block = match attachment.locate_allocated(cell.get()) {
            Ok(_) => true,
            // Large blocks tell where they start for any of their pages, slabs for any allocated block.
            Err(Error::InvalidOffset { fault: OffsetFault::InsideBlock(start), .. }) => {
                match attachment.locate_allocated(start) {
                    Ok(Located::Block { slab, .. }) => {
                        cell.get().saturating_sub(start) <= u64::from(slab.info.size).saturating_sub(8)
                    }
                    Ok(Located::Large { .. }) => true,
                    Err(_) => false,
                }
            }
            Err(error @ Error::Corrupt(_)) => return Err(error),
            Err(_) => false,
        };
        if !inside_block || !cell.get().is_multiple_of(8) {
            return Err(bad());
        }
        Ok(attachment.tables.region.word(cell.get()).load(Ordering::Acquire))
    }
}

impl Attachment {
    /// The record of the caller's lane.
    pub(super) fn lane_record(&self, caller: Caller<'_>) -> Result<LaneRecord<'_>> {
        let record = self.tables.lane(caller.lane());
        record.ok_or_else(|| Corruption::new("a lane has no record", superblock::LEN).into())
    }

    /// Allocates a block and stores it in an empty cell, under the heap lock.
    pub(super) fn allocate_published(&self, locked: &Locked, caller: Caller<'_>, kind: Kind, cell: u64) -> Result<u64> {
        let record = self.lane_record(caller)?;
        let arm = |block| record.arm(Intent { kind: IntentKind::Allocate, cell, block });
        let allocated = self.allocate_locked(locked, caller, kind, arm);
        if let Ok(block) = allocated {
            self.tables.region.word(cell).store(block, Ordering::Release); // COMMIT: before it recovery undoes
        }
        record.disarm();
        allocated
    }

    /// Frees the block that a cell holds, under the heap lock.
    pub(super) fn free_published(&self, locked: &Locked, caller: Caller<'_>, cell: u64) -> Result<()> {
        let word = self.tables.region.word(cell);
        let block = word.load(Ordering::Acquire);
        // Everything that can be wrong with the block is found before anything changes.
        let anothers = match self.locate_allocated(block)? {
            Located::Block { slab, .. } if slab.lane != SHARED_LANE && slab.lane != caller.lane() => Some(slab),
            _ => None,
        };
        let record = self.lane_record(caller)?;
        let hold = self.tables.superblock(superblock::MERGE_HOLD);
        if anothers.is_some() {
            // ORDERING O4: the hold is raised before the block's remote bit is set; see `Slab::merge`.
            hold.store(1, Ordering::SeqCst);
        }
        record.arm(Intent { kind: IntentKind::Free, cell, block }); // COMMIT: from here on recovery completes
        word.store(0, Ordering::Release);
        let freed = self.free_as_intended(locked, caller, block);
        record.disarm();
        if let Some(slab) = anothers {
            hold.store(0, Ordering::Release);
            // Its owner may have looked while it was not allowed to merge.
            recovery::hint(&self.tables, &slab);
        }
        freed
    }

    /// True if `block` names an allocated block.
    pub(super) fn is_allocated(&self, block: u64) -> bool {
        match slab::locate(&self.tables, &self.classes, block) {
            Ok(Located::Block { slab, bit }) => slab.is_allocated(&self.tables, bit),
            Ok(Located::Large { .. }) => true,
            Err(_) => false,
        }
    }
}
