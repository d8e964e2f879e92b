//! The pages on troubles hold, and what the README says of the command: each is staged, and its commands are run, in order.
//!
//! A block of `console` holds commands behind `$`, the exit code behind `?` where it is not 0, and what is printed, in which
//! `[..]` stands for any part of a line and `...` for any lines. Whatever pid a page shows as 4711 is that of the process on
//! the stage.

use std::path::Path;

use nix::sys::signal::{Signal, raise};
use shmheap::Heap;
use snapbox::{Assert, IntoData};

use crate::common::worker::parameter;
use crate::stage::Stage;

/// The pid that stands on the pages.
const PID: &str = "4711";

/// A command of a page.
#[derive(Debug)]
struct Step {
    command: String,
    code: i32,
    output: String,
}

/// The commands of a page.
fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.starts_with("```") {
            in_block = line == "```console";
        } else if !in_block {
            continue;
        } else if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { command: command.to_owned(), code: 0, output: String::new() });
        } else {
            let step = steps.last_mut().expect("a block begins with a command");
            match line.strip_prefix("? ").filter(|_| step.output.is_empty()) {
                Some(code) => step.code = code.parse().expect("an exit code"),
                None => step.output += &format!("{line}\n"),
            }
        }
    }
    steps
}

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/troubles").join(name);
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A stage whose /dev/shm has this size, which can be changed. A user who is root of a namespace only may not do that.
fn resizable(test: &str, size: &str) -> Option<Stage> {
    let mut stage = Stage::new(test, size)?;
    if stage.run(&format!("mount -o remount,size={size} /dev/shm")).code == 0 {
        return Some(stage);
    }
    eprintln!("skipped: {test} needs root, to change the size of a tmpfs");
    None
}

/// Runs a page on a stage, up to the first command that does not do what the page says.
#[track_caller]
fn holds(name: &str, stage: &mut Stage, pid: Option<i32>) {
    holds_text(name, &page(name), stage, pid);
}

/// As [`holds`], for the text of a page.
#[track_caller]
fn holds_text(name: &str, text: &str, stage: &mut Stage, pid: Option<i32>) {
    let text = pid.map_or_else(|| text.to_owned(), |pid| text.replace(PID, &pid.to_string()));
    let steps = steps(&text);
    assert!(steps.len() >= 2, "{name} shows the trouble and mends it");
    for Step { command, code, output } in steps {
        let ended = stage.run(&command);
        assert_eq!(ended.code, code, "{name}: {command} printed\n{}", ended.text);
        let compared =
            Assert::new().normalize_paths(false).try_eq(Some(&command), ended.text.clone().into_data(), output.into_data());
        if let Err(error) = compared {
            panic!("{name}: {command} printed\n{}\n{error}", ended.text);
        }
    }
}

/// A process that stands still with a block in its hands.
pub(crate) fn stop_at_work() {
    let heap = Heap::open(&parameter("HEAP")).expect("the heap is there");
    let block = heap.allocate(1000).expect("room");
    raise(Signal::SIGSTOP).expect("it stops");
    heap.deallocate(block).expect("the block is its own");
}

/// A process that stands still with the heap lock in its hands.
pub(crate) fn stop_with_the_lock() {
    let heap = Heap::open(&parameter("HEAP")).expect("the heap is there");
    let frozen = heap.freeze().expect("nobody is in the way");
    raise(Signal::SIGSTOP).expect("it stops");
    drop(frozen);
}

#[test]
fn the_commands_of_the_readme_print_what_it_says() {
    let Some(mut stage) = Stage::new("the_commands_of_the_readme_print_what_it_says", "64M") else { return };
    let readme = include_str!("../../README.md");
    let (_, section) = readme.split_once("\n## The command\n").expect("the README tells of the command");
    let (section, _) = section.split_once("\n## ").expect("other sections follow");
    holds_text("README.md", section, &mut stage, None);
}

#[test]
fn the_page_on_a_full_dev_shm_holds() {
    let Some(mut stage) = resizable("the_page_on_a_full_dev_shm_holds", "8M") else { return };
    stage.prepare(&[
        "head -c 7M /dev/zero >bytes && shmheap create yesterday && shmheap put yesterday bytes --file bytes",
        "head -c 2M /dev/zero >photo.png && shmheap create orders",
    ]);
    holds("full-dev-shm.md", &mut stage, None);
}

#[test]
fn the_page_on_a_stuck_process_holds() {
    let Some(mut stage) = Stage::new("the_page_on_a_stuck_process_holds", "64M") else { return };
    stage.prepare(&["shmheap create orders"]);
    let pid = stage.start("stop with the lock", "orders");
    stage.await_state(pid, 'T');
    holds("stuck-process.md", &mut stage, Some(pid));
}

#[test]
fn the_page_on_leftovers_holds() {
    let Some(mut stage) = Stage::new("the_page_on_leftovers_holds", "64M") else { return };
    stage.prepare(&[
        "shmheap create yesterday && shmheap put yesterday greeting hello",
        "shmheap create sessions && truncate -s 16M /dev/shm/sessions",
        ": >/dev/shm/.shmheap-new-0123456789abcdef0123456789abcdef",
    ]);
    holds("leftovers.md", &mut stage, None);
}

#[test]
fn the_page_on_containers_holds() {
    let Some(mut stage) = resizable("the_page_on_containers_holds", "64M") else { return };
    // What makes it look like a container is hidden again with the stage.
    stage.prepare(&["mount -t tmpfs tmpfs /run && : >/run/.containerenv"]);
    holds("container.md", &mut stage, None);
}

#[test]
fn the_page_on_owners_and_modes_holds() {
    let test = "the_page_on_owners_and_modes_holds";
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: {test} needs root, to act as another user");
        return;
    }
    let Some(mut stage) = Stage::new(test, "64M") else { return };
    if stage.run("id -u www-data").code != 0 || stage.run("command -v setpriv").code != 0 {
        eprintln!("skipped: {test} needs a user www-data and setpriv(1)");
        return;
    }
    // Where the program was built, others may not look.
    let program = stage.folder().join("tools/shmheap");
    std::fs::copy(env!("CARGO_BIN_EXE_shmheap"), program).expect("the program can be copied");
    stage.prepare(&[
        "shmheap create orders && chown www-data /dev/shm/orders",
        "shmheap create invoices && chmod 666 /dev/shm/invoices",
        "shmheap create ledger",
    ]);
    holds("wrong-owner.md", &mut stage, None);
}

#[test]
fn the_page_on_killed_workers_holds() {
    let Some(mut stage) = Stage::new("the_page_on_killed_workers_holds", "256M") else { return };
    stage.prepare(&["shmheap create orders && shmheap create sessions"]);
    let kill = |stage: &mut Stage, pid: i32| {
        stage.await_state(pid, 'T');
        stage.run(&format!("kill -KILL {pid}; wait {pid}"));
    };
    let at_work = stage.start("stop at work", "orders");
    kill(&mut stage, at_work);
    let with_lock = stage.start("stop with the lock", "sessions");
    kill(&mut stage, with_lock);
    holds("killed-worker.md", &mut stage, Some(with_lock));
}

#[test]
fn the_page_on_damaged_heaps_holds() {
    let Some(mut stage) = Stage::new("the_page_on_damaged_heaps_holds", "256M") else { return };
    stage.prepare(&[
        "shmheap create orders && shmheap put orders status ready && head -c 2M /dev/zero >photo.png",
        "shmheap put orders photo --file photo.png && shmheap save orders orders.image",
        DAMAGE,
    ]);
    holds("damaged-heap.md", &mut stage, None);
}

/// Overwrites the entry of a page. The tables begin behind the pages, and with the entries; the pages begin where the first
/// block stands; and the ninth page is one of the photo's.
pub(crate) const DAMAGE: &str = "number() { sed -n \"s/.*\\\"$1\\\": \\([0-9]*\\).*/\\1/p\" numbers \
                      | sort -n | head -n 1; }; \
                      shmheap stat orders --json >numbers; \
                      printf '\\377\\377\\377\\377' | dd of=/dev/shm/orders bs=1 conv=notrunc status=none \
                      seek=$(($(number block) + $(number pages_bytes) + 64))";

#[test]
fn every_page_is_in_the_index_and_every_entry_leads_to_a_page() {
    let index = page("README.md");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/troubles");
    let entries = std::fs::read_dir(folder).expect("the pages are there").flatten();
    let mut pages: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    pages.retain(|name| name != "README.md");
    let linked = |text: &str| text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect();
    let mut links: Vec<String> = linked(&index);
    pages.sort();
    links.sort();
    links.dedup();
    assert_eq!(pages, links);
    let tested = include_str!("troubles.rs");
    let untested: Vec<&String> = pages.iter().filter(|name| !tested.contains(&format!("holds(\"{name}\""))).collect();
    assert_eq!(untested, Vec::<&String>::new(), "each page has a test");
}
