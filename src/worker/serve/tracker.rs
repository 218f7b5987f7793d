//! What is known of one connection beside the server that runs it: how much of it is in use.
//!
//! A [`Guard`] stands for a request's body or an answer that somebody still holds. All guards of a
//! connection live in one word: how many are open, and how often one was opened or closed. The second
//! number is the one that matters: when it is the same before and after the server was polled, the
//! server has not worked in between, and what was true before the poll is still true.
//!
//! [`Tracker::settle`] tells the ledger when the connection stands between two requests. It is called
//! by the task that runs the connection, and by nobody else: two who judge at once could each be right
//! and the later one wrong.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use hyper::header::{CONNECTION, HeaderMap};

use super::accounts::Accounts;
use super::peer::Peer;
use crate::wire::ledger::State;
use crate::wire::message::Activity;
use crate::worker::ledger::Tail;
use crate::worker::link::Link;
use crate::worker::stream::Stream;
use crate::worker::tell::tell;

/// Opened and closed, in the upper half of the word.
const EVENT: u64 = 1 << 32;

/// hyper hands so many pieces to one write at most: if there are fewer, they are all.
const PIECES_MAX: usize = 64;

/// Something was written after what looked like the rest of an answer. Should a server ever write that
/// way, nobody's rest is believed any more.
static TAILS_ARE_WRONG: AtomicBool = AtomicBool::new(false);

/// The guards of a connection at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Use(u64);

impl Use {
    /// Nobody holds a body of the connection.
    pub(crate) fn is_none(self) -> bool {
        self.0 % EVENT == 0
    }
}

#[derive(Debug)]
pub(crate) struct Tracker {
    link: Arc<Link>,
    guards: AtomicU64,
    /// Somebody waits for a guard to close.
    is_watched: AtomicBool,
    watcher: Mutex<Option<Waker>>,
    /// Requests that were begun here.
    requests: AtomicU64,
    /// Something was written that may not have reached the socket.
    is_unflushed: AtomicBool,
    has_written: AtomicBool,
    /// The connection goes on elsewhere: the server's end is not its end.
    is_leaving: AtomicBool,
    /// The answer under way is the last one: the connection is closed after it.
    is_last: AtomicBool,
    /// Answers come in pieces whose length a write does not show.
    is_odd: AtomicBool,
    /// What is written when the answer is whole; 0: not known.
    tail: AtomicU64,
    accounts: Mutex<Accounts>,
    peer: Peer,
}

impl Tracker {
    pub(crate) fn new(link: Arc<Link>, peer: Peer, accounts: Accounts) -> Tracker {
        Tracker {
            link,
            guards: AtomicU64::new(0),
            is_watched: AtomicBool::new(false),
            watcher: Mutex::default(),
            requests: AtomicU64::new(0),
            is_unflushed: AtomicBool::new(false),
            has_written: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
            is_last: AtomicBool::new(false),
            is_odd: AtomicBool::new(false),
            tail: AtomicU64::new(0),
            accounts: Mutex::new(accounts),
            peer,
        }
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// A request was begun.
    pub(crate) fn begin(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.link.note_request();
        self.accounts().begin();
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// The server was given `bytes`.
    pub(crate) fn note_read(&self, bytes: &[u8]) {
        self.accounts().deliver(bytes);
    }

    pub(crate) fn note_write(&self) {
        self.is_unflushed.store(true, Relaxed);
        self.has_written.store(true, Relaxed);
    }

    /// The server has nothing left to write.
    pub(crate) fn note_flush(&self) {
        self.tail.store(0, Relaxed);
        if self.is_unflushed.load(Relaxed) && self.is_unflushed.swap(false, Relaxed) {
            // It may be at rest now, and nobody would look.
            self.wake();
        }
    }

    pub(crate) fn is_unflushed(&self) -> bool {
        self.is_unflushed.load(Relaxed)
    }

    pub(crate) fn has_written(&self) -> bool {
        self.has_written.load(Relaxed)
    }

    /// The answer under way is the last one.
    pub(crate) fn note_last(&self) {
        self.is_last.store(true, Relaxed);
    }

    /// What a request or an answer says about the end of the connection.
    pub(crate) fn note_head(&self, headers: &HeaderMap) {
        let says = |value: &hyper::header::HeaderValue| {
            let text = value.to_str().unwrap_or("close");
            text.split(',').any(|word| word.trim().eq_ignore_ascii_case("close"))
        };
        if self.link.has_ledger() && headers.get_all(CONNECTION).iter().any(says) {
            self.note_last();
        }
    }

    /// A piece of an answer is not of one piece.
    pub(crate) fn note_odd(&self) {
        self.is_odd.store(true, Relaxed);
    }

    pub(crate) fn set_leaving(&self, is_leaving: bool) {
        self.is_leaving.store(is_leaving, Relaxed);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Relaxed)
    }

    pub(crate) fn accounts(&self) -> MutexGuard<'_, Accounts> {
        // No foreign code runs under the lock.
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that was asked is answered, as far as the server is concerned, and the next request
    /// can come; whether part of it has been read. Some of the answer may have to be written still.
    fn boundary(&self) -> Option<bool> {
        // What is written without a request is a refusal.
        let is_refused = self.requests() == 0 && self.has_written();
        if !self.in_use().is_none() || is_refused || self.is_last.load(Relaxed) {
            return None;
        }
        let accounts = self.accounts();
        accounts.is_between_requests().then(|| !accounts.pending().is_empty())
    }

    /// What it is in the middle of, for people.
    pub(crate) fn activity(&self) -> Activity {
        let accounts = self.accounts();
        if !self.in_use().is_none() {
            return Activity::Busy;
        }
        // It may be upgraded, and nobody knows what is spoken then.
        if accounts.is_in_doubt() {
            return Activity::Unknown;
        }
        let is_read = accounts.is_between_requests() && accounts.pending().is_empty();
        if is_read && !self.is_unflushed() { Activity::Idle } else { Activity::Busy }
    }

    /// What the ledger is to know of the write that comes next.
    pub(crate) fn tail(&self, written: u64, slices: &[std::io::IoSlice<'_>]) -> Option<Tail> {
        let before = self.tail.swap(0, Relaxed);
        if before > 0 && written >= before && !TAILS_ARE_WRONG.swap(true, Relaxed) {
            tell!("this hyper writes otherwise than expected: see the crash ledger's limits");
        }
        if slices.len() >= PIECES_MAX || self.is_odd.load(Relaxed) || TAILS_ARE_WRONG.load(Relaxed)
        {
            return None;
        }
        let is_pending = self.boundary()?;
        let length = slices.iter().map(|slice| slice.len() as u64).sum();
        self.tail.store(written + length, Relaxed);
        Some(Tail { length, is_pending })
    }

    /// Tells the ledger, if there is one, where the connection stands. The waker is called when it may
    /// stand otherwise, because somebody else lets go of a body.
    pub(crate) fn settle(&self, stream: &Stream, waker: &Waker) {
        let mark = stream.held().mark();
        match mark.state() {
            Some(State::Dirty | State::Wrote) => {}
            Some(State::Queued | State::Clean | State::Closed) | None => return,
        }
        if self.is_unflushed() {
            return;
        }
        let is_held = !self.in_use().is_none();
        if is_held && self.has_written() && self.accounts().is_between_requests() {
            self.watch(waker);
        }
        match self.boundary() {
            None => {}
            Some(is_pending) if is_pending || stream.has_leftover() => mark.is_pending(),
            Some(_) => {
                let held = stream.held();
                mark.is_clean(held.requests() + self.requests(), held.idle_since());
            }
        }
    }

    /// From now on, and before the next [`Tracker::in_use`], a guard that closes wakes.
    pub(crate) fn watch(&self, waker: &Waker) {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if !watcher.as_ref().is_some_and(|watcher| watcher.will_wake(waker)) {
            *watcher = Some(waker.clone());
        }
        drop(watcher);
        self.is_watched.store(true, SeqCst);
    }

    pub(crate) fn in_use(&self) -> Use {
        Use(self.guards.load(SeqCst))
    }

    pub(crate) fn wake(&self) {
        if self.is_watched.load(SeqCst) {
            let watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(waker) = watcher {
                waker.wake();
            }
        }
    }
}

/// Somebody holds a body of the connection, or an answer.
#[derive(Debug)]
pub(crate) struct Guard {
    tracker: Arc<Tracker>,
    is_answer: bool,
}

impl Guard {
    pub(crate) fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    pub(crate) fn new(tracker: &Arc<Tracker>) -> Guard {
        tracker.guards.fetch_add(EVENT + 1, SeqCst);
        Guard { tracker: Arc::clone(tracker), is_answer: false }
    }

    /// What is answered is written after the guard is closed, and then flushed.
    pub(crate) fn of_answer(tracker: &Arc<Tracker>) -> Guard {
        tracker.guards.fetch_add(EVENT + 1, SeqCst);
        Guard { tracker: Arc::clone(tracker), is_answer: true }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.is_answer {
            self.tracker.is_unflushed.store(true, Relaxed);
        }
        self.tracker.guards.fetch_add(EVENT - 1, SeqCst);
        self.tracker.wake();
    }
}
