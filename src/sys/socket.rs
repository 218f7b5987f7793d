//! What the standard library does not ask of a socket: of which family it is, whether something can
//! be read, and whether that is bytes or the end. And a socket that is closed for everybody.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr,
    connect, getpeername, getsockname, getsockopt, recv, shutdown, socket, sockopt,
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
    // One question is enough for most: TCP is a stream of these families.
    if protocol_of(socket) == Some(libc::IPPROTO_TCP) {
        return Ok(Family::Tcp);
    }
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

/// The protocol of a socket, as in `/etc/protocols` (socket(7), SO_PROTOCOL).
fn protocol_of(socket: BorrowedFd<'_>) -> Option<libc::c_int> {
    let mut protocol: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).ok()?;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PROTOCOL);
    // SAFETY: the descriptor is borrowed and therefore open; both pointers are to locals, of the length
    // that is said.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_mut(&mut protocol).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(protocol)
}

/// The address of the client of the socket with this number, as text: `127.0.0.1:4711`, a path, `@name`,
/// or `unix` where it has no name. `None`: it has gone, or this is no such socket.
#[must_use]
pub fn peer_of(number: i32) -> Option<String> {
    let name: SockaddrStorage = getpeername(number).ok()?;
    let Some(unix) = name.as_unix_addr() else {
        let is_tcp = name.as_sockaddr_in().is_some() || name.as_sockaddr_in6().is_some();
        return is_tcp.then(|| name.to_string());
    };
    Some(match (unix.path(), unix.as_abstract()) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(name)) => format!("@{}", String::from_utf8_lossy(name)),
        (None, None) => "unix".to_owned(),
    })
}

/// Whether it is a connected Unix socket for packets (SOCK_SEQPACKET), as the ends of a channel are.
#[cfg(feature = "daemon")]
#[must_use]
pub fn is_channel(socket: BorrowedFd<'_>) -> bool {
    let kind = getsockopt(&socket, sockopt::SockType);
    let listens = getsockopt(&socket, sockopt::AcceptConn);
    kind == Ok(SockType::SeqPacket) && listens == Ok(false)
}

/// By which a socket is known again, whoever holds it: its inode. 0: it cannot be told.
#[must_use]
pub fn identity_of(socket: BorrowedFd<'_>) -> u64 {
    nix::sys::stat::fstat(socket).map_or(0, |it| it.st_ino)
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

/// Waits until a read would find something, bytes or the end, exactly as the read would wait: as
/// long as the socket's own bound says, or not at all if it does not block.
///
/// # Errors
/// Those of `recv(2)`.
pub fn await_bytes(socket: BorrowedFd<'_>) -> io::Result<()> {
    recv(socket.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK)?;
    Ok(())
}

/// A socket that is shut down when it is closed, so that the client sees its end even if another
/// process holds the same socket; unless it was given away.
#[derive(Debug)]
pub struct Open<T: AsFd> {
    socket: T,
    /// To close it is enough, or all that may be done.
    is_only_closed: bool,
}

impl<T: AsFd> Open<T> {
    /// Takes charge of a socket.
    pub fn new(socket: T) -> Open<T> {
        Open { socket, is_only_closed: false }
    }

    /// One that no other process holds: to close it is enough.
    pub fn alone(socket: T) -> Open<T> {
        Open { socket, is_only_closed: true }
    }

    /// Another process has it now: closing it here must not end it.
    pub fn give_away(&mut self) {
        self.is_only_closed = true;
    }
}

impl<T: AsFd> Deref for Open<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.socket
    }
}

impl<T: AsFd> DerefMut for Open<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.socket
    }
}

impl<T: AsFd> Drop for Open<T> {
    fn drop(&mut self) {
        if !self.is_only_closed {
            // It fails when the client has ended it already.
            let _ = shutdown(self.socket.as_fd().as_raw_fd(), Shutdown::Both);
        }
    }
}

/// Connects to a SOCK_SEQPACKET socket, non-blocking and close-on-exec.
///
/// # Errors
/// Those of `socket(2)` and `connect(2)`: `NotFound` and `ConnectionRefused` when nobody listens,
/// `WouldBlock` when too many wait there.
pub fn connect_packets(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// Whether `source` can be read, or is at its end.
///
/// # Errors
/// Those of `poll(2)`.
pub fn is_readable(source: BorrowedFd<'_>) -> io::Result<bool> {
    let mut polled = [PollFd::new(source, PollFlags::POLLIN)];
    match poll(&mut polled, PollTimeout::ZERO) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Waits until one of `sources` can be read (or is at its end), `limit` has passed or a signal
/// came. Who cares which of these it was looks at the sources.
///
/// # Errors
/// Those of `poll(2)`.
pub fn wait_readable(sources: &[BorrowedFd<'_>], limit: Option<Duration>) -> io::Result<()> {
    wait(sources, PollFlags::POLLIN, limit)
}

/// Waits until `source` can be written, `limit` has passed or a signal came.
///
/// # Errors
/// Those of `poll(2)`.
pub fn wait_writable(source: BorrowedFd<'_>, limit: Option<Duration>) -> io::Result<()> {
    wait(&[source], PollFlags::POLLOUT, limit)
}

fn wait(sources: &[BorrowedFd<'_>], flags: PollFlags, limit: Option<Duration>) -> io::Result<()> {
    let mut polled: Vec<PollFd<'_>> =
        sources.iter().map(|&source| PollFd::new(source, flags)).collect();
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
