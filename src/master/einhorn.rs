//! Where Einhorn's workers say that they are ready.
//!
//! Such a program connects to the socket that EINHORN_SOCK_PATH names, writes
//! `{"command":"worker:ack","pid":4711}` and a line end, and goes on. One socket, beside the control
//! socket, serves all: the kernel tells which process has connected, and what that writes is not believed
//! about anything else. The socket is there from the first worker on whose environment has a variable of
//! Einhorn's.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::accounts::may_change_identity;
use super::journal::{Entry, Level, MessageId};
use super::stored::SocketFile;
use super::{Daemon, Token};
use crate::supervisor::WorkerId;

/// What its name ends with; before that is that of the control socket.
const SUFFIX: &str = ".einhorn";
/// Who is heard at once; beyond that the first one goes.
const GUESTS_MAX: usize = 64;
/// Bytes of one line.
const LINE_MAX: usize = 1024;
/// How long one may take to say its line.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket, and who is there.
#[derive(Debug, Default)]
pub(super) struct Einhorn {
    pub(super) listener: Option<UnixListener>,
    file: Option<SocketFile>,
    guests: BTreeMap<u64, Guest>,
    last: u64,
}

#[derive(Debug)]
struct Guest {
    stream: UnixStream,
    /// The process that it is.
    pid: u32,
    line: Vec<u8>,
    until: Instant,
}

impl Drop for Einhorn {
    fn drop(&mut self) {
        self.file.iter().for_each(SocketFile::remove);
    }
}

impl Einhorn {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.guests.values().map(|guest| guest.until).min()
    }

    /// As another image of this process had it.
    pub(super) fn resumed(listener: UnixListener, path: &Path) -> Einhorn {
        let file = SocketFile::of(path);
        Einhorn { listener: Some(listener), file, guests: BTreeMap::new(), last: 0 }
    }
}

/// Whether this line is the acknowledgement.
fn is_ack(line: &[u8]) -> bool {
    let value = serde_json::from_slice::<serde_json::Value>(line);
    value.is_ok_and(|value| value.get("command").is_some_and(|it| it == "worker:ack"))
}

impl Daemon {
    fn einhorn_place(&self) -> Option<PathBuf> {
        let mut path = self.control.as_ref()?.path().as_os_str().to_owned();
        path.push(SUFFIX);
        Some(path.into())
    }

    /// Where an Einhorn worker is to say that it is ready. The socket is made when it is first asked for.
    pub(super) fn einhorn_path(&mut self) -> Option<PathBuf> {
        let path = self.einhorn_place()?;
        if self.inherited.einhorn.listener.is_none() {
            if let Err(error) = self.open_einhorn(&path) {
                let text = format!("Einhorn's workers cannot say that they are ready: {error}");
                self.say_once(Entry::new(Level::Warning, text).id(MessageId::Warning));
                return None;
            }
        }
        Some(path)
    }

    fn open_einhorn(&mut self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        // Workers may be other users.
        let mode = if may_change_identity() { 0o666 } else { 0o600 };
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
        self.poller.add(&listener, Token::Einhorn.encode())?;
        self.inherited.einhorn.file = SocketFile::of(path);
        self.inherited.einhorn.listener = Some(listener);
        Ok(())
    }

    /// The next image of this process goes on listening.
    pub(super) fn resume_einhorn(&mut self, listener: UnixListener) -> Result<(), String> {
        let Some(path) = self.einhorn_place() else { return Ok(()) };
        self.poller
            .add(&listener, Token::Einhorn.encode())
            .map_err(|error| format!("epoll: {error}"))?;
        self.inherited.einhorn = Einhorn::resumed(listener, &path);
        Ok(())
    }

    /// Somebody has connected.
    pub(super) fn observe_einhorn(&mut self) {
        for _ in 0..GUESTS_MAX {
            let Some(listener) = &self.inherited.einhorn.listener else { return };
            // Nobody is there any more; or no descriptor is, and it is tried again in the next turn.
            let Ok((stream, _)) = listener.accept() else { return };
            let Ok(peer) = getsockopt(&stream, PeerCredentials) else { continue };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let einhorn = &mut self.inherited.einhorn;
            if einhorn.guests.len() >= GUESTS_MAX {
                // Closing it removes it as well.
                einhorn.guests.pop_first();
            }
            einhorn.last += 1;
            let (id, pid) = (einhorn.last, peer.pid().unsigned_abs());
            if self.poller.add(&stream, Token::Acknowledger(id).encode()).is_err() {
                continue;
            }
            let (line, until) = (Vec::new(), self.now + PATIENCE);
            self.inherited.einhorn.guests.insert(id, Guest { stream, pid, line, until });
        }
    }

    /// One of them says something.
    pub(super) fn observe_acknowledger(&mut self, id: u64) {
        let Some(guest) = self.inherited.einhorn.guests.get_mut(&id) else { return };
        let mut buffer = [0; LINE_MAX];
        match guest.stream.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(count) if count > 0 => guest.line.extend_from_slice(&buffer[..count]),
            // Its end; what it has said before that is not whole.
            Ok(_) | Err(_) => return drop(self.inherited.einhorn.guests.remove(&id)),
        }
        let end = guest.line.iter().position(|&byte| byte == b'\n');
        if end.is_none() && guest.line.len() < LINE_MAX {
            return;
        }
        let is_ack = end.is_some_and(|end| is_ack(&guest.line[..end]));
        let pid = guest.pid;
        self.inherited.einhorn.guests.remove(&id);
        self.acknowledge(pid, is_ack);
    }

    /// The process has said that it is ready; or something else.
    fn acknowledge(&mut self, pid: u32, is_ack: bool) {
        let is_its = |id: &WorkerId| {
            self.inherited(*id).is_some_and(|(process, link)| link.knows(process, pid))
        };
        match (self.workers.keys().copied().find(is_its), is_ack) {
            (Some(worker), true) => self.note_inherited_ready(worker),
            (Some(worker), false) => {
                self.complain(worker, "sent what is no worker:ack to EINHORN_SOCK_PATH");
            }
            (None, true) if self.acknowledge_checked(pid) => {}
            (None, _) => {
                let text = "somebody who is no worker has come to EINHORN_SOCK_PATH; it is ignored";
                self.say_once(Entry::new(Level::Warning, text).id(MessageId::SentAway));
            }
        }
    }

    /// Sends those away who have not said their line in time.
    pub(super) fn tend_einhorn(&mut self) {
        let now = self.now;
        self.inherited.einhorn.guests.retain(|_, guest| guest.until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_is_known_whatever_else_it_says() {
        assert!(is_ack(br#"{"command":"worker:ack","pid":4711}"#));
        assert!(is_ack(br#" {"pid":1,"x":[],"command":"worker:ack"} "#));
        for other in ["", "{}", "[]", "worker:ack", r#"{"command":"state"}"#, "\u{1}"] {
            assert!(!is_ack(other.as_bytes()), "{other}");
        }
    }
}
