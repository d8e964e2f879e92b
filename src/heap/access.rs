//! Reaching the bytes of blocks: by copying, or by address.

use std::ptr::NonNull;

use super::Heap;
use crate::error::{Error, OffsetFault, Result};
use crate::region::Offset;

impl Heap {
    /// Copies `bytes` to the start of a block.
    ///
    /// Others who read or write the block at the same time may see, or leave, a mixture; never undefined behaviour.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] if the bytes do not fit; [`Error::InvalidOffset`] or [`Error::DoubleFree`] if the block is
    /// not allocated; [`Error::ReadOnly`]. Nothing is written then.
    pub fn copy_in(&self, block: Offset, bytes: &[u8]) -> Result<()> {
        self.copy_in_at(block, 0, bytes)
    }

    /// Copies bytes from the start of a block.
    ///
    /// # Errors
    ///
    /// As [`Heap::copy_in`]; nothing is read then.
    pub fn copy_out(&self, block: Offset, bytes: &mut [u8]) -> Result<()> {
        self.copy_out_at(block, 0, bytes)
    }

    /// Copies `bytes` into a block, `at` bytes from its start.
    ///
    /// # Errors
    ///
    /// As [`Heap::copy_in`].
    pub fn copy_in_at(&self, block: Offset, at: usize, bytes: &[u8]) -> Result<()> {
        if self.is_read_only() {
            return Err(Error::ReadOnly);
        }
        let place = self.place_in(block, at, bytes.len())?;
        if self.attachment.tables.region.copy_in(place, bytes) { Ok(()) } else { Err(outside(block)) }
    }

    /// Copies bytes from a block, `at` bytes from its start.
    ///
    /// # Errors
    ///
    /// As [`Heap::copy_in`].
    pub fn copy_out_at(&self, block: Offset, at: usize, bytes: &mut [u8]) -> Result<()> {
        let place = self.place_in(block, at, bytes.len())?;
        if self.attachment.tables.region.copy_out(place, bytes) { Ok(()) } else { Err(outside(block)) }
    }

    /// Where `len` bytes stand that start `at` bytes into a block.
    fn place_in(&self, block: Offset, at: usize, len: usize) -> Result<u64> {
        let usable = self.usable(block)?;
        let (at, len) = (at as u64, len as u64);
        if at.checked_add(len).is_none_or(|end| end > usable) {
            return Err(Error::OutOfBounds { offset: block.get(), at, len, usable });
        }
        Ok(block.get().saturating_add(at))
    }

    /// The address, in this process, of an offset in the heap's data. It is valid as long as the heap is attached.
    ///
    /// Reading and writing there is up to the caller: other processes may do so at the same time.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOffset`] if it lies outside the heap's pages. Whether a block is allocated there is not checked.
    #[inline]
    pub fn resolve(&self, offset: Offset) -> Result<NonNull<u8>> {
        self.attachment.tables.region.resolve(offset.get()).ok_or_else(|| outside(offset))
    }

    /// The offset of an address in this process.
    ///
    /// # Errors
    ///
    /// [`Error::ForeignPointer`] if it lies outside the heap's pages.
    pub fn offset_of(&self, address: NonNull<u8>) -> Result<Offset> {
        let tables = &self.attachment.tables;
        let data = tables.geometry.data_start..tables.geometry.data_end();
        let at = tables.region.offset_of(address).filter(|at| data.contains(at));
        at.and_then(Offset::new).ok_or(Error::ForeignPointer { address: address.addr().get() as u64 })
    }
}

#[cold]
fn outside(offset: Offset) -> Error {
    Error::InvalidOffset { offset: offset.get(), fault: OffsetFault::Outside }
}
