//! Live connections that draining workers give back, for others to go on with.

use std::os::fd::AsFd;

use super::Daemon;
use super::journal::{Level, MessageId};
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
            let text = format!(
                "a connection of {} is lost: no descriptor was left",
                self.describe(worker)
            );
            self.journal
                .say(self.about_worker(worker, Level::Error, text).id(MessageId::ConnectionsLost));
            return self.report(Event::HandedBack { worker, held: None });
        }
        let socket = socket.filter(|socket| family_of(socket.as_fd()).is_ok());
        let is_whole = (past.leftover > 0) == leftover.is_some();
        let Some(socket) = socket.filter(|_| is_whole) else {
            self.complain(worker, "handed back what is no connection");
            return self.report(Event::HandedBack { worker, held: None });
        };
        let Some(id) = self.listeners.named(listener) else {
            let text = format!("a connection of the closed listener {listener} was cut");
            self.journal.say(
                self.about_worker(worker, Level::Warning, text).id(MessageId::ConnectionsLost),
            );
            return self.report(Event::HandedBack { worker, held: None });
        };
        let held = self.hold(id, Client { socket, past: Some(past), leftover });
        self.report(Event::HandedBack { worker, held: Some(held) });
    }
}
