//! How much memory allocators take for what is asked of them. Each answer comes from a process of its own, which
//! begins with an allocator that has done nothing.
//!
//! Shared allocators know what they have taken: shmheap the bytes reserved for its segment, Boost.Interprocess the
//! part of its segment that is not free (its pages are taken when they are touched, and never given back). Of private
//! ones the process knows: its anonymous resident memory, less what it had before the first allocation. Every page of
//! every block is touched, since memory that nobody touches is not resident; what the harness needs is there before.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::allocators::{self, Allocator, Attached, Job, Kind, Place};
use crate::child::{self, Task};
use crate::results::{HeapState, SpaceRow};
use crate::single::{ChurnInput, Held, take_step};
use crate::trace::{Act, Trace, TraceName};
use crate::workload::Sizes;

/// Live blocks and steps of the churn.
const SLOTS: usize = 10_000;
const STEPS: usize = 400_000;
const PAGE: usize = 4096;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SpaceTask {
    kind: Kind,
    heap: String,
    /// The trace whose peak is looked at, or else the churn.
    trace: Option<TraceName>,
}

/// What a child has counted, in bytes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Space {
    taken: u64,
    live: u64,
    state: Option<HeapState>,
}

/// A row for each load, and what becomes of shmheap's memory (without what `fullness` finds out).
pub(crate) fn measure(kinds: &[Kind]) -> Result<(Vec<SpaceRow>, Option<HeapState>)> {
    let (mut rows, mut state) = (Vec::new(), None);
    let whats = std::iter::once(None).chain(TraceName::ALL.map(Some));
    for trace in whats {
        let what = trace.map_or(SpaceRow::CHURN.to_owned(), |trace| format!("trace-{}", trace.name()));
        let mut row = SpaceRow { what, live: 0, ratio: BTreeMap::new() };
        for kind in kinds.iter().copied().filter(|kind| !matches!(kind, Kind::Harness | Kind::RtsAlloc)) {
            let heap = Place::name(kind, "space");
            let answer = child::ask::<Space>(&Task::Space(SpaceTask { kind, heap: heap.clone(), trace }));
            allocators::remove(kind, &heap);
            let space = answer.with_context(|| format!("space of {}", kind.name()))?;
            row.live = space.live;
            row.ratio.insert(kind, space.taken as f64 / space.live as f64);
            state = state.or(space.state);
        }
        rows.push(row);
    }
    Ok((rows, state))
}

impl SpaceTask {
    /// The child's side.
    pub(crate) fn run(self) -> Result<Space> {
        let place = Place::New(self.heap.clone());
        match self.trace {
            None => self.churn(&place),
            Some(name) => self.peak(&place, &Trace::read(name)?),
        }
    }

    fn churn(&self, place: &Place) -> Result<Space> {
        let input = ChurnInput::draw(4, SLOTS, Sizes::Mixed, STEPS);
        let mut slots = vec![Held { block: u64::MAX, size: u32::MAX }; SLOTS];
        let before = anonymous_bytes()?;
        let allocator = self.kind.attach(place)?;
        allocator.run(Churn { input: &input, slots: &mut slots });
        let taken = taken(&allocator, before)?;
        let live = slots.iter().map(|slot| u64::from(slot.size)).sum();
        let state = match &allocator {
            Attached::Shmheap(shmheap) => Some(state_of(shmheap, &slots, taken)?),
            _ => None,
        };
        Ok(Space { taken, live, state })
    }

    /// Replays a trace until the most bytes are live.
    fn peak(&self, place: &Place, trace: &Trace) -> Result<Space> {
        let mut blocks = vec![u64::MAX; trace.ids];
        let before = anonymous_bytes()?;
        let allocator = self.kind.attach(place)?;
        allocator.run(ToPeak { trace, blocks: &mut blocks });
        Ok(Space { taken: taken(&allocator, before)?, live: trace.peak.bytes, state: None })
    }
}

/// Bytes that the allocator has taken.
fn taken(allocator: &Attached, before: u64) -> Result<u64> {
    Ok(match allocator.taken()? {
        Some(taken) => taken,
        None => anonymous_bytes()?.saturating_sub(before),
    })
}

/// What is left of shmheap's memory after the churn, and after everything was freed.
fn state_of(shmheap: &allocators::Shmheap, slots: &[Held], taken: u64) -> Result<HeapState> {
    let stats = shmheap.heap().stats()?;
    slots.iter().for_each(|slot| slot.free(shmheap));
    shmheap.heap().trim()?;
    Ok(HeapState {
        fragmentation: stats.fragmentation_ratio(),
        idle: 1.0 - stats.used as f64 / taken as f64,
        trimmed: shmheap.heap().stats()?.taken,
        unusable: 0.0,
    })
}

/// Writes a word of every page of a block.
fn touch_pages<A: Allocator>(allocator: &A, block: u64, size: usize) {
    let first = allocator.address(block);
    for at in (0..size).step_by(PAGE).chain(size.checked_sub(1)) {
        let byte = first.wrapping_add(at);
        // SAFETY: the byte lies in the block, which nobody else uses.
        unsafe { byte.write_volatile(1) };
    }
}

struct Churn<'a> {
    input: &'a ChurnInput,
    slots: &'a mut [Held],
}

impl Job for Churn<'_> {
    type Output = ();

    fn run<A: Allocator>(self, allocator: &A) {
        let obtain = |size: u32| {
            let held = Held { block: allocator.allocate(size as usize), size };
            touch_pages(allocator, held.block, size as usize);
            held
        };
        for (slot, size) in self.slots.iter_mut().zip(&self.input.first_sizes) {
            *slot = obtain(*size);
        }
        for step in &self.input.steps {
            let slot = &mut self.slots[step.slot as usize];
            slot.free(allocator);
            *slot = obtain(step.size);
        }
    }
}

struct ToPeak<'a> {
    trace: &'a Trace,
    blocks: &'a mut [u64],
}

impl Job for ToPeak<'_> {
    type Output = ();

    fn run<A: Allocator>(self, allocator: &A) {
        for step in &self.trace.steps[..self.trace.peak.steps] {
            take_step(allocator, self.blocks, step);
            if step.act != Act::Free {
                touch_pages(allocator, self.blocks[step.id as usize], step.size as usize);
            }
        }
    }
}

/// Anonymous resident memory of this process. /proc/self/statm would tell it too, but some kernels count lazily there.
fn anonymous_bytes() -> Result<u64> {
    // What glibc keeps of the harness's own memory would otherwise be handed out, and be counted as nothing.
    // SAFETY: trimming has no conditions.
    unsafe { libc::malloc_trim(0) };
    let path = "/proc/self/smaps_rollup";
    let mut text = [0; 4096];
    let read = File::open(path).and_then(|mut file| file.read(&mut text));
    let len = read.with_context(|| format!("cannot read {path}"))?;
    let text = String::from_utf8_lossy(&text[..len]);
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    let kilobytes = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes * 1024).ok_or_else(|| anyhow!("{path} tells no anonymous memory"))
}
