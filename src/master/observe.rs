//! Readiness becomes facts.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::Signal;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};

use super::journal::{Entry, LISTENER, Level, MessageId};
use super::link::Hearing;
use super::{Daemon, Token};
use crate::kinds::native::{Client, Queue};
use crate::supervisor::{Attention, Event, ListenerId, Scale, WorkerId};
use crate::sys::accept::{Accepted, accept};
use crate::sys::listen::source_of;
use crate::sys::process::Ending;
use crate::sys::reap::reap_strangers;

/// Messages read from one worker per turn.
pub(super) const MESSAGE_BATCH: usize = 64;

impl Daemon {
    /// Something is ready; what it was may be gone by now.
    pub(super) fn observe(&mut self, token: Token) {
        self.turn.is_stirred |= !matches!(token, Token::Listener(_));
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
            Token::Einhorn => self.observe_einhorn(),
            Token::Acknowledger(id) => self.observe_acknowledger(id),
            Token::Silent(id) => self.observe_silent(id),
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
        self.turn.is_stirred = true;
        self.supervisor.handle_event(event, self.now, &self.boards);
        self.perform_all();
    }

    /// One at a turn, so that nobody else starves. If more wait, the poller says so at once, for less
    /// than a tenth of what it costs to accept in vain.
    fn observe_listener(&mut self, id: ListenerId) {
        match self.listeners.get(id).map(|listener| listener.attention) {
            Some(Attention::Accept) => drop(self.accept_one(id)),
            Some(Attention::Answer) => self.answer_one(id),
            Some(Attention::Pause) | None => {}
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
        let Some((client, needs_source, first_byte)) = self.accept_client(id) else { return false };
        let client = if first_byte { self.keep_silent(id, client) } else { Some(client) };
        let Some(client) = client else { return true };
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
    fn answer_one(&mut self, id: ListenerId) {
        let Some((client, ..)) = self.accept_client(id) else { return };
        self.refuse(id, client);
        self.report(Event::Refused { listener: id });
    }

    /// With what matters of its listener: whether the client's address does, and its first byte.
    fn accept_client(&mut self, id: ListenerId) -> Option<(OwnedFd, bool, bool)> {
        let listener = self.listeners.get(id)?;
        loop {
            match accept(listener.as_fd(), false) {
                Ok(Accepted::Client(client)) => {
                    return Some((client, listener.needs_source, listener.first_byte));
                }
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
        for count in 0.. {
            // What is out of the channel already is not reported again: it is heard to its end.
            if self.rests(id) || count >= MESSAGE_BATCH && !self.has_more_of(id) {
                return;
            }
            match self.hear_worker(id) {
                Hearing::GoesOn => {}
                Hearing::Pauses => return,
                Hearing::Ended => return self.expel(id, "has shut down its channel"),
            }
        }
    }

    /// A living worker that can be given nothing and told nothing, as `what` says, is of no use.
    pub(super) fn expel(&mut self, id: WorkerId, what: &str) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if std::mem::replace(&mut worker.is_expelled, true) {
            return;
        }
        let killed = worker.process.signal_group(Signal::SIGKILL);
        let who = self.describe(id);
        let text = match killed {
            Ok(()) => format!("{who} {what}; it is killed"),
            Err(error) => format!("{who} {what} and cannot be killed: {error}"),
        };
        self.journal.say(self.about_worker(id, Level::Error, text).id(MessageId::Misbehaved));
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
        let Some(ending) = self.reap(id).transpose() else { return };
        let is_clean = matches!(ending, Ok(Ending::Status(0)));
        let how = match ending {
            Ok(Ending::Status(status)) => format!("exited with status {status}"),
            Ok(Ending::Signal(signal)) => format!("was killed by {signal}"),
            Ok(Ending::Unknown) => "is gone".to_owned(),
            Err(error) => format!("is gone ({error})"),
        };
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.is_reaped = true;
        }
        let joining = self.bury_joining(id);
        let has_joined = joining.is_none();
        let mut rescued = joining.unwrap_or_default();
        if has_joined {
            self.bury_head(id);
            self.hear_all(id);
        }
        if is_clean {
            self.note_clean_end(id);
        }
        rescued.extend(self.read_back(id, Queue::OfDead).0);
        if !has_joined {
            self.note_came_with(id);
        }
        let (alive, answered) = self.bury_ledger(id);
        rescued.extend(alive);
        let who = self.describe(id);
        if let Some(worker) = self.workers.get(&id) {
            let channel = Some(&worker.link).filter(|_| worker.is_watched);
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
        self.forget_inherited(id);
        self.report(Event::Exited { worker: id, how, rescued, answered });
        self.dismiss_sibling(id);
        self.workers.remove(&id);
        self.forget_held(id);
    }

    /// Takes in all that a worker has said by now. What comes after so much comes from somebody who
    /// has kept its end of the channel.
    fn hear_all(&mut self, id: WorkerId) {
        for _ in 0..self.last_words(id) {
            let Hearing::GoesOn = self.hear_worker(id) else { break };
        }
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
