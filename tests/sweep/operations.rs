//! The operations that are swept. Each later capability adds its own here: a name, what to prepare, what to do.

use shmheap::{Error, Heap, Result};

use crate::stage::Stage;

/// One operation on one state of a heap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// Brings a fresh heap into the state.
    pub(crate) prepare: fn(&mut Stage),
    /// What is swept. An error is a failure of the sweep: what has to be refused is turned into `Ok` here.
    pub(crate) act: fn(&mut Stage) -> Result<()>,
    /// There is no heap before the operation.
    pub(crate) creates: bool,
    /// Every lane is taken: the operation works in the name of the shared one.
    pub(crate) laneless: bool,
    /// The operation is followed by the end of its thread, which leaves its lane.
    pub(crate) ends_thread: bool,
    /// The operation writes into its new block after it has allocated it: contents in between are no state of their own.
    pub(crate) fills: bool,
}

impl Operation {
    pub(crate) const fn new(name: &'static str, prepare: fn(&mut Stage), act: fn(&mut Stage) -> Result<()>) -> Self {
        Self { name, prepare, act, creates: false, laneless: false, ends_thread: false, fills: false }
    }

    const fn laneless(self) -> Self {
        Self { laneless: true, ..self }
    }

    const fn creates(self) -> Self {
        Self { creates: true, ..self }
    }

    const fn fills(self) -> Self {
        Self { fills: true, ..self }
    }

    const fn ends_thread(self) -> Self {
        Self { ends_thread: true, ..self }
    }
}

fn nothing(_stage: &mut Stage) {}

fn free_first(stage: &mut Stage) -> Result<()> {
    stage.heap().deallocate(stage.first())
}

fn free_from_first(stage: &mut Stage) -> Result<()> {
    stage.heap().free_from(stage.first())
}

/// What must be refused was refused.
fn refused<T>(result: Result<T>, is_right: impl FnOnce(&Error) -> bool) -> Result<()> {
    match result {
        Err(error) if is_right(&error) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(Error::RootsFull { slots: 0 }),
    }
}

fn allocate<const SIZE: usize>(stage: &mut Stage) -> Result<()> {
    stage.heap().allocate(SIZE).map(drop)
}

/// A heap that a seed has filled may have no room left in one piece; then nothing changes.
fn reallocate<const SIZE: usize>(stage: &mut Stage) -> Result<()> {
    match stage.heap().reallocate(stage.first(), SIZE) {
        Err(Error::OutOfMemory { .. }) => Ok(()),
        other => other.map(drop),
    }
}

/// Where a seed has left no room in one piece, nothing changes.
fn allocate_if_room<const SIZE: usize>(stage: &mut Stage) -> Result<()> {
    match stage.heap().allocate(SIZE) {
        Err(Error::OutOfMemory { .. }) => Ok(()),
        allocated => allocated.map(drop),
    }
}

fn construct(stage: &mut Stage) -> Result<()> {
    stage.heap().find_or_construct("name", 200, |_| Ok(())).map(drop)
}

fn construct_in_vain(stage: &mut Stage) -> Result<()> {
    let construct = |_| Err(Error::ZeroSize);
    refused(stage.heap().find_or_construct("name", 200, construct), |error| *error == Error::ZeroSize)
}

/// Three slabs of eight blocks: one is the current one, one is empty and kept, and one has a single block left, the first.
fn second_slab_nearly_empty(stage: &mut Stage) {
    stage.fill(&[1024; 24]);
    let last_of_second = stage.blocks.remove(8);
    let freed: Vec<_> = stage.blocks.drain(..15).collect();
    freed.iter().for_each(|block| stage.heap().deallocate(*block).expect("live"));
    stage.blocks.insert(0, last_of_second);
}

/// Three slabs of eight blocks: the first and the current one are full, the second is empty and kept.
fn full_slabs_and_a_kept_one(stage: &mut Stage) {
    stage.fill(&[1024; 24]);
    let freed: Vec<_> = stage.blocks.drain(8..16).collect();
    freed.iter().for_each(|block| stage.heap().deallocate(*block).expect("live"));
}

/// The second slab is used up but for one block when the first has room again.
fn slab_with_room_again(stage: &mut Stage) {
    stage.fill(&[1024; 15]);
    let first = stage.blocks.remove(0);
    stage.heap().deallocate(first).expect("live");
    stage.fill(&[1024]);
}

fn freed_by_another(stage: &mut Stage) {
    stage.fill(&[1024; 8]);
    let (other, freed): (_, Vec<_>) = (stage.heap().clone(), stage.blocks.drain(..3).collect());
    let free = move || freed.iter().try_for_each(|block| other.deallocate(*block));
    std::thread::spawn(free).join().expect("the thread ends well").expect("live");
}

fn root(stage: &mut Stage) {
    stage.fill(&[64, 64]);
    stage.heap().set_root("name", stage.blocks[0]).expect("a root");
}

/// A cell that holds a block of another lane's.
fn cell_with_anothers(stage: &mut Stage) {
    stage.fill_anothers(&[100]);
    let block = stage.blocks.remove(0);
    let cell = stage.heap().allocate_zeroed(64).expect("room");
    stage.heap().copy_in(cell, &block.get().to_ne_bytes()).expect("live");
    stage.blocks.insert(0, cell);
}

fn cell(stage: &mut Stage) {
    stage.blocks.push(stage.heap().allocate_zeroed(64).expect("room"));
}

fn open(stage: &mut Stage) -> Result<()> {
    stage.heap = Some(Heap::open(&stage.name)?);
    Ok(())
}

fn detach(stage: &mut Stage) -> Result<()> {
    stage.heap = None;
    Ok(())
}

const fn op(name: &'static str, prepare: fn(&mut Stage), act: fn(&mut Stage) -> Result<()>) -> Operation {
    Operation::new(name, prepare, act)
}

pub(crate) const OPERATIONS: &[Operation] = &[
    op("allocate, what was freed last", |s| s.warm(), allocate::<64>),
    op("allocate, the current word", |s| s.fill(&[64]), allocate::<64>),
    op("allocate, lane claimed first", nothing, allocate::<64>),
    op("allocate, lane claimed beside another process", |s| s.fill_elsewhere(&[64]), allocate::<64>),
    op("deallocate, another process's", |s| s.fill_elsewhere(&[64, 64]), free_first),
    op("allocate, new slab", |s| s.fill(&[64]), allocate::<512>),
    op("allocate, next word", |s| s.fill(&[16; 64]), allocate::<16>),
    op("allocate, slab with room again", slab_with_room_again, allocate::<1024>),
    op("allocate, merges what others freed", freed_by_another, allocate::<1024>),
    op(
        "allocate, adopts an orphan",
        |s| {
            s.fill_orphans(&[100, 100, 2000]);
            s.claim();
        },
        allocate::<100>,
    ),
    op("allocate, large", |s| s.warm(), allocate::<10_000>),
    op(
        "allocate, out of memory",
        |s| s.fill(&[12_000]),
        |s| refused(s.heap().allocate(112_000), |error| matches!(error, Error::OutOfMemory { .. })),
    ),
    op("allocate, gives back what it keeps when memory is short", second_slab_nearly_empty, allocate_if_room::<50_000>),
    op("allocate, large that is kept", |s| s.keep(&[9_000]), allocate::<9_000>),
    op("allocate, a slab that is kept", full_slabs_and_a_kept_one, allocate::<1024>),
    op("allocate, gives back what it keeps before memory grows", |s| s.keep(&[1024, 9_000]), allocate_if_room::<40_000>),
    op(
        "allocate, takes what another keeps when memory is short",
        |s| {
            s.claim();
            s.keep_elsewhere(&[1024, 60_000]);
        },
        allocate_if_room::<70_000>,
    ),
    op("allocate_aligned 4096", |s| s.warm(), |s| s.heap().allocate_aligned(100, 4096).map(drop)),
    op("allocate_zeroed", |s| s.warm(), |s| s.heap().allocate_zeroed(100).map(drop)).fills(),
    op("deallocate, own", |s| s.fill(&[64, 64]), free_first),
    op("deallocate, word that was full", |s| s.fill(&[1024; 9]), free_first),
    op("deallocate, second slab becomes empty", second_slab_nearly_empty, free_first),
    op("deallocate, remote", |s| s.fill_anothers(&[64, 64]), free_first),
    op(
        "deallocate, orphan",
        |s| {
            s.fill_orphans(&[64, 64]);
            s.claim();
        },
        free_first,
    ),
    op(
        "deallocate, last of an orphan",
        |s| {
            s.fill_orphans(&[64]);
            s.claim();
        },
        free_first,
    ),
    op("deallocate, large", |s| s.fill(&[10_000, 64]), free_first),
    op(
        "deallocate, large beside one that is kept",
        |s| {
            s.fill(&[9_000]);
            s.keep(&[12_000]);
        },
        free_first,
    ),
    op("reallocate, same class", |s| s.fill(&[100]), reallocate::<110>),
    op("reallocate, large shrinks", |s| s.fill(&[20_000]), reallocate::<9_000>),
    op("reallocate, large grows", |s| s.fill(&[9_000]), reallocate::<20_000>),
    // A death between allocating the new block and freeing the old one once left both, of which the caller knew one: a leak.
    op("reallocate, moves", |s| s.fill(&[100, 100]), reallocate::<300>),
    op("reallocate, moves within the lane's slabs", |s| s.fill(&[100, 100, 300]), reallocate::<300>),
    op(
        "reallocate, moves out of a full slab",
        |s| s.fill(&[1024, 300, 1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024]),
        reallocate::<300>,
    ),
    op("reallocate, moves to pages of its own", |s| s.fill(&[1000, 100]), reallocate::<9_000>),
    op("reallocate, moves from pages of its own", |s| s.fill(&[9_000, 100]), reallocate::<100>),
    op("reallocate, large moves", |s| s.fill(&[9_000, 9_000]), reallocate::<20_000>),
    op("reallocate, moves another's", |s| s.fill_anothers(&[100, 100]), reallocate::<300>),
    op(
        "reallocate, moves an orphan's",
        |s| {
            s.fill_orphans(&[100, 100]);
            s.claim();
        },
        reallocate::<300>,
    ),
    op(
        "reallocate, after a block that could not be taken back",
        |s| {
            s.fill(&[100, 9_000]);
            s.leave_a_move(1);
        },
        reallocate::<300>,
    ),
    op("set_root, new", |s| s.fill(&[64]), |s| s.heap().set_root("name", s.first()).map(drop)),
    op("set_root, replaces", root, |s| s.heap().set_root("name", s.blocks[1]).map(drop)),
    op(
        "remove_root",
        |s| {
            root(s);
            s.heap().set_root("other", s.blocks[1]).expect("a root");
        },
        |s| s.heap().remove_root("name").map(drop),
    ),
    op("find_or_construct", |s| s.fill(&[64]), construct),
    op("find_or_construct, fails", |s| s.fill(&[64]), construct_in_vain),
    op("find_or_construct, finds", root, construct),
    op(
        "trim",
        |s| {
            s.fill(&[64, 9_000, 1024]);
            s.free_all_but(2);
        },
        |s| s.heap().trim().map(drop),
    ),
    op("trim, takes what others keep", |s| s.keep_elsewhere(&[1024, 9_000]), |s| s.heap().trim().map(drop)),
    op("allocate_into", cell, |s| s.heap().allocate_into(s.first(), 100).map(drop)),
    op("allocate_into, large", cell, |s| s.heap().allocate_into(s.first(), 10_000).map(drop)),
    op("free_from, own", |s| s.publish(100), free_from_first),
    op("free_from, large", |s| s.publish(10_000), free_from_first),
    op("free_from, another's", cell_with_anothers, free_from_first),
    // The heap once got its name before its creator had attached it: a call that failed in between left a heap that its
    // creator was told it had not made.
    op("create", nothing, |s| {
        s.heap = Some(Heap::options().capacity(64 << 10).create(&s.name)?);
        Ok(())
    })
    .creates(),
    op(
        "attach",
        |s| {
            s.fill(&[64, 9_000]);
            s.heap = None;
        },
        open,
    ),
    op("attach, finds the dead", |s| s.fill_and_die(&[64, 1024, 9_000]), open),
    op("recover", |s| s.fill_and_die(&[64, 1024, 9_000]), |s| s.heap().recover().map(drop)),
    op("recover, of one who kept spans", |s| s.keep_and_die(&[1024, 9_000]), |s| s.heap().recover().map(drop)),
    op("allocate, takes the lock from a dead holder", |s| s.die_with_the_lock(), allocate::<9_000>),
    op("find_or_construct, takes the lock from a dead holder", |s| s.die_with_the_lock(), construct),
    op("freeze, and let go", |s| s.fill(&[64, 9_000]), |s| s.heap().freeze().map(drop)),
    op("freeze, without a lane", nothing, |s| s.heap().freeze().map(drop)).laneless(),
    op("freeze, beside one who died at work", |s| s.die_busy(), |s| s.heap().freeze().map(drop)),
    op("allocate, after one who died while it froze", |s| s.die_freezing(), allocate::<64>),
    op("detach", |s| s.fill(&[64, 1024, 9_000]), detach),
    op("detach, leaves a slab that another has freed in", freed_by_another, detach),
    op("a thread ends", |s| s.fill(&[64, 1024]), |_| Ok(())).ends_thread(),
    op("a thread ends that has a large block", |s| s.fill(&[64, 9_000]), |_| Ok(())).ends_thread(),
    op("a thread ends that keeps spans", |s| s.keep(&[1024, 9_000]), |_| Ok(())).ends_thread(),
    op(
        "a thread ends, with a block that could not be taken back",
        |s| {
            s.fill(&[100, 9_000]);
            s.leave_a_move(1);
        },
        |_| Ok(()),
    )
    .ends_thread(),
    op("shared lane, allocate from an orphan", |s| s.fill_orphans(&[100]), allocate::<100>).laneless(),
    op("shared lane, allocate", nothing, allocate::<100>).laneless(),
    op("shared lane, allocate large", nothing, allocate::<9_000>).laneless(),
    op("shared lane, deallocate another's", |s| s.fill(&[100]), free_first).laneless(),
    op("shared lane, deallocate large", |s| s.fill(&[9_000]), free_first).laneless(),
    op("shared lane, reallocate moves", |s| s.fill(&[100, 100]), reallocate::<300>).laneless(),
    op("shared lane, reallocate moves an orphan's", |s| s.fill_orphans(&[100, 100]), reallocate::<300>).laneless(),
    op("shared lane, reallocate moves large", |s| s.fill(&[9_000, 9_000]), reallocate::<20_000>).laneless(),
    op("shared lane, allocate_into", cell, |s| s.heap().allocate_into(s.first(), 100).map(drop)).laneless(),
    op("shared lane, free_from", |s| s.publish(100), free_from_first).laneless(),
    op("shared lane, find_or_construct", nothing, construct).laneless(),
    op("shared lane, find_or_construct fails", nothing, construct_in_vain).laneless(),
];
