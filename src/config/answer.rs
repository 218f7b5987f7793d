//! `unavailable`: what clients are answered whom no worker can take.
//!
//! Any bytes may be the answer, for any protocol. What starts with `HTTP/` is checked, because a
//! response that is wrong by one byte lets clients hang, and nobody sees it before the day it is
//! needed.

use super::entry::{Entry, Read};
use super::error::{Mistake, quote};

/// The longest answer. It is written at once, so it must fit into an empty socket buffer.
const MOST_BYTES: usize = 8192;

/// How an HTTP answer is written.
const EXAMPLE: &str = r#"write for example "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n""#;

/// Reads the key. `None`: clients wait.
pub(super) fn read(entry: &Entry<'_>) -> Read<Option<Vec<u8>>> {
    let text = entry.text_of("\"wait\" or the text of an answer", "\"wait\"")?;
    if text == "wait" {
        return Ok(None);
    }
    if text.trim().eq_ignore_ascii_case("wait") {
        let message = format!("`unavailable` cannot be {}", quote(text));
        return entry.refuse(message, "write \"wait\"");
    }
    if text.len() > MOST_BYTES {
        let message = format!("`unavailable` has {} bytes", text.len());
        return entry.refuse(message, format!("write at most {MOST_BYTES} bytes"));
    }
    let is_http =
        text.as_bytes().get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"HTTP/"));
    let checked = if is_http { check_http(text) } else { Ok(()) };
    match checked {
        Ok(()) => Ok(Some(text.as_bytes().to_vec())),
        Err(mistake) => {
            let message = format!("the answer of `unavailable` {}", mistake.message);
            entry.refuse(message, mistake.remedy.unwrap_or_default())
        }
    }
}

/// What could be better with an answer that is not wrong.
pub(super) fn advice(answer: &[u8]) -> Option<Mistake> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, _) = text.strip_prefix("HTTP/")?.split_once("\r\n\r\n")?;
    let closes = head.lines().any(|line| {
        line.split_once(':').is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("connection") && value.to_lowercase().contains("close")
        })
    });
    (!closes).then(|| {
        Mistake::new(
            "the answer of `unavailable` does not tell clients that the connection ends",
            "add the header `Connection: close`",
        )
    })
}

/// Whether this is one whole HTTP/1.x response.
fn check_http(text: &str) -> Result<(), Mistake> {
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        let what = if text.contains("\n\n") || (text.contains('\n') && !text.contains("\r\n")) {
            "has lines that end with \\n alone, where HTTP has \\r\\n"
        } else {
            "has no blank line (\\r\\n\\r\\n) after its headers"
        };
        return Err(Mistake::new(what, EXAMPLE));
    };
    let mut lines = head.split("\r\n");
    let status = check_status(lines.next().unwrap_or_default())?;
    let mut length = None;
    for line in lines {
        let (name, value) = check_header(line)?;
        if name.eq_ignore_ascii_case("transfer-encoding") {
            let what = "has a Transfer-Encoding";
            return Err(Mistake::new(what, "write a Content-Length instead"));
        }
        if !name.eq_ignore_ascii_case("content-length") {
            continue;
        }
        if length.is_some() {
            let what = "has two Content-Length headers";
            let remedy = format!("keep one: Content-Length: {}", body.len());
            return Err(Mistake::new(what, remedy));
        }
        length = Some(value);
    }
    if matches!(status, 204 | 304) {
        return match (body, length) {
            ("", None) => Ok(()),
            (_, _) => Err(Mistake::new(
                format!("has status {status}, which has neither body nor Content-Length"),
                "remove both, or write status 503",
            )),
        };
    }
    check_length(length, body)
}

fn check_length(length: Option<&str>, body: &str) -> Result<(), Mistake> {
    let right = format!("write Content-Length: {}", body.len());
    match length {
        None => Err(Mistake::new("has no Content-Length", right)),
        Some(length) if length.bytes().any(|byte| !byte.is_ascii_digit()) || length.is_empty() => {
            let what = format!("has {} as its Content-Length", quote(length));
            Err(Mistake::new(what, right))
        }
        Some(length) if length.parse() != Ok(body.len()) => Err(Mistake::new(
            format!("says Content-Length: {length}, but its body has {} bytes", body.len()),
            right,
        )),
        Some(_) => Ok(()),
    }
}

/// The status of a status line.
fn check_status(line: &str) -> Result<u16, Mistake> {
    let refused = |what: &str| Mistake::new(format!("{what}: {}", quote(line)), EXAMPLE);
    let mut parts = line.splitn(3, ' ');
    if !matches!(parts.next(), Some("HTTP/1.1" | "HTTP/1.0")) {
        return Err(refused("does not begin with HTTP/1.1 or HTTP/1.0 and a blank"));
    }
    let code = parts.next().unwrap_or_default();
    let is_code = code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit());
    let status = match code.parse() {
        Ok(status @ 200..=599) if is_code => status,
        Ok(_) | Err(_) => return Err(refused("has no status from 200 to 599")),
    };
    if parts.next().unwrap_or_default().chars().any(char::is_control) {
        return Err(refused("has a control character in its status line"));
    }
    Ok(status)
}

/// Name and value of a header.
fn check_header(line: &str) -> Result<(&str, &str), Mistake> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    match line.split_once(':') {
        Some((name, value))
            if !name.is_empty()
                && name.chars().all(is_token)
                && !value.chars().any(|c| c.is_control() && c != '\t') =>
        {
            Ok((name, value.trim_matches([' ', '\t'])))
        }
        Some(_) | None => Err(Mistake::new(
            format!("has {} where a header should be", quote(line)),
            "write `Name: value`, and \\r\\n after each",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\
                        Content-Length: 5\r\n\r\nhello";

    #[test]
    fn good_responses_pass() {
        assert_eq!(check_http(GOOD), Ok(()));
        assert_eq!(check_http("HTTP/1.0 503\r\ncontent-length:0\r\n\r\n"), Ok(()));
        assert_eq!(check_http("HTTP/1.1 204 No\r\n\r\n"), Ok(()));
        assert_eq!(advice(GOOD.as_bytes()), None);
        assert!(advice(b"HTTP/1.0 503\r\ncontent-length:0\r\n\r\n").is_some());
        assert_eq!(advice(b"-ERR busy\r\n"), None);
    }

    #[test]
    fn the_right_length_is_said() {
        let mistake = check_http(&GOOD.replace("hello", "grüße")).unwrap_err();
        assert!(mistake.message.contains("its body has 7 bytes"));
        assert_eq!(mistake.remedy.as_deref(), Some("write Content-Length: 7"));
    }

    #[test]
    fn the_example_is_good() {
        let quoted = EXAMPLE.split('"').nth(1).unwrap();
        assert_eq!(check_http(&quoted.replace("\\r\\n", "\r\n")), Ok(()));
    }
}
