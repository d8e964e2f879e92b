//! The allocator: cutting spans into slabs and blocks, and putting them together again.
//!
//! Memory flows downwards through these, and back:
//!
//! | noun | file | |
//! |---|---|---|
//! | span | `span.rs`, `summary.rs` | a run of pages; a tree of summaries leads to it, under the heap lock |
//! | size class | `size_class.rs` | the sizes that blocks are rounded up to |
//! | slab | `slab.rs` | a span cut into blocks of one class; two bits per block say whether it is allocated |
//! | list | `list.rs` | orphans with room, linked through the page table |
//! | orphan | `orphan.rs` | a slab that belongs to whoever holds the heap lock |
//! | note | `notes.rs` | what a lane writes down, in private memory, of a slab that it owns |
//! | bin | `bin.rs` | what a lane keeps in private memory for one class: the word it is working on, and its slabs in lists |
//! | hand | `hand.rs` | blocks that were just freed, and are allocated next |
//! | kept span | `kept.rs` | what a lane has freed and is likely to use again, without a lock |
//! | parting | `parting.rs` | what a lane gives away when memory is short, or when it ends |
//! | large | `large.rs` | blocks that are spans of their own |
//!
//! A1. A block of a slab is allocated iff neither its free bit nor its remote bit is set.
//! A2. A slab's free bits are written only by the lane that the slab's entries name, or, for an orphan, by the holder of
//!     the heap lock. Remote bits are set by anyone, and cleared only by who may write the free bits, after the free
//!     bits of the same blocks were set (merge).
//! A3. The bits beyond a slab's last block are set in the free words, and clear in the remote words.
//! A4. Every page below `PAGES_HIGH` belongs to exactly one span or is free, as its entry says. Everything else about
//!     pages (in-use bits, summaries, lists) is derived, and rebuilt by recovery.
//!
//! Not here: files, processes, locks; who calls what in which order (`heap`).

#![allow(
    clippy::arithmetic_side_effects,
    reason = "page numbers are below 2^31, block indices below 2^20, places below 2^47 (F1); sums and products have 64 bits"
)]

pub(crate) mod bin;
mod hand;
pub(crate) mod kept;
pub(crate) mod large;
pub(crate) mod list;
pub(crate) mod notes;
pub(crate) mod orphan;
mod parting;
pub(crate) mod size_class;
pub(crate) mod slab;
pub(crate) mod span;
mod summary;

pub(crate) use bin::{Bins, Freed, Hot};
pub(crate) use size_class::{Class, Classes};
pub(crate) use slab::{Located, Slab};
