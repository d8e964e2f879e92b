//! Which heaps there are: the segments of this machine, looked at without attaching them.
//!
//! Not here: reading the directory (`sys::segments`), opening what is found (`attach`).

use std::path::Path;

use super::Heap;
use crate::error::{Error, Result};
use crate::format::{Geometry, HEADER_LEN, Header};
use crate::sys::object::Place;
use crate::sys::segments::{self, Entry, Look};

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
    /// The device of its file system. Together with `inode` it tells a segment from another one that has got its name since,
    /// unless the file system has used the inode again; heaps have an `instance` for that.
    pub device: u64,
    /// Its inode there.
    pub inode: u64,
    /// A random number that the heap got when it was created or loaded, and no other heap has; `None` as for `created_ms`.
    pub instance: Option<u128>,
    /// When the heap was created or loaded, in milliseconds since 1970; `None` for what is no heap that this library can
    /// open.
    pub created_ms: Option<u64>,
    /// True if somebody has it attached, with a lane or without one; for the name of a creation under way, if its creator
    /// lives. `None` where that cannot be told: it is no heap, may not be read, or is a heap of another version of which
    /// nobody has a lane.
    pub attached: Option<bool>,
    /// What was looked at: `name` need not be all of its name, which may have other bytes than UTF-8.
    entry: Entry,
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
    /// Something that the calling process may not read, or that the system could not read now.
    Closed,
}

impl Heap {
    /// All shared-memory segments of this machine, those that are no heaps included, in the order of their names; at most
    /// 65,536, whichever the directory tells first. Of a name that is not UTF-8, what is not is replaced.
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
        Ok(segments::entries()?.iter().filter_map(describe).collect())
    }

    /// The segment of this name, as [`Heap::segments`] lists it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::BadName`] for what cannot be the name of anything in a directory.
    pub fn segment(name: &str) -> Result<SegmentInfo> {
        if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
            return Err(Error::BadName { name: name.to_owned(), why: "a segment's name has no slash" });
        }
        let found = segments::entry(name).and_then(|entry| describe(&entry));
        found.ok_or_else(|| Error::NotFound { name: name.to_owned() })
    }

    /// What stands in a file, as [`Heap::segments`] tells it of segments; its name is the path. A link is not followed.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn file_info(path: impl AsRef<Path>) -> Result<SegmentInfo> {
        let path = path.as_ref();
        let found = segments::entry_at(path).and_then(|entry| describe(&entry));
        found.ok_or_else(|| Error::NotFound { name: path.display().to_string() })
    }

    /// Removes the name of a segment or file that was looked at, if it still leads to that and nobody has attached it
    /// since. True if it was removed; false if it stays as it is, or was gone already. Processes that have it attached
    /// keep it until they detach; then its memory is freed.
    ///
    /// What must be as it was found: device, inode, instance, owner, and kind; and `attached`, unless that is `Some(true)`:
    /// who found it in use and removes it all the same, or has set `attached` so, does not mind more users. Of a name that
    /// a creator has left, its creator must be dead.
    ///
    /// The kernel cannot look and remove in one step. Who attaches it in the microseconds between keeps it, without a
    /// name; but a heap that is made under the same name just then loses it.
    ///
    /// # Errors
    ///
    /// [`Error::PermissionDenied`] if it may not be removed, [`Error::NotAHeap`] for a folder, and [`Error::System`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shmheap::Heap;
    ///
    /// # let name = &format!("doc-unlink-{}", std::process::id());
    /// drop(Heap::options().create(name)?);
    /// let found = Heap::segment(name)?;
    /// assert_eq!(found.attached, Some(false));
    ///
    /// let heap = Heap::open(name)?;
    /// assert!(!Heap::unlink_if_same(&found)?, "somebody has attached it since");
    /// drop(heap);
    /// assert!(Heap::unlink_if_same(&found)?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn unlink_if_same(found: &SegmentInfo) -> Result<bool> {
        let Some(entry) = found.entry.again() else { return Ok(false) };
        let is_same = |now: &SegmentInfo| {
            let is_it = now.instance == found.instance && now.kind == found.kind && entry.is_same(&found.entry);
            is_it && (found.attached == Some(true) || now.attached == found.attached)
        };
        if !describe(&entry).as_ref().is_some_and(is_same) {
            return Ok(false);
        }
        match entry.remove() {
            Err(Error::NotFound { .. }) => Ok(false),
            removed => removed,
        }
    }
}

/// What there is to say of an entry; `None` if it is gone by now.
fn describe(entry: &Entry) -> Option<SegmentInfo> {
    let look = match entry.is_file {
        true => entry.look(),
        false => Look::Unread,
    };
    let (mut created_ms, mut instance) = (None, None);
    let (kind, attached) = match &look {
        _ if !entry.is_file => (SegmentKind::Foreign, None),
        Look::Gone => return None,
        Look::Unread => (SegmentKind::Closed, None),
        Look::Read { is_in_use, .. } if entry.is_temporary => (SegmentKind::Temporary, Some(*is_in_use)),
        Look::Read { start, is_in_use } => match kind_of(entry, start) {
            Ok(header) => {
                let [high, low] = header.instance;
                instance = Some(u128::from(high) << 64 | u128::from(low));
                created_ms = Some(header.created_ms);
                (SegmentKind::Heap, Some(*is_in_use))
            }
            Err(SegmentKind::Foreign) => (SegmentKind::Foreign, None),
            // Who attached it with another version of this library need not have told.
            Err(kind @ SegmentKind::OtherVersion { .. }) => (kind, is_in_use.then_some(true)),
            Err(kind) => (kind, Some(*is_in_use)),
        },
    };
    let entry = entry.clone();
    let Entry { owner, mode, len, taken, identity: (device, inode), .. } = entry;
    let name = entry.name.clone();
    Some(SegmentInfo { name, kind, owner, mode, len, taken, device, inode, instance, created_ms, attached, entry })
}

/// The header of a heap that can be opened, or what it is instead.
fn kind_of(entry: &Entry, start: &[u8; segments::START_LEN]) -> Result<Header, SegmentKind> {
    const { assert!(segments::START_LEN == HEADER_LEN, "a look takes in the header") };
    // A copy under a name that no heap can have is nobody's heap; a file may have any name.
    let is_named = entry.name.contains('/') || Place::segment(&entry.name).is_ok();
    if !Header::is_marked(start) || !is_named {
        return Err(SegmentKind::Foreign);
    }
    let broken = |error: Error| SegmentKind::Broken { why: error.to_string() };
    match Header::decode(start, &entry.name) {
        Ok(header) if header.capacity == entry.len => Geometry::new(&header).map(|_| header).map_err(broken),
        Ok(header) => Err(broken(Error::CapacityMismatch { expected: header.capacity, actual: entry.len })),
        Err(Error::WrongVersion { found, .. }) => Err(SegmentKind::OtherVersion { found }),
        Err(Error::NotAHeap { why, .. }) => Err(SegmentKind::Broken { why: why.to_owned() }),
        Err(error) => Err(broken(error)),
    }
}
