//! What a heap holds at one moment, as an image keeps it: the truth, and nothing that is derived from it.
//!
//! A snapshot says which blocks are allocated and which roots lead to them, as they would be if everybody had died at that
//! moment and been recovered: a root under construction is left out together with its block.
//!
//! Not here: the bytes of the blocks, and what an image looks like (`image`).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Heap;
use super::attachment::Attachment;
use crate::alloc::{Classes, slab};
use crate::error::{Corruption, Error, Result};
use crate::format::{
    ClassIndex, Geometry, Header, PageIndex, PageState, RootName, RootState, SHARED_LANE, Tables, superblock,
};
use crate::recovery;

/// How a span is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpanKind {
    /// A slab of this class; its allocated blocks are those of `words` bits, from the snapshot's word `first_word` on.
    Slab { class: ClassIndex, first_word: usize, words: usize },
    /// A large block.
    Large,
}

/// A span that holds at least one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SavedSpan {
    pub(crate) first: u32,
    pub(crate) pages: u32,
    pub(crate) kind: SpanKind,
}

/// A live root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SavedRoot {
    pub(crate) name: RootName,
    pub(crate) offset: u64,
    pub(crate) type_id: u64,
}

/// Spans in the order of their pages, the bits of their slabs, and roots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) spans: Vec<SavedSpan>,
    /// Bit set = allocated.
    pub(crate) words: Vec<u64>,
    pub(crate) roots: Vec<SavedRoot>,
}

impl Snapshot {
    /// The allocated bits of a slab.
    pub(crate) fn bits(&self, span: &SavedSpan) -> &[u64] {
        match span.kind {
            SpanKind::Slab { first_word, words, .. } => {
                self.words.get(first_word..first_word.saturating_add(words)).unwrap_or_default()
            }
            SpanKind::Large => &[],
        }
    }

    /// Allocated blocks, and their usable bytes.
    pub(crate) fn totals(&self, classes: &Classes, geometry: &Geometry) -> (u64, u64) {
        let of_span = |span: &SavedSpan| match span.kind {
            SpanKind::Large => (1, u64::from(span.pages) << geometry.page_shift),
            SpanKind::Slab { class, .. } => {
                let blocks = self.bits(span).iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
                (blocks, blocks.saturating_mul(classes.get(class).map_or(0, |info| u64::from(info.size))))
            }
        };
        let add = |(blocks, used): (u64, u64), (more, bytes)| (blocks.saturating_add(more), used.saturating_add(bytes));
        self.spans.iter().map(of_span).fold((0, 0), add)
    }
}

impl Heap {
    /// Header and size classes: from which the places and lengths of everything follow.
    pub(crate) fn header(&self) -> &Header {
        &self.attachment.tables.header
    }

    /// See [`Header`].
    pub(crate) fn classes(&self) -> &Classes {
        &self.attachment.classes
    }

    /// True if the heap stands in the file to which this path leads, by way of links too.
    pub(crate) fn stands_in(&self, path: &Path) -> bool {
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        self.attachment.tables.region.object().is_some_and(|object| object.is_at(&path))
    }

    /// Copies bytes of the region, which may be memory that was given back: those are zero.
    pub(crate) fn read_region(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.attachment.tables.region.read(at, bytes)
    }

    /// What the heap holds now. Takes the heap lock meanwhile; a read-only handle looks again until nobody has changed a
    /// span under its eyes.
    pub(crate) fn snapshot(&self) -> Result<Snapshot> {
        let attachment = &*self.attachment;
        if !self.is_read_only() {
            return self.as_caller(|caller| {
                let _lock = attachment.lock_for(caller)?;
                attachment.snapshot(false)
            });
        }
        let started = Instant::now();
        loop {
            let before = self.change_marks();
            let snapshot = attachment.snapshot(false);
            let holder = attachment.lock_holder();
            if before == self.change_marks() && holder.is_none() {
                return snapshot;
            }
            let waited = started.elapsed();
            if waited >= attachment.lock_timeout {
                let holder_pid = attachment.pid_of(holder.unwrap_or(SHARED_LANE));
                return Err(Error::LockTimeout {
                    holder_pid,
                    waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
                });
            }
            std::thread::yield_now();
        }
    }
}

impl Attachment {
    /// What the heap holds, for who holds the heap lock. `frozen`: nobody is in the middle of anything, but the dead.
    pub(super) fn snapshot(&self, frozen: bool) -> Result<Snapshot> {
        let tables = &self.tables;
        tables.region.check_whole()?;
        let (roots, mut undone) = self.saved_roots();
        for lane in tables.header.all_lanes() {
            // A living lane that moves a block without the lock has two of them, and both stay.
            if let Some(block) = recovery::superseded(self.ward(), lane)?
                && (frozen || !self.liveness.is_alive(lane.token())?)
            {
                undone.insert(block);
            }
        }
        let mut snapshot = Snapshot { roots, ..Snapshot::default() };
        let mut number = 0;
        while number < tables.pages_high() {
            let page = tables.page_from_region(number, superblock::PAGES_HIGH)?;
            number = number.saturating_add(save_span(tables, &self.classes, page, &undone, &mut snapshot)?);
        }
        Ok(snapshot)
    }

    /// The live roots, and the blocks of those under construction.
    fn saved_roots(&self) -> (Vec<SavedRoot>, BTreeSet<u64>) {
        let (mut roots, mut undone) = (Vec::new(), BTreeSet::new());
        for record in (0..self.tables.geometry.root_slots).filter_map(|slot| self.tables.root(slot)) {
            let type_id = record.type_id().load(Ordering::Relaxed);
            match record.snapshot() {
                Some((Some(RootState::Live), name, offset)) => roots.push(SavedRoot { name, offset, type_id }),
                Some((Some(RootState::Constructing), _, offset)) => _ = undone.insert(offset),
                _ => {}
            }
        }
        // A root whose block was freed leads nowhere, as `Heap::root` says.
        roots.retain(|root| root.name.text().is_some() && self.is_allocated(root.offset));
        (roots, undone)
    }
}

/// Adds the span that starts at `page`, if it holds a block; returns its length in pages.
fn save_span(
    tables: &Tables,
    classes: &Classes,
    page: PageIndex,
    undone: &BTreeSet<u64>,
    snapshot: &mut Snapshot,
) -> Result<u32> {
    let entry = tables.entry(page);
    let start = tables.page_start(page);
    let broken = || Corruption::new("C3: a span does not start where the one before it ends", tables.entry_at(page));
    match entry.state() {
        Some(PageState::Free) => Ok(1),
        Some(PageState::Slab) => {
            let slab = slab::slab_of(tables, classes, page, entry)?;
            if slab.head != page {
                return Err(broken().into());
            }
            let first_word = snapshot.words.len();
            snapshot.words.extend((0..slab.info.words()).map(|word| slab.allocated(tables, word)));
            let bits = snapshot.words.get_mut(first_word..).unwrap_or_default();
            let end = start.saturating_add(u64::from(slab.info.pages) << tables.geometry.page_shift);
            for bit in undone.range(start..end).filter_map(|block| slab.block_bit(tables, *block)) {
                if let Some(word) = bits.get_mut(bit.word as usize) {
                    *word &= !bit.mask;
                }
            }
            if bits.iter().all(|word| *word == 0) {
                snapshot.words.truncate(first_word);
            } else {
                let kind = SpanKind::Slab { class: slab.class, first_word, words: bits.len() };
                snapshot.spans.push(SavedSpan { first: page.get(), pages: slab.info.pages, kind });
            }
            Ok(slab.info.pages)
        }
        Some(PageState::Large) => {
            let pages = entry.number();
            if pages == 0 || u64::from(page.get()).saturating_add(u64::from(pages)) > u64::from(tables.pages_high()) {
                return Err(broken().into());
            }
            if !undone.contains(&start) {
                snapshot.spans.push(SavedSpan { first: page.get(), pages, kind: SpanKind::Large });
            }
            Ok(pages)
        }
        Some(PageState::KeptSlab | PageState::KeptLarge) => {
            Ok(crate::alloc::kept::pages_of(classes, entry).ok_or_else(broken)?.get())
        }
        Some(PageState::LargeTail) | None => Err(broken().into()),
    }
}
