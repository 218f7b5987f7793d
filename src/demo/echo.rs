//! The seed's echo service: a greeting with the date, then every chunk comes back 100 ms later.
//!
//! `bye` ends the connection, `fatal` the whole worker, with status 127. When the worker is replaced
//! another one goes on, and the client sees nothing of it.

use std::io::{self, Read, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::worker::{Connection, Wait};

const DELAY: Duration = Duration::from_millis(100);

/// How it ends here.
enum End {
    Closed,
    /// Another worker goes on.
    Elsewhere,
}

/// Answers one connection to its end, or until the drain takes it elsewhere.
pub fn serve(mut connection: Connection) {
    // One that was handed back has been greeted.
    if !connection.handed_back() && greet(&connection).is_err() {
        return;
    }
    // A client that hangs up in between is no event.
    while let Ok(End::Elsewhere) = converse(&connection) {
        match connection.hand_back(b"") {
            Ok(()) => return,
            Err(kept) => connection = kept.connection,
        }
    }
}

fn greet(mut connection: &Connection) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    write!(connection, "Now: {}\n<- ", date(now))
}

fn converse(mut connection: &Connection) -> io::Result<End> {
    let mut buffer = [0; 4096];
    loop {
        match connection.wait_to_hand_back()? {
            Wait::Bytes => {}
            Wait::Closed => return Ok(End::Closed),
            Wait::Draining if connection.can_hand_back() => return Ok(End::Elsewhere),
            Wait::Draining => return good_bye(connection),
        }
        let count = connection.read(&mut buffer)?;
        let chunk = &buffer[..count];
        if begins_with(chunk, b"bye") {
            return good_bye(connection);
        }
        if begins_with(chunk, b"fatal") {
            std::process::exit(127);
        }
        pause();
        connection.write_all(&[b"-> [ sleep 100ms ] ", chunk, b"<- "].concat())?;
    }
}

fn good_bye(mut connection: &Connection) -> io::Result<End> {
    connection.write_all(b"Good Bye!\n").map(|()| End::Closed)
}

fn begins_with(chunk: &[u8], word: &[u8]) -> bool {
    chunk.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
}

#[expect(clippy::disallowed_methods, reason = "the seed's echo answers late on purpose")]
fn pause() {
    std::thread::sleep(DELAY);
}

/// A date as the seed wrote it, in UTC: `Sun Nov 22 2026 12:00:00 GMT`.
#[must_use]
pub fn date(unix_seconds: u64) -> String {
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, seconds) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let weekday = WEEKDAYS[usize::try_from(days % 7).unwrap_or_default()];
    // Years that begin in March: the leap day is their last, and every month's length follows.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 2, 0) } else { (month - 10, 1) };
    let name = MONTHS[usize::try_from(month).unwrap_or_default()];
    let (year, hour) = (era * 400 + year + next, seconds / 3600);
    let (minute, second) = (seconds / 60 % 60, seconds % 60);
    format!("{weekday} {name} {day:02} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        for (seconds, text) in [
            (0, "Thu Jan 01 1970 00:00:00 GMT"),
            (951_782_399, "Mon Feb 28 2000 23:59:59 GMT"),
            (951_782_400, "Tue Feb 29 2000 00:00:00 GMT"),
            (951_868_800, "Wed Mar 01 2000 00:00:00 GMT"),
            (1_795_348_800, "Sun Nov 22 2026 12:00:00 GMT"),
            (4_107_542_399, "Sun Feb 28 2100 23:59:59 GMT"),
            (4_107_542_400, "Mon Mar 01 2100 00:00:00 GMT"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }

    #[test]
    fn words_are_known_in_any_case() {
        assert!(begins_with(b"ByE\r\n", b"bye"));
        assert!(!begins_with(b"by", b"bye"));
        assert!(!begins_with(b"goodbye", b"bye"));
    }
}
