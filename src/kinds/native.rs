//! Native workers: programs that use the worker library.
//!
//! The worker inherits its end of the channel and the pool's scoreboard, and learns their numbers
//! from its environment. Ctrl-C and `systemctl kill` reach the whole group of processes; the
//! signals that mean something to the master only are therefore ignored in workers.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::supervisor::{Seat, Who};
use crate::sys::ancillary::{Received, Sender, number_of, receive, send, send_with};
use crate::sys::process::{Identity, Preparation, Process};
use crate::wire::channel;
use crate::wire::ledger::Ledger;
use crate::wire::message::{LENGTH_MAX, Past, ToMaster, ToWorker, Token};
use crate::wire::scoreboard::{Scoreboard, SeatWords};
use crate::wire::{
    CHANNEL_VARIABLE, GENERATION_VARIABLE, LEDGER_VARIABLE, POOL_VARIABLE, SCOREBOARD_VARIABLE,
    SEAT_VARIABLE, SLOT_VARIABLE,
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
    /// By which the next master knows it, should this one be killed.
    pub(crate) token: Option<Token>,
    /// Its channel is watched.
    pub(crate) is_watched: bool,
    /// It hands connections back.
    pub(crate) hands_back: bool,
    /// It was told how to find the next master.
    pub(crate) is_welcomed: bool,
    /// The read end of its output, by the name under which it is to keep it for the next master;
    /// until it is welcomed.
    pub(crate) log: Option<(String, OwnedFd)>,
}

/// Whose queue is read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// A worker's that is gone.
    OfDead,
    /// A worker's that lives: what is no connection is sent once more.
    OfLiving,
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
    /// Where it says what its death would mean, if the pool has that.
    pub(crate) ledger: Option<Ledger>,
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
        let Start { name, directory, identity, output, ledger, .. } = start;
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
        command.env_remove(LEDGER_VARIABLE);
        if let Some(ledger) = ledger {
            let memory = ledger.as_fd().try_clone_to_owned()?;
            command.env(LEDGER_VARIABLE, number_of(&memory).to_string());
            keep.push(memory);
        }
        keep.extend([inherited, board]);
        let (ignore, name) = (IGNORED.to_vec(), Some(name));
        let preparation = Preparation { keep, directory, identity, ignore, name };
        let process = Process::start(command, preparation)?;
        let channel = Sender::new(ours)?;
        Ok(Worker::new(who, process, words, channel, theirs))
    }

    fn new(
        who: Who,
        process: Process,
        words: SeatWords,
        channel: Sender,
        theirs: OwnedFd,
    ) -> Worker {
        let (is_notorious, is_expelled, is_reaped) = (false, false, false);
        let (token, is_welcomed, log) = (None, false, None);
        let (is_watched, hands_back) = (true, false);
        Worker {
            who,
            process,
            words,
            channel,
            theirs,
            is_notorious,
            is_expelled,
            is_reaped,
            token,
            is_watched,
            hands_back,
            is_welcomed,
            log,
        }
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
        Ok(Worker::new(who, process, words, Sender::new(ours)?, theirs))
    }

    /// The next message of the worker.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`, or `InvalidData` for what is no message.
    pub(crate) fn hear(&self) -> io::Result<Heard> {
        let mut buffer = [0; LENGTH_MAX];
        match receive(self.channel.as_fd(), &mut buffer)? {
            Received::Message { len, descriptor, second, swallowed, .. } => {
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

    /// Has it keep what comes along for the next master.
    ///
    /// # Errors
    /// As [`Worker::tell`].
    pub(crate) fn entrust(&self, key: &str, what: BorrowedFd<'_>) -> io::Result<()> {
        send_with(self.channel.as_fd(), &ToWorker::Keep { key }.encode(), what, None)
    }

    /// Reads back what the worker has not received. As long as it lives, what there is no
    /// descriptor for stays in its queue.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`, and of sending again what is no connection.
    pub(crate) fn take_back(&self, queue: Queue) -> io::Result<TakenBack> {
        let (taken, others) = self.empty(queue)?;
        for Other { bytes, first, second } in others {
            match first {
                None => send(self.channel.as_fd(), &bytes)?,
                Some(first) => {
                    let second = second.as_ref().map(AsFd::as_fd);
                    send_with(self.channel.as_fd(), &bytes, first.as_fd(), second)?;
                }
            }
        }
        Ok(taken)
    }

    fn empty(&self, queue: Queue) -> io::Result<(TakenBack, Vec<Other>)> {
        let mut buffer = [0; LENGTH_MAX];
        let (mut taken, mut others) = (TakenBack::default(), Vec::new());
        loop {
            if queue != Queue::OfDead && self.theirs.try_clone().is_err() {
                return Ok((taken, others));
            }
            let (len, socket, leftover, swallowed) =
                match receive(self.theirs.as_fd(), &mut buffer)? {
                    Received::Message { len, descriptor, second, swallowed, .. } => {
                        (len, descriptor, second, swallowed)
                    }
                    Received::Empty | Received::Closed => return Ok((taken, others)),
                };
            // Without its leftover, a connection's stream has a hole.
            let socket = socket.filter(|_| !swallowed);
            taken.lost += u64::from(swallowed);
            // The master wrote it, so it is one.
            match (ToWorker::decode(&buffer[..len]), socket) {
                (Ok(ToWorker::Connection { listener, past, entry }), Some(socket)) => {
                    let client = Client { socket, past, leftover };
                    taken.connections.push((listener.to_owned(), client, entry));
                }
                (Ok(ToWorker::Ping), _) => taken.had_ping = true,
                (Ok(_), first) if queue != Queue::OfDead => {
                    others.push(Other { bytes: buffer[..len].to_vec(), first, second: leftover });
                }
                _ => {}
            }
        }
    }
}

/// A message that is no connection, with its descriptors.
struct Other {
    bytes: Vec<u8>,
    first: Option<OwnedFd>,
    second: Option<OwnedFd>,
}

/// What came back from a worker's queue.
#[derive(Debug, Default)]
pub(crate) struct TakenBack {
    /// Connections with their listeners' names and their entries in the ledger, oldest first.
    pub(crate) connections: Vec<(String, Client, Option<u32>)>,
    /// Connections that the kernel swallowed because our table is full.
    pub(crate) lost: u64,
    /// A PING was among it.
    pub(crate) had_ping: bool,
}
