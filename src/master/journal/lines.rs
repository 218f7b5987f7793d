//! From what a worker writes to records: pure, and the time is an argument.
//!
//! A line is a record. A line that begins with a space or a tab, or with `Caused by:`, continues
//! the record before it, so that a stack trace stays together; a line that begins with a level
//! (`<3>`, as systemd reads it) is never such a continuation. Empty lines inside of a record are
//! kept, others make no record, as with journald's own streams.
//!
//! Since the next line may continue it, a record is held back until another begins, or until the
//! worker was quiet for [`QUIET`]. A line longer than [`LINE_MAX`] is split, between characters, and
//! each piece but the last says so. Bytes that are no text, and zeros, become `\xNN`.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::entry::Level;

/// Bytes of a line, and of a record of several lines, at most; journald's own limit.
pub(crate) const LINE_MAX: usize = 48 * 1024;
/// Lines of a record at most.
const LINES_MAX: usize = 256;
/// How long a record waits for its continuation.
pub(crate) const QUIET: Duration = Duration::from_millis(50);

/// What makes a line a part of the record before it.
const CONTINUATIONS: [&[u8]; 3] = [b" ", b"\t", b"Caused by:"];

/// A record, or a piece of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) level: Level,
    pub(crate) text: String,
    /// Why it ends without the end of a line.
    pub(crate) line_break: Option<LineBreak>,
}

/// Why a record ends without the end of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LineBreak {
    /// The line is too long; the next record goes on with it.
    LineMax,
    /// Nothing followed.
    Eof,
}

impl LineBreak {
    /// As in journald's own `_LINE_BREAK`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            LineBreak::LineMax => "line-max",
            LineBreak::Eof => "eof",
        }
    }
}

/// What one worker has written and is no record yet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Lines {
    /// The beginning of a line, without its end.
    partial: Vec<u8>,
    /// `partial` goes on with a line that was split, of this level.
    split: Option<Level>,
    /// A record that may go on.
    open: Option<Open>,
    /// It was open before a pause in which nobody looked, and nothing has come since.
    is_old: bool,
    #[serde(skip)]
    quiet_at: Option<Instant>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Open {
    piece: Piece,
    lines: usize,
    /// Empty lines since.
    blanks: usize,
}

impl Lines {
    /// Takes in what was read.
    pub(crate) fn feed(&mut self, bytes: &[u8], now: Instant, put: &mut impl FnMut(Piece)) {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            match part.split_last() {
                Some((b'\n', line)) if self.partial.is_empty() && line.len() <= LINE_MAX => {
                    self.end_line(line, put);
                }
                Some((b'\n', line)) => {
                    self.grow(line, put);
                    let line = std::mem::take(&mut self.partial);
                    self.end_line(&line, put);
                }
                _ => self.grow(part, put),
            }
        }
        self.is_old = false;
        self.quiet_at = self.open.is_some().then(|| now + QUIET);
    }

    /// After a pause in which nobody looked, a record that may go on waits from now on; once only, or it
    /// would wait for as long as one pause follows the other.
    pub(crate) fn resume(&mut self, now: Instant) {
        let wait = if self.is_old { Duration::ZERO } else { QUIET };
        self.is_old = self.open.is_some();
        self.quiet_at = self.is_old.then(|| now + wait);
    }

    /// When [`Lines::settle`] is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.quiet_at
    }

    /// The worker was quiet for a while: what it has said is whole.
    pub(crate) fn settle(&mut self, put: &mut impl FnMut(Piece)) {
        self.quiet_at = None;
        if let Some(open) = self.open.take() {
            put(open.piece);
        }
    }

    /// Nothing will follow.
    pub(crate) fn finish(&mut self, put: &mut impl FnMut(Piece)) {
        if !self.partial.is_empty() {
            let line = std::mem::take(&mut self.partial);
            self.end_line(&line, put);
            if let Some(open) = &mut self.open {
                open.piece.line_break = Some(LineBreak::Eof);
            }
        }
        self.settle(put);
    }

    /// More of a line, without its end.
    fn grow(&mut self, mut bytes: &[u8], put: &mut impl FnMut(Piece)) {
        while self.partial.len() + bytes.len() > LINE_MAX {
            let (now, later) = bytes.split_at(LINE_MAX - self.partial.len());
            self.partial.extend_from_slice(now);
            let rest = self.partial.split_off(character_boundary(&self.partial));
            let whole = std::mem::replace(&mut self.partial, rest);
            self.split(&whole, put);
            bytes = later;
        }
        self.partial.extend_from_slice(bytes);
    }

    /// A piece of a line that is too long.
    fn split(&mut self, bytes: &[u8], put: &mut impl FnMut(Piece)) {
        let (level, text) = match (self.split, level_of(bytes)) {
            (Some(level), _) => (level, bytes),
            (None, Some((level, text))) => (level, text),
            (None, None) => (self.level_before(bytes), bytes),
        };
        self.settle(put);
        let line_break = Some(LineBreak::LineMax);
        put(Piece { level, text: readable(text), line_break });
        self.split = Some(level);
    }

    fn end_line(&mut self, line: &[u8], put: &mut impl FnMut(Piece)) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(level) = self.split.take() {
            return self.begin(level, line, put);
        }
        if let Some((level, text)) = level_of(line) {
            return self.begin(level, text, put);
        }
        match &mut self.open {
            Some(open) if line.is_empty() && open.has_room(line) => open.blanks += 1,
            Some(open) if continues(line) && open.has_room(line) => open.append(line),
            _ => self.begin(self.level_before(line), line, put),
        }
    }

    /// The level of a line that has none of its own.
    fn level_before(&self, line: &[u8]) -> Level {
        match &self.open {
            Some(open) if continues(line) => open.piece.level,
            _ => Level::Info,
        }
    }

    fn begin(&mut self, level: Level, text: &[u8], put: &mut impl FnMut(Piece)) {
        self.settle(put);
        if !text.is_empty() {
            let piece = Piece { level, text: readable(text), line_break: None };
            self.open = Some(Open { piece, lines: 1, blanks: 0 });
        }
    }
}

impl Open {
    fn has_room(&self, line: &[u8]) -> bool {
        self.lines + self.blanks < LINES_MAX
            && self.piece.text.len() + self.blanks + 1 + line.len() <= LINE_MAX
    }

    fn append(&mut self, line: &[u8]) {
        self.lines += self.blanks + 1;
        for _ in 0..=std::mem::take(&mut self.blanks) {
            self.piece.text.push('\n');
        }
        self.piece.text.push_str(&readable(line));
    }
}

fn continues(line: &[u8]) -> bool {
    CONTINUATIONS.iter().any(|beginning| line.starts_with(beginning))
}

/// The level prefix of a line and what follows it.
fn level_of(line: &[u8]) -> Option<(Level, &[u8])> {
    match line {
        [b'<', digit, b'>', text @ ..] => Some((Level::from_digit(*digit)?, text)),
        _ => None,
    }
}

/// Where to cut, so that no character is cut in two: at the end, or up to three bytes before.
fn character_boundary(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    let is_lead = |&at: &usize| bytes[at] >= 0xc0;
    let lead = (tail..bytes.len()).rev().find(is_lead).filter(|&at| at > 0);
    let is_begun = |at: &usize| match std::str::from_utf8(&bytes[*at..]) {
        Err(error) => error.error_len().is_none(),
        Ok(_) => false,
    };
    lead.filter(is_begun).unwrap_or(bytes.len())
}

/// As text: what is none becomes `\xNN`.
fn readable(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for (index, part) in chunk.valid().split('\0').enumerate() {
            text.push_str(if index > 0 { "\\x00" } else { "" });
            text.push_str(part);
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests;
