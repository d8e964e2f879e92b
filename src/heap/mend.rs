//! Repairing a heap that nobody has attached, by being the only one who could.

use std::sync::Arc;

use super::lane::LaneSeat;
use super::{Options, attach};
use crate::alloc::Classes;
use crate::error::{Error, Result};
use crate::format::{Geometry, Header, LaneId, Tables};
use crate::recovery::Ward;
use crate::region::{Mapping, Memory, Region};
use crate::repair::{self, Patient, RepairReport};
use crate::sys::object::{Object, Place};
use crate::sys::seat::SeatKey;
use crate::sys::token::{self, FileTokens, Liveness};

/// Bytes that are copied at a time.
const PIECE: usize = 64 << 10;

/// The tokens of all lanes, given back when this is dropped (Q1 of `repair`).
struct Alone<'a> {
    liveness: &'a dyn Liveness,
    taken: Vec<LaneId>,
}

impl<'a> Alone<'a> {
    /// Takes all tokens, or says whose process is in the way.
    fn with(tables: &Tables, liveness: &'a dyn Liveness, name: &str) -> Result<Self> {
        let mut alone = Self { liveness, taken: Vec::new() };
        for lane in tables.header.all_lanes() {
            if !liveness.take(lane.token())? {
                let pid = tables.lane(lane).map_or(0, |record| record.pid().load(std::sync::atomic::Ordering::Relaxed));
                return Err(Error::InUse { name: name.to_owned(), pid });
            }
            alone.taken.push(lane);
        }
        Ok(alone)
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.taken.iter().for_each(|lane| self.liveness.give_back(lane.token()));
    }
}

/// Repairs the heap in the object of this place.
pub(super) fn repair_object(options: &Options, place: Place) -> Result<RepairReport> {
    let object = Arc::new(Object::open(place, true, options.admission())?);
    let header = attach::header_of(options, &object)?;
    let region = if options.is_dry_run() {
        Region::new(Mapping::copy_on_write(&object)?, None)
    } else {
        Region::new(Mapping::by_descriptor(&object)?, Some(object.clone()))
    };
    token::mark_attached(object.file());
    let key = SeatKey::<LaneSeat>::new();
    let liveness = FileTokens::new(object.clone(), header.lanes.saturating_add(1), key.number());
    repair_region(region, header, liveness.as_ref(), Some(&object))
}

/// Repairs the heap in the caller's memory.
pub(super) fn repair_in_memory(options: &Options, memory: Memory) -> Result<RepairReport> {
    let original = Region::new(Mapping::memory(memory.clone()), None);
    let header = attach::header_in(options, &original)?;
    let liveness = attach::local_tokens(&memory, &header);
    let region = if options.is_dry_run() { copy_of(&original, memory.len())? } else { original };
    repair_region(region, header, liveness.as_ref(), None)
}

fn copy_of(original: &Region, len: usize) -> Result<Region> {
    let copy = Region::new(Mapping::memory(Memory::zeroed(len)?), None);
    let mut piece = vec![0; PIECE];
    for at in (0..len).step_by(PIECE) {
        let bytes = piece.get_mut(..PIECE.min(len.saturating_sub(at))).unwrap_or_default();
        let at = u64::try_from(at).unwrap_or(u64::MAX);
        original.copy_out(at, bytes);
        copy.copy_in(at, bytes);
    }
    Ok(copy)
}

fn repair_region(region: Region, header: Header, liveness: &dyn Liveness, object: Option<&Object>) -> Result<RepairReport> {
    let name = object.map_or_else(|| attach::MEMORY_NAME.to_owned(), |object| object.place().label());
    let tables = Tables::new(region, header, Geometry::new(&header)?);
    let classes = Classes::new(&header);
    let _alone = Alone::with(&tables, liveness, &name)?;
    repair::repair(Patient { ward: Ward { tables: &tables, classes: &classes, liveness }, object })
}
