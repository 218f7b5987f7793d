//! Connections that came back: where they wait, and how they go out again.
//!
//! A connection comes back when its worker died or stalled before it received it, or when sending
//! it failed. It waits at the desk of the pool that its listener belongs to *now* (a reload may
//! have moved it), goes before new clients of that listener, and is refused only when nobody can
//! ever take it: its listener is closed, clients are being answered by the shell, or the service
//! ends.

use std::collections::BTreeSet;
use std::time::Instant;

use super::action::{Action, Attention};
use super::{Board, ConnectionId, Life, ListenerId, PoolId, Supervisor, WorkerId};

impl Supervisor {
    /// Takes back connections that no worker has received.
    pub(super) fn hold(&mut self, pool: PoolId, connections: Vec<(ListenerId, ConnectionId)>) {
        for entry in connections {
            if let Some(home) = self.home(pool, entry) {
                self.desks.entry(home).or_default().held.push_back(entry);
            }
        }
    }

    /// The same, from a worker that is already forgotten.
    pub(super) fn hold_homeless(&mut self, connections: Vec<(ListenerId, ConnectionId)>) {
        for (listener, connection) in connections {
            match self.doors.get(&listener).map(|door| door.pool) {
                Some(pool) => self.hold(pool, vec![(listener, connection)]),
                None => self.actions.push_back(Action::Refuse { listener, connection }),
            }
        }
    }

    /// The pool at which a connection of `pool` now waits; with it goes its place in the accounts.
    /// `None`: it was refused.
    fn home(&mut self, pool: PoolId, entry: (ListenerId, ConnectionId)) -> Option<PoolId> {
        let home = self.doors.get(&entry.0).map(|door| door.pool);
        match home.filter(|_| self.life != Life::Stopping) {
            Some(home) if home != pool => {
                let accounts = &mut self.desks.entry(pool).or_default().accounts;
                accounts.accepted = accounts.accepted.saturating_sub(1);
                self.desks.entry(home).or_default().accounts.accepted += 1;
                Some(home)
            }
            Some(home) => Some(home),
            None => {
                self.refuse(pool, entry);
                None
            }
        }
    }

    /// After listeners changed hands or were closed, what is held follows them.
    pub(super) fn rehome_held(&mut self) {
        for pool in self.desks.keys().copied().collect::<Vec<_>>() {
            let held = self.desks.get_mut(&pool).map(|desk| std::mem::take(&mut desk.held));
            self.hold(pool, held.unwrap_or_default().into());
        }
    }

    /// Sends what came back to whoever has room.
    pub(super) fn send_held(&mut self, pool: PoolId, now: Instant, board: &impl Board) {
        // One listener's connections may wait while another's go out.
        let mut waiting: BTreeSet<ListenerId> = BTreeSet::new();
        let mut next = 0;
        while let Some(&(listener, connection)) =
            self.desks.get(&pool).and_then(|desk| desk.held.get(next))
        {
            let is_stuck = waiting.contains(&listener);
            let worker = if is_stuck { None } else { self.find_room(pool, listener, None, board) };
            let Some(worker) = worker else {
                waiting.insert(listener);
                next += 1;
                continue;
            };
            self.note_sent(worker, now);
            let desk = self.desks.entry(pool).or_default();
            desk.held.remove(next);
            desk.accounts.redispatched += 1;
            self.actions.push_back(Action::Dispatch { worker, connection });
        }
        for listener in waiting {
            // They go before new clients, who wait in the kernel meanwhile.
            self.pause(listener, now);
            if self.doors.get(&listener).is_some_and(|door| door.attention == Attention::Answer) {
                self.refuse_held(pool, Some(listener));
            }
        }
    }

    /// Connections that were sent to a worker are not with it any more.
    pub(super) fn unsend(&mut self, id: WorkerId, count: u64) {
        if let Some(worker) = self.roster.get_mut(id) {
            worker.dispatched = worker.dispatched.saturating_sub(count);
            worker.messages = worker.messages.saturating_sub(count);
        }
    }

    /// A connection could not be sent: it goes first next time, after a rest; or to another worker
    /// at once, where this one is `shunned`.
    pub(super) fn put_back(
        &mut self,
        id: WorkerId,
        entry: (ListenerId, ConnectionId),
        shunned: bool,
        now: Instant,
        board: &impl Board,
    ) {
        self.unsend(id, 1);
        let Some(pool) = self.roster.get(id).map(|worker| worker.who.pool) else {
            // It died meanwhile, and this one was taken for cut.
            if let Some(home) = self.doors.get(&entry.0).map(|door| door.pool) {
                let accounts = &mut self.desks.entry(home).or_default().accounts;
                accounts.cut = accounts.cut.saturating_sub(1);
            }
            return self.hold_homeless(vec![entry]);
        };
        let Some(home) = self.home(pool, entry) else { return };
        let desk = self.desks.entry(home).or_default();
        // Several that fail together keep their order.
        desk.held.insert(desk.returned.min(desk.held.len()), entry);
        desk.returned += 1;
        if shunned {
            self.resume(home, now, board);
            self.refresh_deadline();
        } else {
            self.rest(home, now);
        }
    }

    /// Closes what is held when nobody will take it: of one listener, or all.
    pub(super) fn refuse_held(&mut self, pool: PoolId, only: Option<ListenerId>) {
        let Some(desk) = self.desks.get_mut(&pool) else { return };
        let is_meant = |entry: &(ListenerId, ConnectionId)| only.is_none_or(|it| it == entry.0);
        let (meant, kept): (Vec<_>, Vec<_>) = desk.held.drain(..).partition(is_meant);
        desk.held = kept.into();
        for entry in meant {
            self.refuse(pool, entry);
        }
    }

    fn refuse(&mut self, pool: PoolId, (listener, connection): (ListenerId, ConnectionId)) {
        self.desks.entry(pool).or_default().accounts.refused += 1;
        self.actions.push_back(Action::Refuse { listener, connection });
    }

    pub(super) fn held(&self, pool: PoolId) -> u64 {
        self.desks.get(&pool).map_or(0, |desk| desk.held.len() as u64)
    }
}
