//! Roots and cells: blocks that others find, while they are set and changed.

use super::*;

#[test]
fn roots_are_set_replaced_listed_and_removed() {
    let heap = heap(SMALL);
    let [one, two] = [30, 40].map(|size| heap.allocate(size).unwrap());
    assert_eq!(heap.root("a"), Ok(None));
    assert_eq!(heap.set_root("a", one), Ok(None));
    assert_eq!(heap.insert_root("a", two), Err(Error::RootExists { name: "a".to_owned() }));
    assert_eq!(heap.set_root("a", two), Ok(Some(one)));
    assert_eq!(heap.insert_root("b", one), Ok(()));
    assert_eq!((heap.root("a"), heap.root("b")), (Ok(Some(two)), Ok(Some(one))));
    let mut names: Vec<String> = heap.roots().unwrap().into_iter().map(|root| root.name).collect();
    names.sort();
    assert_eq!(names, ["a", "b"]);
    heap.deallocate(two).unwrap();
    assert_eq!(heap.root("a"), Ok(None), "its block is gone");
    assert_eq!(heap.remove_root("a"), Ok(two));
    assert_eq!(heap.remove_root("a"), Err(Error::RootUnknown { name: "a".to_owned() }));
    assert_eq!(heap.remove_root("b"), Ok(one));
    heap.deallocate(one).unwrap();
    expect_empty(&heap);
}

#[test]
fn readers_of_a_root_see_one_block_or_the_other_while_it_changes() {
    let heap = heap(SMALL);
    let blocks = [16, 32].map(|size| heap.allocate(size).unwrap());
    heap.set_root("now", blocks[0]).unwrap();
    in_threads(2, |number| {
        for round in 0..ROUNDS {
            if number == 0 {
                heap.set_root("now", blocks[round % 2]).unwrap();
                heap.set_root("other", blocks[0]).unwrap();
                heap.remove_root("other").unwrap();
            } else {
                let found = heap.root("now").unwrap().expect("it is never gone");
                assert!(blocks.contains(&found));
                assert!(heap.root("other").unwrap().is_none_or(|found| found == blocks[0]));
            }
        }
    });
    assert_eq!(heap.validate(), Ok(()));
}

#[test]
fn a_reader_never_takes_one_roots_block_for_anothers() {
    // All names share the one slot.
    let memory = Memory::zeroed(SMALL).unwrap();
    let heap = options().root_slots(1).create_in(memory).unwrap();
    let roots = ["one", "two"].map(|name| (name, heap.allocate(16).unwrap()));
    in_threads(2, |number| {
        for round in 0..ROUNDS * 2 {
            let (name, block) = roots[round % 2];
            if number == 0 {
                heap.insert_root(name, block).unwrap();
                assert_eq!(heap.remove_root(name), Ok(block));
            } else if let Some(found) = heap.root(name).unwrap() {
                assert_eq!(found, block);
            }
        }
    });
    assert_eq!(heap.validate(), Ok(()));
}

#[test]
fn an_object_is_constructed_once_however_many_ask_for_it() {
    let heap = heap(SMALL);
    let constructed = AtomicU32::new(0);
    in_threads(3, |_| {
        let block = heap.find_or_construct("object", 64, |block| {
            assert_eq!(bytes_of(&heap, block, 64), [0; 64]);
            constructed.fetch_add(1, Ordering::Relaxed);
            heap.copy_in(block, b"whole")
        });
        assert_eq!(bytes_of(&heap, block.unwrap(), 5), b"whole");
    });
    assert_eq!(constructed.load(Ordering::Relaxed), 1);
    heap.deallocate(heap.remove_root("object").unwrap()).unwrap();
    expect_empty(&heap);
}

#[test]
fn a_constructor_that_fails_or_panics_leaves_nothing() {
    let heap = heap(SMALL);
    let error = Error::System { call: "a constructor", errno: 5 };
    assert_eq!(heap.find_or_construct("object", 64, |_| Err(error.clone())), Err(error));
    let panicked = thread::scope(|scope| {
        let construct = || heap.find_or_construct("object", 64, |_| std::panic::resume_unwind(Box::new(())));
        scope.spawn(construct).join().is_err()
    });
    assert!(panicked);
    assert_eq!((heap.root("object"), heap.roots()), (Ok(None), Ok(Vec::new())));
    expect_empty(&heap);
    assert!(heap.find_or_construct("object", 64, |_| Ok(())).is_ok(), "the next constructor has its turn");
}

#[test]
fn a_cell_holds_a_block_or_nothing() {
    let heap = heap(SMALL);
    let cells = heap.allocate_zeroed(64).unwrap();
    let cell = |number: u64| Offset::new(cells.get() + number * 8).unwrap();
    for size in [40, 9000] {
        let block = heap.allocate_into(cell(1), size).unwrap();
        assert_eq!(heap.load_cell(cell(1)), Ok(Some(block)));
        let occupied = Error::CellOccupied { cell: cell(1).get(), holds: block.get() };
        assert_eq!(heap.allocate_into(cell(1), size), Err(occupied));
        heap.free_from(cell(1)).unwrap();
        assert_eq!(heap.load_cell(cell(1)), Ok(None));
        assert_eq!(heap.free_from(cell(1)), Err(Error::CellEmpty { cell: cell(1).get() }));
    }
    let crooked = Offset::new(cells.get() + 4).unwrap();
    assert_eq!(heap.allocate_into(crooked, 8), Err(Error::BadCell { cell: crooked.get() }));
    assert_eq!(heap.load_cell(Offset::new(64).unwrap()), Err(Error::BadCell { cell: 64 }));
    heap.deallocate(cells).unwrap();
    expect_empty(&heap);
}

#[test]
fn threads_that_fill_and_empty_the_same_cells_agree() {
    let heap = heap(MEDIUM);
    let cells = heap.allocate_zeroed(16).unwrap();
    in_threads(2, |_| {
        for round in 0..ROUNDS {
            let cell = Offset::new(cells.get() + (round as u64 % 2) * 8).unwrap();
            match heap.allocate_into(cell, 100) {
                Ok(_) | Err(Error::CellOccupied { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            match heap.free_from(cell) {
                Ok(()) | Err(Error::CellEmpty { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    assert_eq!(heap.load_cell(cells), Ok(None));
    heap.deallocate(cells).unwrap();
    expect_empty(&heap);
}
