//! `canary`, `probe` and `probe-timeout`: how a new generation is tried before it replaces the old.
//!
//! A probe is a question that one worker is asked over a connection of the master's own, and what a
//! good answer to it is. It is a path (`probe = "/healthz"`), asked by HTTP, for which a status from
//! 200 to 399 is good; or two texts (`probe = { send = "PING\r\n", expect = "PONG" }`) for any other
//! protocol, where an answer is good that has the second in it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::entry::{Entry, Fault, Read, Section};
use super::error::{Mistake, Report, quote};
use super::time::{HOUR, SHORTEST};
use super::{Pool, keys};

/// Bytes of a path, and of each of the two texts. Far below what an empty socket buffer takes.
const MOST_BYTES: usize = 4096;
/// The default of `probe-timeout`.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How a probe is written.
const EXAMPLE: &str = "\"/healthz\"";
/// The keys of a probe that is a table.
const KEYS: &[&str] = &["send", "expect"];

/// A question that tells whether a worker works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What is asked.
    pub question: Question,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// What is asked, and what is a good answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// A GET of this path; good is a status from 200 to 399.
    Http {
        /// It begins with `/`.
        path: String,
    },
    /// Any protocol.
    Text {
        /// What is sent.
        send: String,
        /// What a good answer has in it.
        expect: String,
    },
}

/// Reads the three keys. After `listen`: a probe needs one.
pub(super) fn read(pool: &mut Pool, section: &Section<'_>, report: &mut Report) {
    let policy = &mut pool.policy;
    policy.canary = section
        .read_or("canary", policy.canary, report, |entry| entry.duration(Duration::ZERO..=HOUR));
    let question = section.read("probe", report, question);
    let timeout = section.read("probe-timeout", report, |entry| entry.duration(SHORTEST..=HOUR));
    let refuse = |key: &'static str, message: &str, remedy: &str, report: &mut Report| {
        if let Some(entry) = section.entry(key) {
            section.report(entry.key_offset, Mistake::new(message, remedy), report);
        }
    };
    // A `listen` that was refused is told already.
    let listens_nowhere = section
        .entry("listen")
        .is_none_or(|entry| entry.value.get_ref().as_array().is_some_and(|array| array.is_empty()));
    match (question, timeout) {
        (Some(_), _) if listens_nowhere => {
            let message = "`probe` asks over a connection, and this pool listens nowhere";
            refuse("probe", message, "remove it, or give `listen` an entry", report);
        }
        (Some(question), timeout) => {
            policy.probe = true;
            pool.probe = Some(Probe { question, timeout: timeout.unwrap_or(TIMEOUT) });
        }
        // A refused `probe` is told already.
        (None, Some(_)) if section.entry("probe").is_none() => {
            let message = "`probe-timeout` has no meaning without `probe`";
            let remedy = "remove it, or set `probe` to a path such as \"/healthz\"";
            refuse("probe-timeout", message, remedy, report);
        }
        (None, _) => {}
    }
}

fn question(entry: &Entry<'_>) -> Read<Question> {
    if entry.value.get_ref().is_table() {
        return texts(entry);
    }
    let path = entry.text_of("a path or a table", EXAMPLE)?;
    let is_good = |byte: u8| byte.is_ascii_graphic();
    if !path.starts_with('/') || !path.bytes().all(is_good) || path.contains('#') {
        let message = format!("`probe` cannot be {}", quote(path));
        let remedy = format!(
            "write a path that begins with `/`, without blanks, for example {EXAMPLE}; or {{ send = \
             \"PING\\r\\n\", expect = \"PONG\" }} where the protocol is not HTTP"
        );
        return entry.refuse(message, remedy);
    }
    bounded(entry, path)?;
    Ok(Question::Http { path: path.to_owned() })
}

/// `{ send = "…", expect = "…" }`.
fn texts(entry: &Entry<'_>) -> Read<Question> {
    let example = "{ send = \"PING\\r\\n\", expect = \"PONG\" }";
    let Some(table) = entry.value.get_ref().as_table() else {
        return entry.wrong_type("a path or a table", EXAMPLE);
    };
    let mut faults = Vec::new();
    for (key, _) in table.iter().filter(|(key, _)| !KEYS.contains(&key.get_ref().as_ref())) {
        let mistake = keys::unknown(key.get_ref().as_ref(), "in `probe`", KEYS);
        faults.push(Fault { offset: key.span().start, mistake });
    }
    let mut text = |key: &str| {
        let Some(value) = table.get(key) else {
            let message = format!("`probe` has no `{key}`");
            let remedy = format!("write for example {example}");
            faults.push(Fault { offset: entry.offset(), mistake: Mistake::new(message, remedy) });
            return String::new();
        };
        let inner = entry.inner(format!("`{key}` of `probe`"), value);
        let read = inner.string("\"PING\\r\\n\"").and_then(|text| bounded(&inner, text));
        read.map_err(|found| faults.extend(found)).unwrap_or_default()
    };
    let (send, expect) = (text("send"), text("expect"));
    if faults.is_empty() { Ok(Question::Text { send, expect }) } else { Err(faults) }
}

fn bounded(entry: &Entry<'_>, text: &str) -> Read<String> {
    if text.len() > MOST_BYTES {
        let message = format!("{} has {} bytes", entry.label, text.len());
        return entry.refuse(message, format!("write at most {MOST_BYTES} bytes"));
    }
    Ok(text.to_owned())
}
