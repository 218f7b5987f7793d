//! What a draining worker still holds: the fields of HOLDING.
//!
//! ASK goes only to a worker whose READY had `tells`, and that was told to drain: an older one would
//! leave it in its queue. It is no progress. One HOLDING or several answer it.
//!
//! A connection is a field of fields (tag, length, value, as ever), so that a newer worker can say
//! more of each. A listener's name stands before the first connection of several that came by it:
//!
//! ```text
//! round · listener · connection · connection · listener · connection · … · rest
//! ```
//!
//! | tag | field | value |
//! |---|---|---|
//! | 22 | connection | the fields 24, 25, 26 and 8, requests |
//! | 23 | rest | u32: connections that are not told of. Its presence says that no HOLDING follows |
//! | 24 | peer | the client's address as text, UTF-8, at most 128 bytes |
//! | 25 | held since | u64: microseconds of CLOCK_MONOTONIC, when this worker took it |
//! | 26 | activity | u8: 0 not known, 1 idle, 2 in a request |

use super::fields::{Fields, Malformed, field, header, number, text, word};
use super::message::{LENGTH_MAX, ToMaster};

pub(super) const HOLDING: u8 = 15;

const TAG_LISTENER: u8 = 4;
const TAG_REQUESTS: u8 = 8;
pub(super) const TAG_ROUND: u8 = 21;
const TAG_CONNECTION: u8 = 22;
const TAG_REST: u8 = 23;
const TAG_PEER: u8 = 24;
const TAG_HELD_SINCE: u8 = 25;
const TAG_ACTIVITY: u8 = 26;

/// How many connections a worker tells of at most; it says how many more there are.
pub const CONNECTIONS_MAX: usize = 1024;

/// The longest client's address, in bytes: longer than any that the kernel has. What is beyond is cut.
pub const PEER_MAX: usize = 128;

/// What a connection is in the middle of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// The worker's library cannot tell.
    #[default]
    Unknown,
    /// Between two requests, or before the first.
    Idle,
    /// In a request or its answer.
    Busy,
}

/// A connection in a worker's hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldConnection {
    /// The client's address as text; `unix` where it has no name, empty when it is not known.
    pub peer: String,
    /// The name of the listener that accepted it, at most 255 bytes.
    pub listener: String,
    /// When this worker took it: microseconds of CLOCK_MONOTONIC.
    pub held_since: u64,
    /// What it is in the middle of.
    pub activity: Activity,
    /// Requests so far, in all workers.
    pub requests: u64,
}

/// What a worker holds, in part or whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// As the ASK had it that this answers.
    pub round: u32,
    /// Some of the connections.
    pub connections: Vec<HeldConnection>,
    /// How many more there are that are not told of. `None`: more messages follow.
    pub rest: Option<u32>,
}

impl Holding {
    /// As many messages as it takes to tell of `connections`, each short enough to be sent.
    #[must_use]
    pub fn messages(round: u32, connections: Vec<HeldConnection>, rest: u32) -> Vec<ToMaster> {
        let start = Holding { round, ..Holding::default() };
        let empty = Holding { rest: Some(0), ..start.clone() }.encode().len();
        let (mut messages, mut next, mut length) = (Vec::new(), start.clone(), empty);
        for connection in connections {
            let before = next.connections.last();
            let mut needed = connection.length(before);
            if length + needed > LENGTH_MAX {
                messages.push(ToMaster::Holding(std::mem::replace(&mut next, start.clone())));
                (length, needed) = (empty, connection.length(None));
            }
            length += needed;
            next.connections.push(connection);
        }
        next.rest = Some(rest);
        messages.push(ToMaster::Holding(next));
        messages
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = header(HOLDING);
        field(&mut bytes, TAG_ROUND, &self.round.to_le_bytes());
        let mut before = None;
        for connection in &self.connections {
            connection.encode(before, &mut bytes);
            before = Some(connection);
        }
        if let Some(rest) = self.rest {
            field(&mut bytes, TAG_REST, &rest.to_le_bytes());
        }
        bytes
    }

    pub(super) fn decode(fields: &[u8]) -> Result<Holding, Malformed> {
        let (mut connections, mut listener) = (Vec::new(), "");
        for found in Fields::of(fields) {
            match found? {
                (TAG_LISTENER, name) => {
                    listener =
                        std::str::from_utf8(name).map_err(|_| Malformed::Field(TAG_LISTENER))?;
                }
                (TAG_CONNECTION, inner) => {
                    connections.push(HeldConnection::decode(listener, inner)?);
                }
                _ => {}
            }
        }
        let rest = number(fields, TAG_REST)?.map(u32::try_from).transpose();
        let rest = rest.map_err(|_| Malformed::Field(TAG_REST))?;
        Ok(Holding { round: word(fields, TAG_ROUND)?, connections, rest })
    }
}

impl HeldConnection {
    fn fields(&self) -> Vec<u8> {
        let mut end = self.peer.len().min(PEER_MAX);
        while !self.peer.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = Vec::new();
        field(&mut bytes, TAG_PEER, &self.peer.as_bytes()[..end]);
        field(&mut bytes, TAG_HELD_SINCE, &self.held_since.to_le_bytes());
        let activity = match self.activity {
            Activity::Unknown => 0,
            Activity::Idle => 1,
            Activity::Busy => 2,
        };
        field(&mut bytes, TAG_ACTIVITY, &[activity]);
        field(&mut bytes, TAG_REQUESTS, &self.requests.to_le_bytes());
        bytes
    }

    fn encode(&self, before: Option<&HeldConnection>, bytes: &mut Vec<u8>) {
        if self.listener != before.map_or("", |before| before.listener.as_str()) {
            field(bytes, TAG_LISTENER, self.listener.as_bytes());
        }
        field(bytes, TAG_CONNECTION, &self.fields());
    }

    /// Bytes that it adds to a message.
    fn length(&self, before: Option<&HeldConnection>) -> usize {
        let mut bytes = Vec::new();
        self.encode(before, &mut bytes);
        bytes.len()
    }

    fn decode(listener: &str, fields: &[u8]) -> Result<HeldConnection, Malformed> {
        Ok(HeldConnection {
            peer: text(fields, TAG_PEER)?.to_owned(),
            listener: listener.to_owned(),
            held_since: number(fields, TAG_HELD_SINCE)?.unwrap_or(0),
            // A newer worker may know more.
            activity: match number(fields, TAG_ACTIVITY)? {
                Some(1) => Activity::Idle,
                Some(2) => Activity::Busy,
                Some(_) | None => Activity::Unknown,
            },
            requests: number(fields, TAG_REQUESTS)?.unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(number: usize, listener: &str) -> HeldConnection {
        HeldConnection {
            peer: format!("127.0.0.1:{number}"),
            listener: listener.to_owned(),
            held_since: 1_000_000 + number as u64,
            activity: [Activity::Unknown, Activity::Idle, Activity::Busy][number % 3],
            requests: number as u64,
        }
    }

    fn come_back(messages: &[ToMaster]) -> (Vec<HeldConnection>, Vec<Option<u32>>) {
        let (mut connections, mut rests) = (Vec::new(), Vec::new());
        for message in messages {
            let bytes = message.encode();
            assert!(bytes.len() <= LENGTH_MAX, "{}", bytes.len());
            let Ok(ToMaster::Holding(found)) = ToMaster::decode(&bytes) else {
                panic!("{bytes:?}")
            };
            assert_eq!(found.round, 7);
            connections.extend(found.connections);
            rests.push(found.rest);
        }
        (connections, rests)
    }

    #[test]
    fn any_number_of_connections_comes_back_in_messages_that_fit() {
        let long = "l".repeat(255);
        let mixed = ["", "web", "web", "web", long.as_str()];
        for names in [mixed, [long.as_str(); 5]] {
            for count in [0, 1, 2, 15, 16, 20, 21, 22, 50, CONNECTIONS_MAX] {
                let all: Vec<_> = (0..count).map(|it| held(it, names[it / 3 % 5])).collect();
                let messages = Holding::messages(7, all.clone(), 99);
                let (found, rests) = come_back(&messages);
                assert_eq!(found, all);
                let (last, others) = rests.split_last().unwrap();
                assert_eq!(*last, Some(99), "the last one is marked");
                assert!(others.iter().all(Option::is_none), "and no other: {others:?}");
            }
        }
    }

    #[test]
    fn a_message_is_filled_before_the_next_is_begun() {
        let all: Vec<_> = (0..CONNECTIONS_MAX).map(|it| held(it, "web")).collect();
        let messages = Holding::messages(7, all, 0);
        let lengths: Vec<_> = messages.iter().map(|message| message.encode().len()).collect();
        let (_, full) = lengths.split_last().unwrap();
        assert!(full.iter().all(|&length| length > LENGTH_MAX - 64), "{lengths:?}");
    }

    #[test]
    fn an_address_that_is_too_long_is_cut_where_a_character_ends() {
        let peer = "é".repeat(PEER_MAX);
        let all = vec![HeldConnection { peer, ..held(1, "web") }];
        let (found, _) = come_back(&Holding::messages(7, all, 0));
        assert_eq!(found[0].peer, "é".repeat(PEER_MAX / 2));
    }

    /// The bytes, frozen: workers that say them are in the field.
    #[test]
    fn what_is_held_is_frozen() {
        let connection = HeldConnection {
            peer: "unix".into(),
            listener: "web".into(),
            held_since: 0x0102,
            activity: Activity::Busy,
            requests: 3,
        };
        let message = Holding { round: 5, connections: vec![connection], rest: Some(9) };
        let inner = [
            [24, 4, b'u', b'n', b'i', b'x'].as_slice(),
            &[25, 8, 2, 1, 0, 0, 0, 0, 0, 0],
            &[26, 1, 2],
            &[8, 8, 3, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        let start = [1, 15, 0, 0, 21, 4, 5, 0, 0, 0, 4, 3, b'w', b'e', b'b', 22, 29];
        let end = [23, 4, 9, 0, 0, 0];
        assert_eq!(message.encode(), [start.as_slice(), &inner, &end].concat());
    }

    #[test]
    fn what_a_newer_worker_says_more_is_skipped() {
        let bytes = [1, 15, 0, 0, 99, 1, 1, 22, 7, 26, 1, 77, 98, 2, 1, 1, 22, 0, 97, 0];
        let Ok(ToMaster::Holding(found)) = ToMaster::decode(&bytes) else { panic!("no HOLDING") };
        assert_eq!(found.connections, vec![HeldConnection::default(); 2]);
        assert_eq!((found.round, found.rest), (0, None));
    }

    #[test]
    fn damaged_fields_are_no_message() {
        for (bytes, tag) in [
            ([22, 3, 24, 2, b'x'].as_slice(), TAG_PEER),
            (&[22, 3, 24, 1, 0xff], TAG_PEER),
            (&[4, 1, 0xff], TAG_LISTENER),
            (&[22, 9], TAG_CONNECTION),
            (&[23, 5, 0, 0, 0, 0, 1], TAG_REST),
            (&[21, 5, 0, 0, 0, 0, 1], TAG_ROUND),
        ] {
            let message = [[1, 15, 0, 0].as_slice(), bytes].concat();
            assert_eq!(ToMaster::decode(&message), Err(Malformed::Field(tag)), "{bytes:?}");
        }
    }
}
