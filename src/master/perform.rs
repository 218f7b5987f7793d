//! Orders become system calls; a failure becomes a fact.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::Signal;

use super::diagnose::cannot_run;
use super::journal::{Level, MessageId};
use super::pin::Invocation;
use super::{Daemon, Token};
use crate::kinds::native::{Client, Queue, Start, Worker};
use crate::supervisor::{
    Action, Attention, ConnectionId, Event, Held, ListenerId, Past, Spawn, WorkerId,
};
use crate::wire::message::{ToWorker, add_entry};

/// Orders that may follow from one fact, and from the facts that they lead to. A good many more than
/// a full table of connections that are all refused at once.
const ORDERS_MAX: u32 = 4_000_000;

impl Daemon {
    /// Carries out every order there is, in order: what an order leads to comes after it.
    pub(super) fn perform_all(&mut self) {
        if std::mem::replace(&mut self.is_performing, true) {
            return;
        }
        let mut orders = 0;
        while let Some(action) = self.supervisor.poll_action() {
            orders += 1;
            assert!(orders < ORDERS_MAX, "there is no end of orders; the last is: {action}");
            self.perform(action);
        }
        self.is_performing = false;
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Spawn(spawn) => {
                let worker = spawn.who.worker;
                if let Err(why) = self.spawn(&spawn) {
                    self.report(Event::SpawnFailed { worker, why });
                }
            }
            Action::Drain { worker, deadline, take_back, handback } => {
                if take_back {
                    let (connections, _) = self.read_back(worker, Queue::OfLiving);
                    self.report(Event::TakenBack { worker, connections, pinged: false });
                }
                self.tell(worker, &ToWorker::Drain { deadline, handback });
            }
            Action::TakeBack { worker } => {
                let (connections, had_ping) = self.read_back(worker, Queue::OfLiving);
                // One that came back is not one more.
                let pinged = self.tell(worker, &ToWorker::Ping) && !had_ping;
                self.report(Event::TakenBack { worker, connections, pinged });
            }
            Action::Probe { worker, listener, edition } => self.probe(worker, listener, edition),
            Action::Terminate { worker } => self.signal(worker, Signal::SIGTERM),
            Action::Kill { worker } => self.signal(worker, Signal::SIGKILL),
            Action::Dispatch { worker, connection } => {
                if let Some((listener, client)) = self.held.remove(&connection) {
                    self.send(worker, listener, client);
                }
            }
            Action::Refuse { listener, connection } => {
                // Who was handed back may be idle: an answer would be one to no question.
                if let Some((_, Client { socket, past: None, .. })) = self.held.remove(&connection)
                {
                    self.refuse(listener, socket);
                }
            }
            Action::Attend { listener, attention } => self.attend(listener, attention),
            Action::Close { listener } => {
                self.attend(listener, Attention::Pause);
                self.listeners.close(listener);
            }
            Action::Sweep => self.sweep(),
            Action::Forget { edition } => self.editions.forget(edition),
            Action::Reply { wish, outcome } => self.reply(wish, outcome),
            Action::Announce(announcement) => self.announce(announcement),
            Action::Record(record) => self.write_down(&record),
            Action::Exit { failure } => {
                self.kill_check();
                self.ended = Some(failure.map_or(Ok(()), Err));
            }
        }
    }

    fn spawn(&mut self, spawn: &Spawn) -> Result<(), String> {
        let Spawn { who, seat, edition, request_limit, last_resort } = *spawn;
        let Some(pinned) = self.editions.get(edition, who.pool) else {
            return Err("has nothing to start from".into());
        };
        if let Some(what) = pinned.overwritten().filter(|_| !last_resort) {
            return Err(format!("cannot be started as it was: {what}"));
        }
        let Invocation { mut command, name, keep } = pinned.invocation()?;
        let plain = |error: std::io::Error| crate::config::why(&error);
        let directory = pinned.directory().map_err(plain)?;
        let identity = pinned.identity.clone();
        let keeps_ledger = pinned.crash_ledger;
        let (board, words) = self.boards.seat(who.pool, seat).map_err(plain)?;
        words.clear(request_limit);
        let pool = self.editions.name(who.pool).to_owned();
        let program = std::path::PathBuf::from(command.get_program());
        let (output, read) = self.open_output(&pool, &who, &mut command)?;
        let ledger = keeps_ledger.then(|| self.ledgers.open(who.worker));
        let ledger = ledger.transpose().map_err(plain)?;
        let start = Start {
            who,
            pool: &pool,
            ledger,
            seat,
            board,
            words,
            command,
            name,
            keep,
            directory,
            identity,
            output,
        };
        let mut worker = Worker::start(start).map_err(|error| {
            self.ledgers.forget(who.worker);
            cannot_run(&program, &error)
        })?;
        worker.token = self.new_token();
        let watched = self
            .poller
            .add(&worker.channel, Token::Channel(who.worker).encode())
            .and_then(|()| self.poller.add(&worker.process, Token::Process(who.worker).encode()));
        self.workers.insert(who.worker, worker);
        if let Err(error) = watched {
            // Its death could not be seen: it must not live.
            self.signal(who.worker, Signal::SIGKILL);
            self.workers.remove(&who.worker);
            self.ledgers.forget(who.worker);
            return Err(format!("cannot be watched: {error}"));
        }
        let text = format!("{} started", self.describe(who.worker));
        self.journal.say(self.about(&who, Level::Info, text).id(MessageId::Started));
        if let Some(read) = read {
            self.follow_output(&who, read);
        }
        Ok(())
    }

    /// Passes a connection on. The master's copy is closed when the kernel has the descriptor, unless
    /// the worker keeps a ledger.
    pub(super) fn send(&mut self, worker: WorkerId, listener: ListenerId, client: Client) {
        let reserved = self.ledgers.reserve(worker, &client);
        if reserved.is_none() {
            self.note_unkept(worker, &client);
        }
        let entry = reserved.map(|reserved| reserved.index);
        let sent = match (self.workers.get(&worker), self.listeners.get(listener)) {
            (Some(worker), Some(listener)) => {
                let (socket, leftover) = (client.socket.as_fd(), client.leftover.as_ref());
                let leftover = leftover.map(AsFd::as_fd);
                match (client.past, entry) {
                    (None, None) => worker.channel.send(&listener.message, socket, None),
                    (None, Some(entry)) => {
                        let mut message = listener.message.to_vec();
                        add_entry(&mut message, entry);
                        worker.channel.send(&message, socket, None)
                    }
                    (past, entry) => {
                        let name = &listener.name;
                        let message = ToWorker::Connection { listener: name, past, entry };
                        worker.channel.send(&message.encode(), socket, leftover)
                    }
                }
            }
            _ => Err(nix::errno::Errno::EPIPE.into()),
        };
        if let Err(error) = sent {
            self.ledgers.give_up(worker, reserved);
            // EAGAIN, ETOOMANYREFS, no memory: all pass, and the client waits here meanwhile.
            let is_full = error.kind() == std::io::ErrorKind::WouldBlock;
            let held = self.hold(listener, client);
            self.report(Event::Returned { held, worker, is_full });
        } else {
            self.ledgers.keep(worker, reserved, listener, client, self.now);
        }
    }

    pub(super) fn hold(&mut self, listener: ListenerId, client: Client) -> Held {
        self.last_connection += 1;
        let connection = ConnectionId(self.last_connection);
        let past = match (&client.past, &client.leftover) {
            (None, _) => Past::New,
            (Some(_), None) => Past::Idle,
            (Some(_), Some(_)) => Past::Leftover,
        };
        self.held.insert(connection, (listener, client));
        Held { listener, connection, past }
    }

    /// Answers a client whom nobody can take, or just closes it where no answer is configured.
    pub(super) fn refuse(&mut self, listener: ListenerId, client: OwnedFd) {
        let answer = self.listeners.get(listener).and_then(|listener| listener.answer.clone());
        let Some(answer) = answer else { return };
        let Some(id) = self.lingering.answer(client, &answer, self.now) else { return };
        self.watch_lingering(id);
    }

    pub(super) fn watch_lingering(&mut self, id: u64) {
        let watched = self
            .lingering
            .socket(id)
            .map(|socket| self.poller.add(socket, Token::Lingering(id).encode()));
        if !matches!(watched, Some(Ok(()))) {
            self.lingering.close(id);
        }
    }

    pub(super) fn close_lingering(&mut self, id: u64) {
        if let Some(socket) = self.lingering.socket(id) {
            // Closing the last copy removes it as well.
            let _ = self.poller.remove(socket);
        }
        self.lingering.close(id);
    }

    pub(super) fn tell(&mut self, id: WorkerId, message: &ToWorker<'_>) -> bool {
        let Some(worker) = self.workers.get(&id) else { return false };
        match worker.tell(message) {
            Ok(()) => true,
            Err(error) => {
                let who = self.describe(id);
                self.say(Level::Warning, format!("{who} cannot be told anything: {error}"));
                false
            }
        }
    }

    pub(super) fn signal(&mut self, id: WorkerId, signal: Signal) {
        if self.workers.get(&id).is_some_and(|worker| worker.is_reaped) {
            return;
        }
        let Some(process) = self.process(id) else { return };
        if let Err(error) = process.signal_group(signal) {
            // A group without a leader that could be signalled is about to be reaped.
            if error.raw_os_error() != Some(nix::libc::ESRCH) {
                let who = self.describe(id);
                self.say(Level::Error, format!("{who} cannot be sent {signal}: {error}"));
            }
        }
    }

    pub(super) fn attend(&mut self, id: ListenerId, attention: Attention) {
        let Some(listener) = self.listeners.get_mut(id) else { return };
        let was_watched = listener.attention != Attention::Pause;
        let is_watched = attention != Attention::Pause;
        listener.attention = attention;
        let result = match (was_watched, is_watched) {
            (false, true) => self.poller.add(listener, Token::Listener(id).encode()),
            (true, false) => self.poller.remove(listener),
            (true, true) | (false, false) => Ok(()),
        };
        if let Err(error) = result {
            let name = listener.name.clone();
            self.say(Level::Error, format!("listener {name} cannot be watched: {error}"));
        }
    }

    /// At the end: who has connected to a socket that is only ours is served, as far as there is
    /// room; then the socket is closed. Inherited ones are left to the next who comes.
    fn sweep(&mut self) {
        for id in self.listeners.ids() {
            let is_ours = self.listeners.get(id).is_some_and(super::listeners::Listener::is_ours);
            if is_ours {
                if let Err(error) = self.listeners.turn_newcomers_away(id) {
                    let text = format!("clients who come right now may be reset: {error}");
                    self.say(Level::Warning, text);
                }
                while self.accept_one(id) {}
            }
            self.attend(id, Attention::Pause);
            if is_ours {
                self.listeners.leave(id);
            }
        }
        self.report(Event::Swept);
    }

    /// Who waited for a reload hears of it once it is written down: from then on it outlives this
    /// master.
    pub(super) fn send_replies(&mut self) {
        for (client, answer) in std::mem::take(&mut self.replies) {
            self.answer(client, &answer);
        }
    }
}
