//! `put`, `get`, `del`, `roots`, `blocks`, `dump`.

use std::io::Write;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Heap, fine, json, program, refused, run};

/// How long a value is read that is replaced all the time.
const READING_MAX: Duration = Duration::from_secs(10);

/// Stores what is written to the program's standard input.
fn put_stdin(heap: &Heap, root: &str, bytes: &[u8]) {
    let mut child = program()
        .args(["put", heap.name(), root])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the program can be started");
    child.stdin.take().expect("it was piped").write_all(bytes).expect("it reads");
    assert!(child.wait().expect("it ends").success());
}

fn get(heap: &Heap, root: &str) -> Vec<u8> {
    program().args(["get", heap.name(), root]).output().expect("the program can be started").stdout
}

#[test]
fn what_was_put_comes_out_as_it_went_in() {
    let heap = Heap::new("put");
    let noise: Vec<u8> = (0..100_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for value in [b"".as_slice(), b"one line\n", b"zeros at the end\0\0\0", &[0; 4096], &noise] {
        put_stdin(&heap, "value", value);
        assert_eq!(get(&heap, "value"), value, "{} bytes", value.len());
    }
    assert_eq!(heap.open().stats().expect("stats").allocated_blocks, 1, "the earlier ones were freed");
    fine(&["del", heap.name(), "value"]);
    assert_eq!(heap.open().stats().expect("stats").used, 0);
    assert!(refused(3, &["get", heap.name(), "value"]).contains("shmheap roots"));
}

#[test]
fn text_and_files_are_put_and_written() {
    let heap = Heap::new("files");
    let folder = tempfile::tempdir().expect("a folder");
    let [source, target] = ["source", "target"].map(|name| folder.path().join(name).display().to_string());
    std::fs::write(&source, "from a file").expect("a file");
    fine(&["put", heap.name(), "text", "as an argument"]);
    fine(&["put", heap.name(), "file", "--file", &source]);
    fine(&["get", heap.name(), "file", "--out", &target]);
    assert_eq!(fine(&["get", heap.name(), "text"]), "as an argument");
    assert_eq!(std::fs::read_to_string(&target).expect("it was written"), "from a file");
    assert_eq!(json(&["get", heap.name(), "text"])["text"], "as an argument");
    assert_eq!(json(&["roots", heap.name()])["roots"][0]["begins_with"], "from a file");
    let listed = fine(&["roots", heap.name()]);
    assert!(listed.contains("from a file\n") && listed.contains("2 roots"), "{listed}");
    assert!(refused(3, &["put", heap.name(), "text", "again", "--new"]).contains("already"));
    assert!(refused(3, &["put", heap.name(), "x", "--file", "/nonexistent"]).contains("/nonexistent"));
}

#[test]
fn a_block_that_a_program_has_made_is_read_whole_and_not_replaced_unless_forced() {
    let heap = Heap::new("foreign");
    let attached = heap.open();
    let block = attached.allocate_zeroed(64).expect("room");
    attached.copy_in(block, b"made by a program").expect("it fits");
    attached.set_root("made", block).expect("a root");
    assert_eq!(get(&heap, "made").len(), 64);
    assert_eq!(fine(&["get", heap.name(), "made", "--len", "4"]), "made");
    assert!(refused(3, &["get", heap.name(), "made", "--len", "65"]).contains("64 usable bytes"));
    for command in [["put", heap.name(), "made", "new"].as_slice(), &["del", heap.name(), "made"]] {
        assert!(refused(3, command).contains("--force"));
    }
    assert_eq!(attached.root("made").expect("roots"), Some(block));
    fine(&["del", heap.name(), "made", "--keep-block"]);
    assert!(attached.info(block).is_ok(), "the block was kept");
}

#[test]
fn readers_see_the_old_value_or_the_new_one_while_it_is_replaced() {
    let heap = Heap::new("race");
    let values = ["a".repeat(90_000), "b".repeat(120_000)];
    fine(&["put", heap.name(), "value", &values[0]]);
    let mut writers: Vec<_> = (0..20)
        .map(|number| program().args(["put", heap.name(), "value", &values[number % 2]]).stdout(Stdio::null()).spawn())
        .collect();
    for _ in 0..20 {
        let seen = fine(&["get", heap.name(), "value"]);
        assert!(values.contains(&seen), "{} bytes, {:.20}", seen.len(), seen);
    }
    for writer in &mut writers {
        assert!(writer.as_mut().expect("it was started").wait().expect("it ends").success());
    }
    let attached = heap.open();
    attached.validate().expect("the heap is sound");
    assert_eq!(attached.stats().expect("stats").allocated_blocks, 1, "each value that was replaced was freed once");
}

/// What `put` does, over and over: the value is replaced while it is read, by one in the block that the one before it had.
fn replace_until(heap: &shmheap::Heap, values: &[Vec<u8>; 2], is_enough: &AtomicBool) -> shmheap::Result<()> {
    for number in 0u64.. {
        if is_enough.load(Ordering::Relaxed) {
            break;
        }
        let value = &values[usize::from(number % 2 == 0)];
        let block = heap.allocate_zeroed(value.len() + 24)?;
        heap.copy_in(block, value)?;
        let words = [u64::from_le_bytes(*b"put-len\0"), value.len() as u64, number | 1 << 63].map(u64::to_le_bytes);
        heap.copy_in_at(block, heap.usable_size(block)? - 24, words.as_flattened())?;
        let old = heap.set_root("value", block)?;
        old.map_or(Ok(()), |old| heap.deallocate(old))?;
    }
    Ok(())
}

#[test]
fn no_reader_sees_a_part_of_one_value_and_a_part_of_another() {
    let heap = Heap::new("torn");
    let attached = heap.open();
    let values = [vec![b'a'; 2 << 20], vec![b'b'; 2 << 20]];
    let (is_enough, started) = (AtomicBool::new(false), Instant::now());
    let (mut whole, mut torn) = (0, None);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| replace_until(&attached, &values, &is_enough));
        while whole < 60 && torn.is_none() && started.elapsed() < READING_MAX {
            let ran = program().args(["get", heap.name(), "value"]).output().expect("the program can be started");
            match ran.status.code() {
                Some(0) if values.contains(&ran.stdout) => whole += 1,
                // It says so where it is replaced each time that it is read, and before there is one.
                Some(3) => {}
                _ => torn = Some(ran),
            }
        }
        is_enough.store(true, Ordering::Relaxed);
        writer.join().expect("it ends").expect("it can be replaced");
    });
    let torn = torn.map(|ran| (ran.status, ran.stdout.len(), String::from_utf8_lossy(&ran.stderr).into_owned()));
    assert_eq!(torn, None, "after {whole} whole ones");
    assert!(whole > 0, "nothing was read");
}

#[test]
fn blocks_are_listed_by_size_lane_and_root() {
    let heap = Heap::new("blocks");
    let attached = heap.open();
    let small = attached.allocate(100).expect("room");
    attached.allocate(100_000).expect("room");
    attached.set_root("small", small).expect("a root");
    let list = json(&["blocks", heap.name(), "--sort", "size"]);
    assert_eq!((list["total"].as_u64(), list["blocks"][0]["large"].as_bool()), (Some(2), Some(true)));
    assert_eq!(list["blocks"][1]["root"], "small");
    assert_eq!(list["blocks"][1]["pid"].as_u64(), Some(u64::from(std::process::id())));
    let few = fine(&["blocks", heap.name(), "--min", "64K"]);
    assert!(few.contains("large") && few.contains("1 block of"), "{few}");
    assert!(fine(&["blocks", heap.name(), "-n", "1"]).contains("1 are not shown"));
    let lane = list["blocks"][1]["lane"].to_string();
    assert_eq!(json(&["blocks", heap.name(), "--lane", &lane])["total"], 2);
    assert_eq!(json(&["blocks", heap.name(), "--lane", "0"])["total"], 0);
    drop(attached);
    assert_eq!(json(&["blocks", heap.name(), "--lane", "0"])["total"], 2, "they are orphans now");
}

#[test]
fn a_block_is_dumped_by_its_offset_by_one_inside_of_it_and_by_its_root() {
    let heap = Heap::new("dump");
    let attached = heap.open();
    let block = attached.allocate_zeroed(512).expect("room");
    attached.copy_in(block, b"0123456789abcdef0123").expect("it fits");
    attached.set_root("r", block).expect("a root");
    let by_root = fine(&["dump", heap.name(), "r"]);
    assert!(by_root.contains("512 bytes") && by_root.contains("0123456789abcdef"), "{by_root}");
    assert!(by_root.contains("256 bytes more; --all"), "{by_root}");
    assert_eq!(fine(&["dump", heap.name(), &format!("{:#x}", block.get())]), by_root);
    let inside = json(&["dump", heap.name(), &(block.get() + 16).to_string(), "--len", "4"]);
    assert_eq!((&inside["block"], &inside["bytes"]), (&block.get().into(), &"30313233".into()));
    assert_eq!(json(&["dump", heap.name(), "r", "--all"])["bytes"].as_str().map(str::len), Some(1024));
    assert!(refused(3, &["dump", heap.name(), "0x10"]).contains("shmheap blocks"));
    assert!(refused(3, &["dump", heap.name(), "nobody"]).contains("neither an offset nor a root"));
    attached.deallocate(block).expect("it is freed");
    assert!(refused(3, &["dump", heap.name(), &(block.get() + 16).to_string()]).contains("no block is allocated"));
}

#[test]
fn a_root_whose_block_is_gone_is_told_from_one_that_does_not_exist() {
    let heap = Heap::new("gone");
    let attached = heap.open();
    let block = attached.allocate(64).expect("room");
    attached.set_root("r", block).expect("a root");
    attached.deallocate(block).expect("it is freed");
    for command in ["get", "dump"] {
        assert!(refused(1, &[command, heap.name(), "r"]).contains("was freed, or is damaged"));
        assert_eq!(run(&[command, heap.name(), "s"]).code, 3);
    }
}

#[test]
fn nobody_waits_for_one_who_is_still_writing_the_value() {
    let heap = Heap::new("slow");
    let mut slow = program()
        .args(["put", heap.name(), "value"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the program can be started");
    fine(&["rm", heap.name()]);
    drop(slow.stdin.take());
    let ended = slow.wait_with_output().expect("it ends");
    assert_eq!(ended.status.code(), Some(3), "the heap is gone, and so would be the value: {ended:?}");
}
