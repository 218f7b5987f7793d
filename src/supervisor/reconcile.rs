//! The one pass from what is to what should be.
//!
//! Boot, crash, reload, rollback, resize and stop are this pass over different data. The order of
//! its steps matters and transcripts pin it: successors are started before anybody is retired, and
//! what is reached is judged last.

use std::sync::Arc;
use std::time::Instant;

use super::action::{Action, Reason, Record, Spawn};
use super::goal::Plan;
use super::roster::Worker;
use super::{Board, Generation, Life, PoolId, Slot, Supervisor, WorkerId};

/// Rollouts that begin and end in one pass at most: a few that have nothing to do may.
const ROUNDS_MAX: u32 = 100;

impl Supervisor {
    /// Emits the orders that are missing. Calling it again without a new fact emits nothing.
    pub(super) fn reconcile(&mut self, now: Instant, board: &impl Board) {
        self.resume_all(now, board);
        match self.life {
            Life::Running => self.approach(now),
            // Nobody is started or replaced any more; what is there takes the last clients.
            Life::Sweeping => {}
            Life::Stopping => self.wind_down(now),
            Life::Over => return,
        }
        if self.life == Life::Over {
            return self.refresh_deadline();
        }
        self.settle_bills();
        self.close_unused();
        self.resume_all(now, board);
        self.forget_editions();
        self.forget_pools();
        if self.life == Life::Running {
            self.announce_late();
        }
        self.watch_idle(now);
        self.watch_accepting(now);
        self.refresh_deadline();
        #[cfg(debug_assertions)]
        self.check_invariants();
    }

    /// One step after the other, until nothing is reached by that any more.
    fn approach(&mut self, now: Instant) {
        for round in 0.. {
            assert!(round < ROUNDS_MAX, "the pass comes to no end: {:?}", self.goal.rollout);
            self.begin_next(now);
            self.pass_canaries(now);
            let retired_by = self.retired_by();
            for pool in self.goal.pools.keys().copied().collect::<Vec<_>>() {
                self.fill_vacancies(pool, now);
                self.replace(pool, now);
                self.retire(pool, retired_by, now);
            }
            if !self.arrive(now) {
                return;
            }
        }
    }

    /// A slot that nobody fills gets a worker of the last good generation.
    fn fill_vacancies(&mut self, pool: PoolId, now: Instant) {
        let Some(goal) = self.goal.pools.get(&pool) else { return };
        let already = self.roster.starting(pool) as usize;
        let mut orders: Vec<(Slot, Arc<Plan>)> = Vec::new();
        for slot in (1..=goal.span(self.goal.is_rolling(pool))).map(Slot) {
            let Some(plan) = goal.plan_for_vacancy(slot) else { continue };
            // One that starts out of another plan is a hope, not a worker.
            let is_filled = self.roster.in_slot(pool, slot).any(|worker| {
                worker.is_serving()
                    || (worker.is_starting() && worker.who.generation == plan.generation)
            });
            let starting = already + orders.len();
            let surge = plan.policy.surge as usize;
            if is_filled
                || goal.not_before(plan.generation, slot).is_some_and(|at| at > now)
                || (self.goal.is_rolled_out(plan.generation) && starting >= surge)
            {
                continue;
            }
            orders.push((slot, Arc::clone(plan)));
        }
        self.spawn(pool, orders, now);
    }

    /// A slot whose worker is not as wanted, or is due, gets a successor beside it.
    fn replace(&mut self, pool: PoolId, now: Instant) {
        let Some(goal) = self.goal.pools.get(&pool) else { return };
        let Some(wanted) = goal.wanted.as_ref().map(Arc::clone) else { return };
        if goal.is_hopeless(wanted.generation) {
            return;
        }
        let starting = self.roster.starting(pool);
        let surge = self.canaries_missing(pool).unwrap_or(wanted.policy.surge);
        let mut room = surge.saturating_sub(starting);
        if room == 0 {
            return;
        }
        // One recycled worker at a time, and never during a rollout.
        let mut may_recycle = self.goal.rollout.is_none() && starting == 0;
        let mut orders = Vec::new();
        for slot in (1..=goal.size()).map(Slot) {
            let mut serving = self.roster.in_slot(pool, slot).filter(|worker| worker.is_serving());
            let Some(worker) = serving.next() else { continue };
            let is_stale = !goal.wants(worker.who.generation);
            let is_due = worker.due && may_recycle;
            let is_succeeded = serving.next().is_some()
                || self.roster.in_slot(pool, slot).any(Worker::is_starting);
            let waits = goal.not_before(wanted.generation, slot).is_some_and(|at| at > now);
            if room == 0 || is_succeeded || waits || !(is_stale || is_due) {
                continue;
            }
            may_recycle = false;
            room -= 1;
            orders.push((slot, Arc::clone(&wanted)));
        }
        self.spawn(pool, orders, now);
    }

    /// Who is no longer needed leaves.
    pub(super) fn retire(&mut self, pool: PoolId, by: Option<Generation>, now: Instant) {
        let Some(goal) = self.goal.pools.get(&pool) else { return };
        let span = goal.span(self.goal.is_rolling(pool));
        let mut leaving = Vec::new();
        let mut unwanted = Vec::new();
        for worker in self.roster.of(pool) {
            let who = worker.who;
            let is_surplus = who.slot.0 > span;
            if worker.is_absent() {
                // It cannot be told anything: that follows when it is back.
            } else if worker.is_serving() {
                if is_surplus {
                    leaving.push((who.worker, Reason::Surplus));
                } else if self.is_succeeded(worker) {
                    leaving.push((who.worker, Reason::Replaced));
                }
            } else if worker.is_starting()
                && (is_surplus || goal.is_rejected(who.generation) || self.is_succeeded(worker))
            {
                unwanted.push(who.worker);
            }
        }
        leaving.sort_by_key(|&(worker, _)| worker);
        unwanted.sort();
        self.charge_leaving(&leaving, by);
        self.drain(&leaving, now);
        for worker in unwanted {
            self.roster.kill(worker);
            self.actions.push_back(Action::Kill { worker });
        }
    }

    /// Whether a better worker serves in the same slot: as wanted, not due, and newer. One of a
    /// generation on trial is no better one yet.
    fn is_succeeded(&self, worker: &Worker) -> bool {
        let who = worker.who;
        let rank = |other: &Worker| {
            let goal = self.goal.pools.get(&who.pool);
            let is_wanted = goal.is_some_and(|goal| goal.wants(other.who.generation));
            (is_wanted, !other.due, other.who.worker)
        };
        self.roster
            .in_slot(who.pool, who.slot)
            .filter(|other| other.is_at_work() && !self.is_on_trial(other.who.generation))
            .any(|other| other.who.worker != who.worker && rank(other) > rank(worker))
    }

    /// The goal is empty: everybody leaves, and the last one turns the light off.
    fn wind_down(&mut self, now: Instant) {
        let starting: Vec<WorkerId> =
            self.roster.iter().filter(|w| w.is_starting()).map(|w| w.who.worker).collect();
        for worker in starting {
            self.roster.kill(worker);
            self.actions.push_back(Action::Kill { worker });
        }
        let serving: Vec<(WorkerId, Reason)> = self
            .roster
            .iter()
            .filter(|worker| worker.is_at_work())
            .map(|worker| (worker.who.worker, Reason::Stop))
            .collect();
        self.drain(&serving, now);
        for pool in self.desks.keys().copied().collect::<Vec<_>>() {
            self.refuse_held(pool, None);
        }
        if self.roster.is_empty() {
            self.exit(None);
        }
    }

    pub(super) fn exit(&mut self, failure: Option<String>) {
        for pool in self.desks.keys().copied().collect::<Vec<_>>() {
            self.refuse_held(pool, None);
        }
        self.life = Life::Over;
        self.actions.push_back(Action::Exit { failure });
    }

    fn spawn(&mut self, pool: PoolId, orders: Vec<(Slot, Arc<Plan>)>, now: Instant) {
        if orders.is_empty() {
            return;
        }
        let last_resort = !self.roster.of(pool).any(Worker::is_serving);
        for (slot, plan) in orders {
            self.spawn_one(pool, slot, &plan, last_resort, now);
        }
    }

    fn spawn_one(
        &mut self,
        pool: PoolId,
        slot: Slot,
        plan: &Arc<Plan>,
        last_resort: bool,
        now: Instant,
    ) {
        let limit = plan.policy.max_requests;
        let request_limit = if limit == 0 {
            0
        } else {
            // A tenth of jitter, so that a pool's workers are not due together.
            let jitter = 0.9 + 0.2 * self.chance.fraction();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_precision_loss,
                clippy::cast_sign_loss,
                reason = "a count of requests times about one"
            )]
            let jittered = (limit as f64 * jitter) as u64;
            jittered.max(1)
        };
        let worker = self.roster.hire(pool, slot, Arc::clone(plan), now);
        let (who, seat) = (worker.who, worker.seat);
        let edition = plan.edition;
        let spawn = Spawn { who, seat, edition, request_limit, last_resort };
        self.actions.push_back(Action::Spawn(spawn));
    }

    fn drain(&mut self, leaving: &[(WorkerId, Reason)], now: Instant) {
        // All of them first: none of them can have what another has not received.
        let mut orders = Vec::new();
        for &(id, reason) in leaving {
            let deadline = self.roster.drain(id, now);
            orders.push((id, reason, deadline));
        }
        for (id, reason, deadline) in orders {
            let Some(worker) = self.roster.get(id) else { continue };
            let who = worker.who;
            let handback = worker.handback
                && reason != Reason::Stop
                && self.are_covered(id, |other| other.handback);
            // Who takes what waits for it will hand that back, too: meanwhile it is in nobody's hand,
            // and safe from this master's death.
            let is_lively = handback && worker.stuck.is_none();
            let take_back = !is_lively && self.have_others(id);
            self.renew_candidates(who.pool);
            self.record(Record::Draining { who, reason });
            self.actions.push_back(Action::Drain { worker: id, deadline, take_back, handback });
        }
    }

    /// Whether others can have everything that this worker may have been sent. If not, it keeps
    /// what waits in its channel.
    pub(super) fn have_others(&self, id: WorkerId) -> bool {
        self.are_covered(id, |_| true)
    }

    /// Whether each of this worker's listeners has another worker that serves and is `able`.
    fn are_covered(&self, id: WorkerId, able: impl Fn(&Worker) -> bool) -> bool {
        let Some(worker) = self.roster.get(id) else { return false };
        let listeners = &worker.plan.policy.listeners;
        let others = || {
            let others = self.roster.of(worker.who.pool).filter(move |it| it.who.worker != id);
            others.filter(|other| other.is_at_work() && !other.is_suspect() && able(other))
        };
        !listeners.is_empty()
            && listeners.iter().all(|listener| {
                others().any(|other| other.plan.policy.listeners.contains(listener))
            })
    }

    fn forget_editions(&mut self) {
        let mut used = self.goal.editions();
        used.extend(self.roster.iter().map(|worker| worker.plan.edition));
        let unused: Vec<_> = self.editions.difference(&used).copied().collect();
        for edition in unused {
            self.editions.remove(&edition);
            self.actions.push_back(Action::Forget { edition });
        }
    }

    /// A pool that is to go is gone with its last worker.
    fn forget_pools(&mut self) {
        let gone: Vec<PoolId> = self
            .goal
            .pools
            .iter()
            .filter(|(id, pool)| {
                pool.wanted.is_none()
                    && !self.goal.is_rolling(**id)
                    && self.roster.of(**id).next().is_none()
            })
            .map(|(&id, _)| id)
            .collect();
        for pool in gone {
            self.refuse_held(pool, None);
            self.goal.pools.remove(&pool);
            self.desks.remove(&pool);
        }
    }

    /// When to look at the clock again for the sake of what is wanted.
    pub(super) fn goal_deadline(&self) -> Option<Instant> {
        self.goal.pools.values().filter_map(super::goal::PoolGoal::next_deadline).min()
    }

    /// Moves plans that have proven themselves, and ends waits.
    /// Whether there were any.
    pub(super) fn goal_timeout(&mut self, now: Instant) -> bool {
        let mut any = false;
        for pool in self.goal.pools.values_mut() {
            any |= pool.next_deadline().is_some_and(|at| at <= now);
            pool.expire(now);
            if pool.proven_at.is_some_and(|at| at <= now) {
                pool.prove();
            }
        }
        any
    }

    #[cfg(debug_assertions)]
    fn check_invariants(&self) {
        let stray = self.doors.keys().find(|listener| !self.listeners.contains(listener));
        assert!(stray.is_none(), "{stray:?} is closed, but not forgotten");
        for worker in self.roster.iter().filter(|worker| worker.is_serving()) {
            let desk = self.desks.get(&worker.who.pool);
            assert!(desk.is_some(), "{} serves a pool that is gone", worker.who.worker);
        }
        for pool in self.goal.pools.values() {
            assert!(
                pool.proven_at.is_none() || pool.settled.is_some(),
                "nothing is settled that could be proven"
            );
        }
    }
}
