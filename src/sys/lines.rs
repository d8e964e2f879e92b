//! Private zeroed memory in lines of eight words, of which only those cost anything that are written.

use std::cell::Cell;
use std::fmt;
use std::ptr::NonNull;

use crate::error::{Error, Result};

/// Eight words on a cache line of their own.
pub(crate) type Line = [Cell<u64>; 8];

const LINE_LEN: usize = 64;
const _: () = assert!(size_of::<Line>() == LINE_LEN, "a line is a cache line");

/// As many lines as were asked for, all zero at first.
///
/// N1. `start` points to `count` lines of memory that only `memory` owns, aligned to a line; any bytes are a line.
pub(crate) struct Lines {
    start: NonNull<Line>,
    count: usize,
    _memory: Memory,
}

#[cfg(not(miri))]
type Memory = memmap2::MmapMut;
/// Miri maps nothing.
#[cfg(miri)]
type Memory = Vec<Aligned>;

#[cfg(miri)]
#[repr(align(64))]
struct Aligned(#[expect(dead_code, reason = "reached through `start`")] std::cell::UnsafeCell<[u8; LINE_LEN]>);

impl Lines {
    /// # Errors
    ///
    /// [`Error::System`] if the kernel has no address space left to give.
    pub(crate) fn zeroed(count: usize) -> Result<Self> {
        let too_many = || Error::System { call: "mmap", errno: libc::ENOMEM };
        let len = count.max(1).checked_mul(LINE_LEN).ok_or_else(too_many)?;
        let mut memory = Self::memory(len)?;
        let start = NonNull::new(memory.as_mut_ptr()).ok_or_else(too_many)?.cast();
        Ok(Self { start, count, _memory: memory })
    }

    #[cfg(not(miri))]
    fn memory(len: usize) -> Result<Memory> {
        // Nothing is reserved: most lines are never written.
        let mapped = memmap2::MmapOptions::new().len(len).no_reserve_swap().map_anon();
        mapped.map_err(|error| {
            super::system("mmap", nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(libc::ENOMEM)))
        })
    }

    #[cfg(miri)]
    fn memory(len: usize) -> Result<Memory> {
        Ok((0..len / LINE_LEN).map(|_| Aligned([0; LINE_LEN].into())).collect())
    }

    /// Line `index`; `None` beyond the last.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&Line> {
        if index >= self.count {
            return None;
        }
        // SAFETY: N1, and `index` was checked above.
        let line = unsafe { self.start.add(index) };
        // SAFETY: N1; a line is cells, so shared references may be written through; nobody else has the memory.
        Some(unsafe { line.as_ref() })
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("count", &self.count).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_zero_until_they_are_written_and_end_where_they_should() {
        let lines = Lines::zeroed(1000).unwrap();
        lines.get(999).unwrap()[7].set(5);
        assert_eq!(lines.get(999).map(|line| line[7].get()), Some(5));
        assert_eq!(lines.get(998).map(|line| line[0].get()), Some(0));
        assert!(lines.get(1000).is_none());
        assert_eq!(std::ptr::from_ref(lines.get(1).unwrap()).addr() % LINE_LEN, 0);
    }
}
