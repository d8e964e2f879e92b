//! `save`, `load`, `verify`, `diff`.

use crate::harness::{Heap, fine, json, refused, run};

#[test]
fn a_heap_is_saved_verified_loaded_and_compared() {
    let (heap, again) = (Heap::new("saved"), Heap::unborn("loaded"));
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name).display().to_string());
    fine(&["put", heap.name(), "greeting", "hello"]);
    let saved = fine(&["save", heap.name(), &first]);
    assert!(saved.contains("1 block of 32 B, 1 root") && saved.contains("compression none"), "{saved}");
    assert!(fine(&["verify", &first]).contains("every byte is as it was saved"));
    fine(&["load", &first, again.name(), "--capacity", "32M"]);
    assert_eq!(fine(&["get", again.name(), "greeting"]), "hello");
    assert_eq!(json(&["stat", again.name()])["capacity"], 32 << 20);

    fine(&["put", again.name(), "greeting", "goodbye"]);
    fine(&["put", again.name(), "more", "text"]);
    let saved = json(&["save", again.name(), &second, "--freeze", "--compress", "zstd"]);
    assert_eq!((&saved["compression"], &saved["blocks"]), (&"zstd".into(), &2.into()));
    let changed = run(&["diff", &first, &second]);
    assert_eq!(changed.code, 1, "{changed:?}");
    assert!(changed.stdout.contains("~ root greeting") && changed.stdout.contains("+ root more"), "{changed:?}");
    assert!(fine(&["diff", &first, &first]).contains("the same: 1 block and all roots"));
}

#[test]
fn what_is_no_whole_image_is_told_from_one_that_is_not_there() {
    let heap = Heap::new("image-errors");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image").display().to_string();
    fine(&["put", heap.name(), "greeting", "hello"]);
    fine(&["save", heap.name(), &image]);
    assert!(refused(3, &["verify", "/nonexistent"]).contains("there is no image at /nonexistent"));
    assert!(refused(3, &["save", heap.name(), "/nonexistent/image"]).contains("the folder of"));
    assert!(refused(3, &["load", &image, heap.name()]).contains("exists already"));
    let again = Heap::unborn("too-small");
    assert!(refused(2, &["load", &image, again.name(), "--capacity", "1M"]).contains("smaller than"));

    let mut bytes = std::fs::read(&image).expect("the image is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&image, bytes).expect("it can be changed");
    assert!(refused(1, &["verify", &image]).contains("damaged"));
    assert!(refused(1, &["load", &image, again.name()]).contains("damaged"));
    assert!(!again.path().exists(), "nothing was made of a damaged image");
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    assert!(refused(1, &["verify", &pipe.display().to_string()]).contains("no regular file"), "nobody waits for a writer");
    std::fs::write(&image, [7; 4096]).expect("it can be changed");
    assert!(refused(1, &["diff", &image, &image]).contains("is not an image"));
}

#[test]
fn heaps_in_files_are_named_by_their_paths() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("heap").display().to_string();
    fine(&["create", &path, "--capacity", "1M"]);
    fine(&["put", &path, "greeting", "hello"]);
    assert_eq!(fine(&["get", &path, "greeting"]), "hello");
    assert!(fine(&["validate", &path]).contains("sound"));
    let attached = shmheap::Heap::options().open_file(&path).expect("it is there");
    assert!(refused(3, &["rm", &path]).contains("in use"), "this process has it mapped");
    drop(attached);
    fine(&["rm", &path]);
    assert!(refused(3, &["stat", &path]).contains("there is no file"));
}
