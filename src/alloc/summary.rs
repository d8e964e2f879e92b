//! The tree of summaries over the in-use bits: where is a run of n free pages?
//!
//! After Go's page allocator (Knyszek and Clements, "Scaling the Go page allocator", 2019). Each node says how many free
//! pages there are at the start, in the longest run, and at the end of what it covers; a leaf covers a chunk of 512
//! pages, an inner node its eight children. A search goes down one path and looks at eight nodes per level.
//!
//! All of it is derived from the in-use bits, which are derived from the page entries (A4).

#![allow(clippy::indexing_slicing, reason = "an array of six, indexed by a loop from 0 to 5")]

use crate::alloc::span::word_count;
use crate::error::{Corruption, Result};
use crate::format::{CHUNK_PAGES, FANOUT, Geometry, LEVELS, Summary, Tables};
use std::sync::atomic::Ordering;

/// Bits of one word of the in-use bitmap.
const WORD_PAGES: u32 = 64;

/// Pages that nodes of `level` cover, each.
fn covered(level: usize) -> u64 {
    u64::from(CHUNK_PAGES) * u64::from(FANOUT).pow(level as u32)
}

/// Puts summaries of neighbours together, from first to last.
#[derive(Debug, Default)]
struct Joined {
    summary: Summary,
    pages: u32,
}

impl Joined {
    fn push(&mut self, next: Summary, pages: u32) {
        let all_free = |summary: &Summary, pages: u32| summary.start >= pages;
        let sum = &mut self.summary;
        let across = sum.end.saturating_add(next.start);
        let start = if all_free(sum, self.pages) { self.pages.saturating_add(next.start) } else { sum.start };
        let end = if all_free(&next, pages) { sum.end.saturating_add(pages) } else { next.end };
        *sum = Summary { start, longest: sum.longest.max(next.longest).max(across), end };
        self.pages = self.pages.saturating_add(pages);
    }
}

/// Summary of one word of in-use bits, of which the first `pages` count.
fn of_word(in_use: u64, pages: u32) -> Summary {
    let beyond = if pages >= WORD_PAGES { 0 } else { u64::MAX << pages };
    let used = in_use | beyond;
    let end = (in_use | beyond).wrapping_shl(WORD_PAGES - pages.clamp(1, WORD_PAGES)).leading_zeros();
    Summary { start: used.trailing_zeros().min(pages), longest: longest_run(!used), end: end.min(pages) }
}

/// Length of the longest run of set bits, in a fixed number of steps.
///
/// `runs[k]` has bit i set where a run of 2^k ends at bit i. A run found so far is made longer by the largest power of two
/// that still fits in front of it, then by the next smaller one, and so on.
fn longest_run(bits: u64) -> u32 {
    if bits == u64::MAX {
        return WORD_PAGES;
    }
    let mut runs = [bits; 6];
    for k in 1..6 {
        runs[k] = runs[k - 1] & runs[k - 1] << (1 << (k - 1));
    }
    let (mut ends, mut length) = (u64::MAX, 0);
    for k in (0..6).rev() {
        let longer = ends & runs[k] << length;
        if longer != 0 {
            (ends, length) = (longer, length + (1 << k));
        }
    }
    length
}

/// What a leaf should say.
pub(super) fn of_chunk(tables: &Tables, chunk: u32, high: u32) -> Summary {
    let first = chunk * CHUNK_PAGES;
    let pages = high.saturating_sub(first).min(CHUNK_PAGES);
    let mut joined = Joined::default();
    for word in 0..word_count(pages) {
        let in_use = tables.in_use_word(first / WORD_PAGES + word).load(Ordering::Relaxed);
        let pages = (pages - word * WORD_PAGES).min(WORD_PAGES);
        joined.push(of_word(in_use, pages), pages);
    }
    joined.summary
}

/// What an inner node should say, by its children.
pub(super) fn of_children(tables: &Tables, level: usize, node: u32, high: u32) -> Summary {
    let below = level - 1;
    let first = node * FANOUT;
    let children = Geometry::summary_len(below, high).saturating_sub(first).min(FANOUT);
    let mut joined = Joined::default();
    for child in first..first + children {
        joined.push(tables.summary(below, child), pages_of(below, child, high));
    }
    joined.summary
}

/// Pages below `high` that a node covers.
fn pages_of(level: usize, node: u32, high: u32) -> u32 {
    let first = u64::from(node) * covered(level);
    u64::from(high).saturating_sub(first).min(covered(level)) as u32
}

/// Brings the nodes above the pages [first, end) up to date.
pub(super) fn update(tables: &Tables, first: u32, end: u32, high: u32) {
    let (mut low_node, mut high_node) = (first / CHUNK_PAGES, (end - 1) / CHUNK_PAGES);
    for chunk in low_node..=high_node {
        tables.set_summary(0, chunk, of_chunk(tables, chunk, high));
    }
    for level in 1..LEVELS {
        if Geometry::summary_len(level - 1, high) <= 1 {
            break;
        }
        (low_node, high_node) = (low_node / FANOUT, high_node / FANOUT);
        for node in low_node..=high_node {
            tables.set_summary(level, node, of_children(tables, level, node, high));
        }
    }
}

/// The topmost level in use: the first with a single node.
fn top(high: u32) -> usize {
    (0..LEVELS).find(|level| Geometry::summary_len(*level, high) <= 1).unwrap_or(LEVELS - 1)
}

/// The summary of all pages below `high`.
pub(super) fn whole(tables: &Tables, high: u32) -> Summary {
    if high == 0 { Summary::default() } else { tables.summary(top(high), 0) }
}

/// The first page of the lowest run of `count` free pages; `None` if there is none.
pub(super) fn find(tables: &Tables, count: u32, high: u32) -> Result<Option<u32>> {
    if whole(tables, high).longest < count {
        return Ok(None);
    }
    let mut node = 0;
    for level in (1..=top(high)).rev() {
        match step(tables, level, node, count, high) {
            Step::Into(child) => node = child,
            Step::Found(page) => return Ok(Some(page)),
            Step::Nothing => return Err(wrong(tables, level, node)),
        }
    }
    find_in_chunk(tables, node, count, high).map(Some).ok_or_else(|| wrong(tables, 0, node))
}

fn wrong(tables: &Tables, level: usize, node: u32) -> crate::error::Error {
    Corruption::new("a summary promises free pages that are not there", tables.summary_at(level, node)).into()
}

enum Step {
    Into(u32),
    Found(u32),
    Nothing,
}

/// Looks through the children of a node for the lowest run: inside a child, or across several.
fn step(tables: &Tables, level: usize, node: u32, count: u32, high: u32) -> Step {
    let below = level - 1;
    let first = node * FANOUT;
    let children = Geometry::summary_len(below, high).saturating_sub(first).min(FANOUT);
    let mut run = 0u32;
    for child in first..first + children {
        let summary = tables.summary(below, child);
        let child_start = u64::from(child) * covered(below);
        if run != 0 && run.saturating_add(summary.start) >= count {
            return Step::Found((child_start - u64::from(run)) as u32);
        }
        if summary.longest >= count {
            return Step::Into(child);
        }
        let pages = pages_of(below, child, high);
        run = if summary.start >= pages { run + pages } else { summary.end.min(pages) };
    }
    Step::Nothing
}

fn find_in_chunk(tables: &Tables, chunk: u32, count: u32, high: u32) -> Option<u32> {
    let first = chunk * CHUNK_PAGES;
    let pages = high.saturating_sub(first).min(CHUNK_PAGES);
    let mut run = 0;
    let mut page = 0;
    while page < pages {
        let in_use = tables.in_use_word((first + page) / WORD_PAGES).load(Ordering::Relaxed);
        let rest = in_use >> (page % WORD_PAGES);
        let left = (WORD_PAGES - page % WORD_PAGES).min(pages - page);
        let free = rest.trailing_zeros().min(left);
        if run + free >= count {
            return Some(first + page - run);
        }
        if free == left {
            run += free;
            page += left;
        } else {
            run = 0;
            let used = (rest >> free).trailing_ones();
            page += free + used.max(1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_summed_up_as_a_plain_count_would() {
        let mut state = 0x1234_5678_9abc_def0u64;
        for round in 0..if cfg!(miri) { 200 } else { 20_000u32 } {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let in_use = state & state.rotate_left(round % 64) | (state >> 7 & state);
            let pages = round % 64 + 1;
            let free: Vec<bool> = (0..pages).map(|bit| in_use >> bit & 1 == 0).collect();
            let start = free.iter().take_while(|free| **free).count() as u32;
            let end = free.iter().rev().take_while(|free| **free).count() as u32;
            let longest = free.split(|free| !*free).map(<[bool]>::len).max().unwrap_or(0) as u32;
            assert_eq!(of_word(in_use, pages), Summary { start, longest, end }, "{in_use:#x} {pages}");
        }
        assert_eq!(of_word(0, 64), Summary { start: 64, longest: 64, end: 64 });
    }
}
