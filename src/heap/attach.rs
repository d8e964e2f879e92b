//! Creating a heap whole, and checking one before it is trusted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_utils::CachePadded;

use super::attachment::Attachment;
use super::lane::{LaneSeat, SharedGate};
use super::{Heap, Options};
use crate::alloc::Classes;
use crate::error::{Error, Result};
use crate::format::{Geometry, HEADER_LEN, Header, LaneId, Tables, superblock};
use crate::recovery;
use crate::region::{Mapping, Memory, Region};
use crate::sys::clock;
use crate::sys::object::{Object, Place, Unborn};
use crate::sys::seat::SeatKey;
use crate::sys::token::{self, FileTokens, Liveness, LocalTokens, Onlooker};

/// Rounds of "open, else create" that `open_or_create` makes while others create and unlink at the same time.
const OPEN_OR_CREATE_TRIES: u32 = 64;

/// Creates a heap in a new object.
pub(super) fn create_object(options: &Options, place: Place) -> Result<Heap> {
    create_object_with(options, place, options.header(None)?, |_| Ok(()))
}

/// Creates a heap in a new object. Everything is written, the heap attached and filled, before the object gets its name.
pub(super) fn create_object_with(
    options: &Options,
    place: Place,
    header: Header,
    fill: impl FnOnce(&Heap) -> Result<()>,
) -> Result<Heap> {
    let geometry = Geometry::new(&header)?;
    let unborn = Unborn::new(place, header.capacity, options.permissions())?;
    // The superblock and the lanes are reserved as long as the heap lives; the tables follow as pages come into use.
    unborn.object().reserve(0, geometry.roots_at)?;
    unborn.object().write_at(0, &superblock_bytes(&header))?;
    let heap = attach(options, Arc::new(unborn.opened_anew()?), true, true)?;
    fill(&heap)?;
    unborn.give_name()?;
    Ok(heap)
}

/// The superblock of a new heap. All else in a new region is zero, and means "empty".
fn superblock_bytes(header: &Header) -> Vec<u8> {
    let [low, high] = clock::boot_id();
    let mut bytes = header.encode().to_vec();
    debug_assert_eq!(bytes.len() as u64, superblock::BOOT_ID, "the boot id follows the header");
    bytes.extend_from_slice(&low.to_ne_bytes());
    bytes.extend_from_slice(&high.to_ne_bytes());
    bytes
}

/// Opens the object of this place.
pub(super) fn open_object(options: &Options, place: Place, writable: bool) -> Result<Heap> {
    let object = Arc::new(Object::open(place, writable, options.admission())?);
    attach(options, object, writable, false)
}

/// Opens the object of this place, or creates it.
pub(super) fn open_or_create_object(options: &Options, place: &Place) -> Result<Heap> {
    for _ in 0..OPEN_OR_CREATE_TRIES {
        match open_object(options, place.clone(), true) {
            // A name that is removed while it is opened is as good as none.
            Err(Error::NotFound { .. } | Error::Unlinked { .. }) => {}
            done => return done,
        }
        match create_object(options, place.clone()) {
            Err(Error::AlreadyExists { .. }) => {}
            done => return done,
        }
    }
    Err(Error::NotFound { name: place.label() })
}

/// Attaches an object; `created` says that this process has just made it: it has no name yet, and nobody can have died
/// in it.
fn attach(options: &Options, object: Arc<Object>, writable: bool, created: bool) -> Result<Heap> {
    let header = header_of(options, &object)?;
    let region = if created {
        Region::new(Mapping::by_descriptor(&object)?, Some(object.clone()))
    } else {
        map(&object, writable, &header)?
    };
    token::mark_attached(object.file());
    let key = SeatKey::new();
    let lanes = header.lanes.saturating_add(1);
    let liveness: Arc<dyn Liveness> =
        if writable { FileTokens::new(object, lanes, key.number()) } else { Arc::new(Onlooker(Some(object))) };
    finish(options, Tables::new(region, header, Geometry::new(&header)?), liveness, key, created)
}

/// Reads and checks the header of an object.
pub(super) fn header_of(options: &Options, object: &Object) -> Result<Header> {
    let name = object.place().label();
    let mut bytes = [0; HEADER_LEN];
    object.read_start(&mut bytes)?;
    let actual = object.len()?;
    if actual < superblock::LEN {
        return Err(Error::NotAHeap { name, why: "it is shorter than a superblock" });
    }
    let header = Header::decode(&bytes, &name)?;
    if header.capacity != actual {
        return Err(Error::CapacityMismatch { expected: header.capacity, actual });
    }
    options.check_capacity(header.capacity)?;
    Ok(header)
}

/// Maps an object whose header is known.
fn map(object: &Arc<Object>, writable: bool, header: &Header) -> Result<Region> {
    let is_the_same = |region: &Region| {
        let mut mapped = [0; HEADER_LEN];
        region.copy_out(0, &mut mapped) && Header::decode(&mapped, "").as_ref() == Ok(header)
    };
    let of = |mapping| Region::new(mapping, Some(object.clone()));
    if !writable {
        return Ok(of(Mapping::read_only(object)?));
    }
    // A segment is mapped by its name. If that was unlinked in between, or given to another heap, our own descriptor still
    // leads to the one that was opened.
    match Mapping::read_write(object).map(of) {
        Ok(region) if is_the_same(&region) => Ok(region),
        _ => Ok(of(Mapping::by_descriptor(object)?)),
    }
}

/// Creates a heap in memory.
pub(super) fn create_in_memory(options: &Options, memory: Memory) -> Result<Heap> {
    let len = u64::try_from(memory.len()).unwrap_or(u64::MAX);
    create_in_memory_with(options, memory, options.header(Some(len))?, |_| Ok(()))
}

/// Creates a heap in memory, and fills it.
pub(super) fn create_in_memory_with(
    options: &Options,
    memory: Memory,
    header: Header,
    fill: impl FnOnce(&Heap) -> Result<()>,
) -> Result<Heap> {
    options.check_capacity(header.capacity)?;
    let geometry = Geometry::new(&header)?;
    let liveness = local_tokens(&memory, &header);
    let tables = Tables::new(Region::new(Mapping::memory(memory), None), header, geometry);
    tables.region.zero(0, geometry.data_start);
    tables.region.zero(geometry.data_end(), header.capacity.saturating_sub(geometry.data_end()));
    tables.region.copy_in(0, &superblock_bytes(&header));
    let heap = finish(options, tables, liveness, SeatKey::new(), true)?;
    fill(&heap)?;
    Ok(heap)
}

pub(super) fn local_tokens(memory: &Memory, header: &Header) -> Arc<dyn Liveness> {
    Arc::new(LocalTokens::new(memory.base().addr().get(), header.lanes.saturating_add(1)))
}

/// Attaches the heap in memory.
pub(super) fn open_in_memory(options: &Options, memory: Memory) -> Result<Heap> {
    let region = Region::new(Mapping::memory(memory.clone()), None);
    let header = header_in(options, &region)?;
    let liveness = local_tokens(&memory, &header);
    finish(options, Tables::new(region, header, Geometry::new(&header)?), liveness, SeatKey::new(), false)
}

/// What a heap in memory is called.
pub(super) const MEMORY_NAME: &str = "(memory)";

/// Reads and checks the header of a heap in memory.
pub(super) fn header_in(options: &Options, region: &Region) -> Result<Header> {
    let mut bytes = [0; HEADER_LEN];
    if region.len() < superblock::LEN || !region.copy_out(0, &mut bytes) {
        return Err(Error::NotAHeap { name: MEMORY_NAME.to_owned(), why: "it is shorter than a superblock" });
    }
    let header = Header::decode(&bytes, MEMORY_NAME)?;
    if header.capacity > region.len() {
        return Err(Error::CapacityMismatch { expected: header.capacity, actual: region.len() });
    }
    options.check_capacity(header.capacity)?;
    Ok(header)
}

/// What creating and opening have in common at the end.
fn finish(
    options: &Options,
    tables: Tables,
    liveness: Arc<dyn Liveness>,
    key: SeatKey<LaneSeat>,
    created: bool,
) -> Result<Heap> {
    let attachment = Attachment {
        classes: Classes::new(&tables.header),
        tables,
        liveness,
        key,
        gate: CachePadded::new(SharedGate::default()),
        lock_timeout: options.timeout(),
        supplies: CachePadded::new(AtomicU32::new(0)),
        born: Instant::now(),
        next_question: AtomicU64::new(0),
        freezer: AtomicU64::new(0),
    };
    if attachment.tables.region.is_writable() && !created {
        attachment.arrive()?;
    }
    Ok(Heap { attachment: Arc::new(attachment) })
}

impl Attachment {
    /// Looks after what the dead have left, if anybody has died: after a restart, that is everybody who was there before.
    fn arrive(&self) -> Result<()> {
        let is_dead = |lane: LaneId| -> Result<bool> {
            let claimed = self.tables.lane(lane).is_some_and(|record| record.is_claimed());
            Ok(claimed && !self.liveness.is_alive(lane.token())?)
        };
        let mut somebody_died = self.boot_differs();
        for lane in self.tables.header.all_lanes() {
            somebody_died = somebody_died || is_dead(lane)?;
        }
        let locked_by_dead = match self.lock_holder() {
            Some(lane) => !self.liveness.is_alive(lane.token())?,
            None => false,
        };
        if !somebody_died && !locked_by_dead {
            return Ok(());
        }
        // In the file of a machine that stopped nothing is to be trusted before this has succeeded.
        if self.is_unclean() {
            return self.see_to_the_dead(true);
        }
        match self.see_to_the_dead(false) {
            // Somebody is alive and does not let go. That is no reason not to attach: who claims a lane looks again.
            Err(Error::LockTimeout { .. }) => Ok(()),
            done => done,
        }
    }

    fn see_to_the_dead(&self, is_unclean: bool) -> Result<()> {
        let pass = self.pass_shared_gate()?;
        let lock = self.lock_for(pass.caller())?;
        // Somebody else may have done it meanwhile.
        if is_unclean && self.boot_differs() {
            self.see_to_power_cut(&lock)?;
        } else {
            recovery::dead_lanes(self.ward(), &lock, &[])?;
        }
        self.note_boot();
        Ok(())
    }

    /// True if the machine was started anew since the heap was last attached. The kernel's tokens did not survive that, so
    /// all lanes are dead by the ordinary rules.
    pub(super) fn boot_differs(&self) -> bool {
        let [low, high] = clock::boot_id();
        let stored = [superblock::BOOT_ID, superblock::BOOT_ID.saturating_add(8)]
            .map(|at| self.tables.superblock(at).load(Ordering::Relaxed));
        stored != [low, high]
    }

    fn note_boot(&self) {
        let [low, high] = clock::boot_id();
        self.tables.superblock(superblock::BOOT_ID).store(low, Ordering::Relaxed);
        self.tables.superblock(superblock::BOOT_ID.saturating_add(8)).store(high, Ordering::Relaxed);
    }
}
