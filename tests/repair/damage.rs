//! One damage for each invariant: it is found, its repair is planned and told, and no block is lost.

use std::fs;

use super::region::{
    JOURNAL, LANES, LOCK, MERGE_HOLD, ORPHANS, PAGE, PAGES_HIGH, Places, RECOVERING, ROOTS_RESERVED, Region, word,
};
use shmheap::{Heap, Remedy};

/// Breaks a heap, sees that the check finds it and that repair does exactly these things about it.
fn expect(region: &Region, words: &[(u64, u64)], found: &str, done: &[(&str, u64, Remedy)]) {
    let path = region.damaged(words);
    let findings = Heap::options().open_file_read_only(&path).expect("the header is whole").findings();
    if !found.is_empty() {
        let findings = findings.expect("the heap is at rest");
        assert!(findings.iter().any(|finding| finding.what.starts_with(found)), "{found} is not among {findings:?}");
        let first = Heap::options().open_file_read_only(&path).expect("the header is whole").validate();
        assert_eq!(first, Err(shmheap::Error::Corrupt(findings[0])));
    }
    let report = region.repair(&path);
    let told: Vec<_> = report.actions.iter().map(|action| (action.found.what, action.found.at, action.remedy)).collect();
    let is_same = told.len() == done.len()
        && told.iter().zip(done).all(|(told, done)| told.0.starts_with(done.0) && (told.1, told.2) == (done.1, done.2));
    assert!(is_same, "told:\n{report}expected: {done:?}");
    region.expect_usable(&path, &report);
}

fn quarantined(region: &Region, page: u64, pages: u64) -> Remedy {
    let block = shmheap::Offset::new(region.places.page(page)).expect("no page starts at zero");
    Remedy::Quarantined { block, len: pages * PAGE }
}

#[test]
fn a_mark_of_pages_in_use_that_is_out_of_range_is_found_anew() {
    let region = Region::new(false);
    for wrong in [513, 1, u64::MAX, region.places.pages + 1] {
        expect(&region, &[(PAGES_HIGH, wrong)], "C2", &[("C2", PAGES_HIGH, Remedy::Reset)]);
    }
}

#[test]
fn bits_of_pages_that_were_never_in_use_are_cleared() {
    let region = Region::new(false);
    let (pages, group) = (512 / 64 * 8, region.places.groups);
    for at in [region.places.in_use + pages, region.places.reserved + pages + 8, group] {
        let damage = [(at, word(&region.sound, at) | 1 << 3)];
        expect(&region, &damage, "", &[("bits of pages", at, Remedy::Reset)]);
    }
}

#[test]
fn a_mark_below_pages_with_blocks_is_raised() {
    let region = Region::new(false);
    expect(&region, &[(PAGES_HIGH, 0)], "", &[("C2", PAGES_HIGH, Remedy::Reset)]);
}

#[test]
fn a_further_page_that_does_not_fit_quarantines_its_large_block() {
    let region = Region::new(false);
    let page = region.page(20_000);
    let at = region.places.entry(page + 2);
    let done = ("C3", at, quarantined(&region, page, 5));
    for wrong in [region.entry(page + 2) ^ 1 << 32, region.entry(page + 2) | 0x40, 9] {
        expect(&region, &[(at, wrong)], "C3", &[done]);
    }
    let differs = ("C4", region.places.in_use + page / 64 * 8, Remedy::Rebuilt);
    expect(&region, &[(at, 0)], "C3", &[done, differs]);
    // Where somebody died in the middle, in-use bits prove nothing; the block's own length does.
    let recovering = ("a recovery", RECOVERING, Remedy::Recovered);
    expect(&region, &[(at, 0), (RECOVERING, 1)], "", &[recovering, done, differs]);
}

#[test]
fn a_first_page_that_says_nothing_is_found_by_its_further_pages() {
    let region = Region::new(false);
    let page = region.page(20_000);
    // By a state that nobody writes; by the in-use bits, if this one seems to be free; or else by the next page.
    let at = region.places.entry(page);
    expect(&region, &[(at, 0xf)], "C3", &[("C3", at, quarantined(&region, page, 5))]);
    let in_use = region.places.in_use + page / 64 * 8;
    let done = quarantined(&region, page, 5);
    expect(&region, &[(at, 0)], "C3", &[("C4", at, done), ("C4", in_use, Remedy::Rebuilt)]);
    let others = word(&region.sound, in_use) & !(1 << (page % 64));
    let path = region.damaged(&[(at, 0), (in_use, others)]);
    let report = region.repair(&path);
    assert_eq!((report.actions[0].found.at, report.actions[0].remedy), (at + 8, done), "{report}");
    region.expect_usable(&path, &report);
}

#[test]
fn a_slab_whose_entry_seems_to_be_free_is_not_given_away() {
    let region = Region::new(false);
    let page = region.page(16);
    let at = region.places.entry(page);
    assert_eq!(region.entry(page), 1, "an orphan of the smallest class, on one page, is one bit away from nothing");
    let path = region.damaged(&[(at, 0)]);
    let report = region.repair(&path);
    assert_eq!(report.actions[0].remedy, quarantined(&region, page, 1), "{report}");
    region.expect_usable(&path, &report);
    // Killed before it was done: the next repair knows no less.
    let path = region.damaged(&[(at, 0), (RECOVERING, 2), (LOCK, 1)]);
    let report = region.repair(&path);
    assert!(report.actions.iter().any(|action| action.remedy == quarantined(&region, page, 1)), "{report}");
    region.expect_usable(&path, &report);
}

#[test]
fn a_large_block_that_is_too_long_is_quarantined_up_to_the_next_sound_span() {
    let region = Region::new(false);
    let (page, next) = (region.page(20_000), region.page(100_000));
    assert!(page < next && region.pages_in(0).all(|free| !(page..next).contains(&free)));
    let at = region.places.entry(page);
    for pages in [6, 100, 1 << 31, 0] {
        let path = region.damaged(&[(at, 2 | pages << 32)]);
        let report = region.repair(&path);
        assert_eq!(report.actions[0].remedy, quarantined(&region, page, 5), "{report}");
        region.expect_usable(&path, &report);
    }
}

#[test]
fn a_slab_of_an_unknown_class_is_quarantined_with_its_blocks() {
    let region = Region::new(false);
    let page = region.page(700);
    let at = region.places.entry(page);
    let path = region.damaged(&[(at, region.entry(page) | 0xff00)]);
    let report = region.repair(&path);
    assert_eq!(report.actions[0].found.at, at);
    assert!(
        matches!(report.actions[0].remedy, Remedy::Quarantined { block, .. } if block.get() == region.places.page(page))
    );
    region.expect_usable(&path, &report);
}

#[test]
fn in_use_bits_and_summaries_are_rebuilt() {
    let region = Region::new(false);
    let at = region.places.in_use + 8;
    let done = [("C4", at, Remedy::Rebuilt), ("C5", region.places.summaries, Remedy::Rebuilt)];
    expect(&region, &[(at, !word(&region.sound, at))], "C4", &done);
    let at = region.places.summaries;
    expect(&region, &[(at, 7)], "C5", &[("C5", at, Remedy::Rebuilt)]);
}

#[test]
fn memory_that_is_not_marked_as_reserved_is_reserved() {
    let region = Region::new(false);
    let page = region.page(20_000);
    let at = region.places.reserved + page / 64 * 8;
    let cleared = word(&region.sound, at) & !(1 << (page % 64));
    expect(&region, &[(at, cleared)], "C6", &[("C6", region.places.page(page), Remedy::Reserved)]);
    let first_slab = region.pages_in(1).next().expect("there are slabs");
    let done = [("C6", region.places.entry(first_slab), Remedy::Reserved)];
    expect(&region, &[(region.places.groups, 0)], "C6", &done);
}

#[test]
fn bits_beyond_the_last_block_are_put_to_rest() {
    let region = Region::new(false);
    let page = region.page(700);
    // Where its words start follows from the class; they are the only pair that is not zero there.
    let pairs = (0..4).map(|pair| region.places.bitmaps + page * PAGE / 64 + 16 * pair);
    let at = pairs.into_iter().find(|at| word(&region.sound, *at) != 0).expect("the slab has free blocks");
    expect(&region, &[(at, word(&region.sound, at) & !(1 << 63))], "C7", &[("C7", at, Remedy::Reset)]);
    expect(&region, &[(at + 8, 1 << 63)], "C7", &[("C7", at, Remedy::Reset)]);
}

#[test]
fn a_slab_of_a_lane_that_nobody_claims_becomes_an_orphan() {
    let region = Region::new(false);
    let page = region.page(16);
    let at = region.places.entry(page);
    for lane in [3, LANES + 1, 0xffff] {
        let path = region.damaged(&[(at, region.entry(page) | lane << 16)]);
        let report = region.repair(&path);
        let told: Vec<_> = report.actions.iter().map(|action| (&action.found.what[..3], action.remedy)).collect();
        assert_eq!(told[0], ("C9:", Remedy::Rebuilt), "the list held a slab that was no orphan: {report}");
        assert_eq!(told.last(), Some(&("C8:", Remedy::Orphaned)), "{report}");
        region.expect_usable(&path, &report);
    }
}

#[test]
fn lists_of_orphans_are_made_anew() {
    let region = Region::new(false);
    let page = region.page(16);
    let (head, link) = (ORPHANS, region.places.links + 8 * page);
    assert_eq!(word(&region.sound, head) & 0xffff_ffff, page + 1, "the slab of the first class is listed");
    let others = word(&region.sound, head) & !0xffff_ffff;
    expect(&region, &[(head, others)], "C9", &[("C9", link, Remedy::Rebuilt)]);
    let lost = [("a link leads", region.places.data, Remedy::Rebuilt), ("C9", link, Remedy::Rebuilt)];
    expect(&region, &[(head, others | 0xffff_fff0)], "C9", &lost);
    let done = [("C9", link, Remedy::Rebuilt), ("C9", link, Remedy::Rebuilt)];
    expect(&region, &[(link, 0)], "C9", &done);
}

#[test]
fn an_orphan_that_is_wholly_free_is_freed() {
    let mut region = Region::new(false);
    let page = region.page(700);
    let pairs = (0..4).map(|pair| region.places.bitmaps + page * PAGE / 64 + 16 * pair);
    let at = pairs.into_iter().find(|at| word(&region.sound, *at) != 0).expect("the slab has free blocks");
    let block = region.block(700).get();
    region.blocks.remove(&block);
    expect(&region, &[(at, u64::MAX)], "C10", &[("C10", region.places.entry(page), Remedy::Freed)]);
}

#[test]
fn a_journal_record_and_intents_that_nobody_can_have_left_are_dropped() {
    let region = Region::new(false);
    for armed in [1, 2, 3, u64::MAX] {
        expect(&region, &[(JOURNAL, armed)], "C11", &[("C11", JOURNAL, Remedy::Dropped)]);
        let at = Places::lane(2);
        expect(&region, &[(at + 0x80, armed)], "C11", &[("C11", at, Remedy::Dropped)]);
    }
    // One that could be settled, had anybody died holding the lock: its block stays.
    let (at, block, cell) = (Places::lane(2), region.block(48).get(), region.block(3000).get());
    let intent = [(at + 0x80, 2), (at + 0x88, cell), (at + 0x90, block)];
    expect(&region, &intent, "C11", &[("C11", at, Remedy::Dropped)]);
    expect(&region, &[(MERGE_HOLD, 1)], "C11", &[("C11", MERGE_HOLD, Remedy::Reset)]);
}

#[test]
fn a_journal_record_of_one_who_died_is_replayed_unless_it_frees_blocks() {
    let region = Region::new(false);
    let (slab, free) = (region.page(16), region.pages_in(0).next().expect("some pages are free"));
    let record = |page: u64, entry: u64| [(LOCK, 2), (JOURNAL, 1), (JOURNAL + 8, page | 1 << 32), (JOURNAL + 16, entry)];
    let held = ("the lock was held", LOCK, Remedy::Recovered);
    expect(&region, &record(slab, 0), "", &[held, ("C11", JOURNAL, Remedy::Dropped)]);
    expect(&region, &record(slab, 2), "", &[held, ("C11", JOURNAL, Remedy::Dropped)]);
    // A large block that was being allocated exists afterwards.
    let done = [
        held,
        ("C11", JOURNAL, Remedy::Recovered),
        ("C4", region.places.in_use + free / 64 * 8, Remedy::Rebuilt),
        ("C6", region.places.page(free), Remedy::Reserved),
    ];
    let reserved = word(&region.sound, region.places.reserved + free / 64 * 8) >> (free % 64) & 1 != 0;
    let done = if reserved { &done[..3] } else { &done[..] };
    expect(&region, &record(free, 2), "", done);
}

#[test]
fn an_intent_of_one_who_died_is_settled_if_it_names_a_cell() {
    let mut region = Region::new(false);
    let (lane, block) = (Places::lane(2), region.block(48).get());
    let intent = |cell: u64| [(RECOVERING, 1), (lane + 0x80, 2), (lane + 0x88, cell), (lane + 0x90, block)];
    let recovering = ("a recovery", RECOVERING, Remedy::Recovered);
    for cell in [3, 0x100, region.places.entries, region.places.data + 4, u64::MAX] {
        expect(&region, &intent(cell), "", &[recovering, ("C11", lane, Remedy::Dropped)]);
    }
    region.blocks.remove(&block);
    expect(&region, &intent(region.block(3000).get()), "", &[recovering, ("C11", lane, Remedy::Recovered)]);
}

#[test]
fn a_lock_that_names_no_lane_is_reset() {
    let region = Region::new(false);
    for wrong in [LANES + 2, 999, 0x7fff_ffff] {
        expect(&region, &[(LOCK, wrong)], "C14", &[("C14", LOCK, Remedy::Reset)]);
    }
    expect(&region, &[(LOCK, 3)], "", &[("the lock was held", LOCK, Remedy::Recovered)]);
}

#[test]
fn a_move_of_a_lane_that_nobody_claims_is_dropped() {
    let region = Region::new(false);
    let (at, block) = (Places::lane(2), region.block(100).get());
    for words in [[(at + 0x98, 8), (at + 0xa0, block)], [(at + 0xa0, 1), (at + 0x98, 0)]] {
        expect(&region, &words, "C15", &[("C15", at, Remedy::Dropped)]);
    }
}

#[test]
fn a_gate_that_nobody_shut_is_opened() {
    let region = Region::new(false);
    let at = Places::lane(2);
    expect(&region, &[(at + 0xc8, 1)], "C17", &[("C17", at, Remedy::Reset)]);
    expect(&region, &[(at + 0xc0, 1)], "", &[("a lane is busy", at, Remedy::Reset)]);
}

#[test]
fn a_kept_span_that_nobody_keeps_or_that_holds_a_block_loses_no_block() {
    let region = Region::new(false);
    let page = region.page(16);
    let at = region.places.entry(page);
    let path = region.damaged(&[(at, region.entry(page) + 3)]);
    let report = region.repair(&path);
    let last = report.actions.last().expect("something was done");
    assert_eq!((&last.found.what[..4], last.found.at, last.remedy), ("C16:", at, Remedy::Orphaned), "{report}");
    region.expect_usable(&path, &report);

    let page = region.page(20_000);
    let at = region.places.entry(page);
    let kept = region.entry(page) & !0xffff_0000 | 2 << 16;
    expect(&region, &[(at, kept + 3)], "C16", &[("C16", at, quarantined(&region, page, 5))]);
}

/// The record of the root of this name.
fn root_at(region: &Region, name: &str) -> u64 {
    let records = (0..64).map(|slot| region.places.roots + 128 * slot);
    let is_named = |at: &u64| {
        let start = usize::try_from(at + 0x20).expect("it fits");
        word(&region.sound, *at) as u8 == 2 && region.sound[start..].starts_with(name.as_bytes())
    };
    records.into_iter().find(is_named).expect("there is a root of this name")
}

#[test]
fn roots_that_are_none_are_removed_and_their_blocks_stay() {
    let region = Region::new(false);
    let at = root_at(&region, "second");
    let state = word(&region.sound, at);
    expect(&region, &[(at, state | 0x70)], "C12", &[("C12", at, Remedy::Removed)]);
    expect(&region, &[(at + 0x20, u64::MAX)], "C12", &[("C12", at, Remedy::Removed)]);
    expect(&region, &[(at, state | 0xff << 32)], "C12", &[("C12", at, Remedy::Removed)]);
    expect(&region, &[(at + 8, 8)], "C12", &[("C12", at + 8, Remedy::Removed)]);
    // Under construction, by nobody, or by a lane that does not exist.
    for lane in [0, 2, 70_000] {
        let words = [(at, state & !0xff | 3), (at + 0x10, lane)];
        expect(&region, &words, "C13", &[("C13", at, Remedy::Removed)]);
    }
}

#[test]
fn of_two_roots_with_one_name_the_one_that_was_found_stays() {
    let region = Region::new(false);
    let (first, other) = (root_at(&region, "first"), root_at(&region, "second"));
    let copied = (0x20..0x60).step_by(8).map(|at| (other + at, word(&region.sound, first + at)));
    let len = (other, word(&region.sound, other) & 0xffff_ffff | 5 << 32);
    let words: Vec<_> = copied.chain([len]).collect();
    expect(&region, &words, "C12", &[("C12", other, Remedy::Removed)]);
    let path = region.damaged(&words);
    region.repair(&path);
    let heap = Heap::options().open_file(&path).expect("it is sound");
    assert_eq!(
        heap.root("first").expect("roots can be read").map(|block| block.get()),
        Some(word(&region.sound, first + 8))
    );
}

#[test]
fn a_root_behind_a_gap_is_moved_to_where_it_is_found() {
    let region = Region::new(false);
    let from = root_at(&region, "first");
    let mut free = (0..64).map(|slot| region.places.roots + 128 * slot).filter(|at| word(&region.sound, *at) as u8 == 0);
    // Not the next one, so that there is a gap in front of it.
    let to = free.rfind(|at| *at != from + 128).expect("there are empty slots");
    let moved = (0..128).step_by(8).map(|at| (to + at, word(&region.sound, from + at)));
    let words: Vec<_> = moved.chain([(from, 0)]).collect();
    let path = region.damaged(&words);
    assert_eq!(Heap::options().open_file(&path).expect("it opens").root("first"), Ok(None), "it is hidden");
    expect(&region, &words, "C12", &[("C12", to, Remedy::Moved { to: from })]);
    let path = region.damaged(&words);
    region.repair(&path);
    let heap = Heap::options().open_file(&path).expect("it is sound");
    assert_eq!(heap.root("first").expect("roots can be read").map(|block| block.get()), Some(word(&region.sound, from + 8)));
}

#[test]
fn roots_whose_memory_was_forgotten_are_found_again() {
    let region = Region::new(false);
    let reserved = word(&region.sound, ROOTS_RESERVED);
    let pieces: Vec<u64> =
        (0..2).filter(|piece| reserved >> piece & 1 != 0).map(|piece| region.places.roots + 4096 * piece).collect();
    let done: Vec<_> = pieces.iter().map(|at| ("C12", *at, Remedy::Reserved)).collect();
    expect(&region, &[(ROOTS_RESERVED, 0)], "", &done);
}

#[test]
fn a_root_that_leads_to_no_block_is_pointed_out_and_kept() {
    let region = Region::new(false);
    let at = root_at(&region, "third") + 8;
    let path = region.damaged(&[(at, region.places.page(region.places.pages - 1))]);
    let report = region.repair(&path);
    assert!(report.is_clean() && report.actions.len() == 1, "{report}");
    assert_eq!((report.actions[0].found.at, report.actions[0].remedy), (at, Remedy::Kept));
    assert!(fs::read(&path).is_ok_and(|bytes| word(&bytes, at) != 0), "the root is as it was");
}
