//! The allocators of a single process, called by their C functions. None of them is this program's own allocator, so
//! what they are measured with stays out of them.

use std::ffi::c_void;
use std::sync::Once;

use anyhow::{Result, ensure};

use super::Allocator;

/// What `malloc` promises on 64-bit machines. snmalloc's functions for Rust want to be told.
const ALIGNMENT: usize = 16;

/// Declares the blocks of an allocator whose functions are called as in C.
macro_rules! allocator {
    ($name:ident, $allocate:expr, $aligned:expr, $reallocate:expr, $free:expr) => {
        impl Allocator for $name {
            #[inline]
            fn allocate(&self, size: usize) -> u64 {
                // SAFETY: allocating has no conditions.
                block(unsafe { $allocate(size) })
            }

            #[inline]
            fn allocate_aligned(&self, size: usize, alignment: usize) -> u64 {
                // SAFETY: the alignment is a power of two.
                block(unsafe { $aligned(alignment, size) })
            }

            #[inline]
            fn reallocate(&self, old: u64, old_size: usize, new_size: usize) -> u64 {
                // SAFETY: the block is allocated, has this size, and is not used by its old name any more.
                block(unsafe { $reallocate(pointer(old), old_size, new_size) })
            }

            #[inline]
            fn free(&self, block: u64, size: usize) {
                // SAFETY: the block is allocated, has this size, and is freed once.
                unsafe { $free(pointer(block), size) };
            }

            #[inline]
            fn address(&self, block: u64) -> *mut u8 {
                pointer(block).cast()
            }
        }
    };
}

#[inline]
fn block(pointer: *mut c_void) -> u64 {
    assert!(!pointer.is_null(), "the machine has memory for the workloads");
    pointer.expose_provenance() as u64
}

#[inline]
fn pointer(block: u64) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(block as usize)
}

#[derive(Debug)]
pub(crate) struct Mimalloc;

allocator!(
    Mimalloc,
    libmimalloc_sys::mi_malloc,
    |alignment, size| libmimalloc_sys::mi_malloc_aligned(size, alignment),
    |block, _, size| libmimalloc_sys::mi_realloc(block, size),
    |block, _| libmimalloc_sys::mi_free(block)
);

#[derive(Debug)]
pub(crate) struct Snmalloc;

allocator!(
    Snmalloc,
    |size| snmalloc_sys::sn_rust_alloc(ALIGNMENT, size),
    snmalloc_sys::sn_rust_alloc,
    |block, old_size, new_size| snmalloc_sys::sn_rust_realloc(block, ALIGNMENT, old_size, new_size),
    |block, size| snmalloc_sys::sn_rust_dealloc(block, ALIGNMENT, size)
);

#[derive(Debug)]
pub(crate) struct Jemalloc;

allocator!(
    Jemalloc,
    tikv_jemalloc_sys::malloc,
    // The flag for an alignment is its logarithm.
    |alignment: usize, size| tikv_jemalloc_sys::mallocx(size, alignment.trailing_zeros() as i32),
    |block, _, size| tikv_jemalloc_sys::realloc(block, size),
    |block, _| tikv_jemalloc_sys::free(block)
);

#[derive(Debug)]
pub(crate) struct Glibc;

allocator!(
    Glibc,
    libc::malloc,
    |alignment, size| libc::memalign(alignment, size),
    |block, _, size| libc::realloc(block, size),
    |block, _| libc::free(block)
);

/// rpmalloc wants to be told of every thread that uses it, and of its end.
#[derive(Debug)]
pub(crate) struct Rpmalloc(());

impl Rpmalloc {
    pub(crate) fn attach() -> Result<Self> {
        static ONCE: Once = Once::new();
        let mut failed = false;
        ONCE.call_once(|| {
            // SAFETY: nobody has used rpmalloc yet.
            failed = unsafe { rpmalloc_sys::rpmalloc_initialize() } != 0;
        });
        ensure!(!failed, "rpmalloc does not start");
        // SAFETY: rpmalloc is initialised; for a thread that is already known this does nothing.
        unsafe { rpmalloc_sys::rpmalloc_thread_initialize() };
        Ok(Self(()))
    }
}

impl Drop for Rpmalloc {
    fn drop(&mut self) {
        // SAFETY: the thread is initialised, and done with rpmalloc.
        unsafe { rpmalloc_sys::rpmalloc_thread_finalize() };
    }
}

allocator!(
    Rpmalloc,
    rpmalloc_sys::rpmalloc,
    rpmalloc_sys::rpaligned_alloc,
    |block, _, size| rpmalloc_sys::rprealloc(block, size),
    |block, _| rpmalloc_sys::rpfree(block)
);
