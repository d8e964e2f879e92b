//! What stands in /dev/shm: what takes the most room, what is broken, and what somebody left.

use std::time::{Duration, Instant};

use shmheap::{Heap, SegmentInfo, SegmentKind};

use super::Finding;
use super::system::System;
use crate::failure::user_name;
use crate::output::shown;
use crate::place::Place;
use crate::units::{counted, size};

/// Segments that are named, of those that take the most.
const LARGEST: usize = 5;
/// Names in a sentence; more are counted.
const NAMES_MAX: usize = 5;
/// Heaps that are looked into for the lanes of dead processes.
const OPENED_MAX: usize = 1000;
/// Heaps whose invariants are checked, and for how long in all.
const CHECKED_MAX: u64 = 64;
const CHECKING_MAX: Duration = Duration::from_secs(5);

pub(super) fn checks(system: &System) -> Vec<Finding> {
    if !system.is_live() {
        return Vec::new();
    }
    match Heap::segments() {
        Ok(segments) => {
            let mut findings = vec![largest(&segments), broken(&segments), temporary(&segments), detached(&segments)];
            findings.push(damaged(&segments));
            findings.push(dead_lanes(&segments));
            findings.push(of_others(&segments, system.uid));
            findings
        }
        Err(error) => vec![Finding::problem("segments", format!("/dev/shm cannot be listed: {error}"))],
    }
}

fn taken<'a>(segments: impl IntoIterator<Item = &'a SegmentInfo>) -> u64 {
    segments.into_iter().map(|segment| segment.taken).sum()
}

/// Names in a row, the first of them.
fn names(segments: &[&SegmentInfo]) -> String {
    let named: Vec<String> = segments.iter().take(NAMES_MAX).map(|segment| shown(&segment.name)).collect();
    match segments.len().saturating_sub(NAMES_MAX) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn largest(segments: &[SegmentInfo]) -> Finding {
    const CHECK: &str = "largest";
    let mut by_size: Vec<&SegmentInfo> = segments.iter().filter(|segment| segment.taken > 0).collect();
    by_size.sort_by_key(|segment| std::cmp::Reverse(segment.taken));
    let described: Vec<String> = by_size.iter().take(LARGEST).map(|segment| describe(segment)).collect();
    let finding = match described.as_slice() {
        [] => Finding::fine(CHECK, "nothing in /dev/shm takes memory"),
        rows => Finding::fine(CHECK, rows.join(", ")).remedy("shmheap ls --all lists all"),
    };
    finding.numbers([("segments", segments.len() as u64), ("taken", taken(segments))])
}

fn describe(segment: &SegmentInfo) -> String {
    let attached = match segment.attached {
        Some(true) => "attached",
        Some(false) => "not attached",
        None => "not known whether attached",
    };
    format!("{} of {} ({}, {attached})", shown(&segment.name), size(segment.taken), user_name(segment.owner))
}

fn broken(segments: &[SegmentInfo]) -> Finding {
    const CHECK: &str = "broken";
    let found: Vec<&SegmentInfo> =
        segments.iter().filter(|segment| matches!(segment.kind, SegmentKind::Broken { .. })).collect();
    let numbers = [("count", found.len() as u64), ("taken", taken(found.iter().copied()))];
    match found.as_slice() {
        [] => Finding::fine(CHECK, "no heap that cannot be opened"),
        heaps => {
            let sentence = format!(
                "{} that cannot be opened, of {}: {}",
                counted(heaps.len() as u64, "heap"),
                size(taken(heaps.iter().copied())),
                names(heaps)
            );
            Finding::warning(CHECK, sentence).remedy("shmheap ls tells why; shmheap gc --dry-run tells what can go")
        }
    }
    .numbers(numbers)
}

fn temporary(segments: &[SegmentInfo]) -> Finding {
    const CHECK: &str = "temporary";
    let is_left = |segment: &&SegmentInfo| segment.kind == SegmentKind::Temporary && segment.attached == Some(false);
    let found: Vec<&SegmentInfo> = segments.iter().filter(is_left).collect();
    let numbers = [("count", found.len() as u64), ("taken", taken(found.iter().copied()))];
    match found.len() {
        0 => Finding::fine(CHECK, "no name left by a creator that died"),
        count => Finding::note(CHECK, format!("{} left by creators that died", counted(count as u64, "name")))
            .remedy("shmheap gc"),
    }
    .numbers(numbers)
}

fn detached(segments: &[SegmentInfo]) -> Finding {
    const CHECK: &str = "detached";
    let is_detached = |segment: &&SegmentInfo| segment.kind == SegmentKind::Heap && segment.attached == Some(false);
    let found: Vec<&SegmentInfo> = segments.iter().filter(is_detached).collect();
    let numbers = [("count", found.len() as u64), ("taken", taken(found.iter().copied()))];
    match found.as_slice() {
        [] => Finding::fine(CHECK, "every heap is attached by somebody"),
        heaps => {
            let room = size(taken(heaps.iter().copied()));
            let sentence =
                format!("{} that nobody has attached keep {room}: {}", counted(heaps.len() as u64, "heap"), names(heaps));
            Finding::note(CHECK, sentence).remedy("shmheap gc --detached --dry-run tells which of them could go")
        }
    }
    .numbers(numbers)
}

/// Heaps that can be opened, but are damaged within. Each is checked without its lock.
fn damaged(segments: &[SegmentInfo]) -> Finding {
    const CHECK: &str = "damaged";
    let started = Instant::now();
    let heaps = segments.iter().filter(|segment| segment.kind == SegmentKind::Heap);
    let (mut checked, mut left_out, mut found) = (0u64, 0u64, Vec::new());
    for segment in heaps {
        if checked >= CHECKED_MAX || started.elapsed() > CHECKING_MAX {
            left_out += 1;
            continue;
        }
        let Ok(heap) = Place::Segment(segment.name.clone()).open_read_only() else { continue };
        checked += 1;
        if heap.findings().is_ok_and(|findings| !findings.is_empty()) {
            found.push(segment);
        }
    }
    let rest = if left_out == 0 { String::new() } else { format!("; {} not looked into", counted(left_out, "more heap")) };
    match found.as_slice() {
        [] => Finding::fine(CHECK, format!("{} sound{rest}", counted(checked, "heap"))),
        heaps => {
            let repair = heaps.iter().take(NAMES_MAX).map(|heap| format!("shmheap repair {} --dry-run", heap.name));
            let sentence = format!("damaged, and still in use by whoever does not know: {}{rest}", names(heaps));
            Finding::problem(CHECK, sentence).remedy(repair.collect::<Vec<_>>().join("\n"))
        }
    }
    .numbers([("checked", checked), ("damaged", found.len() as u64), ("left_out", left_out)])
}

fn dead_lanes(segments: &[SegmentInfo]) -> Finding {
    const CHECK: &str = "dead lanes";
    let mut dead = 0u64;
    let mut heaps = Vec::new();
    for segment in segments.iter().filter(|segment| segment.kind == SegmentKind::Heap).take(OPENED_MAX) {
        let opened = Place::Segment(segment.name.clone()).open_read_only();
        // Which heaps cannot be opened, or are broken within, others tell.
        let lanes = opened.ok().and_then(|heap| heap.lanes().ok()).unwrap_or_default();
        let count = lanes.iter().filter(|lane| !lane.alive).count() as u64;
        if count > 0 {
            dead = dead.saturating_add(count);
            heaps.push(segment);
        }
    }
    match heaps.as_slice() {
        [] => Finding::fine(CHECK, "no heap has lanes of processes that died"),
        heaps => {
            let sentence = format!(
                "{} of processes that died, in {}; whoever allocates next takes over",
                counted(dead, "lane"),
                names(heaps)
            );
            let recover = heaps.iter().take(NAMES_MAX).map(|heap| format!("shmheap recover {}", heap.name));
            Finding::note(CHECK, sentence).remedy(recover.collect::<Vec<_>>().join("\n"))
        }
    }
    .numbers([("count", dead)])
}

fn of_others(segments: &[SegmentInfo], uid: u32) -> Finding {
    const CHECK: &str = "others";
    let found: Vec<&SegmentInfo> = segments.iter().filter(|segment| segment.owner != uid).collect();
    let room = taken(found.iter().copied());
    let numbers = [("count", found.len() as u64), ("taken", room)];
    match found.as_slice() {
        [] => Finding::fine(CHECK, "all segments belong to this user"),
        segments => {
            let sentence = format!(
                "{} of other users take {}: {}",
                counted(segments.len() as u64, "segment"),
                size(room),
                names(segments)
            );
            Finding::note(CHECK, sentence).remedy("sudo shmheap gc --other-users --dry-run tells which of them could go")
        }
    }
    .numbers(numbers)
}
