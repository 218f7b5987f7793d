//! One connection in a worker's hand: what the master counts of it, and what its next owner must know.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::ledger::Mark;
use super::link::Link;
use super::taker::microseconds;
use crate::wire::message::Past;

/// A connection in hand, as the master counts it. Dropped after its socket is closed.
#[derive(Debug)]
pub(super) struct Held {
    link: Arc<Link>,
    /// Another worker had it before.
    is_handed_back: bool,
    /// Requests so far, in all workers.
    requests: AtomicU64,
    /// When the last answer was written, or it was first taken, in microseconds.
    idle_since: AtomicU64,
    touched: AtomicBool,
    used: AtomicBool,
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
    pub fn new(link: Arc<Link>, past: Option<Past>, mark: Mark) -> Held {
        let is_answered = past.is_some_and(|past| past.requests > 0);
        Held {
            link,
            is_handed_back: past.is_some(),
            requests: AtomicU64::new(past.map_or(0, |past| past.requests)),
            idle_since: AtomicU64::new(past.map_or_else(microseconds, |past| past.idle_since)),
            touched: AtomicBool::new(is_answered),
            used: AtomicBool::new(false),
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

    /// Something was read from it: bytes, the end or a failure.
    pub fn is_touched(&self) -> bool {
        self.touched.load(Relaxed)
    }

    pub fn is_handed_back(&self) -> bool {
        self.is_handed_back
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    pub fn idle_since(&self) -> u64 {
        self.idle_since.load(Relaxed)
    }

    #[cfg(feature = "serve")]
    pub fn count_by_hand(&self) {
        self.by_hand.store(true, Relaxed);
    }

    #[cfg(feature = "serve")]
    pub fn add_requests(&self, count: u64) {
        self.requests.fetch_add(count, Relaxed);
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
        self.used.load(Relaxed)
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
            self.requests.fetch_add(1, Relaxed);
            self.link.note_request();
        }
        self.used.store(true, Relaxed);
        self.touch();
    }

    /// A write took bytes: what is read after it is the next request.
    pub fn note_write(&self) {
        if !self.asking.load(Relaxed) {
            self.asking.store(true, Relaxed);
        }
        self.idle_since.store(microseconds(), Relaxed);
        self.used.store(true, Relaxed);
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
        self.link.let_go(is_finished, !*self.touched.get_mut());
    }
}
