//! Writes records: natively to journald, or as lines to standard error.
//!
//! libsystemd's `journal_send` waits for as long as journald does not read, and so does a write to
//! standard error; so this runs on the `journal` thread alone, and nobody waits for it but the queue.
//! A record that journald's socket does not take goes to standard error, with systemd's `<N>` level
//! prefix; the fields are lost then, the words are not.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use libsystemd::logging::{Priority, connected_to_journal, journal_send};

use super::entry::{DROPPED, Entry, LINE_BREAK, Level, OBJECT_PID, TOOK_USEC};
use super::id::MessageId;
use super::queue::{Dropped, Item, Queue};
use crate::wire::{GENERATION_VARIABLE, POOL_VARIABLE, SLOT_VARIABLE};

/// From then on it is said how long one record took.
const SLOW: Duration = Duration::from_secs(1);

/// Where records go, and how.
#[derive(Clone, Debug)]
pub(crate) enum Style {
    /// To journald, with fields; lines carry `<N>` where that fails.
    Journal {
        identifier: String,
    },
    Terminal,
    Plain,
}

impl Style {
    /// What standard error is.
    pub(crate) fn of_stderr() -> Style {
        if connected_to_journal() {
            Style::Journal { identifier: identifier(std::env::var("RUNTIME_DIRECTORY").ok()) }
        } else if std::io::stderr().is_terminal() {
            Style::Terminal
        } else {
            Style::Plain
        }
    }
}

/// What the journal calls this service: of the instance `rcluster@NAME`, whose runtime directory
/// has that name, `rcluster-NAME`.
pub(crate) fn identifier(runtime_directory: Option<String>) -> String {
    let directories = runtime_directory.unwrap_or_default();
    let names = directories.split(':').filter_map(|path| path.rsplit('/').next());
    match names.filter_map(|name| name.strip_prefix("rcluster@")).next() {
        Some(instance) => format!("rcluster-{instance}"),
        None => "rcluster".to_owned(),
    }
}

/// Writes what comes through the queue until it ends.
pub(crate) fn write_all(queue: &Queue, style: &Style) {
    let mut has_failed = false;
    while let Some(item) = queue.pop() {
        let entries = match item {
            Item::Entry(entry) => vec![*entry],
            Item::Dropped(dropped) => apologies(&dropped, style),
        };
        for entry in entries {
            let begun = now();
            write(&entry, style, &mut has_failed);
            let took = now().saturating_duration_since(begun);
            if took >= SLOW {
                write(&slowness(took, style), style, &mut has_failed);
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "only this thread knows how long a write takes")]
fn now() -> Instant {
    Instant::now()
}

fn write(entry: &Entry, style: &Style, has_failed: &mut bool) {
    let mut stderr = std::io::stderr();
    if let Style::Journal { identifier } = style {
        let sent = journal_send(priority(entry.level), &entry.text, fields(entry, identifier));
        let had_failed = std::mem::replace(has_failed, sent.is_err());
        match sent {
            Ok(()) => return,
            Err(error) if !had_failed => {
                let text = format!("{error}; records go without fields until it can be reached");
                let warning = render(&Entry::new(Level::Warning, text), style);
                let _ = stderr.write_all(warning.as_bytes());
            }
            Err(_) => {}
        }
    }
    // Nobody is left to tell when standard error cannot be written.
    let _ = stderr.write_all(render(entry, style).as_bytes());
}

/// All the fields of a record but its text and level.
fn fields(entry: &Entry, identifier: &str) -> impl Iterator<Item = (&'static str, String)> {
    let mut fields = vec![("SYSLOG_IDENTIFIER", identifier.to_owned())];
    fields.extend(entry.id.map(|id| ("MESSAGE_ID", id.as_str().to_owned())));
    if let Some(speaker) = &entry.speaker {
        fields.push((POOL_VARIABLE, speaker.pool.clone()));
        fields.push((SLOT_VARIABLE, speaker.slot.to_string()));
        fields.push((GENERATION_VARIABLE, speaker.generation.to_string()));
        fields.push((OBJECT_PID, speaker.pid.to_string()));
        fields.push(("SYSLOG_PID", speaker.pid.to_string()));
    }
    fields.extend(entry.fields.iter().cloned());
    fields.into_iter()
}

fn priority(level: Level) -> Priority {
    match level {
        Level::Emergency => Priority::Emergency,
        Level::Alert => Priority::Alert,
        Level::Critical => Priority::Critical,
        Level::Error => Priority::Error,
        Level::Warning => Priority::Warning,
        Level::Notice => Priority::Notice,
        Level::Info => Priority::Info,
        Level::Debug => Priority::Debug,
    }
}

/// Whoever reads what is written here.
fn reader(style: &Style) -> &'static str {
    match style {
        Style::Journal { .. } => "the journal",
        Style::Terminal | Style::Plain => "standard error",
    }
}

fn apologies(dropped: &Dropped, style: &Style) -> Vec<Entry> {
    let entry = |(pool, count): (&Option<String>, &u64)| {
        let count = *count;
        let whose = match pool {
            Some(pool) => format!(" of {pool}'s workers"),
            None => String::new(),
        };
        let what = if count == 1 { "1 record" } else { &format!("{count} records") };
        let verb = if count == 1 { "was" } else { "were" };
        let text = format!("{what}{whose} {verb} dropped: {} is not read", reader(style));
        let entry = Entry::new(Level::Warning, text).id(MessageId::Dropped).with(DROPPED, count);
        match pool {
            Some(pool) => entry.pool(pool),
            None => entry,
        }
    };
    dropped.iter().map(entry).collect()
}

fn slowness(took: Duration, style: &Style) -> Entry {
    let text = format!("{} took nothing for {:.1} s", reader(style), took.as_secs_f64());
    let entry = Entry::new(Level::Warning, text).id(MessageId::JournalStalled);
    entry.with_time(TOOK_USEC, took)
}

/// A record as lines: one for each of its own.
fn render(entry: &Entry, style: &Style) -> String {
    use std::fmt::Write;
    let who = entry.speaker.as_ref().map(ToString::to_string);
    let who = who.as_deref();
    let level = entry.level;
    let (head, tail) = match style {
        // There the line's own identifier says the same.
        Style::Journal { .. } => match who {
            Some(who) => (format!("<{}>{who}: ", level as u8), ""),
            None => (format!("<{}>", level as u8), ""),
        },
        Style::Terminal => {
            let colour = match level {
                Level::Emergency | Level::Alert | Level::Critical | Level::Error => "\x1b[31m",
                Level::Warning => "\x1b[33m",
                Level::Notice => "\x1b[1m",
                Level::Info | Level::Debug => "",
            };
            let reset = if colour.is_empty() { "" } else { "\x1b[0m" };
            (format!("{colour}{}: ", who.unwrap_or("rcluster")), reset)
        }
        Style::Plain => {
            let when = humantime::format_rfc3339_millis(entry.when);
            (format!("{when} {}: ", who.unwrap_or("rcluster")), "")
        }
    };
    let split = entry.fields.iter().any(|(name, value)| *name == LINE_BREAK && value == "line-max");
    let more = if split { " …" } else { "" };
    let mut text = String::with_capacity(entry.text.len() + 64);
    for line in entry.text.split('\n') {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{head}{line}{more}{tail}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::super::entry::Origin;
    use super::*;

    fn journal() -> Style {
        Style::Journal { identifier: "rcluster".into() }
    }

    #[test]
    fn the_masters_records_are_one_line_in_every_style() {
        let when = SystemTime::UNIX_EPOCH;
        let entry = Entry { when, ..Entry::new(Level::Warning, "two\nlines") };
        assert_eq!(render(&entry, &journal()), "<4>two lines\n");
        assert_eq!(render(&entry, &Style::Terminal), "\x1b[33mrcluster: two lines\x1b[0m\n");
        assert_eq!(render(&entry, &Style::Plain), "1970-01-01T00:00:00.000Z rcluster: two lines\n");
    }

    #[test]
    fn a_workers_words_carry_its_name_on_every_line() {
        let when = SystemTime::UNIX_EPOCH;
        let origin = Origin { pool: "web".into(), slot: 3, generation: 2, pid: 7 };
        let words = Entry::words(Level::Info, "panic\n  at x".into(), Arc::new(origin));
        let entry = Entry { when, ..words };
        assert_eq!(render(&entry, &journal()), "<6>web/3: panic\n<6>web/3:   at x\n");
        assert_eq!(render(&entry, &Style::Terminal), "web/3: panic\nweb/3:   at x\n");
        let at = "1970-01-01T00:00:00.000Z";
        let plain = format!("{at} web/3: panic\n{at} web/3:   at x\n");
        assert_eq!(render(&entry, &Style::Plain), plain);
    }

    #[test]
    fn every_field_of_a_record_is_one_that_journald_takes() {
        let origin = Origin { pool: "web".into(), slot: 3, generation: 2, pid: 7 };
        let entry = Entry::words(Level::Info, "x".into(), Arc::new(origin));
        let entry = entry.id(MessageId::Dropped).with(LINE_BREAK, "eof");
        let fields: Vec<(&str, String)> = fields(&entry, "rcluster-a").collect();
        let text: Vec<String> =
            fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let id = format!("MESSAGE_ID={}", MessageId::Dropped.as_str());
        let expected = [
            "SYSLOG_IDENTIFIER=rcluster-a",
            &id,
            "RCLUSTER_POOL=web",
            "RCLUSTER_SLOT=3",
            "RCLUSTER_GENERATION=2",
            "OBJECT_PID=7",
            "SYSLOG_PID=7",
            "RCLUSTER_LINE_BREAK=eof",
        ];
        assert_eq!(text, expected);
    }

    #[test]
    fn an_apology_counts_each_pool() {
        let dropped = Dropped::from([(None, 1), (Some("web".to_owned()), 12)]);
        let texts: Vec<String> =
            apologies(&dropped, &Style::Plain).into_iter().map(|entry| entry.text).collect();
        let expected = [
            "1 record was dropped: standard error is not read",
            "12 records of web's workers were dropped: standard error is not read",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn an_instance_has_a_name_of_its_own() {
        for (directory, name) in [
            (None, "rcluster"),
            (Some("/run/rcluster"), "rcluster"),
            (Some("/run/rcluster@shop"), "rcluster-shop"),
            (Some("/run/other:/run/rcluster@shop"), "rcluster-shop"),
            (Some("/run/rcluster@"), "rcluster-"),
        ] {
            assert_eq!(identifier(directory.map(str::to_owned)), name, "{directory:?}");
        }
    }
}
