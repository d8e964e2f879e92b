//! Lists of orphans with room, one for each class, linked through the page table.
//!
//! An orphan's first page's link word says whether it is listed, and between which others, so that it can be taken out in
//! constant time. A list starts in the superblock. All of it is derived (A4), and written only under the heap lock.
//!
//! | bits of the link word | meaning |
//! |---|---|
//! | 0..31 | next slab's first page + 1; 0 = last |
//! | 31..62 | previous slab's first page + 1; 0 = first |
//! | 62..64 | 0 not listed, 3 listed |
//!
//! Not here: the lists of a lane's own slabs, which are private (`notes`).

use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::Corruption;
use crate::format::{PageIndex, Tables};

type Result<T> = std::result::Result<T, Corruption>;

const NUMBER: u64 = (1 << 31) - 1;
const LISTED: u64 = 3;

#[derive(Debug, Clone, Copy)]
struct Link {
    next: u32,
    previous: u32,
}

impl Link {
    fn load(tables: &Tables, page: PageIndex) -> Self {
        let word = tables.link_word(page).load(Ordering::Relaxed);
        Self { next: (word & NUMBER) as u32, previous: (word >> 31 & NUMBER) as u32 }
    }

    fn store(self, tables: &Tables, page: PageIndex) {
        let word = u64::from(self.next) | u64::from(self.previous) << 31 | LISTED << 62;
        tables.link_word(page).store(word, Ordering::Relaxed);
    }
}

/// True if the slab that starts at `page` is listed.
pub(crate) fn is_listed(tables: &Tables, page: PageIndex) -> bool {
    tables.link_word(page).load(Ordering::Relaxed) >> 62 == LISTED
}

/// Marks the slab as standing in no list, whatever its link says.
pub(crate) fn reset(tables: &Tables, page: PageIndex) {
    tables.link_word(page).store(0, Ordering::Relaxed);
}

/// The slab after this one; `None` at the end of its list.
pub(crate) fn next(tables: &Tables, page: PageIndex) -> Result<Option<PageIndex>> {
    tables.linked_page(Link::load(tables, page).next, tables.link_at(page))
}

/// The first slab of the list that starts at `head`.
pub(crate) fn first(tables: &Tables, head: &AtomicU32) -> Result<Option<PageIndex>> {
    tables.linked_page(head.load(Ordering::Relaxed), tables.geometry.data_start)
}

/// Puts a slab, which stands in no list, first.
pub(crate) fn push_front(tables: &Tables, head: &AtomicU32, page: PageIndex) -> Result<()> {
    let link = head.load(Ordering::Relaxed);
    if let Some(old) = tables.linked_page(link, tables.link_at(page))? {
        Link { previous: page.link(), ..Link::load(tables, old) }.store(tables, old);
    }
    Link { next: link, previous: 0 }.store(tables, page);
    head.store(page.link(), Ordering::Relaxed);
    Ok(())
}

/// Takes a slab out of the list in which it stands.
pub(crate) fn remove(tables: &Tables, head: &AtomicU32, page: PageIndex) -> Result<()> {
    let at = tables.link_at(page);
    if !is_listed(tables, page) {
        return Err(Corruption::new("a slab stands in no list and is to be taken out of one", at));
    }
    let link = Link::load(tables, page);
    let next = tables.linked_page(link.next, at)?;
    match tables.linked_page(link.previous, at)? {
        Some(previous) => Link { next: link.next, ..Link::load(tables, previous) }.store(tables, previous),
        None => head.store(link.next, Ordering::Relaxed),
    }
    if let Some(next) = next {
        Link { previous: link.previous, ..Link::load(tables, next) }.store(tables, next);
    }
    reset(tables, page);
    Ok(())
}
