//! What a worker owes its master: counts, words, and at last DRAINED.
//!
//! One [`Link`] per worker, shared by the one who receives and by every connection. A connection
//! holds a [`Held`]: made when the message was received (`taken`), dropped when the connection was
//! closed (`finished`). Whoever makes the last condition of the drain true says DRAINED on the
//! spot, so that a program that ends right after its last connection has still said it.
//!
//! ```text
//! received ── silent ──first read──▶ asking ◀──write── answering      all of it: held
//!                                       └────────read────────▶│
//! ```
//!
//! A *silent* connection has not been read from yet: at a drain it is the one that must not be
//! closed without an answer, since its request may be on the way. One that was handed back after an
//! answer is idle, not silent.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::taker::microseconds;
use super::tell::tell;
use crate::wire::channel::End;
use crate::wire::message::{Past, ToMaster};
use crate::wire::scoreboard::SeatWords;

/// How long silent connections are waited for when the master is dead.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// The most that is kept back from the drain's deadline to close what stayed silent.
const MARGIN_MAX: Duration = Duration::from_secs(2);

/// A worker's side of the agreement.
#[derive(Debug)]
pub(super) struct Link {
    channel: End,
    seat: SeatWords,
    state: Mutex<State>,
    changed: Condvar,
    /// Readable from the beginning of the drain on, for those who wait in `poll`.
    bell: EventFd,
    retiring: AtomicBool,
    /// As the state has it, for those who look at every request.
    draining: AtomicBool,
    #[cfg(feature = "tokio")]
    notify: tokio::sync::Notify,
    /// Of the drain alone: every idle connection waits for it.
    #[cfg(feature = "tokio")]
    drained: tokio::sync::Notify,
    /// Whose turn it is to wait until the channel takes a hand-back.
    #[cfg(feature = "tokio")]
    pub turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Connections received and not yet closed.
    held: usize,
    /// Of these, the ones that nothing was read from yet.
    silent: usize,
    drain: Option<Drain>,
    /// Drained, and nothing in hand any more.
    over: bool,
}

/// The drain, once it has begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    /// When silent connections are given up; `None`: never.
    pub silent_until: Option<Instant>,
    /// The master takes connections back.
    pub handback: bool,
    /// The master is dead: nobody listens.
    orphaned: bool,
}

impl Drain {
    /// Told by the master, which cuts what is left after `deadline`.
    pub fn told(now: Instant, deadline: Duration, handback: bool) -> Drain {
        let grace = deadline.saturating_sub(MARGIN_MAX.min(deadline / 10));
        Drain { silent_until: now.checked_add(grace), handback, orphaned: false }
    }

    /// Concluded from the master's death.
    pub fn orphaned(now: Instant) -> Drain {
        let silent_until = now.checked_add(ORPHAN_GRACE);
        Drain { silent_until, handback: false, orphaned: true }
    }
}

impl Link {
    pub fn new(channel: End, seat: SeatWords) -> std::io::Result<Link> {
        Ok(Link {
            channel,
            seat,
            state: Mutex::default(),
            changed: Condvar::new(),
            bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            retiring: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            #[cfg(feature = "tokio")]
            notify: tokio::sync::Notify::new(),
            #[cfg(feature = "tokio")]
            drained: tokio::sync::Notify::new(),
            #[cfg(feature = "tokio")]
            turn: tokio::sync::Mutex::new(()),
        })
    }

    pub fn channel(&self) -> &End {
        &self.channel
    }

    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Says something to the master. What cannot be said is left unsaid: the queue is far longer
    /// than all that a serving worker ever owes, a dead master is learned of from the channel's
    /// end, and that a draining worker is done is learned from its exit, too.
    pub fn say(&self, message: &ToMaster) {
        if let Err(error) = self.channel.send(&message.encode()) {
            if error.kind() == std::io::ErrorKind::WouldBlock {
                tell!("the master does not read; {message:?} is left unsaid");
            }
        }
    }

    /// Asks to be replaced, once.
    pub fn retire(&self) {
        if !self.retiring.swap(true, Relaxed) {
            self.say(&ToMaster::Retire);
        }
    }

    /// One more message was received.
    pub fn note_progress(&self) {
        self.seat.add_progress();
    }

    /// One more connection was received. Before its first byte is read.
    pub fn hold(self: &Arc<Link>, past: Option<Past>) -> Held {
        let is_answered = past.is_some_and(|past| past.requests > 0);
        let mut state = self.lock();
        state.held += 1;
        state.silent += usize::from(!is_answered);
        drop(state);
        if self.seat.add_taken() {
            self.say(&ToMaster::Room);
        }
        Held {
            link: Arc::clone(self),
            is_handed_back: past.is_some(),
            requests: AtomicU64::new(past.map_or(0, |past| past.requests)),
            idle_since: AtomicU64::new(past.map_or_else(microseconds, |past| past.idle_since)),
            touched: AtomicBool::new(is_answered),
            used: AtomicBool::new(false),
            by_hand: AtomicBool::new(false),
            asking: AtomicBool::new(true),
            given_away: AtomicBool::new(false),
        }
    }

    /// One more request was begun.
    pub fn note_request(&self) {
        if self.seat.add_request() {
            self.retire();
        }
    }

    /// The master announced a connection that never arrived: taken and finished, so that the
    /// credit for it comes back.
    pub fn note_swallowed(self: &Arc<Link>) {
        drop(self.hold(None));
    }

    /// Begins the drain. Nothing is received any more.
    pub fn drain(&self, drain: Drain) {
        let mut state = self.lock();
        state.drain = Some(drain);
        self.settle(&mut state);
        drop(state);
        self.draining.store(true, SeqCst);
        // Only a counter near its maximum could refuse.
        let _ = self.bell.write(1);
        self.wake();
        #[cfg(feature = "tokio")]
        self.drained.notify_waiters();
    }

    #[cfg(feature = "serve")]
    pub fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    pub fn drain_told(&self) -> Option<Drain> {
        self.lock().drain
    }

    /// Waits until something has changed, at most for `limit`.
    pub fn wait_change(&self, limit: Duration) {
        let state = self.lock();
        let waited = self.changed.wait_timeout(state, limit);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until it is drained and nothing is in hand.
    pub fn wait_over(&self) {
        let mut state = self.lock();
        while !state.over {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// DRAINED is owed when it is drained and nothing is in hand; said at once, and once.
    fn settle(&self, state: &mut State) {
        if let (Some(drain), 0, false) = (state.drain, state.held, state.over) {
            state.over = true;
            if !drain.orphaned {
                self.say(&ToMaster::Drained);
            }
        }
    }

    fn wake(&self) {
        self.changed.notify_all();
        #[cfg(feature = "tokio")]
        self.notify.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under the lock, and every update is complete.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same waits without a thread.
#[cfg(feature = "tokio")]
impl Link {
    pub async fn until_over(&self) {
        self.until(&self.notify, |state| state.over).await;
    }

    pub async fn until_drain(&self) {
        self.until(&self.drained, |state| state.drain.is_some()).await;
    }

    /// Until it is drained and every connection in hand has been read from once.
    pub async fn until_no_silent(&self) {
        self.until(&self.notify, |state| state.drain.is_some() && state.silent == 0).await;
    }

    pub async fn until_change(&self) {
        self.notify.notified().await;
    }

    async fn until(&self, notify: &tokio::sync::Notify, reached: impl Fn(&State) -> bool) {
        loop {
            let mut notified = std::pin::pin!(notify.notified());
            // Enlisted before the look, so that no change falls between the two.
            notified.as_mut().enable();
            if reached(&self.lock()) {
                return;
            }
            notified.await;
        }
    }
}

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
}

impl Held {
    pub fn link(&self) -> &Arc<Link> {
        &self.link
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
            self.link.lock().silent -= 1;
            self.link.wake();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Counted before DRAINED can be said, which promises that the counters are final.
        if !*self.given_away.get_mut() && self.link.seat.add_finished() {
            self.link.say(&ToMaster::Room);
        }
        let mut state = self.link.lock();
        state.held -= 1;
        if !*self.touched.get_mut() {
            state.silent -= 1;
        }
        self.link.settle(&mut state);
        drop(state);
        self.link.wake();
    }
}
