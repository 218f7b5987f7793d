//! The mind as plain data, so that it outlives the program that holds it.
//!
//! Two masters may go on with it: the next image of the same process, right away and with everything
//! as it was; or the next process, after this one was killed (`absence`). A moment is written as
//! its distance from the moment of the snapshot: the one who reads it has another clock. Plans are
//! shared by workers and goals, so they stand in a table.
//!
//! What is not understood is skipped and what is missing has a default, because another version may
//! have written it. Everything is taken apart field by field here: a field that is added and
//! forgotten does not compile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::action::{Attention, Who};
use super::dispatch::{Accounts, Desk};
use super::doors::Door;
use super::event::Held;
use super::goal::{Course, Goal, Next, Plan, PoolGoal, Rollout, Tally, Trouble};
use super::idle::Idle;
use super::roster::{Phase, Worker};
use super::times::{Micros, Times};
use super::toll::Bill;
use super::{Edition, Generation, ListenerId, Policy, PoolId, Seat, Slot, Supervisor, WishId};

/// A mind as plain data.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    pub(super) plans: Vec<Planned>,
    pub(super) latest: u64,
    pub(super) pools: BTreeMap<PoolId, Pool>,
    pub(super) rollout: Option<Rolling>,
    pub(super) next: Option<Waiting>,
    pub(super) workers: Vec<Hired>,
    pub(super) last_worker: u64,
    pub(super) turns: BTreeMap<PoolId, u32>,
    pub(super) is_stopping: bool,
    pub(super) listeners: BTreeSet<ListenerId>,
    pub(super) doors: BTreeMap<ListenerId, Entrance>,
    pub(super) desks: BTreeMap<PoolId, Books>,
    pub(super) editions: BTreeSet<Edition>,
    pub(super) bills: BTreeMap<Generation, Bill>,
    pub(super) arrivals: u64,
    pub(super) was_ready: bool,
    pub(super) idle_exit: Option<Duration>,
    pub(super) idle: Option<Rest>,
    pub(super) is_in_doubt: bool,
    pub(super) generations: usize,
    pub(super) seed: u64,
    pub(super) progress_check: Option<Micros>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Planned {
    pub(super) generation: Generation,
    pub(super) edition: Edition,
    pub(super) policy: Policy,
}

/// A pool's goal. Plans are numbers in the table.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Pool {
    pub(super) wanted: Option<usize>,
    pub(super) settled: Option<usize>,
    pub(super) good: Option<usize>,
    pub(super) proven_at: Option<Micros>,
    pub(super) scaled: Option<u32>,
    pub(super) tallies: BTreeMap<Generation, Failures>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Failures {
    pub(super) losses: Vec<Micros>,
    pub(super) slots: BTreeMap<Slot, Troubled>,
    pub(super) gave_up: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Troubled {
    pub(super) failed: u32,
    pub(super) strikes: u32,
    pub(super) not_before: Option<Micros>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Rolling {
    pub(super) generation: Generation,
    pub(super) pools: BTreeSet<PoolId>,
    pub(super) wishes: Vec<WishId>,
    pub(super) begun: Micros,
    pub(super) course: Course,
    pub(super) untried: BTreeSet<PoolId>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Waiting {
    pub(super) wishes: Vec<WishId>,
    pub(super) pools: BTreeMap<PoolId, Option<(Edition, Policy)>>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Hired {
    pub(super) who: Who,
    pub(super) seat: Seat,
    pub(super) plan: usize,
    pub(super) phase: Stage,
    pub(super) absent: Option<Micros>,
    pub(super) due: bool,
    pub(super) handback: bool,
    pub(super) dispatched: u64,
    pub(super) handed_back: u64,
    pub(super) own_back: u64,
    pub(super) messages: u64,
    pub(super) limit: u64,
    pub(super) stuck: Option<(Micros, u64, bool)>,
    pub(super) declined: Option<(Option<Micros>, Duration, u64)>,
    pub(super) closed: BTreeSet<ListenerId>,
    pub(super) is_probed: bool,
    pub(super) has_probe: bool,
    pub(super) probe_at: Option<Micros>,
    pub(super) retired_by: Option<Generation>,
}

/// A worker's phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    Starting(Micros),
    Probing(Micros),
    Serving(Micros),
    Draining(Micros),
    Terminated(Micros),
    #[default]
    Killed,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Entrance {
    pub(super) pool: PoolId,
    pub(super) attention: Attention,
    pub(super) starved: Option<Micros>,
}

/// A desk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Books {
    pub(super) cursor: usize,
    pub(super) held: Vec<Held>,
    pub(super) silent: Vec<Held>,
    pub(super) returned: usize,
    pub(super) awaits_room: bool,
    pub(super) resting_until: Option<Micros>,
    pub(super) accounts: Accounts,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Rest {
    pub(super) since: Micros,
    pub(super) look_at: Micros,
    pub(super) accepted: u64,
}

/// The table of plans, as it grows.
#[derive(Default)]
struct Table {
    plans: Vec<Arc<Plan>>,
    numbers: BTreeMap<*const Plan, usize>,
}

impl Table {
    fn number(&mut self, plan: &Arc<Plan>) -> usize {
        let plans = &mut self.plans;
        *self.numbers.entry(Arc::as_ptr(plan)).or_insert_with(|| {
            plans.push(Arc::clone(plan));
            plans.len() - 1
        })
    }

    fn number_of(&mut self, plan: Option<&Arc<Plan>>) -> Option<usize> {
        plan.map(|plan| self.number(plan))
    }
}

impl Snapshot {
    /// Whether the service was about to end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    /// Every worker that was there, its seat, and whether it was ready.
    pub fn workers(&self) -> impl Iterator<Item = (Who, Seat, bool)> {
        self.workers.iter().map(|worker| (worker.who, worker.seat, worker.phase.is_ready()))
    }
}

impl Stage {
    /// Whether it has served, and was not killed.
    pub(super) fn is_ready(self) -> bool {
        match self {
            Stage::Starting(_) | Stage::Probing(_) | Stage::Killed => false,
            Stage::Serving(_) | Stage::Draining(_) | Stage::Terminated(_) => true,
        }
    }
}

impl Supervisor {
    /// Grows whenever goal or roster may have changed: connections alone do not count.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether everything is as wanted, as far as it can be had, and everybody is there.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.goal.rollout.is_none() && !self.roster.iter().any(Worker::is_absent)
    }

    /// Everything that this mind knows, while no order is outstanding.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let Supervisor {
            goal: Goal { latest, pools, rollout, next },
            roster,
            life,
            listeners,
            doors,
            desks,
            editions,
            bills,
            arrivals,
            was_ready,
            idle_exit,
            idle,
            is_in_doubt,
            generations,
            chance,
            actions,
            progress_check,
            // It begins anew.
            ping_at: _,
            deadline: _,
            revision: _,
            chosen: _,
        } = self;
        debug_assert!(actions.is_empty(), "orders are outstanding: {actions:?}");
        let (times, mut table) = (Times(now), Table::default());
        let pools = pools.iter().map(|(&id, it)| (id, pool_of(it, times, &mut table))).collect();
        let workers = roster.iter().map(|worker| hired(worker, times, &mut table)).collect();
        let (last_worker, turns) = roster.turns();
        let plans = table.plans.iter().map(|plan| {
            let Plan { generation, edition, policy } = &**plan;
            Planned { generation: *generation, edition: *edition, policy: policy.clone() }
        });
        Snapshot {
            plans: plans.collect(),
            latest: *latest,
            pools,
            rollout: rollout.as_ref().map(|rollout| rolling(rollout, times)),
            next: next.as_ref().map(waiting),
            workers,
            last_worker,
            turns,
            is_stopping: life.is_stopping(),
            listeners: listeners.clone(),
            doors: doors.iter().map(|(&id, door)| (id, entrance(door, times))).collect(),
            desks: desks.iter().map(|(&id, desk)| (id, books(desk, times))).collect(),
            editions: editions.clone(),
            bills: bills.clone(),
            arrivals: *arrivals,
            was_ready: *was_ready,
            idle_exit: *idle_exit,
            idle: idle.as_ref().map(|idle| rest(idle, times)),
            is_in_doubt: *is_in_doubt,
            generations: *generations,
            seed: chance.seed(),
            progress_check: progress_check.map(|at| times.from(at)),
        }
    }
}

fn pool_of(goal: &PoolGoal, times: Times, table: &mut Table) -> Pool {
    let PoolGoal { wanted, settled, good, proven_at, scaled, tallies } = goal;
    let failures = |Tally { losses, slots, gave_up }: &Tally| Failures {
        losses: losses.iter().map(|&at| times.from(at)).collect(),
        slots: slots
            .iter()
            .map(|(&slot, &Trouble { failed, strikes, not_before })| {
                let not_before = not_before.map(|at| times.from(at));
                (slot, Troubled { failed, strikes, not_before })
            })
            .collect(),
        gave_up: gave_up.clone(),
    };
    Pool {
        wanted: table.number_of(wanted.as_ref()),
        settled: table.number_of(settled.as_ref()),
        good: table.number_of(good.as_ref()),
        proven_at: proven_at.map(|at| times.from(at)),
        scaled: *scaled,
        tallies: tallies.iter().map(|(&generation, it)| (generation, failures(it))).collect(),
    }
}

fn rolling(rollout: &Rollout, times: Times) -> Rolling {
    let Rollout { generation, pools, wishes, begun, course, untried } = rollout;
    Rolling {
        generation: *generation,
        pools: pools.clone(),
        wishes: wishes.clone(),
        begun: times.from(*begun),
        course: course.clone(),
        untried: untried.clone(),
    }
}

fn rest(idle: &Idle, times: Times) -> Rest {
    let Idle { after: _, since, look_at, accepted } = idle;
    Rest { since: times.from(*since), look_at: times.from(*look_at), accepted: *accepted }
}

fn waiting(Next { wishes, pools }: &Next) -> Waiting {
    Waiting { wishes: wishes.clone(), pools: pools.clone() }
}

fn hired(worker: &Worker, times: Times, table: &mut Table) -> Hired {
    Hired {
        who: worker.who,
        seat: worker.seat,
        plan: table.number(&worker.plan),
        phase: match worker.phase() {
            Phase::Starting { deadline } => Stage::Starting(times.from(deadline)),
            Phase::Probing { deadline } => Stage::Probing(times.from(deadline)),
            Phase::Serving { since } => Stage::Serving(times.from(since)),
            Phase::Draining { deadline } => Stage::Draining(times.from(deadline)),
            Phase::Terminated { deadline } => Stage::Terminated(times.from(deadline)),
            Phase::Killed => Stage::Killed,
        },
        absent: worker.absent_until().map(|at| times.from(at)),
        due: worker.due,
        handback: worker.handback,
        dispatched: worker.dispatched,
        handed_back: worker.handed_back,
        own_back: worker.own_back,
        messages: worker.messages,
        limit: worker.limit,
        stuck: worker.stuck.map(|it| (times.from(it.since), it.progress, it.suspect)),
        declined: worker.declined.as_ref().map(|it| it.written(times)),
        closed: worker.closed.clone(),
        is_probed: worker.is_probed,
        has_probe: worker.has_probe,
        probe_at: worker.probe_at.map(|at| times.from(at)),
        retired_by: worker.retired_by,
    }
}

fn entrance(door: &Door, times: Times) -> Entrance {
    let Door { pool, attention, starved } = door;
    Entrance { pool: *pool, attention: *attention, starved: starved.map(|at| times.from(at)) }
}

fn books(desk: &Desk, times: Times) -> Books {
    let Desk {
        candidates: _,
        ranks: _,
        looked_at: _,
        has_decliners: _,
        cursor,
        held,
        silent,
        returned,
        awaits_room,
        resting_until,
        accounts,
    } = desk;
    Books {
        cursor: *cursor,
        held: held.iter().copied().collect(),
        silent: silent.values().copied().collect(),
        returned: *returned,
        awaits_room: *awaits_room,
        resting_until: resting_until.map(|at| times.from(at)),
        accounts: *accounts,
    }
}
