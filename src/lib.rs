//! A persistent heap in shared memory that survives the death of those who use it.
//!
//! Several processes attach a heap by name, each at an address of its own, allocate and free blocks, and find each other's
//! data by name. Any of them may be killed at any instruction; the others go on, and the heap stays whole. When all are
//! gone it is still there.
//!
//! ```
//! use shmheap::Heap;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let name = &format!("orders-doc-{}", std::process::id());
//! let heap = Heap::options().capacity(64 << 20).create(name)?; // one process
//! let block = heap.allocate(256)?;
//! heap.copy_in(block, b"hello")?;
//! heap.set_root("greeting", block)?;
//!
//! let heap = Heap::open(name)?; // another one, now or after the first is gone
//! let block = heap.root("greeting")?.ok_or("nobody greeted")?;
//! let mut text = [0u8; 5];
//! heap.copy_out(block, &mut text)?;
//! assert_eq!(&text, b"hello");
//! heap.deallocate(block)?;
//! # heap.destroy()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where to start
//!
//! - [`Heap`]: allocate, free, roots, numbers. [`Options`]: create and open.
//! - [`Heap::validate`] says whether a heap is sound, [`Options::repair`] mends one that is not.
//! - A block is named by its [`Offset`], which means the same in every process.
//! - [`Error`] says what went wrong and what to do about it.
//!
//! # What is promised
//!
//! SIGKILL at any instruction of any call, recovery included, leaves a valid heap: the call happened or it did not. Every
//! wait is bounded. A full /dev/shm is an error with numbers in it. Liveness is never decided by a pid. No address is ever
//! stored in the region. What is *not* promised: that the contents of a block are protected from other attached processes,
//! and that a segment which somebody truncates from outside stays usable.
//!
//! # How it is built
//!
//! Each module is a room that may use only those before it:
//! `error < sys < region < format < journal < alloc < check < recovery < repair < heap < image`. docs/ARCHITECTURE.md
//! in the repository walks through them.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

#[cfg(not(target_os = "linux"))]
compile_error!("shmheap needs Linux: futexes, open-file-description locks and fallocate");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("shmheap needs 64-bit pointers: a region is mapped whole");

mod alloc;
mod check;
mod error;
mod format;
mod heap;
mod image;
mod journal;
mod recovery;
mod region;
mod repair;
mod sys;

pub use error::{Corruption, Error, OffsetFault, Result, Shortage};
pub use heap::{
    Activity, BlockInfo, Blocks, Change, ClassActivity, ClassStats, Freeze, Heap, LaneActivity, LaneInfo, LockStats,
    Options, OwnerTrust, RootInfo, SegmentInfo, SegmentKind, SpanInfo, SpanUsage, Spans, Stats,
};
pub use image::{
    Compression, ImageBlock, ImageDiff, ImageInfo, Progress, SaveOptions, diff, diff_with, verify, verify_with,
};
pub use region::{Memory, Offset};
pub use repair::{Remedy, RepairAction, RepairReport};

/// The README's program, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
