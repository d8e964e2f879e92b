//! The inputs that are kept: those that reach the most of the library, and all that were findings.

use std::fs;
use std::path::{Path, PathBuf};

use super::targets;

/// The files of a folder, in the order of their names.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a folder can be listed").path()).collect();
    files.sort();
    files
}

/// Runs a target over its inputs; the name of each is written down first, for the case that it ends the program.
fn replay(target: &str, run: fn(&[u8])) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    let corpus = files(&fuzz.join("corpus").join(target));
    assert!(corpus.len() > 100, "the corpus of {target} is not where it was");
    for file in corpus.into_iter().chain(files(&fuzz.join("findings").join(target))) {
        let input = fs::read(&file).expect("an input can be read");
        println!("{}", file.display());
        run(&input);
    }
}

#[test]
fn the_inputs_of_region_come_to_an_end() {
    replay("region", targets::region);
}

#[test]
fn the_inputs_of_scribble_come_to_an_end() {
    replay("scribble", targets::scribble);
}

#[test]
fn the_inputs_of_image_come_to_an_end() {
    replay("image", targets::image);
}
