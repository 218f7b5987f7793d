//! Takes messages from the channel, one at a time; and clients, where this worker accepts by itself.
//!
//! Taking is prompt and never waits for a handler: what waits in the channel is the master's
//! measure of a stall. What is taken is bounded by the limit that READY announced.
//!
//! A full descriptor table would let the kernel swallow a client (MSG_CTRUNC). So nothing is
//! received without a spare descriptor in hand: descriptors are numbered from below, hence as long
//! as the last one was numbered below half of the limit there is room, and above that a duplicate
//! is tried first. Should one be swallowed all the same, it is counted and said.
//!
//! A connection that another worker had comes with what that one left over. Leftover that is missing
//! or damaged costs its connection, and that one alone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::acceptor::{Acceptor, Came};
use super::drain::Drain;
use super::held::Held;
use super::keeper::{self, Luggage};
use super::link::Link;
use super::tell::tell;
use super::watch::{Events, Watch};
use crate::sys::ancillary::number_of;
use crate::sys::clock::microseconds;
use crate::sys::leftover;
use crate::sys::socket::{Family, Open};
use crate::wire::channel::Received;
use crate::wire::message::{LENGTH_MAX, Past, ToMaster, ToWorker};

/// How often a full descriptor table is looked at again: something else than a connection may have
/// freed a descriptor.
pub(super) const FULL_RETRY: Duration = Duration::from_millis(100);

/// A connection as it came.
#[derive(Debug)]
pub(super) struct Fresh {
    pub socket: OwnedFd,
    pub listener: Arc<str>,
    /// What a previous owner has read and not used; comes before the bytes of the socket.
    pub leftover: Vec<u8>,
    pub origin: Origin,
    pub held: Held,
}

/// Where a connection comes from, and what is known of its socket therefore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// From the master, who may hold it, too.
    Master,
    /// It was accepted here, and nobody else holds it. Whether it blocks is known.
    Here { family: Option<Family>, blocks: bool },
}

/// What one attempt brought.
#[derive(Debug)]
pub(super) enum Taken {
    Connection(Fresh),
    /// A message that asks for nothing further.
    Other,
    /// Nothing is there.
    Empty,
    /// No spare descriptor: nothing was received or accepted.
    Full,
    /// The drain has begun: nothing follows.
    Over,
}

pub(super) struct Taker {
    link: Arc<Link>,
    /// The number from which on the table is looked at before receiving.
    watermark: u64,
    /// The last descriptor lay above the watermark.
    high: bool,
    /// Something malformed has been said already.
    complained: bool,
    /// The last listener's name; most messages bear the same.
    listener: Arc<str>,
    /// Connections in hand at once, as READY announced.
    limit: u32,
    /// Where this worker accepts by itself.
    acceptor: Option<Acceptor>,
}

impl Taker {
    pub fn new(link: Arc<Link>, descriptor_limit: u64, limit: u32) -> Taker {
        let (watermark, listener) = (descriptor_limit / 2, Arc::from(""));
        let (high, complained, acceptor) = (true, false, None);
        Taker { link, watermark, high, complained, listener, limit, acceptor }
    }

    /// The same for threads that wait at `watch`.
    pub fn at(link: Arc<Link>, descriptor_limit: u64, limit: u32, watch: Arc<Watch>) -> Taker {
        let acceptor = Some(Acceptor::new(&link, watch));
        Taker { acceptor, ..Taker::new(link, descriptor_limit, limit) }
    }

    /// Where this worker accepts by itself, if it does.
    #[cfg(feature = "tokio")]
    pub fn acceptor(&mut self) -> Option<&mut Acceptor> {
        self.acceptor.as_mut()
    }

    #[cfg(feature = "tokio")]
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Something has happened where threads wait.
    pub fn note(&mut self, events: &Events) {
        self.acceptor.iter_mut().for_each(|acceptor| acceptor.note(events));
    }

    /// Nothing is left: decides whether to be woken for the next client. Whether there is something
    /// to take before.
    pub fn settle(&mut self) -> io::Result<bool> {
        self.acceptor.as_mut().map_or(Ok(false), Acceptor::settle)
    }

    /// Takes one client whom this worker was woken for, else one message, if one is there.
    pub fn take(&mut self) -> io::Result<Taken> {
        if self.high && !self.has_spare() {
            self.acceptor.iter_mut().for_each(Acceptor::rest);
            return Ok(Taken::Full);
        }
        match self.acceptor.as_mut().map_or(Came::Nobody, Acceptor::take) {
            Came::Client { socket, listener, origin } => {
                Ok(self.accepted(socket, listener, origin))
            }
            Came::Full => {
                self.high = true;
                Ok(Taken::Full)
            }
            Came::Nobody => self.receive(),
        }
    }

    /// Takes one message, if one is there for all that is known.
    pub fn take_message(&mut self) -> io::Result<Taken> {
        if self.high && !self.has_spare() {
            return Ok(Taken::Full);
        }
        self.receive()
    }

    /// The same, with a spare descriptor in hand.
    fn receive(&mut self) -> io::Result<Taken> {
        if self.acceptor.as_ref().is_some_and(|acceptor| !acceptor.hears()) {
            return Ok(Taken::Empty);
        }
        let mut buffer = [0; LENGTH_MAX];
        let received = self.link.channel().receive(&mut buffer)?;
        let is_empty = matches!(received, Received::Empty);
        self.acceptor.iter_mut().for_each(|acceptor| acceptor.note_taken(is_empty));
        match received {
            Received::Empty => Ok(Taken::Empty),
            Received::Closed => {
                self.acceptor = None;
                self.link.drain(Drain::orphaned(now()));
                Ok(Taken::Over)
            }
            Received::Message { len, descriptor, second, swallowed, .. } => {
                let luggage = Luggage { first: descriptor, second, swallowed };
                Ok(self.handle(&buffer[..len], luggage))
            }
        }
    }

    fn handle(&mut self, bytes: &[u8], luggage: Luggage) -> Taken {
        let message = ToWorker::decode(bytes);
        if !message.as_ref().is_ok_and(ToWorker::is_uncounted) {
            self.link.note_progress();
        }
        match message {
            Ok(ToWorker::Connection { listener, past, entry }) => {
                if *self.listener != *listener {
                    self.listener = Arc::from(listener);
                }
                self.handle_connection(luggage, past, entry)
            }
            Ok(ToWorker::Drain { deadline, handback }) => {
                // Before anybody can learn of the drain.
                self.acceptor = None;
                self.link.drain(Drain::told(now(), deadline, handback));
                keeper::listen(&self.link);
                Taken::Over
            }
            Ok(ToWorker::Ping) => {
                self.link.say(&ToMaster::Room);
                Taken::Other
            }
            Ok(ToWorker::Listen { listener, limit }) => {
                if let Err(error) = self.listen(luggage, listener, limit) {
                    // Another one may have more luck.
                    tell!("cannot accept from {listener}, and asks to be replaced: {error}");
                    self.link.retire();
                }
                Taken::Other
            }
            Ok(
                message @ (ToWorker::Welcome { .. }
                | ToWorker::Bye
                | ToWorker::Keep { .. }
                | ToWorker::Forget { .. }
                | ToWorker::Ask { .. }),
            ) => {
                keeper::heed(&self.link, &message, luggage);
                Taken::Other
            }
            // From a newer master, which knows that older workers skip it.
            Ok(ToWorker::Unknown(_)) => Taken::Other,
            Err(malformed) => {
                self.complain(&malformed.to_string());
                if luggage.first.is_some() || luggage.swallowed {
                    self.link.note_swallowed(None);
                }
                Taken::Other
            }
        }
    }

    fn handle_connection(
        &mut self,
        luggage: Luggage,
        past: Option<Past>,
        entry: Option<u32>,
    ) -> Taken {
        let Some(socket) = luggage.first else {
            self.link.note_swallowed(entry);
            if luggage.swallowed {
                self.high = true;
                tell!("a connection was lost, this worker's descriptor table is full");
            } else {
                self.complain("a connection without a descriptor");
            }
            return Taken::Other;
        };
        let number = number_of(&socket);
        self.high = u64::try_from(number).is_ok_and(|number| number >= self.watermark);
        let announced = past.map_or(0, |past| past.leftover);
        let leftover = match unpack(announced, luggage.second) {
            Ok(leftover) => leftover,
            Err(error) => {
                // Its bytes would have a hole: it is closed, for everybody who holds it.
                drop(Open::new(socket));
                self.link.note_swallowed(entry);
                self.high |= luggage.swallowed;
                tell!("closed a connection that was handed back: {error}");
                return Taken::Other;
            }
        };
        let held = self.link.hold(&self.listener, Some(number), past, entry);
        let (listener, origin) = (Arc::clone(&self.listener), Origin::Master);
        Taken::Connection(Fresh { socket, listener, leftover, origin, held })
    }

    /// The master lets this worker accept by itself.
    fn listen(&mut self, luggage: Luggage, listener: &str, limit: u32) -> io::Result<()> {
        let missing = || io::Error::new(io::ErrorKind::InvalidData, "its socket got lost");
        let socket = luggage.first.ok_or_else(missing)?;
        let limits = [limit, self.limit].into_iter().filter(|&limit| limit > 0);
        let limit = limits.min().map_or(u64::MAX, u64::from);
        let acceptor = match &mut self.acceptor {
            Some(acceptor) => acceptor,
            none @ None => {
                let watch = Arc::new(Watch::nested(&self.link)?);
                none.insert(Acceptor::new(&self.link, watch))
            }
        };
        acceptor.set_limit(limit);
        if let Some(bell) = luggage.second {
            acceptor.hear_bell(bell);
        }
        acceptor.listen(socket, listener);
        Ok(())
    }

    /// A client was accepted here.
    fn accepted(&mut self, socket: OwnedFd, listener: Arc<str>, origin: Origin) -> Taken {
        let number = number_of(&socket);
        self.high = u64::try_from(number).is_ok_and(|number| number >= self.watermark);
        let held = self.link.hold_accepted(&listener, number);
        Taken::Connection(Fresh { socket, listener, leftover: Vec::new(), origin, held })
    }

    /// For a socket and its leftover.
    fn has_spare(&self) -> bool {
        let spare = || self.link.channel().as_fd().try_clone_to_owned();
        let (first, second) = (spare(), spare());
        first.is_ok() && second.is_ok()
    }

    fn complain(&mut self, what: &str) {
        if !self.complained {
            self.complained = true;
            tell!("skipped {what} from the master; further ones go unmentioned");
        }
    }
}

/// The leftover, as far as some was announced; the length was bounded when it was decoded.
fn unpack(announced: u32, packed: Option<OwnedFd>) -> io::Result<Vec<u8>> {
    match (announced, packed) {
        // What nobody announced is not looked at.
        (0, _) => Ok(Vec::new()),
        (length, Some(packed)) => leftover::unpack(packed, length as usize),
        (_, None) => Err(io::Error::new(io::ErrorKind::InvalidData, "its leftover is missing")),
    }
}

/// Microseconds of the clock that all processes share, on this process' own.
pub(super) fn instant_of(time: u64) -> Instant {
    let age = Duration::from_micros(microseconds().saturating_sub(time));
    now().checked_sub(age).unwrap_or_else(now)
}

/// A worker's clock. The mind of the master is the one that knows none.
#[expect(clippy::disallowed_methods, reason = "the worker waits by its own clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}
