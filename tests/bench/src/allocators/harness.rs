//! The allocator that is none: hands out the blocks of a small ring in turn. What a workload takes with it is the
//! harness's own cost.

use std::cell::Cell;

use super::Allocator;

/// Blocks in the ring; all of them fit the first cache.
const BLOCKS: usize = 256;

/// A block of the ring: only its first word is ever touched.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Block([u64; 8]);

#[derive(Debug)]
pub(crate) struct Harness {
    ring: *mut Block,
    next: Cell<usize>,
}

impl Harness {
    pub(crate) fn new() -> Self {
        // Leaked: a worker may read a block after the thread that handed it over has ended.
        let ring: &'static mut [Block; BLOCKS] = Box::leak(Box::new([Block([0; 8]); BLOCKS]));
        Self { ring: ring.as_mut_ptr(), next: Cell::new(0) }
    }
}

impl Allocator for Harness {
    #[inline]
    fn allocate(&self, _size: usize) -> u64 {
        let next = self.next.get();
        self.next.set(next + 1);
        self.ring.wrapping_add(next % BLOCKS).expose_provenance() as u64
    }

    #[inline]
    fn allocate_aligned(&self, size: usize, _alignment: usize) -> u64 {
        self.allocate(size)
    }

    #[inline]
    fn reallocate(&self, _block: u64, _old_size: usize, new_size: usize) -> u64 {
        self.allocate(new_size)
    }

    #[inline]
    fn free(&self, _block: u64, _size: usize) {}

    #[inline]
    fn address(&self, block: u64) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(block as usize)
    }
}
