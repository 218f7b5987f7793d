//! The log thread: reads workers' output and puts everything that is said into one order.
//!
//! It watches the read ends of the workers' pipes and a mailbox, through which the dispatch thread
//! says its own records and hands over new pipes. So a worker's start is said before its first line;
//! and a record about its end is put after what it has written until then, its last words included.
//!
//! When the queue before the writer is full, it waits for room, for [`PATIENCE`]: meanwhile the
//! pipes are not read, fill up, and make the workers wait. A record that found no room in that time
//! is dropped and counted, and so are those after it, without waiting, until there is room again.
//!
//! A pipe is read until its end, which comes when the last process has closed it that inherited it;
//! a worker's children may write on when it is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::entry::{Entry, LINE_BREAK, Level, Origin};
use super::lines::{Lines, Piece};
use super::mailbox::Mailbox;
use super::queue::Queue;
use crate::sys::poller::Poller;

/// How long the pipes are not read because records have no room.
const PATIENCE: Duration = Duration::from_secs(1);
/// Read at once from one pipe, bytes.
const CHUNK: usize = 64 * 1024;
/// Read of a pipe before a record about its worker's end: what a pipe holds, unless it was enlarged.
const CHUNKS_AT_END: usize = 4;
/// The mailbox, where pipes are known by their numbers.
const MAILBOX: u64 = u64::MAX - 1;

/// What the dispatch thread wants.
#[derive(Debug)]
pub(super) enum Order {
    Say(Entry),
    /// Say it after what has come through this pipe.
    SayAfter(u64, Entry),
    /// Relay what comes through this pipe, under a number that was never used.
    Follow(Followed),
    /// Say what has been said until now, give back the pipes as they are, and end.
    Suspend(SyncSender<Vec<Followed>>),
    End,
}

/// A worker's pipe, as it goes from one log thread to the next.
#[derive(Debug)]
pub(crate) struct Followed {
    /// Never used twice.
    pub(crate) id: u64,
    pub(crate) origin: Arc<Origin>,
    pub(crate) pipe: OwnedFd,
    /// What was read of it and is no record yet.
    pub(crate) lines: Lines,
}

/// A worker's pipe.
#[derive(Debug)]
struct Source {
    pipe: OwnedFd,
    origin: Arc<Origin>,
    lines: Lines,
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

pub(super) struct Relay {
    poller: Poller,
    orders: Arc<Mailbox<Order>>,
    /// Pipes that have ended.
    ended: Arc<Mailbox<u64>>,
    outlet: Outlet,
    sources: BTreeMap<u64, Source>,
    /// When to look whether a pipe was quiet.
    quiet: BTreeSet<(Instant, u64)>,
    buffer: Vec<u8>,
}

/// The queue before the writer, as the log thread fills it.
struct Outlet {
    queue: Arc<Queue>,
    /// The last record found no room.
    is_stalled: bool,
}

impl Outlet {
    fn put(&mut self, entry: Entry) {
        let patience = if self.is_stalled { Duration::ZERO } else { PATIENCE };
        self.is_stalled = !self.queue.push(entry, patience);
    }

    fn put_piece(&mut self, piece: Piece, origin: &Arc<Origin>) {
        let entry = Entry::words(piece.level, piece.text, Arc::clone(origin));
        self.put(match piece.line_break {
            Some(line_break) => entry.with(LINE_BREAK, line_break.as_str()),
            None => entry,
        });
    }
}

/// Whether a pipe has more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    More,
    Nothing,
    Ended,
}

impl Relay {
    /// # Errors
    /// When the system has no descriptors left.
    pub(super) fn new(
        orders: Arc<Mailbox<Order>>,
        ended: Arc<Mailbox<u64>>,
        queue: Arc<Queue>,
    ) -> std::io::Result<Relay> {
        let poller = Poller::new()?;
        poller.add(&*orders, MAILBOX)?;
        let outlet = Outlet { queue, is_stalled: false };
        let (sources, quiet) = (BTreeMap::new(), BTreeSet::new());
        Ok(Relay { poller, orders, ended, outlet, sources, quiet, buffer: vec![0; CHUNK] })
    }

    /// Runs until it is told to end, and then says what has been written until now.
    pub(super) fn run(mut self) {
        let mut ready = Vec::new();
        let mut now = clock();
        let mut is_over = false;
        let mut heir = None;
        while !is_over {
            let deadline = self.quiet.first().map(|(at, _)| *at);
            if let Err(error) = self.poller.wait(now, deadline, &mut ready) {
                let text = format!("workers' output cannot be watched any more: {error}");
                self.outlet.put(Entry::new(Level::Error, text));
                break;
            }
            now = clock();
            for token in ready.drain(..) {
                if token == MAILBOX {
                    (is_over, heir) = self.obey(now);
                    if is_over {
                        break;
                    }
                } else if self.read(token, now) == Reading::Ended {
                    self.end(token);
                }
            }
            self.settle_quiet(now);
        }
        if let Some(heir) = heir {
            self.outlet.queue.close();
            return self.hand_over(&heir);
        }
        for (id, mut source) in std::mem::take(&mut self.sources) {
            self.read_last(&mut source, now);
            source.lines.finish(&mut |piece| self.outlet.put_piece(piece, &source.origin));
            self.ended.put(id);
        }
        self.outlet.queue.close();
    }

    /// Gives the pipes to the one who goes on with them.
    fn hand_over(self, heir: &SyncSender<Vec<Followed>>) {
        let followed = self
            .sources
            .into_iter()
            .map(|(id, Source { pipe, origin, lines })| Followed { id, origin, pipe, lines });
        // Nobody waits for them any more, where this fails.
        let _ = heir.send(followed.collect());
    }

    /// Carries out all orders; whether it is the end, and who wants the pipes then.
    fn obey(&mut self, now: Instant) -> (bool, Option<SyncSender<Vec<Followed>>>) {
        for order in self.orders.take() {
            match order {
                Order::Say(entry) => self.outlet.put(entry),
                Order::SayAfter(id, entry) => {
                    self.catch_up(id, now);
                    self.outlet.put(entry);
                }
                Order::Follow(followed) => self.follow(followed, now),
                Order::Suspend(heir) => return (true, Some(heir)),
                Order::End => return (true, None),
            }
        }
        (false, None)
    }

    fn follow(&mut self, followed: Followed, now: Instant) {
        let Followed { id, origin, pipe, mut lines } = followed;
        lines.resume(now);
        if let Some(deadline) = lines.deadline() {
            self.quiet.insert((deadline, id));
        }
        let source = Source { pipe, origin, lines };
        if let Err(error) = self.poller.add(&source, id) {
            let text = format!("the output of {} cannot be watched: {error}", source.origin);
            self.outlet.put(Entry::new(Level::Error, text));
            self.ended.put(id);
            return;
        }
        self.sources.insert(id, source);
    }

    /// Reads what a pipe has, once.
    fn read(&mut self, id: u64, now: Instant) -> Reading {
        let Some(source) = self.sources.get_mut(&id) else { return Reading::Nothing };
        let was_waiting = source.lines.deadline().is_some();
        let outlet = &mut self.outlet;
        let reading = read_once(source, &mut self.buffer, now, outlet);
        if let (false, Some(deadline)) = (was_waiting, source.lines.deadline()) {
            self.quiet.insert((deadline, id));
        }
        reading
    }

    /// Says all that a pipe has now.
    fn catch_up(&mut self, id: u64, now: Instant) {
        for _ in 0..CHUNKS_AT_END {
            match self.read(id, now) {
                Reading::More => {}
                Reading::Nothing => break,
                Reading::Ended => return self.end(id),
            }
        }
        if let Some(source) = self.sources.get_mut(&id) {
            source.lines.settle(&mut |piece| self.outlet.put_piece(piece, &source.origin));
        }
    }

    fn read_last(&mut self, source: &mut Source, now: Instant) {
        for _ in 0..CHUNKS_AT_END {
            let reading = read_once(source, &mut self.buffer, now, &mut self.outlet);
            if reading != Reading::More {
                return;
            }
        }
    }

    fn end(&mut self, id: u64) {
        let Some(mut source) = self.sources.remove(&id) else { return };
        source.lines.finish(&mut |piece| self.outlet.put_piece(piece, &source.origin));
        if let Err(error) = self.poller.remove(&source) {
            let text = format!("the output of {} cannot be unwatched: {error}", source.origin);
            self.outlet.put(Entry::new(Level::Error, text));
        }
        self.ended.put(id);
    }

    /// Records of workers that were quiet for a while are whole.
    fn settle_quiet(&mut self, now: Instant) {
        while let Some(&(_, id)) = self.quiet.first().filter(|(at, _)| *at <= now) {
            self.quiet.pop_first();
            let Some(source) = self.sources.get_mut(&id) else { continue };
            match source.lines.deadline() {
                None => {}
                // It has spoken since.
                Some(deadline) if deadline > now => drop(self.quiet.insert((deadline, id))),
                Some(_) => {
                    source.lines.settle(&mut |piece| self.outlet.put_piece(piece, &source.origin));
                }
            }
        }
    }
}

fn read_once(source: &mut Source, buffer: &mut [u8], now: Instant, outlet: &mut Outlet) -> Reading {
    let Source { pipe, origin, lines } = source;
    let count = loop {
        match nix::unistd::read(&*pipe, buffer) {
            Ok(0) => return Reading::Ended,
            Ok(count) => break count,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Reading::Nothing,
            Err(error) => {
                let text = format!("the output of {origin} cannot be read: {error}");
                outlet.put(Entry::new(Level::Error, text));
                return Reading::Ended;
            }
        }
    };
    lines.feed(&buffer[..count], now, &mut |piece| outlet.put_piece(piece, origin));
    Reading::More
}

#[expect(clippy::disallowed_methods, reason = "the log thread has a loop of its own")]
fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
