//! Native workers that accept by themselves: when they may, and what they see of each other.
//!
//! A worker is told where to accept once the mind has admitted it: each listening socket of its pool
//! comes as a message on its channel (LISTEN), so a probe comes before the first client. From then on
//! the master has no part in it. Nothing tells a worker to cease but DRAIN, and new listeners come with
//! new workers. What is told twice, because a master was killed in between, changes nothing.
//!
//! Those who accept look at each other's counters (`worker/balance.rs`). Which seats these are the
//! master writes down on the board whenever one comes or goes. And they call each other by a bell, an
//! eventfd that all of a pool have. It is the master's gift, and lives and dies with him: the next one,
//! or the next image of this one, gives everybody another.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Daemon;
use super::journal::{Entry, Level};
use crate::kinds::Worker;
use crate::supervisor::{Event, PoolId, WorkerId};
use crate::sys::listen::set_blocking;
use crate::wire::scoreboard::identity;
use crate::wire::siblings::Stand;

/// By which the workers of a pool call each other.
#[derive(Debug, Default)]
pub(super) struct Bells(BTreeMap<PoolId, Arc<EventFd>>);

impl Bells {
    /// A pool's bell, made when it is first asked for.
    fn of(&mut self, pool: PoolId) -> std::io::Result<Arc<EventFd>> {
        if let Some(bell) = self.0.get(&pool) {
            return Ok(Arc::clone(bell));
        }
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let bell = Arc::new(bell);
        self.0.insert(pool, Arc::clone(&bell));
        Ok(bell)
    }
}

impl Daemon {
    /// Whether this worker is of a pool whose workers accept by themselves.
    pub(super) fn must_accept(&self, id: WorkerId) -> bool {
        self.supervisor.policy_of(id).is_some_and(crate::supervisor::Policy::admits)
    }

    /// Tells a worker where to accept. One that cannot be told is of no use.
    pub(super) fn let_native_accept(&mut self, id: WorkerId) {
        if let Err(error) = self.tell_listeners(id) {
            let why = format!("cannot be given its listening sockets: {error}");
            return self.report(Event::Broken { worker: id, why });
        }
        let Some(pool) = self.workers.get(&id).map(|worker| worker.who.pool) else { return };
        if let Some(link) = self.native_mut(id) {
            link.accepts = true;
        }
        self.publish_siblings(pool);
    }

    fn tell_listeners(&mut self, id: WorkerId) -> std::io::Result<()> {
        let Some(pool) = self.workers.get(&id).map(|worker| worker.who.pool) else { return Ok(()) };
        let bell = self.boards.bells.of(pool)?;
        // Workers of another kind, who had them before, may have wanted them otherwise.
        self.let_listeners_block(id, false)?;
        let (Some(link), Some(policy)) = (self.native(id), self.supervisor.policy_of(id)) else {
            return Ok(());
        };
        for listener in policy.listeners.iter().filter_map(|&id| self.listeners.get(id)) {
            let limit = policy.max_connections;
            link.let_accept(&listener.name, limit, listener.as_fd(), bell.as_fd())?;
        }
        Ok(())
    }

    /// Sets whether the listeners of a worker block: one setting for all who have the socket.
    pub(super) fn let_listeners_block(
        &mut self,
        id: WorkerId,
        blocks: bool,
    ) -> std::io::Result<()> {
        let Some(policy) = self.supervisor.policy_of(id) else { return Ok(()) };
        let mut inherited = None;
        for listener in policy.listeners.iter().filter_map(|&id| self.listeners.get(id)) {
            set_blocking(listener.as_fd(), blocks)?;
            inherited = inherited.or((!listener.is_ours()).then_some(&listener.name));
        }
        let came_otherwise = self.listeners.inheritance.blocks.is_some_and(|it| it != blocks);
        let will_change = came_otherwise && self.notify.has_manager() && self.adoption.has_door();
        let Some(name) = inherited.filter(|_| will_change) else { return Ok(()) };
        let (right, harm) = match blocks {
            false => ("yes", "it may stand still until the next client comes there"),
            true => ("no", "it may be told that nobody waits"),
        };
        let text = format!(
            "listener {name}: the unit should have NonBlocking={right}; otherwise systemd changes it \
             when it starts the next master after this one was killed, while a worker accepts: {harm}"
        );
        self.say_once(Entry::new(Level::Warning, text));
        Ok(())
    }

    /// This image gives everybody who accepts another bell.
    pub(super) fn replace_bells(&mut self) {
        let accepts = |worker: &Worker| worker.native().is_some_and(|link| link.accepts);
        let accepting = self.workers.iter().filter(|(_, worker)| accepts(worker));
        for id in accepting.map(|(&id, _)| id).collect::<Vec<_>>() {
            if let Err(error) = self.tell_listeners(id) {
                let who = self.describe(id);
                let text = format!("{who} cannot be called by its siblings: {error}");
                self.say(Level::Warning, text);
            }
        }
    }

    /// A worker is gone: nobody waits for it to accept.
    pub(super) fn dismiss_sibling(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let (pool, words) = (worker.who.pool, worker.words.clone());
        let Some(link) = worker.native_mut().filter(|link| link.accepts) else { return };
        link.accepts = false;
        words.set_stand(Stand::IsElsewhere);
        self.publish_siblings(pool);
        // Somebody may have relied on it.
        if let Some(bell) = self.boards.bells.0.get(&pool) {
            // Only a counter near its maximum could refuse.
            let _ = bell.write(1);
        }
    }

    /// Writes down who accepts. A worker that counts on the board of another master is seen by nobody.
    fn publish_siblings(&mut self, pool: PoolId) {
        let Some((board, _)) = self.boards.all.get(&pool) else { return };
        let accepts = |worker: &&Worker| {
            worker.who.pool == pool
                && worker.native().is_some_and(|link| link.accepts)
                && identity(worker.words.as_fd()) == board.identity()
        };
        let seats = self.workers.values().filter(accepts).map(|worker| worker.words.seat());
        let seats: Result<Vec<u32>, _> = seats.map(u32::try_from).collect();
        match seats {
            Ok(seats) => board.set_siblings(&seats),
            Err(error) => self.say(Level::Error, format!("a seat is none: {error}")),
        }
    }
}
