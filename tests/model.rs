//! Random operations on a heap against a plain map that says what the heap must answer.
//!
//! | noun | |
//! |---|---|
//! | plan | which blocks there would be if every operation succeeded: it decides which steps can come next |
//! | step | one operation, done by one of three kinds of threads |
//! | rig | a heap with its handles and threads, and the map: every allocated block by its offset |
//!
//! After each step the heap's blocks, statistics, roots and cells are compared with the map, and `validate` looks at
//! everything else. At the end all is freed, and the heap must be one free block again, that can be allocated as such.
//!
//! `PROPTEST_CASES=10000 cargo test --release --test model` looks longer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use shmheap::{BlockInfo, Error, Heap, Memory, Offset, OffsetFault, Options, Result};

/// Names of roots that steps use: so many that some of them meet in a table of 16.
const NAMES: [&str; 12] =
    ["orders", "prices", "größe", "x", "a", "b", "c", "d", "index", "log", "old", "a root with a long name"];
/// Cells in the block that is allocated before the first step.
const CELLS: u8 = 6;
/// Handles that are open at the same time, at most.
const HANDLES_MAX: usize = 3;
/// Blocks up to this size are filled and compared whole, larger ones at both ends.
const WHOLE_MAX: usize = 8192;

/// A block's number in the plan.
type Id = u32;

/// Where the heap's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backing {
    Memory,
    Segment,
    File,
}

/// What is chosen before the first step.
#[derive(Debug, Clone)]
struct Setup {
    backing: Backing,
    capacity: u64,
    /// Fewer lanes than threads, now and then: the shared lane has to do.
    lanes: Option<u32>,
    /// One thread and one handle do everything: then nothing is kept back when memory runs short.
    alone: bool,
    /// Blocks are mostly large: then memory runs short, and pages come in pieces of all lengths.
    large: bool,
}

/// Which thread does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// The one that runs the test.
    Main,
    /// One that lives on, so that blocks of its slabs are freed from afar.
    Worker,
    /// One that ends at once, and leaves orphans.
    Passing,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Plain,
    Aligned(usize),
    Zeroed,
}

#[derive(Debug, Clone)]
enum Step {
    Allocate { id: Id, size: usize, how: How, by: By },
    Deallocate { id: Id, by: By },
    Reallocate { id: Id, size: usize, by: By },
    Rewrite { id: Id },
    SetRoot { name: usize, id: Id },
    InsertRoot { name: usize, id: Id },
    RemoveRoot { name: usize },
    Construct { id: Id, name: usize, size: usize, by: By, fail: bool },
    AllocateInto { id: Id, cell: u8, size: usize, by: By },
    FreeFrom { cell: u8, by: By },
    FreeAgain { id: Id },
    FreeInside { id: Id, distance: usize },
    FreeAnywhere { offset: u64 },
    Misuse,
    Trim,
    Recover,
    EndWorker,
    OpenAnother,
    CloseOne,
    Reopen,
}

#[derive(Debug, Clone)]
struct Plan {
    setup: Setup,
    next: Id,
    /// Blocks that nothing in the heap leads to, or only roots.
    loose: BTreeSet<Id>,
    /// Blocks that cells hold.
    held: BTreeMap<u8, Id>,
    freed: BTreeSet<Id>,
}

struct Machine;

fn sizes(setup: &Setup) -> BoxedStrategy<usize> {
    let capacity = usize::try_from(setup.capacity).expect("capacities of tests fit");
    let weight = if setup.large { 20 } else { 1 };
    prop_oneof![
        6 => 1..=256usize,
        // The same again and again, so that slabs get full.
        6 => select(vec![48, 700, 1000]),
        3 => 257..=4096usize,
        3 => 4097..=40_000usize,
        weight => 1..=capacity / 4,
    ]
    .boxed()
}

fn threads(setup: &Setup) -> BoxedStrategy<By> {
    if setup.alone {
        return Just(By::Main).boxed();
    }
    prop_oneof![3 => Just(By::Main), 2 => Just(By::Worker), 1 => Just(By::Passing)].boxed()
}

impl ReferenceStateMachine for Machine {
    type State = Plan;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Plan> {
        let backing = prop_oneof![6 => Just(Backing::Memory), 1 => Just(Backing::Segment), 1 => Just(Backing::File)];
        let capacity = select(vec![64 << 10, 256 << 10, 1 << 20, 16 << 20, 64 << 20]);
        let lanes = prop_oneof![3 => Just(None), 1 => (1..=3u32).prop_map(Some)];
        (backing, capacity, lanes, prop::bool::weighted(0.4), prop::bool::weighted(0.4))
            .prop_map(|(backing, capacity, lanes, alone, large)| Plan {
                setup: Setup { backing, capacity, lanes, alone, large },
                next: 0,
                loose: BTreeSet::new(),
                held: BTreeMap::new(),
                freed: BTreeSet::new(),
            })
            .boxed()
    }

    fn transitions(plan: &Plan) -> BoxedStrategy<Step> {
        let (id, capacity) = (plan.next, plan.setup.capacity);
        let (sizes, threads) = (|| sizes(&plan.setup), || threads(&plan.setup));
        let name = 0..NAMES.len();
        let aligned = (3..=12u32).prop_map(|shift| How::Aligned(1 << shift));
        let how = prop_oneof![4 => Just(How::Plain), 2 => aligned, 2 => Just(How::Zeroed)];
        let allocate = (sizes(), how, threads()).prop_map(move |(size, how, by)| Step::Allocate { id, size, how, by });
        let construct = (name.clone(), sizes(), threads(), prop::bool::weighted(0.2))
            .prop_map(move |(name, size, by, fail)| Step::Construct { id, name, size, by, fail });
        let allocate_into =
            (0..CELLS, sizes(), threads()).prop_map(move |(cell, size, by)| Step::AllocateInto { id, cell, size, by });
        let mut steps = vec![
            (24, allocate.boxed()),
            (3, construct.boxed()),
            (4, allocate_into.boxed()),
            (3, (0..CELLS, threads()).prop_map(|(cell, by)| Step::FreeFrom { cell, by }).boxed()),
            (4, name.clone().prop_map(|name| Step::RemoveRoot { name }).boxed()),
            (2, (0..capacity * 2).prop_map(|offset| Step::FreeAnywhere { offset }).boxed()),
            (1, select(vec![Step::Misuse, Step::Trim, Step::Recover]).boxed()),
            (1, Just(Step::Reopen).boxed()),
        ];
        if !plan.setup.alone {
            let coming_and_going = vec![Step::EndWorker, Step::OpenAnother, Step::OpenAnother, Step::CloseOne];
            steps.push((5, select(coming_and_going).boxed()));
        }
        if !plan.loose.is_empty() {
            let loose = select(plan.loose.iter().copied().collect::<Vec<_>>());
            let reallocate = (loose.clone(), sizes(), threads());
            steps.extend([
                (14, (loose.clone(), threads()).prop_map(|(id, by)| Step::Deallocate { id, by }).boxed()),
                (8, reallocate.prop_map(|(id, size, by)| Step::Reallocate { id, size, by }).boxed()),
                (3, loose.clone().prop_map(|id| Step::Rewrite { id }).boxed()),
                (3, (name.clone(), loose.clone()).prop_map(|(name, id)| Step::SetRoot { name, id }).boxed()),
                (3, (name, loose.clone()).prop_map(|(name, id)| Step::InsertRoot { name, id }).boxed()),
                (2, (loose, 1..5000usize).prop_map(|(id, distance)| Step::FreeInside { id, distance }).boxed()),
            ]);
        }
        if !plan.freed.is_empty() {
            let freed = select(plan.freed.iter().copied().collect::<Vec<_>>());
            steps.push((3, freed.prop_map(|id| Step::FreeAgain { id }).boxed()));
        }
        prop::strategy::Union::new_weighted(steps).boxed()
    }

    fn preconditions(plan: &Plan, step: &Step) -> bool {
        // A case that failed is tried again with a smaller heap.
        let size_max = (plan.setup.capacity / 4).max(40_000);
        let size = match step {
            Step::Allocate { size, .. } | Step::Reallocate { size, .. } => *size,
            Step::Construct { size, .. } | Step::AllocateInto { size, .. } => *size,
            _ => 0,
        };
        if size as u64 > size_max {
            return false;
        }
        match step {
            Step::Allocate { id, .. } | Step::Construct { id, .. } | Step::AllocateInto { id, .. } => *id >= plan.next,
            Step::Deallocate { id, .. }
            | Step::Reallocate { id, .. }
            | Step::Rewrite { id }
            | Step::SetRoot { id, .. }
            | Step::InsertRoot { id, .. }
            | Step::FreeInside { id, .. } => plan.loose.contains(id),
            Step::FreeAgain { id } => plan.freed.contains(id),
            _ => true,
        }
    }

    fn apply(mut plan: Plan, step: &Step) -> Plan {
        match step {
            Step::Allocate { id, .. } | Step::Construct { id, fail: false, .. } => {
                plan.loose.insert(*id);
                plan.next = id + 1;
            }
            Step::AllocateInto { id, cell, .. } => {
                plan.held.entry(*cell).or_insert(*id);
                plan.next = id + 1;
            }
            Step::Deallocate { id, .. } => {
                plan.loose.remove(id);
                plan.freed.insert(*id);
            }
            Step::FreeFrom { cell, .. } => plan.freed.extend(plan.held.remove(cell)),
            _ => {}
        }
        plan
    }
}

/// What the map says of a block.
#[derive(Debug, Clone, Copy)]
struct Block {
    usable: usize,
    /// What its bytes were made from.
    seed: u64,
}

type Job = Box<dyn FnOnce(&Heap) + Send>;

/// A thread that does what it is sent, until the sender is dropped.
struct Worker {
    jobs: mpsc::Sender<Job>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn start(heap: Heap) -> Self {
        let (jobs, received) = mpsc::channel::<Job>();
        let thread = thread::spawn(move || received.iter().for_each(|job| job(&heap)));
        Self { jobs, thread }
    }

    fn end(self) {
        drop(self.jobs);
        self.thread.join().expect("the worker's jobs do not panic");
    }
}

/// Where the heap is kept when nobody has it open.
enum Home {
    Memory(Memory),
    Segment(String),
    File(tempfile::TempPath),
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Self::Segment(name) = self {
            // It is gone already, unless an assertion has failed.
            let _ = Heap::unlink(name);
        }
    }
}

struct Rig {
    alone: bool,
    handles: Vec<Heap>,
    worker: Option<Worker>,
    home: Home,
    /// The map: every allocated block, by its offset.
    blocks: BTreeMap<u64, Block>,
    /// Where the plan's blocks are, those that exist.
    places: BTreeMap<Id, u64>,
    /// Where they were when they were freed.
    former: BTreeMap<Id, u64>,
    roots: BTreeMap<usize, u64>,
    cells: BTreeMap<u8, u64>,
    /// The block with the cells.
    desk: u64,
    /// Counts steps: each goes through the next handle, and fills blocks with other bytes.
    turn: u64,
}

fn offset(bytes: u64) -> Offset {
    Offset::new(bytes).expect("no block starts at zero")
}

/// The bytes [from, to) of a block that was filled from `seed`.
fn pattern(seed: u64, from: usize, to: usize) -> Vec<u8> {
    let word =
        |index: usize| (seed.wrapping_add(index as u64)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23).to_le_bytes();
    (from..to).map(|at| word(at / 8)[at % 8]).collect()
}

/// The size of the class for `size` bytes: steps of 16 up to 128, then four for each doubling.
fn class_size(size: usize) -> u64 {
    let size = size as u64;
    if size <= 128 { size.next_multiple_of(16) } else { size.next_multiple_of(1 << ((size - 1).ilog2() - 2)) }
}

/// The parts of a block of `len` bytes that are filled and compared.
fn parts(len: usize) -> Vec<(usize, usize)> {
    if len <= WHOLE_MAX { vec![(0, len)] } else { vec![(0, WHOLE_MAX / 2), (len - WHOLE_MAX / 2, len)] }
}

impl Rig {
    fn new(setup: &Setup) -> Self {
        let options = |options: Options| match setup.lanes {
            Some(lanes) => options.lanes(lanes),
            None => options,
        };
        let new = options(Heap::options().capacity(setup.capacity));
        let (home, heap) = match setup.backing {
            Backing::Memory => {
                let len = usize::try_from(setup.capacity).expect("capacities of tests fit");
                let memory = Memory::zeroed(len).expect("there is memory");
                (Home::Memory(memory.clone()), new.create_in(memory))
            }
            Backing::Segment => {
                static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
                let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let name = format!("shmheap-test-model-{}-{count}", std::process::id());
                let heap = new.create(&name);
                (Home::Segment(name), heap)
            }
            Backing::File => {
                let path =
                    tempfile::NamedTempFile::new().expect("there is a directory for temporary files").into_temp_path();
                std::fs::remove_file(&path).expect("the file was just made");
                let heap = new.create_file(&path);
                (Home::File(path), heap)
            }
        };
        let mut rig = Self {
            alone: setup.alone,
            handles: vec![heap.expect("a heap is created")],
            worker: None,
            home,
            blocks: BTreeMap::new(),
            places: BTreeMap::new(),
            former: BTreeMap::new(),
            roots: BTreeMap::new(),
            cells: BTreeMap::new(),
            desk: 0,
            turn: 0,
        };
        let desk = rig.heap().allocate_zeroed(usize::from(CELLS) * 8).expect("an empty heap has room");
        rig.desk = desk.get();
        rig.note(desk, usize::from(CELLS) * 8);
        rig
    }

    fn heap(&self) -> &Heap {
        let count = u64::try_from(self.handles.len()).expect("few");
        &self.handles[usize::try_from(self.turn % count).expect("few")]
    }

    fn open(&self) -> Heap {
        match &self.home {
            Home::Memory(memory) => Heap::options().open_in(memory.clone()),
            Home::Segment(name) => Heap::open(name),
            Home::File(path) => Heap::options().open_file(path),
        }
        .expect("the heap is opened")
    }

    /// Has `job` done by a thread of this kind.
    fn by<R: Send + 'static>(&mut self, by: By, job: impl FnOnce(&Heap) -> R + Send + 'static) -> R {
        let heap = self.heap().clone();
        match by {
            By::Main => job(&heap),
            // `join` returns when the thread is gone, its thread-locals included: its lane has been left.
            By::Passing => thread::spawn(move || job(&heap)).join().expect("the job does not panic"),
            By::Worker => {
                let worker = self.worker.get_or_insert_with(|| Worker::start(heap));
                let (result, received) = mpsc::channel();
                let sent = worker.jobs.send(Box::new(move |heap| _ = result.send(job(heap))));
                sent.expect("the worker waits for jobs");
                received.recv().expect("the job does not panic")
            }
        }
    }

    fn cell(&self, cell: u8) -> Offset {
        offset(self.desk + u64::from(cell) * 8)
    }

    /// The allocated block in whose bytes this offset lies.
    fn block_around(&self, at: u64) -> Option<u64> {
        let (start, block) = self.blocks.range(..=at).next_back()?;
        (at - start < block.usable as u64).then_some(*start)
    }

    /// Enters a new block into the map; checks that it was free, large enough and within the heap.
    fn note(&mut self, block: Offset, size: usize) {
        let at = block.get();
        let usable = self.heap().usable_size(block).expect("it was just allocated");
        assert!(usable >= size, "{size} bytes asked for, {usable} got");
        let inside = at >= 4096 && at + usable as u64 <= self.heap().capacity();
        assert!(inside, "the block at {at:#x} lies outside the data");
        assert!(at.is_multiple_of(16), "blocks are aligned to 16");
        assert_eq!(self.block_around(at), None, "a block starts inside another");
        if let Some((next, _)) = self.blocks.range(at..).next() {
            assert!(at + usable as u64 <= *next, "a block ends inside another");
        }
        self.blocks.insert(at, Block { usable, seed: 0 });
    }

    /// Writes other bytes into a block.
    fn fill(&mut self, at: u64) {
        self.turn += 1;
        let seed = self.turn << 32 | at;
        let block = self.blocks.get_mut(&at).expect("it is in the map");
        block.seed = seed;
        for (from, to) in parts(block.usable) {
            let bytes = pattern(seed, from, to);
            self.heap().copy_in_at(offset(at), from, &bytes).expect("the block is allocated");
        }
    }

    /// Compares the first `len` of a block's bytes with those that were written.
    fn compare(&self, at: u64, written: Block, len: usize) {
        for (from, to) in parts(written.usable) {
            let to = to.min(len);
            if from < to {
                let mut found = vec![0; to - from];
                self.heap().copy_out_at(offset(at), from, &mut found).expect("the block is allocated");
                assert_eq!(found, pattern(written.seed, from, to), "bytes {from}..{to} of the block at {at:#x}");
            }
        }
    }

    fn compare_whole(&self, at: u64) {
        if at != self.desk {
            self.compare(at, self.blocks[&at], self.blocks[&at].usable);
        }
    }

    /// Takes a block that is about to be freed out of the map.
    fn forget(&mut self, id: Id, at: u64) {
        self.compare_whole(at);
        self.blocks.remove(&at);
        self.places.remove(&id);
        self.former.insert(id, at);
    }

    /// Bytes in pages that are surely free and in a row, somewhere: between two neighbouring blocks, less what their
    /// slabs may reach.
    fn surely_free(&self) -> u64 {
        let heap = self.heap();
        let slab_min = (heap.capacity() >> 12).clamp(4096, 16 << 10);
        let reach = |block: &BlockInfo| if block.large { 0 } else { 2 * slab_min.max(8 * block.size) };
        let data_start =
            (0..).map(|page| page * 4096).find(|at| Offset::new(*at).is_some_and(|at| heap.resolve(at).is_ok()));
        let data_start = data_start.expect("a heap has pages");
        let (mut longest, mut free_from) = (0, data_start);
        for block in heap.blocks() {
            let at = block.offset.get();
            longest = longest.max(at.saturating_sub(reach(&block)).saturating_sub(free_from));
            free_from = at + block.size + reach(&block);
        }
        longest = longest.max((data_start + heap.total_size()).saturating_sub(free_from));
        longest / 4096 * 4096
    }

    /// The block of a request that succeeded; `None` if it failed for want of room, and that can be.
    fn granted(&self, size: usize, alignment: usize, outcome: Result<Offset>) -> Option<Offset> {
        let (requested, largest_free, free) = match outcome {
            Ok(block) => return Some(block),
            Err(Error::OutOfMemory { requested, largest_free, free, .. }) => (requested, largest_free, free),
            Err(error) => panic!("{size} bytes: {error}"),
        };
        assert!(requested >= size as u64, "{size} bytes asked for, {requested} refused");
        assert!(largest_free < requested, "{requested} bytes refused, {largest_free} free in a row");
        assert!(largest_free <= free && free <= self.heap().free_size().expect("the heap is sound"));
        // Threads that are idle keep their slabs, also empty ones, until they next ask for one. Who is alone has all.
        if self.alone {
            let surely_free = self.surely_free();
            assert!(surely_free <= largest_free, "{surely_free} bytes are free in a row, not {largest_free}");
            let stats = self.heap().stats().expect("the heap is sound");
            let class = stats.classes.iter().find(|class| class.size == class_size(size) && alignment <= 16);
            assert!(class.is_none_or(|class| class.allocated == class.blocks), "{size} bytes refused: {stats}");
        }
        None
    }

    fn allocate(&mut self, id: Id, size: usize, how: How, by: By) {
        let alignment = if let How::Aligned(alignment) = how { alignment } else { 16 };
        let outcome = self.by(by, move |heap| match how {
            How::Plain => heap.allocate(size),
            How::Aligned(alignment) => heap.allocate_aligned(size, alignment),
            How::Zeroed => heap.allocate_zeroed(size),
        });
        let Some(block) = self.granted(size, alignment, outcome) else { return };
        assert!(block.get().is_multiple_of(alignment as u64), "{block} is not aligned to {alignment}");
        self.note(block, size);
        if let How::Zeroed = how {
            self.expect_zeroes(block);
        }
        self.places.insert(id, block.get());
        self.fill(block.get());
    }

    fn expect_zeroes(&self, block: Offset) {
        let mut found = vec![1; self.blocks[&block.get()].usable];
        self.heap().copy_out(block, &mut found).expect("the block is allocated");
        assert!(found.iter().all(|byte| *byte == 0), "the block at {block} is not all zero");
    }

    fn reallocate(&mut self, id: Id, size: usize, by: By) {
        let Some(&at) = self.places.get(&id) else { return };
        let old = self.blocks[&at];
        let outcome = self.by(by, move |heap| heap.reallocate(offset(at), size));
        let Some(block) = self.granted(size, 16, outcome) else {
            self.compare_whole(at);
            return;
        };
        self.blocks.remove(&at);
        self.note(block, size);
        self.compare(block.get(), old, old.usable.min(size));
        self.places.insert(id, block.get());
        self.fill(block.get());
    }

    fn set_root(&mut self, name: usize, id: Id, insert: bool) {
        let Some(&at) = self.places.get(&id) else { return };
        let text = NAMES[name];
        if insert {
            let outcome = self.heap().insert_root(text, offset(at));
            if self.roots.contains_key(&name) {
                assert_eq!(outcome, Err(Error::RootExists { name: text.to_owned() }));
                return;
            }
            assert_eq!(outcome, Ok(()));
        } else {
            let before = self.roots.get(&name).filter(|before| self.blocks.contains_key(before));
            assert_eq!(self.heap().set_root(text, offset(at)), Ok(before.map(|before| offset(*before))));
        }
        self.roots.insert(name, at);
    }

    fn remove_root(&mut self, name: usize) {
        let expected = match self.roots.remove(&name) {
            Some(at) => Ok(offset(at)),
            None => Err(Error::RootUnknown { name: NAMES[name].to_owned() }),
        };
        assert_eq!(self.heap().remove_root(NAMES[name]), expected);
    }

    fn construct(&mut self, id: Id, name: usize, size: usize, by: By, fail: bool) {
        let failed = || Error::System { call: "a constructor", errno: 5 };
        let outcome = self.by(by, move |heap| {
            let mut zeroed = None;
            let outcome = heap.find_or_construct(NAMES[name], size, |block| {
                let mut found = vec![1; heap.usable_size(block)?.min(1 << 20)];
                heap.copy_out(block, &mut found)?;
                zeroed = Some(found.iter().all(|byte| *byte == 0));
                if fail { Err(failed()) } else { Ok(()) }
            });
            (outcome, zeroed)
        });
        let (outcome, zeroed) = outcome;
        assert_ne!(zeroed, Some(false), "the constructor's block is not all zero");
        if let Some(at) = self.roots.get(&name).filter(|at| self.blocks.contains_key(at)) {
            assert_eq!((outcome, zeroed), (Ok(offset(*at)), None), "an object that is there is found");
            return;
        }
        // A root whose block was freed has made room for the new one, whatever became of that.
        self.roots.remove(&name);
        if fail && zeroed.is_some() {
            assert_eq!(outcome, Err(failed()));
            return;
        }
        let Some(block) = self.granted(size, 16, outcome) else { return };
        assert!(zeroed.is_some(), "there was nothing to find");
        self.note(block, size);
        self.roots.insert(name, block.get());
        self.places.insert(id, block.get());
        self.fill(block.get());
    }

    fn allocate_into(&mut self, id: Id, cell: u8, size: usize, by: By) {
        let place = self.cell(cell);
        let outcome = self.by(by, move |heap| heap.allocate_into(place, size));
        if let Some(holds) = self.cells.get(&cell) {
            assert_eq!(outcome, Err(Error::CellOccupied { cell: place.get(), holds: *holds }));
            return;
        }
        let Some(block) = self.granted(size, 16, outcome) else { return };
        self.note(block, size);
        self.cells.insert(cell, block.get());
        self.places.insert(id, block.get());
        self.fill(block.get());
    }

    fn free_from(&mut self, cell: u8, by: By) {
        let place = self.cell(cell);
        let held = self.cells.remove(&cell);
        if let Some(at) = held {
            let id = self.places.iter().find(|(_, place)| **place == at).map(|(id, _)| *id);
            self.forget(id.expect("cells hold blocks of the plan"), at);
        }
        let outcome = self.by(by, move |heap| heap.free_from(place));
        assert_eq!(outcome, if held.is_some() { Ok(()) } else { Err(Error::CellEmpty { cell: place.get() }) });
    }

    /// An offset at which no block starts is refused by every call, and nothing changes.
    fn refuse(&mut self, at: u64) {
        let Some(wrong) = Offset::new(at).filter(|_| !self.blocks.contains_key(&at)) else { return };
        let around = self.block_around(at);
        let heap = self.heap();
        let data_end = heap.capacity();
        let outcomes = [
            heap.deallocate(wrong),
            heap.usable_size(wrong).map(|_| ()),
            heap.info(wrong).map(|_| ()),
            heap.reallocate(wrong, 100).map(|_| ()),
            heap.copy_in(wrong, &[1]),
            heap.copy_out(wrong, &mut [0]),
            heap.set_root("wrong", wrong).map(|_| ()),
        ];
        for outcome in outcomes {
            let fault = match outcome {
                Err(Error::InvalidOffset { offset, fault }) if offset == at => Some(fault),
                Err(Error::DoubleFree { offset }) if offset == at => None,
                other => panic!("{wrong} is no block, but: {other:?}"),
            };
            match around {
                Some(start) => assert_eq!(fault, Some(OffsetFault::InsideBlock(start)), "{wrong}"),
                None if at < 4096 || at >= data_end => assert_eq!(fault, Some(OffsetFault::Outside), "{wrong}"),
                None => assert!(!matches!(fault, Some(OffsetFault::InsideBlock(_))), "{wrong} lies in no block: {fault:?}"),
            }
        }
    }

    fn misuse(&self) {
        let (heap, desk) = (self.heap(), offset(self.desk));
        let max = heap.total_size();
        assert_eq!(heap.allocate(0), Err(Error::ZeroSize));
        assert_eq!(heap.reallocate(desk, 0), Err(Error::ZeroSize));
        for alignment in [0, 1, 2, 4, 24, 8192] {
            assert_eq!(heap.allocate_aligned(8, alignment), Err(Error::BadAlignment { alignment: alignment as u64 }));
        }
        for requested in [max + 1, u64::MAX] {
            let size = usize::try_from(requested).expect("64-bit");
            assert_eq!(heap.allocate(size), Err(Error::TooLarge { requested, max }));
            assert_eq!(heap.reallocate(desk, size), Err(Error::TooLarge { requested, max }));
            assert_eq!(heap.allocate_into(self.cell(0), size), Err(Error::TooLarge { requested, max }));
        }
        let usable = heap.usable_size(desk).expect("the desk is allocated");
        for (at, len) in [(usable, 1), (0, usable + 1), (usize::MAX, 2)] {
            let error = Error::OutOfBounds { offset: self.desk, at: at as u64, len: len as u64, usable: usable as u64 };
            assert_eq!(heap.copy_in_at(desk, at, &vec![0; len]), Err(error.clone()));
            assert_eq!(heap.copy_out_at(desk, at, &mut vec![0; len]), Err(error));
        }
        for cell in [self.desk + 4, self.desk + usable as u64, 64, heap.capacity()] {
            if cell % 8 != 0 || self.block_around(cell).is_none() {
                assert_eq!(heap.allocate_into(offset(cell), 8), Err(Error::BadCell { cell }));
                assert_eq!(heap.free_from(offset(cell)), Err(Error::BadCell { cell }));
                assert_eq!(heap.load_cell(offset(cell)), Err(Error::BadCell { cell }));
            }
        }
        for name in ["", "a\nb", &"n".repeat(64)] {
            assert!(matches!(heap.set_root(name, desk), Err(Error::BadName { .. })), "{name:?}");
            assert!(matches!(heap.root(name), Err(Error::BadName { .. })), "{name:?}");
        }
    }

    fn end_worker(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.end();
        }
    }

    fn step(&mut self, step: Step) {
        self.turn += 1;
        match step {
            Step::Allocate { id, size, how, by } => self.allocate(id, size, how, by),
            Step::Deallocate { id, by } => {
                if let Some(&at) = self.places.get(&id) {
                    self.forget(id, at);
                    assert_eq!(self.by(by, move |heap| heap.deallocate(offset(at))), Ok(()));
                }
            }
            Step::Reallocate { id, size, by } => self.reallocate(id, size, by),
            Step::Rewrite { id } => {
                if let Some(&at) = self.places.get(&id) {
                    self.compare_whole(at);
                    self.fill(at);
                }
            }
            Step::SetRoot { name, id } => self.set_root(name, id, false),
            Step::InsertRoot { name, id } => self.set_root(name, id, true),
            Step::RemoveRoot { name } => self.remove_root(name),
            Step::Construct { id, name, size, by, fail } => self.construct(id, name, size, by, fail),
            Step::AllocateInto { id, cell, size, by } => self.allocate_into(id, cell, size, by),
            Step::FreeFrom { cell, by } => self.free_from(cell, by),
            Step::FreeAgain { id } => {
                if let Some(&at) = self.former.get(&id) {
                    self.refuse(at);
                }
            }
            Step::FreeInside { id, distance } => {
                if let Some(&at) = self.places.get(&id) {
                    let usable = self.blocks[&at].usable;
                    self.refuse(at + (distance % usable.max(2)).max(1) as u64);
                }
            }
            Step::FreeAnywhere { offset } => self.refuse(offset),
            Step::Misuse => self.misuse(),
            Step::Trim => _ = self.heap().trim().expect("the heap is sound"),
            Step::Recover => assert_eq!(self.heap().recover(), Ok(0), "nobody has died"),
            Step::EndWorker => self.end_worker(),
            Step::OpenAnother => {
                if self.handles.len() < HANDLES_MAX {
                    self.handles.push(self.open());
                }
            }
            Step::CloseOne => {
                if self.handles.len() > 1 {
                    self.handles.remove(0);
                }
            }
            Step::Reopen => {
                self.end_worker();
                self.handles.clear();
                self.handles.push(self.open());
                assert_eq!(self.heap().lanes(), Ok(Vec::new()), "who detaches leaves no lane behind");
            }
        }
    }

    /// Compares everything that the heap tells with the map.
    fn check(&self) {
        let heap = self.heap();
        let found: Vec<(u64, usize)> = heap.blocks().map(|block| (block.offset.get(), block.size as usize)).collect();
        let expected: Vec<(u64, usize)> = self.blocks.iter().map(|(at, block)| (*at, block.usable)).collect();
        assert_eq!(found, expected, "the heap's blocks are not those of the map");
        for block in heap.blocks() {
            assert_eq!(heap.info(block.offset), Ok(block));
        }
        let stats = heap.stats().expect("the heap is sound");
        let used: usize = self.blocks.values().map(|block| block.usable).sum();
        assert_eq!((stats.used, stats.allocated_blocks), (used as u64, self.blocks.len() as u64));
        assert_eq!(stats.total, stats.used + stats.free + stats.overhead, "{stats}");
        assert_eq!((stats.total, stats.capacity), (heap.total_size(), heap.capacity()));
        assert_eq!(stats.fragmentation, stats.free - stats.largest_free, "{stats}");
        assert!(stats.smallest_free <= stats.largest_free && stats.largest_free <= stats.free, "{stats}");
        assert_eq!(stats.lanes_dead, 0, "nobody has died");
        let small: u64 = stats.classes.iter().map(|class| class.allocated).sum();
        assert_eq!(small, heap.blocks().filter(|block| !block.large).count() as u64, "{stats}");
        for (name, text) in NAMES.iter().enumerate() {
            let expected = self.roots.get(&name).filter(|at| self.blocks.contains_key(at));
            assert_eq!(heap.root(text), Ok(expected.map(|at| offset(*at))), "root {text}");
        }
        let roots = heap.roots().expect("the heap is sound").into_iter();
        let found: BTreeMap<String, Option<Offset>> = roots.map(|root| (root.name, root.block)).collect();
        let expected = self.roots.iter().map(|(name, at)| (NAMES[*name].to_owned(), Offset::new(*at)));
        assert_eq!(found, expected.collect());
        assert_eq!(stats.roots as usize, self.roots.len());
        for cell in 0..CELLS {
            assert_eq!(heap.load_cell(self.cell(cell)), Ok(self.cells.get(&cell).and_then(|at| Offset::new(*at))));
        }
        assert_eq!(heap.validate(), Ok(()));
    }

    /// Frees everything, and looks at what is left.
    fn finish(mut self) {
        let mut blocks: Vec<u64> = self.blocks.keys().copied().collect();
        // In an order that is neither that of the offsets nor that of their allocation.
        blocks.sort_by_key(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for at in blocks {
            self.compare_whole(at);
            self.turn += 1;
            assert_eq!(self.heap().deallocate(offset(at)), Ok(()));
        }
        let all_free = |heap: &Heap| {
            let stats = heap.stats().expect("the heap is sound");
            assert_eq!((stats.used, stats.allocated_blocks, stats.overhead), (0, 0, 0), "{stats}");
            assert_eq!((stats.free_blocks, stats.fragmentation), (1, 0), "{stats}");
            assert_eq!((stats.free, stats.largest_free), (stats.total, stats.total), "{stats}");
            assert_eq!(heap.validate(), Ok(()));
        };
        all_free(self.heap());
        self.end_worker();
        self.handles.truncate(1);
        let heap = self.heap();
        heap.trim().expect("the heap is sound");
        all_free(heap);
        if matches!(self.home, Home::Memory(_)) {
            let whole = heap.allocate(usize::try_from(heap.total_size()).expect("64-bit"));
            assert_eq!(whole.and_then(|block| heap.deallocate(block)), Ok(()), "a free heap can be allocated in one piece");
        }
        let heap = self.handles.pop().expect("one handle is open");
        assert_eq!(heap.destroy(), Ok(()));
    }
}

impl StateMachineTest for Machine {
    type SystemUnderTest = Rig;
    type Reference = Self;

    fn init_test(plan: &Plan) -> Rig {
        Rig::new(&plan.setup)
    }

    fn apply(mut rig: Rig, _plan: &Plan, step: Step) -> Rig {
        rig.step(step);
        rig
    }

    fn check_invariants(rig: &Rig, plan: &Plan) {
        assert!(rig.places.keys().all(|id| *id < plan.next), "the rig has blocks that the plan does not know");
        rig.check();
    }

    fn teardown(rig: Rig, _plan: Plan) {
        rig.finish();
    }
}

/// As many cases as the environment asks for, or few enough for a quick look. What fails is printed, shrunk; nothing is
/// written beside the sources.
fn config() -> Config {
    let config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() { config } else { Config { cases: 90, ..config } }
}

prop_state_machine! {
    #![proptest_config(config())]

    #[test]
    fn a_heap_answers_as_a_plain_map_would(sequential 1..120 => Machine);
}
