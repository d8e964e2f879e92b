//! A counter that outlives the process: run this three times.
//!
//! `cargo run --example restart` finds the counter where the last run left it; the third run destroys the heap, and so
//! does `cargo run --example restart -- --forget`.

use shmheap::{Error, Heap};

const NAME: &str = "shmheap-restart-demo";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().any(|argument| argument == "--forget") {
        match Heap::unlink(NAME) {
            Err(Error::NotFound { .. }) => println!("there is nothing to forget"),
            unlinked => unlinked.map(|()| println!("forgotten"))?,
        }
        return Ok(());
    }

    let heap = Heap::options().capacity(1 << 20).open_or_create(NAME)?;
    // The block comes zeroed, and zero is where this counter starts: nothing is left to construct.
    let counter = heap.find_or_construct("counter", size_of::<u64>(), |_| Ok(()))?;

    let mut bytes = [0; size_of::<u64>()];
    heap.copy_out(counter, &mut bytes)?;
    let runs = u64::from_ne_bytes(bytes) + 1;
    heap.copy_in(counter, &runs.to_ne_bytes())?;
    println!("run {runs}, process {}", std::process::id());

    if runs >= 3 {
        heap.destroy()?;
        println!("that was the third: the heap is destroyed, the next run starts at 1");
    }
    Ok(())
}
