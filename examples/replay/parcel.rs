//! The parcel: a block in use, with what is needed to check and free it, as it goes from one process to another.

use std::sync::atomic::{AtomicU64, Ordering};

use shmheap::Offset;

use crate::Result;

/// Words that a parcel takes in the heap.
pub(crate) const WORDS: usize = 2;

/// A block that the trace has allocated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parcel {
    /// Where it is.
    pub(crate) block: Offset,
    /// The trace's id of it.
    pub(crate) id: u32,
    /// Bytes that the trace asked for.
    pub(crate) size: u32,
}

impl Parcel {
    /// Writes it where another process will look. Relaxed, because it is published by another word.
    pub(crate) fn store(self, [block, id_and_size]: &[AtomicU64; WORDS]) {
        block.store(self.block.get(), Ordering::Relaxed);
        id_and_size.store(u64::from(self.id) << 32 | u64::from(self.size), Ordering::Relaxed);
    }

    /// Reads what [`store`](Self::store) wrote.
    pub(crate) fn load([block, id_and_size]: &[AtomicU64; WORDS]) -> Result<Self> {
        let block = Offset::new(block.load(Ordering::Relaxed)).ok_or("a parcel without a block")?;
        let id_and_size = id_and_size.load(Ordering::Relaxed);
        Ok(Self { block, id: (id_and_size >> 32) as u32, size: id_and_size as u32 })
    }
}
