//! The bytes of an image. All numbers are little-endian, whatever the machine; the bytes of pages are as they stood.
//!
//! ```text
//! header                        256 bytes
//! chunks of spans               which pages hold blocks, and which blocks
//! chunks of roots
//! chunks of data                bytes of pages, each with its place in the region
//! end chunk                     number of chunks, checksum of the whole
//! ```

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::HEADER_LEN;

pub(super) const MAGIC: [u8; 8] = *b"shmimage";
/// Version of the image format that this library reads and writes.
pub(super) const VERSION: u32 = 1;
/// Most bytes of a chunk, before compression and after.
pub(super) const CHUNK_LEN_MAX: usize = 1 << 20;

/// Begins an image.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ImageHeader {
    pub(super) magic: [u8; 8],
    pub(super) version: U32,
    /// [`super::Compression`] of the data chunks that shrank by it.
    pub(super) compression: U32,
    pub(super) saved_ms: U64,
    /// Bytes of the pages that hold blocks.
    pub(super) data_len: U64,
    pub(super) blocks: U64,
    pub(super) used: U64,
    pub(super) roots: U32,
    pub(super) zero: [u8; 0x7c - 0x34],
    /// CRC-32 of the other 252 bytes.
    pub(super) checksum: U32,
    /// The header of the heap, as it stands in the region.
    pub(super) heap: [u8; HEADER_LEN],
}

const _: () = assert!(size_of::<ImageHeader>() == 256, "the header of an image has 256 bytes");

impl ImageHeader {
    /// What the checksum must be.
    pub(super) fn sum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let without = Self { checksum: U32::ZERO, ..*self };
        let (before, after) = without.as_bytes().split_at(0x7c);
        hasher.update(before);
        hasher.update(after.get(4..).unwrap_or_default());
        hasher.finalize()
    }
}

/// What a chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Spans = 1,
    Roots = 2,
    Data = 3,
    End = 4,
}

impl Kind {
    pub(super) fn decode(number: u32) -> Option<Self> {
        [Self::Spans, Self::Roots, Self::Data, Self::End].into_iter().find(|kind| *kind as u32 == number)
    }
}

/// Stands before a chunk's bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ChunkHeader {
    pub(super) kind: U32,
    /// Bytes that follow.
    pub(super) stored_len: U32,
    /// Bytes that they stand for.
    pub(super) len: U32,
    /// CRC-32 of the bytes that follow.
    pub(super) checksum: U32,
    /// Data: where the bytes stand in the region. Else 0.
    pub(super) at: U64,
    /// How the bytes are compressed, as in [`ImageHeader::compression`].
    pub(super) encoding: U32,
    /// CRC-32 of this header up to here.
    pub(super) header_checksum: U32,
}

pub(super) const CHUNK_HEADER_LEN: usize = 32;
const _: () = assert!(size_of::<ChunkHeader>() == CHUNK_HEADER_LEN, "the header of a chunk has 32 bytes");

impl ChunkHeader {
    /// What the header's own checksum must be.
    pub(super) fn sum(&self) -> u32 {
        crc32fast::hash(self.as_bytes().get(..CHUNK_HEADER_LEN.saturating_sub(4)).unwrap_or_default())
    }
}

/// A span of a chunk of spans. Behind that of a slab follow its words, 64 bits each: bit set = allocated.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SpanRecord {
    pub(super) first: U32,
    /// Large block: its pages. Slab: its words.
    pub(super) count: U32,
    /// 1 slab, 2 large block.
    pub(super) kind: u8,
    /// Slab: size class.
    pub(super) class: u8,
    pub(super) zero: [u8; 6],
}

pub(super) const SLAB: u8 = 1;
pub(super) const LARGE: u8 = 2;

const _: () = assert!(size_of::<SpanRecord>() == 16, "the record of a span has 16 bytes");

/// A root of a chunk of roots.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RootRecord {
    pub(super) offset: U64,
    pub(super) type_id: U64,
    pub(super) name_len: U32,
    pub(super) zero: U32,
    /// Padded with zeros.
    pub(super) name: [u8; 64],
}

const _: () = assert!(size_of::<RootRecord>() == 88, "the record of a root has 88 bytes");

/// What the end chunk holds.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct End {
    /// Chunks before this one.
    pub(super) chunks: U64,
    /// CRC-32 of everything before this chunk.
    pub(super) checksum: U32,
    pub(super) zero: U32,
}
