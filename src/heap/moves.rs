//! Replacing a block by another, as one step: what `reallocate` does when a block cannot stay where it is.
//!
//! For a while there are two blocks with the same bytes. The lane's record has two words for that, the *move*: the block
//! that is to be replaced, and the one that replaces it. As long as the first word stands, the new block is one too many,
//! and goes if the lane dies; clearing it is what makes the new block the true one (`recovery`).
//!
//! Under the heap lock both words are cells: the new block is allocated into the second, and the old one freed from the
//! first, so that an intent makes each of them one step. In the lane's own slabs no lock is needed: nobody else allocates
//! there, so the block's own free bit can decide.

use std::sync::atomic::Ordering;

use super::attachment::Attachment;
use super::lane::{Caller, LaneSeat};
use super::paths::Kind;
use crate::alloc::slab::BlockBit;
use crate::alloc::{Bins, Class, Freed, Hot, Slab};
use crate::error::{Corruption, Result};
use crate::format::{ClassIndex, LaneRecord, MOVE_DECIDES, SHARED_LANE};
use crate::journal::Locked;
use crate::region::Offset;

impl Attachment {
    /// Allocates a block, copies the first `len` bytes of `old` to it, and frees `old`. On an error `old` is intact.
    pub(super) fn move_block(&self, caller: Caller<'_>, old: u64, len: u64, kind: Kind) -> Result<u64> {
        let record = self.lane_record(caller)?;
        let mut turn = caller;
        if record.is_moving() {
            // A block that could not be taken back when the lock timed out; there is one place for a move.
            let lock = self.lock_for(turn)?;
            self.take_back_locked(&lock, turn, record)?;
            turn = turn.again();
        }
        let new = match (turn, kind) {
            (Caller::Lane(seat), Kind::Small(class)) => {
                let info = Bins::class_info(&self.classes, class, &self.tables)?;
                self.begin_in_own_slab(seat, class, info, record, old)?
            }
            _ => None,
        };
        let new = match new {
            Some(new) => new,
            None => self.begin_locked(turn, record, old, kind)?,
        };
        self.tables.region.copy_within(old, new, len);
        match self.free_moved(turn.again(), record, old) {
            Ok(()) => Ok(new),
            Err(error) => {
                self.take_back(turn.again(), record, new);
                Err(error)
            }
        }
    }

    /// Resizes a block of the lane's own slabs to another block of them, or leaves it where it is; its new offset. `None`,
    /// and nothing is done, if that is not possible, or if there is something to complain of.
    pub(super) fn resize_own(&self, seat: &LaneSeat, old: u64, size: u64) -> Result<Option<u64>, Corruption> {
        let class = self.classes.quick(size);
        let Some(own) = seat.bins.own_block(&self.tables, &self.classes, old) else { return Ok(None) };
        let (slab, _) = own;
        if slab.class == class {
            return Ok(Some(old));
        }
        let (Some(info), Some(record)) = (self.classes.get(class), self.tables.lane(seat.bins.lane())) else {
            return Ok(None);
        };
        if record.is_moving() {
            return Ok(None);
        }
        let Some(new) = self.begin_in_own_slab(seat, class, info, record, old)? else { return Ok(None) };
        self.tables.region.copy_within(old, new, size.min(u64::from(slab.info.size)));
        record.move_old().store(old | MOVE_DECIDES, Ordering::Release);
        if self.free_own(Caller::Lane(seat), record, seat, own).is_err() {
            // Somebody else has freed the old block meanwhile, and is to be told; there is one block too many.
            record.move_old().store(old, Ordering::Release);
            self.take_back(Caller::Lane(seat), record, new);
            return Ok(None);
        }
        Ok(Some(new))
    }

    /// Allocates the new block where that needs no lock.
    fn begin_in_own_slab(
        &self,
        seat: &LaneSeat,
        class: ClassIndex,
        info: &Class,
        record: LaneRecord<'_>,
        old: u64,
    ) -> Result<Option<u64>, Corruption> {
        if !seat.bins.has_any(&self.tables, class, info)? {
            return Ok(None);
        }
        record.move_old().store(old, Ordering::Release);
        let new = seat.bins.take(&self.tables, class, |new| record.move_new().store(new, Ordering::Release));
        if new.is_none() {
            record.move_old().store(0, Ordering::Release);
        }
        Ok(new.map(Offset::get))
    }

    /// Allocates the new block under the heap lock.
    fn begin_locked(&self, caller: Caller<'_>, record: LaneRecord<'_>, old: u64, kind: Kind) -> Result<u64> {
        let lock = self.lock_for(caller)?;
        if caller.lane() == SHARED_LANE {
            record.claimed().store(1, Ordering::Release);
        }
        record.move_old().store(old, Ordering::Release);
        let allocated = self.allocate_published(&lock, caller, kind, record.move_new_cell());
        if allocated.is_err() {
            self.end_move(caller, record);
        }
        allocated
    }

    /// Both blocks are what they are to be. For the shared lane, under the heap lock.
    fn end_move(&self, caller: Caller<'_>, record: LaneRecord<'_>) {
        record.move_old().store(0, Ordering::Release);
        record.move_new().store(0, Ordering::Release);
        if caller.lane() == SHARED_LANE {
            record.release_shared();
        }
    }

    /// Frees the old block: COMMIT of the move.
    fn free_moved(&self, caller: Caller<'_>, record: LaneRecord<'_>, old: u64) -> Result<()> {
        if let Some((seat, own)) = self.own_block(caller, old) {
            record.move_old().store(old | MOVE_DECIDES, Ordering::Release);
            let freed = self.free_own(caller, record, seat, own);
            if freed.is_err() {
                record.move_old().store(old, Ordering::Release);
            }
            return freed;
        }
        let lock = self.lock_for(caller)?;
        let freed = self.free_published(&lock, caller, record.move_old_cell());
        match &freed {
            Ok(()) => self.end_move(caller, record),
            Err(_) => record.move_old().store(old, Ordering::Release),
        }
        freed
    }

    /// An allocated block of a slab of the caller's lane, if it is one.
    fn own_block<'a>(&'a self, caller: Caller<'a>, block: u64) -> Option<(&'a LaneSeat, (Slab<'a>, BlockBit))> {
        let Caller::Lane(seat) = caller else { return None };
        Some((seat, seat.bins.own_block(&self.tables, &self.classes, block)?))
    }

    /// Frees such a block, and ends the move.
    fn free_own(
        &self,
        caller: Caller<'_>,
        record: LaneRecord<'_>,
        seat: &LaneSeat,
        (slab, bit): (Slab<'_>, BlockBit),
    ) -> Result<()> {
        let block = slab.block_at(&self.tables, bit.index());
        let hot = Offset::new(block).map_or(Hot::NotHere, |block| seat.bins.free_hot(&self.tables, block));
        if let Hot::Freed | Hot::Unsettled = hot {
            self.end_move(caller, record);
            if let Hot::Unsettled = hot {
                // The block is free whatever becomes of its slab.
                let _ = self.settle_in(seat, block);
            }
            return Ok(());
        }
        let freed = seat.bins.free(&self.tables, &slab, bit)?;
        self.end_move(caller, record);
        if freed == Freed::Emptied {
            // The block is free whatever becomes of its slab.
            let _ = self.give_back_emptied(seat, &slab);
        }
        Ok(())
    }

    /// Frees the new block again, as the old one could not be freed. Without the lock, a block with pages of its own stays
    /// until the lane's next move, or its end.
    #[cold]
    fn take_back(&self, caller: Caller<'_>, record: LaneRecord<'_>, new: u64) {
        // Who waited for the lock in vain has left its gate, and may have found it shut since.
        if let Some((seat, own)) = self.own_block(caller, new)
            && record.gate().enter()
            && self.free_own(caller, record, seat, own).is_ok()
        {
            return;
        }
        if let Ok(lock) = self.lock_for(caller) {
            let _ = self.take_back_locked(&lock, caller, record);
        }
    }

    fn take_back_locked(&self, locked: &Locked, caller: Caller<'_>, record: LaneRecord<'_>) -> Result<()> {
        if record.move_new().load(Ordering::Acquire) != 0 {
            self.free_published(locked, caller, record.move_new_cell())?;
        }
        self.end_move(caller, record);
        Ok(())
    }
}
