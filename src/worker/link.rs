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
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::drain::Drain;
use super::held::Held;
use super::keeper::Keeper;
use super::ledger::Mark;
use super::registry::{Facts, Registry};
use super::tell::tell;
use crate::wire::channel::End;
use crate::wire::ledger::Ledger;
use crate::wire::message::{Past, ToMaster};
use crate::wire::scoreboard::SeatWords;

/// A worker's side of the agreement.
#[derive(Debug)]
pub(super) struct Link {
    channel: End,
    seat: SeatWords,
    /// What a crash would mean, where the pool has it.
    ledger: Option<Ledger>,
    state: Mutex<State>,
    changed: Condvar,
    /// How many wait for that. Whoever is about to wait says so under the lock.
    sleepers: AtomicUsize,
    /// Readable from the beginning of the drain on, for those who wait in `poll`.
    bell: EventFd,
    /// Readable when a connection has ended that was waited for.
    nudge: EventFd,
    /// The end of a connection is waited for.
    awaits_end: AtomicBool,
    retiring: AtomicBool,
    /// What was said when it became ready.
    ready: OnceLock<ToMaster>,
    /// What outlives the master.
    keeper: Arc<Keeper>,
    /// As the state has it, for those who look at every request.
    draining: AtomicBool,
    #[cfg(feature = "tokio")]
    pub notify: tokio::sync::Notify,
    /// Of the drain alone: every idle connection waits for it.
    #[cfg(feature = "tokio")]
    pub drained: tokio::sync::Notify,
    /// Whose turn it is to wait until the channel takes a hand-back.
    #[cfg(feature = "tokio")]
    pub turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Connections received and not yet closed.
    held: usize,
    /// Of these, the ones that nothing was read from yet.
    pub silent: usize,
    pub registry: Registry,
    pub drain: Option<Drain>,
    /// Drained, and nothing in hand any more: it was said.
    pub drained: bool,
    /// The master says when all that was said is heard; until then this process is to live on.
    pub awaits_bye: bool,
    /// The program may end.
    pub over: bool,
}

impl Link {
    pub fn new(channel: End, seat: SeatWords) -> std::io::Result<Link> {
        Ok(Link {
            channel,
            seat,
            ledger: None,
            state: Mutex::default(),
            changed: Condvar::new(),
            sleepers: AtomicUsize::new(0),
            bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            nudge: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            awaits_end: AtomicBool::new(false),
            retiring: AtomicBool::new(false),
            ready: OnceLock::new(),
            keeper: Arc::new(Keeper::new()?),
            draining: AtomicBool::new(false),
            #[cfg(feature = "tokio")]
            notify: tokio::sync::Notify::new(),
            #[cfg(feature = "tokio")]
            drained: tokio::sync::Notify::new(),
            #[cfg(feature = "tokio")]
            turn: tokio::sync::Mutex::new(()),
        })
    }

    pub fn with_ledger(mut self, ledger: Option<Ledger>) -> Link {
        self.ledger = ledger;
        self
    }

    pub fn has_ledger(&self) -> bool {
        self.ledger.is_some()
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

    /// Says READY, now and whenever the next master asks.
    pub fn say_ready(&self, ready: ToMaster) {
        self.say(self.ready.get_or_init(|| ready));
    }

    pub fn ready(&self) -> Option<ToMaster> {
        self.ready.get().cloned()
    }

    pub fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// The memory of the scoreboard.
    pub fn board(&self) -> BorrowedFd<'_> {
        self.seat.as_fd()
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

    /// One more connection was received, by this listener, with a socket of this number. Before its
    /// first byte is read.
    pub fn hold(
        self: &Arc<Link>,
        listener: &Arc<str>,
        socket: Option<i32>,
        past: Option<Past>,
        entry: Option<u32>,
    ) -> Held {
        let held = self.enter(listener, socket, past, entry);
        if self.seat.add_taken() {
            self.say(&ToMaster::Room);
        }
        held
    }

    /// The same of one that was accepted here, and is counted by now.
    pub fn hold_accepted(self: &Arc<Link>, listener: &Arc<str>, socket: i32) -> Held {
        self.enter(listener, Some(socket), None, None)
    }

    fn enter(
        self: &Arc<Link>,
        listener: &Arc<str>,
        socket: Option<i32>,
        past: Option<Past>,
        entry: Option<u32>,
    ) -> Held {
        let facts = Arc::new(Facts::new(Arc::clone(listener), socket, past));
        let mut state = self.lock();
        state.held += 1;
        state.silent += usize::from(facts.requests() == 0);
        let place = state.registry.enter(Arc::clone(&facts));
        drop(state);
        let mark = Mark::new(self.ledger.as_ref(), entry);
        Held::new(Arc::clone(self), (facts, place), past, mark)
    }

    /// One of the silent ones has been read from.
    pub fn note_touched(&self) {
        self.lock().silent -= 1;
        self.wake();
    }

    /// One is in hand no longer: finished, or given away.
    pub fn let_go(&self, place: usize, is_finished: bool, was_silent: bool) {
        // Counted before DRAINED can be said, which promises that the counters are final.
        if is_finished && self.seat.add_finished() {
            self.say(&ToMaster::Room);
        }
        self.tell_end();
        let mut state = self.lock();
        state.held -= 1;
        state.silent -= usize::from(was_silent);
        state.registry.leave(place);
        self.settle(&mut state);
        drop(state);
        self.wake();
    }

    /// From now on the end of the next connection makes [`Link::nudge`] readable. Who waits for that looks
    /// at the counters once more after this.
    pub fn await_end(&self) {
        self.awaits_end.store(true, SeqCst);
    }

    /// Readable when a connection has ended that was waited for.
    pub fn nudge(&self) -> &EventFd {
        &self.nudge
    }

    /// A connection is counted as ended.
    fn tell_end(&self) {
        if self.awaits_end.load(SeqCst) && self.awaits_end.swap(false, SeqCst) {
            // Only a counter near its maximum could refuse.
            let _ = self.nudge.write(1);
        }
    }

    /// What this worker counts.
    pub fn seat(&self) -> &SeatWords {
        &self.seat
    }

    /// One more request was begun.
    pub fn note_request(&self) {
        if self.seat.add_request() {
            self.retire();
        }
    }

    /// The master announced a connection that never arrived: taken and finished, so that the
    /// credit for it comes back.
    pub fn note_swallowed(self: &Arc<Link>, entry: Option<u32>) {
        drop(self.hold(&Arc::from(""), None, None, entry));
    }

    /// One more connection went back to the master.
    pub fn note_handed_back(&self) {
        self.seat.add_handed_back();
    }

    /// Begins the drain: the taker has received its last message.
    pub fn drain(&self, drain: Drain) {
        let mut state = self.lock();
        state.drain = Some(drain);
        self.settle(&mut state);
        drop(state);
        self.draining.store(true, SeqCst);
        // Only a counter near its maximum could refuse.
        let _ = self.bell.write(1);
        self.keeper.ring();
        self.wake();
        #[cfg(feature = "tokio")]
        self.drained.notify_waiters();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    pub fn drain_told(&self) -> Option<Drain> {
        self.lock().drain
    }

    /// Waits until something has changed, at most for `limit`.
    pub fn wait_change(&self, limit: Duration) {
        let state = self.lock();
        self.sleepers.fetch_add(1, SeqCst);
        let waited = self.changed.wait_timeout(state, limit);
        self.sleepers.fetch_sub(1, SeqCst);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until it is drained, nothing is in hand, and the master knows.
    pub fn wait_over(&self) {
        let mut state = self.lock();
        self.sleepers.fetch_add(1, SeqCst);
        while !state.over {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, SeqCst);
    }

    /// DRAINED is owed when it is drained and nothing is in hand; said at once, and once.
    pub fn settle(&self, state: &mut State) {
        if let (Some(drain), 0, false) = (state.drain, state.held, state.over) {
            if !drain.orphaned && !std::mem::replace(&mut state.drained, true) {
                self.say(&ToMaster::Drained);
            }
            state.over = drain.orphaned || !state.awaits_bye;
            if state.over {
                self.keeper.ring();
            }
        }
    }

    /// Tells those who wait that the state has changed.
    pub fn wake(&self) {
        // Which is a system call, even if nobody does.
        if self.sleepers.load(SeqCst) > 0 {
            self.changed.notify_all();
        }
        #[cfg(feature = "tokio")]
        self.notify.notify_waiters();
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under the lock, and every update is complete.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a worker that outlives its master owes.
impl Link {
    /// The master will say when all is heard.
    pub fn await_bye(&self) {
        self.lock().awaits_bye = true;
    }

    /// It was said, or nobody will say it.
    pub fn await_nothing(&self) {
        let mut state = self.lock();
        state.awaits_bye = false;
        self.settle(&mut state);
        drop(state);
        self.wake();
    }

    /// Nobody takes connections back any more.
    pub fn keep_all(&self) {
        if let Some(drain) = &mut self.lock().drain {
            drain.handback = false;
        }
    }

    /// DRAINED was said, to whomever.
    pub fn is_drained(&self) -> bool {
        self.lock().drained
    }

    pub fn is_over(&self) -> bool {
        self.lock().over
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Its thread sees that there is nothing left to keep.
        self.keeper.ring();
    }
}
