//! Accounts of the bytes that a server was given: which belong to requests that it has begun, and
//! which are still to come.
//!
//! Kept beside the server and knowing nothing of it: it is told of every byte that is delivered and
//! of every request that begins, reads the heads and the chunks for itself, and so can tell whether
//! the server stands between two requests and which bytes it has not used. What it does not
//! understand beyond doubt it does not judge: from then on the connection is *in doubt*, for good.

use super::sniff::PREFACE;
use crate::wire::message::LEFTOVER_MAX;

/// The longest size of a chunk, in hexadecimal digits.
const SIZE_DIGITS_MAX: u32 = 15;

/// The accounts of one connection.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    /// Delivered, and of no request that has begun.
    pending: Vec<u8>,
    body: Body,
    is_in_doubt: bool,
}

/// What is still to come of the body of the request that was begun last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Body {
    #[default]
    Whole,
    Length(u64),
    Chunked(Chunk),
}

/// Where in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    Size { size: u64, digits: u32 },
    Extension { size: u64 },
    SizeEnd { size: u64 },
    Data { left: u64 },
    DataReturn,
    DataEnd,
    LineStart,
    Trailer,
    TrailerEnd,
    End,
}

impl Accounts {
    /// Accounts that were given up before they began.
    pub(crate) fn in_doubt() -> Accounts {
        Accounts { is_in_doubt: true, ..Accounts::default() }
    }

    pub(crate) fn is_in_doubt(&self) -> bool {
        self.is_in_doubt
    }

    /// The server was given `bytes`.
    pub(crate) fn deliver(&mut self, bytes: &[u8]) {
        if self.is_in_doubt {
            return;
        }
        match self.body.use_up(bytes) {
            Some(used) => self.pending.extend_from_slice(&bytes[used..]),
            None => self.give_up(),
        }
        // What follows is no HTTP/1, or too much to travel.
        if self.pending.starts_with(PREFACE) || self.pending.len() > LEFTOVER_MAX as usize {
            self.give_up();
        }
    }

    /// The server has begun a request: its head is used up.
    pub(crate) fn begin(&mut self) {
        if self.is_in_doubt {
            return;
        }
        let head = head_length(&self.pending).filter(|_| self.body == Body::Whole);
        let body = head.and_then(|length| Body::of(&self.pending[..length]));
        let (Some(length), Some(body)) = (head, body) else { return self.give_up() };
        self.body = body;
        match self.body.use_up(&self.pending[length..]) {
            Some(used) => drop(self.pending.drain(..length + used)),
            None => self.give_up(),
        }
    }

    /// Every request that was begun has been delivered whole, and nothing is in doubt.
    pub(crate) fn is_between_requests(&self) -> bool {
        !self.is_in_doubt && self.body == Body::Whole
    }

    /// What the next request begins with, as far as it was delivered.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// The head of a request was delivered whole and not begun.
    #[cfg(feature = "axum")]
    pub(crate) fn has_whole_head(&self) -> bool {
        head_length(&self.pending).is_some()
    }

    fn give_up(&mut self) {
        *self = Accounts::in_doubt();
    }
}

/// Bytes up to and with the empty line that ends a head. Empty lines before it belong to it.
fn head_length(bytes: &[u8]) -> Option<usize> {
    let mut start = 0;
    let mut has_begun = false;
    while let Some(length) = bytes[start..].iter().position(|&byte| byte == b'\n') {
        let line = &bytes[start..start + length];
        start += length + 1;
        match (line, has_begun) {
            ([] | [b'\r'], true) => return Some(start),
            ([] | [b'\r'], false) => {}
            _ => has_begun = true,
        }
    }
    None
}

impl Body {
    /// What a head announces; `None`: that is in doubt.
    fn of(head: &[u8]) -> Option<Body> {
        let head = std::str::from_utf8(head).ok()?.trim_start_matches(['\r', '\n']);
        let mut lines = head.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
        // What follows such a request need not be HTTP.
        if lines.next()?.starts_with("CONNECT ") {
            return None;
        }
        let mut body = None;
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            if name.starts_with([' ', '\t']) || name.eq_ignore_ascii_case("upgrade") {
                return None;
            }
            let value = value.trim_matches([' ', '\t']);
            let announced = if name.eq_ignore_ascii_case("content-length") {
                if !value.bytes().all(|byte| byte.is_ascii_digit()) {
                    return None;
                }
                match value.parse().ok()? {
                    0 => Body::Whole,
                    length => Body::Length(length),
                }
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                if !value.eq_ignore_ascii_case("chunked") {
                    return None;
                }
                Body::Chunked(Chunk::Size { size: 0, digits: 0 })
            } else {
                continue;
            };
            // Twice the same is once.
            if *body.get_or_insert(announced) != announced {
                return None;
            }
        }
        Some(body.unwrap_or(Body::Whole))
    }

    /// Uses up what belongs to it: how many of `bytes`. `None`: that is in doubt.
    fn use_up(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut used = 0;
        while used < bytes.len() {
            let left = bytes.len() - used;
            used += match self {
                Body::Whole => break,
                Body::Length(length) | Body::Chunked(Chunk::Data { left: length }) => {
                    let count = usize::try_from(*length).unwrap_or(left).min(left);
                    *length -= count as u64;
                    match self {
                        Body::Length(0) => *self = Body::Whole,
                        Body::Chunked(Chunk::Data { left: 0 }) => {
                            *self = Body::Chunked(Chunk::DataReturn);
                        }
                        Body::Whole | Body::Length(_) | Body::Chunked(_) => {}
                    }
                    count
                }
                Body::Chunked(chunk) => {
                    let is_end = *chunk == Chunk::End;
                    let next = chunk.after(bytes[used])?;
                    *self = if is_end { Body::Whole } else { Body::Chunked(next) };
                    1
                }
            };
        }
        Some(used)
    }
}

impl Chunk {
    /// Where one is after `byte`; `None`: it must not stand here.
    fn after(self, byte: u8) -> Option<Chunk> {
        use Chunk::{
            Data, DataEnd, DataReturn, End, Extension, LineStart, Size, SizeEnd, Trailer,
            TrailerEnd,
        };
        let next = match (self, byte) {
            (Size { size, digits }, digit) if digit.is_ascii_hexdigit() => {
                let digit = char::from(digit).to_digit(16)?;
                if digits == SIZE_DIGITS_MAX {
                    return None;
                }
                Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Size { digits: 0, .. }, _) => return None,
            (Size { size, .. } | Extension { size }, b'\r') => SizeEnd { size },
            (Size { size, .. }, b';' | b' ' | b'\t') => Extension { size },
            (Size { .. }, _) | (Extension { .. }, b'\n') => return None,
            (Extension { size }, _) => Extension { size },
            (SizeEnd { size: 0 }, b'\n') | (TrailerEnd, b'\n') => LineStart,
            (SizeEnd { size }, b'\n') => Data { left: size },
            (DataReturn, b'\r') => DataEnd,
            (DataEnd, b'\n') => Size { size: 0, digits: 0 },
            (LineStart, b'\r') => End,
            (Trailer, b'\r') => TrailerEnd,
            (LineStart | Trailer, b'\n') => return None,
            (LineStart | Trailer, _) => Trailer,
            // The caller takes what follows for the next request.
            (End, b'\n') => End,
            // Data is counted, not looked at.
            (Data { .. } | SizeEnd { .. } | DataReturn | DataEnd | TrailerEnd | End, _) => {
                return None;
            }
        };
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    const SIZED: &str = "POST /a HTTP/1.1\r\nHost: x\r\ncontent-LENGTH:  5 \r\n\r\nhello";
    const CHUNKED: &str = "POST /b HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n\
                           5\r\nhello\r\n1b ;a=b\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n\r\n\
                           0\r\nTrailer: x\r\nmore: y\r\n\r\n";

    fn accounts(text: &str) -> Accounts {
        let mut accounts = Accounts::default();
        accounts.deliver(text.as_bytes());
        accounts
    }

    /// Wherever it is split, and whenever the server begins: the rest is the rest.
    #[test]
    fn the_rest_is_known_wherever_it_is_split() {
        for request in [GET, SIZED, CHUNKED, "\r\n\nGET / HTTP/1.0\n\n"] {
            for rest in ["", "GET / HT", "\r\n", GET] {
                let text = format!("{request}{rest}");
                let head = head_length(text.as_bytes()).unwrap();
                for first in 0..=text.len() {
                    let mut accounts = accounts(&text[..first]);
                    if first >= head {
                        accounts.begin();
                        assert_eq!(accounts.is_between_requests(), first >= request.len());
                    }
                    accounts.deliver(&text.as_bytes()[first..]);
                    if first < head {
                        accounts.begin();
                    }
                    assert!(accounts.is_between_requests(), "{text:?} at {first}");
                    assert_eq!(accounts.pending(), rest.as_bytes(), "{text:?} at {first}");
                }
            }
        }
    }

    #[test]
    fn requests_are_begun_one_by_one() {
        let mut accounts = accounts(&[GET, SIZED, CHUNKED, GET, "GET"].concat());
        for expected in [[SIZED, CHUNKED, GET].concat(), [CHUNKED, GET].concat(), GET.into()] {
            accounts.begin();
            assert_eq!(accounts.pending(), format!("{expected}GET").as_bytes());
        }
        accounts.begin();
        assert_eq!(accounts.pending(), b"GET");
        accounts.begin();
        assert!(!accounts.is_between_requests(), "there is no such request");
    }

    #[test]
    fn what_is_not_understood_is_in_doubt() {
        let chunks =
            |body: &str| format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        for text in [
            "GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "GET / HTTP/1.1\r\na: b\r\n folded: c\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            &chunks("x\r\n"),
            &chunks("\r\n"),
            &chunks("5\nhello"),
            &chunks("5\r\nhello5\r\n"),
            &chunks("5x\r\n"),
            &chunks("1;\n"),
            &chunks("0\r\n\n"),
            &chunks("0\r\na\n"),
            &chunks("0\r\n\rx"),
            &chunks("0000000000000001\r\n"),
        ] {
            let mut accounts = accounts(text);
            accounts.begin();
            accounts.deliver(GET.as_bytes());
            assert!(!accounts.is_between_requests(), "{text:?}");
            assert!(accounts.pending().is_empty(), "nothing is kept: {text:?}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut seed = 1_u64;
        let mut accounts = Accounts::default();
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let words = ["0", "a", "\r\n", "\n", "\r", ";", "POST / HTTP/1.1\r\n", CHUNKED, SIZED];
            accounts.deliver(words[(seed >> 33) as usize % words.len()].as_bytes());
            if seed >> 62 == 0 {
                accounts.begin();
            }
            if accounts.is_in_doubt || accounts.pending.len() > 10_000 {
                accounts = Accounts::default();
            }
        }
    }
}
