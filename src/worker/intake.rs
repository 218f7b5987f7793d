//! Where threads take connections, to answer them on the spot.
//!
//! Whoever takes a connection answers it: no other thread is woken for that, which would cost more than
//! taking it. Threads that have nothing to do wait together at the [`Watch`], and one of them is woken for
//! whatever comes. It takes all that is there, since nobody is told of that again; what it does not
//! answer itself waits in the queue, for the next who is free.
//!
//! The master's messages are to be taken promptly, however long an answer takes. So *somebody always waits*:
//! before a thread leaves with a connection, it sees to it that another one is there. That is for those who
//! use this, `pool` and `connections`.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::link::Link;
use super::taker::{FULL_RETRY, Fresh, Taken, Taker};
use super::watch::Watch;

/// What the threads share.
pub(super) struct Intake {
    link: Arc<Link>,
    watch: Arc<Watch>,
    state: Mutex<State>,
}

/// What only one thread at a time may see.
pub(super) struct State {
    taker: Taker,
    /// Taken, and not answered yet.
    pub queue: VecDeque<Fresh>,
    /// Threads that are free for a connection: they wait, or have been woken and not looked yet.
    pub free: usize,
    /// Threads there are.
    pub threads: usize,
    /// Nothing more is taken: since the drain has begun, or the channel has failed.
    pub end: Option<io::Result<()>>,
    /// There was no descriptor for what is left, of which nobody is told again.
    pub is_full: bool,
}

impl Intake {
    /// One for at most `limit` connections at once. The calling thread counts as the first.
    pub fn new(link: &Arc<Link>, descriptor_limit: u64, limit: u32, watch: Watch) -> Intake {
        let watch = Arc::new(watch);
        let taker = Taker::at(Arc::clone(link), descriptor_limit, limit, Arc::clone(&watch));
        let (queue, free, threads) = (VecDeque::new(), 0, 1);
        let state = State { taker, queue, free, threads, end: None, is_full: false };
        Intake { link: Arc::clone(link), watch, state: Mutex::new(state) }
    }

    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes one of those who wait.
    pub fn call(&self) {
        self.watch.call();
    }

    /// Waits as one who is free, for at most `limit`. Whether all that time has passed.
    pub fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        limit: Option<Duration>,
    ) -> (MutexGuard<'a, State>, bool) {
        state.free += 1;
        let (mut state, is_timeout) = self.wait_at(&self.watch, state, limit);
        state.free -= 1;
        (state, is_timeout)
    }

    /// Waits there as one who is not.
    pub fn wait_at<'a>(
        &'a self,
        watch: &Watch,
        state: MutexGuard<'a, State>,
        limit: Option<Duration>,
    ) -> (MutexGuard<'a, State>, bool) {
        let is_full = state.is_full;
        drop(state);
        if is_full {
            self.link.wait_change(FULL_RETRY);
            return (self.lock(), false);
        }
        let waited = watch.wait(limit);
        let mut state = self.lock();
        match waited {
            Ok(events) => {
                state.taker.note(&events);
                (state, events.is_timeout)
            }
            Err(error) => {
                state.end.get_or_insert(Err(error));
                (state, false)
            }
        }
    }
}

impl State {
    /// Takes into the queue what this worker was told of.
    pub fn take(&mut self) {
        self.take_by(Taker::take, Taker::settle);
    }

    /// The same for one whom nobody else waits beside: whether to be woken for the next client is decided
    /// when it waits again.
    pub fn take_alone(&mut self) {
        self.take_by(Taker::take, |_| Ok(false));
        if self.queue.is_empty() {
            self.take();
        }
    }

    /// The same of messages alone.
    pub fn take_messages(&mut self) {
        self.take_by(Taker::take_message, |_| Ok(false));
    }

    /// Until nothing is there, and `settle` does not see more.
    fn take_by(
        &mut self,
        take: fn(&mut Taker) -> io::Result<Taken>,
        settle: fn(&mut Taker) -> io::Result<bool>,
    ) {
        self.is_full = false;
        while self.end.is_none() && !self.is_full {
            match take(&mut self.taker) {
                Ok(Taken::Connection(fresh)) => self.queue.push_back(fresh),
                Ok(Taken::Other) => {}
                Ok(Taken::Empty) => match settle(&mut self.taker) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => self.end = Some(Err(error)),
                },
                Ok(Taken::Full) => self.is_full = true,
                Ok(Taken::Over) => self.end = Some(Ok(())),
                Err(error) => self.end = Some(Err(error)),
            }
        }
    }
}
