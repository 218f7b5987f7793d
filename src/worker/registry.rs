//! Which connections this worker holds, for those who wonder what a drain waits for.
//!
//! Every connection in hand has its [`Facts`] here, from the moment it is taken until it is finished
//! or given away. They are what the worker notes anyway; the rest is found out when somebody asks:
//! what a server is in the middle of, and who the client is. For the latter the number of the socket
//! is kept. It is withdrawn before the socket is closed, and looked at once more after the system was
//! asked: so an address is never that of another client whose socket got the same number.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64};
#[cfg(feature = "serve")]
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::link::Link;
#[cfg(feature = "serve")]
use super::serve::tracker::Tracker;
use super::taker::now;
use crate::sys::clock::microseconds;
use crate::sys::socket::{peer_of, wait_writable};
use crate::wire::message::{Activity, CONNECTIONS_MAX, HeldConnection, Holding, Past};

/// How long the keeper waits in all for a queue that is full of answers.
const PATIENCE: Duration = Duration::from_millis(500);

/// A socket that is closed, or about to be.
const GONE: i32 = -1;

/// Of [`Facts::stage`]: nobody has said.
const UNSAID: u8 = 0;
/// The next request is waited for.
const WAITING: u8 = 1;
/// It has come.
const ASKED: u8 = 2;

/// What is known of a connection in hand.
#[derive(Debug)]
pub(super) struct Facts {
    listener: Arc<str>,
    /// The socket's number.
    socket: AtomicI32,
    /// When this worker took it, in microseconds.
    held_since: u64,
    /// When the last answer was written, or it was first taken.
    idle_since: AtomicU64,
    /// Requests so far, in all workers, less those that the tracker counts.
    requests: AtomicU64,
    /// This worker has read from it or written to it.
    used: AtomicBool,
    stage: AtomicU8,
    /// Who watches the server that runs it.
    #[cfg(feature = "serve")]
    tracker: Mutex<Weak<Tracker>>,
}

impl Facts {
    /// Of a connection that is taken now.
    pub fn new(listener: Arc<str>, socket: Option<i32>, past: Option<Past>) -> Facts {
        let held_since = microseconds();
        let (requests, idle_since) =
            past.map_or((0, held_since), |past| (past.requests, past.idle_since));
        Facts {
            listener,
            socket: AtomicI32::new(socket.unwrap_or(GONE)),
            held_since,
            idle_since: AtomicU64::new(idle_since),
            requests: AtomicU64::new(requests),
            used: AtomicBool::new(false),
            stage: AtomicU8::new(UNSAID),
            #[cfg(feature = "serve")]
            tracker: Mutex::default(),
        }
    }

    pub fn idle_since(&self) -> u64 {
        self.idle_since.load(Relaxed)
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    pub fn is_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    pub fn note_used(&self) {
        self.used.store(true, Relaxed);
    }

    pub fn note_written(&self) {
        self.idle_since.store(microseconds(), Relaxed);
        self.note_used();
    }

    pub fn add_request(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    /// The socket is about to be closed.
    pub fn withdraw(&self) {
        self.socket.swap(GONE, SeqCst);
    }

    /// Its owner waits for the next request.
    pub fn note_waiting(&self) {
        self.stage.store(WAITING, Relaxed);
    }

    /// The next request is there.
    pub fn note_asked(&self) {
        self.stage.store(ASKED, Relaxed);
    }

    /// The client's address; empty where it is not known.
    fn peer(&self) -> String {
        let number = self.socket.load(SeqCst);
        let peer = if number == GONE { None } else { peer_of(number) };
        peer.filter(|_| self.socket.load(SeqCst) == number).unwrap_or_default()
    }

    fn activity(&self) -> Activity {
        match self.stage.load(Relaxed) {
            WAITING => Activity::Idle,
            ASKED => Activity::Busy,
            _ if !self.is_used() => Activity::Idle,
            _ => Activity::Unknown,
        }
    }

    #[cfg(not(feature = "serve"))]
    fn state(&self) -> (Activity, u64) {
        (self.activity(), self.requests())
    }

    pub fn tell(&self) -> HeldConnection {
        let (activity, requests) = self.state();
        HeldConnection {
            peer: self.peer(),
            listener: self.listener.as_ref().to_owned(),
            held_since: self.held_since,
            activity,
            requests,
        }
    }
}

#[cfg(feature = "serve")]
impl Facts {
    fn tracker(&self) -> MutexGuard<'_, Weak<Tracker>> {
        // Every update is complete.
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a server runs it that is watched.
    pub fn attach(&self, tracker: &Arc<Tracker>) {
        *self.tracker() = Arc::downgrade(tracker);
    }

    /// The server has let it go, after so many requests.
    pub fn detach(&self, requests: u64) {
        let mut tracker = self.tracker();
        *tracker = Weak::new();
        self.requests.fetch_add(requests, Relaxed);
    }

    fn state(&self) -> (Activity, u64) {
        let attached = self.tracker();
        match attached.upgrade() {
            Some(tracker) => (tracker.activity(), self.requests() + tracker.requests()),
            None => (self.activity(), self.requests()),
        }
    }
}

/// The connections in hand, each in a place of its own, which is used again.
#[derive(Debug, Default)]
pub(super) struct Registry {
    places: Vec<Option<Arc<Facts>>>,
    free: Vec<usize>,
}

impl Registry {
    /// Its place.
    pub fn enter(&mut self, facts: Arc<Facts>) -> usize {
        match self.free.pop() {
            Some(place) => {
                self.places[place] = Some(facts);
                place
            }
            None => {
                self.places.push(Some(facts));
                self.places.len() - 1
            }
        }
    }

    pub fn leave(&mut self, place: usize) {
        self.places[place] = None;
        self.free.push(place);
    }

    pub fn all(&self) -> Vec<Arc<Facts>> {
        self.places.iter().flatten().map(Arc::clone).collect()
    }
}

/// Answers the master who asks what is in hand: those that are held longest, and how many more there
/// are. A queue that stays full is given up: the master does not wait long either. Whether all was sent.
pub(super) fn answer(link: &Link, round: u32) -> bool {
    let mut held = link.lock().registry.all();
    held.sort_by_key(|facts| facts.held_since);
    let rest = u32::try_from(held.len().saturating_sub(CONNECTIONS_MAX)).unwrap_or(u32::MAX);
    held.truncate(CONNECTIONS_MAX);
    let connections = held.iter().map(|facts| facts.tell()).collect();
    let until = now() + PATIENCE;
    let messages = Holding::messages(round, connections, rest);
    messages.iter().all(|message| send(link, &message.encode(), until))
}

/// Whether it was sent.
fn send(link: &Link, message: &[u8], until: Instant) -> bool {
    loop {
        match link.channel().send(message) {
            Ok(()) => return true,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        let left = until.saturating_duration_since(now());
        if left.is_zero() || wait_writable(link.channel().as_fd(), Some(left)).is_err() {
            return false;
        }
    }
}
