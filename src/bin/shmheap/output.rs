//! Printing: text for people, JSON for programs.

use std::fmt;
use std::io::{ErrorKind, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::Failure;

/// Something to be printed: `Display` is for people, `Serialize` for programs.
pub(crate) trait Report: Serialize + fmt::Display {}
impl<T: Serialize + fmt::Display> Report for T {}

/// Where and how a command prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const STRONG: Style = Style::new().bold();

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// True where a person looks on: a progress bar or a picture is welcome.
    pub(crate) fn is_watched(self) -> bool {
        !self.json && std::io::stderr().is_terminal()
    }

    /// Prints a report, whole. Where nobody reads it, what was found is still to be told by the exit code.
    pub(crate) fn print(self, report: &impl Report) -> Result<(), Failure> {
        let printed = if self.json {
            self.line(&serde_json::to_string_pretty(report).map_err(Failure::cannot)?)
        } else {
            self.text(format_args!("{report}"))
        };
        match printed {
            Err(Failure::Interrupted) => Ok(()),
            printed => printed,
        }
    }

    /// Prints a report on one line: for commands that print one after the other.
    pub(crate) fn print_line(self, report: &impl Report) -> Result<(), Failure> {
        if self.json {
            return self.line(&serde_json::to_string(report).map_err(Failure::cannot)?);
        }
        self.line(&report.to_string())
    }

    /// Prints text that has its line ends; colours reach terminals only.
    pub(crate) fn text(self, text: fmt::Arguments<'_>) -> Result<(), Failure> {
        let mut stdout = anstream::stdout().lock();
        unless_gone(stdout.write_fmt(text).and_then(|()| stdout.flush()))
    }

    /// Prints one line.
    pub(crate) fn line(self, line: &str) -> Result<(), Failure> {
        self.text(format_args!("{line}\n"))
    }

    /// Writes bytes as they are.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        unless_gone(stdout.write_all(bytes).and_then(|()| stdout.flush()))
    }
}

/// Where nobody reads any more, who prints one line after the other is to end.
fn unless_gone(written: std::io::Result<()>) -> Result<(), Failure> {
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::Interrupted,
        _ => Failure::cannot(format!("cannot write to standard output: {error}")),
    })
}

/// A table without lines around its cells. Columns whose heads begin with `>` are aligned to the right.
pub(crate) fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heads.iter().map(|head| head.trim_start_matches('>')));
    for (index, head) in heads.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if head.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table
}

/// A table as lines, without blanks at their ends, each with a line end.
pub(crate) fn lines_of(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Text of others, for people: control characters, which could say anything to a terminal, are written as escapes.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_debug()),
            false => shown.push(character),
        }
    }
    shown
}

/// Text in a style.
pub(crate) fn styled(style: Style, text: impl fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}
