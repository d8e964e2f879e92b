//! What a segment must be after everybody in it has died: one of the states that the operation allows, and sound.

use std::collections::BTreeMap;

use shmheap::{Heap, Offset};

use crate::image::{Copy, Image};

/// The live blocks of a heap, with a digest of their contents, and its roots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Live {
    pub(crate) blocks: BTreeMap<Offset, Content>,
    pub(crate) roots: BTreeMap<String, Option<Offset>>,
}

/// A block's size and a digest of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) size: u64,
    pub(crate) digest: u64,
}

/// The states that are allowed. `None`: there is no heap.
#[derive(Debug, Clone)]
pub(crate) struct Allowed {
    pub(crate) before: Option<Live>,
    pub(crate) after: Option<Live>,
    /// The operation has ended: the state before it is allowed no more, but blocks that it moved or allocated may stand
    /// elsewhere.
    pub(crate) only_after: bool,
    /// Contents of new blocks may be others than in the end.
    pub(crate) fills: bool,
}

impl Live {
    /// What is live in this heap.
    pub(crate) fn of(heap: &Heap) -> Result<Self, String> {
        let content = |block: shmheap::BlockInfo| {
            let digest = digest(heap, block.offset, block.size)?;
            Ok((block.offset, Content { size: block.size, digest }))
        };
        let blocks = heap.blocks().map(content).collect::<Result<_, String>>()?;
        let roots = heap.roots().map_err(|error| format!("roots: {error}"))?;
        Ok(Self { blocks, roots: roots.into_iter().map(|root| (root.name, root.block)).collect() })
    }

    /// What is live in this image once everybody in it is dead.
    pub(crate) fn after_recovery(image: &Image, copy: &Copy) -> Result<Self, String> {
        copy.put(image);
        Self::of(&copy.open().map_err(|error| format!("attach: {error}"))?)
    }

    /// The same blocks and roots, and the same contents; of blocks that are new, unless the operation still fills them.
    fn matches(&self, expected: &Self, allowed: &Allowed) -> bool {
        let is_old = |offset: &Offset| allowed.before.as_ref().is_some_and(|before| before.blocks.contains_key(offset));
        let same = |((offset, found), (_, expected)): ((&Offset, &Content), (&Offset, &Content))| {
            found.size == expected.size && (found.digest == expected.digest || allowed.fills && !is_old(offset))
        };
        self.blocks.keys().eq(expected.blocks.keys())
            && self.blocks.iter().zip(&expected.blocks).all(same)
            && self.roots == expected.roots
    }
}

/// What matters of a heap's state where blocks may stand anywhere: which sizes are allocated, and which roots there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    sizes: Vec<u64>,
    roots: BTreeMap<String, Option<u64>>,
}

impl Live {
    pub(crate) fn shape(&self) -> Shape {
        let mut sizes: Vec<u64> = self.blocks.values().map(|content| content.size).collect();
        sizes.sort_unstable();
        let size_of = |block: Option<Offset>| block.and_then(|block| Some(self.blocks.get(&block)?.size));
        let roots = self.roots.iter().map(|(name, block)| (name.clone(), size_of(*block))).collect();
        Shape { sizes, roots }
    }
}

/// FNV-1a over a block's bytes; the first 4096 suffice to tell contents apart.
fn digest(heap: &Heap, block: Offset, size: u64) -> Result<u64, String> {
    let mut bytes = vec![0; usize::try_from(size.min(4096)).expect("at most 4096")];
    heap.copy_out(block, &mut bytes).map_err(|error| format!("a listed block cannot be read: {error}"))?;
    Ok(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// Judges what a death would leave: `image`, or no segment at all.
pub(crate) fn judge(image: Option<&Image>, copy: &Copy, allowed: &Allowed) -> Result<(), String> {
    let may_be_before = !allowed.only_after;
    let Some(image) = image else {
        let fits = may_be_before && allowed.before.is_none() || allowed.after.is_none();
        return if fits { Ok(()) } else { Err("the segment is gone".to_owned()) };
    };
    if let Some(what) = image.unbacked() {
        return Err(format!("the heap counts on memory that is not reserved: {what}"));
    }
    copy.put(image);
    let heap = copy.open().map_err(|error| format!("attach: {error}"))?;
    heap.validate().map_err(|error| format!("validate: {error}"))?;
    let now = Live::of(&heap)?;
    let fits = |expected: &Option<Live>| {
        expected
            .as_ref()
            .is_some_and(|expected| now.matches(expected, allowed) || allowed.only_after && now.shape() == expected.shape())
    };
    if !(may_be_before && fits(&allowed.before) || fits(&allowed.after)) {
        return Err(format!("neither before nor after:\nallowed {allowed:x?}\nfound   {now:x?}"));
    }
    use_up(&heap, &now)
}

/// Frees everything; the heap must work, and be one free block in the end.
pub(crate) fn use_up(heap: &Heap, live: &Live) -> Result<(), String> {
    let told = |what: &'static str| move |error: shmheap::Error| format!("{what}: {error}");
    for root in live.roots.keys() {
        heap.remove_root(root).map_err(told("remove_root"))?;
    }
    for block in live.blocks.keys() {
        heap.deallocate(*block).map_err(told("deallocate"))?;
    }
    for size in [16, 700, 9000] {
        let block = heap.allocate(size).map_err(told("allocate"))?;
        heap.deallocate(block).map_err(told("deallocate what was just allocated"))?;
    }
    heap.trim().map_err(told("trim"))?;
    let stats = heap.stats().map_err(told("stats"))?;
    if (stats.free, stats.free_blocks, stats.fragmentation) != (stats.total, 1, 0) || !stats.classes.is_empty() {
        return Err(format!("after everything was freed, something is lost:\n{stats}"));
    }
    heap.validate().map_err(told("validate after everything was freed"))
}
