//! A record: what is said, and the fields that go with it.
//!
//! | field | |
//! |---|---|
//! | `MESSAGE`, `PRIORITY` | the sentence or the worker's words, and syslog's level |
//! | `MESSAGE_ID` | the kind of a record of the master's own: `id.rs` |
//! | `SYSLOG_IDENTIFIER` | `rcluster`, or `rcluster-NAME` in the instance `rcluster@NAME` |
//! | `RCLUSTER_POOL`, `RCLUSTER_SLOT`, `RCLUSTER_GENERATION` | whom it is about, or who says it |
//! | `OBJECT_PID` | the worker's process; journald adds its program and user where it may |
//! | `SYSLOG_PID` | the same, in a worker's own words only |
//! | `RCLUSTER_CAUSE` | why, as a sentence |
//! | `RCLUSTER_CUT` | connections that were taken and not finished |
//! | `RCLUSTER_ANSWERED` | of a dead worker: clients whose requests were answered 503 |
//! | `RCLUSTER_GIVEN_TO_OTHERS` | connections that others got instead |
//! | `RCLUSTER_HANDED_BACK`, `RCLUSTER_REDISPATCHED` | those that draining workers gave back alive, or had not received |
//! | `RCLUSTER_IN_HAND` | connections that the worker holds |
//! | `RCLUSTER_TOOK_USEC`, `RCLUSTER_RETRY_USEC` | how long it took; how long until the next try; µs |
//! | `RCLUSTER_WORKERS` | how many workers it is about |
//! | `RCLUSTER_LISTENER` | the listener it is about |
//! | `RCLUSTER_DROPPED` | records that were dropped |
//! | `RCLUSTER_LINE_BREAK` | why a worker's line ends here without its end: `line-max`, `eof` |

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::id::MessageId;
use crate::wire::{GENERATION_VARIABLE, POOL_VARIABLE, SLOT_VARIABLE};

pub(crate) const OBJECT_PID: &str = "OBJECT_PID";
pub(crate) const CAUSE: &str = "RCLUSTER_CAUSE";
pub(crate) const ANSWERED: &str = "RCLUSTER_ANSWERED";
pub(crate) const CUT: &str = "RCLUSTER_CUT";
pub(crate) const GIVEN_TO_OTHERS: &str = "RCLUSTER_GIVEN_TO_OTHERS";
pub(crate) const HANDED_BACK: &str = "RCLUSTER_HANDED_BACK";
pub(crate) const REDISPATCHED: &str = "RCLUSTER_REDISPATCHED";
pub(crate) const IN_HAND: &str = "RCLUSTER_IN_HAND";
pub(crate) const TOOK_USEC: &str = "RCLUSTER_TOOK_USEC";
pub(crate) const RETRY_USEC: &str = "RCLUSTER_RETRY_USEC";
pub(crate) const WORKERS: &str = "RCLUSTER_WORKERS";
pub(crate) const LISTENER: &str = "RCLUSTER_LISTENER";
pub(crate) const DROPPED: &str = "RCLUSTER_DROPPED";
pub(crate) const LINE_BREAK: &str = "RCLUSTER_LINE_BREAK";

/// How much a record matters: syslog's levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Level {
    Emergency = 0,
    Alert = 1,
    Critical = 2,
    /// Somebody must act.
    Error = 3,
    /// Somebody should look.
    Warning = 4,
    /// A milestone.
    Notice = 5,
    /// The ordinary course.
    Info = 6,
    Debug = 7,
}

impl Level {
    /// The level that a digit of an `<N>` prefix means.
    pub(crate) fn from_digit(digit: u8) -> Option<Level> {
        Some(match digit {
            b'0' => Level::Emergency,
            b'1' => Level::Alert,
            b'2' => Level::Critical,
            b'3' => Level::Error,
            b'4' => Level::Warning,
            b'5' => Level::Notice,
            b'6' => Level::Info,
            b'7' => Level::Debug,
            _ => return None,
        })
    }
}

/// A worker, as far as its output tells whose it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Origin {
    pub(crate) pool: String,
    pub(crate) slot: u32,
    pub(crate) generation: u64,
    pub(crate) pid: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}/{}", self.pool, self.slot)
    }
}

/// A record.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) level: Level,
    pub(crate) when: SystemTime,
    pub(crate) text: String,
    pub(crate) id: Option<MessageId>,
    /// The worker whose words these are; `None`: the master's own.
    pub(crate) speaker: Option<Arc<Origin>>,
    /// Fields beyond those that follow from the above.
    pub(crate) fields: Vec<(&'static str, String)>,
}

impl Entry {
    /// A record of the master's own: one line, whatever a name or an error's text contains.
    pub(crate) fn new(level: Level, text: impl fmt::Display) -> Entry {
        let mut text = text.to_string();
        if text.contains(['\n', '\r']) {
            text = text.replace(['\n', '\r'], " ");
        }
        let when = SystemTime::now();
        Entry { level, when, text, id: None, speaker: None, fields: Vec::new() }
    }

    /// A worker's words, which may be several lines.
    pub(crate) fn words(level: Level, text: String, speaker: Arc<Origin>) -> Entry {
        let when = SystemTime::now();
        Entry { level, when, text, id: None, speaker: Some(speaker), fields: Vec::new() }
    }

    /// Of this kind.
    pub(crate) fn id(mut self, id: MessageId) -> Entry {
        self.id = Some(id);
        self
    }

    /// With this field.
    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Entry {
        self.fields.push((name, value.to_string()));
        self
    }

    /// With a duration in µs.
    pub(crate) fn with_time(self, name: &'static str, duration: Duration) -> Entry {
        self.with(name, duration.as_micros())
    }

    /// About a pool; about several when said several times.
    pub(crate) fn pool(self, pool: &str) -> Entry {
        self.with(POOL_VARIABLE, pool)
    }

    /// About a slot of the pool that was named.
    pub(crate) fn slot(self, slot: u32) -> Entry {
        self.with(SLOT_VARIABLE, slot)
    }

    /// About a generation.
    pub(crate) fn generation(self, generation: u64) -> Entry {
        self.with(GENERATION_VARIABLE, generation)
    }
}
