//! What blocks are filled with: bytes that follow from who allocated them, so that any process can check them, and that
//! differ from word to word, so that bytes in the wrong place are seen too.

use shmheap::Heap;

use crate::Result;
use crate::parcel::Parcel;

/// An odd number without structure (2^64 divided by the golden ratio).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Fills and checks blocks. The two buffers are kept from one call to the next for their memory only.
#[derive(Debug, Default)]
pub(crate) struct Pattern {
    expected: Vec<u8>,
    found: Vec<u8>,
}

impl Pattern {
    /// Fills a block with the pattern of `worker`.
    pub(crate) fn fill(&mut self, heap: &Heap, worker: u32, parcel: Parcel) -> Result<()> {
        self.expect(worker, parcel);
        Ok(heap.copy_in(parcel.block, &self.expected)?)
    }

    /// Checks that a block holds the pattern of `worker` in all its bytes.
    pub(crate) fn check(&mut self, heap: &Heap, worker: u32, parcel: Parcel) -> Result<()> {
        self.expect(worker, parcel);
        self.found.resize(self.expected.len(), 0);
        heap.copy_out(parcel.block, &mut self.found)?;
        if self.found == self.expected {
            return Ok(());
        }
        let at = self.found.iter().zip(&self.expected).take_while(|(found, expected)| found == expected).count();
        let (found, expected) = (self.found[at], self.expected[at]);
        let Parcel { block, id, size } = parcel;
        Err(format!(
            "block {block} of worker {worker} (id {id}, {size} bytes) differs at byte {at}: {found:#04x}, not {expected:#04x}"
        )
        .into())
    }

    /// Makes `expected` the bytes that belong into a block of `worker`.
    fn expect(&mut self, worker: u32, parcel: Parcel) {
        let seed = (u64::from(worker) << 32 | u64::from(parcel.id)).wrapping_mul(GOLDEN).swap_bytes();
        let word = |position: usize| (seed ^ (position as u64).wrapping_mul(GOLDEN)).to_ne_bytes();

        self.expected.resize(parcel.size as usize, 0);
        let (words, rest) = self.expected.as_chunks_mut();
        words.iter_mut().enumerate().for_each(|(position, bytes)| *bytes = word(position));
        rest.copy_from_slice(&word(words.len())[..rest.len()]);
    }
}
