//! Recorded allocations of real programs, made ready for replay.
//!
//! A trace is a zstd stream of records, each one little-endian u64:
//!
//! | bits | meaning |
//! |---|---|
//! | 60..64 | operation: 1 allocate, 2 free, 3 reallocate, 4 allocate aligned |
//! | 56..60 | log2 of the alignment (operation 4 only) |
//! | 32..56 | id of the block; it is used again once the block is freed |
//! | 0..32 | size in bytes (0 for free) |
//!
//! The programs were recorded from somewhere in the middle to somewhere before their end: they free what the trace
//! never allocated, and keep what it never frees. Both is settled here, so that the measured loop need not ask:
//! unknown blocks are skipped, and what is left is freed.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// The largest alignment that is asked for: programs may want more, shmheap gives no more.
const ALIGNMENT_LOG2_MAX: u32 = 12;

/// Which recorded program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TraceName {
    Python,
    Cc1plus,
    Git,
}

impl TraceName {
    pub(crate) const ALL: [Self; 3] = [Self::Python, Self::Cc1plus, Self::Git];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Cc1plus => "cc1plus",
            Self::Git => "git",
        }
    }

    fn file(self) -> PathBuf {
        let file = format!("{}.trace.zst", self.name());
        [env!("CARGO_MANIFEST_DIR"), "..", "data", &file].iter().collect()
    }
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Allocate,
    Aligned,
    Reallocate,
    Free,
}

/// One call of the recorded program, with what the replay would have to look up otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) act: Act,
    pub(crate) alignment_log2: u8,
    /// Which block.
    pub(crate) id: u32,
    /// Bytes asked for, or for a free: bytes that the block has.
    pub(crate) size: u32,
    /// Bytes that a reallocated block had before.
    pub(crate) old_size: u32,
}

/// A trace that frees what it allocates, and nothing else.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) steps: Vec<Step>,
    /// One more than the largest id.
    pub(crate) ids: usize,
    /// Steps until the most bytes are in use, and how many those are.
    pub(crate) peak: Peak,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Peak {
    pub(crate) steps: usize,
    pub(crate) bytes: u64,
}

/// Follows which blocks are in use while the records go by.
#[derive(Debug, Default)]
struct Reader {
    steps: Vec<Step>,
    /// Bytes of each id's block, 0 if there is none.
    live: Vec<u32>,
    live_bytes: u64,
    peak: Peak,
}

impl Reader {
    fn record(&mut self, word: u64) -> Result<()> {
        let id = (word >> 32) as u32 & 0x00ff_ffff;
        // A program may ask for nothing and gets a block all the same.
        let size = (word as u32).max(1);
        let alignment_log2 = (word >> 56 & 0xf) as u32;
        if id as usize >= self.live.len() {
            self.live.resize(id as usize + 1, 0);
        }
        let old_size = self.live[id as usize];
        let act = match word >> 60 {
            1 => Act::Allocate,
            2 => Act::Free,
            3 => Act::Reallocate,
            4 => Act::Aligned,
            other => bail!("there is no operation {other}"),
        };
        match act {
            Act::Allocate | Act::Aligned if old_size != 0 => self.step(Act::Free, 0, id, old_size, 0),
            Act::Free if old_size != 0 => {
                self.step(act, 0, id, old_size, 0);
                return Ok(());
            }
            // Unknown blocks.
            Act::Free | Act::Reallocate if old_size == 0 => return Ok(()),
            _ => {}
        }
        let old_size = if act == Act::Reallocate { old_size } else { 0 };
        self.step(act, alignment_log2.clamp(4, ALIGNMENT_LOG2_MAX) as u8, id, size, old_size);
        Ok(())
    }

    /// Frees what is left.
    fn finish(mut self) -> Trace {
        for id in 0..self.live.len() {
            let size = self.live[id];
            if size != 0 {
                self.step(Act::Free, 0, id as u32, size, 0);
            }
        }
        Trace { ids: self.live.len(), steps: self.steps, peak: self.peak }
    }

    fn step(&mut self, act: Act, alignment_log2: u8, id: u32, size: u32, old_size: u32) {
        self.steps.push(Step { act, alignment_log2, id, size, old_size });
        if act == Act::Free {
            self.live_bytes -= u64::from(size);
            self.live[id as usize] = 0;
            return;
        }
        self.live_bytes += u64::from(size);
        self.live_bytes -= u64::from(old_size);
        self.live[id as usize] = size;
        if self.live_bytes > self.peak.bytes {
            self.peak = Peak { steps: self.steps.len(), bytes: self.live_bytes };
        }
    }
}

impl Trace {
    pub(crate) fn read(name: TraceName) -> Result<Self> {
        let file = name.file();
        let bytes = File::open(&file).and_then(zstd::stream::decode_all);
        let bytes = bytes.with_context(|| format!("cannot read the trace {}", file.display()))?;
        let (words, rest) = bytes.as_chunks();
        ensure!(rest.is_empty(), "{} ends within a record", file.display());
        let mut reader = Reader::default();
        for word in words {
            reader.record(u64::from_le_bytes(*word)).with_context(|| file.display().to_string())?;
        }
        Ok(reader.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of a trace.
    fn record(operation: u64, id: u64, size: u64) -> u64 {
        operation << 60 | id << 32 | size
    }

    fn trace(records: &[u64]) -> Trace {
        let mut reader = Reader::default();
        records.iter().for_each(|word| reader.record(*word).expect("the records are right"));
        reader.finish()
    }

    #[test]
    fn what_the_trace_never_allocated_is_skipped() {
        assert!(trace(&[record(2, 5, 0), record(3, 6, 100)]).steps.is_empty());
    }

    #[test]
    fn what_is_left_is_freed_with_the_size_that_it_has() {
        let trace = trace(&[record(1, 0, 10), record(3, 0, 30)]);
        let acts: Vec<_> = trace.steps.iter().map(|step| (step.act, step.old_size, step.size)).collect();
        assert_eq!(acts, [(Act::Allocate, 0, 10), (Act::Reallocate, 10, 30), (Act::Free, 0, 30)]);
    }

    #[test]
    fn the_peak_is_where_most_bytes_are_live() {
        let records = [record(1, 0, 10), record(1, 1, 20), record(2, 0, 0), record(1, 0, 5)];
        let peak = trace(&records).peak;
        assert_eq!((peak.steps, peak.bytes), (2, 30));
    }

    #[test]
    fn every_recorded_program_frees_all_it_allocates() {
        for name in TraceName::ALL {
            let trace = Trace::read(name).expect("the traces lie in the repository");
            let count = |acts: &[Act]| trace.steps.iter().filter(|step| acts.contains(&step.act)).count();
            assert_eq!(count(&[Act::Free]), count(&[Act::Allocate, Act::Aligned]), "{}", name.name());
        }
    }
}
