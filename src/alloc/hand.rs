//! Hands: blocks that a lane has just freed, and allocates next, last in, first out.
//!
//! They are still in the caches, and nothing has to be looked for: a hand tells where a block is, and which bit of which
//! word is to be changed. The magazines and thread caches of other allocators (Bonwick and Adams, USENIX 2001) hold blocks
//! that count as allocated; here, those in a hand are free, and their bits say so. A hand is private memory, and nothing is
//! lost with it.
//!
//! H1. The free bit of each block in a hand is set, and the block is in no other hand, and in it once.
//! H2. A hand's blocks belong to slabs of which the lane has notes.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::sync::atomic::AtomicU64;

use crate::region::{Offset, Region, Spot};

/// Most blocks in a hand. With more, a slab that becomes empty costs more, as all of the hand is looked through for its
/// blocks; with fewer, words are looked for more often.
pub(super) const HAND_MAX: usize = 16;

/// Free blocks of one class.
#[derive(Debug)]
pub(super) struct Hand {
    count: Cell<usize>,
    blocks: [Cell<Offset>; HAND_MAX],
    /// Their free words.
    words: [Cell<Spot<AtomicU64>>; HAND_MAX],
    /// Which bits of them they are, modulo 64.
    bits: [Cell<u64>; HAND_MAX],
}

/// Where a block of a hand is written down: itself, its free word, its bit.
type Place<'a> = (&'a Cell<Offset>, &'a Cell<Spot<AtomicU64>>, &'a Cell<u64>);

impl Hand {
    /// An empty hand. Any word will do for the places that are not used yet.
    pub(super) fn new(anywhere: Spot<AtomicU64>) -> Self {
        Self {
            count: Cell::new(0),
            blocks: std::array::from_fn(|_| Cell::new(Offset::from(NonZeroU64::MIN))),
            words: std::array::from_fn(|_| Cell::new(anywhere)),
            bits: [const { Cell::new(0) }; HAND_MAX],
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.count.get() == 0
    }

    #[inline]
    fn place(&self, index: usize) -> Option<Place<'_>> {
        Some((self.blocks.get(index)?, self.words.get(index)?, self.bits.get(index)?))
    }

    /// Takes out the block that was added last: where it is, its free word, and which bit of it, modulo 64.
    #[inline]
    pub(super) fn take<'r>(&self, region: &'r Region) -> Option<(Offset, &'r AtomicU64, u64)> {
        let last = self.count.get().wrapping_sub(1);
        let (block, word, bit) = self.place(last)?;
        self.count.set(last);
        Some((block.get(), region.at(word.get()), bit.get()))
    }

    /// Adds a block whose free bit, `bit` modulo 64 of `word`, has just been set; it stays where it is if there is no room.
    #[inline]
    pub(super) fn add(&self, region: &Region, block: Offset, word: &AtomicU64, bit: u64) {
        let count = self.count.get();
        let Some((block_at, word_at, bit_at)) = self.place(count) else { return };
        block_at.set(block);
        word_at.set(region.spot(word));
        bit_at.set(bit);
        self.count.set(count + 1);
    }

    /// Takes out all blocks that start in the `len` bytes at `start`.
    pub(super) fn discard(&self, start: u64, len: u64) {
        let mut kept = 0;
        for ((block, word), bit) in self.blocks.iter().zip(&self.words).zip(&self.bits).take(self.count.get()) {
            if block.get().get().wrapping_sub(start) >= len
                && let Some((block_at, word_at, bit_at)) = self.place(kept)
            {
                block_at.set(block.get());
                word_at.set(word.get());
                bit_at.set(bit.get());
                kept += 1;
            }
        }
        self.count.set(kept);
    }

    /// Takes out all blocks.
    pub(super) fn clear(&self) {
        self.count.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(bytes: u64) -> Offset {
        Offset::new(bytes).unwrap()
    }

    fn empty(region: &Region) -> Hand {
        Hand::new(region.spot(region.word(8)))
    }

    fn all_of(hand: &Hand, region: &Region) -> Vec<(u64, u64)> {
        std::iter::from_fn(|| hand.take(region)).map(|(block, _, bit)| (block.get(), bit)).collect()
    }

    #[test]
    fn a_full_hand_takes_no_more_and_the_last_comes_out_first() {
        let region = Region::sample();
        let hand = empty(&region);
        (1..=20).for_each(|number| hand.add(&region, offset(16 * number), region.word(4096), number));
        let expected: Vec<(u64, u64)> = (1..=HAND_MAX as u64).rev().map(|number| (16 * number, number)).collect();
        assert_eq!(all_of(&hand, &region), expected);
        assert_eq!(all_of(&hand, &region), []);
    }

    #[test]
    fn the_blocks_of_a_stretch_are_discarded_and_no_others() {
        let region = Region::sample();
        let words = [region.word(4096), region.word(4104)];
        let hand = empty(&region);
        for (number, word) in (1..=10).zip(words.into_iter().cycle()) {
            hand.add(&region, offset(100 * number), word, number);
        }
        hand.discard(400, 300);
        assert!(hand.take(&region).is_some_and(|(block, word, _)| block.get() == 1000 && std::ptr::eq(word, words[1])));
        assert_eq!(all_of(&hand, &region), [(900, 9), (800, 8), (700, 7), (300, 3), (200, 2), (100, 1)]);
    }
}
