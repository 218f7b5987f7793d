//! Spans of time as people write them: "30s", "1h30min", "1.5s", or a bare number of seconds.

use std::time::Duration;

/// The shortest span that any key takes.
pub(super) const SHORTEST: Duration = Duration::from_millis(10);

/// One hour.
pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// One day.
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// Reads a span of time. `None`: it is none.
pub(super) fn parse(text: &str) -> Option<Duration> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(Duration::from_secs);
    }
    humantime::parse_duration(text).ok()
}

/// Writes a span of time so that [`parse`] reads the same.
pub(super) fn format(span: Duration) -> String {
    humantime::format_duration(span).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read() {
        let millis = |text| parse(text).map(|span| span.as_millis());
        assert_eq!(millis("30s"), Some(30_000));
        assert_eq!(millis("30"), Some(30_000));
        assert_eq!(millis("1h30min"), Some(5_400_000));
        assert_eq!(millis("5min 20s"), Some(320_000));
        assert_eq!(millis("1.5s"), Some(1_500));
        for text in ["", "s", "-5s", "5 apples", "1e3", "99999999999999999999", "∞"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for millis in [10, 999, 1_000, 90_500, 3_600_000, 86_400_000] {
            let span = Duration::from_millis(millis);
            assert_eq!(parse(&format(span)), Some(span));
        }
    }
}
