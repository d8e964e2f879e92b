//! Allocating, freeing, resizing: which of the allocator's paths a call takes, and under which lock.
//!
//! Down, for a small block: the bin's current word; another word of the slab, or of one with room; a full slab in which
//! others have freed; the kept slab; then, under the heap lock, an orphan, a new slab, and when memory is short, whatever
//! the dead and this lane can give back.

use std::sync::atomic::Ordering;

use super::Heap;
use super::attachment::Attachment;
use super::lane::{Caller, LaneSeat};
use crate::alloc::{Bins, Class, Freed, Hot, Located, Slab, large, orphan, slab, span};
use crate::error::{Corruption, Error, OffsetFault, Result};
use crate::format::{ClassIndex, LaneId, PageEntry, PageIndex, PageState, SHARED_LANE, superblock};
use crate::journal::Locked;
use crate::recovery;
use crate::region::Offset;

/// Smallest and largest alignment that can be asked for.
const ALIGNMENT_MIN: u64 = 8;
const ALIGNMENT_MAX: u64 = 4096;
/// One in so many slabs that are taken under the heap lock, the lanes are looked through for dead ones.
const SUPPLIES_PER_ROUND: u32 = 16;
/// A call that finds its block's slab changed by others under its eyes looks again, so many times. Each change takes
/// somebody a turn of the heap lock.
const TRIES: u32 = 1000;

/// What a request is served from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Small(ClassIndex),
    Large(u64),
}

impl Heap {
    /// Allocates a block of at least `size` bytes, aligned to 16. Its contents are whatever was there.
    ///
    /// Constant time; blocks above the largest size class take the heap lock and time proportional to their pages.
    ///
    /// A process that is killed between this call and the moment when it has stored the offset leaves a block that nobody
    /// knows; [`Heap::allocate_into`] closes that gap.
    ///
    /// # Errors
    ///
    /// [`Error::ZeroSize`], [`Error::TooLarge`], [`Error::OutOfMemory`]; [`Error::NoSpace`] if the file system behind the
    /// region is full; [`Error::LockTimeout`], [`Error::ReadOnly`]; [`Error::Corrupt`] if the region's bytes contradict
    /// the format. The heap is then as it was.
    ///
    /// ```
    /// # let heap = shmheap::Heap::options().create_in(shmheap::Memory::zeroed(1 << 20)?)?;
    /// let block = heap.allocate(100)?;
    /// assert!(heap.usable_size(block)? >= 100);
    /// # Ok::<(), shmheap::Error>(())
    /// ```
    #[inline]
    pub fn allocate(&self, size: usize) -> Result<Offset> {
        let size = size as u64;
        let attachment = &*self.attachment;
        if size != 0
            && let Some(class) = attachment.classes.for_size(size)
        {
            let block = attachment.key.with(|seat| seat.bins.take(&attachment.tables, class, |_| ()));
            if let Some(block) = block.flatten().and_then(Offset::new) {
                return Ok(block);
            }
        }
        self.allocate_slow(size, ALIGNMENT_MIN)
    }

    /// Allocates a block of at least `size` bytes whose offset, and whose address in every process, is a multiple of
    /// `alignment`: a power of two from 8 to 4096.
    ///
    /// # Errors
    ///
    /// As [`Heap::allocate`], and [`Error::BadAlignment`].
    ///
    /// ```
    /// # let heap = shmheap::Heap::options().create_in(shmheap::Memory::zeroed(1 << 20)?)?;
    /// let block = heap.allocate_aligned(100, 4096)?;
    /// assert_eq!(block.get() % 4096, 0);
    /// # Ok::<(), shmheap::Error>(())
    /// ```
    pub fn allocate_aligned(&self, size: usize, alignment: usize) -> Result<Offset> {
        let alignment = alignment as u64;
        if !alignment.is_power_of_two() || !(ALIGNMENT_MIN..=ALIGNMENT_MAX).contains(&alignment) {
            return Err(Error::BadAlignment { alignment });
        }
        self.allocate_slow(size as u64, alignment)
    }

    /// Allocates a block of at least `size` bytes, all usable bytes of which are zero.
    ///
    /// # Errors
    ///
    /// As [`Heap::allocate`].
    pub fn allocate_zeroed(&self, size: usize) -> Result<Offset> {
        let block = self.allocate(size)?;
        let usable = self.usable(block)?;
        self.attachment.tables.region.zero(block.get(), usable);
        Ok(block)
    }

    /// Frees a block. Any process and thread may free any block.
    ///
    /// Constant time; no lock, except for large blocks, orphans, and slabs that become wholly free.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOffset`] if no block starts there; [`Error::DoubleFree`] if it is free already (as long as its slab
    /// exists; later that is an [`Error::InvalidOffset`]); [`Error::LockTimeout`], [`Error::ReadOnly`],
    /// [`Error::Corrupt`]. Nothing is freed then.
    #[inline]
    pub fn deallocate(&self, block: Offset) -> Result<()> {
        let attachment = &*self.attachment;
        let free = |seat: &LaneSeat| seat.bins.free_hot(&attachment.tables, &attachment.classes, block.get());
        match attachment.key.with(free) {
            Some(Hot::Freed) => Ok(()),
            Some(Hot::NotHere) | None => self.deallocate_slow(block.get()),
            Some(Hot::Emptied(head, class)) => attachment.give_back_emptied(head, class),
            Some(Hot::Damaged(at)) => Err(Corruption::new("a lane's list of slabs is damaged", at).into()),
        }
    }

    /// Changes a block's size, keeping its first bytes. Returns where it stands now: at the same place if its size class or
    /// the pages behind it allow it, else at another, and the old block is freed.
    ///
    /// A block is aligned to 16 afterwards, whatever it was before.
    ///
    /// # Errors
    ///
    /// As [`Heap::allocate`] and [`Heap::deallocate`]. The old block is then intact.
    ///
    /// ```
    /// # let heap = shmheap::Heap::options().create_in(shmheap::Memory::zeroed(1 << 20)?)?;
    /// let block = heap.allocate(10)?;
    /// heap.copy_in(block, b"0123456789")?;
    /// let block = heap.reallocate(block, 10_000)?;
    /// let mut start = [0; 10];
    /// heap.copy_out(block, &mut start)?;
    /// assert_eq!(&start, b"0123456789");
    /// # Ok::<(), shmheap::Error>(())
    /// ```
    pub fn reallocate(&self, block: Offset, size: usize) -> Result<Offset> {
        let new_size = size as u64;
        if new_size == 0 {
            return Err(Error::ZeroSize);
        }
        self.attachment.check_writable()?;
        let usable = self.usable(block)?;
        let wanted = self.attachment.kind(new_size, ALIGNMENT_MIN)?;
        let fits_in_place = match (self.attachment.locate_allocated(block.get())?, wanted) {
            (Located::Block { slab, .. }, Kind::Small(class)) => slab.class == class,
            (Located::Large { .. }, Kind::Large(_)) => self.as_caller(|caller| {
                let lock = self.attachment.lock_for(caller)?;
                self.attachment.resize_large(&lock, block.get(), new_size, caller.lane())
            })?,
            _ => false,
        };
        if fits_in_place {
            return Ok(block);
        }
        let new = self.allocate(size)?;
        self.attachment.tables.region.copy_within(block.get(), new.get(), usable.min(new_size));
        if let Err(error) = self.deallocate(block) {
            // The old block could not be freed: it stays, and the copy goes.
            let _ = self.deallocate(new);
            return Err(error);
        }
        Ok(new)
    }

    /// Bytes of the block that may be used: at least as many as were asked for.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOffset`], [`Error::DoubleFree`] if it is free; [`Error::Corrupt`].
    pub fn usable_size(&self, block: Offset) -> Result<usize> {
        Ok(self.usable(block)? as usize)
    }

    pub(super) fn usable(&self, block: Offset) -> Result<u64> {
        let attachment = &self.attachment;
        Ok(match attachment.locate_allocated(block.get())? {
            Located::Block { slab, .. } => u64::from(slab.info.size),
            Located::Large { pages, .. } => u64::from(pages.get()) << attachment.tables.geometry.page_shift,
        })
    }

    #[cold]
    fn allocate_slow(&self, size: u64, alignment: u64) -> Result<Offset> {
        let kind = self.attachment.kind(size, alignment)?;
        let block =
            self.as_caller(|caller| self.attachment.allocate(caller, kind)).map_err(|error| as_requested(error, size))?;
        Offset::new(block).ok_or(Error::InvalidOffset { offset: block, fault: OffsetFault::Outside })
    }

    #[cold]
    fn deallocate_slow(&self, block: u64) -> Result<()> {
        let attachment = &self.attachment;
        attachment.check_writable()?;
        match slab::locate(&attachment.tables, &attachment.classes, block)? {
            // A block of another lane's slab is freed without a lane of one's own.
            Located::Block { slab, bit } if slab.lane != SHARED_LANE => {
                let is_mine = attachment.key.with(|seat| seat.bins.lane() == slab.lane).unwrap_or(false);
                if !is_mine {
                    slab.free_remote(&attachment.tables, bit)?;
                    return self.tell_owner(slab);
                }
            }
            _ => {}
        }
        self.as_caller(|caller| attachment.deallocate(caller, block))
    }

    /// After a remote free: sets the hint of the lane that owns the slab now, or settles the slab if it has become an
    /// orphan.
    fn tell_owner(&self, slab: Slab<'_>) -> Result<()> {
        let attachment = &self.attachment;
        let mut told = slab;
        for _ in 0..TRIES {
            recovery::hint(&attachment.tables, &told);
            // ORDERING O2: SeqCst, after the SeqCst `fetch_or` of the remote bit; see `free_remote`.
            let entry = PageEntry(attachment.tables.entry_word(slab.head).load(Ordering::SeqCst));
            if entry.state() != Some(PageState::Slab) || entry.lane() == told.lane {
                return Ok(());
            }
            if entry.lane() == SHARED_LANE {
                return self.as_caller(|caller| {
                    let lock = attachment.lock_for(caller)?;
                    attachment.resettle_orphan(&lock, &slab)
                });
            }
            told = Slab { lane: entry.lane(), ..slab };
        }
        Ok(())
    }
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

    /// Allocates, taking the heap lock where it is needed.
    fn allocate(&self, caller: Caller<'_>, kind: Kind) -> Result<u64> {
        if let (Caller::Lane(seat), Kind::Small(class)) = (caller, kind) {
            for _ in 0..TRIES {
                if let Some(block) = seat.bins.take(&self.tables, class, |_| ()) {
                    return Ok(block);
                }
                if !seat.bins.refill(&self.tables, &self.classes, class)? {
                    let lock = self.lock_for(caller)?;
                    self.supply(&lock, seat, class)?;
                }
            }
            return Err(no_end());
        }
        let lock = self.lock_for(caller)?;
        self.allocate_locked(&lock, caller, kind, |_| ())
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
                for _ in 0..TRIES {
                    if let Some(block) = seat.bins.take(tables, class, &mut commit) {
                        return Ok(block);
                    }
                    if !seat.bins.refill(tables, classes, class)? {
                        self.supply(locked, seat, class)?;
                    }
                }
                Err(no_end())
            }
            (Kind::Small(class), Caller::Shared { .. }) => {
                let info = Bins::class_info(classes, class, tables)?;
                self.with_second_try(locked, caller, || orphan::allocate(tables, locked, classes, class, info, &mut commit))
            }
            (Kind::Large(size), caller) => {
                self.with_second_try(locked, caller, || large::allocate(tables, locked, size, caller.lane(), &mut commit))
            }
        }
    }

    /// Gives a lane a slab with room: an orphan, or a new one.
    fn supply(&self, locked: &Locked, seat: &LaneSeat, class: ClassIndex) -> Result<()> {
        let round = self.supplies.fetch_add(1, Ordering::Relaxed);
        if round % SUPPLIES_PER_ROUND == SUPPLIES_PER_ROUND.wrapping_sub(1) {
            recovery::dead_lanes(self.ward(), locked, None)?;
        }
        if seat.bins.feels_pressure(&self.tables) {
            self.give_back_empty(locked, seat)?;
        }
        let info = Bins::class_info(&self.classes, class, &self.tables)?;
        self.with_second_try(locked, Caller::Lane(seat), || self.supply_once(locked, seat, class, info))
    }

    fn supply_once(&self, locked: &Locked, seat: &LaneSeat, class: ClassIndex, info: &Class) -> Result<()> {
        let (tables, classes, lane) = (&self.tables, &self.classes, seat.bins.lane());
        while let Some(slab) = orphan::with_room(tables, locked, classes, class)? {
            // Each round takes one out of the list.
            orphan::adopt(tables, locked, &slab, lane)?;
            if seat.bins.start_on(tables, classes, &Slab { lane, ..slab })? {
                return Ok(());
            }
        }
        let slab = orphan::new_slab(tables, locked, class, info, lane)?;
        seat.bins.start_on(tables, classes, &slab)?;
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
        recovery::dead_lanes(self.ward(), locked, None)?;
        attempt()
    }

    /// Gives back every slab of the calling lane that is wholly free.
    pub(super) fn give_back_empty(&self, locked: &Locked, seat: &LaneSeat) -> Result<()> {
        seat.bins.give_back_empty(&self.tables, &self.classes, |slab| self.free_span_of(locked, slab))
    }

    fn free_span_of(&self, locked: &Locked, slab: &Slab<'_>) -> Result<()> {
        match slab.pages() {
            Some(pages) => span::free(&self.tables, locked, slab.head, pages),
            None => Ok(()),
        }
    }

    /// Gives back the span of a slab of the calling thread's lane that has become wholly free and stands in no list. The
    /// block that was freed is free whatever happens here: without the lock, the slab stays with its lane.
    #[cold]
    fn give_back_emptied(&self, head: PageIndex, class: ClassIndex) -> Result<()> {
        let info = Bins::class_info(&self.classes, class, &self.tables)?;
        let give_back = |seat: &LaneSeat| {
            let slab = Slab { head, class, info, lane: seat.bins.lane() };
            match self.lock(slab.lane) {
                Ok(lock) => self.free_span_of(&lock, &slab),
                Err(_) => Ok(seat.bins.own(&self.tables, &slab)?),
            }
        };
        self.key.with(give_back).unwrap_or(Ok(()))
    }

    /// Frees a block that needs the lock, or a lane: a large one, an orphan's, or one whose slab is changing hands.
    fn deallocate(&self, caller: Caller<'_>, block: u64) -> Result<()> {
        for _ in 0..TRIES {
            if let Located::Block { slab, bit } = slab::locate(&self.tables, &self.classes, block)?
                && let Caller::Lane(seat) = caller
                && slab.lane == seat.bins.lane()
            {
                return match seat.bins.free(&self.tables, &slab, bit)? {
                    Freed::Kept => Ok(()),
                    Freed::Emptied => self.give_back_emptied(slab.head, slab.class),
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
    fn resettle_orphan(&self, locked: &Locked, slab: &Slab<'_>) -> Result<()> {
        let entry = self.tables.entry(slab.head);
        let still = entry.state() == Some(PageState::Slab) && entry.number() == 0 && entry.lane() == SHARED_LANE;
        if !still {
            return Ok(());
        }
        let slab = slab::slab_of(&self.tables, &self.classes, slab.head, entry)?;
        orphan::resettle(&self.tables, locked, &slab)
    }

    /// Resizes a large block in place; false if that is not possible.
    fn resize_large(&self, locked: &Locked, block: u64, size: u64, lane: LaneId) -> Result<bool> {
        let Located::Large { first, pages, .. } = self.locate_allocated(block)? else { return Ok(false) };
        let wanted = large::pages_for(&self.tables, size)?;
        match span::resize(&self.tables, locked, first, pages, wanted, lane) {
            // No memory to grow into: elsewhere there may be some that is reserved already.
            Err(Error::NoSpace { .. }) => Ok(false),
            done => done,
        }
    }
}
