//! What a pool's configuration demands of the mind, and the names of things.
//!
//! A [`Policy`] is the part of a pool's configuration that decisions depend on; how a worker is
//! started (its program, user, environment) is none of the mind's business and stays with the
//! shell under an [`Edition`].
//!
//! Ids are types, and they print short (`w2`, `g5`): transcripts, log lines and panics all speak
//! the same language.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $letter:literal, $repr:ty) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $repr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(
    /// A pool: workers that share a command and listeners. Keeps its number over reloads.
    PoolId, "p", u32
);
id!(
    /// One worker process, from spawn to reap. Never reused.
    WorkerId, "w", u64
);
id!(
    /// A position in a pool to be filled by a worker, 1…N, stable over reloads.
    Slot, "s", u32
);
id!(
    /// A worker's own place on its pool's scoreboard, from 0.
    Seat, "seat", u32
);
id!(
    /// Counts the goals.
    Generation, "g", u64
);
id!(
    /// What the shell pinned for a goal: programs, working directories, environments.
    Edition, "e", u64
);
id!(
    /// A listening socket.
    ListenerId, "l", u32
);
id!(
    /// A connection that the master holds at the moment.
    ConnectionId, "c", u64
);
id!(
    /// A wish whose caller awaits the outcome.
    WishId, "wish", u64
);

/// Who accepts a pool's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Accept {
    /// The master, which passes them on.
    #[default]
    Master,
    /// The workers, from listening sockets that all of them share. The mind sees none of them, or
    /// what the workers count; see [`Policy::counted`].
    Workers,
}

/// How a pool's connections are spread over its workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Balance {
    /// To the worker with the fewest connections in hand.
    #[default]
    LeastConnections,
    /// To one after the other, as long as they have room.
    RoundRobin,
    /// The same client address to the same slot, as long as it has room.
    SourceHash,
}

/// What happens to clients whom no worker can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unavailable {
    /// They wait in the kernel's queue.
    #[default]
    Wait,
    /// After this time without any worker that has room, they are answered by the shell.
    AnswerAfter(Duration),
}

/// Connections that may wait in one worker's channel by default. Far below the 278 small messages that
/// a socket buffer holds by default, so that a send never finds it full.
pub(super) const WINDOW: u64 = 32;

/// The part of a pool's configuration that decisions depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// The pool's name.
    pub name: String,
    /// How many workers serve, 1 or more.
    pub workers: u32,
    /// The listeners whose connections this pool gets. None: a resident pool.
    pub listeners: Vec<ListenerId>,
    /// One of its listeners is held by nobody but the service: once that has ended, no client can
    /// start it again.
    pub is_bound_here: bool,
    /// Who accepts connections.
    pub accept: Accept,
    /// Where workers accept: they wait to be admitted, count what they accept, and take what others
    /// hand back.
    pub counted: bool,
    /// Connections that may wait in one worker's channel, 1 or more.
    pub window: u64,
    /// How connections are spread.
    pub balance: Balance,
    /// From spawn to READY.
    pub start_timeout: Duration,
    /// From the order to drain until the worker is gone.
    pub drain_timeout: Duration,
    /// How long connections may wait in a worker's channel while it takes none. `None`: for ever.
    pub watchdog: Option<Duration>,
    /// Connections in the hand of one worker. 0: what the worker announces.
    pub max_connections: u32,
    /// Requests after which a worker is replaced, give or take a tenth. 0: never.
    pub max_requests: u64,
    /// Failed starts in a row of one slot, or losses per slot within [`Policy::restart_window`],
    /// after which the pool gives up.
    pub restart_limit: u32,
    /// The window in which losses count, and the time after which a generation is proven good.
    pub restart_window: Duration,
    /// Workers that may be starting at once during a rollout, 1 or more.
    pub surge: u32,
    /// How long the first worker of a new generation serves beside the old ones, on trial, before
    /// the others follow.
    pub canary: Duration,
    /// That worker is asked whether it works: once before it serves, then once a second on trial.
    pub probe: bool,
    /// What happens to clients whom no worker can take.
    pub unavailable: Unavailable,
}

impl Default for Policy {
    /// The defaults of the configuration, for a pool without a name and without listeners.
    fn default() -> Self {
        Policy {
            name: String::new(),
            workers: 1,
            listeners: Vec::new(),
            is_bound_here: false,
            accept: Accept::default(),
            counted: false,
            window: WINDOW,
            balance: Balance::default(),
            start_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            watchdog: Some(Duration::from_secs(30)),
            max_connections: 0,
            max_requests: 0,
            restart_limit: 5,
            restart_window: Duration::from_secs(60),
            surge: 1,
            canary: Duration::ZERO,
            probe: false,
            unavailable: Unavailable::default(),
        }
    }
}

impl Policy {
    /// Whether its workers accept by themselves, as soon as they are admitted.
    #[must_use]
    pub fn admits(&self) -> bool {
        self.accept == Accept::Workers && self.counted
    }

    /// Whether it is known what becomes of its connections.
    #[must_use]
    pub fn is_seen(&self) -> bool {
        self.accept == Accept::Master || self.counted
    }
}
