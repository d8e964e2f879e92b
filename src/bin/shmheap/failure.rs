//! Errors as a person at a terminal needs them.
//!
//! Not here: what is said of each error of the library (`remedies`).

use std::io::Write;

use nix::unistd::{Uid, User};
use shmheap::Error;

use crate::output::{BAD, STRONG, shown, styled};
use crate::remedies;

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
        let _ = writeln!(stderr, "{} {}", styled(BAD, "error:"), shown(self.text()));
        for line in remedy.into_iter().flat_map(str::lines) {
            let _ = writeln!(stderr, "{} {}", styled(STRONG, " help:"), shown(line));
        }
    }
}

/// A user's name, or the number where there is none.
pub(crate) fn user_name(uid: u32) -> String {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        remedies::tell(&error, None)
    }
}
