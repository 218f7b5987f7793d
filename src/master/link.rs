//! Which kind of worker is spoken to in which way: the only place that asks.

use std::time::Duration;

use super::Daemon;
use crate::config::Kind;
use crate::kinds::native::{Client, Queue};
use crate::supervisor::{Held, ListenerId, WorkerId};
use crate::sys::process::Ending;
use crate::wire::message::ToWorker;

/// Whether a worker has more to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hearing {
    GoesOn,
    Pauses,
    Ended,
}

impl Daemon {
    fn kind(&self, id: WorkerId) -> Kind {
        self.workers.get(&id).map_or(Kind::Native, |worker| worker.link.kind())
    }

    /// Passes a connection on. What cannot be sent is reported as returned.
    pub(super) fn send(&mut self, worker: WorkerId, listener: ListenerId, client: Client) {
        match self.kind(worker) {
            Kind::Native => self.send_native(worker, listener, client),
            Kind::Node | Kind::Ipc => self.send_piped(worker, listener, client),
            // Nobody dispatches to those who accept by themselves.
            Kind::Inherit => {}
        }
    }

    /// The worker accepts by itself from now on.
    pub(super) fn let_accept(&mut self, worker: WorkerId) {
        match self.kind(worker) {
            Kind::Native => self.let_native_accept(worker),
            // These have had their sockets from the beginning, or none.
            Kind::Node | Kind::Ipc | Kind::Inherit => {}
        }
    }

    /// The worker finishes what it has, within this time.
    pub(super) fn tell_to_drain(&mut self, worker: WorkerId, deadline: Duration, handback: bool) {
        match self.kind(worker) {
            Kind::Native => self.tell_native_to_drain(worker, deadline, handback),
            Kind::Inherit => self.stop_inherited(worker),
            Kind::Node | Kind::Ipc => self.stop_piped(worker),
        }
    }

    /// Sends the worker a message that only shows whether it receives any. Whether it was sent.
    pub(super) fn ping(&mut self, worker: WorkerId) -> bool {
        match self.kind(worker) {
            Kind::Native => self.tell(worker, &ToWorker::Ping),
            Kind::Node | Kind::Ipc | Kind::Inherit => false,
        }
    }

    /// Asks a draining worker what it holds. `Err`: why it does not tell.
    pub(super) fn ask_holding(&mut self, worker: WorkerId, round: u32) -> Result<(), String> {
        match self.kind(worker) {
            Kind::Native => self.ask_native(worker, round),
            Kind::Node | Kind::Ipc | Kind::Inherit => {
                Err("workers of its kind do not tell".to_owned())
            }
        }
    }

    /// Whether it is known how many connections a worker has in hand.
    pub(super) fn is_counted(&self, worker: WorkerId) -> bool {
        match self.kind(worker) {
            Kind::Native => true,
            Kind::Node | Kind::Ipc => {
                self.piped(worker).is_some_and(|link| link.words.tells_ends())
            }
            // The master never sees one.
            Kind::Inherit => false,
        }
    }

    /// Takes in one message of a worker, if one is there.
    pub(super) fn hear_worker(&mut self, id: WorkerId) -> Hearing {
        match self.kind(id) {
            Kind::Native => self.hear_native(id),
            Kind::Inherit => self.hear_inherited(id),
            Kind::Node | Kind::Ipc => self.hear_piped(id),
        }
    }

    /// Messages that may be read from a worker that is dead: more than its channel holds.
    pub(super) fn last_words(&self, id: WorkerId) -> usize {
        match self.kind(id) {
            Kind::Native | Kind::Inherit => 1024,
            // Lines of a byte, in a stream of a quarter of a megabyte, and what was read before.
            Kind::Node | Kind::Ipc => 1 << 20,
        }
    }

    /// Whether more of what a worker said is here already, and no longer in its channel.
    pub(super) fn has_more_of(&self, id: WorkerId) -> bool {
        self.piped(id).is_some_and(|link| link.pipe.has_message())
    }

    /// How a worker ended, if it did.
    ///
    /// # Errors
    /// Those of `waitid(2)`.
    pub(super) fn reap(&mut self, id: WorkerId) -> std::io::Result<Option<Ending>> {
        match (self.kind(id), self.workers.get(&id)) {
            (Kind::Inherit, _) => self.reap_inherited(id),
            (Kind::Native | Kind::Node | Kind::Ipc, Some(worker)) => worker.process.reap(),
            (Kind::Native | Kind::Node | Kind::Ipc, None) => Ok(None),
        }
    }

    /// What a worker has not received comes back into the master's hand: one connection of a living
    /// worker, all of a dead one's; and whether a PING was among it.
    pub(super) fn read_back(&mut self, id: WorkerId, queue: Queue) -> (Vec<Held>, bool) {
        match (self.kind(id), queue) {
            (Kind::Native, _) => self.read_native_back(id, queue),
            (Kind::Node | Kind::Ipc, Queue::OfDead) => (self.take_unanswered(id), false),
            // What such a worker was handed cannot be recalled while it lives.
            (Kind::Node | Kind::Ipc, Queue::OfLiving) | (Kind::Inherit, _) => (Vec::new(), false),
        }
    }

    /// What was read back of a living worker's queue and is no connection is sent once more.
    pub(super) fn end_read_back(&mut self, id: WorkerId) {
        match self.kind(id) {
            Kind::Native => self.end_native_read_back(id),
            Kind::Node | Kind::Ipc | Kind::Inherit => {}
        }
    }
}
