//! Which spans and roots an image has: read from its chunks, and checked against the heap's header and each other.

use std::collections::BTreeSet;

use zerocopy::FromBytes;

use super::layout::{Kind, LARGE, RootRecord, SLAB, SpanRecord};
use super::source::{Chunk, Source};
use crate::error::Result;
use crate::format::{ClassIndex, Geometry, RootName};
use crate::heap::{SavedRoot, SavedSpan, Snapshot, SpanKind};

/// What stands in the chunks before the data.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) snapshot: Snapshot,
    /// Bytes of the region that data may come for: of pages that hold blocks, neighbouring spans as one.
    runs: Vec<std::ops::Range<u64>>,
    /// Where the last data chunk ended.
    data_end: u64,
}

impl Contents {
    /// Reads the spans and the roots, up to the first chunk of another kind, which is returned with them.
    pub(super) fn read(source: &mut Source<'_>) -> Result<(Self, Chunk)> {
        let mut snapshot = Snapshot::default();
        let mut last = Kind::Spans;
        loop {
            let chunk = source.next()?;
            if chunk.kind < last {
                return Err(source.corrupt("chunks of different kinds come in the wrong order", chunk.place));
            }
            last = chunk.kind;
            match chunk.kind {
                Kind::Spans => read_spans(source, &chunk, &mut snapshot)?,
                Kind::Roots => read_roots(source, &chunk, &mut snapshot)?,
                Kind::Data | Kind::End => {
                    let contents = Self { runs: runs(source.geometry(), &snapshot), snapshot, data_end: 0 };
                    contents.check_roots(source, chunk.place)?;
                    contents.check_totals(source, chunk.place)?;
                    return Ok((contents, chunk));
                }
            }
        }
    }

    /// The next chunk of data after `chunk`, checked; `None` at the end of the image. `chunk` is the one that
    /// [`Self::read`] returned, or the next.
    pub(super) fn check_data(&mut self, source: &Source<'_>, chunk: &Chunk) -> Result<bool> {
        if chunk.kind == Kind::End {
            return Ok(false);
        }
        let end = chunk.at.saturating_add(chunk.bytes.len() as u64);
        let run = self.runs.partition_point(|run| run.end <= chunk.at);
        let fits = self.runs.get(run).is_some_and(|run| run.start <= chunk.at && end <= run.end);
        if chunk.kind != Kind::Data || !fits || chunk.at < self.data_end || chunk.bytes.is_empty() {
            return Err(source.corrupt("a chunk of data lies outside the blocks, or over another one", chunk.place));
        }
        self.data_end = end;
        Ok(true)
    }

    /// True if a block is allocated that starts at `offset`.
    fn is_block(&self, source: &Source<'_>, offset: u64) -> bool {
        let geometry = source.geometry();
        let Some(distance) = offset.checked_sub(geometry.data_start) else { return false };
        let page = distance >> geometry.page_shift;
        let next = self.snapshot.spans.partition_point(|span| u64::from(span.first) <= page);
        let Some(span) = next.checked_sub(1).and_then(|index| self.snapshot.spans.get(index)) else { return false };
        let inside = distance.saturating_sub(u64::from(span.first) << geometry.page_shift);
        let SpanKind::Slab { class, .. } = span.kind else { return inside == 0 };
        let Some(size) = source.classes().get(class).map(|info| u64::from(info.size)) else { return false };
        let (index, rest) = (inside.checked_div(size).unwrap_or(u64::MAX), inside.checked_rem(size));
        let word = usize::try_from(index / 64).ok().and_then(|word| self.snapshot.bits(span).get(word).copied());
        rest == Some(0) && word.unwrap_or(0) >> (index % 64) & 1 != 0
    }

    fn check_roots(&self, source: &Source<'_>, place: u64) -> Result<()> {
        let mut names = BTreeSet::new();
        for root in &self.snapshot.roots {
            if root.name.text().is_none_or(|name| !names.insert(name)) {
                return Err(source.corrupt("a root has no legal name, or that of another one", place));
            }
            if !self.is_block(source, root.offset) {
                return Err(source.corrupt("a root leads to no block", place));
            }
        }
        Ok(())
    }

    /// Checks what the header says of the contents.
    fn check_totals(&self, source: &Source<'_>, place: u64) -> Result<()> {
        let info = source.info();
        let data_len = self.runs.iter().fold(0u64, |sum, run| sum.saturating_add(run.end.saturating_sub(run.start)));
        let (blocks, used) = self.snapshot.totals(source.classes(), source.geometry());
        let roots = u32::try_from(self.snapshot.roots.len()).unwrap_or(u32::MAX);
        if (data_len, blocks, used, roots) != (info.data_len, info.blocks, info.used, info.roots) {
            return Err(source.corrupt("the header's numbers are not those of the contents", place));
        }
        Ok(())
    }
}

/// Bytes of the region, as runs, that the spans of a snapshot take.
pub(super) fn runs(geometry: &Geometry, snapshot: &Snapshot) -> Vec<std::ops::Range<u64>> {
    let mut runs: Vec<std::ops::Range<u64>> = Vec::new();
    for span in &snapshot.spans {
        let start = geometry.data_start.saturating_add(u64::from(span.first) << geometry.page_shift);
        let end = start.saturating_add(u64::from(span.pages) << geometry.page_shift);
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

fn read_spans(source: &Source<'_>, chunk: &Chunk, snapshot: &mut Snapshot) -> Result<()> {
    let corrupt = |what| source.corrupt(what, chunk.place);
    let geometry = source.geometry();
    let mut rest = chunk.bytes.as_slice();
    while !rest.is_empty() {
        let (record, after) = SpanRecord::read_from_prefix(rest).map_err(|_| corrupt("a record of a span is cut short"))?;
        let (first, count) = (record.first.get(), record.count.get());
        let (pages, kind, after) = match record.kind {
            LARGE => (count, SpanKind::Large, after),
            SLAB => {
                let class = ClassIndex(record.class);
                let info = source.classes().get(class).ok_or_else(|| corrupt("a slab has an unknown size class"))?;
                if count != info.words() {
                    return Err(corrupt("a slab has more or fewer words than its class"));
                }
                let bytes = (count as usize).saturating_mul(8);
                let (bits, after) = after.split_at_checked(bytes).ok_or_else(|| corrupt("a slab's words are cut short"))?;
                let first_word = snapshot.words.len();
                snapshot.words.extend(bits.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)));
                let words = snapshot.words.get(first_word..).unwrap_or_default();
                let beyond = |(index, word): (u32, &u64)| word & !info.mask(index) != 0;
                if words.iter().all(|word| *word == 0) || (0u32..).zip(words).any(beyond) {
                    return Err(corrupt("a slab has no block, or one beyond its last"));
                }
                (info.pages, SpanKind::Slab { class, first_word, words: count as usize }, after)
            }
            _ => return Err(corrupt("a span has an unknown kind")),
        };
        let start = snapshot.spans.last().map_or(0, |span| u64::from(span.first).saturating_add(u64::from(span.pages)));
        let end = u64::from(first).saturating_add(u64::from(pages));
        if pages == 0 || u64::from(first) < start || end > u64::from(geometry.pages) {
            return Err(corrupt("a span lies outside the heap, or over another one"));
        }
        snapshot.spans.push(SavedSpan { first, pages, kind });
        rest = after;
    }
    Ok(())
}

fn read_roots(source: &Source<'_>, chunk: &Chunk, snapshot: &mut Snapshot) -> Result<()> {
    let mut rest = chunk.bytes.as_slice();
    while !rest.is_empty() {
        let (record, after) = RootRecord::read_from_prefix(rest)
            .map_err(|_| source.corrupt("a record of a root is cut short", chunk.place))?;
        if snapshot.roots.len() >= source.header().root_slots as usize {
            return Err(source.corrupt("there are more roots than the heap has slots", chunk.place));
        }
        let name = RootName::from_bytes(record.name, record.name_len.get());
        snapshot.roots.push(SavedRoot { name, offset: record.offset.get(), type_id: record.type_id.get() });
        rest = after;
    }
    Ok(())
}
