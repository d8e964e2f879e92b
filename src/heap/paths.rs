//! Which of the allocator's paths a call takes, and under which lock.
//!
//! Down, for a small block: what was freed last; the bin's current word; another word of the slab, or of one with room; a
//! full slab in which others have freed; the kept slab; then, under the heap lock, an orphan, a new slab, and when memory
//! is short, whatever the dead and this lane can give back, or pages for this one block.

use std::sync::atomic::Ordering;

use super::attachment::Attachment;
use super::lane::{Caller, LaneSeat};
use crate::alloc::{Bins, Class, Freed, Hot, Located, Slab, large, orphan, slab, span};
use crate::error::{Corruption, Error, OffsetFault, Result};
use crate::format::{ClassIndex, LARGE_BLOCKS, LaneId, PageCount, PageState, SHARED_LANE, superblock};
use crate::journal::Locked;
use crate::recovery;
use crate::region::Offset;

/// One in so many slabs that are taken under the heap lock, the lanes are looked through for dead ones.
const SUPPLIES_PER_ROUND: u32 = 16;
/// A call that finds its block's slab changed by others under its eyes looks again, so many times. Each change takes
/// somebody a turn of the heap lock.
pub(super) const TRIES: u32 = 1000;

/// What a request is served from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Small(ClassIndex),
    Large(u64),
}

/// What became of a block that was to be freed without a lock.
#[derive(Debug)]
pub(super) enum Unlocked<'a> {
    /// Nothing, and the caller has to find out why.
    NotHere,
    /// Nothing: it is free already, in another lane's slab. To look again would be wrong: its owner may have allocated it
    /// meanwhile.
    Double,
    /// It belonged to the calling thread's lane.
    Own(Hot),
    /// It was freed in this slab, whose lane is to be told.
    Remote(Slab<'a>),
}

/// The error with the size that the caller asked for: below, spans are asked for.
pub(super) fn as_requested(error: Error, size: u64) -> Error {
    match error {
        Error::OutOfMemory { largest_free, free, shortage, .. } => {
            Error::OutOfMemory { requested: size, largest_free, free, shortage }
        }
        other => other,
    }
}

/// A bin that was filled, and is empty when it is looked at, again and again: somebody else writes this lane's words.
fn no_end() -> Error {
    Corruption::new("a lane's free bits change under it", superblock::LEN).into()
}

impl Attachment {
    /// What a request is served from.
    pub(super) fn kind(&self, size: u64, alignment: u64) -> Result<Kind> {
        if size == 0 {
            return Err(Error::ZeroSize);
        }
        let class = if alignment <= 16 { self.classes.for_size(size) } else { self.classes.for_aligned(size, alignment) };
        if let Some(class) = class {
            return Ok(Kind::Small(class));
        }
        large::pages_for(&self.tables, size)?;
        Ok(Kind::Large(size))
    }

    /// What `block` names, if it is allocated.
    pub(super) fn locate_allocated(&self, block: u64) -> Result<Located<'_>> {
        let located = slab::locate(&self.tables, &self.classes, block)?;
        match located {
            Located::Block { slab, bit } if !slab.is_allocated(&self.tables, bit) => {
                Err(Error::DoubleFree { offset: block })
            }
            located => Ok(located),
        }
    }

    /// Allocates a block that the bin of the thread's lane has at hand; `None` if it has none.
    #[inline]
    pub(super) fn allocate_hot(&self, size: u64) -> Option<Offset> {
        let class = self.classes.quick(size);
        self.key.with_hot(|seat| seat.bins.take(&self.tables, class, |_| ())).flatten()
    }

    /// Frees a block of an open slab of the thread's lane.
    ///
    /// A function of its own, with a result that fits into a register, as an error does not: inlined, it would make the
    /// loops around it spill what they hold.
    #[inline(never)]
    pub(super) fn free_hot(&self, block: Offset) -> Hot {
        self.key.with_hot(|seat| seat.bins.free_hot(&self.tables, block)).unwrap_or(Hot::NotHere)
    }

    /// Allocates, taking the heap lock where it is needed; `before_commit` is called with the block before it is allocated.
    pub(super) fn allocate(&self, caller: Caller<'_>, kind: Kind, mut before_commit: impl FnMut(u64)) -> Result<u64> {
        if let (Caller::Lane(seat), Kind::Small(class)) = (caller, kind) {
            let info = Bins::class_info(&self.classes, class, &self.tables)?;
            for _ in 0..TRIES {
                if let Some(block) = seat.bins.take(&self.tables, class, &mut before_commit) {
                    return Ok(block.get());
                }
                if !seat.bins.has_any(&self.tables, class, info)? {
                    let lock = self.lock_for(caller)?;
                    match self.supply(&lock, seat, class) {
                        Err(Error::OutOfMemory { .. }) => {
                            return self.allocate_pages_for(&lock, caller, class, before_commit);
                        }
                        supplied => supplied?,
                    }
                }
            }
            return Err(no_end());
        }
        let lock = self.lock_for(caller)?;
        self.allocate_locked(&lock, caller, kind, before_commit)
    }

    /// Allocates under the heap lock; `before_commit` is called with the block before it is allocated.
    pub(super) fn allocate_locked(
        &self,
        locked: &Locked,
        caller: Caller<'_>,
        kind: Kind,
        before_commit: impl FnOnce(u64),
    ) -> Result<u64> {
        let (tables, classes) = (&self.tables, &self.classes);
        let mut before_commit = Some(before_commit);
        let mut commit = move |block: u64| {
            if let Some(f) = before_commit.take() {
                f(block);
            }
        };
        match (kind, caller) {
            (Kind::Small(class), Caller::Lane(seat)) => {
                let info = Bins::class_info(classes, class, tables)?;
                for _ in 0..TRIES {
                    if let Some(block) = seat.bins.take(tables, class, &mut commit) {
                        return Ok(block.get());
                    }
                    if !seat.bins.has_any(tables, class, info)? {
                        match self.supply(locked, seat, class) {
                            Err(Error::OutOfMemory { .. }) => return self.allocate_pages_for(locked, caller, class, commit),
                            supplied => supplied?,
                        }
                    }
                }
                Err(no_end())
            }
            (Kind::Small(class), Caller::Shared { .. }) => {
                let info = Bins::class_info(classes, class, tables)?;
                let from_orphans = || orphan::allocate(tables, locked, classes, class, info, &mut commit);
                match self.with_second_try(locked, caller, from_orphans) {
                    Err(Error::OutOfMemory { .. }) => self.allocate_pages_for(locked, caller, class, commit),
                    done => done.inspect(|_| self.count_allocated(SHARED_LANE, class)),
                }
            }
            (Kind::Large(size), caller) => {
                self.with_second_try(locked, caller, || self.allocate_large(locked, caller, size, &mut commit))
            }
        }
    }

    fn allocate_large(
        &self,
        locked: &Locked,
        caller: Caller<'_>,
        size: u64,
        before_commit: impl FnOnce(u64),
    ) -> Result<u64> {
        if let Caller::Lane(seat) = caller {
            seat.has_large.set(true);
            self.make_room(locked, seat, large::pages_for(&self.tables, size)?.get())?;
        }
        let allocated = large::allocate(&self.tables, locked, size, caller.lane(), before_commit);
        allocated.inspect(|_| self.count_allocated(caller.lane(), LARGE_BLOCKS))
    }

    /// Counts a block that came from no bin: bins count what they hand out.
    fn count_allocated(&self, lane: LaneId, class: ClassIndex) {
        if let Some(record) = self.tables.lane(lane) {
            record.count_allocated(class, 1);
        }
    }

    /// The last resort of a small request: where no run of pages is long enough for a slab of its class, one may still be
    /// for a single block.
    #[cold]
    fn allocate_pages_for(
        &self,
        locked: &Locked,
        caller: Caller<'_>,
        class: ClassIndex,
        before_commit: impl FnOnce(u64),
    ) -> Result<u64> {
        let info = Bins::class_info(&self.classes, class, &self.tables)?;
        self.allocate_large(locked, caller, u64::from(info.size), before_commit)
    }

    /// Gives a lane a slab with room: an orphan, or a new one.
    fn supply(&self, locked: &Locked, seat: &LaneSeat, class: ClassIndex) -> Result<()> {
        let round = self.supplies.fetch_add(1, Ordering::Relaxed);
        if round % SUPPLIES_PER_ROUND == SUPPLIES_PER_ROUND.wrapping_sub(1) {
            recovery::dead_lanes(self.ward(), locked, &[])?;
        }
        if seat.bins.feels_pressure(&self.tables) {
            self.give_back_empty(locked, seat)?;
        }
        let info = Bins::class_info(&self.classes, class, &self.tables)?;
        self.with_second_try(locked, Caller::Lane(seat), || self.supply_once(locked, seat, class, info))
    }

    fn supply_once(&self, locked: &Locked, seat: &LaneSeat, class: ClassIndex, info: &Class) -> Result<()> {
        let (tables, classes, lane) = (&self.tables, &self.classes, seat.bins.lane());
        // Whoever has just looked through its slabs, to give back the empty ones, may have found room in others.
        if seat.bins.has_any(tables, class, info)? {
            return Ok(());
        }
        while let Some(slab) = orphan::with_room(tables, locked, classes, class)? {
            // Each round takes one out of the list.
            orphan::adopt(tables, locked, &slab, lane)?;
            if seat.bins.start_on(tables, &Slab { lane, ..slab })? {
                return Ok(());
            }
        }
        self.make_room(locked, seat, info.pages)?;
        let slab = orphan::new_slab(tables, locked, class, info, lane)?;
        seat.bins.start_on(tables, &slab)?;
        Ok(())
    }

    /// Before a lane takes memory that was never used, it gives back what it keeps, until the first run that is long enough
    /// is in memory: then memory grows with what is in use, and not by what each size class once needed.
    fn make_room(&self, locked: &Locked, seat: &LaneSeat, pages: u32) -> Result<()> {
        let (kept, lane) = (&seat.bins.kept, seat.bins.lane());
        let Some(count) = PageCount::new(pages) else { return Ok(()) };
        // Each round ends with a span less that is kept.
        while !kept.is_empty() && !span::is_at_hand(&self.tables, locked, count)? {
            kept.give_back_one(&self.tables, locked, &self.classes, lane, pages)?;
        }
        Ok(())
    }

    /// Calls `attempt`; if memory is short, gives back what can be given back and calls it once more.
    fn with_second_try<R>(&self, locked: &Locked, caller: Caller<'_>, mut attempt: impl FnMut() -> Result<R>) -> Result<R> {
        match attempt() {
            Err(Error::OutOfMemory { .. } | Error::NoSpace { .. }) => {}
            done => return done,
        }
        self.tables.superblock(superblock::PRESSURE).fetch_add(1, Ordering::Relaxed);
        if let Caller::Lane(seat) = caller {
            self.give_back_empty(locked, seat)?;
        }
        recovery::dead_lanes(self.ward(), locked, &[])?;
        recovery::gather_freed(self.ward(), locked)?;
        attempt()
    }

    /// Gives back every slab of the calling lane that is wholly free.
    pub(super) fn give_back_empty(&self, locked: &Locked, seat: &LaneSeat) -> Result<()> {
        seat.bins.give_back_empty(&self.tables, locked, &self.classes, |slab| self.free_span_of(locked, slab))
    }

    fn free_span_of(&self, locked: &Locked, slab: &Slab<'_>) -> Result<()> {
        match slab.pages() {
            Some(pages) => span::free(&self.tables, locked, slab.head, pages),
            None => Ok(()),
        }
    }

    /// Allocates from what the calling thread's lane has already, and needs no lock for: another word, a kept span.
    /// `None` if there is nothing, or the thread has no lane yet.
    pub(super) fn allocate_from_own(&self, size: u64) -> Result<Option<Offset>, Corruption> {
        let tables = &self.tables;
        let class = self.classes.quick(size);
        let allocate = |seat: &LaneSeat| {
            if let Some(info) = self.classes.get(class) {
                let has_any = seat.bins.has_any(tables, class, info)?;
                return Ok(if has_any { seat.bins.take(tables, class, |_| ()) } else { None });
            }
            let Ok(pages) = large::pages_for(tables, size) else { return Ok(None) };
            let first = seat.bins.kept.take_large(tables, pages, seat.bins.lane())?;
            Ok(first.and_then(|first| {
                seat.has_large.set(true);
                self.count_allocated(seat.bins.lane(), LARGE_BLOCKS);
                Offset::new(tables.page_start(first))
            }))
        };
        self.key.with_open(allocate).unwrap_or(Ok(None))
    }

    /// Frees what can be freed without a lock: a block of a slab of the calling thread's lane that was listed as full, or
    /// whose seat was not the last one used; one of another lane's slabs; and a large block that can be kept.
    pub(super) fn free_unlocked(&self, block: Offset) -> Unlocked<'_> {
        let tables = &self.tables;
        let Some(page) = tables.page_at(block.get()) else { return Unlocked::NotHere };
        let entry = tables.entry(page);
        let free = |seat: &LaneSeat| match entry.state() {
            Some(PageState::Slab) if entry.lane() == seat.bins.lane() => {
                seat.bins.open(tables, &self.classes, block.get());
                Unlocked::Own(seat.bins.free_hot(tables, block))
            }
            Some(PageState::Slab) if entry.lane() != SHARED_LANE => {
                let slab = slab::slab_of(tables, &self.classes, page, entry).ok();
                let found = slab.and_then(|slab| Some((slab, slab.block_bit(tables, block.get())?)));
                match found.map(|(slab, bit)| slab.free_remote(tables, bit).map(|()| slab)) {
                    Some(Ok(slab)) => Unlocked::Remote(slab),
                    Some(Err(_)) => Unlocked::Double,
                    None => Unlocked::NotHere,
                }
            }
            Some(PageState::Large)
                if block.get() == tables.page_start(page)
                    && seat.bins.kept.keep_large(tables, page, entry, seat.bins.lane()) =>
            {
                Unlocked::Own(Hot::Freed)
            }
            _ => Unlocked::NotHere,
        };
        self.key.with_open(free).unwrap_or(Unlocked::NotHere)
    }

    /// After a block of a slab of the calling thread's lane was freed: puts the slab where it belongs now.
    #[inline(never)]
    pub(super) fn settle_freed(&self, block: u64) -> Result<()> {
        self.key.with(|seat| self.settle_in(seat, block)).unwrap_or(Ok(()))
    }

    /// The same for a lane that is at hand.
    pub(super) fn settle_in(&self, seat: &LaneSeat, block: u64) -> Result<()> {
        match seat.bins.settle(&self.tables, &self.classes, block)? {
            Some(slab) => self.give_back_emptied(seat, &slab),
            None => Ok(()),
        }
    }

    /// Gives back the span of a slab of the calling thread's lane that has become wholly free and stands in no list. The
    /// block that was freed is free whatever happens here: without the lock, the slab stays with its lane.
    #[cold]
    pub(super) fn give_back_emptied(&self, seat: &LaneSeat, slab: &Slab<'_>) -> Result<()> {
        match self.lock(slab.lane) {
            Ok(lock) => self.free_span_of(&lock, slab),
            Err(_) => Ok(seat.bins.own(&self.tables, slab)?),
        }
    }

    /// Frees a block that needs the lock, or a lane: a large one, an orphan's, or one whose slab is changing hands.
    pub(super) fn deallocate(&self, caller: Caller<'_>, block: u64) -> Result<()> {
        for _ in 0..TRIES {
            if let Located::Block { slab, bit } = slab::locate(&self.tables, &self.classes, block)?
                && let Caller::Lane(seat) = caller
                && slab.lane == seat.bins.lane()
            {
                return match seat.bins.free(&self.tables, &slab, bit)? {
                    Freed::Kept => Ok(()),
                    Freed::Emptied => self.give_back_emptied(seat, &slab),
                };
            }
            let lock = self.lock_for(caller)?;
            if self.free_locked(&lock, caller, block)? {
                return Ok(());
            }
        }
        Err(Error::InvalidOffset { offset: block, fault: OffsetFault::NotAllocated })
    }

    /// Frees a block under the heap lock. False if the caller has become the owner of the block's slab, and has to free it
    /// as such.
    fn free_locked(&self, locked: &Locked, caller: Caller<'_>, block: u64) -> Result<bool> {
        let tables = &self.tables;
        match self.locate_allocated(block)? {
            Located::Large { first, pages, .. } => span::free(tables, locked, first, pages).map(|()| true),
            Located::Block { slab, bit } if slab.lane == SHARED_LANE => match caller {
                Caller::Lane(seat) => {
                    orphan::adopt(tables, locked, &slab, seat.bins.lane())?;
                    seat.bins.own(tables, &Slab { lane: seat.bins.lane(), ..slab })?;
                    Ok(false)
                }
                Caller::Shared { .. } => orphan::free(tables, locked, &slab, bit).map(|()| true),
            },
            Located::Block { slab, .. } if slab.lane == caller.lane() => Ok(false),
            Located::Block { slab, bit } => {
                slab.free_remote(tables, bit)?;
                recovery::hint(tables, &slab);
                Ok(true)
            }
        }
    }

    /// Frees a block in place, under the heap lock, as a step of an intent: nothing changes hands. A living lane's slab is
    /// not merged until the intent has ended (MERGE_HOLD).
    pub(super) fn free_as_intended(&self, locked: &Locked, caller: Caller<'_>, block: u64) -> Result<()> {
        let tables = &self.tables;
        match self.locate_allocated(block)? {
            Located::Large { first, pages, .. } => span::free(tables, locked, first, pages),
            Located::Block { slab, bit } if slab.lane == SHARED_LANE => orphan::free(tables, locked, &slab, bit),
            Located::Block { slab, bit } => match caller {
                Caller::Lane(seat) if seat.bins.lane() == slab.lane => match seat.bins.free(tables, &slab, bit)? {
                    Freed::Kept => Ok(()),
                    Freed::Emptied => self.free_span_of(locked, &slab),
                },
                _ => {
                    slab.free_remote(tables, bit)?;
                    recovery::hint(tables, &slab);
                    Ok(())
                }
            },
        }
    }

    /// Settles a slab that became an orphan while one of its blocks was freed from afar.
    pub(super) fn resettle_orphan(&self, locked: &Locked, slab: &Slab<'_>) -> Result<()> {
        let entry = self.tables.entry(slab.head);
        let still = entry.state() == Some(PageState::Slab) && entry.number() == 0 && entry.lane() == SHARED_LANE;
        if !still {
            return Ok(());
        }
        let slab = slab::slab_of(&self.tables, &self.classes, slab.head, entry)?;
        orphan::resettle(&self.tables, locked, &slab)
    }

    /// Resizes a large block in place; false if that is not possible.
    pub(super) fn resize_large(&self, locked: &Locked, block: u64, size: u64, lane: LaneId) -> Result<bool> {
        let Located::Large { first, pages, .. } = self.locate_allocated(block)? else { return Ok(false) };
        let wanted = large::pages_for(&self.tables, size)?;
        match span::resize(&self.tables, locked, first, pages, wanted, lane) {
            // No memory to grow into: elsewhere there may be some that is reserved already.
            Err(Error::NoSpace { .. }) => Ok(false),
            done => done,
        }
    }
}
