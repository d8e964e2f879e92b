//! Ground: memory for a region, between two guards that nobody may touch, and put back between inputs.

#![allow(unsafe_code, reason = "memory is mapped, and bytes of a region are changed behind the library's back")]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use shmheap::{Heap, Memory};

use super::{LOCK_TIMEOUT, Layout, Template};

/// Bytes of a guard: an access that misses the region by less than that ends the process.
const GUARD_LEN: usize = 1 << 20;

/// Memory for a region.
///
/// G1. `len` bytes at `base` are mapped for reading and writing, and are this ground's alone; `GUARD_LEN` bytes before and
///     behind them are mapped for nothing.
#[derive(Debug)]
pub struct Ground {
    base: NonNull<u8>,
    len: usize,
}

impl Ground {
    /// Zeroed memory of `len` bytes, a multiple of 4096.
    pub fn new(len: usize) -> Self {
        assert!(len.is_multiple_of(4096), "a guard begins where the region ends");
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that is there.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len + 2 * GUARD_LEN, libc::PROT_NONE, flags, -1, 0) };
        assert!(start != libc::MAP_FAILED, "there is address space");
        let base = start.cast::<u8>().wrapping_add(GUARD_LEN);
        // SAFETY: the range lies in the mapping that was just made.
        let opened = unsafe { libc::mprotect(base.cast(), len, libc::PROT_READ | libc::PROT_WRITE) };
        assert!(opened == 0, "memory between guards can be opened");
        Self { base: NonNull::new(base).expect("a mapping is not at 0"), len }
    }

    /// Attaches the heap that stands on the ground, if it is one.
    pub fn open(&self) -> shmheap::Result<Heap> {
        Heap::options().lock_timeout(LOCK_TIMEOUT).open_in(self.memory())
    }

    /// The ground as a caller's memory.
    pub fn memory(&self) -> Memory {
        self.memory_of(self.len)
    }

    /// The first `len` bytes of the ground as a caller's memory.
    pub fn memory_of(&self, len: usize) -> Memory {
        assert!(len <= self.len, "the ground has so many bytes");
        // SAFETY: G1; heaps on the ground are dropped before it, as every user of this file keeps them in a value that does
        // not outlive the ground, and what others write is written word by word.
        unsafe { Memory::from_raw_parts(self.base, len) }.expect("a mapping is aligned")
    }

    /// All bytes, copied.
    pub fn bytes(&self) -> Vec<u8> {
        (0..self.len as u64).step_by(8).flat_map(|at| self.word(at).load(Ordering::Relaxed).to_ne_bytes()).collect()
    }

    /// Puts all bytes back to those of a template of the same length.
    pub fn reset(&self, template: &Template) {
        let bytes = template.bytes();
        assert_eq!(bytes.len(), self.len, "the template was made for such a ground");
        if self.len <= 1 << 16 {
            return self.put(0, bytes);
        }
        // The pages of large templates are zero, which is quickly had.
        let (start, end) = (template.layout().data_start as usize, template.layout().data_end as usize);
        self.put(0, &bytes[..start]);
        self.put(end, &bytes[end..]);
        let pages = self.base.as_ptr().wrapping_add(start).cast();
        // SAFETY: G1: the pages lie in the mapping, which is anonymous and private: they read as zero afterwards.
        let zeroed = unsafe { libc::madvise(pages, end - start, libc::MADV_DONTNEED) };
        assert!(zeroed == 0, "memory can be given back");
    }

    /// Writes bytes while no heap is attached.
    pub fn put(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len, "the bytes fit");
        // SAFETY: G1, and the length was checked above.
        let to = unsafe { self.base.add(at) };
        // SAFETY: as above; nobody else reaches these bytes at this moment, and `bytes` lie elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }

    /// The word at `at`, a multiple of 8 within the ground.
    pub fn word(&self, at: u64) -> &AtomicU64 {
        let at = usize::try_from(at).expect("places are small");
        assert!(at.is_multiple_of(8) && at + 8 <= self.len, "{at:#x} is a word's place");
        // SAFETY: G1, and the place was checked above.
        let address = unsafe { self.base.add(at) };
        // SAFETY: G1; aligned to 8, as checked; the library too reaches the region by atomic words.
        unsafe { AtomicU64::from_ptr(address.as_ptr().cast()) }
    }

    /// Changes one byte.
    pub fn set_byte(&self, at: u64, value: u8) {
        let word = self.word(at & !7);
        let mut bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        bytes[(at % 8) as usize] = value;
        word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
    }

    /// Lets the heap lock go, whoever is said to hold it.
    pub fn clear_lock(&self) {
        let word = self.word(Layout::LOCK);
        let mut bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        bytes[..4].fill(0);
        word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let start = self.base.as_ptr().wrapping_sub(GUARD_LEN);
        // SAFETY: G1: the whole mapping is this ground's.
        unsafe { libc::munmap(start.cast(), self.len + 2 * GUARD_LEN) };
    }
}
