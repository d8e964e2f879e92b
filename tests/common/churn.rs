//! Random work on a heap, of which every byte is checked.

use shmheap::{Heap, Offset};

use super::Random;
use super::shared::Words;
use super::worker::{number, parameter};

/// Bytes at each end of a block that a stamp covers; a block shorter than twice that is covered whole.
const STAMP_LEN: usize = 1024;

/// The bytes that a stamp puts at `at`.
fn stamp_bytes(seed: u64, at: usize, len: usize) -> Vec<u8> {
    let byte = |place: usize| {
        let mixed = (place as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed.to_le_bytes()[7]
    };
    (at..at + len).map(byte).collect()
}

/// The parts of a block of `size` bytes that a stamp covers.
fn stamped_parts(size: usize) -> Vec<(usize, usize)> {
    if size <= 2 * STAMP_LEN { vec![(0, size)] } else { vec![(0, STAMP_LEN), (size - STAMP_LEN, STAMP_LEN)] }
}

/// Writes bytes into a block that nobody else would write there.
pub(crate) fn stamp(heap: &Heap, block: Offset, size: usize, seed: u64) {
    for (at, len) in stamped_parts(size) {
        heap.copy_in_at(block, at, &stamp_bytes(seed, at, len)).expect("the block can be written");
    }
}

/// Checks that a block of which `size` bytes were stamped still has them, up to `kept`.
pub(crate) fn check_stamp_up_to(heap: &Heap, block: Offset, size: usize, seed: u64, kept: usize) {
    for (at, len) in stamped_parts(size).into_iter().filter(|(at, _)| *at < kept) {
        let len = len.min(kept - at);
        let mut found = vec![0; len];
        heap.copy_out_at(block, at, &mut found).expect("the block can be read");
        assert!(found == stamp_bytes(seed, at, len), "the block at {block}, {size} bytes, seed {seed:#x}, was overwritten");
    }
}

/// Checks that a block still has the bytes of its stamp.
pub(crate) fn check_stamp(heap: &Heap, block: Offset, size: usize, seed: u64) {
    check_stamp_up_to(heap, block, size, seed, size);
}

/// A block that a [`Churn`] holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) block: Offset,
    pub(crate) size: usize,
    pub(crate) seed: u64,
}

/// Random allocations, reallocations and frees.
#[derive(Debug)]
pub(crate) struct Churn {
    heap: Heap,
    random: Random,
    live: Vec<Held>,
    most: usize,
}

impl Churn {
    /// Work that holds up to `most` blocks at a time. Seeds of different workers must differ.
    pub(crate) fn new(heap: &Heap, seed: u64, most: usize) -> Self {
        Self { heap: heap.clone(), random: Random::new(seed), live: Vec::new(), most }
    }

    /// Mostly small sizes, some of a few KiB, and now and then one that gets pages of its own.
    fn random_size(&mut self) -> usize {
        match self.random.below(100) {
            0 => 1 + self.random.below(100_000),
            1..=9 => 1 + self.random.below(8_000),
            _ => 1 + self.random.below(600),
        }
    }

    /// One allocation, reallocation or free.
    pub(crate) fn step(&mut self) {
        let choice = self.random.below(100);
        if self.live.is_empty() || (choice < 45 && self.live.len() < self.most) {
            let (size, seed) = (self.random_size(), self.random.next());
            let block = self.heap.allocate(size).expect("there is room");
            stamp(&self.heap, block, size, seed);
            self.live.push(Held { block, size, seed });
            return;
        }
        let index = self.random.below(self.live.len());
        let held = self.live[index];
        if choice < 60 {
            let (size, seed) = (self.random_size(), self.random.next());
            let block = self.heap.reallocate(held.block, size).expect("there is room");
            check_stamp_up_to(&self.heap, block, held.size, held.seed, size);
            stamp(&self.heap, block, size, seed);
            self.live[index] = Held { block, size, seed };
        } else {
            check_stamp(&self.heap, held.block, held.size, held.seed);
            self.live.swap_remove(index);
            self.heap.deallocate(held.block).expect("the block is ours to free");
        }
    }

    /// What is held now.
    pub(crate) fn live(&self) -> &[Held] {
        &self.live
    }

    /// Checks the bytes of all that is held.
    pub(crate) fn check(&self) {
        self.live.iter().for_each(|held| check_stamp(&self.heap, held.block, held.size, held.seed));
    }

    /// Checks and frees all that is held.
    pub(crate) fn free_all(&mut self) {
        self.check();
        for held in self.live.drain(..) {
            self.heap.deallocate(held.block).expect("the block is ours to free");
        }
    }
}

/// Word of the board that ends [`until_told`] when it is not zero.
pub(crate) const STOP: usize = 7;

/// A worker's role: random work in the heap `HEAP` until the board says stop. Counts its steps in word `INDEX` of the board.
pub(crate) fn until_told() {
    let heap = Heap::open(&parameter("HEAP")).expect("the test has made the heap");
    let board = Words::open(&heap, "board");
    let index = number("INDEX");
    let counter = usize::try_from(index).expect("a small number");
    let mut churn = Churn::new(&heap, 77 + index, 200);
    while board.get(STOP) == 0 {
        churn.step();
        board.add(counter, 1);
    }
    churn.free_all();
}
