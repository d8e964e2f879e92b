//! Bins: what a lane keeps in private memory, one for each size class.
//!
//! Blocks that are freed go into the bin's hand ([`Hand`]), and are the next to be allocated. When it is empty, a bin
//! works on one word of one slab at a time, and holds a private copy of that word's free bits, of which it takes the
//! lowest. So what to allocate is chosen from private memory, and does not wait for a shared word.
//!
//! B1. A bit that is set in the copy is set in the region's free word too, or its block was freed twice; its block is in no
//!     hand. Blocks that are freed into the word meanwhile are in the hand, or are seen when the word is taken again.
//! B2. Every slab of the lane has notes ([`Notes`]) and is the bin's current one, or stands in its list of room or of full
//!     slabs; those that are kept ([`Kept`]) have none. A slab with a free bit set is not listed as full.
//! B3. Slabs that have room again wait first in, first out, so that they gather more room before they are used.
//! B4. A slab has fewer than 2^16 words: the smallest blocks have slabs of at most 2 MiB (the header's `slab_bytes_min`
//!     is at most 1 MiB), thus 2048 words.
//!
//! All of it can be lost: a lane whose thread dies leaves slabs whose bits say everything.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::hand::Hand;
use super::kept::Kept;
use super::notes::{Ends, Kind, Notes};
use super::size_class::CLASS_SLOTS;
use super::slab::{BlockBit, Slab};
use super::{Class, Classes};
use crate::error::{Corruption, Error};
use crate::format::{ClassIndex, LaneId, Tables, superblock};
use crate::region::{Offset, Spot};

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
    /// It is wholly free and the lane's no more: the caller gives its span back (or puts it back with [`Bins::own`]).
    Emptied,
}

/// What [`Bins::free_hot`] did.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hot {
    /// Freed it.
    Freed,
    /// Freed it, and with it the whole of its word, not in the current slab: [`Bins::settle`] is to be called for it.
    Unsettled,
    /// Nothing: the block is no allocated one of this lane's slabs, or its slab is listed as full.
    NotHere,
}

/// What a lane keeps for one class.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Bin {
    pub(super) hand: Hand,
    /// The lane's counter of blocks of this class.
    counter: Spot<AtomicU32>,
    /// Link of the current slab; 0 = none.
    pub(super) current: Cell<u32>,
    /// The word of it that is being worked on.
    word: Cell<u16>,
    /// Free blocks of the current word that are not taken yet.
    pub(super) copy: Cell<u64>,
    /// The current free word, and the number of its pair among all of the region's.
    free: Cell<Spot<AtomicU64>>,
    pair: Cell<u64>,
    /// Where the first block of the current word starts.
    base: Cell<u64>,
    /// Bytes per block.
    size: Cell<u64>,
    pub(super) room: Ends,
    pub(super) full: Ends,
    pub(super) full_count: Cell<u32>,
    /// How many full slabs are still to be looked through since the last hint.
    pub(super) to_scan: Cell<u32>,
}

const _: () = assert!(!size_of::<Bin>().is_multiple_of(512), "the same places of bins fall into different sets of a cache");

impl Bin {
    /// An empty bin. Any word will do as the current one.
    fn new(counter: Spot<AtomicU32>, anywhere: Spot<AtomicU64>) -> Self {
        Self {
            hand: Hand::new(anywhere),
            counter,
            free: Cell::new(anywhere),
            current: Cell::default(),
            word: Cell::default(),
            copy: Cell::default(),
            pair: Cell::default(),
            base: Cell::default(),
            size: Cell::default(),
            room: Ends::default(),
            full: Ends::default(),
            full_count: Cell::default(),
            to_scan: Cell::default(),
        }
    }

    /// Takes the lowest block of the current word: where it is, its free word, and which bit of it.
    #[inline]
    fn draw<'r>(&self, tables: &'r Tables) -> Option<(Offset, &'r AtomicU64, u64)> {
        let copy = self.copy.get();
        if copy == 0 {
            return None;
        }
        let bit = u64::from(copy.trailing_zeros());
        self.copy.set(copy & (copy - 1));
        Some((Offset::new(self.base.get() + bit * self.size.get())?, tables.region.at(self.free.get()), bit))
    }
}

/// A lane's bins.
#[derive(Debug)]
pub(crate) struct Bins {
    pub(super) notes: Notes,
    lane: LaneId,
    /// Value of the PRESSURE word when the lane last gave back what it keeps.
    pub(super) pressure: Cell<u64>,
    bins: Box<[Bin; CLASS_SLOTS]>,
    pub(crate) kept: Kept,
}

impl Bins {
    /// Empty bins for `lane`.
    pub(crate) fn new(tables: &Tables, lane: LaneId) -> Result<Self, Error> {
        let record = tables.lane(lane).ok_or_else(|| Corruption::new("the heap has no such lane", superblock::LEN))?;
        let region = &tables.region;
        let anywhere = region.spot(tables.superblock(superblock::PRESSURE));
        let counter = |class: u8| region.spot(record.allocated_ever(ClassIndex(class)));
        // One after the other: as a whole they would be built on the stack, and copied several times.
        let bins: Vec<Bin> = (0..CLASS_SLOTS as u8).map(|class| Bin::new(counter(class), anywhere)).collect();
        let bins = bins.try_into().map_err(|_| Corruption::new("bins without a number", superblock::LEN))?;
        let pressure = Cell::new(tables.superblock(superblock::PRESSURE).load(Ordering::Relaxed));
        Ok(Self { notes: Notes::new(tables)?, lane, pressure, bins, kept: Kept::default() })
    }

    /// Whose bins they are.
    #[inline]
    pub(crate) fn lane(&self) -> LaneId {
        self.lane
    }

    #[inline]
    pub(super) fn bin(&self, class: ClassIndex) -> &Bin {
        let [first, ..] = &*self.bins;
        // The index is always in range; the compiler sees that, and leaves only the address.
        self.bins.get(usize::from(class.0) % CLASS_SLOTS).unwrap_or(first)
    }

    /// Allocates a block of those in hand, or else of the current word; `None` if there are none. `before_commit` is called
    /// with the block's offset before its bit changes.
    #[inline]
    pub(crate) fn take(&self, tables: &Tables, class: ClassIndex, before_commit: impl FnOnce(u64)) -> Option<Offset> {
        let bin = self.bin(class);
        let (block, free, bit) = match bin.hand.take(&tables.region) {
            Some(taken) => taken,
            None => bin.draw(tables)?,
        };
        before_commit(block.get());
        free.store(free.load(Ordering::Relaxed) & !(1 << (bit % 64)), Ordering::Release); // COMMIT
        let counter = tables.region.at(bin.counter);
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        Some(block)
    }

    /// True if [`Self::take`] finds a block, after looking for one among what the lane has already.
    #[inline]
    pub(crate) fn has_any(&self, tables: &Tables, class: ClassIndex, info: &Class) -> Result<bool> {
        let bin = self.bin(class);
        let has_any = !bin.hand.is_empty() || bin.copy.get() != 0;
        Ok(has_any || self.advance(tables, class, info) || self.refill(tables, class, info)?)
    }

    /// Goes on to the current slab's next word, in the common case: it has free blocks, and none that others have freed.
    #[inline]
    fn advance(&self, tables: &Tables, class: ClassIndex, info: &Class) -> bool {
        let bin = self.bin(class);
        debug_assert!(bin.hand.is_empty() && bin.copy.get() == 0, "B1: blocks of the word could be in hand");
        let (word, pair) = (u32::from(bin.word.get()) + 1, bin.pair.get() + 1);
        if bin.current.get() == 0 || word > info.last_word {
            return false;
        }
        let Some([free, remote]) = tables.region.pair(pair) else { return false };
        let copy = free.load(Ordering::Acquire) & info.mask(word);
        if copy == 0 || remote.load(Ordering::Acquire) != 0 {
            return false;
        }
        bin.copy.set(copy);
        bin.free.set(tables.region.spot(free));
        bin.pair.set(pair);
        bin.base.set(bin.base.get() + 64 * bin.size.get());
        bin.word.set(word as u16); // B4
        true
    }

    /// Finds the bin another word with free blocks, among what the lane has already; false if there is none.
    fn refill(&self, tables: &Tables, class: ClassIndex, info: &Class) -> Result<bool> {
        let bin = self.bin(class);
        // Each round ends with a word, or with a slab less that might have room.
        for _ in 0..=tables.geometry.pages {
            if let Some(slab) = self.slab(tables, class, info, bin.current.get())? {
                if self.enter(tables, &slab, u32::from(bin.word.get()) + 1) {
                    return Ok(true);
                }
                self.retire(tables, &slab);
            }
            let next = match self.slab(tables, class, info, self.notes.pop_front(&bin.room))? {
                Some(slab) => Some(slab),
                None => match self.scan(tables, class, info)? {
                    Some(slab) => Some(slab),
                    None => self.take_kept(tables, class, info)?,
                },
            };
            let Some(slab) = next else { return Ok(false) };
            if self.begin(tables, &slab) {
                return Ok(true);
            }
        }
        Err(Corruption::new("a lane's list of slabs with room has no end", tables.geometry.data_start))
    }

    fn take_kept<'a>(&self, tables: &Tables, class: ClassIndex, info: &'a Class) -> Result<Option<Slab<'a>>> {
        let lane = self.lane();
        let head = self.kept.take_slab(tables, class, info.pages, lane)?;
        let slab = head.map(|head| Slab { head, class, info, lane });
        slab.as_ref().map_or(Ok(()), |slab| self.notes.add(tables, slab))?;
        Ok(slab)
    }

    /// Makes a slab that stands in no list the current one; true if it has a free block.
    fn begin(&self, tables: &Tables, slab: &Slab<'_>) -> bool {
        let has_room = self.enter(tables, slab, 0);
        if !has_room {
            self.enlist(tables, slab);
        }
        has_room
    }

    /// Takes a slab that has just become this lane's, or was [`Freed::Emptied`], into the list where it belongs.
    pub(crate) fn own(&self, tables: &Tables, slab: &Slab<'_>) -> Result<()> {
        self.notes.add(tables, slab)?;
        self.enlist(tables, slab);
        Ok(())
    }

    /// Puts a slab that stands in no list into the one where it belongs.
    #[inline]
    fn enlist(&self, tables: &Tables, slab: &Slab<'_>) {
        let bin = self.bin(slab.class);
        if slab.word_with_room(tables, 0).is_some() {
            return self.notes.push_back(&bin.room, Kind::Room, slab);
        }
        bin.full_count.set(bin.full_count.get() + 1);
        self.notes.push_back(&bin.full, Kind::Full, slab);
    }

    /// Takes a slab out of the list in which it stands.
    fn unlist(&self, slab: &Slab<'_>) {
        let bin = self.bin(slab.class);
        match self.notes.kind(slab.head) {
            Kind::None => {}
            Kind::Room => self.notes.unlist(&bin.room, slab),
            Kind::Full => {
                bin.full_count.set(bin.full_count.get().saturating_sub(1));
                self.notes.unlist(&bin.full, slab);
            }
        }
    }

    /// Makes the first word at or after `from` that has a free block the current one.
    #[inline]
    fn enter(&self, tables: &Tables, slab: &Slab<'_>, from: u32) -> bool {
        let bin = self.bin(slab.class);
        debug_assert!(bin.hand.is_empty() && bin.copy.get() == 0, "B1: blocks of the word could be in hand");
        let first_pair = slab.first_pair(tables);
        for word in from..slab.info.words() {
            let pair = first_pair + u64::from(word);
            let Some([free_word, remote]) = tables.region.pair(pair) else { return false };
            let mut free = free_word.load(Ordering::Acquire);
            if remote.load(Ordering::Acquire) != 0 {
                free = slab.merge(tables, word);
            }
            let free = free & slab.info.mask(word);
            if free != 0 {
                bin.copy.set(free);
                bin.free.set(tables.region.spot(free_word));
                bin.pair.set(pair);
                bin.base.set(slab.block_at(tables, word * 64));
                bin.size.set(u64::from(slab.info.size));
                bin.current.set(slab.head.link());
                bin.word.set(word as u16); // B4
                return true;
            }
        }
        false
    }

    /// Puts the current slab, whose words have all been passed, where it belongs.
    fn retire(&self, tables: &Tables, slab: &Slab<'_>) {
        let bin = self.bin(slab.class);
        bin.copy.set(0);
        bin.current.set(0);
        if !(slab.is_wholly_free(tables) && self.keep(tables, slab)) {
            self.enlist(tables, slab);
        }
    }

    /// Keeps a wholly free slab that stands in no list; false if the lane keeps enough already.
    fn keep(&self, tables: &Tables, slab: &Slab<'_>) -> bool {
        let is_kept = self.kept.keep_slab(tables, slab);
        if is_kept {
            self.forget(tables, slab);
        }
        is_kept
    }

    /// Forgets a slab that stands in no list.
    fn forget(&self, tables: &Tables, slab: &Slab<'_>) {
        self.bin(slab.class).hand.discard(tables.page_start(slab.head), slab.info.bytes());
        self.notes.remove(slab);
    }

    /// Looks through some full slabs for blocks that others have freed, if a hint says that there are any.
    fn scan<'a>(&self, tables: &Tables, class: ClassIndex, info: &'a Class) -> Result<Option<Slab<'a>>> {
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
            let Some(slab) = self.slab(tables, class, info, self.notes.first(&bin.full))? else { return Ok(None) };
            self.unlist(&slab);
            if slab.has_remote(tables) {
                return Ok(Some(slab));
            }
            self.enlist(tables, &slab);
        }
        Ok(None)
    }

    /// The slab of this class to which a link in private memory leads.
    #[inline]
    pub(super) fn slab<'a>(
        &self,
        tables: &Tables,
        class: ClassIndex,
        info: &'a Class,
        link: u32,
    ) -> Result<Option<Slab<'a>>> {
        let head = tables.linked_page(link, tables.geometry.data_start)?;
        Ok(head.map(|head| Slab { head, class, info, lane: self.lane() }))
    }

    /// Frees a block of a slab of this lane, on the shortest way that there is: no error is made here. `NotHere` says that
    /// nothing was done, and that the caller has to find out why.
    #[inline]
    pub(crate) fn free_hot(&self, tables: &Tables, block: Offset) -> Hot {
        let Some(found) = self.notes.find(tables, block.get()) else { return Hot::NotHere };
        let Some([free, remote]) = tables.region.pair(found.pair) else { return Hot::NotHere };
        let bit = found.index % 64;
        let before = free.load(Ordering::Relaxed);
        // Rotated, and not by a mask: that would be one more value to hold for the store below, which is a bit instruction.
        if (before | remote.load(Ordering::Relaxed)).rotate_right(bit as u32) & 1 != 0 {
            return Hot::NotHere;
        }
        let after = before | 1 << bit;
        // ORDERING O1: as in `Slab::try_free_own`.
        free.store(after, Ordering::Release); // COMMIT
        let bin = self.bin(found.class);
        if after == u64::MAX && bin.current.get() != found.link() {
            return Hot::Unsettled;
        }
        bin.hand.add(&tables.region, block, free, found.index);
        Hot::Freed
    }

    /// An allocated block of one of this lane's slabs; `None` if `offset` is none.
    pub(crate) fn own_block<'a>(&self, tables: &Tables, classes: &'a Classes, offset: u64) -> Option<(Slab<'a>, BlockBit)> {
        let (head, class, _) = self.notes.slab_around(tables, offset)?;
        let slab = Slab { head: tables.page(head)?, class, info: classes.get(class)?, lane: self.lane() };
        let bit = slab.block_bit(tables, offset)?;
        slab.is_allocated(tables, bit).then_some((slab, bit))
    }

    /// Does what stands in the way of [`Self::free_hot`]: opens the slab around `offset`, if it is this lane's and listed
    /// as full.
    pub(crate) fn open(&self, tables: &Tables, classes: &Classes, offset: u64) {
        let Some((head, class, Kind::Full)) = self.notes.slab_around(tables, offset) else { return };
        let (Some(info), Some(head)) = (classes.get(class), tables.page(head)) else { return };
        self.has_room_again(&Slab { head, class, info, lane: self.lane() });
    }

    /// A slab that was listed as full is so no more.
    #[inline]
    fn has_room_again(&self, slab: &Slab<'_>) {
        let bin = self.bin(slab.class);
        bin.full_count.set(bin.full_count.get().saturating_sub(1));
        self.notes.unlist(&bin.full, slab);
        self.notes.push_back(&bin.room, Kind::Room, slab);
    }

    /// Frees a block of a slab of this lane, as its entries say. If the notes say otherwise, somebody has scribbled on them.
    pub(crate) fn free(&self, tables: &Tables, slab: &Slab<'_>, bit: BlockBit) -> Result<Freed, Error> {
        if !self.notes.tell_of(slab) {
            return Err(
                Corruption::new("a page entry names a slab that its lane has not", tables.entry_at(slab.head)).into()
            );
        }
        slab.free_own(tables, bit)?;
        if self.notes.kind(slab.head) == Kind::Full {
            self.has_room_again(slab);
        }
        Ok(self.settle_slab(tables, slab))
    }

    /// After [`Hot::Unsettled`]: puts the slab around `offset` where it belongs now. Returns it if it is
    /// [`Freed::Emptied`].
    pub(crate) fn settle<'a>(&self, tables: &Tables, classes: &'a Classes, offset: u64) -> Result<Option<Slab<'a>>> {
        let Some((head, class, _)) = self.notes.slab_around(tables, offset) else { return Ok(None) };
        let Some(info) = classes.get(class) else { return Ok(None) };
        let slab = self.slab(tables, class, info, head + 1)?;
        Ok(slab.filter(|slab| self.settle_slab(tables, slab) == Freed::Emptied))
    }

    /// After a block was freed: if its slab is wholly free, it is kept, or goes. The current slab stays current all the
    /// same, so that a hot pair of calls does not take a slab with it each time.
    fn settle_slab(&self, tables: &Tables, slab: &Slab<'_>) -> Freed {
        if self.bin(slab.class).current.get() == slab.head.link() || !slab.is_wholly_free(tables) {
            return Freed::Kept;
        }
        self.unlist(slab);
        if self.keep(tables, slab) {
            return Freed::Kept;
        }
        self.forget(tables, slab);
        Freed::Emptied
    }

    /// Starts on a slab that has just become this lane's, in no list yet; true if it has a free block. A current slab
    /// is put into its list.
    pub(crate) fn start_on(&self, tables: &Tables, slab: &Slab<'_>) -> Result<bool> {
        if let Some(current) = self.slab(tables, slab.class, slab.info, self.bin(slab.class).current.get())? {
            self.retire(tables, &current);
        }
        self.notes.add(tables, slab)?;
        Ok(self.begin(tables, slab))
    }

    /// The class's figures, for callers that have only its index.
    pub(crate) fn class_info<'a>(classes: &'a Classes, class: ClassIndex, tables: &Tables) -> Result<&'a Class> {
        classes.get(class).ok_or(Corruption::new("the header has no such size class", tables.geometry.data_start))
    }
}
