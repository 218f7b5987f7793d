//! A rollout: how it begins, what ends it, and the way back.
//!
//! A rollout moves the goal of its pools at once and lets the pass do the rest. It is one
//! transaction: it begins with one new worker in each pool (`canary`), it has arrived when every
//! slot of every pool is as wanted, and the first new worker that does not get ready sends all of
//! its pools back. The way back is the same pass with the
//! older goal. A wish is answered once, by the rollout that contained it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::goal::{Course, Plan, Rollout};
use super::roster::Worker;
use super::{Action, Announcement, Generation, Life, PoolId, Record, Slot, Supervisor};

impl Supervisor {
    /// The waiting reload becomes the goal, when its turn has come.
    pub(super) fn begin_next(&mut self, now: Instant) {
        if self.life != Life::Running || self.goal.rollout.is_some() {
            return;
        }
        if self.go_back_to_good(now) {
            return;
        }
        if self.goal.next.is_none() || self.roster.leaving_generations().len() >= self.generations {
            return;
        }
        let Some(next) = self.goal.next.take() else { return };
        self.goal.latest += 1;
        let generation = Generation(self.goal.latest);
        let is_boot = self.goal.pools.is_empty();
        let pools: BTreeSet<PoolId> = next.pools.keys().copied().collect();
        for (pool, plan) in next.pools {
            let goal = self.goal.pools.entry(pool).or_default();
            goal.wanted =
                plan.map(|(edition, policy)| Arc::new(Plan { generation, edition, policy }));
            self.desks.entry(pool).or_default();
        }
        let course = if is_boot { Course::Boot } else { Course::Forward };
        let untried = self.pools_with_canary(&pools);
        let (wishes, begun) = (next.wishes, now);
        let rollout = Rollout { generation, pools, wishes, begun, course, untried };
        let pools = rollout.pools.iter().copied().collect();
        self.goal.rollout = Some(rollout);
        self.renew_doors(now);
        if !is_boot {
            self.open_bill(generation);
            self.announce(Announcement::Reloading);
        }
        self.record(Record::RolloutBegun { generation, pools });
    }

    /// The rollout is over before its end: its pools go back to what is settled.
    pub(super) fn roll_back(&mut self, why: String) {
        let Some(rollout) = &mut self.goal.rollout else { return };
        if rollout.course != Course::Forward {
            return;
        }
        rollout.course = Course::Back { why: why.clone() };
        rollout.untried.clear();
        let generation = rollout.generation;
        self.is_in_doubt = true;
        for pool in &rollout.pools {
            if let Some(goal) = self.goal.pools.get_mut(pool) {
                goal.wanted.clone_from(&goal.settled);
            }
        }
        self.record(Record::RollingBack { generation, why });
    }

    /// A settled plan that is not proven yet was given up: its pool goes back to the good one.
    /// Whether that was so.
    fn go_back_to_good(&mut self, now: Instant) -> bool {
        let failed = self.goal.pools.iter_mut().find_map(|(&id, pool)| {
            let (generation, why) = pool.go_back_to_good()?;
            Some((id, generation, why))
        });
        let Some((pool, generation, why)) = failed else { return false };
        self.is_in_doubt = true;
        let course = Course::Back { why: why.clone() };
        let (pools, wishes, untried) = ([pool].into(), Vec::new(), BTreeSet::new());
        self.goal.rollout =
            Some(Rollout { generation, pools, wishes, begun: now, course, untried });
        self.open_bill(generation);
        self.renew_doors(now);
        self.announce(Announcement::Reloading);
        self.record(Record::RollingBack { generation, why });
        true
    }

    /// Judges the rollout. Whether something was reached, so that the pass runs once more.
    pub(super) fn arrive(&mut self, now: Instant) -> bool {
        let Some(rollout) = &self.goal.rollout else {
            self.end_if_hopeless();
            return false;
        };
        if !rollout.untried.is_empty()
            || !rollout.pools.iter().all(|&pool| self.has_arrived(pool, &rollout.course))
        {
            return false;
        }
        let retired_by = self.retired_by();
        let Some(rollout) = self.goal.rollout.take() else { return false };
        for &pool in &rollout.pools {
            if let Some(goal) = self.goal.pools.get_mut(&pool) {
                goal.settle(now);
            }
            // Slots and pools that are gone: done means that they were told to drain.
            self.retire(pool, retired_by, now);
        }
        self.renew_doors(now);
        self.close_unused();
        self.conclude(rollout, now);
        true
    }

    /// Tells everybody how it went.
    fn conclude(&mut self, rollout: Rollout, now: Instant) {
        let is_serving = self
            .goal
            .pools
            .iter()
            .any(|(&id, pool)| pool.size() > 0 && self.roster.serving(id) > 0);
        let took = now.saturating_duration_since(rollout.begun);
        let generation = rollout.generation;
        let is_done = rollout.course == Course::Forward;
        let outcome = match rollout.course {
            Course::Boot | Course::Resume if !is_serving => Err("no pool got ready".to_owned()),
            Course::Resume => {
                self.record(Record::Resumed { generation, took });
                Ok(generation)
            }
            Course::Boot | Course::Forward => {
                self.is_in_doubt = false;
                self.record(Record::RolloutDone { generation, took });
                Ok(generation)
            }
            Course::Back { why } => {
                self.record(Record::RolledBack { generation, took });
                Err(why)
            }
        };
        // After the first time it ends a RELOADING, which must not be left hanging.
        if is_serving || is_done || self.was_ready {
            self.was_ready = true;
            self.announce(Announcement::Ready);
        }
        for wish in rollout.wishes {
            self.actions.push_back(Action::Reply { wish, outcome: outcome.clone() });
        }
    }

    /// What a killed master had begun may have come to nothing while nobody served. Then whoever waits
    /// for READY hears of it as soon as somebody does, or when nothing is wanted any more.
    pub(super) fn announce_late(&mut self) {
        let is_over = self.goal.rollout.is_none() && self.goal.next.is_none();
        let is_gone = self.goal.latest > 0 && self.goal.pools.is_empty();
        let is_reached = is_gone || self.roster.iter().any(Worker::is_at_work);
        if is_over && !self.was_ready && is_reached {
            self.was_ready = true;
            self.announce(Announcement::Ready);
        }
    }

    /// Whether every slot of the pool is as wanted, or nothing can be done about it.
    fn has_arrived(&self, pool: PoolId, course: &Course) -> bool {
        let Some(goal) = self.goal.pools.get(&pool) else { return true };
        let Some(wanted) = &goal.wanted else { return true };
        if goal.is_hopeless(wanted.generation) && *course != Course::Forward {
            let may_come = |worker: &Worker| worker.is_starting() || worker.is_absent();
            return !self.roster.of(pool).any(may_come);
        }
        (1..=goal.size()).map(Slot).all(|slot| {
            self.roster
                .in_slot(pool, slot)
                .any(|worker| worker.is_at_work() && goal.wants(worker.who.generation))
        })
    }

    /// The service ends when every pool has given up and no worker is left: not while one serves.
    fn end_if_hopeless(&mut self) {
        if self.goal.next.is_some() || !self.roster.is_empty() {
            return;
        }
        let mut reasons = Vec::new();
        for pool in self.goal.pools.values().filter(|pool| pool.wanted.is_some()) {
            let Some(why) = pool.gave_up().filter(|_| pool.is_lost()) else { return };
            let name = pool.policy().map_or("", |policy| policy.name.as_str());
            reasons.push(format!("{name} gave up: {why}"));
        }
        if !reasons.is_empty() {
            self.exit(Some(reasons.join("; ")));
        }
    }
}
