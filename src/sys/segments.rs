//! What stands in the directory of the segments, looked at without attaching anything.
//!
//! Not here: what the bytes mean (`heap::segments`), temporary names in other directories (`object`).

use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::unlink;

use super::object::{Place, SHM_DIR, TEMPORARY_PREFIX};
use super::{system, token};
use crate::error::Result;

/// Most entries of the directory that are looked at.
const ENTRIES_MAX: usize = 65_536;
/// Bytes at the start of an entry that are read.
pub(crate) const START_LEN: usize = 128;

/// What the kernel tells of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Device and inode.
    pub(crate) identity: (u64, u64),
}

/// What an entry tells of itself.
#[derive(Debug, Clone)]
pub(crate) enum Look {
    /// It is not there any more, or something else is.
    Gone,
    /// The kernel does not let us read it.
    Unread,
    Read {
        /// The first bytes; zeros behind the end.
        start: [u8; START_LEN],
        /// True if somebody has it attached, or is creating it.
        is_in_use: bool,
    },
}

/// True for the temporary name of a creation under way.
fn is_temporary(name: &[u8]) -> bool {
    name.starts_with(TEMPORARY_PREFIX.as_bytes())
}

/// The directory's entries, in the order of their names. What goes while it is looked at is left out.
pub(crate) fn entries() -> Result<Vec<Entry>> {
    // Not by way of `std`, which panics where a directory cannot be closed.
    let opened = Dir::open(SHM_DIR, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let mut listed = opened.map_err(|errno| system("open(/dev/shm)", errno))?;
    let names = listed.iter().flatten().map(|entry| entry.file_name().to_bytes().to_owned());
    let wanted = names.filter(|name| name != b"." && name != b"..").take(ENTRIES_MAX);
    let mut entries: Vec<Entry> = wanted.filter_map(|name| Entry::at(OsStr::from_bytes(&name))).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The entry of this name, if there is one.
pub(crate) fn entry(name: &str) -> Option<Entry> {
    Entry::at(OsStr::new(name))
}

/// What stands at this path, if anything does; it is called by the path.
pub(crate) fn entry_at(path: &Path) -> Option<Entry> {
    let name = if path.components().count() > 1 { path.to_owned() } else { Path::new(".").join(path) };
    Entry::of(name.display().to_string(), path.to_owned(), false)
}

impl Entry {
    fn at(name: &OsStr) -> Option<Self> {
        let path = Path::new(SHM_DIR).join(name);
        Self::of(name.to_string_lossy().into_owned(), path, is_temporary(name.as_bytes()))
    }

    fn of(name: String, path: PathBuf, is_temporary: bool) -> Option<Self> {
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

    /// Looks into it.
    pub(crate) fn look(&self) -> Look {
        let file = match self.open(false) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Look::Gone,
            Err(_) => return Look::Unread,
        };
        let held = if self.is_temporary { token::is_being_created(&file) } else { token::is_attached(&file) };
        match (read_start(&file), held) {
            (Ok(start), Ok(is_in_use)) => Look::Read { start, is_in_use },
            _ => Look::Unread,
        }
    }

    /// What has its name now, if anything does.
    pub(crate) fn again(&self) -> Option<Self> {
        Self::of(self.name.clone(), self.path.clone(), self.is_temporary)
    }

    /// True if the other one is of the same object, and of the same owner.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (self.identity, self.owner) == (other.identity, other.owner)
    }

    /// Removes the name; false for a temporary one whose creator lives, or which is another one's by now.
    pub(crate) fn remove(&self) -> Result<bool> {
        // The creator's token is held to the end: it is dead, and nobody else takes the name for its.
        let left = (self.is_temporary && self.is_file).then(|| self.open(true).ok().filter(token::lock_creation));
        if matches!(left, Some(None)) {
            return Ok(false);
        }
        let place = match self.name.contains('/') {
            true => Place::File(self.path.clone()),
            false => Place::Segment(self.name.clone()),
        };
        unlink(&self.path).map(|()| true).map_err(|errno| place.refusal("unlink", errno))
    }
}

/// The first bytes; what is shorter leaves zeros.
fn read_start(file: &File) -> std::io::Result<[u8; START_LEN]> {
    let mut start = [0; START_LEN];
    let mut done = 0;
    while let Some(rest) = start.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, u64::try_from(done).unwrap_or(u64::MAX)) {
            Ok(0) => break,
            Ok(count) => done = done.saturating_add(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(start)
}
