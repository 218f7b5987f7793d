//! Native workers: how the master sends to them, hears them, and reads back what they never received.

use std::os::fd::AsFd;
use std::time::Duration;

use super::Daemon;
use super::journal::Level;
use super::link::Hearing;
use crate::kinds::Worker;
use crate::kinds::native::{
    ANSWERS_MAX, Client, Descriptors, Heard, Link, Queue, TakenBack, unfit,
};
use crate::supervisor::{Event, Held, ListenerId, WorkerId};
use crate::wire::message::{Ready, ToMaster, ToWorker, add_entry};

impl Daemon {
    pub(super) fn native(&self, id: WorkerId) -> Option<&Link> {
        self.workers.get(&id)?.native()
    }

    pub(super) fn native_mut(&mut self, id: WorkerId) -> Option<&mut Link> {
        self.workers.get_mut(&id)?.native_mut()
    }

    /// Passes a connection on. What cannot be sent is reported as returned.
    pub(super) fn send_native(&mut self, worker: WorkerId, listener: ListenerId, client: Client) {
        if let Err((client, is_full)) = self.try_send_native(worker, listener, client) {
            let held = self.hold(listener, client);
            self.report(Event::Returned { held, worker, is_full });
        }
    }

    /// Sends a connection. The master's copy is closed when the kernel has the descriptor, unless the
    /// worker keeps a ledger.
    ///
    /// # Errors
    /// It could not be sent: the connection, and whether the worker's queue is full.
    pub(super) fn try_send_native(
        &mut self,
        worker: WorkerId,
        listener: ListenerId,
        client: Client,
    ) -> Result<(), (Client, bool)> {
        let reserved = self.ledgers.reserve(worker, &client);
        if reserved.is_none() {
            self.note_unkept(worker, &client);
        }
        let entry = reserved.map(|reserved| reserved.index);
        let link = self.workers.get_mut(&worker).and_then(Worker::native_mut);
        let sent = match (link, self.listeners.get(listener)) {
            (Some(link), Some(listener)) => {
                let (socket, leftover) = (client.socket.as_fd(), client.leftover.as_ref());
                let leftover = leftover.map(AsFd::as_fd);
                match (client.past, entry) {
                    (None, None) => link.send_connection(&listener.message, socket, None),
                    (None, Some(entry)) => {
                        let mut message = listener.message.to_vec();
                        add_entry(&mut message, entry);
                        link.send_connection(&message, socket, None)
                    }
                    (past, entry) => {
                        let name = &listener.name;
                        let message = ToWorker::Connection { listener: name, past, entry };
                        link.send_connection(&message.encode(), socket, leftover)
                    }
                }
            }
            _ => Err(nix::errno::Errno::EPIPE.into()),
        };
        if let Err(error) = sent {
            self.ledgers.give_up(worker, reserved);
            // EAGAIN, ETOOMANYREFS, no memory: all pass, and the client waits here meanwhile.
            return Err((client, error.kind() == std::io::ErrorKind::WouldBlock));
        }
        self.ledgers.keep(worker, reserved, listener, client, self.now);
        Ok(())
    }

    /// Whether it may hand back, its channel is looked at from now on, and not just read.
    pub(super) fn tell_native_to_drain(
        &mut self,
        id: WorkerId,
        deadline: Duration,
        handback: bool,
    ) {
        self.tell(id, &ToWorker::Drain { deadline, handback });
        if let Some(link) = self.native_mut(id) {
            link.hands_back |= handback;
        }
    }

    pub(super) fn tell(&mut self, id: WorkerId, message: &ToWorker<'_>) -> bool {
        let Some(link) = self.native(id) else { return false };
        match link.tell(message) {
            Ok(()) => true,
            Err(error) => {
                let who = self.describe(id);
                self.say(Level::Warning, format!("{who} cannot be told anything: {error}"));
                false
            }
        }
    }

    /// Asks a draining worker what it holds. `Err`: why it does not tell.
    pub(super) fn ask_native(&mut self, id: WorkerId, round: u32) -> Result<(), String> {
        let is_heard = self.workers.get(&id).is_some_and(|worker| worker.is_watched);
        let is_joining = self.adoption.is_joining(id);
        let Some(link) = self.native_mut(id).filter(|_| !is_joining) else {
            return Err("it has not found this master yet".to_owned());
        };
        if !link.tells {
            return Err("its worker library is older than this question".to_owned());
        }
        if !is_heard {
            return Err("it hands back more than anybody has room for at the moment".to_owned());
        }
        link.tell(&ToWorker::Ask { round }).map_err(|error| format!("not asked: {error}"))?;
        link.owed = ANSWERS_MAX;
        Ok(())
    }

    /// Takes in one message of a worker, if one is there.
    pub(super) fn hear_native(&mut self, id: WorkerId) -> Hearing {
        if let Some(hearing) = self.look_at_head(id) {
            return hearing;
        }
        let Some(link) = self.native(id) else { return Hearing::Pauses };
        match link.hear() {
            Ok(Heard::Nothing) => return Hearing::Pauses,
            Ok(Heard::End) => return Hearing::Ended,
            Ok(Heard::Message(message, descriptors)) => self.heed(id, message, descriptors),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                self.complain(id, &format!("sent {error}"));
            }
            Err(error) => {
                self.complain(id, &format!("cannot be heard: {error}"));
                return Hearing::Pauses;
            }
        }
        Hearing::GoesOn
    }

    fn heed(&mut self, worker: WorkerId, message: ToMaster, descriptors: Descriptors) {
        match message {
            ToMaster::Ready(ready) => self.note_ready(worker, &ready),
            ToMaster::Room => self.report(Event::Room { worker }),
            ToMaster::Drained => {
                self.report(Event::Drained { worker });
                self.say_bye(worker);
            }
            ToMaster::Retire => self.report(Event::RetireRequested { worker }),
            ToMaster::Handback { listener, past, entry } => {
                // Its worker has done with it, whatever becomes of it.
                self.ledgers.release(worker, entry);
                self.receive_back(worker, &listener, past, descriptors);
            }
            ToMaster::Holding(holding) => self.note_holding(worker, holding),
            // On the adoption socket alone.
            ToMaster::Hello { .. } | ToMaster::Keep { .. } => {
                self.complain(worker, "introduced itself on its channel");
            }
            ToMaster::Unknown(kind) => {
                self.complain(worker, &format!("said something of unknown type {kind}"));
            }
        }
    }

    fn note_ready(&mut self, worker: WorkerId, ready: &Ready) {
        let Ready { limit, handback, adoption, ledger, tells, .. } = *ready;
        if let Some(why) = unfit(ready, self.must_accept(worker)) {
            return self.report(Event::Unfit { worker, why });
        }
        if let Some(link) = self.native_mut(worker) {
            link.tells = tells;
        }
        if ledger {
            self.ledgers.note_kept(worker);
        }
        if adoption {
            self.welcome(worker, None);
        }
        self.report(Event::Ready { worker, limit, handback });
    }

    /// What a worker has not received comes back into the master's hand: one connection of a living
    /// worker, all of a dead one's; and whether a PING was among it.
    pub(super) fn read_native_back(&mut self, id: WorkerId, queue: Queue) -> (Vec<Held>, bool) {
        let (mut held, mut had_pings) = (Vec::new(), false);
        while let Some(link) = self.native_mut(id) {
            let TakenBack { connections, lost, had_ping } = match link.take_back(queue) {
                Ok(taken) => taken,
                Err(error) => {
                    self.say_unread(id, &error);
                    break;
                }
            };
            had_pings |= had_ping;
            if lost > 0 {
                self.say_lost(id, lost);
            }
            let is_all = queue == Queue::OfDead || connections.is_empty();
            for (name, client, entry) in connections {
                self.ledgers.release(id, entry);
                if self.take_back_probe(id, &client.socket) {
                    continue;
                }
                match self.listeners.named(&name) {
                    Some(listener) => held.push(self.hold(listener, client)),
                    None => self.say_cut(id, &name),
                }
            }
            if is_all || !held.is_empty() {
                break;
            }
        }
        (held, had_pings)
    }

    pub(super) fn end_native_read_back(&mut self, id: WorkerId) {
        if let Some(Err(error)) = self.native_mut(id).map(Link::end_read_back) {
            self.say_unread(id, &error);
        }
    }

    fn say_unread(&mut self, id: WorkerId, error: &std::io::Error) {
        let who = self.describe(id);
        self.say(Level::Error, format!("the queue of {who} cannot be read: {error}"));
    }
}
