//! `doctor`: looks at this system and says what to do.
//!
//! | noun | file | |
//! |---|---|---|
//! | [`Finding`] | here | what one check found: a grade, a sentence with numbers in it, and a remedy |
//! | [`Grade`] | here | fine, note, warning, or problem: something that will fail |
//! | [`System`] | `system.rs` | the files that are looked at, below a root that tests set |
//! | room | `room.rs` | /dev/shm, and the memory behind it |
//! | kernel | `kernel.rs` | what the library needs of the kernel |
//! | session | `session.rs` | what ends with a login, and the limits of a process |
//! | segment | `segments.rs` | what stands in /dev/shm: what is large, and what somebody left |
//!
//! Each check looks once and waits for nothing; what is missing or unreadable is a finding too. Only the running system can
//! be tried (memfd, membarrier) and its segments listed: with another root those checks are left out.

mod kernel;
mod room;
mod segments;
mod session;
mod system;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anstyle::Style;
use clap::Args;
use serde::Serialize;

use crate::output::{BAD, DIM, GOOD, Output, STRONG, WARNING, styled};
use crate::{Outcome, Verdict, units};
use system::System;

/// Looks at this system and says what is in the way of heaps, and what to do about it.
///
/// The exit code is 1 if there is a problem: something that will fail. Notes and warnings are no problem.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Look at the files below this folder instead, as far as they suffice
    #[arg(long, hide = true, default_value = "/")]
    root: PathBuf,
    /// Look as this user
    #[arg(long, hide = true)]
    uid: Option<u32>,
}

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    Fine,
    /// Worth knowing.
    Note,
    /// May fail one day, or costs something.
    Warning,
    /// Something will fail.
    Problem,
}

/// What a check found.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    grade: Grade,
    found: String,
    /// Commands, one a line.
    remedy: Option<String>,
    numbers: BTreeMap<&'static str, u64>,
}

impl Finding {
    fn new(check: &'static str, grade: Grade, found: impl Into<String>) -> Self {
        Self { check, grade, found: found.into(), remedy: None, numbers: BTreeMap::new() }
    }

    fn fine(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Grade::Fine, found)
    }

    fn note(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Grade::Note, found)
    }

    fn warning(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Grade::Warning, found)
    }

    fn problem(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Grade::Problem, found)
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    fn numbers(mut self, numbers: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        self.numbers.extend(numbers);
        self
    }
}

#[derive(Debug, Serialize)]
struct Diagnosis {
    problems: usize,
    warnings: usize,
    notes: usize,
    checks: Vec<Finding>,
}

impl Diagnosis {
    fn of(system: &System) -> Self {
        let checks: Vec<Finding> =
            [room::checks(system), segments::checks(system), kernel::checks(system), session::checks(system)]
                .into_iter()
                .flatten()
                .collect();
        let count = |grade| checks.iter().filter(|finding| finding.grade == grade).count();
        let (problems, warnings, notes) = (count(Grade::Problem), count(Grade::Warning), count(Grade::Note));
        Self { problems, warnings, notes, checks }
    }
}

impl Grade {
    fn word(self) -> (&'static str, Style) {
        match self {
            Self::Fine => ("fine", GOOD),
            Self::Note => ("note", DIM),
            Self::Warning => ("warning", WARNING),
            Self::Problem => ("problem", BAD),
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { check, grade, found, remedy, .. } in &self.checks {
            let (word, style) = grade.word();
            // Padded before it is styled: what gives the colour has no width.
            writeln!(f, "{} {check:<11} {found}", styled(style, format_args!("{word:<8}")))?;
            for line in remedy.iter().flat_map(|remedy| remedy.lines()) {
                writeln!(f, "{:20} {} {line}", "", styled(STRONG, "do:"))?;
            }
        }
        let Self { problems, warnings, notes, checks } = self;
        let counted = |count: usize, what: &str| units::counted(count as u64, what);
        let (problems, warnings, notes) =
            (counted(*problems, "problem"), counted(*warnings, "warning"), counted(*notes, "note"));
        writeln!(f, "{}: {problems}, {warnings}, {notes}", counted(checks.len(), "check"))
    }
}

impl Doctor {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let uid = self.uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw());
        let diagnosis = Diagnosis::of(&System::new(&self.root, uid));
        output.print(&diagnosis)?;
        Ok(if diagnosis.problems > 0 { Verdict::Wrong } else { Verdict::Fine })
    }
}
