//! Accepts clients.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;

/// What accepting brought.
#[derive(Debug)]
pub enum Accepted {
    /// A client, close-on-exec.
    Client(OwnedFd),
    /// Nobody waits.
    Nobody,
    /// This client is gone already; the next may be there.
    Gone,
    /// The process or the system has no descriptor or memory left.
    Exhausted(io::Error),
}

/// Accepts one client, whose socket blocks or not.
///
/// # Errors
/// Those of `accept4(2)` that say that the listener itself is unusable.
pub fn accept(listener: BorrowedFd<'_>, blocks: bool) -> io::Result<Accepted> {
    let flags = libc::SOCK_CLOEXEC | if blocks { 0 } else { libc::SOCK_NONBLOCK };
    // SAFETY: no address is asked for; the descriptor is borrowed and therefore open.
    let result = unsafe {
        libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags)
    };
    if result >= 0 {
        // SAFETY: new, and ours alone.
        return Ok(Accepted::Client(unsafe { OwnedFd::from_raw_fd(result) }));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Ok(Accepted::Nobody),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
            Ok(Accepted::Exhausted(error))
        }
        // accept(2): errors that are already pending on the new connection are passed on here.
        Some(
            libc::ECONNABORTED
            | libc::EINTR
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENONET,
        ) => Ok(Accepted::Gone),
        _ => Err(error),
    }
}
