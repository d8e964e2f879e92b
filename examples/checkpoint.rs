//! A heap that outlives the machine: workers fill it, it is saved while they work, all of them are killed, and the image is
//! loaded under another name and with twice the capacity. Everything that can be reached is checked.
//!
//! `cargo run --example checkpoint`

use std::error::Error;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use shmheap::{Heap, Offset, verify};

const WORKERS: usize = 3;
/// A node: the offset of the next one, its own number, and as many bytes of that number as it has.
const HEAD: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, name, root] = arguments.as_slice() {
        return work(&Heap::open(name)?, root);
    }
    let name = format!("shmheap-checkpoint-{}", std::process::id());
    let restored_name = format!("{name}-restored");
    let image = std::env::temp_dir().join(format!("{name}.img"));

    let heap = Heap::options().capacity(64 << 20).create(&name)?;
    let mut workers = (0..WORKERS).map(|number| start(&name, number)).collect::<Result<Vec<_>, _>>()?;
    let started = Instant::now();
    while heap.used_size()? < 8 << 20 && started.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(10));
    }
    // A node is whole before a root leads to it, and roots do not change while the heap is frozen: so what the roots lead to
    // is whole in the image.
    let saved = heap.freeze()?.save(&image)?;
    println!("saved while {WORKERS} workers were at work: {saved}");

    for worker in &mut workers {
        worker.kill()?;
        worker.wait()?;
    }
    heap.destroy()?;

    println!("verified: {}", verify(&image)?);
    let restored = Heap::options().capacity(128 << 20).load(&image, &restored_name)?;
    restored.validate()?;
    let lengths = (0..WORKERS).map(|number| check_list(&restored, &root_of(number))).collect::<Result<Vec<_>, _>>()?;
    println!("loaded as {restored_name}: lists of {lengths:?} nodes, all whole");
    std::fs::remove_file(&image)?;
    restored.destroy()?;
    Ok(())
}

fn root_of(number: usize) -> String {
    format!("list {number}")
}

fn start(name: &str, number: usize) -> std::io::Result<Child> {
    Command::new(std::env::current_exe()?).args([name, &root_of(number)]).spawn()
}

/// Pushes nodes to a list, until killed or there are enough; takes the first one off again now and then.
fn work(heap: &Heap, root: &str) -> Result<(), Box<dyn Error>> {
    let mut first: Option<Offset> = None;
    for number in 0u64..20_000 {
        let mut node = vec![u8::try_from(number % 251)?; HEAD + usize::try_from(number * 7 % 2000)?];
        node[..8].copy_from_slice(&first.map_or(0, Offset::get).to_ne_bytes());
        node[8..HEAD].copy_from_slice(&number.to_ne_bytes());
        let block = heap.allocate(node.len())?;
        heap.copy_in(block, &node)?;
        heap.set_root(root, block)?;
        if number % 3 == 2
            && let Some(second) = first
        {
            heap.set_root(root, second)?;
            heap.deallocate(block)?;
        } else {
            first = Some(block);
        }
    }
    Ok(())
}

/// Follows a list to its end; returns how many nodes it has.
fn check_list(heap: &Heap, root: &str) -> Result<u64, Box<dyn Error>> {
    let word = |block: Offset, at: usize| -> shmheap::Result<u64> {
        let mut bytes = [0; 8];
        heap.copy_out_at(block, at, &mut bytes).map(|()| u64::from_ne_bytes(bytes))
    };
    let mut next = heap.root(root)?;
    let mut count = 0;
    while let Some(block) = next {
        let number = word(block, 8)?;
        let mut bytes = vec![0; usize::try_from(number * 7 % 2000)?];
        heap.copy_out_at(block, HEAD, &mut bytes)?;
        if bytes.iter().any(|byte| u64::from(*byte) != number % 251) {
            return Err(format!("node {number} at {block} is damaged").into());
        }
        next = Offset::new(word(block, 0)?);
        count += 1;
    }
    Ok(count)
}
