//! The canary: the one worker of a new generation that goes ahead in each pool.
//!
//! Until it has passed, nobody else of its pool is replaced, and nobody of the whole rollout
//! retires: the old worker of its slot serves beside it. So a canary that fails costs nothing; the
//! way back is to let it go. It has passed when it has served for the pool's `canary` time (no time
//! at all, by default: then to be ready is enough) and every probe found it well. All canaries of a
//! rollout pass, or none does.
//!
//! What fails one: it does not get ready, it is lost, it takes nothing while connections wait, it
//! refuses a connection, or a probe finds it unwell. Only a canary is probed: once between its READY
//! and its first client, and once a second on trial.
//!
//! There is none where nothing could be gone back to: at boot, in a pool that is new, or in one that
//! has given up.
//!
//! A probe's connection counts like a client's: as accepted when it is sent, then as in hand, then
//! as finished. One that is lost with its worker is finished, too, and not cut: nobody is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::action::{Action, Record, Who};
use super::goal::{Course, Rollout};
use super::roster::{Phase, Worker};
use super::{Board, Generation, PoolId, Supervisor, WorkerId};

/// From one probe's verdict to the next probe.
const INTERVAL: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Those of a rollout's pools that begin with a canary.
    pub(super) fn pools_with_canary(&self, pools: &BTreeSet<PoolId>) -> BTreeSet<PoolId> {
        let has_canary = |pool: &&PoolId| {
            self.goal.pools.get(pool).is_some_and(|goal| {
                let settled = goal.settled.as_ref();
                goal.wanted.is_some()
                    && settled.is_some_and(|plan| !goal.is_hopeless(plan.generation))
            })
        };
        pools.iter().filter(has_canary).copied().collect()
    }

    /// The rollout under way, while its canaries have not all passed.
    fn trial(&self) -> Option<&Rollout> {
        let rollout = self.goal.rollout.as_ref()?;
        (rollout.course == Course::Forward && !rollout.untried.is_empty()).then_some(rollout)
    }

    /// Whether nothing is to depend on this generation yet.
    pub(super) fn is_on_trial(&self, generation: Generation) -> bool {
        self.trial().is_some_and(|rollout| rollout.generation == generation)
    }

    /// Whether this is a canary that has not passed.
    pub(super) fn is_canary(&self, who: &Who) -> bool {
        self.trial().is_some_and(|rollout| {
            rollout.generation == who.generation && rollout.untried.contains(&who.pool)
        })
    }

    /// Canaries that have not passed, and serve.
    fn serving_canaries(&self) -> impl Iterator<Item = (&Worker, Instant)> {
        let pools = self.trial().into_iter().flat_map(|rollout| {
            rollout.untried.iter().map(move |&pool| (pool, rollout.generation))
        });
        pools.flat_map(|(pool, generation)| {
            let workers = self.roster.of(pool);
            // One that is not back yet can be asked nothing.
            let is_there = move |it: &&Worker| it.who.generation == generation && !it.is_absent();
            workers.filter(is_there).filter_map(|worker| {
                let Phase::Serving { since } = worker.phase() else { return None };
                Some((worker, since + worker.plan.policy.canary))
            })
        })
    }

    /// How many workers the pool may start to replace others, while the rollout is on trial. `None`:
    /// it is not.
    pub(super) fn canaries_missing(&self, pool: PoolId) -> Option<u32> {
        let rollout = self.trial()?;
        let is_there =
            self.roster.of(pool).any(|worker| worker.who.generation == rollout.generation);
        Some(u32::from(rollout.untried.contains(&pool) && !is_there))
    }

    /// A worker said READY.
    pub(super) fn receive_ready(&mut self, id: WorkerId, limit: u32, handback: bool, now: Instant) {
        if !self.roster.note_ready(id, limit) {
            return;
        }
        let Some(worker) = self.roster.get_mut(id) else { return };
        worker.handback = handback;
        let (who, has_probe) = (worker.who, worker.plan.policy.probe);
        if has_probe && self.is_canary(&who) {
            self.probe(id, now);
        } else {
            self.admit(id, now);
        }
    }

    /// A worker takes connections from now on.
    fn admit(&mut self, id: WorkerId, now: Instant) {
        self.roster.promote(id, now);
        let Some(worker) = self.roster.get_mut(id) else { return };
        let (who, policy) = (worker.who, &worker.plan.policy);
        let (time, has_probe) = (policy.canary, policy.probe);
        if let Some(goal) = self.goal.pools.get_mut(&who.pool) {
            goal.note_ready(who.generation, who.slot);
        }
        self.renew_candidates(who.pool);
        self.let_accept(id);
        self.record(Record::Ready(who));
        if !self.is_canary(&who) || time.is_zero() {
            return;
        }
        self.record(Record::OnTrial { who, time });
        if let Some(worker) = self.roster.get_mut(id).filter(|_| has_probe) {
            worker.probe_at = Some(now + INTERVAL);
        }
    }

    /// A worker that accepts by itself does so from now on.
    pub(super) fn let_accept(&mut self, id: WorkerId) {
        if self.roster.get(id).is_some_and(|it| it.is_at_work() && it.plan.policy.admits()) {
            self.actions.push_back(Action::Admit { worker: id });
        }
    }

    /// Asks a worker whether it works.
    fn probe(&mut self, id: WorkerId, now: Instant) {
        let Some(worker) = self.roster.get_mut(id) else { return };
        let Some(&listener) = worker.plan.policy.listeners.first() else { return };
        let edition = worker.plan.edition;
        (worker.is_probed, worker.has_probe, worker.probe_at) = (true, true, None);
        self.note_dispatched(id, now);
        self.actions.push_back(Action::Probe { worker: id, listener, edition });
    }

    /// A probe has come to its end.
    pub(super) fn judge_probe(
        &mut self,
        id: WorkerId,
        result: Result<(), String>,
        is_left: bool,
        now: Instant,
    ) {
        let Some(worker) = self.roster.get_mut(id).filter(|worker| worker.is_probed) else {
            return;
        };
        (worker.is_probed, worker.has_probe) = (false, is_left);
        match (worker.phase(), result) {
            (Phase::Probing { .. }, Ok(())) => self.admit(id, now),
            (Phase::Probing { .. }, Err(why)) => {
                // Whatever it still has in hand when it is killed was the probe's: a worker closes a
                // connection before it counts it as finished.
                worker.has_probe = true;
                self.dismiss(id, format!("its probe {why}"), now);
            }
            (Phase::Serving { .. }, Ok(())) => {
                if let Some(worker) = self.roster.get_mut(id) {
                    worker.probe_at = Some(now + INTERVAL);
                }
            }
            (Phase::Serving { .. }, Err(why)) => {
                self.fail_canary(id, &format!("is not well: its probe {why}"));
            }
            (
                Phase::Starting { .. }
                | Phase::Draining { .. }
                | Phase::Terminated { .. }
                | Phase::Killed,
                _,
            ) => {}
        }
    }

    /// A probe's connection never reached its worker.
    pub(super) fn unsend_probe(&mut self, id: WorkerId) {
        let Some(worker) = self.roster.get_mut(id).filter(|worker| worker.has_probe) else {
            return;
        };
        worker.has_probe = false;
        let pool = worker.who.pool;
        let accounts = &mut self.desks.entry(pool).or_default().accounts;
        accounts.accepted = accounts.accepted.saturating_sub(1);
        self.unsend(id, 1);
    }

    /// Probes the canaries that it is time for. One that has its hands full is asked later: busy is
    /// not unwell.
    pub(super) fn probe_canaries(&mut self, now: Instant, board: &impl Board) {
        let is_due = |worker: &&Worker| worker.probe_at.is_some_and(|at| at <= now);
        let canaries = self.serving_canaries().map(|(worker, _)| worker);
        let due: Vec<WorkerId> = canaries.filter(is_due).map(|it| it.who.worker).collect();
        for id in due {
            if self.can_take(id, board) {
                self.probe(id, now);
            } else if let Some(worker) = self.roster.get_mut(id) {
                worker.probe_at = Some(now + INTERVAL);
            }
        }
    }

    /// Canaries that have served for their time have passed.
    pub(super) fn pass_canaries(&mut self, now: Instant) {
        let has_passed = |(worker, end): &(&Worker, Instant)| *end <= now && !worker.is_probed;
        let passed = self.serving_canaries().filter(has_passed).map(|(worker, _)| worker.who);
        for who in passed.collect::<Vec<_>>() {
            if let Some(rollout) = &mut self.goal.rollout {
                rollout.untried.remove(&who.pool);
            }
            if let Some(worker) = self.roster.get_mut(who.worker) {
                worker.probe_at = None;
            }
        }
    }

    /// What it did ends its trial, and with it the rollout; if it is a canary.
    pub(super) fn fail_canary(&mut self, id: WorkerId, what: &str) {
        let canary = self.roster.get(id).filter(|worker| self.is_canary(&worker.who));
        if let Some(Worker { who, plan, .. }) = canary {
            self.roll_back(format!("{}/{}: the canary {what}", plan.policy.name, who.slot.0));
        }
    }

    /// When a canary is to be probed, or has passed.
    pub(super) fn canary_deadline(&self) -> Option<Instant> {
        // One that is being probed passes with the verdict at the earliest.
        let ends = |(worker, end): (&Worker, Instant)| {
            let end = (!worker.is_probed).then_some(end);
            end.into_iter().chain(worker.probe_at).min()
        };
        self.serving_canaries().filter_map(ends).min()
    }
}
