//! Unmodified Node applications: when they are ready, what they have open, and how they are told to stop.
//!
//! An application is ready when it listens on everything that its pool has. One that has been listening
//! for a moment on less than that is ready, too, and it is said what it does not listen on: nobody else
//! can know whether more will come. A worker of a pool without listeners is ready when its runtime has
//! started.

use std::path::PathBuf;
use std::time::Duration;

use super::Daemon;
use super::journal::{Level, MessageId};
use crate::config::{Kind, Manner, why};
use crate::kinds::piped::preload;
use crate::supervisor::{Event, ListenerId, WorkerId};

/// How long an application that listens on something is waited for to listen on the rest; and how long
/// one that has closed all of its servers may take to open another.
pub(super) const GRACE: Duration = Duration::from_secs(1);

impl Daemon {
    /// What an application loads first, where its pool wants that.
    ///
    /// # Errors
    /// A sentence: it cannot be had.
    pub(super) fn preload(&self, manner: &Manner) -> Result<Option<PathBuf>, String> {
        if manner.kind != Kind::Node || !manner.drain_preload {
            return Ok(None);
        }
        let Some(control) = &self.control else {
            return Err("cannot have a file loaded first (drain-preload): that stands beside the \
                        control socket, and there is none"
                .to_owned());
        };
        let written = preload::written(control.path());
        let fail =
            |error| format!("cannot have a file loaded first (drain-preload): {}", why(&error));
        written.map(Some).map_err(fail)
    }

    /// Its runtime has started.
    pub(super) fn note_online(&mut self, id: WorkerId) {
        let has_doors = self.piped(id).and_then(|link| Some(link.cluster()?.has_doors()));
        if has_doors == Some(false) {
            self.note_cluster_ready(id);
        }
    }

    /// It takes connections of these listeners.
    pub(super) fn note_opened(&mut self, id: WorkerId, listeners: Vec<ListenerId>) {
        for listener in listeners {
            self.report(Event::Opened { worker: id, listener });
        }
        let later = self.now + GRACE;
        let Some(link) = self.piped_mut(id) else { return };
        link.look_at = None;
        let Some(cluster) = link.cluster().filter(|cluster| !cluster.is_ready) else { return };
        if cluster.closed().is_empty() {
            self.note_cluster_ready(id);
        } else {
            link.look_at = Some(later);
        }
    }

    /// It takes none of these any more.
    pub(super) fn note_closed(&mut self, id: WorkerId, listeners: Vec<ListenerId>) {
        for listener in listeners {
            self.report(Event::Closed { worker: id, listener });
        }
        let later = self.now + GRACE;
        let Some(link) = self.piped_mut(id).filter(|link| !link.is_leaving) else { return };
        let is_idle = |it: &crate::kinds::piped::cluster::Cluster| it.listening().is_empty();
        if link.cluster().is_some_and(is_idle) {
            link.look_at = Some(later);
        }
    }

    /// Its time to open more is over.
    pub(super) fn look_after_cluster(&mut self, id: WorkerId) {
        let Some(link) = self.piped(id) else { return };
        let Some(cluster) = link.cluster() else { return };
        match (cluster.is_ready, cluster.listening().is_empty()) {
            (false, false) => self.note_cluster_ready(id),
            // It has closed its servers, on a signal for one, but waits for the master to let it go.
            (true, true) if cluster.has_doors() && !link.is_leaving => {
                self.stop_piped(id);
                self.report(Event::Leaving { worker: id });
            }
            (true, _) | (false, true) => {}
        }
    }

    fn note_cluster_ready(&mut self, id: WorkerId) {
        let Some(cluster) = self.piped_mut(id).and_then(|link| link.cluster_mut()) else { return };
        if std::mem::replace(&mut cluster.is_ready, true) {
            return;
        }
        let is_unread = cluster.has_preload && !cluster.tells_ends;
        let missing = cluster.missing().join(", ");
        let closed = cluster.closed();
        let has_closed = !closed.is_empty();
        for listener in closed {
            self.report(Event::Closed { worker: id, listener });
        }
        if has_closed {
            let who = self.describe(id);
            let text = format!(
                "{who} does not listen on {missing}: clients who come there wait for a worker that does"
            );
            let entry = self.about_worker(id, Level::Warning, text);
            self.journal.say(entry.id(MessageId::Warning));
        }
        if is_unread {
            let who = self.describe(id);
            let text = format!(
                "{who} has not loaded the file of drain-preload: its connections are not counted, and it \
                 drains slowly; let what starts it keep NODE_OPTIONS"
            );
            self.say_once(self.about_worker(id, Level::Warning, text).id(MessageId::Warning));
        }
        self.report(Event::Ready { worker: id, limit: 0, handback: false });
    }

    /// Why an application that is given up on has not become ready, as far as that can be known.
    pub(super) fn say_why_unready(&mut self, id: WorkerId) {
        let Some(link) = self.piped(id).filter(|link| !link.is_leaving) else { return };
        let Some(cluster) = link.cluster().filter(|it| !it.is_ready && it.has_doors()) else {
            return;
        };
        let why = match (cluster.is_online, cluster.has_servers()) {
            (false, _) => {
                "has not said that it is online: its command starts no Node program, or one that \
                 starts the application as a process of its own"
            }
            (true, false) => {
                "is online, but has asked for nothing to listen on: it has not come to listen(), or \
                 binds by itself (exclusive: true, reusePort: true); programs that do not listen by \
                 Node's own means can be workers of the kind \"ipc\" or \"inherit\""
            }
            (true, true) => "was told what it listens on, and has not said that it listens",
        };
        let text = format!("{} {why}", self.describe(id));
        let entry = self.about_worker(id, Level::Warning, text);
        self.journal.say(entry.id(MessageId::Warning));
    }
}
