//! rts-alloc: slabs of a few sizes in a shared file, without a lock.

use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::FromRawFd;
use std::ptr::NonNull;

use anyhow::{Context, Result, bail, ensure};

use super::{Allocator, CAPACITY, Place, move_block};

/// Its smallest and its largest size class.
pub(crate) const SIZES: RangeInclusive<usize> = 256..=4096;
/// Bytes per slab, the crate's documentation leaves the choice.
const SLAB_SIZE: u32 = 64 << 10;
const WORKERS: u32 = 4;

pub(crate) struct Rts(rts_alloc::Allocator);

impl Rts {
    /// In memory without a name, because nothing that several processes do fits its sizes.
    pub(crate) fn attach(place: &Place) -> Result<Self> {
        let Place::New(_) = place else { bail!("rts-alloc is measured in a single process only") };
        // SAFETY: the name ends with a zero.
        let fd = unsafe { libc::memfd_create(c"shmheap-bench-rts".as_ptr(), libc::MFD_CLOEXEC) };
        ensure!(fd >= 0, "no memory for rts-alloc: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor is open, and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        // SAFETY: nobody else knows the file.
        let allocator = unsafe { rts_alloc::Allocator::create(&file, CAPACITY, WORKERS, SLAB_SIZE) };
        allocator.map(Self).map_err(|error| anyhow::anyhow!("{error:?}")).context("rts-alloc does not start")
    }
}

impl Allocator for Rts {
    #[inline]
    fn allocate(&self, size: usize) -> u64 {
        let address = self.0.allocate(size as u32).expect("the capacity is more than the workloads use");
        // SAFETY: it is the address of a block.
        unsafe { self.0.offset(address) as u64 }
    }

    fn allocate_aligned(&self, size: usize, alignment: usize) -> u64 {
        // Its classes are powers of two, and so are the places of their blocks.
        self.allocate(size.max(alignment))
    }

    fn reallocate(&self, block: u64, old_size: usize, new_size: usize) -> u64 {
        move_block(self, block, old_size, new_size)
    }

    #[inline]
    fn free(&self, block: u64, _size: usize) {
        // SAFETY: the block is allocated, and freed once.
        unsafe { self.0.free_offset(block as usize) };
    }

    #[inline]
    fn address(&self, block: u64) -> *mut u8 {
        // SAFETY: the offset is a block's.
        let address: NonNull<u8> = unsafe { self.0.ptr_from_offset(block as usize) };
        address.as_ptr()
    }
}
