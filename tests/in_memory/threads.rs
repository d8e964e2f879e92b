//! Blocks that several threads allocate and free, and threads that come, go, and find no lane.

use super::*;

#[test]
fn blocks_that_another_thread_frees_come_back_to_their_owner() {
    let heap = heap(MEDIUM);
    let (send, receive) = mpsc::sync_channel::<Offset>(8);
    thread::scope(|scope| {
        let free = scope.spawn(|| {
            for block in receive {
                assert_eq!(bytes_of(&heap, block, 2), (block.get() as u16).to_le_bytes());
                heap.deallocate(block).unwrap();
            }
        });
        for round in 0..ROUNDS * 8 {
            let block = heap.allocate(200 + round % 3 * 300).unwrap();
            heap.copy_in(block, &(block.get() as u16).to_le_bytes()).unwrap();
            send.send(block).unwrap();
        }
        drop(send);
        free.join().unwrap();
    });
    expect_empty(&heap);
    // What was freed from afar is found when the slab's own words run out.
    let pages = heap.stats().unwrap().classes.iter().map(|class| class.slabs).sum::<u32>();
    assert!(pages <= 24, "{pages} slabs for eight blocks at a time: blocks freed from afar are not used again");
}

#[test]
fn full_slabs_in_which_others_have_freed_are_filled_again() {
    let heap = heap(MEDIUM);
    let slabs = || heap.stats().unwrap().classes.iter().map(|class| class.slabs).sum::<u32>();
    // Three slabs of blocks of 1024 bytes, all taken.
    let blocks: Vec<Offset> = (0..24).map(|_| heap.allocate(1000).unwrap()).collect();
    let before = slabs();
    in_a_thread(|| blocks.iter().for_each(|block| heap.deallocate(*block).unwrap()));
    assert_eq!(heap.stats().unwrap().allocated_blocks, 0, "what is freed from afar counts as free at once");
    for _ in 0..24 {
        heap.allocate(1000).unwrap();
    }
    assert_eq!(slabs(), before, "the owner has found what the other thread freed");
    assert_eq!(heap.validate(), Ok(()));
}

#[test]
fn a_block_that_two_threads_free_is_freed_once() {
    let heap = heap(SMALL);
    let block = heap.allocate(64).unwrap();
    let double_free = Err(Error::DoubleFree { offset: block.get() });
    in_a_thread(|| {
        assert_eq!(heap.deallocate(block), Ok(()));
        assert_eq!(heap.deallocate(block), double_free);
    });
    assert_eq!(heap.deallocate(block), double_free);
    for _ in 0..ROUNDS.min(300) {
        let block = heap.allocate(64).unwrap();
        let freed = AtomicU32::new(0);
        in_threads(2, |_| {
            if heap.deallocate(block).is_ok() {
                freed.fetch_add(1, Ordering::Relaxed);
            }
        });
        assert_eq!(freed.load(Ordering::Relaxed), 1);
    }
    expect_empty(&heap);
}

#[test]
fn threads_that_free_each_others_blocks_lose_none() {
    let heap = heap(MEDIUM);
    let count = 3;
    let (sends, receives): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::sync_channel::<(Offset, u8)>(8)).unzip();
    let work = |number: usize, receive: &mpsc::Receiver<(Offset, u8)>, next: &mpsc::SyncSender<(Offset, u8)>| {
        for round in 0..ROUNDS {
            let (block, mark) = (heap.allocate(16 << (round % 5)).unwrap(), (number * 100 + round % 100) as u8);
            heap.copy_in(block, &[mark; 16]).unwrap();
            // Where the next thread is behind, this one frees its block itself.
            let full = next.try_send((block, mark)).is_err().then_some((block, mark));
            for (block, mark) in receive.try_recv().into_iter().chain(full) {
                assert_eq!(bytes_of(&heap, block, 16), [mark; 16]);
                heap.deallocate(block).unwrap();
            }
        }
    };
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..count)
            .zip(receives)
            .map(|(number, receive)| {
                let next = sends[(number + 1) % count].clone();
                scope.spawn(move || {
                    work(number, &receive, &next);
                    receive
                })
            })
            .collect();
        let receives: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        // Their threads are gone: what is left lies in orphans.
        for (block, mark) in receives.iter().flat_map(|receive| receive.try_iter()) {
            assert_eq!(bytes_of(&heap, block, 16), [mark; 16]);
            heap.deallocate(block).unwrap();
        }
    });
    expect_empty(&heap);
}

#[test]
fn slabs_of_a_thread_that_has_ended_are_adopted_by_who_frees_or_needs_them() {
    let heap = heap(SMALL);
    let blocks = in_a_thread(|| [48; 5].map(|size| heap.allocate(size).unwrap()));
    assert_eq!(heap.lanes(), Ok(Vec::new()));
    assert!(blocks.iter().all(|block| heap.info(*block).unwrap().lane.is_none()));
    assert_eq!(heap.stats().unwrap().classes[0].orphans, 1);
    // By freeing one of its blocks, this thread becomes the owner of the slab.
    heap.deallocate(blocks[2]).unwrap();
    let own = heap.lanes().unwrap()[0].lane;
    assert_eq!(heap.info(blocks[0]).unwrap().lane, Some(own));

    let others = in_a_thread(|| [100; 3].map(|size| heap.allocate(size).unwrap()));
    // By allocating one of its size.
    let mine = heap.allocate(100).unwrap();
    assert_eq!(heap.info(others[0]).unwrap().lane, Some(own));
    assert_eq!(heap.validate(), Ok(()));
    let left = [blocks[0], blocks[1], blocks[3], blocks[4], mine];
    left.into_iter().chain(others).for_each(|block| heap.deallocate(block).unwrap());
    expect_empty(&heap);
}

#[test]
fn a_slab_whose_thread_ends_while_its_blocks_are_freed_is_not_lost() {
    let heap = heap(MEDIUM);
    for _ in 0..ROUNDS {
        let (send, receive) = mpsc::channel::<Offset>();
        thread::scope(|scope| {
            let owner = scope.spawn(|| {
                // Moved in, so that the channel ends with the thread.
                let send = send;
                (0..4).for_each(|_| send.send(heap.allocate(64).unwrap()).unwrap());
            });
            receive.iter().for_each(|block| heap.deallocate(block).unwrap());
            owner.join().unwrap();
        });
    }
    expect_empty(&heap);
}

#[test]
fn more_threads_than_lanes_share_one() {
    let memory = Memory::zeroed(MEDIUM).unwrap();
    let heap = options().lanes(1).create_in(memory).unwrap();
    in_threads(3, |number| {
        for round in 0..ROUNDS.min(200) {
            let blocks = [20, 700, 9000].map(|size| heap.allocate(size + round % 7).unwrap());
            for block in blocks {
                heap.copy_in(block, &[number; 20]).unwrap();
            }
            for block in blocks {
                assert_eq!(bytes_of(&heap, block, 20), [number; 20]);
                heap.deallocate(block).unwrap();
            }
        }
    });
    expect_empty(&heap);
}

#[test]
fn one_without_a_lane_fills_and_empties_slabs_that_belong_to_nobody() {
    let memory = Memory::zeroed(MEDIUM).unwrap();
    let heap = options().lanes(1).create_in(memory).unwrap();
    let mine = heap.allocate(1000).unwrap();
    in_a_thread(|| {
        // Eight of them fill a slab.
        let mut blocks: Vec<Offset> = (0..20).map(|_| heap.allocate(1000).unwrap()).collect();
        assert!(blocks.iter().all(|block| heap.info(*block).unwrap().lane.is_none()));
        assert_eq!(heap.validate(), Ok(()));
        blocks.drain(..12).for_each(|block| heap.deallocate(block).unwrap());
        assert_eq!(heap.validate(), Ok(()));
        blocks.extend((0..10).map(|_| heap.allocate(1000).unwrap()));
        heap.deallocate(mine).unwrap();
        assert_eq!(heap.validate(), Ok(()));
        blocks.into_iter().for_each(|block| heap.deallocate(block).unwrap());
    });
    expect_empty(&heap);
}

#[test]
fn threads_take_turns_with_the_heap_lock() {
    let heap = heap(MEDIUM);
    in_threads(3, |number| {
        for round in 0..ROUNDS {
            let block = heap.allocate(5000 + 4096 * (round % 4)).unwrap();
            heap.copy_in(block, &[number; 64]).unwrap();
            let block = heap.reallocate(block, 4096 * (1 + round % 5) + 1000).unwrap();
            assert_eq!(bytes_of(&heap, block, 64), [number; 64]);
            heap.deallocate(block).unwrap();
        }
    });
    expect_empty(&heap);
}
