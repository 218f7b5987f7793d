//! One master after the other in a simulated world: by a new image of itself, and by being killed.

use super::super::*;
use super::shell::World;
use super::worker::{Message, Said};

impl World {
    /// What a master that is killed right now leaves behind.
    pub fn keep_state(&mut self) {
        // Some worlds never see it killed: that is much to write down.
        if !self.may_crash {
            return;
        }
        let revision = self.mind.revision();
        if self.exit.is_none() && self.kept.as_ref().is_none_or(|(kept, ..)| *kept != revision) {
            self.kept = Some((revision, self.mind.snapshot(self.now), self.now));
        }
    }

    /// Another program reads what this one has written.
    fn through_text(snapshot: &Snapshot) -> Snapshot {
        serde_json::from_str(&serde_json::to_string(snapshot).unwrap()).unwrap()
    }

    /// The master replaces its own image, while no worker is asked anything.
    pub fn upgrade(&mut self) {
        if self.ids().into_iter().any(|id| self.with(id, |it| it.probe_ends.is_some())) {
            return;
        }
        self.say(|| "upgrade".to_owned());
        let snapshot = World::through_text(&self.mind.snapshot(self.now));
        let mind = Supervisor::restore(snapshot, self.now, How::Carried).unwrap();
        let before = self.mind.status(self.now, &self.workers);
        let after = mind.status(self.now, &self.workers);
        // Workers go on counting meanwhile.
        assert_eq!(before.progress, after.progress);
        assert_eq!(before.pools.len(), after.pools.len());
        self.mind = mind;
        self.kept = None;
        self.keep_state();
    }

    /// The master is killed. Some of its workers come to the next one.
    pub fn crash(&mut self) {
        let Some((_, snapshot, taken)) = self.kept.take() else { return };
        if snapshot.is_stopping() {
            self.kept = Some((self.mind.revision(), snapshot, taken));
            return;
        }
        let mut awaited = std::collections::BTreeSet::new();
        for (who, _, is_ready) in snapshot.workers() {
            let is_able = is_ready && !self.dice.one_in(4);
            if is_able && self.with(who.worker, |it| it.died).is_none() {
                awaited.insert(who.worker);
            }
        }
        self.say(|| format!("the master is killed; awaited are {awaited:?}"));
        for (_, (_, client, _)) in std::mem::take(&mut self.held) {
            self.workers.0.get_mut().end(client, "lost with the master");
        }
        let processes: Vec<WorkerId> = self.workers.0.get_mut().processes.keys().copied().collect();
        for worker in processes {
            if awaited.contains(&worker) {
                self.with(worker, |it| {
                    it.is_absent = true;
                    // Its answer is heard by nobody.
                    it.probe_ends = None;
                    it.channel.retain(|message| *message != Message::Probe);
                });
            } else {
                self.forget_process(worker, "finished by a stranger");
            }
        }
        for listener in self.listeners.values_mut() {
            listener.attention = Attention::Pause;
        }
        // Systemd waits for READY of the new process.
        self.is_reloading = true;
        let how = How::Orphaned { now: self.now, awaited };
        self.mind = Supervisor::restore(World::through_text(&snapshot), taken, how).unwrap();
        self.time_out();
    }

    /// A process that the master does not know any more, or cannot look into.
    pub fn forget_process(&mut self, worker: WorkerId, how: &'static str) {
        let inner = self.workers.0.get_mut();
        let Some(process) = inner.processes.remove(&worker) else { return };
        let queued = process.channel.iter().filter_map(|message| match message {
            Message::Connection(_, client, _) => Some(*client),
            Message::Probe | Message::Ping | Message::Drain(_) => None,
        });
        let given = process.outbox.iter().filter_map(|said| match said {
            Said::Handback(_, client, _) => Some(*client),
            Said::Ready | Said::Room | Said::Retire | Said::Drained | Said::Probed(_) => None,
        });
        let clients: Vec<u64> =
            queued.chain(given).chain(process.hand.iter().map(|(_, client)| *client)).collect();
        for client in clients {
            inner.end(client, how);
        }
    }

    /// An absent worker may come now: what it has not received is read back first, but for the order
    /// to drain. Whether it has come.
    pub fn join(&mut self, worker: WorkerId) -> bool {
        let comes = self.with(worker, |it| it.lives() && !it.is_stopped);
        if !comes || !(self.calm || self.dice.one_in(3)) {
            return false;
        }
        let drains = self.with(worker, |it| {
            it.channel.iter().find(|it| matches!(it, Message::Drain(_))).copied()
        });
        let rescued = self.read_back(worker);
        let (limit, handback, handed_back) = self.with(worker, |it| {
            it.is_absent = false;
            it.channel.extend(drains);
            (it.limit, it.handback, it.handed_back_before)
        });
        let draining = false;
        self.tell(Event::Joined { worker, limit, handback, draining, handed_back, rescued });
        self.exit.is_none()
    }
}
