//! Workers that are handed connections over Node's IPC channel and have no words of the cluster module
//! (`kind = "ipc"`): when they are ready, what they have in hand, and how they are let go.
//!
//! Nobody tells when one of their connections ends, or not at once: now and then they are asked, or looked
//! at. What they have is therefore known a moment late, and never less than it is.
//!
//! One that is told to stop has to answer first for what it was handed. Then a plain one has its channel
//! closed, finishes what it has, and ends; one of the library node-cluster is sent SIGTERM when it has
//! nothing any more, because that ends it.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::Daemon;
use super::journal::{Level, MessageId};
use crate::kinds::piped::Words;
use crate::supervisor::{Event, WorkerId};
use crate::sys::socket::is_readable;

/// How often one that has something in hand is asked, or looked at.
const LOOK: Duration = Duration::from_millis(500);

impl Daemon {
    /// It has taken a connection: it is looked at in a while, or now, where there were many.
    pub(super) fn note_counted_in(&mut self, id: WorkerId) {
        let later = self.now + LOOK;
        let Some(link) = self.piped_mut(id) else { return };
        let Some(tally) = link.words.tally() else { return };
        let is_due = tally.is_due();
        link.look_at.get_or_insert(later);
        let may_go = link.may_go();
        if may_go {
            self.look_after_ipc(id);
        } else if is_due {
            self.count_open(id);
        }
    }

    /// Its time is up: to be ready, to be asked, or to go.
    pub(super) fn look_after_ipc(&mut self, id: WorkerId) {
        let later = self.now + LOOK;
        let ended = self.piped(id).filter(|link| link.has_ended && !link.is_leaving);
        match ended.map(|link| link.words.is_ready()) {
            // It has closed its channel by itself, and lives on.
            Some(true) => self.note_closed_by_itself(id),
            Some(false) => return self.expel(id, "has shut down its channel"),
            None => {}
        }
        if let Some(link) = self.piped_mut(id) {
            link.close();
        }
        self.settle_plain(id);
        self.count_open(id);
        let has_nothing = self.let_go(id);
        let Some(link) = self.piped_mut(id) else { return };
        let is_empty = link.words.tally().is_none_or(|tally| tally.is_empty());
        let is_looked_at = if link.is_leaving { !has_nothing } else { !is_empty };
        link.look_at = Some(later).filter(|_| is_looked_at);
    }

    /// It stops by itself, and has never had what it was handed and has not answered.
    fn note_closed_by_itself(&mut self, id: WorkerId) {
        self.note_leaving(id);
        let connections = self.take_unanswered(id);
        self.report(Event::TakenBack { worker: id, connections, pinged: false });
    }

    /// One that does not say that it is ready has lived for long enough.
    fn settle_plain(&mut self, id: WorkerId) {
        let Some(link) = self.piped_mut(id) else { return };
        let Words::Plain(plain) = &mut link.words else { return };
        if !std::mem::replace(&mut plain.is_ready, true) {
            self.report(Event::Ready { worker: id, limit: 0, handback: false });
        }
    }

    /// Finds out what it has in hand.
    fn count_open(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let process = worker.process.id();
        let Some(link) = worker.piped_mut() else { return };
        let counted = link.count(process);
        // Of one that has died meanwhile, nothing was seen.
        if worker.is_reaped || is_readable(worker.process.as_fd()).unwrap_or(true) {
            return;
        }
        match counted {
            Ok(Some(all)) => self.note_ended(id, all),
            Ok(None) => self.watch_for_room(id),
            Err(error) => {
                let who = self.describe(id);
                let is_plain = matches!(self.piped(id).map(|it| &it.words), Some(Words::Plain(_)));
                // A plain one ends by itself.
                let more =
                    if is_plain { "" } else { ", and its drain lasts its whole drain-timeout" };
                let text = format!(
                    "what connections {who} has cannot be seen ({error}): each counts as finished once \
                     it was taken{more}"
                );
                let entry = self.about_worker(id, Level::Warning, text);
                self.say_once(entry.id(MessageId::Warning));
                self.note_ended(id, u64::MAX);
            }
        }
    }

    /// Whether it may go and has nothing in hand any more, as far as can be seen; if so, it is let go.
    fn let_go(&mut self, id: WorkerId) -> bool {
        let Some(link) = self.piped_mut(id) else { return true };
        let is_empty = link.words.tally().is_some_and(|it| it.is_known() && it.is_empty());
        if !is_empty || !link.may_go() {
            return false;
        }
        if let Words::NodeCluster(worker) = &mut link.words {
            if !std::mem::replace(&mut worker.is_told, true) {
                self.signal(id, Signal::SIGTERM);
            }
        }
        self.report(Event::Drained { worker: id });
        true
    }

    /// It has exited with status 0. One that had nothing left to do has finished what it had.
    pub(super) fn note_clean_end(&mut self, id: WorkerId) {
        let all = self.piped_mut(id).and_then(|link| link.wind_up());
        all.into_iter().for_each(|all| self.note_ended(id, all));
    }
}
