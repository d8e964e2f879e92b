//! The system that is looked at: its files, below a root that tests set.
//!
//! Whatever stands at a path, a look at it is bounded: only regular files are read, and not more of them than
//! [`FILE_LEN_MAX`]. What is missing or may not be read is `None`, and each check says what it makes of that.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::statvfs::statvfs;

/// Most bytes of a file that are read.
const FILE_LEN_MAX: u64 = 1 << 20;
/// Most entries of a folder that are looked at.
const ENTRIES_MAX: usize = 4096;

/// Where to look, and as whom.
#[derive(Debug)]
pub(super) struct System {
    root: PathBuf,
    pub(super) uid: u32,
}

/// A line of /proc/self/mounts.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) file_system: String,
    options: String,
}

/// The room behind a folder, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub(super) size: u64,
    pub(super) used: u64,
    /// Files that can still be made.
    pub(super) files_left: u64,
}

impl System {
    pub(super) fn new(root: &Path, uid: u32) -> Self {
        Self { root: root.to_owned(), uid }
    }

    /// True for the system that runs: it can be asked, not only read.
    pub(super) fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The text of a file, its start if it is long.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        // A pipe is opened without waiting for who writes to it.
        let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(self.path(path)).ok()?;
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(FILE_LEN_MAX).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A file that holds one number.
    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.trim().parse().ok()
    }

    /// The number that stands in a file behind a key, as in /proc/meminfo.
    pub(super) fn number_of(&self, path: &str, key: &str) -> Option<u64> {
        let text = self.read(path)?;
        let rest = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        rest.split_ascii_whitespace().next()?.parse().ok()
    }

    /// Names of the files in a folder, in order.
    pub(super) fn list(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(path)).into_iter().flatten().take(ENTRIES_MAX).flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// What is mounted at this very path; the last mount hides those before it.
    pub(super) fn mount(&self, at: &str) -> Option<Mount> {
        let text = self.read("proc/self/mounts")?;
        let mut mounts = text.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, file_system, options) = (fields.next()?, fields.next()?, fields.next()?);
            (path == at).then(|| Mount { file_system: file_system.to_owned(), options: options.to_owned() })
        });
        mounts.next_back()
    }

    /// The room in /dev/shm. For another root than / it is what the mount's options and the files' lengths say.
    pub(super) fn space(&self) -> Option<Space> {
        if self.is_live() {
            let stat = statvfs("/dev/shm").ok()?;
            let unit = stat.fragment_size();
            let size = stat.blocks().saturating_mul(unit);
            let used = size.saturating_sub(stat.blocks_available().saturating_mul(unit));
            return Some(Space {
                size,
                used,
                files_left: if stat.files() == 0 { u64::MAX } else { stat.files_available() },
            });
        }
        let size = self.mount("/dev/shm")?.size()?;
        let len = |name: &String| self.path("dev/shm").join(name).symlink_metadata().map_or(0, |stat| stat.len());
        let names = self.list("dev/shm");
        Some(Space { size, used: names.iter().map(len).sum(), files_left: u64::MAX })
    }
}

impl Mount {
    pub(super) fn is_read_only(&self) -> bool {
        self.options.split(',').any(|option| option == "ro")
    }

    /// The option `size=`, in bytes.
    fn size(&self) -> Option<u64> {
        let text = self.options.split(',').find_map(|option| option.strip_prefix("size="))?;
        crate::units::parse_size(text).ok()
    }
}
