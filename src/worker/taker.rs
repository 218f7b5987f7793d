//! Takes messages from the channel, one at a time.
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
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::drain::Drain;
use super::held::Held;
use super::keeper::{self, Luggage};
use super::link::Link;
use super::tell::tell;
use crate::sys::ancillary::number_of;
use crate::sys::leftover;
use crate::sys::socket::{Open, wait_readable};
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
    pub held: Held,
}

/// What one attempt brought.
#[derive(Debug)]
pub(super) enum Taken {
    Connection(Fresh),
    /// A message that asks for nothing further.
    Other,
    /// Nothing is there.
    Empty,
    /// No spare descriptor: nothing was received.
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
}

impl Taker {
    pub fn new(link: Arc<Link>, descriptor_limit: u64) -> Taker {
        let watermark = descriptor_limit / 2;
        Taker { link, watermark, high: true, complained: false, listener: Arc::from("") }
    }

    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Takes until the drain begins or `give`, which gets each connection, wants no more.
    pub fn run(&mut self, mut give: impl FnMut(Fresh) -> ControlFlow<()>) -> io::Result<()> {
        loop {
            match self.take()? {
                Taken::Connection(fresh) => {
                    if give(fresh).is_break() {
                        return Ok(());
                    }
                }
                Taken::Other => {}
                Taken::Empty => wait_readable(&[self.link.channel().as_fd()], None)?,
                Taken::Full => self.link.wait_change(FULL_RETRY),
                Taken::Over => return Ok(()),
            }
        }
    }

    /// Takes one message, if one is there.
    pub fn take(&mut self) -> io::Result<Taken> {
        if self.high && !self.has_spare() {
            return Ok(Taken::Full);
        }
        let mut buffer = [0; LENGTH_MAX];
        match self.link.channel().receive(&mut buffer)? {
            Received::Empty => Ok(Taken::Empty),
            Received::Closed => {
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
                self.link.drain(Drain::told(now(), deadline, handback));
                Taken::Over
            }
            Ok(ToWorker::Ping) => {
                self.link.say(&ToMaster::Room);
                Taken::Other
            }
            Ok(
                message @ (ToWorker::Welcome { .. }
                | ToWorker::Bye
                | ToWorker::Keep { .. }
                | ToWorker::Forget { .. }),
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
        self.high = u64::try_from(number_of(&socket)).is_ok_and(|number| number >= self.watermark);
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
        let held = self.link.hold(past, entry);
        Taken::Connection(Fresh { socket, listener: Arc::clone(&self.listener), leftover, held })
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

/// Microseconds of CLOCK_MONOTONIC, which all processes share.
pub(super) fn microseconds() -> u64 {
    // The clock exists: it cannot fail.
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The same time on this process' clock.
pub(super) fn instant_of(time: u64) -> Instant {
    let age = Duration::from_micros(microseconds().saturating_sub(time));
    now().checked_sub(age).unwrap_or_else(now)
}

/// A worker's clock. The mind of the master is the one that knows none.
#[expect(clippy::disallowed_methods, reason = "the worker waits by its own clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}
