//! What a Node application asks to listen on, and where the pool's listeners are.
//!
//! Read loosely: fields may be missing, null, or of another type from version to version.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::sys::listen::Local;

/// Where a listener is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
    Abstract(Vec<u8>),
    Other,
}

/// What the application listens on, as its runtime asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A descriptor of the master's.
    Descriptor(i64),
    Port(u16),
    Address(SocketAddr),
    Path(String),
    /// A UDP port.
    Datagrams {
        address: Option<String>,
        port: u16,
        is_v6: bool,
    },
}

impl From<&Local> for Place {
    fn from(local: &Local) -> Place {
        match local {
            Local::Tcp(address) => Place::Tcp(*address),
            Local::Unix(path) => Place::Unix(path.clone()),
            Local::Abstract(name) => Place::Abstract(name.clone()),
            Local::Other => Place::Other,
        }
    }
}

impl Place {
    /// A name without a file arrives behind the working directory and a zero, which is Node's mistake.
    pub(super) fn is_at(&self, asked: &str) -> bool {
        match (self, asked.rsplit_once('\0')) {
            (Place::Abstract(name), Some((_, asked))) => name == asked.as_bytes(),
            (Place::Unix(path), None) => path.as_os_str() == asked,
            (Place::Unix(_) | Place::Abstract(_) | Place::Tcp(_) | Place::Other, _) => false,
        }
    }
}

impl Asked {
    /// What a `queryServer` or `listening` says. `None`: nothing that is understood.
    pub(crate) fn of(message: &Map<String, Value>) -> Option<Asked> {
        let number = |name: &str| message.get(name).and_then(Value::as_i64);
        let port = u16::try_from(number("port").unwrap_or(-1)).ok();
        let address = message.get("address").and_then(Value::as_str);
        if let Some(kind) = message.get("addressType").and_then(Value::as_str) {
            let is_v6 = kind == "udp6";
            return (kind.starts_with("udp")).then(|| Asked::Datagrams {
                address: address.map(str::to_owned),
                port: port.unwrap_or(0),
                is_v6,
            });
        }
        match (address, port, number("fd").filter(|fd| *fd >= 0)) {
            (_, None, Some(fd)) | (None, Some(_), Some(fd)) => Some(Asked::Descriptor(fd)),
            (Some(path), None, None) => Some(Asked::Path(path.to_owned())),
            (Some(address), Some(port), _) => match address.parse() {
                Ok(ip) => Some(Asked::Address(SocketAddr::new(ip, port))),
                Err(_) => Some(Asked::Port(port)),
            },
            (None, Some(port), None) => Some(Asked::Port(port)),
            (None, None, None) => None,
        }
    }
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Asked::Descriptor(number) => write!(f, "descriptor {number}"),
            Asked::Port(port) => write!(f, "port {port}"),
            Asked::Address(address) => write!(f, "{address}"),
            Asked::Path(path) => write!(f, "{}", path.escape_debug()),
            Asked::Datagrams { address, port, .. } => {
                write!(f, "UDP {}:{port}", address.as_deref().unwrap_or("*"))
            }
        }
    }
}
