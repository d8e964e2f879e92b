//! The rig: a heap with its handles and threads, and the map that says what the heap must answer.

mod steps;

use super::*;

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

pub(crate) struct Rig {
    alone: bool,
    handles: Vec<Heap>,
    worker: Option<Worker>,
    home: Home,
    /// The map: every allocated block, by its offset.
    blocks: BTreeMap<u64, Block>,
    /// Where the plan's blocks are, those that exist.
    pub(crate) places: BTreeMap<Id, u64>,
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
    pub(crate) fn new(setup: &Setup) -> Self {
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

    /// Compares everything that the heap tells with the map.
    pub(crate) fn check(&self) {
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
    pub(crate) fn finish(mut self) {
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
