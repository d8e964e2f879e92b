//! Kept spans: what a lane has freed and is likely to use again, so that neither the lock nor the journal is needed.
//!
//! An empty slab, or a large block that was freed, can stay with a lane. The entry of its first page says so, and
//! changing that one word keeps the span or takes it into use again. The further pages' entries, and a slab's bits, stay
//! as they were.
//!
//! K1. A span whose first entry says "kept" holds no block: its memory is free. Stats count it as free pages.
//! K2. Whoever takes a kept span swaps the word that it has seen: its lane to use it again, or, under the heap lock, one
//!     who is short of memory. One of them succeeds. So nobody is told that memory is out while somebody keeps some.
//! K3. What is here is private memory, and says only where kept spans may be; the entries are the truth. Should the lane
//!     die, recovery finds its kept spans by their entries, and frees them.

use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering;

use super::size_class::CLASS_SLOTS;
use super::{Classes, Slab, span};
use crate::error::{Corruption, Result};
use crate::format::{ClassIndex, LaneId, PageCount, PageEntry, PageIndex, PageState, SHARED_LANE, Tables, superblock};
use crate::journal::Locked;

/// Most spans that a lane keeps.
const NODES: usize = 512;
/// Longest large span that is kept, in pages.
const LARGE_MAX: usize = 256;
/// A lane keeps no more than this part of the heap's pages, apart from one slab for each class, and one span in any case.
const PART_OF_PAGES: u32 = 16;
/// A kept span serves requests for at least so many eighths of its pages: so much may be lost to rounding as by size
/// classes.
const EIGHTHS_MIN: u64 = 6;

/// A place in the lists: a page link, and the next node.
#[derive(Debug, Clone, Copy, Default)]
struct Node {
    page: u32,
    next: u16,
}

/// The spans that a lane keeps, in lists: by class those that are slabs, by page count those that were large blocks.
/// Nodes are named by their index plus 1; 0 = none.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Grows as far as it is needed, up to [`NODES`].
    nodes: RefCell<Vec<Node>>,
    /// The first of those that are in no list.
    unused: Cell<u16>,
    slabs: [Cell<u16>; CLASS_SLOTS],
    /// Bit n: there is a slab of class n.
    slab_bits: Cell<u64>,
    large: [Cell<u16>; LARGE_MAX + 1],
    /// Bit n of word w: there is a large span of 64 w + n pages.
    large_bits: [Cell<u64>; LARGE_MAX / 64 + 1],
    /// Pages in all of them.
    pages: Cell<u32>,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            nodes: RefCell::default(),
            unused: Cell::new(0),
            slabs: [const { Cell::new(0) }; CLASS_SLOTS],
            slab_bits: Cell::new(0),
            large: [const { Cell::new(0) }; LARGE_MAX + 1],
            large_bits: [const { Cell::new(0) }; LARGE_MAX / 64 + 1],
            pages: Cell::new(0),
        }
    }
}

impl Kept {
    /// Puts a page first in a list; false if there is no node left.
    fn push(&self, list: &Cell<u16>, page: PageIndex) -> bool {
        let mut nodes = self.nodes.borrow_mut();
        let node = Node { page: page.link(), next: list.get() };
        let number = self.unused.get();
        if let Some(unused) = nodes.get_mut(usize::from(number).wrapping_sub(1)) {
            self.unused.set(unused.next);
            *unused = node;
            list.set(number);
            return true;
        }
        if nodes.len() >= NODES {
            return false;
        }
        nodes.push(node);
        list.set(nodes.len() as u16);
        true
    }

    /// Takes the first page out of a list.
    fn pop(&self, list: &Cell<u16>) -> Option<u32> {
        let number = list.get();
        let mut nodes = self.nodes.borrow_mut();
        let node = nodes.get_mut(usize::from(number).wrapping_sub(1))?;
        let page = node.page;
        list.set(node.next);
        *node = Node { page: 0, next: self.unused.replace(number) };
        Some(page)
    }

    /// True if so many pages more may be kept. One span may always be, in the smallest heap too.
    fn has_room_for(&self, tables: &Tables, pages: u32) -> bool {
        self.is_empty() || self.pages.get().saturating_add(pages) <= tables.geometry.pages / PART_OF_PAGES
    }

    fn list_of(&self, class: ClassIndex) -> Option<&Cell<u16>> {
        self.slabs.get(usize::from(class.0))
    }

    /// Keeps a wholly free slab of the lane, which stands in no list; false if the lane keeps enough already. One of each
    /// class is always kept, so that a block that comes and goes does not take a slab with it each time.
    pub(crate) fn keep_slab(&self, tables: &Tables, slab: &Slab<'_>) -> bool {
        let Some(list) = self.list_of(slab.class) else { return false };
        if (list.get() != 0 && !self.has_room_for(tables, slab.info.pages)) || !self.push(list, slab.head) {
            return false;
        }
        self.slab_bits.set(self.slab_bits.get() | 1 << (slab.class.0 % 64));
        self.pages.set(self.pages.get().saturating_add(slab.info.pages));
        let entry = PageEntry::slab(slab.class, slab.lane);
        tables.entry_word(slab.head).store(entry.kept().0, Ordering::Release);
        true
    }

    /// Takes a kept slab of this class into use again.
    pub(crate) fn take_slab(
        &self,
        tables: &Tables,
        class: ClassIndex,
        pages: u32,
        lane: LaneId,
    ) -> Result<Option<PageIndex>, Corruption> {
        let Some(list) = self.list_of(class) else { return Ok(None) };
        let entry = PageEntry::slab(class, lane);
        while let Some(link) = self.pop(list) {
            self.pages.set(self.pages.get().saturating_sub(pages));
            let Some(page) = tables.linked_page(link, superblock::PAGES_HIGH)? else { continue };
            if swap(tables, page, entry.kept(), entry) {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    /// Frees the large block that starts at page `first`, with this entry, by keeping it. False, and nothing has happened,
    /// if the lane keeps enough already, or the entry has changed.
    pub(crate) fn keep_large(&self, tables: &Tables, first: PageIndex, entry: PageEntry, lane: LaneId) -> bool {
        let Some(count) = PageCount::new(entry.number()) else { return false };
        let Some(list) = self.large.get(count.get() as usize) else { return false };
        if !self.has_room_for(tables, count.get()) || !self.push(list, first) {
            return false;
        }
        // COMMIT: the block is free.
        if !swap(tables, first, entry, PageEntry::large(lane).at(0, count).kept()) {
            self.pop(list);
            return false;
        }
        self.pages.set(self.pages.get().saturating_add(count.get()));
        self.mark(count.get(), true);
        true
    }

    fn mark(&self, pages: u32, present: bool) {
        if let Some(word) = self.large_bits.get((pages / 64) as usize) {
            let bit = 1u64 << (pages % 64);
            word.set(if present { word.get() | bit } else { word.get() & !bit });
        }
    }

    /// The smallest page count from `pages` to `most` of which a span is kept.
    fn fitting(&self, pages: u32, most: u32) -> Option<u32> {
        let mut from = pages;
        while from <= most {
            let bits = self.large_bits.get((from / 64) as usize)?.get() >> (from % 64);
            if bits != 0 {
                return Some(from + bits.trailing_zeros()).filter(|found| *found <= most);
            }
            from = (from / 64 + 1) * 64;
        }
        None
    }

    /// Allocates a large block of at least `count` pages from what is kept: its first page.
    pub(crate) fn take_large(
        &self,
        tables: &Tables,
        count: PageCount,
        lane: LaneId,
    ) -> Result<Option<PageIndex>, Corruption> {
        let most = u64::from(count.get()) * 8 / EIGHTHS_MIN;
        while let Some(pages) = self.fitting(count.get(), most as u32) {
            let Some(list) = self.large.get(pages as usize) else { return Ok(None) };
            let Some(link) = self.pop(list) else {
                self.mark(pages, false);
                continue;
            };
            self.mark(pages, list.get() != 0);
            self.pages.set(self.pages.get().saturating_sub(pages));
            let (Some(page), Some(pages)) = (tables.linked_page(link, superblock::PAGES_HIGH)?, PageCount::new(pages))
            else {
                continue;
            };
            let entry = PageEntry::large(lane).at(0, pages);
            // COMMIT: the block is allocated.
            if swap(tables, page, entry.kept(), entry) {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    /// True if the lane keeps nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.pages.get() == 0
    }

    /// Gives one span that the lane keeps back to the pages: the shortest of at least `least` pages, or else the longest.
    pub(crate) fn give_back_one(
        &self,
        tables: &Tables,
        locked: &Locked,
        classes: &Classes,
        lane: LaneId,
        least: u32,
    ) -> Result<()> {
        while let Some((list, pages)) = self.shortest(classes, least).or_else(|| self.longest(classes)) {
            let Some(link) = self.pop(list) else { continue };
            self.pages.set(self.pages.get().saturating_sub(pages));
            if self.free_linked(tables, locked, classes, lane, link)? {
                return Ok(());
            }
        }
        self.pages.set(0);
        Ok(())
    }

    /// The list of the shortest spans of at least `least` pages, which is not empty, and how long they are.
    fn shortest<'a>(&'a self, classes: &'a Classes, least: u32) -> Option<(&'a Cell<u16>, u32)> {
        let large = self.large.iter().zip(0..).skip(least as usize).find(|(list, _)| list.get() != 0);
        let slabs = self.slab_lists(classes).filter(|(_, pages)| *pages >= least);
        slabs.chain(large).min_by_key(|(_, pages)| *pages)
    }

    /// The list of the longest spans, which is not empty, and how long they are.
    fn longest<'a>(&'a self, classes: &'a Classes) -> Option<(&'a Cell<u16>, u32)> {
        let large = self.large.iter().zip(0..).filter(|(list, _)| list.get() != 0).last();
        self.slab_lists(classes).chain(large).max_by_key(|(_, pages)| *pages)
    }

    /// The lists of slabs that are not empty, and how many pages each of their slabs has.
    fn slab_lists<'a>(&'a self, classes: &'a Classes) -> impl Iterator<Item = (&'a Cell<u16>, u32)> {
        let lists = classes.indices().filter_map(|class| Some((self.list_of(class)?, classes.get(class)?.pages)));
        lists.filter(|(list, _)| list.get() != 0)
    }

    /// Gives everything that the lane keeps back to the pages.
    pub(crate) fn give_back(&self, tables: &Tables, locked: &Locked, classes: &Classes, lane: LaneId) -> Result<()> {
        let mut classes_left = self.slab_bits.replace(0);
        while classes_left != 0 {
            let list = self.slabs.get(classes_left.trailing_zeros() as usize);
            classes_left &= classes_left - 1;
            list.map_or(Ok(()), |list| self.free_list(tables, locked, classes, lane, list))?;
        }
        while let Some(pages) = self.fitting(1, LARGE_MAX as u32) {
            self.mark(pages, false);
            let list = self.large.get(pages as usize);
            list.map_or(Ok(()), |list| self.free_list(tables, locked, classes, lane, list))?;
        }
        self.pages.set(0);
        Ok(())
    }

    fn free_list(&self, tables: &Tables, locked: &Locked, classes: &Classes, lane: LaneId, list: &Cell<u16>) -> Result<()> {
        while let Some(link) = self.pop(list) {
            self.free_linked(tables, locked, classes, lane, link)?;
        }
        Ok(())
    }

    /// Frees the kept span to which a link leads; false if the lane keeps it no more.
    fn free_linked(&self, tables: &Tables, locked: &Locked, classes: &Classes, lane: LaneId, link: u32) -> Result<bool> {
        let Some(page) = tables.linked_page(link, superblock::PAGES_HIGH)? else { return Ok(false) };
        let entry = tables.entry(page);
        if entry.lane() == lane { free_kept(tables, locked, classes, page, entry) } else { Ok(false) }
    }
}

/// Changes a first page's entry, if it is what it was.
#[inline]
fn swap(tables: &Tables, page: PageIndex, from: PageEntry, to: PageEntry) -> bool {
    // ORDERING O1: what was done with a block stays before the store that frees it, and what is done with one after the
    // load that allocated it.
    tables.entry_word(page).compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Pages of the kept span that starts with this entry; `None` if the entry says something else.
pub(crate) fn pages_of(classes: &Classes, entry: PageEntry) -> Option<PageCount> {
    match entry.state() {
        Some(PageState::KeptSlab) => classes.get(entry.class()).and_then(|info| PageCount::new(info.pages)),
        Some(PageState::KeptLarge) => PageCount::new(entry.number()),
        _ => None,
    }
}

/// Takes the kept span that starts at `page`, with this entry, away from its lane, and frees it; true if that was done,
/// false if its lane was faster.
///
/// First nobody's lane is written into the entry: a death after that leaves a span that nobody can take, and that recovery
/// frees.
pub(crate) fn free_kept(
    tables: &Tables,
    locked: &Locked,
    classes: &Classes,
    page: PageIndex,
    entry: PageEntry,
) -> Result<bool> {
    let Some(pages) = pages_of(classes, entry) else { return Ok(false) };
    if !swap(tables, page, entry, entry.with_lane(SHARED_LANE)) {
        return Ok(false);
    }
    span::free(tables, locked, page, pages)?;
    Ok(true)
}
