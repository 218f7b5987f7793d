//! The library for programs that are started as workers.
//!
//! A worker says READY, receives connections over its channel (or accepts them, where the master lets
//! it), answers them, and on DRAIN finishes what it has in hand and leaves. It never stops early: when the
//! master dies it serves on and waits for the next one; when none comes, it finishes what it has.
//!
//! ```text
//!             ┌ ready()         a thread per connection, from a pool
//! channel ─▶ taker ─▶ connections()   an iterator, for threads of your own
//! listeners ─┘├ into_incoming() tokio streams           (feature `tokio`)
//!             ├ serve(app)      HTTP by hyper           (feature `serve`)
//!             └ into_listener() for `axum::serve`       (feature `axum`)
//!                  └─ every connection holds a place in the link, which counts and says DRAINED
//! ```
//!
//! * `link`, `held`, `drain`: what is owed to the master. · `taker`: messages in.
//! * `acceptor`, `listeners`: clients in, where workers accept by themselves; `balance`, `bell`: and when they stay away.
//! * `watch`, `intake`: where threads wait and take; `pool`, `connections`: and what they do then.
//! * `keeper`, `orphan`: from one master to the next. · `ledger`: what a crash would mean.
//! * `registry`: what is in hand, for those who wonder.
//! * `handback`: live connections out, to the next worker. · `serve`: HTTP, and when it can leave.
//! * `tell`: words for the log.
//! * `connection` (of a `plain` socket), `stream`, `address`: what an author sees.
//!
//! The blocking core knows nothing of tokio, and needs nix alone.
#![warn(clippy::print_stderr, reason = "it panics when stderr is gone; see `tell`")]

mod acceptor;
mod address;
#[cfg(feature = "axum")]
mod axum;
mod balance;
mod bell;
mod connection;
mod connections;
mod drain;
mod handback;
mod held;
mod intake;
mod keeper;
mod ledger;
mod link;
mod listeners;
mod orphan;
mod plain;
mod pool;
mod registry;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "tokio")]
mod socket;
#[cfg(feature = "tokio")]
mod stream;
mod taker;
mod tell;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(feature = "tokio")]
mod tokio;
mod watch;

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

pub use self::address::Address;
#[cfg(feature = "axum")]
pub use self::axum::{Channel, HandBack, Io, Listener, Watched, hand_back};
pub use self::connection::{Connection, Wait};
pub use self::connections::Connections;
pub use self::handback::Kept;
#[cfg(feature = "serve")]
pub use self::serve::{App, body::RequestBody, peer::Peer, serve};
#[cfg(feature = "tokio")]
pub use self::stream::Stream;
#[cfg(feature = "tokio")]
pub use self::tokio::{Draining, Incoming};

use self::intake::Intake;
use self::link::Link;
use self::pool::Pool;
use self::taker::Fresh;
use self::tell::tell;
use self::watch::Watch;
use crate::error::{Error, Result};
use crate::sys::ancillary::take_from_env;
use crate::sys::limits::raise_descriptor_limit;
use crate::wire::channel::End;
use crate::wire::ledger::Ledger;
use crate::wire::message::{Ready, ToMaster};
use crate::wire::scoreboard::{STRIDE, Scoreboard};
use crate::wire::{
    CHANNEL_VARIABLE, GENERATION_VARIABLE, LEDGER_VARIABLE, POOL_VARIABLE, SCOREBOARD_VARIABLE,
    SEAT_VARIABLE, SLOT_VARIABLE,
};

/// Threads that [`Worker::ready`] uses at most, unless told otherwise.
pub const THREADS_DEFAULT: u32 = 256;

/// This process as a worker of rcluster.
///
/// ```no_run
/// use std::io::Write;
///
/// fn main() -> rcluster::Result<()> {
///     rcluster::Worker::from_env()?.ready(|mut connection| connection.write_all(b"hello\n"))
/// }
/// ```
#[derive(Debug)]
pub struct Worker {
    link: Arc<Link>,
    place: Place,
    /// The board's size, told in READY.
    board: u32,
    descriptor_limit: u64,
    threads: u32,
    limit: Option<u32>,
    /// Connections are handed out when their first bytes are there.
    #[cfg(feature = "tokio")]
    readable: bool,
    /// Somebody was promised to learn of the drain.
    #[cfg(feature = "tokio")]
    graceful: AtomicBool,
}

/// Where in the cluster this worker stands.
#[derive(Clone, Debug, Default)]
struct Place {
    pool: String,
    slot: u32,
    generation: u64,
}

impl Worker {
    /// Takes the channel that the master left for this process. Once per process.
    ///
    /// Raises the soft limit of open descriptors to the hard one, since every connection is one.
    ///
    /// # Errors
    /// When this process was not started by rcluster, when it has been called before, or when the
    /// master is of another layout than this library knows.
    pub fn from_env() -> Result<Worker> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if std::env::var_os(CHANNEL_VARIABLE).is_none() {
            return Err(Error::new(
                "this program is a worker: start it with `rcluster run -- COMMAND`, which hands \
                 it its connections",
            ));
        }
        let seat: Option<u32> = number(SEAT_VARIABLE)?;
        let seat = seat.ok_or_else(|| Error::new(format!("{SEAT_VARIABLE} is not set")))?;
        let place = Place {
            pool: std::env::var(POOL_VARIABLE).unwrap_or_default(),
            slot: number(SLOT_VARIABLE)?.unwrap_or_default(),
            generation: number(GENERATION_VARIABLE)?.unwrap_or_default(),
        };
        if TAKEN.swap(true, SeqCst) {
            return Err(Error::new("the worker's channel was taken before; keep the first Worker"));
        }
        let take = |name: &str| {
            let sentence = "cannot take over what the master handed to this worker";
            take_from_env(name).map_err(|error| Error::new(sentence).because(error))
        };
        let channel = End::new(take(CHANNEL_VARIABLE)?);
        let board = Scoreboard::open(take(SCOREBOARD_VARIABLE)?).map_err(|error| {
            Error::new(
                "the rcluster that started this worker counts differently; build the worker with \
                 the rcluster crate of the installed version",
            )
            .because(error)
        })?;
        let ledger = open_ledger();
        Worker::new(channel, &board, seat, place, ledger)
    }

    fn new(
        channel: End,
        board: &Scoreboard,
        seat: u32,
        place: Place,
        ledger: Option<Ledger>,
    ) -> Result<Worker> {
        let words = board.seat(seat)?;
        Ok(Worker {
            link: Arc::new(Link::new(channel, words)?.with_ledger(ledger)),
            place,
            board: u32::try_from(board.size()).unwrap_or(u32::MAX),
            descriptor_limit: raise_descriptor_limit()?,
            threads: THREADS_DEFAULT,
            limit: None,
            #[cfg(feature = "tokio")]
            readable: false,
            #[cfg(feature = "tokio")]
            graceful: AtomicBool::new(false),
        })
    }

    /// The name of the pool that this worker belongs to.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.place.pool
    }

    /// The slot that it fills, from 1.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.place.slot
    }

    /// The generation that it was started for.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.place.generation
    }

    /// How many threads [`Worker::ready`] uses at most, at least one. They are started on demand.
    /// A connection occupies its thread to its end, idle or not, so this is also how many
    /// connections the worker holds.
    #[must_use]
    pub fn threads(self, threads: u32) -> Worker {
        Worker { threads: threads.max(1), ..self }
    }

    /// How many connections this worker holds at once, at least one: the master sends no more.
    ///
    /// Unless told otherwise: with [`Worker::ready`] one per thread, with [`Worker::connections`]
    /// one, with tokio as many as half of the descriptors that the process may open. Never more
    /// than that half: handlers need descriptors, too.
    #[must_use]
    pub fn limit(self, connections: u32) -> Worker {
        Worker { limit: Some(connections.max(1)), ..self }
    }

    /// Something to keep while the worker serves: it asks for a replacement.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.link))
    }

    /// Says READY and has every connection handled until drained, each by one thread, of which the calling
    /// one is the first: whichever takes a connection handles it.
    ///
    /// What the handler returns is dropped: that a client hung up is no event. A handler that
    /// panics loses its connection alone.
    ///
    /// Answers when the master said DRAIN (or died, and no other came) and every connection is
    /// closed or handed back.
    ///
    /// # Errors
    /// When the channel fails, and when the system has no descriptors left.
    pub fn ready<R>(self, handler: impl Fn(Connection) -> R + Send + Sync + 'static) -> Result<()> {
        let threads = self.bounded(self.threads);
        let limit = self.limit.map_or(threads, |limit| self.bounded(limit));
        let watch = Watch::several(&self.link)?;
        let intake = Intake::new(&self.link, self.descriptor_limit, limit, watch);
        let handler = move |connection| drop(handler(connection));
        let pool = Pool::new(intake, threads as usize, Box::new(handler));
        self.say_ready(limit);
        pool.run()?;
        self.link.wait_over();
        Ok(())
    }

    /// Says READY and lends the connections out, for programs with threads of their own. The thread that
    /// iterates takes them itself; one of the library's stands in for it while it is away.
    ///
    /// [`Worker::limit`] says how many may be out at once, one if nothing is said: right for a
    /// loop that answers one after the other.
    ///
    /// # Errors
    /// When the system refuses that thread, or has no descriptors left.
    pub fn connections(self) -> Result<Connections> {
        let limit = self.bounded(self.limit.unwrap_or(1));
        let connections = Connections::new(&self.link, self.descriptor_limit, limit)?;
        self.say_ready(limit);
        Ok(connections)
    }

    /// Tells the master that this worker is ready and how many connections it holds.
    fn say_ready(&self, limit: u32) {
        let ready = Ready {
            limit,
            stride: u32::try_from(STRIDE).unwrap_or(u32::MAX),
            board: self.board,
            handback: true,
            ledger: self.link.has_ledger(),
            adoption: true,
            draining: false,
            tells: true,
            accepts: true,
        };
        self.link.say_ready(ToMaster::Ready(ready));
    }

    /// `limit`, as far as half of the descriptor table allows.
    fn bounded(&self, limit: u32) -> u32 {
        let half = u32::try_from(self.descriptor_limit / 2).unwrap_or(u32::MAX);
        limit.min(half).max(1)
    }
}

/// A way to speak to the master from anywhere in the program.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Link>);

impl Handle {
    /// Asks the master to replace this worker: it starts another, then tells this one to drain.
    pub fn retire(&self) {
        self.0.retire();
    }

    /// Whether the worker was told to finish what it has in hand.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.0.drain_told().is_some()
    }

    /// Waits until the worker is told to finish what it has in hand. For what goes on without an
    /// end of its own, as a WebSocket or a stream of events does: time to say good-bye.
    #[cfg(feature = "tokio")]
    pub async fn until_draining(&self) {
        self.0.until_drain().await;
    }
}

#[cfg(feature = "serve")]
fn handle_of(link: &Arc<Link>) -> Handle {
    Handle(Arc::clone(link))
}

/// Makes a connection of what came, and closes what is none.
fn adopt(fresh: Fresh) -> Option<Connection> {
    let made = Connection::new(fresh);
    made.inspect_err(|error| tell!("closed a descriptor from the master: {error}")).ok()
}

/// The ledger that the master left, if it did. What cannot be used is done without, which the master
/// learns from READY.
fn open_ledger() -> Option<Ledger> {
    std::env::var_os(LEDGER_VARIABLE)?;
    let opened = take_from_env(LEDGER_VARIABLE).and_then(Ledger::open);
    opened.inspect_err(|error| tell!("serving without a crash ledger: {error}")).ok()
}

/// The number in an environment variable, if it is set.
fn number<T: FromStr>(name: &str) -> Result<Option<T>> {
    match std::env::var(name) {
        Ok(text) => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Error::new(format!("{name}={text} is no number"))),
        },
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(Error::new(format!("{name} cannot be read")).because(error)),
    }
}
