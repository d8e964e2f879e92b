//! The command `shmheap`, as its users call it: what it prints, its exit codes, and what it leaves.
//!
//! | noun | file | |
//! |---|---|---|
//! | [`Heap`](harness::Heap) | `harness.rs` | a heap under a name of its own, removed when it is dropped |
//! | run | `harness.rs` | one call of the program, to its end |
//!
//! Each of the other files tests some subcommands.

mod basics;
mod bench;
mod demo;
mod harness;
mod map;
mod stress;
