//! The finisher: comes when all the others are gone, and knows nothing but the heap's name. Checks that everything is
//! there, frees it, checks that nothing else was, and reports.

use shmheap::Heap;

use crate::Result;
use crate::board::{self, Count, Gate, Tally};
use crate::pattern::Pattern;

/// Empties the heap `name` and prints the report. An error says what differs from a heap that is whole and empty.
pub(crate) fn run(name: &str) -> Result<()> {
    let heap = Heap::open(name)?;
    heap.validate()?;
    let processes = Gate::find(&heap)?.processes();
    let survivors = free_survivors(&heap, processes)?;
    println!("processes {processes}  survivors {survivors}, all as they were left");
    let effort = effort(&heap, processes)?;
    free_roots(&heap)?;

    let valid = heap.validate();
    println!("{}\n{effort}", heap.dump_stats()?);
    let stats = heap.stats()?;
    let (free_blocks, fragmentation) = (stats.free_blocks, stats.fragmentation);
    let verdict = if valid.is_ok() { "valid" } else { "not valid" };
    println!("free blocks {free_blocks}  fragmentation {fragmentation}  {verdict}");
    valid?;
    match (stats.allocated_blocks, free_blocks, fragmentation) {
        (0, 1, 0) => Ok(()),
        (left, ..) => Err(format!(
            "everything was freed, but {left} blocks are allocated, the free bytes are in {free_blocks} pieces, and \
             {fragmentation} of them outside the largest; expected 0, 1 and 0"
        )
        .into()),
    }
}

/// Checks and frees what the workers never freed; how many blocks that were.
fn free_survivors(heap: &Heap, processes: u32) -> Result<usize> {
    let mut pattern = Pattern::default();
    let mut count = 0;
    for worker in 0..processes {
        for parcel in board::survivors(heap, worker)? {
            pattern.check(heap, worker, parcel)?;
            heap.deallocate(parcel.block)?;
            count += 1;
        }
    }
    Ok(count)
}

/// How much was done in what time, as text.
fn effort(heap: &Heap, processes: u32) -> Result<String> {
    let tallies = (0..processes).map(|worker| Tally::find(heap, worker)).collect::<Result<Vec<_>>>()?;
    let sum = |count| tallies.iter().map(|tally| tally.get(count)).sum::<u64>();
    let operations = sum(Count::Replayed);
    // They started together, so the slowest one's time is the time of all.
    let nanoseconds = tallies.iter().map(|tally| tally.get(Count::Nanoseconds)).max().unwrap_or(0);
    Ok(format!(
        "operations {operations}  handed over {}  ring full {}  skipped {}\n\
         seconds {:.3}  ns per operation {:.1} in total, with filling and checking every block",
        sum(Count::HandedOver),
        sum(Count::RingFull),
        sum(Count::Unknown),
        nanoseconds as f64 / 1e9,
        nanoseconds as f64 / operations.max(1) as f64,
    ))
}

/// Removes every root and frees its block.
fn free_roots(heap: &Heap) -> Result<()> {
    for root in heap.roots()? {
        heap.deallocate(heap.remove_root(&root.name)?)?;
    }
    Ok(())
}
