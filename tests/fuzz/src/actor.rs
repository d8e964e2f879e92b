//! The actor: performs the library's operations on a heap whose bytes may be anything, and checks what they hand out.

use std::fmt::Write;

use shmheap::{Activity, BlockInfo, Heap, Offset};

use super::{Ground, Input};

/// Most blocks that an actor remembers.
const KNOWN_MAX: usize = 32;
/// Most bytes that are copied into or out of a block.
const COPY_MAX: usize = 300;
/// Names of roots: those of the templates, and some more.
const NAMES: [&str; 8] =
    ["cells", "large", "far", "half made", "removed", "small", "a", "a name that is long enough to fill more words"];

/// Every operation of a heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named after the method that it calls")]
pub enum Operation {
    Allocate,
    AllocateAligned,
    AllocateZeroed,
    AllocateInto,
    Deallocate,
    FreeFrom,
    Reallocate,
    CopyIn,
    CopyOut,
    Resolve,
    Info,
    LoadCell,
    Blocks,
    SetRoot,
    InsertRoot,
    Root,
    Roots,
    RemoveRoot,
    FindOrConstruct,
    Stats,
    Lanes,
    DumpStats,
    Validate,
    Recover,
    Trim,
    /// The same heap is attached once more, and used beside the first handle from then on.
    Switch,
    /// All handles are dropped, and the heap is attached anew.
    Reopen,
    Freeze,
    Findings,
    /// Into a file that cannot be made: all that is read of the heap is read.
    Save,
    /// All handles are dropped, the heap is repaired, and attached anew.
    Repair,
}

impl Operation {
    /// How many there were when the first inputs were kept: which byte means which of them stays as it was.
    const FIRST: usize = 27;

    /// All of them.
    pub const ALL: [Self; 31] = [
        Self::Allocate,
        Self::AllocateAligned,
        Self::AllocateZeroed,
        Self::AllocateInto,
        Self::Deallocate,
        Self::FreeFrom,
        Self::Reallocate,
        Self::CopyIn,
        Self::CopyOut,
        Self::Resolve,
        Self::Info,
        Self::LoadCell,
        Self::Blocks,
        Self::SetRoot,
        Self::InsertRoot,
        Self::Root,
        Self::Roots,
        Self::RemoveRoot,
        Self::FindOrConstruct,
        Self::Stats,
        Self::Lanes,
        Self::DumpStats,
        Self::Validate,
        Self::Recover,
        Self::Trim,
        Self::Switch,
        Self::Reopen,
        Self::Freeze,
        Self::Findings,
        Self::Save,
        Self::Repair,
    ];

    /// The operation that a byte names; the frequent ones have several.
    pub fn of(byte: u8) -> Self {
        const FREQUENT: [Operation; 6] = [
            Operation::Allocate,
            Operation::Deallocate,
            Operation::Reallocate,
            Operation::Switch,
            Operation::Allocate,
            Operation::Deallocate,
        ];
        let (first, later) = Self::ALL.split_at(Self::FIRST);
        if byte >= 0xf0 {
            return later[usize::from(byte) % later.len()];
        }
        let first = first.iter().chain(&FREQUENT);
        first.copied().nth(usize::from(byte) % (Self::FIRST + FREQUENT.len())).unwrap_or(Self::Validate)
    }
}

/// One who uses the heap on a ground, by one or two handles. Blocks that were handed out are remembered.
#[derive(Debug)]
pub struct Actor<'a> {
    ground: &'a Ground,
    /// None only while it is attached anew.
    heap: Option<Heap>,
    other: Option<Heap>,
    known: Vec<Offset>,
    next: usize,
}

impl<'a> Actor<'a> {
    /// Attaches the heap on a ground, if it can be attached.
    pub fn enter(ground: &'a Ground) -> shmheap::Result<Self> {
        let heap = ground.open()?;
        let known = heap.blocks().take(KNOWN_MAX / 2).map(|info| info.offset).collect();
        Ok(Self { ground, heap: Some(heap), other: None, known, next: 0 })
    }

    /// The handle in use.
    pub fn heap(&self) -> &Heap {
        self.heap.as_ref().expect("it was attached")
    }

    /// Performs an operation, with what the input says. False if the heap could not be attached anew.
    pub fn perform(&mut self, operation: Operation, input: &mut Input<'_>) -> bool {
        match operation {
            Operation::Allocate => self.allocate(input, |heap, size| heap.allocate(size)),
            Operation::AllocateAligned => {
                let alignment = 1 << (input.byte() & 15);
                self.allocate(input, |heap, size| heap.allocate_aligned(size, alignment));
            }
            Operation::AllocateZeroed => self.allocate(input, |heap, size| heap.allocate_zeroed(size)),
            Operation::AllocateInto => {
                let cell = self.offset(input);
                self.allocate(input, |heap, size| heap.allocate_into(cell, size));
            }
            Operation::Reallocate => {
                let block = self.offset(input);
                self.allocate(input, |heap, size| heap.reallocate(block, size));
            }
            Operation::FindOrConstruct => {
                let name = NAMES[usize::from(input.byte() & 7)];
                let (fails, nested) = (input.byte() & 3 == 0, input.byte() & 3 == 0);
                self.allocate(input, |heap, size| {
                    let size = size.min(8000);
                    heap.find_or_construct(name, size, |block| {
                        if nested {
                            heap.allocate_into(block, 32)?;
                        }
                        if fails { Err(shmheap::Error::ZeroSize) } else { Ok(()) }
                    })?;
                    // A root that was there may lead to a shorter block.
                    heap.root(name).map(|_| ())?;
                    heap.allocate(8)
                });
            }
            Operation::Switch => {
                let other = match self.other.take() {
                    Some(other) => other,
                    None => match self.ground.open() {
                        Ok(other) => other,
                        Err(_) => return true,
                    },
                };
                self.other = self.heap.replace(other);
            }
            Operation::Reopen => {
                // The old handles go first: nobody is attached while the heap is attached anew.
                (self.heap, self.other) = (None, None);
                let Ok(reopened) = self.ground.open() else { return false };
                self.heap = Some(reopened);
            }
            Operation::Repair => {
                (self.heap, self.other) = (None, None);
                // What cannot be repaired is told. A report that can be told is all that is asked here.
                let report = Heap::options().lock_timeout(super::LOCK_TIMEOUT).repair_in(self.ground.memory());
                report.map_or_else(|error| error.to_string(), |report| report.to_string());
                let Ok(reopened) = self.ground.open() else { return false };
                self.heap = Some(reopened);
            }
            _ => self.look_or_free(operation, input),
        }
        true
    }

    /// The operations that hand out no block of their own.
    fn look_or_free(&mut self, operation: Operation, input: &mut Input<'_>) {
        let heap = self.heap();
        match operation {
            Operation::Deallocate => _ = heap.deallocate(self.offset(input)),
            Operation::FreeFrom => _ = heap.free_from(self.offset(input)),
            Operation::CopyIn => {
                let (block, at, len) = self.stretch(input);
                let byte = input.byte();
                _ = heap.copy_in_at(block, at, &[byte; COPY_MAX][..len]);
            }
            Operation::CopyOut => {
                let (block, at, len) = self.stretch(input);
                _ = heap.copy_out_at(block, at, &mut [0; COPY_MAX][..len]);
            }
            Operation::Resolve => {
                let offset = self.offset(input);
                if let Ok(address) = heap.resolve(offset) {
                    assert_eq!(heap.offset_of(address), Ok(offset), "an address leads back to its offset");
                }
            }
            Operation::Info => {
                // All that are known are looked at: whose length is wrong, the input need not guess.
                for offset in self.known.iter().copied().chain([self.offset(input)]) {
                    if let Ok(info) = heap.info(offset) {
                        self.check_info(&info);
                    }
                    if let Ok(usable) = heap.usable_size(offset) {
                        self.check_reach(offset, usable as u64);
                    }
                }
            }
            Operation::LoadCell => _ = heap.load_cell(self.offset(input)),
            Operation::Blocks => heap.blocks().for_each(|info| self.check_info(&info)),
            Operation::SetRoot => _ = heap.set_root(name(input), self.offset(input)),
            Operation::InsertRoot => _ = heap.insert_root(name(input), self.offset(input)),
            Operation::Root => {
                if let Ok(Some(block)) = heap.root(name(input)) {
                    self.check_reach(block, 1);
                }
            }
            Operation::Roots => _ = heap.roots(),
            Operation::RemoveRoot => _ = heap.remove_root(name(input)),
            Operation::Stats => {
                _ = heap.stats();
                _ = heap.activity().map(|activity| activity.since(&Activity::default()));
                // Each span has a page at least.
                let spans = heap.spans().map(|span| span.len).fold(0, u64::saturating_add);
                assert!(spans <= heap.total_size(), "spans reach beyond the pages");
            }
            Operation::Lanes => _ = heap.lanes(),
            Operation::DumpStats => _ = heap.dump_stats(),
            Operation::Validate => {
                if let Err(error) = heap.validate() {
                    let mut text = String::new();
                    write!(text, "{error}").expect("an error can be told");
                }
            }
            Operation::Freeze => {
                if let Ok(frozen) = heap.freeze() {
                    heap.blocks().for_each(|info| self.check_info(&info));
                    drop(frozen);
                }
            }
            Operation::Findings => _ = heap.findings(),
            Operation::Save => _ = heap.save("/dev/null/nowhere"),
            Operation::Recover => _ = heap.recover(),
            _ => _ = heap.trim(),
        }
    }

    fn allocate(&mut self, input: &mut Input<'_>, call: impl FnOnce(&Heap, usize) -> shmheap::Result<Offset>) {
        let size = size(input);
        let Ok(block) = call(self.heap(), size) else { return };
        // Whoever is given a block writes to it.
        self.check_reach(block, 1);
        if self.known.len() < KNOWN_MAX {
            return self.known.push(block);
        }
        self.known[self.next % KNOWN_MAX] = block;
        self.next += 1;
    }

    fn check_info(&self, info: &BlockInfo) {
        self.check_reach(info.offset, info.size);
    }

    /// So many bytes from an offset lie in the heap's pages.
    fn check_reach(&self, offset: Offset, len: u64) {
        let last = offset.get().checked_add(len.saturating_sub(1)).and_then(Offset::new);
        let reaches = last.is_some_and(|last| self.heap().resolve(last).is_ok());
        assert!(reaches && self.heap().resolve(offset).is_ok(), "{len} bytes at {offset} do not lie in the heap's pages");
    }

    /// Some bytes: a block, the distance from its start or from what is said to be its end, and a length.
    fn stretch(&self, input: &mut Input<'_>) -> (Offset, usize, usize) {
        let (block, at, len) = (self.offset(input), usize::from(input.half()), usize::from(input.half()) % COPY_MAX);
        let from_end = || self.heap().usable_size(block).unwrap_or(0).saturating_sub(at & 0xff);
        (block, if at < 1 << 15 { at } else { from_end() }, len)
    }

    /// A block that was handed out, a place some bytes behind one, or anything.
    fn offset(&self, input: &mut Input<'_>) -> Offset {
        let selector = input.byte();
        let known = self.known.get(usize::from(selector) % self.known.len().max(1)).map_or(16, |block| block.get());
        let offset = match selector >> 5 {
            0..=4 => known,
            5 => known + u64::from(input.byte()) * 8,
            6 => u64::from(input.half()) * 16,
            _ => input.word(),
        };
        Offset::new(offset).unwrap_or(Offset::new(8).expect("8 is not 0"))
    }
}

fn name(input: &mut Input<'_>) -> &'static str {
    NAMES[usize::from(input.byte()) % NAMES.len()]
}

/// Any size; most are those of small and middling blocks.
fn size(input: &mut Input<'_>) -> usize {
    let half = usize::from(input.half());
    match half >> 13 {
        0..=3 => half & 0x3ff,
        4 | 5 => half & 0x3fff,
        6 => (half & 0x1f) * 4096,
        _ => 1usize << (half & 63),
    }
}
