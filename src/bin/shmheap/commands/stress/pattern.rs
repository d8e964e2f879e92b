//! What workers write into their blocks, so that whoever frees one can tell whether a byte of it has changed.
//!
//! A block's first word is its seed. Its length and all its bytes follow from the seed and from the place at which the block
//! is published, so nobody has to remember anything, and a block that is published at two places is noticed at one of them.

use fastrand::Rng;
use shmheap::{Heap, Offset};

/// Bytes of the smallest block: the seed, and the word that tells whether the seed is one.
pub(crate) const SIZE_MIN: usize = 16;

/// Writes and checks patterns; keeps its memory from one block to the next.
#[derive(Debug, Default)]
pub(crate) struct Pattern {
    expected: Vec<u8>,
    found: Vec<u8>,
}

/// Bytes of the block with this seed: mostly below 8 KiB, some up to 64 KiB, a few up to 256 KiB.
pub(crate) fn size_of(seed: u64) -> usize {
    let shift = match seed % 64 {
        0 => 12 + (seed >> 8) % 2,
        1..=6 => 8 + (seed >> 8) % 4,
        _ => (seed >> 8) % 9,
    };
    let least = SIZE_MIN << shift;
    least + (seed >> 16) as usize % least
}

impl Pattern {
    /// The bytes of the block with this seed at this place.
    fn of(&mut self, seed: u64, place: u64, size: usize) -> &[u8] {
        self.expected.clear();
        self.expected.extend_from_slice(&seed.to_ne_bytes());
        // From the place and the seed one after the other: of the two, exchanged, other bytes follow.
        let mut random = Rng::with_seed(seed ^ Rng::with_seed(place).u64(..));
        self.expected.resize(size, 0);
        if let Some(behind) = self.expected.get_mut(8..) {
            random.fill(behind);
        }
        &self.expected
    }

    /// Fills a block of `size_of(seed)` bytes.
    pub(crate) fn write(&mut self, heap: &Heap, block: Offset, seed: u64, place: u64) -> shmheap::Result<()> {
        heap.copy_in(block, self.of(seed, place, size_of(seed)))
    }

    /// Bytes of a block that is as it was written; else what is wrong with it.
    pub(crate) fn check(&mut self, heap: &Heap, block: Offset, place: u64) -> Result<usize, String> {
        let mut head = [0; 8];
        let told = |error: shmheap::Error| format!("the block at {block} cannot be read: {error}");
        heap.copy_out(block, &mut head).map_err(told)?;
        let seed = u64::from_ne_bytes(head);
        // A seed that was overwritten may stand for more bytes than the block has; its second word betrays it.
        let size = size_of(seed).min(heap.usable_size(block).map_err(told)?);
        self.found.resize(size, 0);
        let mut found = std::mem::take(&mut self.found);
        let read = heap.copy_out(block, &mut found).map_err(told);
        let expected = self.of(seed, place, size);
        let difference = found.iter().zip(expected).position(|(found, expected)| found != expected);
        let wrong = difference.map(|at| {
            let (is, was) = (found[at], expected[at]);
            format!("the block at {block} ({size} bytes) was changed: byte {at} is {is:#04x}, and {was:#04x} was written")
        });
        self.found = found;
        read?;
        wrong.map_or(Ok(size), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_that_changes_is_noticed_wherever_it_is() {
        let heap = Heap::options().create_in(shmheap::Memory::zeroed(1 << 20).expect("memory")).expect("a heap");
        let (seed, mut pattern) = (0x1234_5608, Pattern::default());
        let block = heap.allocate(size_of(seed)).expect("room");
        pattern.write(&heap, block, seed, 7).expect("it fits");
        assert_eq!(pattern.check(&heap, block, 7), Ok(size_of(seed)));
        assert!(pattern.check(&heap, block, 8).is_err(), "it belongs elsewhere");
        for at in 0..size_of(seed) {
            let mut byte = [0];
            heap.copy_out_at(block, at, &mut byte).expect("inside");
            heap.copy_in_at(block, at, &[byte[0] ^ 0x40]).expect("inside");
            assert!(pattern.check(&heap, block, 7).is_err(), "byte {at}");
            heap.copy_in_at(block, at, &byte).expect("inside");
        }
        assert_eq!(pattern.check(&heap, block, 7), Ok(size_of(seed)));
    }

    #[test]
    fn sizes_run_from_16_bytes_to_256_kib() {
        let mut random = Rng::with_seed(1);
        let sizes: Vec<usize> = (0..10_000).map(|_| size_of(random.u64(..))).collect();
        assert!(sizes.iter().all(|size| (SIZE_MIN..256 << 10).contains(size)));
        assert!(sizes.iter().any(|size| *size < 32) && sizes.iter().any(|size| *size > 128 << 10));
    }
}
