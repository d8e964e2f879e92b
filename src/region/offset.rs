//! The offset: how blocks are named in the region and between processes.

use std::fmt;
use std::num::NonZeroU64;

/// A block's place: bytes from the start of the region. Never zero, so that a zero word in the region means "none".
///
/// An offset means the same in every process that has the heap attached, wherever it is mapped there; it may be stored
/// in blocks, sent through pipes, and kept across restarts.
///
/// ```
/// use shmheap::Offset;
///
/// let offset = Offset::new(4096).ok_or("zero is no offset")?;
/// assert_eq!(offset.get(), 4096);
/// assert_eq!(Offset::new(0), None);
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Offset(NonZeroU64);

impl Offset {
    /// The offset of this many bytes; `None` for zero.
    #[must_use]
    pub const fn new(bytes: u64) -> Option<Self> {
        match NonZeroU64::new(bytes) {
            Some(bytes) => Some(Self(bytes)),
            None => None,
        }
    }

    /// Bytes from the start of the region.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Offset({:#x})", self.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl From<NonZeroU64> for Offset {
    fn from(bytes: NonZeroU64) -> Self {
        Self(bytes)
    }
}

impl From<Offset> for u64 {
    fn from(offset: Offset) -> Self {
        offset.get()
    }
}
