//! Where a child's output can go: a pipe that we read, or a stream socket.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::pipe2;

/// A pipe: the end that we read, which never waits, and the end that a child writes, which does.
/// Processes of other users may open the latter by its name, `/dev/stderr`, if they have it.
///
/// # Errors
/// When the system has no descriptors left.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    never_wait(&read)?;
    fchmod(&write, Mode::from_bits_truncate(0o622))?;
    Ok((read, write))
}

/// Reading it fails where it would wait. Others that hold its other end are not concerned.
///
/// # Errors
/// Those of `fcntl(2)`.
pub fn never_wait(descriptor: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(descriptor, FcntlArg::F_GETFL)?);
    fcntl(descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Connects to a Unix stream socket, unless that would wait: for a listener whose queue is full.
///
/// # Errors
/// `WouldBlock` then, else those of `connect(2)`.
pub fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn reading_a_pipe_never_waits_and_writing_it_does() {
        let (read, write) = pipe().unwrap();
        let flags = |end: &OwnedFd| OFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFL).unwrap());
        assert!(flags(&read).contains(OFlag::O_NONBLOCK));
        assert!(!flags(&write).contains(OFlag::O_NONBLOCK));
        let mut read = File::from(read);
        assert_eq!(read.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let name = format!("/proc/self/fd/{}", write.as_raw_fd());
        let mut again = std::fs::OpenOptions::new().write(true).open(name).unwrap();
        drop(write);
        again.write_all(b"x").unwrap();
        drop(again);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn a_full_listener_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert_eq!(connect_now(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        // The smallest queue there is.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect_now(&path) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100, "the queue has no end");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
