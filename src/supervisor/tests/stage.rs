//! The shell of the transcripts: ideal channels, which take back, send and rescue as ordered, and a
//! line for everything that happens.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use super::super::*;
use super::player::Player;

/// What a channel carries.
#[derive(Clone, Copy)]
pub enum Message {
    Connection(ListenerId, Past),
    /// A connection of the master's own.
    Probe,
    Ping,
}

#[derive(Default)]
pub struct Words {
    pub counts: Counts,
    pub waiting: bool,
}

#[derive(Default)]
pub struct Boards(pub RefCell<BTreeMap<(PoolId, Seat), Words>>);

impl Board for Boards {
    fn counts(&self, pool: PoolId, seat: Seat) -> Counts {
        self.0.borrow().get(&(pool, seat)).map(|words| words.counts).unwrap_or_default()
    }

    fn set_waiting(&self, pool: PoolId, seat: Seat, waiting: bool) {
        self.0.borrow_mut().entry((pool, seat)).or_default().waiting = waiting;
    }
}

impl Player {
    pub fn tell(&mut self, event: Event) {
        self.supervisor.handle_event(event, self.now, &self.boards);
        self.perform();
    }

    pub fn perform(&mut self) {
        let mut facts = VecDeque::new();
        loop {
            while let Some(action) = self.supervisor.poll_action() {
                _ = writeln!(self.said, "    {action}");
                facts.extend(self.carry_out(action));
            }
            let Some(fact) = facts.pop_front() else { return };
            self.supervisor.handle_event(fact, self.now, &self.boards);
        }
    }

    fn carry_out(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Spawn(spawn) => {
                let seat = (spawn.who.pool, spawn.seat);
                self.boards.0.borrow_mut().insert(seat, Words::default());
                self.seats.insert(spawn.who.worker, seat);
                self.channels.insert(spawn.who.worker, VecDeque::new());
                None
            }
            Action::Probe { worker, .. } => {
                self.channels.get_mut(&worker).unwrap().push_back(Message::Probe);
                None
            }
            Action::Ping { worker } => {
                self.channels.get_mut(&worker).unwrap().push_back(Message::Ping);
                Some(Event::TakenBack { worker, connections: Vec::new(), pinged: true })
            }
            Action::Drain { worker, take_back: true, .. } => self.take_back(worker, false),
            Action::TakeBack { worker } => self.take_back(worker, true),
            Action::Dispatch { worker, connection } => {
                let (listener, past, source) = self.held[&connection];
                // Silence is over with the order.
                let past = if past == Past::Silent { Past::New } else { past };
                if self.broken.contains(&worker) {
                    let (held, is_full) = (Held { listener, connection, past, source }, false);
                    return Some(Event::Returned { held, worker, is_full });
                }
                self.held.remove(&connection);
                let channel = self.channels.get_mut(&worker).unwrap();
                channel.push_back(Message::Connection(listener, past));
                None
            }
            Action::Refuse { connection, .. } => {
                assert!(self.held.remove(&connection).is_some(), "{connection} is not held");
                None
            }
            Action::Drain { .. }
            | Action::Admit { .. }
            | Action::Terminate { .. }
            | Action::Kill { .. }
            | Action::Attend { .. }
            | Action::Close { .. }
            | Action::Sweep
            | Action::Forget { .. }
            | Action::Reply { .. }
            | Action::Announce(_)
            | Action::Record(_)
            | Action::Exit { .. } => None,
        }
    }

    /// What another program would read.
    fn snapshot(&self) -> Snapshot {
        let text = serde_json::to_string(&self.supervisor.snapshot(self.now)).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// The next image of the master goes on.
    pub fn upgrade(&mut self) {
        let before = format!("{:?}", self.supervisor.snapshot(self.now));
        let mind = Supervisor::restore(self.snapshot(), self.now, How::Carried).unwrap();
        assert_eq!(
            format!("{:?}", mind.snapshot(self.now)),
            before,
            "something is lost on the way"
        );
        assert_eq!(
            mind.status(self.now, &self.boards),
            self.supervisor.status(self.now, &self.boards)
        );
        self.supervisor = mind;
        self.perform();
    }

    /// The master is killed; the next one waits for these workers.
    pub fn crash(&mut self, awaited: &[&str]) -> Option<()> {
        let awaited: Option<BTreeSet<WorkerId>> = awaited
            .iter()
            .map(|word| Some(WorkerId(word.strip_prefix('w')?.parse().ok()?)))
            .collect();
        let awaited = awaited?;
        self.held.clear();
        self.seats.retain(|worker, _| awaited.contains(worker));
        self.channels.retain(|worker, _| awaited.contains(worker));
        let how = How::Orphaned { now: self.now, awaited };
        self.supervisor = Supervisor::restore(self.snapshot(), self.now, how).unwrap();
        self.supervisor.handle_timeout(self.now, &self.boards);
        self.perform();
        Some(())
    }

    fn take_back(&mut self, worker: WorkerId, ping: bool) -> Option<Event> {
        let had_ping = self.channels[&worker].iter().any(|it| matches!(it, Message::Ping));
        self.take_back_probe(worker);
        let connections = self.read_back(worker);
        if ping {
            self.channels.get_mut(&worker)?.push_back(Message::Ping);
        }
        self.note_came_back("took back", &connections, worker);
        Some(Event::TakenBack { worker, connections, pinged: ping && !had_ping })
    }

    /// A probe that waits in the channel comes back before the rest is read.
    pub fn take_back_probe(&mut self, worker: WorkerId) {
        let channel = self.channels.get_mut(&worker).unwrap();
        let before = channel.len();
        channel.retain(|message| !matches!(message, Message::Probe));
        if channel.len() < before {
            _ = writeln!(self.said, "    (the probe comes back from {worker})");
            let event = Event::ProbeReturned { worker };
            self.supervisor.handle_event(event, self.now, &self.boards);
        }
    }

    pub fn note_came_back(&mut self, how: &str, what: &[Held], from: WorkerId) {
        if !what.is_empty() {
            let ids: Vec<String> = what.iter().map(|held| held.connection.to_string()).collect();
            _ = writeln!(self.said, "    ({how} {} from {from})", ids.join(" "));
        }
    }

    pub fn read_back(&mut self, worker: WorkerId) -> Vec<Held> {
        let messages = self.channels.get_mut(&worker).map(std::mem::take).unwrap_or_default();
        let mut entries = Vec::new();
        for message in messages {
            if let Message::Connection(listener, past) = message {
                entries.push(self.keep(listener, past, None));
            }
        }
        entries
    }

    pub fn keep(&mut self, listener: ListenerId, past: Past, source: Option<u64>) -> Held {
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        self.held.insert(connection, (listener, past, source));
        Held { listener, connection, past, source }
    }

    pub fn status(&mut self) {
        let status = self.supervisor.status(self.now, &self.boards);
        for pool in &status.pools {
            let show = |it: Option<Generation>| it.map_or("none".to_owned(), |it| it.to_string());
            let a = pool.accounts;
            let (wanted, good) = (show(pool.generation), show(pool.good));
            let workers: Vec<String> = pool
                .workers
                .iter()
                .map(|it| format!("{} {} {} {:?}", it.slot, it.worker, it.generation, it.phase))
                .collect();
            _ = writeln!(
                self.said,
                "    {} {}: {} of {} serve; wants {wanted}, good is {good}; {}\n    \
                 accepted {} = finished {} + in hand {} + held {} + refused {} + cut {}\n    \
                 workers: {}",
                pool.pool,
                pool.name,
                pool.serving,
                pool.size,
                pool.gave_up
                    .as_ref()
                    .map_or("all is well".to_owned(), |why| format!("gave up: {why}")),
                a.accepted,
                a.finished,
                pool.in_hand,
                pool.held,
                a.refused,
                a.cut,
                workers.join(", "),
            );
        }
        let deadline = self.supervisor.poll_timeout().map(|at| at - self.now);
        _ = writeln!(self.said, "    next deadline: {deadline:.1?}");
    }
}
