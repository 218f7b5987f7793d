//! Datagrams whose senders are known: what sd_notify(3) speaks to.
//!
//! The kernel adds to each datagram who sent it (SCM_CREDENTIALS of unix(7)), because the receiver asks
//! for it before anybody can send. Descriptors that come along are closed, which is all that is asked of
//! a receiver who stores none: `BARRIER=1` waits for just that.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::libc;
use nix::sys::socket::sockopt::PassCred;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, setsockopt, socket};

use super::ancillary::{Raw, receive_raw};

/// A socket for datagrams, at a name without a file.
#[derive(Debug)]
pub struct Notices(OwnedFd);

/// A datagram that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The process that sent it. 0: it cannot be seen from here.
    pub sender: u32,
    /// What it says.
    pub bytes: Vec<u8>,
    /// It was longer than anything that is understood, and is cut off.
    pub is_cut: bool,
}

/// The longest datagram that is understood. Longer ones are cut off.
pub const NOTICE_MAX: usize = 4096;

impl Notices {
    /// Listens at the abstract name `name`.
    ///
    /// # Errors
    /// Those of the system calls; `AddrInUse` when somebody else has that name.
    pub fn bind(name: &str) -> io::Result<Notices> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        setsockopt(&socket, PassCred, &true)?;
        bind(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        Ok(Notices(socket))
    }

    /// One that an earlier image of this process has bound.
    #[must_use]
    pub fn resumed(socket: OwnedFd) -> Notices {
        Notices(socket)
    }

    /// One that nobody can send to, in place of one that cannot be had.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn mute() -> io::Result<Notices> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(Notices(socket(AddressFamily::Unix, SockType::Datagram, flags, None)?))
    }

    /// The next datagram, if there is one.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`.
    pub fn next(&self) -> io::Result<Option<Notice>> {
        let mut buffer = [0; NOTICE_MAX];
        let Some(received) = receive_from(self.0.as_fd(), &mut buffer)? else { return Ok(None) };
        let bytes = buffer[..received.length].to_vec();
        Ok(Some(Notice { sender: received.sender, bytes, is_cut: received.is_cut }))
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A datagram of [`receive_from`].
struct From {
    /// Bytes in the buffer.
    length: usize,
    /// The process that sent it. 0: it cannot be seen from here.
    sender: u32,
    /// The buffer was too small for it.
    is_cut: bool,
}

/// Receives one datagram without blocking, from a socket that asks for the senders (SO_PASSCRED).
/// Descriptors that come along are closed. `None`: nothing is there.
///
/// # Errors
/// Any error of `recvmsg(2)` other than would-block and interruption.
fn receive_from(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<From>> {
    loop {
        match receive_raw(socket, buffer, 0) {
            Ok(Raw { count, sender, flags, .. }) => {
                let is_cut = flags & libc::MSG_TRUNC != 0;
                return Ok(Some(From { length: count, sender: sender.unwrap_or(0), is_cut }));
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(None),
                Some(libc::EINTR) => {}
                _ => return Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;
    use crate::sys::ancillary::send_to;

    fn name(of: &str) -> String {
        format!("rcluster-notices-{of}-{}", std::process::id())
    }

    #[test]
    fn a_datagram_comes_with_its_sender_and_what_comes_along_is_closed() {
        let name = name("one");
        let notices = Notices::bind(&name).unwrap();
        assert_eq!(notices.next().unwrap(), None);
        let own = std::process::id();
        let socket = UnixDatagram::unbound().unwrap();
        let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        send_to(socket.as_fd(), &address, b"READY=1\n", Some(write.as_fd())).unwrap();
        drop(write);
        let notice = Notice { sender: own, bytes: b"READY=1\n".to_vec(), is_cut: false };
        assert_eq!(notices.next().unwrap(), Some(notice));
        // Nobody holds the other end of the pipe any more.
        assert_eq!(nix::unistd::read(&read, &mut [0]).unwrap(), 0);
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        socket.send_to_addr(b"", &address).unwrap();
        let empty = Notice { sender: own, bytes: Vec::new(), is_cut: false };
        assert_eq!(notices.next().unwrap(), Some(empty));
        socket.send_to_addr(&[b'x'; NOTICE_MAX + 1], &address).unwrap();
        let long = notices.next().unwrap().unwrap();
        assert!(long.is_cut && long.bytes.len() == NOTICE_MAX);
    }

    #[test]
    fn a_name_is_one_sockets_and_free_after_it() {
        let name = name("two");
        let first = Notices::bind(&name).unwrap();
        assert_eq!(Notices::bind(&name).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        drop(Notices::bind(&name).unwrap());
        assert_eq!(Notices::mute().unwrap().next().unwrap(), None);
    }
}
