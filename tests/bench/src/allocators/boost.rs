//! Boost.Interprocess by way of a shim in C++. Where its headers are not installed, attaching it is an error, and
//! nobody tries: see `Kind::is_available`.

#[cfg(boost)]
mod installed {
    use std::ffi::{CString, c_char, c_void};
    use std::ptr::NonNull;

    use anyhow::{Context, Result, anyhow};

    use crate::allocators::{Allocator, CAPACITY, Place, move_block};

    /// `boost::interprocess::managed_shared_memory`.
    #[repr(C)]
    struct Segment(c_void);

    unsafe extern "C" {
        fn shim_create(name: *const c_char, size: usize) -> *mut Segment;
        fn shim_open(name: *const c_char) -> *mut Segment;
        fn shim_close(segment: *mut Segment);
        fn shim_remove(name: *const c_char) -> bool;
        fn shim_base(segment: *const Segment) -> *mut u8;
        fn shim_size(segment: *const Segment) -> usize;
        fn shim_free_memory(segment: *const Segment) -> usize;
        fn shim_allocate(segment: *mut Segment, size: usize) -> *mut u8;
        fn shim_allocate_aligned(segment: *mut Segment, size: usize, alignment: usize) -> *mut u8;
        fn shim_free(segment: *mut Segment, block: *mut u8);
    }

    /// A managed segment.
    pub(crate) struct Boost {
        segment: NonNull<Segment>,
        base: *mut u8,
        /// The segment's name if it is to be removed in the end.
        own: Option<String>,
    }

    fn c_name(name: &str) -> CString {
        CString::new(name).expect("our names have no zero in them")
    }

    impl Boost {
        pub(crate) fn attach(place: &Place) -> Result<Self> {
            match place {
                Place::New(name) => Self::create(name, CAPACITY),
                Place::Existing(name) => Self::open(name),
            }
        }

        /// A new segment, which is removed when this is dropped.
        pub(crate) fn create(name: &str, size: usize) -> Result<Self> {
            // SAFETY: the name ends with a zero.
            let segment = unsafe { shim_create(c_name(name).as_ptr(), size) };
            Self::over(segment, Some(name.to_owned())).with_context(|| format!("cannot create the segment {name}"))
        }

        pub(crate) fn open(name: &str) -> Result<Self> {
            // SAFETY: the name ends with a zero.
            let segment = unsafe { shim_open(c_name(name).as_ptr()) };
            Self::over(segment, None).with_context(|| format!("cannot open the segment {name}"))
        }

        fn over(segment: *mut Segment, own: Option<String>) -> Result<Self> {
            let segment = NonNull::new(segment).ok_or_else(|| anyhow!("Boost.Interprocess throws"))?;
            // SAFETY: the segment is open.
            let base = unsafe { shim_base(segment.as_ptr()) };
            Ok(Self { segment, base, own })
        }

        pub(crate) fn remove(name: &str) {
            // SAFETY: the name ends with a zero.
            unsafe { shim_remove(c_name(name).as_ptr()) };
        }

        /// Bytes of the segment that blocks and the segment's own tables take.
        pub(crate) fn used(&self) -> u64 {
            // SAFETY: the segment is open.
            let size = unsafe { shim_size(self.segment.as_ptr()) };
            // SAFETY: the segment is open.
            let free = unsafe { shim_free_memory(self.segment.as_ptr()) };
            (size - free) as u64
        }

        #[inline]
        fn block(&self, address: *mut u8) -> u64 {
            assert!(!address.is_null(), "the capacity is more than the workloads use");
            (address.addr() - self.base.addr()) as u64
        }
    }

    impl Drop for Boost {
        fn drop(&mut self) {
            // SAFETY: the segment is open, and nobody uses it after this.
            unsafe { shim_close(self.segment.as_ptr()) };
            if let Some(name) = &self.own {
                Self::remove(name);
            }
        }
    }

    impl Allocator for Boost {
        #[inline]
        fn allocate(&self, size: usize) -> u64 {
            // SAFETY: the segment is open.
            self.block(unsafe { shim_allocate(self.segment.as_ptr(), size) })
        }

        #[inline]
        fn allocate_aligned(&self, size: usize, alignment: usize) -> u64 {
            // SAFETY: the segment is open, and the alignment a power of two.
            self.block(unsafe { shim_allocate_aligned(self.segment.as_ptr(), size, alignment) })
        }

        fn reallocate(&self, block: u64, old_size: usize, new_size: usize) -> u64 {
            move_block(self, block, old_size, new_size)
        }

        #[inline]
        fn free(&self, block: u64, _size: usize) {
            // SAFETY: the block is allocated, and freed once.
            unsafe { shim_free(self.segment.as_ptr(), self.address(block)) };
        }

        #[inline]
        fn address(&self, block: u64) -> *mut u8 {
            self.base.wrapping_add(block as usize)
        }
    }
}

#[cfg(boost)]
pub(crate) use installed::Boost;

/// Stands where Boost.Interprocess would.
#[cfg(not(boost))]
pub(crate) enum Boost {}

#[cfg(not(boost))]
mod missing {
    use anyhow::{Result, bail};

    use super::Boost;
    use crate::allocators::{Allocator, Place};

    impl Boost {
        pub(crate) fn attach(_place: &Place) -> Result<Self> {
            bail!("Boost.Interprocess: not installed (apt-get install libboost-dev)")
        }

        pub(crate) fn create(name: &str, _size: usize) -> Result<Self> {
            Self::open(name)
        }

        pub(crate) fn open(name: &str) -> Result<Self> {
            Self::attach(&Place::Existing(name.to_owned()))
        }

        pub(crate) fn remove(_name: &str) {}

        pub(crate) fn used(&self) -> u64 {
            match *self {}
        }
    }

    impl Allocator for Boost {
        fn allocate(&self, _size: usize) -> u64 {
            match *self {}
        }

        fn allocate_aligned(&self, _size: usize, _alignment: usize) -> u64 {
            match *self {}
        }

        fn reallocate(&self, _block: u64, _old_size: usize, _new_size: usize) -> u64 {
            match *self {}
        }

        fn free(&self, _block: u64, _size: usize) {
            match *self {}
        }

        fn address(&self, _block: u64) -> *mut u8 {
            match *self {}
        }
    }
}
