//! Simulated workers. They act whenever the master looks at the scoreboard or asks for ROOM, as
//! real ones would on another processor: one step at a time, in any order.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::super::chance::mix;
use super::super::*;

/// A client, from its arrival on.
pub type Client = u64;

/// Dice that replay.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % sides
    }

    pub fn one_in(&mut self, sides: u64) -> bool {
        self.below(sides) == 0
    }
}

/// What a channel carries to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Connection(ListenerId, Client, Past),
    /// A connection of the master's own.
    Probe,
    Ping,
    /// With whether live connections may be handed back.
    Drain(bool),
}

/// What a worker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Ready,
    Room,
    Retire,
    Drained,
    /// What a probe found.
    Probed(Result<(), &'static str>),
    /// A client whom others may have.
    Handback(ListenerId, Client, Past),
}

/// One simulated process, until its exit is reported.
#[derive(Debug)]
pub struct Process {
    pub who: Who,
    pub seat: Seat,
    pub edition: Edition,
    pub policy: Policy,
    /// What it announces.
    pub limit: u32,
    pub is_up: bool,
    /// The master was told READY.
    pub is_serving: bool,
    pub is_draining: bool,
    pub is_stopped: bool,
    /// It accepts by itself.
    pub accepts: bool,
    /// Its master was killed, and it has not come to the next one.
    pub is_absent: bool,
    /// Those whom it has given back, and some master has heard of.
    pub handed_back_before: u64,
    /// It is dead, and this is how.
    pub died: Option<&'static str>,
    /// What it does by itself, and when: get ready or die.
    pub alarm: Option<(Instant, Option<&'static str>)>,
    pub channel: VecDeque<Message>,
    pub hand: Vec<(ListenerId, Client)>,
    /// It has a probe in hand.
    has_probe: bool,
    /// When the master loses patience with its probe.
    pub probe_ends: Option<Instant>,
    /// It was built with a library that hands back.
    pub handback: bool,
    /// It was told that it may.
    hands_back: bool,
    pub outbox: VecDeque<Said>,
    /// It stored a counter and has not yet looked at `waiting`.
    looks: bool,
}

impl Process {
    pub fn new(spawn: &Spawn, policy: Policy, limit: u32) -> Process {
        Process {
            who: spawn.who,
            seat: spawn.seat,
            edition: spawn.edition,
            policy,
            limit,
            is_up: false,
            is_serving: false,
            is_draining: false,
            is_stopped: false,
            accepts: false,
            is_absent: false,
            handed_back_before: 0,
            died: None,
            alarm: None,
            channel: VecDeque::new(),
            hand: Vec::new(),
            has_probe: false,
            probe_ends: None,
            // Of one edition they are alike; here they differ more often than editions follow.
            handback: spawn.who.worker.0 % 3 != 0,
            hands_back: false,
            outbox: VecDeque::new(),
            looks: false,
        }
    }

    pub fn lives(&self) -> bool {
        self.died.is_none()
    }

    /// Whether it was told to drain, and has not heard it yet or does.
    pub fn is_told_to_drain(&self) -> bool {
        self.is_draining || self.channel.iter().any(|it| matches!(it, Message::Drain(_)))
    }

    /// Those whom it has given back, and the master has not heard of yet.
    pub fn handed_back(&self) -> usize {
        self.outbox.iter().filter(|it| matches!(it, Said::Handback(..))).count()
    }

    pub fn connections(&self) -> usize {
        self.channel.iter().filter(|it| matches!(it, Message::Connection(..))).count()
    }
}

#[derive(Debug, Default)]
struct Words {
    counts: Counts,
    waiting: bool,
}

/// All processes, and what they share with the master.
#[derive(Debug)]
pub struct Inner {
    pub dice: Dice,
    pub processes: BTreeMap<WorkerId, Process>,
    seats: BTreeMap<(PoolId, Seat), Words>,
    /// Who waits in the kernel.
    pub queues: BTreeMap<ListenerId, VecDeque<Client>>,
    /// Clients whom workers have accepted.
    pub accepted: u64,
    /// When a worker accepted last.
    pub accepted_at: Option<Instant>,
    pub now: Option<Instant>,
    /// How every client that is gone ended.
    pub ended: BTreeMap<Client, &'static str>,
}

#[derive(Debug)]
pub struct Workers(pub RefCell<Inner>);

impl Workers {
    pub fn new(seed: u64) -> Workers {
        let (processes, seats, ended) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Workers(RefCell::new(Inner {
            dice: Dice(mix(seed)),
            processes,
            seats,
            queues: BTreeMap::new(),
            accepted: 0,
            accepted_at: None,
            now: None,
            ended,
        }))
    }
}

impl Board for Workers {
    fn counts(&self, pool: PoolId, seat: Seat) -> Counts {
        self.0.borrow_mut().interleave();
        self.0.borrow().seats.get(&(pool, seat)).map(|words| words.counts).unwrap_or_default()
    }

    fn set_waiting(&self, pool: PoolId, seat: Seat, waiting: bool) {
        self.0.borrow_mut().interleave();
        self.0.borrow_mut().seats.entry((pool, seat)).or_default().waiting = waiting;
        self.0.borrow_mut().interleave();
    }
}

impl Inner {
    pub fn start(&mut self, process: Process) {
        let place = (process.who.pool, process.seat);
        let squatter = self
            .processes
            .values()
            .find(|other| (other.who.pool, other.seat) == place)
            .map(|other| other.who.worker);
        assert!(squatter.is_none(), "{place:?} still belongs to {squatter:?}");
        self.seats.insert(place, Words::default());
        let before = self.processes.insert(process.who.worker, process);
        assert!(before.is_none(), "a worker's id is used twice");
    }

    pub fn end(&mut self, client: Client, how: &'static str) {
        let before = self.ended.insert(client, how);
        assert!(before.is_none(), "client {client} was {} and {how}", before.unwrap_or_default());
    }

    /// While the master does one thing, the others do some.
    fn interleave(&mut self) {
        if self.processes.is_empty() || !self.dice.one_in(4) {
            return;
        }
        for _ in 0..=self.dice.below(6) {
            let which = usize::try_from(self.dice.below(self.processes.len() as u64)).unwrap();
            let id = self.processes.keys().nth(which).copied();
            let _ = id.is_some_and(|id| self.step(id));
        }
    }

    /// One step of one worker, as small as the real one's. Whether it did anything.
    pub fn step(&mut self, id: WorkerId) -> bool {
        let Some(process) = self.processes.get_mut(&id) else { return false };
        if !process.lives() || process.is_stopped || !process.is_up {
            return false;
        }
        let words = self.seats.entry((process.who.pool, process.seat)).or_default();
        if std::mem::take(&mut process.looks) {
            if std::mem::take(&mut words.waiting) {
                process.outbox.push_back(Said::Room);
            }
            return true;
        }
        let limits = [process.limit, process.policy.max_connections];
        let limit = limits.into_iter().filter(|&limit| limit > 0).min().unwrap_or(u32::MAX);
        let has_room = process.hand.len() + usize::from(process.has_probe) < limit as usize;
        let has_leisure =
            process.hand.is_empty() && process.channel.is_empty() && !process.has_probe;
        let accepts = process.accepts && !process.is_draining && has_room;
        if accepts && (has_leisure || self.dice.one_in(2)) {
            let queues = process.policy.listeners.iter();
            let next = queues.filter_map(|id| Some((*id, self.queues.get(id)?.front()?)));
            if let Some((listener, &client)) = next.min_by_key(|(_, client)| *client) {
                self.queues.entry(listener).or_default().pop_front();
                words.counts.accepted += 1;
                (self.accepted, self.accepted_at) = (self.accepted + 1, self.now);
                process.hand.push((listener, client));
                return true;
            }
        }
        let finishes = !process.hand.is_empty() && self.dice.one_in(3);
        if let Some(message) = if finishes { None } else { process.channel.pop_front() } {
            words.counts.progress += 1;
            match message {
                Message::Connection(listener, client, _) => {
                    words.counts.taken += 1;
                    process.hand.push((listener, client));
                    process.looks = true;
                }
                Message::Probe => {
                    words.counts.taken += 1;
                    process.has_probe = true;
                    process.looks = true;
                }
                Message::Ping => process.outbox.push_back(Said::Room),
                Message::Drain(handback) => {
                    process.is_draining = true;
                    process.hands_back = handback;
                }
            }
            return true;
        }
        if std::mem::take(&mut process.has_probe) {
            words.counts.finished += 1;
            process.looks = true;
            let is_well = !self.dice.one_in(8);
            let verdict = if is_well { Ok(()) } else { Err("was answered 500") };
            process.outbox.push_back(Said::Probed(verdict));
            return true;
        }
        if !process.hand.is_empty() {
            let which = usize::try_from(self.dice.below(process.hand.len() as u64)).unwrap();
            let (listener, client) = process.hand.swap_remove(which);
            if process.hands_back && self.dice.one_in(2) {
                let past = if self.dice.one_in(2) { Past::Idle } else { Past::Leftover };
                process.outbox.push_back(Said::Handback(listener, client, past));
                return true;
            }
            words.counts.finished += 1;
            process.looks = true;
            self.end(client, "finished");
            return true;
        }
        if process.is_draining && process.channel.is_empty() {
            process.outbox.push_back(Said::Drained);
            process.died = Some("exited with status 0");
            return true;
        }
        false
    }
}
