//! The report: tables for people, and four last lines for programs.

use std::fmt::Write;

use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::allocators::Kind;
use crate::results::{Results, Row};

/// Everything that was found out, as text.
pub(crate) fn text(results: &Results) -> String {
    let mut text = String::new();
    let mut part = |title: &str, table: Table| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{title}\n{table}\n");
    };
    if !results.rows.is_empty() {
        part("Time: nanoseconds per operation (one allocate or one free), medians", timed(results));
    }
    if !results.scaling.is_empty() {
        part("Scaling: small churns, millions of operations per second of all workers", scaling(results));
    }
    if !results.space.is_empty() {
        part(
            "Space: bytes of memory taken per live byte (of Boost.Interprocess: the part of its segment in use)",
            space(results),
        );
    }
    if results.state.is_some() {
        part("shmheap's memory", state(results));
    }
    if !results.start.is_empty() {
        part("Start: microseconds, medians of 101", start(results));
    }
    if !results.images.is_empty() {
        part("Images: milliseconds, medians of 7", images(results));
    }
    text + &closing(results)
}

/// The lines at the end.
fn closing(results: &Results) -> String {
    let ratio = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    let mean = |of, to| results.mean(|row| row.ratio(of, to));
    let million = results.rows.iter().find(|row| !row.workload.is_in_means());
    let million = million.and_then(|row| row.ratio(Kind::Shmheap, Kind::Mimalloc));
    let boost =
        if results.boost_is_installed { ratio(mean(Kind::Boost, Kind::Shmheap)) } else { "not installed".to_owned() };
    let (churn, traces) = results.shmheap_space();
    let missing = "Boost.Interprocess: not installed (apt-get install libboost-dev)\n";
    format!(
        "{}churn-1m vs mimalloc {}\ngeomean vs mimalloc {}\ngeomean vs best private {}\n\
         geomean vs Boost.Interprocess {boost}\nspace churn {}  traces {}\n",
        if results.boost_is_installed { "" } else { missing },
        ratio(million),
        ratio(mean(Kind::Shmheap, Kind::Mimalloc)),
        ratio(results.mean(Row::ratio_to_best)),
        ratio(churn),
        ratio(traces),
    )
}

/// A table with this first column and these further ones; numbers stand at the right.
fn table(first: &str, columns: impl IntoIterator<Item = String>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(std::iter::once(Cell::new(first)).chain(columns.into_iter().map(right)));
    table
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn number(value: Option<f64>, decimals: usize) -> Cell {
    right(value.map_or("-".to_owned(), |value| format!("{value:.decimals$}")))
}

/// The allocators that appear anywhere in `present`, in the order of the report.
fn columns(present: impl Fn(Kind) -> bool) -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|kind| present(*kind)).collect()
}

fn names(kinds: &[Kind]) -> impl Iterator<Item = String> {
    kinds.iter().map(|kind| kind.name().to_owned())
}

fn timed(results: &Results) -> Table {
    let kinds = columns(|kind| results.rows.iter().any(|row| row.ns.contains_key(&kind)));
    let ratios = ["vs mimalloc", "vs best"].map(str::to_owned);
    let mut table = table("workload", names(&kinds).chain(ratios));
    for row in &results.rows {
        let mut cells = vec![Cell::new(row.workload.name())];
        cells.extend(kinds.iter().map(|kind| number(row.ns.get(kind).copied(), 1)));
        cells.push(number(row.ratio(Kind::Shmheap, Kind::Mimalloc), 2));
        cells.push(number(row.ratio_to_best(), 2));
        table.add_row(cells);
    }
    table
}

fn scaling(results: &Results) -> Table {
    let kinds = columns(|kind| results.scaling.iter().any(|row| row.million_per_second.contains_key(&kind)));
    let mut table = table("workers", names(&kinds));
    for row in &results.scaling {
        let mut cells = vec![Cell::new(row.workers)];
        cells.extend(kinds.iter().map(|kind| number(row.million_per_second.get(kind).copied(), 1)));
        table.add_row(cells);
    }
    table
}

fn space(results: &Results) -> Table {
    let kinds = columns(|kind| results.space.iter().any(|row| row.ratio.contains_key(&kind)));
    let mut table = table("load", std::iter::once("live MB".to_owned()).chain(names(&kinds)));
    for row in &results.space {
        let mut cells = vec![Cell::new(&row.what), number(Some(row.live as f64 / 1e6), 1)];
        cells.extend(kinds.iter().map(|kind| number(row.ratio.get(kind).copied(), 2)));
        table.add_row(cells);
    }
    table
}

fn state(results: &Results) -> Table {
    let mut table = table("what", ["value".to_owned()]);
    let Some(state) = results.state else { return table };
    let percent = |part: f64| right(format!("{:.1} %", part * 100.0));
    let mut line = |what: &str, value| _ = table.add_row(vec![Cell::new(what), value]);
    line("free bytes outside the largest free run, after the churn", percent(state.fragmentation));
    line("bytes taken that are in no block, after the churn", percent(state.idle));
    line("free bytes that make no blocks of 32 KiB, 20 MiB churned at 75 % fill", percent(state.unusable));
    let kibibytes = right(format!("{} KiB", state.trimmed / 1024));
    line("taken of 1 GiB after everything was freed and trimmed", kibibytes);
    table
}

fn start(results: &Results) -> Table {
    let columns = ["capacity", "create", "open", "open to first allocation", "detach"].map(str::to_owned);
    let mut table = table("allocator", columns);
    for row in &results.start {
        let capacity = match row.capacity >> 30 {
            0 => format!("{} MiB", row.capacity >> 20),
            gibibytes => format!("{gibibytes} GiB"),
        };
        let mut cells = vec![Cell::new(row.kind.name()), right(capacity)];
        let times = [row.create, row.open, row.first_allocation, row.detach];
        cells.extend(times.map(|time| number(Some(time), 1)));
        table.add_row(cells);
    }
    table
}

fn images(results: &Results) -> Table {
    let columns = ["MB", "save", "plain copy", "ratio", "load", "plain copy", "ratio"].map(str::to_owned);
    let mut table = table("image in", columns);
    for row in &results.images {
        let mut cells = vec![Cell::new(&row.what), number(Some(row.bytes as f64 / 1e6), 0)];
        for (ours, plain) in [(row.save, row.copy_out), (row.load, row.copy_in)] {
            cells.extend([number(Some(ours), 1), number(Some(plain), 1), number(Some(ours / plain), 2)]);
        }
        table.add_row(cells);
    }
    table
}
