//! Takes messages from the channel, one at a time.
//!
//! Taking is prompt and never waits for a handler: what waits in the channel is the master's
//! measure of a stall. What is taken is bounded by the limit that READY announced.
//!
//! A full descriptor table would let the kernel swallow a client (MSG_CTRUNC). So nothing is
//! received without a spare descriptor in hand: descriptors are numbered from below, hence as long
//! as the last one was numbered below half of the limit there is room, and above that a duplicate
//! is tried first. Should one be swallowed all the same, it is counted and said.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::link::{Drain, Held, Link};
use super::tell::tell;
use crate::sys::ancillary::number_of;
use crate::sys::socket::wait_readable;
use crate::wire::channel::Received;
use crate::wire::message::{LENGTH_MAX, ToMaster, ToWorker};

/// How often a full descriptor table is looked at again: something else than a connection may have
/// freed a descriptor.
pub(super) const FULL_RETRY: Duration = Duration::from_millis(100);

/// A connection as it came.
#[derive(Debug)]
pub(super) struct Fresh {
    pub socket: OwnedFd,
    pub listener: Arc<str>,
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
            Received::Message { len, descriptor, swallowed } => {
                self.link.note_progress();
                Ok(self.handle(&buffer[..len], descriptor, swallowed))
            }
        }
    }

    fn handle(&mut self, bytes: &[u8], descriptor: Option<OwnedFd>, swallowed: bool) -> Taken {
        match ToWorker::decode(bytes) {
            Ok(ToWorker::Connection { listener }) => {
                if *self.listener != *listener {
                    self.listener = Arc::from(listener);
                }
                self.handle_connection(descriptor, swallowed)
            }
            Ok(ToWorker::Drain { deadline }) => {
                self.link.drain(Drain::told(now(), deadline));
                Taken::Over
            }
            Ok(ToWorker::Ping) => {
                self.link.say(&ToMaster::Room);
                Taken::Other
            }
            // From a newer master, which knows that older workers skip it.
            Ok(ToWorker::Unknown(_)) => Taken::Other,
            Err(malformed) => {
                self.complain(&malformed.to_string());
                if descriptor.is_some() || swallowed {
                    self.link.note_swallowed();
                }
                Taken::Other
            }
        }
    }

    fn handle_connection(&mut self, descriptor: Option<OwnedFd>, swallowed: bool) -> Taken {
        let Some(socket) = descriptor else {
            self.link.note_swallowed();
            if swallowed {
                self.high = true;
                tell!("a connection was lost, this worker's descriptor table is full");
            } else {
                self.complain("a connection without a descriptor");
            }
            return Taken::Other;
        };
        self.high = u64::try_from(number_of(&socket)).is_ok_and(|number| number >= self.watermark);
        let held = self.link.hold();
        Taken::Connection(Fresh { socket, listener: Arc::clone(&self.listener), held })
    }

    fn has_spare(&self) -> bool {
        self.link.channel().as_fd().try_clone_to_owned().is_ok()
    }

    fn complain(&mut self, what: &str) {
        if !self.complained {
            self.complained = true;
            tell!("skipped {what} from the master; further ones go unmentioned");
        }
    }
}

/// A worker's clock. The mind of the master is the one that knows none.
#[expect(clippy::disallowed_methods, reason = "the worker waits by its own clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}
