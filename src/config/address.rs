//! Where a pool listens: the name of an inherited socket, or an address.
//!
//! A listen entry is first looked up among the names of the sockets that systemd passed on, so
//! [`Listen`] keeps its text as written; that it also reads as an [`Address`] matters only when no
//! socket has that name. What looks like an address and is none is refused here: nobody names a
//! socket `70000` or `localhost:80`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Component, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Mistake, quote};

/// Bytes in the path of a Unix socket: `sun_path` less its final zero.
const MOST_PATH: usize = 107;

/// Bytes in the name of a socket, as systemd has it.
const MOST_NAME: usize = 255;

/// All the forms of an address, for sentences.
const FORMS: &str = "write for example 127.0.0.1:8080, [::1]:8080, 8080 (all interfaces), \
                     /run/app.sock or @name";

/// A listen entry: the name of an inherited socket, or an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// The entry as written; first looked up among the names of inherited sockets.
    pub text: String,
    /// The address that it is, when it is one.
    pub address: Option<Address>,
}

impl FromStr for Listen {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<Self, Mistake> {
        let address = match Address::from_str(text) {
            Ok(address) => Some(address),
            Err(mistake) if is_meant_as_address(text) => return Err(mistake),
            Err(_) => {
                check_name(text)?;
                None
            }
        };
        Ok(Listen { text: text.to_owned(), address })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Listen {
    /// Whether both would want the same socket.
    pub(super) fn conflicts(&self, other: &Listen) -> bool {
        match (&self.address, &other.address) {
            _ if self.text == other.text => true,
            (Some(one), Some(two)) => one.conflicts(two),
            (None, _) | (_, None) => false,
        }
    }
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Address {
    /// `127.0.0.1:8080` or `[::1]:8080`.
    Tcp(SocketAddr),
    /// `8080`: this port on all interfaces.
    Port(u16),
    /// `/run/app.sock`.
    Unix(PathBuf),
    /// `@name`: a Unix socket without a file. Without the `@`.
    Abstract(String),
}

impl FromStr for Address {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<Self, Mistake> {
        if text.is_empty() {
            return Err(Mistake::new("the address is empty", FORMS));
        }
        if text.chars().any(char::is_control) || text.trim() != text {
            let message = format!("{} has blanks or control characters", quote(text));
            return Err(Mistake::new(message, FORMS));
        }
        match text.as_bytes()[0] {
            b'/' => parse_path(text),
            b'@' => parse_abstract(text),
            _ if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                parse_port(text, text).map(Address::Port)
            }
            _ => match text.parse() {
                Ok(address) => Ok(Address::Tcp(address)),
                Err(_) => Err(explain_tcp(text)),
            },
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Port(port) => write!(f, "{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
            Address::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

impl Address {
    /// Whether the kernel would refuse to bind both. Port 0 is another port every time.
    fn conflicts(&self, other: &Address) -> bool {
        match (self, other) {
            (Address::Port(one), Address::Port(two)) => one == two && *one != 0,
            (Address::Port(port), Address::Tcp(tcp)) | (Address::Tcp(tcp), Address::Port(port)) => {
                *port == tcp.port() && *port != 0
            }
            (Address::Tcp(one), Address::Tcp(two)) => {
                let (a, b) = (one.ip().to_canonical(), two.ip().to_canonical());
                let wild = a.is_unspecified() || b.is_unspecified();
                let overlap = a == b || (wild && a.is_ipv4() == b.is_ipv4());
                one.port() == two.port() && one.port() != 0 && overlap
            }
            (Address::Unix(one), Address::Unix(two)) => {
                // Components leave out `.` and doubled slashes.
                one.components().eq(two.components())
            }
            (Address::Abstract(one), Address::Abstract(two)) => one == two,
            (
                Address::Tcp(_) | Address::Port(_) | Address::Unix(_) | Address::Abstract(_),
                Address::Tcp(_) | Address::Port(_) | Address::Unix(_) | Address::Abstract(_),
            ) => false,
        }
    }
}

/// Whether whoever wrote this meant an address, not the name of a socket.
fn is_meant_as_address(text: &str) -> bool {
    text.starts_with(['/', '@', '[', ':', '*'])
        || text.contains(':')
        || text.bytes().all(|byte| byte.is_ascii_digit())
        || text.parse::<IpAddr>().is_ok()
}

/// A name that systemd would accept as `FileDescriptorName=`.
fn check_name(text: &str) -> Result<(), Mistake> {
    let remedy = format!(
        "the name of an inherited socket has 1 to {MOST_NAME} printable ASCII characters other \
         than `:`; for an address, {FORMS}"
    );
    if text.is_empty() || text.len() > MOST_NAME {
        let message = format!("a listen entry of {} bytes", text.len());
        return Err(Mistake::new(message, remedy));
    }
    let is_good = |byte: u8| (b' '..0x7f).contains(&byte) && byte != b':';
    if !text.bytes().all(is_good) || text.trim() != text {
        let message = format!("{} is no name of a socket", quote(text));
        return Err(Mistake::new(message, remedy));
    }
    Ok(())
}

fn parse_port(port: &str, text: &str) -> Result<u16, Mistake> {
    port.parse().map_err(|_| {
        Mistake::new(
            format!("there is no port {} in {}", quote(port), quote(text)),
            "write a port from 1 to 65535 (0 lets the kernel choose)",
        )
    })
}

fn parse_path(text: &str) -> Result<Address, Mistake> {
    if text.len() > MOST_PATH {
        let message = format!("the socket's path {} has {} bytes", quote(text), text.len());
        let remedy = format!("write a path of at most {MOST_PATH} bytes");
        return Err(Mistake::new(message, remedy));
    }
    let path = PathBuf::from(text);
    let names_a_file = matches!(path.components().next_back(), Some(Component::Normal(_)));
    if !names_a_file || text.ends_with('/') {
        let message = format!("{} names a directory, not a socket", quote(text));
        return Err(Mistake::new(message, "write for example /run/app.sock"));
    }
    Ok(Address::Unix(path))
}

fn parse_abstract(text: &str) -> Result<Address, Mistake> {
    let name = &text[1..];
    if name.is_empty() || name.len() > MOST_PATH {
        let message = format!("the abstract name {} has {} bytes", quote(text), name.len());
        let remedy = format!("write 1 to {MOST_PATH} bytes after the `@`");
        return Err(Mistake::new(message, remedy));
    }
    Ok(Address::Abstract(name.to_owned()))
}

/// Why this is no TCP address.
fn explain_tcp(text: &str) -> Mistake {
    if text.contains("://") {
        let message = format!("{} is a URL, not an address", quote(text));
        return Mistake::new(message, FORMS);
    }
    if let Some(path) = text.strip_prefix("unix:") {
        let message = format!("{} has a prefix", quote(text));
        return Mistake::new(message, format!("write {} alone", quote(path)));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        // `::1:8080` reads as an address, too.
        if let Some((Ok(host), Ok(port))) =
            text.rsplit_once(':').map(|(host, port)| (host.parse::<IpAddr>(), port.parse::<u16>()))
        {
            let message = format!("the IPv6 address in {} has no brackets", quote(text));
            return Mistake::new(message, format!("write {}", SocketAddr::new(host, port)));
        }
        let message = format!("{} has no port", quote(text));
        let remedy = format!("write for example {}", SocketAddr::new(ip, 8080));
        return Mistake::new(message, remedy);
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Mistake::new(format!("{} is not an address", quote(text)), FORMS);
    };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) || port.is_empty() {
        let message = format!("{} does not end with a port", quote(text));
        return Mistake::new(message, FORMS);
    }
    if let Err(mistake) = parse_port(port, text) {
        return mistake;
    }
    explain_host(host, port, text)
}

/// Why this is no host for a TCP address; the port is good.
fn explain_host(host: &str, port: &str, text: &str) -> Mistake {
    if host.is_empty() || host == "*" {
        let message = format!("{} has no IP address", quote(text));
        return Mistake::new(message, format!("write {port} for all interfaces"));
    }
    if host.contains(':') && !host.starts_with('[') {
        let message = format!("the IPv6 address in {} has no brackets", quote(text));
        return Mistake::new(message, format!("write [{host}]:{port}"));
    }
    let looks_numeric =
        host.starts_with('[') || host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if looks_numeric {
        let message = format!("{} is not an IP address", quote(host));
        return Mistake::new(message, FORMS);
    }
    let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
    Mistake::new(
        format!("{} is a host name, which could change", quote(host)),
        format!("give an IP address, for example {local}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_printed_as_written() {
        for text in [
            "127.0.0.1:8080",
            "[::1]:80",
            "[fe80::1%2]:80",
            "0",
            "8080",
            "65535",
            "/run/app.sock",
            "@app",
            "127.0.0.1:0",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_explained() {
        for (text, message, remedy) in [
            ("", "is empty", "127.0.0.1:8080"),
            ("65536", "no port `65536`", "65535"),
            ("127.0.0.1:70000", "no port `70000`", "65535"),
            ("127.0.0.1", "has no port", "127.0.0.1:8080"),
            ("::1", "has no port", "[::1]:8080"),
            ("::1:8080", "no brackets", "[::1]:8080"),
            ("1:2:3:4:5:6:7:8:80", "no brackets", "[1:2:3:4:5:6:7:8]:80"),
            ("[::1]", "does not end with a port", "[::1]:8080"),
            ("localhost:80", "host name", "give an IP address"),
            ("256.0.0.1:80", "not an IP address", "127.0.0.1:8080"),
            ("*:80", "no IP address", "write 80 for"),
            (":80", "no IP address", "write 80 for"),
            ("http://127.0.0.1:80", "URL", "127.0.0.1:8080"),
            ("unix:/run/a", "prefix", "write `/run/a`"),
            ("web", "not an address", "@name"),
            (" 80", "blanks", "8080"),
            ("/", "directory", "/run/app.sock"),
            ("/run/", "directory", "/run/app.sock"),
            ("/run/..", "directory", "/run/app.sock"),
            ("@", "0 bytes", "1 to 107"),
        ] {
            let mistake = Address::from_str(text).unwrap_err();
            assert!(mistake.message.contains(message), "{text}: {mistake}");
            let given = mistake.remedy.unwrap();
            assert!(given.contains(remedy), "{text}: {given}");
        }
    }

    #[test]
    fn names_are_what_systemd_accepts() {
        for name in ["web", "my socket", "connection", "a/b", "x.y-z_0", "é"] {
            assert_eq!(Listen::from_str(name).is_ok(), name != "é", "{name}");
        }
        assert!(Listen::from_str(&"n".repeat(255)).is_ok());
        assert!(Listen::from_str(&"n".repeat(256)).is_err());
        assert!(Listen::from_str("a\nb").is_err());
        assert!(Listen::from_str("127.0.0.1").is_err());
    }

    #[test]
    fn conflicts_see_through_spellings() {
        let conflicts = |one: &str, two: &str| {
            let (one, two) = (one.parse::<Listen>(), two.parse::<Listen>());
            let (one, two) = (one.unwrap(), two.unwrap());
            assert_eq!(one.conflicts(&two), two.conflicts(&one));
            one.conflicts(&two)
        };
        assert!(conflicts("8080", "0.0.0.0:8080"));
        assert!(conflicts("8080", "[::]:8080"));
        assert!(conflicts("8080", "08080"));
        assert!(conflicts("8080", "127.0.0.1:8080"));
        assert!(conflicts("0.0.0.0:80", "127.0.0.1:80"));
        assert!(conflicts("127.0.0.1:80", "[::ffff:127.0.0.1]:80"));
        assert!(conflicts("[::1]:80", "[0:0::1]:80"));
        assert!(conflicts("/run/a", "/run//./a"));
        assert!(conflicts("web", "web"));
        assert!(conflicts("127.0.0.1:0", "127.0.0.1:0"));
        assert!(!conflicts("127.0.0.1:0", "0.0.0.0:0"));
        assert!(!conflicts("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!conflicts("127.0.0.1:80", "[::1]:80"));
        assert!(!conflicts("8080", "8081"));
        assert!(!conflicts("@a", "/a"));
        assert!(!conflicts("web", "api"));
    }
}
