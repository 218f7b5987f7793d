//! The one pass from what is to what should be.
//!
//! Boot, crash, reload, rollback, resize and stop are this pass over different data. The order of
//! its steps matters and transcripts pin it: successors are started before anybody is retired, and
//! what is reached is judged last.

use std::sync::Arc;
use std::time::Instant;

use super::action::{Action, Announcement, Reason, Record, Spawn};
use super::goal::{Course, Plan, Rollout};
use super::roster::Worker;
use super::{Board, Generation, Life, PoolId, Slot, Supervisor, WorkerId};

impl Supervisor {
    /// Emits the orders that are missing. Calling it again without a new fact emits nothing.
    pub(super) fn reconcile(&mut self, now: Instant, board: &impl Board) {
        match self.life {
            Life::Running | Life::Sweeping => loop {
                self.begin_next(now);
                for pool in self.goal.pools.keys().copied().collect::<Vec<_>>() {
                    self.fill_vacancies(pool, now);
                    self.replace(pool, now);
                    self.retire(pool, now);
                }
                if !self.arrive(now) {
                    break;
                }
            },
            Life::Stopping => self.wind_down(now),
            Life::Over => {}
        }
        for pool in self.desks.keys().copied().collect::<Vec<_>>() {
            self.resume(pool, now, board);
        }
        self.forget_editions();
        self.refresh_deadline();
        #[cfg(debug_assertions)]
        self.check_invariants();
    }

    /// The waiting reload becomes the goal, when its turn has come.
    fn begin_next(&mut self, now: Instant) {
        if self.life != Life::Running || self.goal.rollout.is_some() {
            return;
        }
        if self.roster.leaving_generations().len() >= self.generations {
            return;
        }
        let Some(next) = self.goal.next.take() else { return };
        self.goal.latest += 1;
        let generation = Generation(self.goal.latest);
        let is_boot = self.goal.pools.is_empty();
        let pools = next.pools.keys().copied().collect();
        for (pool, plan) in next.pools {
            let goal = self.goal.pools.entry(pool).or_default();
            goal.wanted =
                plan.map(|(edition, policy)| Arc::new(Plan { generation, edition, policy }));
            self.desks.entry(pool).or_default();
        }
        let course = if is_boot { Course::Boot } else { Course::Forward };
        let rollout = Rollout { generation, pools, wishes: next.wishes, begun: now, course };
        let pools = rollout.pools.iter().copied().collect();
        self.goal.rollout = Some(rollout);
        self.renew_doors(now);
        if !is_boot {
            self.announce(Announcement::Reloading);
        }
        self.record(Record::RolloutBegun { generation, pools });
    }

    /// A slot that nobody fills gets a worker of the last good generation.
    fn fill_vacancies(&mut self, pool: PoolId, now: Instant) {
        let Some(goal) = self.goal.pools.get(&pool) else { return };
        let is_careful = self.goal.is_rolling(pool) && !self.goal.is_booting();
        let surge = goal.policy().map_or(1, |policy| policy.surge);
        let mut orders = Vec::new();
        for slot in (1..=goal.size()).map(Slot) {
            if self.roster.is_filled(pool, slot) {
                continue;
            }
            let Some(plan) = goal.plan_for_vacancy(slot) else { continue };
            let starting = self.roster.starting(pool) as usize + orders.len();
            let is_new = goal.wants(plan.generation);
            if goal.not_before(plan.generation, slot).is_some_and(|at| at > now)
                || (is_careful && is_new && starting >= surge as usize)
            {
                continue;
            }
            orders.push((slot, Arc::clone(plan)));
        }
        for (slot, plan) in orders {
            self.spawn(pool, slot, plan, now);
        }
    }

    /// A slot whose worker is not as wanted, or is due, gets a successor beside it.
    fn replace(&mut self, pool: PoolId, now: Instant) {
        let Some(goal) = self.goal.pools.get(&pool) else { return };
        let Some(wanted) = goal.wanted.as_ref().map(Arc::clone) else { return };
        if goal.is_hopeless(wanted.generation) {
            return;
        }
        let mut room = wanted.policy.surge.saturating_sub(self.roster.starting(pool));
        // One recycled worker at a time, and never during a rollout.
        let mut may_recycle = self.goal.rollout.is_none() && self.roster.starting(pool) == 0;
        let mut slots = Vec::new();
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
            slots.push(slot);
        }
        for slot in slots {
            self.spawn(pool, slot, Arc::clone(&wanted), now);
        }
    }

    /// Who is no longer needed leaves.
    fn retire(&mut self, pool: PoolId, now: Instant) {
        let Some(goal) = self.goal.pools.get(&pool) else { return };
        let is_rolling = self.goal.is_rolling(pool);
        let mut leaving = Vec::new();
        let mut unwanted = Vec::new();
        for worker in self.roster.of(pool) {
            let who = worker.who;
            let is_surplus = who.slot.0 > goal.size();
            if worker.is_serving() {
                if is_surplus && !is_rolling {
                    leaving.push((who.worker, Reason::Surplus));
                } else if self.is_succeeded(worker) {
                    leaving.push((who.worker, Reason::Replaced));
                }
            } else if worker.is_starting()
                && (is_surplus || !goal.knows(who.generation) || self.is_succeeded(worker))
            {
                unwanted.push(who.worker);
            }
        }
        for (worker, reason) in leaving {
            self.drain(worker, reason, now);
        }
        for worker in unwanted {
            self.roster.kill(worker);
            self.actions.push_back(Action::Kill { worker });
        }
    }

    /// Whether a better worker serves in the same slot: as wanted, not due, and newer.
    fn is_succeeded(&self, worker: &Worker) -> bool {
        let who = worker.who;
        let rank = |other: &Worker| {
            let goal = self.goal.pools.get(&who.pool);
            let is_wanted = goal.is_some_and(|goal| goal.wants(other.who.generation));
            (is_wanted, !other.due, other.who.worker)
        };
        self.roster
            .in_slot(who.pool, who.slot)
            .filter(|other| other.is_serving())
            .any(|other| other.who.worker != who.worker && rank(other) > rank(worker))
    }

    /// Judges the rollout. Whether something was reached, so that the pass runs once more.
    fn arrive(&mut self, now: Instant) -> bool {
        let Some(rollout) = &self.goal.rollout else {
            self.end_if_hopeless();
            return false;
        };
        if !rollout.pools.iter().all(|&pool| self.has_arrived(pool, &rollout.course)) {
            return false;
        }
        let Some(rollout) = self.goal.rollout.take() else { return false };
        let is_ready = self.goal.pools.keys().any(|&pool| self.is_ready(pool));
        for pool in &rollout.pools {
            if let Some(goal) = self.goal.pools.get_mut(pool) {
                goal.settle(now);
            }
        }
        self.renew_doors(now);
        let took = now.saturating_duration_since(rollout.begun);
        let generation = rollout.generation;
        let outcome = match rollout.course {
            Course::Boot if !is_ready => Err("no pool got ready".to_owned()),
            Course::Boot | Course::Forward => {
                self.record(Record::RolloutDone { generation, took });
                Ok(generation)
            }
            Course::Back { why } => {
                self.record(Record::RolledBack { generation, took });
                Err(why)
            }
        };
        if is_ready {
            self.announce(Announcement::Ready);
        }
        for wish in rollout.wishes {
            self.actions.push_back(Action::Reply { wish, outcome: outcome.clone() });
        }
        true
    }

    /// Whether every slot of the pool is as wanted, or nothing can be done about it.
    fn has_arrived(&self, pool: PoolId, course: &Course) -> bool {
        let Some(goal) = self.goal.pools.get(&pool) else { return true };
        let Some(wanted) = &goal.wanted else { return true };
        if goal.is_hopeless(wanted.generation) && *course != Course::Forward {
            return !self.roster.of(pool).any(Worker::is_starting);
        }
        (1..=goal.size()).map(Slot).all(|slot| {
            self.roster
                .in_slot(pool, slot)
                .any(|worker| worker.is_serving() && goal.wants(worker.who.generation))
        })
    }

    /// Whether every slot of the pool is served.
    fn is_ready(&self, pool: PoolId) -> bool {
        let size = self.goal.pools.get(&pool).map_or(0, super::goal::PoolGoal::size);
        size > 0
            && (1..=size)
                .map(Slot)
                .all(|slot| self.roster.in_slot(pool, slot).any(Worker::is_serving))
    }

    /// The service ends when every pool has given up and no worker is left: not while one serves.
    fn end_if_hopeless(&mut self) {
        if self.goal.pools.is_empty() || self.goal.next.is_some() || !self.roster.is_empty() {
            return;
        }
        let mut reasons = Vec::new();
        for pool in self.goal.pools.values().filter(|pool| pool.wanted.is_some()) {
            let Some(why) = pool.gave_up() else { return };
            let name = pool.policy().map_or("", |policy| policy.name.as_str());
            reasons.push(format!("{name} gave up: {why}"));
        }
        self.exit(Some(reasons.join("; ")));
    }

    /// The goal is empty: everybody leaves, and the last one turns the light off.
    fn wind_down(&mut self, now: Instant) {
        let starting: Vec<WorkerId> =
            self.roster.iter().filter(|w| w.is_starting()).map(|w| w.who.worker).collect();
        for worker in starting {
            self.roster.kill(worker);
            self.actions.push_back(Action::Kill { worker });
        }
        let serving: Vec<WorkerId> =
            self.roster.iter().filter(|w| w.is_serving()).map(|w| w.who.worker).collect();
        for worker in serving {
            self.drain(worker, Reason::Stop, now);
        }
        for pool in self.desks.keys().copied().collect::<Vec<_>>() {
            self.refuse_held(pool);
        }
        if self.roster.is_empty() {
            self.exit(None);
        }
    }

    fn exit(&mut self, failure: Option<String>) {
        self.life = Life::Over;
        self.actions.push_back(Action::Exit { failure });
    }

    fn spawn(&mut self, pool: PoolId, slot: Slot, plan: Arc<Plan>, now: Instant) {
        let last_resort = self.roster.serving(pool) == 0;
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
        let worker = self.roster.hire(pool, slot, Arc::clone(&plan), now);
        let (who, seat) = (worker.who, worker.seat);
        let edition = plan.edition;
        let spawn = Spawn { who, seat, edition, request_limit, last_resort };
        self.actions.push_back(Action::Spawn(spawn));
    }

    fn drain(&mut self, worker: WorkerId, reason: Reason, now: Instant) {
        let deadline = self.roster.drain(worker, now);
        let Some(who) = self.roster.get(worker).map(|worker| worker.who) else { return };
        self.renew_candidates(who.pool);
        self.record(Record::Draining { who, reason });
        let take_back = reason != Reason::Stop && self.roster.serving(who.pool) > 0;
        self.actions.push_back(Action::Drain { worker, deadline, take_back });
    }

    /// The rollout is over before its end: its pools go back to what is settled.
    pub(super) fn roll_back(&mut self, why: String) {
        let Some(rollout) = &mut self.goal.rollout else { return };
        if rollout.course != Course::Forward {
            return;
        }
        rollout.course = Course::Back { why: why.clone() };
        let generation = rollout.generation;
        for pool in &rollout.pools {
            if let Some(goal) = self.goal.pools.get_mut(pool) {
                goal.wanted.clone_from(&goal.settled);
            }
        }
        self.record(Record::RollingBack { generation, why });
    }

    /// A settled plan that is not proven yet has failed: the pool goes back to the good one.
    pub(super) fn go_back_to_good(&mut self, pool: PoolId, why: String, now: Instant) {
        let Some(goal) = self.goal.pools.get_mut(&pool) else { return };
        let Some(settled) = goal.settled.as_ref().map(|plan| plan.generation) else { return };
        let is_good = |plan: &Arc<Plan>| plan.generation != settled;
        if self.goal.rollout.is_some() || !goal.good.as_ref().is_some_and(is_good) {
            return;
        }
        goal.settled.clone_from(&goal.good);
        goal.wanted.clone_from(&goal.good);
        goal.proven_at = None;
        let course = Course::Back { why: why.clone() };
        let (pools, wishes) = ([pool].into(), Vec::new());
        let rollout = Rollout { generation: settled, pools, wishes, begun: now, course };
        self.goal.rollout = Some(rollout);
        self.announce(Announcement::Reloading);
        self.record(Record::RollingBack { generation: settled, why });
    }

    fn forget_editions(&mut self) {
        let mut used = self.goal.editions();
        used.extend(self.roster.iter().map(|worker| worker.plan.edition));
        let unused: Vec<_> = self.editions.difference(&used).copied().collect();
        for edition in unused {
            self.editions.remove(&edition);
            self.actions.push_back(Action::Forget { edition });
        }
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
            self.refuse_held(pool);
            self.goal.pools.remove(&pool);
            self.desks.remove(&pool);
        }
    }

    /// When to look at the clock again for the sake of what is wanted.
    pub(super) fn goal_deadline(&self) -> Option<Instant> {
        self.goal.pools.values().filter_map(super::goal::PoolGoal::next_deadline).min()
    }

    /// Moves plans that have proven themselves, and ends waits.
    pub(super) fn goal_timeout(&mut self, now: Instant) {
        for pool in self.goal.pools.values_mut() {
            pool.expire(now);
            if pool.proven_at.is_some_and(|at| at <= now) {
                pool.prove();
            }
        }
    }

    #[cfg(debug_assertions)]
    fn check_invariants(&self) {
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
