//! The worker: replays the whole trace in the heap that it finds by name.

use std::path::Path;
use std::time::Instant;

use nix::sys::signal::SigSet;
use shmheap::Heap;

use crate::Result;
use crate::board::{self, Count, Gate, Patience, Tally};
use crate::parcel::Parcel;
use crate::pattern::Pattern;
use crate::ring::Ring;
use crate::trace::{self, Record};

/// One free in so many is left to the next worker.
const HAND_OVER_EVERY: u64 = 10;
/// Records between two looks into the inbound ring.
const RECORDS_PER_TURN: usize = 256;

/// Replays `file` as worker `index` of the replay in heap `name`.
pub(crate) fn run(index: u32, name: &str, file: &Path) -> Result<()> {
    replay(index, name, file).map_err(|error| format!("worker {index}: {error}").into())
}

fn replay(index: u32, name: &str, file: &Path) -> Result<()> {
    // The parent blocks signals to clean up when one comes; a worker has nothing to clean up.
    SigSet::all().thread_unblock()?;
    let records = trace::read(file)?;
    let heap = Heap::open(name)?;
    let mut worker = Worker::new(&heap, index)?;
    worker.tally.add(Count::Records, records.len() as u64);

    Gate::find(&heap)?.pass()?;
    let start = Instant::now();
    for (turn, turn_records) in records.chunks(RECORDS_PER_TURN).enumerate() {
        for (number, record) in (turn * RECORDS_PER_TURN..).zip(turn_records) {
            worker.apply(*record).map_err(|error| format!("record {number} ({record:?}): {error}"))?;
        }
        worker.tally.add(Count::Replayed, turn_records.len() as u64);
        worker.free_inbound()?;
    }
    worker.finish()?;
    worker.tally.add(Count::Nanoseconds, start.elapsed().as_nanos() as u64);

    let survivors: Vec<Parcel> = worker.live.iter().flatten().copied().collect();
    board::leave_survivors(&heap, index, &survivors)
}

struct Worker<'heap> {
    heap: &'heap Heap,
    index: u32,
    pattern: Pattern,
    /// Blocks in use, by the trace's id.
    live: Vec<Option<Parcel>>,
    tally: Tally<'heap>,
    neighbours: Option<Neighbours<'heap>>,
    frees: u64,
}

/// The workers before and after this one, in a circle. One that works alone has none.
struct Neighbours<'heap> {
    previous: u32,
    previous_tally: Tally<'heap>,
    inbound: Ring<'heap>,
    outbound: Ring<'heap>,
}

impl<'heap> Worker<'heap> {
    fn new(heap: &'heap Heap, index: u32) -> Result<Self> {
        Ok(Self {
            heap,
            index,
            pattern: Pattern::default(),
            live: Vec::new(),
            tally: Tally::find(heap, index)?,
            neighbours: Neighbours::find(heap, index)?,
            frees: 0,
        })
    }

    fn apply(&mut self, record: Record) -> Result<()> {
        match record {
            Record::Allocate { id, size, alignment } => self.allocate(id, size, alignment),
            Record::Reallocate { id, size } => self.reallocate(id, size),
            Record::Free { id } => self.free(id),
        }
    }

    fn allocate(&mut self, id: u32, size: u32, alignment: usize) -> Result<()> {
        let block = match alignment {
            trace::ALIGNMENT_DEFAULT => self.heap.allocate(size as usize)?,
            _ => self.heap.allocate_aligned(size as usize, alignment)?,
        };
        if !block.get().is_multiple_of(alignment as u64) {
            return Err(format!("block {block} is not aligned to {alignment}").into());
        }
        let parcel = Parcel { block, id, size };
        self.pattern.fill(self.heap, self.index, parcel)?;
        match self.live(id).replace(parcel) {
            None => Ok(()),
            Some(_) => Err("the trace allocates what it has not freed yet".into()),
        }
    }

    fn reallocate(&mut self, id: u32, size: u32) -> Result<()> {
        let Some(old) = self.live(id).take() else { return self.allocate(id, size, trace::ALIGNMENT_DEFAULT) };
        self.pattern.check(self.heap, self.index, old)?;
        let block = self.heap.reallocate(old.block, size as usize)?;
        self.pattern.check(self.heap, self.index, Parcel { block, id, size: size.min(old.size) })?;
        let parcel = Parcel { block, id, size };
        self.pattern.fill(self.heap, self.index, parcel)?;
        *self.live(id) = Some(parcel);
        Ok(())
    }

    fn free(&mut self, id: u32) -> Result<()> {
        let Some(parcel) = self.live(id).take() else {
            self.tally.add(Count::Unknown, 1);
            return Ok(());
        };
        self.frees += 1;
        if let Some(neighbours) = &self.neighbours
            && self.frees.is_multiple_of(HAND_OVER_EVERY)
        {
            if neighbours.outbound.put(parcel) {
                self.tally.add(Count::HandedOver, 1);
                return Ok(());
            }
            // Waiting for room could go round the circle and never end.
            self.tally.add(Count::RingFull, 1);
        }
        self.check_and_free(self.index, parcel)
    }

    fn check_and_free(&mut self, allocated_by: u32, parcel: Parcel) -> Result<()> {
        self.pattern.check(self.heap, allocated_by, parcel)?;
        Ok(self.heap.deallocate(parcel.block)?)
    }

    /// Frees what the previous worker has left here so far.
    fn free_inbound(&mut self) -> Result<()> {
        while let Some(neighbours) = &self.neighbours
            && let Some(parcel) = neighbours.inbound.take()?
        {
            let previous = neighbours.previous;
            self.check_and_free(previous, parcel)
                .map_err(|error| format!("free left here by worker {previous} ({parcel:?}): {error}"))?;
        }
        Ok(())
    }

    /// Tells the next worker that nothing more comes, and frees what the previous one leaves until it says the same.
    fn finish(&mut self) -> Result<()> {
        self.tally.add(Count::Finished, 1);

        let mut patience = Patience::new();
        while let Some(Neighbours { previous_tally, .. }) = &self.neighbours
            && previous_tally.get(Count::Finished) == 0
        {
            patience.wait("the previous worker", previous_tally.get(Count::Replayed))?;
            self.free_inbound()?;
        }
        self.free_inbound()
    }

    fn live(&mut self, id: u32) -> &mut Option<Parcel> {
        let index = id as usize;
        if index >= self.live.len() {
            self.live.resize(index + 1, None);
        }
        &mut self.live[index]
    }
}

impl<'heap> Neighbours<'heap> {
    fn find(heap: &'heap Heap, index: u32) -> Result<Option<Self>> {
        let processes = Gate::find(heap)?.processes();
        if processes == 1 {
            return Ok(None);
        }
        let (previous, next) = ((index + processes - 1) % processes, (index + 1) % processes);
        Ok(Some(Self {
            previous,
            previous_tally: Tally::find(heap, previous)?,
            inbound: Ring::find(heap, index)?,
            outbound: Ring::find(heap, next)?,
        }))
    }
}
