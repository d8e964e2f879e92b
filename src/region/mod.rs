//! The mapped bytes: where they start, how many there are, and the only ways to reach them.
//!
//! | noun | |
//! |---|---|
//! | [`Offset`] | a place in the region, as the region itself stores it |
//! | [`Memory`] | memory that the caller supplies instead of a shared object |
//! | `Mapping` | what keeps the bytes mapped |
//! | `Region` | base and length, and checked access to words and bytes |
//! | `Spot` | a word whose place was checked before |
//!
//! Two rules, from which the safety of everything above follows:
//!
//! R1. An access at `at` of `len` bytes happens only if `at + len <= self.len`, in checked arithmetic.
//! R2. A word is reached only at a multiple of its size, and the base is aligned to 4096.
//!
//! Parts (R3) and spots (R4) have rules of their own, which keep these two.
//!
//! Shared metadata is reached as atomic words of one width per place, never as a Rust reference to anything else: other
//! processes write it at any time.
//!
//! Not here: what any byte means (`format`).

#![allow(unsafe_code, reason = "this room turns offsets into addresses; rules R1 and R2 are checked where that happens")]

mod access;
mod mapping;
mod memory;
mod offset;
mod parts;
mod spot;

pub(crate) use access::Region;
pub(crate) use mapping::Mapping;
pub use memory::Memory;
pub use offset::Offset;
pub(crate) use spot::Spot;
