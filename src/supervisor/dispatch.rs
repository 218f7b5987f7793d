//! Which worker takes the next connection, and when to stop accepting.
//!
//! A worker has room while it has credit: fewer than [`super::Policy::window`] connections wait untaken in its
//! channel, and fewer than its limit are in its hand. Where nobody has room the listener is paused
//! and clients wait in the kernel's queue, where waiting is free and survives even the master.
//!
//! Credit comes back by an event. Before anything is left waiting, `waiting` is set for every worker
//! that might get room, and the counters are read *once more*: a worker that finished in between
//! did not see `waiting`, but its counter is seen now. [`Supervisor::find_room`] is the only place
//! that says *nobody*. Nothing here runs the whole pass.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::action::{Action, Attention};
use super::choice::{Candidate, Chosen};
use super::event::{Held, Past};
use super::ranks::Ranks;
use super::roster::Worker;
use super::{Accept, Board, ConnectionId, ListenerId, PoolId, Supervisor, WorkerId};

/// After the system ran out of descriptors or refused a message, this long nothing is tried.
const RETRY: Duration = Duration::from_millis(50);

/// A pool's side of dispatching.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// Its serving workers, by slot.
    pub(super) candidates: Vec<Candidate>,
    /// What is known of each.
    pub(super) ranks: Ranks,
    /// Whose counters were looked at last.
    pub(super) looked_at: usize,
    /// Whose turn it was.
    pub(super) cursor: usize,
    /// Connections that came back and wait for a worker, oldest first.
    pub(super) held: VecDeque<Held>,
    /// Clients who have said nothing yet, oldest first.
    pub(super) silent: BTreeMap<ConnectionId, Held>,
    /// Of those held, the first so many could not be sent and go out after the rest.
    pub(super) returned: usize,
    /// `waiting` is set on the scoreboard.
    pub(super) awaits_room: bool,
    /// One of its workers has declined a connection.
    pub(super) has_decliners: bool,
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
    /// A worker is gone: so many connections it had accepted by itself; so many of all it had were cut,
    /// had been closed by it, were answered for it, and go to others.
    pub(super) fn close(
        &mut self,
        accepted: u64,
        cut: u64,
        finished: u64,
        answered: u64,
        saved: u64,
    ) {
        self.accepted += accepted;
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
    /// `source` identifies the client for [`super::Balance::SourceHash`]; without it the least loaded
    /// worker is named. Sending must be reported by [`Supervisor::note_dispatched`].
    pub fn choose(
        &mut self,
        listener: ListenerId,
        source: Option<u64>,
        now: Instant,
        board: &impl Board,
    ) -> Option<WorkerId> {
        let pool = self.doors.get(&listener)?.pool;
        let worker = self.find_room(pool, Client::new(listener, source), board);
        if worker.is_none() {
            self.pause(listener, now);
        }
        worker
    }

    /// The next order to dispatch, before its turn: what is in the shell's hand should not be there
    /// for long. No other order depends on when it is carried out.
    pub fn poll_dispatch(&mut self) -> Option<Action> {
        let is_one = |action: &Action| matches!(action, Action::Dispatch { .. });
        self.actions.remove(self.actions.iter().position(is_one)?)
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
        // As a rule it is the one that was chosen last.
        let Chosen { place, record } = self.chosen;
        let worker = self.roster.records.get_mut(id, Some(record))?;
        worker.dispatched += 1;
        worker.messages += 1;
        let pool = worker.who.pool;
        let desk = self.desks.entry(pool).or_default();
        let is_it = |candidate: &Candidate| candidate.worker == id;
        let is_there = desk.candidates.get(place).is_some_and(is_it);
        let place = if is_there { Some(place) } else { desk.candidates.iter().position(is_it) };
        if let Some(place) = place {
            desk.cursor = place;
            desk.ranks.note_sent(place);
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

    /// Asks every candidate that could be sent this client to say when it has room.
    pub(super) fn await_room(&mut self, pool: PoolId, client: Client, board: &impl Board) {
        let Some(desk) = self.desks.get_mut(&pool) else { return };
        desk.awaits_room = true;
        for worker in self.roster.records.of(&desk.candidates) {
            if client.is_for(worker) {
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
            let room = self.find_room(pool, Client::new(listener, None), board).is_some();
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
        let is_free = |desk: &&Desk| desk.awaits_room && desk.held.is_empty();
        let Some(desk) = self.desks.get(&pool).filter(is_free) else { return };
        let candidates = || self.roster.records.of(&desk.candidates);
        let waits = self.doors.iter().any(|(&listener, door)| {
            let is_starved = door.pool == pool && door.attention != Attention::Accept;
            // Where workers accept by themselves, clients may wait for nobody's room but theirs.
            is_starved && candidates().any(|it| Client::new(listener, None).is_for(it))
        });
        let Some(desk) = self.desks.get_mut(&pool).filter(|_| !waits) else { return };
        desk.awaits_room = false;
        for worker in self.roster.records.of(&desk.candidates) {
            board.set_waiting(pool, worker.seat, false);
        }
    }

    /// The system has no descriptors left for this listener's clients: its pool is paused for a moment.
    pub(super) fn rest_of(&mut self, listener: ListenerId, now: Instant) {
        if let Some(pool) = self.doors.get(&listener).map(|door| door.pool) {
            self.make_room(pool);
            self.rest(pool, now);
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
        self.end_rests(now, board);
        self.answer_fed_up(now);
    }

    pub(super) fn dispatch_deadline(&self) -> Option<Instant> {
        let rests = self.desks.values().filter_map(|desk| desk.resting_until);
        let answers = self.doors.values().filter_map(|door| self.answers_at(door));
        rests.chain(answers).chain(self.rest_deadline()).min()
    }
}

/// Whom a worker is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) listener: ListenerId,
    past: Past,
    /// What identifies it, for [`super::Balance::SourceHash`].
    pub(super) source: Option<u64>,
    /// It waits in the shell's hand.
    pub(super) is_held: bool,
}

impl Client {
    /// One that waits at its listener.
    pub(super) fn new(listener: ListenerId, source: Option<u64>) -> Client {
        Client { listener, past: Past::New, source, is_held: false }
    }

    /// One that came back.
    pub(super) fn held(Held { listener, past, source, .. }: Held) -> Client {
        Client { listener, past, source, is_held: true }
    }

    /// Whether this worker could be sent it. Those who accept by themselves are sent only what they
    /// cannot accept any more.
    pub(super) fn is_for(self, worker: &Worker) -> bool {
        let policy = &worker.plan.policy;
        let is_way = policy.accept == Accept::Master || policy.admits() && self.is_held;
        let is_open =
            policy.listeners.contains(&self.listener) && !worker.closed.contains(&self.listener);
        is_way && is_open && worker.understands(self.past)
    }
}
