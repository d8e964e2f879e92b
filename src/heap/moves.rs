//! Replacing a block by another, as one step: what `reallocate` does when a block cannot stay where it is.
//!
//! For a while there are two blocks with the same bytes. A *move* in the lane's record names both from before the new one is
//! allocated until after the old one is freed: if the lane dies, the new block goes if the old one is still there, and
//! stays if it is not (`recovery`). So there is one of them, whenever that happens.
//!
//! The free that decides must not be mistaken for one that never was. A block of the lane's own slab cannot be allocated
//! again before the lane goes on; everything else is freed under the heap lock, and the move ends before the lock is
//! released; and a living owner does not merge the block meanwhile (MERGE_HOLD).

use std::sync::atomic::Ordering;

use super::attachment::Attachment;
use super::lane::Caller;
use super::paths::Kind;
use crate::alloc::{Freed, Located, slab};
use crate::error::Result;
use crate::format::{LaneRecord, Move, SHARED_LANE};
use crate::recovery;

impl Attachment {
    /// Allocates a block, copies the first `len` bytes of `old` to it, and frees `old`. On an error `old` is intact.
    pub(super) fn move_block(&self, caller: Caller<'_>, old: u64, len: u64, kind: Kind) -> Result<u64> {
        let record = self.lane_record(caller)?;
        if record.moving().is_some() {
            // A block that could not be taken back when the lock timed out; there is one place for a move.
            recovery::settle_move(self.ward(), &*self.lock_for(caller)?, caller.lane(), true)?;
        }
        let begin = |new| {
            if caller.lane() == SHARED_LANE {
                record.claimed().store(1, Ordering::Release);
            }
            record.begin_move(Move { old, new });
        };
        let new = self.allocate(caller, kind, begin).inspect_err(|_| self.end_move(caller, record))?;
        self.tables.region.copy_within(old, new, len);
        match self.free_moved(caller, record, old) {
            Ok(()) => Ok(new),
            Err(error) => {
                self.take_back(caller, record, new);
                Err(error)
            }
        }
    }

    fn end_move(&self, caller: Caller<'_>, record: LaneRecord<'_>) {
        record.end_move();
        if caller.lane() == SHARED_LANE {
            record.release_shared();
        }
    }

    /// Frees the old block, COMMIT of the move, and ends the move.
    fn free_moved(&self, caller: Caller<'_>, record: LaneRecord<'_>, old: u64) -> Result<()> {
        if self.free_of_own_slab(caller, record, old)? {
            return Ok(());
        }
        let lock = self.lock_for(caller.again())?;
        self.free_under_hold(&lock, caller, old, || (), || self.end_move(caller, record))
    }

    /// Frees a block of the caller's own slab and ends the move; false if it is none of those.
    fn free_of_own_slab(&self, caller: Caller<'_>, record: LaneRecord<'_>, block: u64) -> Result<bool> {
        let Caller::Lane(seat) = caller else { return Ok(false) };
        let Located::Block { slab, bit } = slab::locate(&self.tables, &self.classes, block)? else { return Ok(false) };
        if slab.lane != seat.bins.lane() {
            return Ok(false);
        }
        let freed = seat.bins.free(&self.tables, &slab, bit)?;
        self.end_move(caller, record);
        if freed == Freed::Emptied {
            // The block is free whatever becomes of its slab.
            let _ = self.give_back_emptied(slab.head, slab.class);
        }
        Ok(true)
    }

    /// Frees the new block again, as the old one could not be freed. Without the lock, a block with pages of its own stays
    /// until the lane's next move, or its end.
    #[cold]
    fn take_back(&self, caller: Caller<'_>, record: LaneRecord<'_>, new: u64) {
        if matches!(self.free_of_own_slab(caller, record, new), Ok(true)) {
            return;
        }
        match self.lock_for(caller.again()) {
            Ok(lock) => _ = self.free_under_hold(&lock, caller, new, || (), || self.end_move(caller, record)),
            // A block that replaces itself is one too many, whatever becomes of the old one meanwhile.
            Err(_) => record.begin_move(Move { old: new, new }),
        }
    }
}
