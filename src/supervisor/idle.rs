//! Scale to zero: when the service ends because nobody uses it, to be started again by the next
//! client through its socket unit.
//!
//! Whether anybody uses it is read off the counters now and then, an eighth of the time apart:
//! nobody was accepted since the last look, and nobody is in hand or held now. A connection between
//! two looks counts as one at the later of them. So the service ends after the time that is
//! configured, or up to an eighth later, never earlier.
//!
//! It stays, however long nobody comes, where ending would do harm: a pool that no client could
//! start again, a change that is under way or not proven yet, clients that may be waiting without
//! our seeing them, and a failed reload: what serves now could perhaps not be started from what is
//! installed and configured by now.

use std::time::{Duration, Instant};

use super::action::{Attention, Record};
use super::goal::PoolGoal;
use super::roster::Worker;
use super::{Board, Life, PoolId, Supervisor};

/// What is known about the service's being used.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) after: Duration,
    /// From when on nobody has used it.
    pub(super) since: Instant,
    pub(super) look_at: Instant,
    pub(super) accepted: u64,
}

impl Supervisor {
    /// Ends the service when nobody has used it for so long, 8 ms at least.
    #[must_use]
    pub fn with_idle_exit(mut self, after: Duration) -> Supervisor {
        self.idle_exit = Some(after);
        self
    }

    /// The pools that no client could start again; see [`super::Policy::is_bound_here`].
    #[must_use]
    pub fn residents(&self) -> Vec<PoolId> {
        let pools = self.goal.pools.iter();
        pools.filter(|(_, pool)| pool.must_stay()).map(|(&id, _)| id).collect()
    }

    /// Begins to look, once the service is ready.
    pub(super) fn watch_idle(&mut self, now: Instant) {
        let Some(after) = self.idle_exit else { return };
        if self.was_ready && self.idle.is_none() {
            let accepted = self.arrivals;
            self.idle = Some(Idle { after, since: now, look_at: now + after / 8, accepted });
        }
    }

    pub(super) fn idle_deadline(&self) -> Option<Instant> {
        let idle = self.idle.as_ref().filter(|_| self.life == Life::Running);
        idle.map(|idle| idle.look_at)
    }

    /// Looks, if it is time, and ends the service if nobody uses it.
    pub(super) fn check_idle(&mut self, now: Instant, board: &impl Board) {
        if self.idle_deadline().is_none_or(|at| at > now) {
            return;
        }
        let accepted = self.arrived(board);
        let is_used = self.is_used(board) || !self.may_end();
        let Some(idle) = &mut self.idle else { return };
        if is_used || idle.accepted != accepted {
            (idle.since, idle.accepted) = (now, accepted);
        }
        let end = idle.since + idle.after;
        idle.look_at = end.min(now + idle.after / 8);
        if end <= now {
            let quiet = now.saturating_duration_since(idle.since);
            self.end_with(Record::Idle { quiet });
        }
    }

    /// Clients that ever came.
    fn arrived(&self, board: &impl Board) -> u64 {
        let counts = |it: &Worker| it.accepted(board.counts(it.who.pool, it.seat));
        self.arrivals + self.roster.iter().map(counts).sum::<u64>()
    }

    fn is_used(&self, board: &impl Board) -> bool {
        self.desks.keys().any(|&pool| self.held(pool) > 0)
            || self
                .roster
                .iter()
                .any(|worker| worker.hand(board.counts(worker.who.pool, worker.seat)).in_hand > 0)
    }

    fn may_end(&self) -> bool {
        // Who has not come back yet may be full of clients.
        !self.roster.iter().any(Worker::is_absent)
            && self.goal.rollout.is_none()
            && self.goal.next.is_none()
            && !self.is_in_doubt
            && self.goal.pools.values().all(PoolGoal::may_end)
            && self.doors.iter().all(|(&listener, door)| {
                door.attention == Attention::Accept || self.is_accepted_by_workers(listener)
            })
    }
}

impl PoolGoal {
    fn must_stay(&self) -> bool {
        let plans = self.wanted.iter().chain(&self.settled);
        let mut policies = plans.map(|plan| &plan.policy);
        policies.any(|policy| {
            // Of others nobody sees whether they are used.
            policy.listeners.is_empty() || policy.is_bound_here || !policy.is_seen()
        })
    }

    fn may_end(&self) -> bool {
        let is_proven = self.good.as_ref().is_some_and(|good| self.wants(good.generation));
        !self.must_stay() && is_proven && self.gave_up().is_none()
    }
}
