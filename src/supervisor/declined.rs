//! Workers that decline what they are sent, and listeners that they have not open.
//!
//! A worker that answers for itself (a Node application with a limit of its own, for one) may decline a
//! connection. Others get that one at once; the worker itself is left alone for a moment, which grows
//! each time, until it takes one or says that it has room. Until then it is tried with what waits in the
//! shell's hand, and nobody new is accepted for it meanwhile. So a client whom everybody declines waits
//! without anybody being asked all the time, and the clock of [`super::Policy::unavailable`] runs.
//!
//! Such a worker says, too, which of its pool's listeners it has open. What it has not open goes to
//! others, or waits.

use std::time::{Duration, Instant};

use super::event::Held;
use super::roster::Worker;
use super::times::{Micros, Times};
use super::{Board, ListenerId, PoolId, Supervisor, WorkerId};

/// How long a worker is left alone after it has declined a connection: the first time, and at most.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LAST: Duration = Duration::from_secs(1);

/// A worker that has declined a connection is left alone for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Declined {
    /// Until then; `None`: that is over.
    pub(super) until: Option<Instant>,
    /// For how long it was, which grows until it takes one.
    pub(super) pause: Duration,
    /// What it had taken then.
    pub(super) taken: u64,
}

impl Declined {
    /// As a snapshot has it.
    pub(super) fn written(&self, times: Times) -> (Option<Micros>, Duration, u64) {
        (self.until.map(|at| times.from(at)), self.pause, self.taken)
    }
}

impl Worker {
    /// It has declined a connection a moment ago.
    pub(super) fn rests(&self) -> bool {
        self.declined.as_ref().is_some_and(|declined| declined.until.is_some())
    }
}

impl Supervisor {
    /// It does not take what it was sent.
    pub(super) fn note_declined(
        &mut self,
        id: WorkerId,
        held: Held,
        now: Instant,
        board: &impl Board,
    ) {
        self.unsend(id, 1);
        let Some(worker) = self.roster.get_mut(id) else {
            return self.hold_homeless(vec![held]);
        };
        let taken = board.counts(worker.who.pool, worker.seat).taken;
        let pause = match worker.declined.as_deref() {
            Some(before) if before.taken == taken => (before.pause * 2).min(PAUSE_LAST),
            Some(_) | None => PAUSE_FIRST,
        };
        worker.declined = Some(Box::new(Declined { until: Some(now + pause), pause, taken }));
        // It has answered, so it lives.
        worker.stuck = None;
        let pool = worker.who.pool;
        self.desks.entry(pool).or_default().has_decliners = true;
        self.hold(pool, vec![held]);
        self.resume(pool, now, board);
        self.refresh_deadline();
    }

    /// Whether those of a pool who decline are being tried with connections that came back.
    pub(super) fn tries(&self, pool: PoolId, board: &impl Board) -> bool {
        // Where nobody ever declines, that is all there is to look at.
        let Some(desk) = self.desks.get(&pool).filter(|desk| desk.has_decliners) else {
            return false;
        };
        // What no worker here has open waits for a reload, and is tried with nobody.
        let awaits = |held: &Held, worker: &Worker| {
            let listeners = &worker.plan.policy.listeners;
            listeners.contains(&held.listener) && !worker.closed.contains(&held.listener)
        };
        let is_tried = |worker: &Worker| {
            let is_sent = worker.hand(board.counts(pool, worker.seat)).untaken > 0;
            let is_next = || desk.held.iter().any(|held| awaits(held, worker));
            declines(worker, board) && (is_sent || is_next())
        };
        self.roster.records.of(&desk.candidates).any(is_tried)
    }

    /// It may be sent something again.
    pub(super) fn end_rest(&mut self, id: WorkerId) {
        let declined = self.roster.get_mut(id).and_then(|worker| worker.declined.as_deref_mut());
        if let Some(declined) = declined {
            declined.until = None;
        }
    }

    /// Ends what has lasted long enough.
    pub(super) fn end_rests(&mut self, now: Instant, board: &impl Board) {
        let is_over = |worker: &&Worker| {
            worker.declined.as_ref().and_then(|it| it.until).is_some_and(|until| until <= now)
        };
        let over: Vec<_> = self.roster.iter().filter(is_over).map(|worker| worker.who).collect();
        for who in &over {
            self.end_rest(who.worker);
        }
        let pools: std::collections::BTreeSet<_> = over.iter().map(|who| who.pool).collect();
        for pool in pools {
            self.resume(pool, now, board);
        }
    }

    pub(super) fn rest_deadline(&self) -> Option<Instant> {
        self.roster.iter().filter_map(|worker| worker.declined.as_ref()?.until).min()
    }

    /// It takes connections of this listener from now on.
    pub(super) fn open(
        &mut self,
        id: WorkerId,
        listener: ListenerId,
        now: Instant,
        board: &impl Board,
    ) {
        let Some(worker) = self.roster.get_mut(id) else { return };
        worker.closed.remove(&listener);
        let pool = worker.who.pool;
        self.resume(pool, now, board);
        self.refresh_deadline();
    }

    /// It takes none. Who waits there is noticed when the next one is to be sent.
    pub(super) fn shut(&mut self, id: WorkerId, listener: ListenerId) {
        if let Some(worker) = self.roster.get_mut(id) {
            worker.closed.insert(listener);
        }
    }
}

/// Whether it has declined the last one that it was sent.
pub(super) fn declines(worker: &Worker, board: &impl Board) -> bool {
    worker
        .declined
        .as_ref()
        .is_some_and(|declined| board.counts(worker.who.pool, worker.seat).taken == declined.taken)
}
