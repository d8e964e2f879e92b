//! `save`, `load`, `verify`, `diff`: images.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum, ValueHint};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use shmheap::{Compression, Heap, ImageBlock, ImageDiff, ImageInfo, Progress, SaveOptions};

use super::{Changed, Named};
use crate::failure::Failure;
use crate::output::Output;
use crate::place::Place;
use crate::units::{self, counted, size};
use crate::{Outcome, Verdict};

/// Most blocks of each kind that `diff` lists.
const LISTED_MAX: usize = 20;

/// Saves an image of a heap to a file, while others use it.
///
/// A death at any moment leaves the old file or the new one.
#[derive(Debug, Args)]
pub(crate) struct Save {
    #[command(flatten)]
    heap: Changed,
    /// Path of the image, which is replaced as a whole
    #[arg(value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    image: PathBuf,
    /// How the bytes are compressed
    #[arg(long, value_enum, default_value_t = Packing::None)]
    compress: Packing,
    /// Let nobody allocate or free meanwhile: blocks, roots and contents of one moment
    #[arg(long)]
    freeze: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Packing {
    None,
    Lz4,
    Zstd,
}

impl From<Packing> for Compression {
    fn from(packing: Packing) -> Self {
        match packing {
            Packing::None => Self::None,
            Packing::Lz4 => Self::Lz4,
            Packing::Zstd => Self::Zstd,
        }
    }
}

/// Loads an image as a new heap.
///
/// Every block has the offset that it had, also in a larger heap.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// Path of the image
    #[arg(value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    image: PathBuf,
    #[command(flatten)]
    named: Named,
    /// Size of the new heap, at least that of the one that was saved [default: the same]
    #[arg(long, short, value_parser = units::parse_size)]
    capacity: Option<u64>,
}

/// Checks every byte of an image, and tells what is in it.
///
/// Exit code 1 if it is damaged.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Path of the image
    #[arg(value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    image: PathBuf,
}

/// Compares two images: which blocks and roots came, went, or changed.
///
/// Exit code 1 if any did.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The earlier image
    #[arg(value_name = "BEFORE", value_hint = ValueHint::FilePath)]
    before: PathBuf,
    /// The later image
    #[arg(value_name = "AFTER", value_hint = ValueHint::FilePath)]
    after: PathBuf,
}

/// A bar on the terminal that follows a save or a load; none where nobody looks on.
struct Bar(ProgressBar);

impl Bar {
    fn new(output: &Output, what: &'static str) -> Self {
        let target = if output.is_watched() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar.with_message(what))
    }

    fn show(&self, progress: Progress) {
        self.0.set_length(progress.total);
        self.0.set_position(progress.done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[derive(Debug, Serialize)]
struct ImageReport {
    image: PathBuf,
    /// What was done with it.
    #[serde(skip)]
    verb: &'static str,
    /// The heap, where one is concerned.
    heap: Option<String>,
    blocks: u64,
    used: u64,
    roots: u32,
    capacity: u64,
    page_size: u64,
    data_len: u64,
    image_len: u64,
    /// Bytes of disk that the file takes: less than its length where it has holes.
    image_taken: u64,
    compression: String,
    saved_ms: u64,
    seconds: f64,
}

impl ImageReport {
    fn new(verb: &'static str, image: &Path, heap: Option<String>, info: &ImageInfo, time: Duration) -> Self {
        Self {
            image: image.to_owned(),
            verb,
            heap,
            blocks: info.blocks,
            used: info.used,
            roots: info.roots,
            capacity: info.capacity,
            page_size: info.page_size,
            data_len: info.data_len,
            image_len: info.image_len,
            image_taken: std::fs::metadata(image).map_or(0, |meta| meta.blocks().saturating_mul(512)),
            compression: info.compression.to_string(),
            saved_ms: info.saved_ms,
            seconds: time.as_secs_f64(),
        }
    }
}

impl fmt::Display for ImageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = self.image.display();
        match &self.heap {
            Some(heap) if self.verb == "loaded" => writeln!(f, "loaded {image} as {heap}")?,
            Some(heap) => writeln!(f, "{} {heap} to {image}", self.verb)?,
            None => writeln!(f, "{image}: every byte is as it was saved, {} ago", units::age(self.saved_ms))?,
        }
        let Self { blocks, used, roots, capacity, .. } = self;
        let (blocks, roots) = (counted(*blocks, "block"), counted(*roots, "root"));
        writeln!(f, "  {blocks} of {}, {roots}, of a heap of {}", size(*used), size(*capacity))?;
        let (len, taken) = (size(self.image_len), size(self.image_taken));
        writeln!(f, "  image {len}, of which {taken} are on disk; compression {}", self.compression)?;
        let speed = size((self.data_len as f64 / self.seconds.max(1e-9)) as u64);
        writeln!(f, "  {:.3} s, {speed}/s of {} in pages", self.seconds, size(self.data_len))
    }
}

/// The failure for an error that concerns an image.
fn explain(image: &Path, error: shmheap::Error) -> Failure {
    match error {
        shmheap::Error::NotFound { .. } => Failure::cannot(format!("there is no image at {}", image.display())),
        error => error.into(),
    }
}

impl Save {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = self.heap.place();
        let heap = self.heap.open()?;
        let options = SaveOptions::new().compression(self.compress.into());
        let (bar, started) = (Bar::new(output, "saving"), Instant::now());
        let show = |progress| bar.show(progress);
        let saved = if self.freeze {
            heap.freeze().and_then(|frozen| frozen.save_with(&self.image, &options, show))
        } else {
            heap.save_with(&self.image, &options, show)
        };
        let info = saved.map_err(|error| match error {
            shmheap::Error::NotFound { .. } => {
                Failure::cannot(format!("the folder of {} does not exist", self.image.display()))
            }
            error => place.explain(error),
        })?;
        drop(bar);
        output.print(&ImageReport::new("saved", &self.image, Some(place.text()), &info, started.elapsed()))?;
        Ok(Verdict::Fine)
    }
}

impl Load {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = &self.named.place;
        let info = shmheap::verify(&self.image).map_err(|error| explain(&self.image, error))?;
        let mut options = Heap::options();
        if let Some(bytes) = self.capacity {
            options = options.capacity(bytes);
        }
        let (bar, started) = (Bar::new(output, "loading"), Instant::now());
        let show = |progress| bar.show(progress);
        let loaded = match place {
            Place::Segment(name) => options.load_with(&self.image, name, show),
            Place::File(path) => options.load_file_with(&self.image, path, show),
        };
        loaded.map_err(|error| place.explain(error))?;
        drop(bar);
        output.print(&ImageReport::new("loaded", &self.image, Some(place.text()), &info, started.elapsed()))?;
        Ok(Verdict::Fine)
    }
}

impl Verify {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let (bar, started) = (Bar::new(output, "verifying"), Instant::now());
        let verified = shmheap::verify_with(&self.image, |progress| bar.show(progress));
        drop(bar);
        let info = verified.map_err(|error| explain(&self.image, error))?;
        output.print(&ImageReport::new("verified", &self.image, None, &info, started.elapsed()))?;
        Ok(Verdict::Fine)
    }
}

#[derive(Debug, Serialize)]
struct DiffReport {
    same: bool,
    unchanged: u64,
    allocated: Vec<Block>,
    freed: Vec<Block>,
    changed: Vec<Block>,
    roots_added: Vec<String>,
    roots_removed: Vec<String>,
    roots_changed: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Block {
    offset: u64,
    size: u64,
}

fn blocks(blocks: Vec<ImageBlock>) -> Vec<Block> {
    blocks.into_iter().map(|block| Block { offset: block.offset.get(), size: block.size }).collect()
}

impl From<ImageDiff> for DiffReport {
    fn from(diff: ImageDiff) -> Self {
        Self {
            same: diff.is_empty(),
            unchanged: diff.unchanged,
            allocated: blocks(diff.allocated),
            freed: blocks(diff.freed),
            changed: blocks(diff.changed),
            roots_added: diff.roots_added,
            roots_removed: diff.roots_removed,
            roots_changed: diff.roots_changed,
        }
    }
}

impl fmt::Display for DiffReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [('+', "allocated", &self.allocated), ('-', "freed", &self.freed), ('~', "changed", &self.changed)];
        for (sign, what, blocks) in all.into_iter().filter(|(.., blocks)| !blocks.is_empty()) {
            let bytes: u64 = blocks.iter().map(|block| block.size).sum();
            writeln!(f, "{} of {} {what}", counted(blocks.len() as u64, "block"), size(bytes))?;
            for Block { offset, size } in blocks.iter().take(LISTED_MAX) {
                writeln!(f, "  {sign} {offset:#x} {size} bytes")?;
            }
            if blocks.len() > LISTED_MAX {
                writeln!(f, "  {sign} ... and {} more; --json lists all", blocks.len() - LISTED_MAX)?;
            }
        }
        let roots = [('+', &self.roots_added), ('-', &self.roots_removed), ('~', &self.roots_changed)];
        for (sign, names) in roots {
            names.iter().try_for_each(|name| writeln!(f, "{sign} root {name}"))?;
        }
        match self.same {
            true => writeln!(f, "the same: {} and all roots", counted(self.unchanged, "block")),
            false => writeln!(f, "{} unchanged", counted(self.unchanged, "block")),
        }
    }
}

impl Diff {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let bar = Bar::new(output, "comparing");
        let compared = shmheap::diff_with(&self.before, &self.after, |progress| bar.show(progress));
        drop(bar);
        let report: DiffReport = compared
            .map_err(|error| match error {
                shmheap::Error::NotFound { name } => Failure::cannot(format!("there is no image at {name}")),
                error => error.into(),
            })?
            .into();
        output.print(&report)?;
        Ok(if report.same { Verdict::Fine } else { Verdict::Wrong })
    }
}
