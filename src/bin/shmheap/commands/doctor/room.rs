//! The room that heaps have: /dev/shm, the container around it, and the memory behind it.

use std::path::Path;

use nix::unistd::{AccessFlags, access};

use super::Finding;
use super::system::{Space, System};
use crate::units::{percent, ratio, size};

/// What Docker, Podman and Kubernetes give a container, unless told otherwise.
const CONTAINER_DEFAULT: u64 = 64 << 20;
/// With less room than this, hardly anything can be created.
const LEFT_LEAST: u64 = 1 << 20;
/// A file system or a group of processes that is fuller than this will soon be full.
const FULL: f64 = 0.9;
/// Limits above this are none.
const NO_LIMIT: u64 = 1 << 60;

const MOUNT: &str = "sudo mount -t tmpfs -o size=1G,mode=1777 tmpfs /dev/shm";
/// The least that is proposed as the size of /dev/shm.
const LARGER_LEAST: u64 = 2 << 30;
const KUBERNETES: &str = "in Kubernetes, mount at /dev/shm a volume with: emptyDir: {medium: Memory, sizeLimit: 1Gi}";

pub(super) fn checks(system: &System) -> Vec<Finding> {
    let container = container(system);
    let mut findings = vec![mounted(system)];
    let space = system.space();
    findings.extend(space.map(|space| filled(space, container)));
    findings.push(contained(system, container, space));
    findings.push(memory_group(system, space));
    findings.push(memory(system, space));
    findings.push(overcommit(system));
    findings
}

fn mounted(system: &System) -> Finding {
    const CHECK: &str = "/dev/shm";
    let path = system.path("dev/shm");
    if !path.is_dir() {
        return Finding::problem(CHECK, "there is no /dev/shm: no heap can be created or opened by name")
            .remedy(format!("sudo mkdir -p /dev/shm && {MOUNT}"));
    }
    let Some(mount) = system.mount("/dev/shm") else {
        let found = match system.exists("proc/self/mounts") {
            true => "nothing is mounted at /dev/shm: heaps take the room of the file system that it lies on",
            false => "whether anything is mounted at /dev/shm cannot be told: there is no /proc/self/mounts",
        };
        return Finding::warning(CHECK, found).remedy(MOUNT);
    };
    if mount.is_read_only() {
        return Finding::problem(
            CHECK,
            "/dev/shm is mounted read-only: no heap can be created, and none opened for writing",
        )
        .remedy("sudo mount -o remount,rw /dev/shm");
    }
    if !is_writable(&path) {
        return Finding::problem(CHECK, "/dev/shm may not be written to by this user: no heap can be created")
            .remedy("sudo chmod 1777 /dev/shm");
    }
    match mount.file_system.as_str() {
        "tmpfs" => Finding::fine(CHECK, "a tmpfs is mounted at /dev/shm"),
        other => {
            let found = format!("a {other} is mounted at /dev/shm, not a tmpfs: heaps may be slow, or without room");
            Finding::warning(CHECK, found).remedy(MOUNT)
        }
    }
}

fn is_writable(path: &Path) -> bool {
    access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
}

fn filled(space: Space, container: Option<&str>) -> Finding {
    const CHECK: &str = "room";
    let Space { size: all, used, files_left } = space;
    let left = all.saturating_sub(used);
    let sentence =
        format!("{} of /dev/shm's {} are taken ({}), {} are left", size(used), size(all), percent(used, all), size(left));
    let larger = match container {
        None => {
            format!("sudo mount -o remount,size={}G /dev/shm", all.saturating_mul(2).max(LARGER_LEAST).div_ceil(1 << 30))
        }
        Some(_) => format!("start the container with --shm-size=1g (docker, podman)\n{KUBERNETES}"),
    };
    let remedy = format!("shmheap gc --detached --dry-run tells what could go\n{larger}");
    let finding = if files_left == 0 {
        Finding::problem(CHECK, format!("{sentence}, but no file can be made any more: there are too many")).remedy(remedy)
    } else if left < LEFT_LEAST {
        Finding::problem(CHECK, format!("{sentence}: allocations fail for want of room")).remedy(remedy)
    } else if ratio(used, all) > FULL {
        Finding::warning(CHECK, sentence).remedy(remedy)
    } else {
        Finding::fine(CHECK, sentence)
    };
    finding.numbers([("size", all), ("used", used), ("left", left)])
}

/// The kind of container that this runs in, if any.
fn container(system: &System) -> Option<&'static str> {
    let groups = system.read("proc/1/cgroup").unwrap_or_default() + &system.read("proc/self/cgroup").unwrap_or_default();
    let marks = [("run/secrets/kubernetes.io", "Kubernetes"), ("run/.containerenv", "Podman"), (".dockerenv", "Docker")];
    let by_mark = marks.into_iter().find(|(path, _)| system.exists(path));
    let names = [
        ("kubepods", "Kubernetes"),
        ("libpod", "Podman"),
        ("/docker", "Docker"),
        ("containerd-", "Docker"),
        ("/lxc", "LXC"),
    ];
    by_mark.or_else(|| names.into_iter().find(|(name, _)| groups.contains(name))).map(|(_, kind)| kind)
}

fn contained(system: &System, container: Option<&str>, space: Option<Space>) -> Finding {
    const CHECK: &str = "container";
    let Some(kind) = container else {
        return Finding::fine(
            CHECK,
            match system.exists("proc/self/cgroup") {
                true => "not in a container, as far as can be seen",
                false => "whether this is a container cannot be told: there is no /proc/self/cgroup",
            },
        );
    };
    let all = space.map_or(0, |space| space.size);
    if (1..=CONTAINER_DEFAULT).contains(&all) {
        let flag = match kind {
            "Kubernetes" => KUBERNETES.to_owned(),
            "Podman" => "podman run --shm-size=1g ...".to_owned(),
            _ => "docker run --shm-size=1g ... (in a compose file: shm_size: 1g)".to_owned(),
        };
        let found =
            format!("a container ({kind}) whose /dev/shm has {} only; 64 MiB is the default of containers", size(all));
        return Finding::warning(CHECK, found).remedy(flag).numbers([("size", all)]);
    }
    let found = format!(
        "a container ({kind}): its /dev/shm is its own, unless it was started with --ipc=host or with a shared volume"
    );
    Finding::note(CHECK, found).numbers([("size", all)])
}

/// The tightest limit on memory of the control groups that this process is in, and what they use.
fn tightest(system: &System) -> Option<(u64, u64)> {
    let groups = system.read("proc/self/cgroup")?;
    let path_of = |line: &str| -> Option<(&'static str, [&'static str; 2], String)> {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        // A group outside the namespace is written with dots; what lies below the root is all that can be seen.
        let seen: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != "..").collect();
        if controllers.is_empty() {
            Some(("sys/fs/cgroup", ["memory.max", "memory.current"], seen.join("/")))
        } else {
            let is_memory = controllers.split(',').any(|name| name == "memory");
            let files = ["memory.limit_in_bytes", "memory.usage_in_bytes"];
            is_memory.then(|| ("sys/fs/cgroup/memory", files, seen.join("/")))
        }
    };
    let mut limits = Vec::new();
    for (mount, [limit_file, use_file], path) in groups.lines().filter_map(path_of) {
        let mut folder = Some(Path::new(&path));
        // A limit of a group holds for all groups in it.
        while let Some(path) = folder {
            let file = |name: &str| format!("{mount}/{}/{name}", path.display());
            let limit = system.number(&file(limit_file)).filter(|limit| *limit < NO_LIMIT);
            limits.extend(limit.map(|limit| (limit, system.number(&file(use_file)).unwrap_or(0))));
            folder = path.parent();
        }
    }
    limits.into_iter().min_by_key(|(limit, used)| limit.saturating_sub(*used))
}

fn memory_group(system: &System, space: Option<Space>) -> Finding {
    const CHECK: &str = "cgroup";
    let Some((limit, used)) = tightest(system) else {
        return Finding::fine(CHECK, "no control group limits the memory of this process");
    };
    let sentence = format!(
        "the control group may use {} of memory and uses {} ({}); heaps count towards it",
        size(limit),
        size(used),
        percent(used, limit)
    );
    let raise = "raise the limit: docker run --memory=4g ..., or systemctl set-property UNIT MemoryMax=4G";
    let shm = space.map_or(0, |space| space.size);
    let finding = if ratio(used, limit) > FULL {
        Finding::warning(CHECK, format!("{sentence}: its processes will soon be killed for it")).remedy(raise)
    } else if shm > limit {
        let found =
            format!("{sentence}; /dev/shm is larger ({}), so a heap that grows is killed before it is full", size(shm));
        let fitting = limit / (2 << 20);
        Finding::warning(CHECK, found)
            .remedy(format!("{raise}\nor make /dev/shm smaller: sudo mount -o remount,size={fitting}M /dev/shm"))
    } else {
        Finding::fine(CHECK, sentence)
    };
    finding.numbers([("limit", limit), ("used", used)])
}

fn memory(system: &System, space: Option<Space>) -> Finding {
    const CHECK: &str = "memory";
    let of = |key| system.number_of("proc/meminfo", key).map(|kib| kib.saturating_mul(1024));
    let (Some(all), Some(swap)) = (of("MemTotal"), of("SwapTotal")) else {
        return Finding::note(CHECK, "how much memory there is cannot be told: /proc/meminfo does not say");
    };
    let (available, shared) = (of("MemAvailable").unwrap_or(0), of("Shmem").unwrap_or(0));
    let sentence = format!(
        "{} of memory, {} of it available, {} shared; {} of swap",
        size(all),
        size(available),
        size(shared),
        size(swap)
    );
    let shm = space.map_or(0, |space| space.size);
    let finding = if shm > all.saturating_add(swap) {
        let found = format!("{sentence}; /dev/shm may take more ({}): filling it would not end in an error", size(shm));
        Finding::warning(CHECK, found).remedy(format!("sudo mount -o remount,size={}M /dev/shm", all / (2 << 20)))
    } else if ratio(available, all) < 1.0 - FULL {
        Finding::warning(CHECK, format!("{sentence}: little is left"))
            .remedy("shmheap gc --detached --dry-run tells what could go")
    } else if swap > 0 {
        Finding::note(CHECK, format!("{sentence}: heaps that are seldom used may be swapped out, and are slow then"))
    } else {
        Finding::fine(CHECK, sentence)
    };
    finding.numbers([("total", all), ("available", available), ("shared", shared), ("swap", swap)])
}

fn overcommit(system: &System) -> Finding {
    const CHECK: &str = "overcommit";
    let Some(mode) = system.number("proc/sys/vm/overcommit_memory") else {
        return Finding::note(CHECK, "vm.overcommit_memory cannot be read");
    };
    if mode != 2 {
        return Finding::fine(CHECK, format!("vm.overcommit_memory is {mode}: memory is counted when it is used"))
            .numbers([("mode", mode)]);
    }
    let of = |key| system.number_of("proc/meminfo", key).unwrap_or(0).saturating_mul(1024);
    let (limit, promised) = (of("CommitLimit"), of("Committed_AS"));
    let sentence = format!(
        "vm.overcommit_memory is 2: the memory of heaps counts towards a limit of {}, of which {} are promised",
        size(limit),
        size(promised)
    );
    let finding = match ratio(promised, limit) > FULL {
        true => Finding::warning(CHECK, sentence).remedy("sudo sysctl vm.overcommit_memory=0"),
        false => Finding::note(CHECK, sentence),
    };
    finding.numbers([("mode", mode), ("limit", limit), ("promised", promised)])
}
