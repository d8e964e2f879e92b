//! The pairs of operations whose interleavings are swept. Each later capability adds its own here.

use shmheap::{Error, Heap, Result};

use crate::stage::Stage;

/// Two operations of two processes on one heap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) name: &'static str,
    /// A makes the heap and brings it into a state; its blocks are both's.
    pub(crate) prepare_a: fn(&mut Stage),
    /// B has attached, and may add to the state and to the blocks.
    pub(crate) prepare_b: fn(&mut Stage),
    pub(crate) a: fn(&mut Stage) -> Result<()>,
    pub(crate) b: fn(&mut Stage) -> Result<()>,
    pub(crate) lanes: u32,
    /// B does what only one may do who finds A dead: the half in which A goes on is left out.
    pub(crate) only_if_a_dies: bool,
}

type Prepare = fn(&mut Stage);
type Act = fn(&mut Stage) -> Result<()>;

const fn pair(name: &'static str, prepare_a: Prepare, prepare_b: Prepare, a: Act, b: Act) -> Pair {
    Pair { name, prepare_a, prepare_b, a, b, lanes: 4, only_if_a_dies: false }
}

impl Pair {
    const fn only_if_a_dies(self) -> Self {
        Self { only_if_a_dies: true, ..self }
    }

    const fn lanes(self, lanes: u32) -> Self {
        Self { lanes, ..self }
    }
}

fn claim(stage: &mut Stage) {
    stage.claim();
}

fn nothing(_stage: &mut Stage) {}

fn two_blocks(stage: &mut Stage) {
    stage.fill(&[1024, 1024]);
}

/// While the heap is frozen nothing comes or goes.
fn freeze(stage: &mut Stage) -> Result<()> {
    let heap = stage.heap();
    let frozen = heap.freeze()?;
    let before: Vec<_> = heap.blocks().collect();
    std::thread::yield_now();
    let after: Vec<_> = heap.blocks().collect();
    drop(frozen);
    if before == after { Ok(()) } else { Err(Error::RootsFull { slots: 0 }) }
}

/// A full slab of the preparing lane.
fn full_slab(stage: &mut Stage) {
    stage.fill(&[1024; 8]);
}

fn orphan_with_room(stage: &mut Stage) {
    stage.fill_orphans(&[1024, 1024]);
    stage.claim();
}

fn allocate<const SIZE: usize>(stage: &mut Stage) -> Result<()> {
    stage.heap().allocate(SIZE).map(drop)
}

/// Where the other one was faster, there is no room.
fn allocate_if_room<const SIZE: usize>(stage: &mut Stage) -> Result<()> {
    match stage.heap().allocate(SIZE) {
        Err(Error::OutOfMemory { .. }) => Ok(()),
        allocated => allocated.map(drop),
    }
}

fn free<const INDEX: usize>(stage: &mut Stage) -> Result<()> {
    stage.heap().deallocate(stage.blocks[INDEX])
}

/// As [`free`], where somebody else may have been faster. Two who free one block at the same moment may both be told that
/// they did: that is no promise.
fn free_if_first<const INDEX: usize>(stage: &mut Stage) -> Result<()> {
    match free::<INDEX>(stage) {
        Err(Error::DoubleFree { .. } | Error::InvalidOffset { .. }) => Ok(()),
        other => other,
    }
}

fn reallocate<const SIZE: usize>(stage: &mut Stage) -> Result<()> {
    stage.heap().reallocate(stage.blocks[0], SIZE).map(drop)
}

fn construct(stage: &mut Stage) -> Result<()> {
    stage.heap().find_or_construct("name", 200, |_| Ok(())).map(drop)
}

fn construct_in_vain(stage: &mut Stage) -> Result<()> {
    match stage.heap().find_or_construct("name", 200, |_| Err(Error::ZeroSize)) {
        Err(Error::ZeroSize) => Ok(()),
        other => other.map(drop),
    }
}

fn set_root<const INDEX: usize>(stage: &mut Stage) -> Result<()> {
    stage.heap().set_root("name", stage.blocks[INDEX]).map(drop)
}

fn remove_root(stage: &mut Stage) -> Result<()> {
    match stage.heap().remove_root("name") {
        Err(Error::RootUnknown { .. }) => Ok(()),
        other => other.map(drop),
    }
}

fn look_up_root(stage: &mut Stage) -> Result<()> {
    stage.heap().root("name").map(drop)
}

fn root(stage: &mut Stage) {
    two_blocks(stage);
    stage.heap().set_root("name", stage.blocks[0]).expect("a root");
}

fn detach(stage: &mut Stage) -> Result<()> {
    stage.heap = None;
    Ok(())
}

fn attach(stage: &mut Stage) -> Result<()> {
    let another = Heap::options().lock_timeout(std::time::Duration::from_millis(2)).open(&stage.name)?;
    another.validate()
}

fn trim(stage: &mut Stage) -> Result<()> {
    stage.heap().trim().map(drop)
}

fn recover(stage: &mut Stage) -> Result<()> {
    stage.heap().recover().map(drop)
}

fn cell(stage: &mut Stage) {
    stage.blocks.push(stage.heap().allocate_zeroed(64).expect("room"));
}

fn full_cell(stage: &mut Stage) {
    stage.publish(1024);
}

/// B's block, in a cell of A's.
fn cell_of_the_others(stage: &mut Stage) {
    stage.fill(&[1024; 8]);
    let (cell, block) = (stage.blocks[0], stage.blocks[1]);
    stage.heap().copy_in(cell, &block.get().to_ne_bytes()).expect("live");
}

fn allocate_into(stage: &mut Stage) -> Result<()> {
    match stage.heap().allocate_into(stage.first(), 1024) {
        Err(Error::CellOccupied { .. }) => Ok(()),
        other => other.map(drop),
    }
}

fn free_from(stage: &mut Stage) -> Result<()> {
    match stage.heap().free_from(stage.first()) {
        Err(Error::CellEmpty { .. }) => Ok(()),
        other => other,
    }
}

/// Looks at everything that can be looked at without a lock.
fn look_around(stage: &mut Stage) -> Result<()> {
    let heap = stage.heap();
    heap.stats()?;
    heap.roots()?;
    heap.lanes()?;
    assert!(heap.blocks().count() < 100, "more blocks than there can be");
    Ok(())
}

/// Somebody has died, and nobody has come since who would have seen to that: who claims a lane does.
fn dead_lane(stage: &mut Stage) {
    stage.claim();
    stage.fill_and_die(&[64, 1024, 9_000]);
}

/// As [`dead_lane`], and this thread keeps nothing: it has room for a large block that it frees.
fn dead_lane_and_nothing_kept(stage: &mut Stage) {
    dead_lane(stage);
    stage.fill(&[3000]);
}

pub(crate) const PAIRS: &[Pair] = &[
    pair("lock contention: allocate large, allocate large", claim, claim, allocate::<9_000>, allocate::<9_000>),
    pair("allocate large, deallocate large", |s| s.fill(&[9_000]), claim, allocate::<9_000>, free::<0>),
    pair("deallocate large, allocate large", |s| s.fill(&[9_000]), claim, free::<0>, allocate::<9_000>),
    pair(
        "allocate what the lane keeps, take it away",
        |s| s.keep(&[60_000]),
        claim,
        allocate_if_room::<60_000>,
        allocate_if_room::<70_000>,
    ),
    pair(
        "take away what a lane keeps, it allocates that",
        claim,
        |s| s.keep(&[60_000]),
        allocate_if_room::<70_000>,
        allocate_if_room::<60_000>,
    ),
    pair("trim, allocate a kept slab", claim, |s| s.keep(&[1024; 16]), trim, allocate::<1024>),
    pair("allocate a kept slab, trim", |s| s.keep(&[1024; 16]), claim, allocate::<1024>, trim),
    pair("free large, free large of the same block", |s| s.fill(&[9_000]), claim, free_if_first::<0>, free_if_first::<0>),
    pair("free large, validate", |s| s.fill(&[9_000]), nothing, free::<0>, attach),
    pair("allocate from a new slab, trim", claim, claim, allocate::<64>, trim),
    pair("trim, allocate from a new slab", claim, claim, trim, allocate::<64>),
    pair("merge, remote free", full_slab, claim, allocate::<1024>, free::<0>),
    pair("remote free, merge", claim, full_slab, free::<0>, allocate::<1024>),
    pair("own free, remote free of another block", two_blocks, claim, free::<0>, free::<1>),
    pair("remote free, own free of another block", claim, two_blocks, free::<0>, free::<1>),
    pair("own free, remote free of the same block", two_blocks, claim, free_if_first::<0>, free_if_first::<0>),
    pair("remote free, own free of the same block", claim, two_blocks, free_if_first::<0>, free_if_first::<0>),
    pair("remote free, its owner detaches", claim, full_slab, free::<0>, detach),
    pair("the owner detaches, remote free", full_slab, claim, detach, free::<0>),
    // A slab may lose its lane between the free and the word to its owner: then who freed has to see to it.
    pair("remote free of a last block, its owner detaches", claim, |s| s.fill(&[1024]), free::<0>, detach),
    pair("the owner detaches, remote free of its last block", |s| s.fill(&[1024]), claim, detach, free::<0>),
    pair("remote free, remote free in the same word", |s| s.fill_anothers(&[1024, 1024]), claim, free::<0>, free::<1>),
    pair("adopt, adopt", orphan_with_room, claim, allocate::<1024>, allocate::<1024>),
    pair("adopt, free into the orphan", orphan_with_room, claim, allocate::<1024>, free::<0>),
    pair("free into an orphan, adopt", orphan_with_room, claim, free::<0>, allocate::<1024>),
    pair("free into an orphan, free into the orphan", orphan_with_room, claim, free::<0>, free::<1>),
    pair("find_or_construct, find_or_construct", claim, claim, construct, construct),
    pair("find_or_construct that fails, find_or_construct", claim, claim, construct_in_vain, construct),
    pair("set_root, set_root", two_blocks, claim, set_root::<0>, set_root::<1>),
    pair("set_root, remove_root", root, claim, set_root::<1>, remove_root),
    pair("remove_root, root", root, claim, remove_root, look_up_root),
    pair("free_from another's, its owner allocates", claim, cell_of_the_others, free_from, allocate::<1024>),
    pair("free_from, free_from", full_cell, claim, free_from, free_from),
    pair("allocate_into, free_from", cell, claim, allocate_into, free_from),
    pair("free_from, allocate_into", full_cell, claim, free_from, allocate_into),
    pair("reallocate moves, remote free in its slab", two_blocks, claim, reallocate::<300>, free::<1>),
    pair("reallocate moves another's, its owner allocates", claim, full_slab, reallocate::<300>, allocate::<1024>),
    pair(
        "reallocate moves large, allocate large",
        |s| s.fill(&[9_000, 9_000]),
        claim,
        reallocate::<20_000>,
        allocate::<9_000>,
    ),
    pair("allocate large, reallocate moves another's", full_slab, claim, allocate::<9_000>, reallocate::<300>),
    pair(
        "allocate large, reallocate moves large",
        |s| s.fill(&[9_000, 9_000]),
        claim,
        allocate::<9_000>,
        reallocate::<20_000>,
    ),
    // Until the move has happened, others know the old block and may free it: that it is free says nothing of the move.
    pair("reallocate moves, the old block is freed", two_blocks, claim, reallocate::<300>, free::<0>).only_if_a_dies(),
    pair(
        "reallocate moves large, the old block is freed",
        |s| s.fill(&[9_000, 9_000]),
        claim,
        reallocate::<20_000>,
        free::<0>,
    )
    .only_if_a_dies(),
    pair("one lane: reallocate moves, without a lane", nothing, two_blocks, reallocate::<300>, allocate::<300>).lanes(1),
    pair("reallocate grows, allocate large", |s| s.fill(&[9_000]), claim, reallocate::<20_000>, allocate::<9_000>),
    pair(
        "recovery of a dead move, the old block's owner allocates",
        claim,
        |s| {
            full_slab(s);
            s.die_in_a_move();
        },
        allocate::<9_000>,
        allocate::<1024>,
    ),
    // Who waited for a process that was claiming its first lane was once told pid 0: it had not written its own yet.
    pair("first allocation, first allocation", nothing, nothing, allocate::<64>, allocate::<64>),
    pair("attach, attach", two_blocks, nothing, attach, attach),
    pair("recover, recover", claim, dead_lane, recover, recover),
    pair("recover, free the dead one's large block", claim, dead_lane_and_nothing_kept, recover, free::<2>),
    pair("free a dead one's large block, recover", claim, dead_lane, free::<2>, recover),
    pair("recover, attach", dead_lane, nothing, recover, attach),
    pair("detach, recover", two_blocks, claim, detach, recover),
    pair("detach, detach", two_blocks, |s| s.fill(&[1024, 9_000]), detach, detach),
    pair("one lane: allocate, allocate without a lane", claim, nothing, allocate::<1024>, allocate::<1024>).lanes(1),
    pair("one lane: detach, allocate without a lane", two_blocks, nothing, detach, allocate::<1024>).lanes(1),
    pair("one lane: remote free, without a lane", two_blocks, nothing, free::<0>, free::<1>).lanes(1),
    pair("allocate large, looking around", two_blocks, nothing, allocate::<9_000>, look_around),
    pair("detach, looking around", two_blocks, nothing, detach, look_around),
    pair("find_or_construct, looking around", two_blocks, nothing, construct, look_around),
    pair("allocate, frozen meanwhile", claim, claim, allocate::<64>, freeze),
    pair("deallocate, frozen meanwhile", two_blocks, claim, free::<0>, freeze),
    pair("remote free, frozen meanwhile", claim, two_blocks, free::<0>, freeze),
    pair("reallocate moves, frozen meanwhile", two_blocks, claim, reallocate::<300>, freeze),
    pair("first allocation, frozen meanwhile", nothing, claim, allocate::<64>, freeze),
    pair("freeze, frozen meanwhile", claim, claim, freeze, freeze),
    pair("freeze, allocate", claim, claim, freeze, allocate::<64>),
];
