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
//! closed without an answer, since its request may be on the way.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::tell::tell;
use crate::wire::channel::End;
use crate::wire::message::ToMaster;
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
    #[cfg(feature = "tokio")]
    notify: tokio::sync::Notify,
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
    /// The master is dead: nobody listens.
    orphaned: bool,
}

impl Drain {
    /// Told by the master, which cuts what is left after `deadline`.
    pub fn told(now: Instant, deadline: Duration) -> Drain {
        let grace = deadline.saturating_sub(MARGIN_MAX.min(deadline / 10));
        Drain { silent_until: now.checked_add(grace), orphaned: false }
    }

    /// Concluded from the master's death.
    pub fn orphaned(now: Instant) -> Drain {
        Drain { silent_until: now.checked_add(ORPHAN_GRACE), orphaned: true }
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
            #[cfg(feature = "tokio")]
            notify: tokio::sync::Notify::new(),
        })
    }

    pub fn channel(&self) -> &End {
        &self.channel
    }

    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Says something to the master. What cannot be said is left unsaid: the queue is far longer
    /// than all that a worker ever owes, and a dead master is learned of from the channel's end.
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
    pub fn hold(self: &Arc<Link>) -> Held {
        let mut state = self.lock();
        state.held += 1;
        state.silent += 1;
        drop(state);
        if self.seat.add_taken() {
            self.say(&ToMaster::Room);
        }
        Held {
            link: Arc::clone(self),
            touched: AtomicBool::new(false),
            asking: AtomicBool::new(true),
        }
    }

    /// The master announced a connection that never arrived: taken and finished, so that the
    /// credit for it comes back.
    pub fn note_swallowed(self: &Arc<Link>) {
        drop(self.hold());
    }

    /// Begins the drain. Nothing is received any more.
    pub fn drain(&self, drain: Drain) {
        let mut state = self.lock();
        state.drain = Some(drain);
        self.settle(&mut state);
        drop(state);
        // Only a counter near its maximum could refuse.
        let _ = self.bell.write(1);
        self.wake();
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
        self.until(|state| state.over).await;
    }

    pub async fn until_drain(&self) {
        self.until(|state| state.drain.is_some()).await;
    }

    /// Until it is drained and every connection in hand has been read from once.
    pub async fn until_no_silent(&self) {
        self.until(|state| state.drain.is_some() && state.silent == 0).await;
    }

    pub async fn until_change(&self) {
        self.notify.notified().await;
    }

    async fn until(&self, reached: impl Fn(&State) -> bool) {
        loop {
            let mut notified = std::pin::pin!(self.notify.notified());
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
    touched: AtomicBool,
    /// The next byte read begins a request.
    asking: AtomicBool,
}

impl Held {
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Something was read from it: bytes, the end or a failure.
    pub fn is_touched(&self) -> bool {
        self.touched.load(Relaxed)
    }

    /// A read brought `count` bytes, or the end.
    pub fn note_read(&self, count: usize) {
        let begins = count > 0 && self.asking.load(Relaxed) && self.asking.swap(false, Relaxed);
        if begins && self.link.seat.add_request() {
            self.link.retire();
        }
        self.touch();
    }

    /// A write took bytes: what is read after it is the next request.
    pub fn note_write(&self) {
        if !self.asking.load(Relaxed) {
            self.asking.store(true, Relaxed);
        }
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
        if self.link.seat.add_finished() {
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
