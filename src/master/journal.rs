//! What the master says: one line per transition.
//!
//! A line is made on the dispatch thread and written by a thread of its own, so that a reader that
//! is slow (a full pipe, a stalled journald) never holds up a connection. Between the two stands a
//! bounded queue; what does not fit is dropped, counted and reported with the next line that fits.
//!
//! Under journald a line carries systemd's `<N>` level prefix; on a terminal it is coloured by
//! level; elsewhere it carries the time.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

/// Lines that wait for the writer at most.
const QUEUE: usize = 1024;
/// How long the last lines may take to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How much a line matters: syslog's levels, as far as they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Somebody must act.
    Error = 3,
    /// Somebody should look.
    Warning = 4,
    /// A milestone.
    Notice = 5,
    /// The ordinary course.
    Info = 6,
}

#[derive(Clone, Copy, Debug)]
enum Style {
    Journal,
    Terminal,
    Plain,
}

struct Line {
    level: Level,
    when: SystemTime,
    text: String,
}

/// The dispatch thread's side of the journal.
pub(crate) struct Journal {
    queue: Option<SyncSender<Line>>,
    dropped: u64,
    /// Says when the writer has written everything.
    done: Option<Receiver<()>>,
}

impl Journal {
    /// Starts the writer on standard error.
    pub(crate) fn start() -> std::io::Result<Journal> {
        let style = if libsystemd::logging::connected_to_journal() {
            Style::Journal
        } else if std::io::stderr().is_terminal() {
            Style::Terminal
        } else {
            Style::Plain
        };
        let (queue, lines) = sync_channel(QUEUE);
        let (finished, done) = sync_channel(1);
        std::thread::Builder::new().name("log".into()).spawn(move || {
            write_lines(&lines, style);
            // Nobody waits for it any more, where this fails.
            let _ = finished.send(());
        })?;
        Ok(Journal { queue: Some(queue), dropped: 0, done: Some(done) })
    }

    /// Writes a line, some time soon.
    pub(crate) fn say(&mut self, level: Level, text: impl fmt::Display) {
        if self.dropped > 0 {
            let count = self.dropped;
            let apology = format!("{count} lines were dropped: standard error is not read");
            if self.push(Level::Warning, apology) {
                self.dropped = 0;
            }
        }
        if !self.push(level, text.to_string()) {
            self.dropped += 1;
        }
    }

    fn push(&mut self, level: Level, text: String) -> bool {
        let line = Line { level, when: SystemTime::now(), text };
        match self.queue.as_ref().map(|queue| queue.try_send(line)) {
            Some(Ok(())) => true,
            // The writer never ends before the queue does.
            Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) | None => false,
        }
    }
}

impl Drop for Journal {
    /// Waits until everything that was said is written, but not for ever: a reader who does not
    /// read must not keep the service from ending.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(done) = self.done.take() {
            let _ = done.recv_timeout(LAST_LINES);
        }
    }
}

fn write_lines(lines: &Receiver<Line>, style: Style) {
    let mut stderr = std::io::stderr();
    for line in lines {
        // Nobody is left to tell when standard error cannot be written.
        let _ = stderr.write_all(render(&line, style).as_bytes());
    }
}

fn render(line: &Line, style: Style) -> String {
    // A line is a line, whatever a worker's name or an error's text contains.
    let text = line.text.replace(['\n', '\r'], " ");
    match style {
        Style::Journal => format!("<{}>{text}\n", line.level as u8),
        Style::Terminal => {
            let colour = match line.level {
                Level::Error => "\x1b[31m",
                Level::Warning => "\x1b[33m",
                Level::Notice => "\x1b[1m",
                Level::Info => "",
            };
            let reset = if colour.is_empty() { "" } else { "\x1b[0m" };
            format!("{colour}rcluster: {text}{reset}\n")
        }
        Style::Plain => {
            let when = humantime::format_rfc3339_millis(line.when);
            format!("{when} rcluster: {text}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_in_every_style() {
        let when = SystemTime::UNIX_EPOCH;
        let line = Line { level: Level::Warning, when, text: "two\nlines".into() };
        assert_eq!(render(&line, Style::Journal), "<4>two lines\n");
        assert_eq!(render(&line, Style::Terminal), "\x1b[33mrcluster: two lines\x1b[0m\n");
        assert_eq!(render(&line, Style::Plain), "1970-01-01T00:00:00.000Z rcluster: two lines\n");
    }

    #[test]
    fn what_the_writer_cannot_take_is_dropped_and_counted() {
        let (queue, lines) = sync_channel(2);
        let mut journal = Journal { queue: Some(queue), dropped: 0, done: None };
        for _ in 0..5 {
            journal.say(Level::Info, "x");
        }
        assert_eq!(journal.dropped, 3);
        assert_eq!(lines.try_iter().count(), 2);
        journal.say(Level::Info, "y");
        let texts: Vec<String> = lines.try_iter().map(|line| line.text).collect();
        assert_eq!(texts, ["3 lines were dropped: standard error is not read", "y"]);
    }
}
