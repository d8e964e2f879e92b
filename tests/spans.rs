//! The heap as a row of spans: what is drawn of it.

mod common;

use std::os::unix::fs::FileExt;

use common::new_heap;
use shmheap::{Heap, SpanInfo, SpanUsage};

fn spans(heap: &Heap) -> Vec<SpanInfo> {
    let spans: Vec<SpanInfo> = heap.spans().collect();
    let mut at = heap.pages_start();
    for span in &spans {
        assert_eq!(span.offset.get(), at, "each begins where the one before it ends: {spans:?}");
        assert!(span.len > 0 && span.len.is_multiple_of(heap.page_size()));
        at += span.len;
    }
    assert_eq!(at, heap.pages_start() + heap.total_size());
    spans
}

#[test]
fn an_empty_heap_is_one_free_span_without_memory() {
    let (_segment, heap) = new_heap("empty");
    let all = spans(&heap);
    assert_eq!(all.iter().map(|span| span.usage).collect::<Vec<_>>(), [SpanUsage::Free { reserved: false }]);
}

#[test]
fn slabs_large_blocks_and_what_is_free_are_told_apart() {
    let (_segment, heap) = new_heap("kinds");
    let small: Vec<_> = (0..10).map(|_| heap.allocate(100).expect("room")).collect();
    let large = heap.allocate(300_000).expect("room");
    let lane = heap.lanes().expect("lanes")[0].lane;
    let usages: Vec<SpanUsage> = spans(&heap).iter().map(|span| span.usage).collect();
    let slab = |allocated: u32| {
        usages.iter().any(|usage| match usage {
            SpanUsage::Slab { block_size: 112, blocks, allocated: found, lane: Some(owner) } => {
                *found == allocated && *blocks >= 10 && *owner == lane
            }
            _ => false,
        })
    };
    assert!(slab(10), "{usages:?}");
    assert!(usages.contains(&SpanUsage::Large { lane: Some(lane) }), "{usages:?}");
    assert_eq!(usages.last(), Some(&SpanUsage::Free { reserved: false }));
    let at_large = spans(&heap).into_iter().find(|span| span.offset == large).expect("it is a span of its own");
    assert_eq!(at_large.len, heap.info(large).expect("it is allocated").size);

    heap.deallocate(large).expect("it is freed");
    let kept = spans(&heap).into_iter().any(|span| span.usage == SpanUsage::Kept { lane: Some(lane) });
    assert!(kept, "the lane keeps the span for its next use");
    small.into_iter().for_each(|block| heap.deallocate(block).expect("it is freed"));
}

#[test]
fn memory_that_was_freed_stays_reserved_until_it_is_trimmed() {
    let (_segment, heap) = new_heap("reserved");
    let blocks: Vec<_> = (0..40).map(|_| heap.allocate(100_000).expect("room")).collect();
    blocks.into_iter().for_each(|block| heap.deallocate(block).expect("it is freed"));
    let reserved = |heap: &Heap| {
        let free = spans(heap).into_iter().filter(|span| span.usage == SpanUsage::Free { reserved: true });
        free.map(|span| span.len).sum::<u64>()
    };
    assert!(reserved(&heap) > 1_000_000, "{:?}", spans(&heap));
    heap.trim().expect("trim");
    assert_eq!(reserved(&heap), 0, "{:?}", spans(&heap));
    assert_eq!(spans(&heap).len(), 1, "all is one span again");
}

#[test]
fn a_slab_whose_lane_is_gone_has_none() {
    let (_segment, heap) = new_heap("orphan");
    let worker = heap.clone();
    std::thread::spawn(move || worker.allocate(100).map(|_| ())).join().expect("it ends").expect("room");
    let orphans =
        spans(&heap).into_iter().filter(|span| matches!(span.usage, SpanUsage::Slab { lane: None, allocated: 1, .. }));
    assert_eq!(orphans.count(), 1);
}

#[test]
fn a_damaged_page_table_ends_the_row_and_no_more() {
    let (segment, heap) = new_heap("damaged");
    heap.allocate(100).expect("room");
    let entries = (heap.pages_start() + heap.total_size()).next_multiple_of(64);
    let file = std::fs::File::options().write(true).open(segment.path()).expect("it is there");
    for damage in [[0xff; 8], [2, 0, 1, 0, 0xff, 0xff, 0xff, 0xff], [1, 63, 1, 0, 0, 0, 0, 0]] {
        file.write_all_at(&damage, entries).expect("it can be written to");
        let seen: Vec<SpanInfo> = heap.spans().take(100_000).collect();
        assert!(seen.iter().all(|span| span.len > 0) && seen.len() < 100_000, "it comes to an end");
        assert!(seen.iter().map(|span| span.len).sum::<u64>() <= heap.total_size());
    }
}

/// The bits of a slab's blocks have memory only where there are slabs, a group of pages of 1 MiB at a time. Looks once
/// followed whatever said that it was a slab, and the kernel gave memory to what they read, or had none left and raised a
/// signal.
#[test]
fn looking_at_a_slab_for_whose_bits_there_is_no_memory_takes_none() {
    let (segment, heap) = new_heap("no-bits");
    heap.allocate(3 << 20).expect("room");
    let entries = (heap.pages_start() + heap.total_size()).next_multiple_of(64);
    let file = std::fs::File::options().write(true).open(segment.path()).expect("it is there");
    // The large block's first page is free now, and a later page, of another group, says that it is a slab.
    let later = (2 << 20) / heap.page_size() + 5;
    file.write_all_at(&[0; 8], entries).expect("it can be written to");
    file.write_all_at(&[1, 0, 1, 0, 0, 0, 0, 0], entries + later * 8).expect("it can be written to");
    let taken = || Heap::segment(segment.name()).expect("it is there").taken;
    let before = taken();
    let all = spans(&heap);
    // Whether it tells anything of a heap like this one does not matter here.
    let _ = (heap.activity(), heap.stats(), heap.blocks().count());
    assert_eq!(taken(), before, "bytes of memory");
    assert!(all.iter().all(|span| matches!(span.usage, SpanUsage::Free { .. })), "{all:?}");
}
