//! The listening sockets of a worker that accepts by itself.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::tell::tell;
use super::watch::Watch;
use crate::sys::accept::{Accepted, accept};
use crate::sys::socket::{Family, family_of, identity_of, is_readable};

/// A listening socket of the pool's.
#[derive(Debug)]
struct Listening {
    socket: OwnedFd,
    name: Arc<str>,
    /// Of its clients, if it is known.
    family: Option<Family>,
    /// By which it is known again.
    identity: u64,
    /// A client waits there, for all that is known.
    is_ready: bool,
}

/// All of them, by number.
#[derive(Debug, Default)]
pub(super) struct Listeners(Vec<Listening>);

impl Listeners {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn knows(&self, socket: &OwnedFd) -> bool {
        let identity = identity_of(socket.as_fd());
        self.0.iter().any(|it| it.identity == identity)
    }

    /// One more, of the next number.
    pub fn add(&mut self, socket: OwnedFd, name: &str) {
        let (name, identity) = (Arc::from(name), identity_of(socket.as_fd()));
        let family = family_of(socket.as_fd()).ok();
        self.0.push(Listening { socket, name, family, identity, is_ready: false });
    }

    /// It can accept no more. The others move up.
    pub fn remove(&mut self, index: usize) {
        self.0.remove(index);
    }

    /// Where a client is known to wait.
    pub fn ready(&self) -> Option<usize> {
        self.0.iter().position(|it| it.is_ready)
    }

    /// A client may wait there.
    pub fn note_ready(&mut self, index: usize) {
        self.0.get_mut(index).iter_mut().for_each(|it| it.is_ready = true);
    }

    /// Clients may wait anywhere.
    pub fn note_all_ready(&mut self) {
        self.0.iter_mut().for_each(|it| it.is_ready = true);
    }

    /// Whoever waits is somebody else's.
    pub fn forget_clients(&mut self) {
        self.0.iter_mut().for_each(|it| it.is_ready = false);
    }

    /// Looks where clients wait.
    pub fn look(&mut self) {
        self.0.iter_mut().for_each(|it| it.is_ready |= it.has_clients());
    }

    pub fn have_clients(&self) -> bool {
        self.0.iter().any(Listening::has_clients)
    }

    /// Accepts one client there, who is the last for all that is known.
    pub fn accept(&mut self, index: usize, blocks: bool) -> io::Result<Accepted> {
        let listening = &mut self.0[index];
        listening.is_ready = false;
        accept(listening.socket.as_fd(), blocks)
            .inspect_err(|error| tell!("listener {} cannot accept: {error}", listening.name))
    }

    pub fn name(&self, index: usize) -> &Arc<str> {
        &self.0[index].name
    }

    pub fn family(&self, index: usize) -> Option<Family> {
        self.0[index].family
    }

    /// Looks whether there is another one.
    pub fn look_at(&mut self, index: usize) {
        self.0.get_mut(index).iter_mut().for_each(|it| it.is_ready = it.has_clients());
    }

    /// From now on this worker is woken for their clients, or no longer.
    pub fn watch(&self, watch: &Watch, is_woken: bool) {
        for (index, Listening { socket, name, .. }) in self.0.iter().enumerate() {
            let changed = match is_woken {
                true => watch.add_listener(socket, index),
                false => watch.remove_listener(socket),
            };
            if let Err(error) = changed {
                // Out of memory, or of the watches that a user may have: it is looked at now and then.
                tell!("listener {name} cannot be watched: {error}");
            }
        }
    }
}

impl Listening {
    fn has_clients(&self) -> bool {
        // One that cannot be asked is tried.
        is_readable(self.socket.as_fd()).unwrap_or(true)
    }
}
