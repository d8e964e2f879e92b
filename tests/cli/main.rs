//! The command `shmheap`, as its users call it: what it prints, its exit codes, and what it leaves.
//!
//! | noun | file | |
//! |---|---|---|
//! | [`Heap`](harness::Heap) | `harness.rs` | a heap under a name of its own, removed when it is dropped |
//! | run | `harness.rs` | one call of the program, to its end |
//!
//! Each of the other files tests some subcommands.

mod basics;
mod check;
#[path = "../common/mod.rs"]
mod common;
mod harness;
mod images;
mod map;
mod shells;
mod values;

#[test]
fn worker_entry() {
    common::worker::dispatch(&[("hold a lane", harness::hold_a_lane)]);
}
