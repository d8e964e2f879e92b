//! How long it takes to save an image and to load it, beside a plain copy of the same bytes, in memory and on disk.
//!
//! The plain copy reads and writes a mebibyte at a time and ends with an fsync, as a save does. All four take turns.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use shmheap::Heap;

use crate::allocators::{Kind, Place, Shmheap};
use crate::random::Random;
use crate::results::ImagesRow;
use crate::timed::median;
use crate::workload::Sizes;

const ROUNDS: usize = 7;
const STEP: usize = 1 << 20;

/// A row for images in memory, and one for images on the disk of the directory for temporary files.
pub(crate) fn measure(quick: bool) -> Result<Vec<ImagesRow>> {
    let data: u64 = if quick { 64 << 20 } else { 256 << 20 };
    let name = Place::name(Kind::Shmheap, "images");
    let allocator = Shmheap::create(&name, 1 << 30)?;
    fill(allocator.heap(), data)?;
    let rows = [("memory", "/dev/shm".into()), ("disk", std::env::temp_dir())];
    rows.into_iter().map(|(what, directory)| row(what, &directory, &name, allocator.heap())).collect()
}

/// Fills blocks of mixed sizes with bytes that do not compress.
fn fill(heap: &Heap, bytes: u64) -> Result<()> {
    let mut random = Random::new(1);
    let mut done = 0;
    while done < bytes {
        let block = heap.allocate(Sizes::Mixed.draw(&mut random))?;
        let size = heap.usable_size(block)?;
        let content: Vec<u8> = (0..size.div_ceil(8)).flat_map(|_| random.next().to_ne_bytes()).collect();
        heap.copy_in(block, &content[..size])?;
        done += size as u64;
    }
    Ok(())
}

fn row(what: &str, directory: &Path, name: &str, heap: &Heap) -> Result<ImagesRow> {
    let path = |kind: &str| directory.join(format!("{name}-{kind}"));
    let (image, copied) = (path("image"), path("copy"));
    let (loaded, copied_back) = (format!("{name}-loaded"), Path::new("/dev/shm").join(format!("{name}-back")));
    let mut columns: [Vec<f64>; 4] = Default::default();
    let mut bytes = 0;
    for _ in 0..ROUNDS {
        let clear = || [&image, &copied, &copied_back].iter().for_each(|path| _ = std::fs::remove_file(path));
        clear();
        let start = Instant::now();
        bytes = heap.save(&image)?.image_len;
        columns[0].push(milliseconds(start));
        let start = Instant::now();
        copy(&image, &copied)?;
        columns[1].push(milliseconds(start));
        let start = Instant::now();
        let restored = Heap::load(&image, &loaded)?;
        columns[2].push(milliseconds(start));
        restored.destroy()?;
        let start = Instant::now();
        copy(&image, &copied_back)?;
        columns[3].push(milliseconds(start));
        clear();
    }
    let [save, copy_out, load, copy_in] = columns.map(median);
    Ok(ImagesRow { what: what.to_owned(), bytes, save, copy_out, load, copy_in })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let (mut from, mut to) = (File::open(from)?, File::create(to)?);
    let mut buffer = vec![0; STEP];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        to.write_all(&buffer[..read])?;
    }
    Ok(to.sync_all()?)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
