//! A worker of a check that speaks by Node's IPC channel.
//!
//! Its questions are answered like any other worker's, and it is handed nobody. One that accepts itself
//! has got sockets where nobody comes.

use super::{Daemon, MESSAGE_BATCH, Part};
use crate::kinds::Link;
use crate::kinds::pipe::Heard;
use crate::kinds::piped::{Said, Supply};
use crate::master::cluster::GRACE;
use crate::supervisor::WorkerId;
use crate::wire::message::Ready;

impl Daemon {
    /// Hears what it has said. Whether it is one of this kind.
    pub(super) fn hear_checked_piped(&mut self, id: WorkerId) -> bool {
        for count in 0.. {
            let Daemon { check, listeners, now, .. } = self;
            let Some(part) = check.part(id) else { return false };
            let Some(worker) = &mut part.worker else { return false };
            let Link::Piped(link) = &mut worker.link else { return false };
            // What is out of the channel already is not reported again.
            if count >= MESSAGE_BATCH && !link.pipe.has_message() {
                break;
            }
            let _ = link.pipe.flush();
            let message = match link.pipe.hear() {
                Ok(Heard::Message(message)) => message,
                Ok(Heard::Nothing | Heard::Part) => return true,
                Ok(Heard::End) | Err(_) => {
                    // Its end would be reported again and again. That of its process is awaited.
                    let _ = self.poller.remove(&worker.link);
                    return true;
                }
            };
            let socket = |_| Err(nix::errno::Errno::ENOTCONN.into());
            let data = |id| listeners.get(id)?.data.clone();
            let said = link.heed(message, &Supply { data: &data, socket: &socket });
            let cluster = link.cluster();
            let is_whole = cluster.is_some_and(|cluster| cluster.closed().is_empty());
            match said {
                Said::Opened(_) | Said::Online if is_whole => self.note_checked_piped(id),
                Said::Opened(_) => link.look_at = Some(*now + GRACE),
                Said::Ready => self.note_checked_piped(id),
                Said::Refused(what) | Said::Wrong(what) => part.hint = Some(what),
                Said::Nothing
                | Said::Online
                | Said::Closed(_)
                | Said::Leaving
                | Said::Retiring
                | Said::Taken(_)
                | Said::Declined(_)
                | Said::Ended(_)
                | Said::Data(..)
                | Said::Unheard => {}
            }
        }
        true
    }

    /// Those that have had time enough to listen on more are ready.
    pub(super) fn look_after_checked_piped(&mut self) {
        let now = self.now;
        let is_due = |part: &&Part| {
            let link = part.worker.as_ref().and_then(|worker| worker.piped());
            link.is_some_and(|link| link.look_at.is_some_and(|at| at <= now))
        };
        let due = self.check.parts.iter().filter(is_due).map(|part| part.id);
        for id in due.collect::<Vec<_>>() {
            self.note_checked_piped(id);
        }
    }

    fn note_checked_piped(&mut self, id: WorkerId) {
        let Some(part) = self.check.part(id) else { return };
        if let Some(link) = part.worker.as_mut().and_then(|worker| worker.piped_mut()) {
            link.look_at = None;
        }
        if !std::mem::replace(&mut part.is_ready, true) {
            self.note_checked_ready(id, &Ready::default());
        }
    }
}
