//! The bytes of a heap in a file: where docs/FORMAT.md says that everything stands, and blocks that are to survive.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use shmheap::{Error, Heap, Offset, Remedy, RepairReport};

pub(crate) const PAGES_HIGH: u64 = 0xc0;
pub(crate) const LOCK: u64 = 0x100;
pub(crate) const RECOVERING: u64 = 0x108;
pub(crate) const JOURNAL: u64 = 0x148;
pub(crate) const MERGE_HOLD: u64 = 0x180;
pub(crate) const ORPHANS: u64 = 0x200;
pub(crate) const ROOTS_RESERVED: u64 = 0x300;

/// Large enough that some pages are above the mark of pages in use.
pub(crate) const CAPACITY: u64 = 4 << 20;
pub(crate) const PAGE: u64 = 4096;
pub(crate) const LANES: u64 = 4;
pub(crate) const ROOT_SLOTS: u64 = 64;

/// Where the tables of the tests' heap start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    pub(crate) roots: u64,
    pub(crate) data: u64,
    pub(crate) pages: u64,
    pub(crate) entries: u64,
    pub(crate) links: u64,
    pub(crate) in_use: u64,
    pub(crate) reserved: u64,
    pub(crate) groups: u64,
    pub(crate) summaries: u64,
    pub(crate) bitmaps: u64,
    pub(crate) end: u64,
}

impl Places {
    fn with(pages: u64) -> Self {
        let roots = 4096 + 512 * (LANES + 1);
        let data = (roots + 128 * ROOT_SLOTS).next_multiple_of(PAGE);
        let table = |at: &mut u64, len: u64| {
            let start = at.next_multiple_of(64);
            *at = start + len;
            start
        };
        let mut at = data + pages * PAGE;
        let [entries, links] = [8, 8].map(|width| table(&mut at, width * pages));
        let chunks = pages.div_ceil(512);
        let [in_use, reserved] = [64, 64].map(|width| table(&mut at, width * chunks));
        let groups = table(&mut at, 8 * pages.div_ceil(256).div_ceil(64));
        let summaries = table(&mut at, 16 * chunks);
        (0..6).for_each(|_| _ = table(&mut at, 16 * chunks.div_ceil(8)));
        at = if pages >= 512 { at.next_multiple_of(4096) } else { at };
        let bitmaps = table(&mut at, pages * PAGE / 64);
        Self { roots, data, pages, entries, links, in_use, reserved, groups, summaries, bitmaps, end: at }
    }

    pub(crate) fn new() -> Self {
        (1..).map(Self::with).take_while(|places| places.end <= CAPACITY).last().expect("a page fits")
    }

    pub(crate) fn lane(lane: u64) -> u64 {
        4096 + 512 * lane
    }

    pub(crate) fn entry(&self, page: u64) -> u64 {
        self.entries + 8 * page
    }

    pub(crate) fn page(&self, page: u64) -> u64 {
        self.data + PAGE * page
    }

    /// Where the pages start into which a block reaches.
    pub(crate) fn pages_of(&self, start: u64, size: usize) -> impl Iterator<Item = u64> {
        let end = start + u64::try_from(size).expect("it fits");
        let first = (start - self.data).next_multiple_of(PAGE) + self.data;
        (first..end).step_by(PAGE as usize)
    }

    pub(crate) fn page_of(&self, offset: Offset) -> u64 {
        (offset.get() - self.data) / PAGE
    }
}

/// A word at its place.
pub(crate) fn word(bytes: &[u8], at: u64) -> u64 {
    let at = usize::try_from(at).expect("offsets of tests fit");
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A heap in a file, and what is in it.
pub(crate) struct Region {
    directory: tempfile::TempDir,
    pub(crate) places: Places,
    /// Every block, and the byte with which it is filled.
    pub(crate) blocks: BTreeMap<u64, (usize, u8)>,
    /// The bytes before any damage.
    pub(crate) sound: Vec<u8>,
}

impl Region {
    /// A heap with blocks of many sizes. If `left`, its process seems to have died: its lane is claimed, and keeps spans.
    /// Else it was detached, and its slabs are orphans.
    pub(crate) fn new(left: bool) -> Self {
        // Thousands of files are written: in memory.
        let directory = tempfile::tempdir_in("/dev/shm").expect("there is room in memory");
        let path = directory.path().join("original");
        let options = Heap::options().capacity(CAPACITY).lanes(4).root_slots(64);
        let heap = options.create_file(&path).expect("a heap is created");
        let mut region = Self { directory, places: Places::new(), blocks: BTreeMap::new(), sound: Vec::new() };
        let sizes = [16, 16, 16, 100, 100, 700, 3000, 3000, 5000, 12_000, 20_000, 100_000, 9000, 48, 48];
        let blocks: Vec<Offset> = (1..).zip(sizes).map(|(byte, size)| region.add(&heap, size, byte)).collect();
        // A slab that is full, and one of which the first block is free.
        let full: Vec<Offset> = (0..8).map(|_| region.add(&heap, 1024, 77)).collect();
        assert!(full.windows(2).all(|pair| pair[0] < pair[1]));
        for (name, block) in ["first", "second", "third", "fourth"].into_iter().zip(&blocks) {
            heap.set_root(name, *block).expect("a root is set");
        }
        // Two spans that a lane keeps.
        for size in [2000, 30_000] {
            let block = heap.allocate(size).expect("room");
            heap.deallocate(block).expect("it is allocated");
        }
        heap.validate().expect("a heap in use is sound");
        if left {
            region.sound = fs::read(&path).expect("the file is there");
        }
        drop(heap);
        if !left {
            region.sound = fs::read(&path).expect("the file is there");
        }
        assert_eq!(u64::try_from(region.sound.len()), Ok(CAPACITY));
        region
    }

    fn add(&mut self, heap: &Heap, size: usize, byte: u8) -> Offset {
        let block = heap.allocate(size).expect("room");
        heap.copy_in(block, &vec![byte; size]).expect("it is allocated");
        self.blocks.insert(block.get(), (size, byte));
        block
    }

    /// The first block that was allocated with this size.
    pub(crate) fn block(&self, size: usize) -> Offset {
        let (offset, _) = self.blocks.iter().find(|(_, block)| block.0 == size).expect("there is one of this size");
        Offset::new(*offset).expect("no block starts at zero")
    }

    /// The page on which that block stands.
    pub(crate) fn page(&self, size: usize) -> u64 {
        self.places.page_of(self.block(size))
    }

    /// The entry of a page.
    pub(crate) fn entry(&self, page: u64) -> u64 {
        word(&self.sound, self.places.entry(page))
    }

    /// Pages whose entries have this state.
    pub(crate) fn pages_in(&self, state: u64) -> impl Iterator<Item = u64> {
        (0..self.places.pages).filter(move |page| self.entry(*page) & 0xf == state)
    }

    /// Writes the heap into a file of its own, with these words changed.
    pub(crate) fn damaged(&self, words: &[(u64, u64)]) -> PathBuf {
        let path = self.directory.path().join("damaged");
        let file = fs::File::create(&path).expect("the directory may be written");
        file.set_len(CAPACITY).expect("a file may have holes");
        // What was never used stays a hole.
        for (number, piece) in (0u64..).zip(self.sound.chunks(4096)).filter(|(_, piece)| piece.iter().any(|byte| *byte != 0))
        {
            file.write_all_at(piece, number * 4096).expect("the file may be written");
        }
        for (at, word) in words {
            file.write_all_at(&word.to_ne_bytes(), *at).expect("the file may be written");
        }
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is our file");
        path
    }

    /// Repairs a damaged heap and checks what holds for every repair: a dry run changes nothing and tells the same; no byte
    /// of a page changes; the heap is sound afterwards, and a second repair has nothing to do.
    pub(crate) fn repair(&self, path: &Path) -> RepairReport {
        let before = fs::read(path).expect("the file is there");
        let planned = Heap::options().dry_run(true).repair_file(path).expect("a dry run");
        assert!(fs::read(path).expect("the file is there") == before, "a dry run has changed the file");
        let report = Heap::options().repair_file(path).expect("a repair");
        assert_eq!(report, planned, "a repair does what the dry run told");
        let after = fs::read(path).expect("the file is there");
        let pages = |bytes: &[u8]| bytes[self.places.data as usize..self.places.entries as usize].to_vec();
        assert!(pages(&before) == pages(&after), "a repair has changed the bytes of a page");
        let again = Heap::options().repair_file(path).expect("a second repair");
        assert!(again.is_clean(), "the first repair has left something to do: {again}");
        assert!(fs::read(path).expect("the file is there") == after, "a repair of a sound heap has changed it");
        report
    }

    /// Checks that every block is there with its bytes, on its own or in a quarantined one; then that the heap can be used
    /// up and emptied.
    pub(crate) fn expect_usable(&self, path: &Path, report: &RepairReport) {
        let heap = Heap::options().open_file(path).expect("a repaired heap can be opened");
        assert_eq!(heap.findings(), Ok(vec![]));
        let quarantined: Vec<(Offset, u64)> = report
            .actions
            .iter()
            .filter_map(|action| match action.remedy {
                Remedy::Quarantined { block, len } => Some((block, len)),
                _ => None,
            })
            .collect();
        for (block, len) in &quarantined {
            let info = heap.info(*block).expect("a quarantined block is allocated");
            assert!(info.large && info.size == *len && info.lane.is_none(), "{info:?} is not {len} bytes of nobody");
        }
        for (offset, (size, byte)) in &self.blocks {
            let holder = quarantined.iter().find(|(start, len)| (start.get()..start.get() + len).contains(offset));
            let (block, distance) = holder.map_or((Offset::new(*offset).expect("no zero"), 0), |(block, _)| {
                (*block, usize::try_from(offset - block.get()).expect("it fits"))
            });
            let mut bytes = vec![0; distance + size];
            heap.copy_out(block, &mut bytes).expect("the block is allocated, or quarantined whole");
            assert!(bytes[distance..].iter().all(|found| found == byte), "the block at {offset:#x} has other bytes");
        }
        use_up_and_empty(&heap);
    }
}

/// Allocates until nothing is left, then frees everything, and sees that it is one piece.
pub(crate) fn use_up_and_empty(heap: &Heap) {
    heap.validate().expect("the heap is sound");
    for size in [30_000, 3000, 16] {
        let error = loop {
            match heap.allocate(size) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error:?}");
    }
    heap.validate().expect("a full heap is sound");
    let blocks: Vec<Offset> = heap.blocks().map(|block| block.offset).collect();
    blocks.into_iter().for_each(|block| heap.deallocate(block).expect("what is listed can be freed"));
    heap.validate().expect("an emptied heap is sound");
    let stats = heap.stats().expect("stats");
    assert_eq!((stats.used, stats.free_blocks, stats.fragmentation, stats.free), (0, 1, 0, stats.total), "{stats}");
}
