//! Reads HTTP/1.x requests from a stream, one after the other, strictly and within bounds.
//!
//! What could be understood in two ways is refused: two lengths, a length beside an encoding, a
//! folded header, a space before a colon. Bytes that were read beyond a request are kept for the
//! next one (pipelining).

use std::io::{self, Read, Write};

/// The longest request line and headers together, in bytes.
const HEAD_MAX: usize = 16 * 1024;
/// The longest body, in bytes.
const BODY_MAX: usize = 1024 * 1024;
/// The longest line of a chunked body that is no data, in bytes.
const CHUNK_LINE_MAX: usize = 1024;

/// A request, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, for example.
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// The body, decoded.
    pub body: Vec<u8>,
    /// The client would like to go on with this connection.
    pub keep_alive: bool,
    /// What it accepts, as sent; empty when it does not say.
    pub accept: String,
}

/// Why a request is not answered as asked.
#[derive(Debug)]
pub enum Failure {
    /// The client is told this status and reason.
    Refused(u16, &'static str),
    /// The client cannot be told anything.
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

const BAD: Failure = Failure::Refused(400, "Bad Request");

/// Reads requests from a stream; writes to it only `100 Continue`.
#[derive(Debug)]
pub struct Reader<S> {
    stream: S,
    /// Read and not yet used.
    buffer: Vec<u8>,
}

impl<S: Read + Write> Reader<S> {
    /// A reader that has read nothing yet.
    pub fn new(stream: S) -> Reader<S> {
        Reader { stream, buffer: Vec::new() }
    }

    /// Nothing is left over from what was read.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// There is no whole head among what was read, and it may still come.
    pub fn needs_more(&self) -> bool {
        let start = self.buffer.chunks(2).take_while(|pair| pair == b"\r\n").count() * 2;
        self.buffer.len() <= HEAD_MAX && find(&self.buffer[start..], b"\r\n\r\n").is_none()
    }

    /// What was read and not used.
    pub fn into_unread(self) -> Vec<u8> {
        self.buffer
    }

    /// The next request; `None`: the client has closed the connection between two.
    ///
    /// # Errors
    /// [`Failure`] says whether the client can be told.
    pub fn read(&mut self) -> Result<Option<Request>, Failure> {
        let Some(head) = self.read_head()? else { return Ok(None) };
        let head = std::str::from_utf8(&head).map_err(|_| BAD)?;
        let (mut request, framing) = parse(head)?;
        if framing.expects_continue && self.buffer.is_empty() {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        request.body = match framing.length {
            Length::None => Vec::new(),
            Length::Bytes(length) => self.take(length)?,
            Length::Chunked => self.read_chunks()?,
        };
        Ok(Some(request))
    }

    /// Request line and headers, without the empty line that ends them.
    fn read_head(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            // Empty lines before a request are left over from clients that say too much.
            while self.buffer.starts_with(b"\r\n") {
                self.buffer.drain(..2);
            }
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let head = self.buffer.drain(..end).collect();
                self.buffer.drain(..4);
                return Ok(Some(head));
            }
            if self.buffer.len() > HEAD_MAX {
                return Err(Failure::Refused(431, "Request Header Fields Too Large"));
            }
            if !self.fill()? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(BAD) };
            }
        }
    }

    fn read_chunks(&mut self) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        loop {
            let line = self.read_line()?;
            let digits = line.split(|&byte| byte == b';').next().unwrap_or_default();
            let digits = std::str::from_utf8(digits.trim_ascii()).map_err(|_| BAD)?;
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(BAD);
            }
            let length = usize::from_str_radix(digits, 16).map_err(|_| TOO_LARGE)?;
            if length == 0 {
                break;
            }
            if length > BODY_MAX - body.len() {
                return Err(TOO_LARGE);
            }
            body.append(&mut self.take(length)?);
            if !self.read_line()?.is_empty() {
                return Err(BAD);
            }
        }
        // Trailers are read and not used.
        let mut trailers = 0;
        loop {
            match self.read_line()?.len() {
                0 => return Ok(body),
                length => trailers += length,
            }
            if trailers > HEAD_MAX {
                return Err(Failure::Refused(431, "Request Header Fields Too Large"));
            }
        }
    }

    /// A line, without its end.
    fn read_line(&mut self) -> Result<Vec<u8>, Failure> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let line = self.buffer.drain(..end).collect();
                self.buffer.drain(..2);
                return Ok(line);
            }
            if self.buffer.len() > CHUNK_LINE_MAX || !self.fill()? {
                return Err(BAD);
            }
        }
    }

    /// Exactly `length` bytes.
    fn take(&mut self, length: usize) -> Result<Vec<u8>, Failure> {
        while self.buffer.len() < length {
            if !self.fill()? {
                return Err(BAD);
            }
        }
        Ok(self.buffer.drain(..length).collect())
    }

    /// Reads once; `false`: the client has closed.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 8192];
        let count = self.stream.read(&mut chunk)?;
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(count > 0)
    }
}

const TOO_LARGE: Failure = Failure::Refused(413, "Content Too Large");

/// How the body is delimited.
struct Framing {
    length: Length,
    expects_continue: bool,
}

#[derive(PartialEq, Eq)]
enum Length {
    None,
    Bytes(usize),
    Chunked,
}

fn parse(head: &str) -> Result<(Request, Framing), Failure> {
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(BAD);
    };
    let modern = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ if version.starts_with("HTTP/") => {
            return Err(Failure::Refused(505, "HTTP Version Not Supported"));
        }
        _ => return Err(BAD),
    };
    if !is_token(method) || target.is_empty() || target.chars().any(char::is_control) {
        return Err(BAD);
    }
    let mut request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        body: Vec::new(),
        keep_alive: modern,
        accept: String::new(),
    };
    let mut framing = Framing { length: Length::None, expects_continue: false };
    let mut hosts = 0;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(BAD)?;
        if !is_token(name) || value.contains(['\r', '\n', '\0']) {
            return Err(BAD);
        }
        let value = value.trim_matches([' ', '\t']);
        match name.to_ascii_lowercase().as_str() {
            "host" => hosts += 1,
            "accept" => value.clone_into(&mut request.accept),
            "connection" => note_connection(value, &mut request.keep_alive),
            "expect" => framing.expects_continue = modern,
            "content-length" => note_length(value, &mut framing.length)?,
            "transfer-encoding" if !value.eq_ignore_ascii_case("chunked") => {
                return Err(Failure::Refused(501, "Not Implemented"));
            }
            "transfer-encoding" if modern && framing.length == Length::None => {
                framing.length = Length::Chunked;
            }
            "transfer-encoding" => return Err(BAD),
            _ => {}
        }
    }
    if hosts > 1 || (modern && hosts == 0) {
        return Err(BAD);
    }
    Ok((request, framing))
}

fn note_connection(value: &str, keep_alive: &mut bool) {
    for word in value.split(',').map(str::trim) {
        if word.eq_ignore_ascii_case("close") {
            *keep_alive = false;
        } else if word.eq_ignore_ascii_case("keep-alive") {
            *keep_alive = true;
        }
    }
}

fn note_length(value: &str, length: &mut Length) -> Result<(), Failure> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BAD);
    }
    let stated = Length::Bytes(value.parse().map_err(|_| TOO_LARGE)?);
    if *length != Length::None && *length != stated {
        return Err(BAD);
    }
    if matches!(stated, Length::Bytes(bytes) if bytes > BODY_MAX) {
        return Err(TOO_LARGE);
    }
    *length = stated;
    Ok(())
}

fn is_token(word: &str) -> bool {
    let special = |byte: u8| b"!#$%&'*+-.^_`|~".contains(&byte);
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || special(byte))
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in small pieces, and keeps what is written.
    struct Script {
        bytes: Vec<u8>,
        piece: usize,
        written: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.piece.min(self.bytes.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.bytes[..count]);
            self.bytes.drain(..count);
            Ok(count)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.written.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn reader(text: &str, piece: usize) -> Reader<Script> {
        Reader::new(Script { bytes: text.into(), piece, written: Vec::new() })
    }

    fn refusal(text: &str) -> u16 {
        match reader(text, 8192).read() {
            Err(Failure::Refused(status, _)) => status,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn pipelined_requests_come_apart_wherever_they_are_split() {
        let text = "\r\nGET /a?b HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n\
                    POST /c HTTP/1.1\r\nhost:x\r\ncontent-length: 5\r\n\r\nhello\
                    POST /d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
                    3;ext\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n\
                    GET /e HTTP/1.0\r\n\r\nGET /f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        for piece in 1..text.len() {
            let mut reader = reader(text, piece);
            let mut seen = Vec::new();
            while let Some(request) = reader.read().unwrap() {
                let body = String::from_utf8(request.body).unwrap();
                seen.push((request.method, request.target, body, request.keep_alive));
            }
            let expected = [
                ("GET", "/a?b", "", true),
                ("POST", "/c", "hello", true),
                ("POST", "/d", "abc0123456789", true),
                ("GET", "/e", "", false),
                ("GET", "/f", "", false),
            ];
            let expected = expected.map(|(a, b, c, d)| (a.into(), b.into(), c.into(), d));
            assert_eq!(seen, expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_can_be_understood_in_two_ways_is_refused() {
        let post = |headers: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\nhello");
        let long = "x".repeat(HEAD_MAX);
        for (text, status) in [
            (post("Content-Length: 5\r\nContent-Length: 6"), 400),
            (post("Content-Length: 5\r\nTransfer-Encoding: chunked"), 400),
            (post("Transfer-Encoding: chunked\r\nContent-Length: 5"), 400),
            (post("Transfer-Encoding: gzip, chunked"), 501),
            (post("Content-Length: +5"), 400),
            (post("Content-Length : 5"), 400),
            (post("A: b\r\n folded"), 400),
            (post("Content-Length: 1048577"), 413),
            (post("Content-Length: 99999999999999999999999"), 413),
            (post("Transfer-Encoding: chunked").replace("hello", "-1\r\n"), 400),
            (post("Transfer-Encoding: chunked").replace("hello", "100001\r\n"), 413),
            (post("Transfer-Encoding: chunked").replace("hello", "1\r\nab\r\n"), 400),
            (post("Content-Length: 9"), 400),
            (post("Host: y"), 400),
            ("GET / HTTP/1.1\r\n\r\n".into(), 400),
            ("GET /\r\n\r\n".into(), 400),
            ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
            ("GET / HTTP/2.0\r\nHost: x\r\n\r\n".into(), 505),
            (format!("GET /{long} HTTP/1.1\r\nHost: x"), 431),
            ("GET / HT".into(), 400),
        ] {
            assert_eq!(refusal(&text), status, "{text:.200}");
        }
    }

    #[test]
    fn a_client_that_asks_first_is_told_to_go_on() {
        let head =
            "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
        let mut reader = reader(&format!("{head}ok"), head.len());
        assert_eq!(reader.read().unwrap().unwrap().body, b"ok");
        assert_eq!(reader.stream.written, b"HTTP/1.1 100 Continue\r\n\r\n");
    }
}
