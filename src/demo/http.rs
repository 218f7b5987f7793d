//! The seed's HTTP service: any request comes back as JSON. And three paths to measure with.
//!
//! * `/pid`: the worker's process id.
//! * `/sleep/MS`: answers after that many milliseconds.
//! * `/bytes/N`: that many bytes.

use std::time::Duration;

use super::request::Request;
use super::server::{self, Body, Response};
use crate::worker::Connection;

/// The longest sleep that can be asked for.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// Answers one connection to its end.
pub fn serve(connection: Connection) {
    server::serve(connection, answer);
}

fn answer(request: &Request) -> Response {
    let path = request.target.split('?').next().unwrap_or_default();
    if path == "/pid" {
        return Response::text(format!("{}\n", std::process::id()));
    }
    if let Some(ms) = number_after(path, "/sleep/") {
        sleep(Duration::from_millis(ms).min(SLEEP_MAX));
        return Response::text(format!("slept {ms} ms\n"));
    }
    if let Some(length) = number_after(path, "/bytes/") {
        let content_type = "application/octet-stream";
        return Response { content_type, body: Body::Filling(length), ..Response::text("") };
    }
    Response::text(format!(
        r#"{{"method":{},"url":{},"post":{}}}"#,
        quote(&request.method),
        quote(&request.target),
        quote(&String::from_utf8_lossy(&request.body))
    ))
}

fn number_after(path: &str, start: &str) -> Option<u64> {
    path.strip_prefix(start)?.parse().ok()
}

#[expect(clippy::disallowed_methods, reason = "it was asked for")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}

/// A JSON string.
fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            control if control < ' ' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(control)));
            }
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_becomes_a_json_string() {
        let text: String = (0..0x250).filter_map(char::from_u32).collect();
        let back: String = serde_json::from_str(&quote(&text)).unwrap();
        assert_eq!(back, text);
    }
}
