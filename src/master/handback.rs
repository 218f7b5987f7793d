//! Live connections that draining workers give back, for others to go on with.

use std::os::fd::AsFd;

use super::Daemon;
use super::journal::{CUT, Level, MessageId};
use crate::kinds::native::{Client, Descriptors};
use crate::supervisor::{Event, WorkerId};
use crate::sys::socket::family_of;
use crate::wire::message::Past;

impl Daemon {
    /// A worker gave a connection back: the next worker gets it as it is. What cannot be passed on
    /// is closed, and counted as cut.
    pub(super) fn receive_back(
        &mut self,
        worker: WorkerId,
        listener: &str,
        past: Past,
        descriptors: Descriptors,
    ) {
        let Descriptors { socket, leftover, swallowed } = descriptors;
        if swallowed {
            self.say_lost(worker, 1);
            return self.report(Event::HandedBack { worker, held: None });
        }
        let socket = socket.filter(|socket| family_of(socket.as_fd()).is_ok());
        let is_whole = (past.leftover > 0) == leftover.is_some();
        let Some(socket) = socket.filter(|_| is_whole) else {
            self.complain(worker, "handed back what is no connection");
            return self.report(Event::HandedBack { worker, held: None });
        };
        let Some(id) = self.listeners.named(listener) else {
            self.say_cut(worker, listener);
            return self.report(Event::HandedBack { worker, held: None });
        };
        let held = self.hold(id, Client { socket, past: Some(past), leftover });
        self.report(Event::HandedBack { worker, held: Some(held) });
    }

    /// Connections on their way from a worker were swallowed by the kernel.
    pub(super) fn say_lost(&mut self, worker: WorkerId, count: u64) {
        let who = self.describe(worker);
        let text = match count {
            1 => format!("a connection of {who} is lost: no descriptor was left"),
            _ => format!("{count} connections of {who} are lost: no descriptor was left"),
        };
        let entry = self.about_worker(worker, Level::Error, text).id(MessageId::ConnectionsLost);
        self.journal.say(entry.with(CUT, count));
    }

    /// A connection came back whose listener is no more: it belongs to no pool.
    pub(super) fn say_cut(&mut self, worker: WorkerId, listener: &str) {
        let text = format!("a connection of the closed listener {listener} was cut");
        let entry = self.about_worker(worker, Level::Warning, text).id(MessageId::ConnectionsLost);
        self.journal.say(entry.with(CUT, 1));
    }
}
