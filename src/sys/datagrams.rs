//! UDP sockets, bound.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::sockopt::ReusePort;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket,
};

/// A UDP socket, non-blocking and close-on-exec, which shares its port with others of the same user
/// that were bound in this way.
///
/// # Errors
/// Those of `socket(2)` and `bind(2)`.
pub fn bind_datagrams(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Datagram, flags, None)?;
    // Not SO_REUSEADDR: with that, any user could share the port.
    if address.port() != 0 {
        setsockopt(&socket, ReusePort, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
}
