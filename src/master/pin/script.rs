//! Sources that arguments name, and whether they are what they were.
//!
//! Only what is a source by its name is looked at: other files that arguments name (logs, databases)
//! change all the time.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{Stamp, absolute};

/// The ends of such names.
const SOURCES: &[&str] = &[
    "cjs", "cts", "js", "lua", "mjs", "mts", "php", "pl", "psgi", "py", "pyz", "rb", "ru", "sh",
    "ts",
];

/// A source, and what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    pub(in crate::master) path: PathBuf,
    pub(in crate::master) stamp: Stamp,
}

impl Script {
    /// Its path, if another file is there now, or none, or it was overwritten.
    pub(super) fn changed(&self) -> Option<&Path> {
        let is_same = self.path.metadata().is_ok_and(|it| Stamp::of(&it) == self.stamp);
        (!is_same).then_some(self.path.as_path())
    }
}

/// The sources among a command's arguments.
pub(super) fn among(arguments: &[OsString], base: Option<&Path>) -> Vec<Script> {
    let paths = arguments.iter().map(Path::new);
    let sources = paths.filter(|path| {
        let end = path.extension().and_then(|end| end.to_str());
        end.is_some_and(|end| SOURCES.contains(&end))
    });
    let found = sources.filter_map(|path| {
        let path = absolute(path, base);
        let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
        Some(Script { path, stamp: Stamp::of(&metadata) })
    });
    found.collect()
}
