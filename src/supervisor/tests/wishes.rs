//! What people wish in a simulated world: other pools, other programs, other sizes.

use std::time::Duration;

use super::super::*;
use super::shell::{Listener, Temper, World};

const POOLS: u64 = 3;
const LISTENERS: u64 = 5;

impl World {
    /// A new edition of some pools: changed, removed, added, broken.
    pub fn reload(&mut self) {
        let is_first = self.wishes.is_empty() && self.plans.is_empty() && self.asked.is_empty();
        let mut pools = Vec::new();
        let edition = Edition(self.last_id + 1);
        let wish = WishId(self.last_id + 1);
        self.last_id += 1;
        for id in 1..=POOLS {
            let pool = PoolId(u32::try_from(id).unwrap());
            if self.dice.one_in(3) && !(is_first && id == 1) {
                continue;
            }
            let is_alone = self.config.keys().all(|other| *other == pool);
            if self.dice.one_in(6) && !is_alone {
                self.config.remove(&pool);
                self.asked.insert(pool, None);
                pools.push((pool, None));
                continue;
            }
            let policy = self.policy(pool);
            self.config.insert(pool, policy.clone());
            self.asked.insert(pool, Some((edition, policy.clone())));
            pools.push((pool, Some(policy)));
        }
        let temper = match self.dice.below(14) {
            0 => Temper::Slow,
            1 => Temper::NeverReady,
            2 => Temper::DiesBooting,
            3 => Temper::DiesServing,
            4 => Temper::CannotSpawn,
            5..=7 => Temper::Moody,
            _ => Temper::Good,
        };
        self.tempers.insert(edition, temper);
        self.editions.insert(edition);
        self.wishes.insert(wish);
        for listener in pools.iter().filter_map(|(_, it)| it.as_ref()).flat_map(|it| &it.listeners)
        {
            let attention = Attention::Pause;
            let fresh = || Listener { attention };
            self.listeners.entry(*listener).or_insert_with(fresh);
        }
        self.say(|| format!("{edition} is {temper:?}"));
        self.tell(Event::ReloadRequested { wish, edition, pools });
    }

    fn policy(&mut self, pool: PoolId) -> Policy {
        let dice = &mut self.dice;
        let mut listeners = Vec::new();
        for id in 1..=LISTENERS {
            let listener = ListenerId(u32::try_from(id).unwrap());
            let owner = self.config.iter().find(|(_, it)| it.listeners.contains(&listener));
            let is_free = owner.is_none_or(|(owner, _)| *owner == pool);
            if is_free && id % POOLS == u64::from(pool.0) % POOLS && !dice.one_in(4) {
                listeners.push(listener);
            } else if is_free && owner.is_none() && dice.one_in(12) {
                // It moves, or comes back elsewhere.
                listeners.push(listener);
            }
        }
        let seconds = Duration::from_secs;
        let probe = !listeners.is_empty() && dice.one_in(3);
        Policy {
            name: format!("pool{}", pool.0),
            workers: 1 + u32::try_from(dice.below(3)).unwrap(),
            listeners,
            is_bound_here: dice.one_in(12),
            accept: if dice.one_in(3) { Accept::Workers } else { Accept::Master },
            counted: true,
            window: [1, 32, 32][usize::try_from(dice.below(3)).unwrap()],
            balance: [Balance::LeastConnections, Balance::RoundRobin, Balance::SourceHash]
                [usize::try_from(dice.below(3)).unwrap()],
            start_timeout: seconds(10 + dice.below(20)),
            drain_timeout: seconds([0, 1, 10, 30][usize::try_from(dice.below(4)).unwrap()]),
            watchdog: (!dice.one_in(5)).then(|| seconds(2 + dice.below(20))),
            max_connections: [0, 0, 1, 2, 40][usize::try_from(dice.below(5)).unwrap()],
            max_requests: 0,
            restart_limit: 1 + u32::try_from(dice.below(5)).unwrap(),
            restart_window: seconds(10 + dice.below(50)),
            surge: 1 + u32::try_from(dice.below(2)).unwrap(),
            canary: seconds([0, 0, 1, 10][usize::try_from(dice.below(4)).unwrap()]),
            probe,
            unavailable: match dice.one_in(3) {
                true => Unavailable::AnswerAfter(seconds(1 + dice.below(5))),
                false => Unavailable::Wait,
            },
        }
    }

    pub fn resize(&mut self) {
        let pool = PoolId(1 + u32::try_from(self.dice.below(POOLS)).unwrap());
        let workers = 1 + u32::try_from(self.dice.below(4)).unwrap();
        let fact = match self.dice.below(4) {
            0 => Event::ScaleRequested { pool, scale: Scale::To(workers) },
            1 => Event::ScaleRequested { pool, scale: Scale::More },
            2 => Event::ScaleRequested { pool, scale: Scale::Fewer },
            _ => {
                let Some(policy) = self.config.get_mut(&pool) else { return };
                policy.workers = workers;
                for (_, plan) in self.plans.iter_mut().filter(|((it, _), _)| *it == pool) {
                    plan.1.workers = workers;
                }
                if let Some(Some((_, policy))) = self.asked.get_mut(&pool) {
                    policy.workers = workers;
                }
                Event::Resized { pool, workers }
            }
        };
        self.tell(fact);
    }
}
