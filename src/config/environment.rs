//! `environment` and `environment-file`: what is set for workers.
//!
//! Environment files are read as systemd reads `EnvironmentFile=`: `KEY=VALUE` lines, comments with
//! `#` or `;`, values in single or double quotes, a backslash before a line's end continues it. They
//! are stricter in one point: a line that is no assignment is refused, not skipped. Files win over
//! the table, and later files over earlier ones, as with systemd.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::path::PathBuf;
use std::str::CharIndices;

use serde::{Deserialize, Serialize};

use super::entry::{Entry, Fault, Read, Section};
use super::error::{Mistake, Report, quote};
use super::source::Source;
use super::{Pool, resolve};

/// Files of one pool.
const MOST_FILES: usize = 32;

/// Variables with which rcluster speaks to workers; a trailing `*` stands for any ending.
const PROTOCOL: &[&str] =
    &["RCLUSTER_*", "LISTEN_*", "NOTIFY_SOCKET", "WATCHDOG_*", "NODE_CHANNEL_*", "NODE_UNIQUE_ID"];

/// A file of `environment-file`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentFile {
    /// The file, absolute.
    pub path: PathBuf,
    /// Whether it may be missing: it was written with a `-` before.
    pub optional: bool,
    /// What it says. Often secret.
    pub(super) values: BTreeMap<String, String>,
}

/// Reads the keys about a pool's environment.
pub(super) fn read(pool: &mut Pool, section: &Section<'_>, report: &mut Report) {
    let clear = section.read_or("clear-environment", false, report, Entry::boolean);
    pool.clear_environment = clear;
    pool.environment = section.read_or("environment", BTreeMap::new(), report, table);
    let written = section.read_or("environment-file", Vec::new(), report, |entry| {
        let files = entry.strings("[\"/etc/default/web\"]")?;
        if files.len() > MOST_FILES {
            let message = format!("`environment-file` has {} entries", files.len());
            return entry.refuse(message, format!("write at most {MOST_FILES}"));
        }
        Ok(files)
    });
    for (text, offset) in written {
        let (optional, path) = match text.strip_prefix('-') {
            Some(path) => (true, path),
            None => (false, text),
        };
        let path = resolve(path, section.source.path());
        let is_missing = matches!(
            std::fs::metadata(&path),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound
        );
        let mut values = BTreeMap::new();
        match Source::read(&path, "the environment file") {
            Ok(source) => values = assignments(&source, report),
            Err(_) if optional && is_missing => {}
            Err(problem) if is_missing => {
                let remedy = "create it, or write `-` before its path if it may be missing";
                section.report(offset, Mistake::new(problem.message, remedy), report);
            }
            Err(problem) => report.add(problem),
        }
        let pairs = values.iter().map(|(key, value)| (key.clone(), value.clone()));
        pool.environment.extend(pairs);
        pool.environment_files.push(EnvironmentFile { path, optional, values });
    }
}

/// `environment = { KEY = "value" }`.
fn table(entry: &Entry<'_>) -> Read<BTreeMap<String, String>> {
    let Some(table) = entry.value.get_ref().as_table() else {
        return entry.wrong_type("a table", "environment = { NODE_ENV = \"production\" }");
    };
    let mut values = BTreeMap::new();
    let mut faults = Vec::new();
    for (key, value) in table.iter() {
        let name = key.get_ref().as_ref();
        if let Err(mistake) = check_name(name) {
            let offset = key.span().start;
            faults.push(Fault { offset, mistake });
        }
        let inner = entry.inner(format!("the variable {}", quote(name)), value);
        // A variable may be empty, other texts may not.
        let read = match value.get_ref().as_str() {
            Some("") => Ok(""),
            Some(_) | None => inner.string("\"production\""),
        };
        match read {
            Ok(text) => {
                values.insert(name.to_owned(), text.to_owned());
            }
            Err(found) => faults.extend(found),
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(faults) }
}

/// Whether a variable can be set to something by the configuration.
fn check_name(name: &str) -> Result<(), Mistake> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !name.chars().all(is_good) || name.is_empty() || name.starts_with(|c: char| c.is_numeric()) {
        let message = format!("{} is no name of a variable", quote(name));
        let remedy = "write letters, digits and `_`, the first not a digit";
        return Err(Mistake::new(message, remedy));
    }
    let is_protocol = PROTOCOL.iter().any(|ours| match ours.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == *ours,
    });
    if is_protocol {
        let message = format!("the variable {} is set by rcluster itself", quote(name));
        return Err(Mistake::new(message, "remove it, or choose another name"));
    }
    Ok(())
}

/// The assignments of an environment file.
fn assignments(source: &Source, report: &mut Report) -> BTreeMap<String, String> {
    let text = source.text().trim_start_matches('\u{feff}');
    let skipped = source.text().len() - text.len();
    let mut lines = Lines { text, rest: text.char_indices().peekable() };
    let mut values = BTreeMap::new();
    while let Some(next) = lines.next_assignment() {
        let (offset, mistake) = match next {
            Ok((offset, key, value)) => match check_name(&key) {
                Ok(()) if !value.contains('\0') => {
                    values.insert(key, value);
                    continue;
                }
                Ok(()) => {
                    let message = format!("the value of {} has a zero byte", quote(&key));
                    (offset, Mistake::new(message, "remove the zero byte"))
                }
                Err(mistake) => (offset, mistake),
            },
            Err((offset, mistake)) => (offset, mistake),
        };
        report.add(mistake.at(source.place(skipped + offset)));
    }
    values
}

/// Reads an environment file assignment by assignment.
struct Lines<'a> {
    text: &'a str,
    rest: Peekable<CharIndices<'a>>,
}

type Assignment = Result<(usize, String, String), (usize, Mistake)>;

impl Lines<'_> {
    /// The next assignment with the place of its key, or what stands in its stead.
    fn next_assignment(&mut self) -> Option<Assignment> {
        loop {
            while self.rest.next_if(|(_, c)| c.is_whitespace()).is_some() {}
            if self.rest.next_if(|(_, c)| matches!(c, '#' | ';')).is_none() {
                break;
            }
            self.skip_line();
        }
        let (start, _) = *self.rest.peek()?;
        let mut end = start;
        while let Some((at, c)) = self.rest.next_if(|(_, c)| !matches!(c, '=' | '\n')) {
            end = at + c.len_utf8();
        }
        let key = self.text.get(start..end).unwrap_or_default().trim_end();
        if self.rest.next_if(|(_, c)| *c == '=').is_none() {
            let message = format!("{} is no assignment", quote(key));
            let remedy = "write KEY=VALUE, or begin a comment with `#`";
            return Some(Err((start, Mistake::new(message, remedy))));
        }
        if let Some(key) = key.strip_prefix("export ") {
            self.skip_line();
            let message = "an environment file is no shell script: `export`";
            let remedy = format!("write {}=…", key.trim().replace(char::is_control, ""));
            return Some(Err((start, Mistake::new(message, remedy))));
        }
        let key = key.to_owned();
        Some(self.value().map(|value| (start, key, value)))
    }

    fn skip_line(&mut self) {
        while self.rest.next_if(|(_, c)| *c != '\n').is_some() {}
    }

    /// The value up to the end of its line, less blanks around and quotes.
    fn value(&mut self) -> Result<String, (usize, Mistake)> {
        let mut value = String::new();
        // Up to here the value stays when trailing blanks go.
        let mut solid = 0;
        while let Some((at, c)) = self.rest.next() {
            match c {
                '\n' => break,
                // Quotes count only where a value or a further part of it begins.
                '\'' | '"' if solid == value.len() && self.begins_part(at) => {
                    self.quoted(at, c, &mut value)?;
                    solid = value.len();
                }
                '\\' => {
                    match self.rest.next() {
                        Some((_, '\n')) | None => {}
                        Some((_, escaped)) => value.push(escaped),
                    }
                    solid = value.len();
                }
                c if c.is_whitespace() => {
                    if !value.is_empty() {
                        value.push(c);
                    }
                }
                c => {
                    value.push(c);
                    solid = value.len();
                }
            }
        }
        value.truncate(solid);
        Ok(value)
    }

    /// Whether a quote at this place opens, after `=`, a blank or another quote.
    fn begins_part(&self, at: usize) -> bool {
        let before = self.text.get(..at).unwrap_or_default().chars().next_back();
        before.is_none_or(|c| matches!(c, '=' | '\'' | '"' | '\n') || c.is_whitespace())
    }

    /// What is between quotes, which may go over several lines.
    fn quoted(
        &mut self,
        start: usize,
        quote: char,
        value: &mut String,
    ) -> Result<(), (usize, Mistake)> {
        while let Some((_, c)) = self.rest.next() {
            match c {
                c if c == quote => return Ok(()),
                '\\' if quote == '"' => match self.rest.next() {
                    Some((_, '\n')) => {}
                    Some((_, escaped @ ('"' | '\\' | '`' | '$'))) => value.push(escaped),
                    Some((_, other)) => value.extend(['\\', other]),
                    None => break,
                },
                c => value.push(c),
            }
        }
        let message = format!("a quote is opened with {quote} and never closed");
        let remedy = format!("close it with {quote}, or write \\{quote} for the character");
        Err((start, Mistake::new(message, remedy)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn parse(text: &str) -> (Vec<(String, String)>, Vec<String>) {
        let mut report = Report::default();
        let source = Source::new(Path::new("env"), text.to_owned());
        let values = assignments(&source, &mut report);
        let problems = report.into_problems(&[]).0;
        let told = problems.iter().map(ToString::to_string).collect();
        (values.into_iter().collect(), told)
    }

    fn value(text: &str) -> String {
        let (values, problems) = parse(&format!("A={text}\nB=next\n"));
        assert_eq!(problems, [""; 0]);
        assert_eq!(values.last().unwrap(), &("B".to_owned(), "next".to_owned()));
        values[0].1.clone()
    }

    #[test]
    fn values_are_read_as_systemd_reads_them() {
        for (written, read) in [
            ("", ""),
            ("x", "x"),
            ("  x y  ", "x y"),
            ("x # no comment", "x # no comment"),
            ("\"x y\"", "x y"),
            ("'x \\ y'", "x \\ y"),
            ("\"a\\\"b\\$\\x\"", "a\"b$\\x"),
            ("\"two\nlines\"", "two\nlines"),
            ("one \\\ntwo", "one two"),
            ("a\\ b\\\\", "a b\\"),
            ("'a''b'", "ab"),
            ("it's", "it's"),
            ("\"  x  \"  ", "  x  "),
            ("x\r", "x"),
            ("a=b", "a=b"),
        ] {
            assert_eq!(value(written), read, "{written}");
        }
    }

    #[test]
    fn comments_and_blank_lines_are_skipped() {
        let (values, problems) = parse("\u{feff}# c\n\n ; c\n A = 1\nA=2\n");
        assert_eq!(values, [("A".to_owned(), "2".to_owned())]);
        assert_eq!(problems, [""; 0]);
    }

    #[test]
    fn what_is_no_assignment_has_a_place() {
        let (_, problems) = parse("A=1\nnonsense\n  export B=2\n1C=3\nLISTEN_FDS=1\nD='x\n");
        let starts: Vec<&str> =
            problems.iter().map(|problem| problem.split(": ").next().unwrap()).collect();
        assert_eq!(starts, ["env:2:1", "env:3:3", "env:4:1", "env:5:1", "env:6:3"]);
    }
}
