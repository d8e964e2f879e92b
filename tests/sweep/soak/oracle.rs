//! What the workers of a soak have published, as they themselves say, in memory apart from the heap.

use std::sync::atomic::{AtomicU64, Ordering};

use shmheap::{Heap, Offset};

use super::{CELLS, PLAIN};

/// State of a cell or a plain block, as the oracle knows it.
pub(super) const EMPTY: u64 = 0;
pub(super) const ALLOCATING: u64 = 1;
pub(super) const LIVE: u64 = 2;
pub(super) const FREEING: u64 = 3;
pub(super) const MOVING: u64 = 4;

/// One block in the oracle.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) state: &'a AtomicU64,
    pub(super) size: &'a AtomicU64,
    pub(super) seed: &'a AtomicU64,
    pub(super) offset: &'a AtomicU64,
}

/// The oracle: words that all processes share, apart from the heap.
pub(super) struct Oracle {
    pub(super) words: &'static [AtomicU64],
    pub(super) plain: bool,
}

const ENTRY_WORDS: usize = 4;
const WORKER_WORDS: usize = 8 + (CELLS + PLAIN) * ENTRY_WORDS;
/// The first words: whether workers are to pause.
pub(super) const PAUSE: usize = 0;
const COMMON_WORDS: usize = 8;

impl Oracle {
    pub(super) fn new(workers: usize, plain: bool) -> Self {
        let len = (COMMON_WORDS + workers * WORKER_WORDS) * 8;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice; it stays until the process ends.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        assert_ne!(address, libc::MAP_FAILED, "mmap");
        // SAFETY: `len` zeroed bytes that are reached as atomic words only, and are never unmapped.
        let words = unsafe { std::slice::from_raw_parts(address.cast::<AtomicU64>(), len / 8) };
        Self { words, plain }
    }

    pub(super) fn worker(&self, worker: usize) -> &'static [AtomicU64] {
        let start = COMMON_WORDS + worker * WORKER_WORDS;
        &self.words[start..start + WORKER_WORDS]
    }

    /// Operations that the worker and its predecessors have done.
    pub(super) fn operations(&self, worker: usize) -> &AtomicU64 {
        &self.worker(worker)[0]
    }

    /// The lane that the worker has, plus 1.
    pub(super) fn lane(&self, worker: usize) -> &AtomicU64 {
        &self.worker(worker)[1]
    }

    /// Not 0 while the worker pauses.
    pub(super) fn is_pausing(&self, worker: usize) -> &AtomicU64 {
        &self.worker(worker)[2]
    }

    pub(super) fn entries(&self, worker: usize) -> impl Iterator<Item = Entry<'static>> {
        let words = &self.worker(worker)[8..];
        words.chunks_exact(ENTRY_WORDS).map(|words| Entry {
            state: &words[0],
            size: &words[1],
            seed: &words[2],
            offset: &words[3],
        })
    }

    pub(super) fn cells(&self, worker: usize) -> impl Iterator<Item = (usize, Entry<'static>)> {
        self.entries(worker).take(CELLS).enumerate()
    }

    pub(super) fn plain_blocks(&self, worker: usize) -> impl Iterator<Item = Entry<'static>> {
        self.entries(worker).skip(CELLS)
    }
}

impl Entry<'_> {
    pub(super) fn state(&self) -> u64 {
        self.state.load(Ordering::SeqCst)
    }

    pub(super) fn set_state(&self, state: u64) {
        self.state.store(state, Ordering::SeqCst);
    }

    pub(super) fn begin(&self, size: u64, seed: u64) {
        self.size.store(size, Ordering::SeqCst);
        self.seed.store(seed, Ordering::SeqCst);
        self.set_state(ALLOCATING);
    }

    pub(super) fn offset(&self) -> Option<Offset> {
        Offset::new(self.offset.load(Ordering::SeqCst))
    }

    /// Writes the entry's mark at both ends of a block.
    pub(super) fn mark(&self, heap: &Heap, block: Offset) {
        let (size, seed) = (self.size.load(Ordering::SeqCst), self.seed.load(Ordering::SeqCst));
        for at in [0, size as usize - 8] {
            heap.copy_in_at(block, at, &seed.to_ne_bytes()).expect("a live block can be written");
        }
    }

    /// Checks what a block must keep when it is moved.
    pub(super) fn check_start(&self, heap: &Heap, block: Offset) {
        let mut found = [0; 8];
        heap.copy_out(block, &mut found).expect("a live block can be read");
        assert_eq!(u64::from_ne_bytes(found), self.seed.load(Ordering::SeqCst), "the block at {block} was moved badly");
    }

    pub(super) fn check(&self, heap: &Heap, block: Offset) {
        let (size, seed) = (self.size.load(Ordering::SeqCst), self.seed.load(Ordering::SeqCst));
        for at in [0, size as usize - 8] {
            let mut found = [0; 8];
            heap.copy_out_at(block, at, &mut found).expect("a live block can be read");
            assert_eq!(u64::from_ne_bytes(found), seed, "the block at {block}, {size} bytes, was overwritten at {at}");
        }
    }
}
