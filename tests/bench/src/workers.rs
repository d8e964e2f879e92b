//! The measured loops of several workers. The same function is a thread's or a process's: it attaches the allocator,
//! draws what it needs, waits for the others, works, reports, waits again, and cleans up.
//!
//! Words go from worker to worker through a *table*: a block of the heap for shared allocators, a part of the board for
//! private ones. Blocks that come through it tell their size in their first word.

use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::allocators::{Allocator, Job, Kind, Place, touched_size};
use crate::board::{Board, Patience, TABLE_WORDS, now_ns};
use crate::random::Random;
use crate::single::{ChurnInput, Held, fill, obtain, replace};
use crate::workload::Together;

/// Bytes of the table.
pub(crate) const TABLE_BYTES: usize = TABLE_WORDS * size_of::<AtomicU64>();
/// Steps that a worker draws; it repeats them.
pub(crate) const STEPS: usize = 50_000;
/// Blocks in the ring of a handover.
const RING: usize = 1024;
/// Words between the two indices of the ring, and between them and its slots: each has cache lines of its own.
const APART: usize = 16;
/// Slots through which the workers of `larson` exchange blocks.
const EXCHANGE: usize = 512;
/// Of 10 steps of `larson`, so many go through the exchange. Half of what is found there is another worker's.
const EXCHANGED_OF_TEN: u64 = 2;

/// What a worker is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WorkerTask {
    pub(crate) kind: Kind,
    pub(crate) place: Place,
    pub(crate) together: Together,
    /// Descriptor of the board.
    pub(crate) board: i32,
    /// The table's block, 0 if it is on the board.
    pub(crate) table: u64,
    pub(crate) index: usize,
    pub(crate) workers: usize,
    pub(crate) repeats: usize,
}

/// Does a worker's work.
pub(crate) fn run(task: &WorkerTask) -> Result<()> {
    let board = Board::map(task.board)?;
    let allocator = task.kind.attach(&task.place)?;
    allocator.run(Work { task, board: &board })
}

struct Work<'a> {
    task: &'a WorkerTask,
    board: &'a Board,
}

impl Job for Work<'_> {
    type Output = Result<()>;

    fn run<A: Allocator>(self, allocator: &A) -> Result<()> {
        match self.task.together {
            Together::Churn | Together::ChurnSmall => self.churn(allocator),
            Together::Handover if self.task.index == 0 => self.produce(allocator),
            Together::Handover => self.consume(allocator),
            Together::Larson => self.larson(allocator),
        }
    }
}

/// The table as words.
fn table<'a, A: Allocator>(allocator: &'a A, board: &'a Board, block: u64) -> &'a [AtomicU64] {
    if block == 0 {
        return board.table();
    }
    let first = allocator.address(block).cast::<AtomicU64>();
    // SAFETY: whoever started the workers made the block of so many words for them, and frees it when all are gone. It
    // is reached as atomic words only.
    unsafe { slice::from_raw_parts(first, TABLE_WORDS) }
}

impl Work<'_> {
    fn table<'a, A: Allocator>(&'a self, allocator: &'a A) -> &'a [AtomicU64] {
        table(allocator, self.board, self.task.table)
    }

    /// Waits for the others, and measures. `work` returns how many operations it was.
    fn measure(&self, work: impl FnOnce() -> Result<u64>) -> Result<()> {
        self.board.meet(self.task.workers)?;
        let start_ns = now_ns();
        let operations = work()?;
        self.board.report(self.task.index, start_ns, now_ns(), operations);
        // Nobody cleans up while others still measure.
        self.board.meet(2 * self.task.workers)
    }

    fn draw(&self, steps: usize) -> ChurnInput {
        let together = self.task.together;
        ChurnInput::draw(3 + self.task.index as u64, together.slots(), together.sizes(), steps)
    }

    fn churn<A: Allocator>(self, allocator: &A) -> Result<()> {
        let input = self.draw(STEPS);
        let mut slots = warm(allocator, &input);
        self.measure(|| {
            for _ in 0..self.task.repeats {
                replace(allocator, &mut slots, &input.steps);
            }
            Ok(2 * (STEPS * self.task.repeats) as u64)
        })?;
        slots.into_iter().for_each(|slot| slot.free(allocator));
        Ok(())
    }

    /// Allocates blocks and puts them into the ring.
    fn produce<A: Allocator>(self, allocator: &A) -> Result<()> {
        let mut random = Random::new(5);
        let sizes: Vec<u32> = (0..STEPS).map(|_| self.task.together.sizes().draw(&mut random) as u32).collect();
        let ring = Ring::over(self.table(allocator));
        self.measure(|| {
            let (mut put, mut taken) = (0u64, 0u64);
            for _ in 0..self.task.repeats {
                for size in &sizes {
                    let block = obtain(allocator, *size as usize);
                    let mut patience = Patience::new();
                    while put - taken == RING as u64 {
                        taken = ring.taken.load(Ordering::Acquire);
                        if put - taken == RING as u64 {
                            patience.wait()?;
                        }
                    }
                    ring.slots[put as usize % RING].store(block, Ordering::Relaxed);
                    put += 1;
                    // ORDERING: Release pairs with the Acquire in `consume`: whoever sees the index sees the block.
                    ring.put.store(put, Ordering::Release);
                }
            }
            Ok(put)
        })
    }

    /// Takes blocks from the ring and frees them.
    fn consume<A: Allocator>(self, allocator: &A) -> Result<()> {
        let ring = Ring::over(self.table(allocator));
        let all = (STEPS * self.task.repeats) as u64;
        self.measure(|| {
            let (mut put, mut taken) = (0u64, 0u64);
            while taken < all {
                let mut patience = Patience::new();
                while put == taken {
                    put = ring.put.load(Ordering::Acquire);
                    if put == taken {
                        patience.wait()?;
                    }
                }
                let block = ring.slots[taken as usize % RING].load(Ordering::Relaxed);
                let size = touched_size(allocator, block);
                allocator.free(block, size);
                taken += 1;
                // ORDERING: Release pairs with the Acquire in `produce`: the slot is read before it is written anew.
                ring.taken.store(taken, Ordering::Release);
            }
            Ok(taken)
        })
    }

    fn larson<A: Allocator>(self, allocator: &A) -> Result<()> {
        let input = self.draw(STEPS);
        let mut random = Random::new(7 + self.task.index as u64);
        let is_exchanged = |_| random.next() % 10 < EXCHANGED_OF_TEN;
        let exchanged: Vec<bool> = (0..STEPS).map(is_exchanged).collect();
        let exchange = &self.table(allocator)[..EXCHANGE];
        let mut slots = warm(allocator, &input);
        self.measure(|| {
            let mut operations = 0;
            for _ in 0..self.task.repeats {
                for (step, is_exchanged) in input.steps.iter().zip(&exchanged) {
                    let slot = &mut slots[step.slot as usize];
                    let old = std::mem::replace(slot, Held::obtain(allocator, step.size));
                    operations += 1 + if *is_exchanged {
                        swap(allocator, &exchange[step.slot as usize % EXCHANGE], old.block)
                    } else {
                        old.free(allocator);
                        1
                    };
                }
            }
            Ok(operations)
        })?;
        slots.into_iter().for_each(|slot| slot.free(allocator));
        if self.task.index == 0 {
            exchange.iter().for_each(|place| _ = swap(allocator, place, 0));
        }
        Ok(())
    }
}

/// Fills the slots and churns for a while: that a new process has no page of the heap mapped yet belongs to its start.
fn warm<A: Allocator>(allocator: &A, input: &ChurnInput) -> Vec<Held> {
    let mut slots = fill(allocator, input);
    replace(allocator, &mut slots, &input.steps);
    slots
}

/// Leaves a block for whoever comes next, and frees what was left here before. Returns how many blocks that were.
#[inline]
fn swap<A: Allocator>(allocator: &A, place: &AtomicU64, block: u64) -> u64 {
    // ORDERING: AcqRel pairs with itself: whoever finds the block sees its first word.
    let found = place.swap(block, Ordering::AcqRel);
    if found == 0 {
        return 0;
    }
    let size = touched_size(allocator, found);
    allocator.free(found, size);
    1
}

/// A ring for one producer and one consumer.
struct Ring<'a> {
    put: &'a AtomicU64,
    taken: &'a AtomicU64,
    slots: &'a [AtomicU64],
}

impl<'a> Ring<'a> {
    fn over(table: &'a [AtomicU64]) -> Self {
        Self { put: &table[0], taken: &table[APART], slots: &table[2 * APART..2 * APART + RING] }
    }
}
