//! The shortest useful program: put something into a heap, find it again by name, and tidy up.
//!
//! `cargo run --example basic`

use shmheap::Heap;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let greeting = b"hello from shared memory";

    // Another process could be the one that does this.
    let heap = Heap::options().capacity(1 << 20).create("shmheap-basic")?;
    let block = heap.allocate(greeting.len())?;
    heap.copy_in(block, greeting)?;
    heap.set_root("greeting", block)?;
    drop(heap);

    // From here on, only the two names are needed: the heap's, and the root's.
    let heap = Heap::open("shmheap-basic")?;
    let block = heap.root("greeting")?.ok_or("the root is gone")?;
    let mut bytes = vec![0; greeting.len()];
    heap.copy_out(block, &mut bytes)?;
    println!("at offset {block}: {}", String::from_utf8(bytes)?);

    heap.remove_root("greeting")?;
    heap.deallocate(block)?;
    heap.destroy()?;
    Ok(())
}
