//! Clients who have connected and said nothing yet (`first-byte`).
//!
//! Some workers are held up by them: Node's drain, for one, waits for every connection without a request,
//! and browsers open such in reserve. So they wait in the shell's hand and go to a worker with their first
//! byte, to whoever serves by then. They are counted with what is held, and close without an answer when
//! the service ends: they have asked for nothing.
//!
//! Nobody is turned away for being slow: where too many wait, the oldest goes to a worker as it is.

use std::time::Instant;

use super::action::Action;
use super::dispatch::Desk;
use super::event::{Held, Past};
use super::{Board, ConnectionId, PoolId, Supervisor};

/// Silent clients of one pool that wait at once. Each costs the master a descriptor, of which it
/// may have thousands; a worker has a time limit of its own for them.
const SILENT_MAX: usize = 1024;

impl Supervisor {
    /// One was accepted.
    pub(super) fn receive_silent(&mut self, held: Held, now: Instant, board: &impl Board) {
        let Held { listener, connection, .. } = held;
        let Some(pool) = self.doors.get(&listener).map(|door| door.pool) else {
            return self.actions.push_back(Action::Refuse { listener, connection });
        };
        self.arrivals += 1;
        let desk = self.desks.entry(pool).or_default();
        desk.accounts.accepted += 1;
        desk.silent.insert(connection, held);
        if desk.silent.len() > SILENT_MAX {
            self.release_oldest(pool, SILENT_MAX);
            self.resume(pool, now, board);
            self.refresh_deadline();
        }
    }

    /// One has said something, or is not to be waited for any more.
    pub(super) fn note_spoken(
        &mut self,
        connection: ConnectionId,
        now: Instant,
        board: &impl Board,
    ) {
        let Some((pool, held)) = self.remove_silent(connection) else { return };
        self.release(pool, held);
        self.resume(pool, now, board);
        self.refresh_deadline();
    }

    /// One has gone, and never said anything.
    pub(super) fn note_hung_up(&mut self, connection: ConnectionId) {
        // One that was long enough may wait for a worker by now, as silent as before.
        let of_held = |desk: &mut Desk| {
            let position = desk.held.iter().position(|held| held.connection == connection)?;
            desk.held.remove(position)
        };
        for desk in self.desks.values_mut() {
            if desk.silent.remove(&connection).or_else(|| of_held(desk)).is_some() {
                desk.accounts.finished += 1;
            }
        }
    }

    /// There are no descriptors left: the older half goes to workers.
    pub(super) fn make_room(&mut self, pool: PoolId) {
        let count = self.silent(pool);
        self.release_oldest(pool, count / 2);
    }

    /// All but the `rest` youngest go to workers.
    fn release_oldest(&mut self, pool: PoolId, rest: usize) {
        while self.silent(pool) > rest {
            let desk = self.desks.entry(pool).or_default();
            let Some((_, held)) = desk.silent.pop_first() else { return };
            self.release(pool, held);
        }
    }

    /// It waits for a worker now, as what came back does.
    fn release(&mut self, pool: PoolId, held: Held) {
        self.hold(pool, vec![Held { past: Past::Spoken, ..held }]);
    }

    /// The service ends, or the pool: they are closed.
    pub(super) fn refuse_silent(&mut self, pool: PoolId) {
        let Some(desk) = self.desks.get_mut(&pool) else { return };
        for held in std::mem::take(&mut desk.silent).into_values() {
            self.refuse(pool, held);
        }
    }

    /// After listeners changed hands or were closed, their silent clients follow them.
    pub(super) fn rehome_silent(&mut self) {
        for pool in self.desks.keys().copied().collect::<Vec<_>>() {
            let silent = self.desks.get_mut(&pool).map(|desk| std::mem::take(&mut desk.silent));
            for held in silent.unwrap_or_default().into_values() {
                if let Some(home) = self.home(pool, held) {
                    self.desks.entry(home).or_default().silent.insert(held.connection, held);
                }
            }
        }
    }

    /// Everyone who is waited for.
    #[must_use]
    pub fn silent_connections(&self) -> Vec<Held> {
        self.desks.values().flat_map(|desk| desk.silent.values().copied()).collect()
    }

    fn remove_silent(&mut self, connection: ConnectionId) -> Option<(PoolId, Held)> {
        let mut desks = self.desks.iter_mut();
        desks.find_map(|(&pool, desk)| Some((pool, desk.silent.remove(&connection)?)))
    }

    pub(super) fn silent(&self, pool: PoolId) -> usize {
        self.desks.get(&pool).map_or(0, |desk| desk.silent.len())
    }
}
