//! Memory that the caller supplies, for heaps that need no shared object: tests, tools, memory shared by other means.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Alignment of a region's base: blocks promise alignments up to this.
const BASE_ALIGNMENT: usize = 4096;

/// Memory in which a heap can be created with [`Options::create_in`](crate::Options::create_in).
///
/// Cloning gives another handle to the same bytes. Heaps in memory have the whole interface of named ones, but no
/// operating system behind them: who is alive is known within this process only, and `trim` gives nothing back.
///
/// ```
/// use shmheap::{Heap, Memory};
///
/// let memory = Memory::zeroed(1 << 20)?;
/// let heap = Heap::options().create_in(memory.clone())?;
/// let block = heap.allocate(100)?;
///
/// let again = Heap::options().open_in(memory)?;
/// again.deallocate(block)?;
/// # Ok::<(), shmheap::Error>(())
/// ```
#[derive(Clone)]
pub struct Memory {
    bytes: Arc<Bytes>,
}

struct Bytes {
    base: NonNull<u8>,
    len: usize,
    /// How to free the bytes, where they are ours.
    layout: Option<Layout>,
}

// SAFETY: `Bytes` only carries an address; every access to what is there goes through `Region`, by atomic words and by
// copies whose races are the callers' to avoid.
unsafe impl Send for Bytes {}
// SAFETY: as above: a shared `Bytes` gives out nothing but the address and the length.
unsafe impl Sync for Bytes {}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(layout) = self.layout {
            // SAFETY: `base` came from `alloc_zeroed` with this very layout, and this is the last handle.
            unsafe { dealloc(self.base.as_ptr(), layout) };
        }
    }
}

impl Memory {
    /// `len` zeroed bytes of ordinary memory, freed with the last handle.
    ///
    /// # Errors
    ///
    /// [`Error::BadCapacity`] if `len` is zero or larger than an allocation can be.
    pub fn zeroed(len: usize) -> Result<Self> {
        let bad = Error::BadCapacity { capacity: as_u64(len), why: "no allocation has this length" };
        let layout = Layout::from_size_align(len, BASE_ALIGNMENT).map_err(|_| bad.clone())?;
        if len == 0 {
            return Err(bad);
        }
        // SAFETY: the layout's size was checked to be more than zero.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        Ok(Self { bytes: Arc::new(Bytes { base, len, layout: Some(layout) }) })
    }

    /// Memory at an address of the caller's, which stays the caller's to free.
    ///
    /// # Errors
    ///
    /// [`Error::BadAlignment`] if `base` is not aligned to 4096 bytes.
    ///
    /// # Safety
    ///
    /// The `len` bytes at `base` must be readable and writable, and stay so until the last handle to this memory and the
    /// last heap in it are gone. Meanwhile they may be reached only through heaps of this library (in this process or,
    /// if the memory is shared, in others).
    pub unsafe fn from_raw_parts(base: NonNull<u8>, len: usize) -> Result<Self> {
        if !base.addr().get().is_multiple_of(BASE_ALIGNMENT) {
            let alignment = 1u64 << base.addr().trailing_zeros();
            return Err(Error::BadAlignment { alignment });
        }
        Ok(Self { bytes: Arc::new(Bytes { base, len, layout: None }) })
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.bytes.base
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("base", &self.bytes.base).field("len", &self.bytes.len).finish()
    }
}

fn as_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
