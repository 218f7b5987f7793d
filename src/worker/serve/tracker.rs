//! What is known of one connection beside the server that runs it: how much of it is in use.
//!
//! A [`Guard`] stands for a request's body or an answer that somebody still holds. All guards of a
//! connection live in one word: how many are open, and how often one was opened or closed. The second
//! number is the one that matters: when it is the same before and after the server was polled, the
//! server has not worked in between, and what was true before the poll is still true.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::accounts::Accounts;
use super::peer::Peer;
use crate::worker::link::Link;

/// Opened and closed, in the upper half of the word.
const EVENT: u64 = 1 << 32;

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
