//! Orders become system calls; a failure becomes a fact.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::Signal;

use super::diagnose::cannot_run;
use super::journal::{Level, MessageId};
use super::pin::{Invocation, Pinned};
use super::{Daemon, Token};
use crate::config::{Kind, Manner};
use crate::kinds::inherit::Offer;
use crate::kinds::native::{Client, Queue};
use crate::kinds::{Start, Worker, start};
use crate::supervisor::{
    Action, Attention, ConnectionId, Event, Held, ListenerId, Past, Seat, Spawn, Who, WorkerId,
};
use crate::sys::listen::{set_blocking, source_of};
use crate::sys::place::{HIGH, duplicate_from};
use crate::sys::process::{AnySignal, Identity};
use crate::wire::ledger::Ledger;
use crate::wire::scoreboard::{Scoreboard, SeatWords};

/// Orders that may follow from one fact, and from the facts that they lead to. A good many more than
/// a full table of connections that are all refused at once.
const ORDERS_MAX: u32 = 4_000_000;

/// What a pool's workers are started from, for one start.
pub(super) struct Parts {
    invocation: Invocation,
    directory: Option<OwnedFd>,
    identity: Option<Identity>,
    manner: Manner,
    pub(super) offer: Offer,
}

impl Parts {
    /// # Errors
    /// A sentence: it cannot be started.
    pub(super) fn of(pinned: &Pinned) -> Result<Parts, String> {
        let invocation = pinned.invocation()?;
        let directory = pinned.directory().map_err(|error| crate::config::why(&error))?;
        let (identity, manner) = (pinned.identity.clone(), pinned.manner.clone());
        let offer = Offer::default();
        Ok(Parts { invocation, directory, identity, manner, offer })
    }
}

impl Daemon {
    /// Carries out every order there is, in order: what an order leads to comes after it.
    pub(super) fn perform_all(&mut self) {
        if std::mem::replace(&mut self.turn.is_performing, true) {
            return;
        }
        let mut orders = 0;
        while let Some(action) = self.supervisor.poll_action() {
            orders += 1;
            assert!(orders < ORDERS_MAX, "there is no end of orders; the last is: {action}");
            self.perform(action);
        }
        self.turn.is_performing = false;
    }

    fn perform(&mut self, action: Action) {
        self.turn.is_stirred = true;
        match action {
            Action::Spawn(spawn) => {
                let worker = spawn.who.worker;
                if let Err(why) = self.spawn(&spawn) {
                    self.report(Event::SpawnFailed { worker, why });
                }
            }
            Action::Drain { worker, deadline, take_back, handback } => {
                if take_back {
                    self.take_back(worker, true);
                }
                self.tell_to_drain(worker, deadline, handback);
            }
            Action::TakeBack { worker } => {
                let had_ping = self.take_back(worker, false);
                // One that came back is not one more.
                let pinged = self.ping(worker) && !had_ping;
                self.report(Event::TakenBack { worker, connections: Vec::new(), pinged });
            }
            Action::Admit { worker } => self.let_accept(worker),
            Action::Ping { worker } => {
                let pinged = self.ping(worker);
                self.report(Event::TakenBack { worker, connections: Vec::new(), pinged });
            }
            Action::Probe { worker, listener, edition } => self.probe(worker, listener, edition),
            Action::Terminate { worker } => self.signal(worker, Signal::SIGTERM),
            Action::Kill { worker } => {
                self.say_why_unready(worker);
                self.signal(worker, Signal::SIGKILL);
            }
            Action::Dispatch { worker, connection } => self.dispatch(worker, connection),
            Action::Refuse { listener, connection } => {
                self.let_go_of_head(connection);
                let was_silent = self.end_silence(connection);
                // Who was handed back may be idle: an answer would be one to no question.
                if let Some((_, Client { socket, past: None, .. })) =
                    self.held.remove(&connection).filter(|_| !was_silent)
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

    /// What a living worker has not received goes to others: each connection before the next one is
    /// read back, so that a master's death costs one at most. Where nobody has room any more, the rest
    /// stays with a worker that `takes` what it is sent: there it is safe. Whether a PING was among it.
    fn take_back(&mut self, worker: WorkerId, takes: bool) -> bool {
        let Some(pool) = self.workers.get(&worker).map(|worker| worker.who.pool) else {
            return false;
        };
        let mut had_ping = false;
        while !(takes && self.supervisor.holds(pool)) {
            let (connections, ping) = self.read_back(worker, Queue::OfLiving);
            had_ping |= ping;
            if connections.is_empty() {
                break;
            }
            self.report(Event::TakenBack { worker, connections, pinged: false });
            while let Some(dispatch) = self.supervisor.poll_dispatch() {
                self.perform(dispatch);
            }
        }
        self.end_read_back(worker);
        had_ping
    }

    fn spawn(&mut self, spawn: &Spawn) -> Result<(), String> {
        let Spawn { who, seat, edition, request_limit, last_resort } = *spawn;
        let Some(pinned) = self.editions.get(edition, who.pool) else {
            return Err("has nothing to start from".into());
        };
        if let Some(what) = pinned.overwritten().filter(|_| !last_resort) {
            return Err(format!("cannot be started as it was: {what}"));
        }
        let mut parts = Parts::of(pinned)?;
        let keeps_ledger = pinned.crash_ledger;
        let plain = |error: std::io::Error| crate::config::why(&error);
        if parts.manner.kind != Kind::Native {
            parts.offer = self.offer(who.worker, &parts.manner).map_err(plain)?;
            parts.offer.preload = self.preload(&parts.manner)?;
        }
        let manner = parts.manner.clone();
        let place = self.boards.seat(who.pool, seat).map_err(plain)?;
        place.1.clear(request_limit);
        place.1.set_worker(who.worker.0);
        let pool = self.editions.name(who.pool).to_owned();
        let ledger = keeps_ledger.then(|| self.ledgers.open(who.worker));
        let ledger = ledger.transpose().map_err(plain)?;
        let started = self.start_worker(who, &pool, parts, (seat, place), ledger);
        let (mut worker, read) = started.inspect_err(|_| self.ledgers.forget(who.worker))?;
        let token = self.new_token();
        if let Some(link) = worker.native_mut() {
            link.token = token;
        }
        let watched = self.watch_worker(who.worker, &worker);
        self.workers.insert(who.worker, worker);
        if let Err(error) = watched {
            // Its death could not be seen: it must not live.
            self.signal(who.worker, Signal::SIGKILL);
            self.workers.remove(&who.worker);
            self.ledgers.forget(who.worker);
            return Err(format!("cannot be watched: {error}"));
        }
        self.await_inherited(who.worker, &manner);
        let text = format!("{} started", self.describe(who.worker));
        self.journal.say(self.about(&who, Level::Info, text).id(MessageId::Started));
        if let Some(read) = read {
            self.follow_output(&who, read);
        }
        Ok(())
    }

    /// Starts a worker. With it comes the read end of its output, where the master reads that.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn start_worker(
        &mut self,
        who: Who,
        pool: &str,
        parts: Parts,
        (seat, (board, words)): (Seat, (Scoreboard, SeatWords)),
        ledger: Option<Ledger>,
    ) -> Result<(Worker, Option<OwnedFd>), String> {
        let Parts { invocation, directory, identity, manner, offer } = parts;
        let settle = manner.settle;
        let Invocation { mut command, name, mut keep, hold } = invocation;
        let program = std::path::PathBuf::from(command.get_program());
        let (output, read) = self.open_output(pool, &who, &mut command)?;
        if let Some(read) = read.as_ref().filter(|_| manner.kind == Kind::Inherit) {
            if !self.notify.has_manager() {
                // Should this master be killed, somebody must hold it, or writing would end the worker.
                let read = duplicate_from(read.as_fd(), HIGH);
                keep.push(read.map_err(|error| crate::config::why(&error))?);
            }
        }
        let with = Start {
            who,
            pool,
            ledger,
            seat,
            board,
            words,
            command,
            name,
            keep,
            hold,
            directory,
            identity,
            manner,
            offer,
            output,
        };
        let mut worker = start(with).map_err(|error| cannot_run(&program, &error))?;
        if let Some(link) = worker.piped_mut() {
            link.settle_at(self.now + settle);
        }
        Ok((worker, read))
    }

    /// From now on what a new worker says is heard, and its end is seen.
    pub(super) fn watch_worker(&self, id: WorkerId, worker: &Worker) -> std::io::Result<()> {
        self.poller.add(&worker.link, Token::Channel(id).encode())?;
        self.poller.add(&worker.process, Token::Process(id).encode())
    }

    pub(super) fn hold(&mut self, listener: ListenerId, client: Client) -> Held {
        self.last_connection += 1;
        let connection = ConnectionId(self.last_connection);
        let past = match (&client.past, &client.leftover) {
            (None, _) => Past::New,
            (Some(_), None) => Past::Idle,
            (Some(_), Some(_)) => Past::Leftover,
        };
        let needs_source = self.listeners.get(listener).is_some_and(|it| it.needs_source);
        let source = needs_source.then(|| source_of(client.socket.as_fd()));
        self.held.insert(connection, (listener, client));
        Held { listener, connection, past, source }
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
        let outside = self.inherited(id).and_then(|(process, link)| link.outsider(process));
        // It has just ended, where that fails.
        let _ = outside.map(|main| main.signal(AnySignal::numbered(signal as i32)));
    }

    pub(super) fn attend(&mut self, id: ListenerId, attention: Attention) {
        let Some(listener) = self.listeners.get_mut(id) else { return };
        let was_watched = listener.attention != Attention::Pause;
        let is_watched = attention != Attention::Pause;
        listener.attention = attention;
        let result = match (was_watched, is_watched) {
            // It may have been its workers' to accept there.
            (false, true) => set_blocking(listener.as_fd(), false)
                .and_then(|()| self.poller.add(listener, Token::Listener(id).encode())),
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
        let mut theirs = Vec::new();
        for id in self.listeners.ids() {
            let is_ours = self.listeners.get(id).is_some_and(super::listeners::Listener::is_ours);
            if is_ours {
                if let Err(error) = self.listeners.turn_newcomers_away(id) {
                    let text = format!("clients who come right now may be reset: {error}");
                    self.say(Level::Warning, text);
                }
                if self.supervisor.is_accepted_by_workers(id) {
                    theirs.push(id);
                    continue;
                }
                while self.accept_one(id) {}
            }
            self.attend(id, Attention::Pause);
            if is_ours {
                self.listeners.leave(id);
            }
        }
        if theirs.is_empty() { self.report(Event::Swept) } else { self.await_sweep(theirs) }
    }

    /// Who waited for a reload hears of it once it is written down: from then on it outlives this
    /// master.
    pub(super) fn send_replies(&mut self) {
        for (client, answer) in std::mem::take(&mut self.replies) {
            self.answer(client, &answer);
        }
    }
}
