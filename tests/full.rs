//! A /dev/shm that fills up: errors with numbers in them, never a signal.
//!
//! Each test mounts a small tmpfs of its own over /dev/shm, in a worker with a mount namespace of its own. That needs root;
//! without it the tests say that they were skipped.

mod common;

use std::fs::{File, remove_file};
use std::io::Write;
use std::path::Path;

use common::churn::{check_stamp, stamp};
use common::worker::{Worker, dispatch, hear, number, say};
use common::{Random, all_offsets, assert_emptied, assert_is_empty, is_root, new_heap, refused, state_of};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;
use shmheap::{Error, Heap, Offset};

#[test]
fn worker_entry() {
    dispatch(&[
        ("fill", fill),
        ("crowded out", crowded_out),
        ("no room to create", no_room_to_create),
        ("fill together", fill_together),
        ("fill as one of two", fill_as_one_of_two),
        ("roots", roots_in_a_full_file_system),
    ]);
}

const SHM: &str = "/dev/shm";
const PAGE: usize = 4096;

/// Mounts an empty tmpfs of this many KiB over /dev/shm, which only this process and its children see. False, and a reason
/// is given, where that is not allowed.
fn mount_small_shm(kib: u64) -> bool {
    let nothing: Option<&str> = None;
    let mounted = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing))
        .and_then(|()| mount(Some("tmpfs"), SHM, Some("tmpfs"), MsFlags::empty(), Some(format!("size={kib}k").as_str())));
    match mounted {
        Ok(()) => say("mounted"),
        Err(errno) => say(&format!("skipped: a tmpfs of one's own is not to be had: {errno}")),
    }
    mounted.is_ok()
}

fn available() -> u64 {
    let stat = statvfs(SHM).expect("the file system tells");
    stat.blocks_available() * stat.fragment_size()
}

/// Runs a role that begins with [`mount_small_shm`], to its end.
fn in_a_small_shm(test: &str, role: &str, parameters: &[(&str, &str)]) {
    if !is_root(test) {
        return;
    }
    let mut worker = Worker::start(role, parameters);
    let mounted = worker.line();
    if mounted != "mounted" {
        eprintln!("{test}: {mounted}");
        worker.finish();
        return;
    }
    assert_eq!(worker.finish(), ["done"], "the worker came to its end");
}

/// A file that takes all the room there is, but for some pages.
struct Crowd(&'static str);

impl Crowd {
    fn new(pages_left: usize) -> Self {
        let path = "/dev/shm/somebody-elses";
        let mut file = File::create(path).expect("create");
        while file.write_all(&[1; PAGE]).is_ok() {}
        let len = file.metadata().expect("metadata").len() / PAGE as u64;
        file.set_len(len.saturating_sub(pages_left as u64) * PAGE as u64).expect("shorten");
        assert_eq!(available(), pages_left as u64 * PAGE as u64);
        Self(path)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = remove_file(self.0);
    }
}

/// Allocates blocks of `size` bytes until there is no space.
fn allocate_all(heap: &Heap, size: usize, seed: u64) -> (Vec<Offset>, Error) {
    let mut blocks = Vec::new();
    loop {
        match heap.allocate(size) {
            Ok(block) => {
                stamp(heap, block, size, seed);
                blocks.push(block);
            }
            Err(error) => return (blocks, error),
        }
    }
}

fn assert_no_space(error: &Error, file_system: u64) {
    let Error::NoSpace { needed, available } = *error else { panic!("{error:?}") };
    assert!(needed > available, "what is needed is more than what there is: {error}");
    assert!(available < file_system && needed >= PAGE as u64, "{error}");
    assert!(error.is_transient() && error.to_string().contains(&needed.to_string()), "{error}");
}

fn fill() {
    const KIB: u64 = 1024;
    if !mount_small_shm(KIB) {
        return;
    }
    let size = number("SIZE") as usize;
    let heap = Heap::options().capacity(64 << 20).create("full").expect("create");
    let (blocks, error) = allocate_all(&heap, size, 1);
    assert_no_space(&error, KIB << 10);
    let taken = (blocks.len() * size) as u64;
    assert!(taken > KIB << 9 && taken <= KIB << 10, "{taken} bytes of {KIB} KiB were handed out");
    assert_eq!(all_offsets(&heap), {
        let mut sorted = blocks.clone();
        sorted.sort();
        sorted
    });
    assert!(heap.stats().expect("stats").taken <= KIB << 10);

    for _ in 0..3 {
        assert_no_space(&refused(&heap, |heap| heap.allocate(size)), KIB << 10);
        assert_no_space(&refused(&heap, |heap| heap.allocate(2 << 20)), KIB << 10);
        assert_no_space(&refused(&heap, |heap| heap.reallocate(blocks[0], 2 << 20)), KIB << 10);
    }
    blocks.iter().for_each(|block| check_stamp(&heap, *block, size, 1));
    Heap::open_read_only("full").expect("open").validate().expect("valid");
    Heap::open("full").expect("open").validate().expect("valid");

    // Freeing and allocating goes on, in the memory that there is.
    let (kept, freed): (Vec<_>, Vec<_>) = blocks.iter().enumerate().partition(|(index, _)| index % 2 == 0);
    freed.iter().for_each(|(_, block)| heap.deallocate(**block).expect("free"));
    let (again, error) = allocate_all(&heap, size, 2);
    assert_no_space(&error, KIB << 10);
    assert!(again.len() >= freed.len(), "what was freed can be had again");
    kept.iter().for_each(|(_, block)| check_stamp(&heap, **block, size, 1));
    again.iter().for_each(|block| check_stamp(&heap, *block, size, 2));
    heap.validate().expect("valid");
    assert_emptied(&heap);

    let before = available();
    assert!(heap.trim().expect("trim") > 0);
    assert!(available() >= before + (KIB << 9), "the file system has the memory again");
    let (after_trim, _) = allocate_all(&heap, size, 3);
    assert!(after_trim.len() >= blocks.len(), "after a trim there is as much as before");
    after_trim.iter().for_each(|block| check_stamp(&heap, *block, size, 3));
    assert_emptied(&heap);
    say("done");
}

#[test]
fn filling_dev_shm_with_small_blocks_ends_in_no_space() {
    in_a_small_shm("filling_dev_shm_with_small_blocks_ends_in_no_space", "fill", &[("SIZE", "100")]);
}

#[test]
fn filling_dev_shm_with_middling_blocks_ends_in_no_space() {
    in_a_small_shm("filling_dev_shm_with_middling_blocks_ends_in_no_space", "fill", &[("SIZE", "3000")]);
}

#[test]
fn filling_dev_shm_with_large_blocks_ends_in_no_space() {
    in_a_small_shm("filling_dev_shm_with_large_blocks_ends_in_no_space", "fill", &[("SIZE", "40000")]);
}

/// Others take all the room there is, while a heap is attached.
fn crowded_out() {
    if !mount_small_shm(2048) {
        return;
    }
    let heap = Heap::options().capacity(64 << 20).create("crowded").expect("create");
    let mut random = Random::new(1);
    let sizes: Vec<usize> = (0..200).map(|_| 1 + random.below(5000)).collect();
    let blocks: Vec<Offset> = sizes.iter().map(|size| heap.allocate(*size).expect("room")).collect();
    blocks.iter().zip(&sizes).for_each(|(block, size)| stamp(&heap, *block, *size, 4));
    heap.set_root("first", blocks[0]).expect("root");
    let crowd = Crowd::new(0);
    let before = state_of(&heap);
    heap.validate().expect("nothing that is looked at is missing");
    assert_eq!(heap.lanes().expect("lanes").len(), 1);
    assert!(heap.dump_stats().expect("stats").contains("crowded"));
    for attached in [Heap::open("crowded").expect("open"), Heap::open_read_only("crowded").expect("open")] {
        attached.validate().expect("valid");
        assert_eq!(state_of(&attached), before);
        assert_eq!(attached.root("second"), Ok(None));
        assert!(attached.info(Offset::new(40 << 20).expect("not zero")).is_err(), "nothing stands there, nor is it touched");
        blocks.iter().zip(&sizes).for_each(|(block, size)| check_stamp(&attached, *block, *size, 4));
    }
    let error = refused(&heap, |heap| heap.allocate(1 << 20));
    assert!(matches!(error, Error::NoSpace { needed: 1_048_576.., available: 0 }), "{error:?}");
    // Bytes that are reserved can be used, by all, without more.
    let in_thread = std::thread::scope(|scope| scope.spawn(|| heap.recover()).join().expect("the thread ends"));
    assert_eq!(in_thread, Ok(0));
    blocks.iter().for_each(|block| heap.deallocate(*block).expect("free"));
    let again = heap.allocate(sizes[0]).expect("there is room in what the heap has");
    stamp(&heap, again, sizes[0], 5);
    drop(crowd);
    let large = heap.allocate(1 << 20).expect("the others have gone");
    stamp(&heap, large, 1 << 20, 6);
    check_stamp(&heap, again, sizes[0], 5);
    assert_emptied(&heap);
    say("done");
}

#[test]
fn a_heap_that_others_have_crowded_out_can_be_read_opened_and_emptied() {
    in_a_small_shm("a_heap_that_others_have_crowded_out_can_be_read_opened_and_emptied", "crowded out", &[]);
}

fn no_room_to_create() {
    if !mount_small_shm(1024) {
        return;
    }
    let mut outcomes = [0; 3];
    for pages_left in 0..60 {
        let crowd = Crowd::new(pages_left);
        let created = Heap::options().capacity(64 << 20).open_or_create("new");
        match created.and_then(|heap| heap.allocate(100).map(|block| (heap, block))) {
            Ok((heap, block)) => {
                outcomes[2] += 1;
                stamp(&heap, block, 100, 1);
                heap.validate().expect("valid");
                assert_emptied(&heap);
            }
            Err(error) => {
                assert_no_space(&error, 1 << 20);
                outcomes[usize::from(Path::new("/dev/shm/new").exists())] += 1;
            }
        }
        // A heap that could be created and could not allocate is empty and valid.
        if let Ok(heap) = Heap::open("new") {
            assert_is_empty(&heap);
            heap.destroy().expect("destroy");
        }
        drop(crowd);
        assert_eq!(std::fs::read_dir(SHM).expect("list").count(), 0, "with {pages_left} pages, something was left behind");
    }
    assert!(outcomes[0] > 0 && outcomes[2] > 0, "with few pages there is no heap, with more there is: {outcomes:?}");
    say("done");
}

#[test]
fn a_heap_that_finds_no_room_to_be_created_leaves_nothing_behind() {
    in_a_small_shm("a_heap_that_finds_no_room_to_be_created_leaves_nothing_behind", "no room to create", &[]);
}

/// One of the two that fill a heap: allocates until there is no space, and frees a half, five times.
fn fill_as_one_of_two() {
    let heap = Heap::open("shared").expect("open");
    let mut random = Random::new(number("INDEX") + 1);
    let mut held = Vec::new();
    for round in 0..5u64 {
        let error = loop {
            let size = 1 + random.below(9000);
            match heap.allocate(size) {
                Ok(block) => {
                    stamp(&heap, block, size, round);
                    held.push((block, size, round));
                }
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
        for _ in 0..held.len() / 2 {
            let (block, size, seed) = held.swap_remove(random.below(held.len()));
            check_stamp(&heap, block, size, seed);
            heap.deallocate(block).expect("free");
        }
    }
    say(&format!("{}", held.len()));
    hear();
    held.iter().for_each(|(block, size, seed)| check_stamp(&heap, *block, *size, *seed));
}

fn fill_together() {
    if !mount_small_shm(2048) {
        return;
    }
    let heap = Heap::options().capacity(64 << 20).create("shared").expect("create");
    let mut workers = Worker::start_many(2, "fill as one of two", &[]);
    let held: Vec<usize> = workers.iter_mut().map(|worker| worker.line().parse().expect("a number")).collect();
    heap.validate().expect("valid");
    assert_eq!(all_offsets(&heap).len(), held.iter().sum::<usize>());
    workers.into_iter().for_each(|worker| drop(worker.finish()));
    heap.recover().expect("recover");
    assert_emptied(&heap);
    say("done");
}

#[test]
fn two_processes_that_fill_dev_shm_together_both_go_on() {
    in_a_small_shm("two_processes_that_fill_dev_shm_together_both_go_on", "fill together", &[]);
}

fn roots_in_a_full_file_system() {
    if !mount_small_shm(1024) {
        return;
    }
    let heap = Heap::options().capacity(64 << 20).root_slots(2000).create("roots").expect("create");
    let block = heap.allocate(64).expect("room");
    let crowd = Crowd::new(3);
    let (mut published, mut refusals) = (Vec::new(), 0);
    for number in 0..500 {
        let name = format!("root {number}");
        match heap.insert_root(&name, block) {
            Ok(()) => published.push(name),
            Err(error) => {
                assert_no_space(&error, 1 << 20);
                refusals += 1;
            }
        }
    }
    assert!(refusals > 0 && !published.is_empty(), "{refusals} refused, {} published", published.len());
    heap.validate().expect("valid");
    assert!(published.iter().all(|name| heap.root(name) == Ok(Some(block))));
    assert_eq!(heap.roots().expect("roots").len(), published.len());
    assert_no_space(&refused(&heap, |heap| heap.find_or_construct("large", 1 << 20, |_| Ok(()))), 1 << 20);
    drop(crowd);
    for number in 0..500 {
        heap.set_root(&format!("root {number}"), block).expect("now there is room for all");
    }
    assert_eq!(heap.roots().expect("roots").len(), 500);
    assert_emptied(&heap);
    say("done");
}

#[test]
fn roots_that_find_no_room_are_refused_and_the_others_stay() {
    in_a_small_shm("roots_that_find_no_room_are_refused_and_the_others_stay", "roots", &[]);
}

#[test]
fn trim_tells_how_many_bytes_it_gave_back_to_the_system() {
    let (_segment, heap) = new_heap("trim");
    let blocks = [5_000_000, 300_000, 2_000_000, 40, 400].map(|size| heap.allocate(size).expect("room"));
    let taken = || heap.stats().expect("stats").taken;
    let mut before = taken();
    assert!(before > 7_300_000, "the blocks' memory is reserved");
    for block in blocks {
        heap.deallocate(block).expect("free");
        let given_back = heap.trim().expect("trim");
        let now = taken();
        assert_eq!(given_back, before - now, "of {before} bytes taken, {now} are left");
        before = now;
    }
    assert!(before < 500_000, "{before} bytes are taken by an empty heap");
    assert_eq!(heap.trim(), Ok(0), "there is nothing left to give back");
    assert_is_empty(&heap);
}
