//! A small shmheap that is nearly full: how much of what is free can still be used?

use anyhow::Result;
use shmheap::{Error, Heap, Offset};

use crate::allocators::{Kind, Place, Shmheap};
use crate::random::Random;
use crate::workload::Sizes;

const CAPACITY: u64 = 20 << 20;
/// Live bytes, as a part of the heap's pages.
const FILL: f64 = 0.75;
const STEPS: usize = 200_000;
/// The blocks for which the free memory is to be used.
const LARGE: usize = 32 << 10;

/// Of the free bytes after a churn, the part that cannot be allocated as large blocks.
pub(crate) fn unusable() -> Result<f64> {
    let shmheap = Shmheap::create(&Place::name(Kind::Shmheap, "full"), CAPACITY)?;
    let heap = shmheap.heap();
    let mut random = Random::new(6);
    let (mut slots, mut live) = (Vec::new(), 0);
    while (live as f64) < FILL * heap.total_size() as f64 {
        let size = Sizes::Mixed.draw(&mut random);
        slots.push(obtain(heap, size)?);
        live += size as u64;
    }
    for _ in 0..STEPS {
        let slot = random.within(0, slots.len() - 1);
        if let Some(block) = slots[slot].take() {
            heap.deallocate(block)?;
        }
        // In a heap that is full for a moment the slot stays empty until its next turn.
        slots[slot] = obtain(heap, Sizes::Mixed.draw(&mut random))?;
    }
    let free = heap.stats()?.free;
    let mut used = 0;
    while obtain(heap, LARGE)?.is_some() {
        used += LARGE as u64;
    }
    Ok(1.0 - used as f64 / free as f64)
}

/// A block, or none if the heap has no room for it.
fn obtain(heap: &Heap, size: usize) -> Result<Option<Offset>> {
    match heap.allocate(size) {
        Ok(block) => Ok(Some(block)),
        Err(Error::OutOfMemory { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
