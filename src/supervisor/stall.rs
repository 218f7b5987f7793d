//! Which worker has stopped taking what waits for it.
//!
//! A worker is stuck while messages wait in its channel and it receives none. After [`PATIENCE`]
//! its queue is read back and given to others, if there are any, and it gets a PING; until it shows
//! life it gets nothing more. After the pool's watchdog time it is killed. A worker for which nothing waits is
//! idle, not stuck, and a handler may take as long as it likes: neither is looked at. So the clock
//! for this only runs while something waits.
//!
//! Who accepts by itself is sent nothing as a rule, and one that has stopped accepting is not missed:
//! the others take its share. But its clients are. So it is sent a PING twice in its watchdog time,
//! which it has to receive like anything else.

use std::time::{Duration, Instant};

use super::action::{Action, Record};
use super::roster::Worker;
use super::{Board, PoolId, Supervisor, WorkerId};

/// How long connections may wait untaken before others get them.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often progress is compared while something waits.
const INTERVAL: Duration = Duration::from_millis(250);

/// Since when a worker takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stuck {
    pub(super) since: Instant,
    pub(super) progress: u64,
    /// Its queue was read back; it gets nothing new until it shows life.
    pub(super) suspect: bool,
}

impl Supervisor {
    /// Something was sent: look at the receivers after a while.
    pub(super) fn watch_progress(&mut self, now: Instant) {
        if self.progress_check.is_none() {
            self.progress_check = Some(now + INTERVAL);
            self.refresh_deadline();
        }
    }

    /// Those who accept by themselves are to be asked now and then whether they live.
    pub(super) fn watch_accepting(&mut self, now: Instant) {
        if self.ping_at.is_none() {
            self.ping_at = self.ping_interval().map(|interval| now + interval);
            self.refresh_deadline();
        }
    }

    fn ping_interval(&self) -> Option<Duration> {
        let accepting = self.roster.iter().filter(|it| it.is_at_work() && it.plan.policy.admits());
        accepting.filter_map(|it| it.plan.policy.watchdog).min().map(|limit| limit / 2)
    }

    /// Asks them, if it is time. For whom something waits already, that is question enough.
    pub(super) fn ping_accepting(&mut self, now: Instant, board: &impl Board) {
        if self.ping_at.is_none_or(|at| at > now) {
            return;
        }
        self.ping_at = None;
        let is_asked = |it: &&Worker| {
            let policy = &it.plan.policy;
            let is_silent = || it.untaken_messages(board.counts(it.who.pool, it.seat)) == 0;
            it.is_at_work() && policy.admits() && policy.watchdog.is_some() && is_silent()
        };
        let asked = self.roster.iter().filter(is_asked).map(|it| it.who.worker);
        self.actions
            .extend(asked.collect::<Vec<_>>().into_iter().map(|worker| Action::Ping { worker }));
    }

    /// Compares every receiver's progress with the last look.
    pub(super) fn check_progress(&mut self, now: Instant, board: &impl Board) {
        if self.progress_check.is_none_or(|at| at > now) {
            return;
        }
        let ids: Vec<(PoolId, WorkerId)> = self
            .roster
            .iter()
            .filter(|worker| worker.is_at_work())
            .map(|worker| (worker.who.pool, worker.who.worker))
            .collect();
        let mut something_waits = false;
        for (_, id) in ids {
            something_waits |= self.check_worker(id, now, board);
        }
        self.progress_check = something_waits.then_some(now + INTERVAL);
    }

    /// Whether something waits for this worker.
    fn check_worker(&mut self, id: WorkerId, now: Instant, board: &impl Board) -> bool {
        let Some(worker) = self.roster.get_mut(id) else { return false };
        let counts = board.counts(worker.who.pool, worker.seat);
        let is_lying =
            worker.stuck.is_some_and(|stuck| stuck.suspect && stuck.progress == counts.progress);
        if worker.untaken_messages(counts) == 0 && !is_lying {
            worker.stuck = None;
            return false;
        }
        let stuck = match worker.stuck {
            Some(stuck) if stuck.progress == counts.progress => stuck,
            _ => Stuck { since: now, progress: counts.progress, suspect: false },
        };
        worker.stuck = Some(stuck);
        let waited = now.saturating_duration_since(stuck.since);
        let watchdog = worker.plan.policy.watchdog;
        if watchdog.is_some_and(|limit| waited >= limit) {
            let (who, in_hand) = (worker.who, worker.hand(counts).in_hand);
            let worker = worker.clone();
            self.record(Record::Stalled { who, since: waited, in_hand });
            self.roster.kill(id);
            self.note_loss(&worker, &format!("took nothing for {waited:.1?}"), now);
            self.renew_candidates(who.pool);
            self.actions.push_back(Action::Kill { worker: id });
            return false;
        }
        if waited >= PATIENCE && !stuck.suspect && self.have_others(id) {
            if let Some(worker) = self.roster.get_mut(id) {
                worker.stuck = Some(Stuck { suspect: true, ..stuck });
            }
            self.actions.push_back(Action::TakeBack { worker: id });
            self.fail_canary(id, &format!("took nothing for {waited:.1?}"));
        }
        true
    }

    /// Its queue is full, although by its own counters it has room: what waits there goes to
    /// others, and it gets nothing more until it shows life. Whether there are others.
    pub(super) fn suspect(&mut self, id: WorkerId, now: Instant, board: &impl Board) -> bool {
        let have_others = self.have_others(id);
        let Some(worker) = self.roster.get_mut(id).filter(|worker| worker.is_serving()) else {
            return false;
        };
        if !have_others {
            return false;
        }
        let progress = board.counts(worker.who.pool, worker.seat).progress;
        worker.stuck = Some(Stuck { since: now, progress, suspect: true });
        self.actions.push_back(Action::TakeBack { worker: id });
        self.fail_canary(id, "refused a connection: its queue is full");
        self.watch_progress(now);
        true
    }

    /// It said something. If it has received something since, it lives; a message that it sent
    /// before it fell silent proves nothing.
    pub(super) fn note_life(&mut self, id: WorkerId, board: &impl Board) {
        let Some(worker) = self.roster.get_mut(id) else { return };
        let progress = board.counts(worker.who.pool, worker.seat).progress;
        if worker.stuck.is_some_and(|stuck| stuck.progress != progress) {
            worker.stuck = None;
        }
    }
}
