//! What the tests that start processes share.
//!
//! | noun | |
//! |---|---|
//! | [`Segment`] | a name that no other test has, unlinked when it is dropped |
//! | [`worker::Worker`] | this test program, started once more in a role, ended when it is dropped |
//! | [`shared::Words`], [`shared::Gate`] | where processes meet: atomic words, and a start event, in blocks of a heap |
//! | [`churn::Churn`] | random allocations, reallocations and frees whose bytes are checked |
//!
//! Nothing here waits without a bound: a wait that outlasts [`PATIENCE`] fails the test.

#![allow(dead_code, reason = "each test program uses the helpers that it needs")]
#![allow(unsafe_code, reason = "events and atomic words in shared blocks, and polling of pipes, have no safe interface")]

pub(crate) mod churn;
pub(crate) mod shared;
pub(crate) mod worker;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crossbeam_utils::Backoff;
use shmheap::{BlockInfo, Error, Heap, LaneInfo, Offset, Options};

/// How long anything may take before it counts as hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A name under /dev/shm that no other test and no other run has.
#[derive(Debug)]
pub(crate) struct Segment {
    name: String,
}

impl Segment {
    pub(crate) fn new(tag: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { name: format!("shmheap-test-{}-{number}-{tag}", std::process::id()) }
    }

    /// A name of `len` bytes.
    pub(crate) fn with_len(len: usize) -> Self {
        let Self { name } = &Self::new("");
        Self { name: format!("{name}{}", "x".repeat(len - name.len())) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> String {
        format!("/dev/shm/{}", self.name)
    }

    pub(crate) fn create(&self, options: &Options) -> Heap {
        options.create(&self.name).expect("a heap under a new name is created")
    }

    pub(crate) fn open(&self) -> Heap {
        Heap::open(&self.name).expect("the heap is there to be opened")
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // Not by way of the library: what is tested does not clean up after its own test.
        let _ = std::fs::remove_file(self.path());
    }
}

/// A heap of 16 MiB under a new name.
pub(crate) fn new_heap(tag: &str) -> (Segment, Heap) {
    let segment = Segment::new(tag);
    let heap = segment.create(&Heap::options().capacity(16 << 20));
    (segment, heap)
}

/// Numbers that look random and are the same in every run.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("a usize fits");
        usize::try_from((self.next() >> 11) % end).expect("it is below a usize")
    }
}

/// Waits until `done` says so; fails the test when that takes too long.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    let backoff = Backoff::new();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
        backoff.snooze();
    }
}

/// All allocated blocks.
pub(crate) fn all_blocks(heap: &Heap) -> Vec<BlockInfo> {
    heap.blocks().collect()
}

/// Where all allocated blocks are.
pub(crate) fn all_offsets(heap: &Heap) -> Vec<Offset> {
    heap.blocks().map(|block| block.offset).collect()
}

/// The lane of a process that has one lane.
pub(crate) fn lane_of(heap: &Heap, pid: u32) -> Option<LaneInfo> {
    heap.lanes().expect("the lanes can be listed").into_iter().find(|lane| lane.pid == pid)
}

/// Frees whatever is allocated, and checks that it all becomes one free block again.
pub(crate) fn assert_emptied(heap: &Heap) {
    for block in all_offsets(heap) {
        heap.deallocate(block).expect("a block that is listed can be freed");
    }
    assert_is_empty(heap);
}

/// Checks that nothing is allocated and all that is free is one piece.
pub(crate) fn assert_is_empty(heap: &Heap) {
    heap.validate().expect("an emptied heap is valid");
    let stats = heap.stats().expect("an emptied heap has stats");
    assert_eq!((stats.used, stats.allocated_blocks), (0, 0), "{stats}");
    assert_eq!((stats.free_blocks, stats.fragmentation), (1, 0), "{stats}");
    assert_eq!((stats.free, stats.largest_free, stats.smallest_free), (stats.total, stats.total, stats.total), "{stats}");
    assert_eq!(all_blocks(heap), [], "no block is left");
}

/// Everything that a failed call must leave as it was.
pub(crate) fn state_of(heap: &Heap) -> String {
    let stats = heap.stats().expect("stats");
    let numbers = (stats.used, stats.free, stats.allocated_blocks, stats.free_blocks, stats.roots);
    format!("{numbers:?} {:?} {:?}", all_blocks(heap), heap.roots().expect("roots"))
}

/// Calls `call`, which must fail, and checks that it changed nothing.
pub(crate) fn refused<T: std::fmt::Debug>(heap: &Heap, call: impl FnOnce(&Heap) -> shmheap::Result<T>) -> Error {
    let before = state_of(heap);
    let error = call(heap).expect_err("the call must fail");
    assert_eq!(state_of(heap), before, "a call that failed with {error:?} has changed the heap");
    heap.validate().expect("a heap is valid after a call that failed");
    error
}

/// True if the tests run as root; says so where they do not, and a test is skipped for it.
pub(crate) fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: {test} needs root, to act as another user or to mount a file system");
    }
    root
}
