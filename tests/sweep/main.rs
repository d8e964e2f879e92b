//! sweep
#![allow(unsafe_code, reason = "forks, traces its children, and maps memory that they share")]

mod board;
mod calls;
mod child;
#[path = "../common/mod.rs"]
mod common;
mod crash;
mod image;
mod operations;
mod oracle;
mod pairs;
mod partner;
mod schedules;
mod soak;
mod stage;
mod tokens;

fn main() {
    let only = std::env::args().nth(1).unwrap_or_default();
    let seed: u64 = std::env::args().nth(2).and_then(|s| s.parse().ok()).unwrap_or(0);
    let double: u64 = std::env::args().nth(3).and_then(|s| s.parse().ok()).unwrap_or(0);
    child::pin_to_one_processor(0);
    if let Some(mode) = only.strip_prefix("kills:") {
        let started = std::time::Instant::now();
        match soak::run(soak::Plan { workers: 6, kills: double, seed, plain: mode == "plain" }) {
            Ok(report) => println!("kills {} {:?} takeovers {} p50 {} p99 {} max {} ops {} taken {:?} strays {:?}", report.kills, started.elapsed(), report.takeovers.len(), report.takeovers.value_at_quantile(0.5), report.takeovers.value_at_quantile(0.99), report.takeovers.max(), report.operations, report.taken, report.strays),
            Err(error) => println!("FAIL {error}"),
        }
        return;
    }
    if let Some(only) = only.strip_prefix("calls:") {
        for operation in operations::OPERATIONS.iter().filter(|operation| operation.name.contains(only)) {
            let started = std::time::Instant::now();
            match calls::sweep(operation, seed) {
                Ok(count) => println!("{:<55} failures {count} {:?}", operation.name, started.elapsed()),
                Err(error) => println!("FAIL {error}"),
            }
        }
        return;
    }
    if let Some(only) = only.strip_prefix("pairs:") {
        for pair in pairs::PAIRS.iter().filter(|pair| pair.name.contains(only)) {
            let started = std::time::Instant::now();
            match schedules::sweep(pair, seed, double.max(1), 0) {
                Ok(count) => println!("{:<55} schedules {count} {:?}", pair.name, started.elapsed()),
                Err(error) => println!("FAIL {error}"),
            }
        }
        return;
    }
    for operation in operations::OPERATIONS.iter().filter(|operation| operation.name.contains(&only)) {
        let started = std::time::Instant::now();
        match crash::sweep(operation, seed, double) {
            Ok(tally) => println!("{:<55} points {:>7} states {:>5} double {:>8} {:?}", operation.name, tally.points, tally.states, tally.double, started.elapsed()),
            Err(error) => println!("FAIL {error}"),
        }
    }
}
