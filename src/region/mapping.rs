//! What keeps a region's bytes in this process's address space.
//!
//! Each kind unmaps in its own Drop and none of them unlinks. The mapped address is fixed for the life of the mapping.

use std::fmt;
use std::ptr::NonNull;

use memmap2::{Mmap, MmapMut, MmapOptions, MmapRaw};
use shared_memory::{Shmem, ShmemConf, ShmemError};

use super::Memory;
use crate::error::{Error, Result};
use crate::sys::object::{Object, Place};

/// Bytes that stay mapped as long as this lives.
pub(crate) struct Mapping {
    kind: Kind,
    base: NonNull<u8>,
    len: u64,
    writable: bool,
}

#[allow(dead_code, reason = "the variants' contents are kept for their Drop, which unmaps")]
enum Kind {
    Segment(Shmem),
    File(MmapRaw),
    ReadOnly(Mmap),
    Copy(MmapMut),
    Memory(Memory),
}

// SAFETY: a mapping belongs to the process, not to a thread; what is in it is reached by `Region`'s rules only.
unsafe impl Send for Mapping {}
// SAFETY: as above: a shared `Mapping` gives out the address and the length, nothing else.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a whole object for reading and writing. A segment is mapped by its name, which may have come to lead elsewhere:
    /// the caller makes sure that it is the same object, and else uses [`Self::by_descriptor`].
    pub(crate) fn read_write(object: &Object) -> Result<Self> {
        match object.place() {
            Place::Segment(name) => Self::segment(name, object.len()?),
            Place::File(_) | Place::Anonymous => Self::by_descriptor(object),
        }
    }

    /// Maps a whole object for reading and writing, whatever its name leads to.
    pub(crate) fn by_descriptor(object: &Object) -> Result<Self> {
        let len = object.len()?;
        let file = object.file_to_map(true)?;
        let map = MmapOptions::new().map_raw(&file).map_err(|error| map_error(&error))?;
        let base = NonNull::new(map.as_mut_ptr()).ok_or_else(null_mapping)?;
        let mapped = as_u64(map.len());
        Self::checked(Kind::File(map), base, mapped, len, true)
    }

    /// Maps a named segment by way of the `shared_memory` crate.
    fn segment(name: &str, len: u64) -> Result<Self> {
        let opened = ShmemConf::new().os_id(format!("/{name}")).open();
        let mut shmem = opened.map_err(|error| match error {
            ShmemError::MapOpenFailed(errno) | ShmemError::UnknownOsError(errno) | ShmemError::MapCreateFailed(errno) => {
                Error::System { call: "shm_open", errno: errno.cast_signed() }
            }
            _ => Error::NotFound { name: name.to_owned() },
        })?;
        // The crate unlinks in Drop what it takes for its own; a heap's name outlives every process.
        shmem.set_owner(false);
        let base = NonNull::new(shmem.as_ptr()).ok_or_else(null_mapping)?;
        let mapped = as_u64(shmem.len());
        Self::checked(Kind::Segment(shmem), base, mapped, len, true)
    }

    /// Maps a whole object for reading.
    pub(crate) fn read_only(object: &Object) -> Result<Self> {
        let len = object.len()?;
        let file = object.file_to_map(false)?;
        // SAFETY: others change the bytes while they are mapped; `Region` reads them as atomic words or by copies, never
        // through the slice that the crate would give out.
        let map = unsafe { MmapOptions::new().map(&file) }.map_err(|error| map_error(&error))?;
        let base = NonNull::new(map.as_ptr().cast_mut()).ok_or_else(null_mapping)?;
        let mapped = as_u64(map.len());
        Self::checked(Kind::ReadOnly(map), base, mapped, len, false)
    }

    /// Maps a whole object so that what is written stays private: a copy of which only the parts that change take memory.
    pub(crate) fn copy_on_write(object: &Object) -> Result<Self> {
        let len = object.len()?;
        let file = object.file_to_map(false)?;
        // SAFETY: as in `read_only`.
        let map = unsafe { MmapOptions::new().no_reserve_swap().map_copy(&file) };
        let mut map = map.map_err(|error| map_error(&error))?;
        let base = NonNull::new(map.as_mut_ptr()).ok_or_else(null_mapping)?;
        let mapped = as_u64(map.len());
        Self::checked(Kind::Copy(map), base, mapped, len, true)
    }

    /// The caller's memory.
    pub(crate) fn memory(memory: Memory) -> Self {
        let (base, len) = (memory.base(), as_u64(memory.len()));
        Self { kind: Kind::Memory(memory), base, len, writable: true }
    }

    fn checked(kind: Kind, base: NonNull<u8>, actual: u64, expected: u64, writable: bool) -> Result<Self> {
        if actual != expected {
            return Err(Error::CapacityMismatch { expected, actual });
        }
        Ok(Self { kind, base, len: actual, writable })
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Segment(_) => "segment",
            Kind::File(_) => "file",
            Kind::ReadOnly(_) => "read-only",
            Kind::Copy(_) => "copy",
            Kind::Memory(_) => "memory",
        };
        f.debug_struct("Mapping").field("kind", &kind).field("base", &self.base).field("len", &self.len).finish()
    }
}

fn map_error(error: &std::io::Error) -> Error {
    Error::System { call: "mmap", errno: error.raw_os_error().unwrap_or(0) }
}

fn null_mapping() -> Error {
    Error::System { call: "mmap", errno: libc::EFAULT }
}

fn as_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
