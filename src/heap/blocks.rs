//! Allocating, freeing, resizing: the calls. Their common cases are here; which way the others take is in `paths`.

use std::sync::atomic::Ordering;

use super::Heap;
use super::lane::LaneSeat;
use super::paths::{Kind, TRIES, Unlocked, as_requested};
use crate::alloc::{Hot, Located, Slab};
use crate::error::{Error, OffsetFault, Result};
use crate::format::{LaneId, PageEntry, PageState, SHARED_LANE};
use crate::recovery;
use crate::region::Offset;

/// Smallest and largest alignment that can be asked for.
const ALIGNMENT_MIN: u64 = 8;
const ALIGNMENT_MAX: u64 = 4096;

/// A block's place as an offset; a block never stands at 0.
pub(super) fn as_offset(block: u64) -> Result<Offset> {
    Offset::new(block).ok_or(Error::InvalidOffset { offset: block, fault: OffsetFault::Outside })
}

impl Heap {
    /// Allocates a block of at least `size` bytes, aligned to 16. Its contents are whatever was there.
    ///
    /// Constant time. New slabs, and blocks above the largest size class of which the thread's lane keeps none that fits,
    /// take the heap lock and time proportional to their pages.
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
        match self.attachment.allocate_hot(size as u64) {
            Some(block) => Ok(block),
            None => self.allocate_slow(size as u64),
        }
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
        self.allocate_far(size as u64, alignment)
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
    /// Constant time; no lock, except for orphans, and for what the thread's lane would keep too much of.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOffset`] if no block starts there; [`Error::DoubleFree`] if it is free already (as long as its slab
    /// exists; later that is an [`Error::InvalidOffset`]); [`Error::LockTimeout`], [`Error::ReadOnly`],
    /// [`Error::Corrupt`]. Nothing is freed then.
    #[inline]
    pub fn deallocate(&self, block: Offset) -> Result<()> {
        match self.attachment.free_hot(block) {
            Hot::Freed => Ok(()),
            slower => self.deallocate_slow(slower, block),
        }
    }

    /// Changes a block's size, keeping its first bytes. Returns where it stands now: at the same place if its size class or
    /// the pages behind it allow it, else at another, and the old block is freed.
    ///
    /// A block is aligned to 16 afterwards, whatever it was before. Whoever dies meanwhile, there is one block: the old
    /// one or the new one.
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
        let attachment = &*self.attachment;
        let resize = |seat: &LaneSeat| attachment.resize_own(seat, block.get(), size as u64);
        match attachment.key.with_hot(resize).unwrap_or(Ok(None)) {
            Ok(Some(resized)) => as_offset(resized),
            Ok(None) => self.reallocate_far(block, size as u64),
            Err(corruption) => Err(corruption.into()),
        }
    }

    /// What is not done within the slabs of the thread's lane.
    #[inline(never)]
    fn reallocate_far(&self, block: Offset, new_size: u64) -> Result<Offset> {
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
        let kept = usable.min(new_size);
        let moved = self.as_caller(|caller| self.attachment.move_block(caller, block.get(), kept, wanted));
        as_offset(moved.map_err(|error| as_requested(error, new_size))?)
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

    /// What the bin has not at hand.
    #[inline(never)]
    fn allocate_slow(&self, size: u64) -> Result<Offset> {
        match self.attachment.allocate_from_own(size) {
            Ok(Some(block)) => Ok(block),
            Ok(None) => self.allocate_far(size, ALIGNMENT_MIN),
            Err(corruption) => Err(corruption.into()),
        }
    }

    /// What the thread's lane does not have, or needs a class of its own.
    #[cold]
    #[inline(never)]
    fn allocate_far(&self, size: u64, alignment: u64) -> Result<Offset> {
        let kind = self.attachment.kind(size, alignment)?;
        let block = self
            .as_caller(|caller| self.attachment.allocate(caller, kind, |_| ()))
            .map_err(|error| as_requested(error, size))?;
        as_offset(block)
    }

    /// What has emptied its word, or was not found in an open slab of the thread's lane.
    #[inline(never)]
    fn deallocate_slow(&self, hot: Hot, block: Offset) -> Result<()> {
        let unlocked = match hot {
            Hot::NotHere => self.attachment.free_unlocked(block),
            freed => Unlocked::Own(freed),
        };
        match unlocked {
            Unlocked::Own(Hot::Freed) => Ok(()),
            Unlocked::Own(Hot::Unsettled) => self.attachment.settle_freed(block.get()),
            Unlocked::Remote(slab) => self.tell_owner(slab),
            Unlocked::Double => Err(Error::DoubleFree { offset: block.get() }),
            Unlocked::Own(Hot::NotHere) | Unlocked::NotHere => self.deallocate_far(block.get()),
        }
    }

    /// What takes the lock, or is no block.
    #[cold]
    #[inline(never)]
    fn deallocate_far(&self, block: u64) -> Result<()> {
        self.as_caller(|caller| self.attachment.deallocate(caller, block))
    }

    /// After a remote free: sets the hint of the lane that owns the slab now, or settles the slab if it has become an
    /// orphan.
    fn tell_owner(&self, slab: Slab<'_>) -> Result<()> {
        match self.hint(&slab) {
            None => Ok(()),
            Some(lane) => self.tell_next_owner(slab, lane),
        }
    }

    /// Sets the hint of the slab's lane. Returns the lane that owns it now, if that is another one.
    #[inline]
    fn hint(&self, slab: &Slab<'_>) -> Option<LaneId> {
        let tables = &self.attachment.tables;
        recovery::hint(tables, slab);
        // ORDERING O2: SeqCst, after the SeqCst `fetch_or` of the remote bit; see `free_remote`.
        let entry = PageEntry(tables.entry_word(slab.head).load(Ordering::SeqCst));
        (entry.state() == Some(PageState::Slab) && entry.lane() != slab.lane).then_some(entry.lane())
    }

    /// The slab has gone to `lane` meanwhile.
    #[cold]
    fn tell_next_owner(&self, slab: Slab<'_>, mut lane: LaneId) -> Result<()> {
        for _ in 0..TRIES {
            if lane == SHARED_LANE {
                let resettled = self.as_caller(|caller| {
                    let lock = self.attachment.lock_for(caller)?;
                    self.attachment.resettle_orphan(&lock, &slab)
                });
                // The block is free whatever happens here. Who adopts the slab merges it; and who runs out of memory, trims,
                // or buries the dead looks for such slabs.
                return match resettled {
                    Err(error @ Error::Corrupt(_)) => Err(error),
                    _ => Ok(()),
                };
            }
            match self.hint(&Slab { lane, ..slab }) {
                None => return Ok(()),
                Some(next) => lane = next,
            }
        }
        Ok(())
    }
}
