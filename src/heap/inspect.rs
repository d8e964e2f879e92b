//! Looking inside: blocks, lanes, soundness, and giving memory back.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Heap;
use super::lane::Caller;
use crate::alloc::{Located, Slab, kept, slab, span};
use crate::check;
use crate::error::{Corruption, Error, OffsetFault, Result};
use crate::format::{LaneId, PageIndex, PageState, SHARED_LANE, superblock};
use crate::recovery;
use crate::region::Offset;

/// What [`Heap::info`] and [`Heap::blocks`] tell of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockInfo {
    /// Where it starts.
    pub offset: Offset,
    /// Usable bytes.
    pub size: u64,
    /// The largest power of two that its offset is a multiple of, up to 4096.
    pub alignment: u64,
    /// True if it consists of whole pages of its own.
    pub large: bool,
    /// The lane that owns its slab, or that allocated it if it is large; `None` for an orphan.
    pub lane: Option<u16>,
}

impl BlockInfo {
    fn new(at: u64, size: u64, large: bool, lane: LaneId) -> Option<Self> {
        let alignment = 1u64.checked_shl(at.trailing_zeros().min(12)).unwrap_or(1);
        let lane = (lane != SHARED_LANE).then(|| lane.get());
        Some(Self { offset: Offset::new(at)?, size, alignment, large, lane })
    }
}

/// A lane that somebody has claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaneInfo {
    /// Its number, from 1; 0 is the shared lane, listed only while one without a lane constructs a root.
    pub lane: u16,
    /// The process that claimed it, as it knew itself: in another PID namespace the number means another process.
    pub pid: u32,
    /// The thread, likewise.
    pub thread: u32,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// True while the process exists, by its token.
    pub alive: bool,
    /// True if a thread of this very attachment sits in it.
    pub own: bool,
    /// True if it holds the heap lock at this moment.
    pub holds_lock: bool,
    /// Bytes in allocated blocks of its slabs, and in large blocks that it allocated.
    pub bytes_held: u64,
    /// Slabs that it owns.
    pub slabs: u32,
}

/// What stands on some pages, as a walk through the page table finds it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Span<'a> {
    Free,
    Slab(Slab<'a>),
    Large {
        lane: LaneId,
    },
    /// What a lane keeps for its next use, without a block in it.
    Kept {
        lane: LaneId,
    },
}

impl Heap {
    /// Tells what is known of a block.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOffset`] if no block starts there (it says which block the offset lies in, if any);
    /// [`Error::DoubleFree`] if the block is free; [`Error::Corrupt`].
    pub fn info(&self, offset: Offset) -> Result<BlockInfo> {
        let attachment = &self.attachment;
        let info = match attachment.locate_allocated(offset.get())? {
            Located::Block { slab, .. } => BlockInfo::new(offset.get(), u64::from(slab.info.size), false, slab.lane),
            Located::Large { pages, lane, .. } => {
                let size = u64::from(pages.get()) << attachment.tables.geometry.page_shift;
                BlockInfo::new(offset.get(), size, true, lane)
            }
        };
        info.ok_or(Error::InvalidOffset { offset: offset.get(), fault: OffsetFault::Outside })
    }

    /// All allocated blocks, in the order of their offsets.
    ///
    /// Takes no lock: blocks that are allocated or freed while the iterator runs may be there or not. Ends early where the
    /// page table is damaged ([`Heap::validate`] tells).
    pub fn blocks(&self) -> Blocks<'_> {
        Blocks { heap: self, page: 0, slab: None, word: 0, bits: 0 }
    }

    /// The lanes that somebody has claimed: who is attached, who has died and was not yet recovered.
    ///
    /// Walks the page table once; takes no lock.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the kernel does not tell who is alive; [`Error::Corrupt`].
    pub fn lanes(&self) -> Result<Vec<LaneInfo>> {
        let attachment = &self.attachment;
        let tables = &attachment.tables;
        let lock_holder = attachment.lock_holder();
        let mut lanes = Vec::new();
        for lane in tables.header.all_lanes() {
            let Some(record) = tables.lane(lane).filter(|record| record.is_claimed()) else { continue };
            lanes.push(LaneInfo {
                lane: lane.get(),
                pid: record.pid().load(Ordering::Relaxed),
                thread: record.thread().load(Ordering::Relaxed),
                since_ms: record.since_ms().load(Ordering::Relaxed),
                alive: attachment.liveness.is_alive(lane.token())?,
                own: attachment.liveness.is_own(lane.token()),
                holds_lock: lock_holder == Some(lane),
                bytes_held: 0,
                slabs: 0,
            });
        }
        let page_shift = tables.geometry.page_shift;
        self.walk(|_, pages, span| {
            let (lane, bytes, slabs) = match span {
                Span::Free | Span::Kept { .. } => return,
                Span::Large { lane } => (lane, u64::from(pages).checked_shl(page_shift).unwrap_or(0), 0),
                Span::Slab(slab) => {
                    let blocks = u64::from(slab.allocated_count(tables));
                    (slab.lane, blocks.saturating_mul(u64::from(slab.info.size)), 1)
                }
            };
            if let Some(info) = lanes.iter_mut().find(|info| lane != SHARED_LANE && info.lane == lane.get()) {
                info.bytes_held = info.bytes_held.saturating_add(bytes);
                info.slabs = info.slabs.saturating_add(slabs);
            }
        })?;
        Ok(lanes)
    }

    /// Checks every invariant of the heap (docs/FORMAT.md numbers them), without changing anything.
    ///
    /// Takes the heap lock while it checks; time proportional to the pages in use so far. A read-only handle takes no lock,
    /// and looks again where something changed under its eyes.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] with the first thing that is wrong, and where; [`Error::LockTimeout`]. From a read-only handle
    /// also [`Error::Unrecovered`] if somebody died while changing the heap and nobody has used it since.
    pub fn validate(&self) -> Result<()> {
        self.look(1)?.first().map_or(Ok(()), |found| Err((*found).into()))
    }

    /// Everything that [`Heap::validate`] would tell, one after the other: what is wrong, and where; at most 1000 findings.
    ///
    /// An empty list says that the heap is sound. Nothing is changed; [`Options::repair`](crate::Options::repair) does that.
    /// What follows from one damage may be told as several findings.
    ///
    /// # Errors
    ///
    /// As [`Heap::validate`], but for the findings themselves.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shmheap::{Heap, Memory};
    ///
    /// let heap = Heap::options().create_in(Memory::zeroed(1 << 20)?)?;
    /// for found in heap.findings()? {
    ///     println!("{} (at {:#x})", found.what, found.at);
    /// }
    /// assert!(heap.findings()?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn findings(&self) -> Result<Vec<Corruption>> {
        self.look(FINDINGS_MAX)
    }

    /// The first `max` findings.
    fn look(&self, max: usize) -> Result<Vec<Corruption>> {
        let attachment = &self.attachment;
        attachment.tables.region.check_whole()?;
        if !self.is_read_only() {
            return self.as_caller(|caller| {
                let _lock = attachment.lock_for(caller)?;
                Ok(check::findings(&attachment.tables, &attachment.classes, max))
            });
        }
        self.look_read_only(max)
    }

    /// Looks until it has seen the heap at rest, and the same again.
    fn look_read_only(&self, max: usize) -> Result<Vec<Corruption>> {
        let attachment = &self.attachment;
        let recovering = attachment.tables.superblock(superblock::RECOVERING);
        let (started, mut last_holder, mut looks_at_dead) = (Instant::now(), SHARED_LANE, 0u32);
        let mut seen: (Vec<Corruption>, u32) = (Vec::new(), 0);
        loop {
            let before = self.change_marks();
            let found = check::findings(&attachment.tables, &attachment.classes, max);
            let holder = attachment.lock_holder().filter(|lane| u32::from(lane.get()) <= attachment.tables.geometry.lanes);
            let is_recovering = recovering.load(Ordering::Acquire) != 0;
            let is_at_rest = before == self.change_marks() && holder.is_none() && !is_recovering;
            if found.is_empty() {
                return Ok(found);
            }
            // Not everything that changes leaves a mark; what stays the same is no change.
            let times = if seen.0 == found { seen.1.saturating_add(1) } else { 1 };
            if is_at_rest && times >= SAME_LOOKS {
                return Ok(found);
            }
            seen = (found, if is_at_rest { times } else { 0 });
            last_holder = holder.unwrap_or(last_holder);
            let is_dead = holder.is_none() || !attachment.liveness.is_alive(last_holder.token())?;
            let is_left = is_dead && (holder.is_some() || is_recovering);
            looks_at_dead = if is_left { looks_at_dead.saturating_add(1) } else { 0 };
            let holder_pid = attachment.pid_of(last_holder);
            if looks_at_dead >= DEAD_LOOKS_MAX {
                return Err(Error::Unrecovered { holder_pid });
            }
            let waited = started.elapsed();
            if waited >= attachment.lock_timeout {
                let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
                return Err(Error::LockTimeout { holder_pid, waited_ms });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What changes whenever somebody holds the heap lock and changes pages.
    pub(super) fn change_marks(&self) -> (u64, u32) {
        let tables = &self.attachment.tables;
        (tables.superblock(superblock::SPAN_SEQUENCE).load(Ordering::Acquire), tables.lock().load(Ordering::Acquire))
    }

    /// Gives memory that holds no block back to the system, and returns how many bytes that was.
    ///
    /// Empty slabs that the calling thread has, and spans that any thread keeps for its next use, become free pages; dead
    /// lanes are recovered; and the memory of all free pages is given back. Other threads look through their slabs when they
    /// next need a new one.
    ///
    /// # Errors
    ///
    /// [`Error::LockTimeout`], [`Error::ReadOnly`], [`Error::System`], [`Error::Corrupt`].
    pub fn trim(&self) -> Result<u64> {
        let attachment = &self.attachment;
        attachment.tables.region.check_whole()?;
        self.as_caller(|caller| {
            let lock = attachment.lock_for(caller)?;
            if let Caller::Lane(seat) = caller {
                attachment.give_back_empty(&lock, seat)?;
            }
            recovery::dead_lanes(attachment.ward(), &lock, &[])?;
            recovery::gather_freed(attachment.ward(), &lock)?;
            attachment.tables.superblock(superblock::PRESSURE).fetch_add(1, Ordering::Relaxed);
            span::trim(&attachment.tables, &lock)
        })
    }

    /// Looks for lanes whose threads have died, makes orphans of their slabs, and returns how many there were.
    ///
    /// That also happens by itself: when a process or a thread attaches, when memory runs short, and now and then while
    /// slabs are allocated.
    ///
    /// # Errors
    ///
    /// [`Error::LockTimeout`], [`Error::ReadOnly`], [`Error::System`], [`Error::Corrupt`].
    pub fn recover(&self) -> Result<u32> {
        let attachment = &self.attachment;
        attachment.check_writable()?;
        attachment.tables.region.check_whole()?;
        // In the name of the shared lane: claiming one of our own would recover the dead before they are counted.
        let seated = attachment.key.with(|seat| {
            let lock = attachment.lock(seat.bins.lane())?;
            recovery::dead_lanes(attachment.ward(), &lock, &[])
        });
        if let Some(recovered) = seated {
            return recovered;
        }
        let pass = attachment.pass_shared_gate()?;
        let lock = attachment.lock_for(pass.caller())?;
        recovery::dead_lanes(attachment.ward(), &lock, &[])
    }

    /// Calls `f` for every span of the pages in use so far, with its first page and its length in pages.
    pub(super) fn walk<'a>(&'a self, mut f: impl FnMut(PageIndex, u32, Span<'a>)) -> Result<()> {
        let mut number = 0;
        while let Some((page, pages, span)) = self.span_at(number)? {
            f(page, pages, span);
            number = number.saturating_add(pages);
        }
        Ok(())
    }

    /// The span that starts at page `number`; `None` beyond the pages in use. What is no head of a span (while others
    /// change the table, or because it is damaged) counts as one free page, and so does a slab for whose bits no memory is
    /// reserved: to read them could raise a signal.
    pub(super) fn span_at(&self, number: u32) -> Result<Option<(PageIndex, u32, Span<'_>)>> {
        let tables = &self.attachment.tables;
        if number >= tables.pages_high() {
            return Ok(None);
        }
        let page = tables.page_from_region(number, superblock::PAGES_HIGH)?;
        let entry = tables.entry(page);
        let (pages, span) = match entry.state() {
            Some(PageState::Slab) if entry.number() == 0 => {
                let slab = slab::slab_of(tables, &self.attachment.classes, page, entry)?;
                if tables.has_bitmaps(page, slab.info.pages) { (slab.info.pages, Span::Slab(slab)) } else { (1, Span::Free) }
            }
            Some(PageState::Large) => (entry.number().max(1), Span::Large { lane: entry.lane() }),
            Some(PageState::KeptSlab | PageState::KeptLarge) => {
                let pages = kept::pages_of(&self.attachment.classes, entry);
                (pages.map_or(1, |pages| pages.get()), Span::Kept { lane: entry.lane() })
            }
            _ => (1, Span::Free),
        };
        // The mark is read after the entry: it rises before a span is longer.
        if u64::from(number).saturating_add(u64::from(pages)) > u64::from(tables.pages_high()) {
            return Err(Corruption::new("C3: a span reaches beyond the pages in use", tables.entry_at(page)).into());
        }
        Ok(Some((page, pages, span)))
    }
}

/// Most findings that are listed.
const FINDINGS_MAX: usize = 1000;

/// How often a read-only handle must see the same contradiction in a heap at rest before it believes it.
const SAME_LOOKS: u32 = 3;

/// How often a read-only handle looks at a heap whose lock a dead process holds, a millisecond apart: anybody who waits for
/// the lock would have taken it by then.
const DEAD_LOOKS_MAX: u32 = 20;

/// Iterator over a heap's allocated blocks; see [`Heap::blocks`].
#[derive(Debug)]
pub struct Blocks<'a> {
    heap: &'a Heap,
    /// The page after the current slab.
    page: u32,
    slab: Option<Slab<'a>>,
    /// The word of the slab's bitmap after the current one.
    word: u32,
    /// Allocated blocks of the current word that have not been returned yet.
    bits: u64,
}

impl Iterator for Blocks<'_> {
    type Item = BlockInfo;

    fn next(&mut self) -> Option<BlockInfo> {
        let heap = self.heap;
        let tables = &heap.attachment.tables;
        loop {
            if let Some(slab) = &self.slab {
                if self.bits != 0 {
                    let first = self.word.saturating_sub(1).saturating_mul(64);
                    let index = first.saturating_add(self.bits.trailing_zeros());
                    self.bits &= self.bits.wrapping_sub(1);
                    return BlockInfo::new(slab.block_at(tables, index), u64::from(slab.info.size), false, slab.lane);
                }
                if self.word < slab.info.words() {
                    self.bits = slab.allocated(tables, self.word);
                    self.word = self.word.saturating_add(1);
                    continue;
                }
                self.slab = None;
            }
            let (page, pages, span) = heap.span_at(self.page).ok().flatten()?;
            self.page = self.page.saturating_add(pages);
            match span {
                Span::Free | Span::Kept { .. } => {}
                Span::Slab(slab) => (self.slab, self.word, self.bits) = (Some(slab), 0, 0),
                Span::Large { lane } => {
                    let size = u64::from(pages).checked_shl(tables.geometry.page_shift).unwrap_or(0);
                    return BlockInfo::new(tables.page_start(page), size, true, lane);
                }
            }
        }
    }
}
