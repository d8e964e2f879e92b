//! What a NAME on the command line means, and opening the heap that it names.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap_complete::{CompletionCandidate, PathCompleter, engine::ValueCompleter};
use shmheap::{Error, Heap, Options, OwnerTrust, SegmentInfo, SegmentKind};

use crate::failure::Failure;
use crate::output::shown;
use crate::processes::{self, Process};
use crate::units;

/// Most near matches that are proposed for a name that does not exist.
const NEAR_MAX: usize = 3;
/// How alike two names must be to be near, from 0 to 1.
const NEAR_LEAST: f64 = 0.75;

/// Where a heap is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the segment of this name.
    Segment(String),
    /// In this file.
    File(PathBuf),
}

impl Place {
    /// A word with a slash in it is a file's path; but `/name`, as POSIX writes segments' names, is also taken for one.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a heap's name is not empty".to_owned());
        }
        let posix = text.strip_prefix('/').filter(|name| !name.contains('/'));
        Ok(match (posix, text.contains('/')) {
            (Some(name), _) if !Path::new(text).exists() => Self::Segment(name.to_owned()),
            (_, true) => Self::File(PathBuf::from(text)),
            (_, false) => Self::Segment(text.to_owned()),
        })
    }

    /// As it is written on the command line, for people.
    pub(crate) fn text(&self) -> String {
        shown(&self.argument().to_string_lossy())
    }

    /// As it is written on the command line, for another program.
    pub(crate) fn argument(&self) -> OsString {
        match self {
            Self::Segment(name) => name.into(),
            Self::File(path) => path.into(),
        }
    }

    /// The path by which the kernel knows it.
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::Segment(name) => Path::new("/dev/shm").join(name),
            Self::File(path) => path.clone(),
        }
    }

    /// Opens the heap for reading: no lane, no lock, and whoever it belongs to, if the kernel lets us.
    pub(crate) fn open_read_only(&self) -> Result<Heap, Failure> {
        self.open_with(&trusting(Heap::options(), true), false)
    }

    /// Opens the heap for reading and writing.
    pub(crate) fn open(&self) -> Result<Heap, Failure> {
        self.open_with(&trusting(Heap::options(), false), true)
    }

    /// Opens the heap with these options.
    pub(crate) fn open_with(&self, options: &Options, writable: bool) -> Result<Heap, Failure> {
        let opened = match (self, writable) {
            (Self::Segment(name), true) => options.open(name),
            (Self::Segment(name), false) => options.open_read_only(name),
            (Self::File(path), true) => options.open_file(path),
            (Self::File(path), false) => options.open_file_read_only(path),
        };
        opened.map_err(|error| self.explain(error))
    }

    /// The failure for an error that concerns this place: with near matches, and with its name in the remedy.
    pub(crate) fn explain(&self, error: Error) -> Failure {
        let name = self.text();
        match (self, &error) {
            (Self::Segment(_), Error::NotFound { .. }) if !Path::new("/dev/shm").exists() => Failure::cannot_but(
                "there is no /dev/shm, in which heaps have their names",
                "sudo mkdir -p /dev/shm; sudo mount -t tmpfs tmpfs /dev/shm",
            ),
            (Self::Segment(asked), Error::NotFound { .. }) => Failure::cannot_but(
                format!("there is no heap named {name:?}"),
                match near(asked).as_slice() {
                    [] => format!("shmheap ls lists the heaps there are; shmheap create {name} makes one"),
                    names => format!("did you mean {}?", names.join(", ")),
                },
            ),
            (Self::File(_), Error::NotFound { .. }) => {
                Failure::cannot_but(format!("there is no file {name:?}"), "heaps in /dev/shm are named without a slash")
            }
            (_, Error::AlreadyExists { .. }) => {
                Failure::cannot_but(format!("{name:?} exists already"), self.remedy_for_taken())
            }
            (_, Error::WrongVersion { found, supported }) => Failure::cannot_but(
                format!("{name} has format version {found}, this program reads version {supported}"),
                format!("use the shmheap that wrote it; or remove it with: {}", self.removal()),
            ),
            (_, Error::CapacityMismatch { expected, actual }) => Failure::wrong(
                format!("{name} says that it has {expected} bytes, but {actual} are there: it was truncated"),
                format!(
                    "load the last image under another name (shmheap load), and remove this one with: {}",
                    self.removal()
                ),
            ),
            (_, Error::WrongMode { mode, .. }) => Failure::cannot_but(
                format!("{name:?} has mode {mode:04o}: others than its owner may write to it"),
                format!("chmod go-w {}, or trust them with --any-owner", self.path().display()),
            ),
            (_, Error::LockTimeout { holder_pid, waited_ms }) => self.stuck(*holder_pid, *waited_ms),
            (_, Error::InUse { pid, .. }) => {
                let text = format!("{name:?} is in use by pid {pid}, and can only be repaired when nobody uses it");
                Failure::cannot_but(text, self.remedy_for_pid(*pid, |pid| format!("end that process first: kill {pid}")))
            }
            _ => match Failure::from(error) {
                Failure::Wrong { text, remedy } => Failure::Wrong {
                    text: format!("{name}: {text}"),
                    remedy: remedy.map(|remedy| remedy.replace("NAME", &name)),
                },
                Failure::Cannot { text, remedy } => {
                    Failure::Cannot { text, remedy: remedy.map(|remedy| remedy.replace("NAME", &name)) }
                }
                other => other,
            },
        }
    }
}

impl Place {
    /// The command that removes what stands here, whatever it is.
    fn removal(&self) -> String {
        format!("shmheap rm --any-kind {}", self.text())
    }

    /// What to do where something has the name that is wanted.
    fn remedy_for_taken(&self) -> String {
        let name = self.text();
        let is_heap = match self {
            Self::Segment(name) => Heap::segment(name),
            Self::File(path) => Heap::file_info(path),
        };
        match is_heap.map(|info| info.kind) {
            Ok(SegmentKind::Heap) => format!("look at it with: shmheap stat {name}; or remove it with: shmheap rm {name}"),
            _ => format!("it is no heap that can be opened; if it is to go: {}", self.removal()),
        }
    }

    fn stuck(&self, pid: u32, waited_ms: u64) -> Failure {
        let text = format!("waited {waited_ms} ms for pid {pid}, which is alive but does not let go (stopped?)");
        let kill = |pid| format!("let it go on with: kill -CONT {pid}; or end it with: kill -KILL {pid}");
        Failure::cannot_but(text, self.remedy_for_pid(pid, kill))
    }

    /// What to do about a process that has named itself by this number, which may mean another one here.
    fn remedy_for_pid(&self, pid: u32, remedy: impl Fn(u32) -> String) -> String {
        if Process::using(pid, &self.path()).is_some() {
            return remedy(pid);
        }
        let others = "that is its number in another container, or it belongs to another user; do not kill that number here";
        match processes::mapping(&self.path()).as_slice() {
            [] => others.to_owned(),
            users => format!("{others}\nthe processes that have it mapped here: {}", processes::sentence(users)),
        }
    }
}

/// The path by which the kernel knows a heap that is attached.
pub(crate) fn path_of(heap: &Heap) -> PathBuf {
    let name = heap.name();
    if name.contains('/') { PathBuf::from(name) } else { Path::new("/dev/shm").join(name) }
}

/// Options that trust everybody, if asked to; else this user, and the group that the owner has let in.
pub(crate) fn trusting(options: Options, any_owner: bool) -> Options {
    if any_owner { options.trust(OwnerTrust::Anyone).mode(0o777) } else { options.mode(0o660) }
}

/// The heaps there are.
fn heaps() -> Vec<SegmentInfo> {
    let all = Heap::segments().unwrap_or_default();
    all.into_iter().filter(|segment| !matches!(segment.kind, SegmentKind::Foreign | SegmentKind::Temporary)).collect()
}

/// Names of heaps that are like this one, the nearest first.
fn near(name: &str) -> Vec<String> {
    let likeness = |other: &str| strsim::jaro_winkler(&name.to_lowercase(), &other.to_lowercase());
    let mut near: Vec<(f64, String)> = heaps().into_iter().map(|segment| (likeness(&segment.name), segment.name)).collect();
    near.retain(|(likeness, _)| *likeness >= NEAR_LEAST);
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().take(NEAR_MAX).map(|(_, name)| shown(&name)).collect()
}

/// Completes a NAME from the heaps there are.
pub(crate) fn complete(start: &OsStr) -> Vec<CompletionCandidate> {
    let start = start.to_string_lossy();
    if start.contains('/') {
        return PathCompleter::file().complete(OsStr::new(&*start));
    }
    let fitting = heaps().into_iter().filter(|segment| segment.name.starts_with(&*start));
    fitting.map(|segment| CompletionCandidate::new(segment.name).help(Some(units::size(segment.len).into()))).collect()
}
