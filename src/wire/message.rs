//! Messages of the channel: encode and decode, pure.
//!
//! One message per packet, all numbers little-endian:
//!
//! ```text
//! byte 0    version (1)
//! byte 1    type
//! byte 2    reserved, 0
//! byte 3    reserved, 0
//! then      fields: tag u8, length u8, value
//! ```
//!
//! A reader skips fields and types that it does not know, so a newer peer can say more. A type or
//! tag, once given, is never reused.
//!
//! | type | name | direction | fields | descriptor |
//! |---|---|---|---|---|
//! | 1 | READY | worker → master | limit, stride, board | |
//! | 2 | CONNECTION | master → worker | listener | the client's socket |
//! | 3 | ROOM | worker → master | | |
//! | 4 | DRAIN | master → worker | deadline | |
//! | 5 | DRAINED | worker → master | | |
//! | 6 | PING | master → worker | | |
//! | 7 | RETIRE | worker → master | | |
//! | 8 | HANDBACK | worker → master | kept for the hand-back of live connections | the socket |
//! | 9 | HELLO | worker → master | kept for adoption | |
//! | 10 | WELCOME | master → worker | kept for adoption | |
//! | 11 | BYE | master → worker | kept for adoption | |

use std::time::Duration;

use super::VERSION;

/// The longest message that either side sends, in bytes. A reader's buffer is this long.
pub const LENGTH_MAX: usize = 1024;

const HEADER: usize = 4;

const READY: u8 = 1;
const CONNECTION: u8 = 2;
const ROOM: u8 = 3;
const DRAIN: u8 = 4;
const DRAINED: u8 = 5;
const PING: u8 = 6;
const RETIRE: u8 = 7;

const TAG_LIMIT: u8 = 1;
const TAG_STRIDE: u8 = 2;
const TAG_BOARD: u8 = 3;
const TAG_LISTENER: u8 = 4;
const TAG_DEADLINE: u8 = 5;

/// From the master to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToWorker<'a> {
    /// A client's connection; its socket comes along.
    Connection {
        /// The name of the listener that accepted it, at most 255 bytes.
        listener: &'a str,
    },
    /// Finish what is in hand and leave. Nothing follows.
    Drain {
        /// What is then still in hand is cut. Milliseconds on the wire.
        deadline: Duration,
    },
    /// Say ROOM: the master wonders whether this worker still takes anything.
    Ping,
    /// Something that a newer master says.
    Unknown(u8),
}

/// From a worker to the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToMaster {
    /// It takes connections from now on.
    Ready {
        /// How many it can hold at once. 0: as many as come.
        limit: u32,
        /// The scoreboard's stride that it counts with, bytes.
        stride: u32,
        /// The scoreboard's size as it sees it, bytes.
        board: u32,
    },
    /// It has room again; asked for by the scoreboard's `waiting`.
    Room,
    /// Everything in hand is finished after a DRAIN; it leaves.
    Drained,
    /// It asks to be replaced: its requests reached the limit, or its author wants it.
    Retire,
    /// Something that a newer worker says.
    Unknown(u8),
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than a header.
    Short(usize),
    /// Of a version that is none: 0.
    Version(u8),
    /// A field runs past the end, lacks or has a wrong length.
    Field(u8),
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Malformed::Short(len) => write!(f, "a message of {len} bytes"),
            Malformed::Version(version) => write!(f, "a message of version {version}"),
            Malformed::Field(tag) => write!(f, "a message whose field {tag} is damaged"),
        }
    }
}

impl ToWorker<'_> {
    /// The bytes to send. A listener's name beyond 255 bytes is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ToWorker::Connection { listener } => {
                let mut bytes = header(CONNECTION);
                let name = listener.as_bytes();
                field(&mut bytes, TAG_LISTENER, &name[..name.len().min(255)]);
                bytes
            }
            ToWorker::Drain { deadline } => {
                let mut bytes = header(DRAIN);
                let ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
                field(&mut bytes, TAG_DEADLINE, &ms.to_le_bytes());
                bytes
            }
            ToWorker::Ping => header(PING),
            ToWorker::Unknown(kind) => header(*kind),
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`Malformed`] says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<ToWorker<'_>, Malformed> {
        let (kind, fields) = split(bytes)?;
        match kind {
            CONNECTION => {
                let name = find(fields, TAG_LISTENER)?.unwrap_or_default();
                let listener =
                    std::str::from_utf8(name).map_err(|_| Malformed::Field(TAG_LISTENER))?;
                Ok(ToWorker::Connection { listener })
            }
            DRAIN => {
                let ms = number(fields, TAG_DEADLINE)?.unwrap_or(u64::MAX);
                Ok(ToWorker::Drain { deadline: Duration::from_millis(ms) })
            }
            PING => Ok(ToWorker::Ping),
            other => Ok(ToWorker::Unknown(other)),
        }
    }
}

impl ToMaster {
    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ToMaster::Ready { limit, stride, board } => {
                let mut bytes = header(READY);
                field(&mut bytes, TAG_LIMIT, &limit.to_le_bytes());
                field(&mut bytes, TAG_STRIDE, &stride.to_le_bytes());
                field(&mut bytes, TAG_BOARD, &board.to_le_bytes());
                bytes
            }
            ToMaster::Room => header(ROOM),
            ToMaster::Drained => header(DRAINED),
            ToMaster::Retire => header(RETIRE),
            ToMaster::Unknown(kind) => header(*kind),
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`Malformed`] says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<ToMaster, Malformed> {
        let (kind, fields) = split(bytes)?;
        match kind {
            READY => {
                let word = |tag| -> Result<u32, Malformed> {
                    let value = number(fields, tag)?.unwrap_or(0);
                    u32::try_from(value).map_err(|_| Malformed::Field(tag))
                };
                Ok(ToMaster::Ready {
                    limit: word(TAG_LIMIT)?,
                    stride: word(TAG_STRIDE)?,
                    board: word(TAG_BOARD)?,
                })
            }
            ROOM => Ok(ToMaster::Room),
            DRAINED => Ok(ToMaster::Drained),
            RETIRE => Ok(ToMaster::Retire),
            other => Ok(ToMaster::Unknown(other)),
        }
    }
}

fn header(kind: u8) -> Vec<u8> {
    vec![VERSION, kind, 0, 0]
}

fn field(bytes: &mut Vec<u8>, tag: u8, value: &[u8]) {
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    bytes.extend([tag, length]);
    bytes.extend(&value[..usize::from(length)]);
}

fn split(bytes: &[u8]) -> Result<(u8, &[u8]), Malformed> {
    match bytes {
        [0, _, _, _, ..] => Err(Malformed::Version(0)),
        [_, kind, _, _, fields @ ..] => Ok((*kind, fields)),
        _ => Err(Malformed::Short(bytes.len().min(HEADER))),
    }
}

/// The value of the first field with this tag.
fn find(mut fields: &[u8], tag: u8) -> Result<Option<&[u8]>, Malformed> {
    while let [found, length, rest @ ..] = fields {
        let length = usize::from(*length);
        if rest.len() < length {
            return Err(Malformed::Field(*found));
        }
        let (value, next) = rest.split_at(length);
        if *found == tag {
            return Ok(Some(value));
        }
        fields = next;
    }
    match fields {
        [] => Ok(None),
        [left, ..] => Err(Malformed::Field(*left)),
    }
}

/// A field that is a little-endian number of up to eight bytes.
fn number(fields: &[u8], tag: u8) -> Result<Option<u64>, Malformed> {
    let Some(value) = find(fields, tag)? else { return Ok(None) };
    if value.len() > 8 {
        return Err(Malformed::Field(tag));
    }
    let mut bytes = [0; 8];
    bytes[..value.len()].copy_from_slice(value);
    Ok(Some(u64::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_back_as_it_was() {
        let deadline = Duration::from_millis(30_000);
        let name = "x".repeat(255);
        for message in [
            ToWorker::Connection { listener: "web" },
            ToWorker::Connection { listener: &name },
            ToWorker::Drain { deadline },
            ToWorker::Ping,
        ] {
            let bytes = message.encode();
            assert!(bytes.len() <= LENGTH_MAX);
            assert_eq!(ToWorker::decode(&bytes), Ok(message));
        }
        for message in [
            ToMaster::Ready { limit: 16, stride: 256, board: 1 << 20 },
            ToMaster::Room,
            ToMaster::Drained,
            ToMaster::Retire,
        ] {
            assert_eq!(ToMaster::decode(&message.encode()), Ok(message));
        }
    }

    /// The bytes of version 1, frozen: workers that were compiled with it are in the field.
    #[test]
    fn version_1_is_frozen() {
        let ready = [1, 1, 0, 0, 1, 4, 16, 0, 0, 0, 2, 4, 0, 1, 0, 0, 3, 4, 0, 0, 16, 0];
        let message = ToMaster::Ready { limit: 16, stride: 256, board: 1 << 20 };
        assert_eq!(message.encode(), ready);
        let connection = [1, 2, 0, 0, 4, 3, b'w', b'e', b'b'];
        assert_eq!(ToWorker::Connection { listener: "web" }.encode(), connection);
        assert_eq!(ToMaster::Room.encode(), [1, 3, 0, 0]);
        let drain = [1, 4, 0, 0, 5, 8, 0x30, 0x75, 0, 0, 0, 0, 0, 0];
        assert_eq!(ToWorker::Drain { deadline: Duration::from_secs(30) }.encode(), drain);
        assert_eq!(ToMaster::Drained.encode(), [1, 5, 0, 0]);
        assert_eq!(ToWorker::Ping.encode(), [1, 6, 0, 0]);
        assert_eq!(ToMaster::Retire.encode(), [1, 7, 0, 0]);
    }

    #[test]
    fn what_a_newer_peer_adds_is_skipped() {
        let bytes = [2, 1, 0, 0, 99, 3, 1, 2, 3, 1, 1, 7, 98, 0];
        assert_eq!(ToMaster::decode(&bytes), Ok(ToMaster::Ready { limit: 7, stride: 0, board: 0 }));
        assert_eq!(ToMaster::decode(&[2, 200, 0, 0, 1]), Ok(ToMaster::Unknown(200)));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut seed = 1_u64;
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let mut bytes = seed.to_le_bytes().to_vec();
            bytes.truncate((seed >> 60) as usize);
            bytes.extend((seed >> 7).to_le_bytes());
            bytes[0] &= 1;
            if let Some(kind) = bytes.get_mut(1) {
                *kind &= 7;
            }
            let _ = ToMaster::decode(&bytes);
            let _ = ToWorker::decode(&bytes);
        }
    }
}
