//! Images: a heap's contents in a file, from which it can be made anew.
//!
//! | noun | file | |
//! |---|---|---|
//! | [`SaveOptions`], [`Progress`] | here | how an image is written, and how far that has come |
//! | layout | `layout.rs` | the bytes of an image: header, chunks, records |
//! | encoding | `encoding.rs` | how a chunk's bytes are compressed |
//! | sink | `sink.rs` | where chunks are written, summed up as they go |
//! | source | `source.rs` | where chunks are read, checked as they come |
//! | contents | `contents.rs` | which spans and roots an image has, checked against each other |
//! | save, load, verify, diff | a file each | |
//!
//! An image holds the truth of a heap and nothing that is derived: which blocks are allocated, where roots lead, what stands
//! in the pages that hold blocks. Free blocks are written as zeros. docs/FORMAT.md draws the bytes.
//!
//! I1. Nothing of an image is used before the checksum of its chunk was found right, and nothing is believed that is not
//!     checked against the heap's header: a checksum says that the bytes are those that were written, not by whom.
//! I2. A heap that is loaded has its name only after everything was read and checked; an image that is saved has its name
//!     only after everything was written to disk.
//!
//! Not here: how a moment of a heap is caught (`heap::snapshot`), and put back (`heap::restore`).

mod contents;
mod diff;
mod encoding;
mod layout;
mod load;
mod save;
mod sink;
mod source;
mod verify;

use std::fmt;

pub use diff::{ImageBlock, ImageDiff, diff, diff_with};
pub use verify::{verify, verify_with};

/// How the bytes of an image are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all: the fastest where the disk is not the bottleneck.
    #[default]
    None,
    /// LZ4: fast, half the size in many cases. Needs the feature `lz4`.
    Lz4,
    /// Zstandard, level 3: slower, smaller. Needs the feature `zstd`.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// How an image is written; see [`Heap::save_with`](crate::Heap::save_with).
#[derive(Debug, Clone, Default)]
pub struct SaveOptions {
    compression: Compression,
}

impl SaveOptions {
    /// All defaults: no compression.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How the contents of the pages are compressed. A part that does not shrink is stored as it is.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }
}

/// How far a call has come: a save or a load in bytes of the pages that hold blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes that are done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What an image says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// Capacity of the heap that was saved, in bytes.
    pub capacity: u64,
    /// Bytes per page.
    pub page_size: u64,
    /// Allocated blocks.
    pub blocks: u64,
    /// Usable bytes of those.
    pub used: u64,
    /// Roots.
    pub roots: u32,
    /// Bytes of the pages that hold blocks.
    pub data_len: u64,
    /// Bytes of the image.
    pub image_len: u64,
    /// How the contents of the pages are compressed.
    pub compression: Compression,
    /// When it was saved, in milliseconds since 1970.
    pub saved_ms: u64,
}

impl fmt::Display for ImageInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { capacity, blocks, used, roots, image_len, compression, .. } = self;
        write!(
            f,
            "{blocks} blocks of {used} bytes and {roots} roots of a heap of {capacity} bytes, in {image_len} bytes (compression: \
             {compression})"
        )
    }
}
