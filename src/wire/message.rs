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
//! | 1 | READY | worker → master | limit, stride, board, handback | |
//! | 2 | CONNECTION | master → worker | listener; of a connection that was handed back: idle since, requests, leftover | the client's socket; the leftover |
//! | 3 | ROOM | worker → master | | |
//! | 4 | DRAIN | master → worker | deadline, handback | |
//! | 5 | DRAINED | worker → master | | |
//! | 6 | PING | master → worker | | |
//! | 7 | RETIRE | worker → master | | |
//! | 8 | HANDBACK | worker → master | listener, idle since, requests, leftover | the client's socket; the leftover |
//! | 9 | HELLO | worker → master | kept for adoption | |
//! | 10 | WELCOME | master → worker | kept for adoption | |
//! | 11 | BYE | master → worker | kept for adoption | |
//!
//! | tag | field | value |
//! |---|---|---|
//! | 1 | limit | u32: connections at once; 0: as many as come |
//! | 2, 3 | stride, board | u32: bytes |
//! | 4 | listener | its name, UTF-8 |
//! | 5 | deadline | u64: milliseconds |
//! | 6 | handback | u8, 1 or absent. In READY: this worker takes connections that were handed back. In DRAIN: this master takes them back, now |
//! | 7 | idle since | u64: microseconds of CLOCK_MONOTONIC, when the last answer was finished, or the connection was taken |
//! | 8 | requests | u64: requests so far, in all workers |
//! | 9 | leftover | u32: bytes that a worker has read and not used; absent or 0: none |
//!
//! The *leftover* comes before all that is still in the socket. It travels in a second descriptor, a
//! sealed memfd (`sys/leftover.rs`) of exactly the length in the field, [`LEFTOVER_MAX`] at most. A
//! message whose field and second descriptor do not agree costs its connection, since the stream of
//! bytes would have a hole. A connection with leftover is sent only to a worker whose READY had
//! `handback`; one without may go to any worker, which then takes it for a new one.
//!
//! A worker hands back only when DRAIN had `handback`: to a master that does not know the message,
//! or has nobody to give the connection to, it would be lost.

use std::time::Duration;

use super::VERSION;

/// The longest message that either side sends, in bytes. A reader's buffer is this long.
pub const LENGTH_MAX: usize = 1024;

/// The most leftover that a connection may have, in bytes. One that has more is not handed back.
pub const LEFTOVER_MAX: u32 = 1024 * 1024;

const HEADER: usize = 4;

const READY: u8 = 1;
const CONNECTION: u8 = 2;
const ROOM: u8 = 3;
const DRAIN: u8 = 4;
const DRAINED: u8 = 5;
const PING: u8 = 6;
const RETIRE: u8 = 7;
const HANDBACK: u8 = 8;

const TAG_LIMIT: u8 = 1;
const TAG_STRIDE: u8 = 2;
const TAG_BOARD: u8 = 3;
const TAG_LISTENER: u8 = 4;
const TAG_DEADLINE: u8 = 5;
const TAG_HANDBACK: u8 = 6;
const TAG_IDLE_SINCE: u8 = 7;
const TAG_REQUESTS: u8 = 8;
const TAG_LEFTOVER: u8 = 9;

/// What a connection that goes from worker to worker has behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// When its last answer was finished, or it was taken if it had none: microseconds of
    /// CLOCK_MONOTONIC, which all processes of a machine share.
    pub idle_since: u64,
    /// Requests so far, in all workers.
    pub requests: u64,
    /// Bytes of leftover in the second descriptor. 0: none, and no second descriptor.
    pub leftover: u32,
}

/// From the master to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToWorker<'a> {
    /// A client's connection; its socket comes along.
    Connection {
        /// The name of the listener that accepted it, at most 255 bytes.
        listener: &'a str,
        /// Another worker handed it back. `None`: a new one.
        past: Option<Past>,
    },
    /// Finish what is in hand and leave. Nothing follows.
    Drain {
        /// What is then still in hand is cut. Milliseconds on the wire.
        deadline: Duration,
        /// The master takes idle connections back, for other workers.
        handback: bool,
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
        /// It takes connections that were handed back, with leftover.
        handback: bool,
    },
    /// It has room again; asked for by the scoreboard's `waiting`.
    Room,
    /// Everything in hand is finished after a DRAIN; it leaves.
    Drained,
    /// It asks to be replaced: its requests reached the limit, or its author wants it.
    Retire,
    /// A live connection for another worker; its socket comes along. Sent before DRAINED. It does
    /// not count as finished: this message counts it.
    Handback {
        /// The name of the listener that accepted it, at most 255 bytes.
        listener: String,
        /// What it has behind it.
        past: Past,
    },
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
            ToWorker::Connection { listener, past } => {
                let mut bytes = header(CONNECTION);
                field(&mut bytes, TAG_LISTENER, listener.as_bytes());
                if let Some(past) = past {
                    past.encode(&mut bytes);
                }
                bytes
            }
            ToWorker::Drain { deadline, handback } => {
                let mut bytes = header(DRAIN);
                let ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
                field(&mut bytes, TAG_DEADLINE, &ms.to_le_bytes());
                flag(&mut bytes, TAG_HANDBACK, *handback);
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
                Ok(ToWorker::Connection { listener: name(fields)?, past: Past::decode(fields)? })
            }
            DRAIN => {
                let ms = number(fields, TAG_DEADLINE)?.unwrap_or(u64::MAX);
                let handback = number(fields, TAG_HANDBACK)? == Some(1);
                Ok(ToWorker::Drain { deadline: Duration::from_millis(ms), handback })
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
            ToMaster::Ready { limit, stride, board, handback } => {
                let mut bytes = header(READY);
                field(&mut bytes, TAG_LIMIT, &limit.to_le_bytes());
                field(&mut bytes, TAG_STRIDE, &stride.to_le_bytes());
                field(&mut bytes, TAG_BOARD, &board.to_le_bytes());
                flag(&mut bytes, TAG_HANDBACK, *handback);
                bytes
            }
            ToMaster::Room => header(ROOM),
            ToMaster::Drained => header(DRAINED),
            ToMaster::Retire => header(RETIRE),
            ToMaster::Handback { listener, past } => {
                let mut bytes = header(HANDBACK);
                field(&mut bytes, TAG_LISTENER, listener.as_bytes());
                past.encode(&mut bytes);
                bytes
            }
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
                    handback: number(fields, TAG_HANDBACK)? == Some(1),
                })
            }
            ROOM => Ok(ToMaster::Room),
            DRAINED => Ok(ToMaster::Drained),
            RETIRE => Ok(ToMaster::Retire),
            HANDBACK => Ok(ToMaster::Handback {
                listener: name(fields)?.to_owned(),
                past: Past::decode(fields)?.unwrap_or_default(),
            }),
            other => Ok(ToMaster::Unknown(other)),
        }
    }
}

impl Past {
    fn encode(self, bytes: &mut Vec<u8>) {
        field(bytes, TAG_IDLE_SINCE, &self.idle_since.to_le_bytes());
        field(bytes, TAG_REQUESTS, &self.requests.to_le_bytes());
        if self.leftover > 0 {
            field(bytes, TAG_LEFTOVER, &self.leftover.to_le_bytes());
        }
    }

    /// `None` when no field speaks of it.
    fn decode(fields: &[u8]) -> Result<Option<Past>, Malformed> {
        let idle_since = number(fields, TAG_IDLE_SINCE)?;
        let requests = number(fields, TAG_REQUESTS)?;
        let leftover = number(fields, TAG_LEFTOVER)?;
        if idle_since.or(requests).or(leftover).is_none() {
            return Ok(None);
        }
        let leftover = match u32::try_from(leftover.unwrap_or(0)) {
            Ok(length) if length <= LEFTOVER_MAX => length,
            Ok(_) | Err(_) => return Err(Malformed::Field(TAG_LEFTOVER)),
        };
        let (idle_since, requests) = (idle_since.unwrap_or(0), requests.unwrap_or(0));
        Ok(Some(Past { idle_since, requests, leftover }))
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

/// A field that is there when it is true, so that what needs no new word says none.
fn flag(bytes: &mut Vec<u8>, tag: u8, is_true: bool) {
    if is_true {
        field(bytes, tag, &[1]);
    }
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

/// The listener's name.
fn name(fields: &[u8]) -> Result<&str, Malformed> {
    let name = find(fields, TAG_LISTENER)?.unwrap_or_default();
    std::str::from_utf8(name).map_err(|_| Malformed::Field(TAG_LISTENER))
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

    const PAST: Past = Past { idle_since: u64::MAX, requests: 7, leftover: LEFTOVER_MAX };

    #[test]
    fn every_message_comes_back_as_it_was() {
        let deadline = Duration::from_millis(30_000);
        let name = "x".repeat(255);
        for message in [
            ToWorker::Connection { listener: "web", past: None },
            ToWorker::Connection { listener: &name, past: None },
            ToWorker::Connection { listener: &name, past: Some(PAST) },
            ToWorker::Connection { listener: "", past: Some(Past::default()) },
            ToWorker::Drain { deadline, handback: false },
            ToWorker::Drain { deadline, handback: true },
            ToWorker::Ping,
        ] {
            let bytes = message.encode();
            assert!(bytes.len() <= LENGTH_MAX);
            assert_eq!(ToWorker::decode(&bytes), Ok(message));
        }
        for message in [
            ToMaster::Ready { limit: 16, stride: 256, board: 1 << 20, handback: false },
            ToMaster::Ready { limit: 16, stride: 256, board: 1 << 20, handback: true },
            ToMaster::Room,
            ToMaster::Drained,
            ToMaster::Retire,
            ToMaster::Handback { listener: name.clone(), past: PAST },
            ToMaster::Handback { listener: "web".into(), past: Past::default() },
        ] {
            assert!(message.encode().len() <= LENGTH_MAX);
            assert_eq!(ToMaster::decode(&message.encode()), Ok(message));
        }
    }

    /// The bytes of version 1, frozen: workers that were compiled with it are in the field.
    #[test]
    fn version_1_is_frozen() {
        let ready = [1, 1, 0, 0, 1, 4, 16, 0, 0, 0, 2, 4, 0, 1, 0, 0, 3, 4, 0, 0, 16, 0];
        let (limit, stride, board) = (16, 256, 1 << 20);
        let message = ToMaster::Ready { limit, stride, board, handback: false };
        assert_eq!(message.encode(), ready);
        let connection = [1, 2, 0, 0, 4, 3, b'w', b'e', b'b'];
        assert_eq!(ToWorker::Connection { listener: "web", past: None }.encode(), connection);
        assert_eq!(ToMaster::Room.encode(), [1, 3, 0, 0]);
        let drain = [1, 4, 0, 0, 5, 8, 0x30, 0x75, 0, 0, 0, 0, 0, 0];
        let deadline = Duration::from_secs(30);
        assert_eq!(ToWorker::Drain { deadline, handback: false }.encode(), drain);
        assert_eq!(ToMaster::Drained.encode(), [1, 5, 0, 0]);
        assert_eq!(ToWorker::Ping.encode(), [1, 6, 0, 0]);
        assert_eq!(ToMaster::Retire.encode(), [1, 7, 0, 0]);
    }

    /// What was added to version 1, frozen as it is.
    #[test]
    fn hand_back_is_frozen_too() {
        let past = Past { idle_since: 0x0102, requests: 3, leftover: 0x0405 };
        let fields = [
            [7, 8, 2, 1, 0, 0, 0, 0, 0, 0].as_slice(),
            &[8, 8, 3, 0, 0, 0, 0, 0, 0, 0],
            &[9, 4, 5, 4, 0, 0],
        ];
        let fields = fields.concat();
        let start = [4, 3, b'w', b'e', b'b'];
        let handback = ToMaster::Handback { listener: "web".into(), past };
        assert_eq!(handback.encode(), [[1, 8, 0, 0].as_slice(), &start, &fields].concat());
        let connection = ToWorker::Connection { listener: "web", past: Some(past) };
        assert_eq!(connection.encode(), [[1, 2, 0, 0].as_slice(), &start, &fields].concat());
        let deadline = Duration::from_secs(30);
        let drain = [1, 4, 0, 0, 5, 8, 0x30, 0x75, 0, 0, 0, 0, 0, 0, 6, 1, 1];
        assert_eq!(ToWorker::Drain { deadline, handback: true }.encode(), drain);
        let ready = ToMaster::Ready { limit: 1, stride: 2, board: 3, handback: true }.encode();
        assert!(ready.ends_with(&[6, 1, 1]));
    }

    #[test]
    fn too_much_leftover_is_no_message() {
        let past = Past { leftover: LEFTOVER_MAX, ..PAST };
        let mut bytes = ToWorker::Connection { listener: "web", past: Some(past) }.encode();
        assert!(ToWorker::decode(&bytes).is_ok());
        let length = bytes.len();
        bytes[length - 4] = 1;
        assert_eq!(ToWorker::decode(&bytes), Err(Malformed::Field(TAG_LEFTOVER)));
    }

    #[test]
    fn what_a_newer_peer_adds_is_skipped() {
        const SMALL: ToMaster = ToMaster::Ready { limit: 7, stride: 0, board: 0, handback: false };
        let bytes = [2, 1, 0, 0, 99, 3, 1, 2, 3, 1, 1, 7, 98, 0];
        assert_eq!(ToMaster::decode(&bytes), Ok(SMALL));
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
                *kind &= 15;
            }
            let _ = ToMaster::decode(&bytes);
            let _ = ToWorker::decode(&bytes);
        }
    }
}
