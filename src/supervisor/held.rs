//! Connections that came back: where they wait, and how they go out again.
//!
//! A connection comes back when its worker died or stalled before it received it, when sending it
//! failed, or when its worker drains and gives it back alive. It waits at the desk of the pool that its listener belongs to *now* (a reload may
//! have moved it), goes before new clients of that listener, and is refused only when nobody can
//! ever take it: its listener is closed, clients are being answered by the shell, or the service
//! ends.

use std::collections::BTreeSet;
use std::time::Instant;

use super::action::{Action, Attention};
use super::dispatch::Client;
use super::event::{Held, Past};
use super::{Board, Life, ListenerId, PoolId, Supervisor, WorkerId};

impl Supervisor {
    /// Takes back connections that no worker has received.
    pub(super) fn hold(&mut self, pool: PoolId, connections: Vec<Held>) {
        for held in connections {
            if let Some(home) = self.home(pool, held) {
                self.desks.entry(home).or_default().held.push_back(held);
            }
        }
    }

    /// They were read back from this worker.
    pub(super) fn take_back(
        &mut self,
        id: WorkerId,
        connections: Vec<Held>,
        pinged: bool,
        now: Instant,
        board: &impl Board,
    ) {
        self.unsend(id, connections.len() as u64);
        let Some(worker) = self.roster.get_mut(id) else {
            return self.hold_homeless(connections);
        };
        worker.messages += u64::from(pinged);
        let pool = worker.who.pool;
        self.charge_rescued(id, &connections);
        self.hold(pool, connections);
        self.watch_progress(now);
        self.resume(pool, now, board);
        self.refresh_deadline();
    }

    /// What comes from a worker that is already forgotten.
    pub(super) fn hold_homeless(&mut self, connections: Vec<Held>) {
        for held in connections {
            let Held { listener, connection, .. } = held;
            match self.doors.get(&listener).map(|door| door.pool) {
                Some(pool) => self.hold(pool, vec![held]),
                None => self.actions.push_back(Action::Refuse { listener, connection }),
            }
        }
    }

    /// A draining worker gave a live connection back: somebody else gets it. One that gives back more
    /// than it has is not believed.
    pub(super) fn receive_back(
        &mut self,
        id: WorkerId,
        held: Option<Held>,
        now: Instant,
        board: &impl Board,
    ) {
        let Some(worker) = self.roster.get_mut(id) else {
            return self.hold_homeless(held.into_iter().collect());
        };
        let pool = worker.who.pool;
        let hand = worker.hand(board.counts(pool, worker.seat));
        if hand.in_hand == 0 {
            if let Some(Held { listener, connection, .. }) = held {
                self.actions.push_back(Action::Refuse { listener, connection });
            }
            return;
        }
        let accounts = &mut self.desks.entry(pool).or_default().accounts;
        if hand.accepted > 0 {
            // The master has it now, as if it had accepted it.
            worker.own_back += 1;
            accounts.accepted += 1;
        } else {
            worker.handed_back += 1;
        }
        match held {
            Some(held) => {
                accounts.handed_back += 1;
                self.hold(pool, vec![held]);
            }
            None => accounts.cut += 1,
        }
        self.charge_handback(id, held.is_some());
        self.resume(pool, now, board);
        self.refresh_deadline();
    }

    /// What this worker still seemed to have was handed back to the master before, and is with
    /// somebody else, where it was counted a second time.
    pub(super) fn note_passed_on(&mut self, id: WorkerId, board: &impl Board) {
        let Some(worker) = self.roster.get_mut(id) else { return };
        let pool = worker.who.pool;
        let hand = worker.hand(board.counts(pool, worker.seat));
        if hand.in_hand == 0 {
            return;
        }
        if hand.accepted > 0 {
            worker.own_back += 1;
            return;
        }
        worker.handed_back += 1;
        let accounts = &mut self.desks.entry(pool).or_default().accounts;
        accounts.accepted = accounts.accepted.saturating_sub(1);
    }

    /// The pool at which a connection of `pool` now waits; with it goes its place in the accounts.
    /// `None`: it was refused.
    pub(super) fn home(&mut self, pool: PoolId, held: Held) -> Option<PoolId> {
        let home = self.doors.get(&held.listener).map(|door| door.pool);
        match home.filter(|_| self.life != Life::Stopping) {
            Some(home) if home != pool => {
                let accounts = &mut self.desks.entry(pool).or_default().accounts;
                accounts.accepted = accounts.accepted.saturating_sub(1);
                self.desks.entry(home).or_default().accounts.accepted += 1;
                Some(home)
            }
            Some(home) => Some(home),
            None => {
                self.refuse(pool, held);
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
        self.rehome_silent();
    }

    /// Sends what came back to whoever has room.
    pub(super) fn send_held(&mut self, pool: PoolId, now: Instant, board: &impl Board) {
        // One listener's connections may wait while another's go out.
        let mut waiting: BTreeSet<ListenerId> = BTreeSet::new();
        let mut next = 0;
        while let Some(&held) = self.desks.get(&pool).and_then(|desk| desk.held.get(next)) {
            let Held { listener, connection, past, .. } = held;
            if self.is_foreign(pool, held) {
                self.desks.entry(pool).or_default().held.remove(next);
                self.refuse(pool, held);
                continue;
            }
            let is_stuck = waiting.contains(&listener);
            let room =
                if is_stuck { None } else { self.find_room(pool, Client::held(held), board) };
            let Some(worker) = room else {
                waiting.insert(listener);
                next += 1;
                continue;
            };
            self.note_sent(worker, now);
            let desk = self.desks.entry(pool).or_default();
            desk.held.remove(next);
            desk.accounts.redispatched += u64::from(past == Past::New);
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

    /// Whether nobody who serves could make anything of this connection, however long it waits.
    fn is_foreign(&self, pool: PoolId, held: Held) -> bool {
        let mut takers = self
            .roster
            .of(pool)
            .filter(|it| it.is_at_work() && it.plan.policy.listeners.contains(&held.listener))
            .peekable();
        takers.peek().is_some() && !takers.any(|worker| worker.understands(held.past))
    }

    /// Connections that were sent to a worker are not with it any more.
    pub(super) fn unsend(&mut self, id: WorkerId, count: u64) {
        let Some(worker) = self.roster.get_mut(id) else { return };
        worker.dispatched = worker.dispatched.saturating_sub(count);
        worker.messages = worker.messages.saturating_sub(count);
        // It has handed back more than it had received.
        let surplus = worker.handed_back.saturating_sub(worker.dispatched);
        worker.handed_back -= surplus;
        let pool = worker.who.pool;
        self.desks.entry(pool).or_default().accounts.accepted += surplus;
    }

    /// A connection could not be sent: it goes first next time, after a rest; or to another worker
    /// at once, where this one is `shunned`.
    pub(super) fn put_back(
        &mut self,
        id: WorkerId,
        held: Held,
        shunned: bool,
        now: Instant,
        board: &impl Board,
    ) {
        self.unsend(id, 1);
        let Some(pool) = self.roster.get(id).map(|worker| worker.who.pool) else {
            // It died meanwhile, and this one was taken for cut.
            if let Some(home) = self.doors.get(&held.listener).map(|door| door.pool) {
                let accounts = &mut self.desks.entry(home).or_default().accounts;
                accounts.cut = accounts.cut.saturating_sub(1);
            }
            return self.hold_homeless(vec![held]);
        };
        let Some(home) = self.home(pool, held) else { return };
        let desk = self.desks.entry(home).or_default();
        // Several that fail together keep their order.
        desk.held.insert(desk.returned.min(desk.held.len()), held);
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
        let is_meant = |held: &Held| only.is_none_or(|it| it == held.listener);
        let (meant, kept): (Vec<_>, Vec<_>) = desk.held.drain(..).partition(is_meant);
        desk.held = kept.into();
        for held in meant {
            self.refuse(pool, held);
        }
        // Who has asked for nothing can wait on at one listener, but not for the end of all.
        if only.is_none() {
            self.refuse_silent(pool);
        }
    }

    /// Nobody gets it: a new client is refused, the connection of an idle or silent one is over.
    pub(super) fn refuse(&mut self, pool: PoolId, Held { listener, connection, past, .. }: Held) {
        let accounts = &mut self.desks.entry(pool).or_default().accounts;
        match past {
            Past::New | Past::Spoken => accounts.refused += 1,
            Past::Silent | Past::Idle | Past::Leftover => accounts.finished += 1,
        }
        self.actions.push_back(Action::Refuse { listener, connection });
    }

    /// Whether connections of this pool wait in the shell's hand for a worker.
    #[must_use]
    pub fn holds(&self, pool: PoolId) -> bool {
        self.desks.get(&pool).is_some_and(|desk| !desk.held.is_empty())
    }

    /// All of them, silent ones included.
    pub(super) fn held(&self, pool: PoolId) -> u64 {
        self.desks.get(&pool).map_or(0, |desk| (desk.held.len() + desk.silent.len()) as u64)
    }
}
