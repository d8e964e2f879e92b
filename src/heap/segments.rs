//! Which heaps there are: the segments of this machine, looked at without attaching them.

use super::Heap;
use crate::error::{Error, Result};
use crate::format::{HEADER_LEN, Header};
use crate::sys::object::Place;
use crate::sys::segments::{self, Entry};

/// A shared-memory segment, as [`Heap::segments`] lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentInfo {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: SegmentKind,
    /// The uid that owns it.
    pub owner: u32,
    /// Its permission bits.
    pub mode: u32,
    /// Its length in bytes.
    pub len: u64,
    /// Bytes of memory that it takes now.
    pub taken: u64,
    /// True if somebody has it attached, with a lane or without one; for the name of a creation under way, if its creator
    /// lives. `None` where that cannot be told: it is no heap, or may not be read.
    pub attached: Option<bool>,
}

/// What a segment is, by its first bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SegmentKind {
    /// A heap that this library can open.
    Heap,
    /// A heap of another version of the format.
    OtherVersion {
        /// Its version.
        found: u32,
    },
    /// A heap that nobody can open any more.
    Broken {
        /// Why not.
        why: String,
    },
    /// The name that a heap has while it is created, where the system cannot do without; a creator that dies leaves it.
    Temporary,
    /// Something that is no heap.
    Foreign,
    /// Something that the calling process may not read.
    Closed,
}

impl Heap {
    /// All shared-memory segments of this machine, those that are no heaps included, in the order of their names; the first
    /// 65,536 of them.
    ///
    /// Attaches nothing and disturbs nobody.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if /dev/shm cannot be listed.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shmheap::{Heap, SegmentKind};
    ///
    /// # let name = &format!("doc-segments-{}", std::process::id());
    /// let heap = Heap::options().create(name)?;
    /// let segments = Heap::segments()?;
    /// let ours = segments.iter().find(|segment| segment.name == *name).ok_or("it is listed")?;
    /// assert_eq!((&ours.kind, ours.attached), (&SegmentKind::Heap, Some(true)));
    /// heap.destroy()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn segments() -> Result<Vec<SegmentInfo>> {
        Ok(segments::entries()?.iter().map(describe).collect())
    }

    /// The segment of this name, as [`Heap::segments`] lists it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::BadName`].
    pub fn segment(name: &str) -> Result<SegmentInfo> {
        Place::segment(name)?;
        segments::entry(name).as_ref().map(describe).ok_or_else(|| Error::NotFound { name: name.to_owned() })
    }

    /// Removes the names that creators have left who died while they created a heap, and returns them. Heaps are not
    /// touched.
    ///
    /// Only where the file system behind /dev/shm cannot make files without a name is there ever anything to remove, and
    /// each creation does the same.
    ///
    /// # Errors
    ///
    /// As [`Heap::segments`].
    pub fn remove_leftovers() -> Result<Vec<String>> {
        let left = segments::entries()?.into_iter().filter(Entry::remove_if_left);
        Ok(left.map(|entry| entry.name).collect())
    }
}

fn describe(entry: &Entry) -> SegmentInfo {
    let look = entry.is_file.then(|| entry.look()).flatten();
    let kind = match &look {
        _ if !entry.is_file => SegmentKind::Foreign,
        None => SegmentKind::Closed,
        Some(_) if entry.is_temporary => SegmentKind::Temporary,
        Some(look) => kind_of(entry, &look.start),
    };
    let is_ours = !matches!(kind, SegmentKind::Foreign | SegmentKind::Closed);
    let attached = look.map(|look| look.is_in_use).filter(|_| is_ours);
    let Entry { name, owner, mode, len, taken, .. } = entry.clone();
    SegmentInfo { name, kind, owner, mode, len, taken, attached }
}

fn kind_of(entry: &Entry, start: &[u8; segments::START_LEN]) -> SegmentKind {
    const { assert!(segments::START_LEN == HEADER_LEN, "a look takes in the header") };
    if !Header::is_marked(start) {
        return SegmentKind::Foreign;
    }
    match Header::decode(start, &entry.name) {
        Ok(header) if header.capacity == entry.len => SegmentKind::Heap,
        Ok(header) => {
            let error = Error::CapacityMismatch { expected: header.capacity, actual: entry.len };
            SegmentKind::Broken { why: error.to_string() }
        }
        Err(Error::WrongVersion { found, .. }) => SegmentKind::OtherVersion { found },
        Err(Error::NotAHeap { why, .. }) => SegmentKind::Broken { why: why.to_owned() },
        Err(error) => SegmentKind::Broken { why: error.to_string() },
    }
}
