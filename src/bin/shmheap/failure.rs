//! Errors as a person at a terminal needs them.
//!
//! The library's errors name its own calls as remedies; here each is told again with the command that helps.

use std::io::Write;

use nix::unistd::{Uid, User};
use shmheap::Error;

use crate::output::{BAD, STRONG, styled};

/// Why a command could not be carried out.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It makes no sense as it stands. Exit code 2.
    Usage { text: String, remedy: Option<String> },
    /// It could not be done. Exit code 3.
    Cannot { text: String, remedy: Option<String> },
    /// What was looked at is broken. Exit code 1.
    Wrong { text: String, remedy: Option<String> },
    /// Whoever started it has asked it to stop, or does not read any more what it prints. Exit code 0.
    Interrupted,
}

impl Failure {
    pub(crate) fn usage(text: impl ToString, remedy: impl ToString) -> Self {
        Self::Usage { text: text.to_string(), remedy: Some(remedy.to_string()) }
    }

    pub(crate) fn cannot(text: impl ToString) -> Self {
        Self::Cannot { text: text.to_string(), remedy: None }
    }

    pub(crate) fn cannot_but(text: impl ToString, remedy: impl ToString) -> Self {
        Self::Cannot { text: text.to_string(), remedy: Some(remedy.to_string()) }
    }

    pub(crate) fn wrong(text: impl ToString, remedy: impl ToString) -> Self {
        Self::Wrong { text: text.to_string(), remedy: Some(remedy.to_string()) }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted => 0,
            Self::Wrong { .. } => 1,
            Self::Usage { .. } => 2,
            Self::Cannot { .. } => 3,
        }
    }

    /// What is wrong, without the remedy.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Usage { text, .. } | Self::Cannot { text, .. } | Self::Wrong { text, .. } => text,
            Self::Interrupted => "interrupted",
        }
    }

    /// Prints it to standard error.
    pub(crate) fn print(&self) {
        let remedy = match self {
            Self::Usage { remedy, .. } | Self::Cannot { remedy, .. } | Self::Wrong { remedy, .. } => remedy.as_deref(),
            Self::Interrupted => return,
        };
        let mut stderr = anstream::stderr().lock();
        // Where even standard error is gone, the exit code is left.
        let _ = writeln!(stderr, "{} {}", styled(BAD, "error:"), self.text());
        for line in remedy.into_iter().flat_map(str::lines) {
            let _ = writeln!(stderr, "{} {line}", styled(STRONG, " help:"));
        }
    }
}

/// A user's name and number.
pub(crate) fn user(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => format!("{} (uid {uid})", user.name),
        _ if uid == u32::MAX => "somebody unknown".to_owned(),
        _ => format!("uid {uid}"),
    }
}

/// A user's name, or the number where there is none.
pub(crate) fn user_name(uid: u32) -> String {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// A user as sudo takes it: by name, or by number where there is none.
fn login(uid: u32) -> String {
    let name = user_name(uid);
    if name == uid.to_string() { format!("'#{uid}'") } else { name }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let as_owner = |owner: u32| {
            let name = login(owner);
            format!("run it as that user (sudo -u {name} shmheap ...), or trust that user with --any-owner")
        };
        match &error {
            Error::NotFound { name } => {
                Self::cannot_but(format!("there is no heap named {name:?}"), "shmheap ls lists them")
            }
            Error::AlreadyExists { name } => {
                Self::cannot_but(format!("{name:?} exists already"), "choose another name".to_owned())
            }
            Error::WrongOwner { name, owner, .. } => {
                Self::cannot_but(format!("{name:?} belongs to {}, not to you", user(*owner)), as_owner(*owner))
            }
            Error::PermissionDenied { name, owner, mode } => Self::cannot_but(
                format!("no permission to open {name:?}: it belongs to {} and has mode {mode:04o}", user(*owner)),
                format!("run it as that user: sudo -u {} shmheap ...", login(*owner)),
            ),
            Error::WrongMode { name, mode, .. } => Self::cannot_but(
                format!("{name:?} has mode {mode:04o}: others than its owner may write to it"),
                format!("chmod go-w /dev/shm/{name}, or trust them with --any-owner"),
            ),
            Error::NotAHeap { name, why } => {
                Self::wrong(format!("{name:?} is no heap: {why}"), "shmheap ls --all tells what stands in /dev/shm")
            }
            Error::Corrupt(corruption) => Self::wrong(
                format!("the heap is corrupt: {corruption}"),
                "shmheap repair NAME --dry-run tells what can be mended",
            ),
            Error::CapacityMismatch { expected, actual } => Self::wrong(
                format!("the heap says that it has {expected} bytes, but {actual} are there: it was truncated"),
                "load the last image (shmheap load), and remove this one (shmheap rm)",
            ),
            Error::WrongVersion { found, supported } => Self::cannot_but(
                format!("the heap has format version {found}, this program reads version {supported}"),
                "use the shmheap that wrote it; or remove it with shmheap rm",
            ),
            Error::NoSpace { needed, available } => Self::cannot_but(
                format!("no space behind the heap: {needed} bytes needed, {available} available"),
                "shmheap doctor tells what takes the space, and how to get more",
            ),
            Error::LockTimeout { holder_pid, waited_ms } => Self::cannot_but(
                format!("waited {waited_ms} ms for pid {holder_pid}, which is alive but does not let go (stopped?)"),
                "shmheap stat NAME tells which process that is, and whether it is stopped",
            ),
            Error::Unrecovered { holder_pid } => Self::wrong(
                format!("pid {holder_pid} died while it changed the heap, and nobody has used the heap since"),
                "shmheap recover NAME finishes or undoes what it had begun",
            ),
            Error::InUse { name, pid } => Self::cannot_but(
                format!("{name:?} is in use by pid {pid}, and can only be repaired when nobody uses it"),
                "shmheap stat NAME tells which process that is",
            ),
            Error::RootUnknown { name } => {
                Self::cannot_but(format!("the heap has no root named {name:?}"), "shmheap roots NAME lists them")
            }
            Error::RootsFull { slots } => Self::cannot_but(
                format!("all {slots} root slots are taken"),
                "remove some with shmheap del, or create a heap with more: shmheap create --root-slots N NAME",
            ),
            Error::RootExists { name } => {
                Self::cannot_but(format!("there is a root named {name:?} already"), "shmheap del NAME ROOT removes it")
            }
            Error::Unlinked { name } => Self::cannot_but(
                format!("{name:?} was removed while it was being opened"),
                "shmheap ls lists the heaps there are",
            ),
            Error::System { errno, .. } if *errno == nix::errno::Errno::EROFS as i32 => {
                Self::cannot_but(&error, "the file system is read-only: sudo mount -o remount,rw /dev/shm")
            }
            Error::Unclean { name, corruption } => Self::wrong(
                format!(
                    "{name:?} was in use when the machine stopped, and what reached the disk does not fit together ({corruption})"
                ),
                "load the last image (shmheap load), or see what can be mended: shmheap repair NAME --dry-run",
            ),
            Error::Shrunk { name, expected, actual } => Self::wrong(
                format!("{name:?} was truncated: {expected} bytes expected, {actual} found"),
                "load the last image under another name (shmheap load), and remove this one: shmheap rm --any-kind NAME",
            ),
            Error::OutOfMemory { requested, free, largest_free, .. } => Self::cannot_but(
                format!("{requested} bytes wanted, {free} free in all, {largest_free} in one piece"),
                "shmheap blocks NAME --sort size lists what takes the room; shmheap create --capacity makes a larger heap",
            ),
            Error::TooLarge { requested, max } => Self::cannot_but(
                format!("{requested} bytes wanted, but no block of this heap can have more than {max}"),
                "shmheap create --capacity makes a larger heap",
            ),
            Error::CorruptImage { .. } | Error::NotAnImage { .. } => Self::Wrong { text: error.to_string(), remedy: None },
            Error::BadName { .. }
            | Error::BadCapacity { .. }
            | Error::BadOption { .. }
            | Error::WrongPageSize { .. }
            | Error::BadAlignment { .. }
            | Error::ZeroSize => Self::Usage { text: error.to_string(), remedy: None },
            _ => Self::Cannot { text: error.to_string(), remedy: None },
        }
    }
}
