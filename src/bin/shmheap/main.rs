//! `shmheap`: looks at heaps in shared memory, changes them, and shows what is wrong with them.
//!
//! | noun | file | |
//! |---|---|---|
//! | command | `commands/` | one file or folder for each subcommand: its arguments, what it does, what it prints |
//! | [`place::Place`] | `place.rs` | what a NAME on the command line means: a segment, or a file |
//! | [`failure::Failure`] | `failure.rs` | why a command could not be carried out: what, why, and the remedy as a command |
//! | remedy | `remedies.rs` | what is said of each error of the library, and the command that helps |
//! | [`map::Map`] | `map/` | a heap as a picture: cells, their colours, and who paints them |
//! | [`output::Output`] | `output.rs` | printing, as text or as JSON |
//! | [`processes::Process`] | `processes.rs` | who has a heap attached, as far as /proc tells |
//! | unit | `units.rs` | sizes and times, read and written |
//!
//! The program uses the library's public interface only. What only reads opens heaps read-only: it takes no lane, waits for
//! no lock and disturbs nobody.
//!
//! Exit codes: 0 all is well; 1 something is wrong with what was looked at; 2 the command line makes no sense; 3 it could
//! not be done.

mod commands;
mod completion;
mod failure;
mod map;
mod output;
mod place;
mod processes;
mod remedies;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::CompleteEnv;

use commands::{Command, Inner};
use failure::Failure;
use output::Output;

/// Looks at persistent heaps in shared memory, changes them, and shows what is wrong with them.
///
/// A NAME is that of a heap in /dev/shm, or, with a slash in it, the path of a heap in a file.
#[derive(Debug, Parser)]
#[command(name = "shmheap", version, arg_required_else_help = true, infer_subcommands = true, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 all is well, 1 something is wrong with what was looked at, 2 usage, 3 it could not be done."
)]
struct Cli {
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// The program as it starts itself. Apart from the command line for people, so that nothing there is completed, shortened or
/// corrected to what is not meant for them.
#[derive(Debug, Parser)]
#[command(name = "shmheap")]
struct InnerCli {
    #[command(subcommand)]
    command: Inner,
}

/// How a command ended that could be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// All is well.
    Fine,
    /// Something is wrong with what was looked at.
    Wrong,
}

/// What a command returns.
type Outcome = Result<Verdict, Failure>;

fn main() -> ExitCode {
    CompleteEnv::with_factory(Cli::command).complete();
    let is_inner = std::env::args_os().nth(1).is_some_and(|first| first.to_str().is_some_and(Inner::has_subcommand));
    let outcome = if is_inner {
        InnerCli::parse().command.run(&Output::new(false))
    } else {
        let cli = Cli::parse();
        cli.command.run(&Output::new(cli.json))
    };
    match outcome {
        Ok(Verdict::Fine) => ExitCode::SUCCESS,
        Ok(Verdict::Wrong) => ExitCode::from(1),
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.exit_code())
        }
    }
}
