//! The ring: how one worker leaves a block to the next one to free.
//!
//! One worker puts parcels in and one takes them out; neither ever waits for the other. The words of its block: how many
//! parcels were taken out, at 0; how many were put in, at 8 (a cache line of its own); the slots, from 16 on.

use std::sync::atomic::{AtomicU64, Ordering};

use shmheap::Heap;

use crate::Result;
use crate::board;
use crate::parcel::{self, Parcel};

/// Parcels that wait in a ring at most.
const SLOTS: usize = 4096;
/// Words before the slots.
const HEAD: usize = 16;

/// One worker's inbound ring.
#[derive(Debug)]
pub(crate) struct Ring<'heap> {
    taken: &'heap AtomicU64,
    put: &'heap AtomicU64,
    slots: &'heap [[AtomicU64; parcel::WORDS]],
}

impl<'heap> Ring<'heap> {
    pub(crate) const WORDS: usize = HEAD + SLOTS * parcel::WORDS;

    /// The ring that leads to `worker`.
    pub(crate) fn find(heap: &'heap Heap, worker: u32) -> Result<Self> {
        let words = board::find(heap, &format!("ring/{worker}"))?;
        let (head, slots) = words.split_at(HEAD);
        Ok(Self { taken: &head[0], put: &head[8], slots: &slots.as_chunks().0[..SLOTS] })
    }

    /// Puts a parcel in; false if the ring is full.
    pub(crate) fn put(&self, parcel: Parcel) -> bool {
        let put = self.put.load(Ordering::Relaxed);
        // ORDERING: Acquire pairs with the Release in `take`: the slot has been read before it is written again.
        if put - self.taken.load(Ordering::Acquire) == SLOTS as u64 {
            return false;
        }
        parcel.store(self.slot(put));
        // ORDERING: Release pairs with the Acquire in `take`: who sees the count sees the slot, and the block's bytes.
        self.put.store(put + 1, Ordering::Release);
        true
    }

    /// Takes the oldest parcel out, if there is one.
    pub(crate) fn take(&self) -> Result<Option<Parcel>> {
        let taken = self.taken.load(Ordering::Relaxed);
        // ORDERING: Acquire pairs with the Release in `put`.
        if taken == self.put.load(Ordering::Acquire) {
            return Ok(None);
        }
        let parcel = Parcel::load(self.slot(taken))?;
        // ORDERING: Release pairs with the Acquire in `put`.
        self.taken.store(taken + 1, Ordering::Release);
        Ok(Some(parcel))
    }

    fn slot(&self, count: u64) -> &'heap [AtomicU64; parcel::WORDS] {
        &self.slots[count as usize % SLOTS]
    }
}
