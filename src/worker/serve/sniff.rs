//! Tells HTTP/2 from HTTP/1 by a client's first bytes, which stay to be read.

use tokio::io::AsyncReadExt;

use crate::worker::stream::Stream;
use crate::worker::tokio::{either, patience_end};

/// What every HTTP/2 connection begins with.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Enough for the head of most requests, so that they are read at once.
const ENOUGH: usize = 4096;

/// What the first bytes are.
pub(super) enum Sniffed {
    Http1,
    Http2,
    /// The worker is draining and the client has not said enough: it can be handed back.
    Draining,
    /// The client has gone, or stayed silent for too long.
    Closed,
}

pub(super) async fn sniff(stream: &mut Stream) -> Sniffed {
    let mut bytes = Vec::with_capacity(ENOUGH);
    loop {
        match look(&bytes) {
            Some(sniffed) => {
                stream.read_again(&bytes);
                return sniffed;
            }
            None => match wait(stream, &mut bytes).await {
                Waited::Bytes => {}
                Waited::Ended if bytes.is_empty() => return Sniffed::Closed,
                // Let HTTP/1 say what it thinks of half a preface.
                Waited::Ended => {
                    stream.read_again(&bytes);
                    return Sniffed::Http1;
                }
                Waited::Draining => {
                    stream.read_again(&bytes);
                    return Sniffed::Draining;
                }
                Waited::Patience => return Sniffed::Closed,
            },
        }
    }
}

/// `None`: more is needed to tell.
fn look(bytes: &[u8]) -> Option<Sniffed> {
    let length = bytes.len().min(PREFACE.len());
    if bytes[..length] != PREFACE[..length] {
        return Some(Sniffed::Http1);
    }
    (length == PREFACE.len()).then_some(Sniffed::Http2)
}

enum Waited {
    Bytes,
    Ended,
    Draining,
    /// The drain's deadline is near, or nobody would answer what may still come.
    Patience,
}

async fn wait(stream: &mut Stream, bytes: &mut Vec<u8>) -> Waited {
    let link = std::sync::Arc::clone(stream.link());
    let is_readable = if stream.draining() {
        if stream.can_hand_back() {
            either(stream.readable(), std::future::ready(())).await
        } else {
            // Idle since an earlier worker: at a drain such a connection is closed.
            let is_idle = stream.requests() > 0 && bytes.is_empty();
            let patience = async {
                if !is_idle {
                    patience_end(&link).await;
                }
            };
            if !either(stream.readable(), patience).await {
                return Waited::Patience;
            }
            true
        }
    } else {
        either(stream.readable(), link.until_drain()).await
    };
    if !is_readable {
        return if stream.can_hand_back() { Waited::Draining } else { Waited::Bytes };
    }
    match stream.read_buf(bytes).await {
        Ok(count) if count > 0 => Waited::Bytes,
        Ok(_) | Err(_) => Waited::Ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell() {
        for length in 0..PREFACE.len() {
            assert!(look(&PREFACE[..length]).is_none());
            let other = [&PREFACE[..length], b"x"].concat();
            assert!(matches!(look(&other), Some(Sniffed::Http1)));
        }
        let more = [PREFACE, b"more"].concat();
        assert!(matches!(look(&more), Some(Sniffed::Http2)));
    }
}
