//! What a program says to its service manager: sd_notify(3), one assignment a line.
//!
//! The master is the service manager of its inherit workers. It understands what decides about a
//! worker's life; what it does not understand is skipped, as systemd does. `BARRIER=1` is answered by
//! closing the descriptor that comes along, which is done before a word is read.

use std::time::Duration;

/// One assignment that is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// `READY=1`
    Ready,
    /// `RELOADING=1`: it looks at its configuration again, and says READY after it.
    Reloading,
    /// `STOPPING=1`: it takes nothing new, and ends by itself.
    Stopping,
    /// `WATCHDOG=1`
    Alive,
    /// `WATCHDOG=trigger`: it wants to be ended and replaced.
    Trigger,
    /// `STATUS=…`: a sentence for people.
    Status(String),
    /// `EXTEND_TIMEOUT_USEC=…`: it needs so long from now on.
    Extend(Duration),
    /// `MAINPID=…`: the process that signals are meant for.
    Main(u32),
    /// `ERRNO=…`, `EXIT_STATUS=…`, `BUSERROR=…`: why it fails, with the name in front.
    Failure(String),
}

/// Letters of a status that are kept.
const STATUS_MAX: usize = 200;

/// What a datagram says.
///
/// # Errors
/// What is wrong with it, as in "sent {…}". What it says before that is lost, too.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<Said>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "a notice that is no text".to_owned())?;
    let lines = text.lines().filter(|line| !line.is_empty());
    lines.filter_map(|line| read_line(line).transpose()).collect()
}

fn read_line(line: &str) -> Result<Option<Said>, String> {
    let shown = |line: &str| line.chars().take(40).collect::<String>();
    let wrong = |what: &str| Err(format!("{:?}, {what}", shown(line)));
    let Some((key, value)) = line.split_once('=') else {
        return wrong("which assigns nothing");
    };
    Ok(Some(match (key, value) {
        ("READY", "1") => Said::Ready,
        ("RELOADING", "1") => Said::Reloading,
        ("STOPPING", "1") => Said::Stopping,
        ("WATCHDOG", "1") => Said::Alive,
        ("WATCHDOG", "trigger") => Said::Trigger,
        ("STATUS", text) => {
            let plain = |c: char| if c.is_control() { ' ' } else { c };
            Said::Status(text.chars().take(STATUS_MAX).map(plain).collect())
        }
        ("EXTEND_TIMEOUT_USEC", number) => match number.parse() {
            Ok(micros) => Said::Extend(Duration::from_micros(micros)),
            Err(_) => return wrong("which is no number of microseconds"),
        },
        ("MAINPID", number) => match number.parse() {
            Ok(id) if id > 0 => Said::Main(id),
            Ok(_) | Err(_) => return wrong("which is no process id"),
        },
        ("ERRNO" | "EXIT_STATUS" | "BUSERROR" | "VARLINKERROR", text) => {
            let text = text.chars().filter(|c| !c.is_control()).take(STATUS_MAX);
            Said::Failure(format!("{key} {}", text.collect::<String>()))
        }
        ("READY" | "RELOADING" | "STOPPING" | "WATCHDOG", _) => {
            return wrong("which means nothing");
        }
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_say_is_understood_and_the_rest_is_skipped() {
        // As php-fpm says it.
        let php = b"READY=1\nSTATUS=Ready to handle connections\nMAINPID=4711";
        let status = Said::Status("Ready to handle connections".into());
        assert_eq!(read(php).unwrap(), [Said::Ready, status, Said::Main(4711)]);
        let more = b"RELOADING=1\nMONOTONIC_USEC=12\n\nSTOPPING=1\nWATCHDOG=1\nWATCHDOG=trigger\n";
        let all = [Said::Reloading, Said::Stopping, Said::Alive, Said::Trigger];
        assert_eq!(read(more).unwrap(), all);
        let extend = b"EXTEND_TIMEOUT_USEC=2500000";
        assert_eq!(read(extend).unwrap(), [Said::Extend(Duration::from_millis(2500))]);
        assert_eq!(read(b"ERRNO=2\n").unwrap(), [Said::Failure("ERRNO 2".into())]);
        for skipped in ["", "\n", "BARRIER=1", "FDSTORE=1\nFDNAME=x", "X_OWN=a=b", "MAINPIDFD=1"] {
            assert_eq!(read(skipped.as_bytes()).unwrap(), [], "{skipped}");
        }
    }

    #[test]
    fn rubbish_is_refused_with_a_sentence() {
        for (rubbish, said) in [
            (&b"\xff\xfe"[..], "a notice that is no text"),
            (b"READY", "\"READY\", which assigns nothing"),
            (b"READY=yes", "\"READY=yes\", which means nothing"),
            (b"MAINPID=0", "\"MAINPID=0\", which is no process id"),
            (b"MAINPID=-7", "\"MAINPID=-7\", which is no process id"),
            (
                b"EXTEND_TIMEOUT_USEC=x",
                "\"EXTEND_TIMEOUT_USEC=x\", which is no number of microseconds",
            ),
        ] {
            assert_eq!(read(rubbish).unwrap_err(), said);
        }
        let long = [b"x".repeat(4096), b"=".to_vec()].concat();
        assert_eq!(read(&long).unwrap(), []);
        let long = b"x".repeat(4096);
        assert!(read(&long).unwrap_err().len() < 100);
    }

    #[test]
    fn a_status_is_one_short_line() {
        let text = format!("STATUS=a\tb\u{1b}[31m{}", "x".repeat(1000));
        let Ok([Said::Status(status)]) =
            read(text.as_bytes()).as_deref().map(|it| <&[Said; 1]>::try_from(it).unwrap().clone())
        else {
            panic!("no status")
        };
        assert!(status.starts_with("a b [31mx") && status.chars().count() == STATUS_MAX);
    }
}
