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
//! The shell keeps to three rules. It carries out all orders before it reports the next fact. A
//! failure to carry one out is the next fact (orders about a worker whose spawn failed may come
//! before the mind knows; they are void). And it calls [`Supervisor::handle_timeout`] at every
//! turn: that costs nothing when nothing is due.
//!
//! Reading order: `event`, `action`, `policy`, `goal`, `records`, `roster`, `hand`, `seats`, `reconcile`,
//! `rollout`, `canary`, `failure`, `notices`, `toll`, `dispatch`, `ranks`, `choice`, `doors`, `held`,
//! `silent`, `declined`, `stall`, `idle`, `times`, `snapshot`, `restore`, `absence`.

mod absence;
mod action;
mod canary;
mod chance;
mod choice;
mod declined;
mod dispatch;
mod display;
mod doors;
mod event;
mod failure;
mod goal;
mod hand;
mod held;
mod idle;
mod notices;
mod policy;
mod ranks;
mod reconcile;
mod records;
mod restore;
mod rollout;
mod roster;
mod seats;
mod silent;
mod snapshot;
mod stall;
mod status;
#[cfg(test)]
mod tests;
mod times;
mod toll;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use action::{Action, Announcement, Attention, Reason, Record, Spawn, Who};
pub use dispatch::Accounts;
pub use event::{Event, Held, Past, Scale};
pub use policy::{
    Accept, Balance, ConnectionId, Edition, Generation, ListenerId, Policy, PoolId, Seat, Slot,
    Unavailable, WishId, WorkerId,
};
pub use restore::How;
pub use seats::SEATS;
pub use snapshot::Snapshot;
pub use status::{PhaseName, PoolProgress, PoolStatus, Progress, Status, WorkerStatus};
pub use times::{Micros, Times};
pub use toll::Toll;

use absence::Back;
use chance::Chance;
use choice::Chosen;
use dispatch::Desk;
use doors::Door;
use goal::Goal;
use roster::{Phase, Roster};
use toll::Bill;

/// What a worker counted. Untrusted: the mind bounds it before use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections received from the master.
    pub taken: u64,
    /// Connections accepted by itself.
    pub accepted: u64,
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
    /// Every listener that the shell has open for us.
    listeners: BTreeSet<ListenerId>,
    /// Those that a plan uses.
    doors: BTreeMap<ListenerId, Door>,
    desks: BTreeMap<PoolId, Desk>,
    chosen: Chosen,
    editions: BTreeSet<Edition>,
    /// Of the reloads whose retired workers are not all gone.
    bills: BTreeMap<Generation, Bill>,
    /// Systemd was told READY before.
    was_ready: bool,
    /// The service ends when nobody has used it for so long.
    idle_exit: Option<Duration>,
    idle: Option<idle::Idle>,
    /// Clients that ever came. Pools that go take their accounts with them, and not this.
    arrivals: u64,
    /// A reload has failed since the last good one: what runs may not be what would start.
    is_in_doubt: bool,
    /// How many generations may drain at once.
    generations: usize,
    chance: Chance,
    actions: VecDeque<Action>,
    /// When receivers are looked at, while something waits for one.
    progress_check: Option<Instant>,
    /// When those who accept by themselves are asked whether they live.
    ping_at: Option<Instant>,
    /// The earliest of all deadlines, kept so that asking is cheap.
    deadline: Option<Instant>,
    /// Counts what the pass has changed.
    revision: u64,
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
            listeners: BTreeSet::new(),
            doors: BTreeMap::new(),
            desks: BTreeMap::new(),
            chosen: Chosen::default(),
            editions: BTreeSet::new(),
            bills: BTreeMap::new(),
            was_ready: false,
            idle_exit: None,
            idle: None,
            arrivals: 0,
            is_in_doubt: false,
            generations,
            chance: Chance::new(seed),
            actions: VecDeque::new(),
            progress_check: None,
            ping_at: None,
            deadline: None,
            revision: 0,
        }
    }

    /// Takes in a fact.
    pub fn handle_event(&mut self, event: Event, now: Instant, board: &impl Board) {
        match event {
            Event::ReloadRequested { wish, edition, pools } => self.want(wish, edition, pools),
            Event::ReloadRefused => self.is_in_doubt = true,
            Event::ScaleRequested { pool, scale } => self.scale(pool, scale),
            Event::Resized { pool, workers } => self.resize(pool, workers),
            Event::StopRequested => self.stop(),
            Event::Swept => self.note_swept(),
            Event::SpawnFailed { worker, why } => self.fail_spawn(worker, why, now),
            Event::Unfit { worker, why } => self.dismiss(worker, why, now),
            Event::Ready { worker, limit, handback } => {
                self.receive_ready(worker, limit, handback, now);
            }
            Event::Joined { worker, limit, handback, draining, handed_back, rescued } => {
                let back = Back { worker, limit, handback, draining, handed_back, rescued };
                self.rejoin(back, now, board);
            }
            Event::Probed { worker, result, is_left } => {
                self.judge_probe(worker, result, is_left, now);
            }
            Event::ProbeReturned { worker } => self.unsend_probe(worker),
            Event::RetireRequested { worker } => self.note_due(worker, now),
            Event::Drained { worker } => self.roster.note_drained(worker, now),
            Event::Leaving { worker } => self.note_leaving(worker, now),
            Event::Broken { worker, why } => self.note_broken(worker, why, now),
            Event::Extended { worker, time } => return self.extend(worker, time, now),
            Event::Exited { worker, how, rescued, answered } => {
                self.bury(worker, &how, rescued, answered, now, board);
            }
            // Facts about connections are frequent; they dispatch and nothing else.
            Event::Room { worker } => return self.note_room(worker, now, board),
            Event::TakenBack { worker, connections, pinged } => {
                return self.take_back(worker, connections, pinged, now, board);
            }
            Event::HandedBack { worker, held } => {
                return self.receive_back(worker, held, now, board);
            }
            Event::PassedOn { worker } => return self.note_passed_on(worker, board),
            Event::Returned { held, worker, is_full } => {
                let shunned = is_full && self.suspect(worker, now, board);
                self.put_back(worker, held, shunned, now, board);
                // For a canary, that was the end of its trial.
                if !shunned {
                    return;
                }
            }
            Event::AcceptedSilent { held } => return self.receive_silent(held, now, board),
            Event::Spoke { connection } => return self.note_spoken(connection, now, board),
            Event::HungUp { connection } => return self.note_hung_up(connection),
            Event::Declined { held, worker } => {
                return self.note_declined(worker, held, now, board);
            }
            Event::Opened { worker, listener } => return self.open(worker, listener, now, board),
            Event::Closed { worker, listener } => return self.shut(worker, listener),
            Event::AcceptFailed { listener } => return self.rest_of(listener, now),
            Event::Refused { listener } => return self.note_refused(listener),
        }
        self.revision += 1;
        self.reconcile(now, board);
    }

    /// Takes in the time. Returns at once if nothing is due.
    pub fn handle_timeout(&mut self, now: Instant, board: &impl Board) {
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        let overdue = self.roster.overdue(now);
        for &worker in &overdue {
            self.escalate(worker, now, board);
        }
        let is_news = self.goal_timeout(now) || !overdue.is_empty();
        let before = self.actions.len();
        self.check_progress(now, board);
        self.ping_accepting(now, board);
        self.probe_canaries(now, board);
        self.dispatch_timeout(now, board);
        self.check_idle(now, board);
        self.reconcile(now, board);
        let is_news = is_news || self.actions.iter().skip(before).any(Action::is_lasting);
        self.revision += u64::from(is_news);
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
            self.ping_at,
            self.canary_deadline(),
            self.idle_deadline(),
        ];
        self.deadline =
            if self.life == Life::Over { None } else { deadlines.into_iter().flatten().min() };
    }

    fn want(&mut self, wish: WishId, edition: Edition, pools: Vec<(PoolId, Option<Policy>)>) {
        self.editions.insert(edition);
        let policies = pools.iter().filter_map(|(_, policy)| policy.as_ref());
        self.listeners.extend(policies.flat_map(|policy| &policy.listeners));
        if self.life.is_stopping() {
            let outcome = Err("the service is stopping".to_owned());
            return self.actions.push_back(Action::Reply { wish, outcome });
        }
        self.goal.fold(wish, edition, pools);
    }

    fn scale(&mut self, pool: PoolId, scale: Scale) {
        let Some(goal) = self.goal.pools.get_mut(&pool).filter(|goal| goal.wanted.is_some()) else {
            return;
        };
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
        let next = self.goal.next.as_mut().and_then(|next| next.pools.get_mut(&pool));
        if let Some(Some((_, policy))) = next {
            policy.workers = workers.max(1);
        }
        // Nothing but sizes differs between what is configured and what serves.
        self.is_in_doubt = false;
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
        let workers = self.roster.iter().filter(|worker| worker.is_serving()).count();
        self.end_with(Record::Stopping { workers: u32::try_from(workers).unwrap_or(u32::MAX) });
    }

    fn note_swept(&mut self) {
        if self.life == Life::Sweeping {
            self.life = Life::Stopping;
        }
    }

    /// Begins the end of the service, for the reason that `record` gives.
    fn end_with(&mut self, record: Record) {
        self.life = Life::Sweeping;
        self.announce(Announcement::Stopping);
        self.record(record);
        let rollout = self.goal.rollout.take().into_iter().flat_map(|rollout| rollout.wishes);
        let next = self.goal.next.take().into_iter().flat_map(|next| next.wishes);
        for wish in rollout.chain(next) {
            let outcome = Err("the service is stopping".to_owned());
            self.actions.push_back(Action::Reply { wish, outcome });
        }
        self.actions.push_back(Action::Sweep);
    }

    fn note_due(&mut self, id: WorkerId, now: Instant) {
        let Some(worker) = self.roster.get_mut(id) else { return };
        worker.due = true;
        let who = worker.who;
        let Phase::Serving { since } = worker.phase() else { return };
        if let Some(goal) = self.goal.pools.get_mut(&who.pool) {
            goal.note_due(who.generation, who.slot, since, now);
        }
    }

    fn note_room(&mut self, worker: WorkerId, now: Instant, board: &impl Board) {
        self.note_life(worker, board);
        self.end_rest(worker);
        if let Some(pool) = self.roster.get(worker).map(|worker| worker.who.pool) {
            self.resume(pool, now, board);
            self.refresh_deadline();
        }
    }

    fn record(&mut self, record: Record) {
        self.actions.push_back(Action::Record(record));
    }

    fn announce(&mut self, announcement: Announcement) {
        self.actions.push_back(Action::Announce(announcement));
    }
}
