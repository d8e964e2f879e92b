//! Replays what a real program allocated and freed, in several processes at once, in one heap; and then shows, from a
//! process that had no part in it, that nothing was lost and nothing leaked.
//!
//! ```text
//! cargo run --release --example replay -- [--processes N] [--capacity BYTES] [FILE]
//! ```
//!
//! The *parent* creates the heap and starts the *workers*, which open it by name. Each replays the whole trace: it fills
//! every block with a pattern of its own and checks that pattern whenever the block is freed or reallocated. A tenth
//! of its frees it leaves to the next worker, so that blocks are freed by processes that did not allocate them. When
//! all have exited, a fresh process, the *finisher*, finds through the heap's roots what the trace never freed, checks
//! and frees it, and reports. Whatever happens, the parent unlinks the heap.
//!
//! | file | what it owns |
//! |---|---|
//! | `trace` | what a trace file says |
//! | `pattern` | what blocks are filled with |
//! | `parcel` | a block in use, as it goes from one process to another |
//! | `board`, `ring` | what the processes share: blocks of the heap that roots lead to |
//! | `parent`, `worker`, `finisher` | the three kinds of processes |

mod board;
mod finisher;
mod parcel;
mod parent;
mod pattern;
mod ring;
mod trace;
mod worker;

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

/// Only people read these errors, so text with its context is enough.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: replay [--processes N] [--capacity BYTES] [FILE]";
/// The hidden arguments by which the parent starts the other two kinds of processes.
const WORKER: &str = "--worker";
const FINISH: &str = "--finish";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("replay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut plan = parent::Plan { processes: 2, capacity: None, file: default_file() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} lacks its value; {USAGE}"));
        match argument.as_str() {
            WORKER => return worker::run(value()?.parse()?, &value()?, value()?.as_ref()),
            FINISH => return finisher::run(&value()?),
            "--processes" => plan.processes = number(&argument, &value()?, 1..=256)?,
            "--capacity" => plan.capacity = Some(number(&argument, &value()?, 0..=u64::MAX)?),
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(());
            }
            flag if flag.starts_with('-') => return Err(format!("unknown option {flag}; {USAGE}").into()),
            file => plan.file = PathBuf::from(file),
        }
    }
    parent::run(&plan)
}

/// The trace that lies in the repository.
fn default_file() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "data", "git.trace.zst"].iter().collect()
}

fn number<T>(flag: &str, text: &str, range: RangeInclusive<T>) -> Result<T>
where
    T: FromStr + PartialOrd + Display,
{
    let number = text.parse().ok().filter(|number| range.contains(number));
    Ok(number.ok_or_else(|| format!("{flag} {text}: a number from {} to {} is needed", range.start(), range.end()))?)
}
