//! What a process has of a heap while it is attached.
//!
//! Everything here is private memory. A second attachment of the same heap in the same process is independent of the
//! first: it has a mapping, tokens and lanes of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use super::lane::{LaneSeat, SharedGate};
use crate::alloc::Classes;
use crate::error::{Error, Result};
use crate::format::{LaneId, Tables};
use crate::recovery::{self, Ward};
use crate::sys::seat::SeatKey;
use crate::sys::token::Liveness;

/// One attachment; all handles made from one another share it.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) tables: Tables,
    pub(super) classes: Classes,
    pub(super) liveness: Arc<dyn Liveness>,
    /// Finds the calling thread's seat.
    pub(super) key: SeatKey<LaneSeat>,
    /// Lets one laneless thread of this process at a time to the shared lane. On a cache line of its own, as what follows:
    /// all threads read the fields above on every call.
    pub(super) gate: CachePadded<SharedGate>,
    pub(super) lock_timeout: Duration,
    /// Counts slabs that were taken under the heap lock; now and then the dead are looked for.
    pub(super) supplies: CachePadded<AtomicU32>,
    /// When the process attached.
    pub(super) born: Instant,
    /// Microseconds after that, before which laneless threads do not ask again whether the owners of lanes are alive.
    pub(super) next_question: AtomicU64,
    /// The number of the thread that freezes the heap through this attachment; 0 = none.
    pub(super) freezer: AtomicU64,
}

impl Attachment {
    pub(super) fn ward(&self) -> Ward<'_> {
        Ward { tables: &self.tables, classes: &self.classes, liveness: self.liveness.as_ref() }
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        if !self.tables.region.is_writable() {
            return Err(Error::ReadOnly);
        }
        if self.liveness.is_severed() {
            return Err(Error::Severed);
        }
        Ok(())
    }

    pub(super) fn label(&self) -> String {
        self.tables.region.object().map_or_else(|| "(memory)".to_owned(), |object| object.place().label())
    }

    /// Removes the name, if it still leads to this heap.
    pub(super) fn unlink(&self) -> Result<()> {
        use crate::sys::object::Place;
        match self.tables.region.object() {
            None => Ok(()),
            Some(object) if *object.place() == Place::Anonymous => Ok(()),
            Some(object) if object.has_its_name() => object.place().unlink(),
            Some(object) => Err(Error::NotFound { name: object.place().label() }),
        }
    }

    /// The pid that a lane names, for messages.
    pub(super) fn pid_of(&self, lane: LaneId) -> u32 {
        self.tables.lane(lane).map_or(0, |record| record.pid().load(Ordering::Relaxed))
    }
}

impl Drop for Attachment {
    /// Leaves all lanes that are still this attachment's: those of threads that live on, and have no handle any more.
    fn drop(&mut self) {
        let own: Vec<LaneId> = self.tables.header.lane_ids().filter(|lane| self.liveness.is_own(lane.token())).collect();
        if let Some(first) = own.first()
            && let Ok(lock) = self.lock(*first)
        {
            // On failure the records stay claimed: once the tokens are gone, the next recovery sees to them.
            let _ = recovery::retire_lanes(self.ward(), &lock, &own);
        }
        own.iter().for_each(|lane| self.liveness.give_back(lane.token()));
    }
}
