//! Lanes: one attached thread's seat, as the region records it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{CLASSES_MAX, ClassIndex};
use crate::region::Region;
use crate::sys::gate::Gate;

/// A lane's number. 0 is the shared lane; attached threads have 1 and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct LaneId(u16);

/// The lane of those who found no seat. Its token is held for one operation at a time, and it owns no slab: what it
/// allocates comes from orphans, which belong to whoever holds the heap lock. An entry with this lane is an orphan.
pub(crate) const SHARED_LANE: LaneId = LaneId(0);

impl LaneId {
    pub(crate) const fn new(number: u16) -> Self {
        Self(number)
    }

    #[inline]
    pub(crate) fn get(self) -> u16 {
        self.0
    }

    pub(crate) fn token(self) -> u32 {
        u32::from(self.0)
    }

    pub(crate) fn is_shared(self) -> bool {
        self == SHARED_LANE
    }
}

/// Bytes per lane record.
pub(super) const LANE_RECORD_LEN: u64 = 512;

/// Where a lane counts its large blocks: behind all classes.
pub(crate) const LARGE_BLOCKS: ClassIndex = ClassIndex(CLASSES_MAX as u8);

/// A lane's record. Each group has a cache line of its own.
///
/// | at | width | word |
/// |---|---|---|
/// | 0x00 | 32 | claimed: 0 free, 1 somebody's |
/// | 0x04 | 32 | pid, for people |
/// | 0x08 | 32 | thread id, for people |
/// | 0x0c | 32 | roots under construction by this lane, at least |
/// | 0x10 | 64 | since when, in milliseconds since 1970 |
/// | 0x40 | 64 | hints: bit c = somebody freed a block of class c in a slab of this lane; shared lane: count of its users |
/// | 0x80 | 64 | intent: 0 none, 1 allocate into the cell, 2 free from the cell |
/// | 0x88 | 64 | the cell's place |
/// | 0x90 | 64 | the block's offset |
/// | 0x98 | 64 | move: the block that is to be replaced, and bit 0, [`MOVE_DECIDES`]; 0 if the move has happened |
/// | 0xa0 | 64 | move: the block that replaces it; 0 if there is none |
/// | 0xc0 | 2 x 64 | [`Gate`]: busy, stop |
/// | 0x100 | 64 x 32 | blocks allocated through the lane ever, modulo 2^32: of class 0 and up; the last, [`LARGE_BLOCKS`] |
#[derive(Debug, Clone, Copy)]
pub(crate) struct LaneRecord<'a> {
    pub(super) region: &'a Region,
    pub(super) at: u64,
}

/// What an intent is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IntentKind {
    /// The block is being allocated and stored in the cell.
    Allocate,
    /// The block is being taken from the cell and freed.
    Free,
}

/// An allocation or a free together with the cell that publishes it: what recovery completes or undoes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Intent {
    pub(crate) kind: IntentKind,
    pub(crate) cell: u64,
    pub(crate) block: u64,
}

/// Bit 0 of the move's first word: the old block is about to be freed in the lane's own slab, and its free bit decides.
pub(crate) const MOVE_DECIDES: u64 = 1;

impl<'a> LaneRecord<'a> {
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn claimed(&self) -> &'a AtomicU32 {
        self.region.half(self.at)
    }

    pub(crate) fn is_claimed(&self) -> bool {
        self.claimed().load(Ordering::Acquire) != 0
    }

    pub(crate) fn pid(&self) -> &'a AtomicU32 {
        self.region.half(self.at + 0x04)
    }

    pub(crate) fn thread(&self) -> &'a AtomicU32 {
        self.region.half(self.at + 0x08)
    }

    pub(crate) fn constructing(&self) -> &'a AtomicU32 {
        self.region.half(self.at + 0x0c)
    }

    pub(crate) fn since_ms(&self) -> &'a AtomicU64 {
        self.region.word(self.at + 0x10)
    }

    #[inline]
    pub(crate) fn hints(&self) -> &'a AtomicU64 {
        self.region.word(self.at + 0x40)
    }

    fn intent_words(&self) -> [&'a AtomicU64; 3] {
        [self.region.word(self.at + 0x80), self.region.word(self.at + 0x88), self.region.word(self.at + 0x90)]
    }

    /// The intent under way, if any.
    pub(crate) fn intent(&self) -> Option<Intent> {
        let [kind, cell, block] = self.intent_words();
        let kind = match kind.load(Ordering::Acquire) {
            1 => IntentKind::Allocate,
            2 => IntentKind::Free,
            _ => return None,
        };
        Some(Intent { kind, cell: cell.load(Ordering::Relaxed), block: block.load(Ordering::Relaxed) })
    }

    /// True if the first word of the intent says anything but "none".
    pub(crate) fn is_armed(&self) -> bool {
        let [kind, ..] = self.intent_words();
        kind.load(Ordering::Acquire) != 0
    }

    /// Arms an intent. The kind is stored last: a death before it leaves no intent, a death after it a whole one.
    pub(crate) fn arm(&self, intent: Intent) {
        let [kind, cell, block] = self.intent_words();
        cell.store(intent.cell, Ordering::Relaxed);
        block.store(intent.block, Ordering::Relaxed);
        let number = match intent.kind {
            IntentKind::Allocate => 1,
            IntentKind::Free => 2,
        };
        kind.store(number, Ordering::Release);
    }

    /// Ends the intent.
    pub(crate) fn disarm(&self) {
        let [kind, ..] = self.intent_words();
        kind.store(0, Ordering::Release);
    }

    /// For the shared lane, which is claimed only while it has something under way that recovery must know of.
    pub(crate) fn release_shared(&self) {
        let has_any = self.constructing().load(Ordering::Relaxed) != 0 || self.is_moving();
        self.claimed().store(u32::from(has_any), Ordering::Release);
    }

    /// The move's first word: the block that is to be replaced.
    pub(crate) fn move_old(&self) -> &'a AtomicU64 {
        self.region.word(self.move_old_cell())
    }

    /// The move's second word: the block that replaces it.
    pub(crate) fn move_new(&self) -> &'a AtomicU64 {
        self.region.word(self.move_new_cell())
    }

    /// Where the move's first word stands, as a cell.
    pub(crate) fn move_old_cell(&self) -> u64 {
        self.at + 0x98
    }

    /// Where the move's second word stands, as a cell.
    pub(crate) fn move_new_cell(&self) -> u64 {
        self.at + 0xa0
    }

    /// What keeps the lane from working without the heap lock while somebody freezes the heap.
    pub(crate) fn gate(&self) -> &'a Gate {
        self.region.gate(self.at + 0xc0)
    }

    /// Blocks of this class, or large ones, that were allocated through the lane ever, modulo 2^32. Nothing depends on it,
    /// and any value is one: it is not set back when the lane changes hands, nor mended.
    pub(crate) fn allocated_ever(&self, class: ClassIndex) -> &'a AtomicU32 {
        self.region.half(self.at + 0x100 + u64::from(class.0 & 63) * 4)
    }

    /// Counts blocks that were allocated. For the lane itself; for the shared one, under the heap lock.
    pub(crate) fn count_allocated(&self, class: ClassIndex, blocks: u32) {
        let word = self.allocated_ever(class);
        word.store(word.load(Ordering::Relaxed).wrapping_add(blocks), Ordering::Relaxed);
    }

    /// True while a move is under way, or was left.
    pub(crate) fn is_moving(&self) -> bool {
        self.move_old().load(Ordering::Acquire) | self.move_new().load(Ordering::Acquire) != 0
    }
}
