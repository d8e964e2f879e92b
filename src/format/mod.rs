//! Which word of the region stands where, and what its bits mean. docs/FORMAT.md draws it.
//!
//! | noun | |
//! |---|---|
//! | [`Header`] | what never changes after creation: sizes, identity, version |
//! | [`Geometry`] | where each table starts, computed from the header alone, in checked arithmetic |
//! | [`Tables`] | a region and its geometry: every word by name |
//! | [`PageIndex`], [`PageCount`], [`LaneId`], [`ClassIndex`] | the kinds of integers |
//! | [`PageEntry`], [`LaneRecord`], [`RootRecord`], [`Intent`] | the records |
//!
//! F1. `Geometry::new` succeeds only if every table lies within the capacity and no two overlap. So a place that is
//!     computed from an index below its table's length lies in the region.
//! F2. A `PageIndex` is made by [`Tables::page`] only, which checks it against the pages in use so far. Entries and
//!     links of such pages are reserved memory.
//!
//! Not here: how any of these words change (`journal`, `alloc`, `heap`).

#![allow(
    clippy::arithmetic_side_effects,
    reason = "places are sums of table starts and indices that F1 bounds far below 2^63"
)]
#![allow(clippy::indexing_slicing, reason = "arrays of constant length, indexed by constants or by a level below LEVELS")]

mod geometry;
mod header;
mod lane;
mod page;
mod root;
mod tables;

pub(crate) use geometry::{CHUNK_PAGES, FANOUT, Geometry, LEVELS};
pub(crate) use header::{CLASSES_MAX, HEADER_LEN, Header, LANES_MAX, PAGE_SIZE_MAX, PAGE_SIZE_MIN, ROOT_SLOTS_MAX};
pub(crate) use lane::{Intent, IntentKind, LARGE_BLOCKS, LaneId, LaneRecord, MOVE_DECIDES, SHARED_LANE};
pub(crate) use page::{ClassIndex, PageCount, PageEntry, PageIndex, PageState};
pub(crate) use root::{RootName, RootRecord, RootState};
pub(crate) use tables::{Summary, Tables};

/// Places of the superblock's words, in bytes from the start of the region. The header stands before them.
pub(crate) mod superblock {
    /// Id of the boot during which the heap was last attached, two words.
    pub(crate) const BOOT_ID: u64 = 0x80;
    /// In a file: 1 = everything was written to disk since the heap was last changed, and nobody has a lane; else 0.
    pub(crate) const CLEAN: u64 = 0x90;
    /// Pages whose table entries are reserved: [0, n). All others are free.
    pub(crate) const PAGES_HIGH: u64 = 0xc0;
    /// The lock word, 32 bits, on a cache line of its own.
    pub(crate) const LOCK: u64 = 0x100;
    /// Not 0 while a recovery or a repair is under way or did not end well: whoever takes the lock next recovers.
    pub(crate) const RECOVERING: u64 = 0x108;
    /// Counts span operations, so that readers without the lock see that one came between.
    pub(crate) const SPAN_SEQUENCE: u64 = 0x140;
    /// The journal: number of ranges, then two words for each.
    pub(crate) const JOURNAL: u64 = 0x148;
    /// Non-zero while an intent frees a block of a living lane's slab: owners do not merge meanwhile.
    pub(crate) const MERGE_HOLD: u64 = 0x180;
    /// Counts the times that memory ran out: lanes that see it change give back what they keep.
    pub(crate) const PRESSURE: u64 = 0x1c0;
    /// First orphan with room, one 32-bit page link per class.
    pub(crate) const ORPHANS: u64 = 0x200;
    /// One bit per 4 KiB of root slots: reserved.
    pub(crate) const ROOTS_RESERVED: u64 = 0x300;
    /// Words of that.
    pub(crate) const ROOTS_RESERVED_WORDS: u64 = 32;
    /// Counts the calls that slept for the heap lock. These three are for people: nothing depends on them.
    pub(crate) const LOCK_WAITS: u64 = 0x400;
    /// How long they slept in all, in nanoseconds.
    pub(crate) const LOCK_WAITED_NS: u64 = 0x408;
    /// Counts the times that the heap lock was taken from a dead holder.
    pub(crate) const TAKEOVERS: u64 = 0x410;
    /// The lane records start here.
    pub(crate) const LEN: u64 = 4096;
}
