//! Saving.

use std::path::Path;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::contents::runs;
use super::layout::{CHUNK_LEN_MAX, ImageHeader, Kind, LARGE, MAGIC, RootRecord, SLAB, SpanRecord, VERSION};
use super::sink::{Draft, Sink};
use super::{Compression, ImageInfo, Progress, SaveOptions};
use crate::alloc::Classes;
use crate::error::{Error, Result};
use crate::format::Geometry;
use crate::heap::{Freeze, Heap, SavedSpan, Snapshot, SpanKind};
use crate::sys::clock;
use crate::sys::replacement::Replacement;

/// Pieces of pages that are all zero are not written, in this unit, where they stand at either end of a chunk.
const PIECE: usize = 4096;

const ROOTS_PER_CHUNK: usize = 8192;
const _: () =
    assert!(ROOTS_PER_CHUNK * size_of::<RootRecord>() <= CHUNK_LEN_MAX, "a chunk of roots is no longer than others");

impl Heap {
    /// Saves an image of the heap to a file, which it replaces as a whole: a death at any moment, of the process or of the
    /// machine, leaves the old file or the new one. Returns what was saved.
    ///
    /// The image says which blocks were allocated at one moment during the call, and where roots led; others may go on
    /// allocating and freeing. What stands in the blocks is copied after that moment, while others may write: it is as
    /// consistent as the users of the heap make it. [`Heap::freeze`] gives a point in time.
    ///
    /// Takes the heap lock while it looks at the blocks, and no lock while it copies them. Only pages that hold blocks are
    /// written. Takes about as long as a plain copy of the same bytes. The file has mode 0600, or that of the file which it
    /// replaces.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`](crate::Error::NoSpace) if the disk is full;
    /// [`Error::PermissionDenied`](crate::Error::PermissionDenied), [`Error::NotFound`](crate::Error::NotFound) if its
    /// directory is not to be written to, or not there; [`Error::LockTimeout`](crate::Error::LockTimeout);
    /// [`Error::Corrupt`](crate::Error::Corrupt) if the heap is damaged; [`Error::Shrunk`](crate::Error::Shrunk);
    /// [`Error::System`](crate::Error::System). The old file is then what it was.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("orders.img");
    /// use shmheap::{Heap, Memory};
    ///
    /// let heap = Heap::options().create_in(Memory::zeroed(1 << 20)?)?;
    /// let block = heap.allocate(100)?;
    /// heap.set_root("orders", block)?;
    /// heap.save(&path)?;
    ///
    /// let again = Heap::options().load_in(&path, Memory::zeroed(2 << 20)?)?;
    /// assert_eq!(again.root("orders")?, Some(block));
    /// # Ok(())
    /// # }
    /// ```
    pub fn save(&self, path: impl AsRef<Path>) -> Result<ImageInfo> {
        self.save_with(path, &SaveOptions::new(), |_| ())
    }

    /// As [`Heap::save`], with options, and tells `progress` how far it has come.
    ///
    /// # Errors
    ///
    /// As [`Heap::save`]; [`Error::NeedsFeature`](crate::Error::NeedsFeature) for a compression that was not built in.
    pub fn save_with(
        &self,
        path: impl AsRef<Path>,
        options: &SaveOptions,
        progress: impl FnMut(Progress),
    ) -> Result<ImageInfo> {
        options.compression.check_built_in()?;
        write_file(self, &self.snapshot()?, path.as_ref(), options, progress)
    }
}

impl Freeze<'_> {
    /// As [`Heap::save`], while nobody allocates or frees: blocks and roots are those of one moment, and so is what stands
    /// in the blocks, as far as nobody writes to them meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Heap::save`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<ImageInfo> {
        self.save_with(path, &SaveOptions::new(), |_| ())
    }

    /// As [`Heap::save_with`], while nobody allocates or frees.
    ///
    /// # Errors
    ///
    /// As [`Heap::save_with`].
    pub fn save_with(
        &self,
        path: impl AsRef<Path>,
        options: &SaveOptions,
        progress: impl FnMut(Progress),
    ) -> Result<ImageInfo> {
        options.compression.check_built_in()?;
        write_file(self.heap(), &self.snapshot()?, path.as_ref(), options, progress)
    }
}

fn write_file(
    heap: &Heap,
    snapshot: &Snapshot,
    path: &Path,
    options: &SaveOptions,
    progress: impl FnMut(Progress),
) -> Result<ImageInfo> {
    if heap.stands_in(path) {
        let why = "it is the heap's own file, which an image must not replace";
        return Err(Error::NotAnImage { name: path.display().to_string(), why });
    }
    let mut file = Replacement::new(path)?;
    let info = write(heap, snapshot, options, &mut |bytes| file.write(bytes), progress)?;
    file.take_place()?;
    Ok(info)
}

/// Writes an image of this snapshot of the heap.
fn write(
    heap: &Heap,
    snapshot: &Snapshot,
    options: &SaveOptions,
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
    mut progress: impl FnMut(Progress),
) -> Result<ImageInfo> {
    let (header, classes) = (heap.header(), heap.classes());
    let geometry = Geometry::new(header)?;
    let runs = runs(&geometry, snapshot);
    let total = runs.iter().fold(0u64, |sum, run| sum.saturating_add(run.end.saturating_sub(run.start)));
    let (blocks, used) = snapshot.totals(classes, &geometry);
    let mut info = ImageInfo {
        capacity: header.capacity,
        page_size: header.page_size(),
        blocks,
        used,
        roots: u32::try_from(snapshot.roots.len()).unwrap_or(u32::MAX),
        data_len: total,
        image_len: 0,
        compression: options.compression,
        saved_ms: clock::unix_ms(),
    };
    let mut sink = Sink::new(out);
    sink.header(&image_header(&info, header.encode()))?;
    write_spans(&mut sink, snapshot)?;
    write_roots(&mut sink, snapshot)?;
    let mut draft = Draft::new();
    let mut done = 0u64;
    progress(Progress { done, total });
    for run in runs {
        let mut at = run.start;
        while at < run.end {
            let len = run.end.saturating_sub(at).min(CHUNK_LEN_MAX as u64);
            let bytes = draft.resized(len as usize);
            heap.read_region(at, bytes)?;
            blank_free_blocks(&geometry, classes, snapshot, at, bytes);
            write_data(&mut sink, at, &mut draft, options.compression)?;
            at = at.saturating_add(len);
            done = done.saturating_add(len);
            progress(Progress { done, total });
        }
    }
    info.image_len = sink.end()?;
    Ok(info)
}

fn image_header(info: &ImageInfo, heap: [u8; crate::format::HEADER_LEN]) -> ImageHeader {
    let mut header = ImageHeader {
        magic: MAGIC,
        version: U32::new(VERSION),
        compression: U32::new(info.compression.code()),
        saved_ms: U64::new(info.saved_ms),
        data_len: U64::new(info.data_len),
        blocks: U64::new(info.blocks),
        used: U64::new(info.used),
        roots: U32::new(info.roots),
        zero: [0; 0x7c - 0x34],
        checksum: U32::ZERO,
        heap,
    };
    header.checksum = U32::new(header.sum());
    header
}

fn write_spans(sink: &mut Sink<'_>, snapshot: &Snapshot) -> Result<()> {
    let mut draft = Draft::new();
    for span in &snapshot.spans {
        let (kind, class, count) = match span.kind {
            SpanKind::Slab { class, words, .. } => (SLAB, class.0, u32::try_from(words).unwrap_or(u32::MAX)),
            SpanKind::Large => (LARGE, 0, span.pages),
        };
        let bits = snapshot.bits(span);
        let record = SpanRecord { first: U32::new(span.first), count: U32::new(count), kind, class, zero: [0; 6] };
        let len = size_of_val(&record).saturating_add(size_of_val(bits));
        if draft.len().saturating_add(len) > CHUNK_LEN_MAX {
            sink.chunk(Kind::Spans, 0, &mut draft, Compression::None)?;
        }
        draft.extend(record.as_bytes());
        bits.iter().for_each(|word| draft.extend(&word.to_le_bytes()));
    }
    if draft.len() == 0 { Ok(()) } else { sink.chunk(Kind::Spans, 0, &mut draft, Compression::None) }
}

fn write_roots(sink: &mut Sink<'_>, snapshot: &Snapshot) -> Result<()> {
    let mut draft = Draft::new();
    for roots in snapshot.roots.chunks(ROOTS_PER_CHUNK) {
        for root in roots {
            let (name, name_len) = root.name.as_bytes();
            let (offset, type_id) = (U64::new(root.offset), U64::new(root.type_id));
            let record = RootRecord { offset, type_id, name_len: U32::new(u32::from(name_len)), zero: U32::ZERO, name };
            draft.extend(record.as_bytes());
        }
        sink.chunk(Kind::Roots, 0, &mut draft, Compression::None)?;
    }
    Ok(())
}

/// Writes what was read from `at`, but for the zeros at its ends.
fn write_data(sink: &mut Sink<'_>, at: u64, draft: &mut Draft, compression: Compression) -> Result<()> {
    let bytes = draft.bytes();
    let is_zero = |piece: &[u8]| piece.iter().fold(0, |seen, byte| seen | byte) == 0;
    let front = bytes.chunks(PIECE).take_while(|piece| is_zero(piece)).count().saturating_mul(PIECE);
    if front >= bytes.len() {
        return Ok(());
    }
    let back = bytes.rchunks(PIECE).take_while(|piece| is_zero(piece)).count().saturating_mul(PIECE);
    let len = bytes.len().saturating_sub(front).saturating_sub(back);
    draft.cut(front, len);
    sink.chunk(Kind::Data, at.saturating_add(front as u64), draft, compression)
}

/// Zeroes what stands in free blocks: it is nobody's, and need not be kept.
fn blank_free_blocks(geometry: &Geometry, classes: &Classes, snapshot: &Snapshot, at: u64, bytes: &mut [u8]) {
    let end = at.saturating_add(bytes.len() as u64);
    let page_of = |place: u64| place.saturating_sub(geometry.data_start) >> geometry.page_shift;
    let ends_before = |span: &SavedSpan| u64::from(span.first).saturating_add(u64::from(span.pages)) <= page_of(at);
    let first = snapshot.spans.partition_point(ends_before);
    let spans = snapshot.spans.get(first..).unwrap_or_default();
    for span in spans.iter().take_while(|span| u64::from(span.first) < page_of(end.saturating_add(geometry.page_size()))) {
        let SpanKind::Slab { class, .. } = span.kind else { continue };
        let Some(info) = classes.get(class) else { continue };
        let start = geometry.data_start.saturating_add(u64::from(span.first) << geometry.page_shift);
        let span_end = start.saturating_add(u64::from(span.pages) << geometry.page_shift);
        let size = u64::from(info.size);
        let mut blank = |from: u64, to: u64| {
            let from = from.clamp(at, end).saturating_sub(at) as usize;
            let to = to.clamp(at, end).saturating_sub(at) as usize;
            bytes.get_mut(from..to).unwrap_or_default().fill(0);
        };
        for (word, allocated) in (0u64..).zip(snapshot.bits(span)) {
            let mut free = !allocated & info.mask(u32::try_from(word).unwrap_or(u32::MAX));
            while free != 0 {
                let index = word.saturating_mul(64).saturating_add(u64::from(free.trailing_zeros()));
                let block = start.saturating_add(index.saturating_mul(size));
                blank(block, block.saturating_add(size));
                free &= free.wrapping_sub(1);
            }
        }
        blank(start.saturating_add(size.saturating_mul(u64::from(info.blocks))), span_end);
    }
}
