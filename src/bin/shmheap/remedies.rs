//! The library's errors as the command tells them: each once, with the command that helps and the heap's name in it.
//!
//! The errors' own texts name calls of the library as remedies, which are of no use at a terminal.
//!
//! Not here: how a failure is printed, and its exit code (`failure`).

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Uid, User};
use shmheap::{Error, SegmentKind};

use crate::failure::{Failure, user_name};
use crate::place::{FOLDER, Place, near};
use crate::processes::{self, Process};

/// What there is to say of an error that concerns this place, as far as it is known which.
pub(crate) fn tell(error: &Error, place: Option<&Place>) -> Failure {
    let told = system(error, place)
        .or_else(|| absence(error, place))
        .or_else(|| access(error, place))
        .or_else(|| condition(error, place))
        .or_else(|| content(error, &name_of(place)))
        .or_else(|| waiting(error, place));
    told.unwrap_or_else(|| match error {
        Error::CorruptImage { .. } | Error::NotAnImage { .. } => Failure::Wrong { text: error.to_string(), remedy: None },
        Error::BadName { .. }
        | Error::BadCapacity { .. }
        | Error::BadOption { .. }
        | Error::WrongPageSize { .. }
        | Error::BadAlignment { .. }
        | Error::ZeroSize => Failure::Usage { text: error.to_string(), remedy: None },
        _ => Failure::cannot(error),
    })
}

/// The heap's name in a command.
fn name_of(place: Option<&Place>) -> String {
    place.map_or_else(|| "NAME".to_owned(), Place::text)
}

/// The command that removes what stands there, whatever it is.
fn removal(name: &str) -> String {
    format!("shmheap rm --any-kind {name}")
}

/// What is wrong with the system, not with the heap.
fn system(error: &Error, place: Option<&Place>) -> Option<Failure> {
    let may_be_segment = !matches!(place, Some(Place::File(_)));
    match error {
        Error::NotFound { .. } | Error::System { .. } if may_be_segment && !Path::new(FOLDER).is_dir() => {
            Some(Failure::cannot_but(
                format!("there is no {FOLDER}, in which heaps have their names"),
                format!("sudo mkdir -p {FOLDER} && sudo mount -t tmpfs -o mode=1777 tmpfs {FOLDER}"),
            ))
        }
        Error::System { errno, .. } if *errno == Errno::EROFS as i32 => Some(read_only(error, place)),
        Error::NoSpace { needed, available } => Some(Failure::cannot_but(
            format!("no space behind the heap: {needed} bytes needed, {available} available"),
            "shmheap doctor tells what takes the space, and how to get more",
        )),
        _ => None,
    }
}

/// A file system cannot be written to: the heap's, or that of an image.
fn read_only(error: &Error, place: Option<&Place>) -> Failure {
    let is_read_only = |path: &Path| statvfs(path).is_ok_and(|system| system.flags().contains(FsFlags::ST_RDONLY));
    let folder = match place {
        Some(Place::File(path)) => path.parent().map_or_else(|| PathBuf::from("."), Path::to_owned),
        _ => PathBuf::from(FOLDER),
    };
    if !is_read_only(&folder) {
        return Failure::cannot_but(error, "choose a path on a file system that can be written to");
    }
    match place {
        Some(Place::File(_)) => Failure::cannot_but(
            format!("the file system of {} is mounted read-only", name_of(place)),
            "choose a path on another one, or make it writable: sudo mount -o remount,rw ...",
        ),
        _ => Failure::cannot_but(
            format!("{FOLDER} is mounted read-only"),
            format!("make it writable: sudo mount -o remount,rw {FOLDER}"),
        ),
    }
}

/// Nothing is there, or something is that should not be.
fn absence(error: &Error, place: Option<&Place>) -> Option<Failure> {
    Some(match (error, place) {
        (Error::NotFound { name }, Some(Place::File(_))) => {
            Failure::cannot_but(format!("there is no file {name:?}"), "heaps in /dev/shm are named without a slash")
        }
        (Error::NotFound { .. }, Some(Place::Segment(asked))) => Failure::cannot_but(
            format!("there is no heap named {asked:?}"),
            match near(asked).as_slice() {
                [] => format!("shmheap ls lists the heaps there are; shmheap create {} makes one", name_of(place)),
                names => format!("did you mean {}?", names.join(", ")),
            },
        ),
        (Error::NotFound { name }, None) => {
            Failure::cannot_but(format!("there is no heap named {name:?}"), "shmheap ls lists them")
        }
        (Error::AlreadyExists { name }, _) => {
            let remedy = place.map_or_else(|| "choose another name".to_owned(), what_stands);
            Failure::cannot_but(format!("{name:?} exists already"), remedy)
        }
        (Error::Unlinked { name }, _) => Failure::cannot_but(
            format!("{name:?} was removed while it was being opened"),
            "shmheap ls lists the heaps there are",
        ),
        _ => return None,
    })
}

/// What to do about what stands where something is to be created.
fn what_stands(place: &Place) -> String {
    let name = place.text();
    match place.look().map(|found| found.kind) {
        Ok(SegmentKind::Heap) => format!("look at it with: shmheap stat {name}; or remove it with: shmheap rm {name}"),
        _ => format!("it is no heap that can be opened; if it is to go: {}", removal(&name)),
    }
}

/// Somebody may not do what was asked for.
fn access(error: &Error, place: Option<&Place>) -> Option<Failure> {
    Some(match error {
        Error::WrongOwner { name, owner, .. } => Failure::cannot_but(
            format!("{name:?} belongs to {}, not to you", user(*owner)),
            format!("run it as that user (sudo -u {} shmheap ...), or trust that user with --any-owner", for_sudo(*owner)),
        ),
        Error::PermissionDenied { name, owner, mode } => Failure::cannot_but(
            format!("no permission to open {name:?}: it belongs to {} and has mode {mode:04o}", user(*owner)),
            format!("run it as that user: sudo -u {} shmheap ...", for_sudo(*owner)),
        ),
        Error::WrongMode { name, mode, .. } => {
            let path = place.map_or_else(|| Path::new(FOLDER).join(name), Place::path);
            Failure::cannot_but(
                format!("{name:?} has mode {mode:04o}: others than its owner may write to it"),
                format!("chmod go-w {}, or trust them with --any-owner", path.display()),
            )
        }
        _ => return None,
    })
}

/// What is there cannot be used as it is.
fn condition(error: &Error, place: Option<&Place>) -> Option<Failure> {
    let name = name_of(place);
    let heap = place.map_or_else(|| "the heap".to_owned(), Place::text);
    let load =
        format!("load the last image under another name (shmheap load), and remove this one with: {}", removal(&name));
    let of_heap = |text: String| if place.is_some() { format!("{name}: {text}") } else { text };
    Some(match error {
        Error::NotAHeap { name, why } => {
            Failure::wrong(format!("{name:?} is no heap: {why}"), "shmheap ls --all tells what stands in /dev/shm")
        }
        Error::Corrupt(corruption) => Failure::wrong(
            of_heap(format!("the heap is corrupt: {corruption}")),
            format!("shmheap repair {name} --dry-run tells what can be mended"),
        ),
        Error::CapacityMismatch { expected, actual } => Failure::wrong(
            format!("{heap} says that it has {expected} bytes, but {actual} are there: it was truncated"),
            load,
        ),
        Error::Shrunk { name, expected, actual } => {
            Failure::wrong(format!("{name:?} was truncated: {expected} bytes expected, {actual} found"), load)
        }
        Error::Unclean { name: heap, corruption } => Failure::wrong(
            format!(
                "{heap:?} was in use when the machine stopped, and what reached the disk does not fit together ({corruption})"
            ),
            format!("load the last image (shmheap load), or see what can be mended: shmheap repair {name} --dry-run"),
        ),
        Error::WrongVersion { found, supported } => Failure::cannot_but(
            format!("{heap} has format version {found}, this program reads version {supported}"),
            format!("use the shmheap that wrote it; or remove it with: {}", removal(&name)),
        ),
        Error::WrongByteOrder => Failure::cannot_but(
            format!("{heap} was written on a machine of the other byte order"),
            format!("use it on one like that; or remove it with: {}", removal(&name)),
        ),
        Error::WrongImageVersion { image, found, supported } => Failure::cannot_but(
            format!("the image {image:?} has format version {found}, this program reads version {supported}"),
            "use the shmheap that wrote it",
        ),
        Error::Unrecovered { holder_pid } => Failure::wrong(
            of_heap(format!("pid {holder_pid} died while it changed the heap, and nobody has used the heap since")),
            format!("shmheap recover {name} finishes or undoes what it had begun"),
        ),
        _ => return None,
    })
}

/// The heap is well, but what is asked for does not go with what is in it.
fn content(error: &Error, name: &str) -> Option<Failure> {
    Some(match error {
        Error::RootUnknown { name: root } => {
            Failure::cannot_but(format!("the heap has no root named {root:?}"), format!("shmheap roots {name} lists them"))
        }
        Error::RootExists { name: root } => Failure::cannot_but(
            format!("there is a root named {root:?} already"),
            format!("shmheap del {name} {root} removes it"),
        ),
        Error::RootsFull { slots } => Failure::cannot_but(
            format!("all {slots} root slots are taken"),
            format!(
                "remove some with: shmheap del {name} ROOT; or create a heap with more: shmheap create --root-slots N NAME"
            ),
        ),
        Error::OutOfMemory { requested, free, largest_free, .. } => Failure::cannot_but(
            format!("{requested} bytes wanted, {free} free in all, {largest_free} in one piece"),
            format!(
                "shmheap blocks {name} --sort size lists what takes the room; shmheap create --capacity makes a larger heap"
            ),
        ),
        Error::TooLarge { requested, max } => Failure::cannot_but(
            format!("{requested} bytes wanted, but no block of this heap can have more than {max}"),
            "shmheap create --capacity makes a larger heap",
        ),
        _ => return None,
    })
}

/// Somebody else has the heap.
fn waiting(error: &Error, place: Option<&Place>) -> Option<Failure> {
    Some(match error {
        Error::LockTimeout { holder_pid: pid, waited_ms } => Failure::cannot_but(
            format!("waited {waited_ms} ms for pid {pid}, which is alive but does not let go (stopped?)"),
            match place {
                None => "shmheap stat NAME tells which process that is, and whether it is stopped".to_owned(),
                Some(place) => {
                    about(*pid, place, &format!("let it go on with: kill -CONT {pid}; or end it with: kill -KILL {pid}"))
                }
            },
        ),
        Error::InUse { name, pid } => Failure::cannot_but(
            format!("{name:?} is in use by pid {pid}, and can only be repaired when nobody uses it"),
            match place {
                None => "shmheap stat NAME tells which process that is".to_owned(),
                Some(place) => about(*pid, place, &format!("end that process first: kill {pid}")),
            },
        ),
        _ => return None,
    })
}

/// What to do about a process that has named itself by this number: the remedy, if that is its number here. In another
/// container it means another process, which must not be ended in its stead.
fn about(pid: u32, place: &Place, remedy: &str) -> String {
    if Process::using(pid, &place.path()).is_some() {
        return remedy.to_owned();
    }
    let others = "that is its number in another container, or it belongs to another user; do not kill that number here";
    match processes::mapping(&place.path()).as_slice() {
        [] => others.to_owned(),
        users => format!("{others}\nthe processes that have it mapped here: {}", processes::sentence(users)),
    }
}

/// A user's name and number.
fn user(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => format!("{} (uid {uid})", user.name),
        _ if uid == u32::MAX => "somebody unknown".to_owned(),
        _ => format!("uid {uid}"),
    }
}

/// A user as sudo takes it: by name, or by number where there is none.
fn for_sudo(uid: u32) -> String {
    match user_name(uid) {
        name if name != uid.to_string() => name,
        _ if uid == u32::MAX => "USER".to_owned(),
        number => format!("'#{number}'"),
    }
}
