//! A simulated shell: carries out every order against simulated processes, with faults, and holds
//! each order against what it knows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::super::*;
use super::worker::{Client, Dice, Message, Process, Workers};

/// What is wrong with the programs of an edition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temper {
    Good,
    Slow,
    NeverReady,
    DiesBooting,
    DiesServing,
    CannotSpawn,
    Moody,
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    pub attention: Attention,
}

/// What the journal said about a rollout.
#[derive(Debug)]
pub struct Forward {
    pub generation: Generation,
    pub pools: Vec<PoolId>,
}

pub struct World {
    pub dice: Dice,
    pub mind: Supervisor,
    pub workers: Workers,
    pub begun: Instant,
    pub now: Instant,
    pub listeners: BTreeMap<ListenerId, Listener>,
    pub held: BTreeMap<ConnectionId, (ListenerId, Client, Past)>,
    pub accepted: u64,
    pub last_id: u64,
    /// What was asked for last, pool by pool.
    pub config: BTreeMap<PoolId, Policy>,
    /// The same since the last rollout began.
    pub asked: BTreeMap<PoolId, Option<(Edition, Policy)>>,
    pub plans: BTreeMap<(PoolId, Generation), (Edition, Policy)>,
    pub tempers: BTreeMap<Edition, Temper>,
    pub editions: BTreeSet<Edition>,
    pub wishes: BTreeSet<WishId>,
    pub forward: Option<Forward>,
    pub gave_up: BTreeSet<(PoolId, Generation)>,
    pub stillborn: BTreeSet<WorkerId>,
    /// The seats that each pool handed out last, oldest first.
    pub seated: BTreeMap<PoolId, VecDeque<Seat>>,
    /// Whom the journal called ready.
    pub admitted: BTreeSet<WorkerId>,
    /// When each pool's first worker of a generation was ready.
    pub ready_at: BTreeMap<(PoolId, Generation), Instant>,
    /// Retired because their successors serve.
    pub replaced: BTreeSet<WorkerId>,
    pub is_reloading: bool,
    /// Some reload failed, so that what is wanted may not be what was asked for last.
    pub has_failed: bool,
    /// When the last send or accept failed.
    pub failed_at: Option<Instant>,
    pub sweeps: bool,
    pub exit: Option<Option<String>>,
    /// No more faults, except programs that cannot start.
    pub calm: bool,
    pub futile: u32,
    pub idle_exit: Option<Duration>,
    /// When a client was accepted last, or was seen in hand.
    pub used_at: Instant,
    pub is_loud: bool,
    /// What the next master finds after this one was killed: the state after the last pass that
    /// counted.
    pub may_crash: bool,
    pub kept: Option<(u64, Snapshot, Instant)>,
}

impl World {
    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.is_loud {
            eprintln!("{:9.3} {}", self.now.duration_since(self.begun).as_secs_f64(), what());
        }
    }

    pub fn tell(&mut self, fact: Event) {
        let mut facts = VecDeque::from([fact]);
        while let Some(fact) = facts.pop_front() {
            assert!(self.exit.is_none(), "the master is gone");
            self.say(|| format!("{fact:?}"));
            self.mind.handle_event(fact, self.now, &self.workers);
            facts.extend(self.perform());
        }
        self.keep_state();
    }

    /// Carries out what is ordered; answers the facts that follow. Whether anything was ordered is
    /// the caller's to know.
    pub fn perform(&mut self) -> Vec<Event> {
        let mut facts = Vec::new();
        while let Some(action) = self.mind.poll_action() {
            self.say(|| format!("    {action}"));
            assert!(self.exit.is_none(), "an order after the exit: {action}");
            facts.extend(self.carry_out(action));
        }
        facts
    }

    fn carry_out(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Spawn(spawn) => return self.spawn(&spawn),
            Action::Probe { worker, listener, .. } => return self.probe(worker, listener),
            Action::Drain { worker, take_back, handback, .. } => {
                return self.drain(worker, take_back, handback);
            }
            Action::Admit { worker } => self.with(worker, |it| {
                assert!(it.policy.admits(), "{worker} is not to accept");
                assert!(it.is_serving && !it.is_told_to_drain(), "{worker} drains");
                assert!(it.probe_ends.is_none(), "{worker} is being probed");
                it.accepts = true;
            }),
            Action::Ping { worker } => {
                self.with(worker, |it| it.channel.push_back(Message::Ping));
                return Some(Event::TakenBack { worker, connections: Vec::new(), pinged: true });
            }
            Action::TakeBack { worker } => {
                let had_ping = self.with(worker, |it| it.channel.contains(&Message::Ping));
                self.take_back_probe(worker);
                let connections = self.read_back(worker);
                self.with(worker, |it| it.channel.push_back(Message::Ping));
                return Some(Event::TakenBack { worker, connections, pinged: !had_ping });
            }
            Action::Terminate { worker } => {
                let obeys = self.dice.one_in(2);
                self.with(worker, |it| {
                    assert!(!it.is_serving || it.is_told_to_drain());
                    if obeys && it.lives() && !it.is_stopped {
                        it.died = Some("was killed by SIGTERM");
                    }
                });
            }
            // Its spawn failed, and the mind does not know yet.
            Action::Kill { worker } if self.stillborn.contains(&worker) => {}
            Action::Kill { worker } => {
                self.with(worker, |it| {
                    it.is_serving = false;
                    it.died.get_or_insert("was killed by SIGKILL");
                });
            }
            Action::Dispatch { worker, connection } => return self.dispatch(worker, connection),
            Action::Refuse { listener, connection } => {
                let held = self.held.remove(&connection);
                let Some((from, client, _)) = held else { panic!("{connection} is not held") };
                assert_eq!(from, listener, "{connection} came from elsewhere");
                self.workers.0.get_mut().end(client, "refused");
            }
            Action::Attend { listener, attention } => {
                let Some(it) = self.listeners.get_mut(&listener) else {
                    panic!("{listener} is closed")
                };
                assert!(it.attention != attention, "{listener} is told {attention} twice");
                it.attention = attention;
            }
            Action::Close { listener } => {
                assert!(self.listeners.remove(&listener).is_some(), "{listener} is closed twice");
                self.workers.0.get_mut().queues.remove(&listener);
            }
            Action::Sweep => self.sweeps = true,
            Action::Forget { edition } => {
                assert!(self.editions.remove(&edition), "{edition} is forgotten twice");
                let user =
                    self.workers.0.get_mut().processes.values().find(|it| it.edition == edition);
                assert!(user.is_none(), "{edition} is forgotten, {user:?} runs it");
            }
            Action::Reply { wish, outcome } => {
                self.has_failed |= outcome.is_err();
                assert!(self.wishes.remove(&wish), "{wish} is answered twice, or was never made");
            }
            Action::Announce(Announcement::Reloading) => self.is_reloading = true,
            Action::Announce(Announcement::Ready) => self.is_reloading = false,
            Action::Announce(Announcement::Stopping) => {}
            Action::Record(record) => self.note(record),
            Action::Exit { failure } => {
                let left = self.workers.0.get_mut().processes.len();
                assert_eq!(left, 0, "the master leaves {left} workers behind");
                self.exit = Some(failure);
            }
        }
        None
    }

    pub fn with<T>(&mut self, worker: WorkerId, f: impl FnOnce(&mut Process) -> T) -> T {
        match self.workers.0.get_mut().processes.get_mut(&worker) {
            Some(process) => f(process),
            None => panic!("{worker} does not exist"),
        }
    }

    fn note(&mut self, record: Record) {
        match record {
            Record::RolloutBegun { generation, pools } => {
                for (pool, plan) in std::mem::take(&mut self.asked) {
                    if let Some(plan) = plan {
                        self.plans.insert((pool, generation), plan);
                    }
                }
                // A boot is not announced.
                self.forward = self.is_reloading.then_some(Forward { generation, pools });
            }
            Record::Idle { quiet } => self.check_idle(quiet),
            Record::Resumed { .. }
            | Record::RolloutDone { .. }
            | Record::RollingBack { .. }
            | Record::Stopping { .. } => {
                self.has_failed |= matches!(record, Record::RollingBack { .. });
                self.forward = None;
            }
            Record::Draining { who, reason: Reason::Replaced } => {
                self.replaced.insert(who.worker);
                self.check_trial(who);
            }
            Record::Ready(who) => {
                self.admitted.insert(who.worker);
                self.ready_at.entry((who.pool, who.generation)).or_insert(self.now);
            }
            Record::GaveUp { pool, generation, .. } => _ = self.gave_up.insert((pool, generation)),
            Record::Joined(_)
            | Record::Missing(_)
            | Record::OnTrial { .. }
            | Record::Broken { .. }
            | Record::Accounted { .. }
            | Record::StartFailed { .. }
            | Record::Lost { .. }
            | Record::Stalled { .. }
            | Record::Draining { .. }
            | Record::Overdue { .. }
            | Record::Left { .. }
            | Record::RolledBack { .. }
            | Record::Resized { .. } => {}
        }
    }

    /// Nobody of a rollout's pools makes room for the new generation before every canary has
    /// served for its time.
    fn check_trial(&mut self, old: Who) {
        let Some(forward) = self.forward.as_ref().filter(|it| it.generation > old.generation)
        else {
            return;
        };
        let serving = || self.workers.0.borrow();
        // One that was recycled, or a stand-in of a yet older generation, makes room for another.
        let is_succeeded = serving().processes.values().any(|it| {
            let is_beside = it.who.pool == old.pool && it.who.slot == old.slot;
            is_beside && it.who.worker > old.worker && it.who.generation < forward.generation
        });
        if is_succeeded {
            return;
        }
        for &pool in &forward.pools {
            let is_old = |it: &Process| {
                it.who.pool == pool && it.is_serving && it.who.generation < forward.generation
            };
            let has_canary = serving().processes.values().any(is_old)
                && !self.gave_up.iter().any(|(gone, _)| *gone == pool);
            let Some((_, policy)) = self.plans.get(&(pool, forward.generation)) else { continue };
            let passes = self.ready_at.get(&(pool, forward.generation));
            let passes = passes.is_some_and(|at| *at + policy.canary <= self.now);
            assert!(passes || !has_canary, "{old} retires while the canary of {pool} is on trial");
        }
    }

    /// Nobody is harmed by an end because nobody uses the service.
    fn check_idle(&mut self, quiet: Duration) {
        let Some(after) = self.idle_exit else { panic!("nobody asked for an end when idle") };
        assert!(quiet >= after, "it was idle for {quiet:?} only");
        let used_at = self.workers.0.get_mut().accepted_at.max(Some(self.used_at));
        let unused = self.now.duration_since(used_at.unwrap_or(self.used_at));
        assert!(unused >= after, "somebody came {unused:?} ago");
        let mut processes = self.workers.0.get_mut().processes.values();
        let busy = processes.find(|it| it.connections() + it.hand.len() + it.handed_back() > 0);
        assert!(busy.is_none(), "{busy:?} has clients in hand");
        assert!(self.held.is_empty(), "clients are held");
        assert!(self.wishes.is_empty() && !self.is_reloading, "a reload is under way");
        let status = self.mind.status(self.now, &self.workers);
        for pool in &status.pools {
            assert!(pool.gave_up.is_none(), "{} gave up, and would again", pool.pool);
            let Some(generation) = pool.generation else { continue };
            let policy = &self.plans[&(pool.pool, generation)].1;
            let can_be_started = !policy.listeners.is_empty() && !policy.is_bound_here;
            assert!(can_be_started, "nobody starts {} again", pool.pool);
        }
    }

    fn spawn(&mut self, spawn: &Spawn) -> Option<Event> {
        self.check_spawn(spawn);
        self.check_seat(spawn);
        let worker = spawn.who.worker;
        let Some((edition, policy)) = self.plans.get(&(spawn.who.pool, spawn.who.generation))
        else {
            panic!("{spawn} belongs to no plan")
        };
        assert_eq!(*edition, spawn.edition, "{spawn} of another edition");
        let limit = [0, 1, 1, 2, 3, 50][usize::try_from(self.dice.below(6)).unwrap_or(0)];
        let mut process = Process::new(spawn, policy.clone(), limit);
        let mut temper = self.tempers[&spawn.edition];
        if temper == Temper::Moody {
            temper = match self.dice.below(8) {
                0 => Temper::NeverReady,
                1 => Temper::DiesBooting,
                2 => Temper::DiesServing,
                3 => Temper::CannotSpawn,
                4 => Temper::Slow,
                _ => Temper::Good,
            };
        }
        let after = |ms: u64| self.now + Duration::from_millis(ms);
        process.alarm = match temper {
            Temper::CannotSpawn => {
                self.stillborn.insert(worker);
                return Some(Event::SpawnFailed { worker, why: "there is no such program".into() });
            }
            Temper::NeverReady => None,
            Temper::DiesBooting => {
                Some((after(self.dice.below(3000)), Some("exited with status 1")))
            }
            Temper::Slow => Some((after(9_000 + self.dice.below(30_000)), None)),
            Temper::Good | Temper::DiesServing | Temper::Moody => {
                Some((after(self.dice.below(2000)), None))
            }
        };
        self.workers.0.get_mut().start(process);
        None
    }

    /// A seat stays empty for a while: who has it is checked where processes start.
    fn check_seat(&mut self, spawn: &Spawn) {
        let recent = self.seated.entry(spawn.who.pool).or_default();
        assert!(!recent.contains(&spawn.seat), "{spawn}: it was left a moment ago");
        recent.push_back(spawn.seat);
        if recent.len() > 40 {
            recent.pop_front();
        }
    }

    /// Surge, and the generation of a respawn.
    fn check_spawn(&mut self, spawn: &Spawn) {
        let who = spawn.who;
        assert!(!self.gave_up.contains(&(who.pool, who.generation)), "{spawn}: it was given up");
        let Some(forward) = self.forward.as_ref().filter(|it| it.generation == who.generation)
        else {
            return;
        };
        assert!(forward.pools.contains(&who.pool), "{spawn}: this pool does not roll");
        let surge = self.plans[&(who.pool, who.generation)].1.surge as usize;
        let processes = &self.workers.0.get_mut().processes;
        let of_pool = || processes.values().filter(|it| it.who.pool == who.pool);
        let starting = of_pool()
            .filter(|it| it.lives() && !it.is_serving && it.who.generation == who.generation)
            .filter(|it| !it.is_told_to_drain())
            .count();
        assert!(starting < surge, "{spawn}: {starting} are starting already");
        let serves = of_pool().any(|it| it.is_serving && it.who.slot == who.slot);
        let status = self.mind.status(self.now, &self.workers);
        let pool = status.pools.iter().find(|it| it.pool == who.pool);
        let good = pool.and_then(|it| it.good);
        if let Some(good) = good.filter(|it| !self.gave_up.contains(&(who.pool, *it))) {
            let is_old = who.slot.0 <= self.plans[&(who.pool, good)].1.workers;
            assert!(serves || !is_old, "{spawn}: a respawn of {good} was due");
        }
    }

    fn drain(&mut self, worker: WorkerId, take_back: bool, handback: bool) -> Option<Event> {
        let (who, is_told, is_able) =
            self.with(worker, |it| (it.who, it.is_told_to_drain(), it.handback));
        assert!(!is_told, "{worker} is told to drain twice");
        assert!(is_able || !handback, "{worker} does not know how to hand back");
        if take_back {
            self.take_back_probe(worker);
        }
        let connections = if take_back { self.read_back(worker) } else { Vec::new() };
        self.with(worker, |it| {
            it.is_serving = false;
            it.channel.push_back(Message::Drain(handback));
        });
        let is_covered = self
            .workers
            .0
            .get_mut()
            .processes
            .values()
            .any(|it| it.is_serving && it.who.pool == who.pool && it.who.slot == who.slot);
        let is_replaced = self.replaced.contains(&worker);
        assert!(is_covered || !is_replaced, "{worker} is replaced, and nobody serves its slot");
        take_back.then_some(Event::TakenBack { worker, connections, pinged: false })
    }

    /// A canary gets a connection of the master's own.
    fn probe(&mut self, worker: WorkerId, listener: ListenerId) -> Option<Event> {
        let fails = !self.calm && self.dice.one_in(20);
        let ends = self.now + Duration::from_secs(5);
        let who = self.with(worker, |it| {
            assert!(it.policy.probe, "{worker} is probed without a wish");
            assert_eq!(it.policy.listeners.first(), Some(&listener));
            assert!(it.probe_ends.is_none(), "{worker} is probed twice at once");
            if !fails {
                it.probe_ends = Some(ends);
                it.channel.push_back(Message::Probe);
            }
            it.who
        });
        let forward = self.forward.as_ref();
        let is_forward = forward.is_some_and(|it| it.generation == who.generation);
        assert!(is_forward, "{who} is no canary");
        if fails {
            self.mind.handle_event(Event::ProbeReturned { worker }, self.now, &self.workers);
            let result = Err("could not be sent".to_owned());
            return Some(Event::Probed { worker, result, is_left: false });
        }
        None
    }

    /// A probe that waits in the channel comes back before the rest is read.
    pub fn take_back_probe(&mut self, worker: WorkerId) {
        let is_back = self.with(worker, |it| {
            let before = it.channel.len();
            it.channel.retain(|message| *message != Message::Probe);
            let is_back = it.channel.len() < before;
            // Otherwise it goes on, or is closed with its worker.
            it.probe_ends.take_if(|_| is_back).is_some()
        });
        if is_back {
            self.mind.handle_event(Event::ProbeReturned { worker }, self.now, &self.workers);
        }
    }

    fn dispatch(&mut self, worker: WorkerId, connection: ConnectionId) -> Option<Event> {
        let Some(&(listener, client, past)) = self.held.get(&connection) else {
            panic!("{connection} is not held")
        };
        // Silence is over with the order.
        let past = if past == Past::Silent { Past::New } else { past };
        if !self.calm && self.dice.one_in(30) {
            self.failed_at = Some(self.now);
            let is_full = self.dice.one_in(3);
            let held = Held { listener, connection, past, source: None };
            return Some(Event::Returned { held, worker, is_full });
        }
        self.held.remove(&connection);
        self.send(worker, listener, client, past);
        None
    }

    pub fn send(&mut self, worker: WorkerId, listener: ListenerId, client: Client, past: Past) {
        let is_admitted = self.admitted.contains(&worker);
        self.with(worker, |it| {
            assert!(it.policy.listeners.contains(&listener), "{worker} does not know {listener}");
            assert!(it.is_serving && !it.is_told_to_drain(), "{worker} drains");
            assert!(is_admitted, "{worker} was not called ready");
            assert!(it.handback || past != Past::Leftover, "{worker} does not know leftover");
            it.channel.push_back(Message::Connection(listener, client, past));
            let waiting = it.connections();
            let in_hand = waiting + it.hand.len();
            assert!(waiting <= 32, "{waiting} wait in the channel of {worker}");
            let limits = [it.limit, it.policy.max_connections];
            let limit = limits.into_iter().filter(|&limit| limit > 0).min().unwrap_or(u32::MAX);
            // One that accepts by itself may have done so in between.
            let is_known = !it.policy.admits();
            assert!(in_hand <= limit as usize || !is_known, "{worker} holds {in_hand} of {limit}");
        });
    }

    /// What the worker has not received comes back under new names.
    pub fn read_back(&mut self, worker: WorkerId) -> Vec<Held> {
        let messages = self.with(worker, |it| std::mem::take(&mut it.channel));
        let mut entries = Vec::new();
        for message in messages {
            if let Message::Connection(listener, client, past) = message {
                entries.push(self.keep(listener, client, past));
            }
        }
        entries
    }

    pub fn keep(&mut self, listener: ListenerId, client: Client, past: Past) -> Held {
        self.last_id += 1;
        let connection = ConnectionId(self.last_id);
        self.held.insert(connection, (listener, client, past));
        Held { listener, connection, past, source: None }
    }
}
