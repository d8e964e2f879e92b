//! The command `shmheap`, as its users call it: what it prints, its exit codes, and what it leaves.
//!
//! | noun | file | |
//! |---|---|---|
//! | [`Heap`](harness::Heap) | `harness.rs` | a heap under a name of its own, removed when it is dropped |
//! | run | `harness.rs` | one call of the program, to its end |
//! | [`Stage`](stage::Stage) | `stage.rs` | a shell with a /dev/shm of its own |
//!
//! Each of the other files tests some subcommands.

mod basics;
mod bench;
mod check;
#[path = "../common/mod.rs"]
mod common;
mod demo;
mod doctor;
mod gc;
mod harness;
mod images;
mod map;
mod removal;
mod shells;
mod stage;
mod stress;
mod top;
mod troubles;
mod values;
mod watch;
mod words;

#[test]
fn worker_entry() {
    common::worker::dispatch(&[
        ("hold a lane", harness::hold_a_lane),
        ("hold a lane under another name", words::hold_a_lane_under_another_name),
        ("stop at work", troubles::stop_at_work),
        ("stop with the lock", troubles::stop_with_the_lock),
    ]);
}
