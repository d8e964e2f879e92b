//! Where an image is read, chunk by chunk; nothing leaves here whose checksum is wrong (I1).

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use zerocopy::FromBytes;

use super::layout::{CHUNK_HEADER_LEN, CHUNK_LEN_MAX, ChunkHeader, End, ImageHeader, Kind, MAGIC, VERSION};
use super::{Compression, ImageInfo};
use crate::alloc::Classes;
use crate::error::{Corruption, Error, Result};
use crate::format::{Geometry, Header};

/// An image that is being read.
pub(super) struct Source<'a> {
    input: Box<dyn Read + 'a>,
    name: String,
    /// Bytes read so far.
    position: u64,
    whole: crc32fast::Hasher,
    chunks: u64,
    /// A buffer to be used again.
    spare: Vec<u8>,
    info: ImageInfo,
    header: Header,
    geometry: Geometry,
    classes: Classes,
}

/// A chunk, its bytes unpacked.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) kind: Kind,
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
    /// Where the chunk stands in the image, for messages.
    pub(super) place: u64,
}

impl<'a> Source<'a> {
    /// Opens the image at this path, and reads its header.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => Error::NotFound { name: name.clone() },
            _ => io_error("open", &error),
        };
        // A pipe is not waited for: it is no image.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        if !file.metadata().is_ok_and(|found| found.is_file()) {
            return Err(Error::NotAnImage { name, why: "it is no regular file" });
        }
        Self::new(Box::new(file), name)
    }

    /// Reads an image's header.
    pub(super) fn new(mut input: Box<dyn Read + 'a>, name: String) -> Result<Self> {
        let mut bytes = [0; size_of::<ImageHeader>()];
        let mut read = 0;
        read_whole(&mut *input, &mut bytes, &mut read).map_err(|error| at_end(error, &name, read))?;
        let not_an_image = |why| Error::NotAnImage { name: name.clone(), why };
        let image = ImageHeader::read_from_bytes(&bytes).map_err(|_| not_an_image("it is shorter than a header"))?;
        if image.magic != MAGIC {
            return Err(not_an_image("it does not begin with an image's magic number"));
        }
        if image.version.get() != VERSION {
            return Err(Error::WrongImageVersion { image: name, found: image.version.get(), supported: VERSION });
        }
        if image.checksum.get() != image.sum() {
            return Err(not_an_image("its header's checksum is wrong"));
        }
        let compression = Compression::decode(image.compression.get());
        let compression = compression.ok_or_else(|| not_an_image("it is compressed in an unknown way"))?;
        compression.check_built_in()?;
        let header = Header::decode(&image.heap, &name)?;
        let info = ImageInfo {
            capacity: header.capacity,
            page_size: header.page_size(),
            blocks: image.blocks.get(),
            used: image.used.get(),
            roots: image.roots.get(),
            data_len: image.data_len.get(),
            image_len: 0,
            compression,
            saved_ms: image.saved_ms.get(),
        };
        let mut whole = crc32fast::Hasher::new();
        whole.update(&bytes);
        let (geometry, classes) = (Geometry::new(&header)?, Classes::new(&header));
        Ok(Self { input, name, position: read, whole, chunks: 0, spare: Vec::new(), info, header, geometry, classes })
    }

    /// What the image says of itself; its length is known at the end.
    pub(super) fn info(&self) -> ImageInfo {
        ImageInfo { image_len: self.position, ..self.info.clone() }
    }

    /// The header of the heap that was saved.
    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(super) fn classes(&self) -> &Classes {
        &self.classes
    }

    /// The error for bytes that contradict the format.
    pub(super) fn corrupt(&self, what: &'static str, at: u64) -> Error {
        Error::CorruptImage { image: self.name.clone(), corruption: Corruption::new(what, at) }
    }

    /// The next chunk, in a buffer that is used again: that of a chunk of which nothing is needed any more.
    pub(super) fn next_in(&mut self, buffer: Vec<u8>) -> Result<Chunk> {
        self.spare = buffer;
        self.next()
    }

    /// The next chunk. The end chunk is checked against all that came before it, and nothing may follow it.
    pub(super) fn next(&mut self) -> Result<Chunk> {
        let place = self.position;
        let whole = self.whole.clone().finalize();
        let mut head = [0; CHUNK_HEADER_LEN];
        self.read(&mut head)?;
        let header = ChunkHeader::read_from_bytes(&head).map_err(|_| self.corrupt("a chunk has no header", place))?;
        if header.header_checksum.get() != header.sum() {
            return Err(self.corrupt("the checksum of a chunk's header is wrong", place));
        }
        let kind = Kind::decode(header.kind.get()).ok_or_else(|| self.corrupt("a chunk has an unknown kind", place))?;
        let encoding = Compression::decode(header.encoding.get())
            .filter(|encoding| *encoding == Compression::None || (*encoding == self.info.compression && kind == Kind::Data));
        let encoding = encoding.ok_or_else(|| self.corrupt("a chunk is compressed in another way than it may", place))?;
        let (stored_len, len) = (header.stored_len.get() as usize, header.len.get() as usize);
        let is_plain = encoding == Compression::None;
        if len > CHUNK_LEN_MAX || stored_len > len || (is_plain && stored_len != len) {
            return Err(self.corrupt("a chunk has a length that is out of range", place));
        }
        let mut stored = std::mem::take(&mut self.spare);
        stored.resize(stored_len, 0);
        self.read(&mut stored)?;
        let mut sum = crc32fast::Hasher::new();
        sum.update(&stored);
        if sum.clone().finalize() != header.checksum.get() {
            return Err(self.corrupt("the checksum of a chunk is wrong", place));
        }
        self.whole.update(&head);
        self.whole.combine(&sum);
        let bytes = if is_plain { Some(stored) } else { encoding.unpack(&stored, len) };
        let bytes = bytes.ok_or_else(|| self.corrupt("a chunk cannot be decompressed", place))?;
        if kind == Kind::End {
            self.check_end(&bytes, whole, place)?;
        }
        self.chunks = self.chunks.saturating_add(1);
        Ok(Chunk { kind, at: header.at.get(), bytes, place })
    }

    fn check_end(&mut self, bytes: &[u8], whole: u32, place: u64) -> Result<()> {
        let end = End::read_from_bytes(bytes).map_err(|_| self.corrupt("the end chunk has a wrong length", place))?;
        if end.chunks.get() != self.chunks {
            return Err(self.corrupt("the image has more or fewer chunks than it says", place));
        }
        if end.checksum.get() != whole {
            return Err(self.corrupt("the checksum of the whole image is wrong", place));
        }
        let more = self.input.read(&mut [0]).map_err(|error| io_error("read", &error))?;
        if more == 0 { Ok(()) } else { Err(self.corrupt("something follows the end of the image", self.position)) }
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        let done = read_whole(&mut *self.input, bytes, &mut self.position);
        done.map_err(|error| at_end(error, &self.name, self.position))
    }
}

fn read_whole(input: &mut dyn Read, bytes: &mut [u8], position: &mut u64) -> std::io::Result<()> {
    input.read_exact(bytes)?;
    *position = position.saturating_add(bytes.len() as u64);
    Ok(())
}

fn at_end(error: std::io::Error, name: &str, position: u64) -> Error {
    match error.kind() {
        ErrorKind::UnexpectedEof => {
            let corruption = Corruption::new("the image ends before its end chunk (was it cut short?)", position);
            Error::CorruptImage { image: name.to_owned(), corruption }
        }
        _ => io_error("read", &error),
    }
}

/// The error for a system call that `std` made.
pub(super) fn io_error(call: &'static str, error: &std::io::Error) -> Error {
    Error::System { call, errno: error.raw_os_error().unwrap_or(libc::EIO) }
}
