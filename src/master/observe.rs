//! Readiness becomes facts.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::Signal;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};

use super::journal::{Entry, LISTENER, Level, MessageId};
use super::{Daemon, Token};
use crate::kinds::native::Client;
use crate::kinds::native::{Descriptors, Heard, Queue, TakenBack};
use crate::supervisor::{Attention, Event, Held, ListenerId, Scale, WorkerId};
use crate::sys::listen::{Accepted, accept, source_of};
use crate::sys::process::{Ending, reap_strangers};
use crate::wire::message::ToMaster;
use crate::wire::scoreboard::STRIDE;

/// Connections accepted from one listener per turn, so that nobody else starves.
const ACCEPT_BATCH: usize = 16;
/// Messages read from one worker per turn.
const MESSAGE_BATCH: usize = 64;
/// Messages read from a dead worker: more than a channel holds.
const LAST_WORDS: usize = 1024;

/// Whether a worker has more to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hearing {
    GoesOn,
    Pauses,
    Ended,
}

impl Daemon {
    /// Something is ready; what it was may be gone by now.
    pub(super) fn observe(&mut self, token: Token) {
        match token {
            Token::Signals => self.observe_signals(),
            Token::Listener(id) => self.observe_listener(id),
            Token::Channel(id) | Token::Process(id) if self.check.knows(id) => {
                self.observe_check(id);
            }
            Token::Channel(id) => self.observe_channel(id),
            Token::Process(id) => self.observe_process(id),
            Token::Probe(id) => self.observe_probe(id),
            Token::Control => self.observe_control(),
            Token::Client(id) => self.observe_client(id),
            Token::Unsent(id) => self.observe_unsent(id),
            Token::Journal => self.forget_outputs(),
            Token::Door => self.observe_door(),
            Token::Guest(id) => self.observe_guest(id),
            Token::Rehearsal => self.observe_rehearsal(),
            Token::Lingering(id) => {
                if self.lingering.hear(id) {
                    self.close_lingering(id);
                }
            }
        }
    }

    /// Takes in a fact, now. The orders that follow are carried out before the next fact, unless
    /// this one is itself about an order: then they follow that one.
    pub(super) fn report(&mut self, event: Event) {
        self.supervisor.handle_event(event, self.now, &self.boards);
        self.perform_all();
    }

    fn observe_listener(&mut self, id: ListenerId) {
        for _ in 0..ACCEPT_BATCH {
            let goes_on = match self.listeners.get(id).map(|listener| listener.attention) {
                Some(Attention::Accept) => self.accept_one(id),
                Some(Attention::Answer) => self.answer_one(id),
                Some(Attention::Pause) | None => return,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Accepts one connection and passes it on: never one that could not be passed on at once.
    /// Whether more may wait.
    pub(super) fn accept_one(&mut self, id: ListenerId) -> bool {
        let Some(mut worker) = self.supervisor.choose(id, None, self.now, &self.boards) else {
            // The order to pause is out; carry it out before the listener is looked at again.
            self.perform_all();
            return false;
        };
        let Some((client, needs_source)) = self.accept_client(id) else { return false };
        if needs_source {
            let source = source_of(client.as_fd());
            worker =
                self.supervisor.choose(id, Some(source), self.now, &self.boards).unwrap_or(worker);
        }
        self.supervisor.note_dispatched(worker, self.now);
        self.send(worker, id, Client { socket: client, past: None, leftover: None });
        true
    }

    /// A client nobody can take is answered.
    fn answer_one(&mut self, id: ListenerId) -> bool {
        let Some((client, _)) = self.accept_client(id) else { return false };
        self.refuse(id, client);
        self.report(Event::Refused { listener: id });
        true
    }

    fn accept_client(&mut self, id: ListenerId) -> Option<(OwnedFd, bool)> {
        let listener = self.listeners.get(id)?;
        loop {
            match accept(listener.as_fd()) {
                Ok(Accepted::Client(client)) => return Some((client, listener.needs_source)),
                Ok(Accepted::Gone) => {}
                Ok(Accepted::Nobody) => return None,
                Ok(Accepted::Exhausted(error)) => {
                    let text = format!("no connection can be accepted for the moment: {error}");
                    let entry = Entry::new(Level::Warning, text).id(MessageId::AcceptFailed);
                    self.say_once(entry);
                    self.report(Event::AcceptFailed { listener: id });
                    return None;
                }
                Err(error) => {
                    let name = listener.name.clone();
                    let text = format!("listener {name} cannot accept: {error}");
                    let entry = Entry::new(Level::Warning, text).id(MessageId::AcceptFailed);
                    self.say_once(entry.with(LISTENER, name));
                    self.report(Event::AcceptFailed { listener: id });
                    return None;
                }
            }
        }
    }

    fn observe_channel(&mut self, id: WorkerId) {
        for _ in 0..MESSAGE_BATCH {
            if self.rests(id) {
                return;
            }
            match self.hear_worker(id) {
                Hearing::GoesOn => {}
                Hearing::Pauses => return,
                Hearing::Ended => return self.expel(id),
            }
        }
    }

    /// Takes in one message of a worker, if one is there.
    fn hear_worker(&mut self, id: WorkerId) -> Hearing {
        let Some(worker) = self.workers.get(&id) else { return Hearing::Pauses };
        match worker.hear() {
            Ok(Heard::Nothing) => return Hearing::Pauses,
            Ok(Heard::End) => return Hearing::Ended,
            Ok(Heard::Message(message, descriptors)) => self.heed(id, message, descriptors),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                self.complain(id, &format!("sent {error}"));
            }
            Err(error) => {
                self.complain(id, &format!("cannot be heard: {error}"));
                return Hearing::Pauses;
            }
        }
        Hearing::GoesOn
    }

    /// A living worker whose channel has ended can be given nothing and told nothing.
    fn expel(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if std::mem::replace(&mut worker.is_expelled, true) {
            return;
        }
        let killed = worker.process.signal_group(Signal::SIGKILL);
        let who = self.describe(id);
        let text = match killed {
            Ok(()) => format!("{who} has shut down its channel; it is killed"),
            Err(error) => format!("{who} has shut down its channel and cannot be killed: {error}"),
        };
        self.journal.say(self.about_worker(id, Level::Error, text).id(MessageId::Misbehaved));
    }

    fn heed(&mut self, worker: WorkerId, message: ToMaster, descriptors: Descriptors) {
        match message {
            // Zeros: the worker did not say.
            ToMaster::Ready { limit, stride, handback, adoption, ledger, .. }
                if stride == 0 || stride == STRIDE as u32 =>
            {
                if ledger {
                    self.ledgers.note_kept(worker);
                }
                if adoption {
                    self.welcome(worker, None);
                }
                self.report(Event::Ready { worker, limit, handback });
            }
            ToMaster::Ready { stride, .. } => {
                let why = format!(
                    "counts on a scoreboard of stride {stride}, this master's is {STRIDE}: build \
                     it with the worker library of this version"
                );
                self.report(Event::Unfit { worker, why });
            }
            ToMaster::Room => self.report(Event::Room { worker }),
            ToMaster::Drained => {
                self.report(Event::Drained { worker });
                self.say_bye(worker);
            }
            ToMaster::Retire => self.report(Event::RetireRequested { worker }),
            ToMaster::Handback { listener, past, entry } => {
                // Its worker has done with it, whatever becomes of it.
                self.ledgers.release(worker, entry);
                self.receive_back(worker, &listener, past, descriptors);
            }
            // On the adoption socket alone.
            ToMaster::Hello { .. } | ToMaster::Keep { .. } => {
                self.complain(worker, "introduced itself on its channel");
            }
            ToMaster::Unknown(kind) => {
                self.complain(worker, &format!("said something of unknown type {kind}"));
            }
        }
    }

    /// Says once what a worker did that it should not do.
    pub(super) fn complain(&mut self, id: WorkerId, what: &str) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if std::mem::replace(&mut worker.is_notorious, true) {
            return;
        }
        let who = self.describe(id);
        let text = format!("{who} {what}; it is ignored");
        self.journal.say(self.about_worker(id, Level::Warning, text).id(MessageId::Misbehaved));
    }

    /// A worker's process has ended. Its words come first, then what it never received, then what its
    /// ledger says, then its counters; only then is the exit a fact.
    fn observe_process(&mut self, id: WorkerId) {
        if self.observe_absent(id) {
            return;
        }
        let Some(worker) = self.workers.get(&id) else { return };
        let how = match worker.process.reap() {
            Ok(None) => return,
            Ok(Some(Ending::Status(status))) => format!("exited with status {status}"),
            Ok(Some(Ending::Signal(signal))) => format!("was killed by {signal}"),
            Ok(Some(Ending::Unknown)) => "is gone".to_owned(),
            Err(error) => format!("is gone ({error})"),
        };
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.is_reaped = true;
        }
        let mut rescued = match self.bury_joining(id) {
            Some(handed_back) => handed_back,
            None => {
                self.hear_all(id);
                Vec::new()
            }
        };
        rescued.extend(self.read_back(id, Queue::OfDead).0);
        let (alive, answered) = self.bury_ledger(id);
        rescued.extend(alive);
        let who = self.describe(id);
        if let Some(worker) = self.workers.get(&id) {
            let channel = Some(&worker.channel).filter(|_| worker.is_watched);
            let unwatched = self
                .poller
                .remove(&worker.process)
                .and_then(|()| channel.map_or(Ok(()), |channel| self.poller.remove(channel)));
            if let Err(error) = unwatched {
                self.say(Level::Error, format!("{who} cannot be unwatched: {error}"));
            }
        }
        // The lines about it need its process id: they are written before it is forgotten.
        self.end_probes_of(id);
        self.report(Event::Exited { worker: id, how, rescued, answered });
        self.workers.remove(&id);
    }

    /// Takes in all that a worker has said by now. What comes after so much comes from somebody who
    /// has kept its end of the channel.
    fn hear_all(&mut self, id: WorkerId) {
        for _ in 0..LAST_WORDS {
            let Hearing::GoesOn = self.hear_worker(id) else { break };
        }
    }

    /// What a worker has not received comes back into the master's hand; and whether a PING was
    /// among it.
    pub(super) fn read_back(&mut self, id: WorkerId, queue: Queue) -> (Vec<Held>, bool) {
        let Some(worker) = self.workers.get(&id) else { return Default::default() };
        let TakenBack { connections, lost, had_ping } = match worker.take_back(queue) {
            Ok(taken) => taken,
            Err(error) => {
                let who = self.describe(id);
                self.say(Level::Error, format!("the queue of {who} cannot be read: {error}"));
                return Default::default();
            }
        };
        if lost > 0 {
            self.say_lost(id, lost);
        }
        let mut held = Vec::new();
        for (name, client, entry) in connections {
            self.ledgers.release(id, entry);
            if self.take_back_probe(id, &client.socket) {
                continue;
            }
            match self.listeners.named(&name) {
                Some(listener) => held.push(self.hold(listener, client)),
                None => self.say_cut(id, &name),
            }
        }
        (held, had_ping)
    }

    fn observe_signals(&mut self) {
        let signals: Vec<i32> = self.signals.pending().collect();
        for signal in signals {
            match signal {
                SIGUSR1 => self.reload_by_signal("SIGUSR1"),
                SIGHUP if self.has_terminal => self.stop_by_signal("SIGHUP"),
                SIGHUP => self.reload_by_signal("SIGHUP"),
                SIGTERM => self.stop_by_signal("SIGTERM"),
                SIGINT => self.stop_by_signal("SIGINT"),
                SIGTTIN => self.scale_all(Scale::More),
                SIGTTOU => self.scale_all(Scale::Fewer),
                SIGUSR2 => self.ask_upgrade(None),
                SIGCHLD => self.reap_strangers(),
                _ => {}
            }
        }
    }

    /// Ended children that are no workers: orphans of workers, which fell to us.
    pub(super) fn reap_strangers(&mut self) {
        if !self.is_subreaper {
            return;
        }
        let workers = self.workers.values().map(|worker| worker.process.id());
        let rehearsal = self.upgrade.as_ref().map(|upgrade| upgrade.process().id());
        let mut known: std::collections::BTreeSet<u32> = workers.chain(rehearsal).collect();
        known.extend(self.check.pids());
        if let Err(error) = reap_strangers(|pid| known.contains(&pid)) {
            self.say(Level::Warning, format!("orphans cannot be reaped: {error}"));
        }
    }

    fn stop_by_signal(&mut self, name: &str) {
        if !std::mem::replace(&mut self.was_told_to_stop, true) {
            let text = format!("{name}: draining; a second one ends at once");
            self.journal.say(Entry::new(Level::Notice, text).id(MessageId::StopAsked));
            return self.report(Event::StopRequested);
        }
        let here = self.workers.values().map(|worker| &worker.process);
        let all = here.chain(self.absent.values().map(|absent| &absent.process));
        for process in all {
            // A group that is gone needs no signal.
            let _ = process.signal_group(Signal::SIGKILL);
        }
        self.kill_check();
        let count = self.workers.len() + self.absent.len();
        self.ended = Some(Err(format!("{name} came twice: {count} workers were killed")));
    }
}
