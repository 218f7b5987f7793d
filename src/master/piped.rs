//! Workers that speak by Node's IPC channel: what they are handed, what they answer, and how they end.
//!
//! They count nothing themselves, so the master writes their counters as their answers come; from then
//! on they are to the mind like any other worker. What is handed over is kept until it is answered: what
//! is declined, or unanswered when the channel has been read to its end, goes to others. That is safe,
//! because a worker writes its answer before its application sees the connection.
//!
//! The end of a channel is heard before the end of the process, often just before it. It means that
//! nothing more can be given to this worker, and nothing is rescued twice; whether it was right to close
//! it is known a moment later.

use std::time::{Duration, Instant};

use super::journal::{Level, MessageId};
use super::link::Hearing;
use super::{Daemon, Token};
use crate::kinds::native::Client;
use crate::kinds::pipe::Heard;
use crate::kinds::piped::{HandOver, Link, Said, Supply};
use crate::supervisor::{Event, Held, ListenerId, WorkerId};

/// How long a worker whose channel is closed may take to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Things that one worker asks for in vain, before it is not listened to any more.
const REFUSALS_MAX: u32 = 8;

impl Daemon {
    pub(super) fn piped(&self, id: WorkerId) -> Option<&Link> {
        self.workers.get(&id)?.piped()
    }

    pub(super) fn piped_mut(&mut self, id: WorkerId) -> Option<&mut Link> {
        self.workers.get_mut(&id)?.piped_mut()
    }

    /// Hands a connection over. What cannot be sent is reported as returned.
    pub(super) fn send_piped(&mut self, id: WorkerId, listener: ListenerId, client: Client) {
        let handed = match self.piped_mut(id) {
            Some(link) => link.hand_over(listener, client),
            None => Err((client, nix::errno::Errno::ESRCH.into())),
        };
        self.watch_for_room(id);
        if let Err((client, error)) = handed {
            // No descriptor is left here, or this worker cannot be told anything.
            let is_full = error.raw_os_error() != Some(nix::libc::EMFILE);
            let held = self.hold(listener, client);
            self.report(Event::Returned { held, worker: id, is_full });
        }
    }

    /// It finishes what it has, and ends.
    pub(super) fn stop_piped(&mut self, id: WorkerId) {
        if let Some(link) = self.piped_mut(id) {
            link.stop();
            if link.cluster().is_none() {
                self.look_after_ipc(id);
            }
        }
        self.watch_for_room(id);
    }

    /// Takes in one message of a worker, if one is there, after what waits for it was sent.
    pub(super) fn hear_piped(&mut self, id: WorkerId) -> Hearing {
        let Some(link) = self.piped_mut(id).filter(|link| !link.has_ended) else {
            return Hearing::Pauses;
        };
        if link.pipe.has_unsent() {
            // Where that fails, the end of the channel is heard.
            let _ = link.pipe.flush();
            self.watch_for_room(id);
        }
        let Some(link) = self.piped_mut(id) else { return Hearing::Pauses };
        match link.pipe.hear() {
            Ok(Heard::Nothing) => return Hearing::Pauses,
            // A line that does not end holds up nobody; what the dead have said is read at once.
            Ok(Heard::Part) => {
                let is_dead = self.workers.get(&id).is_some_and(|worker| worker.is_reaped);
                return if is_dead { Hearing::GoesOn } else { Hearing::Pauses };
            }
            Ok(Heard::End) => {
                self.note_end(id);
                return Hearing::Pauses;
            }
            Ok(Heard::Message(message)) => {
                let Daemon { workers, listeners, .. } = self;
                let data = |id| listeners.get(id)?.data.clone();
                let socket = |id| match listeners.get(id) {
                    Some(listener) => listener.socket.try_clone(),
                    None => Err(nix::errno::Errno::ENOTCONN.into()),
                };
                let supply = Supply { data: &data, socket: &socket };
                let link = workers.get_mut(&id).and_then(|worker| worker.piped_mut());
                if let Some(said) = link.map(|link| link.heed(message, &supply)) {
                    self.heed_piped(id, said);
                }
                self.watch_for_room(id);
            }
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

    fn heed_piped(&mut self, id: WorkerId, said: Said) {
        match said {
            Said::Nothing => {}
            Said::Online => self.note_online(id),
            Said::Opened(listeners) => self.note_opened(id, listeners),
            Said::Closed(listeners) => self.note_closed(id, listeners),
            Said::Ready => self.report(Event::Ready { worker: id, limit: 0, handback: false }),
            Said::Leaving => self.note_leaving(id),
            Said::Retiring => self.report(Event::RetireRequested { worker: id }),
            Said::Taken(number) => self.note_taken(id, number),
            Said::Declined(number) => self.note_declined(id, number),
            Said::Ended(all) => self.note_ended(id, all),
            Said::Data(listener, data) => {
                if let Some(listener) = self.listeners.get_mut(listener) {
                    listener.data = Some(data);
                }
            }
            Said::Unheard => self.note_unheard(id),
            Said::Refused(what) => self.note_refused(id, &what),
            Said::Wrong(what) => self.complain(id, &what),
        }
        if self.piped(id).is_some_and(|link| link.is_deaf) {
            self.expel(id, "does not read what it is told");
        }
    }

    /// It has a connection now; the master's copy is closed.
    fn note_taken(&mut self, id: WorkerId, number: u64) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let words = worker.words.clone();
        let Some(link) = worker.piped_mut() else { return };
        let Some(taken) = link.answered(number) else {
            return self.complain(id, "answered for a connection that it was not handed");
        };
        link.count_in(&taken);
        words.add_progress();
        let mut waits = words.add_taken();
        if !link.words.tells_ends() {
            waits |= words.add_finished();
        }
        drop(taken);
        if waits {
            self.report(Event::Room { worker: id });
        }
        self.note_counted_in(id);
    }

    /// It does not take a connection, and has closed its copy.
    fn note_declined(&mut self, id: WorkerId, number: u64) {
        let Some(HandOver { listener, client, .. }) =
            self.piped_mut(id).and_then(|link| link.answered(number))
        else {
            return self.complain(id, "declined a connection that it was not handed");
        };
        let held = self.hold(listener, client);
        self.report(Event::Declined { held, worker: id });
    }

    /// So many of its connections have ended, in all. More than it has taken is not believed.
    pub(super) fn note_ended(&mut self, id: WorkerId, all: u64) {
        let Some(worker) = self.workers.get(&id) else { return };
        let counts = worker.words.counts();
        let mut waits = false;
        for _ in counts.finished..all.min(counts.taken) {
            waits |= worker.words.add_finished();
        }
        if waits {
            self.report(Event::Room { worker: id });
        }
    }

    /// It stops by itself.
    pub(super) fn note_leaving(&mut self, id: WorkerId) {
        let Some(link) = self.piped_mut(id) else { return };
        if !std::mem::replace(&mut link.is_leaving, true) {
            self.report(Event::Leaving { worker: id });
        }
    }

    /// It asked for what it cannot have. Every worker of a pool asks for the same, so it is said of the pool.
    fn note_refused(&mut self, id: WorkerId, what: &str) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let pool = self.editions.name(worker.who.pool);
        let text = format!("the application of {pool} {what}");
        let Some(link) = worker.piped_mut().filter(|link| link.refusals < REFUSALS_MAX) else {
            return;
        };
        link.refusals += 1;
        let entry = self.about_worker(id, Level::Warning, text);
        self.say_once(entry.id(MessageId::Warning));
    }

    /// What the application says to its master is for a master of its own.
    fn note_unheard(&mut self, id: WorkerId) {
        let Some(link) = self.piped_mut(id) else { return };
        if std::mem::replace(&mut link.is_unheard, true) {
            return;
        }
        let who = self.describe(id);
        let text = format!(
            "{who} sends messages to its parent process (process.send), which nobody here answers; \
             they are ignored"
        );
        self.journal.say(self.about_worker(id, Level::Notice, text).id(MessageId::Warning));
    }

    /// Its channel has come to its end. What it was handed and has not answered is not with it any more: it
    /// goes to others now, or with the end of its process, which most often follows at once.
    fn note_end(&mut self, id: WorkerId) {
        let ends = self.now + FAREWELL;
        let Some(worker) = self.workers.get_mut(&id) else { return };
        // Or it would be reported again and again.
        worker.is_watched &= self.poller.remove(&worker.link).is_err();
        let Some(link) = worker.piped_mut() else { return };
        let (is_leaving, is_cluster) = (link.is_leaving, link.cluster().is_some());
        (link.has_ended, link.look_at) = (true, Some(ends).filter(|_| !is_leaving || !is_cluster));
        let listeners = self.supervisor.policy_of(id).map(|policy| policy.listeners.clone());
        for listener in listeners.unwrap_or_default() {
            self.report(Event::Closed { worker: id, listener });
        }
        if is_leaving && is_cluster {
            // Its servers are closed, and their connections with them. It may go on for a while.
            let connections = self.take_unanswered(id);
            self.report(Event::TakenBack { worker: id, connections, pinged: false });
            self.report(Event::Drained { worker: id });
        }
    }

    /// What a worker was handed and has not answered.
    pub(super) fn take_unanswered(&mut self, id: WorkerId) -> Vec<Held> {
        let unanswered = self.piped_mut(id).map(|link| std::mem::take(&mut link.unanswered));
        let unanswered = unanswered.unwrap_or_default();
        unanswered.into_iter().map(|it| self.hold(it.listener, it.client)).collect()
    }

    /// While something waits for a worker, it is reported when its channel has room again.
    pub(super) fn watch_for_room(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.is_watched) else {
            return;
        };
        let Some(link) = worker.piped_mut() else { return };
        let has_unsent = link.pipe.has_unsent();
        if link.is_watched_for_room == has_unsent {
            return;
        }
        link.is_watched_for_room = has_unsent;
        if let Err(error) = self.poller.renew(&worker.link, Token::Channel(id).encode(), has_unsent)
        {
            let who = self.describe(id);
            self.say(Level::Error, format!("{who} cannot be watched: {error}"));
        }
    }

    /// When one of these workers is to be looked at.
    pub(super) fn piped_deadline(&self) -> Option<Instant> {
        self.workers.values().filter_map(|worker| worker.piped()?.look_at).min()
    }

    /// What is due by the clock.
    pub(super) fn tend_piped(&mut self) {
        let now = self.now;
        let is_due = |link: &Link| link.look_at.is_some_and(|at| at <= now);
        let due = self.workers.iter().filter(|(_, worker)| worker.piped().is_some_and(is_due));
        for id in due.map(|(&id, _)| id).collect::<Vec<_>>() {
            let Some(link) = self.piped_mut(id) else { continue };
            link.look_at = None;
            match link.has_ended {
                _ if link.cluster().is_none() => self.look_after_ipc(id),
                true if !link.is_leaving => self.expel(id, "has shut down its channel"),
                true => {}
                false => self.look_after_cluster(id),
            }
        }
    }
}
