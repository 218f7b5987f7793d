//! Native workers: programs that use the worker library.
//!
//! The worker inherits its end of the channel and the pool's scoreboard, and learns their numbers
//! from its environment. Ctrl-C and `systemctl kill` reach the whole group of processes; the
//! signals that mean something to the master only are therefore ignored in workers.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::supervisor::{Seat, Who};
use crate::sys::ancillary::{Received, Sender, number_of, receive, send};
use crate::sys::process::{Identity, Preparation, Process};
use crate::wire::channel;
use crate::wire::message::{LENGTH_MAX, Past, ToMaster, ToWorker};
use crate::wire::scoreboard::{Scoreboard, SeatWords};
use crate::wire::{
    CHANNEL_VARIABLE, GENERATION_VARIABLE, POOL_VARIABLE, SCOREBOARD_VARIABLE, SEAT_VARIABLE,
    SLOT_VARIABLE,
};

/// Signals that are the master's business.
const IGNORED: [Signal; 3] = [Signal::SIGUSR1, Signal::SIGINT, Signal::SIGHUP];

/// A running native worker, and the master's end of its channel.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) who: Who,
    pub(crate) process: Process,
    pub(crate) words: SeatWords,
    pub(crate) channel: Sender,
    /// A duplicate of the worker's end: the queue outlives the worker, and can be read back.
    pub(crate) theirs: OwnedFd,
    /// It sent something that is no message; said once.
    pub(crate) is_notorious: bool,
    /// It cannot be spoken to any more and was killed for it.
    pub(crate) is_expelled: bool,
    /// It is reaped: its number may mean another process.
    pub(crate) is_reaped: bool,
}

/// What there is to hear from a worker.
pub(crate) enum Heard {
    /// With the descriptors that came along.
    Message(ToMaster, Descriptors),
    Nothing,
    /// It has shut the channel down, or sent an empty message, which says the same. Its death is
    /// never heard here: the duplicate of its end keeps the channel open.
    End,
}

/// What comes along with a message.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    pub(crate) socket: Option<OwnedFd>,
    /// A memfd with what a worker has read and not used.
    pub(crate) leftover: Option<OwnedFd>,
    /// One of them got lost, for want of a free descriptor.
    pub(crate) swallowed: bool,
}

/// A client's connection on its way from worker to worker.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) socket: OwnedFd,
    /// `None`: no worker has received it yet.
    pub(crate) past: Option<Past>,
    pub(crate) leftover: Option<OwnedFd>,
}

/// What a worker is started with.
pub(crate) struct Start<'a> {
    pub(crate) who: Who,
    pub(crate) pool: &'a str,
    pub(crate) seat: Seat,
    pub(crate) board: Scoreboard,
    pub(crate) words: SeatWords,
    pub(crate) command: Command,
    /// What the program is told that it is called.
    pub(crate) name: OsString,
    pub(crate) keep: Vec<OwnedFd>,
    pub(crate) directory: Option<OwnedFd>,
    pub(crate) identity: Option<Identity>,
    /// Its standard output and error; `None`: the master's own.
    pub(crate) output: Option<OwnedFd>,
}

impl Worker {
    /// Starts a worker.
    ///
    /// # Errors
    /// Those of the system calls; `NotFound` when the program is missing.
    pub(crate) fn start(start: Start<'_>) -> io::Result<Worker> {
        let Start { who, pool, seat, board, words, mut command, mut keep, .. } = start;
        let Start { name, directory, identity, output, .. } = start;
        let (ours, theirs) = channel::pair()?;
        let inherited = theirs.try_clone()?;
        let board = board.as_fd().try_clone_to_owned()?;
        command
            .stdin(Stdio::null())
            .env(CHANNEL_VARIABLE, number_of(&inherited).to_string())
            .env(SCOREBOARD_VARIABLE, number_of(&board).to_string())
            .env(SEAT_VARIABLE, seat.0.to_string())
            .env(POOL_VARIABLE, pool)
            .env(SLOT_VARIABLE, who.slot.0.to_string())
            .env(GENERATION_VARIABLE, who.generation.0.to_string());
        if let Some(output) = output {
            command.stdout(output.try_clone()?).stderr(output);
        }
        keep.extend([inherited, board]);
        let (ignore, name) = (IGNORED.to_vec(), Some(name));
        let preparation = Preparation { keep, directory, identity, ignore, name };
        let process = Process::start(command, preparation)?;
        let channel = Sender::new(ours)?;
        let (is_notorious, is_expelled, is_reaped) = (false, false, false);
        Ok(Worker { who, process, words, channel, theirs, is_notorious, is_expelled, is_reaped })
    }

    /// One that runs already, and the descriptors that somebody kept for us: our end of its channel,
    /// and a duplicate of its own.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub(crate) fn resumed(
        who: Who,
        process: Process,
        words: SeatWords,
        ours: OwnedFd,
        theirs: OwnedFd,
    ) -> io::Result<Worker> {
        let channel = Sender::new(ours)?;
        let (is_notorious, is_expelled, is_reaped) = (false, false, false);
        Ok(Worker { who, process, words, channel, theirs, is_notorious, is_expelled, is_reaped })
    }

    /// The next message of the worker.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`, or `InvalidData` for what is no message.
    pub(crate) fn hear(&self) -> io::Result<Heard> {
        let mut buffer = [0; LENGTH_MAX];
        match receive(self.channel.as_fd(), &mut buffer)? {
            Received::Message { len, descriptor, second, swallowed } => {
                let descriptors = Descriptors { socket: descriptor, leftover: second, swallowed };
                ToMaster::decode(&buffer[..len])
                    .map(|message| Heard::Message(message, descriptors))
                    .map_err(|wrong| io::Error::new(io::ErrorKind::InvalidData, wrong.to_string()))
            }
            Received::Empty => Ok(Heard::Nothing),
            Received::Closed => Ok(Heard::End),
        }
    }

    /// Tells the worker something that carries no descriptor.
    ///
    /// # Errors
    /// `WouldBlock` when its queue is full, else those of `send(2)`.
    pub(crate) fn tell(&self, message: &ToWorker<'_>) -> io::Result<()> {
        send(self.channel.as_fd(), &message.encode())
    }

    /// Reads back what the worker has not received. As long as it lives, what there is no
    /// descriptor for stays in its queue.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`.
    pub(crate) fn take_back(&self, is_alive: bool) -> io::Result<TakenBack> {
        let mut buffer = [0; LENGTH_MAX];
        let mut taken = TakenBack::default();
        loop {
            if is_alive && self.theirs.try_clone().is_err() {
                return Ok(taken);
            }
            let (len, socket, leftover, swallowed) =
                match receive(self.theirs.as_fd(), &mut buffer)? {
                    Received::Message { len, descriptor, second, swallowed } => {
                        (len, descriptor, second, swallowed)
                    }
                    Received::Empty | Received::Closed => return Ok(taken),
                };
            // Without its leftover, a connection's stream has a hole.
            let socket = socket.filter(|_| !swallowed);
            taken.lost += u64::from(swallowed);
            // The master wrote it, so it is one.
            match (ToWorker::decode(&buffer[..len]), socket) {
                (Ok(ToWorker::Connection { listener, past }), Some(socket)) => {
                    let client = Client { socket, past, leftover };
                    taken.connections.push((listener.to_owned(), client));
                }
                (Ok(ToWorker::Ping), _) => taken.had_ping = true,
                _ => {}
            }
        }
    }
}

/// What came back from a worker's queue.
#[derive(Debug, Default)]
pub(crate) struct TakenBack {
    /// Connections with their listeners' names, oldest first.
    pub(crate) connections: Vec<(String, Client)>,
    /// Connections that the kernel swallowed because our table is full.
    pub(crate) lost: u64,
    /// A PING was among it.
    pub(crate) had_ping: bool,
}
