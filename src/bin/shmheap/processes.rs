//! Who has a heap mapped, as far as /proc tells: those that this user may look at, in this PID namespace.
//!
//! Whether anybody has, the library knows better (`SegmentInfo::attached`); this finds names for them.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

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
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses, and may hold any characters.
        let (start, rest) = stat.rsplit_once(')')?;
        let command = start.split_once('(')?.1.to_owned();
        Some(Self { pid, command, state: rest.trim_start().chars().next()? })
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

/// The processes that have mapped what stands at this path, but for the calling one.
pub(crate) fn mapping(path: &Path) -> Vec<Process> {
    let Ok(stat) = fs::metadata(path) else { return Vec::new() };
    let (major, minor) = (stat.st_dev() >> 8 & 0xfff, stat.st_dev() & 0xff | stat.st_dev() >> 12 & 0xfff00);
    let sign = (format!("{major:02x}:{minor:02x}"), stat.st_ino().to_string());
    let has_mapped = |pid: u32| {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        maps.lines().any(|line| {
            let mut fields = line.split_ascii_whitespace().skip(3);
            (fields.next(), fields.next()) == (Some(sign.0.as_str()), Some(sign.1.as_str()))
        })
    };
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<u32> = pids.filter(|pid| *pid != own && has_mapped(*pid)).collect();
    found.sort_unstable();
    found.into_iter().filter_map(Process::of).collect()
}

/// Processes in a row, for a sentence.
pub(crate) fn sentence(processes: &[Process]) -> String {
    processes.iter().map(Process::to_string).collect::<Vec<_>>().join(", ")
}
