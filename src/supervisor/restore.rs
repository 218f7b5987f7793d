//! A mind that goes on from a [`Snapshot`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::absence::PATIENCE;
use super::action::Attention;
use super::chance::Chance;
use super::choice::Chosen;
use super::declined::Declined;
use super::dispatch::Desk;
use super::doors::Door;
use super::goal::{Course, Goal, Next, Plan, PoolGoal, Rollout, Tally, Trouble};
use super::idle::Idle;
use super::ranks::Ranks;
use super::roster::{Phase, Roster, Worker};
use super::snapshot::{
    Books, Entrance, Failures, Hired, Planned, Pool, Rest, Rolling, Snapshot, Stage, Troubled,
    Waiting,
};
use super::stall::Stuck;
use super::times::Times;
use super::{Generation, Life, PoolId, Supervisor, WorkerId};

/// How a mind goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// In the same process: everything is as it was.
    Carried,
    /// In another process, after the first was killed. Connections that it held are gone, and so is
    /// everybody who waited for an outcome.
    Orphaned {
        /// The time.
        now: Instant,
        /// Workers that live and may come; of these, those that are wanted. All others are
        /// forgotten.
        awaited: BTreeSet<WorkerId>,
    },
}

impl Snapshot {
    /// Workers that are not wanted back: they had been killed already, or nothing was known of them.
    pub fn unwanted(&self) -> impl Iterator<Item = WorkerId> {
        let unwanted = self.workers.iter().filter(|worker| !self.may_come(worker));
        unwanted.map(|worker| worker.who.worker)
    }

    /// Whether it may have served when the master was killed. One that was starting may have become
    /// ready after that was written, unless a probe came before that.
    fn may_come(&self, worker: &Hired) -> bool {
        let is_probed = || self.plans.get(worker.plan).is_none_or(|plan| plan.policy.probe);
        worker.phase.is_ready() || (matches!(worker.phase, Stage::Starting(_)) && !is_probed())
    }
}

impl Supervisor {
    /// Goes on with a snapshot that was taken at `taken`.
    ///
    /// # Errors
    /// A sentence: the snapshot contradicts itself.
    pub fn restore(mut snapshot: Snapshot, taken: Instant, how: How) -> Result<Supervisor, String> {
        let How::Orphaned { now, awaited } = how else {
            return Supervisor::from_snapshot(snapshot, taken);
        };
        let unwanted: BTreeSet<WorkerId> = snapshot.unwanted().collect();
        let is_awaited = |id: &WorkerId| awaited.contains(id) && !unwanted.contains(id);
        snapshot.workers.retain(|it| is_awaited(&it.who.worker));
        for worker in &mut snapshot.workers {
            (worker.dispatched, worker.handed_back, worker.messages) = (0, 0, 0);
            worker.own_back = 0;
            worker.stuck = None;
            // The question died with the one who asked.
            if std::mem::take(&mut worker.is_probed) {
                worker.probe_at = Some(0);
            }
            worker.has_probe = false;
        }
        for (generation, bill) in &mut snapshot.bills {
            let leaving = snapshot.workers.iter().filter(|it| it.retired_by == Some(*generation));
            bill.leaving = u32::try_from(leaving.count()).unwrap_or(u32::MAX);
        }
        for desk in snapshot.desks.values_mut() {
            desk.held.clear();
            desk.silent.clear();
            (desk.returned, desk.awaits_room, desk.resting_until) = (0, false, None);
            let accounts = &mut desk.accounts;
            accounts.accepted = accounts.finished + accounts.refused + accounts.cut;
        }
        (snapshot.idle, snapshot.was_ready, snapshot.is_stopping) = (None, false, false);
        let mut mind = Supervisor::from_snapshot(snapshot, taken)?;
        mind.roster.miss_all(now + PATIENCE);
        for door in mind.doors.values_mut() {
            (door.attention, door.starved) = (Attention::Pause, Some(now));
        }
        for pool in mind.desks.keys().copied().collect::<Vec<_>>() {
            mind.renew_candidates(pool);
        }
        if mind.goal.rollout.is_none() && !mind.goal.pools.is_empty() {
            mind.goal.rollout = Some(Rollout {
                generation: Generation(mind.goal.latest),
                pools: mind.goal.pools.keys().copied().collect(),
                wishes: Vec::new(),
                begun: now,
                course: Course::Resume,
                untried: BTreeSet::new(),
            });
        }
        mind.progress_check = None;
        // The pass runs as soon as somebody asks for it.
        mind.deadline = Some(now);
        Ok(mind)
    }

    /// The mind of a snapshot that was taken at `taken`. Its orders are those that were still to
    /// come.
    ///
    /// # Errors
    /// A sentence: the snapshot contradicts itself.
    fn from_snapshot(snapshot: Snapshot, taken: Instant) -> Result<Supervisor, String> {
        let times = Times(taken);
        let Snapshot { plans, latest, pools, rollout, next, workers, .. } = snapshot;
        let Snapshot { last_worker, turns, is_stopping, listeners, doors, desks, .. } = snapshot;
        let Snapshot { editions, was_ready, idle_exit, idle, is_in_doubt, generations, .. } =
            snapshot;
        let Snapshot { seed, progress_check, bills, arrivals, .. } = snapshot;
        let plans: Vec<Arc<Plan>> = plans
            .into_iter()
            .map(|Planned { generation, edition, policy }| {
                Arc::new(Plan { generation, edition, policy })
            })
            .collect();
        let pools = pools.into_iter().map(|(id, pool)| Ok((id, goal_of(pool, times, &plans)?)));
        let pools = pools.collect::<Result<_, String>>()?;
        let workers = workers.into_iter().map(|worker| worker_of(worker, times, &plans));
        let workers: Vec<Worker> = workers.collect::<Result<_, String>>()?;
        let next = next.map(|Waiting { wishes, pools }| Next { wishes, pools });
        let rollout = rollout.map(|rolling| rollout_of(rolling, times));
        let idle = idle.zip(idle_exit).map(|(Rest { since, look_at, accepted }, after)| Idle {
            after,
            since: times.to(since),
            look_at: times.to(look_at),
            accepted,
        });
        let served: BTreeSet<PoolId> = workers.iter().map(|worker| worker.who.pool).collect();
        let mut mind = Supervisor {
            goal: Goal { latest, pools, rollout, next },
            roster: Roster::restore(workers, last_worker, turns),
            // A sweep is over within one order.
            life: if is_stopping { Life::Stopping } else { Life::Running },
            listeners,
            doors: doors.into_iter().map(|(id, door)| (id, door_of(door, times))).collect(),
            desks: desks.into_iter().map(|(id, books)| (id, desk_of(books, times))).collect(),
            editions,
            bills,
            arrivals,
            was_ready,
            idle_exit,
            idle,
            is_in_doubt,
            generations: generations.max(1),
            chance: Chance::new(seed),
            actions: Default::default(),
            progress_check: progress_check.map(|at| times.to(at)),
            ping_at: None,
            deadline: None,
            revision: 0,
            chosen: Chosen::default(),
        };
        served.into_iter().for_each(|pool| mind.renew_candidates(pool));
        mind.watch_accepting(taken);
        mind.refresh_deadline();
        Ok(mind)
    }
}

fn goal_of(pool: Pool, times: Times, plans: &[Arc<Plan>]) -> Result<PoolGoal, String> {
    let Pool { wanted, settled, good, proven_at, scaled, tallies } = pool;
    let plan = |number: Option<usize>| number.map(|it| plan_of(it, plans)).transpose();
    let tally = |Failures { losses, slots, gave_up }: Failures| Tally {
        losses: losses.into_iter().map(|at| times.to(at)).collect(),
        slots: slots
            .into_iter()
            .map(|(slot, Troubled { failed, strikes, not_before })| {
                let not_before = not_before.map(|at| times.to(at));
                (slot, Trouble { failed, strikes, not_before })
            })
            .collect(),
        gave_up,
    };
    let settled = plan(settled)?;
    Ok(PoolGoal {
        wanted: plan(wanted)?,
        // Nothing else can be proven.
        proven_at: proven_at.filter(|_| settled.is_some()).map(|at| times.to(at)),
        settled,
        good: plan(good)?,
        scaled,
        tallies: tallies.into_iter().map(|(generation, it)| (generation, tally(it))).collect(),
    })
}

fn plan_of(number: usize, plans: &[Arc<Plan>]) -> Result<Arc<Plan>, String> {
    plans.get(number).cloned().ok_or_else(|| format!("there is no plan {number}"))
}

fn rollout_of(rolling: Rolling, times: Times) -> Rollout {
    let Rolling { generation, pools, wishes, begun, course, untried } = rolling;
    Rollout { generation, pools, wishes, begun: times.to(begun), course, untried }
}

fn worker_of(hired: Hired, times: Times, plans: &[Arc<Plan>]) -> Result<Worker, String> {
    let Hired { who, seat, plan, phase, absent, due, handback, .. } = hired;
    let Hired { dispatched, handed_back, messages, limit, stuck, .. } = hired;
    let Hired { is_probed, has_probe, probe_at, retired_by, declined, closed, own_back, .. } =
        hired;
    let phase = match phase {
        Stage::Starting(at) => Phase::Starting { deadline: times.to(at) },
        Stage::Probing(at) => Phase::Probing { deadline: times.to(at) },
        Stage::Serving(at) => Phase::Serving { since: times.to(at) },
        Stage::Draining(at) => Phase::Draining { deadline: times.to(at) },
        Stage::Terminated(at) => Phase::Terminated { deadline: times.to(at) },
        Stage::Killed => Phase::Killed,
    };
    if handed_back > dispatched {
        return Err(format!("{} has handed back more than it had", who.worker));
    }
    let absent = absent.map(|at| times.to(at));
    let stuck = stuck.map(|(since, progress, suspect)| {
        let since = times.to(since);
        Stuck { since, progress, suspect }
    });
    let declined = declined.map(|(until, pause, taken)| {
        let until = until.map(|at| times.to(at));
        Box::new(Declined { until, pause, taken })
    });
    let mut worker = Worker::new(who, seat, plan_of(plan, plans)?, phase, absent);
    (worker.declined, worker.closed) = (declined, closed);
    (worker.due, worker.handback, worker.stuck) = (due, handback, stuck);
    (worker.dispatched, worker.handed_back) = (dispatched, handed_back);
    worker.own_back = own_back;
    (worker.messages, worker.limit) = (messages, limit);
    (worker.is_probed, worker.has_probe) = (is_probed, has_probe);
    (worker.probe_at, worker.retired_by) = (probe_at.map(|at| times.to(at)), retired_by);
    Ok(worker)
}

fn door_of(entrance: Entrance, times: Times) -> Door {
    let Entrance { pool, attention, starved } = entrance;
    Door { pool, attention, starved: starved.map(|at| times.to(at)) }
}

fn desk_of(books: Books, times: Times) -> Desk {
    let Books { cursor, held, silent, returned, awaits_room, resting_until, accounts } = books;
    Desk {
        candidates: Vec::new(),
        ranks: Ranks::default(),
        looked_at: 0,
        has_decliners: false,
        cursor,
        held: held.into(),
        silent: silent.into_iter().map(|held| (held.connection, held)).collect(),
        returned,
        awaits_room,
        resting_until: resting_until.map(|at| times.to(at)),
        accounts,
    }
}
