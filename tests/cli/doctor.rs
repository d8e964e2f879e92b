//! `doctor`: each grade of each check, with a system made of files.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{json, run};
use crate::stage::Stage;
use crate::troubles::DAMAGE;

/// A system made of files.
struct Made(TempDir);

impl Made {
    /// A system with which all is well.
    fn well() -> Self {
        let made = Self(tempfile::tempdir().expect("a folder"));
        fs::create_dir_all(made.path().join("dev/shm")).expect("a folder");
        made.file("proc/self/mounts", "tmpfs /dev/shm tmpfs rw,size=1048576k 0 0\n")
            .file("proc/self/cgroup", "0::/user.slice\n")
            .file("proc/self/stat", "1 (x) R\n")
            .file("proc/self/limits", LIMITS)
            .file("proc/meminfo", MEMORY)
            .file("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n")
            .file("proc/sys/vm/overcommit_memory", "0\n")
            .file("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always advise [never]\n")
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(self, path: &str, text: &str) -> Self {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
        self
    }

    fn without(self, path: &str) -> Self {
        let path = self.path().join(path);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("it was there");
        self
    }

    /// What `doctor` says of it.
    fn looked_at(&self) -> Value {
        let root = self.path().to_str().expect("the path is text");
        let ran = run(&["doctor", "--json", "--root", root, "--uid", "1234"]);
        let report: Value = serde_json::from_str(&ran.stdout).expect("the program prints JSON");
        assert_eq!(ran.code, i32::from(report["problems"] != 0), "the exit code tells of problems: {report:#}");
        report
    }

    /// Checks that `check` has this grade, and that its sentence and its remedy have these words in them.
    #[track_caller]
    fn is(&self, check: &str, grade: &str, words: &[&str]) -> Value {
        let report = self.looked_at();
        let checks = report["checks"].as_array().expect("a list");
        let finding = checks.iter().find(|finding| finding["check"] == check).expect("the check was done");
        assert_eq!(finding["grade"], grade, "{finding:#}");
        let text = format!("{} {}", finding["found"], finding["remedy"]);
        words.iter().for_each(|word| assert!(text.contains(word), "{word} is not in {text}"));
        finding["numbers"].clone()
    }
}

const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units     
Max file size             unlimited            unlimited            bytes     
Max open files            1024                 4096                 files     
Max address space         unlimited            unlimited            bytes     
";

const MEMORY: &str = "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nShmem: 1024 kB\nSwapTotal: 0 kB\n\
                      CommitLimit: 1000 kB\nCommitted_AS: 500 kB\n";

#[test]
fn with_a_system_that_is_well_every_check_is_fine() {
    let report = Made::well().looked_at();
    let checks = report["checks"].as_array().expect("a list");
    assert!(checks.len() >= 10 && checks.iter().all(|finding| finding["grade"] == "fine"), "{report:#}");
    assert_eq!((&report["problems"], &report["warnings"], &report["notes"]), (&0.into(), &0.into(), &0.into()));
}

#[test]
fn dev_shm_must_be_there_and_be_a_tmpfs_that_can_be_written_to() {
    let mount = |line: &str| Made::well().file("proc/self/mounts", line);
    Made::well().without("dev/shm").is("/dev/shm", "problem", &["there is no /dev/shm", "mount -t tmpfs"]);
    mount("").is("/dev/shm", "warning", &["nothing is mounted", "mount -t tmpfs"]);
    mount("tmpfs /dev/shm tmpfs ro,size=1g 0 0\n").is("/dev/shm", "problem", &["read-only", "remount,rw"]);
    mount("overlay /dev/shm overlay rw 0 0\n").is("/dev/shm", "warning", &["a overlay is mounted"]);
    // The last mount is the one that is seen.
    mount("overlay /dev/shm overlay ro 0 0\ntmpfs /dev/shm tmpfs rw,size=1g 0 0\n").is("/dev/shm", "fine", &[]);
}

#[test]
fn a_dev_shm_that_fills_is_a_warning_and_a_full_one_a_problem() {
    let filled = |kib: usize| {
        let made = Made::well().file("proc/self/mounts", "tmpfs /dev/shm tmpfs rw,size=16384k 0 0\n");
        made.file("dev/shm/much", &"x".repeat(kib << 10))
    };
    let numbers = filled(1 << 10).is("room", "fine", &["1 MiB of /dev/shm's 16 MiB", "6.2 %"]);
    assert_eq!((&numbers["size"], &numbers["used"]), (&(16 << 20).into(), &(1 << 20).into()));
    filled(15 << 10).is("room", "warning", &["1 MiB are left", "gc --detached", "remount,size="]);
    let full = filled((15 << 10) + 1);
    full.is("room", "problem", &["want of room"]);
    full.file(".dockerenv", "").is("room", "problem", &["--shm-size=1g", "emptyDir"]);
}

#[test]
fn a_container_with_the_small_default_is_told_the_flag_that_raises_it() {
    let small = || Made::well().file("proc/self/mounts", "shm /dev/shm tmpfs rw,size=65536k 0 0\n");
    small().is("container", "fine", &["not in a container"]);
    small().file(".dockerenv", "").is("container", "warning", &["Docker", "64 MiB", "docker run --shm-size=1g"]);
    small().file("run/.containerenv", "").is("container", "warning", &["podman run --shm-size=1g"]);
    small().file("run/secrets/kubernetes.io/x", "").is("container", "warning", &["emptyDir: {medium: Memory"]);
    small().file("proc/1/cgroup", "0::/kubepods/pod1\n").is("container", "warning", &["Kubernetes"]);
    Made::well().file(".dockerenv", "").is("container", "note", &["its /dev/shm is its own"]);
}

#[test]
fn the_tightest_limit_of_the_control_groups_counts() {
    let group = |path: &str, max: &str, used: &str| {
        let made = Made::well().file("proc/self/cgroup", "0::/a/b\n");
        made.file(&format!("sys/fs/cgroup/{path}/memory.max"), max)
            .file(&format!("sys/fs/cgroup/{path}/memory.current"), used)
    };
    group("a/b", "max\n", "5\n").is("cgroup", "fine", &["no control group limits"]);
    let numbers = group("a", "4294967296\n", "1073741824\n").is("cgroup", "fine", &["4 GiB", "25.0 %"]);
    assert_eq!(numbers["limit"], 4_294_967_296u64);
    group("a/b", "4294967296\n", "4294967295\n").is("cgroup", "warning", &["soon be killed", "--memory"]);
    group("a", "536870912\n", "0\n").is("cgroup", "warning", &["/dev/shm is larger", "remount,size=256M"]);
    let nested = group("a", "4294967296\n", "0\n").file("sys/fs/cgroup/a/b/memory.max", "2147483648\n");
    assert_eq!(nested.is("cgroup", "fine", &["2 GiB"])["limit"], 2_147_483_648u64);
    let old = Made::well().file("proc/self/cgroup", "4:memory:/../x\n");
    let old = old.file("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "1048576\n");
    old.file("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "1048575\n").is("cgroup", "warning", &["100.0 %"]);
    let none = Made::well().file("proc/self/cgroup", "4:memory:/\n");
    none.file("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n").is("cgroup", "fine", &[]);
}

#[test]
fn memory_that_could_not_hold_a_full_dev_shm_is_a_warning() {
    let memory = |text: &str| Made::well().file("proc/meminfo", text);
    memory("MemTotal: 524288 kB\nMemAvailable: 500000 kB\nSwapTotal: 0 kB\n").is("memory", "warning", &["size=256M"]);
    memory("MemTotal: 8388608 kB\nMemAvailable: 1000 kB\nSwapTotal: 0 kB\n").is("memory", "warning", &["little is left"]);
    memory("MemTotal: 8388608 kB\nMemAvailable: 8388608 kB\nSwapTotal: 9 kB\n").is("memory", "note", &["swapped out"]);
    memory("").is("memory", "note", &["cannot be told"]);
    Made::well().file("proc/sys/vm/overcommit_memory", "2\n").is("overcommit", "note", &["50", "limit"]);
    let promised = memory("CommitLimit: 1000 kB\nCommitted_AS: 999 kB\n").file("proc/sys/vm/overcommit_memory", "2");
    promised.is("overcommit", "warning", &["sysctl vm.overcommit_memory=0"]);
}

#[test]
fn an_old_kernel_is_told_by_what_it_lacks() {
    let kernel = |release: &str| Made::well().file("proc/sys/kernel/osrelease", release);
    kernel("3.10.0-1160.el7\n").is("kernel", "problem", &["locks of open files"]);
    kernel("3.16.0\n").is("kernel", "problem", &["memfd"]);
    kernel("3.19.0\n").is("kernel", "problem", &["membarrier"]);
    kernel("5.13.19\n").is("kernel", "note", &["5.14"]);
    kernel("5.14.0\n").is("kernel", "fine", &[]);
    kernel("odd\n").is("kernel", "note", &["cannot be told"]);
    Made::well().without("proc/self/stat").is("/proc", "problem", &["mount -t proc"]);
    let pages = Made::well().file("sys/kernel/mm/transparent_hugepage/shmem_enabled", "[always] never\n");
    pages.is("huge pages", "note", &["2 MiB at a time", "echo advise"]);
}

#[test]
fn systemd_that_removes_segments_at_logout_is_told_how_not_to() {
    let systemd = || Made::well().file("run/systemd/system/x", "");
    let conf = |text: &str| systemd().file("etc/systemd/logind.conf", text);
    let says_no = "[Login]\nRemoveIPC=no\n";
    systemd().is("RemoveIPC", "warning", &["the default", "enable-linger 1234", "RemoveIPC=no"]);
    conf("[Login]\n#RemoveIPC=no\n[Sleep]\nRemoveIPC=no\n").is("RemoveIPC", "warning", &["the default"]);
    conf(says_no).is("RemoveIPC", "fine", &["/etc/systemd/logind.conf"]);
    conf("[Login]\nRemoveIPC = False\nRemoveIPC=rubbish\n").is("RemoveIPC", "fine", &[]);
    let overruled = conf(says_no).file("usr/lib/systemd/logind.conf.d/50.conf", "[Login]\nRemoveIPC=yes\n");
    overruled.is("RemoveIPC", "warning", &["/usr/lib/systemd/logind.conf.d/50.conf"]);
    let hidden = overruled.file("etc/systemd/logind.conf.d/50.conf", "");
    hidden.is("RemoveIPC", "fine", &[]);
    hidden.file("etc/systemd/logind.conf.d/60.conf", "[Login]\nRemoveIPC=\n").is("RemoveIPC", "warning", &["the default"]);
    systemd().file("var/lib/systemd/linger/1234", "").is("RemoveIPC", "fine", &["lingers"]);
    let root = systemd();
    let report = json(&["doctor", "--root", root.path().to_str().expect("text"), "--uid", "0"]);
    assert!(
        report["checks"].as_array().expect("a list").iter().any(|one| one["check"] == "RemoveIPC" && one["grade"] == "note")
    );
}

#[test]
fn limits_that_are_in_the_way_are_named_with_the_command_that_lifts_them() {
    let limits = |from: &str, to: &str| Made::well().file("proc/self/limits", &LIMITS.replace(from, to));
    limits("size             unlimited", "size             1048576").is("limits", "warning", &["SIGXFSZ", "ulimit -f"]);
    limits("space         unlimited", "space         4294967296").is("limits", "warning", &["4 GiB", "ulimit -v"]);
    let numbers = limits("1024   ", "64   ").is("limits", "warning", &["64 files", "ulimit -n 1024"]);
    assert_eq!(numbers["open_files"], 64);
}

#[test]
fn a_system_without_any_file_is_looked_at_to_the_end() {
    let empty = Made(tempfile::tempdir().expect("a folder"));
    empty.is("/dev/shm", "problem", &[]);
    // Neither is what is no file, or cannot be waited for, or never ends.
    fs::create_dir_all(empty.path().join("proc/self/mounts")).expect("a folder");
    fs::create_dir_all(empty.path().join("proc/sys/kernel")).expect("a folder");
    nix::unistd::mkfifo(&empty.path().join("proc/meminfo"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    std::os::unix::fs::symlink("/dev/zero", empty.path().join("proc/sys/kernel/osrelease")).expect("a link");
    std::os::unix::fs::symlink("/dev/zero", empty.path().join("proc/self/limits")).expect("a link");
    let made = empty.file("proc/self/cgroup", "::::\n0:\n\u{0}\n4:memory\n0::/../../..\n");
    made.is("memory", "note", &[]);
    made.is("kernel", "note", &[]);
    made.is("limits", "note", &["there is no /proc/self/limits"]);
}

#[test]
fn what_stands_in_dev_shm_is_told_with_who_has_it() {
    let Some(mut stage) = Stage::new("what_stands_in_dev_shm_is_told_with_who_has_it", "32M") else { return };
    stage.prepare(&[
        "shmheap create large && head -c 3M /dev/zero >bytes && shmheap put large bytes --file bytes",
        "shmheap create short && truncate -s 8192 /dev/shm/short",
        ": >/dev/shm/.shmheap-new-00",
    ]);
    let ended = stage.run("shmheap doctor --json");
    let report: Value = serde_json::from_str(&ended.text).expect("JSON");
    let of = |check: &str| {
        let checks = report["checks"].as_array().expect("a list");
        let one = checks.iter().find(|one| one["check"] == check).unwrap_or_else(|| panic!("{check} is missing"));
        (one["grade"].as_str().expect("a grade"), one["found"].as_str().expect("a text"), &one["numbers"]["count"])
    };
    let (_, found, _) = of("largest");
    assert!(found.starts_with("large of 3") && found.contains("not attached"), "{found}");
    assert_eq!((of("broken").0, of("broken").2), ("warning", &1.into()), "{report:#}");
    assert_eq!((of("temporary").0, of("temporary").2), ("note", &1.into()));
    assert_eq!((of("detached").0, of("detached").2), ("note", &1.into()));
    assert_eq!(of("calls").0, "fine");
    let text = stage.run("shmheap doctor").text;
    assert!(text.contains("warning  broken") && text.contains("do: shmheap gc\n"), "{text}");
}

#[test]
fn a_heap_that_can_be_opened_but_is_damaged_is_a_problem() {
    let Some(mut stage) = Stage::new("a_heap_that_can_be_opened_but_is_damaged_is_a_problem", "256M") else { return };
    let damaged = |stage: &mut Stage| {
        let ended = stage.run("shmheap doctor --json");
        let report: Value = serde_json::from_str(&ended.text).expect("JSON");
        let checks = report["checks"].as_array().expect("a list");
        checks.iter().find(|one| one["check"] == "damaged").expect("the check was done").clone()
    };
    stage.prepare(&[
        "shmheap create sound && shmheap create orders && head -c 2M /dev/zero >photo",
        "shmheap put orders photo --file photo",
    ]);
    let before = damaged(&mut stage);
    assert_eq!((&before["grade"], &before["numbers"]["checked"]), (&"fine".into(), &2.into()), "{before:#}");
    stage.prepare(&[DAMAGE]);
    let after = damaged(&mut stage);
    assert_eq!((&after["grade"], &after["numbers"]["damaged"]), (&"problem".into(), &1.into()), "{after:#}");
    assert!(after["found"].as_str().is_some_and(|found| found.ends_with(": orders")), "{after:#}");
    assert_eq!(after["remedy"], "shmheap repair orders --dry-run");
    assert_eq!(stage.run("shmheap doctor").code, 1);
}
