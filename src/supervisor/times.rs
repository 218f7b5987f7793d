//! Moments as plain data: their distance from one that everybody knows.

use std::time::{Duration, Instant};

/// µs from the moment of the snapshot on; what was before it is negative.
pub type Micros = i64;

/// Moments as distances, and back.
#[derive(Clone, Copy)]
pub struct Times(pub Instant);

impl Times {
    /// Its distance from this one.
    pub fn from(self, at: Instant) -> Micros {
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        match at.checked_duration_since(self.0) {
            Some(after) => micros(after),
            None => -micros(self.0.saturating_duration_since(at)),
        }
    }

    /// What no clock can express is now.
    pub fn to(self, at: Micros) -> Instant {
        let distance = Duration::from_micros(at.unsigned_abs());
        let there =
            if at < 0 { self.0.checked_sub(distance) } else { self.0.checked_add(distance) };
        there.unwrap_or(self.0)
    }
}
