//! Where a connection comes from and where it arrived: TCP and Unix alike.

use std::fmt;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr as UnixAddr;

/// An end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IPv4 or IPv6 address and its port.
    Tcp(SocketAddr),
    /// A Unix socket: its path, `@name` in the abstract namespace, or empty when it has no name,
    /// as clients usually have none.
    Unix(String),
}

impl Address {
    /// The TCP address, if it is one.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) => None,
        }
    }

    /// The TCP port, if it has one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.tcp().map(|address| address.port())
    }

    pub(super) fn of_unix(address: &UnixAddr) -> Address {
        Address::Unix(match (address.as_pathname(), address.as_abstract_name()) {
            (Some(path), _) => path.display().to_string(),
            (None, Some(name)) => format!("@{}", String::from_utf8_lossy(name)),
            (None, None) => String::new(),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(name) if name.is_empty() => f.write_str("unix"),
            Address::Unix(name) => f.write_str(name),
        }
    }
}
