//! Which worker takes the next connection, and when to stop accepting.
//!
//! A worker has room while it has credit: fewer than [`WINDOW`] connections wait untaken in its
//! channel, and fewer than its limit are in its hand. Where nobody has room the listener is paused
//! and clients wait in the kernel's queue, where waiting is free and survives even the master.
//!
//! Credit comes back by an event. Before anything is left waiting, `waiting` is set for every worker
//! that might get room, and the counters are read *once more*: a worker that finished in between
//! did not see `waiting`, but its counter is seen now. [`Supervisor::find_room`] is the only place
//! that says *nobody*. Nothing here runs the whole pass.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::action::{Action, Attention};
use super::chance::mix;
use super::event::{Held, Past};
use super::roster::Worker;
use super::{Balance, Board, ListenerId, PoolId, Supervisor, WorkerId};

/// Connections that may wait in one worker's channel. Far below the 278 small messages that a
/// socket buffer holds by default, so that a send never finds it full.
pub(super) const WINDOW: u64 = 32;

/// After the system ran out of descriptors or refused a message, this long nothing is tried.
const RETRY: Duration = Duration::from_millis(50);

/// A pool's side of dispatching.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// Its serving workers, by slot.
    pub(super) candidates: Vec<WorkerId>,
    /// Whose turn it was.
    pub(super) cursor: usize,
    /// Connections that came back and wait for a worker, oldest first.
    pub(super) held: VecDeque<Held>,
    /// Of these, the first so many could not be sent and go out after the rest.
    pub(super) returned: usize,
    /// `waiting` is set on the scoreboard.
    pub(super) awaits_room: bool,
    /// Until then nothing is accepted or sent.
    pub(super) resting_until: Option<Instant>,
    pub(super) accounts: Accounts,
}

/// Where a pool's connections have gone: accepted = finished + in hand + held + refused + cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Accounts {
    /// Accepted from a listener.
    pub accepted: u64,
    /// Closed by a worker that is gone.
    pub finished: u64,
    /// Came back from a worker that died or stalled, and went to another. Not part of the sum.
    pub redispatched: u64,
    /// Given back alive by draining workers. Not part of the sum.
    pub handed_back: u64,
    /// Answered or closed by the master because nobody could take them.
    pub refused: u64,
    /// Of the refused: those whose worker died with their request, and who were told so.
    pub answered: u64,
    /// In the hand of a worker when it died, and not to be saved.
    pub cut: u64,
}

impl Accounts {
    /// A worker is gone: so many of its connections were cut, had been closed by it, were answered for
    /// it, and go to others.
    pub(super) fn close(&mut self, cut: u64, finished: u64, answered: u64, saved: u64) {
        self.cut += cut;
        self.finished += finished;
        self.refused += answered;
        self.answered += answered;
        self.redispatched += saved;
    }
}

impl Supervisor {
    /// The worker that should get the next connection of `listener`. `None`: nobody has room; the
    /// order to pause is out, and a later fact ends the pause.
    ///
    /// `source` identifies the client for [`Balance::SourceHash`]; without it the least loaded
    /// worker is named. Sending must be reported by [`Supervisor::note_dispatched`].
    pub fn choose(
        &mut self,
        listener: ListenerId,
        source: Option<u64>,
        now: Instant,
        board: &impl Board,
    ) -> Option<WorkerId> {
        let pool = self.doors.get(&listener)?.pool;
        let worker = self.find_room(pool, listener, Past::New, source, board);
        if worker.is_none() {
            self.pause(listener, now);
        }
        worker
    }

    /// Somebody with room for this listener's client. If nobody: those who may get room will say so.
    pub(super) fn find_room(
        &mut self,
        pool: PoolId,
        listener: ListenerId,
        past: Past,
        source: Option<u64>,
        board: &impl Board,
    ) -> Option<WorkerId> {
        self.with_room(pool, listener, past, source, board).or_else(|| {
            self.await_room(pool, listener, board);
            // The second reading; see the head of this file.
            self.with_room(pool, listener, past, source, board)
        })
    }

    /// A new connection was given to the worker that [`Supervisor::choose`] named. Where sending it
    /// failed, [`super::Event::Returned`] follows.
    pub fn note_dispatched(&mut self, worker: WorkerId, now: Instant) {
        if let Some(pool) = self.note_sent(worker, now) {
            self.desks.entry(pool).or_default().accounts.accepted += 1;
            self.arrivals += 1;
        }
    }

    pub(super) fn note_sent(&mut self, id: WorkerId, now: Instant) -> Option<PoolId> {
        let worker = self.roster.get_mut(id)?;
        worker.dispatched += 1;
        worker.messages += 1;
        let pool = worker.who.pool;
        let desk = self.desks.entry(pool).or_default();
        if let Some(position) = desk.candidates.iter().position(|&other| other == id) {
            desk.cursor = position;
        }
        self.watch_progress(now);
        Some(pool)
    }

    /// The shell has answered a client whom nobody could take.
    pub(super) fn note_refused(&mut self, listener: ListenerId) {
        if let Some(door) = self.doors.get(&listener) {
            let accounts = &mut self.desks.entry(door.pool).or_default().accounts;
            accounts.accepted += 1;
            accounts.refused += 1;
            self.arrivals += 1;
        }
    }

    fn with_room(
        &self,
        pool: PoolId,
        listener: ListenerId,
        past: Past,
        source: Option<u64>,
        board: &impl Board,
    ) -> Option<WorkerId> {
        let desk = self.desks.get(&pool)?;
        if desk.resting_until.is_some() {
            return None;
        }
        let count = desk.candidates.len();
        // From the one after the last: ties go round.
        let in_turn = (1..=count).map(|step| desk.candidates[(desk.cursor + step) % count]);
        let free = in_turn.filter_map(|id| {
            let worker = self.roster.get(id).filter(|worker| worker.understands(past))?;
            Some((worker, has_room(worker, listener, board)?))
        });
        let balance = self.goal.pools.get(&pool)?.policy()?.balance;
        let chosen = match (balance, source) {
            (Balance::RoundRobin, _) => {
                let mut free = free;
                free.next()
            }
            // The highest of hashes that every slot draws for this client (rendezvous hashing,
            // Thaler and Ravishankar 1996): when a slot is full or gone, only its clients move.
            (Balance::SourceHash, Some(source)) => {
                free.max_by_key(|(worker, _)| mix(source ^ mix(u64::from(worker.who.slot.0))))
            }
            (Balance::LeastConnections | Balance::SourceHash, _) => {
                free.min_by_key(|(_, in_hand)| *in_hand)
            }
        };
        chosen.map(|(worker, _)| worker.who.worker)
    }

    /// Whether the worker can take a connection of its first listener.
    pub(super) fn can_take(&self, id: WorkerId, board: &impl Board) -> bool {
        let worker = self.roster.get(id);
        worker.is_some_and(|worker| {
            let listener = worker.plan.policy.listeners.first();
            listener.is_some_and(|&listener| has_room(worker, listener, board).is_some())
        })
    }

    /// Asks every candidate that knows this listener to say when it has room.
    fn await_room(&mut self, pool: PoolId, listener: ListenerId, board: &impl Board) {
        let Some(desk) = self.desks.get_mut(&pool) else { return };
        desk.awaits_room = true;
        for worker in desk.candidates.iter().filter_map(|&id| self.roster.get(id)) {
            if worker.plan.policy.listeners.contains(&listener) {
                board.set_waiting(pool, worker.seat, true);
            }
        }
    }

    /// A worker of the pool may have room: held connections first, then the listeners.
    pub(super) fn resume(&mut self, pool: PoolId, now: Instant, board: &impl Board) {
        self.send_held(pool, now, board);
        if self.life.is_stopping() {
            return;
        }
        let starved: Vec<ListenerId> = self
            .doors
            .iter()
            .filter(|(_, door)| door.pool == pool && door.attention != Attention::Accept)
            .map(|(&listener, _)| listener)
            .collect();
        for listener in starved {
            let room = self.find_room(pool, listener, Past::New, None, board).is_some();
            let Some(door) = self.doors.get_mut(&listener) else { continue };
            if room {
                door.attention = Attention::Accept;
                door.starved = None;
                self.actions.push_back(Action::Attend { listener, attention: Attention::Accept });
            } else {
                door.starved.get_or_insert(now);
            }
        }
        self.forget_room(pool, board);
    }

    pub(super) fn resume_all(&mut self, now: Instant, board: &impl Board) {
        for pool in self.desks.keys().copied().collect::<Vec<_>>() {
            self.resume(pool, now, board);
        }
    }

    /// Once nothing waits any more, `waiting` is taken back: each ROOM costs a message.
    fn forget_room(&mut self, pool: PoolId, board: &impl Board) {
        let waits = self
            .doors
            .values()
            .any(|door| door.pool == pool && door.attention != Attention::Accept);
        let Some(desk) = self.desks.get_mut(&pool) else { return };
        if waits || !desk.held.is_empty() || !desk.awaits_room {
            return;
        }
        desk.awaits_room = false;
        for worker in desk.candidates.iter().filter_map(|&id| self.roster.get(id)) {
            board.set_waiting(pool, worker.seat, false);
        }
    }

    /// Pauses all of a pool for a moment: the system is out of something.
    pub(super) fn rest(&mut self, pool: PoolId, now: Instant) {
        self.desks.entry(pool).or_default().resting_until = Some(now + RETRY);
        let listeners: Vec<ListenerId> =
            self.doors.iter().filter(|(_, door)| door.pool == pool).map(|(&id, _)| id).collect();
        for listener in listeners {
            self.pause(listener, now);
        }
        self.refresh_deadline();
    }

    /// Ends rests that are over, and answers clients who have waited too long.
    pub(super) fn dispatch_timeout(&mut self, now: Instant, board: &impl Board) {
        let rested: Vec<PoolId> = self
            .desks
            .iter_mut()
            .filter(|(_, desk)| desk.resting_until.is_some_and(|until| until <= now))
            .map(|(&pool, desk)| {
                (desk.resting_until, desk.returned) = (None, 0);
                pool
            })
            .collect();
        for pool in rested {
            self.resume(pool, now, board);
        }
        self.answer_fed_up(now);
    }

    pub(super) fn dispatch_deadline(&self) -> Option<Instant> {
        let rests = self.desks.values().filter_map(|desk| desk.resting_until);
        rests.chain(self.doors.values().filter_map(|door| self.answers_at(door))).min()
    }

    /// Renews the list of those who may be chosen, after a worker began or ceased to serve.
    pub(super) fn renew_candidates(&mut self, pool: PoolId) {
        let mut serving: Vec<&Worker> =
            self.roster.of(pool).filter(|worker| worker.is_at_work()).collect();
        serving.sort_by_key(|worker| (worker.who.slot, worker.who.worker));
        let candidates = serving.iter().map(|worker| worker.who.worker).collect();
        self.desks.entry(pool).or_default().candidates = candidates;
    }
}

/// How many connections the worker has in hand, if it can take one more of this listener.
fn has_room(worker: &Worker, listener: ListenerId, board: &impl Board) -> Option<u64> {
    if worker.is_suspect() || !worker.plan.policy.listeners.contains(&listener) {
        return None;
    }
    let hand = worker.hand(board.counts(worker.who.pool, worker.seat));
    (hand.untaken < WINDOW && hand.in_hand < worker.limit).then_some(hand.in_hand)
}
