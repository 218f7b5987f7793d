//! Listening sockets: bind, check, close.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::socket::sockopt::{
    AcceptConn, Ipv6V6Only, PeerCredentials, ReuseAddr, SockType as TypeOf,
};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike,
    SockaddrStorage, UnixAddr, bind, connect, getpeername, getsockname, getsockopt, listen,
    setsockopt, shutdown, socket,
};

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    /// TCP, version 4 or 6.
    Tcp(SocketAddr),
    /// A path in the file system.
    Unix(PathBuf),
    /// A name without a file.
    Abstract(Vec<u8>),
    /// None of these.
    Other,
}

/// Binds and listens, non-blocking and close-on-exec, with the longest queue the kernel allows.
///
/// # Errors
/// Those of `socket(2)`, `bind(2)` and `listen(2)`.
pub fn listen_tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    match address {
        SocketAddr::V4(v4) => open(AddressFamily::Inet, &SockaddrIn::from(v4), |_| Ok(())),
        SocketAddr::V6(v6) => open(AddressFamily::Inet6, &SockaddrIn6::from(v6), |_| Ok(())),
    }
}

/// Listens on a port of every address, version 6 and 4; version 4 alone where 6 is missing.
///
/// # Errors
/// As [`listen_tcp`].
pub fn listen_port(port: u16) -> io::Result<OwnedFd> {
    let both = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
    let dual = |socket: &OwnedFd| Ok(setsockopt(socket, Ipv6V6Only, &false)?);
    match open(AddressFamily::Inet6, &both, dual) {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::ENOPROTOOPT)
            ) =>
        {
            let v4 = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
            open(AddressFamily::Inet, &v4, |_| Ok(()))
        }
        result => result,
    }
}

/// Listens on a path. A socket file that nobody listens on any more is replaced.
///
/// # Errors
/// As [`listen_tcp`]; `AddrInUse` when somebody listens, or when the path is something else.
pub fn listen_unix(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::FileTypeExt;
    let address = UnixAddr::new(path)?;
    match open(AddressFamily::Unix, &address, |_| Ok(())) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = path.symlink_metadata().is_ok_and(|m| m.file_type().is_socket());
            if !is_socket || is_listening(path) {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            open(AddressFamily::Unix, &address, |_| Ok(()))
        }
        result => result,
    }
}

/// Whether somebody listens on this socket file. Does not wait: a full queue is somebody, too.
pub fn is_listening(path: &Path) -> bool {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let Ok(address) = UnixAddr::new(path) else { return false };
    let Ok(socket) = socket(AddressFamily::Unix, SockType::Stream, flags, None) else {
        return true;
    };
    match connect(socket.as_raw_fd(), &address) {
        Err(error) => error != nix::errno::Errno::ECONNREFUSED,
        // A process that was killed while it started another: that one has a copy for a moment.
        Ok(()) => getsockopt(&socket, PeerCredentials).map_or(true, |peer| !is_gone(peer.pid())),
    }
}

/// Whether a process has ended.
fn is_gone(pid: i32) -> bool {
    use super::process::pidfd_of;
    use super::socket::is_readable;
    match pidfd_of(pid.unsigned_abs()) {
        Ok(pidfd) => is_readable(pidfd.as_fd()).unwrap_or(false),
        Err(error) => error.raw_os_error() == Some(libc::ESRCH),
    }
}

/// Listens on a name without a file.
///
/// # Errors
/// As [`listen_tcp`].
pub fn listen_abstract(name: &[u8]) -> io::Result<OwnedFd> {
    open(AddressFamily::Unix, &UnixAddr::new_abstract(name)?, |_| Ok(()))
}

fn open(
    family: AddressFamily,
    address: &dyn SockaddrLike,
    prepare: impl Fn(&OwnedFd) -> io::Result<()>,
) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    if family != AddressFamily::Unix {
        // So that a restart need not wait for old connections to be forgotten.
        setsockopt(&socket, ReuseAddr, &true)?;
    }
    prepare(&socket)?;
    bind(socket.as_raw_fd(), address)?;
    listen(&socket, Backlog::MAXALLOWABLE)?;
    Ok(socket)
}

/// Checks that an inherited socket is a listening stream socket. Whether it blocks is left as it is:
/// workers may be accepting there.
///
/// # Errors
/// `InvalidInput` with what it is instead; else those of the system calls.
pub fn check_listening(socket: &OwnedFd) -> io::Result<()> {
    let wrong = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    match getsockopt(socket, TypeOf) {
        Ok(SockType::Stream) => {}
        Ok(_) => return wrong("is not a stream socket; use ListenStream="),
        Err(_) => return wrong("is not a socket; use ListenStream="),
    }
    if !getsockopt(socket, AcceptConn)? {
        return wrong("is one client's connection, not a listening socket; set Accept=no");
    }
    Ok(())
}

/// Listens for packets (SOCK_SEQPACKET) on a path, which appears with its mode, and when everything
/// is ready: who finds it can connect. What is there is replaced.
///
/// # Errors
/// As [`listen_tcp`], and those of renaming.
pub fn listen_packets(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    use std::os::unix::fs::PermissionsExt;
    let mut draft = path.as_os_str().to_owned();
    draft.push("~");
    let draft = PathBuf::from(draft);
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(&draft)?)?;
    listen(&listener, Backlog::MAXALLOWABLE)?;
    std::fs::set_permissions(&draft, PermissionsExt::from_mode(mode))?;
    std::fs::rename(&draft, path)?;
    Ok(listener)
}

/// Checks that an inherited socket listens for packets, and makes it non-blocking.
///
/// # Errors
/// `InvalidInput` with what it is instead; else those of the system calls.
pub fn check_packets(socket: &OwnedFd) -> io::Result<()> {
    let wrong = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    match getsockopt(socket, TypeOf) {
        Ok(SockType::SeqPacket) => {}
        Ok(_) | Err(_) => return wrong("is no packet socket"),
    }
    if !getsockopt(socket, AcceptConn)? {
        return wrong("does not listen; set Accept=no");
    }
    set_blocking(socket.as_fd(), false)
}

/// Ends the listening itself, for every duplicate of the socket. Who waits there is reset. A TCP
/// address is free at once; a name of a Unix socket is free when the last duplicate is closed.
pub fn stop_listening(socket: &OwnedFd) {
    // It fails on what does not listen any more.
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
}

/// Lets nobody new connect to a TCP listener, while those who have connected can be accepted still:
/// closing it right after the last `accept` would reset who came in between. A newcomer's request
/// (SYN) is dropped, so that his system asks again a second later, and is refused then.
///
/// # Errors
/// Those of `setsockopt(2)`; the filter is that of `socket(7)`, SO_ATTACH_FILTER.
pub fn turn_newcomers_away(listener: BorrowedFd<'_>) -> io::Result<()> {
    const FLAGS: u32 = 13; // the offset of the flags in a TCP header (RFC 9293, section 3.1)
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let code = |bits: u32| u16::try_from(bits).unwrap_or_default();
    let (load, and) = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, libc::BPF_ALU | libc::BPF_AND);
    let (equal, give) = (libc::BPF_JMP | libc::BPF_JEQ, libc::BPF_RET);
    let step = |bits, k, jt, jf| libc::sock_filter { code: code(bits), jt, jf, k };
    let mut program = [
        step(load, FLAGS, 0, 0),
        step(and, SYN | ACK, 0, 0),
        step(equal, SYN, 0, 1),
        step(give, 0, 0, 0),
        step(give, u32::MAX, 0, 0),
    ];
    let filter = libc::sock_fprog { len: 5, filter: program.as_mut_ptr() };
    // SAFETY: the program outlives the call, which copies it; the length given is its own.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            u32::try_from(size_of::<libc::sock_fprog>()).unwrap_or_default(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the open file that `socket` refers to blocks.
///
/// # Errors
/// Those of `fcntl(2)`.
pub fn blocks(socket: BorrowedFd<'_>) -> io::Result<bool> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    Ok(!flags.contains(OFlag::O_NONBLOCK))
}

/// Sets or clears O_NONBLOCK on the open file that `socket` refers to, for everybody who has it.
///
/// # Errors
/// Those of `fcntl(2)`.
pub fn set_blocking(socket: BorrowedFd<'_>, blocks: bool) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let mut flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, !blocks);
    fcntl(socket, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// Where a socket listens.
#[must_use]
pub fn local(socket: BorrowedFd<'_>) -> Local {
    let Ok(address) = getsockname::<SockaddrStorage>(socket.as_raw_fd()) else {
        return Local::Other;
    };
    if let Some(v4) = address.as_sockaddr_in() {
        return Local::Tcp(SocketAddrV4::from(*v4).into());
    }
    if let Some(v6) = address.as_sockaddr_in6() {
        return Local::Tcp(SocketAddrV6::from(*v6).into());
    }
    match address.as_unix_addr() {
        Some(unix) => match (unix.path(), unix.as_abstract()) {
            (Some(path), _) => Local::Unix(path.to_owned()),
            (None, Some(name)) => Local::Abstract(name.to_owned()),
            (None, None) => Local::Other,
        },
        None => Local::Other,
    }
}

/// A number that stays the same for a client's address: its IP without the port. Clients of Unix
/// sockets have no address and share one.
#[must_use]
pub fn source_of(client: BorrowedFd<'_>) -> u64 {
    let address = getpeername::<SockaddrStorage>(client.as_raw_fd()).ok();
    let fold = |bytes: &[u8]| {
        // FNV-1a (Fowler, Noll, Vo), 64 bits.
        bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    };
    match address {
        Some(address) => match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => fold(&v4.ip().octets()),
            (None, Some(v6)) => fold(&v6.ip().octets()),
            (None, None) => 0,
        },
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    use super::super::accept::{Accepted, accept};
    use super::*;

    #[test]
    fn who_has_connected_is_accepted_and_who_comes_later_is_not() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = listen_tcp(address.parse().unwrap()) else {
                println!("LEFT OUT: there is no {address} here");
                continue;
            };
            let Local::Tcp(place) = local(listener.as_fd()) else { panic!("no TCP listener") };
            let mut early = TcpStream::connect(place).unwrap();
            turn_newcomers_away(listener.as_fd()).unwrap();
            early.write_all(b"hello").unwrap();
            let late = TcpStream::connect_timeout(&place, Duration::from_millis(300));
            assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut, "it is not even refused");
            let Ok(Accepted::Client(client)) = accept(listener.as_fd(), false) else {
                panic!("nobody")
            };
            assert!(matches!(accept(listener.as_fd(), false), Ok(Accepted::Nobody)));
            drop(listener);
            let mut client = TcpStream::from(client);
            client.set_nonblocking(false).unwrap();
            let mut heard = [0; 5];
            client.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"hello");
            assert!(TcpStream::connect(place).is_err());
        }
    }
}
