//! How each kind of worker is started and spoken to.
//!
//! Every worker is a process with a seat on its pool's scoreboard. What stands between it and the
//! master differs: a [`Link`]. `native` workers use the worker library: a channel of messages,
//! connections by descriptor, and counters that they write themselves. For other kinds the master
//! writes the counters in the worker's place, as its answers come, so that the mind sees one kind
//! of worker only.

pub(crate) mod inherit;
pub(crate) mod native;
pub(crate) mod notice;
pub(crate) mod pipe;
pub(crate) mod piped;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use crate::config::{Kind, Manner};
use crate::supervisor::{Seat, Who};
use crate::sys::process::{Identity, Preparation, Process};
use crate::wire::ledger::Ledger;
use crate::wire::scoreboard::{Scoreboard, SeatWords};
use crate::wire::{GENERATION_VARIABLE, POOL_VARIABLE, SLOT_VARIABLE};

/// A running worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) who: Who,
    pub(crate) process: Process,
    pub(crate) words: SeatWords,
    /// It sent something that is no message; said once.
    pub(crate) is_notorious: bool,
    /// It cannot be spoken to any more and was killed for it.
    pub(crate) is_expelled: bool,
    /// It is reaped: its number may mean another process.
    pub(crate) is_reaped: bool,
    /// What it says is waited for.
    pub(crate) is_watched: bool,
    pub(crate) link: Link,
}

/// What stands between master and worker.
#[derive(Debug)]
pub(crate) enum Link {
    /// It uses the worker library.
    Native(native::Link),
    /// It takes listening sockets from its service manager, and accepts by itself.
    Inherit(Box<inherit::Link>),
    /// It speaks by Node's IPC channel.
    Piped(Box<piped::Link>),
}

impl Worker {
    pub(crate) fn new(who: Who, process: Process, words: SeatWords, link: Link) -> Worker {
        let (is_notorious, is_expelled, is_reaped, is_watched) = (false, false, false, true);
        Worker { who, process, words, is_notorious, is_expelled, is_reaped, is_watched, link }
    }

    /// The channel of a native worker.
    pub(crate) fn native(&self) -> Option<&native::Link> {
        match &self.link {
            Link::Native(link) => Some(link),
            Link::Inherit(_) | Link::Piped(_) => None,
        }
    }

    /// The same, to be changed.
    pub(crate) fn native_mut(&mut self) -> Option<&mut native::Link> {
        match &mut self.link {
            Link::Native(link) => Some(link),
            Link::Inherit(_) | Link::Piped(_) => None,
        }
    }

    /// What there is to know of an inherit worker.
    pub(crate) fn inherit(&self) -> Option<&inherit::Link> {
        match &self.link {
            Link::Inherit(link) => Some(link),
            Link::Native(_) | Link::Piped(_) => None,
        }
    }

    /// The same, to be changed.
    pub(crate) fn inherit_mut(&mut self) -> Option<&mut inherit::Link> {
        match &mut self.link {
            Link::Inherit(link) => Some(link),
            Link::Native(_) | Link::Piped(_) => None,
        }
    }

    /// What there is to know of a worker that speaks by Node's IPC channel.
    pub(crate) fn piped(&self) -> Option<&piped::Link> {
        match &self.link {
            Link::Piped(link) => Some(link),
            Link::Native(_) | Link::Inherit(_) => None,
        }
    }

    /// The same, to be changed.
    pub(crate) fn piped_mut(&mut self) -> Option<&mut piped::Link> {
        match &mut self.link {
            Link::Piped(link) => Some(link),
            Link::Native(_) | Link::Inherit(_) => None,
        }
    }
}

/// What a worker is started with.
pub(crate) struct Start<'a> {
    pub(crate) who: Who,
    pub(crate) pool: &'a str,
    pub(crate) seat: Seat,
    pub(crate) board: Scoreboard,
    pub(crate) words: SeatWords,
    /// Where it says what its death would mean, if the pool has that.
    pub(crate) ledger: Option<Ledger>,
    pub(crate) command: Command,
    /// What the program is told that it is called.
    pub(crate) name: OsString,
    pub(crate) keep: Vec<OwnedFd>,
    /// What the program is executed from.
    pub(crate) hold: Vec<OwnedFd>,
    pub(crate) directory: Option<OwnedFd>,
    pub(crate) identity: Option<Identity>,
    pub(crate) manner: Manner,
    /// What there is to listen on, for workers that accept, or ask for it.
    pub(crate) offer: inherit::Offer,
    /// Its standard output and error; `None`: the master's own.
    pub(crate) output: Option<OwnedFd>,
}

/// Starts a worker.
///
/// # Errors
/// Those of the system calls; `NotFound` when the program is missing.
pub(crate) fn start(mut start: Start<'_>) -> io::Result<Worker> {
    let Who { slot, generation, .. } = start.who;
    if start.manner.kind == Kind::Inherit {
        start.command = inherit::expanded(&start)?;
    }
    start
        .command
        .stdin(Stdio::null())
        .env(POOL_VARIABLE, start.pool)
        .env(SLOT_VARIABLE, slot.0.to_string())
        .env(GENERATION_VARIABLE, generation.0.to_string());
    if let Some(output) = start.output.take() {
        start.command.stdout(output.try_clone()?).stderr(output);
    }
    match start.manner.kind {
        Kind::Native => native::start(start),
        Kind::Inherit => inherit::start(start),
        Kind::Node | Kind::Ipc => piped::start(start),
    }
}

impl Start<'_> {
    /// What every kind prepares in the same way.
    pub(crate) fn prepare(self) -> (Command, Preparation) {
        let Start { command, name, keep, hold, directory, identity, manner, .. } = self;
        let (place, ignore, name) = (Vec::new(), Vec::new(), Some(name));
        let limits = manner.limits.to_set();
        (command, Preparation { keep, place, hold, directory, identity, limits, ignore, name })
    }
}

impl Link {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Link::Native(_) => Kind::Native,
            Link::Inherit(_) => Kind::Inherit,
            Link::Piped(link) => link.words.kind(),
        }
    }
}

/// What becomes readable when the worker has said something.
impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Link::Native(link) => link.channel.as_fd(),
            Link::Inherit(link) => link.as_fd(),
            Link::Piped(link) => link.as_fd(),
        }
    }
}
