//! The operations that are swept. Each later capability adds its own here: a name, what to prepare, what to do.

use shmheap::{Heap, Offset};

/// One operation on one state of a heap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// Brings a fresh heap into the state; the blocks are what `act` works on.
    pub(crate) prepare: fn(&Heap) -> Vec<Offset>,
    /// What is swept.
    pub(crate) act: fn(&mut Option<Heap>, &[Offset]),
    /// The operation is to attach a region that is there already.
    pub(crate) attach_in_act: bool,
}

macro_rules! operation {
    ($name:expr, $prepare:expr, $act:expr $(,)?) => {
        Operation {
            name: $name,
            prepare: $prepare,
            act: |heap, blocks| {
                let act: fn(&Heap, &[Offset]) = $act;
                act(heap.as_ref().expect("attached"), blocks);
            },
            attach_in_act: false,
        }
    };
}

/// Allocates blocks of these sizes, each filled with a pattern of its own.
fn blocks(heap: &Heap, sizes: &[usize]) -> Vec<Offset> {
    let filled = |(index, size): (usize, &usize)| {
        let block = heap.allocate(*size).expect("room for the preparation");
        let byte = u8::try_from(index % 251).expect("below 251").wrapping_add(1);
        heap.copy_in(block, &vec![byte; *size]).expect("the block is there");
        block
    };
    sizes.iter().enumerate().map(filled).collect()
}

/// The same, allocated by a thread that has ended: orphans.
fn orphans(heap: &Heap, sizes: &'static [usize]) -> Vec<Offset> {
    let other = heap.clone();
    std::thread::spawn(move || blocks(&other, sizes)).join().expect("the thread allocates")
}

/// Blocks of another attachment of the same memory, whose lane lives on: it is leaked together with its thread.
fn anothers(heap: &Heap, sizes: &'static [usize]) -> Vec<Offset> {
    let other = heap.clone();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        send.send(blocks(&other, sizes)).expect("somebody listens");
        loop {
            std::thread::park();
        }
    });
    receive.recv().expect("the thread allocates")
}

/// A cell that holds a block of this size.
fn published(heap: &Heap, size: usize) -> Vec<Offset> {
    let cell = heap.allocate_zeroed(64).expect("room");
    heap.allocate_into(cell, size).expect("room");
    vec![cell]
}

fn free_from_first(heap: &Heap, blocks: &[Offset]) {
    heap.free_from(blocks[0]).expect("a block in the cell");
}

fn nothing(_heap: &Heap) -> Vec<Offset> {
    Vec::new()
}

/// A lane that has allocated and freed: its bins are warm, and nothing is live.
fn warm(heap: &Heap) -> Vec<Offset> {
    let warm = blocks(heap, &[16, 64, 512, 5000]);
    warm.iter().for_each(|block| heap.deallocate(*block).expect("just allocated"));
    Vec::new()
}

/// Makes the calling thread claim a lane, and leaves no slab of the classes that matter.
fn claim(heap: &Heap) {
    let block = heap.allocate(3000).expect("room");
    heap.deallocate(block).expect("just allocated");
}

fn allocate(heap: &Heap, size: usize) {
    heap.allocate(size).expect("room");
}

fn free_first(heap: &Heap, blocks: &[Offset]) {
    heap.deallocate(blocks[0]).expect("live");
}

pub(crate) const OPERATIONS: &[Operation] = &[
    operation!("allocate, hot bin", warm, |heap, _| allocate(heap, 64)),
    operation!("allocate, lane claimed first", nothing, |heap, _| allocate(heap, 64)),
    operation!("allocate, new slab", |heap| blocks(heap, &[64]), |heap, _| allocate(heap, 512)),
    operation!("allocate, next word", |heap| blocks(heap, &[16; 64]), |heap, _| allocate(heap, 16),),
    operation!(
        "allocate, slab with room again",
        |heap| {
            // The second slab is used up but for one block when the first has room again.
            let mut all = blocks(heap, &[1024; 15]);
            heap.deallocate(all.remove(0)).expect("live");
            all.extend(blocks(heap, &[1024]));
            all
        },
        |heap, _| allocate(heap, 1024),
    ),
    operation!(
        "allocate, merges what others freed",
        |heap| {
            let mut all = blocks(heap, &[1024; 8]);
            let freed: Vec<Offset> = all.drain(..3).collect();
            let other = heap.clone();
            let free = move || freed.iter().try_for_each(|block| other.deallocate(*block));
            std::thread::spawn(free).join().expect("the thread ends well").expect("live");
            all
        },
        |heap, _| allocate(heap, 1024),
    ),
    operation!(
        "allocate, adopts an orphan",
        |heap| {
            let all = orphans(heap, &[100, 100, 2000]);
            claim(heap);
            all
        },
        |heap, _| allocate(heap, 100),
    ),
    operation!("allocate, large", warm, |heap, _| allocate(heap, 10_000)),
    operation!("allocate, out of memory", |heap| blocks(heap, &[30_000]), |heap, _| {
        heap.allocate(70_000).expect_err("no room");
    }),
    operation!("allocate_aligned 4096", warm, |heap, _| {
        heap.allocate_aligned(100, 4096).expect("room");
    }),
    operation!("deallocate, own", |heap| blocks(heap, &[64, 64]), free_first),
    operation!("deallocate, word that was full", |heap| blocks(heap, &[1024; 9]), free_first),
    operation!(
        "deallocate, second slab becomes empty",
        |heap| {
            // Three slabs of eight blocks: one is the current one, one is empty and kept, and one has a single block left.
            let mut all = blocks(heap, &[1024; 24]);
            let last_of_second = all.remove(8);
            all.drain(..15).for_each(|block| heap.deallocate(block).expect("live"));
            all.insert(0, last_of_second);
            all
        },
        free_first,
    ),
    operation!("deallocate, remote", |heap| anothers(heap, &[64, 64]), free_first),
    operation!(
        "deallocate, orphan",
        |heap| {
            let all = orphans(heap, &[64, 64]);
            claim(heap);
            all
        },
        free_first,
    ),
    operation!(
        "deallocate, last of an orphan",
        |heap| {
            let all = orphans(heap, &[64]);
            claim(heap);
            all
        },
        free_first,
    ),
    operation!("deallocate, large", |heap| blocks(heap, &[10_000, 64]), free_first),
    operation!("reallocate, large shrinks", |heap| blocks(heap, &[20_000]), |heap, blocks| {
        heap.reallocate(blocks[0], 9_000).expect("shrinks");
    }),
    operation!("reallocate, large grows", |heap| blocks(heap, &[9_000]), |heap, blocks| {
        heap.reallocate(blocks[0], 20_000).expect("room behind it");
    }),
    operation!("set_root, new", |heap| blocks(heap, &[64]), |heap, blocks| {
        heap.set_root("name", blocks[0]).expect("a root");
    }),
    operation!(
        "set_root, replaces",
        |heap| {
            let all = blocks(heap, &[64, 64]);
            heap.set_root("name", all[0]).expect("a root");
            all
        },
        |heap, blocks| {
            heap.set_root("name", blocks[1]).expect("a root");
        },
    ),
    operation!(
        "remove_root",
        |heap| {
            let all = blocks(heap, &[64, 64]);
            heap.set_root("name", all[0]).expect("a root");
            heap.set_root("other", all[1]).expect("a root");
            all
        },
        |heap, _| {
            heap.remove_root("name").expect("the root");
        },
    ),
    operation!("find_or_construct", |heap| blocks(heap, &[64]), |heap, _| {
        heap.find_or_construct("name", 200, |_| Ok(())).expect("constructed");
    }),
    operation!("find_or_construct, fails", |heap| blocks(heap, &[64]), |heap, _| {
        heap.find_or_construct("name", 200, |_| Err(shmheap::Error::ZeroSize)).expect_err("fails");
    },),
    operation!(
        "trim",
        |heap| {
            let mut all = blocks(heap, &[64, 1024, 9_000]);
            heap.deallocate(all.remove(1)).expect("live");
            all
        },
        |heap, _| {
            heap.trim().expect("trims");
        }
    ),
    Operation {
        act: |heap, _| drop(heap.take()),
        ..operation!("detach", |heap| blocks(heap, &[64, 1024, 9_000]), |_, _| ())
    },
    operation!("allocate_into", |heap| vec![heap.allocate_zeroed(64).expect("room")], |heap, blocks| {
        heap.allocate_into(blocks[0], 100).expect("room");
    },),
    operation!("allocate_into, large", |heap| vec![heap.allocate_zeroed(64).expect("room")], |heap, blocks| {
        heap.allocate_into(blocks[0], 10_000).expect("room");
    },),
    operation!("free_from, own", |heap| published(heap, 100), free_from_first),
    operation!("free_from, large", |heap| published(heap, 10_000), free_from_first),
    operation!(
        "free_from, another's",
        |heap| {
            let others = anothers(heap, &[100]);
            let cell = heap.allocate_zeroed(64).expect("room");
            heap.copy_in(cell, &others[0].get().to_ne_bytes()).expect("live");
            vec![cell]
        },
        free_from_first,
    ),
];
