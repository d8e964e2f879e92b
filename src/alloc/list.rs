//! Lists of slabs, linked through the page table: which slabs of a class have room, which are full, which are orphans.
//!
//! A slab stands in at most one list. Its first page's link word says in which, and between which others, so that it can
//! be taken out in constant time. The ends of a lane's lists are in the lane's private memory, those of the orphans' in the
//! superblock. All of it is derived (A4), written only by who may write the slab's free bits (A2).
//!
//! | bits of the link word | meaning |
//! |---|---|
//! | 0..31 | next slab's first page + 1; 0 = last |
//! | 31..62 | previous slab's first page + 1; 0 = first |
//! | 62..64 | list: 0 none, 1 room, 2 full, 3 orphans |

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::Corruption;
use crate::format::{PageIndex, Tables};

/// Small, unlike the library's own `Result`: these calls are on paths that free blocks.
type Result<T> = std::result::Result<T, Corruption>;

const NUMBER: u64 = (1 << 31) - 1;

/// Which list a slab stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    None,
    Room,
    Full,
    Orphans,
}

impl Kind {
    fn code(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Room => 1,
            Self::Full => 2,
            Self::Orphans => 3,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Link {
    next: u32,
    previous: u32,
    kind: Kind,
}

impl Link {
    fn load(tables: &Tables, page: PageIndex) -> Self {
        let word = tables.link_word(page).load(Ordering::Relaxed);
        let kind = match word >> 62 {
            0 => Kind::None,
            1 => Kind::Room,
            2 => Kind::Full,
            _ => Kind::Orphans,
        };
        Self { next: (word & NUMBER) as u32, previous: (word >> 31 & NUMBER) as u32, kind }
    }

    fn store(self, tables: &Tables, page: PageIndex) {
        let word = u64::from(self.next) | u64::from(self.previous) << 31 | self.kind.code() << 62;
        tables.link_word(page).store(word, Ordering::Relaxed);
    }
}

/// Where a list's ends are kept, as page links.
pub(crate) trait Ends {
    fn first(&self) -> u32;
    fn set_first(&self, link: u32);
    fn last(&self) -> u32;
    fn set_last(&self, link: u32);
}

/// A lane's list: both ends in private memory.
#[derive(Debug, Default)]
pub(crate) struct PrivateEnds {
    first: Cell<u32>,
    last: Cell<u32>,
}

impl Ends for PrivateEnds {
    fn first(&self) -> u32 {
        self.first.get()
    }
    fn set_first(&self, link: u32) {
        self.first.set(link);
    }
    fn last(&self) -> u32 {
        self.last.get()
    }
    fn set_last(&self, link: u32) {
        self.last.set(link);
    }
}

/// A list of orphans: one end, in the superblock. Nothing is ever put at its back.
#[derive(Debug)]
pub(crate) struct SharedEnds<'a>(pub(crate) &'a AtomicU32);

impl Ends for SharedEnds<'_> {
    fn first(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
    fn set_first(&self, link: u32) {
        self.0.store(link, Ordering::Relaxed);
    }
    fn last(&self) -> u32 {
        0
    }
    fn set_last(&self, _link: u32) {}
}

/// Which list the slab that starts at `page` stands in.
pub(crate) fn kind(tables: &Tables, page: PageIndex) -> Kind {
    Link::load(tables, page).kind
}

/// Marks the slab as standing in no list, whatever its link says.
pub(crate) fn reset(tables: &Tables, page: PageIndex) {
    tables.link_word(page).store(0, Ordering::Relaxed);
}

/// The slab after this one; `None` at the end of its list.
pub(crate) fn next(tables: &Tables, page: PageIndex) -> Result<Option<PageIndex>> {
    tables.linked_page(Link::load(tables, page).next, tables.link_at(page))
}

/// The first slab of a list.
pub(crate) fn first(tables: &Tables, ends: &impl Ends) -> Result<Option<PageIndex>> {
    tables.linked_page(ends.first(), tables.geometry.data_start)
}

/// Puts a slab, which stands in no list, first.
pub(crate) fn push_front(tables: &Tables, ends: &impl Ends, kind: Kind, page: PageIndex) -> Result<()> {
    match tables.linked_page(ends.first(), tables.link_at(page))? {
        Some(old) => Link { previous: page.link(), ..Link::load(tables, old) }.store(tables, old),
        None => ends.set_last(page.link()),
    }
    Link { next: ends.first(), previous: 0, kind }.store(tables, page);
    ends.set_first(page.link());
    Ok(())
}

/// Puts a slab, which stands in no list, last.
pub(crate) fn push_back(tables: &Tables, ends: &PrivateEnds, kind: Kind, page: PageIndex) -> Result<()> {
    match tables.linked_page(ends.last(), tables.link_at(page))? {
        Some(old) => Link { next: page.link(), ..Link::load(tables, old) }.store(tables, old),
        None => ends.set_first(page.link()),
    }
    Link { next: 0, previous: ends.last(), kind }.store(tables, page);
    ends.set_last(page.link());
    Ok(())
}

/// Takes a slab out of the list of this kind, in which it stands.
pub(crate) fn remove(tables: &Tables, ends: &impl Ends, kind: Kind, page: PageIndex) -> Result<()> {
    let at = tables.link_at(page);
    let link = Link::load(tables, page);
    if link.kind != kind {
        return Err(Corruption::new("a slab's link names another list than the one it stands in", at));
    }
    let next = tables.linked_page(link.next, at)?;
    match tables.linked_page(link.previous, at)? {
        Some(previous) => Link { next: link.next, ..Link::load(tables, previous) }.store(tables, previous),
        None => ends.set_first(link.next),
    }
    match next {
        Some(next) => Link { previous: link.previous, ..Link::load(tables, next) }.store(tables, next),
        None => ends.set_last(link.previous),
    }
    reset(tables, page);
    Ok(())
}

/// Takes the first slab out.
pub(crate) fn pop_front(tables: &Tables, ends: &impl Ends, kind: Kind) -> Result<Option<PageIndex>> {
    let Some(page) = first(tables, ends)? else { return Ok(None) };
    remove(tables, ends, kind, page)?;
    Ok(Some(page))
}
