//! The rules of the house, read off its source: who may know whom, and where things stand.
//!
//! The reading is by line and by word. It can be fooled by somebody who wants to; it is there for
//! those who forget.
#![allow(clippy::unwrap_used, reason = "tests fail loudly")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Lines of a file, without its tests.
const LINES_MAX: usize = 400;
/// Lines of a function.
const FUNCTION_MAX: usize = 60;

/// Files that may be longer, and why.
const LONG_FILES: &[(&str, &str)] = &[];

/// Files that need not say what they are for, and why.
const SILENT_FILES: &[(&str, &str)] =
    &[("supervisor/tests/mod.rs", "names three modules, each of which opens with its theory")];

/// Functions that may be longer, and why.
const LONG_FUNCTIONS: &[(&str, &str, &str)] = &[];

/// A file under `src`.
struct Source {
    /// Its path below `src`.
    path: String,
    text: String,
}

/// A line of code, without its comment and what stands in quotes.
struct Line<'a> {
    number: usize,
    text: &'a str,
    code: String,
}

impl Source {
    fn all() -> Vec<Source> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = files_under(&root);
        files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
        files.sort();
        let sources = files.into_iter().map(|path| Source {
            path: path.strip_prefix(&root).unwrap().display().to_string(),
            text: std::fs::read_to_string(&path).unwrap(),
        });
        sources.collect()
    }

    /// The part of the house that it belongs to: its folder, or its own name.
    fn part(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }

    fn is_tests(&self) -> bool {
        self.path.split('/').any(|part| part == "tests" || part == "tests.rs")
    }

    /// Lines before the tests module at the end.
    fn lines(&self) -> Vec<Line<'_>> {
        let mut lines = Vec::new();
        let mut text = self.text.lines().enumerate().peekable();
        while let Some((index, line)) = text.next() {
            let is_module =
                text.peek().is_some_and(|(_, next)| next.trim_start().starts_with("mod tests {"));
            if self.is_tests() || (line.trim() == "#[cfg(test)]" && is_module) {
                break;
            }
            lines.push(Line { number: index + 1, text: line, code: code_of(line) });
        }
        lines
    }
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, mut files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    files.extend(folders.iter().flat_map(|folder| files_under(folder)));
    files
}

/// A line without its comment and without what stands in quotes.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut is_quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if is_quoted => drop(characters.next()),
            '"' => is_quoted = !is_quoted,
            '\'' if !is_quoted && characters.peek() == Some(&'"') => {
                code.extend(characters.by_ref().take(2));
            }
            '/' if !is_quoted && characters.peek() == Some(&'/') => break,
            _ if is_quoted => {}
            other => code.push(other),
        }
    }
    code
}

/// Whether `word` stands in `code`, not as a part of another word.
fn names(code: &str, word: &str) -> bool {
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].ends_with(is_name) && !code[at + word.len()..].starts_with(is_name)
    })
}

/// Prints every offender, and fails if there is one.
fn none(rule: &str, offenders: &[String]) {
    let mut text = String::new();
    for offender in offenders {
        writeln!(text, "  {offender}").unwrap();
    }
    assert!(offenders.is_empty(), "{rule}:\n{text}");
}

/// Lines of these files that name one of these words.
fn naming(is_meant: impl Fn(&Source) -> bool, words: &[&str]) -> Vec<String> {
    let mut offenders = Vec::new();
    for source in Source::all().iter().filter(|source| is_meant(source)) {
        for line in source.lines() {
            for word in words.iter().filter(|word| names(&line.code, word)) {
                let text = line.text.trim();
                offenders.push(format!("src/{}:{}: {word}: {text}", source.path, line.number));
            }
        }
    }
    offenders
}

#[test]
fn the_mind_knows_no_descriptor_no_path_no_process_and_no_clock() {
    let words = [
        "OwnedFd",
        "BorrowedFd",
        "RawFd",
        "AsFd",
        "Path",
        "PathBuf",
        "Pid",
        "pid",
        "File",
        "std::fs",
        "std::net",
        "std::os",
        "std::process",
        "std::path",
        "std::io",
        "std::env",
        "std::thread",
        "Instant::now",
        "SystemTime",
        "nix",
        "libc",
        // What a mind is written down as is plain data; how that becomes bytes is the shell's.
        "serde_json",
        "println!",
        "eprintln!",
    ];
    none("the mind reaches outside", &naming(|source| source.part() == "supervisor", &words));
}

/// Which parts each part may name.
const ARROWS: &[(&str, &[&str])] = &[
    ("supervisor", &["supervisor"]),
    ("sys", &["sys"]),
    ("wire", &["wire", "sys"]),
    ("worker", &["worker", "wire", "sys", "error"]),
    ("kinds", &["kinds", "wire", "sys", "supervisor", "config"]),
    ("config", &["config", "supervisor", "sys", "wire"]),
    ("master", &["master", "config", "kinds", "supervisor", "sys", "wire", "error"]),
    ("demo", &["demo", "worker", "wire"]),
    ("error", &["error"]),
];

#[test]
fn the_parts_know_each_other_only_along_the_arrows() {
    let mut offenders = Vec::new();
    for source in Source::all() {
        let Some((_, allowed)) = ARROWS.iter().find(|(part, _)| *part == source.part()) else {
            continue;
        };
        let mut lines = source.lines().into_iter().peekable();
        while let Some(line) = lines.next() {
            let mut code = line.code.clone();
            // `use crate::{a, b};` may go over several lines.
            while code.contains("crate::{") && !code.contains("};") && lines.peek().is_some() {
                code.push_str(&lines.next().unwrap().code);
            }
            for other in parts_in(&code) {
                let is_own = other.starts_with(char::is_uppercase) && other != "Master";
                let is_root = is_own && ["Error", "Result"].contains(&other.as_str());
                let is_worker = is_own && allowed.contains(&"worker");
                if !allowed.contains(&other.as_str()) && !is_root && !is_worker {
                    offenders.push(format!(
                        "src/{}:{}: {} names {other}: {}",
                        source.path,
                        line.number,
                        source.part(),
                        line.text.trim()
                    ));
                }
            }
        }
    }
    none("arrows that are not drawn", &offenders);
}

/// The first names after each `crate::`.
fn parts_in(code: &str) -> BTreeSet<String> {
    let mut parts = BTreeSet::new();
    let is_name = |character: &char| character.is_alphanumeric() || *character == '_';
    let name = |text: &str| text.trim().chars().take_while(is_name).collect::<String>();
    for (at, word) in code.match_indices("crate::") {
        let rest = &code[at + word.len()..];
        match rest.strip_prefix('{') {
            None => drop(parts.insert(name(rest))),
            Some(list) => {
                let mut depth = 0;
                let top = list.chars().take_while(|&character| {
                    depth += i32::from(character == '{') - i32::from(character == '}');
                    depth >= 0
                });
                let top: String = top.collect();
                let mut depth = 0;
                let entries = top.split(|character: char| {
                    depth += i32::from(character == '{') - i32::from(character == '}');
                    depth == 0 && character == ','
                });
                parts.extend(entries.map(name).filter(|name| !name.is_empty()));
            }
        }
    }
    parts
}

#[test]
fn only_the_roster_moves_a_phase() {
    let mut offenders = Vec::new();
    for source in Source::all().iter().filter(|source| source.path != "supervisor/roster.rs") {
        for line in source.lines() {
            let assigns = line.code.split("phase =").skip(1).any(|rest| !rest.starts_with('='));
            if line.code.contains(".phase") && assigns {
                let text = line.text.trim();
                offenders.push(format!("src/{}:{}: {text}", source.path, line.number));
            }
        }
    }
    none("a phase is assigned outside of the roster", &offenders);
}

#[test]
fn unsafe_code_is_in_sys_alone_and_says_why_it_is_sound() {
    let mut offenders = Vec::new();
    for source in Source::all() {
        let lines = source.lines();
        for (index, line) in lines.iter().enumerate() {
            if !names(&line.code, "unsafe") {
                continue;
            }
            let place = format!("src/{}:{}: {}", source.path, line.number, line.text.trim());
            if source.part() != "sys" {
                offenders.push(format!("outside of sys: {place}"));
            }
            // The comment stands above the statement, which may have begun a few lines earlier.
            let above = &lines[index.saturating_sub(6)..index];
            if !above.iter().any(|line| line.text.contains("SAFETY:")) {
                offenders.push(format!("without a SAFETY comment: {place}"));
            }
        }
    }
    none("unsafe code", &offenders);
}

#[test]
fn descriptors_are_numbers_in_sys_only() {
    none("numbers of descriptors", &naming(|source| source.part() != "sys", &["RawFd"]));
}

#[test]
fn the_clock_is_read_only_where_it_is_said_why() {
    let mut offenders = Vec::new();
    for source in Source::all() {
        let lines = source.lines();
        for (index, line) in lines.iter().enumerate() {
            let above = &lines[index.saturating_sub(3)..index];
            let is_excused = above.iter().any(|line| line.text.contains("disallowed_methods"));
            if (line.code.contains("Instant::now") || line.code.contains("thread::sleep"))
                && !is_excused
            {
                offenders.push(format!("src/{}:{}", source.path, line.number));
            }
        }
    }
    none("the clock is read without an #[expect] and its reason", &offenders);
}

#[test]
fn nothing_panics_on_what_others_do() {
    let mut offenders = naming(|_| true, &["todo!", "unimplemented!", "dbg!"]);
    for source in Source::all() {
        for line in source.lines() {
            if line.code.contains(".unwrap()") || line.code.contains(".expect(") {
                let text = line.text.trim();
                offenders.push(format!("src/{}:{}: {text}", source.path, line.number));
            }
        }
    }
    none("unwrap, expect and placeholders outside of tests", &offenders);
}

#[test]
fn every_file_opens_with_its_theory() {
    let silent: Vec<String> = Source::all()
        .into_iter()
        .filter(|source| !source.text.starts_with("//! "))
        .filter(|source| !SILENT_FILES.iter().any(|(path, _)| *path == source.path))
        .map(|source| format!("src/{}", source.path))
        .collect();
    none("files that do not say what they are for", &silent);
}

#[test]
fn files_and_functions_stay_small() {
    let mut offenders = Vec::new();
    for source in Source::all() {
        let lines = source.lines();
        let is_excused = LONG_FILES.iter().any(|(path, _)| *path == source.path);
        if lines.len() > LINES_MAX && !is_excused {
            offenders.push(format!("src/{}: {} lines", source.path, lines.len()));
        }
        for (name, number, length) in functions(&lines) {
            let is_excused = LONG_FUNCTIONS
                .iter()
                .any(|(path, function, _)| *path == source.path && *function == name);
            if length > FUNCTION_MAX && !is_excused {
                let place = format!("src/{}:{number}", source.path);
                offenders.push(format!("{place}: fn {name}: {length} lines"));
            }
        }
    }
    none("too long", &offenders);
}

#[test]
fn exceptions_are_needed() {
    let sources = Source::all();
    let mut offenders = Vec::new();
    for (path, why) in LONG_FILES {
        let length = sources.iter().find(|it| it.path == *path).map_or(0, |it| it.lines().len());
        if length <= LINES_MAX {
            offenders.push(format!("src/{path}: {length} lines ({why})"));
        }
    }
    for (path, name, why) in LONG_FUNCTIONS {
        let source = sources.iter().find(|source| source.path == *path);
        let longest = source.and_then(|source| {
            let functions = functions(&source.lines());
            functions.into_iter().filter(|it| it.0 == *name).map(|it| it.2).max()
        });
        if longest.is_none_or(|length| length <= FUNCTION_MAX) {
            offenders.push(format!("src/{path}: fn {name}: {longest:?} lines ({why})"));
        }
    }
    none("exceptions for what is short", &offenders);
}

/// Name, line and length of each function: from its `fn` to the brace in the same column.
fn functions(lines: &[Line<'_>]) -> Vec<(String, usize, usize)> {
    let mut functions = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let code = line.code.trim_start();
        let Some((before, after)) = code.split_once("fn ") else { continue };
        let modifiers = ["pub", "const", "unsafe", "async", "extern", "(crate)", "(super)", " "];
        let mut before = before.to_owned();
        modifiers.iter().for_each(|word| before = before.replace(word, ""));
        if !before.is_empty() {
            continue;
        }
        let indent = line.code.len() - code.len();
        let end = format!("{}}}", " ".repeat(indent));
        let length = lines[index..].iter().position(|line| line.text == end);
        let name = after.split(['(', '<']).next().unwrap().to_owned();
        functions.push((name, line.number, length.map_or(1, |length| length + 1)));
    }
    functions
}

#[test]
fn every_variable_that_is_documented_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut written: Vec<(String, String)> = Vec::new();
    for folder in ["src", "tests", "examples", "packaging", "systemd"] {
        let folder = root.join(folder);
        let files = if folder.is_dir() { files_under(&folder) } else { Vec::new() };
        for path in files {
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let is_code = path.extension().is_some_and(|extension| extension == "rs");
            for line in text.lines() {
                let is_comment = line.trim_start().starts_with("//") || !is_code;
                for name in variables(line) {
                    if is_comment {
                        written.push((path.display().to_string(), name));
                    } else if line.contains(&format!("\"{name}\"")) {
                        known.insert(name);
                    }
                }
            }
        }
    }
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            let text = std::fs::read_to_string(&path).unwrap();
            let names = variables(&text).into_iter();
            written.extend(names.map(|name| (path.display().to_string(), name)));
        }
    }
    assert!(known.contains("RCLUSTER_CHANNEL") && !written.is_empty(), "the reading works");
    let offenders: Vec<String> = written
        .into_iter()
        .filter(|(_, name)| !known.contains(name))
        .map(|(path, name)| format!("{path}: {name}"))
        .collect();
    none("variables that nobody reads", &offenders);
}

/// Every `RCLUSTER_…` in a text.
fn variables(text: &str) -> BTreeSet<String> {
    let is_name = |character: &char| character.is_ascii_uppercase() || "_".contains(*character);
    text.match_indices("RCLUSTER_")
        .map(|(at, _)| text[at..].chars().take_while(is_name).collect::<String>())
        .filter(|name| name.len() > "RCLUSTER_".len())
        .collect()
}

#[test]
fn the_reading_sees_what_it_is_to_see() {
    assert_eq!(code_of("a(\"// \\\" x\"); // b"), "a(); ");
    assert!(names("let pid = 1", "pid") && !names("pidfd", "pid"));
    let parts = parts_in("use crate::{wire::message::{A, B}, sys::x, Error}; crate::worker::Y");
    let expected = ["wire", "sys", "Error", "worker"].map(str::to_owned);
    assert_eq!(parts, BTreeSet::from(expected));
    let text = "    pub(super) fn long(\n        a: u8,\n    ) {\n        x();\n    }\n";
    let source = Source { path: "x.rs".into(), text: text.into() };
    assert_eq!(functions(&source.lines()), [("long".to_owned(), 1, 5)]);
}
