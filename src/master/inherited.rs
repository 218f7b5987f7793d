//! Inherit workers: what they are given, what they say, and when they are over.
//!
//! They accept by themselves, so the master neither sends them anything nor counts anything for them; it
//! hears their notices, looks whether they have become ready where they do not say so, and counts the time
//! since they last said that they are alive, if they ever did.
//!
//! Such a worker may be many processes, of which the one that was started may be the first to end: a
//! php-fpm that is told to stop ends at once, and its children finish. So a worker that leaves is over
//! when its whole group is, or when its time to drain is: until then the one that has ended is not reaped,
//! so that its number, which is the group's, cannot be given away.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::diagnose::diagnose;
use super::einhorn::Einhorn;
use super::journal::Level;
use super::link::Hearing;
use super::notify::store_name;
use super::record::short;
use super::{Daemon, Token};
use crate::config::{Kind, Manner};
use crate::kinds::inherit::{Link, Offer, Offered, Readiness};
use crate::kinds::notice::{Said, read};
use crate::supervisor::{Accept, Event, ListenerId, WorkerId};
use crate::sys::accepting::waits_for_clients;
use crate::sys::family;
use crate::sys::listen::local;
use crate::sys::process::{Ending, Process};
use crate::sys::socket::is_readable;

/// Notices that are read before a worker's silence, or its end, is judged.
const LAST_WORDS: usize = 1024;
/// How often it is looked whether workers have accepted who waits, at the end.
const SWEEP_EVERY: Duration = Duration::from_millis(5);
/// How long they may take for that.
const SWEEP_MAX: Duration = Duration::from_secs(5);

/// What concerns inherit workers alone.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    /// When each is to be looked after, those that are to be.
    due: BTreeMap<WorkerId, Instant>,
    pub(super) einhorn: Einhorn,
    /// Listeners whose last clients are being accepted, at the end.
    sweep: Option<Sweep>,
}

#[derive(Debug)]
struct Sweep {
    listeners: Vec<ListenerId>,
    at: Instant,
    until: Instant,
}

impl Inherited {
    pub(super) fn deadline(&self) -> Option<Instant> {
        let due = self.due.values().min().copied();
        let deadlines = [due, self.sweep.as_ref().map(|it| it.at), self.einhorn.deadline()];
        deadlines.into_iter().flatten().min()
    }
}

impl Daemon {
    pub(super) fn inherited(&self, id: WorkerId) -> Option<(&Process, &Link)> {
        let worker = self.workers.get(&id)?;
        Some((&worker.process, worker.inherit()?))
    }

    fn inherited_mut(&mut self, id: WorkerId) -> Option<&mut Link> {
        self.workers.get_mut(&id)?.inherit_mut()
    }

    /// What a worker of the mind's may listen on.
    ///
    /// # Errors
    /// Those of the system calls.
    pub(super) fn offer(&mut self, id: WorkerId, manner: &Manner) -> io::Result<Offer> {
        // Nobody else accepts there.
        self.let_listeners_block(id, manner.blocking)?;
        let Some(policy) = self.supervisor.policy_of(id) else { return Ok(Offer::default()) };
        let are_shared = policy.accept == Accept::Workers;
        let mut offer = Offer { watchdog: policy.watchdog, are_shared, ..Offer::default() };
        for &id in &policy.listeners {
            let Some(listener) = self.listeners.get(id) else { continue };
            offer.sockets.push(Offered {
                listener: id,
                entry: listener.name.clone(),
                name: store_name(&listener.name),
                local: local(listener.as_fd()),
                socket: listener.socket.try_clone()?,
            });
        }
        if manner.kind == Kind::Inherit {
            offer.einhorn = self.einhorn_path();
        }
        Ok(offer)
    }

    /// A worker has been started, and is waited for in its own manner.
    pub(super) fn await_inherited(&mut self, id: WorkerId, manner: &Manner) {
        let now = self.now;
        if let Some(link) = self.inherited_mut(id) {
            link.readiness = Readiness::of(manner, !link.sockets.is_empty(), now);
            self.reschedule(id);
        }
    }

    /// When it is to be looked after next.
    pub(super) fn reschedule(&mut self, id: WorkerId) {
        match self.inherited(id).and_then(|(_, link)| link.deadline()) {
            Some(at) => self.inherited.due.insert(id, at),
            None => self.inherited.due.remove(&id),
        };
    }

    /// Takes in one notice of a worker's, if one is there.
    pub(super) fn hear_inherited(&mut self, id: WorkerId) -> Hearing {
        let Some((process, link)) = self.inherited(id) else { return Hearing::Pauses };
        let notice = match link.notices.next() {
            Ok(Some(notice)) => notice,
            Ok(None) => return Hearing::Pauses,
            Err(error) => {
                self.complain(id, &format!("cannot be heard: {error}"));
                return Hearing::Pauses;
            }
        };
        let sender = notice.sender;
        if !link.knows(process, sender) {
            self.complain(
                id,
                &format!("is spoken for by process {sender}, which is gone or none of its own"),
            );
            return Hearing::GoesOn;
        }
        let said = match notice.is_cut {
            true => Err("a notice that is too long".to_owned()),
            false => read(&notice.bytes),
        };
        match said {
            Ok(said) => said.into_iter().for_each(|said| self.heed_notice(id, said)),
            Err(what) => self.complain(id, &format!("sent {what}")),
        }
        self.reschedule(id);
        Hearing::GoesOn
    }

    fn heed_notice(&mut self, id: WorkerId, said: Said) {
        let now = self.now;
        let Some(link) = self.inherited_mut(id) else { return };
        match said {
            Said::Ready => self.note_inherited_ready(id),
            // It serves on meanwhile.
            Said::Reloading => {}
            Said::Stopping => {
                link.is_leaving = true;
                self.report(Event::Leaving { worker: id });
            }
            Said::Alive => {
                link.pinged = Some(now);
                if let Some(worker) = self.workers.get(&id) {
                    worker.words.add_progress();
                }
            }
            Said::Trigger => {
                let why = "says that it does not work any more (WATCHDOG=trigger)".to_owned();
                self.report(Event::Broken { worker: id, why });
            }
            Said::Status(text) | Said::Failure(text) => link.status = text,
            Said::Extend(time) => self.report(Event::Extended { worker: id, time }),
            Said::Main(main) => self.note_main(id, main),
        }
    }

    /// It is ready, whoever has found that out.
    pub(super) fn note_inherited_ready(&mut self, id: WorkerId) {
        let Some(link) = self.inherited_mut(id) else { return };
        if std::mem::replace(&mut link.readiness, Readiness::Known) != Readiness::Known {
            self.report(Event::Ready { worker: id, limit: 0, handback: false });
        }
        self.reschedule(id);
    }

    /// A worker says which of its processes signals are meant for.
    fn note_main(&mut self, id: WorkerId, main: u32) {
        let Some((process, link)) = self.inherited(id) else { return };
        let is_started = main == process.id();
        let found = match family::look(main) {
            Some(relative) if link.knows(process, main) => Process::find(main, relative.begun).ok(),
            Some(_) | None => None,
        };
        if found.is_none() && !is_started {
            let what = format!("names {main} as its main process, which is none of its own");
            return self.complain(id, &what);
        }
        if let Some(link) = self.inherited_mut(id) {
            link.main = found.filter(|_| !is_started);
        }
        // The next master is to know it.
        self.keeping.revision = None;
    }

    /// Its main process is asked to stop.
    pub(super) fn stop_inherited(&mut self, id: WorkerId) {
        let Some(link) = self.inherited_mut(id) else { return };
        link.is_leaving = true;
        let Some((process, link)) = self.inherited(id) else { return };
        if let Err(error) = link.stop(process) {
            let who = self.describe(id);
            self.say(Level::Error, format!("{who} cannot be asked to stop: {error}"));
        }
    }

    /// What is due by the clock.
    pub(super) fn tend_inherited(&mut self) {
        let due = self.inherited.due.iter().filter(|(_, at)| **at <= self.now);
        for id in due.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.look_after(id);
            self.reschedule(id);
        }
        self.tend_sweep();
        self.tend_einhorn();
    }

    fn look_after(&mut self, id: WorkerId) {
        let now = self.now;
        self.hear_last_words(id);
        let Some((process, link)) = self.inherited(id) else { return };
        match link.readiness {
            Readiness::Settled { at } if at <= now => return self.note_inherited_ready(id),
            Readiness::Seen { at, .. } if at <= now => {
                if is_waiting(process, link) {
                    return self.note_inherited_ready(id);
                }
                let again = link.readiness.look_again(now);
                if let Some(link) = self.inherited_mut(id) {
                    link.readiness = again;
                }
            }
            Readiness::Settled { .. }
            | Readiness::Seen { .. }
            | Readiness::Told
            | Readiness::Known => {}
        }
        let Some((process, link)) = self.inherited(id) else { return };
        let silent = link.silent_at().filter(|&at| at <= now).and(link.watchdog);
        if let Some(limit) = silent {
            let cause = diagnose(link.main(process).id());
            let why = format!("stalled: it has not said WATCHDOG=1 for {} ({cause})", short(limit));
            if let Some(link) = self.inherited_mut(id) {
                link.pinged = None;
            }
            self.report(Event::Broken { worker: id, why });
        }
    }

    fn hear_last_words(&mut self, id: WorkerId) {
        for _ in 0..LAST_WORDS {
            let Hearing::GoesOn = self.hear_inherited(id) else { break };
        }
    }

    /// How a worker ended, if it did: all of it that is waited for.
    pub(super) fn reap_inherited(&mut self, id: WorkerId) -> io::Result<Option<Ending>> {
        let Some((process, _)) = self.inherited(id) else { return Ok(None) };
        if !process.has_ended()? {
            return Ok(None);
        }
        // That it stops was perhaps the last that it said.
        self.hear_last_words(id);
        let Some(worker) = self.workers.get_mut(&id) else { return Ok(None) };
        let process = &worker.process;
        let crate::kinds::Link::Inherit(link) = &mut worker.link else { return Ok(None) };
        if let Some(rest) = &link.rest {
            if !rest.has_ended()? {
                return Ok(None);
            }
        }
        let next = link.survivor(process)?;
        let before = link.rest.take();
        match (&before, &next) {
            (Some(before), _) => self.poller.remove(before)?,
            (None, Some(_)) => self.poller.remove(process)?,
            (None, None) => {}
        }
        let token = Token::Process(id).encode();
        if let Some(next) = next {
            self.poller.add(&next, token)?;
            link.rest = Some(next);
            return Ok(None);
        }
        if before.is_some() {
            self.poller.add(process, token)?;
        }
        worker.process.reap()
    }

    /// It is gone.
    pub(super) fn forget_inherited(&mut self, id: WorkerId) {
        self.inherited.due.remove(&id);
    }

    /// At the end: who has connected to these sockets, which are only ours, is accepted by the workers
    /// before these are told to stop.
    pub(super) fn await_sweep(&mut self, listeners: Vec<ListenerId>) {
        let (at, until) = (self.now, self.now + SWEEP_MAX);
        self.inherited.sweep = Some(Sweep { listeners, at, until });
        self.tend_sweep();
    }

    fn tend_sweep(&mut self) {
        let now = self.now;
        let Some(sweep) = self.inherited.sweep.as_mut().filter(|sweep| sweep.at <= now) else {
            return;
        };
        let open = sweep.listeners.iter().filter_map(|&id| self.listeners.get(id));
        // A listening socket is readable while somebody waits there.
        let waits = open.filter(|it| is_readable(it.as_fd()).unwrap_or(false));
        if waits.count() > 0 && now < sweep.until {
            sweep.at = now + SWEEP_EVERY;
            return;
        }
        if let Some(Sweep { listeners, .. }) = self.inherited.sweep.take() {
            listeners.into_iter().for_each(|id| self.listeners.let_go(id));
            self.report(Event::Swept);
        }
    }
}

/// Whether one of the worker's processes waits for its clients.
pub(super) fn is_waiting(process: &Process, link: &Link) -> bool {
    let mut members = family::members(process.id());
    members.extend(link.main.iter().flat_map(|main| family::members(main.id())));
    members.iter().any(|member| waits_for_clients(member.id, &link.sockets))
}
