//! What a trace file says.
//!
//! A trace is a zstd stream of records, each one little-endian u64:
//!
//! | bits | meaning |
//! |---|---|
//! | 60..64 | operation: 1 allocate, 2 free, 3 reallocate, 4 allocate aligned |
//! | 56..60 | log2 of the alignment (operation 4 only) |
//! | 32..56 | id of the block; it is used again once the block is freed |
//! | 0..32 | size in bytes (0 for free) |

use std::fs::File;
use std::path::Path;

use crate::Result;

/// What `malloc` promises, and every block has.
pub(crate) const ALIGNMENT_DEFAULT: usize = 16;
/// The largest alignment that a heap can give.
const ALIGNMENT_MAX: usize = 4096;

/// One call that the recorded program made.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Record {
    /// `malloc`, `calloc` and the like.
    Allocate { id: u32, size: u32, alignment: usize },
    /// `realloc`.
    Reallocate { id: u32, size: u32 },
    /// `free`.
    Free { id: u32 },
}

impl Record {
    fn decode(word: u64) -> Option<Self> {
        let id = (word >> 32) as u32 & 0x00ff_ffff;
        // A program may ask for nothing and gets a block all the same; the heap has no empty blocks.
        let size = (word as u32).max(1);
        match word >> 60 {
            1 => Some(Self::Allocate { id, size, alignment: ALIGNMENT_DEFAULT }),
            2 => Some(Self::Free { id }),
            3 => Some(Self::Reallocate { id, size }),
            4 => {
                // Programs may align to more than a page; the heap does not, and the replay makes do with a page.
                let alignment = (1 << (word >> 56 & 0xf)).clamp(8, ALIGNMENT_MAX);
                Some(Self::Allocate { id, size, alignment })
            }
            _ => None,
        }
    }
}

/// All records of the trace in `file`, in order.
pub(crate) fn read(file: &Path) -> Result<Vec<Record>> {
    let bytes = File::open(file)
        .and_then(zstd::stream::decode_all)
        .map_err(|error| format!("cannot read the trace {}: {error}", file.display()))?;
    let (words, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return Err(format!("{} ends within a record", file.display()).into());
    }
    let decode = |(number, bytes): (usize, &[u8; 8])| {
        let word = u64::from_le_bytes(*bytes);
        Record::decode(word).ok_or_else(|| format!("{}: record {number} is none: {word:#x}", file.display()).into())
    };
    words.iter().enumerate().map(decode).collect()
}
