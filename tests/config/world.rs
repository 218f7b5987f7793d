//! A directory with configuration files, and the judge of what is said about them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rcluster::config::{Config, Problem, Problems, load};
use tempfile::TempDir;

/// Stands before the character at which a problem is expected.
pub(crate) const MARK: char = '«';

/// The shortest pool.
pub(crate) const POOL: &str = "[pool.web]\ncommand = [\"/bin/true\"]\n";

pub(crate) struct World {
    directory: TempDir,
    /// The bad configurations so far, to count each only once.
    refused: BTreeSet<Vec<u8>>,
}

impl World {
    pub(crate) fn new() -> Self {
        World { directory: tempfile::tempdir().unwrap(), refused: BTreeSet::new() }
    }

    /// How many different configurations were refused.
    pub(crate) fn count(&self) -> usize {
        self.refused.len()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn main(&self) -> PathBuf {
        self.path("rcluster.toml")
    }

    /// Writes a file, with its directories.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Removes everything.
    pub(crate) fn clear(&self) {
        for entry in fs::read_dir(self.directory.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
        }
    }

    pub(crate) fn load(&self) -> Result<Config, Problems> {
        load(&self.main())
    }

    /// Loads a text that must be right.
    pub(crate) fn accept(&self, text: &str) -> Config {
        self.write("rcluster.toml", text);
        self.load().unwrap_or_else(|problems| panic!("{text}\n{problems}"))
    }

    /// Loads bytes that must be refused, and judges the sentences.
    pub(crate) fn refuse_bytes(&mut self, bytes: &[u8]) -> Vec<Problem> {
        self.write("rcluster.toml", bytes);
        let shown = String::from_utf8_lossy(bytes).into_owned();
        self.refuse_files(&shown, bytes)
    }

    /// Loads what was written, which must be refused. `id` tells this case from others.
    pub(crate) fn refuse_files(&mut self, shown: &str, id: &[u8]) -> Vec<Problem> {
        let problems = match self.load() {
            Ok(config) => panic!("accepted:\n{shown}\n{config:?}"),
            Err(problems) => problems.0,
        };
        assert!(!problems.is_empty(), "{shown}");
        judge(&problems, shown);
        self.refused.insert(id.to_vec());
        problems
    }

    /// Loads a text that must be refused exactly at its marks, in their order. Each of `said` is a
    /// part of the first sentence.
    pub(crate) fn refuse(&mut self, marked: &str, said: &[&str]) -> Vec<Problem> {
        let (text, marks) = unmark(marked);
        assert!(!marks.is_empty(), "no mark: {marked}");
        let problems = self.refuse_bytes(text.as_bytes());
        let places: Vec<(usize, usize)> = problems.iter().map(|p| (p.line, p.column)).collect();
        let all = Problems(problems.clone());
        assert_eq!(places, marks, "{marked}\n{all}");
        for part in said {
            let first = problems[0].to_string();
            assert!(first.contains(part), "{marked}\n{first}\nlacks {part}");
        }
        problems
    }
}

/// What every refusal must be: a place that exists, one line, a remedy, no rubbish.
pub(crate) fn judge(problems: &[Problem], shown: &str) {
    for problem in problems {
        let line = problem.to_string();
        assert!(problem.line >= 1 && problem.column >= 1, "{line}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(!problem.message.is_empty() && line.chars().count() < 900, "{line}");
        let remedy = problem.remedy.as_deref().unwrap_or_default();
        assert!(!remedy.is_empty(), "no remedy: {line}");
        assert!(!problem.message.contains("error"), "{line}");
        assert!(!problem.message.starts_with(char::is_uppercase), "{line}");
        let start = format!("{}:{}:{}: ", problem.file.display(), problem.line, problem.column);
        assert!(line.starts_with(&start), "{line}");
        in_file(problem, shown);
    }
}

/// A place must be in its file: at a character, or just behind the last of a line.
fn in_file(problem: &Problem, shown: &str) {
    let Ok(bytes) = fs::read(&problem.file) else {
        assert_eq!((problem.line, problem.column), (1, 1), "{shown}");
        return;
    };
    let text = String::from_utf8_lossy(&bytes);
    let line = text.split('\n').nth(problem.line - 1);
    let line = line.unwrap_or_else(|| panic!("no such line: {problem}\n{shown}"));
    assert!(problem.column <= line.chars().count() + 1, "{problem}\n{shown}");
}

/// A text without its marks, and where they were.
fn unmark(marked: &str) -> (String, Vec<(usize, usize)>) {
    let (mut text, mut marks) = (String::new(), Vec::new());
    let (mut line, mut column) = (1, 1);
    for c in marked.chars() {
        match c {
            MARK => {
                marks.push((line, column));
                continue;
            }
            // A byte order mark is no column.
            '\u{feff}' => {}
            '\n' => (line, column) = (line + 1, 1),
            _ => column += 1,
        }
        text.push(c);
    }
    (text, marks)
}

/// The name of a file, for sentences about it.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
