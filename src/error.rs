//! What can go wrong, in one enum.
//!
//! Every variant carries the numbers that a person needs to understand it and, where there is one, the remedy in
//! its text. Two kinds are kept apart: [`Error::Corrupt`] says that bytes in the region are not what this library
//! writes; everything else says that a call could not be carried out. A call that returns an error has changed
//! nothing, except where its documentation says otherwise.
//!
//! Not here: the numbered invariants that a [`Corruption`] names (they stand in `check`).

use std::fmt;

/// Result of a call to this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A place in the region whose bytes contradict the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Corruption {
    /// What is wrong there, with the invariant's number where it has one.
    pub what: &'static str,
    /// Where, in bytes from the start of the region.
    pub at: u64,
}

impl Corruption {
    pub(crate) const fn new(what: &'static str, at: u64) -> Self {
        Self { what, at }
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {:#x}", self.what, self.at)
    }
}

/// Why an allocation found no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shortage {
    /// Less is free, in all, than was asked for.
    Full,
    /// Enough is free in all, but not in one piece.
    Fragmented,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the heap is full; create it with a larger capacity",
            Self::Fragmented => "the heap is fragmented; free some blocks, or create it with a larger capacity",
        })
    }
}

/// Why an offset does not name a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OffsetFault {
    /// It lies outside the heap's data pages.
    Outside,
    /// It lies inside the block that starts at this offset, not at its start.
    InsideBlock(u64),
    /// No block is allocated there.
    NotAllocated,
}

impl fmt::Display for OffsetFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside => f.write_str("it lies outside the heap's data"),
            Self::InsideBlock(start) => write!(f, "it lies inside a block's bytes; the block starts at {start:#x}"),
            Self::NotAllocated => f.write_str("no block is allocated there"),
        }
    }
}

/// Everything that a call to this library can fail with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The heap has no room for the request.
    #[error(
        "out of memory: {requested} bytes requested, {free} free, the largest free run of pages is {largest_free} bytes: {shortage}"
    )]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes in the largest run of free pages.
        largest_free: u64,
        /// Bytes in free pages, in all.
        free: u64,
        /// Whether the heap is full or only fragmented.
        shortage: Shortage,
    },

    /// The file system behind the region (for a named heap, /dev/shm) has no room for the pages that the call needs.
    #[error(
        "no space behind the region: {needed} bytes needed, {available} available; free some, or raise the limit (in a container: --shm-size)"
    )]
    NoSpace {
        /// Bytes needed.
        needed: u64,
        /// Bytes available there.
        available: u64,
    },

    /// The alignment is not a power of two from 8 to 4096.
    #[error("bad alignment {alignment}: it must be a power of two from 8 to 4096")]
    BadAlignment {
        /// The alignment asked for, in bytes.
        alignment: u64,
    },

    /// A block of zero bytes was asked for.
    #[error("a block of zero bytes was requested; ask for at least one")]
    ZeroSize,

    /// The request is larger than this heap could ever hold.
    #[error(
        "{requested} bytes requested, but this heap can never hold more than {max} in one block; create it with a larger capacity"
    )]
    TooLarge {
        /// Bytes asked for.
        requested: u64,
        /// Bytes that an empty heap of this capacity could hand out in one block.
        max: u64,
    },

    /// The offset does not name a block.
    #[error("invalid offset {offset:#x}: {fault}")]
    InvalidOffset {
        /// The offset given, in bytes from the start of the region.
        offset: u64,
        /// What is wrong with it.
        fault: OffsetFault,
    },

    /// The pointer does not lie in this heap's mapping.
    #[error("address {address:#x} lies outside this heap's mapping")]
    ForeignPointer {
        /// The address given.
        address: u64,
    },

    /// The block was freed already.
    #[error("double free: the block at {offset:#x} is free already")]
    DoubleFree {
        /// Where the block starts, in bytes from the start of the region.
        offset: u64,
    },

    /// The bytes do not lie within the block.
    #[error("{len} bytes at {at} do not fit in the block at {offset:#x}, which has {usable} usable bytes")]
    OutOfBounds {
        /// Where the block starts.
        offset: u64,
        /// First byte, from the block's start.
        at: u64,
        /// Number of bytes.
        len: u64,
        /// Usable bytes of the block.
        usable: u64,
    },

    /// A cell that must be empty holds an offset.
    #[error("the cell at {cell:#x} holds {holds:#x} already; free that first (free_from)")]
    CellOccupied {
        /// Where the cell stands.
        cell: u64,
        /// What it holds.
        holds: u64,
    },

    /// A cell that must hold an offset is empty.
    #[error("the cell at {cell:#x} is empty: there is nothing to free")]
    CellEmpty {
        /// Where the cell stands.
        cell: u64,
    },

    /// An offset that cannot be a cell: 8 aligned bytes inside an allocated block.
    #[error("{cell:#x} is no cell: a cell is 8 aligned bytes inside an allocated block")]
    BadCell {
        /// The offset given.
        cell: u64,
    },

    /// The heap has no root of this name.
    #[error("the heap has no root named {name:?}; list them with roots()")]
    RootUnknown {
        /// The name given.
        name: String,
    },

    /// The heap has a root of this name already.
    #[error("the heap has a root named {name:?} already; replace it with set_root, or remove it first")]
    RootExists {
        /// The name given.
        name: String,
    },

    /// Every root slot is taken.
    #[error("all {slots} root slots are taken; create the heap with more (Options::root_slots)")]
    RootsFull {
        /// Number of slots of this heap.
        slots: u32,
    },

    /// A name of a segment or of a root that breaks the rules.
    #[error("bad name {name:?}: {why}")]
    BadName {
        /// The name given.
        name: String,
        /// Which rule it breaks.
        why: &'static str,
    },

    /// There is no heap of this name.
    #[error("there is no heap named {name:?}; create it, or use open_or_create")]
    NotFound {
        /// The segment's name or the file's path.
        name: String,
    },

    /// There is something of this name already.
    #[error("{name:?} exists already; open it, use open_or_create, or unlink it first")]
    AlreadyExists {
        /// The segment's name or the file's path.
        name: String,
    },

    /// The segment belongs to somebody else.
    #[error(
        "{name:?} belongs to uid {owner}, not to uid {trusted}; if that user is to be trusted, say so with Options::trust"
    )]
    WrongOwner {
        /// The segment's name or the file's path.
        name: String,
        /// The uid that owns it.
        owner: u32,
        /// The uid that would have been accepted.
        trusted: u32,
    },

    /// The segment may be written by more users than the options allow.
    #[error(
        "{name:?} has mode {mode:04o}, which lets others in beyond {allowed:04o}; chmod it, or allow that with Options::mode"
    )]
    WrongMode {
        /// The segment's name or the file's path.
        name: String,
        /// Its mode.
        mode: u32,
        /// The widest mode that the options accept.
        allowed: u32,
    },

    /// The kernel refused access.
    #[error("no permission to open {name:?}, which belongs to uid {owner} with mode {mode:04o}")]
    PermissionDenied {
        /// The segment's name or the file's path.
        name: String,
        /// The uid that owns it; `u32::MAX` where it could not be found out.
        owner: u32,
        /// Its mode; 0 where it could not be found out.
        mode: u32,
    },

    /// What was opened is no heap.
    #[error("{name:?} is not a shmheap heap: {why}")]
    NotAHeap {
        /// The segment's name or the file's path.
        name: String,
        /// How that was seen.
        why: &'static str,
    },

    /// The heap was written by another version of the format.
    #[error("the heap has format version {found}, this library reads {supported}; use the library that wrote it")]
    WrongVersion {
        /// Version in the header.
        found: u32,
        /// Version of this library.
        supported: u32,
    },

    /// The heap was written by a machine of another byte order.
    #[error("the heap was written on a machine of the other byte order; open it on one like that")]
    WrongByteOrder,

    /// The page size is none that can be used here.
    #[error("page size {page_size} cannot be used: a power of two from {min} to 65536 is needed")]
    WrongPageSize {
        /// Page size asked for, or found in the header, in bytes.
        page_size: u64,
        /// Smallest that can be used here, in bytes (the kernel's own page size, at least 4096).
        min: u64,
    },

    /// The capacity is out of range.
    #[error("bad capacity {capacity}: {why}")]
    BadCapacity {
        /// Capacity asked for, in bytes.
        capacity: u64,
        /// What is wrong with it.
        why: &'static str,
    },

    /// Another option is out of range.
    #[error("bad option {option}: {value} is outside {min}..={max}")]
    BadOption {
        /// Which option.
        option: &'static str,
        /// What was given.
        value: u64,
        /// Smallest accepted value.
        min: u64,
        /// Largest accepted value.
        max: u64,
    },

    /// The region is not as large as its header, or the options, say.
    #[error(
        "capacity mismatch: {expected} bytes expected, {actual} found; was the segment truncated, or created with another capacity?"
    )]
    CapacityMismatch {
        /// Bytes that the header or the options name.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },

    /// The segment or file became shorter while it was in use.
    #[error(
        "{name:?} was truncated while it was in use: {expected} bytes expected, {actual} found; detach, and load the last image"
    )]
    Shrunk {
        /// The segment's name or the file's path.
        name: String,
        /// Bytes that are needed.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },

    /// The name was removed while the heap was being opened.
    #[error("{name:?} was unlinked while it was being opened; create it anew")]
    Unlinked {
        /// The segment's name or the file's path.
        name: String,
    },

    /// The machine stopped while the heap in a file was in use, and what had reached the disk by then does not fit together.
    #[error(
        "{name:?} was in use when the machine stopped, and what reached the disk does not fit together ({corruption}); load the last image, or mend what can be mended with Options::repair_file"
    )]
    Unclean {
        /// The file's path.
        name: String,
        /// The first thing that does not fit.
        corruption: Corruption,
    },

    /// What was to be loaded or compared is no image of a heap.
    #[error("{name:?} is not an image of a shmheap heap: {why}")]
    NotAnImage {
        /// The image's path.
        name: String,
        /// How that was seen.
        why: &'static str,
    },

    /// The bytes of an image contradict its format.
    #[error("the image {image:?} is damaged: {corruption}; use another one")]
    CorruptImage {
        /// The image's path.
        image: String,
        /// What is wrong, and where: bytes from the start of the image.
        corruption: Corruption,
    },

    /// The image was written by another version of its format.
    #[error("the image {image:?} has format version {found}, this library reads {supported}; use the library that wrote it")]
    WrongImageVersion {
        /// The image's path.
        image: String,
        /// Version in the image.
        found: u32,
        /// Version of this library.
        supported: u32,
    },

    /// The library was built without what the call needs.
    #[error("this needs the feature {feature:?} of the crate shmheap; build with it")]
    NeedsFeature {
        /// The feature.
        feature: &'static str,
    },

    /// Bytes in the region contradict the format.
    #[error("the heap is corrupt: {0}")]
    Corrupt(Corruption),

    /// The lock (or a root under construction) stayed with somebody who is alive but does not go on.
    #[error(
        "waited {waited_ms} ms for pid {holder_pid}, which is alive but does not let go (stopped?); continue or end that process"
    )]
    LockTimeout {
        /// Process that holds it, as it named itself; in another PID namespace the number means another process.
        holder_pid: u32,
        /// How long was waited, in milliseconds.
        waited_ms: u64,
    },

    /// The heap is to be repaired while somebody uses it.
    #[error("{name:?} cannot be repaired while others use it: pid {pid} does; end that process, and all others that use it")]
    InUse {
        /// The segment's name or the file's path.
        name: String,
        /// A process that uses it, as it named itself; in another PID namespace the number means another process.
        pid: u32,
    },

    /// Somebody died while changing the heap, and a read-only handle cannot finish or undo it.
    #[error(
        "pid {holder_pid} died while it changed the heap, and nobody has used the heap since; open it for writing once (open), and look again"
    )]
    Unrecovered {
        /// Process that died, as it named itself.
        holder_pid: u32,
    },

    /// The calling thread has frozen the heap, and would wait for itself.
    #[error("this thread has frozen the heap, and the call needs the heap lock; drop the Freeze first")]
    Frozen,

    /// The heap was opened read-only.
    #[error("the heap was opened read-only; open it with open()")]
    ReadOnly,

    /// After a fork the child could not get a descriptor of its own, without which it cannot be told from its parent.
    #[error("this process was forked and could not reopen the region (is /proc mounted?); open the heap anew in the child")]
    Severed,

    /// A system call failed in a way that has no variant of its own.
    #[error("{call} failed: {}", std::io::Error::from_raw_os_error(*errno))]
    System {
        /// The system call.
        call: &'static str,
        /// Its errno.
        errno: i32,
    },
}

impl From<Corruption> for Error {
    fn from(corruption: Corruption) -> Self {
        Self::Corrupt(corruption)
    }
}

impl Error {
    /// True where trying again later can succeed without anything else being changed: out of memory, no space, a
    /// lock held by somebody who is slow.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::OutOfMemory { .. } | Self::NoSpace { .. } | Self::LockTimeout { .. })
    }
}
