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
//! | 1 | READY | worker → master; in answer to WELCOME: on the adoption socket | limit, stride, board, handback, adoption, ledger, draining, tells, accepts | |
//! | 2 | CONNECTION | master → worker | listener, entry; of a connection that was handed back: idle since, requests, leftover | the client's socket; the leftover |
//! | 3 | ROOM | worker → master | | |
//! | 4 | DRAIN | master → worker | deadline, handback | |
//! | 5 | DRAINED | worker → master | | |
//! | 6 | PING | master → worker | | |
//! | 7 | RETIRE | worker → master | | |
//! | 8 | HANDBACK | worker → master | listener, idle since, requests, leftover, entry | the client's socket; the leftover |
//! | 9 | HELLO | worker → master, on the adoption socket | token, kept | the worker's end of the channel; the master's end; the scoreboard |
//! | 10 | WELCOME | master → worker | path, token, orphan timeout, answer | a pidfd of the master; the master's end of the channel |
//! | 11 | BYE | master → worker | | |
//! | 12 | KEEP | both ways | key | what is kept |
//! | 13 | FORGET | master → worker | key | |
//! | 14 | ASK | master → worker, after DRAIN | round | |
//! | 16 | LISTEN | master → worker | listener, limit | the listening socket; the siblings' bell |
//! | 15 | HOLDING | worker → master | round; listeners and connections; in the last one: rest | |
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
//! | 10 | adoption | u8, 1 or absent. In READY: this worker outlives its master |
//! | 11 | path | of the adoption socket, UTF-8 |
//! | 12 | token | 16 bytes |
//! | 13 | orphan timeout | u64: milliseconds |
//! | 14 | answer | u8, 1 or absent. In WELCOME: say READY again |
//! | 15 | entry | u32: the connection's entry in this worker's ledger (`wire/ledger.rs`); absent: it has none |
//! | 16 | ledger | u8, 1 or absent: this worker keeps its ledger |
//! | 17 | draining | u8, 1 or absent. In READY: this worker drains already |
//! | 18 | kept | u32: how many KEEPs follow the HELLO |
//! | 19 | key | the name of what is kept, UTF-8 |
//! | 20 | tells | u8, 1 or absent. In READY: this worker answers ASK |
//! | 21 | round | u32: which ASK it is, and which one is answered |
//! | 22 … 26 | | of HOLDING: `wire/holding.rs` |
//! | 27 | accepts | u8, 1 or absent. In READY: this worker knows LISTEN |
//!
//! The *leftover* comes before all that is still in the socket. It travels in a second descriptor, a
//! sealed memfd (`sys/leftover.rs`) of exactly the length in the field, [`LEFTOVER_MAX`] at most. A
//! message whose field and second descriptor do not agree costs its connection, since the stream of
//! bytes would have a hole. A connection with leftover is sent only to a worker whose READY had
//! `handback`; one without may go to any worker, which then takes it for a new one.
//!
//! A worker hands back only when DRAIN had `handback`: to a master that does not know the message,
//! or has nobody to give the connection to, it would be lost.
//!
//! LISTEN goes only to a worker whose READY had `accepts`: from then on it accepts there by itself, until
//! it drains, and has no more in hand than its limit and that of the message (0: none). A socket that it
//! has already changes nothing. The bell is an eventfd; the last one counts. Names of connections that it accepts are those of the message.
//!
//! WELCOME, KEEP and FORGET go only to a worker whose READY had `adoption`, and BYE only to one that
//! was welcomed. A worker does not count these four and LISTEN as progress. BYE on the channel answers DRAINED:
//! everything that the worker said has been read. BYE on the adoption socket says that the worker is
//! not wanted. How it all goes together: `worker/keeper.rs`.

use std::time::Duration;

pub use super::fields::Malformed;
use super::fields::{exact, field, flag, header, is_set, named, number, split, text, word};
pub use super::holding::{Activity, CONNECTIONS_MAX, HeldConnection, Holding};
use super::holding::{HOLDING, TAG_ROUND};
pub use super::past::{LEFTOVER_MAX, Past, add_entry};
use super::past::{entry, put_entry};
pub use super::ready::Ready;
use super::ready::{READY, TAG_HANDBACK, TAG_LIMIT};

/// The longest message that either side sends, in bytes. A reader's buffer is this long.
pub const LENGTH_MAX: usize = 1024;

const CONNECTION: u8 = 2;
const ROOM: u8 = 3;
const DRAIN: u8 = 4;
const DRAINED: u8 = 5;
const PING: u8 = 6;
const RETIRE: u8 = 7;
const HANDBACK: u8 = 8;
const HELLO: u8 = 9;
const WELCOME: u8 = 10;
const BYE: u8 = 11;
const KEEP: u8 = 12;
const FORGET: u8 = 13;
const ASK: u8 = 14;
const LISTEN: u8 = 16;

const TAG_LISTENER: u8 = 4;
const TAG_DEADLINE: u8 = 5;
const TAG_PATH: u8 = 11;
const TAG_TOKEN: u8 = 12;
const TAG_ORPHAN_TIMEOUT: u8 = 13;
const TAG_ANSWER: u8 = 14;
const TAG_KEPT: u8 = 18;
const TAG_KEY: u8 = 19;

/// What a worker proves with that it is the one whom a dead master knew.
pub type Token = [u8; 16];

/// From the master to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToWorker<'a> {
    /// A client's connection; its socket comes along.
    Connection {
        /// The name of the listener that accepted it, at most 255 bytes.
        listener: &'a str,
        /// Another worker handed it back. `None`: a new one.
        past: Option<Past>,
        /// Its entry in the worker's ledger.
        entry: Option<u32>,
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
    /// Outlive this master. A pidfd of it and a duplicate of its end of the channel come along.
    Welcome {
        /// Where the next master listens, at most 255 bytes.
        path: &'a str,
        /// To be told there.
        token: Token,
        /// How long to wait for the next master. Milliseconds on the wire.
        orphan_timeout: Duration,
        /// Say READY again: this is the next master.
        answer: bool,
    },
    /// Everything that was said up to DRAINED has been heard. On the adoption socket: the worker is
    /// not wanted.
    Bye,
    /// Keep what comes along for the next master, unused.
    Keep {
        /// Its name, at most 255 bytes.
        key: &'a str,
    },
    /// Close what is kept under this name.
    Forget {
        /// Its name, at most 255 bytes.
        key: &'a str,
    },
    /// Say what is in hand. Only after DRAIN.
    Ask {
        /// To be repeated in the answer.
        round: u32,
    },
    /// Accept here from now on. The listening socket comes along, and the bell by which siblings call.
    Listen {
        /// Its name, at most 255 bytes.
        listener: &'a str,
        /// Connections in hand at once. 0: as many as the worker announced.
        limit: u32,
    },
    /// Something that a newer master says.
    Unknown(u8),
}

/// From a worker to the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToMaster {
    /// It takes connections from now on.
    Ready(Ready),
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
        /// Its entry in the ledger of the worker that hands it back, which has done with it.
        entry: Option<u32>,
    },
    /// It has outlived its master. Its end of the channel, the master's, and its scoreboard come along.
    Hello {
        /// As the last WELCOME had it.
        token: Token,
        /// How many KEEPs follow.
        kept: u32,
    },
    /// What it has kept for the next master comes along.
    Keep {
        /// Its name, at most 255 bytes.
        key: String,
    },
    /// What it holds, in answer to ASK.
    Holding(Holding),
    /// Something that a newer worker says.
    Unknown(u8),
}

impl ToWorker<'_> {
    /// The bytes to send. A listener's name beyond 255 bytes is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ToWorker::Connection { listener, past, entry } => {
                let mut bytes = header(CONNECTION);
                field(&mut bytes, TAG_LISTENER, listener.as_bytes());
                if let Some(past) = past {
                    past.encode(&mut bytes);
                }
                put_entry(&mut bytes, *entry);
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
            ToWorker::Welcome { path, token, orphan_timeout, answer } => {
                let mut bytes = header(WELCOME);
                field(&mut bytes, TAG_PATH, path.as_bytes());
                field(&mut bytes, TAG_TOKEN, token);
                let ms = u64::try_from(orphan_timeout.as_millis()).unwrap_or(u64::MAX);
                field(&mut bytes, TAG_ORPHAN_TIMEOUT, &ms.to_le_bytes());
                flag(&mut bytes, TAG_ANSWER, *answer);
                bytes
            }
            ToWorker::Bye => header(BYE),
            ToWorker::Keep { key } => named(KEEP, TAG_KEY, key),
            ToWorker::Forget { key } => named(FORGET, TAG_KEY, key),
            ToWorker::Ask { round } => {
                let mut bytes = header(ASK);
                field(&mut bytes, TAG_ROUND, &round.to_le_bytes());
                bytes
            }
            ToWorker::Listen { listener, limit } => {
                let mut bytes = named(LISTEN, TAG_LISTENER, listener);
                field(&mut bytes, TAG_LIMIT, &limit.to_le_bytes());
                bytes
            }
            ToWorker::Unknown(kind) => header(*kind),
        }
    }

    /// Whether it is one of those that are not counted as progress.
    #[must_use]
    pub fn is_uncounted(&self) -> bool {
        use ToWorker::{Ask, Bye, Forget, Keep, Listen, Welcome};
        let is_set_up =
            matches!(self, Welcome { .. } | Keep { .. } | Forget { .. } | Listen { .. });
        is_set_up || matches!(self, Bye | Ask { .. })
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`Malformed`] says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<ToWorker<'_>, Malformed> {
        let (kind, fields) = split(bytes)?;
        match kind {
            CONNECTION => Ok(ToWorker::Connection {
                listener: text(fields, TAG_LISTENER)?,
                past: Past::decode(fields)?,
                entry: entry(fields)?,
            }),
            DRAIN => {
                let ms = number(fields, TAG_DEADLINE)?.unwrap_or(u64::MAX);
                let handback = is_set(fields, TAG_HANDBACK)?;
                Ok(ToWorker::Drain { deadline: Duration::from_millis(ms), handback })
            }
            PING => Ok(ToWorker::Ping),
            WELCOME => {
                let ms = number(fields, TAG_ORPHAN_TIMEOUT)?.unwrap_or(0);
                Ok(ToWorker::Welcome {
                    path: text(fields, TAG_PATH)?,
                    token: exact(fields, TAG_TOKEN)?,
                    orphan_timeout: Duration::from_millis(ms),
                    answer: is_set(fields, TAG_ANSWER)?,
                })
            }
            BYE => Ok(ToWorker::Bye),
            KEEP => Ok(ToWorker::Keep { key: text(fields, TAG_KEY)? }),
            FORGET => Ok(ToWorker::Forget { key: text(fields, TAG_KEY)? }),
            ASK => Ok(ToWorker::Ask { round: word(fields, TAG_ROUND)? }),
            LISTEN => Ok(ToWorker::Listen {
                listener: text(fields, TAG_LISTENER)?,
                limit: word(fields, TAG_LIMIT)?,
            }),
            other => Ok(ToWorker::Unknown(other)),
        }
    }
}

impl ToMaster {
    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ToMaster::Ready(ready) => ready.encode(),
            ToMaster::Room => header(ROOM),
            ToMaster::Drained => header(DRAINED),
            ToMaster::Retire => header(RETIRE),
            ToMaster::Handback { listener, past, entry } => {
                let mut bytes = header(HANDBACK);
                field(&mut bytes, TAG_LISTENER, listener.as_bytes());
                past.encode(&mut bytes);
                put_entry(&mut bytes, *entry);
                bytes
            }
            ToMaster::Hello { token, kept } => {
                let mut bytes = header(HELLO);
                field(&mut bytes, TAG_TOKEN, token);
                field(&mut bytes, TAG_KEPT, &kept.to_le_bytes());
                bytes
            }
            ToMaster::Keep { key } => named(KEEP, TAG_KEY, key),
            ToMaster::Holding(holding) => holding.encode(),
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
            READY => Ok(ToMaster::Ready(Ready::decode(fields)?)),
            ROOM => Ok(ToMaster::Room),
            DRAINED => Ok(ToMaster::Drained),
            RETIRE => Ok(ToMaster::Retire),
            HANDBACK => Ok(ToMaster::Handback {
                listener: text(fields, TAG_LISTENER)?.to_owned(),
                past: Past::decode(fields)?.unwrap_or_default(),
                entry: entry(fields)?,
            }),
            HELLO => Ok(ToMaster::Hello {
                token: exact(fields, TAG_TOKEN)?,
                kept: word(fields, TAG_KEPT)?,
            }),
            KEEP => Ok(ToMaster::Keep { key: text(fields, TAG_KEY)?.to_owned() }),
            HOLDING => Ok(ToMaster::Holding(Holding::decode(fields)?)),
            other => Ok(ToMaster::Unknown(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::past::{TAG_ENTRY, TAG_LEFTOVER};
    use super::*;

    const PLAIN: ToMaster = ToMaster::Ready(READY_PLAIN);

    const READY_PLAIN: Ready = Ready {
        limit: 16,
        stride: 256,
        board: 1 << 20,
        handback: false,
        ledger: false,
        adoption: false,
        draining: false,
        tells: false,
        accepts: false,
    };

    fn with_flags(handback: bool, adoption: bool, draining: bool) -> ToMaster {
        ToMaster::Ready(Ready { handback, adoption, draining, ..READY_PLAIN })
    }

    const WELCOME_AGAIN: ToWorker<'_> = ToWorker::Welcome {
        path: "/r/a",
        token: *b"0123456789abcdef",
        orphan_timeout: Duration::from_secs(60),
        answer: true,
    };

    const PAST: Past = Past { idle_since: u64::MAX, requests: 7, leftover: LEFTOVER_MAX };

    #[test]
    fn every_message_comes_back_as_it_was() {
        let deadline = Duration::from_millis(30_000);
        let name = "x".repeat(255);
        for message in [
            ToWorker::Connection { listener: "web", past: None, entry: None },
            ToWorker::Connection { listener: &name, past: None, entry: None },
            ToWorker::Connection { listener: &name, past: Some(PAST), entry: Some(65_535) },
            ToWorker::Connection { listener: "", past: Some(Past::default()), entry: None },
            ToWorker::Drain { deadline, handback: false },
            ToWorker::Drain { deadline, handback: true },
            ToWorker::Ping,
            WELCOME_AGAIN,
            ToWorker::Welcome {
                path: &name,
                token: [0; 16],
                orphan_timeout: deadline,
                answer: false,
            },
            ToWorker::Bye,
            ToWorker::Keep { key: &name },
            ToWorker::Forget { key: "x" },
            ToWorker::Ask { round: u32::MAX },
        ] {
            let bytes = message.encode();
            assert!(bytes.len() <= LENGTH_MAX);
            assert_eq!(ToWorker::decode(&bytes), Ok(message));
        }
        for message in [
            PLAIN,
            ToMaster::Ready(Ready {
                limit: 0,
                stride: 0,
                board: 0,
                handback: true,
                ledger: true,
                adoption: true,
                draining: true,
                tells: true,
                accepts: true,
            }),
            ToMaster::Hello { token: *b"0123456789abcdef", kept: u32::MAX },
            ToMaster::Keep { key: name.clone() },
            ToMaster::Room,
            ToMaster::Drained,
            ToMaster::Retire,
            ToMaster::Handback { listener: name.clone(), past: PAST, entry: Some(u32::MAX) },
            ToMaster::Handback { listener: "web".into(), past: Past::default(), entry: None },
        ] {
            assert!(message.encode().len() <= LENGTH_MAX);
            assert_eq!(ToMaster::decode(&message.encode()), Ok(message));
        }
    }

    /// The bytes of version 1, frozen: workers that were compiled with it are in the field.
    #[test]
    fn version_1_is_frozen() {
        let ready = [1, 1, 0, 0, 1, 4, 16, 0, 0, 0, 2, 4, 0, 1, 0, 0, 3, 4, 0, 0, 16, 0];
        assert_eq!(PLAIN.encode(), ready);
        let connection = [1, 2, 0, 0, 4, 3, b'w', b'e', b'b'];
        assert_eq!(
            ToWorker::Connection { listener: "web", past: None, entry: None }.encode(),
            connection
        );
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
        let handback = ToMaster::Handback { listener: "web".into(), past, entry: None };
        assert_eq!(handback.encode(), [[1, 8, 0, 0].as_slice(), &start, &fields].concat());
        let connection = ToWorker::Connection { listener: "web", past: Some(past), entry: None };
        assert_eq!(connection.encode(), [[1, 2, 0, 0].as_slice(), &start, &fields].concat());
        let deadline = Duration::from_secs(30);
        let drain = [1, 4, 0, 0, 5, 8, 0x30, 0x75, 0, 0, 0, 0, 0, 0, 6, 1, 1];
        assert_eq!(ToWorker::Drain { deadline, handback: true }.encode(), drain);
        let ready = with_flags(true, false, false).encode();
        assert!(ready.ends_with(&[6, 1, 1]));
    }

    #[test]
    fn the_ledger_is_frozen_too() {
        let entry = [15, 4, 2, 1, 0, 0];
        let connection = ToWorker::Connection { listener: "web", past: None, entry: Some(258) };
        assert!(connection.encode().ends_with(&entry));
        let mut added = ToWorker::Connection { listener: "web", past: None, entry: None }.encode();
        add_entry(&mut added, 258);
        assert_eq!(added, connection.encode());
        let handback = ToMaster::Handback { listener: "".into(), past: PAST, entry: Some(258) };
        assert!(handback.encode().ends_with(&entry));
        let ready = Ready { handback: true, ledger: true, ..READY_PLAIN };
        assert!(ready.encode().ends_with(&[6, 1, 1, 16, 1, 1]));
        let too_large = [1, 8, 0, 0, 15, 5, 0, 0, 0, 0, 1];
        assert_eq!(ToMaster::decode(&too_large), Err(Malformed::Field(TAG_ENTRY)));
    }

    /// And adoption: a worker of today meets the masters of years to come.
    #[test]
    fn adoption_is_frozen_too() {
        let ready = with_flags(false, true, true).encode();
        assert!(ready.ends_with(&[10, 1, 1, 17, 1, 1]));
        let token = [[12, 16].as_slice(), b"0123456789abcdef"].concat();
        let start = [1, 10, 0, 0, 11, 4, b'/', b'r', b'/', b'a'];
        let end = [13, 8, 0x60, 0xea, 0, 0, 0, 0, 0, 0, 14, 1, 1];
        let welcome = [start.as_slice(), &token, &end].concat();
        assert_eq!(WELCOME_AGAIN.encode(), welcome);
        let hello = ToMaster::Hello { token: *b"0123456789abcdef", kept: 0x0102 };
        let bytes = [[1, 9, 0, 0].as_slice(), &token, &[18, 4, 2, 1, 0, 0]].concat();
        assert_eq!(hello.encode(), bytes);
        assert_eq!(ToWorker::Bye.encode(), [1, 11, 0, 0]);
        assert_eq!(ToWorker::Keep { key: "k" }.encode(), [1, 12, 0, 0, 19, 1, b'k']);
        assert_eq!(ToMaster::Keep { key: "k".into() }.encode(), [1, 12, 0, 0, 19, 1, b'k']);
        assert_eq!(ToWorker::Forget { key: "k" }.encode(), [1, 13, 0, 0, 19, 1, b'k']);
    }

    #[test]
    fn asking_and_accepting_are_frozen_too() {
        assert_eq!(ToWorker::Ask { round: 258 }.encode(), [1, 14, 0, 0, 21, 4, 2, 1, 0, 0]);
        let ready =
            Ready { adoption: true, draining: true, tells: true, accepts: true, ..READY_PLAIN };
        assert!(ready.encode().ends_with(&[10, 1, 1, 17, 1, 1, 20, 1, 1, 27, 1, 1]));
        let listen = ToWorker::Listen { listener: "web", limit: 258 }.encode();
        assert_eq!(listen, [1, 16, 0, 0, 4, 3, b'w', b'e', b'b', 1, 4, 2, 1, 0, 0]);
    }

    #[test]
    fn a_token_of_another_length_is_none() {
        for bytes in [[1, 9, 0, 0].as_slice(), &[1, 9, 0, 0, 12, 2, 7, 7], &[1, 10, 0, 0]] {
            let wrong = Err(Malformed::Field(TAG_TOKEN));
            if bytes[1] == HELLO {
                assert_eq!(ToMaster::decode(bytes), wrong);
            } else {
                assert_eq!(ToWorker::decode(bytes), Err(Malformed::Field(TAG_TOKEN)));
            }
        }
    }

    #[test]
    fn too_much_leftover_is_no_message() {
        let past = Past { leftover: LEFTOVER_MAX, ..PAST };
        let mut bytes =
            ToWorker::Connection { listener: "web", past: Some(past), entry: None }.encode();
        assert!(ToWorker::decode(&bytes).is_ok());
        let length = bytes.len();
        bytes[length - 4] = 1;
        assert_eq!(ToWorker::decode(&bytes), Err(Malformed::Field(TAG_LEFTOVER)));
    }

    #[test]
    fn what_a_newer_peer_adds_is_skipped() {
        let bytes = [2, 1, 0, 0, 99, 3, 1, 2, 3, 1, 1, 7, 98, 0];
        let wanted = ToMaster::Ready(Ready { limit: 7, ..Ready::default() });
        assert_eq!(ToMaster::decode(&bytes), Ok(wanted));
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
