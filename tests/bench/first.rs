//! The heap beside mimalloc: three loads in one run. `cargo bench --bench first`, shorter with `-- --quick`.
//!
//! The heap is a named one: shared, persistent, whole after any death. mimalloc is among the fastest allocators of a
//! single process; it is called directly, so that the rest of this program stays out of it. The two take turns, so that
//! whatever slows the machine down for a while slows both. An allocation and a free are one operation each. The first
//! word of every block is written, because a block that nobody uses costs nobody anything.

#![allow(unsafe_code, reason = "mimalloc is called through GlobalAlloc, and blocks are written through their addresses")]

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::ptr::NonNull;
use std::time::Instant;

use mimalloc::MiMalloc;
use shmheap::{Heap, Offset};

/// Blocks in use at a time, where it is more than one.
const BLOCKS: usize = 10_000;

fn main() -> shmheap::Result<()> {
    let given = |flag: &str| std::env::args().any(|argument| argument == flag);
    // `cargo bench` says `--bench`; who runs this otherwise only wants to see that it works.
    let quick = given("--quick") || given("--test") || !given("--bench");
    let (rounds, repeats) = if quick { (7, 5) } else { (15, 100) };

    let name = format!("shmheap-bench-{}", std::process::id());
    let heap = Heap::options().capacity(1 << 30).create(&name)?;
    println!("{:<44}{:>10}{:>10}{:>8}", "ns per operation (median)", "shmheap", "mimalloc", "ratio");
    for load in [Load::Hot, Load::Batch, Load::Churn] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            ours.push(load.measure(&heap, repeats));
            theirs.push(load.measure(&MiMalloc, repeats));
        }
        let (ours, theirs) = (median(ours), median(theirs));
        println!("{:<44}{ours:>10.1}{theirs:>10.1}{:>8.2}", load.title(), ours / theirs);
    }
    heap.destroy()
}

/// What both can do.
trait Allocator {
    type Block: Copy;

    /// Allocates a block and writes its first word.
    fn allocate(&self, size: usize) -> Self::Block;
    /// Frees a block of `size` bytes.
    fn free(&self, block: Self::Block, size: usize);
}

impl Allocator for Heap {
    type Block = Offset;

    fn allocate(&self, size: usize) -> Offset {
        let block = Heap::allocate(self, size).expect("the capacity is many times what the loads use");
        let address = self.resolve(block).expect("the block lies in the heap");
        // SAFETY: the block is at least a word long, is aligned to 16, and nobody else knows of it.
        unsafe { address.cast::<u64>().write_volatile(size as u64) };
        block
    }

    fn free(&self, block: Offset, _size: usize) {
        self.deallocate(block).expect("the block is in use");
    }
}

/// mimalloc is told the size again when it frees.
fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 16).expect("the sizes of the loads are small")
}

impl Allocator for MiMalloc {
    type Block = NonNull<u8>;

    fn allocate(&self, size: usize) -> NonNull<u8> {
        // SAFETY: no load asks for zero bytes.
        let address = unsafe { self.alloc(layout(size)) };
        let block = NonNull::new(address).expect("there is memory for the loads");
        // SAFETY: the block is at least a word long, is aligned to 16, and nobody else knows of it.
        unsafe { block.cast::<u64>().write_volatile(size as u64) };
        block
    }

    fn free(&self, block: NonNull<u8>, size: usize) {
        // SAFETY: the block came from `allocate` with this size, and is freed once.
        unsafe { self.dealloc(block.as_ptr(), layout(size)) };
    }
}

/// What the allocators are given to do.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// One block of 64 bytes, allocated and freed again and again.
    Hot,
    /// Many blocks of mixed sizes, then all freed, the last one first.
    Batch,
    /// Many blocks in use, of which one after the other, chosen at random, is freed and another one allocated instead.
    Churn,
}

impl Load {
    fn title(self) -> &'static str {
        match self {
            Self::Hot => "64 B, allocate and free",
            Self::Batch => "10,000 of 16..1024 B, then free LIFO",
            Self::Churn => "churn over 10,000 of 16 B..32 KiB",
        }
    }

    /// Nanoseconds per operation; about 20,000 operations per repeat.
    fn measure<A: Allocator>(self, allocator: &A, repeats: usize) -> f64 {
        match self {
            Self::Hot => hot(allocator, repeats),
            Self::Batch => batch(allocator, repeats),
            Self::Churn => churn(allocator, repeats),
        }
    }
}

fn hot<A: Allocator>(allocator: &A, repeats: usize) -> f64 {
    let pairs = BLOCKS * repeats;
    let start = Instant::now();
    for _ in 0..pairs {
        allocator.free(black_box(allocator.allocate(black_box(64))), 64);
    }
    ns_per_operation(start, 2 * pairs)
}

fn batch<A: Allocator>(allocator: &A, repeats: usize) -> f64 {
    let mut random = Random(1);
    let sizes: Vec<usize> = (0..BLOCKS).map(|_| random.within(16, 1024)).collect();
    let mut blocks = Vec::with_capacity(BLOCKS);
    let start = Instant::now();
    for _ in 0..repeats {
        blocks.extend(sizes.iter().map(|size| (allocator.allocate(*size), *size)));
        blocks.drain(..).rev().for_each(|(block, size)| allocator.free(block, size));
    }
    ns_per_operation(start, 2 * BLOCKS * repeats)
}

fn churn<A: Allocator>(allocator: &A, repeats: usize) -> f64 {
    let mut random = Random(2);
    let allocate = |size| (allocator.allocate(size), size);
    let mut slots: Vec<_> = (0..BLOCKS).map(|_| allocate(random.churn_size())).collect();
    // Drawn beforehand, so that drawing is not measured.
    let steps: Vec<_> = (0..BLOCKS * repeats).map(|_| (random.within(0, BLOCKS - 1), random.churn_size())).collect();
    let start = Instant::now();
    for (slot, size) in &steps {
        let (block, old_size) = slots[*slot];
        allocator.free(block, old_size);
        slots[*slot] = allocate(*size);
    }
    let ns = ns_per_operation(start, 2 * steps.len());
    slots.into_iter().for_each(|(block, size)| allocator.free(block, size));
    ns
}

fn ns_per_operation(start: Instant, operations: usize) -> f64 {
    start.elapsed().as_nanos() as f64 / operations as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Numbers that look random and are the same in every run (splitmix64), so that both get the same load.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `low` to `high`, both included.
    fn within(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    /// Most blocks of most programs are small: 80 in 100 up to 256 bytes, 15 up to 4 KiB, 5 up to 32 KiB.
    fn churn_size(&mut self) -> usize {
        match self.next() % 100 {
            0..80 => self.within(16, 256),
            80..95 => self.within(257, 4096),
            _ => self.within(4097, 32 << 10),
        }
    }
}
