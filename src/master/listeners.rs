//! The sockets that clients connect to: inherited, or bound by rcluster itself.
//!
//! A pool's `listen` entry is first looked up among the inherited sockets, by name and then by
//! address; an address that was not inherited is bound here. One entry may stand for several
//! sockets, because every `Listen…=` line of a `.socket` unit shares the unit's name.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::inherit::{Inheritance, Inherited};
use crate::config::why;
use crate::config::{Address, Listen, Pool};
use crate::supervisor::{Attention, Balance, ListenerId};
use crate::sys::listen::{Local, listen_abstract, listen_port, listen_tcp, listen_unix, local};
use crate::wire::message::ToWorker;

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    /// Its entry in the configuration, and the name that workers are told.
    pub(crate) name: String,
    origin: Origin,
    /// What its clients meet now.
    pub(crate) attention: Attention,
    /// The message with which its connections are passed on.
    pub(crate) message: Arc<[u8]>,
    /// Whether a client's address decides who gets it.
    pub(crate) needs_source: bool,
    /// What clients are answered whom nobody can take.
    pub(crate) answer: Option<Arc<[u8]>>,
}

#[derive(Debug)]
enum Origin {
    /// systemd holds it, too; it outlives us. With its own name and place, to be put back.
    Inherited(Option<String>, Local),
    /// Ours alone; with the file to remove.
    Bound(Option<SocketFile>),
}

/// A socket's file, by which it is known even if another takes its name.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> Option<SocketFile> {
        let found = path.symlink_metadata().ok()?;
        Some(SocketFile { path: path.to_owned(), device_and_inode: (found.dev(), found.ino()) })
    }

    /// Removes it, unless somebody has bound the path anew.
    fn remove(&self) {
        let now = SocketFile::of(&self.path).map(|file| file.device_and_inode);
        if now == Some(self.device_and_inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Whether nobody else holds the socket.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.origin, Origin::Bound(_))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Every listening socket, and what was inherited and is not used.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) inheritance: Inheritance,
    open: BTreeMap<ListenerId, Listener>,
    last: u32,
}

impl Listeners {
    pub(crate) fn new(inheritance: Inheritance) -> Listeners {
        Listeners { inheritance, open: BTreeMap::new(), last: 0 }
    }

    pub(crate) fn get(&self, id: ListenerId) -> Option<&Listener> {
        self.open.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ListenerId) -> Option<&mut Listener> {
        self.open.get_mut(&id)
    }

    pub(crate) fn ids(&self) -> Vec<ListenerId> {
        self.open.keys().copied().collect()
    }

    /// The listener whose connections carry this name.
    pub(crate) fn named(&self, name: &str) -> Option<ListenerId> {
        self.open.iter().find(|(_, listener)| listener.name == name).map(|(&id, _)| id)
    }

    /// The pool's listeners; those that are not open yet are opened and appended to `opened`.
    ///
    /// # Errors
    /// A sentence about the one that cannot be had.
    pub(crate) fn open_all(
        &mut self,
        pool: &Pool,
        opened: &mut Vec<ListenerId>,
    ) -> Result<Vec<ListenerId>, String> {
        let mut ids = Vec::new();
        for entry in &pool.listen {
            let known: Vec<ListenerId> = self.all_named(&entry.text);
            if known.is_empty() {
                let new = self.open_entry(pool, entry)?;
                opened.extend(&new);
                ids.extend(new);
            } else {
                ids.extend(known);
            }
        }
        Ok(ids)
    }

    fn all_named(&self, name: &str) -> Vec<ListenerId> {
        let found = self.open.iter().filter(|(_, listener)| listener.name == name);
        found.map(|(&id, _)| id).collect()
    }

    fn open_entry(&mut self, pool: &Pool, entry: &Listen) -> Result<Vec<ListenerId>, String> {
        let inherited = self.inheritance.claim(&entry.text, entry.address.as_ref());
        if !inherited.is_empty() {
            let open = inherited.into_iter().map(|Inherited { name, socket, local }| {
                self.insert(entry, socket, Origin::Inherited(name, local))
            });
            return Ok(open.collect());
        }
        let Some(address) = &entry.address else {
            return Err(self.inheritance.miss(&pool.name, &entry.text));
        };
        let socket = bind(address).map_err(|error| {
            let own = self.own_at(address);
            let remedy = match error.raw_os_error() {
                Some(nix::libc::EADDRINUSE) if own.is_some() => &format!(
                    "; this service listens there itself, as {}: keep that text, or change it in \
                     two reloads",
                    own.unwrap_or_default()
                ),
                Some(nix::libc::EADDRINUSE) => {
                    "; another program listens there: stop it, or choose another address"
                }
                Some(nix::libc::EACCES)
                    if matches!(address, Address::Tcp(_) | Address::Port(_)) =>
                {
                    "; ports below 1024 need a privileged master or a .socket unit"
                }
                Some(nix::libc::EADDRNOTAVAIL) => "; this machine has no such address",
                _ => "",
            };
            let why = why(&error);
            format!("pool {} cannot listen on {}: {why}{remedy}", pool.name, entry.text)
        })?;
        let file = match address {
            Address::Unix(path) => SocketFile::of(path),
            Address::Tcp(_) | Address::Port(_) | Address::Abstract(_) => None,
        };
        Ok(vec![self.insert(entry, socket, Origin::Bound(file))])
    }

    /// The entry under which this service itself listens at that port or path.
    fn own_at(&self, address: &Address) -> Option<&str> {
        let is_there = |listener: &&Listener| match (local(listener.as_fd()), address) {
            (Local::Tcp(own), Address::Tcp(wanted)) => own.port() == wanted.port(),
            (Local::Tcp(own), Address::Port(port)) => own.port() == *port,
            (Local::Unix(own), Address::Unix(wanted)) => own == *wanted,
            _ => false,
        };
        self.open.values().find(is_there).map(|listener| listener.name.as_str())
    }

    fn insert(&mut self, entry: &Listen, socket: OwnedFd, origin: Origin) -> ListenerId {
        self.last += 1;
        let id = ListenerId(self.last);
        let name = entry.text.clone();
        let message = ToWorker::Connection { listener: &name }.encode().into();
        let attention = Attention::Pause;
        let (needs_source, answer) = (false, None);
        let listener = Listener { socket, name, origin, attention, message, needs_source, answer };
        self.open.insert(id, listener);
        id
    }

    /// What the pool's configuration says about all its listeners holds from now on.
    pub(crate) fn configure_all(&mut self, pool: &Pool) {
        let ids: Vec<ListenerId> =
            pool.listen.iter().flat_map(|entry| self.all_named(&entry.text)).collect();
        self.configure(&ids, pool);
    }

    /// What the pool's configuration says about these listeners holds from now on.
    pub(crate) fn configure(&mut self, ids: &[ListenerId], pool: &Pool) {
        let answer: Option<Arc<[u8]>> = pool.answer.as_deref().map(Arc::from);
        for id in ids {
            if let Some(listener) = self.open.get_mut(id) {
                listener.needs_source = pool.policy.balance == Balance::SourceHash;
                listener.answer.clone_from(&answer);
            }
        }
    }

    /// Closes a listener; an inherited one may be claimed again.
    pub(crate) fn close(&mut self, id: ListenerId) {
        let Some(listener) = self.open.remove(&id) else { return };
        match listener.origin {
            Origin::Inherited(name, local) => {
                self.inheritance.put_back(Inherited { name, socket: listener.socket, local });
            }
            Origin::Bound(Some(file)) => file.remove(),
            Origin::Bound(None) => {}
        }
    }
}

impl Drop for Listeners {
    /// Removes the files of the sockets that are ours.
    fn drop(&mut self) {
        for id in self.ids() {
            self.close(id);
        }
    }
}

fn bind(address: &Address) -> std::io::Result<OwnedFd> {
    match address {
        Address::Tcp(address) => listen_tcp(*address),
        Address::Port(port) => listen_port(*port),
        Address::Unix(path) => listen_unix(path),
        Address::Abstract(name) => listen_abstract(name.as_bytes()),
    }
}
