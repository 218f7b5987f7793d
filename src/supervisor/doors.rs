//! Which listener belongs to which pool, and what its clients meet when nobody can take them.

use std::collections::BTreeMap;
use std::time::Instant;

use super::action::{Action, Attention};
use super::{Accept, ListenerId, PoolId, Supervisor, Unavailable};

/// A listening socket, as the mind sees it.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) pool: PoolId,
    pub(super) attention: Attention,
    /// Since when nobody can take its clients.
    pub(super) starved: Option<Instant>,
}

impl Supervisor {
    /// Gives every open listener to its pool. What is settled decides while a rollout moves one.
    pub(super) fn renew_doors(&mut self, now: Instant) {
        let mut claims: BTreeMap<ListenerId, Vec<PoolId>> = BTreeMap::new();
        let plans = |settled: bool| {
            self.goal.pools.iter().filter_map(move |(&id, pool)| {
                let plan = if settled { &pool.settled } else { &pool.wanted };
                plan.as_ref().map(|plan| (id, plan))
            })
        };
        for (pool, plan) in plans(true).chain(plans(false)) {
            for &listener in &plan.policy.listeners {
                claims.entry(listener).or_default().push(pool);
            }
        }
        // One that was closed stays so, though an older plan that is wanted again names it.
        for (listener, pools) in claims {
            let Some(&pool) = pools.first().filter(|_| self.listeners.contains(&listener)) else {
                continue;
            };
            let (attention, starved) = (Attention::Pause, Some(now));
            let door = self.doors.entry(listener).or_insert(Door { pool, attention, starved });
            door.pool = pool;
        }
        self.rehome_held();
    }

    /// Closes the listeners that no plan and no waiting reload uses.
    pub(super) fn close_unused(&mut self) {
        let used = self.goal.listeners();
        let unused: Vec<ListenerId> = self.listeners.difference(&used).copied().collect();
        for &listener in &unused {
            self.listeners.remove(&listener);
            self.doors.remove(&listener);
            self.actions.push_back(Action::Close { listener });
        }
        if !unused.is_empty() {
            self.rehome_held();
        }
    }

    /// Nobody can take this listener's clients: they wait in the kernel's queue.
    pub(super) fn pause(&mut self, listener: ListenerId, now: Instant) {
        let Some(door) = self.doors.get_mut(&listener) else { return };
        door.starved.get_or_insert(now);
        if door.attention == Attention::Accept {
            door.attention = Attention::Pause;
            self.actions.push_back(Action::Attend { listener, attention: Attention::Pause });
        }
        self.refresh_deadline();
    }

    /// When a paused listener's clients are to be answered by the shell.
    pub(super) fn answers_at(&self, door: &Door) -> Option<Instant> {
        if self.life.is_stopping() {
            return None;
        }
        let policy = self.goal.pools.get(&door.pool)?.policy()?;
        match policy.unavailable {
            // Nobody but its workers accepts there.
            Unavailable::AnswerAfter(_) if policy.accept == Accept::Workers => None,
            Unavailable::AnswerAfter(wait) if door.attention == Attention::Pause => {
                door.starved.map(|since| since + wait)
            }
            Unavailable::AnswerAfter(_) | Unavailable::Wait => None,
        }
    }

    /// Clients who have waited too long are answered, those whom we hold first.
    pub(super) fn answer_fed_up(&mut self, now: Instant) {
        let fed_up: Vec<(ListenerId, PoolId)> = self
            .doors
            .iter()
            .filter(|(_, door)| self.answers_at(door).is_some_and(|at| at <= now))
            .map(|(&listener, door)| (listener, door.pool))
            .collect();
        for (listener, pool) in fed_up {
            if let Some(door) = self.doors.get_mut(&listener) {
                door.attention = Attention::Answer;
                self.actions.push_back(Action::Attend { listener, attention: Attention::Answer });
                self.refuse_held(pool, Some(listener));
            }
        }
    }
}
