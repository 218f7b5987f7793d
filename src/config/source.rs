//! One configuration file: read whole, bounded, and able to say where a byte is.
//!
//! Whatever cannot be read as text is one problem with a place; nothing here knows what the text
//! means.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::error::{Mistake, Place, Problem, quote_path, why};

/// The largest file that is read.
const MOST_BYTES: u64 = 1 << 20;

/// A file's text.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    text: String,
    /// Where the lines begin.
    starts: Vec<usize>,
}

impl Source {
    /// Reads a file. `what` names it in sentences: "the configuration".
    pub(super) fn read(path: &Path, what: &str) -> Result<Source, Problem> {
        let start = || Place::start_of(path);
        let bytes = read_bytes(path, what).map_err(|mistake| mistake.at(start()))?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Source::new(path, text)),
            Err(refused) => {
                let good = refused.utf8_error().valid_up_to();
                let bytes = refused.into_bytes();
                let bad = bytes.get(good).copied().unwrap_or_default();
                let text = String::from_utf8_lossy(&bytes[..good]).into_owned();
                let place = Source::new(path, text).place(good);
                let message = format!("{what} is not UTF-8 text: byte 0x{bad:02x}");
                Err(Mistake::new(message, "save the file as UTF-8").at(place))
            }
        }
    }

    /// The text as if it were in the file at `path`.
    pub(super) fn new(path: &Path, text: String) -> Source {
        let ends = text.match_indices('\n').map(|(index, _)| index + 1);
        Source { path: path.to_owned(), starts: std::iter::once(0).chain(ends).collect(), text }
    }

    /// The file's path, as it was given.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The line of a byte, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    /// Where a byte is, for people.
    pub(super) fn place(&self, offset: usize) -> Place {
        let line = self.line(offset);
        let start = self.starts.get(line - 1).copied().unwrap_or_default();
        // A byte order mark is invisible, and editors do not count it.
        let start = if start == 0 && self.text.starts_with('\u{feff}') && offset > 0 {
            '\u{feff}'.len_utf8()
        } else {
            start
        };
        let characters = self.text.get(start..).unwrap_or_default().char_indices();
        let before = characters.take_while(|(at, _)| start + at < offset);
        let column = before.count() + 1;
        Place { file: self.path.clone(), line, column }
    }
}

/// The bytes of a regular file that is not too large.
fn read_bytes(path: &Path, what: &str) -> Result<Vec<u8>, Mistake> {
    let shown = quote_path(path);
    let unreadable = |cause: std::io::Error| {
        if cause.kind() == std::io::ErrorKind::NotFound {
            let remedy = "create the file, or give the right path";
            Mistake::new(format!("{what} {shown} does not exist"), remedy)
        } else {
            let remedy = "give the path of a file that the user of rcluster may read";
            Mistake::new(format!("{what} {shown} cannot be read: {}", why(&cause)), remedy)
        }
    };
    let kind = std::fs::metadata(path).map_err(unreadable)?.file_type();
    if kind.is_dir() {
        return Err(Mistake::new(
            format!("{what} {shown} is a directory"),
            "give the path of a file",
        ));
    }
    if !kind.is_file() {
        // Opening a pipe could wait for ever.
        return Err(Mistake::new(
            format!("{what} {shown} is not a regular file"),
            "give the path of a regular file",
        ));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    let read = file.take(MOST_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(Mistake::new(
            format!("{what} {shown} is larger than 1 MiB"),
            "give the path of a smaller file",
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str, offset: usize) -> (usize, usize) {
        let place = Source::new(Path::new("x"), text.to_owned()).place(offset);
        (place.line, place.column)
    }

    #[test]
    fn places_count_characters_from_one() {
        assert_eq!(place("", 0), (1, 1));
        assert_eq!(place("ab\ncd", 3), (2, 1));
        assert_eq!(place("ab\ncd", 5), (2, 3));
        assert_eq!(place("é = 1\n", 2), (1, 2));
        assert_eq!(place("a\n", 2), (2, 1));
        assert_eq!(place("\u{feff}a", 3), (1, 1));
    }

    #[test]
    fn a_place_inside_of_a_character_or_past_the_end_is_no_panic() {
        assert_eq!(place("é", 1), (1, 2));
        assert_eq!(place("é", 99), (1, 2));
    }
}
