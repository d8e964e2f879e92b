//! What would be left of a segment if its processes died now: its bytes, and which of them are backed by memory.
//!
//! An image is read with `pread`, which leaves holes as they are, and is put into a segment of its own, whose lanes nobody
//! holds a token of: there everybody who had attached the original is dead. Who is dead is asked of tokens alone, so this
//! answers the question for the copy without the library knowing of it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use nix::unistd::{Whence, lseek64};
use shmheap::{Heap, Options};

use crate::common::Segment;

/// A segment's bytes and extents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    /// Which ranges have been written, and are backed by memory therefore.
    pub(crate) extents: Vec<(u64, u64)>,
    /// Bytes of memory that the segment takes. More than the extents have: memory that was reserved and never touched.
    pub(crate) taken: u64,
}

/// An open segment, looked at from outside.
#[derive(Debug)]
pub(crate) struct Window(File);

impl Window {
    /// A view of the segment of this name; `None` while there is none.
    pub(crate) fn open(segment: &Segment) -> Option<Self> {
        OpenOptions::new().read(true).write(true).open(segment.path()).ok().map(Self)
    }

    /// Reads the bytes into `bytes`; true if they were others before.
    pub(crate) fn read_if_changed(&self, bytes: &mut Vec<u8>, scratch: &mut Vec<u8>) -> bool {
        let len = self.0.metadata().expect("the segment has a length").len();
        scratch.resize(usize::try_from(len).expect("swept segments are small"), 0);
        self.0.read_exact_at(scratch, 0).expect("the segment can be read");
        if scratch == bytes {
            return false;
        }
        std::mem::swap(bytes, scratch);
        true
    }

    /// Which ranges are backed by memory.
    fn extents(&self) -> Vec<(u64, u64)> {
        let mut extents = Vec::new();
        let mut at = 0;
        while let Ok(start) = lseek64(&self.0, at, Whence::SeekData) {
            let end = lseek64(&self.0, start, Whence::SeekHole).expect("every extent has an end");
            extents.push((u64::try_from(start).expect("not negative"), u64::try_from(end).expect("not negative")));
            at = end;
        }
        extents
    }

    /// Everything.
    pub(crate) fn image(&self) -> Image {
        let taken = self.0.metadata().expect("the segment tells").blocks() * 512;
        let mut image = Image { bytes: Vec::new(), extents: self.extents(), taken };
        self.read_if_changed(&mut image.bytes, &mut Vec::new());
        image
    }

    /// Writes the pages that differ from `bytes`.
    pub(crate) fn restore(&self, bytes: &[u8], scratch: &mut Vec<u8>) {
        scratch.resize(bytes.len(), 0);
        self.0.read_exact_at(scratch, 0).expect("the segment can be read");
        for (index, (old, now)) in bytes.chunks(4096).zip(scratch.chunks(4096)).enumerate() {
            if old != now {
                self.0.write_all_at(old, index as u64 * 4096).expect("there is room");
            }
        }
    }
}

/// A segment that takes images.
#[derive(Debug)]
pub(crate) struct Copy {
    segment: Segment,
    file: File,
}

impl Copy {
    pub(crate) fn new(tag: &str) -> Self {
        let segment = Segment::new(tag);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(segment.path());
        Self { segment, file: file.expect("a new name") }
    }

    pub(crate) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Makes the segment what the image says, holes included.
    pub(crate) fn put(&self, image: &Image) {
        self.file.set_len(0).expect("the segment can be emptied");
        self.file.set_len(image.bytes.len() as u64).expect("the segment can be made longer");
        for (start, end) in &image.extents {
            let range =
                usize::try_from(*start).expect("small")..usize::try_from(*end).expect("small").min(image.bytes.len());
            self.file.write_all_at(&image.bytes[range], *start).expect("there is room");
        }
    }

    /// Attaches what was put there; everybody in it is dead.
    pub(crate) fn open(&self) -> shmheap::Result<Heap> {
        Options::new().open(self.segment.name())
    }

    pub(crate) fn open_read_only(&self) -> shmheap::Result<Heap> {
        Options::new().open_read_only(self.segment.name())
    }
}

/// Reads numbers out of an image as docs/FORMAT.md draws them, independently of the library.
struct Drawing<'a>(&'a [u8]);

impl Drawing<'_> {
    fn half(&self, at: u64) -> u64 {
        let at = usize::try_from(at).expect("small");
        u64::from(u32::from_ne_bytes(self.0[at..at + 4].try_into().expect("four bytes")))
    }

    fn word(&self, at: u64) -> u64 {
        self.half(at) | self.half(at + 4) << 32
    }

    fn bit(&self, table: u64, index: u64) -> bool {
        self.word(table + index / 64 * 8) >> (index % 64) & 1 != 0
    }
}

/// What a heap counts on to be memory, as the image's own bits say, and how many of those pages were never written.
struct Claims<'a> {
    image: &'a Image,
    unwritten: Vec<(u64, String)>,
}

impl Claims<'_> {
    fn claim(&mut self, start: u64, len: u64, what: impl Fn() -> String) {
        let end = (start + len).min(self.image.bytes.len() as u64);
        for page in (start & !0xfff..end).step_by(4096) {
            let is_written = self.image.extents.iter().any(|(first, last)| (*first..*last).contains(&page));
            if !is_written && !self.unwritten.iter().any(|(known, _)| *known == page) {
                self.unwritten.push((page, what()));
            }
        }
    }
}

impl Image {
    /// True if somebody claims the lane.
    pub(crate) fn is_claimed(&self, lane: i64) -> bool {
        u64::try_from(lane).is_ok_and(|lane| Drawing(&self.bytes).half(4096 + 512 * lane) != 0)
    }

    /// The first thing that the heap counts on to be reserved memory, if it counts on more than there is. Holds at every
    /// instruction: bits are set after the memory is there, and cleared before it is given back.
    pub(crate) fn unbacked(&self) -> Option<String> {
        let drawing = Drawing(&self.bytes);
        let (page, lanes, slots) = (1u64 << drawing.half(0x18), drawing.half(0x1c), drawing.half(0x20));
        let roots_at = 4096 + 512 * (lanes + 1);
        let data_start = (roots_at + 128 * slots).next_multiple_of(page);
        let tables = |pages: u64| {
            let mut at = data_start + page * pages;
            let mut places = Vec::new();
            let chunks = pages.div_ceil(512);
            let mut lens = vec![8 * pages, 8 * pages, 64 * chunks, 64 * chunks, 8 * pages.div_ceil(256).div_ceil(64)];
            lens.extend((0..7).scan(chunks, |nodes, _| Some(16 * std::mem::replace(nodes, nodes.div_ceil(8)))));
            lens.push(page / 64 * pages);
            for len in lens {
                at = at.next_multiple_of(64);
                places.push(at);
                at += len;
            }
            (at <= self.bytes.len() as u64).then_some(places)
        };
        let places = (4..4096).rev().find_map(tables).expect("a heap has four pages at least");
        let high = drawing.word(0xc0);
        let mut claims = Claims { image: self, unwritten: Vec::new() };
        claims.claim(0, roots_at, || "the superblock or a lane record".to_owned());
        for piece in (0..slots.div_ceil(32)).filter(|piece| drawing.bit(0x300, *piece)) {
            let len = (128 * slots - piece * 4096).min(4096);
            claims.claim(roots_at + piece * 4096, len, || format!("root records from {} on", piece * 32));
        }
        for at in places.iter().take(if high == 0 { 0 } else { 2 }) {
            claims.claim(*at, 8 * high, || format!("the table at {at:#x}"));
        }
        for number in (0..high).filter(|number| drawing.bit(places[3], *number)) {
            claims.claim(data_start + number * page, page, || format!("page {number}"));
        }
        // The swept heaps are smaller than a group of pages.
        if high != 0 && drawing.bit(places[4], 0) {
            claims.claim(places[places.len() - 1], page / 64 * high, || "slab bitmaps".to_owned());
        }
        let written: u64 = self.extents.iter().map(|(start, end)| end - start).sum();
        let spare = (self.taken.saturating_sub(written) / 4096) as usize;
        claims.unwritten.get(spare).map(|(_, what)| what.clone())
    }
}
