//! The way to the service manager: what it is told arrives in order, or later.
//!
//! A manager that does not read must not stop the loop that dispatches: its socket is never waited
//! for. What cannot be sent now is kept in order and sent later; a descriptor that goes with it is
//! duplicated then, so that its owner may close it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::socket::{UnixAddr, connect};
use nix::unistd::pipe2;

use crate::sys::ancillary::send_to;
use crate::sys::socket::{wait_readable, wait_writable};

/// How long a manager that does not read is left alone.
const RETRY: Duration = Duration::from_millis(200);
/// Messages that are kept for it; beyond that the oldest go. Enough for the log pipes of a few
/// thousand workers.
const KEPT_MAX: usize = 8192;

/// How long the last messages may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Messages to the service manager.
#[derive(Debug)]
pub(crate) struct Outbox {
    socket: UnixDatagram,
    address: UnixAddr,
    pub(super) kept: VecDeque<Message>,
    retry_at: Option<Instant>,
    failure: Option<String>,
    has_complained: bool,
}

#[derive(Debug)]
pub(super) struct Message {
    pub(super) text: String,
    pub(super) descriptor: Option<OwnedFd>,
}

impl Outbox {
    /// A way to the manager that listens at `name`, as NOTIFY_SOCKET has it.
    ///
    /// # Errors
    /// When that is no address, or no socket can be had.
    pub(crate) fn new(name: &OsStr) -> io::Result<Outbox> {
        let socket = UnixDatagram::unbound()?;
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => UnixAddr::new_abstract(name)?,
            None => UnixAddr::new(name)?,
        };
        let (kept, retry_at, failure) = (VecDeque::new(), None, None);
        Ok(Outbox { socket, address, kept, retry_at, failure, has_complained: false })
    }

    /// Sends a message after all that were posted before.
    pub(crate) fn post(&mut self, text: String, descriptor: Option<BorrowedFd<'_>>, now: Instant) {
        if self.kept.is_empty() {
            match self.send(&text, descriptor) {
                Ok(()) => return,
                Err(error) => self.wait(&error, now),
            }
        }
        let descriptor = match descriptor.map(|it| it.try_clone_to_owned()).transpose() {
            Ok(descriptor) => descriptor,
            Err(error) => {
                self.failure =
                    Some(format!("a descriptor cannot be kept for the service manager: {error}"));
                return;
            }
        };
        self.kept.push_back(Message { text, descriptor });
        if self.kept.len() > KEPT_MAX {
            self.kept.pop_front();
        }
    }

    /// Sends a message that is worth nothing later: now or never.
    pub(crate) fn post_now(&self, text: &str) {
        let _ = self.send(text, None);
    }

    /// Forgets kept messages that begin like this: a newer one says more.
    pub(crate) fn forget(&mut self, beginning: &str) {
        self.kept.retain(|message| !message.text.starts_with(beginning));
    }

    /// When what is kept is tried again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tries again what is kept, if it is time.
    pub(crate) fn retry(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.flush(now);
        }
    }

    /// Tries again what is kept.
    pub(crate) fn flush(&mut self, now: Instant) {
        self.retry_at = None;
        while let Some(message) = self.kept.front() {
            let descriptor = message.descriptor.as_ref().map(AsFd::as_fd);
            if let Err(error) = self.send(&message.text, descriptor) {
                return self.wait(&error, now);
            }
            self.kept.pop_front();
        }
    }

    /// Tries again what is kept, for the last time.
    pub(crate) fn flush_now(&mut self) {
        while let Some(message) = self.kept.pop_front() {
            let descriptor = message.descriptor.as_ref().map(AsFd::as_fd);
            let _ = self.send(&message.text, descriptor);
        }
    }

    /// Waits until everything was read: a second for what is kept, a second for the reading. The
    /// manager closes what comes with BARRIER=1 once it has read all that came before.
    pub(crate) fn finish(&mut self) {
        // Only a connected socket tells when the other's queue has room.
        if connect(self.socket.as_raw_fd(), &self.address).is_err() {
            return;
        }
        let end = clock() + LAST_WORDS;
        loop {
            let now = clock();
            self.flush(now);
            let left = end.saturating_duration_since(now);
            if self.kept.is_empty() || left.is_zero() {
                break;
            }
            if wait_writable(self.socket.as_fd(), Some(left)).is_err() {
                break;
            }
        }
        let Ok((ours, theirs)) = pipe2(OFlag::O_CLOEXEC) else { return };
        if self.kept.is_empty() && self.send("BARRIER=1", Some(theirs.as_fd())).is_ok() {
            drop(theirs);
            // Nothing is ever written: readable means closed.
            let _ = wait_readable(&[ours.as_fd()], Some(LAST_WORDS));
        }
    }

    /// Why a message could not be sent, once.
    pub(crate) fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    fn wait(&mut self, error: &io::Error, now: Instant) {
        self.retry_at = Some(now + RETRY);
        if !std::mem::replace(&mut self.has_complained, true) {
            self.failure = Some(format!("the service manager cannot be notified for now: {error}"));
        }
    }

    fn send(&self, text: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        send_to(self.socket.as_fd(), &self.address, text.as_bytes(), descriptor)
    }
}

/// The time where no loop turns: before the start and at the end.
#[expect(clippy::disallowed_methods, reason = "there is no loop that has read it")]
pub(crate) fn clock() -> Instant {
    Instant::now()
}
