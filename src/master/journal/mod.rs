//! What is said: by the master, one record per transition, and by the workers, a record per line.
//!
//! ```text
//!  dispatch thread ── records ───┐
//!                   (mailbox)    ▼
//!                            log thread ── records ──▶ journal thread ──▶ journald, or stderr
//!                                ▲           (bounded queue)
//!  workers ── lines (pipes) ─────┘
//! ```
//!
//! Whoever reads may be slow, or stopped, and then a write waits for as long as it takes: so only
//! the journal thread writes. Behind it the log thread waits for room, for a second; then it drops,
//! counts, and says so. The dispatch thread never waits.
//!
//! Under journald a record is sent with its fields (`entry.rs` lists them); on a terminal it is a
//! line, coloured by level; elsewhere it carries the time.

mod entry;
mod id;
mod lines;
mod mailbox;
mod queue;
mod relay;
mod writer;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

pub(crate) use entry::*;
pub(crate) use id::MessageId;
pub(crate) use lines::Lines;
use mailbox::Mailbox;
use queue::Queue;
pub(crate) use relay::Followed;
use relay::{Order, Relay};
use writer::Style;

/// Records of the master's own that wait for the log thread at most.
const UNSAID_MAX: usize = 1024;
/// How long the last records may take to be written.
const LAST_RECORDS: Duration = Duration::from_secs(1);

/// The dispatch thread's side of the journal.
pub(crate) struct Journal {
    orders: Arc<Mailbox<Order>>,
    ended: Arc<Mailbox<u64>>,
    queue: Arc<Queue>,
    style: Style,
    /// Says when everything is written.
    done: Receiver<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Journal {
    /// Starts the log thread and the journal thread.
    ///
    /// # Errors
    /// When the system has no threads or descriptors left.
    pub(crate) fn start() -> std::io::Result<Journal> {
        let style = Style::of_stderr();
        let orders = Arc::new(Mailbox::new()?);
        let ended = Arc::new(Mailbox::new()?);
        let queue = Arc::new(Queue::default());
        let relay = Relay::new(Arc::clone(&orders), Arc::clone(&ended), Arc::clone(&queue))?;
        let (finished, done) = sync_channel(1);
        let (lines, how) = (Arc::clone(&queue), style.clone());
        let journal = std::thread::Builder::new().name("journal".into()).spawn(move || {
            writer::write_all(&lines, &how);
            // Nobody waits for it any more, where this fails.
            let _ = finished.send(());
        })?;
        let log = std::thread::Builder::new().name("log".into()).spawn(move || relay.run())?;
        let threads = vec![log, journal];
        Ok(Journal { orders, ended, queue, style, done, threads })
    }

    /// What the journal calls this service, where it is the journal that listens.
    pub(crate) fn identifier(&self) -> Option<&str> {
        match &self.style {
            Style::Journal { identifier } => Some(identifier),
            Style::Terminal | Style::Plain => None,
        }
    }

    /// Writes a record, some time soon.
    pub(crate) fn say(&self, entry: Entry) {
        self.order(entry, Order::Say);
    }

    /// Writes a record after what has come through this pipe until now.
    pub(crate) fn say_after(&self, pipe: u64, entry: Entry) {
        self.order(entry, |entry| Order::SayAfter(pipe, entry));
    }

    fn order(&self, entry: Entry, order: impl Fn(Entry) -> Order) {
        if self.orders.len() < UNSAID_MAX {
            self.orders.put(order(entry));
        } else {
            self.queue.drop_one(&entry);
        }
    }

    /// Relays what comes through a worker's pipe, until its end. The number is the caller's, who
    /// never uses it twice.
    pub(crate) fn follow(&self, pipe: u64, origin: Origin, read: OwnedFd) {
        let (origin, lines) = (Arc::new(origin), Lines::default());
        self.orders.put(Order::Follow(Followed { id: pipe, origin, pipe: read, lines }));
    }

    /// Goes on with a pipe that another log thread has read before.
    pub(crate) fn follow_on(&self, followed: Followed) {
        self.orders.put(Order::Follow(followed));
    }

    /// Ends both threads, with everything written that was said, and answers the pipes; and whether
    /// all was written: not if whoever reads takes nothing for a second. Nothing may be said after
    /// this.
    pub(crate) fn suspend(&mut self) -> (Vec<Followed>, bool) {
        let (heir, followed) = sync_channel(1);
        self.orders.put(Order::Suspend(heir));
        // The log thread waits for room for a second at most.
        let followed = followed.recv().unwrap_or_default();
        let is_written = self.done.recv_timeout(LAST_RECORDS).is_ok();
        for thread in self.threads.drain(..).filter(|_| is_written) {
            // A panic of its own has been printed.
            let _ = thread.join();
        }
        (followed, is_written)
    }

    /// The pipes that have ended since, or cannot be read any more. The journal is readable when
    /// there are some.
    pub(crate) fn ended(&self) -> impl Iterator<Item = u64> {
        self.ended.take().into_iter()
    }
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Drop for Journal {
    /// Waits until everything that was said is written, but not for ever: a reader who does not
    /// read must not keep the service from ending.
    fn drop(&mut self) {
        if self.threads.is_empty() {
            return;
        }
        self.orders.put(Order::End);
        let _ = self.done.recv_timeout(LAST_RECORDS);
    }
}
