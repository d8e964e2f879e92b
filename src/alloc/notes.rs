//! Notes: what a lane writes down, in private memory, of the slabs that it owns.
//!
//! There is a note for each page's worth of the region, reached by an offset's high bits, so that one look tells all that
//! freeing a block needs. A slab has the same note on each of its pages, but in which list it stands is noted on its
//! first only.
//!
//! M1. A note is open iff its page belongs to a slab of this lane that may have free blocks added to it at once: one that
//!     is not listed as full. Notes of other pages are closed: no block is found by them.
//! M2. While a slab has notes, nobody but the lane changes its entries. So what a note says of the slab is true.
//!
//! | word | |
//! |---|---|
//! | 0 | offset of the slab's first byte |
//! | 1 | inverse of the odd part of the block size, modulo 2^64 |
//! | 2 | number of the slab's first pair of words |
//! | 3 | number of blocks while the note is open, else 0 |
//! | 4 | bits 0..8: log2 of the rest of the block size; 8..16: size class; 16..24: list; 32..64: first page |
//! | 5 | next (bits 0..32) and previous slab (32..64) of its list: page links |

use std::cell::Cell;

use super::Slab;
use crate::error::{Corruption, Result};
use crate::format::{ClassIndex, PageIndex, Tables};
use crate::sys::lines::{Line, Lines};

/// Where a slab of the lane stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In no list: it is the bin's current one, or on its way.
    None,
    /// Among those with room.
    Room,
    /// Among the full ones.
    Full,
}

const KIND_SHIFT: u32 = 16;
const HEAD_SHIFT: u32 = 32;

/// The ends of a list, as page links.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    first: Cell<u32>,
    last: Cell<u32>,
}

/// What a note tells of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    /// The block's index in its slab.
    pub(crate) index: u64,
    /// The number of its pair of words.
    pub(crate) pair: u64,
    /// Its slab's class.
    pub(crate) class: ClassIndex,
    about: u64,
}

impl Found {
    /// The link of its slab.
    #[inline]
    pub(crate) fn link(&self) -> u32 {
        head_of(self.about).wrapping_add(1)
    }
}

/// A lane's notes.
#[derive(Debug)]
pub(crate) struct Notes {
    lines: Lines,
    /// How many of them come before that of page 0.
    before: u32,
}

impl Notes {
    /// Empty notes for a heap.
    pub(crate) fn new(tables: &Tables) -> Result<Self> {
        let before = (tables.geometry.data_start >> tables.geometry.page_shift) as u32;
        Ok(Self { lines: Lines::zeroed(before as usize + tables.geometry.pages as usize)?, before })
    }

    /// The note of page `number`.
    #[inline]
    fn of_page(&self, number: u32) -> Option<&Line> {
        self.lines.get(number as usize + self.before as usize)
    }

    #[inline]
    fn line(&self, link: u32) -> Option<&Line> {
        self.of_page(link.checked_sub(1)?)
    }

    /// The block that starts at `offset`, if a note tells of it.
    ///
    /// One multiplication by the inverse of the block size tells whether a block starts there, and which: only for
    /// multiples is the quotient small (Granlund and Montgomery, PLDI 1994, section 9).
    #[inline]
    pub(crate) fn find(&self, tables: &Tables, offset: u64) -> Option<Found> {
        let [start, inverse, first_pair, open, about, ..] =
            self.lines.get((offset >> tables.geometry.page_shift) as usize)?;
        let about = about.get();
        let product = offset.wrapping_sub(start.get()).wrapping_mul(inverse.get());
        let index = product.rotate_right(about as u32);
        (index < open.get()).then(|| Found {
            index,
            pair: first_pair.get().wrapping_add(index / 64),
            class: class_of(about),
            about,
        })
    }

    /// The first page of the lane's slab in which `offset` lies, its class, and where it stands. `None` for other places.
    #[inline]
    pub(crate) fn slab_around(&self, tables: &Tables, offset: u64) -> Option<(u32, ClassIndex, Kind)> {
        let [_, inverse, _, _, about, ..] = self.lines.get((offset >> tables.geometry.page_shift) as usize)?;
        let (head, class) = (head_of(about.get()), class_of(about.get()));
        let [_, _, _, _, of_head, ..] = self.of_page(head)?;
        (inverse.get() != 0).then(|| (head, class, kind_of(of_head.get())))
    }

    /// Writes open notes for a slab that has become the lane's. An error, and nothing is written, if the lane has notes of
    /// its pages already: a slab that was in two lists would make circles of them.
    pub(crate) fn add(&self, tables: &Tables, slab: &Slab<'_>) -> Result<(), Corruption> {
        let head = slab.head.get();
        let is_noted = |page| self.of_page(page).is_none_or(|[_, inverse, ..]| inverse.get() != 0);
        if (head..head + slab.info.pages).any(is_noted) {
            return Err(Corruption::new("a page belongs to two slabs of one lane", tables.entry_at(slab.head)));
        }
        let twist = slab.info.size.trailing_zeros();
        let about = u64::from(twist) | u64::from(slab.class.0) << 8 | u64::from(head) << HEAD_SHIFT;
        for page in head..head + slab.info.pages {
            let Some([start, inverse, first_pair, open, word, links, ..]) = self.of_page(page) else { break };
            start.set(tables.page_start(slab.head));
            inverse.set(slab.info.inverse);
            first_pair.set(slab.first_pair(tables));
            open.set(u64::from(slab.info.blocks));
            word.set(about);
            links.set(0);
        }
        Ok(())
    }

    /// True if there are notes of this very slab.
    pub(crate) fn tell_of(&self, slab: &Slab<'_>) -> bool {
        let expected = (slab.head.get(), slab.class);
        self.line(slab.head.link()).is_some_and(|[_, inverse, _, _, about, ..]| {
            inverse.get() != 0 && (head_of(about.get()), class_of(about.get())) == expected
        })
    }

    /// Removes the notes of a slab that stands in no list.
    pub(crate) fn remove(&self, slab: &Slab<'_>) {
        let head = slab.head.get();
        for page in head..head + slab.info.pages {
            let Some([_, inverse, _, open, about, ..]) = self.of_page(page) else { return };
            inverse.set(0);
            open.set(0);
            about.set(0);
        }
    }

    #[inline]
    fn set_open(&self, slab: &Slab<'_>, is_open: bool) {
        let head = slab.head.get();
        for page in head..head + slab.info.pages {
            let Some([_, _, _, open, ..]) = self.of_page(page) else { return };
            open.set(if is_open { u64::from(slab.info.blocks) } else { 0 });
        }
    }

    /// Where a slab of the lane stands.
    #[inline]
    pub(crate) fn kind(&self, head: PageIndex) -> Kind {
        self.line(head.link()).map_or(Kind::None, |[_, _, _, _, about, ..]| kind_of(about.get()))
    }

    /// Puts a slab of the lane, which stands in no list, last. The notes of full ones are closed.
    #[inline]
    pub(crate) fn push_back(&self, ends: &Ends, kind: Kind, slab: &Slab<'_>) {
        let link = slab.head.link();
        let last = ends.last.get();
        match self.line(last) {
            Some([.., links, _, _]) => links.set(links.get() & !0xffff_ffff | u64::from(link)),
            None => ends.first.set(link),
        }
        ends.last.set(link);
        let Some([_, _, _, _, about, links, ..]) = self.line(link) else { return };
        links.set(u64::from(last) << 32);
        about.set(about.get() & !(0xff << KIND_SHIFT) | code_of(kind) << KIND_SHIFT);
        if kind == Kind::Full {
            self.set_open(slab, false);
        }
    }

    /// Takes a slab out of its list, in which it stands. The notes of full ones are opened.
    #[inline]
    pub(crate) fn unlist(&self, ends: &Ends, slab: &Slab<'_>) {
        let Some([_, _, _, _, about, links, ..]) = self.line(slab.head.link()) else { return };
        let (next, previous) = ((links.get() & 0xffff_ffff) as u32, (links.get() >> 32) as u32);
        match self.line(previous) {
            Some([.., links, _, _]) => links.set(links.get() & !0xffff_ffff | u64::from(next)),
            None => ends.first.set(next),
        }
        match self.line(next) {
            Some([.., links, _, _]) => links.set(links.get() & 0xffff_ffff | u64::from(previous) << 32),
            None => ends.last.set(previous),
        }
        if kind_of(about.get()) == Kind::Full {
            self.set_open(slab, true);
        }
        about.set(about.get() & !(0xff << KIND_SHIFT));
    }

    /// Takes the first slab out of a list: a page link, or 0. The notes of a full one stay closed.
    #[inline]
    pub(crate) fn pop_front(&self, ends: &Ends) -> u32 {
        let link = ends.first.get();
        let Some([_, _, _, _, about, links, ..]) = self.line(link) else { return 0 };
        let next = (links.get() & 0xffff_ffff) as u32;
        ends.first.set(next);
        match self.line(next) {
            Some([.., links, _, _]) => links.set(links.get() & 0xffff_ffff),
            None => ends.last.set(0),
        }
        about.set(about.get() & !(0xff << KIND_SHIFT));
        link
    }

    /// The first slab of a list: a page link, or 0.
    #[inline]
    pub(crate) fn first(&self, ends: &Ends) -> u32 {
        ends.first.get()
    }
}

#[inline]
fn head_of(about: u64) -> u32 {
    (about >> HEAD_SHIFT) as u32
}

#[inline]
fn class_of(about: u64) -> ClassIndex {
    ClassIndex((about >> 8) as u8)
}

fn code_of(kind: Kind) -> u64 {
    match kind {
        Kind::None => 0,
        Kind::Room => 1,
        Kind::Full => 2,
    }
}

#[inline]
fn kind_of(about: u64) -> Kind {
    match about >> KIND_SHIFT & 0xff {
        1 => Kind::Room,
        2 => Kind::Full,
        _ => Kind::None,
    }
}
