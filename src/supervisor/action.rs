//! Orders to the shell, and what it is to write down.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    ConnectionId, Edition, Generation, ListenerId, PoolId, Seat, Slot, Toll, WishId, WorkerId,
};

/// An order. Named in the imperative; a failure to carry it out is reported as a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a worker.
    Spawn(Spawn),
    /// Read the worker's queue back (if `take_back`: report [`super::Event::TakenBack`] for one
    /// connection after the other, and carry out what follows of each by
    /// [`super::Supervisor::poll_dispatch`]; once nobody has room the rest may stay), then tell it to
    /// drain.
    Drain {
        /// The worker.
        worker: WorkerId,
        /// What it still has in hand after this time is cut.
        deadline: Duration,
        /// Others can have what it has not received, and it might not take that and hand it back.
        take_back: bool,
        /// Others can have its live connections.
        handback: bool,
    },
    /// Read the worker's queue back, send PING, and report.
    TakeBack {
        /// The worker.
        worker: WorkerId,
    },
    /// Tell the worker where to accept from now on. Not about one that has been told already: telling
    /// it again changes nothing.
    Admit {
        /// The worker.
        worker: WorkerId,
    },
    /// Send the worker PING, and report [`super::Event::TakenBack`].
    Ping {
        /// The worker.
        worker: WorkerId,
    },
    /// Send the worker a connection of the shell's own, as if it came from this listener, ask over
    /// it whether the worker works, and report [`super::Event::Probed`].
    Probe {
        /// The worker.
        worker: WorkerId,
        /// The listener.
        listener: ListenerId,
        /// What the worker was started from.
        edition: Edition,
    },
    /// SIGTERM to the worker's group.
    Terminate {
        /// The worker.
        worker: WorkerId,
    },
    /// SIGKILL to the worker's group.
    Kill {
        /// The worker.
        worker: WorkerId,
    },
    /// Send a held connection.
    Dispatch {
        /// To this worker.
        worker: WorkerId,
        /// This one.
        connection: ConnectionId,
    },
    /// Close a held connection, answering a new one where an answer is configured.
    Refuse {
        /// Where it came from.
        listener: ListenerId,
        /// This one.
        connection: ConnectionId,
    },
    /// What to do with clients that arrive.
    Attend {
        /// The listener.
        listener: ListenerId,
        /// What to do.
        attention: Attention,
    },
    /// Close a listener that no pool uses any more.
    Close {
        /// The listener.
        listener: ListenerId,
    },
    /// Accept and dispatch what waits in our own listeners, close them, pause the inherited ones,
    /// and report [`super::Event::Swept`].
    Sweep,
    /// Nothing refers to this edition any more.
    Forget {
        /// The edition.
        edition: Edition,
    },
    /// Tell a caller the outcome of his wish.
    Reply {
        /// The wish.
        wish: WishId,
        /// Done, or why not.
        outcome: Result<Generation, String>,
    },
    /// Tell systemd.
    Announce(Announcement),
    /// Write the journal.
    Record(Record),
    /// End the master. Every worker is gone.
    Exit {
        /// Why it is a failure.
        failure: Option<String>,
    },
}

impl Action {
    /// Whether it says that goal or roster have changed, not only where connections are.
    pub(super) fn is_lasting(&self) -> bool {
        match self {
            Action::TakeBack { .. }
            | Action::Admit { .. }
            | Action::Ping { .. }
            | Action::Probe { .. }
            | Action::Dispatch { .. }
            | Action::Refuse { .. }
            | Action::Attend { .. } => false,
            Action::Spawn(_)
            | Action::Drain { .. }
            | Action::Terminate { .. }
            | Action::Kill { .. }
            | Action::Close { .. }
            | Action::Sweep
            | Action::Forget { .. }
            | Action::Reply { .. }
            | Action::Announce(_)
            | Action::Record(_)
            | Action::Exit { .. } => true,
        }
    }
}

/// All about a worker to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spawn {
    /// Who it is.
    pub who: Who,
    /// Its place on the scoreboard.
    pub seat: Seat,
    /// What the shell pinned for it.
    pub edition: Edition,
    /// Requests after which it asks to be replaced, 0: never.
    pub request_limit: u64,
    /// No other worker of the pool serves.
    pub last_resort: bool,
}

/// What a listener's clients meet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attention {
    /// They wait in the kernel's queue.
    #[default]
    Pause,
    /// They are accepted and dispatched.
    Accept,
    /// They are accepted and answered by the shell.
    Answer,
}

/// What systemd is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// READY=1
    Ready,
    /// RELOADING=1
    Reloading,
    /// STOPPING=1
    Stopping,
}

/// A worker, as people know it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Who {
    /// The process.
    pub worker: WorkerId,
    /// Its pool.
    pub pool: PoolId,
    /// Its position.
    pub slot: Slot,
    /// Its generation.
    pub generation: Generation,
}

/// Why a worker is told to drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its successor serves.
    Replaced,
    /// The pool has shrunk or is gone.
    Surplus,
    /// The service ends.
    Stop,
    /// It stops by itself.
    Own,
}

/// A transition, for the journal. One line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A worker takes connections.
    Ready(Who),
    /// The canary serves beside the old workers, on trial.
    OnTrial {
        /// Who.
        who: Who,
        /// For how long.
        time: Duration,
    },
    /// A worker did not get ready.
    StartFailed {
        /// Who.
        who: Who,
        /// A sentence.
        why: String,
        /// When the slot is tried again; `None`: not by itself.
        retry: Option<Duration>,
    },
    /// A worker of a master that was killed is with this one again.
    Joined(Who),
    /// It has not come back in time and is killed.
    Missing(Who),
    /// A serving worker is gone unasked.
    Lost {
        /// Who.
        who: Who,
        /// How.
        why: String,
        /// Connections that it had taken and not finished, and that nobody could save.
        cut: u64,
        /// Clients who were told that their requests are lost.
        answered: u64,
        /// Connections that go to others.
        rescued: u64,
    },
    /// A worker takes nothing while connections wait for it; it is killed.
    Stalled {
        /// Who.
        who: Who,
        /// For how long.
        since: Duration,
        /// Connections in its hand.
        in_hand: u64,
    },
    /// A worker does not work any more, as it says or as its silence says; it is killed.
    Broken {
        /// Who.
        who: Who,
        /// As in "web/1 {why}".
        why: String,
    },
    /// A worker is told to drain, or does so by itself.
    Draining {
        /// Who.
        who: Who,
        /// Why.
        reason: Reason,
    },
    /// A draining worker did not finish in time and is ended.
    Overdue {
        /// Who.
        who: Who,
        /// Connections in its hand.
        in_hand: u64,
    },
    /// A drained or abandoned worker is gone.
    Left {
        /// Who.
        who: Who,
        /// Connections that it gave back alive.
        handed_back: u64,
        /// Connections that it had taken and not finished, and that nobody could save.
        cut: u64,
        /// Clients who were told that their requests are lost.
        answered: u64,
        /// Connections that go to others.
        rescued: u64,
    },
    /// After the master was killed, everything is as it was.
    Resumed {
        /// The newest generation.
        generation: Generation,
        /// How long it took.
        took: Duration,
    },
    /// A rollout has begun; the first is the boot.
    RolloutBegun {
        /// Its generation.
        generation: Generation,
        /// The pools that roll.
        pools: Vec<PoolId>,
    },
    /// Every slot serves the new generation.
    RolloutDone {
        /// Its generation.
        generation: Generation,
        /// How long it took.
        took: Duration,
    },
    /// The rollout failed; its pools go back to what they were.
    RollingBack {
        /// The generation that failed.
        generation: Generation,
        /// A sentence.
        why: String,
    },
    /// The pools are what they were before the rollout.
    RolledBack {
        /// The generation that failed.
        generation: Generation,
        /// How long it took, from the start of the rollout.
        took: Duration,
    },
    /// The last worker that a reload retired is gone.
    Accounted {
        /// The reload's generation.
        generation: Generation,
        /// What became of the connections of those workers.
        toll: Toll,
    },
    /// A pool's generation fails too often and is not started again.
    GaveUp {
        /// The pool.
        pool: PoolId,
        /// The generation.
        generation: Generation,
        /// A sentence.
        why: String,
        /// Workers of the pool that still serve.
        serving: u32,
    },
    /// A pool has another size.
    Resized {
        /// The pool.
        pool: PoolId,
        /// Workers from now on.
        workers: u32,
    },
    /// The service ends because nobody uses it.
    Idle {
        /// For how long nobody has.
        quiet: Duration,
    },
    /// The service ends.
    Stopping {
        /// Workers that drain.
        workers: u32,
    },
}
