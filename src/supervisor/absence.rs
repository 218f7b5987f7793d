//! Workers that a killed master left behind, and the master after it.
//!
//! A worker does not die with its master: it serves on, and comes to the next one. That one knows
//! from the state of the first who there is. Until such a worker has come it is *absent*: it fills
//! its slot, so that nobody is started for it, and is given and told nothing. It is waited for, for
//! [`PATIENCE`]; whoever has not come by then is killed, and the slot is filled anew. What is to
//! become of it otherwise (it is replaced, surplus, or the service ends) follows when it has come.
//!
//! What connections it has is known when it comes, from what it counted; so the accounts begin
//! anew with what is known to be over. A rollout goes on where it was, without those who waited for
//! its outcome. Where none was under way, coming back to what is settled is one, like a boot: it
//! ends with READY.

use std::time::{Duration, Instant};

use super::action::{Action, Reason, Record};
use super::event::Held;
use super::roster::Worker;
use super::{Board, Supervisor, WorkerId};

/// How long an absent worker is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What there is to know of a worker that is back: [`super::Event::Joined`].
pub(super) struct Back {
    pub(super) worker: WorkerId,
    pub(super) limit: u32,
    pub(super) handback: bool,
    pub(super) draining: bool,
    pub(super) handed_back: u64,
    pub(super) rescued: Vec<Held>,
}

impl Supervisor {
    /// A worker of a killed master is back. What it took, and what was in its queue, is accepted
    /// now as far as the accounts go.
    pub(super) fn rejoin(&mut self, back: Back, now: Instant, board: &impl Board) {
        let Back { worker: id, limit, handback, draining, handed_back, rescued } = back;
        let was_starting = self.roster.get(id).is_some_and(Worker::is_starting);
        if !self.roster.join(id, limit, now) {
            return self.hold_homeless(rescued);
        }
        let Some(worker) = self.roster.get_mut(id) else { return };
        let who = worker.who;
        let counts = board.counts(who.pool, worker.seat);
        worker.handback = handback;
        worker.own_back = handed_back.min(worker.accepted(counts));
        worker.handed_back = handed_back - worker.own_back;
        worker.dispatched = counts.taken.max(worker.handed_back);
        worker.messages = counts.progress;
        let kept = worker.dispatched - worker.handed_back;
        let accounts = &mut self.desks.entry(who.pool).or_default().accounts;
        accounts.accepted += kept + rescued.len() as u64;
        if let Some(goal) = self.goal.pools.get_mut(&who.pool).filter(|_| was_starting) {
            goal.note_ready(who.generation, who.slot);
        }
        self.renew_candidates(who.pool);
        self.record(Record::Joined(who));
        self.hold(who.pool, rescued);
        if draining {
            self.note_draining(id, now);
        }
        // What it has accepted so far it has not forgotten; where, perhaps the other master never said.
        self.let_accept(id);
    }

    /// A worker that is back drains, whatever was written down.
    fn note_draining(&mut self, id: WorkerId, now: Instant) {
        let Some(who) = self.roster.get(id).filter(|it| it.is_at_work()).map(|it| it.who) else {
            return;
        };
        self.roster.drain(id, now);
        self.renew_candidates(who.pool);
        self.record(Record::Draining { who, reason: Reason::Replaced });
    }

    /// What came out of the queue of one that died before it came was accepted by the master before.
    /// Whether it is such a one.
    pub(super) fn welcome_rescued(&mut self, id: WorkerId, count: u64) -> bool {
        let Some(worker) = self.roster.get(id).filter(|worker| worker.is_absent()) else {
            return false;
        };
        let pool = worker.who.pool;
        self.desks.entry(pool).or_default().accounts.accepted += count;
        true
    }

    /// An absent worker has not come.
    pub(super) fn give_up_waiting(&mut self, id: WorkerId) {
        let Some(who) = self.roster.get(id).map(|worker| worker.who) else { return };
        self.record(Record::Missing(who));
        self.roster.kill(id);
        self.actions.push_back(Action::Kill { worker: id });
    }
}
