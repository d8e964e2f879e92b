//! Who has a heap mapped, as far as /proc tells: those that this user may look at, in this PID namespace.
//!
//! Whether anybody has, the library knows better (`SegmentInfo::attached`); this finds names for them.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use crate::output::shown;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// What it runs, as `ps` calls it.
    pub(crate) command: String,
    /// One letter: R runs, S sleeps, T stopped, Z dead.
    pub(crate) state: char,
}

impl Process {
    /// The process of this number, if there is one.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        // A process may call itself by any bytes.
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        // The name stands in parentheses, and may hold any characters.
        let (start, rest) = stat.rsplit_once(')')?;
        let command = shown(start.split_once('(')?.1);
        Some(Self { pid, command, state: rest.trim_start().chars().next()? })
    }

    /// The process of this number, if it has mapped what stands at this path: a process of another PID namespace knows
    /// itself by a number that means another one here.
    pub(crate) fn using(pid: u32, path: &Path) -> Option<Self> {
        Sign::of(path)?.is_mapped_by(pid).then(|| Self::of(pid)).flatten()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.pid, self.command)
    }
}

/// How the kernel names a file in its lists of mappings: device and inode.
struct Sign(String, String);

impl Sign {
    fn of(path: &Path) -> Option<Self> {
        let stat = fs::metadata(path).ok()?;
        let (major, minor) = (stat.st_dev() >> 8 & 0xfff, stat.st_dev() & 0xff | stat.st_dev() >> 12 & 0xfff00);
        Some(Self(format!("{major:02x}:{minor:02x}"), stat.st_ino().to_string()))
    }

    fn is_mapped_by(&self, pid: u32) -> bool {
        let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
        maps.split(|byte| *byte == b'\n').any(|line| {
            let line = String::from_utf8_lossy(line);
            let mut fields = line.split_ascii_whitespace().skip(3);
            (fields.next(), fields.next()) == (Some(self.0.as_str()), Some(self.1.as_str()))
        })
    }
}

/// The processes that have mapped what stands at this path, but for the calling one.
pub(crate) fn mapping(path: &Path) -> Vec<Process> {
    let Some(sign) = Sign::of(path) else { return Vec::new() };
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<u32> = pids.filter(|pid| *pid != own && sign.is_mapped_by(*pid)).collect();
    found.sort_unstable();
    found.into_iter().filter_map(Process::of).collect()
}

/// Processes in a row, for a sentence.
pub(crate) fn sentence(processes: &[Process]) -> String {
    processes.iter().map(Process::to_string).collect::<Vec<_>>().join(", ")
}
