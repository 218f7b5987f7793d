//! Questions to a socket that the standard library does not ask: of which family it is, whether
//! something can be read, and whether that is bytes or the end.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt,
    recv, sockopt,
};

/// The stream sockets that a client can come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// TCP over IPv4 or IPv6.
    Tcp,
    /// A Unix stream socket.
    Unix,
}

/// The family of a connected stream socket.
///
/// # Errors
/// `InvalidData` when it is no stream socket of these families, else those of the system calls.
pub fn family_of(socket: BorrowedFd<'_>) -> io::Result<Family> {
    let kind = getsockopt(&socket, sockopt::SockType)?;
    let name: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    match (kind, name.family()) {
        (SockType::Stream, Some(AddressFamily::Inet | AddressFamily::Inet6)) => Ok(Family::Tcp),
        (SockType::Stream, Some(AddressFamily::Unix)) => Ok(Family::Unix),
        _ => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "it is neither a TCP nor a Unix stream"))
        }
    }
}

/// What a read would find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peeked {
    /// At least one byte.
    Bytes,
    /// The peer has closed or reset it.
    End,
    /// It would wait.
    Nothing,
}

/// Looks at what a read would find, without taking it.
///
/// # Errors
/// Those of `recv(2)`; a reset counts as the end.
pub fn peek(socket: BorrowedFd<'_>) -> io::Result<Peeked> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(socket.as_raw_fd(), &mut [0], flags) {
        Ok(0) | Err(Errno::ECONNRESET | Errno::EPIPE) => Ok(Peeked::End),
        Ok(_) => Ok(Peeked::Bytes),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(Peeked::Nothing),
        Err(error) => Err(error.into()),
    }
}

/// Waits until something can be sent, or `limit` has passed. Whether it can.
#[cfg(feature = "daemon")]
pub fn wait_writable(socket: BorrowedFd<'_>, limit: Duration) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::POLLOUT)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    matches!(poll(&mut polled, limit), Ok(1))
}

/// Waits until one of `sources` can be read (or is at its end), `limit` has passed or a signal
/// came. Who cares which of these it was looks at the sources.
///
/// # Errors
/// Those of `poll(2)`.
pub fn wait_readable(sources: &[BorrowedFd<'_>], limit: Option<Duration>) -> io::Result<()> {
    let mut polled: Vec<PollFd<'_>> =
        sources.iter().map(|&source| PollFd::new(source, PollFlags::POLLIN)).collect();
    // Rounded up: a wait that ends early would spin until its deadline.
    let timeout = match limit {
        None => PollTimeout::NONE,
        Some(limit) => i32::try_from(limit.as_micros().div_ceil(1000))
            .ok()
            .and_then(|ms| PollTimeout::try_from(ms).ok())
            .unwrap_or(PollTimeout::MAX),
    };
    match poll(&mut polled, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
