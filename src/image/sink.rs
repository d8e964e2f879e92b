//! Where an image is written, chunk by chunk; keeps the checksum of the whole.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::Compression;
use super::layout::{CHUNK_HEADER_LEN, ChunkHeader, End, ImageHeader, Kind};
use crate::error::Result;

/// Takes the bytes of an image.
pub(super) struct Sink<'a> {
    write: &'a mut dyn FnMut(&[u8]) -> Result<()>,
    whole: crc32fast::Hasher,
    chunks: u64,
    len: u64,
}

/// A chunk in the making: room for its header, and then its bytes, so that both are written in one call.
#[derive(Debug)]
pub(super) struct Draft(Vec<u8>);

impl Draft {
    pub(super) fn new() -> Self {
        Self(vec![0; CHUNK_HEADER_LEN])
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.0.len().saturating_sub(CHUNK_HEADER_LEN)
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The chunk's bytes, of which there are to be `len`.
    pub(super) fn resized(&mut self, len: usize) -> &mut [u8] {
        self.0.resize(CHUNK_HEADER_LEN.saturating_add(len), 0);
        self.bytes()
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        self.0.get_mut(CHUNK_HEADER_LEN..).unwrap_or_default()
    }

    /// Takes `front` bytes off the start, and leaves `len`.
    pub(super) fn cut(&mut self, front: usize, len: usize) {
        let end = CHUNK_HEADER_LEN.saturating_add(front);
        self.0.drain(CHUNK_HEADER_LEN..end.min(self.0.len()));
        self.0.truncate(CHUNK_HEADER_LEN.saturating_add(len));
    }
}

impl<'a> Sink<'a> {
    pub(super) fn new(write: &'a mut dyn FnMut(&[u8]) -> Result<()>) -> Self {
        Self { write, whole: crc32fast::Hasher::new(), chunks: 0, len: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.len = self.len.saturating_add(bytes.len() as u64);
        (self.write)(bytes)
    }

    pub(super) fn header(&mut self, header: &ImageHeader) -> Result<()> {
        self.whole.update(header.as_bytes());
        self.put(header.as_bytes())
    }

    /// Writes a chunk; leaves an empty draft.
    pub(super) fn chunk(&mut self, kind: Kind, at: u64, draft: &mut Draft, compression: Compression) -> Result<()> {
        let len = draft.len();
        if let Some(packed) = compression.pack(draft.bytes()) {
            draft.resized(packed.len()).copy_from_slice(&packed);
            self.stored(kind, at, len, draft, compression)
        } else {
            self.stored(kind, at, len, draft, Compression::None)
        }
    }

    fn stored(&mut self, kind: Kind, at: u64, len: usize, draft: &mut Draft, encoding: Compression) -> Result<()> {
        let mut sum = crc32fast::Hasher::new();
        sum.update(draft.bytes());
        let as_u32 = |len: usize| U32::new(u32::try_from(len).unwrap_or(u32::MAX));
        let mut header = ChunkHeader {
            kind: U32::new(kind as u32),
            stored_len: as_u32(draft.len()),
            len: as_u32(len),
            checksum: U32::new(sum.clone().finalize()),
            at: U64::new(at),
            encoding: U32::new(encoding.code()),
            header_checksum: U32::ZERO,
        };
        header.header_checksum = U32::new(header.sum());
        self.whole.update(header.as_bytes());
        self.whole.combine(&sum);
        self.chunks = self.chunks.saturating_add(1);
        if let Some(room) = draft.0.get_mut(..CHUNK_HEADER_LEN) {
            room.copy_from_slice(header.as_bytes());
        }
        self.put(&draft.0)?;
        draft.0.truncate(CHUNK_HEADER_LEN);
        Ok(())
    }

    /// Ends the image; returns how many bytes it has.
    pub(super) fn end(mut self) -> Result<u64> {
        let checksum = U32::new(self.whole.clone().finalize());
        let end = End { chunks: U64::new(self.chunks), checksum, zero: U32::ZERO };
        let mut draft = Draft::new();
        draft.extend(end.as_bytes());
        self.chunk(Kind::End, 0, &mut draft, Compression::None)?;
        Ok(self.len)
    }
}
