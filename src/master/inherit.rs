//! The sockets that came with the process, by name.
//!
//! Three crates are used together, because each alone has a hole: sd-notify checks LISTEN_PID and
//! makes every descriptor close-on-exec, but knows nothing of development without LISTEN_PID;
//! listenfd turns numbers into owned, typed sockets, but takes a client's connection (`Accept=yes`)
//! for a listener; nix asks the kernel what a socket really is. The names are read here.
//!
//! What systemd's descriptor store gives back comes the same way, under the names with which it was
//! stored. Names that begin with [`STORED`] are ours: they are kept apart, no configuration can name
//! them, and whoever stored them asks for them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;

use super::door::DOOR;
use crate::config::Address;
use crate::sys::ancillary::take_over;
use crate::sys::listen::{Local, blocks, check_listening, local};

/// What the names of stored descriptors begin with: read ends of workers' log pipes, listening
/// sockets that rcluster bound itself, and the state of a master that was killed.
pub(crate) const STORED: [&str; 3] = [LOGS, LISTENERS, super::state::kept::NAME];
/// Of log pipes.
pub(crate) const LOGS: &str = "rcluster-log.";
/// Of listening sockets.
pub(crate) const LISTENERS: &str = "rcluster-listener.";

/// A socket that the process was started with.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// Its FileDescriptorName, if it came with one.
    pub(crate) name: Option<String>,
    pub(crate) socket: OwnedFd,
    pub(crate) local: Local,
}

/// Everything that was inherited and nobody has taken yet.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    pub(super) sockets: Vec<Inherited>,
    /// What came out of the descriptor store, by name.
    pub(super) stored: Vec<(String, OwnedFd)>,
    /// Where workers of a killed master come.
    pub(super) door: Option<OwnedFd>,
    /// Whether the sockets came as blocking ones. `None`: none came, or not by a start.
    pub(super) blocks: Option<bool>,
}

impl Inheritance {
    /// Takes over all inherited sockets. Call it before any thread runs: it changes the
    /// environment.
    ///
    /// # Errors
    /// A sentence, when something was inherited that cannot be served.
    pub(crate) fn take() -> Result<Inheritance, String> {
        let Some(count) = variable("LISTEN_FDS") else { return Ok(Inheritance::default()) };
        let names: Option<Vec<String>> =
            variable("LISTEN_FDNAMES").map(|names| names.split(':').map(str::to_owned).collect());
        let pid = variable("LISTEN_PID");
        let own = std::process::id();
        if let Some(pid) = pid.filter(|pid| *pid != own.to_string()) {
            return Err(format!(
                "LISTEN_PID={pid} names another process, this one is {own}: the inherited sockets \
                 are not meant for it; start rcluster without a process in between (`exec`), or \
                 unset LISTEN_PID"
            ));
        }
        // Checks the process id and sets close-on-exec on every descriptor.
        drop(
            sd_notify::listen_fds()
                .map_err(|error| format!("LISTEN_FDS={count} cannot be used: {error}"))?,
        );
        let mut sockets = ListenFd::from_env();
        if sockets.len() == 0 && count != "0" {
            return Err(format!("LISTEN_FDS={count} is not a number of inherited sockets"));
        }
        if names.as_ref().is_some_and(|names| names.len() != sockets.len()) {
            let names = names.unwrap_or_default();
            return Err(format!(
                "LISTEN_FDNAMES has {} names ({}) for {} inherited sockets; every socket needs one",
                names.len(),
                names.join(":"),
                sockets.len()
            ));
        }
        let mut inheritance = Inheritance::default();
        for index in 0..sockets.len() {
            match names.as_ref().map(|names| names[index].clone()) {
                Some(name) if name == DOOR => {
                    let door = take_any(&mut sockets, index)
                        .map_err(|error| format!("inherited socket {name} {error}"))?;
                    inheritance.door = Some(door);
                }
                Some(name) if STORED.iter().any(|prefix| name.starts_with(prefix)) => {
                    let descriptor = take_any(&mut sockets, index)
                        .map_err(|error| format!("inherited descriptor {name} {error}"))?;
                    inheritance.stored.push((name, descriptor));
                }
                name => inheritance.sockets.push(take_one(&mut sockets, index, name)?),
            }
        }
        // One setting of the unit for all of them.
        let first = inheritance.sockets.first();
        inheritance.blocks = first.and_then(|first| blocks(first.socket.as_fd()).ok());
        Ok(inheritance)
    }

    /// Takes what came out of the descriptor store under names that begin with `prefix`, one of
    /// [`STORED`].
    pub(crate) fn take_stored(&mut self, prefix: &str) -> Vec<(String, OwnedFd)> {
        let is_meant = |entry: &(String, OwnedFd)| entry.0.starts_with(prefix);
        let (meant, rest) = std::mem::take(&mut self.stored).into_iter().partition(is_meant);
        self.stored = rest;
        meant
    }

    /// Takes the sockets with this name, or else those that listen on this address.
    pub(crate) fn claim(&mut self, text: &str, address: Option<&Address>) -> Vec<Inherited> {
        let by_name = self.claim_if(|socket| socket.name.as_deref() == Some(text));
        match address {
            Some(address) if by_name.is_empty() => {
                self.claim_if(|socket| is_at(&socket.local, address))
            }
            _ => by_name,
        }
    }

    fn claim_if(&mut self, is_wanted: impl Fn(&Inherited) -> bool) -> Vec<Inherited> {
        let (wanted, rest) = std::mem::take(&mut self.sockets).into_iter().partition(is_wanted);
        self.sockets = rest;
        wanted
    }

    /// What nobody has taken, for people: `web (127.0.0.1:8080)`.
    pub(crate) fn unclaimed(&self) -> Vec<String> {
        self.sockets.iter().map(describe).collect()
    }

    /// Gives a socket back, so that a later configuration may claim it.
    pub(crate) fn put_back(&mut self, socket: Inherited) {
        self.sockets.push(socket);
    }

    /// Why a name cannot be found here.
    pub(crate) fn miss(&self, pool: &str, name: &str) -> String {
        let what =
            format!("pool {pool} listens on `{name}`, but no inherited socket has that name");
        if self.sockets.is_empty() {
            return format!(
                "{what}: no unclaimed socket was inherited; start rcluster through its .socket \
                 unit, or give an address such as 127.0.0.1:8080"
            );
        }
        let all = self.unclaimed().join(", ");
        if self.sockets.iter().all(|socket| socket.name.is_none()) {
            return format!(
                "{what}: the inherited sockets came without names ({all}); set \
                 FileDescriptorName={name} in the .socket unit (--fdname={name} with \
                 systemd-socket-activate)"
            );
        }
        format!("{what}; inherited are {all}; use one of these, or set FileDescriptorName={name}")
    }
}

/// A socket for people: its name and where it listens.
fn describe(socket: &Inherited) -> String {
    let place = match &socket.local {
        Local::Tcp(address) => address.to_string(),
        Local::Unix(path) => path.display().to_string(),
        Local::Abstract(name) => format!("@{}", String::from_utf8_lossy(name)),
        Local::Other => "an unnamed address".to_owned(),
    };
    match &socket.name {
        Some(name) => format!("{name} ({place})"),
        None => place,
    }
}

/// Whether a socket that listens there is what `address` means.
pub(crate) fn is_at(local: &Local, address: &Address) -> bool {
    match (local, address) {
        (Local::Tcp(local), Address::Tcp(wanted)) => local == wanted,
        (Local::Tcp(local), Address::Port(port)) => {
            local.port() == *port && local.ip().is_unspecified()
        }
        (Local::Unix(local), Address::Unix(wanted)) => local == wanted,
        (Local::Abstract(local), Address::Abstract(wanted)) => local == wanted.as_bytes(),
        _ => false,
    }
}

fn take_one(
    sockets: &mut ListenFd,
    index: usize,
    name: Option<String>,
) -> Result<Inherited, String> {
    let socket = take_descriptor(sockets, index);
    let label = name.clone().unwrap_or_else(|| format!("number {}", index + 1));
    let socket = socket
        .and_then(|socket| check_listening(&socket).map(|()| socket))
        .map_err(|error| format!("inherited socket {label} {error}"))?;
    let local = local(std::os::fd::AsFd::as_fd(&socket));
    Ok(Inherited { name, socket, local })
}

/// The typed takers set close-on-exec, also where LISTEN_PID is missing; a client's connection and
/// other kinds come out of the last one and are refused by the check.
fn take_descriptor(sockets: &mut ListenFd, index: usize) -> io::Result<OwnedFd> {
    let gone = || io::Error::new(io::ErrorKind::NotFound, "is not there");
    if let Ok(listener) = sockets.take_tcp_listener(index) {
        return listener.map(OwnedFd::from).ok_or_else(gone);
    }
    if let Ok(listener) = sockets.take_unix_listener(index) {
        return listener.map(|listener: UnixListener| OwnedFd::from(listener)).ok_or_else(gone);
    }
    match sockets.take_unix_datagram(index) {
        Ok(socket) => socket.map(OwnedFd::from).ok_or_else(gone),
        Err(_) => match sockets.take_udp_socket(index) {
            Ok(socket) => socket.map(OwnedFd::from).ok_or_else(gone),
            Err(_) => {
                let text = "is not a stream socket; use ListenStream=";
                Err(io::Error::new(io::ErrorKind::InvalidInput, text))
            }
        },
    }
}

/// Whatever it is.
fn take_any(sockets: &mut ListenFd, index: usize) -> io::Result<OwnedFd> {
    let gone = || io::Error::new(io::ErrorKind::NotFound, "is not there");
    take_over(sockets.take_raw_fd(index)?.ok_or_else(gone)?)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
