//! `map`: a heap as a picture, on the terminal or in files.

use std::fmt;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use shmheap::{Error, Heap, SpanInfo, SpanUsage};

use super::Named;
use crate::failure::Failure;
use crate::map::{self, Map, Picture, Subject, Zoom, terminal};
use crate::output::Output;
use crate::units::{parse_offset, size};
use crate::{Outcome, Verdict};

/// Draws a heap: which pages hold blocks of which sizes, how full they are, and what is free.
#[derive(Debug, Args)]
pub(crate) struct Draw {
    #[command(flatten)]
    named: Named,
    /// Show the span around this offset, block by block
    #[arg(long, visible_alias = "slab", value_name = "OFFSET", value_parser = parse_offset)]
    at: Option<u64>,
    /// Write the picture to this file, as SVG
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    svg: Option<PathBuf>,
    /// Write the picture to this file, as PNG
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    png: Option<PathBuf>,
}

/// A heap as numbers.
#[derive(Debug, Serialize)]
struct HeapRow {
    name: String,
    capacity: u64,
    page_size: u64,
    pages_start: u64,
    pages_bytes: u64,
    used: Option<u64>,
    free: Option<u64>,
    fragmentation: Option<f64>,
    /// What is wrong with it; the spans end there.
    damage: Option<String>,
    spans: Vec<SpanRow>,
}

/// A span as numbers; what does not apply is null.
#[derive(Debug, Serialize)]
struct SpanRow {
    offset: u64,
    len: u64,
    kind: &'static str,
    block_size: Option<u64>,
    blocks: Option<u32>,
    allocated: Option<u32>,
    lane: Option<u16>,
    orphan: bool,
}

/// A span as numbers, block by block.
#[derive(Debug, Serialize)]
struct ZoomRow {
    name: String,
    offset: u64,
    len: u64,
    kind: &'static str,
    block_size: Option<u64>,
    lane: Option<u16>,
    orphan: bool,
    /// Number of the block that was asked for.
    asked: Option<usize>,
    blocks: Vec<BlockRow>,
}

#[derive(Debug, Serialize)]
struct BlockRow {
    number: usize,
    offset: u64,
    allocated: bool,
}

/// A file that was written.
#[derive(Debug, Serialize)]
struct Written {
    path: String,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct AllWritten {
    written: Vec<Written>,
}

/// What is printed unless files are written: a picture, or its numbers.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Shown<T> {
    numbers: T,
    #[serde(skip)]
    picture: String,
}

impl<T> fmt::Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.picture)
    }
}

impl fmt::Display for AllWritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.written.iter().try_for_each(|file| writeln!(f, "{}: {}", file.path, size(file.bytes)))
    }
}

impl HeapRow {
    fn new(name: &str, heap: &Heap, map: &Map) -> Self {
        let stats = map.stats.as_ref().ok();
        Self {
            name: name.to_owned(),
            capacity: heap.capacity(),
            page_size: heap.page_size(),
            pages_start: heap.pages_start(),
            pages_bytes: heap.total_size(),
            used: stats.map(|stats| stats.used),
            free: stats.map(|stats| stats.free),
            fragmentation: stats.map(shmheap::Stats::fragmentation_ratio),
            damage: map.stats.as_ref().err().map(Error::to_string),
            spans: heap.spans().map(|span| SpanRow::new(&span)).collect(),
        }
    }
}

impl SpanRow {
    fn new(span: &SpanInfo) -> Self {
        let (offset, len) = (span.offset.get(), span.len);
        let plain =
            |kind, lane| Self { offset, len, kind, block_size: None, blocks: None, allocated: None, lane, orphan: false };
        match span.usage {
            SpanUsage::Free { reserved: false } => plain("free", None),
            SpanUsage::Free { reserved: true } => plain("reserved", None),
            SpanUsage::Kept { lane } => plain("kept", lane),
            SpanUsage::Large { lane } => Self { orphan: lane.is_none(), ..plain("large", lane) },
            SpanUsage::Slab { block_size, blocks, allocated, lane } => Self {
                block_size: Some(block_size),
                blocks: Some(blocks),
                allocated: Some(allocated),
                orphan: lane.is_none(),
                ..plain("slab", lane)
            },
            _ => plain("unknown", None),
        }
    }
}

impl ZoomRow {
    fn new(name: &str, zoom: &Zoom) -> Self {
        let (kind, block_size, blocks) = match &zoom.subject {
            Subject::Slab { block_size, blocks } => ("slab", Some(*block_size), blocks.as_slice()),
            Subject::Large => ("large", None, &[][..]),
            Subject::Kept => ("kept", None, &[][..]),
            Subject::Free { reserved: true } => ("reserved", None, &[][..]),
            Subject::Free { reserved: false } => ("free", None, &[][..]),
        };
        let row =
            |(number, block): (usize, &map::Block)| BlockRow { number, offset: block.offset, allocated: block.allocated };
        Self {
            name: name.to_owned(),
            offset: zoom.offset,
            len: zoom.len,
            kind,
            block_size,
            lane: zoom.lane,
            orphan: zoom.lane.is_none() && matches!(kind, "slab" | "large"),
            asked: zoom.asked(),
            blocks: blocks.iter().enumerate().map(row).collect(),
        }
    }
}

impl Draw {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = &self.named.place;
        let (name, heap) = (place.text(), place.open_read_only()?);
        let canvas = terminal::Canvas::of_stdout();
        let cells = if self.writes_files() { map::CELLS_MAX } else { canvas.cells() };
        if let Some(at) = self.at {
            let zoom = match Zoom::of(&heap, at).map_err(|error| place.explain(error))? {
                Some(zoom) => zoom,
                None => return Err(self.outside(&heap, at)),
            };
            let picture = Picture::of_zoom(&name, &heap, &zoom, cells);
            self.show(output, &picture, canvas, ZoomRow::new(&name, &zoom))?;
            return Ok(Verdict::Fine);
        }
        let map = Map::of(&heap, cells).map_err(|error| place.explain(error))?;
        self.show(output, &Picture::of_map(&name, &map), canvas, HeapRow::new(&name, &heap, &map))?;
        match map.stats {
            Ok(_) => Ok(Verdict::Fine),
            Err(error) => Err(place.explain(error)),
        }
    }

    fn writes_files(&self) -> bool {
        self.svg.is_some() || self.png.is_some()
    }

    fn outside(&self, heap: &Heap, at: u64) -> Failure {
        let (start, name) = (heap.pages_start(), self.named.place.text());
        let end = start + heap.total_size();
        let map = format!("shmheap map {name} shows what stands where");
        if (start..end).contains(&at) {
            return Failure::wrong(
                format!("{name}: what stands at {at:#x} cannot be told: the page table is damaged"),
                format!("shmheap repair {name} --dry-run tells what can be mended"),
            );
        }
        Failure::usage(format!("{at:#x} lies outside the pages, which go from {start:#x} to {end:#x}"), map)
    }

    /// Writes the files that are wanted, or else prints the picture.
    fn show(
        &self,
        output: &Output,
        picture: &Picture,
        canvas: terminal::Canvas,
        numbers: impl Serialize,
    ) -> Result<(), Failure> {
        if !self.writes_files() {
            return output.print(&Shown { numbers, picture: terminal::draw(picture, canvas) });
        }
        let scene = map::scene::of(picture);
        let mut written = Vec::new();
        if let Some(path) = &self.svg {
            written.push(write(path, map::svg::paint(&scene).as_bytes())?);
        }
        if let Some(path) = &self.png {
            let bytes = map::png::paint(&scene).map_err(|error| cannot_write(path, error))?;
            written.push(write(path, &bytes)?);
        }
        output.print(&AllWritten { written })
    }
}

/// Writes a file as a whole: whoever looks meanwhile finds the old one or the new one. What is no file, a pipe or a device,
/// is written to as it is.
fn write(path: &Path, bytes: &[u8]) -> Result<Written, Failure> {
    let result = match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(cannot_write(path, "it is a directory")),
        Ok(found) if !found.is_file() => File::options().write(true).open(path).and_then(|mut file| file.write_all(bytes)),
        // A link stays one.
        Ok(_) => path.canonicalize().and_then(|path| replace(&path, bytes)),
        Err(_) => replace(path, bytes),
    };
    result.map_err(|error| cannot_write(path, error))?;
    Ok(Written { path: path.display().to_string(), bytes: bytes.len() as u64 })
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // As for any new file, the umask takes away from this.
    let permissions = Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new().prefix(".shmheap-").permissions(permissions).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

fn cannot_write(path: &Path, error: impl fmt::Display) -> Failure {
    // Where the temporary file was to be is of no use to anybody.
    let text = error.to_string();
    let why = text.split(" at path ").next().unwrap_or(&text);
    Failure::cannot(format!("cannot write {}: {why}", path.display()))
}
