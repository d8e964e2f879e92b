//! The rules by which the sources are kept readable, held by reading them.
//!
//! Each check names the file and the line that breaks it, and the rule.

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, from the lowest to the highest. A room may use those before it, and nothing after it.
const ROOMS: [&[&str]; 11] = [
    &["error"],
    &["sys"],
    &["region"],
    &["format"],
    &["journal"],
    &["alloc"],
    &["check"],
    &["recovery"],
    &["repair"],
    &["heap"],
    &["typed", "image"],
];
/// What is above all rooms: the list of what the library exports, and the program, which is a crate of its own.
const ABOVE: [&str; 2] = ["lib", "bin"];
/// Rooms that may contain unsafe code.
const UNSAFE_ROOMS: [&str; 3] = ["sys", "region", "typed"];
/// Longest file of the library, in lines.
const FILE_LINES_MAX: usize = 500;
/// Longest line, in characters. Rows of tables in comments, and lines that are one string, cannot be broken.
const COLUMNS_MAX: usize = 125;

/// A source file: its path from the repository's root, and its lines.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Lines with their numbers, from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }

    /// Lines without comments and without the contents of strings.
    fn code(&self) -> impl Iterator<Item = (usize, String)> {
        self.lines().map(|(number, line)| (number, code_of(line)))
    }

    /// The room to which a file under src belongs.
    fn room(&self) -> &str {
        let path = self.path.strip_prefix("src/").unwrap_or(&self.path);
        path.split(['/', '.']).next().unwrap_or(path)
    }
}

/// A line of code without its comment, and with its strings emptied. Strings that span lines are rare enough.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut characters = line.chars().peekable();
    let mut in_string = false;
    while let Some(character) = characters.next() {
        match character {
            '\\' if in_string => _ = characters.next(),
            '\'' if !in_string && characters.peek() == Some(&'"') => _ = characters.next(),
            '"' => in_string = !in_string,
            '/' if !in_string && characters.peek() == Some(&'/') => break,
            character if !in_string => code.push(character),
            _ => {}
        }
    }
    code
}

/// The words of a line of code, `::` kept within paths.
fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|character: char| !character.is_alphanumeric() && character != '_' && character != ':')
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files with this extension in a folder of the repository and those below it.
fn files(folder: &str, extension: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        let paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a folder can be listed").path()).collect();
        for path in paths {
            if path.is_dir() {
                // Benchmarks and fuzz targets may be packages with build folders of their own.
                if !path.ends_with("target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                let name = path.strip_prefix(root()).expect("it lies in the repository").display().to_string();
                found.push(Source { path: name, text: fs::read_to_string(&path).expect("sources are text") });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Every Rust source of the repository.
fn sources() -> Vec<Source> {
    let all: Vec<Source> = ["src", "tests", "examples"].into_iter().flat_map(|folder| files(folder, "rs")).collect();
    assert!(all.iter().any(|source| source.path == "src/lib.rs"), "the sources are not where they were");
    all
}

fn library() -> Vec<Source> {
    let all: Vec<Source> = sources().into_iter().filter(|source| source.path.starts_with("src/")).collect();
    assert!(all.len() > 20, "the library has more files than that");
    all
}

/// Fails with everything that was found, one finding a line.
fn expect_none(rule: &str, findings: impl IntoIterator<Item = String>) {
    let findings: Vec<String> = findings.into_iter().collect();
    assert!(findings.is_empty(), "{rule}:\n{}", findings.join("\n"));
}

fn place_of(room: &str) -> Option<usize> {
    ROOMS.iter().position(|names| names.contains(&room))
}

/// The names that follow `way` (`crate::` or `super::`) in a line of code, also those of a list in braces.
fn names_after<'a>(way: &str, code: &'a str) -> Vec<&'a str> {
    let mut names = Vec::new();
    for after in code.split(way).skip(1) {
        match after.strip_prefix('{') {
            Some(list) => names.extend(list.split(',').map(str::trim)),
            None => names.push(after),
        }
    }
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    names.into_iter().map(|name| &name[..name.find(|end| !is_part(end)).unwrap_or(name.len())]).collect()
}

#[test]
fn imports_run_downward_through_the_rooms() {
    let mut findings = Vec::new();
    for source in library().into_iter().filter(|source| !ABOVE.contains(&source.room())) {
        let own = source.room();
        let Some(own_place) = place_of(own) else {
            findings.push(format!("{}: {own} is not among the rooms in tests/tidy.rs", source.path));
            continue;
        };
        let is_below = |name: &str| name == own || place_of(name).is_some_and(|place| place < own_place);
        // By `super::` a room reaches its own files and items, and in its topmost file all others.
        let is_own = |name: &str| place_of(name).is_none() || root().join(format!("src/{own}/{name}.rs")).exists();
        for (number, code) in source.code() {
            let by_crate = names_after("crate::", &code).into_iter().filter(|name| !name.is_empty() && !is_below(name));
            let by_super = names_after("super::", &code).into_iter().filter(|name| !is_below(name) && !is_own(name));
            let found = by_crate.chain(by_super).map(|name| format!("{}:{number}: {own} may not use {name}", source.path));
            findings.extend(found);
        }
    }
    expect_none("a room may use only those before it", findings);
}

#[test]
fn the_program_uses_the_public_interface_only() {
    let program = library().into_iter().filter(|source| source.room() == "bin");
    let findings = program.flat_map(|source| {
        let includes = source.code().filter(|(_, code)| code.contains("#[path") || code.contains("include!"));
        includes.map(|(number, _)| format!("{}:{number}", source.path)).collect::<Vec<_>>()
    });
    expect_none("the program includes no file of the library", findings);
}

#[test]
fn unsafe_code_stays_in_the_rooms_that_may_have_it() {
    let mut findings = Vec::new();
    for source in library() {
        if UNSAFE_ROOMS.contains(&source.room()) {
            continue;
        }
        for (number, code) in source.code() {
            if words(&code).any(|word| word == "unsafe" || word == "unsafe_code") {
                findings.push(format!("{}:{number}: {}", source.path, code.trim()));
            }
        }
    }
    expect_none("unsafe code may stand in sys, region and typed only", findings);
}

#[test]
fn every_file_says_first_what_it_is() {
    let silent = sources().into_iter().filter(|source| !source.text.starts_with("//! "));
    expect_none("a file opens with `//!`", silent.map(|source| source.path));
}

#[test]
fn files_and_lines_are_short_enough_to_read() {
    let mut findings = Vec::new();
    for source in sources() {
        let lines = source.lines().count();
        if source.path.starts_with("src/") && lines > FILE_LINES_MAX {
            findings.push(format!("{}: {lines} lines", source.path));
        }
        for (number, line) in source.lines() {
            let columns = line.chars().count();
            let start = line.trim_start();
            let is_whole = ["//! |", "/// |", "\"", "#[error(\""].into_iter().any(|sign| start.starts_with(sign));
            if columns > COLUMNS_MAX && !is_whole {
                findings.push(format!("{}:{number}: {columns} columns", source.path));
            }
        }
    }
    expect_none("a file has at most 500 lines, a line at most 125 columns", findings);
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = ["todo!", "unimplemented!", "dbg!"];
    // Put together here, so that this file does not find itself.
    let notes = [("FIX", "ME"), ("TO", "DO"), ("XX", "X")].map(|(start, end)| start.to_owned() + end);
    let mut findings = Vec::new();
    for source in sources() {
        for ((number, line), (_, code)) in source.lines().zip(source.code()) {
            let has_mark = marks.into_iter().any(|mark| code.contains(mark));
            if has_mark || notes.iter().any(|note| line.contains(note.as_str())) {
                findings.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    expect_none("what is not finished is not committed", findings);
}

#[test]
fn every_ordering_label_stands_at_both_ends() {
    let mut labels: Vec<(String, String)> = Vec::new();
    for source in library() {
        for (number, line) in source.lines() {
            for after in line.split("ORDERING ").skip(1) {
                let list = after.split(':').next().unwrap_or(after);
                for label in words(list).filter(|word| is_label(word)) {
                    labels.push((label.to_owned(), format!("{}:{number}", source.path)));
                }
            }
        }
    }
    let alone = labels.iter().filter(|(label, _)| labels.iter().filter(|(other, _)| other == label).count() < 2);
    let findings = alone.map(|(label, place)| format!("{place}: {label} has no partner"));
    expect_none("an ordering is labelled at both ends", findings);
}

/// `O` and a number.
fn is_label(word: &str) -> bool {
    word.strip_prefix('O').is_some_and(|number| !number.is_empty() && number.chars().all(|digit| digit.is_ascii_digit()))
}

#[test]
fn every_exception_from_a_lint_has_a_reason() {
    let mut findings = Vec::new();
    for source in sources() {
        // An attribute may span lines; its text up to the closing bracket is looked at.
        for (start, _) in source.text.match_indices("[allow(").chain(source.text.match_indices("[expect(")) {
            let line_start = source.text[..start].rfind('\n').map_or(0, |end| end + 1);
            let is_attribute = source.text[line_start..start].trim_start().starts_with('#');
            let rest = &source.text[start..];
            let attribute = &rest[..rest.find(")]").unwrap_or(rest.len())];
            if is_attribute && !attribute.contains("reason = ") {
                let number = source.text[..start].lines().count();
                findings.push(format!("{}:{number}: {attribute}", source.path));
            }
        }
    }
    expect_none("an exception has a reason", findings);
}

#[test]
fn one_thing_has_one_word() {
    // Span, slab and block are the words for what an arena, a pool or a segment of another allocator would be.
    let forbidden = ["arena", "arenas", "pool", "pools"];
    let mut findings = Vec::new();
    for source in library() {
        for (number, line) in source.lines() {
            let lower = line.to_lowercase();
            let mut all = lower.split(|character: char| !character.is_alphabetic());
            if let Some(word) = all.find(|word| forbidden.contains(word)) {
                findings.push(format!("{}:{number}: {word}", source.path));
            }
        }
    }
    expect_none("memory is spans, slabs and blocks here", findings);
}

#[test]
fn the_paths_that_the_documents_name_exist() {
    let mut documents = files("docs", "md");
    if let Ok(text) = fs::read_to_string(root().join("README.md")) {
        documents.push(Source { path: "README.md".to_owned(), text });
    }
    documents.extend(sources());
    let mut findings = Vec::new();
    for document in documents {
        for (number, line) in document.lines() {
            let is_code = document.path.ends_with(".rs");
            let prose = if is_code { line.split_once("//").map_or("", |(_, comment)| comment) } else { line };
            for path in named_paths(prose, is_code) {
                if !root().join(path).exists() {
                    findings.push(format!("{}:{number}: {path}", document.path));
                }
            }
        }
    }
    expect_none("a path that is named exists", findings);
}

/// The paths of this repository in a line of prose. In documents they stand in backticks, in comments also bare.
fn named_paths(prose: &str, bare: bool) -> Vec<&str> {
    let folders = ["src/", "tests/", "examples/", "scripts/", "docs/"];
    let pieces: Vec<&str> = if bare {
        prose.split([' ', '`', '(', ')', ',', ';', '"']).collect()
    } else {
        // Every second piece stands between backticks; a command's words are looked at one by one.
        prose.split('`').skip(1).step_by(2).flat_map(|code| code.split(' ')).collect()
    };
    let paths = pieces.into_iter().filter(|piece| folders.iter().any(|folder| piece.starts_with(folder)));
    // A pattern is not a path.
    let paths = paths.filter(|path| !path.contains(['*', '<', '{', '$', '…']));
    paths.map(|path| path.split(':').next().unwrap_or(path).trim_end_matches('.')).collect()
}
