//! What the shell completes beyond the names of subcommands and options.
//!
//! Not here: the names of heaps (`place`).

use std::ffi::OsStr;

use clap_complete::CompletionCandidate;

use crate::place::Place;
use crate::units;

/// Completes the name of a root of the heap that the command line names: the word after the subcommand.
pub(crate) fn roots(start: &OsStr) -> Vec<CompletionCandidate> {
    // The shell's words follow the first `--`: the program, the subcommand, the heap.
    let mut words = std::env::args().skip_while(|word| word != "--").skip(3);
    let place = words.find(|word| !word.starts_with('-')).and_then(|word| Place::parse(&word).ok());
    let Some(heap) = place.and_then(|place| place.open_read_only().ok()) else { return Vec::new() };
    let start = start.to_string_lossy();
    let roots = heap.roots().unwrap_or_default().into_iter().filter(|root| root.name.starts_with(&*start));
    let candidate = |root: shmheap::RootInfo| {
        let size = root.block.and_then(|block| heap.usable_size(block).ok());
        CompletionCandidate::new(root.name).help(size.map(|size| units::size(size as u64).into()))
    };
    roots.map(candidate).collect()
}
