//! What follows when a worker does not get ready, is lost, or lasts too long.
//!
//! A failure is tallied against the worker's own generation. It leads to another try after a
//! while; or, when the generation that is being rolled out does not get ready, to the way back; or,
//! when it happens too often, to giving that generation up. Nothing is started here: the pass that
//! follows fills what is empty.

use std::sync::Arc;
use std::time::Instant;

use super::goal::{Course, Plan, QUICK, Verdict};
use super::roster::{Phase, Worker};
use super::{Action, Board, Held, Life, Past, PoolId, Record, Supervisor, WorkerId};

impl Supervisor {
    /// A worker's process could not be made.
    pub(super) fn fail_spawn(&mut self, worker: WorkerId, why: String, now: Instant) {
        self.fail_start(worker, why, now);
        self.roster.bury(worker);
    }

    /// A worker did not get ready: the slot is tried again, or the pool gives up, or a rollout
    /// that needed it goes back.
    pub(super) fn fail_start(&mut self, id: WorkerId, why: String, now: Instant) {
        let Some(worker) = self.roster.get(id).filter(|worker| worker.is_starting()) else {
            return;
        };
        let (who, plan) = (worker.who, Arc::clone(&worker.plan));
        let Some(goal) = self.goal.pools.get_mut(&who.pool) else { return };
        let name = plan.policy.name.clone();
        let verdict = goal.note_failed_start(&plan, who.slot, now, &mut self.chance);
        let decides = self.decides_rollout(&plan, who.pool);
        let retry = match &verdict {
            Verdict::Retry(wait) if !decides => Some(*wait),
            Verdict::Retry(_) | Verdict::Hopeless(_) => None,
        };
        self.record(Record::StartFailed { who, why: why.clone(), retry });
        if decides {
            self.roll_back(format!("{name}/{}: {why}", who.slot.0));
        } else if let Verdict::Hopeless(count) = verdict {
            self.give_up(&plan, who.pool, format!("{count}, the last one: {why}"));
        }
    }

    /// A worker's READY cannot be accepted.
    pub(super) fn dismiss(&mut self, id: WorkerId, why: String, now: Instant) {
        if self.roster.get(id).is_some_and(Worker::is_starting) {
            self.fail_start(id, why, now);
            self.roster.kill(id);
            self.actions.push_back(Action::Kill { worker: id });
        }
    }

    /// A serving worker is gone, or as good as gone.
    pub(super) fn note_loss(&mut self, worker: &Worker, why: &str, now: Instant) {
        let Phase::Serving { since } = worker.phase() else { return };
        let (who, plan) = (worker.who, Arc::clone(&worker.plan));
        let served = now.saturating_duration_since(since);
        let Some(goal) = self.goal.pools.get_mut(&who.pool) else { return };
        let verdict = goal.note_loss(&plan, who.slot, served, now, &mut self.chance);
        if self.is_canary(&who) {
            let served = served.as_secs_f64();
            let name = format!("{}/{}", plan.policy.name, who.slot.0);
            return self.roll_back(format!("{name}: the canary {why} after {served:.1} s"));
        }
        // Ready, and gone at once: it might as well not have got ready.
        if served < QUICK && self.decides_rollout(&plan, who.pool) {
            let worker = format!("{}/{}", plan.policy.name, who.slot.0);
            return self.roll_back(format!("{worker}: {why} as soon as it was ready"));
        }
        if let Verdict::Hopeless(count) = verdict {
            let name = &plan.policy.name;
            let text = format!("{count}, the last one {name}/{}: {why}", who.slot.0);
            if self.decides_rollout(&plan, who.pool) {
                self.roll_back(text);
            } else {
                self.give_up(&plan, who.pool, text);
            }
        }
    }

    /// Whether a failure of this plan fails the rollout under way.
    fn decides_rollout(&self, plan: &Plan, pool: PoolId) -> bool {
        self.goal.rollout.as_ref().is_some_and(|rollout| {
            rollout.course == Course::Forward
                && rollout.generation == plan.generation
                && rollout.pools.contains(&pool)
        })
    }

    /// This generation of the pool is not started again.
    fn give_up(&mut self, plan: &Plan, pool: PoolId, why: String) {
        let Some(goal) = self.goal.pools.get_mut(&pool) else { return };
        let generation = plan.generation;
        if goal.knows(generation) && goal.note_hopeless(generation, &why) {
            let serving = self.roster.serving(pool);
            self.record(Record::GaveUp { pool, generation, why, serving });
        }
    }

    /// A worker's process is gone, and its channel was read to the end.
    pub(super) fn bury(
        &mut self,
        id: WorkerId,
        how: &str,
        rescued: Vec<Held>,
        answered: u64,
        now: Instant,
        board: &impl Board,
    ) {
        let count = rescued.len() as u64;
        if !self.welcome_rescued(id, count) {
            self.unsend(id, count);
        }
        self.charge_rescued(id, &rescued);
        let Some(worker) = self.roster.get(id).cloned() else {
            return self.hold_homeless(rescued);
        };
        let who = worker.who;
        let hand = worker.hand(board.counts(who.pool, worker.seat));
        let (cut, finished, answered) = hand.at_its_end(worker.has_probe, answered);
        // At the end of the service there are no others.
        let have_others = self.life != Life::Stopping;
        let given = if have_others { count } else { 0 };
        match worker.phase() {
            // That no master was there is nobody's fault.
            Phase::Starting { .. } if worker.is_absent() => {}
            Phase::Starting { .. } => {
                self.fail_start(id, format!("{how} before it was ready"), now)
            }
            Phase::Probing { .. } => {
                self.fail_start(id, format!("{how} while it was probed"), now);
            }
            Phase::Serving { .. } => {
                let why = how.to_owned();
                self.record(Record::Lost { who, why, cut, answered, rescued: given });
                self.roster.bury(id);
                // Its end while no master was there is nobody's fault.
                if !worker.is_absent() {
                    self.note_loss(&worker, how, now);
                }
            }
            Phase::Draining { .. } | Phase::Terminated { .. } | Phase::Killed => {
                let handed_back = worker.given_back();
                self.record(Record::Left { who, cut, answered, rescued: given, handed_back });
            }
        }
        self.roster.bury(id);
        // Those it had never received count when they are sent again.
        let had_taken = rescued.iter().filter(|held| have_others && held.past != Past::New);
        let saved = had_taken.count() as u64;
        self.charge_gone(&worker, cut, saved);
        self.arrivals += hand.accepted + worker.own_back;
        let accounts = &mut self.desks.entry(who.pool).or_default().accounts;
        accounts.close(hand.accepted, cut, finished, answered, saved);
        self.renew_candidates(who.pool);
        self.hold(who.pool, rescued);
    }

    /// A phase has lasted too long.
    pub(super) fn escalate(&mut self, id: WorkerId, now: Instant, board: &impl Board) {
        let Some(worker) = self.roster.get(id) else { return };
        let who = worker.who;
        let in_hand = worker.hand(board.counts(who.pool, worker.seat)).in_hand;
        match worker.phase() {
            _ if worker.is_absent() => self.give_up_waiting(id),
            phase @ (Phase::Starting { .. } | Phase::Probing { .. }) => {
                let limit = worker.plan.policy.start_timeout;
                let is_probed = matches!(phase, Phase::Probing { .. });
                let what = if is_probed { "its probe was not answered" } else { "was not ready" };
                self.fail_start(id, format!("{what} within {limit:?}"), now);
                self.roster.kill(id);
                self.actions.push_back(Action::Kill { worker: id });
            }
            Phase::Draining { .. } => {
                self.record(Record::Overdue { who, in_hand });
                self.roster.terminate(id, now);
                self.actions.push_back(Action::Terminate { worker: id });
            }
            Phase::Terminated { .. } => {
                self.roster.kill(id);
                self.actions.push_back(Action::Kill { worker: id });
            }
            Phase::Serving { .. } | Phase::Killed => {}
        }
    }
}
