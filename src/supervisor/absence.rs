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

use std::time::Duration;

use super::action::{Action, Record};
use super::event::Held;
use super::{Board, Supervisor, WorkerId};

/// How long an absent worker is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

impl Supervisor {
    /// A worker of a killed master is back. What it took, and what was in its queue, is accepted
    /// now as far as the accounts go.
    pub(super) fn rejoin(
        &mut self,
        id: WorkerId,
        limit: u32,
        handback: bool,
        handed_back: u64,
        rescued: Vec<Held>,
        board: &impl Board,
    ) {
        if !self.roster.join(id, limit) {
            return self.hold_homeless(rescued);
        }
        let Some(worker) = self.roster.get_mut(id) else { return };
        let who = worker.who;
        let counts = board.counts(who.pool, worker.seat);
        worker.handback = handback;
        worker.dispatched = counts.taken.max(handed_back);
        worker.handed_back = handed_back;
        worker.messages = counts.progress;
        let kept = worker.dispatched - handed_back;
        let accounts = &mut self.desks.entry(who.pool).or_default().accounts;
        accounts.accepted += kept + rescued.len() as u64;
        self.renew_candidates(who.pool);
        self.record(Record::Joined(who));
        self.hold(who.pool, rescued);
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
