//! The thing that is mapped: a named POSIX segment, a file, or an anonymous object, and our own descriptor of it.
//!
//! An object is born without a name (`O_TMPFILE`), made whole, and only then linked to its name. So nobody ever sees
//! half of one, and a creator that dies leaves nothing behind. Where a file system has no `O_TMPFILE`, a temporary name
//! stands in; a creator that dies leaves it, and the next creation there removes it.
//!
//! The descriptor is opened for this library alone, is closed on exec, and is never mapped: the lane tokens hang on its
//! open file (`token`, T1). What is mapped is an open file of its own (`file_to_map`).
//!
//! Nothing here unlinks when it is dropped, except a temporary name that never became a real one.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{shm_open, shm_unlink};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, lstat};
use nix::unistd::{ftruncate, linkat, unlink};

use super::{system, token};
use crate::error::{Error, Result};

/// Where Linux keeps the segments of `shm_open`.
pub(super) const SHM_DIR: &str = "/dev/shm";
/// Begins the temporary names of creations under way, where the file system cannot do without.
pub(super) const TEMPORARY_PREFIX: &str = ".shmheap-new-";
/// Most temporary names that are looked at on one occasion.
const STALE_MAX: usize = 1024;
/// A system call that signals keep interrupting is given up after so many tries.
const EINTR_TRIES: u32 = 10_000;
/// Longest name of a segment.
const NAME_LEN_MAX: usize = 200;

/// Where an object has its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A POSIX shared-memory segment of this name, without the slash.
    Segment(String),
    /// A file.
    File(PathBuf),
    /// Nowhere: it lives as long as somebody maps it.
    Anonymous,
}

impl Place {
    /// A segment's place; checks the name.
    pub(crate) fn segment(name: &str) -> Result<Self> {
        let bad = |why| Err(Error::BadName { name: name.to_owned(), why });
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return bad("a heap's name has 1 to 200 bytes");
        }
        if !name.bytes().all(legal) {
            return bad("a heap's name consists of A-Z a-z 0-9 . _ -");
        }
        if name.starts_with('.') {
            return bad("a heap's name does not start with a dot");
        }
        Ok(Self::Segment(name.to_owned()))
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Segment(name) => Path::new(SHM_DIR).join(name),
            Self::File(path) => path.clone(),
            Self::Anonymous => PathBuf::new(),
        }
    }

    pub(super) fn directory(&self) -> PathBuf {
        match self.path().parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        }
    }

    /// What messages call it.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Segment(name) => name.clone(),
            Self::File(path) => path.display().to_string(),
            Self::Anonymous => "(anonymous)".to_owned(),
        }
    }

    /// Removes the name. Those who have the object mapped keep it.
    pub(crate) fn unlink(&self) -> Result<()> {
        let done = match self {
            Self::Segment(name) => shm_unlink(name.as_str()),
            Self::File(path) => unlink(path),
            Self::Anonymous => Ok(()),
        };
        done.map_err(|errno| self.refusal("unlink", errno))
    }

    /// The error for a call on this name that failed.
    pub(super) fn refusal(&self, call: &'static str, errno: Errno) -> Error {
        let name = self.label();
        match errno {
            Errno::ENOENT => Error::NotFound { name },
            Errno::EEXIST => Error::AlreadyExists { name },
            Errno::ELOOP => Error::NotAHeap { name, why: "it is a symbolic link" },
            Errno::EISDIR => Error::NotAHeap { name, why: "it is a directory" },
            Errno::EACCES | Errno::EPERM => match lstat(&self.path()) {
                Ok(stat) => Error::PermissionDenied { name, owner: stat.st_uid, mode: stat.st_mode & 0o7777 },
                Err(_) => Error::PermissionDenied { name, owner: u32::MAX, mode: 0 },
            },
            errno => system(call, errno),
        }
    }
}

/// Who may own an object that is opened, and who else may write to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admission {
    /// The only uid accepted; `None` accepts any.
    pub(crate) owner: Option<u32>,
    /// Permission bits of group and others that are accepted.
    pub(crate) mode_allowed: u32,
}

/// An object with a descriptor of our own.
#[derive(Debug)]
pub(crate) struct Object {
    file: File,
    place: Place,
}

/// An object that has no name yet.
#[derive(Debug)]
pub(crate) struct Unborn {
    object: Object,
    /// The name that stands in where `O_TMPFILE` is not to be had.
    temporary: Option<PathBuf>,
}

impl Drop for Unborn {
    fn drop(&mut self) {
        if let Some(path) = &self.temporary {
            let _ = unlink(path);
        }
    }
}

impl Unborn {
    /// A new, zeroed object of `len` bytes, without a name. Fails early if the name is taken.
    pub(crate) fn new(place: Place, len: u64, mode: u32) -> Result<Self> {
        if place != Place::Anonymous && lstat(&place.path()).is_ok() {
            return Err(Error::AlreadyExists { name: place.label() });
        }
        let (file, temporary) = match place {
            Place::Anonymous => (anonymous_file()?, None),
            _ => nameless_file(&place)?,
        };
        let unborn = Self { object: Object { file, place }, temporary };
        fchmod(&unborn.object.file, Mode::from_bits_truncate(mode)).map_err(|errno| system("fchmod", errno))?;
        let length = i64::try_from(len)
            .map_err(|_| Error::BadCapacity { capacity: len, why: "the kernel has no object this large" })?;
        ftruncate(&unborn.object.file, length).map_err(|errno| match errno {
            Errno::EFBIG | Errno::EINVAL => {
                Error::BadCapacity { capacity: len, why: "the file system has no object this large" }
            }
            errno => system("ftruncate", errno),
        })?;
        Ok(unborn)
    }

    /// The object, to be made whole.
    pub(crate) fn object(&self) -> &Object {
        &self.object
    }

    /// The object with an open file of its own, for its creator to attach before anybody else can.
    pub(crate) fn opened_anew(&self) -> Result<Object> {
        Ok(Object { file: self.object.reopen(true)?, place: self.object.place.clone() })
    }

    /// Links the whole object to its name: COMMIT of a creation. Before it nobody can find the heap, after it everybody. It
    /// comes last: nothing that can fail is left to be done.
    pub(crate) fn give_name(mut self) -> Result<()> {
        let place = &self.object.place;
        if *place != Place::Anonymous {
            let source = match &self.temporary {
                Some(path) => path.clone(),
                None => proc_path(self.object.file.as_raw_fd()),
            };
            linkat(AT_FDCWD, &source, AT_FDCWD, &place.path(), AtFlags::AT_SYMLINK_FOLLOW)
                .map_err(|errno| place.refusal("linkat", errno))?;
        }
        if let Some(path) = self.temporary.take() {
            let _ = unlink(&path);
        }
        Ok(())
    }
}

/// The way by which an open descriptor can be opened once more.
pub(crate) fn proc_path(fd: i32) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{fd}"))
}

fn anonymous_file() -> Result<File> {
    memfd_create(c"shmheap", MFdFlags::MFD_CLOEXEC).map(File::from).map_err(|errno| system("memfd_create", errno))
}

/// A file in the place's directory that has no name, or a temporary one where it must.
pub(super) fn nameless_file(place: &Place) -> Result<(File, Option<PathBuf>)> {
    let directory = place.directory();
    let open =
        |flags: i32, path: &Path| OpenOptions::new().read(true).write(true).custom_flags(flags).mode(0o600).open(path);
    match open(libc::O_TMPFILE | libc::O_CLOEXEC, &directory) {
        Ok(file) => return Ok((file, None)),
        Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL => {}
            errno => return Err(place.refusal("open(O_TMPFILE)", errno)),
        },
    }
    remove_stale_temporaries(&directory);
    let path = temporary_path(&directory);
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let file = open(flags, &path)
        .map_err(|error| place.refusal("open(O_EXCL)", Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
    // The creator's own token tells it from one that died. A sweep that comes between the two calls takes the name
    // away, and the creation fails at linkat with ENOENT: nothing is left half made.
    token::lock_creation(&file);
    Ok((file, Some(path)))
}

/// A name that nobody else has.
pub(super) fn temporary_path(directory: &Path) -> PathBuf {
    let [high, low] = super::clock::random_id();
    directory.join(format!("{TEMPORARY_PREFIX}{high:016x}{low:016x}"))
}

/// Bytes that the file system behind a file has left.
pub(super) fn available_behind(file: &File) -> u64 {
    nix::sys::statvfs::fstatvfs(file).map(|stat| stat.blocks_available().saturating_mul(stat.fragment_size())).unwrap_or(0)
}

/// Removes temporary names whose creators are dead.
pub(super) fn remove_stale_temporaries(directory: &Path) {
    // Not by way of `std`, which panics where a directory cannot be closed.
    let Ok(mut entries) = Dir::open(directory, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) else { return };
    let names = entries.iter().flatten().map(|entry| entry.file_name().to_bytes().to_owned());
    for name in names.filter(|name| name.starts_with(TEMPORARY_PREFIX.as_bytes())).take(STALE_MAX) {
        let path = directory.join(OsStr::from_bytes(&name));
        let options = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        if let Ok(file) = options
            && token::lock_creation(&file)
        {
            let _ = unlink(&path);
        }
    }
}

impl Object {
    /// Opens the named object and checks who owns it and who may write to it.
    pub(crate) fn open(place: Place, writable: bool, admission: Admission) -> Result<Self> {
        let access = if writable { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        let flags = access | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let opened: std::result::Result<OwnedFd, Errno> = match &place {
            Place::Segment(name) => shm_open(name.as_str(), flags, Mode::empty()),
            Place::File(path) => nix::fcntl::open(path, flags, Mode::empty()),
            Place::Anonymous => Err(Errno::ENOENT),
        };
        let file = File::from(opened.map_err(|errno| place.refusal("open", errno))?);
        let object = Self { file, place };
        object.admit(admission)?;
        Ok(object)
    }

    fn admit(&self, admission: Admission) -> Result<()> {
        let stat = self.stat()?;
        let name = self.place.label();
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Error::NotAHeap { name, why: "it is no regular file" });
        }
        if let Some(trusted) = admission.owner
            && stat.st_uid != trusted
        {
            return Err(Error::WrongOwner { name, owner: stat.st_uid, trusted });
        }
        if stat.st_nlink == 0 {
            return Err(Error::Unlinked { name });
        }
        let mode = stat.st_mode & 0o7777;
        if mode & 0o022 & !admission.mode_allowed != 0 {
            return Err(Error::WrongMode { name, mode, allowed: admission.mode_allowed | 0o755 });
        }
        Ok(())
    }

    fn stat(&self) -> Result<FileStat> {
        fstat(&self.file).map_err(|errno| system("fstat", errno))
    }

    /// Bytes in the object.
    pub(crate) fn len(&self) -> Result<u64> {
        Ok(u64::try_from(self.stat()?.st_size).unwrap_or(0))
    }

    /// Bytes of memory or disk that the object takes now.
    pub(crate) fn taken_bytes(&self) -> Result<u64> {
        Ok(u64::try_from(self.stat()?.st_blocks).unwrap_or(0).saturating_mul(512))
    }

    /// True while the place's name still leads to this object.
    pub(crate) fn has_its_name(&self) -> bool {
        self.is_at(&self.place.path())
    }

    /// True if this path leads to this object.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        match (self.stat(), lstat(path)) {
            (Ok(ours), Ok(named)) => (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino),
            _ => false,
        }
    }

    /// True for a file, whose bytes outlive the machine.
    pub(crate) fn is_durable(&self) -> bool {
        matches!(self.place, Place::File(_))
    }

    /// True if no name leads to the object any more, and it never was without one.
    pub(crate) fn is_unlinked(&self) -> Result<bool> {
        Ok(self.place != Place::Anonymous && self.stat()?.st_nlink == 0)
    }

    /// Fails if the object has become shorter than `expected`: touching what is missing would raise a signal.
    pub(crate) fn check_len(&self, expected: u64) -> Result<()> {
        let actual = self.len()?;
        if actual < expected { Err(Error::Shrunk { name: self.place.label(), expected, actual }) } else { Ok(()) }
    }

    /// Where the object has its name.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Another open file of the same object, for a mapping to keep.
    pub(crate) fn file_to_map(&self, writable: bool) -> Result<File> {
        self.reopen(writable)
    }

    fn reopen(&self, writable: bool) -> Result<File> {
        let open = |path: &Path| {
            let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
            File::options().read(true).write(writable).custom_flags(flags).open(path)
        };
        let errno_of = |error: &std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        match open(&proc_path(self.file.as_raw_fd())) {
            Ok(file) => Ok(file),
            // Without /proc there is still the name, as long as it leads to this object.
            Err(_) if self.has_its_name() => {
                open(&self.place.path()).map_err(|error| self.place.refusal("open", errno_of(&error)))
            }
            Err(error) => Err(system("open(/proc/self/fd)", errno_of(&error))),
        }
    }

    /// The descriptor on which tokens hang.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Reads the object's first bytes; an object shorter than `bytes` leaves the rest zero.
    pub(crate) fn read_start(&self, bytes: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = u64::try_from(done).unwrap_or(u64::MAX);
            match self.file.read_at(rest, at) {
                Ok(0) => break,
                Ok(count) => done = done.saturating_add(count),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::System { call: "pread", errno: error.raw_os_error().unwrap_or(0) }),
            }
        }
        Ok(())
    }

    /// Writes bytes at `at`.
    pub(crate) fn write_at(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let needed = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.file.write_all_at(bytes, at).map_err(|error| match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::ENOSPC | Errno::EDQUOT => Error::NoSpace { needed, available: self.available() },
            errno => system("pwrite", errno),
        })
    }

    /// Reads bytes at `at`, all of which the object must have.
    pub(crate) fn read_at(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, at).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                let expected = at.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                Error::Shrunk { name: self.place.label(), expected, actual: self.len().unwrap_or(0) }
            }
            _ => system("pread", Errno::from_raw(error.raw_os_error().unwrap_or(0))),
        })
    }

    /// Reserves memory or disk for these bytes, so that touching them cannot fail.
    pub(crate) fn reserve(&self, at: u64, len: u64) -> Result<()> {
        match self.allocate_range(FallocateFlags::empty(), at, len) {
            Ok(()) => Ok(()),
            Err(Errno::ENOSPC | Errno::ENOMEM | Errno::EDQUOT) => {
                Err(Error::NoSpace { needed: len, available: self.available() })
            }
            Err(errno) => Err(system("fallocate", errno)),
        }
    }

    /// Gives the memory or disk behind these bytes back; they read as zero from then on.
    pub(crate) fn give_back(&self, at: u64, len: u64) -> Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match self.allocate_range(flags, at, len) {
            // A file system without holes keeps its bytes: less is given back, nothing is wrong.
            Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(errno) => Err(system("fallocate(PUNCH_HOLE)", errno)),
        }
    }

    fn allocate_range(&self, flags: FallocateFlags, at: u64, len: u64) -> std::result::Result<(), Errno> {
        let (Ok(at), Ok(len)) = (i64::try_from(at), i64::try_from(len)) else { return Err(Errno::EFBIG) };
        // tmpfs gives up, undone, when a signal is pending.
        for _ in 0..EINTR_TRIES {
            match fallocate(&self.file, flags, at, len) {
                Err(Errno::EINTR) => {}
                done => return done,
            }
        }
        Err(Errno::EINTR)
    }

    fn available(&self) -> u64 {
        available_behind(&self.file)
    }
}
