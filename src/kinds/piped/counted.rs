//! Workers whose connections the master counts: those that have no words of the cluster module.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use super::words::Words;
use super::{HandOver, Link, plain};

impl Link {
    /// It was told to stop, and has answered for everything that it was handed.
    pub(crate) fn may_go(&self) -> bool {
        self.is_leaving && self.unanswered.is_empty()
    }

    /// Closes the channel to a plain one that may go. Whether that was done.
    pub(crate) fn close(&mut self) -> bool {
        let may_go = self.may_go();
        match &mut self.words {
            Words::Plain(plain) if may_go => {
                plain.tally.stop_asking();
                // Where that fails, it is closed already.
                self.pipe.close().is_ok()
            }
            Words::Plain(_) | Words::Cluster(_) | Words::NodeCluster(_) => false,
        }
    }

    /// It has taken this one: where the master counts, it is counted.
    pub(crate) fn count_in(&mut self, taken: &HandOver) {
        let handed = self.handed;
        let Some(tally) = self.words.tally_mut() else { return };
        let asked = tally.note_taken(taken.client.socket.as_fd(), taken.number, handed);
        asked.into_iter().for_each(|question| self.post(&plain::question(question)));
    }

    /// Finds out how many of its connections have ended, in all. `None`: it was asked, or nothing is
    /// known.
    ///
    /// # Errors
    /// Nothing will be known from now on.
    pub(crate) fn count(&mut self, process: u32) -> io::Result<Option<u64>> {
        let handed = self.handed;
        let Some(tally) = self.words.tally_mut() else { return Ok(None) };
        match tally.ask(handed) {
            Some(question) => self.post(&plain::question(question)),
            None => return tally.look(process),
        }
        Ok(None)
    }

    /// It has ended of its own will, with nothing left to do: all that it had is finished. How many that
    /// were, in all; `None`, where that cannot be said of it.
    pub(crate) fn wind_up(&mut self) -> Option<u64> {
        match &mut self.words {
            Words::Plain(plain) if self.is_leaving => Some(plain.tally.end()),
            Words::Plain(_) | Words::Cluster(_) | Words::NodeCluster(_) => None,
        }
    }

    /// When one that does not say that it is ready counts as ready, if it lives until then.
    pub(crate) fn settle_at(&mut self, at: Instant) {
        if let Words::Plain(_) = &self.words {
            self.look_at = Some(at);
        }
    }
}
