//! Clients who say nothing yet, where only those are passed on who have (`first-byte`).
//!
//! The kernel keeps most of them (TCP_DEFER_ACCEPT): over TCP, a connection is not even there to be accepted
//! before its first byte has come. It gives up on that after a time, and knows nothing of the kind for Unix
//! sockets. Then the master has the connection: it watches the socket, and what becomes readable is a fact.
//! No byte is taken out.
//!
//! Listeners of other pools pay one comparison for each connection, and nothing else.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::listeners::Listener;
use super::{Daemon, Token};
use crate::kinds::native::Client;
use crate::supervisor::{Accept, ConnectionId, Event, Held, ListenerId, Past};
use crate::sys::listen::{Local, local};
use crate::sys::socket::{Peeked, peek};
use crate::sys::tcp::{defer_accept, deferral};

/// How long the kernel waits for a client's first byte where the master waits on: long enough for every
/// client who means to speak at once, and short, because those who wait there take up the room of
/// clients who are about to connect.
const BEFORE_THE_MASTER: Duration = Duration::from_secs(1);

/// The same, where workers accept: nobody waits on.
const BEFORE_WORKERS: Duration = Duration::from_secs(15);

impl Listener {
    /// From now on only clients who have said something are wanted here, or all.
    pub(super) fn want_first_byte(&mut self, is_wanted: bool, accept: Accept) {
        self.first_byte = is_wanted;
        if !is_wanted {
            return self.stop_deferring();
        }
        let is_tcp = matches!(local(self.as_fd()), Local::Tcp(_));
        // One that the socket's unit has set is left as it is.
        if is_tcp && (self.defers || deferral(self.as_fd()) == Some(0)) {
            let time = match accept {
                Accept::Master => BEFORE_THE_MASTER,
                Accept::Workers => BEFORE_WORKERS,
            };
            // Where it cannot be had they wait in the master.
            self.defers = defer_accept(self.as_fd(), time).is_ok();
        }
    }

    /// Who uses the socket next finds it as it was.
    pub(super) fn stop_deferring(&mut self) {
        if std::mem::take(&mut self.defers) {
            // It worked once; and whoever comes later can set it as well.
            let _ = defer_accept(self.as_fd(), Duration::ZERO);
        }
    }
}

impl Daemon {
    /// Keeps a client who was accepted and has said nothing. Gives back one who has, or who cannot be
    /// watched; none who has gone.
    pub(super) fn keep_silent(&mut self, id: ListenerId, client: OwnedFd) -> Option<OwnedFd> {
        let peeked = peek(client.as_fd());
        if matches!(peeked, Ok(Peeked::Bytes)) {
            return Some(client);
        }
        let held = self.hold(id, Client { socket: client, past: None, leftover: None });
        let connection = held.connection;
        let is_gone = !matches!(peeked, Ok(Peeked::Nothing));
        if !is_gone && !self.watch_silent(connection) {
            return self.held.remove(&connection).map(|(_, client)| client.socket);
        }
        self.report(Event::AcceptedSilent { held: Held { past: Past::Silent, ..held } });
        if is_gone {
            self.close_silent(connection);
        }
        None
    }

    fn watch_silent(&self, id: ConnectionId) -> bool {
        let Some((_, client)) = self.held.get(&id) else { return false };
        self.poller.add(&client.socket, Token::Silent(id).encode()).is_ok()
    }

    /// Those who waited in an earlier image of this process wait on.
    pub(super) fn resume_silent(&mut self) {
        for Held { connection, .. } in self.supervisor.silent_connections() {
            if !self.watch_silent(connection) {
                self.report(Event::Spoke { connection });
            }
        }
    }

    /// A client in our hand is not waited for any more. Whether he was.
    pub(super) fn end_silence(&mut self, id: ConnectionId) -> bool {
        let held = self.held.get(&id);
        held.is_some_and(|(_, client)| self.poller.remove(&client.socket).is_ok())
    }

    pub(super) fn observe_silent(&mut self, id: ConnectionId) {
        let Some((_, client)) = self.held.get(&id) else { return };
        match peek(client.socket.as_fd()) {
            Ok(Peeked::Nothing) => {}
            Ok(Peeked::Bytes) => {
                self.end_silence(id);
                self.report(Event::Spoke { connection: id });
            }
            // Whatever is the matter with it, nobody can read from it.
            Ok(Peeked::End) | Err(_) => self.close_silent(id),
        }
    }

    fn close_silent(&mut self, id: ConnectionId) {
        self.end_silence(id);
        self.held.remove(&id);
        self.report(Event::HungUp { connection: id });
    }

    /// After a reload: where nobody waits for a first byte any more, the silent go to workers.
    pub(super) fn release_silent(&mut self) {
        for Held { connection, listener, .. } in self.supervisor.silent_connections() {
            if self.listeners.get(listener).is_some_and(|listener| !listener.first_byte) {
                self.end_silence(connection);
                self.report(Event::Spoke { connection });
            }
        }
    }
}
