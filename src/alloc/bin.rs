//! Bins: what a lane keeps in private memory, one for each size class.
//!
//! A bin works on one word of one slab at a time, and holds a private copy of that word's free bits. Allocating takes the
//! lowest bit of the copy and clears it in the region: the choice does not wait for the shared word.
//!
//! B1. A bit that is set in the copy is set in the region's free word too, or its block was freed twice (the copy is
//!     never added to). Blocks that are freed into the word meanwhile are seen when it is taken again.
//! B2. Every slab of the lane is the bin's current one, its kept one, or stands in its list of room or of full slabs. A
//!     slab with a free bit set does not stand in the list of full ones.
//! B3. Slabs that have room again wait first in, first out, so that they gather more room before they are used.
//!
//! All of it can be lost: a lane whose thread dies leaves slabs whose bits say everything.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use super::list::{self, Kind, PrivateEnds};
use super::slab::{BlockBit, Slab, slab_of};
use super::{Class, Classes};
use crate::error::{Corruption, Error};
use crate::format::{CLASSES_MAX, ClassIndex, LaneId, PageIndex, PageState, Tables, superblock};

/// Small, unlike the library's own `Result`: most of these calls are on paths that allocate or free blocks.
type Result<T, E = Corruption> = std::result::Result<T, E>;

/// How many full slabs are looked through, at most, for blocks that others have freed, each time that a bin runs dry. If
/// one in eight has some, memory grows by no more than an eighth for not looking further.
const SCAN_MAX: u32 = 8;

/// What became of a slab one of whose blocks was freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freed {
    /// It stays with the lane.
    Kept,
    /// It is wholly free and in no list: the caller gives its span back (or puts it back with [`Bins::own`]).
    Emptied,
}

/// What [`Bins::free_hot`] did.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hot {
    /// Nothing: the block is no allocated one of this lane's slabs.
    NotHere,
    /// Freed it.
    Freed,
    /// Freed it, and its slab is [`Freed::Emptied`].
    Emptied(PageIndex, ClassIndex),
    /// Freed it, and found that a list of this lane is damaged.
    Damaged(u64),
}

#[derive(Debug, Default)]
struct Bin {
    /// Free blocks of the current word that are not taken yet.
    copy: Cell<u64>,
    /// Place of the current free word.
    word_at: Cell<u64>,
    /// Where the first block of the current word starts.
    base: Cell<u64>,
    /// Bytes per block.
    size: Cell<u64>,
    /// Link of the current slab; 0 = none.
    current: Cell<u32>,
    /// The word of it that is being worked on.
    word: Cell<u32>,
    /// Link of the one empty slab that is kept; 0 = none.
    kept: Cell<u32>,
    room: PrivateEnds,
    full: PrivateEnds,
    full_count: Cell<u32>,
    /// How many full slabs are still to be looked through since the last hint.
    to_scan: Cell<u32>,
}

/// A lane's bins.
#[derive(Debug)]
pub(crate) struct Bins {
    lane: Cell<LaneId>,
    bins: [Bin; CLASSES_MAX as usize],
    /// Value of the PRESSURE word when the lane last gave back what it keeps.
    pressure: Cell<u64>,
}

impl Default for Bins {
    fn default() -> Self {
        Self { lane: Cell::default(), bins: std::array::from_fn(|_| Bin::default()), pressure: Cell::default() }
    }
}

impl Bins {
    /// Empty bins for `lane`.
    pub(crate) fn reset(&self, lane: LaneId, pressure: u64) {
        self.lane.set(lane);
        self.pressure.set(pressure);
        for bin in &self.bins {
            bin.copy.set(0);
            bin.current.set(0);
            bin.kept.set(0);
            bin.full_count.set(0);
            bin.to_scan.set(0);
            for ends in [&bin.room, &bin.full] {
                list::Ends::set_first(ends, 0);
                list::Ends::set_last(ends, 0);
            }
        }
    }

    /// Whose bins they are.
    #[inline]
    pub(crate) fn lane(&self) -> LaneId {
        self.lane.get()
    }

    #[inline]
    fn bin(&self, class: ClassIndex) -> &Bin {
        let [first, ..] = &self.bins;
        self.bins.get(usize::from(class.0)).unwrap_or(first)
    }

    /// True if the current word has a block left.
    pub(crate) fn has_copy(&self, class: ClassIndex) -> bool {
        self.bin(class).copy.get() != 0
    }

    /// Allocates a block from the current word; `None` if that has none left. `before_commit` is called with the
    /// block's offset before its bit changes.
    #[inline]
    pub(crate) fn take(&self, tables: &Tables, class: ClassIndex, before_commit: impl FnOnce(u64)) -> Option<u64> {
        let bin = self.bin(class);
        let copy = bin.copy.get();
        if copy == 0 {
            return None;
        }
        let index = copy.trailing_zeros();
        let block = bin.base.get() + u64::from(index) * bin.size.get();
        bin.copy.set(copy & (copy - 1));
        before_commit(block);
        let free = tables.region.word(bin.word_at.get());
        free.store(free.load(Ordering::Relaxed) & !(1u64 << index), Ordering::Release); // COMMIT
        Some(block)
    }

    /// Finds the bin another word with free blocks, among what the lane has already; false if there is none.
    pub(crate) fn refill(&self, tables: &Tables, classes: &Classes, class: ClassIndex) -> Result<bool> {
        let bin = self.bin(class);
        // Each round ends with a word, or with a slab less that might have room.
        for _ in 0..=tables.geometry.pages {
            if let Some(slab) = self.slab(tables, classes, class, bin.current.get())? {
                if self.enter(tables, &slab, bin.word.get() + 1) {
                    return Ok(true);
                }
                self.retire(tables, &slab)?;
            }
            let next = match list::pop_front(tables, &bin.room, Kind::Room)? {
                Some(head) => Some(head),
                None => match self.scan(tables, classes, class)? {
                    Some(head) => Some(head),
                    None => tables.linked_page(bin.kept.replace(0), tables.geometry.data_start)?,
                },
            };
            let Some(head) = next else { return Ok(false) };
            if self.begin(tables, classes, class, head)? {
                return Ok(true);
            }
        }
        Err(Corruption::new("a lane's list of slabs with room has no end", tables.geometry.data_start))
    }

    /// Makes a slab that stands in no list the current one; true if it has a free block.
    fn begin(&self, tables: &Tables, classes: &Classes, class: ClassIndex, head: PageIndex) -> Result<bool> {
        let Some(slab) = self.slab(tables, classes, class, head.link())? else { return Ok(false) };
        if self.enter(tables, &slab, 0) {
            return Ok(true);
        }
        self.own(tables, &slab)?;
        Ok(false)
    }

    /// Puts a slab of this lane, which stands in no list, into the list where it belongs.
    pub(crate) fn own(&self, tables: &Tables, slab: &Slab<'_>) -> Result<()> {
        let bin = self.bin(slab.class);
        if slab.word_with_room(tables, 0).is_some() {
            return list::push_back(tables, &bin.room, Kind::Room, slab.head);
        }
        bin.full_count.set(bin.full_count.get() + 1);
        list::push_back(tables, &bin.full, Kind::Full, slab.head)
    }

    /// Takes a slab out of the list in which it stands.
    fn unlist(&self, tables: &Tables, slab: &Slab<'_>) -> Result<()> {
        let bin = self.bin(slab.class);
        match list::kind(tables, slab.head) {
            Kind::None => Ok(()),
            Kind::Room => list::remove(tables, &bin.room, Kind::Room, slab.head),
            Kind::Full => {
                bin.full_count.set(bin.full_count.get().saturating_sub(1));
                list::remove(tables, &bin.full, Kind::Full, slab.head)
            }
            Kind::Orphans => Err(Corruption::new("a lane's slab is linked as an orphan", tables.link_at(slab.head))),
        }
    }

    /// Makes the first word at or after `from` that has a free block the current one.
    fn enter(&self, tables: &Tables, slab: &Slab<'_>, from: u32) -> bool {
        let bin = self.bin(slab.class);
        for word in from..slab.info.words() {
            let free = slab.merge(tables, word) & slab.info.mask(word);
            if free != 0 {
                bin.copy.set(free);
                bin.word_at.set(tables.slab_word_at(slab.head, word));
                bin.base.set(slab.block_at(tables, word * 64));
                bin.size.set(u64::from(slab.info.size));
                bin.current.set(slab.head.link());
                bin.word.set(word);
                return true;
            }
        }
        false
    }

    /// Puts the current slab, whose words have all been passed, into a list.
    fn retire(&self, tables: &Tables, slab: &Slab<'_>) -> Result<()> {
        let bin = self.bin(slab.class);
        bin.copy.set(0);
        bin.current.set(0);
        self.own(tables, slab)
    }

    /// Looks through some full slabs for blocks that others have freed, if a hint says that there are any.
    fn scan(&self, tables: &Tables, classes: &Classes, class: ClassIndex) -> Result<Option<PageIndex>> {
        let bin = self.bin(class);
        if let Some(record) = tables.lane(self.lane()) {
            let bit = 1u64 << (class.0 & 63);
            if record.hints().load(Ordering::Relaxed) & bit != 0 {
                record.hints().fetch_and(!bit, Ordering::SeqCst);
                bin.to_scan.set(bin.full_count.get());
            }
        }
        let rounds = bin.to_scan.get().min(SCAN_MAX);
        for _ in 0..rounds {
            bin.to_scan.set(bin.to_scan.get() - 1);
            let Some(head) = list::first(tables, &bin.full)? else { return Ok(None) };
            let Some(slab) = self.slab(tables, classes, class, head.link())? else { return Ok(None) };
            self.unlist(tables, &slab)?;
            if slab.has_remote(tables) {
                return Ok(Some(head));
            }
            self.own(tables, &slab)?;
        }
        Ok(None)
    }

    /// The slab that a link names; checks that it is this lane's.
    fn slab<'a>(&self, tables: &Tables, classes: &'a Classes, class: ClassIndex, link: u32) -> Result<Option<Slab<'a>>> {
        let Some(head) = tables.linked_page(link, tables.geometry.data_start)? else { return Ok(None) };
        let entry = tables.entry(head);
        let is_mine = entry.state() == Some(PageState::Slab) && entry.lane() == self.lane() && entry.class() == class;
        if !is_mine || entry.number() != 0 {
            let what = "a lane's list leads to a page that is no slab of that lane and class";
            return Err(Corruption::new(what, tables.entry_at(head)));
        }
        slab_of(tables, classes, head, entry).map(Some)
    }

    /// Frees a block of a slab of this lane, on the shortest way that there is: no error is made here. `NotHere` says that
    /// nothing was done, and that the caller has to find out why.
    #[inline]
    pub(crate) fn free_hot(&self, tables: &Tables, classes: &Classes, offset: u64) -> Hot {
        let Some(page) = tables.page_at(offset) else { return Hot::NotHere };
        let entry = tables.entry(page);
        if !entry.is_slab_of(self.lane.get()) {
            return Hot::NotHere;
        }
        let Ok(slab) = slab_of(tables, classes, page, entry) else { return Hot::NotHere };
        let Some(bit) = slab.block_bit(tables, offset) else { return Hot::NotHere };
        let Some((before, after)) = slab.try_free_own(tables, bit) else { return Hot::NotHere };
        let had_room = before & slab.info.mask(bit.word) != 0;
        let may_be_empty = after == u64::MAX && self.bin(slab.class).current.get() != slab.head.link();
        if had_room && !may_be_empty {
            return Hot::Freed;
        }
        match self.settle(tables, &slab, had_room, may_be_empty) {
            Ok(Freed::Kept) => Hot::Freed,
            Ok(Freed::Emptied) => Hot::Emptied(slab.head, slab.class),
            Err(corruption) => Hot::Damaged(corruption.at),
        }
    }

    /// Frees a block of a slab of this lane.
    pub(crate) fn free(&self, tables: &Tables, slab: &Slab<'_>, bit: BlockBit) -> Result<Freed, Error> {
        let (before, after) = slab.free_own(tables, bit)?;
        let had_room = before & slab.info.mask(bit.word) != 0;
        let may_be_empty = after == u64::MAX && self.bin(slab.class).current.get() != slab.head.link();
        Ok(self.settle(tables, slab, had_room, may_be_empty)?)
    }

    /// After a block was freed: puts its slab where it belongs now. The current slab stays current even if it is empty;
    /// callers ask for that first, so that a hot pair of calls does not look through its words each time.
    fn settle(&self, tables: &Tables, slab: &Slab<'_>, had_room: bool, may_be_empty: bool) -> Result<Freed> {
        if !had_room {
            self.has_room_again(tables, slab)?;
        }
        if may_be_empty && slab.is_wholly_free(tables) {
            return self.emptied(tables, slab);
        }
        Ok(Freed::Kept)
    }

    /// A word of the slab had no free block, and has one now.
    fn has_room_again(&self, tables: &Tables, slab: &Slab<'_>) -> Result<()> {
        let bin = self.bin(slab.class);
        if bin.current.get() == slab.head.link() || list::kind(tables, slab.head) == Kind::Room {
            return Ok(());
        }
        self.unlist(tables, slab)?;
        list::push_back(tables, &bin.room, Kind::Room, slab.head)
    }

    /// A slab other than the current one is wholly free: one such is kept, others go.
    fn emptied(&self, tables: &Tables, slab: &Slab<'_>) -> Result<Freed> {
        let bin = self.bin(slab.class);
        let link = slab.head.link();
        if bin.kept.get() == link {
            return Ok(Freed::Kept);
        }
        self.unlist(tables, slab)?;
        if bin.kept.get() == 0 {
            bin.kept.set(link);
            return Ok(Freed::Kept);
        }
        Ok(Freed::Emptied)
    }

    /// Starts on a slab that has just become this lane's, in no list yet; true if it has a free block. A current slab
    /// is put into its list.
    pub(crate) fn start_on(&self, tables: &Tables, classes: &Classes, slab: &Slab<'_>) -> Result<bool> {
        let bin = self.bin(slab.class);
        if let Some(current) = self.slab(tables, classes, slab.class, bin.current.get())? {
            self.retire(tables, &current)?;
        }
        self.begin(tables, classes, slab.class, slab.head)
    }

    /// True once for each time that memory has run out somewhere.
    pub(crate) fn feels_pressure(&self, tables: &Tables) -> bool {
        let now = tables.superblock(superblock::PRESSURE).load(Ordering::Relaxed);
        self.pressure.replace(now) != now
    }

    /// Hands every slab that is wholly free to `give_back`, after merging what others have freed.
    pub(crate) fn give_back_empty(
        &self,
        tables: &Tables,
        classes: &Classes,
        mut give_back: impl FnMut(&Slab<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for class in classes.indices() {
            self.for_each_slab(tables, classes, class, |slab| {
                slab.merge_all(tables);
                if slab.is_wholly_free(tables) { give_back(slab) } else { Ok(self.own(tables, slab)?) }
            })?;
        }
        Ok(())
    }

    /// Hands every slab to `f`; the bins are empty afterwards.
    pub(crate) fn leave(
        &self,
        tables: &Tables,
        classes: &Classes,
        mut f: impl FnMut(&Slab<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        classes.indices().try_for_each(|class| self.for_each_slab(tables, classes, class, &mut f))
    }

    /// Takes each slab that the bin has now out of it, and hands it to `f`, which may put it back.
    fn for_each_slab(
        &self,
        tables: &Tables,
        classes: &Classes,
        class: ClassIndex,
        mut f: impl FnMut(&Slab<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let bin = self.bin(class);
        bin.copy.set(0);
        bin.to_scan.set(0);
        bin.full_count.set(0);
        let lists = [(&bin.room, Kind::Room), (&bin.full, Kind::Full)].map(|(ends, kind)| {
            let first = list::Ends::first(ends);
            list::Ends::set_first(ends, 0);
            list::Ends::set_last(ends, 0);
            (first, kind)
        });
        for link in [bin.current.replace(0), bin.kept.replace(0)] {
            if let Some(slab) = self.slab(tables, classes, class, link)? {
                f(&slab)?;
            }
        }
        for (mut link, kind) in lists {
            for _ in 0..=tables.geometry.pages {
                let Some(slab) = self.slab(tables, classes, class, link)? else { break };
                if list::kind(tables, slab.head) != kind {
                    break;
                }
                link = list::next(tables, slab.head)?.map_or(0, PageIndex::link);
                list::reset(tables, slab.head);
                f(&slab)?;
            }
        }
        Ok(())
    }

    /// The class's figures, for callers that have only its index.
    pub(crate) fn class_info<'a>(classes: &'a Classes, class: ClassIndex, tables: &Tables) -> Result<&'a Class> {
        classes.get(class).ok_or(Corruption::new("the header has no such size class", tables.geometry.data_start))
    }
}
