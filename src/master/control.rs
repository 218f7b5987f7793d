//! The control socket: who may use it, and the bytes on it.
//!
//! Clients are strangers until proven otherwise: calls are bounded, a client that does not read its
//! answers is dropped, and half a call waits without holding anything up. Peers are known by
//! SO_PEERCRED: root and the service's own user may command, others may look.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};

use super::accounts::find_group;
use crate::config::MasterSettings;
use crate::sys::listen::is_listening;
use crate::wire::control::{Answer, CALL_MAX, Call, encode};

/// Clients at once; beyond that idle ones are closed.
const CLIENTS_MAX: usize = 128;
/// Bytes of answers that a client may leave unread.
const UNREAD_MAX: usize = 4 * 1024 * 1024;

/// The socket and its clients.
#[derive(Debug)]
pub(crate) struct Control {
    pub(super) path: PathBuf,
    pub(super) listener: UnixListener,
    pub(super) inode: u64,
    pub(super) clients: BTreeMap<u64, Client>,
    pub(super) last: u64,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: UnixStream,
    pub(super) peer: Peer,
    /// It may command, not only look.
    pub(super) is_trusted: bool,
    pub(super) received: Vec<u8>,
    pub(super) unsent: Vec<u8>,
}

/// Who a client was when it connected.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// User id.
    pub(crate) user: u32,
    /// Process id.
    pub(crate) process: i32,
}

/// What a readable client brought.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Calls, whole but not understood.
    pub(crate) calls: Vec<Result<Call, String>>,
    /// The client is gone, or was dropped for what it did.
    pub(crate) is_gone: bool,
}

impl Control {
    /// Makes the socket as it is configured.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn open(path: &Path, settings: &MasterSettings) -> Result<Control, String> {
        let group = settings.control_group.as_deref().map(find_group).transpose()?;
        let group = group.map(nix::unistd::Gid::as_raw);
        Control::bind(path, settings.control_mode, group)
    }

    /// Makes the socket. One that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Control, String> {
        let fail = |what: &str, error: &io::Error| {
            format!("control socket {} {what}: {}", path.display(), crate::config::why(error))
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| fail("cannot be made", &error))?;
        }
        if path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket()) {
            if is_listening(path) {
                return Err(format!(
                    "control socket {} is in use: another rcluster is running; stop it, or give \
                     another path with --control",
                    path.display()
                ));
            }
            std::fs::remove_file(path).map_err(|error| fail("cannot be replaced", &error))?;
        }
        let listener = UnixListener::bind(path).map_err(|error| fail("cannot be made", &error))?;
        let prepare = || -> io::Result<u64> {
            listener.set_nonblocking(true)?;
            if group.is_some() {
                std::os::unix::fs::chown(path, None, group)?;
            }
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
            Ok(std::os::unix::fs::MetadataExt::ino(&path.symlink_metadata()?))
        };
        let inode = prepare().map_err(|error| fail("cannot be prepared", &error))?;
        let clients = BTreeMap::new();
        Ok(Control { path: path.to_owned(), listener, inode, clients, last: 0 })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The socket to watch for new clients.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Who is to go when there are too many: the one that has been there longest and `awaits`
    /// nothing. Otherwise idle clients could lock an administrator out.
    pub(crate) fn surplus(&self, awaits: impl Fn(u64) -> bool) -> Option<u64> {
        let is_full = self.clients.len() >= CLIENTS_MAX;
        self.clients.keys().copied().find(|&id| is_full && !awaits(id))
    }

    /// Accepts a client, if one waits: the number under which to watch it.
    ///
    /// # Errors
    /// Those of `accept(2)`.
    pub(crate) fn accept(&mut self) -> io::Result<Option<u64>> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        let peer = getsockopt(&stream, PeerCredentials)?;
        let peer = Peer { user: peer.uid(), process: peer.pid() };
        let is_trusted = peer.user == 0 || peer.user == nix::unistd::geteuid().as_raw();
        self.last += 1;
        let (received, unsent) = (Vec::new(), Vec::new());
        self.clients.insert(self.last, Client { stream, peer, is_trusted, received, unsent });
        Ok(Some(self.last))
    }

    /// The socket of a client.
    pub(crate) fn socket(&self, id: u64) -> Option<&UnixStream> {
        Some(&self.clients.get(&id)?.stream)
    }

    /// Who a client is.
    pub(crate) fn peer(&self, id: u64) -> Option<Peer> {
        Some(self.clients.get(&id)?.peer)
    }

    /// Whether a client may command.
    pub(crate) fn is_trusted(&self, id: u64) -> bool {
        self.clients.get(&id).is_some_and(|client| client.is_trusted)
    }

    /// Whether answers wait to be written.
    pub(crate) fn has_unsent(&self, id: u64) -> bool {
        self.clients.get(&id).is_some_and(|client| !client.unsent.is_empty())
    }

    /// Reads what a client sent.
    pub(crate) fn hear(&mut self, id: u64) -> Heard {
        let Some(client) = self.clients.get_mut(&id) else { return Heard::default() };
        let mut heard = Heard::default();
        let mut buffer = [0; 8192];
        match client.stream.read(&mut buffer) {
            Ok(0) => heard.is_gone = true,
            Ok(count) => client.received.extend(&buffer[..count]),
            Err(error) => heard.is_gone = error.kind() != io::ErrorKind::WouldBlock,
        }
        while let Some(end) = client.received.iter().position(|&byte| byte == 0) {
            let rest = client.received.split_off(end + 1);
            let message = std::mem::replace(&mut client.received, rest);
            heard.calls.push(understand(&message[..end]));
        }
        heard.is_gone |= client.received.len() > CALL_MAX;
        heard
    }

    /// Answers a client, as far as it reads. Whether it is still there.
    pub(crate) fn answer(&mut self, id: u64, answer: &Answer) -> bool {
        let Some(client) = self.clients.get_mut(&id) else { return false };
        client.unsent.extend(encode(answer));
        self.flush(id)
    }

    /// Writes what waits. Whether the client is still there.
    pub(crate) fn flush(&mut self, id: u64) -> bool {
        let Some(client) = self.clients.get_mut(&id) else { return false };
        while !client.unsent.is_empty() {
            match client.stream.write(&client.unsent) {
                Ok(0) => return false,
                Ok(count) => drop(client.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        client.unsent.len() <= UNREAD_MAX
    }

    /// Forgets a client.
    pub(crate) fn close(&mut self, id: u64) {
        self.clients.remove(&id);
    }
}

/// A call is an object; serde would take a list of its fields as well.
fn understand(message: &[u8]) -> Result<Call, String> {
    let value: serde_json::Value =
        serde_json::from_slice(message).map_err(|error| format!("that is no call: {error}"))?;
    if !value.is_object() || value.get("parameters").is_some_and(|it| !it.is_object()) {
        return Err("that is no call: a call and its parameters are objects".to_owned());
    }
    serde_json::from_value(value).map_err(|error| format!("that is no call: {error}"))
}

impl Drop for Control {
    /// Removes the socket file, unless it has become another's.
    fn drop(&mut self) {
        let found = self.path.symlink_metadata();
        if found.is_ok_and(|found| std::os::unix::fs::MetadataExt::ino(&found) == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
