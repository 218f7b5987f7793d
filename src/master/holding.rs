//! `rcluster status --drain`: what do the workers that drain still wait for?
//!
//! Only they know. So whoever asks makes the master ask all of them, at once, and hears what has been
//! answered when everybody has, or after a second. Those who ask meanwhile hear the same: there is one
//! *round* at a time. A worker that does not tell costs that second at most, and is named with the
//! reason; how many connections it has is known from its counters.
//!
//! What a worker tells is bounded before it is kept: messages and connections per answer, and bytes
//! in all, since an answer must not be longer than what a client may leave unread.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Daemon;
use super::commands::parameters;
use crate::supervisor::{WorkerId, WorkerStatus};
use crate::sys::clock::microseconds;
use crate::wire::control::{
    Answer, Call, DrainingParameters, DrainingResults, DrainingWorker, HeldConnection,
};
use crate::wire::message::{Activity, CONNECTIONS_MAX, Holding};

/// How long the workers have for their answers.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of all connections together that are kept of a round, about as the answer has them.
const BYTES_MAX: usize = 2 * 1024 * 1024;
/// What a connection takes in an answer, beside its texts.
const BYTES_EACH: usize = 128;

/// The round under way, if one is.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Which one it is, or was.
    number: u32,
    /// `None`: there is none under way.
    deadline: Option<Instant>,
    /// Clients who wait for it, and the pool that each asks for.
    callers: Vec<(u64, Option<String>)>,
    /// Those that have not told all.
    awaited: BTreeSet<WorkerId>,
    /// Why these do not tell.
    silent: BTreeMap<WorkerId, String>,
    told: BTreeMap<WorkerId, Told>,
    bytes: usize,
}

/// What a worker has told.
#[derive(Debug, Default)]
struct Told {
    connections: Vec<HeldConnection>,
    /// How many more it has told of, which are too many.
    dropped: u64,
    /// How many more it has. `None`: it has not told all.
    rest: Option<u32>,
}

impl Round {
    pub(super) fn is_under_way(&self) -> bool {
        self.deadline.is_some()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(super) fn is_awaited_by(&self, client: u64) -> bool {
        self.callers.iter().any(|&(caller, _)| caller == client)
    }

    /// This client has gone.
    pub(super) fn forget(&mut self, client: u64) {
        self.callers.retain(|&(caller, _)| caller != client);
    }

    /// Takes in what a worker tells. Whether that was within its bounds.
    fn take(&mut self, worker: WorkerId, holding: Holding, now: u64) -> bool {
        // One that comes too late is no misdeed.
        if holding.round != self.number || !self.awaited.contains(&worker) {
            return true;
        }
        let told = self.told.entry(worker).or_default();
        if told.connections.len() + holding.connections.len() > CONNECTIONS_MAX {
            self.awaited.remove(&worker);
            self.silent.insert(worker, "it tells of more connections than it may".to_owned());
            return false;
        }
        for held in holding.connections {
            self.bytes += BYTES_EACH + 2 * (held.peer.len() + held.listener.len());
            if self.bytes > BYTES_MAX {
                told.dropped += 1;
                continue;
            }
            told.connections.push(HeldConnection {
                peer: plain(&held.peer),
                listener: plain(&held.listener),
                held_for: seconds(now.saturating_sub(held.held_since)),
                state: name_of(held.activity).to_owned(),
                requests: held.requests,
            });
        }
        if holding.rest.is_some() {
            told.rest = holding.rest;
            self.awaited.remove(&worker);
        }
        true
    }

    /// What is known of a worker at the end of the round.
    fn report(&self, pool: &str, status: &WorkerStatus, pid: u32, counted: bool) -> DrainingWorker {
        let told = self.told.get(&status.worker);
        let in_time = format!("within {} s", PATIENCE.as_secs());
        let silence = match (self.silent.get(&status.worker), told) {
            (Some(why), _) => Some(why.clone()),
            (None, Some(Told { rest: Some(_), .. })) => None,
            (None, Some(_)) => Some(format!("it has told no more {in_time}")),
            (None, None) if self.awaited.contains(&status.worker) => {
                Some(format!("it did not answer {in_time}"))
            }
            (None, None) => Some("it began to drain just now".to_owned()),
        };
        let listed = told.map_or(0, |told| told.connections.len() as u64);
        let untold = match told {
            // Its list and this are of one moment; the counters may be newer.
            Some(Told { rest: Some(rest), dropped, .. }) => u64::from(*rest) + dropped,
            Some(_) | None => status.in_hand.saturating_sub(listed),
        };
        DrainingWorker {
            pool: pool.to_owned(),
            slot: status.slot.0,
            generation: status.generation.0,
            pid,
            cut_in: status.cut_in.map(|left| left.as_secs_f64()),
            in_hand: counted.then_some(status.in_hand),
            untold: untold.min(status.in_hand),
            silence,
            connections: told.map(|told| told.connections.clone()).unwrap_or_default(),
        }
    }
}

impl Daemon {
    /// A client asks; it is answered at the end of the round.
    pub(super) fn obey_draining(&mut self, id: u64, call: &Call) -> Option<Answer> {
        let DrainingParameters { pool } = match parameters(call) {
            Ok(parameters) => parameters,
            Err(refusal) => return Some(refusal),
        };
        if call.oneway {
            return None;
        }
        if self.round.is_awaited_by(id) {
            let why = "this client waits for an answer to the same question already";
            return Some(Answer::refusal("Refused", why));
        }
        if let Some(wanted) = &pool {
            let status = self.supervisor.status(self.now, &self.boards);
            let known: Vec<&str> = status.pools.iter().map(|pool| pool.name.as_str()).collect();
            if !known.contains(&wanted.as_str()) {
                let why = format!("there is no pool {wanted}; there are: {}", known.join(", "));
                return Some(Answer::refusal("Refused", why));
            }
        }
        self.round.callers.push((id, pool));
        if !self.round.is_under_way() {
            self.begin_round();
        }
        None
    }

    /// Asks everybody who drains.
    fn begin_round(&mut self) {
        let number = self.round.number.wrapping_add(1);
        let callers = std::mem::take(&mut self.round.callers);
        let deadline = Some(self.now + PATIENCE);
        self.round = Round { number, deadline, callers, ..Round::default() };
        let status = self.supervisor.status(self.now, &self.boards);
        for worker in status.pools.iter().flat_map(|pool| &pool.workers).filter(is_leaving) {
            let id = worker.worker;
            match self.ask_holding(id, number) {
                Ok(()) => drop(self.round.awaited.insert(id)),
                Err(why) => drop(self.round.silent.insert(id, why)),
            }
        }
        self.end_round();
    }

    /// A worker tells what it holds.
    pub(super) fn note_holding(&mut self, id: WorkerId, holding: Holding) {
        let Some(link) = self.native_mut(id) else { return };
        let is_owed = link.owed > 0;
        link.owed = link.owed.saturating_sub(1);
        if !is_owed || !self.round.take(id, holding, microseconds()) {
            self.complain(id, "told of more connections than it can have been asked for");
        }
        self.end_round();
    }

    /// A worker is gone, and with it what it held.
    pub(super) fn forget_held(&mut self, id: WorkerId) {
        if self.round.awaited.remove(&id) {
            self.end_round();
        }
    }

    /// The round is over when it has lasted long enough.
    pub(super) fn tend_round(&mut self) {
        if self.round.deadline.is_some_and(|at| at <= self.now) {
            self.conclude_round();
        }
    }

    fn end_round(&mut self) {
        if self.round.is_under_way() && self.round.awaited.is_empty() {
            self.conclude_round();
        }
    }

    /// Everybody who waits is answered.
    fn conclude_round(&mut self) {
        self.round.deadline = None;
        let status = self.supervisor.status(self.now, &self.boards);
        let mut workers = Vec::new();
        for pool in &status.pools {
            for worker in pool.workers.iter().filter(is_leaving) {
                let id = worker.worker;
                let pid = self.process(id).map_or(0, crate::sys::process::Process::id);
                let counted = self.is_counted(id);
                workers.push(self.round.report(&pool.name, worker, pid, counted));
            }
        }
        let callers = std::mem::take(&mut self.round.callers);
        for (client, pool) in callers {
            let is_wanted =
                |it: &&DrainingWorker| pool.as_ref().is_none_or(|pool| it.pool == *pool);
            let workers = workers.iter().filter(is_wanted).cloned().collect();
            self.answer(client, &Answer::results(&DrainingResults { workers }));
        }
        let number = self.round.number;
        self.round = Round { number, ..Round::default() };
    }
}

/// Whether a worker finishes what it has. One that was sent SIGKILL does not.
fn is_leaving(worker: &&WorkerStatus) -> bool {
    worker.cut_in.is_some()
}

fn name_of(activity: Activity) -> &'static str {
    match activity {
        Activity::Unknown => "unknown",
        Activity::Idle => "idle",
        Activity::Busy => "in a request",
    }
}

/// Text of another process, without what would move a cursor.
fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn seconds(microseconds: u64) -> f64 {
    Duration::from_micros(microseconds).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::{Generation, Slot};
    use crate::wire::message;

    const ID: WorkerId = WorkerId(7);

    fn round() -> Round {
        Round { number: 3, awaited: BTreeSet::from([ID]), ..Round::default() }
    }

    fn told(round: u32, count: usize, peer: &str, rest: Option<u32>) -> Holding {
        let held = message::HeldConnection { peer: peer.to_owned(), ..Default::default() };
        Holding { round, connections: vec![held; count], rest }
    }

    fn report(round: &Round, in_hand: u64) -> DrainingWorker {
        let status = WorkerStatus {
            worker: ID,
            slot: Slot(1),
            generation: Generation(2),
            phase: crate::supervisor::PhaseName::Draining,
            serving_for: None,
            dispatched: 9,
            in_hand,
            cut_in: Some(Duration::from_secs(5)),
            is_stuck: false,
        };
        round.report("web", &status, 4711, true)
    }

    #[test]
    fn answers_are_collected_until_the_last() {
        let mut round = round();
        assert!(round.take(ID, told(3, 2, "a", None), 0));
        assert!(round.awaited.contains(&ID));
        assert_eq!(report(&round, 9).silence.as_deref(), Some("it has told no more within 1 s"));
        assert_eq!(report(&round, 9).untold, 7, "by its counters");
        assert!(round.take(ID, told(3, 1, "b", Some(4)), 0));
        assert!(round.awaited.is_empty());
        let seen = report(&round, 9);
        assert_eq!((seen.silence.as_ref(), seen.connections.len(), seen.untold), (None, 3, 4));
        assert_eq!(report(&round, 2).untold, 2, "what it says is bounded by its counters");
    }

    #[test]
    fn what_answers_another_round_or_comes_after_the_last_is_skipped() {
        let mut round = round();
        assert!(round.take(ID, told(2, 2, "a", Some(0)), 0));
        assert!(round.take(WorkerId(8), told(3, 2, "a", Some(0)), 0));
        assert!(round.told.is_empty() && round.awaited.contains(&ID));
        assert_eq!(report(&round, 1).silence.as_deref(), Some("it did not answer within 1 s"));
        assert!(round.take(ID, told(3, 1, "a", Some(0)), 0));
        assert!(round.take(ID, told(3, 1, "a", Some(0)), 0));
        assert_eq!(report(&round, 1).connections.len(), 1);
        round.told.clear();
        assert_eq!(report(&round, 1).silence.as_deref(), Some("it began to drain just now"));
    }

    #[test]
    fn more_than_a_worker_may_tell_ends_its_answer() {
        let mut round = round();
        assert!(round.take(ID, told(3, CONNECTIONS_MAX, "a", None), 0));
        assert!(!round.take(ID, told(3, 1, "a", Some(0)), 0));
        let seen = report(&round, u64::MAX);
        assert_eq!(seen.connections.len(), CONNECTIONS_MAX);
        assert!(seen.silence.unwrap().starts_with("it tells of more"));
        assert!(round.awaited.is_empty());
    }

    /// Whatever texts many workers tell: the answer stays below what a client may leave unread.
    #[test]
    fn all_answers_together_are_bounded_and_the_rest_is_counted() {
        let mut round = Round { awaited: (0..64).map(WorkerId).collect(), ..round() };
        let peer = "\u{1}\"\\".repeat(40);
        for id in 0..64 {
            let holding = told(3, CONNECTIONS_MAX, &peer, Some(u32::MAX));
            assert!(round.take(WorkerId(id), holding, u64::MAX));
        }
        let listed: usize = round.told.values().map(|told| told.connections.len()).sum();
        let dropped: u64 = round.told.values().map(|told| told.dropped).sum();
        assert_eq!(listed as u64 + dropped, 64 * CONNECTIONS_MAX as u64);
        assert!(listed > 1000 && dropped > 1000, "{listed} {dropped}");
        let workers: Vec<_> = (0..64)
            .map(|id| {
                let told = &round.told[&WorkerId(id)];
                DrainingWorker { connections: told.connections.clone(), ..report(&round, 1) }
            })
            .collect();
        let bytes = crate::wire::control::encode(&Answer::results(&DrainingResults { workers }));
        assert!(bytes.len() < 3 * 1024 * 1024, "{}", bytes.len());
        assert!(!String::from_utf8(bytes).unwrap().contains("\\u00"), "no control characters");
    }
}
