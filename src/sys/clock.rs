//! The clock that all processes of a machine share, and timers by it.

use std::time::Duration;

use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime};

/// Microseconds of CLOCK_MONOTONIC.
#[must_use]
pub fn microseconds() -> u64 {
    // The clock exists: it cannot fail.
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What a timer is set to, to go off once after `span`. None at all would never go off, and a hundred years
/// are as good as that.
#[must_use]
pub fn timer_span(span: Duration) -> TimeSpec {
    let nanoseconds = i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
    TimeSpec::nanoseconds(nanoseconds.clamp(1, i64::MAX / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_can_be_set_to_any_span() {
        assert_eq!(timer_span(Duration::ZERO), TimeSpec::nanoseconds(1));
        assert_eq!(timer_span(Duration::from_secs(7)), TimeSpec::seconds(7));
        assert!(timer_span(Duration::MAX) > TimeSpec::seconds(100 * 365 * 86_400));
    }
}
