//! What is measured in one thread, with the heap and with malloc alike.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::time::Instant;

use fastrand::Rng;
use shmheap::{Heap, Offset, Result};

/// Pairs in one round.
const PAIRS: usize = 100_000;
const BATCH: usize = 10_000;
const LIVE: usize = 2_000;
const REPLACED: usize = 20_000;

/// Who gives out blocks.
pub(super) trait Allocator {
    type Block;
    fn allocate(&self, size: usize) -> Result<Self::Block>;
    fn free(&self, block: Self::Block) -> Result<()>;
}

/// The heap.
pub(super) struct Shared<'a>(pub(super) &'a Heap);

/// The malloc of this process, as Rust calls it.
pub(super) struct Malloc;

impl Allocator for Shared<'_> {
    type Block = Offset;

    fn allocate(&self, size: usize) -> Result<Offset> {
        self.0.allocate(size)
    }

    fn free(&self, block: Offset) -> Result<()> {
        self.0.deallocate(block)
    }
}

impl Allocator for Malloc {
    type Block = Box<[MaybeUninit<u8>]>;

    fn allocate(&self, size: usize) -> Result<Self::Block> {
        Ok(Box::new_uninit_slice(size))
    }

    fn free(&self, block: Self::Block) -> Result<()> {
        drop(block);
        Ok(())
    }
}

/// One load, with everything drawn beforehand.
pub(super) enum Load {
    /// Allocated and freed at once.
    Pair { size: usize },
    /// Many allocated, then all freed in another order.
    Batch { sizes: Vec<usize>, order: Vec<usize> },
    /// So many live, and a random one replaced by one of another size.
    Churn { first: Vec<usize>, steps: Vec<(usize, usize)> },
}

impl Load {
    pub(super) fn all() -> Vec<Self> {
        let mut random = Rng::with_seed(1);
        let mut sizes = |count, range: std::ops::Range<usize>| -> Vec<usize> {
            (0..count).map(|_| random.usize(range.clone())).collect()
        };
        let (batch, first, later) = (sizes(BATCH, 16..1025), sizes(LIVE, 16..32 << 10), sizes(REPLACED, 16..32 << 10));
        let mut order: Vec<usize> = (0..BATCH).collect();
        random.shuffle(&mut order);
        let steps = later.into_iter().map(|size| (random.usize(..LIVE), size)).collect();
        vec![Self::Pair { size: 64 }, Self::Batch { sizes: batch, order }, Self::Churn { first, steps }]
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Pair { .. } => "64 B, allocated and freed",
            Self::Batch { .. } => "10,000 blocks of 16 to 1024 B, then freed in random order",
            Self::Churn { .. } => "2,000 live blocks of 16 B to 32 KiB, a random one replaced",
        }
    }

    /// Runs it once; returns nanoseconds per operation. Leaves nothing allocated.
    pub(super) fn run<A: Allocator>(&self, allocator: &A) -> Result<f64> {
        match self {
            Self::Pair { size } => pair(allocator, *size),
            Self::Batch { sizes, order } => batch(allocator, sizes, order),
            Self::Churn { first, steps } => churn(allocator, first, steps),
        }
    }
}

fn per_operation(started: Instant, operations: usize) -> f64 {
    started.elapsed().as_nanos() as f64 / operations as f64
}

fn pair<A: Allocator>(allocator: &A, size: usize) -> Result<f64> {
    let started = Instant::now();
    for _ in 0..PAIRS {
        // Behind the box nobody knows that the block is freed at once: no pair is optimised away.
        let block = black_box(allocator.allocate(black_box(size))?);
        allocator.free(block)?;
    }
    Ok(per_operation(started, 2 * PAIRS))
}

fn batch<A: Allocator>(allocator: &A, sizes: &[usize], order: &[usize]) -> Result<f64> {
    let mut blocks: Vec<Option<A::Block>> = Vec::with_capacity(sizes.len());
    let started = Instant::now();
    for size in sizes {
        blocks.push(Some(black_box(allocator.allocate(*size)?)));
    }
    for index in order {
        if let Some(block) = blocks[*index].take() {
            allocator.free(block)?;
        }
    }
    Ok(per_operation(started, 2 * sizes.len()))
}

fn churn<A: Allocator>(allocator: &A, first: &[usize], steps: &[(usize, usize)]) -> Result<f64> {
    let mut blocks = Vec::with_capacity(first.len());
    for size in first {
        blocks.push(allocator.allocate(*size)?);
    }
    let started = Instant::now();
    for (index, size) in steps {
        let new = black_box(allocator.allocate(*size)?);
        allocator.free(std::mem::replace(&mut blocks[*index], new))?;
    }
    let measured = per_operation(started, 2 * steps.len());
    blocks.into_iter().try_for_each(|block| allocator.free(block))?;
    Ok(measured)
}
