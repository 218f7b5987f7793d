//! When systemd is told what: at each milestone, at each turn of the loop, and at the end.
//!
//! WATCHDOG=1 comes from the loop that dispatches, so that it says something: the first at the very
//! start, then one every third of the limit, also while workers roll or drain. A start, a reload or
//! a stop that takes long has systemd's limits extended, bit by bit, as long as a deadline of our
//! own bounds it; what nothing bounds is left to systemd's patience.

use std::time::{Duration, Instant};

use nix::libc::{ECANCELED, EINVAL};

use super::Daemon;
use super::journal::Level;
use crate::supervisor::{Announcement, Event};

/// By how much a limit of systemd's is extended, and how often.
const EXTENSION: Duration = Duration::from_secs(10);
const EXTEND_EVERY: Duration = Duration::from_secs(2);

/// What is due by the clock.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    watchdog_at: Option<Instant>,
    extend_at: Option<Instant>,
}

impl Pulse {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.watchdog_at.into_iter().chain(self.extend_at).min()
    }
}

/// How a reload went.
pub(super) struct Outcome {
    /// What systemd is told with it, 0: it went well.
    pub(super) errno: u32,
    pub(super) message: String,
    pub(super) at: Instant,
}

impl Daemon {
    pub(super) fn announce(&mut self, announcement: Announcement) {
        let status = self.summary();
        match announcement {
            Announcement::Ready => {
                let errno = self.last_reload.as_ref().map_or(0, |last| last.errno);
                self.notify.ready(&status, errno, self.now);
                if let Some(greet) = self.greeting.take() {
                    greet();
                }
            }
            Announcement::Reloading => self.notify.reloading(&status, self.now),
            Announcement::Stopping => self.notify.stopping(&status, self.now),
        }
        self.is_news = true;
    }

    /// Tells systemd how things are, at each turn: in a sentence when they have changed, that this
    /// loop turns, and for how long it is to be patient.
    pub(super) fn publish(&mut self) {
        if std::mem::take(&mut self.is_news) {
            let summary = self.summary();
            // How a reload went is told with its READY=1.
            let is_over = self.supervisor.progress().is_none();
            let errno = self.last_reload.as_ref().filter(|_| is_over).map(|last| last.errno);
            self.notify.status(&summary, errno, self.now);
        }
        self.pulse();
        if let Some(failure) = self.notify.take_failure() {
            self.say(Level::Warning, failure);
        }
    }

    fn pulse(&mut self) {
        if let Some(interval) = self.notify.watchdog {
            if self.pulse.watchdog_at.is_none_or(|at| at <= self.now) {
                self.notify.alive();
                self.pulse.watchdog_at = Some(self.now + interval);
            }
        }
        if !self.notify.has_manager() || self.supervisor.next_limit().is_none() {
            self.pulse.extend_at = None;
        } else if self.pulse.extend_at.is_none_or(|at| at <= self.now) {
            self.notify.extend(EXTENSION);
            self.pulse.extend_at = Some(self.now + EXTEND_EVERY);
        }
    }

    /// Has systemd keep the sockets that are only ours, and forget those that are closed; or the
    /// workers, where there is no systemd.
    pub(super) fn keep_listeners(&mut self) {
        for name in self.listeners.take_discarded() {
            self.notify.discard(&name, self.now);
            self.forget_all(&name);
        }
        let mut unstored = Vec::new();
        for (name, socket) in self.listeners.take_unstored() {
            self.notify.store(name, socket, self.now);
            unstored.push(name.to_owned());
        }
        if !unstored.is_empty() {
            self.entrust_all(&unstored);
        }
    }

    /// A reload is over.
    pub(super) fn note_outcome(&mut self, is_ok: bool, message: String) {
        let errno = if is_ok { 0 } else { ECANCELED.unsigned_abs() };
        self.last_reload = Some(Outcome { errno, message, at: self.now });
        self.is_news = true;
    }

    /// A reload could not even begin.
    pub(super) fn note_refusal(&mut self, message: String) {
        self.last_reload = Some(Outcome { errno: EINVAL.unsigned_abs(), message, at: self.now });
        self.is_news = true;
        self.report(Event::ReloadRefused);
    }
}
