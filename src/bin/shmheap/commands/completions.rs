//! `completions` and `man`: what shells and `man` want to know of the program.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, CommandFactory, ValueHint};
use clap_complete::env::Shells;
use serde::Serialize;

use crate::failure::Failure;
use crate::output::Output;
use crate::{Cli, Outcome, Verdict};

/// Prints a script that makes a shell complete this program's arguments, the names of heaps included.
///
/// bash: source <(shmheap completions bash); zsh: source <(shmheap completions zsh); fish: shmheap completions fish | source
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// Which shell
    #[arg(value_parser = ["bash", "elvish", "fish", "powershell", "zsh"])]
    shell: String,
}

impl Completions {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let shells = Shells::builtins();
        let completer = shells.completer(&self.shell).ok_or_else(|| Failure::cannot("no such shell is known"))?;
        let mut script = Vec::new();
        // The script calls the program by its name, so that it goes on working when the program moves.
        completer.write_registration("COMPLETE", "shmheap", "shmheap", "shmheap", &mut script).map_err(Failure::cannot)?;
        output.bytes(&script)?;
        Ok(Verdict::Fine)
    }
}

/// Writes man pages, one for the program and one for each subcommand.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Folder to write them to; it is made if it does not exist
    #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    folder: PathBuf,
}

#[derive(Debug, Serialize)]
struct Written {
    folder: PathBuf,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = self.folder.display();
        writeln!(f, "wrote the pages to {folder}; look at them with: man -l {folder}/shmheap.1")
    }
}

impl Man {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let written =
            std::fs::create_dir_all(&self.folder).and_then(|()| clap_mangen::generate_to(Cli::command(), &self.folder));
        written.map_err(|error| Failure::cannot(format!("{}: {error}", self.folder.display())))?;
        output.print(&Written { folder: self.folder })?;
        Ok(Verdict::Fine)
    }
}
