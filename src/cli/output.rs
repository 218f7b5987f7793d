//! What is printed, where, and how bad it is.
//!
//! Results go to stdout, everything else to stderr. A line on stderr that goes to the journal gets
//! the prefix that gives it its priority there. Nothing here panics because a reader has left:
//! `rcluster status | head -1` is a fair thing to type.

use std::io::{self, IsTerminal as _, Write as _};

/// How bad a line on stderr is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// It happened.
    Info,
    /// Somebody should look at it.
    Warning,
    /// It failed.
    Bad,
}

impl Level {
    /// What the journal reads at the beginning of a line, see sd-daemon(3).
    fn prefix(self) -> &'static str {
        match self {
            Level::Info => "<6>",
            Level::Warning => "<4>",
            Level::Bad => "<3>",
        }
    }
}

/// Says something on stderr. Whether anybody listens makes no difference.
pub fn tell(level: Level, text: &str) {
    let prefix = match libsystemd::logging::connected_to_journal() {
        true => level.prefix(),
        false => "",
    };
    let _ = io::stderr().write_all(prefixed(prefix, text).as_bytes());
}

/// Prints a result.
///
/// # Errors
/// stdout takes no more, for example because its reader has left.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Whether stdout shows lines that can be drawn over.
#[must_use]
pub fn is_terminal() -> bool {
    io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether stdout shows colours, and its reader wants them: see <https://no-color.org>.
#[must_use]
pub fn is_coloured() -> bool {
    is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Text on one line: whatever another process sent cannot move the cursor.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// One line on a terminal that is drawn again and again. Long lines are cut at the edge.
#[derive(Debug)]
pub(super) struct Line<W: io::Write> {
    /// `None`: not a terminal, so only what stays is written.
    terminal: Option<W>,
    is_drawn: bool,
}

impl<W: io::Write> Line<W> {
    pub(super) fn new(out: W, is_terminal: bool) -> Self {
        Line { terminal: is_terminal.then_some(out), is_drawn: false }
    }

    /// Draws the line. A terminal that has gone must not end what is waited for.
    pub(super) fn draw(&mut self, text: &str) {
        let Some(terminal) = &mut self.terminal else { return };
        // Without wrapping, a line that is too long is cut and can still be drawn over. Wrapping is
        // back after every draw, so that an interrupt leaves the terminal as it was.
        let drawn = write!(terminal, "\r\x1b[2K\x1b[?7l{}\x1b[?7h", one_line(text));
        let _ = drawn.and_then(|()| terminal.flush());
        self.is_drawn = true;
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        if let Some(terminal) = self.terminal.as_mut().filter(|_| self.is_drawn) {
            let _ = write!(terminal, "\r\x1b[2K").and_then(|()| terminal.flush());
            self.is_drawn = false;
        }
    }
}

impl<W: io::Write> Drop for Line<W> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Every line behind the prefix.
fn prefixed(prefix: &str, text: &str) -> String {
    text.lines().map(|line| format!("{prefix}{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_carries_its_priority() {
        assert_eq!(prefixed(Level::Bad.prefix(), "a\nb"), "<3>a\n<3>b\n");
        assert_eq!(prefixed("", "a"), "a\n");
    }

    #[test]
    fn a_line_is_drawn_over_and_taken_away() {
        let mut written = Vec::new();
        let mut line = Line::new(&mut written, true);
        line.draw("one\ntwo\x1b[2J");
        drop(line);
        let expected = "\r\x1b[2K\x1b[?7lone two [2J\x1b[?7h\r\x1b[2K";
        assert_eq!(String::from_utf8(written).unwrap(), expected);
    }

    #[test]
    fn nothing_is_drawn_without_a_terminal() {
        let mut written = Vec::new();
        Line::new(&mut written, false).draw("one");
        assert!(written.is_empty());
    }
}
