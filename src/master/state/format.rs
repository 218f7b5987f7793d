//! The state as bytes, and whether they can be understood.

use std::time::{Duration, Instant};

use serde::Deserialize;

use super::{FORMAT, Number, State};
use crate::sys::clock::microseconds;

impl State {
    /// As bytes.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        serde_json::to_vec(self).map_err(|error| format!("the state cannot be written: {error}"))
    }

    /// From bytes.
    ///
    /// # Errors
    /// A sentence: it is no state, or one that this version does not understand.
    pub(crate) fn decode(bytes: &[u8]) -> Result<State, String> {
        let own = env!("CARGO_PKG_VERSION");
        // First the form alone: a newer one may not even be readable.
        #[derive(Deserialize)]
        struct Head {
            #[serde(default)]
            format: u32,
            #[serde(default)]
            version: String,
        }
        let head: Head = serde_json::from_slice(bytes)
            .map_err(|error| format!("that is no state of a master: {error}"))?;
        if head.format != FORMAT {
            return Err(format!(
                "rcluster {own} cannot go on where rcluster {} is (form {} of the state, known is \
                 {FORMAT}): restart the service",
                head.version, head.format
            ));
        }
        serde_json::from_slice(bytes).map_err(|error| {
            let theirs = head.version;
            format!("rcluster {own} cannot read the state of rcluster {theirs}: {error}")
        })
    }

    /// Whether the next image can unpack what it needs.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Some(carried) = &self.carried else {
            return Err("nothing was carried over".to_owned());
        };
        let all: std::collections::BTreeSet<&Number> = carried.numbers.iter().collect();
        if all.len() != carried.numbers.len() {
            return Err("a descriptor is carried twice".to_owned());
        }
        Ok(())
    }

    /// The moment when it was written, by this process' clock.
    pub(crate) fn taken_at(&self, now: Instant) -> Instant {
        let since = microseconds().saturating_sub(self.taken);
        now.checked_sub(Duration::from_micros(since)).unwrap_or(now)
    }
}
