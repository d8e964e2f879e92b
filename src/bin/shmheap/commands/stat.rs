//! `stat`: the full report on a heap.

use std::fmt;
use std::path::Path;

use clap::Args;
use serde::Serialize;
use shmheap::{Heap, LaneInfo, Stats};

use super::Named;
use super::roots::Root;
use crate::output::{self, BAD, DIM, GOOD, Output, STRONG, WARNING, styled};
use crate::place::Place;
use crate::processes::{self, Process};
use crate::units::{self, counted, percent, size};
use crate::{Outcome, Verdict};

/// Tells all about a heap in numbers: sizes, size classes, lanes, roots.
///
/// Exit code 1 if the heap is damaged.
#[derive(Debug, Args)]
pub(crate) struct Stat {
    #[command(flatten)]
    named: Named,
}

#[derive(Debug, Serialize)]
struct StatReport {
    name: String,
    capacity: u64,
    page_size: u64,
    pages_bytes: u64,
    used: u64,
    allocated_blocks: u64,
    free: u64,
    free_blocks: u64,
    largest_free: u64,
    smallest_free: u64,
    fragmentation_bytes: u64,
    fragmentation: f64,
    slab_ends: u64,
    taken: u64,
    /// How much is wrong with it, up to 1000; none where that cannot be told now.
    findings: Option<usize>,
    /// Why it cannot be told.
    not_checked: Option<String>,
    created_ms: u64,
    unlinked: bool,
    lanes_max: u32,
    root_slots: u32,
    classes: Vec<Class>,
    lanes: Vec<Lane>,
    roots: Vec<Root>,
    processes: Vec<Process>,
}

#[derive(Debug, Serialize)]
struct Class {
    block_size: u64,
    slabs: u32,
    orphans: u32,
    blocks: u64,
    allocated: u64,
}

/// A lane, as `stat`, `top` and others show it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Lane {
    pub(crate) lane: u16,
    pub(crate) pid: u32,
    pub(crate) thread: u32,
    pub(crate) state: &'static str,
    pub(crate) command: Option<String>,
    pub(crate) since_ms: u64,
    pub(crate) slabs: u32,
    pub(crate) bytes_held: u64,
    pub(crate) holds_lock: bool,
}

impl Lane {
    /// What is known of a lane of the heap at `path`.
    pub(crate) fn new(info: &LaneInfo, path: &Path) -> Self {
        let process = Process::using(info.pid, path).filter(|_| info.alive);
        let state = match &process {
            _ if !info.alive => "dead",
            Some(process) if process.is_stopped() => "stopped",
            _ => "alive",
        };
        Self {
            lane: info.lane,
            pid: info.pid,
            thread: info.thread,
            state,
            command: process.map(|process| process.command),
            since_ms: info.since_ms,
            slabs: info.slabs,
            bytes_held: info.bytes_held,
            holds_lock: info.holds_lock,
        }
    }
}

impl StatReport {
    fn new(place: &Place, heap: &Heap) -> shmheap::Result<Self> {
        let stats: Stats = heap.stats()?;
        let fragmentation = stats.fragmentation_ratio();
        let classes = stats.classes.iter().map(|class| Class {
            block_size: class.size,
            slabs: class.slabs,
            orphans: class.orphans,
            blocks: class.blocks,
            allocated: class.allocated,
        });
        let findings = heap.findings();
        Ok(Self {
            name: place.text(),
            capacity: stats.capacity,
            page_size: heap.page_size(),
            pages_bytes: stats.total,
            used: stats.used,
            allocated_blocks: stats.allocated_blocks,
            free: stats.free,
            free_blocks: stats.free_blocks,
            largest_free: stats.largest_free,
            smallest_free: stats.smallest_free,
            fragmentation_bytes: stats.fragmentation,
            fragmentation,
            slab_ends: stats.overhead,
            taken: stats.taken,
            not_checked: findings.as_ref().err().map(|error| place.explain(error.clone()).text().to_owned()),
            findings: findings.ok().map(|found| found.len()),
            created_ms: heap.created_ms(),
            unlinked: stats.unlinked,
            lanes_max: heap.lanes_max(),
            root_slots: heap.root_slots(),
            classes: classes.collect(),
            lanes: heap.lanes()?.iter().map(|lane| Lane::new(lane, &place.path())).collect(),
            roots: Root::all(heap)?,
            processes: processes::mapping(&place.path()),
        })
    }
}

impl fmt::Display for StatReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, what: &str, text: String| writeln!(f, "{what:<15} {text}");
        writeln!(f, "{}", styled(STRONG, &self.name))?;
        line(
            f,
            "capacity",
            format!("{} ({} bytes), pages of {}", size(self.capacity), self.capacity, size(self.page_size)),
        )?;
        let used = percent(self.used, self.pages_bytes);
        line(f, "used", format!("{} in {}, {used} of the pages", size(self.used), counted(self.allocated_blocks, "block")))?;
        let (largest, smallest) = (size(self.largest_free), size(self.smallest_free));
        let runs = counted(self.free_blocks, "run");
        let runs = format!("{} in {runs}, the largest {largest}, the smallest {smallest}", size(self.free));
        line(f, "free", runs)?;
        let fragmented = size(self.fragmentation_bytes);
        line(f, "fragmentation", format!("{:.1} % ({fragmented} outside the largest run)", self.fragmentation * 100.0))?;
        line(f, "memory taken", format!("{} ({} of the capacity)", size(self.taken), percent(self.taken, self.capacity)))?;
        line(f, "slab ends", size(self.slab_ends))?;
        line(f, "created", format!("{} ago", units::age(self.created_ms)))?;
        match self.findings {
            Some(0) => line(f, "state", styled(GOOD, "sound"))?,
            None => line(f, "state", styled(WARNING, self.not_checked.as_deref().unwrap_or("not checked")))?,
            Some(found) => {
                let found = styled(BAD, format_args!("damaged: {}", counted(found as u64, "finding")));
                line(f, "state", format!("{found}; shmheap validate {} lists them", self.name))?;
            }
        }
        if self.unlinked {
            writeln!(f, "{}", styled(WARNING, "its name was removed: nobody else can open it"))?;
        }
        self.write_classes(f)?;
        self.write_lanes(f)?;
        self.write_roots(f)?;
        match self.processes.as_slice() {
            [] => Ok(()),
            users => writeln!(f, "\nmapped by {}", processes::sentence(users)),
        }
    }
}

impl StatReport {
    fn write_classes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.classes.is_empty() {
            return Ok(());
        }
        let mut table = output::table(&[">BLOCK SIZE", ">SLABS", ">ORPHANS", ">BLOCKS", ">ALLOCATED", ">FULL"]);
        for class in &self.classes {
            let Class { block_size, slabs, orphans, blocks, allocated } = class;
            let full = percent(*allocated, *blocks);
            table.add_row([
                size(*block_size),
                slabs.to_string(),
                orphans.to_string(),
                blocks.to_string(),
                allocated.to_string(),
                full,
            ]);
        }
        write!(f, "\n{}", output::lines_of(&table))
    }

    fn write_lanes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lanes.is_empty() {
            return writeln!(f, "\nno lane is taken ({} there are)", self.lanes_max);
        }
        let mut table = output::table(&[">LANE", ">PID", ">THREAD", "STATE", ">FOR", ">SLABS", ">HOLDS", "COMMAND"]);
        for lane in &self.lanes {
            let style = match lane.state {
                "alive" => DIM,
                _ => BAD,
            };
            let lock = if lane.holds_lock { ", has the lock" } else { "" };
            table.add_row([
                lane.lane.to_string(),
                lane.pid.to_string(),
                lane.thread.to_string(),
                if lane.state == "alive" {
                    format!("alive{lock}")
                } else {
                    styled(style, format_args!("{}{lock}", lane.state))
                },
                units::age(lane.since_ms),
                lane.slabs.to_string(),
                size(lane.bytes_held),
                lane.command.clone().unwrap_or_default(),
            ]);
        }
        write!(f, "\n{}", output::lines_of(&table))
    }

    fn write_roots(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.roots.is_empty() {
            return writeln!(f, "\nno roots ({} slots)", self.root_slots);
        }
        let mut table = output::table(&["ROOT", ">OFFSET", ">SIZE", "STATE"]);
        for root in &self.roots {
            table.add_row(root.cells());
        }
        write!(f, "\n{}", output::lines_of(&table))
    }
}

impl Stat {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = &self.named.place;
        let heap = place.open_read_only()?;
        let report = StatReport::new(place, &heap).map_err(|error| place.explain(error))?;
        output.print(&report)?;
        Ok(if report.findings.is_none_or(|found| found == 0) { Verdict::Fine } else { Verdict::Wrong })
    }
}
