//! What changed between two images of a heap.

use std::cmp::Ordering;
use std::path::Path;

use super::Progress;
use super::contents::Contents;
use super::source::{Chunk, Source};
use crate::error::{Error, Result};
use crate::heap::{Snapshot, SpanKind};
use crate::region::Offset;

/// A block of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct ImageBlock {
    /// Where it starts.
    pub offset: Offset,
    /// Usable bytes.
    pub size: u64,
}

/// What changed between two images; blocks in the order of their offsets, roots in that of their names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ImageDiff {
    /// Blocks that only the second image has: allocated meanwhile.
    pub allocated: Vec<ImageBlock>,
    /// Blocks that only the first one has: freed meanwhile. One that was resized in place is here and in `allocated`.
    pub freed: Vec<ImageBlock>,
    /// Blocks that both have, with other contents.
    pub changed: Vec<ImageBlock>,
    /// Blocks that both have, with the same contents.
    pub unchanged: u64,
    /// Roots that only the second image has.
    pub roots_added: Vec<String>,
    /// Roots that only the first one has.
    pub roots_removed: Vec<String>,
    /// Roots that lead elsewhere in the second image.
    pub roots_changed: Vec<String>,
}

impl ImageDiff {
    /// True if nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let blocks = self.allocated.is_empty() && self.freed.is_empty() && self.changed.is_empty();
        blocks && self.roots_added.is_empty() && self.roots_removed.is_empty() && self.roots_changed.is_empty()
    }
}

/// Compares two images of a heap, say of yesterday and today: which blocks were allocated, freed, or changed.
///
/// Both are checked as [`verify`](super::verify) does, and read once; memory is taken for the lists of blocks, not for what
/// is in them. The capacities may differ.
///
/// # Errors
///
/// As [`verify`](super::verify), for either; [`Error::BadOption`] if they are images of heaps with different page sizes,
/// lanes, root slots or size classes, whose blocks cannot be compared.
pub fn diff(before: impl AsRef<Path>, after: impl AsRef<Path>) -> Result<ImageDiff> {
    diff_with(before, after, |_| ())
}

/// As [`diff`], and tells `progress` how many bytes of the first image's blocks it has compared.
///
/// # Errors
///
/// As [`diff`].
pub fn diff_with(
    before: impl AsRef<Path>,
    after: impl AsRef<Path>,
    mut progress: impl FnMut(Progress),
) -> Result<ImageDiff> {
    let mut before = Opened::open(before.as_ref())?;
    let mut after = Opened::open(after.as_ref())?;
    before.check_alike(&after)?;
    let mut diff = ImageDiff::default();
    let (old, new) = (before.blocks(), after.blocks());
    let mut news = new.into_iter().peekable();
    let total = old.iter().fold(0u64, |sum, block| sum.saturating_add(block.size));
    let mut done = 0u64;
    for block in old {
        progress(Progress { done, total });
        done = done.saturating_add(block.size);
        while let Some(allocated) = news.next_if(|other| other.offset < block.offset) {
            diff.allocated.push(allocated);
        }
        match news.next_if_eq(&block) {
            None => diff.freed.push(block),
            Some(_) if before.is_same(&mut after, block)? => diff.unchanged = diff.unchanged.saturating_add(1),
            Some(_) => diff.changed.push(block),
        }
    }
    diff.allocated.extend(news);
    before.finish()?;
    after.finish()?;
    compare_roots(&before.contents.snapshot, &after.contents.snapshot, &mut diff);
    Ok(diff)
}

/// An image whose data is read as it is needed, from the front to the back.
struct Opened {
    source: Source<'static>,
    contents: Contents,
    /// The chunk of data that was read last; `None` behind the last.
    chunk: Option<Chunk>,
}

/// Contents of blocks are compared so many bytes at a time.
const STEP: usize = 64 << 10;

impl Opened {
    fn open(path: &Path) -> Result<Self> {
        let mut source = Source::open(path)?;
        let (mut contents, chunk) = Contents::read(&mut source)?;
        let is_data = contents.check_data(&source, &chunk)?;
        Ok(Self { source, contents, chunk: is_data.then_some(chunk) })
    }

    fn check_alike(&self, other: &Self) -> Result<()> {
        let key = |opened: &Self| {
            let header = opened.source.header();
            [header.page_shift, header.lanes, header.root_slots, header.classes, header.slab_bytes_min]
        };
        let names = ["page_size (as a power of two)", "lanes", "root_slots", "size classes", "smallest slab"];
        let differing = key(self).into_iter().zip(key(other)).zip(names).find(|((ours, theirs), _)| ours != theirs);
        match differing {
            None => Ok(()),
            Some(((ours, theirs), option)) => {
                let ours = u64::from(ours);
                Err(Error::BadOption { option, value: u64::from(theirs), min: ours, max: ours })
            }
        }
    }

    /// All blocks, in the order of their offsets.
    fn blocks(&self) -> Vec<ImageBlock> {
        let (geometry, classes) = (self.source.geometry(), self.source.classes());
        let mut blocks = Vec::new();
        for span in &self.contents.snapshot.spans {
            let start = geometry.data_start.saturating_add(u64::from(span.first) << geometry.page_shift);
            let mut push = |offset: u64, size: u64| {
                if let Some(offset) = Offset::new(offset) {
                    blocks.push(ImageBlock { offset, size });
                }
            };
            let SpanKind::Slab { class, .. } = span.kind else {
                push(start, u64::from(span.pages) << geometry.page_shift);
                continue;
            };
            let size = classes.get(class).map_or(0, |info| u64::from(info.size));
            for (word, mut bits) in (0u64..).zip(self.contents.snapshot.bits(span).iter().copied()) {
                while bits != 0 {
                    let index = word.saturating_mul(64).saturating_add(u64::from(bits.trailing_zeros()));
                    push(start.saturating_add(index.saturating_mul(size)), size);
                    bits &= bits.wrapping_sub(1);
                }
            }
        }
        blocks
    }

    /// The bytes of the region from `at` on, which does not lie before where this was last called; what no chunk holds is
    /// zero.
    fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        let end = at.saturating_add(bytes.len() as u64);
        while let Some(chunk) = &self.chunk {
            let chunk_end = chunk.at.saturating_add(chunk.bytes.len() as u64);
            if chunk_end > at && chunk.at < end {
                let (from, to) = (chunk.at.max(at), chunk_end.min(end));
                let part = |start: u64| from.saturating_sub(start) as usize..to.saturating_sub(start) as usize;
                let (source, target) = (chunk.bytes.get(part(chunk.at)), bytes.get_mut(part(at)));
                if let (Some(source), Some(target)) = (source, target) {
                    target.copy_from_slice(source);
                }
            }
            if chunk_end > end || chunk.at >= end {
                break;
            }
            self.advance()?;
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<()> {
        let next = self.source.next()?;
        let is_data = self.contents.check_data(&self.source, &next)?;
        self.chunk = is_data.then_some(next);
        Ok(())
    }

    /// Reads what is left, so that all of it is checked.
    fn finish(&mut self) -> Result<()> {
        while self.chunk.is_some() {
            self.advance()?;
        }
        Ok(())
    }

    fn is_same(&mut self, other: &mut Self, block: ImageBlock) -> Result<bool> {
        let (mut ours, mut theirs) = (vec![0; STEP], vec![0; STEP]);
        let mut done = 0u64;
        let mut same = true;
        while done < block.size {
            let len = block.size.saturating_sub(done).min(STEP as u64) as usize;
            let at = block.offset.get().saturating_add(done);
            let (ours, theirs) = (ours.get_mut(..len).unwrap_or_default(), theirs.get_mut(..len).unwrap_or_default());
            self.read(at, ours)?;
            other.read(at, theirs)?;
            same &= ours == theirs;
            done = done.saturating_add(len as u64);
        }
        Ok(same)
    }
}

fn compare_roots(before: &Snapshot, after: &Snapshot, diff: &mut ImageDiff) {
    let sorted = |snapshot: &Snapshot| {
        let mut roots: Vec<(String, u64)> =
            snapshot.roots.iter().map(|root| (root.name.text().unwrap_or_default().to_owned(), root.offset)).collect();
        roots.sort();
        roots
    };
    let (old, new) = (sorted(before), sorted(after));
    let mut news = new.into_iter().peekable();
    for (name, offset) in old {
        while let Some((added, _)) = news.next_if(|(other, _)| *other < name) {
            diff.roots_added.push(added);
        }
        match news.peek().map(|(other, place)| (other.cmp(&name), *place)) {
            Some((Ordering::Equal, place)) => {
                news.next();
                if place != offset {
                    diff.roots_changed.push(name);
                }
            }
            _ => diff.roots_removed.push(name),
        }
    }
    diff.roots_added.extend(news.map(|(name, _)| name));
}
