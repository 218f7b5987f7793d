//! What only TCP knows: how many bytes have been written to a socket since it was accepted, as the kernel
//! counted; and that nobody is to be accepted before his first byte.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::libc;

/// Where `tcpi_bytes_acked` lies in the kernel's `struct tcp_info` (Linux 4.1); the C library's
/// structure ends before it.
const BYTES_ACKED: usize = 120;

/// Bytes written, acknowledged by the peer or not. `None`: it is no TCP socket, or it moves too fast.
pub fn written(socket: BorrowedFd<'_>) -> Option<u64> {
    // The two numbers belong together when no acknowledgement came between the readings.
    for _ in 0..8 {
        let unacknowledged = queued(socket)?;
        let acknowledged = acknowledged(socket)?;
        if queued(socket)? == unacknowledged {
            return Some(acknowledged + unacknowledged);
        }
    }
    None
}

fn acknowledged(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut info = [0_u8; 256];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is that long, and says how
    // many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    let word = info.get(BYTES_ACKED..BYTES_ACKED + 8)?;
    let is_there = result == 0 && length as usize >= BYTES_ACKED + 8;
    is_there.then(|| word.try_into().map(u64::from_ne_bytes).ok()).flatten()
}

/// Bytes that were written and not acknowledged.
fn queued(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: TIOCOUTQ writes one int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if result == 0 { u64::try_from(count).ok() } else { None }
}

/// For so long nobody is accepted from this listener who has sent nothing (TCP_DEFER_ACCEPT); zero: everybody
/// is. The kernel rounds up to 1, 3, 7, 15 … s, and accepts the silent ones afterwards.
///
/// # Errors
/// Those of `setsockopt(2)`: it is no TCP socket.
#[cfg(feature = "daemon")]
pub fn defer_accept(listener: BorrowedFd<'_>, time: Duration) -> io::Result<()> {
    let seconds = libc::c_int::try_from(time.as_secs()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the kernel reads one int.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// For how many seconds that is so now; see [`defer_accept`]. `None`: it is no TCP socket.
#[cfg(feature = "daemon")]
pub fn deferral(listener: BorrowedFd<'_>) -> Option<u32> {
    let mut seconds: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes one int.
    let result = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw mut seconds).cast(),
            &raw mut length,
        )
    };
    if result == 0 { u32::try_from(seconds).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn what_was_written_is_counted_whether_it_was_read_or_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert_eq!(written(server.as_fd()), Some(0));
        server.write_all(b"hello").unwrap();
        assert_eq!(written(server.as_fd()), Some(5));
        client.read_exact(&mut [0; 5]).unwrap();
        client.write_all(b"ab").unwrap();
        server.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(written(server.as_fd()), Some(5));
        // More than the client's window: what it does not read waits here.
        server.set_nonblocking(true).unwrap();
        let mut total = 5;
        while let Ok(count) = server.write(&[0; 65_536]) {
            total += count as u64;
            assert_eq!(written(server.as_fd()), Some(total));
        }
        client.shutdown(std::net::Shutdown::Write).unwrap();
        drop(client);
        assert!(server.read(&mut [0; 1]).is_ok());
        assert!(written(server.as_fd()).is_none_or(|count| count >= 5));
    }

    #[test]
    fn other_sockets_do_not_tell() {
        let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(written(unix.as_fd()), None);
    }
}
