//! What should happen next. No descriptors, no clock, no system calls.
//!
//! Facts come in through [`Supervisor::handle_event`], time through
//! [`Supervisor::handle_timeout`]; orders go out through [`Supervisor::poll_action`]. In between,
//! the supervisor keeps a goal (what should be) and a roster (what is), and `reconcile` emits the
//! orders that bring the second closer to the first. Boot, crash, reload, rollback, resizing and
//! stop are all the same pass: only the goal or the roster differs.
//!
//! Connections are frequent, so they do not run the pass: [`Supervisor::choose`] names a worker,
//! and what a worker counted is read from the [`Board`], which is an argument, like time.
//!
//! Reading order: `event`, `action`, `policy`, `goal`, `roster`, `reconcile`, `dispatch`, `stall`.

mod action;
mod chance;
mod dispatch;
mod event;
mod goal;
mod policy;
mod reconcile;
mod roster;
mod stall;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

pub use action::{Action, Announcement, Attention, Reason, Record, Spawn, Who};
pub use dispatch::Accounts;
pub use event::{Event, Scale};
pub use policy::{
    Balance, ConnectionId, Edition, Generation, ListenerId, Policy, PoolId, Seat, Slot,
    Unavailable, WishId, WorkerId,
};
pub use status::{PhaseName, PoolStatus, Progress, Status, WorkerStatus};

use chance::Chance;
use dispatch::{Desk, Door};
use goal::{Course, Goal, Verdict};
use roster::{Phase, Roster};

/// What a worker counted. Untrusted: the mind bounds it before use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections received.
    pub taken: u64,
    /// Connections closed.
    pub finished: u64,
    /// Messages received.
    pub progress: u64,
}

/// The scoreboards, as the mind sees them.
pub trait Board {
    /// What the worker in this seat counted, now.
    fn counts(&self, pool: PoolId, seat: Seat) -> Counts;
    /// Sets or clears the request to say ROOM. Setting must be ordered before every later
    /// [`Board::counts`].
    fn set_waiting(&self, pool: PoolId, seat: Seat, waiting: bool);
}

/// Where the service as a whole is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Running,
    /// Asked to stop; what waits in our own listeners is dispatched first.
    Sweeping,
    /// Everybody drains.
    Stopping,
    Over,
}

impl Life {
    fn is_stopping(self) -> bool {
        match self {
            Life::Running => false,
            Life::Sweeping | Life::Stopping | Life::Over => true,
        }
    }
}

/// Keeps goal and roster, and closes the distance.
#[derive(Debug)]
pub struct Supervisor {
    goal: Goal,
    roster: Roster,
    life: Life,
    doors: BTreeMap<ListenerId, Door>,
    desks: BTreeMap<PoolId, Desk>,
    editions: BTreeSet<Edition>,
    /// How many generations may drain at once.
    generations: usize,
    chance: Chance,
    actions: VecDeque<Action>,
    /// When receivers are looked at, while something waits for one.
    progress_check: Option<Instant>,
    /// The earliest of all deadlines, kept so that asking is cheap.
    deadline: Option<Instant>,
}

impl Supervisor {
    /// A mind without a goal. `generations`: how many may drain at once, 1 or more. `seed`: of the
    /// jitter.
    #[must_use]
    pub fn new(generations: usize, seed: u64) -> Supervisor {
        Supervisor {
            goal: Goal::default(),
            roster: Roster::default(),
            life: Life::Running,
            doors: BTreeMap::new(),
            desks: BTreeMap::new(),
            editions: BTreeSet::new(),
            generations,
            chance: Chance::new(seed),
            actions: VecDeque::new(),
            progress_check: None,
            deadline: None,
        }
    }

    /// Takes in a fact.
    pub fn handle_event(&mut self, event: Event, now: Instant, board: &impl Board) {
        match event {
            Event::ReloadRequested { wish, edition, pools } => {
                self.want(wish, edition, pools);
            }
            Event::ScaleRequested { pool, scale } => self.scale(pool, scale),
            Event::Resized { pool, workers } => self.resize(pool, workers),
            Event::StopRequested => self.stop(),
            Event::Swept => self.life = Life::Stopping,
            Event::SpawnFailed { worker, why } => {
                self.fail_start(worker, why, now);
                self.roster.bury(worker);
            }
            Event::Unfit { worker, why } => {
                self.fail_start(worker, why, now);
                self.roster.kill(worker);
                self.actions.push_back(Action::Kill { worker });
            }
            Event::Ready { worker, limit } => self.promote(worker, limit, now),
            Event::RetireRequested { worker } => {
                if let Some(worker) = self.roster.get_mut(worker) {
                    worker.due = true;
                }
            }
            Event::Drained { worker } => self.roster.note_drained(worker, now),
            Event::Exited { worker, how, rescued } => {
                self.bury(worker, &how, rescued, now, board);
            }
            // Facts about connections are frequent; they dispatch and nothing else.
            Event::Room { worker } => return self.note_room(worker, now, board),
            Event::TakenBack { worker, connections, pinged } => {
                return self.take_back(worker, connections, pinged, now, board);
            }
            Event::Returned { listener, connection, worker } => {
                return self.put_back(worker, (listener, connection), now);
            }
            Event::AcceptFailed { listener } => {
                if let Some(pool) = self.doors.get(&listener).map(|door| door.pool) {
                    self.rest(pool, now);
                }
                return;
            }
            Event::Refused { listener } => return self.note_refused(listener),
        }
        self.reconcile(now, board);
    }

    /// Takes in the time. Returns at once if nothing is due.
    pub fn handle_timeout(&mut self, now: Instant, board: &impl Board) {
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        for worker in self.roster.overdue(now) {
            self.escalate(worker, now, board);
        }
        self.goal_timeout(now);
        self.check_progress(now, board);
        self.dispatch_timeout(now, board);
        self.reconcile(now, board);
    }

    /// The next order, if any.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Supervisor::handle_timeout`] is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    fn refresh_deadline(&mut self) {
        let deadlines = [
            self.roster.next_deadline(),
            self.goal_deadline(),
            self.dispatch_deadline(),
            self.progress_check,
        ];
        self.deadline =
            if self.life == Life::Over { None } else { deadlines.into_iter().flatten().min() };
    }

    fn want(&mut self, wish: WishId, edition: Edition, pools: Vec<(PoolId, Option<Policy>)>) {
        self.editions.insert(edition);
        if self.life.is_stopping() {
            let outcome = Err("the service is stopping".to_owned());
            return self.actions.push_back(Action::Reply { wish, outcome });
        }
        self.goal.fold(wish, edition, pools);
    }

    fn scale(&mut self, pool: PoolId, scale: Scale) {
        let Some(goal) = self.goal.pools.get_mut(&pool) else { return };
        let size = goal.size();
        let workers = match scale {
            Scale::To(workers) => workers.max(1),
            Scale::More => size.saturating_add(1),
            Scale::Fewer => size.saturating_sub(1).max(1),
        };
        goal.scaled = Some(workers);
        if workers != size {
            self.record(Record::Resized { pool, workers });
        }
    }

    fn resize(&mut self, pool: PoolId, workers: u32) {
        let Some(goal) = self.goal.pools.get_mut(&pool) else { return };
        let size = goal.size();
        for plan in goal.wanted.iter_mut().chain(&mut goal.settled).chain(&mut goal.good) {
            Arc::make_mut(plan).policy.workers = workers.max(1);
        }
        if goal.size() != size {
            self.record(Record::Resized { pool, workers });
        }
    }

    fn stop(&mut self) {
        if self.life != Life::Running {
            return;
        }
        self.life = Life::Sweeping;
        let workers = self.roster.iter().filter(|worker| worker.is_serving()).count();
        self.announce(Announcement::Stopping);
        self.record(Record::Stopping { workers: u32::try_from(workers).unwrap_or(u32::MAX) });
        let rollout = self.goal.rollout.take().into_iter().flat_map(|rollout| rollout.wishes);
        let next = self.goal.next.take().into_iter().flat_map(|next| next.wishes);
        for wish in rollout.chain(next) {
            let outcome = Err("the service is stopping".to_owned());
            self.actions.push_back(Action::Reply { wish, outcome });
        }
        self.actions.push_back(Action::Sweep);
    }

    fn promote(&mut self, id: WorkerId, limit: u32, now: Instant) {
        if !self.roster.promote(id, limit, now) {
            return;
        }
        let Some(who) = self.roster.get(id).map(|worker| worker.who) else { return };
        if let Some(goal) = self.goal.pools.get_mut(&who.pool) {
            goal.note_ready(who.generation, who.slot);
        }
        self.renew_candidates(who.pool);
        self.record(Record::Ready(who));
    }

    /// A worker did not get ready: the slot is tried again, or the pool gives up, or a rollout
    /// that needed it goes back.
    fn fail_start(&mut self, id: WorkerId, why: String, now: Instant) {
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
            self.roll_back(format!("{name}/{} {why}", who.slot.0));
        } else if let Verdict::Hopeless(count) = verdict {
            self.give_up(&plan, who.pool, format!("{count}, the last one {why}"), now);
        }
    }

    /// A serving worker is gone, or as good as gone.
    fn lose(&mut self, id: WorkerId, why: String, rescued: u64, now: Instant, board: &impl Board) {
        let Some(worker) = self.roster.get(id) else { return };
        let Phase::Serving { since } = worker.phase() else { return };
        let (who, plan) = (worker.who, Arc::clone(&worker.plan));
        let cut = worker.hand(board.counts(who.pool, worker.seat)).in_hand;
        let served = now.saturating_duration_since(since);
        self.record(Record::Lost { who, why: why.clone(), cut, rescued });
        let Some(goal) = self.goal.pools.get_mut(&who.pool) else { return };
        let verdict = goal.note_loss(&plan, who.slot, served, now, &mut self.chance);
        if let Verdict::Hopeless(count) = verdict {
            let name = &plan.policy.name;
            let text = format!("{count}, the last one ({name}/{}) {why}", who.slot.0);
            if self.decides_rollout(&plan, who.pool) {
                self.roll_back(text);
            } else {
                self.give_up(&plan, who.pool, text, now);
            }
        }
    }

    /// Whether a failure of this plan fails the rollout under way.
    fn decides_rollout(&self, plan: &goal::Plan, pool: PoolId) -> bool {
        self.goal.rollout.as_ref().is_some_and(|rollout| {
            rollout.course == Course::Forward
                && rollout.generation == plan.generation
                && rollout.pools.contains(&pool)
        })
    }

    fn give_up(&mut self, plan: &goal::Plan, pool: PoolId, why: String, now: Instant) {
        let Some(goal) = self.goal.pools.get_mut(&pool) else { return };
        let generation = plan.generation;
        let tally = goal.tallies.entry(generation).or_default();
        if tally.gave_up.is_some() {
            return;
        }
        tally.gave_up = Some(why.clone());
        let is_unproven = goal.proven_at.is_some()
            && goal.settled.as_ref().is_some_and(|plan| plan.generation == generation);
        let serving = self.roster.serving(pool);
        self.record(Record::GaveUp { pool, generation, why: why.clone(), serving });
        if is_unproven {
            self.go_back_to_good(pool, why, now);
        }
    }

    fn bury(
        &mut self,
        id: WorkerId,
        how: &str,
        rescued: Vec<(ListenerId, ConnectionId)>,
        now: Instant,
        board: &impl Board,
    ) {
        let count = rescued.len() as u64;
        if let Some(worker) = self.roster.get_mut(id) {
            worker.dispatched = worker.dispatched.saturating_sub(count);
            worker.messages = worker.messages.saturating_sub(count);
        }
        self.fail_start(id, format!("{how} before it was ready"), now);
        self.lose(id, how.to_owned(), count, now, board);
        let Some(worker) = self.roster.bury(id) else { return };
        let pool = worker.who.pool;
        let in_hand = worker.hand(board.counts(pool, worker.seat)).in_hand;
        let desk = self.desks.entry(pool).or_default();
        desk.accounts.cut += in_hand;
        desk.accounts.finished += worker.dispatched - in_hand;
        match worker.phase() {
            Phase::Draining { .. } | Phase::Terminated { .. } | Phase::Killed => {
                self.record(Record::Left { who: worker.who, cut: in_hand });
            }
            Phase::Starting { .. } | Phase::Serving { .. } => {}
        }
        self.renew_candidates(pool);
        self.hold(pool, rescued);
    }

    fn note_room(&mut self, worker: WorkerId, now: Instant, board: &impl Board) {
        self.note_life(worker);
        if let Some(pool) = self.roster.get(worker).map(|worker| worker.who.pool) {
            self.resume(pool, now, board);
            self.refresh_deadline();
        }
    }

    fn take_back(
        &mut self,
        id: WorkerId,
        connections: Vec<(ListenerId, ConnectionId)>,
        pinged: bool,
        now: Instant,
        board: &impl Board,
    ) {
        let Some(worker) = self.roster.get_mut(id) else { return };
        let count = connections.len() as u64;
        worker.dispatched = worker.dispatched.saturating_sub(count);
        worker.messages = worker.messages.saturating_sub(count) + u64::from(pinged);
        let pool = worker.who.pool;
        self.hold(pool, connections);
        self.watch_progress(now);
        self.resume(pool, now, board);
        self.refresh_deadline();
    }

    fn note_refused(&mut self, listener: ListenerId) {
        if let Some(door) = self.doors.get(&listener) {
            let accounts = &mut self.desks.entry(door.pool).or_default().accounts;
            accounts.accepted += 1;
            accounts.refused += 1;
        }
    }

    /// A phase has lasted too long.
    fn escalate(&mut self, id: WorkerId, now: Instant, board: &impl Board) {
        let Some(worker) = self.roster.get(id) else { return };
        let who = worker.who;
        let in_hand = worker.hand(board.counts(who.pool, worker.seat)).in_hand;
        match worker.phase() {
            Phase::Starting { .. } => {
                let limit = worker.plan.policy.start_timeout;
                self.fail_start(id, format!("was not ready within {limit:?}"), now);
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

    fn record(&mut self, record: Record) {
        self.actions.push_back(Action::Record(record));
    }

    fn announce(&mut self, announcement: Announcement) {
        self.actions.push_back(Action::Announce(announcement));
    }
}
