//! Live connections that draining workers give back, for others to go on with: what they are, and when
//! their channels are left alone. How they are passed on: `passing`.

use std::os::fd::AsFd;

use nix::sys::signal::Signal;

use super::journal::{CUT, Level, MessageId};
use super::passing::Verdict;
use super::{Daemon, Token};
use crate::kinds::native::{Client, Descriptors};
use crate::supervisor::{Event, Held, WorkerId};
use crate::sys::socket::family_of;
use crate::wire::message::Past;

impl Daemon {
    /// A connection that a worker gave back has come out of its channel, because the worker is dead,
    /// or was not told to give any back. The next worker gets it as it is. What cannot be passed on is
    /// closed, and counted as cut.
    pub(super) fn receive_back(
        &mut self,
        worker: WorkerId,
        listener: &str,
        past: Past,
        descriptors: Descriptors,
    ) {
        match self.judge_handback(worker, &descriptors) {
            Verdict::WasPassedOn { is_counted: true } => return,
            // In doubt it is not sent a second time.
            Verdict::WasPassedOn { is_counted: false } | Verdict::IsInDoubt(_) => {
                return self.note_passed_on(worker);
            }
            Verdict::IsOurs => {}
        }
        // Before anything is done with it: the next master must not believe that it is still there.
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.words.add_received_back();
            let is_reaped = worker.is_reaped;
            if let Some(link) = worker.native_mut() {
                link.hands_back = !is_reaped;
            }
        }
        let held = self.unpack_back(worker, listener, past, descriptors);
        self.report(Event::HandedBack { worker, held });
    }

    /// What a worker handed back, if it can be passed on; what cannot is closed, and that is said.
    pub(super) fn unpack_back(
        &mut self,
        worker: WorkerId,
        listener: &str,
        past: Past,
        descriptors: Descriptors,
    ) -> Option<Held> {
        let Descriptors { socket, leftover, swallowed } = descriptors;
        if swallowed {
            self.say_lost(worker, 1);
            return None;
        }
        let socket = socket.filter(|socket| family_of(socket.as_fd()).is_ok());
        let is_whole = (past.leftover > 0) == leftover.is_some();
        let Some(socket) = socket.filter(|_| is_whole) else {
            self.complain(worker, "handed back what is no connection");
            return None;
        };
        let Some(id) = self.listeners.named(listener) else {
            self.say_cut(worker, listener);
            return None;
        };
        Some(self.hold(id, Client { socket, past: Some(past), leftover }))
    }

    /// Whether a worker's channel is left alone for now: what it hands back is safe there, even from
    /// this master's death, as long as nobody has room for it.
    pub(super) fn rests(&mut self, id: WorkerId) -> bool {
        let must_rest = self.must_rest(id);
        let Some(worker) = self.workers.get_mut(&id) else { return true };
        if !must_rest {
            return false;
        }
        // A channel that cannot be left alone is read on.
        let rests = self.poller.remove(&worker.link).is_ok();
        if rests {
            worker.is_watched = false;
            self.turn.resting.insert(id);
        }
        rests
    }

    fn must_rest(&self, id: WorkerId) -> bool {
        let Some(worker) = self.workers.get(&id) else { return false };
        let Some(link) = worker.native().filter(|link| link.hands_back) else { return false };
        link.head.is_some()
            || link.rests_until.is_some_and(|until| until > self.now)
            || link.awaits.is_some_and(|receiver| self.is_awaited(receiver))
            || self.supervisor.holds(worker.who.pool)
    }

    /// Goes on with those whose pool has room again. At every turn: as a rule none is left alone.
    pub(super) fn resume_channels(&mut self) {
        if self.turn.resting.is_empty() {
            return;
        }
        for id in self.turn.resting.clone() {
            if self.must_rest(id) {
                continue;
            }
            self.turn.resting.remove(&id);
            if let Some(link) = self.native_mut(id) {
                (link.awaits, link.rests_until) = (None, None);
            }
            self.watch_channel(id);
        }
    }

    pub(super) fn watch_channel(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        match self.poller.add(&worker.link, Token::Channel(id).encode()) {
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
