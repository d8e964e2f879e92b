//! What the library needs of the kernel: a version, and calls that a sandbox may forbid.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use shmheap::Heap;

use super::Finding;
use super::system::System;

/// The first kernel with each thing that is needed or of use, oldest first.
const OFD_LOCKS: (u32, u32) = (3, 15);
const MEMFD: (u32, u32) = (3, 17);
const MEMBARRIER: (u32, u32) = (4, 3);
const POPULATE_WRITE: (u32, u32) = (5, 14);

pub(super) fn checks(system: &System) -> Vec<Finding> {
    let mut findings = vec![version(system), proc(system)];
    if system.is_live() {
        findings.push(freezing(try_to_freeze()));
        findings
            .push(nameless(File::options().read(true).write(true).custom_flags(OFlag::O_TMPFILE.bits()).open("/dev/shm")));
    }
    findings.push(huge_pages(system));
    findings
}

/// The first two numbers of a version.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|character: char| !character.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn version(system: &System) -> Finding {
    const CHECK: &str = "kernel";
    let release = system.read("proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let Some(version) = parse_version(release) else {
        return Finding::note(CHECK, "the kernel's version cannot be told: /proc/sys/kernel/osrelease does not say");
    };
    let newer = "install a kernel of 5.14 or newer";
    let finding = if version < OFD_LOCKS {
        let found = format!("Linux {release} has no locks of open files (3.15 and newer): no heap can be used");
        Finding::problem(CHECK, found).remedy(newer)
    } else if version < MEMFD {
        let found = format!("Linux {release} has no memfd (3.17 and newer): heaps without a name cannot be created");
        Finding::problem(CHECK, found).remedy(newer)
    } else if version < MEMBARRIER {
        let found = format!("Linux {release} has no membarrier (4.3 and newer): freeze and save of a heap in use fail");
        Finding::problem(CHECK, found).remedy(newer)
    } else if version < POPULATE_WRITE {
        let found = format!("Linux {release} works; 5.14 and newer touch the pages of an allocation with fewer faults");
        Finding::note(CHECK, found)
    } else {
        Finding::fine(CHECK, format!("Linux {release} has all that is of use"))
    };
    finding.numbers([("major", version.0.into()), ("minor", version.1.into())])
}

fn proc(system: &System) -> Finding {
    const CHECK: &str = "/proc";
    match system.exists("proc/self/stat") {
        true => Finding::fine(CHECK, "mounted"),
        false => {
            let found = "not mounted: heaps cannot be created under a name, a forked child cannot use its parent's, and \
                         who uses a heap has no name";
            Finding::problem(CHECK, found).remedy("sudo mount -t proc proc /proc")
        }
    }
}

/// Freezes a heap that nobody else sees: that takes memfd_create(2) and membarrier(2).
fn try_to_freeze() -> shmheap::Result<()> {
    let heap = Heap::options().capacity(1 << 20).create_anonymous()?;
    heap.freeze().map(drop)
}

fn freezing(outcome: shmheap::Result<()>) -> Finding {
    const CHECK: &str = "calls";
    match outcome {
        Ok(()) => Finding::fine(CHECK, "memfd_create and membarrier work"),
        Err(error) => {
            let found = format!("a heap cannot be created and frozen here: {error}");
            Finding::problem(CHECK, found).remedy(
                "allow memfd_create and membarrier in the sandbox (docker run --security-opt seccomp=profile.json ...)",
            )
        }
    }
}

fn nameless(opened: std::io::Result<File>) -> Finding {
    const CHECK: &str = "O_TMPFILE";
    match opened {
        Ok(_) => Finding::fine(CHECK, "/dev/shm can hold files without a name: a creator that dies leaves nothing"),
        Err(error) => {
            let found =
                format!("/dev/shm has no files without a name ({error}): a creator that dies leaves a temporary one");
            Finding::note(CHECK, found).remedy("shmheap gc removes what was left")
        }
    }
}

fn huge_pages(system: &System) -> Finding {
    const CHECK: &str = "huge pages";
    let text = system.read("sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    match text.split(['[', ']']).nth(1) {
        Some(chosen @ ("always" | "force")) => {
            let found = format!("shmem_enabled is {chosen}: a heap takes memory 2 MiB at a time, more than it uses");
            Finding::note(CHECK, found).remedy("echo advise | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled")
        }
        Some(chosen) => Finding::fine(CHECK, format!("shmem_enabled is {chosen}")),
        None => Finding::fine(CHECK, "the kernel has none for shared memory"),
    }
}

#[cfg(test)]
mod tests {
    use shmheap::Error;

    use super::super::Grade;
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(parse_version("5.14.0-70.el9"), Some((5, 14)));
        assert_eq!(parse_version("6.18-rc1"), Some((6, 18)));
        assert!(parse_version("4.19").expect("a version") < POPULATE_WRITE);
        assert_eq!((parse_version(""), parse_version("six")), (None, None));
    }

    #[test]
    fn a_call_that_is_forbidden_is_a_problem_that_names_it() {
        let finding = freezing(Err(Error::System { call: "membarrier", errno: 38 }));
        assert_eq!(finding.grade, Grade::Problem);
        assert!(finding.found.contains("membarrier failed") && finding.remedy.is_some(), "{finding:?}");
        assert_eq!(freezing(Ok(())).grade, Grade::Fine);
    }

    #[test]
    fn a_file_system_without_nameless_files_is_a_note() {
        let finding = nameless(Err(std::io::Error::from_raw_os_error(95)));
        assert_eq!((finding.grade, finding.remedy.is_some()), (Grade::Note, true));
    }
}
