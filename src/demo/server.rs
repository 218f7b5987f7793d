//! Requests and answers over one connection: keep-alive, pipelining, and a drain that loses none.
//!
//! Between two requests it waits where the drain can end it ([`Connection::wait_to_hand_back`]). Then
//! the connection goes to another worker, with what was read of its next request. Where it cannot, what
//! was read is answered, and `Connection: close` said with the last of it.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use super::request::{Failure, Reader, Request};
use crate::worker::{Connection, Wait};

/// How long a client may be idle, or take for a part of its request or of our answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long, and for how many bytes, a client is listened to that is not answered any more.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_MAX: u64 = 1024 * 1024;

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The words beside it.
    pub reason: &'static str,
    /// The content type.
    pub content_type: &'static str,
    /// What is sent.
    pub body: Body,
}

/// What an answer consists of.
#[derive(Clone, Debug)]
pub enum Body {
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many bytes, never all in memory.
    Filling(u64),
}

impl Response {
    /// 200, as plain text.
    #[must_use]
    pub fn text(text: impl Into<Vec<u8>>) -> Response {
        Response {
            status: 200,
            reason: "OK",
            content_type: "text/plain;charset=utf-8",
            body: Body::Bytes(text.into()),
        }
    }

    /// A refusal, whose reason is the text.
    #[must_use]
    pub fn refusal(status: u16, reason: &'static str) -> Response {
        Response { status, reason, ..Response::text(format!("{reason}\n")) }
    }
}

/// How it ends here.
enum End {
    Closed,
    /// Another worker goes on; these bytes of its next request were read.
    Elsewhere(Vec<u8>),
}

/// Answers requests until the client ends it, or the drain takes it elsewhere.
pub fn serve(mut connection: Connection, answer: impl Fn(&Request) -> Response) {
    loop {
        match converse(&connection, &answer) {
            Ok(End::Elsewhere(unread)) => match connection.hand_back(&unread) {
                Ok(()) => return,
                Err(kept) => connection = kept.connection,
            },
            // A client that hangs up or is too slow is no event.
            Ok(End::Closed) | Err(_) => return,
        }
    }
}

fn converse(connection: &Connection, answer: impl Fn(&Request) -> Response) -> io::Result<End> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let mut reader = Reader::new(connection);
    loop {
        while reader.needs_more() {
            match connection.wait_to_hand_back()? {
                Wait::Draining if connection.can_hand_back() => {
                    return Ok(End::Elsewhere(reader.into_unread()));
                }
                Wait::Bytes => drop(reader.fill()?),
                Wait::Closed | Wait::Draining if reader.is_empty() => return Ok(End::Closed),
                // The rest of this request is still waited for.
                Wait::Closed | Wait::Draining => break,
            }
        }
        let (response, last, head_only) = match reader.read() {
            Ok(Some(request)) => {
                let response = answer(&request);
                // What was read together with this request is answered, too.
                let ends = connection.draining() && !connection.can_hand_back();
                let last = !request.keep_alive || (ends && reader.is_empty());
                (response, last, request.method == "HEAD")
            }
            Ok(None) => return Ok(End::Closed),
            Err(Failure::Refused(status, reason)) => {
                (Response::refusal(status, reason), true, false)
            }
            Err(Failure::Io(error)) => return Err(error),
        };
        write(connection, &response, last, head_only)?;
        if last {
            return linger(connection).map(|()| End::Closed);
        }
    }
}

fn write(
    mut connection: &Connection,
    response: &Response,
    last: bool,
    head_only: bool,
) -> io::Result<()> {
    let Response { status, reason, content_type, body } = response;
    let length = match body {
        Body::Bytes(bytes) => bytes.len() as u64,
        Body::Filling(length) => *length,
    };
    let end = if last { "Connection: close\r\n\r\n" } else { "Connection: keep-alive\r\n\r\n" };
    let mut bytes = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\n\
         Content-Length: {length}\r\n{end}"
    )
    .into_bytes();
    match body {
        _ if head_only => connection.write_all(&bytes),
        Body::Bytes(content) => {
            bytes.extend_from_slice(content);
            connection.write_all(&bytes)
        }
        Body::Filling(length) => {
            connection.write_all(&bytes)?;
            io::copy(&mut io::repeat(b'x').take(*length), &mut connection).map(drop)
        }
    }
}

/// Lets the last answer arrive: a socket that is closed with bytes unread resets the client.
fn linger(mut connection: &Connection) -> io::Result<()> {
    connection.shutdown(Shutdown::Write)?;
    connection.set_read_timeout(Some(LINGER))?;
    io::copy(&mut (&mut connection).take(LINGER_MAX), &mut io::sink()).map(drop)
}
