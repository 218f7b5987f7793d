//! Thousands of worlds, and what must hold in each.
//!
//! A world is a seed: which wishes come, which programs are broken, who dies, stops, is slow, and
//! between which two of the master's steps a worker acts. After some hundred steps the accidents
//! end, and the world has to come to rest as wanted; then it is stopped, and has to end. The shell
//! of the simulation holds every single order against what it knows; here is what holds over all.
//!
//! `SEED=n cargo test simulation` replays one world and prints its log, `WORLDS=n` plays more.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::super::*;
use super::shell::World;

#[test]
fn simulation() {
    let number = |name: &str| std::env::var(name).ok().and_then(|it| it.parse::<u64>().ok());
    if let Some(seed) = number("SEED") {
        return play(seed, true);
    }
    for seed in 0..number("WORLDS").unwrap_or(2000) {
        if catch_unwind(AssertUnwindSafe(|| play(seed, false))).is_err() {
            panic!("world {seed} went wrong; `SEED={seed} cargo test simulation` replays it");
        }
    }
}

fn play(seed: u64, is_loud: bool) {
    let mut world = World::new(seed, is_loud);
    world.reload();
    for step in 0..60 + 30 * (seed % 8) {
        if world.exit.is_some() {
            break;
        }
        world.step();
        if step % 5 == 4 {
            world.check_accounts();
        }
        if step % 50 == 49 {
            world.come_to_a_stand();
        }
    }
    world.settle();
    world.grow_tired();
    world.end();
}

impl World {
    /// Every client is in one place, and the mind knows how many are where.
    fn check_accounts(&mut self) {
        if self.exit.is_some() {
            return;
        }
        let status = self.mind.status(self.now, &self.workers);
        for pool in &status.pools {
            let a = pool.accounts;
            let sum = a.finished + pool.in_hand + pool.held + a.refused + a.cut;
            assert_eq!(
                a.accepted, sum,
                "{}: {a:?}, {} in hand, {} held",
                pool.pool, pool.in_hand, pool.held
            );
        }
        let held: u64 = status.pools.iter().map(|pool| pool.held).sum();
        assert_eq!(held, self.held.len() as u64, "the shell holds what the mind has forgotten");
        let inner = self.workers.0.get_mut();
        let with =
            inner.processes.values().map(|it| it.connections() + it.hand.len() + it.handed_back());
        let with: usize = with.sum();
        let places = inner.ended.len() + with + self.held.len();
        let accepted = self.accepted + inner.accepted;
        assert_eq!(accepted, places as u64, "a client is lost");
    }

    /// Without any time passing, everybody does all that he can do. Then no client may wait before
    /// a worker with room: credit comes back by an event.
    fn come_to_a_stand(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "it never comes to a stand");
            if self.exit.is_some() {
                return;
            }
            let ids: Vec<WorkerId> = self.workers.0.get_mut().processes.keys().copied().collect();
            let mut any = false;
            if !self.calm && round < 20 && self.dice.one_in(4) {
                self.bereave();
                any = true;
            }
            for id in ids {
                // In small bites, so that ROOM meets workers in the middle of something.
                for _ in 0..=self.dice.below(4) {
                    any |= self.workers.0.get_mut().step(id);
                }
            }
            let heard = self.calm && self.hear_silent();
            if !(self.listen() | any | heard | self.accept_some()) {
                break;
            }
        }
        let rests = self.failed_at.is_some_and(|at| self.now < at + Duration::from_millis(50));
        let status = self.mind.status(self.now, &self.workers);
        if rests || self.exit.is_some() || status.is_stopping {
            return;
        }
        for (id, listener) in &self.listeners {
            let queue = self.workers.0.borrow().queues.get(id).map_or(0, |it| it.len());
            let waits =
                |(from, _, past): &&(ListenerId, u64, Past)| from == id && *past != Past::Silent;
            let held = self.held.values().filter(waits).count();
            // One that only a waiting reload names belongs to nobody yet.
            let Some(owner) = self.mind.doors.get(id).map(|door| door.pool) else { continue };
            if queue + held == 0 {
                continue;
            }
            // Who has declined one is left alone for a moment, and is not alone in that while one is tried.
            let rests = self.mind.roster.of(owner).any(|worker| worker.rests());
            if rests || self.mind.tries(owner, &self.workers) {
                continue;
            }
            let inner = self.workers.0.borrow();
            let idle = inner.processes.values().find(|it| {
                it.is_serving
                    && !it.is_absent
                    && it.lives()
                    && !it.is_stopped
                    && !it.is_draining
                    && it.who.pool == owner
                    && it.policy.listeners.contains(id)
            });
            if let Some(idle) = idle {
                panic!(
                    "{queue} wait at {id} ({}), {held} are held, and {} is idle",
                    listener.attention, idle.who,
                );
            }
        }
    }

    /// A worker dies with connections in its channel, and some who wait in the kernel go away: now
    /// only those who came back wait for room.
    fn bereave(&mut self) {
        let mut processes = self.workers.0.get_mut().processes.values_mut();
        let Some(process) = processes.find(|it| it.connections() > 0) else { return };
        process.died.get_or_insert("was killed by SIGSEGV");
        self.workers.0.get_mut().queues.clear();
        self.bury();
    }

    /// The accidents end. Everything has to come to rest, as wanted.
    fn settle(&mut self) {
        self.say(|| "calm".to_owned());
        self.calm = true;
        for round in 0.. {
            assert!(round < 5_000, "the world does not settle");
            for process in self.workers.0.get_mut().processes.values_mut() {
                process.is_stopped = false;
                process.alarm.take_if(|(_, fate)| process.is_serving && fate.is_some());
            }
            self.come_to_a_stand();
            if self.exit.is_some() {
                return;
            }
            if self.sweeps {
                self.swept();
            }
            if self.bury() {
                continue;
            }
            self.check_accounts();
            let alarms = self.workers.0.get_mut().processes.values().filter_map(|it| it.alarm);
            let alarm = alarms.map(|(at, _)| at).min();
            let due = alarm.into_iter().chain(self.deadline_but_idle()).min();
            // Whoever looks whether somebody comes, looks for ever.
            let Some(due) = due else { break };
            let next = self.mind.poll_timeout().into_iter().chain([due]).min().unwrap_or(due);
            self.pass(next.saturating_duration_since(self.now));
        }
        self.check_rest();
    }

    fn deadline_but_idle(&self) -> Option<Instant> {
        let mind = &self.mind;
        let of_goal = mind.roster.next_deadline().into_iter().chain(mind.goal_deadline());
        let of_canaries = mind.canary_deadline();
        of_goal.chain(mind.dispatch_deadline()).chain(mind.progress_check).chain(of_canaries).min()
    }

    /// At rest, and nobody comes any more: the service ends by itself, unless it must stay.
    fn grow_tired(&mut self) {
        let Some(after) = self.idle_exit.filter(|_| self.exit.is_none()) else { return };
        // Clients in hand finish, or are cut when their workers are killed; nobody comes.
        self.workers.0.get_mut().queues.clear();
        self.come_to_a_stand();
        let status = self.mind.status(self.now, &self.workers);
        let is_at_ease = |pool: &PoolStatus| {
            pool.gave_up.is_none() && pool.held + pool.in_hand == 0 && pool.good == pool.generation
        };
        let may_end = self.mind.residents().is_empty()
            && !self.mind.is_in_doubt
            && self.mind.was_ready
            && status.pools.iter().all(is_at_ease);
        self.pass(after + after / 8 + Duration::from_secs(1));
        let is_ending = self.mind.life != Life::Running;
        assert_eq!(is_ending, may_end, "idle for {after:?}: {status:?}");
        if is_ending {
            self.wind_up();
        }
    }

    /// It was told to end, and does.
    fn wind_up(&mut self) {
        self.swept();
        for _ in 0..100 {
            if self.exit.is_some() {
                return;
            }
            self.pass(Duration::from_millis(500));
            let _ = self.exit.is_some() || self.bury();
        }
    }

    fn check_rest(&mut self) {
        if self.exit.is_some() {
            return;
        }
        let status = self.mind.status(self.now, &self.workers);
        assert!(!status.is_stopping, "a stop has no end");
        assert!(status.progress.is_none(), "a rollout has no end: {:?}", status.progress);
        assert!(self.wishes.is_empty(), "{:?} are not answered", self.wishes);
        assert!(!self.is_reloading, "systemd waits for READY");
        let mut needed = std::collections::BTreeSet::new();
        for pool in &status.pools {
            let mut serving: Vec<u32> = Vec::new();
            for worker in &pool.workers {
                assert_eq!(worker.phase, PhaseName::Serving, "{worker:?} is not at rest");
                needed.insert(self.plans[&(pool.pool, worker.generation)].0);
                serving.push(worker.slot.0);
                if pool.gave_up.is_none() {
                    assert_eq!(Some(worker.generation), pool.generation, "{worker:?} is stale");
                }
            }
            for generation in pool.generation.iter().chain(&pool.good) {
                needed.insert(self.plans[&(pool.pool, *generation)].0);
            }
            if pool.gave_up.is_none() {
                assert_eq!(
                    serving,
                    (1..=pool.size).collect::<Vec<_>>(),
                    "{pool:?} is not as wanted"
                );
                assert_eq!(pool.held, 0, "{pool:?} holds clients");
            }
        }
        for id in self.listeners.keys() {
            let owner = self.mind.doors.get(id).map(|door| door.pool);
            let is_right = owner
                .is_some_and(|it| self.config.get(&it).is_some_and(|it| it.listeners.contains(id)));
            assert!(is_right || self.has_failed, "{id} belongs to {owner:?}");
        }
        assert_eq!(self.editions, needed, "editions are kept, or forgotten, without need");
        let inner = self.workers.0.get_mut();
        let known: usize = status.pools.iter().map(|pool| pool.workers.len()).sum();
        assert_eq!(inner.processes.len(), known, "a worker is forgotten");
    }

    /// A stop ends, whatever the workers do.
    fn end(&mut self) {
        if self.exit.is_none() {
            self.calm = false;
            self.stop();
            self.wind_up();
        }
        assert!(self.exit.is_some(), "a stop has no end");
        assert!(self.wishes.is_empty(), "{:?} are not answered", self.wishes);
        assert!(self.held.is_empty(), "{:?} are held by nobody", self.held);
        let inner = self.workers.0.get_mut();
        let accepted = self.accepted + inner.accepted;
        assert_eq!(accepted, inner.ended.len() as u64, "a client is lost");
    }
}
