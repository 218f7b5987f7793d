//! What a worker that speaks to its service manager says about itself.
//!
//! It may stop unasked: then it drains, and its slot is filled at once. That is no loss, unless it had
//! hardly begun, because a program that does so again and again must not be started again and again. It
//! may ask for more time, and gets it. It may be known not to work any more: then it is ended, as one is
//! that stalls.

use std::time::{Duration, Instant};

use super::action::{Action, Reason, Record};
use super::goal::QUICK;
use super::roster::Phase;
use super::{Accept, ListenerId, Policy, Supervisor, WorkerId};

/// What one extension can be at most. More is asked for again.
const EXTENSION_MAX: Duration = Duration::from_secs(3600);

impl Supervisor {
    /// What the worker's pool demanded when the worker was started.
    #[must_use]
    pub fn policy_of(&self, worker: WorkerId) -> Option<&Policy> {
        self.roster.get(worker).map(|worker| &worker.plan.policy)
    }

    /// Whether workers accept there, and there are some.
    #[must_use]
    pub fn is_accepted_by_workers(&self, listener: ListenerId) -> bool {
        self.roster.iter().any(|worker| {
            let policy = &worker.plan.policy;
            worker.is_at_work()
                && policy.accept == Accept::Workers
                && policy.listeners.contains(&listener)
        })
    }

    /// A worker stops by itself.
    pub(super) fn note_leaving(&mut self, id: WorkerId, now: Instant) {
        let Some(worker) = self.roster.get(id).filter(|worker| worker.is_at_work()) else { return };
        let Phase::Serving { since } = worker.phase() else { return };
        let worker = worker.clone();
        let who = worker.who;
        self.roster.drain(id, now);
        self.renew_candidates(who.pool);
        self.record(Record::Draining { who, reason: Reason::Own });
        if now.saturating_duration_since(since) < QUICK || self.is_canary(&who) {
            self.note_loss(&worker, "stopped by itself", now);
        }
    }

    /// A worker needs so long from now on, to get ready or to drain.
    pub(super) fn extend(&mut self, id: WorkerId, time: Duration, now: Instant) {
        self.roster.extend(id, now + time.min(EXTENSION_MAX));
        self.refresh_deadline();
    }

    /// A worker does not work any more, as in "{name} {why}": it is ended.
    pub(super) fn note_broken(&mut self, id: WorkerId, why: String, now: Instant) {
        let Some(worker) = self.roster.get(id).cloned() else { return };
        let who = worker.who;
        match worker.phase() {
            Phase::Starting { .. } | Phase::Probing { .. } => return self.dismiss(id, why, now),
            Phase::Serving { .. } | Phase::Draining { .. } => {}
            Phase::Terminated { .. } | Phase::Killed => return,
        }
        self.record(Record::Broken { who, why: why.clone() });
        self.roster.kill(id);
        self.note_loss(&worker, &why, now);
        self.renew_candidates(who.pool);
        self.actions.push_back(Action::Kill { worker: id });
    }
}
