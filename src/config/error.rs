//! What is wrong with a configuration, where, and what would be right.
//!
//! A [`Mistake`] is a sentence and its remedy; it knows no place, so that the command line can use
//! it for what was typed there. A [`Problem`] is a mistake at a place in a file. [`Problems`] is
//! what a refused configuration answers: all of them, not only the first, in the order of reading.
//!
//! Every one is a single line without control characters, whatever rubbish was in the file.

use std::fmt;
use std::path::{Path, PathBuf};

/// Problems of one load that are told; the rest is only counted.
const MOST_PROBLEMS: usize = 100;

/// Characters of a quoted value that a sentence repeats.
const MOST_QUOTED: usize = 60;

/// Something wrong that somebody wrote, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// What is wrong: one line, lower case.
    pub message: String,
    /// What would be right.
    pub remedy: Option<String>,
}

impl Mistake {
    /// A mistake whose remedy is known.
    pub(super) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Mistake { message: message.into(), remedy: Some(remedy.into()) }
    }

    /// The same mistake at a place.
    pub(super) fn at(self, place: Place) -> Problem {
        Problem {
            file: place.file,
            line: place.line,
            column: place.column,
            message: self.message,
            remedy: self.remedy,
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Mistake {}

/// A mistake at a place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file. Empty when nothing was read from a file, as for a command given on the command
    /// line.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// What is wrong: one line, lower case.
    pub message: String,
    /// What would be right.
    pub remedy: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.as_os_str().is_empty() {
            let file = self.file.display();
            write!(f, "{file}:{}:{}: ", self.line, self.column)?;
        }
        f.write_str(&self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

/// Everything that is wrong with a configuration, one line each. Never empty in an `Err`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(problem, f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A place in a file. Lines and columns count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: PathBuf,
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Place {
    /// The beginning of a file.
    pub(super) fn start_of(file: &Path) -> Self {
        Place { file: file.to_owned(), line: 1, column: 1 }
    }

    /// No place in any file.
    pub(super) fn nowhere() -> Self {
        Place::start_of(Path::new(""))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Where the readers report what they find.
#[derive(Debug, Default)]
pub(super) struct Report {
    problems: Vec<Problem>,
    more: usize,
}

impl Report {
    /// Takes in one problem.
    pub(super) fn add(&mut self, problem: Problem) {
        if !self.only_counts() {
            self.problems.push(problem);
        }
    }

    /// Counts one more mistake, if there are enough to tell already. Finding the place and the
    /// words of each would take long in a large file of rubbish.
    pub(super) fn only_counts(&mut self) -> bool {
        let is_full = self.problems.len() >= MOST_PROBLEMS;
        self.more += usize::from(is_full);
        is_full
    }

    /// How much was found, up to where it is only counted.
    pub(super) fn len(&self) -> usize {
        self.problems.len()
    }

    /// Whether something was found.
    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// The problems in reading order: by file, as `files` has them, then by place.
    pub(super) fn into_problems(mut self, files: &[PathBuf]) -> Problems {
        let rank = |problem: &Problem| files.iter().position(|file| *file == problem.file);
        self.problems.sort_by_key(|problem| {
            let rank = rank(problem).unwrap_or(files.len());
            (rank, problem.line, problem.column)
        });
        if let (Some(last), 1..) = (self.problems.last(), self.more) {
            let place = Place { file: last.file.clone(), line: last.line, column: last.column };
            let message = format!("{} more mistakes are not shown", self.more);
            let told = Mistake::new(message, "mend these first, then check again");
            self.problems.push(told.at(place));
        }
        Problems(self.problems)
    }
}

/// `text` between backticks, on one line and not too long.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::from("`");
    for (index, character) in text.chars().enumerate() {
        if index == MOST_QUOTED {
            quoted.push('…');
            break;
        }
        match character {
            '"' | '\'' | '\\' | '`' => quoted.push(character),
            other => quoted.extend(other.escape_debug()),
        }
    }
    quoted.push('`');
    quoted
}

/// A path between backticks, on one line.
pub(super) fn quote_path(path: &Path) -> String {
    let mut quoted = String::from("`");
    for character in path.to_string_lossy().chars() {
        if character.is_control() {
            quoted.extend(character.escape_debug());
        } else {
            quoted.push(character);
        }
    }
    quoted.push('`');
    quoted
}

/// Why the system refused, as part of a sentence: without its number, and in small letters.
pub(crate) fn why(cause: &std::io::Error) -> String {
    let told = cause.to_string();
    told.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Alternatives as a sentence has them: `a`, `b` or `c`.
pub(super) fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_with_place_and_remedy() {
        let place = Place { file: PathBuf::from("a.toml"), line: 3, column: 7 };
        let problem = Mistake::new(format!("no {}", quote("x\n\u{7}y")), "write z").at(place);
        assert_eq!(problem.to_string(), "a.toml:3:7: no `x\\n\\u{7}y`; write z");
    }

    #[test]
    fn a_problem_of_no_file_names_none() {
        let problem = Mistake::new("no", "yes").at(Place::nowhere());
        assert_eq!(problem.to_string(), "no; yes");
    }

    #[test]
    fn too_many_problems_are_counted() {
        let mut report = Report::default();
        for line in (1..=150).rev() {
            let file = PathBuf::from("a");
            let column = 1;
            let place = Place { file, line, column };
            report.add(Mistake::new("m", "r").at(place));
        }
        let problems = report.into_problems(&[]).0;
        assert_eq!(problems.len(), 101);
        assert_eq!(problems[0].line, 51);
        assert_eq!(problems[100].message, "50 more mistakes are not shown");
    }

    #[test]
    fn long_values_are_shortened() {
        assert_eq!(quote(&"é".repeat(1000)).chars().count(), 63);
        assert_eq!(one_of(&["a", "b", "c"]), "`a`, `b` or `c`");
    }
}
