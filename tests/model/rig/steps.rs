//! What each step does to the heap, and to the map.

use super::*;

impl Rig {
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

    pub(super) fn end_worker(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.end();
        }
    }

    pub(crate) fn step(&mut self, step: Step) {
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
}
