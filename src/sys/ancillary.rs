//! A message with at most three descriptors, over a SOCK_SEQPACKET socket.
//!
//! Receiving is written by hand: nix's `cmsgs()` refuses a truncated control message and leaks the
//! descriptors that did arrive, and sendfd neither sets close-on-exec nor reports truncation. Here
//! what arrived is owned, what was swallowed is counted, and every descriptor is close-on-exec.

use std::io;
use std::mem;
#[cfg(any(test, feature = "daemon"))]
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;

/// Descriptors that one message may carry. More are closed on arrival and counted as surplus.
const DESCRIPTORS_MAX: usize = 4;

/// What one receive brought.
#[derive(Debug)]
pub enum Received {
    /// A message of `len` bytes, written to the front of the buffer.
    Message {
        /// Bytes in the buffer.
        len: usize,
        /// The first descriptor that came along.
        descriptor: Option<OwnedFd>,
        /// The second one.
        second: Option<OwnedFd>,
        /// The third one. Any further ones are closed.
        third: Option<OwnedFd>,
        /// The kernel swallowed descriptors because this process' table is full.
        swallowed: bool,
    },
    /// Nothing there now.
    Empty,
    /// All who held the other end are gone, and everything they sent has been read.
    Closed,
}

/// Control messages must be aligned like their header.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Receives one message without blocking.
///
/// A reset by a peer that died with unread messages is skipped: what it sent before is still
/// queued behind it (`ECONNRESET` comes first, then the messages, then the end).
///
/// # Errors
/// Any error of `recvmsg(2)` other than would-block, interruption and reset.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    receive_with(socket, buffer, 0)
}

/// Looks at the first message without taking it, with copies of its descriptors. What is swallowed
/// is only missing from the copies.
///
/// # Errors
/// As [`receive`].
#[cfg(feature = "daemon")]
pub fn look(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    receive_with(socket, buffer, libc::MSG_PEEK)
}

/// Takes the first message and closes what came with it. It needs no free descriptor.
///
/// # Errors
/// As [`receive`]; `WouldBlock` when nothing is there.
#[cfg(feature = "daemon")]
pub fn skip(socket: BorrowedFd<'_>) -> io::Result<()> {
    use nix::errno::Errno;
    use nix::sys::socket::{MsgFlags, recv};
    loop {
        match recv(socket.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn receive_with(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: i32) -> io::Result<Received> {
    loop {
        match receive_once(socket, buffer, flags) {
            Ok(received) => return Ok(received),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(Received::Empty),
                Some(libc::EINTR | libc::ECONNRESET) => {}
                _ => return Err(error),
            },
        }
    }
}

fn receive_once(socket: BorrowedFd<'_>, buffer: &mut [u8], asked: i32) -> io::Result<Received> {
    let Raw { count, descriptors, flags, .. } = receive_raw(socket, buffer, asked)?;
    let mut descriptors = descriptors.into_iter();
    let (descriptor, second, third) = (descriptors.next(), descriptors.next(), descriptors.next());
    let swallowed = flags & libc::MSG_CTRUNC != 0;
    if count == 0 && descriptor.is_none() && !swallowed {
        return Ok(Received::Closed);
    }
    Ok(Received::Message { len: count, descriptor, second, third, swallowed })
}

/// What `recvmsg(2)` brought.
pub(super) struct Raw {
    pub(super) count: usize,
    descriptors: Vec<OwnedFd>,
    #[cfg_attr(not(feature = "daemon"), expect(dead_code, reason = "only the master asks"))]
    pub(super) sender: Option<u32>,
    pub(super) flags: libc::c_int,
}

pub(super) fn receive_raw(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    asked: i32,
) -> io::Result<Raw> {
    let mut control = Control([0; 64]);
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: an all-zero msghdr is a valid one.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE only computes.
    let rights = unsafe { libc::CMSG_SPACE((DESCRIPTORS_MAX * mem::size_of::<i32>()) as u32) };
    // SAFETY: as above.
    let names = unsafe { libc::CMSG_SPACE(mem::size_of::<libc::ucred>() as u32) };
    header.msg_controllen = ((rights + names) as usize).min(control.0.len()) as _;
    // SAFETY: the header points to a live buffer and a live, aligned control area of the lengths
    // given, both of which outlive the call.
    let count = unsafe {
        libc::recvmsg(
            socket.as_raw_fd(),
            &raw mut header,
            libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | asked,
        )
    };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    let (descriptors, sender) = adopt(&header);
    Ok(Raw { count: count as usize, descriptors, sender, flags: header.msg_flags })
}

/// Takes ownership of every descriptor in the control area, so that none can leak; and reads who sent
/// the message, where that is said.
fn adopt(header: &libc::msghdr) -> (Vec<OwnedFd>, Option<u32>) {
    let (mut descriptors, mut sender) = (Vec::new(), None);
    // SAFETY: the header and its control area are as the kernel left them; CMSG_* walk them within
    // msg_controllen.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: not null, so it points to a complete control message header.
        let (level, kind, length) =
            unsafe { ((*message).cmsg_level, (*message).cmsg_type, (*message).cmsg_len as usize) };
        // SAFETY: CMSG_LEN only computes; CMSG_DATA stays within the message.
        let (start, data) = unsafe { (libc::CMSG_LEN(0) as usize, libc::CMSG_DATA(message)) };
        let length = length.saturating_sub(start);
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            let data = data.cast::<i32>();
            for index in 0..length / mem::size_of::<i32>() {
                // SAFETY: the kernel wrote that many descriptors, each new and ours alone.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(data.add(index).read_unaligned()) });
            }
        }
        let is_whole = length >= mem::size_of::<libc::ucred>();
        if level == libc::SOL_SOCKET && kind == libc::SCM_CREDENTIALS && is_whole {
            // SAFETY: the kernel wrote a whole `ucred` there.
            let credentials = unsafe { data.cast::<libc::ucred>().read_unaligned() };
            sender = u32::try_from(credentials.pid).ok();
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    (descriptors, sender)
}

/// Sends one message without blocking and without SIGPIPE.
///
/// # Errors
/// Those of `send(2)`; `WouldBlock` when the queue is full.
pub fn send(socket: BorrowedFd<'_>, message: &[u8]) -> io::Result<()> {
    use nix::sys::socket::{MsgFlags, send};
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match send(socket.as_raw_fd(), message, flags) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends one message with copies of one or two descriptors, without blocking and without SIGPIPE.
///
/// # Errors
/// Those of `sendmsg(2)`: `WouldBlock` when the queue is full, `ETOOMANYREFS` when this user has
/// too many descriptors in flight.
pub fn send_with(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptor: BorrowedFd<'_>,
    second: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    send_all(socket, message, &numbers(descriptor, second))
}

/// Sends one message with copies of three descriptors, without blocking and without SIGPIPE.
///
/// # Errors
/// As [`send_with`].
pub fn send_three(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptors: [BorrowedFd<'_>; 3],
) -> io::Result<()> {
    send_all(socket, message, &descriptors.map(|it| it.as_raw_fd()))
}

fn send_all(socket: BorrowedFd<'_>, message: &[u8], numbers: &[i32]) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let slices = [io::IoSlice::new(message)];
    let control = [ControlMessage::ScmRights(numbers)];
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &slices, &control, flags, None) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends the beginning of `bytes` into a stream, as much as there is room for, with a copy of
/// `descriptor` if there is one, without blocking and without SIGPIPE. The bytes that were sent.
///
/// # Errors
/// As [`send_with`]; `EPIPE` when the other end is closed. Nothing was sent then.
#[cfg(feature = "daemon")]
pub fn send_part(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let numbers: Vec<i32> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights = if numbers.is_empty() { &rights[..0] } else { &rights[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let parts = [io::IoSlice::new(bytes)];
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &parts, rights, flags, None) {
            Ok(count) => return Ok(count),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends one datagram, with a copy of `descriptor` if there is one, without blocking and without
/// SIGPIPE.
///
/// # Errors
/// Those of `sendmsg(2)`; `WouldBlock` when the queue is full, `ECONNREFUSED` or `ENOENT` when
/// nobody listens.
#[cfg(feature = "daemon")]
pub fn send_to(
    socket: BorrowedFd<'_>,
    to: &nix::sys::socket::UnixAddr,
    message: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let descriptors: Vec<i32> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let rights = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let parts = [io::IoSlice::new(message)];
    loop {
        match sendmsg(socket.as_raw_fd(), &parts, rights, flags, Some(to)) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn numbers(descriptor: BorrowedFd<'_>, second: Option<BorrowedFd<'_>>) -> Vec<i32> {
    [Some(descriptor), second].into_iter().flatten().map(|it| it.as_raw_fd()).collect()
}

/// The master's end of a channel, through which descriptors are sent.
///
/// sendfd offers no flags, so the socket itself is non-blocking; Rust programs ignore SIGPIPE.
#[cfg(feature = "daemon")]
#[derive(Debug)]
pub struct Sender(std::os::unix::net::UnixDatagram);

#[cfg(feature = "daemon")]
impl Sender {
    /// Wraps one end of a socket pair.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn new(socket: OwnedFd) -> io::Result<Sender> {
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Sender(socket))
    }

    /// Sends `message` with a copy of `descriptor`, and of `second` if there is one.
    ///
    /// # Errors
    /// Those of `sendmsg(2)`: `EAGAIN` when the queue is full, `ETOOMANYREFS` when this user has
    /// too many descriptors in flight.
    pub fn send(
        &self,
        message: &[u8],
        descriptor: BorrowedFd<'_>,
        second: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        use sendfd::SendWithFd;
        let first = descriptor.as_raw_fd();
        let numbers = second.map_or([first; 2], |second| [first, second.as_raw_fd()]);
        let numbers = &numbers[..1 + usize::from(second.is_some())];
        loop {
            match self.0.send_with_fd(message, numbers) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(feature = "daemon")]
impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes over a descriptor whose number stands in the environment variable `name`.
///
/// It is made close-on-exec. The variable is not removed: changing the environment is not safe
/// once threads run; a second call would take the descriptor twice, so the caller guards that.
///
/// # Errors
/// `NotFound` without the variable, `InvalidData` when it names no open descriptor.
pub fn take_from_env(name: &str) -> io::Result<OwnedFd> {
    let text = std::env::var(name)
        .map_err(|_| io::Error::new(io::ErrorKind::NotFound, format!("{name} is not set")))?;
    let wrong =
        |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{name}={text} {why}"));
    let number: i32 = text.parse().map_err(|_| wrong("is not a descriptor number"))?;
    if number < 3 {
        return Err(wrong("is not a descriptor that was handed over"));
    }
    take_over(number).map_err(|_| wrong("is not open"))
}

/// Takes over a descriptor that this process was started with, by its number; the caller takes
/// each only once. It is made close-on-exec.
///
/// # Errors
/// `EBADF` when it is not open.
pub fn take_over(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on a number that may be closed only fails.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open, and handed to this process by its parent for this purpose; nobody else in this
    // process knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The number of a descriptor, for a log line or an environment variable.
#[must_use]
pub fn number_of(descriptor: &impl AsRawFd) -> i32 {
    descriptor.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn an_empty_socket_and_a_closed_one_are_told_apart() {
        let (a, b) = pair();
        let mut buffer = [0; 16];
        assert!(matches!(receive(a.as_fd(), &mut buffer).unwrap(), Received::Empty));
        drop(b);
        assert!(matches!(receive(a.as_fd(), &mut buffer).unwrap(), Received::Closed));
    }

    #[test]
    fn what_a_dead_peer_sent_is_read_before_the_end() {
        let (a, b) = pair();
        send(b.as_fd(), b"first").unwrap();
        send(a.as_fd(), b"never read by b").unwrap();
        drop(b);
        let mut buffer = [0; 16];
        match receive(a.as_fd(), &mut buffer).unwrap() {
            Received::Message { len, .. } => assert_eq!(&buffer[..len], b"first"),
            other @ (Received::Empty | Received::Closed) => panic!("{other:?}"),
        }
        assert!(matches!(receive(a.as_fd(), &mut buffer).unwrap(), Received::Closed));
    }

    #[cfg(feature = "daemon")]
    #[test]
    fn what_is_looked_at_stays_and_what_is_skipped_is_closed() {
        let (a, b) = pair();
        let (read, write) = nix::unistd::pipe().unwrap();
        let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_ino;
        let expected = inode(&write);
        send_with(a.as_fd(), b"first", write.as_fd(), None).unwrap();
        send(a.as_fd(), b"second").unwrap();
        drop(write);
        let mut buffer = [0; 16];
        for _ in 0..2 {
            match look(b.as_fd(), &mut buffer).unwrap() {
                Received::Message { len: 5, descriptor: Some(copy), second: None, .. } => {
                    assert_eq!((&buffer[..5], inode(&copy)), (b"first".as_slice(), expected));
                    let flags = nix::fcntl::fcntl(&copy, nix::fcntl::FcntlArg::F_GETFD).unwrap();
                    assert_eq!(flags, libc::FD_CLOEXEC);
                }
                other @ (Received::Message { .. } | Received::Empty | Received::Closed) => {
                    panic!("{other:?}")
                }
            }
        }
        skip(b.as_fd()).unwrap();
        let mut byte = [0];
        assert_eq!(nix::unistd::read(&read, &mut byte), Ok(0), "nobody holds its other end");
        let second = look(b.as_fd(), &mut buffer).unwrap();
        assert!(matches!(second, Received::Message { len: 6, descriptor: None, .. }), "{second:?}");
        skip(b.as_fd()).unwrap();
        assert_eq!(skip(b.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[cfg(feature = "daemon")]
    #[test]
    fn a_descriptor_arrives_close_on_exec() {
        use nix::fcntl::{FcntlArg, FdFlag, fcntl};
        let (a, b) = pair();
        let sender = Sender::new(a).unwrap();
        let (gift, _other) = pair();
        sender.send(b"x", gift.as_fd(), None).unwrap();
        let mut buffer = [0; 16];
        match receive(b.as_fd(), &mut buffer).unwrap() {
            Received::Message { len: 1, descriptor: Some(fd), second: None, .. } => {
                let flags = FdFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFD).unwrap());
                assert!(flags.contains(FdFlag::FD_CLOEXEC));
            }
            other @ (Received::Message { .. } | Received::Empty | Received::Closed) => {
                panic!("{other:?}")
            }
        }
    }

    #[cfg(feature = "daemon")]
    #[test]
    fn descriptors_arrive_in_order_and_a_fourth_is_closed() {
        let (a, b) = pair();
        let [one, two, three] = [0, 1, 2].map(|size| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(size).unwrap();
            file
        });
        let (four, left) = nix::unistd::pipe().unwrap();
        let size = |fd: OwnedFd| std::fs::File::from(fd).metadata().unwrap().len();
        let both = |received: Received| match received {
            Received::Message { descriptor: Some(first), second: Some(second), .. } => {
                assert_eq!((size(first), size(second)), (0, 1));
            }
            other @ (Received::Message { .. } | Received::Empty | Received::Closed) => {
                panic!("{other:?}")
            }
        };
        let mut buffer = [0; 16];
        send_with(a.as_fd(), b"x", one.as_fd(), Some(two.as_fd())).unwrap();
        both(receive(b.as_fd(), &mut buffer).unwrap());
        let sender = Sender::new(a.try_clone().unwrap()).unwrap();
        sender.send(b"x", one.as_fd(), Some(two.as_fd())).unwrap();
        both(receive(b.as_fd(), &mut buffer).unwrap());
        send_three(a.as_fd(), b"x", [one.as_fd(), two.as_fd(), three.as_fd()]).unwrap();
        match receive(b.as_fd(), &mut buffer).unwrap() {
            Received::Message { second: Some(second), third: Some(third), .. } => {
                assert_eq!((size(second), size(third)), (1, 2));
            }
            other @ (Received::Message { .. } | Received::Empty | Received::Closed) => {
                panic!("{other:?}")
            }
        }
        // Four, of which nobody asked for the last.
        let numbers = [one.as_raw_fd(), two.as_raw_fd(), three.as_raw_fd(), left.as_raw_fd()];
        sendfd::SendWithFd::send_with_fd(&sender.0, b"x", &numbers).unwrap();
        drop(left);
        both(receive(b.as_fd(), &mut buffer).unwrap());
        assert_eq!(
            std::io::read_to_string(std::fs::File::from(four)).unwrap(),
            "",
            "nobody holds its other end"
        );
    }
}
