//! Random words anywhere but in the header and the pages: whatever they are, the heap is whole afterwards.

use proptest::prelude::*;

use super::region::{CAPACITY, Region, use_up_and_empty, word};
use shmheap::Heap;

/// What a damaged word becomes.
#[derive(Debug, Clone, Copy)]
enum Change {
    Value(u64),
    Flip(u32),
    /// The word that stands so many words further.
    Neighbour(u64),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        any::<u64>().prop_map(Change::Value),
        (0u64..6).prop_map(Change::Value),
        Just(Change::Value(u64::MAX)),
        (0u32..64).prop_map(Change::Flip),
        (1u64..40).prop_map(Change::Neighbour),
        // A page entry.
        (0u64..6, 0u64..50, 0u64..6, 0u64..40)
            .prop_map(|(state, class, lane, number)| Change::Value(state | class << 8 | lane << 16 | number << 32)),
    ]
}

/// The table in which a word is damaged, and a number that leads to the word.
fn damage() -> impl Strategy<Value = (usize, u64, Change)> {
    (0usize..9, any::<u64>(), change())
}

fn damaged_words(region: &Region, damage: &[(usize, u64, Change)]) -> Vec<(u64, u64)> {
    let places = &region.places;
    // Of the tables behind the pages, the part that belongs to the pages that hold something.
    let used = 128;
    let tables = [
        (0x80, 0x400),
        (4096, places.roots),
        (places.roots, places.data),
        (places.entries, places.entries + 8 * used),
        (places.entries, places.links),
        (places.links, places.links + 8 * used),
        (places.in_use, places.bitmaps),
        (places.bitmaps, places.bitmaps + 64 * used),
        (places.bitmaps, places.end),
    ];
    let mut words = Vec::new();
    for (table, number, change) in damage {
        let (start, end) = tables[*table];
        let at = start + number % ((end - start) / 8) * 8;
        let old = word(&region.sound, at);
        let new = match change {
            Change::Value(value) => *value,
            Change::Flip(bit) => old ^ 1 << bit,
            Change::Neighbour(distance) => word(&region.sound, (at + 8 * distance).min(CAPACITY - 8)),
        };
        words.push((at, new));
    }
    words
}

/// What a single bit of a page's entry can do. The bits of a class are left out: a slab on one page has another class then,
/// and blocks of another size, and nothing contradicts that.
#[test]
fn whatever_bit_of_a_page_entry_flips_no_page_with_a_block_is_given_away() {
    let region = Region::new(false);
    let used = region.pages_in(0).next().expect("some pages are free");
    for page in 0..used {
        for bit in (0..8).chain(16..64).step_by(if page % 2 == 0 { 2 } else { 3 }) {
            let path = region.damaged(&[(region.places.entry(page), region.entry(page) ^ 1 << bit)]);
            Heap::options().repair_file(&path).expect("a repair");
            let heap = Heap::options().open_file(&path).expect("a repaired heap can be opened");
            let blocks: Vec<_> = heap.blocks().map(|block| (block.offset.get(), block.offset.get() + block.size)).collect();
            for (start, (size, _)) in &region.blocks {
                let mut places = std::iter::once(*start).chain(region.places.pages_of(*start, *size));
                let lost = places.find(|at| !blocks.iter().any(|(start, end)| (*start..*end).contains(at)));
                assert_eq!(lost, None, "bit {bit} of page {page} has given away the block at {start:#x}");
            }
        }
    }
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 300, max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn whatever_words_are_damaged_the_heap_is_whole_after_a_repair() {
    for left in [false, true] {
        let region = Region::new(left);
        proptest!(config(), |(damage in prop::collection::vec(damage(), 1..14))| {
            let words = damaged_words(&region, &damage);
            let path = region.damaged(&words);
            region.repair(&path);
            let heap = Heap::options().open_file(&path).expect("a repaired heap can be opened");
            use_up_and_empty(&heap);
        });
    }
}
