//! What stands in the directory of the segments, looked at without attaching anything.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::object::{SHM_DIR, TEMPORARY_PREFIX};
use super::{system, token};
use crate::error::Result;

/// Most entries of the directory that are looked at.
const ENTRIES_MAX: usize = 65_536;
/// Bytes at the start of an entry that are read.
pub(crate) const START_LEN: usize = 128;

/// What the kernel tells of an entry.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    path: PathBuf,
    pub(crate) owner: u32,
    pub(crate) mode: u32,
    pub(crate) len: u64,
    pub(crate) taken: u64,
    pub(crate) is_file: bool,
    /// True for the temporary name of a creation under way.
    pub(crate) is_temporary: bool,
    identity: (u64, u64),
}

/// What an entry that can be opened tells of itself.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    /// The first bytes; zeros behind the end.
    pub(crate) start: [u8; START_LEN],
    /// True if somebody has it attached, or is creating it.
    pub(crate) is_in_use: bool,
}

fn failure(call: &'static str, error: &std::io::Error) -> crate::error::Error {
    system(call, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

/// The directory's entries, in the order of their names. What goes while it is looked at is left out.
pub(crate) fn entries() -> Result<Vec<Entry>> {
    let listed = std::fs::read_dir(SHM_DIR).map_err(|error| failure("opendir(/dev/shm)", &error))?;
    let mut entries: Vec<Entry> = listed.take(ENTRIES_MAX).flatten().filter_map(|entry| Entry::at(entry.path())).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The entry of this name, if there is one.
pub(crate) fn entry(name: &str) -> Option<Entry> {
    Entry::at(Path::new(SHM_DIR).join(name))
}

impl Entry {
    fn at(path: PathBuf) -> Option<Self> {
        let file_name = path.file_name()?.as_bytes();
        let is_temporary = file_name.starts_with(TEMPORARY_PREFIX.as_bytes());
        let name = String::from_utf8_lossy(file_name).into_owned();
        let stat = std::fs::symlink_metadata(&path).ok()?;
        Some(Self {
            name,
            path,
            owner: stat.uid(),
            mode: stat.mode() & 0o7777,
            len: stat.len(),
            taken: stat.blocks().saturating_mul(512),
            is_file: stat.file_type().is_file(),
            is_temporary,
            identity: (stat.dev(), stat.ino()),
        })
    }

    fn open(&self, for_writing: bool) -> std::io::Result<File> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = File::options().read(true).write(for_writing).custom_flags(flags).open(&self.path)?;
        let stat = file.metadata()?;
        // Somebody may have put another one in its place.
        if (stat.dev(), stat.ino()) == self.identity { Ok(file) } else { Err(ErrorKind::NotFound.into()) }
    }

    /// Looks into it; `None` where the kernel does not let us, or it is gone.
    pub(crate) fn look(&self) -> Option<Look> {
        let file = self.open(false).ok()?;
        let mut start = [0; START_LEN];
        // What is shorter leaves zeros.
        let _ = file.read_at(&mut start, 0);
        let held = if self.is_temporary { token::is_being_created(&file) } else { token::is_attached(&file) };
        Some(Look { start, is_in_use: held.ok()? })
    }

    /// Removes a temporary name whose creator is dead; false if it is not that.
    pub(crate) fn remove_if_left(&self) -> bool {
        let is_left = |file: File| token::lock_creation(&file) && std::fs::remove_file(&self.path).is_ok();
        self.is_temporary && self.is_file && self.open(true).is_ok_and(is_left)
    }
}
