//! The sockets that clients connect to: inherited, or bound by rcluster itself.
//!
//! A pool's `listen` entry is first looked up among the inherited sockets, by name and then by
//! address, then among those that systemd has kept for us since the last start; an address that is
//! in neither is bound here. One entry may stand for several sockets, because every `Listen…=` line
//! of a `.socket` unit shares the unit's name.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::inherit::{Inheritance, Inherited, LISTENERS};
use super::stored::{SocketFile, Stored, name_of};
use crate::config::why;
use crate::config::{Address, Config, Listen, Pool};
use crate::supervisor::{Attention, Balance, ListenerId};
use crate::sys::listen::{
    Local, listen_abstract, listen_port, listen_tcp, listen_unix, local, stop_listening,
    turn_newcomers_away,
};
use crate::wire::message::ToWorker;

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(super) socket: OwnedFd,
    /// Its entry in the configuration, and the name that workers are told.
    pub(crate) name: String,
    pub(super) origin: Origin,
    /// What its clients meet now.
    pub(crate) attention: Attention,
    /// The message with which its connections are passed on.
    pub(crate) message: Arc<[u8]>,
    /// Whether a client's address decides who gets it.
    pub(crate) needs_source: bool,
    /// Only clients who have said something are passed on.
    pub(crate) first_byte: bool,
    /// We have told the kernel so.
    pub(super) defers: bool,
    /// What clients are answered whom nobody can take.
    pub(crate) answer: Option<Arc<[u8]>>,
    /// What the first Node server there has said of itself; every other one is given it.
    pub(crate) data: Option<serde_json::Value>,
}

#[derive(Debug)]
pub(super) enum Origin {
    /// systemd holds it, too; it outlives us. With its own name and place, to be put back.
    Inherited(Option<String>, Local),
    /// Ours alone.
    Bound {
        /// What the path leads to.
        file: Option<SocketFile>,
        /// Its name in systemd's store, where it can be kept.
        name: Option<String>,
        is_stored: bool,
    },
}

impl Listener {
    /// One that nobody listens to yet, and of which no pool has said anything.
    pub(super) fn new(socket: OwnedFd, name: String, origin: Origin) -> Listener {
        let message = ToWorker::Connection { listener: &name, past: None, entry: None };
        Listener {
            message: message.encode().into(),
            socket,
            name,
            origin,
            attention: Attention::Pause,
            needs_source: false,
            first_byte: false,
            defers: false,
            answer: None,
            data: None,
        }
    }

    /// Whether rcluster bound it: no unit of systemd's waits on it.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.origin, Origin::Bound { .. })
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
    pub(super) stored: Stored,
    /// Names that systemd's store is to forget.
    pub(super) discarded: Vec<String>,
    /// There may be a store: what it keeps must be found as it was left.
    pub(super) may_be_kept: bool,
    pub(super) open: BTreeMap<ListenerId, Listener>,
    pub(super) last: u32,
    /// The last that was looked at for [`Listeners::take_unstored`].
    told: u32,
}

impl Listeners {
    /// `may_be_kept`: what is open at the end may be given back to the next start.
    pub(crate) fn new(mut inheritance: Inheritance, may_be_kept: bool) -> Listeners {
        let stored = Stored::new(inheritance.take_stored(LISTENERS));
        let (open, discarded) = (BTreeMap::new(), Vec::new());
        Listeners { inheritance, stored, discarded, may_be_kept, open, last: 0, told: 0 }
    }

    /// Closes what was kept for a configuration that is no more: its clients wait in vain, and its
    /// address may be needed.
    pub(crate) fn discard_unused(&mut self, config: &Config) {
        let entries = config.pools.iter().flat_map(|pool| &pool.listen);
        let addresses: Vec<&Address> = entries.filter_map(|it| it.address.as_ref()).collect();
        self.discarded.extend(self.stored.keep_only(&addresses));
    }

    /// The same, of all that has not been claimed: a socket whose file is gone, for one.
    pub(crate) fn discard_unclaimed(&mut self) {
        self.discarded.extend(self.stored.keep_only(&[]));
    }

    /// Names that systemd's store is to forget.
    pub(crate) fn take_discarded(&mut self) -> Vec<String> {
        std::mem::take(&mut self.discarded)
    }

    /// Sockets of our own that systemd's store is to keep; each is answered once.
    pub(crate) fn take_unstored(&mut self) -> Vec<(&str, BorrowedFd<'_>)> {
        // Asked at every turn of the loop: nobody is looked at while none is new.
        if std::mem::replace(&mut self.told, self.last) == self.last {
            return Vec::new();
        }
        let listeners = self.open.values_mut();
        let unstored = listeners.filter_map(|listener| match &mut listener.origin {
            Origin::Bound { name: Some(name), is_stored, .. } if !*is_stored => {
                *is_stored = true;
                Some((name.as_str(), listener.socket.as_fd()))
            }
            Origin::Bound { .. } | Origin::Inherited(..) => None,
        });
        unstored.collect()
    }

    /// Sockets of our own that outlive this process where anybody keeps them, by name.
    pub(crate) fn keepsakes(&self) -> Vec<(&str, BorrowedFd<'_>)> {
        let keepsakes = self.open.values().filter_map(|listener| match &listener.origin {
            Origin::Bound { name: Some(name), .. } => {
                Some((name.as_str(), listener.socket.as_fd()))
            }
            Origin::Bound { name: None, .. } | Origin::Inherited(..) => None,
        });
        keepsakes.collect()
    }

    /// Workers have kept these.
    pub(crate) fn give_back(&mut self, sockets: Vec<(String, OwnedFd)>) {
        self.stored.0.extend(sockets);
    }

    /// Whether somebody has kept the socket of this name, and it is not claimed.
    pub(crate) fn has_kept(&self, name: &str) -> bool {
        self.stored.0.iter().any(|(kept, _)| kept == name)
    }

    /// Everything is left open and in its place: the next master goes on with it.
    pub(crate) fn abandon(&mut self) {
        self.open.clear();
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
        let found = self.find(&pool.name, entry)?;
        let open = found.into_iter().map(|(socket, origin)| self.insert(entry, socket, origin));
        Ok(open.collect())
    }

    /// The sockets that an entry of this pool's stands for: inherited, kept or bound now.
    pub(super) fn find(
        &mut self,
        pool: &str,
        entry: &Listen,
    ) -> Result<Vec<(OwnedFd, Origin)>, String> {
        let inherited = self.inheritance.claim(&entry.text, entry.address.as_ref());
        if !inherited.is_empty() {
            let sockets = inherited
                .into_iter()
                .map(|Inherited { name, socket, local }| (socket, Origin::Inherited(name, local)));
            return Ok(sockets.collect());
        }
        let Some(address) = &entry.address else {
            return Err(self.inheritance.miss(pool, &entry.text));
        };
        let found = self.stored.claim(address);
        let is_stored = found.is_some();
        let socket = match found {
            Some((_, socket)) => socket,
            None => bind(address).map_err(|error| self.refusal(pool, entry, address, &error))?,
        };
        let file = match address {
            Address::Unix(path) => SocketFile::of(path),
            Address::Tcp(_) | Address::Port(_) | Address::Abstract(_) => None,
        };
        let name = name_of(address);
        Ok(vec![(socket, Origin::Bound { file, name, is_stored })])
    }

    /// Why an address cannot be had, and what to do.
    fn refusal(
        &self,
        pool: &str,
        entry: &Listen,
        address: &Address,
        error: &std::io::Error,
    ) -> String {
        let own = self.own_at(address);
        let remedy = match error.raw_os_error() {
            Some(nix::libc::EADDRINUSE) if own.is_some() => &format!(
                "; this service listens there itself, as {}: keep that text, or change it in two \
                 reloads",
                own.unwrap_or_default()
            ),
            Some(nix::libc::EADDRINUSE) => {
                "; another program listens there: stop it, or choose another address"
            }
            Some(nix::libc::EACCES) if matches!(address, Address::Tcp(_) | Address::Port(_)) => {
                "; ports below 1024 need a privileged master or a .socket unit"
            }
            Some(nix::libc::EADDRNOTAVAIL) => "; this machine has no such address",
            _ => "",
        };
        let why = why(error);
        format!("pool {pool} cannot listen on {}: {why}{remedy}", entry.text)
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
        self.open.insert(id, Listener::new(socket, entry.text.clone(), origin));
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
                listener.want_first_byte(pool.manner.first_byte, pool.policy.accept);
            }
        }
    }

    /// Closes a listener that no pool uses any more; an inherited one may be claimed again.
    pub(crate) fn close(&mut self, id: ListenerId) {
        let Some(mut listener) = self.open.remove(&id) else { return };
        listener.stop_deferring();
        let Listener { socket, origin, .. } = listener;
        match origin {
            Origin::Inherited(name, local) => {
                self.inheritance.put_back(Inherited { name, socket, local });
            }
            Origin::Bound { file, name, is_stored } => {
                if let Some(file) = file {
                    file.remove();
                }
                if is_stored {
                    // systemd closes its duplicate later; nobody is to wait there until then.
                    stop_listening(&socket);
                    self.discarded.extend(name);
                }
            }
        }
    }

    /// Before those who wait at it are accepted for the last time: nobody is to come after them. Not
    /// where the next start may get it back.
    pub(crate) fn turn_newcomers_away(&mut self, id: ListenerId) -> std::io::Result<()> {
        let Some(listener) = self.open.get_mut(&id) else { return Ok(()) };
        match &mut listener.origin {
            Origin::Inherited(..) => return Ok(()),
            Origin::Bound { is_stored: true, .. } if self.may_be_kept => return Ok(()),
            Origin::Bound { file, .. } => file.take().iter().for_each(SocketFile::remove),
        }
        match local(listener.as_fd()) {
            Local::Tcp(_) => turn_newcomers_away(listener.as_fd()),
            Local::Unix(_) | Local::Abstract(_) | Local::Other => Ok(()),
        }
    }

    /// Closes our own duplicate of a listener at the end of the service: workers accept there until they
    /// have stopped.
    pub(crate) fn let_go(&mut self, id: ListenerId) {
        let Some(mut listener) = self.open.remove(&id) else { return };
        listener.stop_deferring();
        if let Origin::Bound { file, is_stored, .. } = listener.origin {
            if !(is_stored && self.may_be_kept) {
                file.iter().for_each(SocketFile::remove);
            }
        }
    }

    /// Closes a listener at the end of the service. What the next start may get back is left as it
    /// is, its file included; a file that was left in vain is replaced when it is bound anew.
    pub(crate) fn leave(&mut self, id: ListenerId) {
        let Some(mut listener) = self.open.remove(&id) else { return };
        listener.stop_deferring();
        match listener.origin {
            Origin::Bound { file, is_stored, .. } if !(is_stored && self.may_be_kept) => {
                file.iter().for_each(SocketFile::remove);
                // Workers have duplicates.
                stop_listening(&listener.socket);
            }
            Origin::Bound { .. } | Origin::Inherited(..) => {}
        }
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        for id in self.ids() {
            self.leave(id);
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
