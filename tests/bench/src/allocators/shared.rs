//! shmheap as the workloads see it: a named heap, offsets, and addresses by `resolve`.

use anyhow::{Context, Result};
use shmheap::{Heap, Offset};

use super::{Allocator, CAPACITY, Place};

#[derive(Debug)]
pub(crate) struct Shmheap {
    heap: Heap,
    /// The heap's name if it is to be removed in the end.
    own: Option<String>,
}

impl Shmheap {
    pub(crate) fn attach(place: &Place) -> Result<Self> {
        match place {
            Place::New(name) => Self::create(name, CAPACITY as u64),
            Place::Existing(name) => {
                let heap = Heap::open(name).with_context(|| format!("cannot open the heap {name}"))?;
                Ok(Self { heap, own: None })
            }
        }
    }

    /// A new heap, which is removed when this is dropped.
    pub(crate) fn create(name: &str, capacity: u64) -> Result<Self> {
        let heap = Heap::options().capacity(capacity).create(name).with_context(|| format!("cannot create {name}"))?;
        Ok(Self { heap, own: Some(name.to_owned()) })
    }

    pub(crate) fn heap(&self) -> &Heap {
        &self.heap
    }
}

impl Drop for Shmheap {
    fn drop(&mut self) {
        if let Some(name) = &self.own {
            // If it is gone already, all is well.
            let _ = Heap::unlink(name);
        }
    }
}

#[inline]
fn offset(block: u64) -> Offset {
    Offset::new(block).expect("blocks have places")
}

impl Allocator for Shmheap {
    #[inline]
    fn allocate(&self, size: usize) -> u64 {
        self.heap.allocate(size).expect("the capacity is more than the workloads use").get()
    }

    #[inline]
    fn allocate_aligned(&self, size: usize, alignment: usize) -> u64 {
        let block = self.heap.allocate_aligned(size, alignment);
        block.expect("the capacity is more than the workloads use").get()
    }

    #[inline]
    fn reallocate(&self, block: u64, _old_size: usize, new_size: usize) -> u64 {
        self.heap.reallocate(offset(block), new_size).expect("the capacity is more than the workloads use").get()
    }

    #[inline]
    fn free(&self, block: u64, _size: usize) {
        self.heap.deallocate(offset(block)).expect("the block is in use");
    }

    #[inline]
    fn address(&self, block: u64) -> *mut u8 {
        self.heap.resolve(offset(block)).expect("the block lies in the heap").as_ptr()
    }
}
