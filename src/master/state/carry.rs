//! What the next image of the same process is given beyond what a crash leaves: everything that is
//! open, and everybody who waits.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::{Carried, Descriptors, Luggage, Packing, State, Text, ledgers};
use crate::kinds::native::{self, Client};
use crate::kinds::{Link, Worker};
use crate::master::absent::Absent;
use crate::master::adoption::secret_of;
use crate::master::control::{self, Control};
use crate::master::journal::Followed;
use crate::master::linger;
use crate::master::notify::Notify;
use crate::master::prepare::Editions;
use crate::master::state::kept::Kept;
use crate::master::{Daemon, Outcome, Token, Wish};
use crate::supervisor::{Attention, ConnectionId, How, ListenerId, Supervisor, Times};
use crate::sys::process::Process;
use crate::wire::message::Past;
use crate::wire::scoreboard::{Scoreboard, SeatWords};

impl Daemon {
    /// Everything, with every descriptor that is needed again packed.
    pub(in crate::master) fn gather_all<'a>(
        &'a self,
        now: Instant,
        followed: &'a [Followed],
        asked_by: Vec<u64>,
        packing: &mut Packing<'a>,
    ) -> State {
        let mut state = self.gather(now, self.keeping.attempts, packing);
        let mut carried = Carried { asked_by, ..Carried::default() };
        for (&id, (listener, client)) in &self.held {
            carried.held.extend(gather_held(id, *listener, client, packing));
        }
        for linger::Client { stream, latest, .. } in self.lingering.clients.values() {
            let number = packing.pack(stream);
            carried.lingering.extend(number.map(|number| (number, Times(now).from(*latest))));
        }
        carried.books = ledgers::gather(&self.ledgers, packing);
        carried.door = self.adoption.door.as_ref().and_then(|door| door.gather(packing));
        let einhorn = self.inherited.einhorn.listener.as_ref();
        carried.einhorn = einhorn.and_then(|listener| packing.pack(listener));
        carried.control = self.control.as_ref().and_then(|it| gather_control(it, packing));
        for Followed { id, origin, pipe, lines } in followed {
            let Some(number) = packing.pack(pipe) else { continue };
            let (origin, lines) = ((**origin).clone(), lines.clone());
            carried.pipes.push(super::Pipe { id: *id, number, origin, lines });
        }
        carried.stored_pipes.clone_from(&self.outputs.stored);
        carried.has_warned_of_output = self.outputs.has_warned;
        carried.notify = gather_notify(&self.notify, packing);
        carried.kept = self.kept.as_ref().and_then(|kept| {
            let path = kept.path.as_ref().map(Text::from);
            Some(super::Kept { number: packing.pack(kept)?, path, sequence: kept.sequence })
        });
        carried.was_told_to_stop = self.was_told_to_stop;
        carried.is_subreaper = self.is_subreaper;
        carried.has_terminal = self.has_terminal;
        carried.numbers = packing.numbers();
        state.carried = Some(carried);
        state
    }

    /// The next image of the same process goes on. Everything is watched again; who asked for it
    /// is answered.
    ///
    /// # Errors
    /// A sentence: something that it needs was not carried over.
    pub(in crate::master) fn arrive(
        &mut self,
        mut state: State,
        mut luggage: Luggage,
    ) -> Result<(), String> {
        let taken = state.taken_at(self.now);
        let carried = state.carried.take().unwrap_or_default();
        (self.was_told_to_stop, self.is_subreaper) =
            (carried.was_told_to_stop, carried.is_subreaper);
        self.has_terminal = carried.has_terminal;
        self.started = Times(taken).to(state.started);
        self.keeping.attempts = state.attempts;
        self.greeting = None;
        self.control = carried.control.map(|it| resume_control(it, &mut luggage)).transpose()?;
        self.watch_own()?;
        match carried.door {
            Some(door) => self.resume_door(door, &mut luggage)?,
            None => self.open_door()?,
        }
        let attention = state.listeners.open.iter().map(|it| (it.id, it.attention)).collect();
        self.resume_goal(&mut state, taken, &mut luggage)?;
        self.resume_workers(&mut state, taken, &mut luggage)?;
        if let Some(number) = carried.einhorn {
            self.resume_einhorn(luggage.unpack(number)?.into())?;
        }
        for wish in state.wishes {
            let super::Wish { id, client, caller, config, names, edition } = wish;
            let config = Arc::new(config);
            self.wishes.insert(id, Wish { client, caller, config, names, edition });
        }
        (self.last_wish, self.last_connection) = (state.last_wish, state.last_connection);
        (self.must_roll, self.warnings) = (state.must_roll, state.warnings);
        self.history = state.history;
        self.last_reload = state.last_reload.map(|last| last.resume(taken));
        self.last_progress = self.supervisor.progress();
        for held in carried.held {
            let (listener, client) = resume_held(&held, &mut luggage)?;
            self.held.insert(held.id, (listener, client));
        }
        ledgers::resume(carried.books, &mut self.ledgers, &mut luggage)?;
        self.ledgers.resume(self.now);
        for (number, until) in carried.lingering {
            let stream = luggage.unpack(number)?.into();
            self.lingering.resume(stream, self.now, Times(taken).to(until));
        }
        for pipe in carried.pipes {
            let super::Pipe { id, number, origin, lines } = pipe;
            let (origin, pipe) = (Arc::new(origin), luggage.unpack(number)?);
            self.journal.follow_on(Followed { id, origin, pipe, lines });
        }
        self.outputs.has_warned = carried.has_warned_of_output;
        carried.stored_pipes.into_iter().for_each(|(pipe, name)| self.note_stored(pipe, name));
        self.resume_notify(carried.notify, &mut luggage)?;
        self.watch_all(attention)?;
        self.replace_bells();
        self.resume_silent();
        self.kept = carried.kept.map(|kept| resume_kept(kept, &mut luggage)).transpose()?;
        self.note_upgraded(&state.version, carried.asked_by, taken);
        Ok(())
    }

    fn resume_goal(
        &mut self,
        state: &mut State,
        taken: Instant,
        luggage: &mut Luggage,
    ) -> Result<(), String> {
        let mut descriptors = Descriptors::Carried(luggage);
        self.config = std::mem::take(&mut state.config);
        self.editions = Editions::resume(std::mem::take(&mut state.editions), &mut descriptors)?;
        self.listeners.resume(std::mem::take(&mut state.listeners), &mut descriptors)?;
        let mind = std::mem::take(&mut state.mind);
        self.supervisor = Supervisor::restore(mind, taken, How::Carried)?;
        Ok(())
    }

    fn resume_workers(
        &mut self,
        state: &mut State,
        taken: Instant,
        luggage: &mut Luggage,
    ) -> Result<(), String> {
        for board in std::mem::take(&mut state.boards) {
            let memfd = luggage.unpack_some(board.number)?;
            let opened = Scoreboard::open(memfd).map_err(|error| format!("a scoreboard: {error}"));
            self.boards.all.insert(board.pool, (opened?, Vec::new()));
        }
        for worker in std::mem::take(&mut state.workers) {
            let super::Worker { who, seat, pid, begun, is_child, .. } = worker;
            let pidfd = luggage.unpack_some(worker.pidfd)?;
            let process = Process::resumed(pid, begun, pidfd, is_child);
            if let Some(board) = worker.absent {
                let token = worker.token.unwrap_or_default();
                let inherited = worker.inherited;
                let absent = Absent { who, seat, process, token, board, inherited };
                self.absent.insert(who.worker, absent);
                continue;
            }
            let fail = |error: std::io::Error| format!("worker {}: {error}", who.worker);
            let words = match worker.own_board {
                None => self.boards.seat(who.pool, seat).map_err(fail)?.1,
                Some(number) => {
                    let board = Scoreboard::open(luggage.unpack(number)?).map_err(fail)?;
                    self.boards.take_over(who.pool, board, seat).map_err(fail)?
                }
            };
            if let Some(inherited) = worker.inherited {
                let link = Link::Inherit(Box::new(inherited.resume(taken, luggage)?));
                let mut resumed = Worker::new(who, process, words, link);
                resumed.is_notorious = worker.is_notorious;
                self.workers.insert(who.worker, resumed);
                self.reschedule(who.worker);
                continue;
            }
            if let Some(piped) = worker.piped {
                let link = piped.resume(Times(taken), luggage)?;
                let mut resumed = Worker::new(who, process, words, Link::Piped(Box::new(link)));
                resumed.is_watched = resumed.piped().is_some_and(|link| !link.has_ended);
                (resumed.is_notorious, resumed.is_expelled) =
                    (worker.is_notorious, worker.is_expelled);
                self.workers.insert(who.worker, resumed);
                continue;
            }
            self.resume_native(worker, process, words, luggage)?;
        }
        Ok(())
    }

    fn resume_native(
        &mut self,
        worker: super::Worker,
        process: Process,
        words: SeatWords,
        luggage: &mut Luggage,
    ) -> Result<(), String> {
        let who = worker.who;
        let fail = |error: std::io::Error| format!("worker {}: {error}", who.worker);
        let ours = luggage.unpack_some(worker.channel)?;
        let theirs = luggage.unpack_some(worker.theirs)?;
        let mut link = native::Link::new(ours, theirs).map_err(fail)?;
        (link.is_welcomed, link.hands_back) = (worker.is_welcomed, worker.hands_back);
        (link.tells, link.accepts) = (worker.tells, worker.accepts);
        link.sent = worker.sent;
        link.token = worker.token.as_deref().and_then(secret_of);
        if let Some((key, number)) = worker.log {
            link.log = Some((key, luggage.unpack(number)?));
        }
        let mut resumed = Worker::new(who, process, words, Link::Native(link));
        (resumed.is_notorious, resumed.is_expelled) = (worker.is_notorious, worker.is_expelled);
        if worker.is_joining {
            resumed.is_watched = false;
            self.adoption.await_again(who.worker);
        }
        self.workers.insert(who.worker, resumed);
        Ok(())
    }

    fn resume_notify(&mut self, state: super::Notify, luggage: &mut Luggage) -> Result<(), String> {
        let super::Notify { status, errno, is_reloading, unsent } = state;
        (self.notify.status, self.notify.errno) = (status, errno);
        self.notify.is_reloading = is_reloading;
        for (text, number) in unsent {
            let descriptor = number.map(|number| luggage.unpack(number)).transpose()?;
            if let Some(outbox) = &mut self.notify.outbox {
                outbox.post(text, descriptor.as_ref().map(std::os::fd::AsFd::as_fd), self.now);
            }
        }
        Ok(())
    }

    /// Looks at everything again, as before.
    fn watch_all(&mut self, attention: BTreeMap<ListenerId, Attention>) -> Result<(), String> {
        for (id, attention) in attention {
            self.attend(id, attention);
        }
        let watch = || -> std::io::Result<()> {
            for (id, worker) in &self.workers {
                if worker.is_watched {
                    self.poller.add(&worker.link, Token::Channel(*id).encode())?;
                }
                self.poller.add(&worker.process, Token::Process(*id).encode())?;
            }
            for (id, absent) in &self.absent {
                self.poller.add(&absent.process, Token::Process(*id).encode())?;
            }
            for (id, client) in &self.lingering.clients {
                self.poller.add(&client.stream, Token::Lingering(*id).encode())?;
            }
            for (id, client) in self.control.iter().flat_map(|control| &control.clients) {
                if client.unsent.is_empty() {
                    self.poller.add(&client.stream, Token::Client(*id).encode())?;
                } else {
                    self.poller.add_writable(&client.stream, Token::Unsent(*id).encode())?;
                }
            }
            Ok(())
        };
        watch().map_err(|error| format!("epoll: {error}"))?;
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            self.watch_for_room(id);
        }
        Ok(())
    }
}

impl super::Outcome {
    pub(in crate::master) fn resume(self, taken: Instant) -> Outcome {
        let super::Outcome { errno, message, at } = self;
        Outcome { errno, message, at: Times(taken).to(at) }
    }
}

pub(super) fn gather_held<'a>(
    id: ConnectionId,
    listener: ListenerId,
    client: &'a Client,
    packing: &mut Packing<'a>,
) -> Option<super::Connection> {
    let Client { socket, past, leftover } = client;
    let past = past.map(|Past { idle_since, requests, leftover }| (idle_since, requests, leftover));
    let leftover = leftover.as_ref().and_then(|leftover| packing.pack(leftover));
    Some(super::Connection { id, listener, past, socket: packing.pack(socket)?, leftover })
}

pub(super) fn resume_held(
    held: &super::Connection,
    luggage: &mut Luggage,
) -> Result<(ListenerId, Client), String> {
    let past =
        held.past.map(|(idle_since, requests, leftover)| Past { idle_since, requests, leftover });
    let socket = luggage.unpack(held.socket)?;
    let leftover = held.leftover.map(|number| luggage.unpack(number)).transpose()?;
    Ok((held.listener, Client { socket, past, leftover }))
}

fn gather_control<'a>(control: &'a Control, packing: &mut Packing<'a>) -> Option<super::Control> {
    let Control { path, listener, inode, clients, last } = control;
    let clients = clients.iter().filter_map(|(&id, client)| {
        let control::Client { stream, peer, is_trusted, received, unsent } = client;
        Some(super::ControlClient {
            id,
            number: packing.pack(stream)?,
            peer: *peer,
            is_trusted: *is_trusted,
            received: received.clone(),
            unsent: unsent.clone(),
        })
    });
    let clients = clients.collect();
    let listener = packing.pack(listener)?;
    Some(super::Control { path: Text::from(path), listener, inode: *inode, clients, last: *last })
}

fn resume_control(state: super::Control, luggage: &mut Luggage) -> Result<Control, String> {
    let super::Control { path, listener, inode, clients, last } = state;
    let mut all = BTreeMap::new();
    for client in clients {
        let super::ControlClient { id, number, peer, is_trusted, received, unsent } = client;
        let stream = luggage.unpack(number)?.into();
        all.insert(id, control::Client { stream, peer, is_trusted, received, unsent });
    }
    let path = PathBuf::from(OsString::from(path));
    let listener = luggage.unpack(listener)?.into();
    Ok(Control { path, listener, inode, clients: all, last })
}

fn gather_notify<'a>(notify: &'a Notify, packing: &mut Packing<'a>) -> super::Notify {
    let unsent = notify.outbox.iter().flat_map(|outbox| &outbox.kept).map(|message| {
        let descriptor: Option<&'a OwnedFd> = message.descriptor.as_ref();
        (message.text.clone(), descriptor.and_then(|it| packing.pack(it)))
    });
    let unsent = unsent.collect();
    let (status, errno) = (notify.status.clone(), notify.errno);
    super::Notify { status, errno, is_reloading: notify.is_reloading, unsent }
}

fn resume_kept(state: super::Kept, luggage: &mut Luggage) -> Result<Kept, String> {
    let super::Kept { number, path, sequence } = state;
    let file = luggage.unpack(number)?.into();
    Ok(Kept { file, path: path.map(|path| OsString::from(path).into()), sequence })
}
