//! What a readable descriptor is, as one number for epoll.

use crate::supervisor::{ConnectionId, ListenerId, WorkerId};

/// What a readable descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// A signal has come.
    Signals,
    Listener(ListenerId),
    Channel(WorkerId),
    Process(WorkerId),
    Control,
    Client(u64),
    Unsent(u64),
    Lingering(u64),
    /// Workers' output has ended.
    Journal,
    /// A worker of a killed master may have come.
    Door,
    Guest(u64),
    /// The rehearsal of an upgrade is over.
    Rehearsal,
    /// A worker answers a probe.
    Probe(WorkerId),
    /// Somebody wants to acknowledge as Einhorn's workers do.
    Einhorn,
    Acknowledger(u64),
    /// A client who had said nothing yet.
    Silent(ConnectionId),
}

impl Token {
    const SHIFT: u32 = 56;

    /// The number under which to watch it.
    pub(crate) fn encode(self) -> u64 {
        let (kind, id) = match self {
            Token::Signals => (0, 0),
            Token::Listener(id) => (1, u64::from(id.0)),
            Token::Channel(id) => (2, id.0),
            Token::Process(id) => (3, id.0),
            Token::Control => (4, 0),
            Token::Client(id) => (5, id),
            Token::Unsent(id) => (6, id),
            Token::Lingering(id) => (7, id),
            Token::Journal => (8, 0),
            Token::Door => (11, 0),
            Token::Guest(id) => (12, id),
            Token::Probe(id) => (9, id.0),
            Token::Rehearsal => (10, 0),
            Token::Einhorn => (13, 0),
            Token::Acknowledger(id) => (14, id),
            Token::Silent(id) => (15, id.0),
        };
        kind << Token::SHIFT | id
    }

    /// What the number stands for.
    pub(crate) fn decode(token: u64) -> Token {
        let id = token & ((1 << Token::SHIFT) - 1);
        match token >> Token::SHIFT {
            0 => Token::Signals,
            1 => Token::Listener(ListenerId(u32::try_from(id).unwrap_or(u32::MAX))),
            2 => Token::Channel(WorkerId(id)),
            3 => Token::Process(WorkerId(id)),
            4 => Token::Control,
            5 => Token::Client(id),
            6 => Token::Unsent(id),
            7 => Token::Lingering(id),
            8 => Token::Journal,
            9 => Token::Probe(WorkerId(id)),
            11 => Token::Door,
            12 => Token::Guest(id),
            13 => Token::Einhorn,
            14 => Token::Acknowledger(id),
            15 => Token::Silent(ConnectionId(id)),
            _ => Token::Rehearsal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_was() {
        for token in [
            Token::Signals,
            Token::Listener(ListenerId(7)),
            Token::Channel(WorkerId(1 << 40)),
            Token::Process(WorkerId(3)),
            Token::Control,
            Token::Client(9),
            Token::Unsent(9),
            Token::Lingering(u64::from(u32::MAX)),
            Token::Journal,
            Token::Door,
            Token::Guest(7),
            Token::Rehearsal,
            Token::Einhorn,
            Token::Acknowledger(9),
            Token::Silent(ConnectionId(1 << 40)),
            Token::Probe(WorkerId(1 << 48)),
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
