//! How many connections a worker has that it was handed over its channel.
//!
//! Node counts those that it was given with a key, and says so when it is asked: it answers how many are
//! open (`NODE_SOCKET_GET_COUNT`), and tells when none is any more (`NODE_SOCKET_NOTIFY_CLOSE`). Programs that
//! only speak Node's protocol may not do that, and so do workers that make the connection themselves.
//! Then the system is asked which of the sockets the process still has. Where it may not be asked, nothing is
//! known.
//!
//! Between two answers a connection may have ended: what is in hand is never less than what is said here.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use crate::sys::socket::identity_of;
use crate::sys::sockets::sockets_of;

/// So many more than at the last look, at least, before the next one is due; so that what a look costs is
/// shared by them.
const MORE: usize = 8;
/// The same where it is only to forget what has ended.
const MANY_MORE: usize = 256;

/// What is known.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Tally {
    how: How,
    /// Connections that it has taken.
    taken: u64,
    /// The sockets of those that may be open, and how many there were at the last look.
    sockets: BTreeSet<u64>,
    seen: usize,
    /// It was asked for the number when it had been handed so many, and has not answered.
    asked: Option<u64>,
    /// It will tell when none is open any more.
    will_tell: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum How {
    /// It counts.
    #[default]
    Asking,
    /// The system shows what it has.
    Looking,
    /// Nobody does.
    Unknown,
}

/// A question to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// How many are open.
    Count,
    /// Tell when none is.
    Closed,
}

impl Tally {
    /// Of a worker that does not count.
    pub(super) fn looking() -> Tally {
        Tally { how: How::Looking, ..Tally::default() }
    }

    /// Whether anything is known.
    pub(crate) fn is_known(&self) -> bool {
        self.how != How::Unknown
    }

    /// Whether nothing that it has taken is known to be open.
    pub(crate) fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// It has taken a connection, the `number`th of `handed`. What it is to be asked.
    pub(super) fn note_taken(
        &mut self,
        socket: BorrowedFd<'_>,
        number: u64,
        handed: u64,
    ) -> Option<Question> {
        self.taken += 1;
        if self.is_known() {
            self.sockets.insert(identity_of(socket));
        }
        if self.how != How::Asking {
            return None;
        }
        // It answers in the order in which it is told: it has passed over the question.
        if self.asked.is_some_and(|handed| number > handed) {
            self.how = How::Looking;
            return None;
        }
        if !std::mem::replace(&mut self.will_tell, true) {
            return Some(Question::Closed);
        }
        self.ask(handed)
    }

    /// What it is to be asked now, when it was handed so many.
    pub(super) fn ask(&mut self, handed: u64) -> Option<Question> {
        let may_ask = self.how == How::Asking && self.asked.is_none() && !self.is_empty();
        may_ask.then(|| {
            self.asked = Some(handed);
            Question::Count
        })
    }

    /// It has answered that so many are open. How many have ended, in all.
    pub(super) fn note_count(&mut self, open: u64) -> u64 {
        self.asked = None;
        if open == 0 {
            self.sockets.clear();
        }
        self.taken.saturating_sub(open)
    }

    /// None is open any more. How many have ended, in all.
    pub(super) fn note_none(&mut self) -> u64 {
        self.will_tell = false;
        self.sockets.clear();
        self.taken
    }

    /// It cannot be asked any more.
    pub(super) fn stop_asking(&mut self) {
        if self.how == How::Asking {
            self.how = How::Looking;
        }
    }

    /// Whether so many came since the last look that it is time for the next.
    pub(crate) fn is_due(&self) -> bool {
        let more = self.sockets.len().saturating_sub(self.seen);
        match self.how {
            How::Asking => more >= MANY_MORE.max(self.seen),
            How::Looking => more >= MORE.max(self.seen / 4),
            How::Unknown => false,
        }
    }

    /// Looks which are open. How many have ended, in all; `None`: it is to be asked.
    ///
    /// # Errors
    /// It may not be looked at: from now on nothing is known.
    pub(crate) fn look(&mut self, process: u32) -> io::Result<Option<u64>> {
        if self.how == How::Unknown {
            return Ok(None);
        }
        let open = match sockets_of(process) {
            Ok(open) => open,
            Err(error) => {
                if self.how == How::Looking {
                    (self.how, self.sockets) = (How::Unknown, BTreeSet::new());
                    return Err(error);
                }
                // Then it keeps those that it would only have forgotten.
                self.seen = self.sockets.len();
                return Ok(None);
            }
        };
        self.sockets.retain(|socket| open.contains(socket));
        self.seen = self.sockets.len();
        let ended = self.taken.saturating_sub(self.seen as u64);
        Ok(Some(ended).filter(|_| self.how == How::Looking))
    }

    /// All that it has taken has ended. How many that were.
    pub(crate) fn end(&mut self) -> u64 {
        self.sockets.clear();
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn connections(count: usize) -> Vec<UnixStream> {
        (0..count).flat_map(|_| <[UnixStream; 2]>::from(UnixStream::pair().unwrap())).collect()
    }

    #[test]
    fn one_that_counts_is_asked_one_question_at_a_time() {
        let (mut tally, sockets) = (Tally::default(), connections(2));
        assert_eq!(tally.ask(0), None, "it has nothing");
        assert_eq!(tally.note_taken(sockets[0].as_fd(), 1, 1), Some(Question::Closed));
        assert_eq!(tally.note_taken(sockets[1].as_fd(), 2, 2), Some(Question::Count));
        assert_eq!(tally.ask(2), None);
        assert_eq!(tally.note_count(1), 1);
        assert_eq!(tally.ask(2), Some(Question::Count));
        assert_eq!(tally.note_none(), 2);
        assert_eq!(tally.note_count(0), 2);
        assert_eq!(tally.note_taken(sockets[2].as_fd(), 3, 3), Some(Question::Closed), "anew");
        assert!(!tally.is_due());
    }

    #[test]
    fn one_that_does_not_count_is_looked_at() {
        let (mut tally, mut sockets) = (Tally::default(), connections(3));
        let own = std::process::id();
        assert_eq!(tally.note_taken(sockets[0].as_fd(), 1, 1), Some(Question::Closed));
        assert_eq!(tally.note_taken(sockets[1].as_fd(), 2, 2), Some(Question::Count));
        assert_eq!(tally.look(own).unwrap(), None, "it is thought to answer");
        assert_eq!(tally.note_taken(sockets[2].as_fd(), 3, 3), None, "it has not");
        assert_eq!(tally.look(own).unwrap(), Some(0));
        drop(sockets.remove(0));
        assert_eq!(tally.look(own).unwrap(), Some(1));
        for number in 4..=3 + MORE as u64 {
            assert!(!tally.is_due());
            let [one, other] = <[UnixStream; 2]>::from(UnixStream::pair().unwrap());
            assert_eq!(tally.note_taken(one.as_fd(), number, number), None);
            sockets.extend([one, other]);
        }
        assert!(tally.is_due());
        sockets.clear();
        assert_eq!(tally.look(own).unwrap(), Some(3 + MORE as u64));
        assert!(tally.is_empty() && !tally.is_due());
    }

    #[test]
    fn of_one_that_may_not_be_looked_at_nothing_is_known() {
        let (mut tally, sockets) = (Tally::looking(), connections(1));
        tally.note_taken(sockets[0].as_fd(), 1, 1);
        assert!(tally.look(0).is_err());
        assert!(!tally.is_known() && tally.look(0).unwrap().is_none());
    }
}
