//! Runs units in processes of their own, two at a time or as many as there are processors, and can go on where it stopped.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use hdrhistogram::Histogram;

use crate::units::{Totals, Unit};

/// What was done, in a file: a line for what it was done with, and a line for each unit.
struct Ledger {
    path: PathBuf,
    done: Vec<(Unit, Totals)>,
}

impl Ledger {
    /// Opens the file, and forgets what another build of this program, or of the library, has noted there.
    fn open(path: &Path) -> Self {
        let build = fs::read(std::env::current_exe().expect("a program knows where it is")).expect("it can be read");
        let build = format!("build {:08x}", crc32fast::hash(&build));
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut lines = text.lines();
        if lines.next() == Some(&build) {
            let entry = |line: &str| {
                let (unit, totals) = line.split_once('\t')?;
                Some((unit.parse().ok()?, totals.parse().ok()?))
            };
            return Self { path: path.to_owned(), done: lines.filter_map(entry).collect() };
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).expect("the ledger's directory can be made");
        }
        fs::write(path, format!("{build}\n")).expect("the ledger can be written");
        Self { path: path.to_owned(), done: Vec::new() }
    }

    fn note(&mut self, unit: Unit, totals: Totals) {
        let mut file = OpenOptions::new().append(true).open(&self.path).expect("the ledger can be opened");
        // In one piece, so that a death leaves a whole line or none.
        file.write_all(format!("{unit}\t{totals}\n").as_bytes()).expect("the ledger can be written");
        self.done.push((unit, totals));
    }

    fn has(&self, unit: Unit) -> bool {
        self.done.iter().any(|(done, _)| *done == unit)
    }
}

/// Runs a unit in a process of its own, which its segments are named after.
fn run_apart(unit: Unit, part: usize) -> Result<Totals, String> {
    let program = std::env::current_exe().expect("a program knows where it is");
    let mut command = Command::new(program);
    command.args(["unit", &unit.to_string(), "--part", &part.to_string()]).stdout(Stdio::piped());
    let child = command.spawn().map_err(|error| format!("{unit}: it cannot be started: {error}"))?;
    let prefix = format!("shmheap-test-{}-", child.id());
    let output = child.wait_with_output().map_err(|error| format!("{unit}: {error}"))?;
    for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = fs::remove_file(entry.path());
        }
    }
    let said = String::from_utf8_lossy(&output.stdout);
    match said.lines().last().map(str::parse) {
        Some(Ok(totals)) if output.status.success() => Ok(totals),
        _ => Err(format!("{unit}: {}", if said.trim().is_empty() { "it panicked; see above" } else { said.trim() })),
    }
}

/// Runs all units that are not done yet; returns what they and those before them found, and how many failed.
pub(crate) fn run(units: &[Unit], ledger: Option<&Path>, jobs: usize) -> (Totals, usize) {
    let ledger = ledger.map(|path| Mutex::new(Ledger::open(path)));
    let (totals, failures, started) = (Mutex::new(Totals::default()), Mutex::new(0), Instant::now());
    let mut left = Vec::new();
    for unit in units {
        match &ledger {
            Some(ledger) if lock(ledger).has(*unit) => {}
            _ => left.push(*unit),
        }
    }
    if let Some(ledger) = &ledger {
        let of_this_run = |entry: &&(Unit, Totals)| units.contains(&entry.0);
        lock(ledger).done.iter().filter(of_this_run).for_each(|(_, done)| lock(&totals).add(done));
        if left.len() < units.len() {
            eprintln!("{} of {} units were done before", units.len() - left.len(), units.len());
        }
    }
    let (alone, others): (Vec<Unit>, Vec<Unit>) = left.into_iter().partition(Unit::runs_alone);
    for (queue, jobs) in [(others, jobs), (alone, 1)] {
        let queue = Mutex::new(queue.into_iter().rev().collect::<Vec<_>>());
        thread::scope(|scope| {
            for part in 0..jobs {
                let (queue, ledger, totals, failures) = (&queue, &ledger, &totals, &failures);
                scope.spawn(move || {
                    while let Some(unit) = next(queue) {
                        match run_apart(unit, part) {
                            Ok(found) => {
                                eprintln!("{:>5} s  {unit}", started.elapsed().as_secs());
                                lock(totals).add(&found);
                                if let Some(ledger) = ledger {
                                    lock(ledger).note(unit, found);
                                }
                            }
                            Err(error) => {
                                eprintln!("FAILURE  {error}");
                                *lock(failures) += 1;
                            }
                        }
                    }
                });
            }
        });
    }
    let failures = *lock(&failures);
    (totals.into_inner().unwrap_or_else(|error| error.into_inner()), failures)
}

fn next(queue: &Mutex<Vec<Unit>>) -> Option<Unit> {
    lock(queue).pop()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|error| error.into_inner())
}

/// The closing lines of a run.
pub(crate) fn report(totals: &Totals, failures: usize) -> String {
    let mut takeovers = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("sensible bounds");
    totals.takeovers.iter().for_each(|took| takeovers.saturating_record(*took));
    let ms = |quantile: f64| takeovers.value_at_quantile(quantile) as f64 / 1000.0;
    let Totals { points, states, double, schedules, failed_calls, kills, .. } = totals;
    format!(
        "states {states}  failed calls {failed_calls}\n\
         takeovers {}  p50 {:.2} ms  p99 {:.2} ms  max {:.2} ms\n\
         crash points {points}  double {double}  schedules {schedules}  kills {kills}  failures {failures}",
        takeovers.len(),
        ms(0.5),
        ms(0.99),
        ms(1.0),
    )
}
