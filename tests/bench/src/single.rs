//! The measured loops of a single thread, and what is drawn for them beforehand.
//!
//! [`Input`] is drawn once per workload and is the same for all allocators; [`Measure`] is one measurement with one of
//! them. A loop runs its input `repeats` times, and leaves the allocator as empty as it was.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;

use crate::allocators::{Allocator, Job, touch};
use crate::random::Random;
use crate::trace::{Act, Step, Trace};
use crate::workload::{Order, Shape, Sizes};

/// What a loop took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elapsed {
    pub(crate) ns: u64,
    pub(crate) operations: u64,
}

impl Elapsed {
    fn since(start: Instant, operations: usize) -> Self {
        Self { ns: start.elapsed().as_nanos() as u64, operations: operations as u64 }
    }

    pub(crate) fn ns_per_operation(self) -> f64 {
        self.ns as f64 / self.operations.max(1) as f64
    }
}

/// A step of a churn: a slot and the size of the block that comes into it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replace {
    pub(crate) slot: u32,
    pub(crate) size: u32,
}

/// Slots and steps of a churn.
#[derive(Debug)]
pub(crate) struct ChurnInput {
    pub(crate) first_sizes: Vec<u32>,
    pub(crate) steps: Vec<Replace>,
}

impl ChurnInput {
    pub(crate) fn draw(seed: u64, slots: usize, sizes: Sizes, steps: usize) -> Self {
        let mut random = Random::new(seed);
        let first_sizes = (0..slots).map(|_| sizes.draw(&mut random) as u32).collect();
        let replace = |_| Replace { slot: random.within(0, slots - 1) as u32, size: sizes.draw(&mut random) as u32 };
        Self { first_sizes, steps: (0..steps).map(replace).collect() }
    }
}

/// What a loop is fed with.
#[derive(Debug)]
pub(crate) enum Input {
    Pair { size: usize },
    Batch { sizes: Vec<u32>, order: Vec<u32> },
    Churn(ChurnInput),
    Trace(Trace),
}

/// Pairs in one repeat.
const PAIRS: usize = 10_000;

impl Input {
    /// Draws the input for a shape of a single thread.
    pub(crate) fn draw(shape: Shape) -> Result<Option<Self>> {
        Ok(Some(match shape {
            Shape::Pair(size) => Self::Pair { size },
            Shape::Batch { blocks, sizes, order } => Self::batch(blocks, sizes, order),
            Shape::Cold { blocks, sizes } => Self::batch(blocks, sizes, Order::Fifo),
            Shape::Churn { slots, sizes, steps } => Self::Churn(ChurnInput::draw(2, slots, sizes, steps)),
            Shape::Trace(name) => Self::Trace(Trace::read(name)?),
            Shape::Team { .. } => return Ok(None),
        }))
    }

    fn batch(blocks: usize, sizes: Sizes, order: Order) -> Self {
        let mut random = Random::new(1);
        let sizes = (0..blocks).map(|_| sizes.draw(&mut random) as u32).collect();
        let mut places: Vec<u32> = (0..blocks as u32).collect();
        match order {
            Order::Fifo => {}
            Order::Lifo => places.reverse(),
            Order::Random => random.shuffle(&mut places),
        }
        Self::Batch { sizes, order: places }
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measure<'input> {
    pub(crate) input: &'input Input,
    pub(crate) repeats: usize,
}

impl Job for Measure<'_> {
    type Output = Elapsed;

    fn run<A: Allocator>(self, allocator: &A) -> Elapsed {
        match self.input {
            Input::Pair { size } => pair(allocator, *size, self.repeats * PAIRS),
            Input::Batch { sizes, order } => batch(allocator, sizes, order, self.repeats),
            Input::Churn(input) => churn(allocator, input, self.repeats),
            Input::Trace(trace) => replay(allocator, trace, self.repeats),
        }
    }
}

/// Allocates and writes the first word.
#[inline]
pub(crate) fn obtain<A: Allocator>(allocator: &A, size: usize) -> u64 {
    // Behind the box nobody knows that the block will be freed, so that no pair of calls is optimised away.
    let block = black_box(allocator.allocate(size));
    touch(allocator, block, size);
    block
}

fn pair<A: Allocator>(allocator: &A, size: usize, pairs: usize) -> Elapsed {
    let start = Instant::now();
    for _ in 0..pairs {
        let size = black_box(size);
        let block = obtain(allocator, size);
        allocator.free(block, size);
    }
    Elapsed::since(start, 2 * pairs)
}

fn batch<A: Allocator>(allocator: &A, sizes: &[u32], order: &[u32], repeats: usize) -> Elapsed {
    // Written before the measurement, so that the harness's own pages are there.
    let mut blocks = vec![u64::MAX; sizes.len()];
    let start = Instant::now();
    for _ in 0..repeats {
        for (block, size) in blocks.iter_mut().zip(sizes) {
            *block = obtain(allocator, *size as usize);
        }
        for place in order {
            allocator.free(blocks[*place as usize], sizes[*place as usize] as usize);
        }
    }
    Elapsed::since(start, 2 * sizes.len() * repeats)
}

/// A block in use, and its size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) block: u64,
    pub(crate) size: u32,
}

impl Held {
    #[inline]
    pub(crate) fn obtain<A: Allocator>(allocator: &A, size: u32) -> Self {
        Self { block: obtain(allocator, size as usize), size }
    }

    #[inline]
    pub(crate) fn free<A: Allocator>(self, allocator: &A) {
        allocator.free(self.block, self.size as usize);
    }
}

/// Fills the slots of a churn.
pub(crate) fn fill<A: Allocator>(allocator: &A, input: &ChurnInput) -> Vec<Held> {
    input.first_sizes.iter().map(|size| Held::obtain(allocator, *size)).collect()
}

/// The churn itself.
#[inline]
pub(crate) fn replace<A: Allocator>(allocator: &A, slots: &mut [Held], steps: &[Replace]) {
    for step in steps {
        let slot = &mut slots[step.slot as usize];
        slot.free(allocator);
        *slot = Held::obtain(allocator, step.size);
    }
}

fn churn<A: Allocator>(allocator: &A, input: &ChurnInput, repeats: usize) -> Elapsed {
    let mut slots = fill(allocator, input);
    let start = Instant::now();
    for _ in 0..repeats {
        replace(allocator, &mut slots, &input.steps);
    }
    let elapsed = Elapsed::since(start, 2 * input.steps.len() * repeats);
    slots.into_iter().for_each(|slot| slot.free(allocator));
    elapsed
}

/// A trace is replayed with nothing but the table of its blocks. A reallocation is one operation.
fn replay<A: Allocator>(allocator: &A, trace: &Trace, repeats: usize) -> Elapsed {
    let mut blocks = vec![u64::MAX; trace.ids];
    let start = Instant::now();
    for _ in 0..repeats {
        for step in &trace.steps {
            take_step(allocator, &mut blocks, step);
        }
    }
    Elapsed::since(start, trace.steps.len() * repeats)
}

/// Does what the recorded program did.
#[inline]
pub(crate) fn take_step<A: Allocator>(allocator: &A, blocks: &mut [u64], step: &Step) {
    let size = step.size as usize;
    let block = &mut blocks[step.id as usize];
    *block = match step.act {
        Act::Allocate => allocator.allocate(size),
        Act::Aligned => allocator.allocate_aligned(size, 1 << step.alignment_log2),
        Act::Reallocate => allocator.reallocate(*block, step.old_size as usize, size),
        Act::Free => {
            allocator.free(*block, size);
            return;
        }
    };
    *block = black_box(*block);
    touch(allocator, *block, size);
}
