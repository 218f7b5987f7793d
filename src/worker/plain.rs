//! A client's socket that blocks: TCP or Unix, which are read and written alike.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::address::Address;
use super::taker::Origin;
use crate::sys::socket::{Family, Open, family_of};

#[derive(Debug)]
pub(super) enum Plain {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Plain {
    /// One from there. Closing it ends the connection, whoever else holds the socket.
    pub fn open(socket: OwnedFd, origin: Origin) -> io::Result<Open<Plain>> {
        let (family, blocks) = match origin {
            // The master accepts non-blocking sockets, and that travels with them.
            Origin::Master => (None, false),
            Origin::Here { family, blocks } => (family, blocks),
        };
        let plain = match family.map_or_else(|| family_of(socket.as_fd()), Ok)? {
            Family::Tcp => Plain::Tcp(TcpStream::from(socket)),
            Family::Unix => Plain::Unix(UnixStream::from(socket)),
        };
        match &plain {
            _ if blocks => {}
            Plain::Tcp(stream) => stream.set_nonblocking(false)?,
            Plain::Unix(stream) => stream.set_nonblocking(false)?,
        }
        Ok(match origin {
            Origin::Master => Open::new(plain),
            Origin::Here { .. } => Open::alone(plain),
        })
    }

    pub fn peer(&self) -> io::Result<Address> {
        match self {
            Plain::Tcp(stream) => stream.peer_addr().map(Address::Tcp),
            Plain::Unix(stream) => stream.peer_addr().map(|it| Address::of_unix(&it)),
        }
    }

    pub fn local(&self) -> io::Result<Address> {
        match self {
            Plain::Tcp(stream) => stream.local_addr().map(Address::Tcp),
            Plain::Unix(stream) => stream.local_addr().map(|it| Address::of_unix(&it)),
        }
    }

    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Plain::Tcp(stream) => stream.shutdown(how),
            Plain::Unix(stream) => stream.shutdown(how),
        }
    }

    pub fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Plain::Tcp(stream) => stream.set_read_timeout(limit),
            Plain::Unix(stream) => stream.set_read_timeout(limit),
        }
    }

    pub fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Plain::Tcp(stream) => stream.set_write_timeout(limit),
            Plain::Unix(stream) => stream.set_write_timeout(limit),
        }
    }

    pub fn read_timeout(&self) -> io::Result<Option<Duration>> {
        match self {
            Plain::Tcp(stream) => stream.read_timeout(),
            Plain::Unix(stream) => stream.read_timeout(),
        }
    }

    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Plain::Tcp(stream) => (&*stream).read(buffer),
            Plain::Unix(stream) => (&*stream).read(buffer),
        }
    }

    pub fn write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match (self, slices) {
            // send(2), which has less of a way to go than writev(2).
            (Plain::Tcp(stream), [bytes]) => (&*stream).write(bytes),
            (Plain::Unix(stream), [bytes]) => (&*stream).write(bytes),
            (Plain::Tcp(stream), _) => (&*stream).write_vectored(slices),
            (Plain::Unix(stream), _) => (&*stream).write_vectored(slices),
        }
    }
}

impl AsFd for Plain {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Plain::Tcp(stream) => stream.as_fd(),
            Plain::Unix(stream) => stream.as_fd(),
        }
    }
}
