//! The subcommands, one file or folder each.

mod create;
mod ls;
mod map;
mod rm;
mod stat;
mod top;
mod watch;

use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;

use crate::Outcome;
use crate::output::Output;
use crate::place::{self, Place};

/// The heap that a command is about.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name of the heap, or path of the file that it is in
    #[arg(value_name = "NAME", value_parser = Place::parse, add = ArgValueCompleter::new(place::complete))]
    pub(crate) place: Place,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a heap
    Create(create::Create),
    /// Remove heaps
    Rm(rm::Rm),
    /// List the heaps there are
    Ls(ls::Ls),
    /// Tell all about a heap in numbers
    Stat(stat::Stat),
    /// Show a heap at work, on a whole screen
    Top(top::Top),
    /// Print a line a second on what goes on in a heap
    Watch(watch::Watch),
    /// Draw a heap: what stands where
    Map(map::Draw),
}

impl Command {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        match self {
            Self::Create(command) => command.run(output),
            Self::Rm(command) => command.run(output),
            Self::Ls(command) => command.run(output),
            Self::Stat(command) => command.run(output),
            Self::Top(command) => command.run(output),
            Self::Watch(command) => command.run(output),
            Self::Map(command) => command.run(output),
        }
    }
}
