//! A file that takes another's place as a whole: written without a name, made durable, and only then given the name.
//!
//! A death before the last step leaves the old file, one after it the new one. Where the file system has no `O_TMPFILE`,
//! and between the last two steps anywhere, a temporary name stands in; a writer that dies leaves it, and the next to write
//! there removes it (`object`).

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{linkat, unlink};

use super::object::{self, Place};
use super::system;
use crate::error::{Error, Result};

/// A file in the making.
#[derive(Debug)]
pub(crate) struct Replacement {
    file: File,
    path: PathBuf,
    /// The name that stands in.
    temporary: Option<PathBuf>,
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some(path) = &self.temporary {
            let _ = unlink(path);
        }
    }
}

impl Replacement {
    /// A new file in the directory of `path`.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        // Whoever names a link means the file that it leads to.
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let old = std::fs::metadata(&path).ok();
        if old.as_ref().is_some_and(|old| !old.is_file()) {
            return Err(Error::NotAnImage { name: path.display().to_string(), why: "it is no regular file" });
        }
        let (file, temporary) = object::nameless_file(&Place::File(path.clone()))?;
        let replacement = Self { file, path, temporary };
        if let Some(old) = old {
            // A file of another's keeps neither owner nor mode: it becomes the caller's.
            let mode = if old.uid() == nix::unistd::geteuid().as_raw() { old.mode() & 0o777 } else { 0o600 };
            replacement.file.set_permissions(Permissions::from_mode(mode)).map_err(|error| failed("fchmod", &error))?;
        }
        Ok(replacement)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let needed = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.file.write_all(bytes).map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => {
                Error::NoSpace { needed, available: object::available_behind(&self.file) }
            }
            _ => failed("write", &error),
        })
    }

    /// Writes everything to disk and takes the old file's place. COMMIT is the rename.
    pub(crate) fn take_place(mut self) -> Result<()> {
        self.file.sync_all().map_err(|error| failed("fsync", &error))?;
        let place = Place::File(self.path.clone());
        let directory = place.directory();
        let temporary = match self.temporary.clone() {
            Some(path) => path,
            None => {
                object::remove_stale_temporaries(&directory);
                let path = object::temporary_path(&directory);
                super::token::lock_creation(&self.file);
                let source = object::proc_path(self.file.as_raw_fd());
                linkat(AT_FDCWD, &source, AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW)
                    .map_err(|errno| place.refusal("linkat", errno))?;
                self.temporary = Some(path.clone());
                path
            }
        };
        std::fs::rename(&temporary, &self.path).map_err(|error| failed("rename", &error))?; // COMMIT
        self.temporary = None;
        // Without this the old name may come back after a power cut.
        let synced = File::open(&directory).and_then(|directory| directory.sync_all());
        synced.map_err(|error| failed("fsync(directory)", &error))
    }
}

fn failed(call: &'static str, error: &std::io::Error) -> Error {
    system(call, Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}
