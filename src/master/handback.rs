//! Live connections that draining workers give back, for others to go on with.

use std::os::fd::AsFd;

use nix::sys::signal::Signal;

use super::journal::{CUT, Level, MessageId};
use super::{Daemon, Token};
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
        // Before anything is done with it: the next master must not believe that it is still there.
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.words.add_received_back();
            worker.hands_back = true;
        }
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

    /// Whether a worker's channel is left alone for now: what it hands back is safe there, even from
    /// this master's death, as long as nobody has room for it.
    pub(super) fn rests(&mut self, id: WorkerId) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else { return true };
        if !worker.hands_back || !self.supervisor.holds(worker.who.pool) {
            return false;
        }
        // A channel that cannot be left alone is read on.
        let rests = self.poller.remove(&worker.channel).is_ok();
        worker.is_watched &= !rests;
        rests
    }

    /// Goes on with those whose pool has room again. At every turn: nothing is held as a rule.
    pub(super) fn resume_channels(&mut self) {
        let resting = self.workers.iter().filter(|(_, worker)| {
            worker.hands_back && !worker.is_watched && !self.supervisor.holds(worker.who.pool)
        });
        for id in resting.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.watch_channel(id);
        }
    }

    pub(super) fn watch_channel(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        match self.poller.add(&worker.channel, Token::Channel(id).encode()) {
            Ok(()) => worker.is_watched = true,
            Err(error) => {
                let who = self.describe(id);
                self.say(Level::Error, format!("{who} cannot be watched and is killed: {error}"));
                self.signal(id, Signal::SIGKILL);
            }
        }
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
