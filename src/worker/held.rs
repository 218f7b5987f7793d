//! One connection in a worker's hand: what the master counts of it, and what its next owner must know.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use super::connection::Wait;
use super::ledger::Mark;
use super::link::Link;
use super::registry::Facts;
use crate::wire::message::Past;

/// A connection in hand, as the master counts it. Dropped after its socket is closed.
#[derive(Debug)]
pub(super) struct Held {
    link: Arc<Link>,
    /// What others may know of it, and where that is entered.
    facts: Arc<Facts>,
    place: usize,
    /// Another worker had it before.
    is_handed_back: bool,
    touched: AtomicBool,
    /// Its requests are counted by somebody else.
    by_hand: AtomicBool,
    /// The next byte read begins a request.
    asking: AtomicBool,
    /// It went to another worker, alive.
    given_away: AtomicBool,
    /// Its entry in the ledger.
    mark: Mark,
}

impl Held {
    pub fn new(
        link: Arc<Link>,
        (facts, place): (Arc<Facts>, usize),
        past: Option<Past>,
        mark: Mark,
    ) -> Held {
        let is_answered = past.is_some_and(|past| past.requests > 0);
        Held {
            link,
            facts,
            place,
            is_handed_back: past.is_some(),
            touched: AtomicBool::new(is_answered),
            by_hand: AtomicBool::new(false),
            asking: AtomicBool::new(true),
            given_away: AtomicBool::new(false),
            mark,
        }
    }

    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Something was read from it: bytes, the end or a failure.
    pub fn is_touched(&self) -> bool {
        self.touched.load(Relaxed)
    }

    pub fn is_handed_back(&self) -> bool {
        self.is_handed_back
    }

    pub fn requests(&self) -> u64 {
        self.facts.requests()
    }

    pub fn idle_since(&self) -> u64 {
        self.facts.idle_since()
    }

    #[cfg(feature = "serve")]
    pub fn count_by_hand(&self) {
        self.by_hand.store(true, Relaxed);
    }

    /// The worker drains, and the master gives its connections to others.
    pub fn is_wanted_back(&self) -> bool {
        self.link.drain_told().is_some_and(|drain| drain.handback)
    }

    /// Another worker gets it: it is in this one's hand no longer, but it is not finished.
    pub fn give_away(&self) {
        self.given_away.store(true, Relaxed);
    }

    /// This worker has read from it or written to it.
    pub fn is_used(&self) -> bool {
        self.facts.is_used()
    }

    /// Waits for the next request, and notes whether it has come.
    pub fn during(&self, waiting: impl FnOnce() -> io::Result<Wait>) -> io::Result<Wait> {
        self.facts.note_waiting();
        let waited = waiting();
        if matches!(waited, Ok(Wait::Bytes)) {
            self.facts.note_asked();
        }
        waited
    }

    /// What it has behind it, with so much leftover.
    pub fn past(&self, leftover: u32) -> Past {
        // The bytes left over began a request, which its next owner counts.
        let is_guessed = !self.by_hand.load(Relaxed);
        let begun = u64::from(is_guessed && leftover > 0 && !self.asking.load(Relaxed));
        let requests = self.requests().saturating_sub(begun);
        Past { idle_since: self.idle_since(), requests, leftover }
    }

    /// A read brought `count` bytes, or the end.
    pub fn note_read(&self, count: usize) {
        let begins = count > 0 && self.asking.load(Relaxed) && self.asking.swap(false, Relaxed);
        if begins && !self.by_hand.load(Relaxed) {
            self.facts.add_request();
            self.link.note_request();
        }
        self.facts.note_used();
        self.touch();
    }

    /// A write took bytes: what is read after it is the next request.
    pub fn note_write(&self) {
        if !self.asking.load(Relaxed) {
            self.asking.store(true, Relaxed);
        }
        self.facts.note_written();
    }

    /// It is silent no longer.
    pub fn touch(&self) {
        if !self.touched.load(Relaxed) && !self.touched.swap(true, Relaxed) {
            self.link.note_touched();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let is_finished = !*self.given_away.get_mut();
        if is_finished {
            // Before it counts: what has finished is closed, in the ledger, too.
            self.mark.closed();
        }
        self.link.let_go(self.place, is_finished, !*self.touched.get_mut());
    }
}
