//! The same truth, for people: what the mind knows, as plain data.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::goal::{Course, PoolGoal};
use super::roster::{Phase, Worker, notice};
use super::{
    Accept, Accounts, Board, Generation, Life, Policy, PoolId, Slot, Supervisor, WorkerId,
};

/// Everything about the service at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// In the order of their ids.
    pub pools: Vec<PoolStatus>,
    /// The rollout under way.
    pub progress: Option<Progress>,
    /// The service ends.
    pub is_stopping: bool,
    /// Another reload waits for its turn.
    pub is_reload_waiting: bool,
}

/// How far a rollout is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Its generation.
    pub generation: Generation,
    /// Slots that serve what is wanted.
    pub done: u32,
    /// All slots of its pools.
    pub total: u32,
    /// The same for each of its pools.
    pub pools: Vec<PoolProgress>,
    /// Why it goes back.
    pub going_back: Option<String>,
    /// It is none, but the way to where everything was before the master was killed.
    pub is_resuming: bool,
}

/// How far a rollout is in one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolProgress {
    /// The pool.
    pub pool: PoolId,
    /// Slots that serve what is wanted.
    pub done: u32,
    /// All slots. None, where the pool is to go.
    pub total: u32,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// Its id.
    pub pool: PoolId,
    /// Its name.
    pub name: String,
    /// Workers that should serve.
    pub size: u32,
    /// Workers that serve.
    pub serving: u32,
    /// The generation that is wanted.
    pub generation: Option<Generation>,
    /// The last good one, which every respawn uses.
    pub good: Option<Generation>,
    /// Why nothing more is started.
    pub gave_up: Option<String>,
    /// Who accepts its connections.
    pub accept: Accept,
    /// What becomes of its connections is known.
    pub is_seen: bool,
    /// Where its connections have gone, workers that are gone included.
    pub accounts: Accounts,
    /// Connections that wait in the master: for a worker, or for their first byte.
    pub held: u64,
    /// Of these, the ones whose clients have said nothing yet.
    pub silent: u64,
    /// Connections in the hand of its workers.
    pub in_hand: u64,
    /// Its workers, by slot.
    pub workers: Vec<WorkerStatus>,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerStatus {
    /// Its id.
    pub worker: WorkerId,
    /// Its position.
    pub slot: Slot,
    /// Its generation.
    pub generation: Generation,
    /// Where it is in its life.
    pub phase: PhaseName,
    /// For how long it has served.
    pub serving_for: Option<Duration>,
    /// Connections it was sent, less those read back, and those it accepted by itself.
    pub dispatched: u64,
    /// Connections it has.
    pub in_hand: u64,
    /// How long it has until it is sent SIGKILL, if it is leaving.
    pub cut_in: Option<Duration>,
    /// It takes nothing while connections wait.
    pub is_stuck: bool,
}

/// A phase without what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseName {
    /// Not ready yet.
    Starting,
    /// Serves on from before the master was killed, and has not come back yet.
    Absent,
    /// Takes connections.
    Serving,
    /// Finishes what it has.
    Draining,
    /// Was sent SIGTERM or SIGKILL.
    Ending,
}

impl Supervisor {
    /// Everything about the service now.
    #[must_use]
    pub fn status(&self, now: Instant, board: &impl Board) -> Status {
        Status {
            pools: self.goal.pools.keys().map(|&pool| self.pool_status(pool, now, board)).collect(),
            progress: self.progress(),
            is_stopping: self.life.is_stopping(),
            is_reload_waiting: self.goal.next.is_some(),
        }
    }

    /// What the next rollout's generation would be, if one began now.
    #[must_use]
    pub fn next_generation(&self) -> Generation {
        Generation(self.goal.latest + 1)
    }

    /// Every pool, with the number of workers that should serve it.
    #[must_use]
    pub fn sizes(&self) -> BTreeMap<PoolId, u32> {
        self.goal.pools.iter().map(|(&pool, goal)| (pool, goal.size())).collect()
    }

    /// The next moment at which what is under way comes to an end of its own accord, in part at
    /// least: a start or a drain that takes too long, a wait before the next try. `None`: nothing is
    /// under way, or nothing bounds it.
    #[must_use]
    pub fn next_limit(&self) -> Option<Instant> {
        let is_under_way = match self.life {
            Life::Running => self.goal.rollout.is_some() || self.goal.next.is_some(),
            Life::Sweeping | Life::Stopping => true,
            Life::Over => false,
        };
        // Asked at every turn of the loop: nobody is looked at while nothing is under way.
        if !is_under_way {
            return None;
        }
        let tries = self.goal.pools.values().filter_map(PoolGoal::next_try);
        tries.chain(self.roster.next_deadline()).chain(self.canary_deadline()).min()
    }

    /// How far the rollout under way is, if one is.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        let rollout = self.goal.rollout.as_ref()?;
        let mut pools = Vec::new();
        for (&pool, goal) in
            rollout.pools.iter().filter_map(|pool| Some((pool, self.goal.pools.get(pool)?)))
        {
            let is_done = |slot: &Slot| {
                let mut workers = self.roster.in_slot(pool, *slot);
                workers.any(|worker| worker.is_at_work() && goal.wants(worker.who.generation))
            };
            let total = goal.size();
            let done = (1..=total).map(Slot).filter(is_done).count();
            let done = u32::try_from(done).unwrap_or(u32::MAX);
            pools.push(PoolProgress { pool, done, total });
        }
        let done = pools.iter().map(|pool| pool.done).sum();
        let total = pools.iter().map(|pool| pool.total).sum();
        let going_back = match &rollout.course {
            Course::Back { why } => Some(why.clone()),
            Course::Boot | Course::Resume | Course::Forward => None,
        };
        let (generation, is_resuming) = (rollout.generation, rollout.course == Course::Resume);
        Some(Progress { generation, done, total, pools, going_back, is_resuming })
    }

    fn pool_status(&self, pool: PoolId, now: Instant, board: &impl Board) -> PoolStatus {
        let goal = &self.goal.pools[&pool];
        let mut accounts = self.desks.get(&pool).map(|desk| desk.accounts).unwrap_or_default();
        let mut workers = Vec::new();
        let mut in_hand = 0;
        for worker in self.roster.of(pool) {
            let hand = worker.hand(board.counts(pool, worker.seat));
            in_hand += hand.in_hand;
            accounts.finished += hand.finished;
            accounts.accepted += hand.accepted;
            let (phase, serving_for) = match worker.phase() {
                _ if worker.is_absent() => (PhaseName::Absent, None),
                Phase::Starting { .. } | Phase::Probing { .. } => (PhaseName::Starting, None),
                Phase::Serving { since } => {
                    (PhaseName::Serving, Some(now.saturating_duration_since(since)))
                }
                Phase::Draining { .. } => (PhaseName::Draining, None),
                Phase::Terminated { .. } | Phase::Killed => (PhaseName::Ending, None),
            };
            workers.push(WorkerStatus {
                worker: worker.who.worker,
                slot: worker.who.slot,
                generation: worker.who.generation,
                phase,
                serving_for,
                dispatched: worker.dispatched + hand.accepted,
                in_hand: hand.in_hand,
                cut_in: cut_at(worker).map(|at| at.saturating_duration_since(now)),
                is_stuck: worker.stuck.is_some_and(|stuck| stuck.suspect),
            });
        }
        workers.sort_by_key(|worker| (worker.slot, worker.worker));
        PoolStatus {
            pool,
            name: goal.policy().map(|policy| policy.name.clone()).unwrap_or_default(),
            size: goal.size(),
            serving: self.roster.serving(pool),
            generation: goal.wanted.as_ref().map(|plan| plan.generation),
            good: goal.good.as_ref().map(|plan| plan.generation),
            gave_up: goal.gave_up().map(str::to_owned),
            accept: goal.policy().map(|policy| policy.accept).unwrap_or_default(),
            is_seen: goal.policy().is_none_or(Policy::is_seen),
            accounts,
            held: self.held(pool),
            silent: self.silent(pool) as u64,
            in_hand,
            workers,
        }
    }
}

/// When it is sent SIGKILL, if it is leaving.
fn cut_at(worker: &Worker) -> Option<Instant> {
    match worker.phase() {
        Phase::Draining { deadline } => Some(deadline + notice(worker.plan.policy.drain_timeout)),
        Phase::Terminated { deadline } => Some(deadline),
        Phase::Starting { .. } | Phase::Probing { .. } | Phase::Serving { .. } | Phase::Killed => {
            None
        }
    }
}
