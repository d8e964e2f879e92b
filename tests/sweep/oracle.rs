//! What a recovered region must be.

use std::collections::BTreeMap;

use shmheap::{Heap, Offset};

use crate::stepper::Shared;

/// The live blocks of a heap, with a digest of their contents, and its roots.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Live {
    blocks: BTreeMap<Offset, (u64, u64)>,
    roots: BTreeMap<String, Option<Offset>>,
}

impl Live {
    /// What is live in this region after recovery, which happens in place.
    pub(crate) fn after_recovery(region: &Shared) -> Self {
        Self::of(&region.attach())
    }

    fn of(heap: &Heap) -> Self {
        let blocks =
            heap.blocks().map(|block| (block.offset, (block.size, digest(heap, block.offset, block.size)))).collect();
        let roots = heap.roots().expect("the roots are legible").into_iter().map(|root| (root.name, root.block)).collect();
        Self { blocks, roots }
    }

    /// The same blocks and roots, and the same contents in each block that was there before the operation. A block that is
    /// new has whatever contents it has: nobody has written to it.
    fn matches(&self, expected: &Self, before: &Self) -> bool {
        let same_keys = self.blocks.keys().eq(expected.blocks.keys());
        let kept = self.blocks.iter().zip(&expected.blocks).all(|((offset, found), (_, expected))| {
            found.0 == expected.0 && (found.1 == expected.1 || !before.blocks.contains_key(offset))
        });
        same_keys && kept && self.roots == expected.roots
    }
}

/// FNV-1a over a block's bytes; the first 4096 suffice to tell contents apart.
fn digest(heap: &Heap, block: Offset, size: u64) -> u64 {
    let mut bytes = vec![0; usize::try_from(size.min(4096)).expect("at most 4096")];
    heap.copy_out(block, &mut bytes).expect("the block is live");
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Recovers the region in place and checks everything; `place` says where the crash was.
pub(crate) fn check(region: &Shared, before: &Live, after: &Live, place: &dyn Fn() -> String) {
    let heap = region.attach();
    if let Err(error) = heap.validate() {
        panic!("{}: {error}", place());
    }
    let now = Live::of(&heap);
    assert!(
        now.matches(before, before) || now.matches(after, before),
        "{}: neither before nor after\nbefore {before:x?}\nafter  {after:x?}\nfound  {now:x?}",
        place()
    );
    for root in now.roots.keys() {
        heap.remove_root(root).unwrap_or_else(|error| panic!("{}: root {root}: {error}", place()));
    }
    for block in now.blocks.keys() {
        heap.deallocate(*block).unwrap_or_else(|error| panic!("{}: {error}", place()));
    }
    let probe = [16, 700, 9000].map(|size| heap.allocate(size).unwrap_or_else(|error| panic!("{}: {error}", place())));
    for block in probe {
        heap.deallocate(block).unwrap_or_else(|error| panic!("{}: {error}", place()));
    }
    heap.trim().unwrap_or_else(|error| panic!("{}: {error}", place()));
    let stats = heap.stats().expect("stats of a valid heap");
    let pages = (stats.free, stats.free_blocks, stats.fragmentation);
    assert_eq!(pages, (stats.total, 1, 0), "{}: something was lost\n{stats}", place());
    assert!(stats.classes.is_empty(), "{}: slabs are left over\n{stats}", place());
    heap.validate().unwrap_or_else(|error| panic!("{}: after freeing everything: {error}", place()));
}
