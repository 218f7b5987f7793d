//! Facts, reported by the shell after they happened.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConnectionId, Edition, ListenerId, Policy, PoolId, WishId, WorkerId};

/// A connection in the shell's hand that waits for a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Where it came from.
    pub listener: ListenerId,
    /// Which one.
    pub connection: ConnectionId,
    /// What it has behind it.
    pub past: Past,
    /// Identifies the client for [`super::Balance::SourceHash`].
    #[serde(default)]
    pub source: Option<u64>,
}

/// What a connection has behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Past {
    /// No worker has read from it.
    New,
    /// The same, and its client has said nothing yet.
    Silent,
    /// No worker had it; it waited here until its client said something, or was long enough.
    Spoken,
    /// A worker handed it back at the boundary of a request.
    Idle,
    /// The same, with bytes that the worker had read. Only a worker that can hand back can take it.
    Leftover,
}

/// A fact. Named in the past tense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Someone wants these pools as they are now configured; `None`: without this pool. The first
    /// wish is the boot. Programs are pinned and listeners bound under `edition`.
    ReloadRequested {
        /// Gets the outcome.
        wish: WishId,
        /// What the shell pinned for it.
        edition: Edition,
        /// The pools to roll.
        pools: Vec<(PoolId, Option<Policy>)>,
    },
    /// Someone wanted a reload that could not even begin: what is configured cannot be had.
    ReloadRefused,
    /// Someone wants another number of workers, until the master ends.
    ScaleRequested {
        /// The pool.
        pool: PoolId,
        /// How many.
        scale: Scale,
    },
    /// The configuration changed in this pool's `workers` alone.
    Resized {
        /// The pool.
        pool: PoolId,
        /// Its configured size, 1 or more.
        workers: u32,
    },
    /// Someone wants the service to end.
    StopRequested,
    /// What waited in our own listeners when the stop came is dispatched; they are closed.
    Swept,
    /// A worker's process could not be made.
    SpawnFailed {
        /// The worker that never was.
        worker: WorkerId,
        /// A sentence.
        why: String,
    },
    /// A worker said READY.
    Ready {
        /// The worker.
        worker: WorkerId,
        /// Connections it can hold at once, 0: as many as come.
        limit: u32,
        /// It hands live connections back at a drain, and takes those of others.
        handback: bool,
    },
    /// A worker of a master that was killed has found this one, and its queue was read back. Its
    /// counters are exact: what it has not taken is not in its queue.
    Joined {
        /// The worker.
        worker: WorkerId,
        /// Connections it can hold at once, 0: as many as come.
        limit: u32,
        /// It hands live connections back at a drain, and takes those of others.
        handback: bool,
        /// It drains: the master was killed before it could write that down.
        draining: bool,
        /// Of those that it has taken, the ones that it handed back and a master has received.
        handed_back: u64,
        /// What it had not received, oldest first.
        rescued: Vec<Held>,
    },
    /// A worker's READY cannot be accepted.
    Unfit {
        /// The worker.
        worker: WorkerId,
        /// A sentence.
        why: String,
    },
    /// A probe ([`super::Action::Probe`]) has come to its end.
    Probed {
        /// The worker.
        worker: WorkerId,
        /// The worker works; or why not, as in "its probe {why}".
        result: Result<(), String>,
        /// The worker still has the probe's connection.
        is_left: bool,
    },
    /// A probe's connection was read back, or could not be sent: the worker never had it.
    /// [`Event::Probed`] follows only in the second case.
    ProbeReturned {
        /// The worker.
        worker: WorkerId,
    },
    /// A worker has room again, and said so.
    Room {
        /// The worker.
        worker: WorkerId,
    },
    /// A worker asked to be replaced.
    RetireRequested {
        /// The worker.
        worker: WorkerId,
    },
    /// A worker said that it stops, unasked. It is not told to drain.
    Leaving {
        /// The worker.
        worker: WorkerId,
    },
    /// A worker asks for more time to get ready or to drain.
    Extended {
        /// The worker.
        worker: WorkerId,
        /// From now on.
        time: Duration,
    },
    /// A worker does not work any more, as it says or as its silence says.
    Broken {
        /// The worker.
        worker: WorkerId,
        /// As in "web/1 {why}".
        why: String,
    },
    /// A draining worker gave a live connection back. It does not count it as finished.
    HandedBack {
        /// The worker.
        worker: WorkerId,
        /// The connection. `None`: it was lost on the way, for want of a descriptor.
        held: Option<Held>,
    },
    /// What a draining worker still seemed to have was handed back: the master before has passed it
    /// on, and was killed before it could count that. Whoever got it counts it.
    PassedOn {
        /// The worker that handed it back.
        worker: WorkerId,
    },
    /// A draining worker has nothing in hand any more.
    Drained {
        /// The worker.
        worker: WorkerId,
    },
    /// A worker's queue was read back.
    TakenBack {
        /// The worker.
        worker: WorkerId,
        /// What it had not received, oldest first.
        connections: Vec<Held>,
        /// One PING more is in its queue than before. One that was read back is sent again and
        /// does not count.
        pinged: bool,
    },
    /// A worker's process is gone. Its channel was read to the end first, then its ledger.
    Exited {
        /// The worker.
        worker: WorkerId,
        /// How: `exited with status 1`, `was killed by SIGSEGV`.
        how: String,
        /// What it had not received, oldest first; then what it had in hand and others can go on with.
        rescued: Vec<Held>,
        /// Clients whose requests were under way, and who were told so.
        answered: u64,
    },
    /// A connection could not be sent, though it was ordered ([`super::Action::Dispatch`]) or noted
    /// ([`super::Supervisor::note_dispatched`]).
    Returned {
        /// Held by the shell again.
        held: Held,
        /// The worker that did not get it.
        worker: WorkerId,
        /// This worker's queue is full, whatever it counted; else the system was out of something.
        is_full: bool,
    },
    /// A client was accepted who has said nothing yet, and whose first byte is waited for.
    AcceptedSilent {
        /// Held by the shell.
        held: Held,
    },
    /// A silent client has said something, or need not any more.
    Spoke {
        /// Which one.
        connection: ConnectionId,
    },
    /// A silent client has gone. The shell has closed its connection.
    HungUp {
        /// Which one.
        connection: ConnectionId,
    },
    /// A worker answered that it does not take the connection that it was sent.
    Declined {
        /// Held by the shell again.
        held: Held,
        /// The worker.
        worker: WorkerId,
    },
    /// A worker takes connections of this listener from now on, where it did not before.
    Opened {
        /// The worker.
        worker: WorkerId,
        /// One of its pool's.
        listener: ListenerId,
    },
    /// A worker takes no connections of this listener any more, or not yet.
    Closed {
        /// The worker.
        worker: WorkerId,
        /// One of its pool's.
        listener: ListenerId,
    },
    /// The system has no descriptors left for another connection.
    AcceptFailed {
        /// Where one waits.
        listener: ListenerId,
    },
    /// The shell answered a client while told to ([`super::Attention::Answer`]), not by
    /// [`super::Action::Refuse`].
    Refused {
        /// Where it came from.
        listener: ListenerId,
    },
}

/// A wish about a pool's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Exactly this many, 1 or more.
    To(u32),
    /// One more.
    More,
    /// One fewer, but never none.
    Fewer,
}
