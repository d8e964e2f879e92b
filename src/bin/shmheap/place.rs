//! What a NAME on the command line means, and opening the heap that it names.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap_complete::{CompletionCandidate, PathCompleter, engine::ValueCompleter};
use shmheap::{Error, Heap, Options, OwnerTrust, SegmentInfo, SegmentKind};

use crate::failure::Failure;
use crate::output::shown;
use crate::{remedies, units};

/// Where segments stand.
pub(crate) const FOLDER: &str = "/dev/shm";
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
            Self::Segment(name) => Path::new(FOLDER).join(name),
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

    /// What stands here, looked at without opening it.
    pub(crate) fn look(&self) -> Result<SegmentInfo, Failure> {
        let found = match self {
            Self::Segment(name) => Heap::segment(name),
            Self::File(path) => Heap::file_info(path),
        };
        found.map_err(|error| self.explain(error))
    }

    /// The failure for an error that concerns this place.
    pub(crate) fn explain(&self, error: Error) -> Failure {
        remedies::tell(&error, Some(self))
    }
}

/// The path by which the kernel knows a heap that is attached.
pub(crate) fn path_of(heap: &Heap) -> PathBuf {
    let name = heap.name();
    if name.contains('/') { PathBuf::from(name) } else { Path::new(FOLDER).join(name) }
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
pub(crate) fn near(name: &str) -> Vec<String> {
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
