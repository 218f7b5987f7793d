//! The socket pair between the master and one native worker.
//!
//! SOCK_SEQPACKET keeps message boundaries, reports the end, and its queue survives in the kernel
//! as long as anybody holds the reading end. **The kernel's queue is the ledger**: the master keeps
//! a duplicate of the worker's end, and what the worker has not received can be read back from it
//! and given to others. (With the duplicate held there is no end-of-file when the worker dies; the
//! master learns of death from the pidfd alone.)

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

pub use crate::sys::ancillary::Received;
use crate::sys::ancillary::{receive, send, send_with};

/// Makes a pair: the master's end and the worker's end, both close-on-exec.
///
/// # Errors
/// When the system has no descriptors left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A duplicate of either end, as an [`End`].
///
/// # Errors
/// When this process has no descriptors left.
pub fn duplicate(end: &impl AsFd) -> io::Result<End> {
    Ok(End(end.as_fd().try_clone_to_owned()?))
}

/// An end of a channel that reads messages and sends plain ones. Never blocks.
#[derive(Debug)]
pub struct End(OwnedFd);

impl End {
    /// Wraps an end of a pair.
    #[must_use]
    pub fn new(socket: OwnedFd) -> End {
        End(socket)
    }

    /// Receives the next message into `buffer`.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`; an empty channel and a closed one are no errors.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        receive(self.0.as_fd(), buffer)
    }

    /// Sends a message that carries no descriptor.
    ///
    /// # Errors
    /// `WouldBlock` when the other side does not read, else those of `send(2)`.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        send(self.0.as_fd(), message)
    }

    /// Sends a message with copies of one or two descriptors.
    ///
    /// # Errors
    /// Those of `sendmsg(2)`: `WouldBlock` when the other side does not read, `ETOOMANYREFS` when
    /// this user has too many descriptors in flight.
    pub fn send_with(
        &self,
        message: &[u8],
        descriptor: BorrowedFd<'_>,
        second: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        send_with(self.0.as_fd(), message, descriptor, second)
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
