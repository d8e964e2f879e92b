//! The allocators: what all of them can do, which there are, and how a job is done with one of them.
//!
//! | noun | |
//! |---|---|
//! | [`Allocator`] | what a workload asks of an allocator; every measured loop is compiled anew for each |
//! | [`Kind`] | which allocator: a column of the report |
//! | [`Place`] | the heap that a shared allocator works in: a new one, or one that exists |
//! | [`Attached`] | an allocator that is ready |
//! | [`Job`] | something to be done with any allocator: the one dispatch, outside all measured loops |
//!
//! Not here: the loops (`single`, `workers`).

mod boost;
mod harness;
mod private;
mod rts;
mod shared;

use std::ops::RangeInclusive;

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub(crate) use boost::Boost;
pub(crate) use harness::Harness;
pub(crate) use private::{Glibc, Jemalloc, Mimalloc, Rpmalloc, Snmalloc};
pub(crate) use rts::Rts;
pub(crate) use shared::Shmheap;

/// Bytes of the heaps that the shared allocators work in. More than any workload uses; taken only as it is used.
pub(crate) const CAPACITY: usize = 1 << 30;

/// What the workloads ask of an allocator. A block is named by a word: an offset in shared memory, else an address.
///
/// Running out of memory is a mistake of the workloads, so it panics.
pub(crate) trait Allocator {
    /// Allocates a block of at least `size` bytes, aligned to 16.
    fn allocate(&self, size: usize) -> u64;
    /// The same, aligned to `alignment`: a power of two up to 4096.
    fn allocate_aligned(&self, size: usize, alignment: usize) -> u64;
    /// Changes a block's size, keeping its first bytes, and tells where it is now.
    fn reallocate(&self, block: u64, old_size: usize, new_size: usize) -> u64;
    /// Frees a block of `size` bytes.
    fn free(&self, block: u64, size: usize);
    /// Where a block is in this process.
    fn address(&self, block: u64) -> *mut u8;
}

/// For allocators that cannot resize: allocates anew, copies, and frees.
pub(crate) fn move_block<A: Allocator>(allocator: &A, block: u64, old_size: usize, new_size: usize) -> u64 {
    let new = allocator.allocate(new_size);
    let (from, to) = (allocator.address(block), allocator.address(new));
    // SAFETY: both blocks are allocated, thus disjoint, and have at least so many bytes.
    unsafe { from.copy_to_nonoverlapping(to, old_size.min(new_size)) };
    allocator.free(block, old_size);
    new
}

/// Writes the first word of a block: its size, so that whoever frees it after somebody else allocated it knows the
/// size.
#[inline]
pub(crate) fn touch<A: Allocator>(allocator: &A, block: u64, size: usize) {
    let first = allocator.address(block).cast::<u64>();
    // SAFETY: every allocator's smallest block has a word and is aligned to one, and nobody else uses the block.
    unsafe { first.write_volatile(size as u64) };
}

/// Reads what [`touch`] wrote.
#[inline]
pub(crate) fn touched_size<A: Allocator>(allocator: &A, block: u64) -> usize {
    let first = allocator.address(block).cast::<u64>();
    // SAFETY: as in `touch`; who handed the block over does not use it any more.
    unsafe { first.read_volatile() as usize }
}

/// Which allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// None at all: what the harness itself costs.
    Harness,
    /// The heap that all this is about: shared, persistent, whole after any death.
    Shmheap,
    Mimalloc,
    Snmalloc,
    Jemalloc,
    Rpmalloc,
    Glibc,
    /// Boost.Interprocess: shared, not crash-safe.
    Boost,
    /// Shared, five size classes from 256 to 4096 bytes.
    RtsAlloc,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Harness,
        Self::Shmheap,
        Self::Mimalloc,
        Self::Snmalloc,
        Self::Jemalloc,
        Self::Rpmalloc,
        Self::Glibc,
        Self::Boost,
        Self::RtsAlloc,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Harness => "harness",
            Self::Shmheap => "shmheap",
            Self::Mimalloc => "mimalloc",
            Self::Snmalloc => "snmalloc",
            Self::Jemalloc => "jemalloc",
            Self::Rpmalloc => "rpmalloc",
            Self::Glibc => "glibc",
            Self::Boost => "boost",
            Self::RtsAlloc => "rts-alloc",
        }
    }

    /// True if processes share its blocks: then workers are processes, else threads.
    pub(crate) fn is_shared(self) -> bool {
        matches!(self, Self::Shmheap | Self::Boost | Self::RtsAlloc)
    }

    /// True if it is an allocator of one process that a row's best is chosen from.
    pub(crate) fn is_private(self) -> bool {
        !self.is_shared() && self != Self::Harness
    }

    /// True if it was compiled in.
    pub(crate) fn is_available(self) -> bool {
        self != Self::Boost || cfg!(boost)
    }

    /// The sizes of blocks that it is made for.
    pub(crate) fn sizes(self) -> RangeInclusive<usize> {
        if self == Self::RtsAlloc { rts::SIZES } else { 1..=usize::MAX }
    }

    /// Makes this thread ready to use it.
    pub(crate) fn attach(self, place: &Place) -> Result<Attached> {
        Ok(match self {
            Self::Harness => Attached::Harness(Harness::new()),
            Self::Shmheap => Attached::Shmheap(Shmheap::attach(place)?),
            Self::Mimalloc => Attached::Mimalloc(Mimalloc),
            Self::Snmalloc => Attached::Snmalloc(Snmalloc),
            Self::Jemalloc => Attached::Jemalloc(Jemalloc),
            Self::Rpmalloc => Attached::Rpmalloc(Rpmalloc::attach()?),
            Self::Glibc => Attached::Glibc(Glibc),
            Self::Boost => Attached::Boost(Boost::attach(place)?),
            Self::RtsAlloc => Attached::RtsAlloc(Rts::attach(place)?),
        })
    }
}

/// Where a shared allocator works. Private ones do not look at it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Place {
    /// A new heap of this name, which is removed when the allocator is dropped.
    New(String),
    /// A heap that another thread or process has made and will remove.
    Existing(String),
}

impl Place {
    /// A name that no other run uses.
    pub(crate) fn name(kind: Kind, use_of_it: &str) -> String {
        format!("shmheap-bench-{}-{}-{use_of_it}", std::process::id(), kind.name())
    }
}

/// An allocator that this thread can use.
pub(crate) enum Attached {
    Harness(Harness),
    Shmheap(Shmheap),
    Mimalloc(Mimalloc),
    Snmalloc(Snmalloc),
    Jemalloc(Jemalloc),
    Rpmalloc(Rpmalloc),
    Glibc(Glibc),
    Boost(Boost),
    RtsAlloc(Rts),
}

/// Something to be done with whichever allocator.
pub(crate) trait Job {
    type Output;
    fn run<A: Allocator>(self, allocator: &A) -> Self::Output;
}

impl Attached {
    pub(crate) fn run<J: Job>(&self, job: J) -> J::Output {
        match self {
            Self::Harness(allocator) => job.run(allocator),
            Self::Shmheap(allocator) => job.run(allocator),
            Self::Mimalloc(allocator) => job.run(allocator),
            Self::Snmalloc(allocator) => job.run(allocator),
            Self::Jemalloc(allocator) => job.run(allocator),
            Self::Rpmalloc(allocator) => job.run(allocator),
            Self::Glibc(allocator) => job.run(allocator),
            Self::Boost(allocator) => job.run(allocator),
            Self::RtsAlloc(allocator) => job.run(allocator),
        }
    }

    /// Bytes of shared memory that it has taken; `None` for private allocators, whose process must be looked at.
    pub(crate) fn taken(&self) -> Result<Option<u64>> {
        Ok(match self {
            Self::Shmheap(allocator) => Some(allocator.heap().stats()?.taken),
            Self::Boost(allocator) => Some(allocator.used()),
            _ => None,
        })
    }
}

/// Removes the heap of a process that may have died before it could.
pub(crate) fn remove(kind: Kind, name: &str) {
    match kind {
        Kind::Shmheap => _ = shmheap::Heap::unlink(name),
        Kind::Boost => Boost::remove(name),
        _ => {}
    }
}
