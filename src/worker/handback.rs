//! Gives a live connection back to the master, for another worker.
//!
//! Only after a DRAIN that offers it, since an older master would close what it does not know, and
//! a master that stops has nobody to give it to. A queue that is full is waited for; when it stays
//! full until the drain's deadline is near, or the channel is broken, the connection stays here.
//! Nothing is ever given away that did not arrive in the queue.
//!
//! The order matters: the message is sent, then DRAINED may be said. So the master has everything
//! before it hears that nothing follows. A connection that was handed back does not count as
//! finished: the message itself is the count.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::held::Held;
use super::link::Link;
use super::taker::now;
use crate::sys::leftover;
use crate::sys::socket::wait_writable;
use crate::wire::message::{LEFTOVER_MAX, ToMaster};

/// How soon it is tried again while this user has too many descriptors in flight: nothing tells.
const IN_FLIGHT_RETRY: Duration = Duration::from_millis(2);

/// A connection that could not be handed back, and is to be served on, and why.
#[derive(Debug)]
pub struct Kept<C> {
    /// As it was. Nothing was lost.
    pub connection: C,
    /// `Unsupported`: the worker is not draining, or the master takes nothing back. `InvalidInput`:
    /// more leftover than 1 MiB. Else what the system said.
    pub why: io::Error,
}

/// What a previous owner left over, as far as it is not read yet. Several threads may read.
#[derive(Debug)]
pub(super) struct Leftover {
    bytes: Mutex<Vec<u8>>,
    /// Looked at before every read, hence without the lock.
    is_there: AtomicBool,
}

impl Leftover {
    pub fn new(bytes: Vec<u8>) -> Leftover {
        Leftover { is_there: AtomicBool::new(!bytes.is_empty()), bytes: Mutex::new(bytes) }
    }

    pub fn is_there(&self) -> bool {
        self.is_there.load(Acquire)
    }

    /// `None`: there is none.
    pub fn read(&self, buffer: &mut [u8]) -> Option<usize> {
        if !self.is_there() {
            return None;
        }
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes.is_empty() {
            // Another thread has just read the rest.
            return None;
        }
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        bytes.drain(..count);
        self.is_there.store(!bytes.is_empty(), Release);
        Some(count)
    }

    /// All that is left.
    pub fn take(&mut self) -> Vec<u8> {
        *self.is_there.get_mut() = false;
        std::mem::take(self.bytes.get_mut().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A message that is ready to be sent.
pub(super) struct Parcel {
    message: Vec<u8>,
    leftover: Option<OwnedFd>,
}

/// What an attempt to send came to.
enum Sent {
    Done,
    /// The queue is full: when it can be written again.
    Full,
    /// Too many descriptors are in flight: in a while.
    InFlight,
}

impl Parcel {
    pub fn new(held: &Held, listener: &str, leftover: &[u8]) -> io::Result<Parcel> {
        let length = u32::try_from(leftover.len()).unwrap_or(u32::MAX);
        if length > LEFTOVER_MAX {
            let text = format!("{length} bytes left over are more than {LEFTOVER_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let packed = if length > 0 { Some(leftover::pack(leftover)?) } else { None };
        let listener = listener.to_owned();
        let (past, entry) = (held.past(length), held.mark().index());
        let message = ToMaster::Handback { listener, past, entry }.encode();
        Ok(Parcel { message, leftover: packed })
    }

    fn send(&self, link: &Link, socket: BorrowedFd<'_>) -> io::Result<Sent> {
        let leftover = self.leftover.as_ref().map(AsFd::as_fd);
        match link.channel().send_with(&self.message, socket, leftover) {
            Ok(()) => {
                link.note_handed_back();
                Ok(Sent::Done)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Sent::Full),
            Err(error) if error.raw_os_error() == Some(Errno::ETOOMANYREFS as i32) => {
                Ok(Sent::InFlight)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends it, waiting as long as the drain allows.
    pub fn give(&self, link: &Link, socket: BorrowedFd<'_>) -> io::Result<()> {
        let until = offer(link)?;
        loop {
            let sent = self.send(link, socket)?;
            let left = until.map(|until| until.saturating_duration_since(now()));
            match sent {
                Sent::Done => return Ok(()),
                Sent::Full | Sent::InFlight if left == Some(Duration::ZERO) => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Sent::Full => wait_writable(link.channel().as_fd(), left)?,
                Sent::InFlight => link.wait_change(IN_FLIGHT_RETRY),
            }
        }
    }

    /// The same without a thread, one after the other: a full queue would wake all who wait.
    #[cfg(feature = "tokio")]
    pub async fn give_async(&self, link: &Link, socket: BorrowedFd<'_>) -> io::Result<()> {
        use tokio::time::{sleep, timeout_at};

        let until = offer(link)?;
        let _turn = link.turn.lock().await;
        loop {
            let sent = self.send(link, socket)?;
            match sent {
                Sent::Done => return Ok(()),
                Sent::Full | Sent::InFlight if until.is_some_and(|until| until <= now()) => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Sent::Full => {
                    let channel = super::tokio::register(link)?;
                    match until {
                        None => channel.writable().await?,
                        // Whether it is over is looked at above.
                        Some(until) => drop(timeout_at(until.into(), channel.writable()).await),
                    }
                }
                Sent::InFlight => sleep(IN_FLIGHT_RETRY).await,
            }
        }
    }
}

/// Until when the master takes connections back; `None`: for ever.
fn offer(link: &Link) -> io::Result<Option<Instant>> {
    match link.drain_told() {
        Some(drain) if drain.handback => Ok(drain.silent_until),
        Some(_) | None => {
            let text = "the master takes no connections back now";
            Err(io::Error::new(io::ErrorKind::Unsupported, text))
        }
    }
}
